"""The product of a current and a factor, in memory that is reused from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends._compiling import is_traced
from ..backends.memory import empty


def scaled(current: Tensor, factor: Tensor) -> Tensor:
    """``current * factor``, both of one type; the factor broadcasts to the current."""
    if is_traced():
        return current * factor
    return _Scaled.apply(current, factor)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(current if ctx.needs_input_grad[1] else None, factor)
        return _product(current, factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        current, factor = ctx.saved_tensors
        needs_current, needs_factor = ctx.needs_input_grad
        return (
            _product(grad, factor) if needs_current else None,
            (grad * current).sum_to_size(factor.shape) if needs_factor else None,
        )


def _product(x: Tensor, factor: Tensor) -> Tensor:
    if torch.is_grad_enabled():  # autograd records the backward pass
        return x * factor
    return torch.mul(x, factor, out=empty(tuple(x.shape), dtype=x.dtype, device=x.device))
