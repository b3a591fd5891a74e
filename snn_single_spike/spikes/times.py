"""Spikes as the times they happen at, instead of dense (T, B, N) tensors of zeros.

:class:`SpikeTimes` holds one time for each neuron, :class:`SpikeEvents` any number of spikes for
each input unit. Both stand for a dense tensor of shape (T, B, *features): any torch function or
tensor method that does not know better is given that dense tensor, and the logger
``snn_single_spike`` says so. What does know better: ``torch.nn.Linear``, whose product is put off
(:class:`LazyCurrent`) until a neuron asks for it and then never is a (T, B, out) tensor,
flattening, moving by ``to()``, and average pooling of maps. The tensors that they hold are not
to be changed in place. A ``torch.autograd.Function`` of one's own asks nobody: give it
``.to_dense()``, or its gradient is lost. Layers from spike times are computed in the type of their
weights, whatever autocast says.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import backends
from ..backends._events import Events, offsets_of
from ..ops.validation import check_device
from .lazy import LazySequence

__all__ = ["LazyCurrent", "SpikeEvents", "SpikeTimes"]


def time_dtype(num_steps: int) -> torch.dtype:
    """The smallest signed integer type that holds the steps 0 to T-1, and -1."""
    for dtype in (torch.int8, torch.int16, torch.int32):
        if num_steps - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise ValueError(f"num_steps={num_steps} is more than the 2**31 that a spike time can hold")


def check_steps(num_steps: Any) -> int:
    try:
        number = 0 if isinstance(num_steps, bool) else operator.index(num_steps)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"num_steps={num_steps!r} must be a positive number of time steps")
    return number


class _Dense(torch.autograd.Function):
    """Dense unit spikes; their gradient is that of the carrier."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, spikes: Tensor) -> Tensor:
        return spikes.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Carrier(torch.autograd.Function):
    """A carrier whose gradient is that of dense spikes."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor) -> Tensor:
        ctx.shape = spikes.shape
        num_steps, batch = spikes.shape[:2]
        return carrier(num_steps, batch, spikes.shape[2:].numel(), spikes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # A product that was left undone (FactoredGradient) is taken by any operation on it.
        return (grad if type(grad) is Tensor else grad.clone()).reshape(ctx.shape)


def spikes_carrier(spikes: Tensor) -> Tensor:
    """A carrier (T, B, N) whose gradient becomes that of dense unit spikes."""
    return _Carrier.apply(spikes)


def first_steps(fired: Tensor) -> Tensor:
    """Step of the first True of each neuron, -1 where there is none."""
    return fired.byte().argmax(0).masked_fill_(~fired.any(0), -1)


def carrier(num_steps: int, batch: int, units: int, like: Tensor) -> Tensor:
    """A (T, B, N) tensor of no size: what autograd knows of spikes that are never dense."""
    return like.new_zeros(1).expand(num_steps, batch, units)


class Spikes(LazySequence):
    """What :class:`SpikeTimes` and :class:`SpikeEvents` share: the units and their layers."""

    height: Tensor | None = None
    interpolated_times: Tensor | None = None
    carrier: Tensor | None = None

    def _with_features(self, features: Sequence[int]) -> Any:
        raise NotImplementedError

    def events(self) -> Events:
        """All spikes in the order of their samples and times."""
        raise NotImplementedError

    def prefer_events(self) -> bool:
        """Whether a linear layer is faster from events than from dense spikes."""
        return True

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """As :meth:`torch.Tensor.flatten`; stays what it is where only features are flattened."""
        first = self.dim() - len(self.features)
        start, end = (d + self.dim() if d < 0 else d for d in (start_dim, end_dim))
        if start < first or not start <= end < self.dim():
            return self.materialize("flatten").flatten(start_dim, end_dim)
        inner = self.shape[start : end + 1].numel()
        return self._with_features((*self.shape[first:start], inner, *self.shape[end + 1 :]))

    def reshape(self, *shape: Any) -> Any:
        """As :meth:`torch.Tensor.reshape`; stays what it is where time and batch keep theirs."""
        wanted = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        first = self.dim() - len(self.features)
        if wanted.count(-1) == 1:
            known = math.prod(size for size in wanted if size != -1)
            if known and self.numel() % known == 0:
                wanted[wanted.index(-1)] = self.numel() // known
        kept = tuple(wanted[:first]) == tuple(self.shape[:first]) and min(wanted, default=0) >= 0
        if len(wanted) > first and kept and math.prod(wanted) == self.numel():
            return self._with_features(wanted[first:])
        return self.materialize("reshape").reshape(*shape)

    view = reshape

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Any:
        raise NotImplementedError

    def cpu(self) -> Any:
        """The same on the CPU."""
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int = "cuda", non_blocking: bool = False) -> Any:
        """The same on a GPU."""
        return self.to(device, non_blocking)

    def _check_target(self, device: object) -> None:
        if not isinstance(device, (torch.device, str, int)):
            raise TypeError(
                f"to() moves {type(self).__name__} to a device, not to {device}: for a tensor of "
                f"another type use .to_dense().to({device})"
            )

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = KNOWN.get(function)
        given = dict(kwargs or {})
        spikes = args[0] if args else given.pop("input", None)
        if known and isinstance(spikes, Spikes):
            return known(spikes, *args[1:], **given)
        return super().__torch_function__(function, types, args, kwargs)


class SpikeTimes(Spikes):
    """
    One spike time for every neuron of a batch: what a dense (T, B, *features) tensor of single
    spikes says, in one number a neuron.

    Example::

        from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes

        # Latency codes: the brighter the pixel, the earlier its spike
        times = ((1 - images.flatten(1)) * 99).int()          # (B, 784)
        spikes = SpikeTimes(times, num_steps=100)
        hidden = SingleSpikeLinear(784, 1000, beta=0.9)(spikes)     # SpikeTimes too
        scores = LeakyReadout(0.95)(nn.Linear(1000, 10)(hidden))    # (B, 10)
        hidden.to_dense()                                        # (100, B, 1000)

    :param times: step of each spike, `(B, *features)`, any integer type; -1 for a silent neuron.
        Kept in the smallest type that holds `num_steps`: int8, int16 or int32
    :type times: torch.Tensor

    :param num_steps: number of time steps T of the dense tensor
    :type num_steps: int

    :param height: height of a spike, a tensor that broadcasts to the features. Defaults to
        None: 1
    :type height: torch.Tensor, optional

    :param dtype: type of the dense tensor. Defaults to that of `height`, or float32
    :type dtype: torch.dtype, optional

    Attributes: `times`, `num_steps`, `height`; `interpolated_times`, the times interpolated between steps and
    differentiable, -1 for a silent neuron, where a neuron with `gradient="spike_time"` made
    them, else None.

    :raises TypeError: `times` is not an integer tensor
    :raises ValueError: no batch dimension, `num_steps` not positive, a time outside -1 ... T-1 (on
        the CPU), or a height that does not fit the features
    """

    def __init__(
        self,
        times: Tensor,
        num_steps: int,
        *,
        height: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.num_steps = check_steps(num_steps)
        if not isinstance(times, Tensor) or not _is_integer(times):
            found, fix = type(times).__name__, "use torch.as_tensor(times)"
            if isinstance(times, Tensor):
                found = str(times.dtype)
                fix = (
                    "round them, e.g. times.int(); of dense spikes (time, batch, ...) make them "
                    "with SpikeTimes.from_dense(spikes)"
                )
            raise TypeError(f"times must be an integer tensor, not {found}: {fix}")
        times = _signed(times)
        if times.dim() < 2:
            raise ValueError(
                f"times has shape {tuple(times.shape)}, but one time for every neuron of every "
                "sample is expected, (batch, *features): use times.unsqueeze(0) for one sample"
            )
        if times.device.type == "cpu" and times.numel():
            low, high = (int(x) for x in times.aminmax())
            if low < -1 or high >= num_steps:
                raise ValueError(
                    f"times runs from {low} to {high}, but num_steps={num_steps} allows 0 to {num_steps - 1}, "
                    "and -1 for a silent neuron: clamp them, or raise steps"
                )
        if height is not None and not isinstance(height, Tensor):
            raise TypeError(
                f"height must be a tensor, not {type(height).__name__}: use "
                f"torch.tensor({height!r})"
            )
        _check_dense_type(dtype)
        self._set(times.to(time_dtype(num_steps)).contiguous(), height, dtype)

    def _set(self, times: Tensor, height: Tensor | None, dtype: torch.dtype | None) -> None:
        self.times, self.height = times, height
        self.batch, self.features, self.device = times.shape[0], times.shape[1:], times.device
        self.dtype = dtype or (torch.float32 if height is None else height.dtype)
        self.interpolated_times: Tensor | None = None
        self.carrier: Tensor | None = None
        self.folded = False
        self._events: Events | None = None
        if height is not None:
            check_device("height", height, times.device, "times")
            try:
                self.height = height.to(self.dtype).expand(self.features)
            except RuntimeError:
                raise ValueError(
                    f"height has shape {tuple(height.shape)}, which does not broadcast to the "
                    f"features {tuple(self.features)}"
                ) from None

    @classmethod
    def of_neuron(
        cls,
        times: Tensor,
        num_steps: int,
        height: Tensor | None,
        dtype: torch.dtype,
        carrier: Tensor,
        interpolated_times: Tensor | None,
    ) -> SpikeTimes:
        """What a neuron returns: (B, *features) times, and the carrier of their gradient."""
        new = cls.__new__(cls)
        new.num_steps = num_steps
        new._set(times.to(time_dtype(num_steps)), height, dtype)
        new.carrier, new.interpolated_times = (
            carrier if carrier.requires_grad else None,
            interpolated_times,
        )
        return new

    @classmethod
    def from_dense(cls, spikes: Tensor) -> SpikeTimes:
        """
        The spike times of dense spikes `(T, B, *features)`, 0 or 1 and at most one a neuron;
        differentiable as they are.

        :raises ValueError: a neuron spikes more than once, or a spike is not 1 (use
            :meth:`SpikeEvents.from_dense`); wrong rank
        :raises TypeError: not a floating-point tensor
        """
        _check_dense(spikes)
        fired = spikes.detach() != 0
        if not torch.equal(fired.to(spikes.dtype), spikes.detach()):
            raise ValueError(
                "spikes has values other than 0 and 1: use SpikeEvents.from_dense, which keeps "
                "them, or pass (spikes != 0).to(spikes.dtype)"
            )
        if bool((fired.sum(0) > 1).any()):
            raise ValueError(
                "spikes has neurons that spike more than once: use SpikeEvents.from_dense"
            )
        new = cls(first_steps(fired), spikes.shape[0], dtype=spikes.dtype)
        if spikes.requires_grad and torch.is_grad_enabled():
            new.carrier = spikes_carrier(spikes)
        return new

    def to_dense(self) -> Tensor:
        """
        The spikes as a tensor `(T, B, *features)`, differentiable.

        :rtype: torch.Tensor
        """
        index = self.times.to(torch.int64)[None]
        fired = (index >= 0).to(self.dtype)
        spikes = torch.zeros(
            (self.num_steps, *self.times.shape), dtype=self.dtype, device=self.device
        )
        spikes.scatter_(0, index.clamp_(min=0), fired)
        if self.carrier is not None:
            spikes = _Dense.apply(self.carrier.view(spikes.shape), spikes)
        if self.height is not None:
            spikes = spikes * self.height
        return self._leading(spikes)

    @property
    def requires_grad(self) -> bool:
        height = self.height is not None and self.height.requires_grad
        return self.carrier is not None or height

    def detach(self) -> SpikeTimes:
        """The same without a gradient."""
        height = None if self.height is None else self.height.detach()
        interpolated_times = (
            None if self.interpolated_times is None else self.interpolated_times.detach()
        )
        return self._is_like(carrier=None, height=height, interpolated_times=interpolated_times)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> SpikeTimes:
        """The same on another device, without a gradient; itself if it is there already."""
        self._check_target(device)
        times = self.times.to(device, non_blocking=non_blocking)
        if times.device == self.device:
            return self
        height = None if self.height is None else self.height.detach().to(device)
        return self._is_like(
            times=times,
            device=times.device,
            height=height,
            carrier=None,
            interpolated_times=None,
            _events=None,
        )

    def samples(self, index: Tensor | slice) -> SpikeTimes:
        """Those samples of the batch, without a gradient."""
        _check_index(index)
        return self._is_like(
            times=(times := self.times[index]),
            batch=times.shape[0],
            height=None if self.height is None else self.height.detach(),
            carrier=None,
            interpolated_times=None,
            _events=None,
        )

    def count(self) -> Tensor:
        """Number of spikes of each sample, `(B,)` int64."""
        return (self.times >= 0).flatten(1).sum(1)

    def events(self) -> Events:
        if self._events is None:
            backend, _ = backends.explain(self.device.type)
            rows = self.times.flatten(1).to(torch.int32)
            self._events = backends.load(backend, "linear").sort_spikes(rows, self.num_steps)
        return self._events

    def _with_features(self, features: Sequence[int]) -> SpikeTimes:
        shape = (self.batch, *features)
        return self._is_like(
            times=self.times.reshape(shape),
            features=torch.Size(features),
            interpolated_times=None
            if self.interpolated_times is None
            else self.interpolated_times.reshape(shape),
            height=None if self.height is None else self.height.reshape(*features),
        )

    def __repr__(self) -> str:
        gradient = ", requires_grad=True" if self.requires_grad else ""
        return (
            f"SpikeTimes(shape={tuple(self.shape)}, times={self.times.dtype}, "
            f"device={str(self.device)!r}{gradient})"
        )


class SpikeEvents(Spikes):
    """
    Spikes of input units that may fire any number of times, in the order of their times.

    Example::

        recordings = [events for events, label in dataset]     # tonic: structured arrays
        spikes = SpikeEvents.from_events(recordings, sensor_size=(34, 34, 2), num_steps=300,
                                             time_window=1000)  # microseconds per step
        hidden = SingleSpikeLinear(2 * 34 * 34, 300, beta=0.9)(spikes.flatten(2))

    :param events: all spikes; within a sample in the order of their times
    :type events: Events

    :param num_steps: number of time steps T of the dense tensor
    :type num_steps: int

    :param features: shape of the units of one sample
    :type features: sequence of int

    :param dtype: type of the dense tensor. Defaults to that of the values, or float32
    :type dtype: torch.dtype, optional

    :raises TypeError: times or units that are not integers, values that are not floating-point
    :raises ValueError: lengths that do not fit each other, spikes out of order, times or units
        out of range (on the CPU)
    """

    def __init__(
        self,
        events: Events,
        num_steps: int,
        features: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.num_steps, self.features = check_steps(num_steps), torch.Size(features)
        _check_dense_type(dtype)
        offsets, times, units, values, _ = events
        for name, value in (("offsets", offsets), ("times", times), ("units", units)):
            if not _is_integer(value):
                raise TypeError(f"{name} of the events must be integers, not {value.dtype}")
        if values is not None and not values.is_floating_point():
            raise TypeError(
                f"values of the events must be floating-point, not {values.dtype}: use "
                "values.float()"
            )
        offsets, times, units = map(_signed, (offsets, times, units))
        if not len(times) == len(units) == (len(times) if values is None else len(values)):
            raise ValueError(
                f"events has {len(times)} times and {len(units)} units"
                + ("" if values is None else f" and {len(values)} values")
                + ": one of each for every spike is expected"
            )
        self.device, self.batch, self.folded = times.device, len(offsets) - 1, False
        self.dtype = dtype or (torch.float32 if values is None else values.dtype)
        if self.device.type == "cpu":
            _check_events(offsets, times, units, num_steps, self.features.numel())
        self._events = Events(
            offsets.to(torch.int64).contiguous(),
            times.to(torch.int32).contiguous(),
            units.to(torch.int32).contiguous(),
            None if values is None else values.detach().to(self.dtype).contiguous(),
        )

    @classmethod
    def from_dense(cls, spikes: Tensor) -> SpikeEvents:
        """
        The spikes of a dense tensor `(T, B, *features)`, with their heights; no gradient.

        :raises TypeError, ValueError: not a floating-point (T, B, *features) tensor
        """
        _check_dense(spikes)
        flat, batch = spikes.detach().reshape(-1), spikes.shape[1]
        where, units = _nonzero(flat), max(spikes.shape[2:].numel(), 1)
        row = where // units  # of time and sample
        sample, order = torch.sort(row % max(batch, 1), stable=True)
        where, times = where[order], (row // max(batch, 1))[order]
        values = flat[where]
        offsets = offsets_of(torch.bincount(sample, minlength=batch))
        heights = None if bool((values == 1).all()) else values
        events = Events(offsets, times, where % units, heights)
        return cls(events, spikes.shape[0], spikes.shape[2:], dtype=spikes.dtype)

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
        Recordings as tonic's datasets give them, without dense frames in between.

        :param recordings: one structured array a sample, with fields `t`, `x`, `y`, `p` (those
            that the sensor has)
        :type recordings: sequence of numpy.ndarray
        :param sensor_size: extent of `x`, `y` and `p`, as tonic gives it: `(34, 34, 2)` of
            N-MNIST, `(700, 1, 1)` of SHD. Features are `(p, y, x)`, as in tonic's frames, without
            those of extent 1
        :type sensor_size: sequence of int
        :param num_steps: number of time steps
        :type num_steps: int
        :param time_window: duration of a step in the unit of `t` (microseconds in tonic)
        :type time_window: float
        :param count: several events of a unit in one step make a spike of that height, as in
            tonic's frames (which begin at the first event, these at time 0). If False, one of
            height 1. Defaults to True
        :type count: bool, optional
        :param late: `"raise"` if events lie beyond the last step, or `"drop"` them
        :type late: str, optional
        :param dtype: type of the dense tensor
        :type dtype: torch.dtype, optional
        :raises ValueError: a field is missing, an event outside the sensor (in what has an extent
            of more than 1), before time 0 or (with `late="raise"`) beyond the last step; an
            unknown option
        """
        if late not in ("raise", "drop"):
            raise ValueError(f"late={late!r} is not known: use 'raise' or 'drop'")
        if not time_window > 0:
            raise ValueError(f"time_window={time_window!r} must be positive")
        check_steps(num_steps)
        extents = sensor_size if isinstance(sensor_size, Sequence) else ()
        sound = all(isinstance(n, int | np.integer) and n > 0 for n in extents)
        if not sound or not 1 <= len(extents) <= 3:
            raise ValueError(
                f"sensor_size={sensor_size!r} must be the extents of x, y and polarity, "
                "positive numbers: 1 for what a recording does not have"
            )
        extent = {name: int(n) for name, n in zip("xyp", extents, strict=False)}
        axes = [name for name in "pyx" if extent.get(name, 1) > 1] or ["x"]
        features = [extent[name] for name in axes]
        parts, offsets = [], [0]
        for number, recording in enumerate(recordings):
            keys = _event_keys(number, recording, axes, extent, num_steps, time_window, late)
            keys, heights = np.unique(keys, return_counts=True) if len(keys) else (keys, keys)
            parts.append((keys, heights))
            offsets.append(offsets[-1] + len(keys))
        keys = np.concatenate([keys for keys, _ in parts]) if parts else np.zeros(0, np.int64)
        heights = np.concatenate([n for _, n in parts]) if parts else keys
        units = math.prod(features)
        values = torch.from_numpy(heights).to(dtype) if count and (heights != 1).any() else None
        events = Events(
            torch.tensor(offsets, device="cpu"),
            torch.from_numpy((keys // units).astype(np.int32)),
            torch.from_numpy((keys % units).astype(np.int32)),
            values,
        )
        return cls(events, num_steps, features, dtype=dtype)

    def to_dense(self) -> Tensor:
        """
        The spikes as a tensor `(T, B, *features)`; spikes of a unit in the same step add up.

        :rtype: torch.Tensor
        """
        spikes = self._events.to_dense(self.num_steps, self.features.numel(), self.dtype)
        return self._leading(spikes.unflatten(2, self.features))

    def events(self) -> Events:
        return self._events

    def detach(self) -> SpikeEvents:
        return self

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> SpikeEvents:
        """The same on another device."""
        self._check_target(device)
        moved = (
            x if x is None else x.to(device, non_blocking=non_blocking) for x in self._events[:4]
        )
        events = Events(*moved)  # type: ignore[arg-type]
        return self._is_like(_events=events, device=events.times.device)

    def samples(self, index: Tensor | slice) -> SpikeEvents:
        """Those samples of the batch."""
        _check_index(index)
        offsets, times, units, values, _ = self._events
        wanted = torch.arange(self.batch, device=self.device)[index]
        lengths = offsets.diff()[wanted]
        new = offsets_of(lengths)
        total = int(new[-1])
        shift = (offsets[wanted] - new[:-1]).repeat_interleave(lengths, output_size=total)
        source = torch.arange(total, device=self.device) + shift
        events = Events(
            new, times[source], units[source], None if values is None else values[source]
        )
        return self._is_like(_events=events, batch=len(wanted))

    def count(self) -> Tensor:
        """Number of spikes of each sample, `(B,)` int64."""
        return self._events.offsets.diff()

    def _with_features(self, features: Sequence[int]) -> SpikeEvents:
        return self._is_like(features=torch.Size(features))

    def __repr__(self) -> str:
        return (
            f"SpikeEvents(shape={tuple(self.shape)}, events={len(self._events.times)}, "
            f"device={str(self.device)!r})"
        )


def _check_index(index: Any) -> None:
    if isinstance(index, slice):
        return
    dimensions = index.dim() if isinstance(index, Tensor) else np.ndim(index)
    if dimensions == 0 and isinstance(index, int | np.integer | Tensor):
        raise TypeError(
            f"samples() of a batch are a batch again: use samples(slice({int(index)}, "
            f"{int(index) + 1})) for one of them"
        )
    if dimensions != 1 or isinstance(index, tuple):
        raise TypeError(
            "samples() takes a slice, a list or a tensor of one dimension: index features of "
            ".to_dense()"
        )


def _nonzero(flat: Tensor) -> Tensor:
    """Where a tensor (n,) is not zero, int64."""
    if flat.device.type != "cpu":
        return flat.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero((flat != 0).numpy()))  # three times as fast as torch


def _is_integer(tensor: Tensor) -> bool:
    kind = tensor.dtype
    return not (kind.is_floating_point or kind.is_complex or kind == torch.bool)


def _signed(tensor: Tensor) -> Tensor:
    """Differences of unsigned numbers would be unsigned, and torch cannot compare all of them."""
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.int16)
    return tensor if tensor.dtype in _SIGNED else tensor.to(torch.int64)


