"""The operator of the non-firing readout, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..backends._types import Neuron, OutputGradients, ReadoutOutputs, Saved, state_dtype
from ._library import New, allocate_fake, given_of, register
from .neuron import neuron_backward, sum_to_parameter


def _readout(
    new: New,
    current: Tensor,
    beta: Tensor,
    mem_0: Tensor | None,
    reduction: str,
    sensitivity: bool,
    step: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    shape, dtype, device = (current.shape[1],), current.dtype, current.device
    out = ReadoutOutputs(
        new(True, shape, dtype, device),
        new(sensitivity, shape, state_dtype(dtype), device),
        new(step, shape, torch.int64, device),
    )
    if new is not allocate_fake and current.shape[1]:
        backends.load(backend, "readout").readout(current, beta, mem_0, reduction, given_of(out))
    return out  # type: ignore[return-value]


register(
    "readout(Tensor current, Tensor beta, Tensor? mem_0, str reduction, bool sensitivity, "
    "bool step, str backend) -> (Tensor value, Tensor out_sensitivity, Tensor out_step)",
    _readout,
)


class LeakyReadout(torch.autograd.Function):
    """Sum, maximum or last value over time of a membrane that never fires."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        beta: Tensor,
        mem_0: Tensor | None,
        reduction: str,
        track: bool,
        backend: str,
    ) -> Tensor:
        need_current, need_beta, need_mem, *_ = (track and need for need in ctx.needs_input_grad)
        placed = reduction != "sum" and (need_current or need_mem)
        value, sensitivity, step = torch.ops.snn_single_spike.readout(
            current, beta, mem_0, reduction, need_beta, placed, backend
        )
        # The forward pass has computed the gradient of beta: nothing of size T is saved.
        ctx.save_for_backward(beta, sensitivity, step)
        ctx.backend, ctx.num_steps, ctx.dtype = backend, current.shape[0], current.dtype
        ctx.reduction = reduction
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        beta, sensitivity, step = ctx.saved_tensors
        need_current, need_beta, need_mem, *_ = ctx.needs_input_grad
        grad_beta = sum_to_parameter(sensitivity * grad, beta) if need_beta else None
        into: dict[str, Tensor] = {}
        if need_current or need_mem:
            at = grad.to(beta.dtype).contiguous()
            if ctx.reduction == "sum":
                step = at.new_zeros(at.shape, dtype=torch.int64)
                grads = OutputGradients(grad_mem=at[None])
            else:
                grads = OutputGradients(grad_at=at, grad_before=torch.zeros_like(at))
            into = neuron_backward(
                Saved(),
                Neuron(beta, threshold=beta, graded_spikes_factor=beta),  # it never fires
                step,
                grads,
                ctx.num_steps,
                ctx.dtype,
                "none",
                None,
                {"current": need_current, "mem_0": need_mem},
                ctx.backend,
            )
        return into.get("current"), grad_beta, into.get("mem_0"), None, None, None
