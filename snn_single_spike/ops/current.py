"""The current of a linear layer as a tensor, from events and not from dense spikes.

Every event adds its column of weights to the current of its step. No dense spikes (T, B, N) exist,
forward or backward. All operations are those of torch, so second derivatives pass through them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends._events import Events
from .factored_gradient import FactoredGradient, rows_of
from .second_order import is_recorded


class EventCurrent(torch.autograd.Function):
    """The current (T, B, O) of spikes with the carrier ``given`` and these events.

    ``weight`` is (O, N), ``bias`` (O,) or None. ``events`` are the four tensors of
    :class:`~snn_single_spike.backends._events.Events`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        num_steps: int,
        given: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *events: Tensor | None,
    ) -> Tensor:
        found = Events(*events)  # type: ignore[arg-type]
        batch = len(found.offsets) - 1
        current = weight.new_zeros(num_steps, batch, len(weight))
        if bias is not None:
            current += bias
        rows = found.times.long() * batch + found.samples()
        columns = _times_heights(weight.t()[found.units.long()], found.values)
        current.view(-1, len(weight)).index_add_(0, rows, columns)
        ctx.save_for_backward(weight, rows, found.units, found.values)
        ctx.has_bias = bias is not None
        return current

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, rows, units, values = ctx.saved_tensors
        _, need_input, need_weight, *_ = ctx.needs_input_grad
        to_input = to_weight = None
        if need_input and is_recorded():
            to_input = grad @ weight
        elif need_input:
            num_steps, batch, _ = grad.shape
            to_input = FactoredGradient(num_steps, batch, rows_of(grad, weight), None)
        if need_weight:
            at_events = _times_heights(grad.reshape(-1, len(weight))[rows], values)
            columns = torch.zeros_like(weight.t()).index_add(0, units.long(), at_events)
            to_weight = columns.t()
        to_bias = grad.sum((0, 1)) if ctx.has_bias else None
        return None, to_input, to_weight, to_bias, *(None,) * 4


def _times_heights(rows: Tensor, values: Tensor | None) -> Tensor:
    return rows if values is None else rows * values.to(rows.dtype)[:, None]