_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


def _check_dense_type(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype} must be a floating-point type, such as torch.float32")


def _check_dense(spikes: Tensor) -> None:
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        found = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spikes must be a floating-point tensor, not {found}: use spikes.float()")
    if spikes.dim() < 3 or spikes.shape[0] == 0:
        raise ValueError(
            f"spikes has shape {tuple(spikes.shape)}, but the whole sequence is expected, (time, "
            "batch, *features) with at least one time step"
        )


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
            f"offsets must rise from 0 to the number of events, {len(times)}; it is "
            f"{offsets.tolist() if len(offsets) < 9 else str(offsets)}"
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


def _event_keys(
    number: int,
    recording: np.ndarray,
    axes: Sequence[str],
    extent: Mapping[str, int],
    num_steps: int,
    time_window: float,
    late: str,
) -> np.ndarray:
    """step * units + unit of every event of one recording."""
    if not isinstance(recording, np.ndarray) or recording.ndim != 1:
        fix = "pass a list of recordings, [events]"
        if isinstance(recording, tuple):
            fix = "of a dataset take the events alone, [events for events, label in dataset]"
        raise TypeError(
            f"recording {number} is a {type(recording).__name__}, but a structured array of its "
            f"events is expected: {fix}"
        )
    missing = {"t", *axes} - set(recording.dtype.names or ())
    if missing:
        raise ValueError(
            f"recording {number} has fields {recording.dtype.names}, but {sorted(missing)} is "
            f"missing: sensor_size names the extent of x, y and p, 1 for what it does not have"
        )
    step = np.floor_divide(recording["t"].astype(np.float64), time_window).astype(np.int64)
    if len(step) and step.min() < 0:
        raise ValueError(f"recording {number} has an event before time 0")
    inside = step < num_steps
    if late == "raise" and not inside.all():
        raise ValueError(
            f"recording {number} has {int((~inside).sum())} events beyond step {num_steps - 1}, the "
            f"last at step {int(step.max())}: raise steps or time_window, or pass late='drop'"
        )
    unit = np.zeros(len(step), np.int64)
    for name in axes:
        place = recording[name].astype(np.int64)
        if len(place) and (place.min() < 0 or place.max() >= extent[name]):
            raise ValueError(
                f"recording {number} has {name} from {place.min()} to {place.max()}, but "
                f"sensor_size gives {name} an extent of {extent[name]}"
            )
        unit = unit * extent[name] + place
    return (step * math.prod(extent[name] for name in axes) + unit)[inside]


