"""Any number of spikes for each unit, in the order of their times."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced, never_compiled
from ..backends._events import Events, collect_events, offsets_of
from ..ops.carrier import carrier_of
from . import choice
from ._base import (
    Spikes,
    check_dense,
    check_dense_type,
    check_index,
    check_num_steps,
    is_integer,
    signed,
)
from .recordings import read_recordings

__all__ = ["SpikeEvents"]


class _Uncollected:
    """The dense spikes of a neuron, until the first use of their events. Copies share them."""

    def __init__(self, spikes: Tensor) -> None:
        self.spikes: Tensor | None = spikes
        self.batch, self.device = spikes.shape[1], spikes.device
        self._events: Events | None = None

    def collect(self) -> Events:
        if self._events is None:
            assert self.spikes is not None
            self._events, self.spikes = _collect(self.spikes.detach()), None
        return self._events

    @functools.cached_property
    def prefer_events(self) -> bool:
        return self.spikes is None or choice.collected_events_pay(self.spikes)


class SpikeEvents(Spikes):
    """
    Spikes of units that may fire any number of times, in the order of their times: the input of a
    network, or the result of neurons with `refractory` and `spike_format="times"`.

    SpikeEvents of a neuron carry a gradient, and so do those of :meth:`from_dense`. Pickling drops
    it, and so do the worker processes of a `DataLoader`, `to()` another device, `pin_memory()` and
    `samples()`.

    Example::

        recordings = [events for events, label in dataset]     # tonic: structured arrays
        spikes = SpikeEvents.from_events(recordings, sensor_size=(34, 34, 2), num_steps=300,
                                         time_window=1000)     # microseconds per step
        hidden = SingleSpikeLinear(2 * 34 * 34, 300, beta=0.9)(spikes.flatten(2))

    :param events: all spikes; the spikes of a sample are in the order of their times. `offsets`
        `(B + 1,)`, `times` `(E,)` and `units` `(E,)` are integers, `values` `(E,)` are
        floating-point or None
    :type events: Events

    :param num_steps: number of time steps T of the dense tensor
    :type num_steps: int

    :param features: shape of the units of one sample
    :type features: sequence of int

    :param dtype: type of the dense tensor. Defaults to the type of the values, or float32
    :type dtype: torch.dtype, optional

    :raises TypeError: times or units are not integers, or values are not floating-point
    :raises ValueError: lengths do not fit each other; spikes are out of order, or times or units
        are out of range (both checked on the CPU)
    """

    def __init__(
        self,
        events: Events,
        num_steps: int,
        features: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.num_steps, self.features = check_num_steps(num_steps), torch.Size(features)
        check_dense_type(dtype)
        offsets, times, units, values, *_ = events
        for name, value in (("offsets", offsets), ("times", times), ("units", units)):
            if not is_integer(value):
                raise TypeError(
                    f"{name} of the events must be integers, not {value.dtype}: use {name}.long()"
                )
        if values is not None and not values.is_floating_point():
            raise TypeError(
                f"values of the events must be floating-point, not {values.dtype}: use "
                "values.float()"
            )
        offsets, times, units = map(signed, (offsets, times, units))
        if not len(times) == len(units) == (len(times) if values is None else len(values)):
            raise ValueError(
                f"events has {len(times)} times and {len(units)} units"
                + ("" if values is None else f" and {len(values)} values")
                + ": pass one of each for every spike"
            )
        self.folded = False
        self.dtype = dtype or (torch.float32 if values is None else values.dtype)
        if times.device.type == "cpu" and not is_traced():
            _check_events(offsets, times, units, num_steps, self.features.numel())
        self._events: Events | _Uncollected = Events(
            offsets.to(torch.int64).contiguous(),
            times.to(torch.int32).contiguous(),
            units.to(torch.int32).contiguous(),
            None if values is None else values.detach().to(self.dtype).contiguous(),
        )
        self.height: Tensor | None = None
        self.carrier: Tensor | None = None

    @property
    def batch(self) -> int:  # type: ignore[override]
        found = self._events
        return found.batch if isinstance(found, _Uncollected) else len(found.offsets) - 1

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        found = self._events
        return found.device if isinstance(found, _Uncollected) else found.times.device

    @classmethod
    def from_dense(cls, spikes: Tensor) -> SpikeEvents:
        """
        The spikes of a dense tensor, with their heights. The gradient of the result flows into
        `spikes`.

        :param spikes: tensor of shape `(T, B, *features)`, floating-point. Every entry that is not
            0 is a spike
        :type spikes: torch.Tensor
        :rtype: SpikeEvents
        :raises TypeError: `spikes` is not a floating-point tensor
        :raises ValueError: `spikes` has fewer than three dimensions, or `T = 0`
        """
        check_dense(spikes)
        new = cls.of_neuron(spikes, None)
        new.events()  # the caller may change the tensor
        return new

    @classmethod
    def of_neuron(cls, spikes: Tensor, height: Tensor | None) -> SpikeEvents:
        """The spikes that a neuron returns, dense and of height 1. They get the given height.

        Nobody else may change ``spikes``. Their events are collected on the first use.
        """
        new = object.__new__(cls)
        new.num_steps, new.features = spikes.shape[0], spikes.shape[2:]
        new.folded, new.dtype, new._events = False, spikes.dtype, _Uncollected(spikes)
        if is_traced():
            new.events()
        new.height = None if height is None else height.expand(new.features)
        tracked = spikes.requires_grad and torch.is_grad_enabled()
        new.carrier = carrier_of(spikes) if tracked else None
        return new

    @classmethod
    def from_events(
        cls,
        recordings: Sequence[np.ndarray],
        sensor_size: Sequence[int],
        num_steps: int,
        *,
        time_window: float,
        count: bool = True,
        late: str = "raise",
        dtype: torch.dtype = torch.float32,
    ) -> SpikeEvents:
        """
        Convert recordings as tonic's datasets return them, without dense frames in between.

        :param recordings: one structured array a sample, with the fields `t`, `x`, `y`, `p` that
            the sensor has
        :type recordings: sequence of numpy.ndarray
        :param sensor_size: extent of `x`, `y` and `p`, as in tonic: `(34, 34, 2)` for N-MNIST,
            `(700, 1, 1)` for SHD. Features are `(p, y, x)`, as in tonic's frames, without the
            dimensions of extent 1
        :type sensor_size: sequence of int
        :param num_steps: number of time steps
        :type num_steps: int
        :param time_window: duration of a step in the unit of `t` (microseconds in tonic). Integer
            times are divided exactly. A floating-point time that lies below the start of a step by
            a few units in its last place belongs to this step: 0.3 is in step 3 of window 0.1
        :type time_window: float
        :param count: if True, n events of a unit in one step make a spike of height n, as in
            tonic's frames. If False, they make a spike of height 1. Step 0 begins at time 0.
            (tonic's frames begin at the first event.) Defaults to True
        :type count: bool, optional
        :param late: `"raise"` an error for events beyond the last step, or `"drop"` these events.
            Defaults to `"raise"`
        :type late: str, optional
        :param dtype: type of the dense tensor. Defaults to float32
        :type dtype: torch.dtype, optional
        :rtype: SpikeEvents
        :raises ValueError: a field is missing; an event lies outside the sensor, before time 0 or,
            with `late="raise"`, beyond the last step; a time is not finite; an option is unknown
        :raises TypeError: a recording is not a structured array, or its times are not numbers
        """
        events, features = read_recordings(
            recordings, sensor_size, num_steps, time_window, count=count, late=late, dtype=dtype
        )
        return cls(events, num_steps, features, dtype=dtype)

    def to_dense(self) -> Tensor:
        """
        The spikes as a tensor `(T, B, *features)`, differentiable. Spikes of a unit in the same
        step add up.

        :rtype: torch.Tensor
        """
        dense = self.read_dense()
        kept = isinstance(self._events, _Uncollected) and self.height is None
        return dense.clone() if kept else dense

    def read_dense(self) -> Tensor:
        spikes = self._events.spikes if isinstance(self._events, _Uncollected) else None
        if spikes is not None:
            spikes = (spikes if self.carrier is not None else spikes.detach()).flatten(2)
        else:
            spikes = self.events().to_dense(self.num_steps, self.features.numel(), self.dtype)
            if self.carrier is not None:
                spikes = spikes + self.carrier  # zeros, with the gradient
        spikes = spikes.unflatten(2, self.features)
        return self._leading(spikes if self.height is None else spikes * self.height)

    def prefer_events(self) -> bool:
        found = self._events
        pays = found.prefer_events if isinstance(found, _Uncollected) else True
        return pays and super().prefer_events()

    def __iter__(self) -> Iterator[Tensor]:
        """The dense spikes of one step after the other, `(B, *features)` each."""
        if self.folded or self.requires_grad or torch.compiler.is_compiling():
            return iter(self.materialize("__iter__"))
        return self._steps()

    def _steps(self) -> Iterator[Tensor]:
        events = self.events().trimmed()
        order = torch.argsort(events.times, stable=True)
        per_step = torch.bincount(events.times, minlength=self.num_steps).tolist()
        index = events.samples() * self.features.numel() + events.units
        ones = torch.ones((), dtype=self.dtype, device=self.device).expand(len(order))
        heights = ones if events.values is None else events.values.to(self.dtype)
        for now in order.split(per_step):
            step = torch.zeros(self.shape[1:], dtype=self.dtype, device=self.device)
            step.view(-1).index_add_(0, index[now], heights[now])
            yield step if self.height is None else step * self.height

    def events(self) -> Events:
        """All spikes in the order of their samples and times."""
        if isinstance(self._events, _Uncollected):
            self._events = self._events.collect()
        return self._events

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into the spikes or their height."""
        height = self.height is not None and self.height.requires_grad
        return self.carrier is not None or height

    def detach(self) -> SpikeEvents:
        """The same spikes without a gradient."""
        return self._with_events(self._events, lambda height: height)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> SpikeEvents:
        """
        The same spikes on another device, without a gradient. If the spikes are on that device,
        the method returns this object, with its gradient.
        """
        self._check_target(device)

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        moved = self.events().map(move)
        return self if moved.times.device == self.device else self._with_events(moved, move)

    def pin_memory(self) -> SpikeEvents:
        """
        The same spikes in pinned memory, without a gradient. A `DataLoader` with `pin_memory=True`
        calls this method.
        """
        return self._with_events(self.events().map(Tensor.pin_memory), Tensor.pin_memory)

    def samples(self, index: Tensor | slice) -> SpikeEvents:
        """
        Some samples of the batch, without a gradient.

        :param index: a slice, a list or a tensor of one dimension
        :type index: slice, list or torch.Tensor
        :rtype: SpikeEvents
        :raises TypeError: `index` is a number or has several dimensions
        """
        check_index(index)
        events = self.events()
        wanted = torch.arange(self.batch, device=self.device)[index]
        lengths = events.offsets.diff()[wanted]
        new = offsets_of(lengths)
        total = int(new[-1])
        shift = (events.offsets[wanted] - new[:-1]).repeat_interleave(lengths, output_size=total)
        source = torch.arange(total, device=self.device) + shift
        values = None if events.values is None else events.values[source]
        taken = Events(new, events.times[source], events.units[source], values)
        return self._with_events(taken, lambda height: height)

    def _with_events(
        self, events: Events | _Uncollected, move: Callable[[Tensor], Tensor]
    ) -> SpikeEvents:
        """Other events of the same units, without a gradient; ``move`` moves the height."""
        height = None if self.height is None else move(self.height.detach())
        return self._is_like(_events=events, height=height, carrier=None)

    def __getstate__(self) -> dict[str, Any]:
        return self.detach().__dict__ | {"_events": self.events()}

    def _with_features(self, features: Sequence[int]) -> SpikeEvents:
        height = None if self.height is None else self.height.reshape(*features)
        return self._is_like(features=torch.Size(features), height=height)

    def __repr__(self) -> str:
        gradient = ", requires_grad=True" if self.requires_grad else ""
        return (
            f"SpikeEvents(shape={tuple(self.shape)}, events={len(self.events().times)}, "
            f"device={str(self.device)!r}{gradient})"
        )


@never_compiled  # the number of events depends on the spikes
def _collect(spikes: Tensor) -> Events:
    if is_traced():
        raise RuntimeError(
            "SpikeEvents cannot be a part of an exported program, whose shapes do not depend on "
            'the spikes: use dense spikes, with spike_format="dense" of the neuron or of convert'
        )
    flat = spikes.flatten(2)
    backend, _ = backends.explain(spikes.device.type)
    if backend == "numba" and spikes.dtype in (torch.float32, torch.float64):
        return backends.load(backend, "linear").collect_events(flat)
    return collect_events(flat.contiguous())


def _check_events(
    offsets: Tensor, times: Tensor, indices: Tensor, num_steps: int, units: int
) -> None:
    empty = len(offsets) == 0
    if (
        empty
        or int(offsets[0]) != 0
        or int(offsets[-1]) != len(times)
        or bool((offsets.diff() < 0).any())
    ):
        raise ValueError(
            f"offsets={offsets.tolist() if len(offsets) < 9 else str(offsets)} must rise from 0 to "
            f"the number of events, {len(times)}"
        )
    for name, value, end in (("times", times, num_steps), ("units", indices, units)):
        if len(value) and (int(value.min()) < 0 or int(value.max()) >= end):
            raise ValueError(
                f"{name} of the events run from {int(value.min())} to {int(value.max())}, but "
                f"must lie between 0 and {end - 1}"
            )
    if len(times) > 1:
        back = times.diff() < 0
        starts = offsets[1:-1]
        back[starts[(starts > 0) & (starts < len(times))] - 1] = False  # a new sample
        if bool(back.any()):
            where = int(back.nonzero()[0]) + 1
            raise ValueError(
                f"event {where} is earlier than the one before it in the same sample: sort the "
                "events of each sample by time"
            )
