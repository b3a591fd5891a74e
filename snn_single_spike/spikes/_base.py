"""The base of spike times and events, and the torch functions that return them unchanged."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends._events import Events
from ..ops.layer import LayerInput
from ..ops.validation import check_transforms
from .lazy import _SUPPORTED, LazySequence, implements


class Spikes(LazySequence):
    """The base of :class:`SpikeTimes`, :class:`SpikeEvents` and :class:`AveragedSpikes`."""

    height: Tensor | None = None
    interpolated_times: Tensor | None = None
    carrier: Tensor | None = None
    opened: bool = False
    """Whether a linear layer computes its current as a tensor at once, and not on first use."""

    def _with_features(self, features: Sequence[int]) -> Any:
        raise NotImplementedError

    def events(self) -> Events:
        """All spikes in the order of their samples and times."""
        raise NotImplementedError

    def read_dense(self) -> Tensor:
        """As :meth:`to_dense`, for a caller that does not change the tensor in place."""
        return self.to_dense()

    def prefer_events(self) -> bool:
        """Whether a linear layer computes from events. ONNX has no operator for them."""
        return not (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export())

    def layer_input(self, backend: str) -> LayerInput | Tensor:
        """What a layer reads: events, or the dense spikes where they are faster.

        ``backend`` is the argument of the layer, such as "auto".
        """
        check_transforms()  # sorting reads the memory of the tensors, which a transform hides
        return self._event_input(backend) if self.prefer_events() else self.read_dense()

    def _event_input(self, backend: str) -> LayerInput:
        features, given, height = self.features, self.carrier, self.height
        return LayerInput(self.events(), self.num_steps, self.batch, features, given, height)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """As :meth:`torch.Tensor.flatten`. The result is dense if time or batch is flattened."""
        first = self.dim() - len(self.features)
        start, end = (d + self.dim() if d < 0 else d for d in (start_dim, end_dim))
        if start < first or not start <= end < self.dim():
            return self.materialize("flatten over time or batch").flatten(start_dim, end_dim)
        inner = self.shape[start : end + 1].numel()
        return self._with_features((*self.shape[first:start], inner, *self.shape[end + 1 :]))

    def reshape(self, *shape: Any) -> Any:
        """As :meth:`torch.Tensor.reshape`. The result is dense if time or batch is reshaped."""
        wanted = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        first = self.dim() - len(self.features)
        if wanted.count(-1) == 1:
            known = math.prod(size for size in wanted if size != -1)
            if known and self.numel() % known == 0:
                wanted[wanted.index(-1)] = self.numel() // known
        kept = tuple(wanted[:first]) == tuple(self.shape[:first]) and min(wanted, default=0) >= 0
        if len(wanted) > first and kept and math.prod(wanted) == self.numel():
            return self._with_features(wanted[first:])
        return self.materialize("reshape of time or batch").reshape(*shape)

    view = reshape

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Any:
        """The same spikes on another device."""
        raise NotImplementedError

    def cpu(self) -> Any:
        """The same spikes on the CPU."""
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int = "cuda", non_blocking: bool = False) -> Any:
        """The same spikes on a GPU."""
        return self.to(device, non_blocking)

    def _check_target(self, device: object) -> None:
        if not isinstance(device, (torch.device, str, int)):
            raise TypeError(
                f"to() moves {type(self).__name__} to a device, not to {device}. For a tensor of "
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
        supported = _SUPPORTED.get(function)
        given = dict(kwargs or {})
        spikes = args[0] if args else given.pop("input", None)
        if supported and isinstance(spikes, Spikes):
            return supported(spikes, *args[1:], **given)
        return super().__torch_function__(function, types, args, kwargs)


@implements(torch.flatten)
def _flatten(spikes: Spikes, start_dim: int = 0, end_dim: int = -1) -> Any:
    return spikes.flatten(start_dim, end_dim)


@implements(torch.reshape)
def _reshape(spikes: Spikes, shape: Sequence[int]) -> Any:
    return spikes.reshape(*shape)


def check_num_steps(num_steps: Any) -> int:
    if torch.compiler.is_compiling():
        return num_steps
    try:
        number = 0 if isinstance(num_steps, bool) else operator.index(num_steps)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"num_steps={num_steps!r} must be a positive number of time steps")
    return number


def each(size: Any, dimensions: int) -> tuple[int, ...]:
    """A size of a window as one number for each dimension."""
    sizes = tuple(map(operator.index, size if isinstance(size, Sequence) else (size,)))
    return sizes * dimensions if len(sizes) == 1 else sizes


def check_index(index: Any) -> None:
    """Reject an index that does not select samples of a batch."""
    if isinstance(index, slice):
        return
    dimensions = index.dim() if isinstance(index, Tensor) else np.ndim(index)
    if dimensions == 0 and isinstance(index, int | np.integer | Tensor):
        raise TypeError(
            f"samples() returns a batch, and does not accept the index {int(index)}: use "
            f"samples(slice({int(index)}, {int(index) + 1})) for one of them"
        )
    if dimensions != 1 or isinstance(index, tuple):
        raise TypeError(
            f"samples() expects a slice, a list or a tensor of one dimension, not a "
            f"{type(index).__name__} of {dimensions} dimensions: index features of .to_dense()"
        )


def check_dense_type(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype} must be a floating-point type, such as torch.float32")


def check_dense(spikes: Tensor) -> None:
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        found = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spikes must be a floating-point tensor, not {found}: use spikes.float()")
    if spikes.dim() < 3 or spikes.shape[0] == 0:
        raise ValueError(
            f"spikes has shape {tuple(spikes.shape)}, but the whole sequence is expected, (time, "
            "batch, *features) with at least one time step"
        )


_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


def is_integer(tensor: Tensor) -> bool:
    kind = tensor.dtype
    return not (kind.is_floating_point or kind.is_complex or kind == torch.bool)


def signed(tensor: Tensor) -> Tensor:
    """Convert unsigned integers: their differences would be unsigned, and torch compares few."""
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.int16)
    return tensor if tensor.dtype in _SIGNED else tensor.to(torch.int64)
