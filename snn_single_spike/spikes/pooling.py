"""Average and first-spike pooling of maps of spike times, without dense maps."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends._compiling import is_traced
from ..backends._events import Events, offsets_of
from ..ops.carrier import chosen_carrier, pooled_carrier
from ._base import Spikes, each
from .layers import height_of_channels
from .lazy import implements
from .times import SpikeTimes

__all__ = ["AveragedSpikes", "pool_first_spikes"]

# An average pooling is faster on events than on dense maps if at most one in SPARSE entries of the
# dense spikes is a spike. Single spikes are always that sparse from 20 steps on. Measured
# speed-ups of the compiled CPU loops, forward and backward: 1.3 to 2.2 at one in 28 or fewer, 1.0
# at one in 20, 0.7 to 1.5 at one in 11.
SPARSE = 20


class AveragedSpikes(Spikes):
    """
    The average pooling of spike times: every spike in a window has the height 1 / (size of the
    window). `torch.nn.AvgPool1d`, `torch.nn.AvgPool2d` and the functions `avg_pool1d` and
    `avg_pool2d` return AveragedSpikes for :class:`SpikeTimes` of height 1.

    If it is faster, a linear layer reads the spikes as events of the pooled units. Every other
    operation receives the dense maps.

    :param spikes: spike times of height 1, whose last dimensions are the maps
    :type spikes: SpikeTimes

    :param windows: size of a window in each dimension. Windows do not overlap
    :type windows: tuple of int

    :param pool: the pooling function on dense maps
    :type pool: Callable
    """

    def __init__(
        self, spikes: SpikeTimes, windows: tuple[int, ...], pool: Callable[[Tensor], Tensor]
    ) -> None:
        self.spikes, self.pool = spikes.unfold(), pool
        self.num_steps, self.batch, self.folded = spikes.num_steps, spikes.batch, spikes.folded
        self.dtype, self.device = spikes.dtype, spikes.device
        self.windows = _Windows(spikes.features, windows)
        self.features = torch.Size((*spikes.features[: -len(windows)], *self.windows.pooled))

    @property
    def height(self) -> Tensor:  # type: ignore[override]
        height = torch.full((), 1 / self.windows.area, dtype=self.dtype, device=self.device)
        return height.expand(self.features)

    @property
    def carrier(self) -> Tensor | None:  # type: ignore[override]
        given = self.spikes.carrier
        return None if given is None else pooled_carrier(given, self.windows)

    @property
    def requires_grad(self) -> bool:
        return self.spikes.requires_grad

    def to_dense(self) -> Tensor:
        """
        The pooled maps as a tensor `(T, B, *features)`, differentiable.

        :rtype: torch.Tensor
        """
        maps = self.pool(self.spikes.fold().to_dense())
        return self._leading(maps.view(self.num_steps, self.batch, *self.features))

    def events(self) -> Events:
        """The spikes as events of the pooled units. A unit may have several events at one step."""
        offsets, times, units = self.spikes.events()[:3]
        pooled = self.windows.index(self.device)[units]
        if self.windows.cover_all:
            return Events(offsets, times, pooled, None)
        inside = pooled >= 0
        before = offsets_of(inside)
        return Events(before[offsets], times[inside], pooled[inside], None)

    def prefer_events(self) -> bool:
        """Whether a linear layer is faster from events than from dense maps."""
        # Events cost time for every spike, dense maps for every unit and step.
        if is_traced():
            return False  # the number of events varies
        if self.device.type != "cpu":
            return True  # not measured; counting would wait for a GPU
        return int((self.spikes.times >= 0).sum()) * SPARSE <= self.spikes.numel()

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> AveragedSpikes:
        """The same on another device, without a gradient; itself if it is there already."""
        moved = self.spikes.to(device, non_blocking)
        if moved is self.spikes:
            return self
        return self._is_like(spikes=moved, device=moved.device)

    def pin_memory(self) -> AveragedSpikes:
        """The same spikes in pinned memory, without a gradient."""
        return self._is_like(spikes=self.spikes.pin_memory())

    def detach(self) -> AveragedSpikes:
        """The same spikes without a gradient."""
        return self._is_like(spikes=self.spikes.detach())

    def _with_features(self, features: Sequence[int]) -> AveragedSpikes:
        return self._is_like(features=torch.Size(features))

    def __repr__(self) -> str:
        return f"AveragedSpikes(shape={tuple(self.shape)}, of={self.spikes})"


class _Windows:
    """Windows side by side over the last dimensions of (..., *maps)."""

    def __init__(self, features: Sequence[int], windows: tuple[int, ...]) -> None:
        self.windows, self.maps = windows, tuple(features[-len(windows) :])
        self.kept = math.prod(features[: -len(windows)])
        self.pooled = tuple(map(operator.floordiv, self.maps, windows))
        self.num_pooled = self.kept * math.prod(self.pooled)
        self.area = math.prod(windows)
        self.cover_all = math.prod(self.pooled) * self.area == math.prod(self.maps)

    def index(self, device: torch.device) -> Tensor:
        """The pooled unit of every unit, int32; -1 for a unit past the last whole window."""
        units = torch.arange(self.kept * math.prod(self.pooled), dtype=torch.int32, device=device)
        return self.spread(units.view(self.kept, *self.pooled), -1).flatten()

    def to_maps(self, pooled: Tensor) -> Tensor:
        """(T, B, pooled units) to (T, B, kept, *pooled)."""
        return pooled.unflatten(2, (self.kept, *self.pooled))

    def spread(self, pooled: Tensor, beyond: int) -> Tensor:
        """(..., *pooled) to (..., *maps): every unit gets the value of its window."""
        dimensions, shape = len(self.windows), pooled.shape[: -len(self.windows)]
        for dim in range(dimensions):
            pooled = pooled.unsqueeze(len(shape) + 2 * dim + 1)
        pairs = [size for pair in zip(self.pooled, self.windows, strict=True) for size in pair]
        whole = map(operator.mul, self.pooled, self.windows)
        maps = pooled.expand(*shape, *pairs).reshape(*shape, *whole)
        if self.cover_all:
            return maps
        rest = [
            (0, size - covered)
            for size, covered in zip(self.maps, maps.shape[len(shape) :], strict=True)
        ]
        return F.pad(maps, [size for pair in reversed(rest) for size in pair], value=beyond)


def _average(pool: Callable[..., Any], dimensions: int) -> Callable[..., Any]:
    def averaged(
        spikes: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        windows = each(kernel_size, dimensions)
        strides = windows if stride is None or stride == [] else each(stride, dimensions)
        borders = each(padding, dimensions)
        sizes = (windows, strides, borders)
        sound = all(len(x) == dimensions for x in sizes) and min(*windows, *strides) > 0
        given = functools.partial(
            pool,
            kernel_size=windows,
            stride=strides,
            padding=borders,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            **({} if divisor_override is None else {"divisor_override": divisor_override}),
        )
        apart = sound and windows == strides and not any(borders) and not ceil_mode
        maps = spikes.features[-dimensions:]
        fits = len(maps) == dimensions and spikes.dim() <= dimensions + 2
        whole = fits and all(map(operator.ge, maps, windows))
        units = isinstance(spikes, SpikeTimes) and _unit_height(spikes.height)
        if not (apart and whole and units and divisor_override is None):
            what = "overlapping, padded or partial windows" if units else "spikes of another height"
            return given(spikes.materialize(f"avg_pool{dimensions}d of {what}"))
        return AveragedSpikes(spikes, windows, given)

    return averaged


def _unit_height(height: Tensor | None) -> bool:
    """Whether spikes have the height 1; a compiled layer returns that height as a tensor."""
    if height is None:
        return True
    readable = height.device.type == "cpu" and not is_traced()
    return readable and not height.requires_grad and bool((height == 1).all())


implements(F.avg_pool1d)(_average(F.avg_pool1d, 1))
implements(F.avg_pool2d)(_average(F.avg_pool2d, 2))


def pool_first_spikes(
    spikes: SpikeTimes, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool
) -> SpikeTimes:
    """The earliest spike of each window, as of ``functional.first_spike_pool2d``.

    Interpolated times decide between spikes of one step, and then the order of the units in the
    window.
    """
    height = height_of_channels(spikes)
    if height is None:
        raise ValueError(
            "first_spike_pool2d does not support spikes whose height differs within a channel: use "
            "a graded_spikes_factor of shape (channels, 1, 1) in the layer before"
        )
    moments = spikes.interpolated_times
    exact = spikes.times if moments is None else moments.detach()
    lateness = torch.where(spikes.times < 0, torch.inf, exact.to(torch.float64))
    earliest, where = F.max_pool2d(
        -lateness, kernel_size, stride, padding, ceil_mode=ceil_mode, return_indices=True
    )
    channels, *maps = spikes.features
    first_unit = torch.arange(channels, device=spikes.device) * math.prod(maps)
    units = (where + first_unit.view(-1, 1, 1)).flatten(1)
    features = earliest.shape[1:]
    chosen = spikes.times.flatten(1).gather(1, units.to(torch.int64)).unflatten(1, features)
    if moments is not None:
        moments = moments.flatten(1).gather(1, units).unflatten(1, features)
    given = spikes.carrier
    new = spikes._is_like(
        times=chosen,
        interpolated_times=moments,
        carrier=None if given is None else chosen_carrier(given, units),
        height=None,
        _events=None,
    )
    if spikes.height is not None:
        new.height = height.expand(channels).view(-1, 1, 1).expand(features)
    return new
