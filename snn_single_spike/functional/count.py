"""The number of spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends._types import state_dtype
from ..ops.carrier import carrier
from ..ops.count import count_spikes
from ..ops.validation import check_choice, check_recording
from ..spikes import SpikeEvents, SpikeTimes
from ..spikes.lazy import materialize

__all__ = ["COUNTED", "spike_count"]

COUNTED = ("neuron", "sample")
"""What :func:`spike_count` returns a number for."""


def spike_count(spk_out: Tensor | SpikeTimes | SpikeEvents, per: str = "neuron") -> Tensor:
    """
    Number of spikes, differentiable.

    The count is linear in the spikes, so its gradient is the same at every step. The surrogate
    rules carry this gradient to the membrane. Under `gradient="spike_time"` the
    gradient of a neuron that fires is zero, and a silent neuron has the gradient at the peak of
    its membrane. Spike times are counted without dense spikes, forward and backward.

    Example::

        hidden = lif1(fc1(x))                                  # spikes or SpikeTimes
        loss = loss_fn(scores, targets) + 1e-3 * spike_count(hidden, per="sample").mean()

    :param spk_out: spikes of shape `(T, B, *features)`. A graded spike counts by its height
    :type spk_out: torch.Tensor, SpikeTimes or SpikeEvents

    :param per: `"neuron"` sums over the batch, `"sample"` sums over the neurons. Defaults to
        `"neuron"`
    :type per: str, optional

    :return: counts of shape `(N,)` for `"neuron"`, where N is the number of neurons, or `(B,)` for
        `"sample"`; float32, or float64 for float64 spikes
    :rtype: torch.Tensor

    :raises ValueError: `per` is unknown, the shape is wrong, or `T = 0`
    :raises TypeError: the spikes are not floating-point
    """
    check_choice("per", per, COUNTED)
    if isinstance(spk_out, SpikeTimes):
        return _count(spk_out, spk_out.times.flatten(1) >= 0, per)
    dense: Tensor
    if isinstance(spk_out, SpikeEvents):
        if spk_out.prefer_events():
            return _count(spk_out, _numbers(spk_out), per)
        dense = spk_out.read_dense()
    else:
        dense = materialize(spk_out, "spike_count")
    check_recording("spk_out", dense)
    return dense.flatten(2).sum((0, 1 if per == "neuron" else 2), dtype=state_dtype(dense.dtype))


def _count(spikes: SpikeTimes | SpikeEvents, fired: Tensor, per: str) -> Tensor:
    """The count of spikes, from their number (B, N) in each sample."""
    given, height = spikes.carrier, spikes.height
    if given is None:
        like = fired.new_empty(0, dtype=spikes.dtype)
        given = carrier(spikes.num_steps, spikes.batch, fired.shape[1], like)
    return count_spikes(given, fired, None if height is None else height.flatten(), per)


def _numbers(spikes: SpikeEvents) -> Tensor:
    """The number of spikes (B, N) of each unit, by the values of the events."""
    events, dtype = spikes.events().trimmed(), state_dtype(spikes.dtype)
    units = spikes.features.numel()
    number = torch.zeros(spikes.batch * units, dtype=dtype, device=spikes.device)
    values = number.new_ones(()) if events.values is None else events.values.to(dtype)
    where = events.samples() * units + events.units
    return number.index_add_(0, where, values.expand(len(where))).view(spikes.batch, units)
