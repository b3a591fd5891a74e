"""Dense inputs that are nearly all zeros, for the linear layers that take them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends
from .backends.buffers import Events
from .spikes import SpikeEvents, Spikes

__all__ = ["SparseInput", "sparse_input"]

# A linear layer is faster from the spikes of a dense tensor, found in it, where at most one in so
# many of its entries is a spike. Measured with the compiled CPU loops, forward and backward: 784
# to 1000 units at T=100 3.5 and 1.6 times at one in 50 and one in 10, 1156 to 300 at T=300 2.5
# and 1.1 times, 784 to 100 at T=25 1.4 times and, at one in 20, level.
SPARSE = 32


class SparseInput(Spikes):
    """
    A dense input (T, B, *features) without a gradient, and its spikes for whoever asks.

    A linear layer takes these where they are few (:data:`SPARSE`); everything else is given the
    tensor, as it is.
    """

    def __init__(self, dense: Tensor) -> None:
        self.steps, self.batch, self.features = dense.shape[0], dense.shape[1], dense.shape[2:]
        self.dtype, self.device, self.folded = dense.dtype, dense.device, False
        self._dense, self._found = dense, _Found(dense)

    def dense(self) -> Tensor:
        return self._leading(self._dense)

    def made_dense(self, by: str) -> Tensor:
        return self.dense()  # which was there: nothing to tell

    def detach(self) -> SparseInput:
        return self

    def events(self) -> Events:
        return self._found.events

    def events_pay(self) -> bool:
        # Under autocast the product is one of half precision.
        return not torch.is_autocast_enabled(self.device.type) and self._found.few

    def _with_features(self, features: Sequence[int]) -> SparseInput:
        dense = self._dense.reshape(self.steps, self.batch, *features)
        return self._is_like(features=torch.Size(features), _dense=dense)

    def __repr__(self) -> str:
        return f"SparseInput(shape={tuple(self.shape)}, device={str(self.device)!r})"


class _Found:
    """What is found in a dense tensor once, for all layers that take it."""

    def __init__(self, dense: Tensor) -> None:
        self.dense = dense

    @functools.cached_property
    def few(self) -> bool:
        return int(self.dense.count_nonzero()) * SPARSE <= self.dense.numel()

    @functools.cached_property
    def events(self) -> Events:
        return SpikeEvents.from_dense(self.dense).events()


def sparse_input(x: Any) -> Any:
    """A dense input (T, B, *features) as :class:`SparseInput` where that can be faster."""
    if (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or x.requires_grad
        or x.device.type != "cpu"  # elsewhere to count would be to wait for the device
        or x.dtype not in (torch.float32, torch.float64)
        or x.dim() < 3
        or not x.numel()
        or backends.explain("cpu")[0] != "numba"  # plain torch multiplies dense tensors
    ):
        return x
    return SparseInput(x)