class LazyCurrent(LazySequence):
    """
    The current `(T, B, out)` of a linear layer from spike times or events, not computed.

    Neurons and readouts of this package take it as it is, and then it never is stored. Made by
    `torch.nn.Linear` (or `torch.nn.functional.linear`) from :class:`SpikeTimes` or
    :class:`SpikeEvents` with one feature dimension.
    """

    def __init__(
        self,
        spikes: Spikes,
        weight: Tensor,
        bias: Tensor | None,
    ) -> None:
        if not torch.is_grad_enabled():
            spikes, weight = spikes.detach(), weight.detach()
            bias = None if bias is None else bias.detach()
        self.spikes, self.weight, self.bias = spikes.unfold(), weight, bias
        self._versions = versions((weight, bias))
        self.num_steps, self.batch, self.folded = spikes.num_steps, spikes.batch, spikes.folded
        self.features = torch.Size((weight.shape[0],))
        self.dtype, self.device = weight.dtype, weight.device

    @property
    def requires_grad(self) -> bool:
        bias = self.bias is not None and self.bias.requires_grad
        return self.spikes.requires_grad or self.weight.requires_grad or bias

    def __getstate__(self) -> dict[str, Any]:
        self.check_unchanged()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = versions((self.weight, self.bias))  # copies count their own changes

    def check_unchanged(self) -> None:
        """Refuse weights that are no longer those that the layer was called with."""
        if versions((self.weight, self.bias)) != self._versions:
            raise RuntimeError(
                "the current of a linear layer is computed when it is first used, and the layer's "
                "weight or bias has been changed in place since it was called: use it before, "
                "e.g. current.to_dense() ahead of optimizer.step()"
            )

    def to_dense(self) -> Tensor:
        """The current as a tensor, differentiable."""
        self.check_unchanged()
        return self._leading(_product(self.spikes.to_dense(), self.weight, self.bias))

    def detach(self) -> LazyCurrent:
        bias = None if self.bias is None else self.bias.detach()
        return self._is_like(spikes=self.spikes.detach(), weight=self.weight.detach(), bias=bias)

    def __repr__(self) -> str:
        return f"LazyCurrent(shape={tuple(self.shape)}, of={self.spikes})"


