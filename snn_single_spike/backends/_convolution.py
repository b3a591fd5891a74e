"""A convolution of dense maps, and its transposes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._types import Convolution


def _padding(conv: Convolution, kernel: tuple[int, int]) -> tuple[int, int, int, int]:
    """Zeros on the left, on the right, above and below; negative where inputs are not read."""
    down = (conv.out_height - 1) * conv.stride_y + conv.dilation_y * (kernel[0] - 1) + 1
    across = (conv.out_width - 1) * conv.stride_x + conv.dilation_x * (kernel[1] - 1) + 1
    return conv.left, across - conv.left - conv.width, conv.top, down - conv.top - conv.height


def _padded(spikes: Tensor, conv: Convolution, weight: Tensor) -> Tensor:
    """(T, n, units) as maps (T * n, C, rows, columns) that the kernel covers exactly."""
    maps = spikes.reshape(-1, conv.channels, conv.height, conv.width)
    return F.pad(maps, _padding(conv, weight.shape[2:]))  # type: ignore[arg-type]


def _strides(conv: Convolution) -> tuple[tuple[int, int], tuple[int, int]]:
    return (conv.stride_y, conv.stride_x), (conv.dilation_y, conv.dilation_x)


def current(spikes: Tensor, weight: Tensor, bias: Tensor | None, conv: Convolution) -> Tensor:
    """The current (T, n, O * positions) of spikes (T, n, units)."""
    stride, dilation = _strides(conv)
    maps = F.conv2d(
        _padded(spikes, conv, weight), weight, bias, stride, 0, dilation, conv.groups
    )
    return maps.reshape(*spikes.shape[:2], -1)


def _through(
    lam: Tensor, maps: Tensor, weight: Tensor, conv: Convolution, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, dilation = _strides(conv)
    grad = lam.reshape(len(maps), len(weight), conv.out_height, conv.out_width)
    return torch.ops.aten.convolution_backward(
        grad, maps, weight, None, stride, (0, 0), dilation, False, (0, 0), conv.groups, wanted
    )


def to_weight(lam: Tensor, spikes: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """The gradient of the weights, from that of the current."""
    return _through(lam, _padded(spikes, conv, weight), weight, conv, [False, True, False])[1]


def to_input(lam: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """The gradient of the spikes (T, n, units), from that of the current."""
    before, after, above, below = _padding(conv, weight.shape[2:])  # type: ignore[arg-type]
    rows, columns = conv.height + above + below, conv.width + before + after
    maps = lam.new_empty(lam.shape[0] * lam.shape[1], conv.channels, rows, columns)
    grad = _through(lam, maps, weight, conv, [True, False, False])[0]
    # The padding the other way: what was cut off has no gradient.
    grad = F.pad(grad, (-before, -after, -above, -below))
    return grad.reshape(*lam.shape[:2], -1)
