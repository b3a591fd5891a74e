"""What stands between a convolution and its neurons, for a current that is not computed yet.

The maximum of windows side by side is one of the sizes of a convolution. An average of windows and
a BatchNorm in eval mode are linear, so they become a part of the weights and the bias.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends._compiling import is_traced
from ._base import each
from .current import ConvCurrent, follows

__all__ = ["MAX_POOLS", "windows_side_by_side"]

MAX_POOLS: dict[Any, int] = {
    F.max_pool1d: 1,
    torch.max_pool1d: 1,
    F.max_pool2d: 2,
    torch.max_pool2d: 2,
}


def windows_side_by_side(
    function: Callable[..., Any],
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[int, ...] | None:
    """The windows of a max pooling of :data:`MAX_POOLS`; None with overlap, padding or indices."""
    if ceil_mode or return_indices:
        return None
    dimensions = MAX_POOLS[function]
    windows = each(kernel_size, dimensions)
    strides = windows if stride is None or stride == [] else each(stride, dimensions)
    plain = strides == windows and set(each(padding, dimensions)) == {0}
    return windows if plain and set(each(dilation, dimensions)) == {1} else None


def _max_pool(
    function: Callable[..., Any], current: ConvCurrent, *args: Any, **kwargs: Any
) -> ConvCurrent | None:
    windows = windows_side_by_side(function, *args, **kwargs)
    if windows is None or not _cover_whole_windows(current, windows):
        return None
    channels, *maps = current.features
    sizes = current.sizes._replace(pool_y=(1, *windows)[-2], pool_x=windows[-1])
    whole = (extent // size for extent, size in zip(maps, windows, strict=True))
    return current._is_like(sizes=sizes, features=torch.Size((channels, *whole)))


for _pool in MAX_POOLS:
    follows(_pool)(functools.partial(_max_pool, _pool))


def _cover_whole_windows(current: ConvCurrent, windows: tuple[int, ...]) -> bool:
    maps = current.features[1:]
    if current.sizes.pools or len(maps) != len(windows):
        return False
    return all(1 <= size <= extent for size, extent in zip(windows, maps, strict=True))


def _average_pool(
    dimensions: int,
    current: ConvCurrent,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> ConvCurrent | None:
    """The average of windows, which may overlap: a convolution with a larger kernel and stride."""
    windows = each(kernel_size, dimensions)
    strides = windows if stride is None or stride == [] else each(stride, dimensions)
    plain = set(each(padding, dimensions)) == {0} and not ceil_mode and divisor_override is None
    if not plain or min(strides) < 1 or not _cover_whole_windows(current, windows):
        return None
    _, weight, _, sizes = current.convolution()
    channels, *maps = current.features
    window, step = (1, *windows)[-2:], (1, *strides)[-2:]
    apart = sizes.stride_y, sizes.stride_x  # of the inputs of two positions side by side
    averaged = F.conv_transpose2d(
        weight.flatten(0, 1).unsqueeze(1),
        weight.new_full((1, 1, *window), 1 / (window[0] * window[1])),
        stride=(sizes.dilation_y, sizes.dilation_x),
        dilation=apart,
    )
    extents = (
        (extent - size) // move + 1
        for extent, size, move in zip(maps, windows, strides, strict=True)
    )
    features = torch.Size((channels, *extents))
    return current.folded_into(
        averaged.squeeze(1).unflatten(0, weight.shape[:2]),
        current.bias,
        sizes._replace(
            out_height=(1, *features[1:])[-2],
            out_width=features[-1],
            stride_y=apart[0] * step[0],
            stride_x=apart[1] * step[1],
            dilation_y=1,
            dilation_x=1,
        ),
        features,
    )


follows(F.avg_pool1d, torch.avg_pool1d)(functools.partial(_average_pool, 1))
follows(F.avg_pool2d)(functools.partial(_average_pool, 2))


@follows(F.batch_norm)
def _batch_norm(
    current: ConvCurrent,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ConvCurrent | None:
    """A BatchNorm in eval mode. In training it reads the statistics of the dense current."""
    if training or running_mean is None or running_var is None:
        return None
    _, kernel, constant, sizes = current.convolution()
    factor = (running_var + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    if sizes.pools and (is_traced() or not bool((factor >= 0).all())):
        return None  # a negative factor makes the maximum of a window its minimum
    shift = -running_mean if constant is None else constant - running_mean
    shift = shift * factor if bias is None else shift * factor + bias
    kernel = kernel * factor.view(-1, *(1 for _ in kernel.shape[1:]))
    return current.folded_into(kernel, shift.to(kernel.dtype), sizes, current.features)