def versions(values: Iterable[Any]) -> list[int]:
    """How often each of the tensors among these has been changed in place."""
    tensors = (x for x in values if isinstance(x, Tensor))
    return [0 if x.is_inference() else x._version for x in tensors]


def _linear(spikes: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    if len(spikes.features) != 1 or torch.compiler.is_compiling():
        return _product(spikes.materialize("linear"), weight, bias)
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, but (out, in) is expected")
    if not weight.is_floating_point():
        raise TypeError(
            f"weight has dtype {weight.dtype}, but must be floating-point: use weight.float()"
        )
    if spikes.features[0] != weight.shape[1]:
        raise ValueError(
            f"the spikes have {spikes.features[0]} features, but the linear layer takes "
            f"{weight.shape[1]}"
        )
    check_device("weight", weight, spikes.device, "spikes")
    if bias is not None:
        check_device("bias", bias, spikes.device, "spikes")
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, but the linear layer has {len(weight)} "
                "outputs"
            )
    if not spikes.prefer_events():
        return _product(spikes.materialize("linear, which is faster so here,"), weight, bias)
    return LazyCurrent(spikes, weight, bias)


def _product(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the type of the weights, as from spike times, of which autocast does not know either."""
    with torch.autocast(spikes.device.type, enabled=False):
        return F.linear(spikes.to(weight.dtype), weight, bias)


def _flatten(spikes: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    return spikes.flatten(start_dim, end_dim)


def _reshape(spikes: Any, shape: Sequence[int]) -> Any:
    return spikes.reshape(*shape)


KNOWN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
}
