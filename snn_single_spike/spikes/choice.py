"""Measured rules: whether a layer is faster from spike times than from dense spikes.

The rules hold for the compiled CPU loops, forward and backward, with one thread and with two;
docs/performance.md has the measurement. They say no where nothing was measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ._base import Spikes

_STATES = (torch.float32, torch.float64)
LEAST_OUTPUTS = 64
LEAST_CURRENTS = 100_000
"""Elements (T * B * outputs) of a current: below, handling spike times takes the time saved."""
LEAST_PRODUCTS = 20_000_000
"""Multiplications (T * B * inputs * outputs) of a linear layer on dense spikes."""
LEAST_CONV_PRODUCTS = 64_000_000
"""Multiplications of a convolution on dense spikes."""
_CONV_STEPS = 64
_CONV_SHARE = 0.01
_ENTRIES = 60
_ENTRIES_IN_LOOPS, _ENTRIES_OF_NARROW_LAYERS = 6, 12
_WIDE = 120
_SHARE = 0.1
_COLLECTED = 0.04
_SAMPLED = 1 << 15


def is_measured(backend: str, like: Tensor) -> bool:
    """Whether the rules hold for tensors like ``like``."""
    if is_traced() or torch.is_autocast_enabled("cpu"):
        return False
    return like.dtype in _STATES and _in_loops(backend, like)


def _in_loops(backend: str, like: Tensor) -> bool:
    """Whether the compiled loops of the CPU compute with tensors like ``like``."""
    return like.device.type == "cpu" and backends.select(backend, "cpu") == "numba"


class Layer(NamedTuple):
    """The size of a linear layer or a convolution."""

    outputs: int
    products: int
    """Multiplications for one step of one sample."""
    convolution: bool = False


def spike_times_pay(num_steps: int, batch: int, layer: Layer) -> bool:
    """Whether spike times pay for a layer behind neurons, over all steps of a batch."""
    rows = num_steps * batch
    if layer.convolution:
        return rows * layer.products >= LEAST_CONV_PRODUCTS
    if torch.is_grad_enabled():
        return layer.outputs >= LEAST_OUTPUTS and rows * layer.outputs >= LEAST_CURRENTS
    return rows * layer.products >= LEAST_PRODUCTS


def events_pay(dense: Tensor, layer: Layer, backend: str = "auto") -> bool:
    """Whether a dense input (T, B, *features) is worth its conversion to events for a layer.

    At most a tenth of the entries may be spikes, and fewer for a linear layer of less than 120
    outputs, in proportion. For a convolution it is one in a hundred. The share is that of a sample
    of the entries.
    """
    if not is_measured(backend, dense) or (dense.requires_grad and torch.is_grad_enabled()):
        return False
    if dense.layout is not torch.strided or not dense.numel():
        return False
    num_steps, batch, *_ = dense.shape
    least = LEAST_CONV_PRODUCTS if layer.convolution else LEAST_PRODUCTS
    if num_steps * batch * layer.products < least:
        return False
    share = _CONV_SHARE if layer.convolution else min(layer.outputs, _WIDE) / _WIDE * _SHARE
    if layer.convolution and num_steps < _CONV_STEPS:
        return False
    return _sampled_share(dense) <= share


def _sampled_share(dense: Tensor) -> float:
    """The share of entries that are not 0, in a sample of them."""
    flat = dense.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED) | 1]  # an odd step meets all columns
    return int(sample.count_nonzero()) / sample.numel()


def collected_events_pay(spikes: Tensor) -> bool:
    """Whether layers behind a neuron are faster from its events than from its dense spikes.

    The events are collected first. At most one in 25 entries may be a spike.
    """
    if not is_measured("auto", spikes):
        return True
    return spikes.numel() >= LEAST_CURRENTS and _sampled_share(spikes) <= _COLLECTED


def current_pays(spikes: Spikes, weight: Tensor) -> bool:
    """Whether the current (T, B, O) of a linear layer, as a tensor, is faster from events.

    One event takes at most as long as 6 entries of dense spikes in the compiled CPU loops, as long
    as 12 in a layer of less than 120 outputs, and as long as 60 elsewhere.
    """
    if is_traced() or weight.dtype not in _STATES:
        return False
    entries = _ENTRIES
    if _in_loops("auto", weight):
        entries = _ENTRIES_IN_LOOPS if len(weight) >= _WIDE else _ENTRIES_OF_NARROW_LAYERS
    return len(spikes.events().times) * entries <= spikes.numel()
