"""One spike time for each neuron, in place of a dense (T, B, N) tensor of zeros and ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ..backends._events import Events
from ..ops.carrier import carrier_of
from ..ops.layer import first_steps
from ..ops.linear import sort_spikes
from ..ops.validation import check_device, check_real
from ._base import (
    Spikes,
    check_dense,
    check_dense_type,
    check_index,
    check_num_steps,
    is_integer,
    signed,
)

__all__ = ["SpikeTimes", "time_dtype"]


def time_dtype(num_steps: int) -> torch.dtype:
    """The smallest signed integer type for the steps -1 to T-1.

    :raises ValueError: T is larger than 2**31
    """
    for dtype in (torch.int8, torch.int16, torch.int32):
        if num_steps - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise ValueError(f"num_steps={num_steps} is more than the 2**31 steps that int32 can hold")


class SpikeTimes(Spikes):
    """
    One spike time for every neuron of a batch, in place of a dense `(T, B, *features)` tensor of
    single spikes.

    Layers of this package return SpikeTimes with a gradient. Pickling drops the gradient, and so
    do the worker processes of a `DataLoader`, `to()` another device, `pin_memory()` and
    `samples()`.

    Example::

        from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes

        # Latency codes: a brighter pixel spikes earlier
        times = ((1 - images.flatten(1)) * 99).int()          # (B, 784)
        spikes = SpikeTimes(times, num_steps=100)
        hidden = SingleSpikeLinear(784, 1000, beta=0.9)(spikes)     # SpikeTimes too
        scores = LeakyReadout(0.95)(nn.Linear(1000, 10)(hidden))    # (B, 10)
        hidden.to_dense()                                        # (100, B, 1000)

    :param times: step of each spike, `(B, *features)`, any integer type; -1 for a silent neuron.
        The attribute has the smallest type for `num_steps`: int8, int16 or int32
    :type times: torch.Tensor

    :param num_steps: number of time steps T of the dense tensor
    :type num_steps: int

    :param height: height of a spike, a tensor that broadcasts to the features. Defaults to None:
        every spike has the height 1
    :type height: torch.Tensor, optional

    :param dtype: type of the dense tensor. Defaults to the type of `height`, or float32
    :type dtype: torch.dtype, optional

    Attributes: `times`, `num_steps`, `height`, and `interpolated_times`. `interpolated_times` is
    None, except for the result of a neuron with `gradient="spike_time"`. There it holds the times
    interpolated between steps, `(B, *features)`, float32 or float64, differentiable, -1 for a
    silent neuron.

    :raises TypeError: `times` is not an integer tensor
    :raises ValueError: `times` has no batch dimension, `num_steps` is not positive, a time is
        outside -1 ... T-1 (checked on the CPU), or the height does not broadcast to the features
    """

    def __init__(
        self,
        times: Tensor,
        num_steps: int,
        *,
        height: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_steps = check_num_steps(num_steps)
        if not isinstance(times, Tensor) or not is_integer(times):
            found, fix = type(times).__name__, "use torch.as_tensor(times)"
            if isinstance(times, Tensor):
                found = str(times.dtype)
                fix = (
                    "round them, e.g. times.int(); for dense spikes (time, batch, ...) use "
                    "SpikeTimes.from_dense(spikes)"
                )
            raise TypeError(f"times must be an integer tensor, not {found}: {fix}")
        times = signed(times)
        if times.dim() < 2:
            raise ValueError(
                f"times has shape {tuple(times.shape)}, but one time for every neuron of every "
                "sample is expected, (batch, *features): use times.unsqueeze(0) for one sample"
            )
        readable = times.device.type == "cpu" and not is_traced()
        if readable and times.numel():
            low, high = (int(x) for x in times.aminmax())
            if low < -1 or high >= num_steps:
                raise ValueError(
                    f"times runs from {low} to {high}, but num_steps={num_steps} allows 0 to "
                    f"{num_steps - 1}, and -1 for a silent neuron: clamp times, or raise num_steps"
                )
        if height is not None:
            if not isinstance(height, Tensor):
                raise TypeError(
                    f"height must be a tensor, not {type(height).__name__}: use "
                    f"torch.tensor({height!r})"
                )
            check_device("height", height, times.device, "times")
            check_real("height", height)
        check_dense_type(dtype)
        self._set(times.to(time_dtype(num_steps)).contiguous(), num_steps, height, dtype)

    def _set(
        self, times: Tensor, num_steps: int, height: Tensor | None, dtype: torch.dtype | None
    ) -> None:
        self.times, self.num_steps, self.folded = times, num_steps, False
        self.dtype = dtype or (torch.float32 if height is None else height.dtype)
        self.height: Tensor | None = None
        self.interpolated_times: Tensor | None = None
        self.carrier: Tensor | None = None
        self._events: Events | None = None
        if height is not None:
            try:
                self.height = height.to(self.dtype).expand(self.features)
            except RuntimeError:
                raise ValueError(
                    f"height has shape {tuple(height.shape)}, which does not broadcast to the "
                    f"features {tuple(self.features)}"
                ) from None

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.times.shape[0]

    @property
    def features(self) -> torch.Size:  # type: ignore[override]
        return self.times.shape[1:]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.times.device

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
        """The spikes that a neuron returns, from times `(B, *features)` and their carrier."""
        new = object.__new__(cls)
        new._set(times.to(time_dtype(num_steps)), num_steps, height, dtype)
        new.carrier = carrier if carrier.requires_grad else None
        new.interpolated_times = interpolated_times
        return new

    @classmethod
    def from_dense(cls, spikes: Tensor) -> SpikeTimes:
        """
        The spike times of dense spikes. The gradient of the result flows into `spikes`.

        :param spikes: tensor of shape `(T, B, *features)`, floating-point, with values 0 and 1 and
            at most one spike per neuron and sample
        :type spikes: torch.Tensor
        :rtype: SpikeTimes
        :raises ValueError: a neuron spikes more than once, or a value is not 0 or 1 (use
            :meth:`SpikeEvents.from_dense`); `spikes` has fewer than three dimensions, or `T = 0`
        :raises TypeError: `spikes` is not a floating-point tensor
        """
        check_dense(spikes)
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
            new.carrier = carrier_of(spikes)
        return new

    def to_dense(self) -> Tensor:
        """
        The spikes as a tensor `(T, B, *features)` of type `dtype`, differentiable.

        :rtype: torch.Tensor
        """
        index = self.times.to(torch.int64)[None]
        fired = (index >= 0).to(self.dtype)
        shape = (self.num_steps, *self.times.shape)
        spikes = torch.zeros(shape, dtype=self.dtype, device=self.device)
        spikes = spikes.scatter_(0, index.clamp(min=0), fired)
        if self.carrier is not None:
            # Zeros, with the gradient. The carrier of half weights is float32.
            spikes = spikes + self.carrier.view(shape).to(self.dtype)
        if self.height is not None:
            spikes = spikes * self.height
        return self._leading(spikes)

    def __iter__(self) -> Iterator[Tensor]:
        """The dense spikes of one step after the other, `(B, *features)` each."""
        if self.folded or self.requires_grad or torch.compiler.is_compiling():
            return iter(self.materialize("__iter__"))
        fired = ((self.times == step).to(self.dtype) for step in range(self.num_steps))
        return fired if self.height is None else (step * self.height for step in fired)

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into the spikes or their height."""
        height = self.height is not None and self.height.requires_grad
        return self.carrier is not None or height

    def detach(self) -> SpikeTimes:
        """The same spikes without a gradient."""
        height = None if self.height is None else self.height.detach()
        interpolated_times = (
            None if self.interpolated_times is None else self.interpolated_times.detach()
        )
        return self._is_like(carrier=None, height=height, interpolated_times=interpolated_times)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> SpikeTimes:
        """
        The same spikes on another device, without a gradient. If the spikes are on that device,
        the method returns this object, with its gradient.
        """
        self._check_target(device)
        times = self.times.to(device, non_blocking=non_blocking)
        if times.device == self.device:
            return self
        return self._moved(times, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SpikeTimes:
        """
        The same spikes in pinned memory, without a gradient. A `DataLoader` with `pin_memory=True`
        calls this method.
        """
        return self._moved(self.times.pin_memory(), Tensor.pin_memory)

    def samples(self, index: Tensor | slice) -> SpikeTimes:
        """
        Some samples of the batch, without a gradient.

        :param index: a slice, a list or a tensor of one dimension
        :type index: slice, list or torch.Tensor
        :rtype: SpikeTimes
        :raises TypeError: `index` is a number or has several dimensions
        """
        check_index(index)
        return self._moved(self.times[index], lambda height: height)

    def _moved(self, times: Tensor, move: Callable[[Tensor], Tensor]) -> SpikeTimes:
        return self._is_like(
            times=times,
            height=None if self.height is None else move(self.height.detach()),
            carrier=None,
            interpolated_times=None,
            _events=None,
        )

    def events(self) -> Events:
        """All spikes in the order of their samples and times. The result is cached."""
        backend, _ = backends.explain(self.device.type)
        if is_traced():
            return sort_spikes(self.times.flatten(1), self.num_steps, backend)
        if self._events is None:
            self._events = sort_spikes(self.times.flatten(1), self.num_steps, backend)
        return self._events

    def __getstate__(self) -> dict[str, Any]:
        return self.detach().__dict__ | {"_events": None}

    def _with_features(self, features: Sequence[int]) -> SpikeTimes:
        shape = (self.batch, *features)
        return self._is_like(
            times=self.times.reshape(shape),
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
