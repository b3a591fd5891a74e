"""Spikes of a batch as events, in the order of their samples and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Events(NamedTuple):
    """Spikes of a batch, ordered by sample and within a sample by time."""

    offsets: Tensor
    """(B + 1,) int64: the spikes of sample b are at indices offsets[b] to offsets[b + 1] - 1."""
    times: Tensor
    """(E,) int32."""
    units: Tensor
    """(E,) int32: index into the flattened features."""
    values: Tensor | None
    """(E,) height of each spike, floating-point; None if every height is 1.

    (2, E) if spikes are shared between two steps: the heights at the step of each spike, and at the
    step after it. A height after the last step is lost.
    """
    once: bool = False
    """True only if no unit of a sample spikes twice and every height is 1."""
    padded: bool = False
    """Whether times and units may have more than offsets[B] entries, as in a compiled graph."""

    @property
    def shared(self) -> bool:
        """Whether spikes are shared between two steps."""
        return self.values is not None and self.values.dim() == 2

    def map(self, function: Callable[[Tensor], Tensor]) -> Events:
        """The same events with ``function`` applied to each tensor."""
        values = None if self.values is None else function(self.values)
        return self._replace(
            offsets=function(self.offsets),
            times=function(self.times),
            units=function(self.units),
            values=values,
        )

    def trimmed(self) -> Events:
        """The same events without padding."""
        if not self.padded:
            return self
        count = int(self.offsets[-1])
        return Events(self.offsets, self.times[:count], self.units[:count], None, self.once)

    def part(self, samples: slice) -> Events:
        """The spikes of some samples. The offsets still count from the first spike of the batch."""
        if samples.start == 0 and samples.stop == len(self.offsets) - 1:
            return self  # reading the offsets back would wait for a GPU
        low, high = int(self.offsets[samples.start]), int(self.offsets[samples.stop])
        values = None if self.values is None else self.values[..., low:high]
        offsets = self.offsets[samples.start : samples.stop + 1]
        return Events(offsets, self.times[low:high], self.units[low:high], values, self.once)

    def samples(self) -> Tensor:
        """The sample of each spike, (E,) int64."""
        samples = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return samples.repeat_interleave(self.offsets.diff(), output_size=len(self.times))

    def to_dense(self, num_steps: int, units: int, dtype: torch.dtype) -> Tensor:
        """The spikes as a tensor (T, B, N). Spikes of a unit in the same step add up."""
        shape = (num_steps, len(self.offsets) - 1, units)
        spikes = torch.zeros(shape, dtype=dtype, device=self.times.device)
        heights = spikes.new_ones(1) if self.values is None else self.values.to(dtype)
        heights, late = (heights, None) if heights.dim() == 1 else heights.unbind(0)
        if self.padded:  # in a compiled graph, whose shapes do not depend on the spikes
            spike = torch.arange(len(self.times), device=self.times.device)
            samples = torch.searchsorted(self.offsets[1:], spike, right=True)
            samples = samples.clamp(max=shape[1] - 1)
            heights = heights * (spike < self.offsets[-1])
        else:
            samples = self.samples()
        where = (self.times.long(), samples, self.units.long())
        spikes.index_put_(where, heights, accumulate=True)
        if late is not None and num_steps > 1:
            step, *at = where
            late = torch.where(step + 1 < num_steps, late, 0.0)
            spikes.index_put_(((step + 1).clamp(max=num_steps - 1), *at), late, accumulate=True)
        return spikes


def offsets_of(counts: Tensor) -> Tensor:
    """Offsets (n + 1,) int64 of parts with lengths ``counts`` (n,)."""
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def sort_by_time(times: Tensor, num_steps: int) -> Events:
    """Events from spike times (B, N); a silent unit has the time -1."""
    # Stable: spikes at the same time keep the order of their units.
    order = torch.where(times < 0, num_steps, times.to(torch.int32)).sort(dim=1, stable=True)
    fired = (times >= 0).sum(1)
    keep = torch.arange(times.shape[1], device=times.device) < fired[:, None]
    units = order.indices[keep].to(torch.int32)
    return Events(offsets_of(fired), order.values[keep], units, None, once=True)


def collect_events(spikes: Tensor) -> Events:
    """Events from dense spikes (T, B, N): every entry that is not 0."""
    _, batch, units = spikes.shape
    flat = spikes.reshape(-1)
    where = flat.nonzero()[:, 0]
    row = where // max(units, 1)  # of time and sample
    sample, order = torch.sort(row % max(batch, 1), stable=True)
    where, times = where[order], (row // max(batch, 1))[order]
    values = flat[where]
    return Events(
        offsets_of(torch.bincount(sample, minlength=batch)),
        times.to(torch.int32),
        (where % max(units, 1)).to(torch.int32),
        None if bool((values == 1).all()) else values,
    )
