"""Carriers: the tensors of autograd in place of dense spikes.

A carrier is a (T, B, N) tensor of zeros that is expanded from one element. A layer that returns
spike times also returns a carrier, and a layer that reads spike times takes their carrier as an
input. Autograd passes the gradient of the dense spikes along the carrier. No dense spikes exist.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


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
        # clone() multiplies the factors of a FactoredGradient.
        return (grad if type(grad) is Tensor else grad.clone()).reshape(ctx.shape)


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
        ctx.windows = windows
        num_steps, batch, _ = given.shape
        return carrier(num_steps, batch, windows.num_pooled, given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # The reshape multiplies the factors of a FactoredGradient.
        sums = ctx.windows.to_maps(grad.reshape(grad.shape))
        return ctx.windows.spread(sums, 0).flatten(2), None


def pooled_carrier(given: Tensor, windows: Windows) -> Tensor:
    """The carrier of the sums over windows, from the carrier of their units."""
    return _Pooled.apply(given, windows)
