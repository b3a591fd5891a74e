"""Measured rules: whether a layer is faster from spike times than from dense spikes.

The rules hold for the compiled CPU loops, forward and backward, and were measured with one thread;
docs/performance.md has the measurement. They say no where nothing was measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ._base import Spikes

_STATES = (torch.float32, torch.float64)
LEAST_ENTRIES = 100_000
"""Entries of the spikes of a neuron: below, collecting events takes the time saved."""
LEAST_PRODUCTS = 16_000_000
"""Multiplications (T * B * inputs * outputs) of a linear layer on dense spikes."""
LEAST_CONV_PRODUCTS = 64_000_000
"""Multiplications of a convolution on dense spikes."""
_CONV_STEPS = 10
_CONV_SHARE = 0.06
_ENTRIES = 60
_ENTRIES_IN_LOOPS = 4
_TILE = 128  # outputs that the compiled loops compute side by side
_NARROW = 16  # outputs up to which they compute in one vector
_ENTRIES_OF_NARROW = 16
_WIDE = 120
_SHARE_OF_LAYER = 0.1
_COLLECTED = 0.04
_SAMPLES = (1 << 8, 1 << 15)  # entries of a sample; the second one is taken if the first has few
_DENSE = 0.5  # a share of entries that no rule here takes for few


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


def _entries_of_one_event(outputs: int) -> float:
    """Entries of dense spikes that a linear layer reads in the time of one event."""
    if outputs <= _NARROW:
        return _ENTRIES_OF_NARROW
    tiles = -(-outputs // _TILE)
    return _ENTRIES_IN_LOOPS * tiles * _TILE / max(outputs, 1)


def spike_times_pay(num_steps: int, batch: int, layer: Layer) -> bool:
    """Whether spike times pay for a layer behind neurons, over all steps of a batch.

    For a linear layer every second neuron is expected to spike.
    """
    products = num_steps * batch * layer.products
    if layer.convolution:
        return products >= LEAST_CONV_PRODUCTS
    enough = products >= LEAST_PRODUCTS
    return enough and 2 * num_steps >= _entries_of_one_event(layer.outputs)


def events_pay(dense: Tensor, layer: Layer, backend: str = "auto") -> bool:
    """Whether a dense input (T, B, *features) is worth its conversion to events for a layer.

    One event takes as long as 4 entries of a linear layer of 128 outputs, as long as 16 of one of
    at most 16 outputs, and longer in layers between. Without gradients there is one product to
    save, and not two, from the same conversion. A convolution needs 10 steps, and at most 6 %
    spikes, 5 % without gradients. The share of spikes is that of a sample of the entries.
    """
    if not _may_become_events(dense, layer, backend):
        return False
    if layer.convolution and len(dense) < _CONV_STEPS:
        return False
    entries = 1 / _CONV_SHARE if layer.convolution else _entries_of_one_event(layer.outputs)
    entries = entries if torch.is_grad_enabled() else 1.25 * entries
    return _sampled_share(dense) * entries <= 1


def events_pay_with_neurons(dense: Tensor, layer: Layer, backend: str) -> bool:
    """As :func:`events_pay`, for a linear layer in one loop with its neurons.

    At most a tenth of the entries may be spikes, and fewer below 120 outputs, in proportion.
    """
    if not _may_become_events(dense, layer, backend):
        return False
    return _sampled_share(dense) <= min(layer.outputs, _WIDE) / _WIDE * _SHARE_OF_LAYER


def _may_become_events(dense: Tensor, layer: Layer, backend: str) -> bool:
    if not is_measured(backend, dense) or (dense.requires_grad and torch.is_grad_enabled()):
        return False
    if dense.layout is not torch.strided or not dense.numel():
        return False
    num_steps, batch, *_ = dense.shape
    least = LEAST_CONV_PRODUCTS if layer.convolution else LEAST_PRODUCTS
    return num_steps * batch * layer.products >= least


def layer_pays(spikes: Spikes, weight: Tensor, backend: str) -> bool:
    """Whether a linear layer is faster in one loop with its neurons than as a tensor.

    The tensor is the current, which the neurons then read. In the compiled loops it is faster, but
    for few spikes in many steps without gradients: the one loop jumps from spike to spike.
    """
    if not is_measured(backend, weight):
        return True
    rows = spikes.num_steps * spikes.batch
    return not torch.is_grad_enabled() and 2 * len(spikes.events().times) <= rows


def _sampled_share(dense: Tensor) -> float:
    """The share of entries that are not 0, in a sample of them."""
    in_memory = sorted(range(dense.dim()), key=dense.stride, reverse=True)
    flat = dense.detach().permute(in_memory).reshape(-1)  # a view, also of (batch, time, ...)
    share = 1.0
    for size in _SAMPLES:
        step = max(1, flat.numel() // size)
        while math.gcd(step, flat.numel()) > 1:  # meets all columns, and no column more often
            step += 1
        sample = flat[::step]
        share = int(sample.count_nonzero()) / sample.numel()
        if share > _DENSE:
            break
    return share


def collected_events_pay(spikes: Tensor) -> bool:
    """Whether layers behind a neuron are faster from its events than from its dense spikes.

    The events are collected first. At most one in 25 entries may be a spike.
    """
    if not is_measured("auto", spikes):
        return True
    return spikes.numel() >= LEAST_ENTRIES and _sampled_share(spikes) <= _COLLECTED


def current_pays(spikes: Spikes, weight: Tensor) -> bool:
    """Whether the current (T, B, O) of a linear layer, as a tensor, is faster from events.

    One event takes as long as 4 entries of dense spikes in the compiled CPU loops, longer in layers
    that fill no whole number of tiles of 128 outputs, as long as 16 in layers of at most 16
    outputs, and as long as 60 elsewhere.
    """
    if is_traced() or weight.dtype not in _STATES:
        return False
    in_loops = _in_loops("auto", weight)
    entries = _entries_of_one_event(len(weight)) if in_loops else _ENTRIES
    return len(spikes.events().times) * entries <= spikes.numel()
