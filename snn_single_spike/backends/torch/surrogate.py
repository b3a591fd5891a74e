"""Derivatives of snnTorch's surrogates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._surrogate import Surrogate


def surrogate_slope(u: Tensor, surrogate: Surrogate) -> Tensor:
    """s'(u), u = V - theta. Overwrites ``u``, unless autograd records operations on it."""
    name, a, b = surrogate
    out = None if u.requires_grad else u
    if name == "atan":
        x = torch.square(torch.mul(u, math.pi / 2 * a, out=out), out=out)
        x = torch.reciprocal(torch.add(x, 1.0, out=out), out=out)
        return torch.mul(x, a / 2, out=out)
    if name == "fast_sigmoid":
        x = torch.mul(torch.abs(u, out=out), a, out=out)
        x = torch.square(torch.add(x, 1.0, out=out), out=out)
        return torch.reciprocal(x, out=out)
    if name == "sigmoid":
        x = torch.abs(torch.mul(u, a, out=out), out=out)
        e = torch.exp(torch.neg(x, out=out), out=out)  # snnTorch's form gives inf/inf
        return a * e / (1.0 + e).square()
    if name == "straight_through_estimator":
        return torch.ones_like(u)
    if name == "triangular":
        return torch.where(u >= 0, u.new_tensor(-a), u.new_tensor(a))
    if name == "heaviside":
        # The derivative of snnTorch's Heaviside is its output, which has a derivative again.
        return surrogate(u).to(u.dtype)
    if name == "spike_rate_escape":
        return b * torch.exp(-a * (u - 1.0).abs())
    if name == "SFS":
        return (u > b) / (a * u.abs() + 1.0).square()
    if name == "LSO":
        return torch.where(u > 0, u.new_tensor(1.0), u.new_tensor(a))
    raise AssertionError(f"no derivative for surrogate {name!r}")
