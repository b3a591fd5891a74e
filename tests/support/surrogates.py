"""Every declared surrogate, whose derivative the kernels fuse."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from snntorch import surrogate
from torch import Tensor

from snn_single_spike.backends._surrogate import SURROGATES, Surrogate

VALUES = {"alpha": 3.0, "slope": 4.0, "threshold": 0.5, "beta": 2.0, "B": 0.1}
"""Parameters that differ from snnTorch's defaults."""


def fused(name: str) -> Callable[[Tensor], Tensor]:
    """The surrogate as a user constructs it."""
    return getattr(surrogate, name)(**{key: VALUES[key] for key in SURROGATES[name]})


@functools.cache
def smooth(name: str) -> Callable[[Tensor], Tensor]:
    """A function with the derivative of the surrogate, by autograd in float64."""
    known = Surrogate(name, *(VALUES[key] for key in SURROGATES[name]))

    def path(u: Tensor) -> Tensor:
        with torch.enable_grad():
            x = u.detach().double().requires_grad_()
            (slope,) = torch.autograd.grad(known(x).sum(), x)
        return slope * u

    return path


class _Path(torch.autograd.Function):
    """Zeros, with the derivatives of a surrogate in float64 by snnTorch's own formulas."""

    @staticmethod
    def forward(ctx, u, known):
        ctx.save_for_backward(u)
        ctx.known = known
        return torch.zeros_like(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        with torch.enable_grad():
            x = u.view_as(u) if u.requires_grad else u.detach().requires_grad_()
            (slope,) = torch.autograd.grad(ctx.known(x).sum(), x, create_graph=True)
        return grad * slope, None


def differentiable(name: str) -> Callable[[Tensor], Tensor]:
    """As :func:`smooth`, with the second derivatives of the surrogate too."""
    known = Surrogate(name, *(VALUES[key] for key in SURROGATES[name]))
    return lambda u: _Path.apply(u, known)
