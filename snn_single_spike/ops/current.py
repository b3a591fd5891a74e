"""The current of a linear layer as a tensor, from events and not from dense spikes.

Every event adds its column of weights to the current of its step. No dense spikes (T, B, N) exist,
forward or backward, and no copies of the columns. All operations are those of torch, so second
derivatives pass through them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
        rows = found.times.long() * batch + found.samples()
        current = _sum_rows(
            weight.t(), found.units.long(), rows, num_steps * batch, found.values
        ).view(num_steps, batch, len(weight))
        if bias is not None:
            current += bias
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
            at_steps = grad.reshape(-1, len(weight))
            columns = _sum_rows(at_steps, rows, units.long(), weight.shape[1], values)
            to_weight = columns.t()
        to_bias = grad.sum((0, 1)) if ctx.has_bias else None
        return None, to_input, to_weight, to_bias, *(None,) * 4


def _sum_rows(
    table: Tensor, rows: Tensor, groups: Tensor, num_groups: int, heights: Tensor | None
) -> Tensor:
    """(num_groups, O): the sum of ``table[rows]``, times their heights, in each group."""
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups, minlength=num_groups)
    weights = None if heights is None else heights.to(table.dtype)[order]
    return F.embedding_bag(
        rows[order],
        table.contiguous(),
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weights,
    )
