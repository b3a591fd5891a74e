"""An adjoint in closed form, written out over time or summed over it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._surrogate import Surrogate
from ._types import ClosedFormAdjoint, Neuron, OutputGradients, Saved


def adjoint_rows(
    neuron_backward: Callable[..., None],
    num_steps: int,
    beta: Tensor,
    adjoint: ClosedFormAdjoint,
    samples: slice,
) -> Tensor:
    """lam[k] = h[k] + beta lam[k+1] for some samples, (T, n, O), by the scan of a backend."""
    every, at, before, when = (None if x is None else x[samples].contiguous() for x in adjoint)
    given = at if every is None else every
    assert given is not None
    out = torch.empty(num_steps, given.numel(), dtype=beta.dtype, device=beta.device)
    if when is None:
        when = torch.full_like(given, -1, dtype=torch.int64)
    if at is not None and before is None:
        before = torch.zeros_like(at)
    grads = OutputGradients(
        grad_mem=None if every is None else every.view(1, -1),
        grad_at=None if at is None else at.flatten(),
        grad_before=None if before is None else before.flatten(),
    )
    if given.numel():
        neuron_backward(
            num_steps,
            beta.dtype,
            Saved(),
            Neuron(beta, threshold=beta, graded_spikes_factor=beta, clamp=False),
            when.flatten(),
            grads,
            "none",
            Surrogate("straight_through_estimator"),
            {"current": out},
        )
    return out.view(num_steps, *given.shape)


def sum_over_time(num_steps: int, beta: Tensor, adjoint: ClosedFormAdjoint) -> Tensor:
    """The sum over time and batch of an adjoint in closed form, (O,)."""
    decay = beta.double()

    def geometric(n: Tensor) -> Tensor:
        """1 + beta + ... + beta^(n-1), to all digits where beta is close to 1."""
        partial = -torch.expm1(n * decay.log()) / (1 - decay)
        return torch.where(n <= 0, 0.0, torch.where(decay == 1, n, partial))

    total = decay.new_zeros(decay.shape)
    if adjoint.every is not None:
        ahead = torch.arange(1, num_steps + 1, device=beta.device, dtype=decay.dtype)[:, None]
        total += adjoint.every.double().sum(0) * geometric(ahead).sum(0)
    if adjoint.at is not None and adjoint.when is not None:
        spike = adjoint.when.to(decay.dtype)
        total += (adjoint.at.double() * geometric(spike + 1)).sum(0)
        if adjoint.before is not None:
            total += (adjoint.before.double() * geometric(spike)).sum(0)
    return total.to(beta.dtype)
