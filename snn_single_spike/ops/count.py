"""The number of spikes, differentiable, without dense spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends._compiling import is_batched, is_traced
from ..backends._types import state_dtype
from .factored_gradient import FactoredGradient, rows_of
from .second_order import is_recorded
from .validation import check_transforms


class SpikeCount(torch.autograd.Function):
    """Number of spikes of each neuron (N,), or of each sample (B,), in state precision.

    ``given`` is the carrier of the spikes, and ``fired`` (B, N) their number in each sample.
    ``height`` is (N,), or None for spikes of height 1; a spike counts by its height. The count is
    linear in the dense spikes, so the gradient is the same at every step.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, fired: Tensor, height: Tensor | None, per: str) -> Tensor:
        ctx.save_for_backward(given, fired, height)
        ctx.num_steps, ctx.dtype, ctx.per = given.shape[0], given.dtype, per
        dtype = state_dtype(given.dtype)
        if height is None:
            return fired.sum(0 if per == "neuron" else 1, dtype=dtype)
        height = height.to(dtype)
        return fired.sum(0) * height if per == "neuron" else fired.to(dtype) @ height

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given, fired, height = ctx.saved_tensors
        batch, neurons = fired.shape
        of_sample, of_neuron = grad.new_ones(batch), grad.new_ones(neurons)
        if ctx.per == "neuron":
            of_neuron = grad
        else:
            of_sample = grad
        d_height = None
        if height is not None:
            fired = fired.to(grad.dtype)
            if is_recorded():
                fired = fired + given.sum(0)  # zeros, with the gradient of the spikes
            d_height = of_neuron * (of_sample @ fired)
            d_height = d_height.to(height.dtype)
            of_neuron = of_neuron * height.to(grad.dtype)
        of_sample, of_neuron = of_sample.to(ctx.dtype), of_neuron.to(ctx.dtype)
        at_each_step = of_sample[:, None] * of_neuron
        if is_recorded() or is_traced() or is_batched(grad):
            to_spikes = at_each_step.expand(ctx.num_steps, batch, neurons)
        else:
            lam = of_sample[:, None].expand(ctx.num_steps, batch, 1)
            to_spikes = FactoredGradient(
                ctx.num_steps,
                batch,
                rows_of(lam, of_neuron[None]),
                lambda steps, fired: at_each_step.expand(2, batch, neurons),
            )
        return to_spikes, None, d_height, None


def count_spikes(given: Tensor, fired: Tensor, height: Tensor | None, per: str) -> Tensor:
    """The number of spikes, with the arguments of :class:`SpikeCount`."""
    check_transforms()
    return SpikeCount.apply(given, fired, height, per)
