"""An adjoint in closed form, written out over time."""

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
        when=None if at is None else when.flatten(),
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
