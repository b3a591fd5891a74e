"""Second derivatives: gradients that autograd can differentiate, or a refusal.

With ``create_graph=True`` autograd records the operations of a backward pass. It cannot record
kernels, so a dense layer computes this backward pass in plain torch
(:mod:`snn_single_spike.backends.torch.differentiable`). A layer from spike times refuses it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends._compiling import is_batched
from ..backends._surrogate import Surrogate
from ..backends._types import Neuron
from ..backends.torch.surrogate import surrogate_slope
from .crossing import Slope, around, interpolate, per_neuron, slope_at
from .gate import RuleGate


def is_recorded() -> bool:
    """Whether autograd records this backward pass: ``create_graph=True``.

    A compiler traces backward passes too, and never differentiates them again.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def refuse_batched(place: str, cure: str, *grads: Tensor | None) -> None:
    """Raise if torch computes several gradients at once: no kernel supports their tensors."""
    if any(map(is_batched, grads)):
        raise RuntimeError(
            f"is_grads_batched=True and vectorize=True are not supported by {place}: pass False, "
            f"and torch computes one gradient after the other. {cure}"
        )


def refuse_recorded(place: str, cure: str) -> None:
    """Raise if the backward pass of ``place`` is recorded: its second derivative would be lost."""
    if is_recorded():
        raise RuntimeError(
            f"create_graph=True is not supported by {place}: the second derivatives would be "
            f"missing. {cure}"
        )


class _Crossing(torch.autograd.Function):
    """Zeros, with the derivative of the surrogate at V - theta."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return torch.zeros_like(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * surrogate_slope(u.clone(), ctx.surrogate), None


def unit_spikes(
    num_steps: int,
    mem: Tensor | None,
    neuron: Neuron,
    times: Tensor,
    rule: str,
    surrogate: Surrogate | None,
) -> Tensor:
    """Dense spikes (T, M) of height 1, with the gradient of the rule to the membrane."""
    theta = per_neuron(neuron.threshold, len(times))
    step = torch.arange(num_steps, device=times.device)[:, None]
    spikes = (step == times).to(theta.dtype)
    if mem is None or surrogate is None or rule == "none":
        return spikes
    crossings = _Crossing.apply(mem.to(theta.dtype) - theta, surrogate)
    return RuleGate.apply(crossings, spikes, times, rule)


def through_height(
    units: Tensor, after: Tensor, grad_spikes: Tensor | None, neuron: Neuron
) -> dict[str, Tensor]:
    """The gradients to the height of a spike and to the weight of its feedback, (M,) each.

    ``after`` is the adjoint of the membrane one step later, (T, M).
    """
    found: dict[str, Tensor] = {}
    neurons = units.shape[1]
    to_height = None if grad_spikes is None else grad_spikes.to(units.dtype)
    if neuron.feedback is not None:
        factor = per_neuron(neuron.graded_spikes_factor, neurons)
        found["feedback"] = (after * units).sum(0) * factor
        fed_back = after * per_neuron(neuron.feedback, neurons)
        to_height = fed_back if to_height is None else to_height + fed_back
    if to_height is not None:
        found["graded_spikes_factor"] = (to_height * units).sum(0)
    return found


def moved_height(
    grad_spikes: Tensor,
    times: Tensor,
    when: Tensor,
    crossing: Tensor,
    threshold: Tensor,
    surrogate: Slope,
) -> Tensor:
    """Zeros (M,): how the gradient to the height depends on the membrane under "spike_time"."""
    moved = interpolate(times, crossing, threshold)
    at, before = around(grad_spikes, when).to(moved.dtype)
    u = crossing[1] - per_neuron(threshold, len(times))
    path = torch.where(times > 0, (at - before) * (moved - moved.detach()), 0.0)
    return path + torch.where(times < 0, at * slope_at(u, surrogate).detach() * (u - u.detach()), 0)
