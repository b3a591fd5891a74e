"""Values that a loop computes from values of the step before: ``trace = 0.9 * trace + spk``.

The body of a loop runs once, for all steps. An operation on a carried value is only noted then, as
an :class:`~snn_single_spike.conversion.loops.carried.Operation`. At the end of the loop
:func:`evaluate` computes the noted operations one step after the other. No neuron reads such a
value, so the neurons have run for all steps by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ...spikes.lazy import LazyTensor
from .carried import Carried, Operation, Scalars, Started, Steps, Sum

__all__ = ["Values", "evaluate", "value_at"]

Slots = Sequence[tuple[Carried, Any]]
"""The carried values, each with what the body has put in its place."""
_JOINS: Any = (torch.cat, torch.concat, torch.concatenate)


class Values:
    """The values of operations, at every step or at the last."""

    def __init__(self) -> None:
        self._of: dict[int, list[Any]] = {}

    def add(self, operation: Operation, value: Any) -> None:
        self._of.setdefault(id(operation), []).append(value)

    def __getitem__(self, operation: Operation) -> list[Any]:
        return self._of[id(operation)]


def evaluate(loop: Any, slots: Slots, operations: Sequence[Operation], only_last: bool) -> Values:
    """The values of operations, in the order in which the body ran them.

    With ``only_last`` no record holds a value of another step than the last.
    """
    values = Values()
    if only_last and _join_once(loop, slots, operations, values):
        return values
    before = {id(carried): carried.initial for carried, _ in slots}
    for step in range(loop.steps):
        now = _Step(loop, step, before)
        for operation in operations:
            values.add(operation, now.run(operation))
        before = {id(carried): now.value(after) for carried, after in slots}
    return values


class _Step:
    """One step: the values before it, and those of the operations that have run."""

    def __init__(self, loop: Any, step: int, before: dict[int, Any]) -> None:
        self.loop, self.step, self.known = loop, step, dict(before)

    def value(self, x: Any) -> Any:
        if isinstance(x, Sum):
            added = (value_at(self.loop, each, self.step) for each in x.added)
            return sum(added, self.known[id(x.origin)])
        return self.known[id(x)] if isinstance(x, Carried) else value_at(self.loop, x, self.step)

    def run(self, operation: Operation) -> Any:
        given = (operation.args, operation.kwargs)
        args, kwargs = tree_map(self.value, given, is_leaf=_is_value)
        if isinstance(operation, Started):
            before, first, rest = args
            result = first if before is None else rest
        elif any(isinstance(x, Carried) and self.value(x) is None for x in _leaves(given)):
            result = None  # of a name without a value before the first step
        else:
            with torch.set_grad_enabled(operation.with_gradient):
                result = operation.function(*args, **kwargs)
        self.known[id(operation)] = result
        return result


def _leaves(given: Any) -> list[Any]:
    return tree_leaves(given, is_leaf=_is_value)


def _is_value(x: Any) -> bool:
    return isinstance(x, (Carried, LazyTensor, Steps, Scalars))


def value_at(loop: Any, value: Any, step: int) -> Any:
    """A value of the body at one step."""
    if isinstance(value, (Steps, Scalars)):
        return value.values[step]
    if isinstance(value, LazyTensor):
        value = loop.time.fold(loop.time.unfold(value).to_dense())
    dim = loop.folded_dim(value) if isinstance(value, Tensor) else None
    return value if dim is None else value.unflatten(dim, (loop.steps, -1)).select(dim, step)


def _join_once(loop: Any, slots: Slots, operations: Sequence[Operation], values: Values) -> bool:
    """Whether all operations are records, ``out = torch.cat([out, spk])``: then join each once."""
    joins = [(carried, after, _joined(carried, after)) for carried, after in slots]
    if len(operations) != sum(found is not None for _, _, found in joins):
        return False
    for carried, after, found in joins:
        if found is not None:
            pieces, dim = found
            added = [value_at(loop, piece, t) for t in range(loop.steps) for piece in pieces]
            with torch.set_grad_enabled(after.with_gradient):
                values.add(after, torch.cat([carried.initial, *added], dim))
    return True


def _joined(carried: Carried, after: Any) -> tuple[list[Any], int] | None:
    """The tensors that a step adds to a record, and their dimension."""
    if not isinstance(after, Operation) or after.function not in _JOINS or not after.args:
        return None
    (first, *pieces), *dims = after.args
    if first is not carried or any(isinstance(x, Carried) for x in pieces):
        return None
    return pieces, dims[0] if dims else after.kwargs.get("dim", after.kwargs.get("axis", 0))
