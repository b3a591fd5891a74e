"""Spikes that arrive later than they were sent, and between two steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ..backends._events import Events, offsets_of
from ..ops.delay import delayed_carrier, delayed_steps, split_carrier, split_delay
from ..ops.layer import LayerInput
from ._base import Spikes
from .events import SpikeEvents
from .times import SpikeTimes

__all__ = ["DelayedSpikes", "delay_by_steps"]


class DelayedSpikes(Spikes):
    """
    Spikes behind delays that are no whole number of steps, as
    :func:`snn_single_spike.functional.delay_spikes` returns them.

    A spike of step t with the delay d = n + f, 0 <= f < 1, is shared between two steps: 1 - f of
    it arrives at the step t + n, and f at the step t + n + 1. What comes after the last step does
    not arrive. Linear layers and readouts compute from these two events of each spike. Every other
    operation receives the dense spikes.

    :param spikes: the spikes before the delay
    :type spikes: SpikeTimes or SpikeEvents

    :param delay: the delay of each unit in steps, at least 0, of the shape of the features; a
        gradient flows into it
    :type delay: torch.Tensor

    Attributes: `spikes`, `delay`, `num_steps`. `times` `(B, *features)` is the step at which a
    spike begins to arrive, -1 for none, if `spikes` are :class:`SpikeTimes`. `interpolated_times`
    are their interpolated times (or steps) and the delay, differentiable, -1 where nothing arrives.
    """

    def __init__(self, spikes: SpikeTimes | SpikeEvents, delay: Tensor) -> None:
        if not isinstance(spikes, SpikeTimes | SpikeEvents):
            raise TypeError(
                f"delay_spikes does not support {type(spikes).__name__}: add the delays, or delay "
                "the spikes before they are averaged"
            )
        self.spikes, self.delay = spikes.unfold(), delay
        self.num_steps, self.batch, self.folded = spikes.num_steps, spikes.batch, spikes.folded
        self.features, self.dtype, self.device = spikes.features, spikes.dtype, spikes.device

    @property
    def times(self) -> Tensor:
        if not isinstance(self.spikes, SpikeTimes):
            raise AttributeError(
                "times is one time for each unit, and the delayed spikes are SpikeEvents: use "
                ".events()"
            )
        whole, _ = split_delay(self.delay)
        return delayed_steps(self.spikes.times, whole, self.num_steps).to(self.spikes.times.dtype)

    @property
    def interpolated_times(self) -> Tensor | None:  # type: ignore[override]
        if not isinstance(self.spikes, SpikeTimes):
            return None
        times = self.spikes.interpolated_times
        times = self.spikes.times if times is None else times
        return torch.where(self.times >= 0, times + self.delay, -1.0)

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into the spikes, their height or their delay."""
        return self.spikes.requires_grad or self.delay.requires_grad

    def simplified(self) -> SpikeTimes | SpikeEvents | DelayedSpikes:
        """SpikeTimes or SpikeEvents if all delays are whole and have no gradient; else itself."""
        learns = torch.is_grad_enabled() and self.delay.requires_grad
        if learns or is_traced() or not bool((self.delay == self.delay.floor()).all()):
            return self
        given, (steps, _) = self.spikes, split_delay(self.delay)
        late = delay_by_steps(given.flatten(2), steps.flatten())
        late = late._with_features(self.features)._is_like(height=given.height, folded=self.folded)
        if isinstance(given, SpikeTimes) and given.interpolated_times is not None:
            times = given.interpolated_times + steps
            late.interpolated_times = torch.where(late.times >= 0, times, -1.0)
        return late

    def shared(self) -> SpikeTimes | SpikeEvents:
        """
        The two parts of each spike as spikes of `2 * N` units: the earlier part of all N units, and
        then the later part. Their heights are the shares.
        """
        whole, fraction = split_delay(self.delay.flatten())
        flat = self.spikes.flatten(2)
        both = delay_by_steps(flat, whole, whole + 1)
        shares = torch.cat((1 - fraction, fraction))  # in the precision of the delay
        both.height = shares if flat.height is None else shares * flat.height.repeat(2)
        return both

    def split(self) -> tuple[SpikeTimes | SpikeEvents, Tensor]:
        """
        The spikes of N units at their earlier steps, whose events have the heights of both parts,
        and the share of the later part (N,), with its gradient.
        """
        whole, fraction = split_delay(self.delay.flatten())
        flat = self.spikes.flatten(2)
        early = delay_by_steps(flat, whole)
        events = early.events()
        shares = torch.stack((1 - fraction, fraction)).detach()
        values = shares.index_select(1, events.units)
        if events.values is not None:
            values = values * events.values
        both = events._replace(values=values, once=False)
        carrier = flat.carrier
        return early._is_like(
            _events=both,
            height=flat.height,
            carrier=None if carrier is None else split_carrier(carrier, whole, fraction.detach()),
        ), fraction

    def _event_input(self, backend: str) -> LayerInput:
        """As for other spikes; a spike is two events if the backend reads no shares."""
        late = self.simplified()
        if not isinstance(late, DelayedSpikes):
            return late._event_input(backend)
        chosen = backends.select(backend, self.device.type)
        if is_traced() or not backends.reads_shares(chosen):
            both = self.shared()._event_input(backend)
            return both._replace(features=self.features, copies=2)
        early, fraction = self.split()
        return early._event_input(backend)._replace(fraction=fraction)

    def to_dense(self) -> Tensor:
        """
        The spikes as a tensor `(T, B, *features)`, differentiable.

        :rtype: torch.Tensor
        """
        late = self.simplified()
        if not isinstance(late, DelayedSpikes):
            return late.to_dense()
        parts = self.shared().to_dense().unflatten(2, (2, -1))
        return self._leading(parts.sum(2).unflatten(2, self.features).to(self.dtype))

    def events(self) -> Events:
        """All spikes in the order of their samples and times, two events for each."""
        both = self.shared()
        events = both.events()
        units = self.features.numel()
        assert both.height is not None
        values = both.height.detach()[events.units.long()]
        if events.values is not None:
            values = values * events.values
        return events._replace(units=events.units % units, values=values, once=False)

    def detach(self) -> DelayedSpikes:
        """The same spikes without a gradient."""
        return self._is_like(spikes=self.spikes.detach(), delay=self.delay.detach())

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> DelayedSpikes:
        """The same spikes on another device, without a gradient; itself if it is there already."""
        moved = self.spikes.to(device, non_blocking)
        if moved is self.spikes:
            return self
        delay = self.delay.detach().to(device, non_blocking=non_blocking)
        return self._is_like(spikes=moved, delay=delay, device=moved.device)

    def pin_memory(self) -> DelayedSpikes:
        """The same spikes in pinned memory, without a gradient."""
        pinned = self.delay.detach().pin_memory()
        return self._is_like(spikes=self.spikes.pin_memory(), delay=pinned)

    def samples(self, index: Tensor | slice) -> DelayedSpikes:
        """Some samples of the batch, without a gradient; as :meth:`SpikeTimes.samples`."""
        chosen = self.spikes.samples(index)
        return self._is_like(spikes=chosen, batch=chosen.batch, delay=self.delay.detach())

    def _with_features(self, features: Sequence[int]) -> DelayedSpikes:
        return self._is_like(
            spikes=self.spikes.reshape(self.num_steps, self.batch, *features),
            delay=self.delay.reshape(*features),
            features=torch.Size(features),
        )

    def __repr__(self) -> str:
        return f"DelayedSpikes(shape={tuple(self.shape)}, of={self.spikes})"


