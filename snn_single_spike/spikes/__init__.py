"""Spikes as the times they happen at, instead of dense (T, B, N) tensors of zeros.

========================== ==============================================================
:class:`SpikeTimes`        one time for each neuron
:class:`SpikeEvents`       any number of spikes for each input unit
:class:`AveragedSpikes`    spike times behind an average pooling
:class:`LazyCurrent`       the current of a linear layer from any of these
========================== ==============================================================

Each has the shape (T, B, *features) of a dense tensor. Operations that support spikes receive them
unchanged: ``torch.nn.Linear``, flattening, moving by ``to()``, average pooling. Every other torch
function and tensor method receives the dense tensor, and a :class:`MaterializationWarning` names
it. The tensors that spikes hold must not be changed in place. A custom ``torch.autograd.Function``
bypasses ``__torch_function__``: pass ``x.to_dense()``, or no gradient flows. Layers from spike
times are computed in the type of their weights; autocast does not reach them.
"""

from . import registration as registration
from ._base import Spikes
from .current import LazyCurrent
from .events import SpikeEvents
from .lazy import LazyMembrane, LazyTensor, MaterializationWarning
from .pooling import AveragedSpikes
from .times import SpikeTimes

__all__ = [
    "AveragedSpikes",
    "LazyCurrent",
    "LazyMembrane",
    "LazyTensor",
    "MaterializationWarning",
    "SpikeEvents",
    "SpikeTimes",
    "Spikes",
]
