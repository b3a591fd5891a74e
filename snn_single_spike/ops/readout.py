"""The operator of the non-firing readout, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends._types import Neuron, OutputGradients, ReadoutOutputs, Saved, state_dtype
from ..backends.torch import differentiable
from ._library import New, allocate_fake, given_of, register
from .neuron import neuron_backward, sum_to_parameter
from .second_order import is_recorded, refuse_batched, refuse_recorded
from .validation import REDUCTIONS, check_choice, check_current, check_parameter, check_state


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


_REDUCED = {"sum": ".sum(0)", "max": ".amax(0)", "last": "[-1]"}
"""The reductions in torch, of a membrane (T, B, ...)."""


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        beta, sensitivity, step = ctx.saved_tensors
        need_current, need_beta, need_mem, *_ = ctx.needs_input_grad
        if need_beta:
            refuse_recorded(
                f"leaky_readout (LeakyReadout) with a learned beta of shape {tuple(beta.shape)}",
                "Compute the membrane at every step, and reduce it: "
                f"LeakyReadout(beta, learn_beta=True, reduction=None)(x){_REDUCED[ctx.reduction]}.",
            )
        grad_beta = sum_to_parameter(sensitivity * grad, beta) if need_beta else None
        into: dict[str, Tensor] = {}
        if need_current or need_mem:
            at = grad.to(beta.dtype).contiguous()
            if ctx.reduction == "sum":
                step = at.new_zeros(at.shape, dtype=torch.int64)
                grads = OutputGradients(grad_mem=at[None])
            else:
                grads = OutputGradients(grad_at=at, grad_before=torch.zeros_like(at), when=step)
            neuron = Neuron(beta, threshold=beta, graded_spikes_factor=beta)  # it never fires
            needs = {"current": need_current, "mem_0": need_mem}
            if is_recorded():
                refuse_batched("leaky_readout with create_graph=True", "", grad)
                into, _ = differentiable.neuron_backward(
                    ctx.num_steps, Saved(), neuron, step, grads, "none", None, needs
                )
                into = {"current": into["current"].to(ctx.dtype), "mem_0": into["mem_0"]}
            else:
                into = neuron_backward(
                    *(Saved(), neuron, step, grads, ctx.num_steps, ctx.dtype, "none", None, needs),
                    backend=ctx.backend,
                )
        return (
            into.get("current"),
            grad_beta,
            into.get("mem_0") if need_mem else None,
            *(None, None, None),
        )


def run_readout(
    current: Tensor,
    beta: Tensor | float,
    *,
    mem: Tensor | None = None,
    reduction: str,
    backend: str,
) -> Tensor:
    """Check the arguments, run the operator, restore the shape."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_current(current)
    value = LeakyReadout.apply(
        current.flatten(1).contiguous(),
        check_parameter("beta", beta, current),
        check_state("mem", mem, current),
        reduction,
        torch.is_grad_enabled() and not torch.compiler.is_exporting(),
        backends.select(backend, current.device.type),
    )
    return value.view(current.shape[1:])