def delay_by_steps(spikes: SpikeTimes | SpikeEvents, *steps: Tensor) -> SpikeTimes | SpikeEvents:
    """Copies of spikes of N units, delayed by whole steps (N,) each, side by side; of height 1."""
    given = spikes.carrier
    late = None if given is None else delayed_carrier(given, steps)
    if isinstance(spikes, SpikeTimes):
        copies = [delayed_steps(spikes.times, n, spikes.num_steps) for n in steps]
        times = torch.cat(copies, 1) if len(copies) > 1 else copies[0]
        times = times.to(spikes.times.dtype)
        return spikes._is_like(
            times=times, height=None, carrier=late, interpolated_times=None, _events=None
        )
    return spikes._is_like(
        features=torch.Size((len(steps) * spikes.features.numel(),)),
        height=None,
        carrier=late,
        _events=_delayed_events(spikes, steps),
    )


def _delayed_events(spikes: SpikeEvents, steps: Sequence[Tensor]) -> Events:
    events = spikes.events().trimmed()
    units = spikes.features.numel()
    where = events.units.long()
    times = torch.cat([delayed_steps(events.times, n[where], spikes.num_steps) for n in steps])
    sample = events.samples().repeat(len(steps))
    copy = torch.arange(len(steps), device=times.device).repeat_interleave(len(where))
    arrives = times >= 0
    key = (sample * spikes.num_steps + times)[arrives]
    order = torch.argsort(key, stable=True)
    values = events.values
    return Events(
        offsets_of(torch.bincount(sample[arrives], minlength=spikes.batch)),
        times[arrives][order],
        (events.units.repeat(len(steps)) + (copy * units).to(torch.int32))[arrives][order],
        None if values is None else values.repeat(len(steps))[arrives][order],
    )
