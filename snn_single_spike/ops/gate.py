"""The gradient rules for a custom surrogate, which autograd differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.torch.differentiable import gated


class RuleGate(torch.autograd.Function):
    """Carries dL/dS to the threshold crossings c by a gradient rule.

    Autograd then differentiates c by the membrane, through the custom surrogate.
    """

    @staticmethod
    def forward(ctx: Any, crossings: Tensor, spikes: Tensor, times: Tensor, rule: str) -> Tensor:
        ctx.save_for_backward(times)
        ctx.rule, ctx.dtype = rule, crossings.dtype
        return spikes.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (times,) = ctx.saved_tensors
        return gated(grad, times, ctx.rule).to(ctx.dtype), None, None, None
