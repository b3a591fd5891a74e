"""Carriers: the tensors of autograd in place of dense spikes.

A carrier is a (T, B, N) tensor of zeros that is expanded from one element. A layer that returns
spike times also returns a carrier, and a layer that reads spike times takes their carrier as an
input. Autograd passes the gradient of the dense spikes along the carrier. No dense spikes exist.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..backends._types import GradientFactors
from .factored_gradient import FactoredGradient


def carrier(num_steps: int, batch: int, units: int, like: Tensor) -> Tensor:
    """A carrier (T, B, N) without a gradient."""
    return like.new_zeros(1).expand(num_steps, batch, units)


class _CarrierOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor) -> Tensor:
        ctx.shape = spikes.shape
        num_steps, batch = spikes.shape[:2]
        return carrier(num_steps, batch, spikes.shape[2:].numel(), spikes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        dense = grad.to_dense() if isinstance(grad, FactoredGradient) else grad
        return dense.reshape(ctx.shape)


def carrier_of(spikes: Tensor) -> Tensor:
    """A carrier (T, B, N) whose gradient flows into dense unit spikes (T, B, *features)."""
    return _CarrierOf.apply(spikes)


class Windows(Protocol):
    """Windows of an average pooling."""

    num_pooled: int

    def spread(self, pooled: Tensor, beyond: int) -> Tensor: ...

    def to_maps(self, pooled: Tensor) -> Tensor: ...


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, windows: Windows) -> Tensor:
        ctx.windows, ctx.units = windows, given.shape[2]
        num_steps, batch, _ = given.shape
        return carrier(num_steps, batch, windows.num_pooled, given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        windows: Windows = ctx.windows

        def through(pooled: Tensor) -> Tensor:
            return windows.spread(windows.to_maps(pooled), 0).flatten(2)

        if not isinstance(grad, FactoredGradient):
            return through(grad), None
        factors = grad.factors
        rows = GradientFactors(lambda samples: through(factors.to_dense(samples)), None)
        like = torch.empty((0, ctx.units), dtype=grad.dtype, device=grad.device)
        return FactoredGradient(grad.shape[0], grad.shape[1], rows, None, like), None


def pooled_carrier(given: Tensor, windows: Windows) -> Tensor:
    """The carrier of the sums over windows, from the carrier of their units."""
    return _Pooled.apply(given, windows)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, units: Tensor) -> Tensor:
        ctx.save_for_backward(units)
        num_steps, batch, ctx.units = given.shape
        return carrier(num_steps, batch, units.shape[1], given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (units,) = ctx.saved_tensors

        def through(rows: Tensor, chosen: Tensor) -> Tensor:
            to_units = rows.new_zeros(*rows.shape[:2], ctx.units)
            return to_units.scatter_add_(2, chosen.expand(len(rows), -1, -1), rows)

        if not isinstance(grad, FactoredGradient):
            return through(grad, units), None
        factors, at = grad.factors, grad.at
        rows = GradientFactors(
            lambda samples: through(factors.to_dense(samples), units[samples]), None
        )
        chosen_at = None
        if at is not None:
            chosen_at = lambda *of: through(at(*(x.gather(1, units) for x in of)), units)  # noqa: E731
        like = torch.empty((0, ctx.units), dtype=grad.dtype, device=grad.device)
        return FactoredGradient(grad.shape[0], grad.shape[1], rows, chosen_at, like), None


def chosen_carrier(given: Tensor, units: Tensor) -> Tensor:
    """The carrier of some units (B, n) of each sample, from the carrier of all."""
    return _Chosen.apply(given, units)
