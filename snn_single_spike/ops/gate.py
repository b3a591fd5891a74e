"""The gradient rules for a custom surrogate, which autograd differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        num_steps = grad.shape[0]
        first = torch.where(times < 0, num_steps, times)
        step = torch.arange(num_steps, device=grad.device).view(-1, *[1] * times.dim())
        if ctx.rule == "masked":
            return torch.where(step <= first, grad, 0.0).to(ctx.dtype), None, None, None
        wide = grad.to(torch.float32 if grad.dtype != torch.float64 else grad.dtype)
        if ctx.rule == "pre_spike":
            wide = torch.where(step < first, wide, 0.0)
        ramp = wide.flip(0).cumsum(0).cumsum(0).flip(0)
        return ramp.to(ctx.dtype), None, None, None
