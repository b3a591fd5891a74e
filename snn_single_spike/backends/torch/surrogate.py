"""Derivatives of snnTorch's surrogates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._surrogate import Surrogate


def surrogate_slope(u: Tensor, surrogate: Surrogate) -> Tensor:
    """s'(u), u = V - theta; overwrites ``u``."""
    name, a, b = surrogate
    if name == "atan":
        return u.mul_(math.pi / 2 * a).square_().add_(1.0).reciprocal_().mul_(a / 2)
    if name == "fast_sigmoid":
        return u.abs_().mul_(a).add_(1.0).square_().reciprocal_()
    if name == "sigmoid":
        e = u.mul_(a).abs_().neg_().exp_()  # cannot overflow; snnTorch's form gives inf/inf
        return a * e / (1.0 + e).square_()
    if name == "straight_through_estimator":
        return torch.ones_like(u)
    if name == "triangular":
        return torch.where(u < 0, u.new_tensor(a), u.new_tensor(-a))
    if name == "heaviside":
        return (u > 0).to(u.dtype)
    if name == "spike_rate_escape":
        return b * torch.exp(-a * (u - 1.0).abs_())
    if name == "SFS":
        return (u > b) / (a * u.abs() + 1.0).square_()
    if name == "LSO":
        return torch.where(u > 0, u.new_tensor(1.0), u.new_tensor(a))
    raise AssertionError(f"no derivative for surrogate {name!r}")
