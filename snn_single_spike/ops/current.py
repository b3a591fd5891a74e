"""The current of a linear layer as a tensor, from events and not from dense spikes.

Every event adds its column of weights to the current of its step. No dense spikes (T, B, N) exist,
forward or backward, and no copies of the columns. On a CPU compiled loops compute both passes.
Elsewhere, and in a backward pass that autograd records, all operations are those of torch, so
second derivatives pass through them.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import backends
from ..backends._compiling import is_batched
from ..backends._events import Events
from ..backends.memory import empty
from .factored_gradient import FactoredGradient, held, rows_of
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
        ctx.save_for_backward(weight, *events)
        ctx.has_bias = bias is not None
        shape = (num_steps, len(found.offsets) - 1, len(weight))
        loops = _loops(weight)
        if loops is not None:
            current = empty(shape, dtype=weight.dtype, device=weight.device)
            loops.linear_current(found, weight, bias, current)
            return current
        rows = _rows(found)
        columns, units = weight.t(), found.units.long()
        current = _sum_rows(columns, units, rows, shape[0] * shape[1], found.values).view(shape)
        return current if bias is None else current.add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *events = ctx.saved_tensors
        found = Events(*events)
        _, need_input, need_weight, *_ = ctx.needs_input_grad
        num_steps, batch, _ = grad.shape
        to_input = to_weight = to_bias = None
        if need_input and is_recorded():
            to_input = grad @ weight
        elif need_input:
            kept = held(weight)
            factors = rows_of(grad, kept)
            to_input = FactoredGradient(num_steps, batch, factors, None, reads=(kept,))
        loops = None if is_recorded() or is_batched(grad) else _loops(weight)
        if loops is not None and need_weight:
            to_weight = torch.empty_like(weight)
            to_bias = weight.new_empty(len(weight)) if ctx.has_bias else None
            loops.linear_current_backward(found, grad.contiguous(), to_weight, to_bias)
        elif need_weight:
            at_steps, units = grad.reshape(-1, len(weight)), found.units.long()
            columns = _sum_rows(at_steps, _rows(found), units, weight.shape[1], found.values)
            to_weight = columns.t()
        if ctx.has_bias and to_bias is None:
            to_bias = grad.sum((0, 1))
        return None, to_input, to_weight, to_bias, *(None,) * 4


def event_current(
    num_steps: int, given: Tensor | None, weight: Tensor, bias: Tensor | None, events: Events
) -> Tensor:
    """The current (T, B, O) of spikes with the carrier ``given`` and these events."""
    return EventCurrent.apply(num_steps, given, weight, bias, *events[:4])


def _loops(weight: Tensor) -> ModuleType | None:
    """The compiled loops of linear layers, for a CPU."""
    backend, _ = backends.explain(weight.device.type)
    return backends.load(backend, "linear") if backend == "numba" else None


def _rows(events: Events) -> Tensor:
    """The row of each spike in a tensor (T * B, O)."""
    return events.times.long() * (len(events.offsets) - 1) + events.samples()


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
