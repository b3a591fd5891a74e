"""A convolution of dense maps, the maximum of its windows, and the transposes of both."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ._events import Events
from ._surrogate import Surrogate
from ._types import ConvGradients, Convolution, GradientFactors


class Scan(Protocol):
    """The backward pass of a convolution and its neurons by a surrogate rule."""

    def __call__(
        self,
        events: Events,
        num_steps: int,
        times: Tensor,
        grad_spikes: GradientFactors,
        rule: str,
        surrogate: Surrogate,
        out: ConvGradients,
        /,
    ) -> Tensor | None:
        """
        Write or add to the gradients ``out``, which start as zeros.

        Returns which positions have the maxima of windows, (T, n, ...), if the backend keeps them.
        """


class ToInput(Protocol):
    """The transposed convolution, with the maximum of windows if there is one."""

    def __call__(
        self, events: Events, num_steps: int, lam: Tensor, winner: Tensor | None, /
    ) -> Tensor:
        """
        The gradient to the inputs (T, n, units), from the adjoint ``lam`` (T, n, O * positions).

        ``winner`` (T, n, ...) is what :class:`Scan` returned, or None.
        """


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


def _maps(padded: Tensor, weight: Tensor, bias: Tensor | None, conv: Convolution) -> Tensor:
    stride, dilation = _strides(conv)
    return F.conv2d(padded, weight, bias, stride, 0, dilation, conv.groups)


def current(spikes: Tensor, weight: Tensor, bias: Tensor | None, conv: Convolution) -> Tensor:
    """The current (T, n, O * positions) of spikes (T, n, units)."""
    maps = _maps(_padded(spikes, conv, weight), weight, bias, conv)
    if conv.pools:
        maps = F.max_pool2d(maps, (conv.pool_y, conv.pool_x))
    return maps.reshape(*spikes.shape[:2], -1)


def _unpooled(lam: Tensor, padded: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """The gradient of the maps of the convolution: that of a window goes to its first maximum."""
    shape = (len(padded), len(weight), conv.out_height, conv.out_width)
    # The bias is the same for all positions of a window.
    maps = _maps(padded, weight, None, conv)
    _, where = F.max_pool2d(maps, (conv.pool_y, conv.pool_x), return_indices=True)
    grad = lam.new_zeros(*shape[:2], conv.out_height * conv.out_width)
    return grad.scatter_(2, where.flatten(2), lam.reshape(*shape[:2], -1)).view(shape)


def _through(
    grad: Tensor, maps: Tensor, weight: Tensor, conv: Convolution, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, dilation = _strides(conv)
    return torch.ops.aten.convolution_backward(
        grad, maps, weight, None, stride, (0, 0), dilation, False, (0, 0), conv.groups, wanted
    )


def to_weight(lam: Tensor, spikes: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
    """The gradient of the weights, from that of the current."""
    padded = _padded(spikes, conv, weight)
    if conv.pools:
        grad = _unpooled(lam, padded, weight, conv)
    else:
        grad = lam.reshape(len(padded), len(weight), conv.out_height, conv.out_width)
    return _through(grad, padded, weight, conv, [False, True, False])[1]


def to_input(lam: Tensor, spikes: Tensor | None, weight: Tensor, conv: Convolution) -> Tensor:
    """The gradient of the spikes (T, n, units), from that of the current (T, n, O * positions).

    The spikes are read if the current is a maximum of windows.
    """
    if conv.pools:
        assert spikes is not None
        grad = _unpooled(lam, _padded(spikes, conv, weight), weight, conv)
    else:
        grad = lam.reshape(-1, len(weight), conv.out_height, conv.out_width)
    return maps_to_input(grad, lam.shape[0], weight, conv)


def maps_to_input(maps: Tensor, num_steps: int, weight: Tensor, conv: Convolution) -> Tensor:
    """The gradient of the spikes (T, n, units), from that of the convolution (T * n, O, y, x)."""
    before, after, above, below = _padding(conv, weight.shape[2:])  # type: ignore[arg-type]
    rows, columns = conv.height + above + below, conv.width + before + after
    padded = maps.new_empty(len(maps), conv.channels, rows, columns)
    grad = _through(maps, padded, weight, conv, [True, False, False])[0]
    # The padding the other way: what was cut off has no gradient.
    grad = F.pad(grad, (-before, -after, -above, -below))
    return grad.reshape(num_steps, len(maps) // num_steps, -1)
