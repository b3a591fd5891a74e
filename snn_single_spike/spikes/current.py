"""The current of a linear layer from spike times, computed on its first use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.current import EventCurrent
from ..ops.validation import check_linear
from . import choice
from ._base import Spikes
from .lazy import LazySequence, changed, implements, versions

__all__ = ["LazyCurrent", "dense_linear"]


class LazyCurrent(LazySequence):
    """
    The current `(T, B, out)` of a linear layer from spike times or events, not computed yet.

    `torch.nn.Linear` and `torch.nn.functional.linear` return a LazyCurrent for :class:`SpikeTimes`
    and :class:`SpikeEvents` with one feature dimension. Neurons and readouts of this package read
    the spikes and the weights with :meth:`linear`, and never store the current.

    :param spikes: spikes with one feature dimension
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in)`
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional
    """

    def __init__(self, spikes: Spikes, weight: Tensor, bias: Tensor | None) -> None:
        if not torch.is_grad_enabled():
            spikes, weight = spikes.detach(), weight.detach()
            bias = None if bias is None else bias.detach()
        self.spikes, self.weight, self.bias = spikes.unfold(), weight, bias
        self.folded = spikes.folded
        self._versions = versions((weight, bias))

    @property
    def num_steps(self) -> int:  # type: ignore[override]
        return self.spikes.num_steps

    @property
    def batch(self) -> int:  # type: ignore[override]
        return self.spikes.batch

    @property
    def features(self) -> torch.Size:  # type: ignore[override]
        return self.weight.shape[:1]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.weight.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.weight.device

    @property
    def requires_grad(self) -> bool:
        bias = self.bias is not None and self.bias.requires_grad
        return self.spikes.requires_grad or self.weight.requires_grad or bias

    def linear(self) -> tuple[Spikes, Tensor, Tensor | None]:
        """
        The spikes, the weight and the bias from which the current is computed.

        :rtype: tuple(SpikeTimes or SpikeEvents, torch.Tensor, torch.Tensor or None)
        :raises RuntimeError: the weight or the bias has been changed in place since the layer was
            called
        """
        if changed((self.weight, self.bias), self._versions):
            raise RuntimeError(
                "The current of a linear layer is computed on its first use, and the weight or "
                "bias of the layer has been changed in place since the layer ran. Use the current "
                "before this change, e.g. call current.to_dense() ahead of optimizer.step()."
            )
        return self.spikes, self.weight, self.bias

    def to_dense(self) -> Tensor:
        """
        The current as a tensor `(T, B, out)`, differentiable, in the type of the weights.

        :rtype: torch.Tensor
        :raises RuntimeError: as :meth:`linear`
        """
        spikes, weight, bias = self.linear()
        if not choice.current_pays(spikes, weight):
            return self._leading(dense_linear(spikes.to_dense(), weight, bias))
        if spikes.height is not None:
            weight = weight * spikes.height.to(weight.dtype)
        events = spikes.events()[:4]
        current = EventCurrent.apply(self.num_steps, spikes.carrier, weight, bias, *events)
        return self._leading(current)

    def detach(self) -> LazyCurrent:
        """The same current without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return self._is_like(spikes=self.spikes.detach(), weight=self.weight.detach(), bias=bias)

    def __getstate__(self) -> dict[str, Any]:
        self.linear()  # raises if the layer has changed
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = versions((self.weight, self.bias))  # a copy has new counters

    def __repr__(self) -> str:
        return f"LazyCurrent(shape={tuple(self.shape)}, of={self.spikes})"


@implements(F.linear)
def _linear(spikes: Spikes, weight: Tensor, bias: Tensor | None = None) -> Any:
    if len(spikes.features) != 1:
        return dense_linear(spikes.materialize("linear over several features"), weight, bias)
    check_linear(spikes, weight, bias)
    if not spikes.prefer_events():
        return dense_linear(spikes.to_dense(), weight, bias)
    return LazyCurrent(spikes, weight, bias)


def dense_linear(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on dense spikes, in the type of the weights, without autocast."""
    with torch.autocast(spikes.device.type, enabled=False):
        return F.linear(spikes.to(weight.dtype), weight, bias)
