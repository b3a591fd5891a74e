"""Spikes as times or events, in place of dense (T, B, N) tensors of zeros and ones.

========================== ==============================================================
:class:`SpikeTimes`        one time for each neuron
:class:`SpikeEvents`       any number of spikes for each input unit
:class:`AveragedSpikes`    spike times behind an average pooling
:class:`DelayedSpikes`     spike times or events that arrive between two steps
:class:`LazyCurrent`       the current of a linear layer from any of these
:class:`ConvCurrent`       the current of a convolution from any of these
========================== ==============================================================

Each class has the shape `(T, B, *features)` of the dense tensor. Operations that support spikes
receive them unchanged: ``torch.nn.Linear``, ``torch.nn.Conv1d`` and ``Conv2d``, flattening,
``to()``, average pooling. Every other torch function and tensor method receives the dense tensor,
and a :class:`MaterializationWarning` names the operation.

Do not change the tensors of spikes in place. A custom ``torch.autograd.Function`` bypasses
``__torch_function__``: pass ``x.to_dense()``, or no gradient flows. Layers compute from spike times
in the type of their weights, also under autocast.
"""

from . import between as between
from . import registration as registration
from ._base import Spikes
from .current import ConvCurrent, LazyCurrent
from .delayed import DelayedSpikes
from .events import SpikeEvents
from .lazy import LazyMembrane, LazyTensor, MaterializationWarning
from .pooling import AveragedSpikes
from .times import SpikeTimes

__all__ = [
    "AveragedSpikes",
    "ConvCurrent",
    "DelayedSpikes",
    "LazyCurrent",
    "LazyMembrane",
    "LazyTensor",
    "MaterializationWarning",
    "SpikeEvents",
    "SpikeTimes",
    "Spikes",
]
