"""The calls in rewritten code: the body of a loop over time runs once, for all steps.

:mod:`~snn_single_spike.conversion.loops.rewrite` writes these calls.
"""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...spikes.lazy import LazyTensor
from ..refusals.layers import ConversionError
from .at_once import Loop
from .carried import Carried, Scalars, Steps, add_or_start, first_or, starting
from .indexed import Indexed
from .losses import by_step
from .running import active_loop, active_run, refuse
from .windows import StepTensor, keeps_time

__all__ = [
    "REDUCTIONS",
    "Numbers",
    "add_or_start",
    "add_to_key",
    "append",
    "at_steps",
    "by_step",
    "condition",
    "extend",
    "first_or",
    "iadd",
    "length",
    "on_tensor",
    "rewritten",
    "shown",
    "source",
    "stack_of",
    "start",
    "starting",
    "tensor_of",
]

REDUCTIONS = {"sum", "mean", "prod", "amax", "amin", "max", "min", "std", "var", "norm"}
"""Methods of a tensor that reduce all its dimensions to one number, without arguments."""

_ITERATORS: Any = (type(iter(range(0))), type(iter([])), type(reversed([])))


def start(
    owner: Any,
    zipped: bool,
    iterables: tuple[Any, ...],
    local: dict[str, Any],
    stored: tuple[str, ...],
    attributes: tuple[str, ...],
    written_into: tuple[str, ...],
) -> Loop:
    """Begin a loop over time, over one iterable or several zipped ones."""
    if active_run() is None:
        raise ConversionError(
            f"{type(owner).__name__} is a part of a converted model, and was called on its own: "
            "call the model, or convert the part itself"
        )
    iterables = tuple(map(_plain, iterables))
    counts = {n for n in map(_count, iterables) if n is not None}
    if len(counts) != 1 or min(counts) < 1:
        found = " and ".join(map(str, sorted(counts))) or "an unknown number of"
        refuse(
            f"the loop over time has {found} steps, but one number of steps, at least 1, is "
            "expected: give all sequences of the loop the same length"
        )
    (steps,) = counts

    def index(loop: Loop) -> Any:
        values = [_step_of(loop, iterable) for iterable in iterables]
        return tuple(values) if zipped else values[0]

    return Loop(owner, steps, index, local, stored, attributes, written_into)


class Numbers(NamedTuple):
    """The numbers that ``enumerate`` gives."""

    first: int = 0


def _plain(iterable: Any) -> Any:
    """A sequence in the place of an iterator over one, as of ``reversed(range(n))``."""
    if isinstance(iterable, _ITERATORS):
        return list(iterable)
    if isinstance(iterable, Tensor) and iterable.dim() == 1 and not iterable.is_floating_point():
        return iterable.tolist()  # torch.arange(n)
    return iterable


def _count(iterable: Any) -> int | None:
    """The number of steps; None if it has no end."""
    if isinstance(iterable, Numbers):
        return None
    if isinstance(iterable, (Tensor, LazyTensor)):
        return iterable.shape[0] if iterable.dim() else 0
    if isinstance(iterable, range) or _holds(iterable, (Tensor, int)):
        return len(iterable)
    refuse(
        f"the loop over time iterates over a {type(iterable).__name__}. Write "
        "`for step in range(num_steps)`, or iterate over a tensor (time, batch, ...)"
    )


def _step_of(loop: Loop, iterable: Any) -> Any:
    if isinstance(iterable, Numbers):
        return Steps(range(iterable.first, iterable.first + loop.steps))
    if isinstance(iterable, range) or _holds(iterable, int):
        return Steps(iterable)
    if isinstance(iterable, (list, tuple)):
        sequence = torch.stack(tuple(iterable))
        if _is_split(iterable):
            return keeps_time(loop, sequence, iterable)
        iterable = sequence
    return loop.fold_indexed(iterable, iterable)


def _is_split(parts: Any) -> bool:
    """Whether tensors are the single steps of ``torch.split(x, 1)`` or ``x.chunk(num_steps)``."""
    first, *others = parts
    base, shape = first._base, first.shape
    if base is None or base.dim() != len(shape) or not others or shape[0] != 1:
        return False
    apart = others[0].storage_offset() - first.storage_offset()
    return apart == first.stride(0) and all(x._base is base and x.shape == shape for x in others)


def _holds(value: Any, kinds: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, kinds) for x in value)


def rewritten(owner: Any, method: Any) -> Any:
    """The form of a base class's method, bound or not, in which its loops run at once."""
    function = getattr(method, "__func__", method)
    new = getattr(type(owner), "_rewritten_bases", {}).get(function)
    if new is None:
        return method
    return new if function is method else types.MethodType(new, owner)


def source(value: Any) -> Any:
    """An object that a subscript reads, or writes to."""
    loop = active_loop()
    kinds = (Tensor, LazyTensor, list, tuple, nn.ModuleList)
    if loop is not None and isinstance(value, kinds):
        loop.reads(value)
        return Indexed(loop, value)
    return value


def length(value: Any) -> int:
    """``len(value)``"""
    if (loop := active_loop()) is not None:
        loop.reads(value)
    return len(value)


def append(target: Any, value: Any, rows: bool = False) -> None:
    """``target.append(value)``; ``rows`` appends ``value.unsqueeze(0)``"""
    loop = active_loop()
    if loop is None or not _is_record(loop, target):
        target.append(value.unsqueeze(0) if rows else value)
    else:
        loop.record(target, value, rows)


def stack_of(function: Any) -> Any:
    """``torch.stack`` behind a loop, of a list that the loop may have filled."""
    run = active_run()
    return run.stack if run is not None and function is torch.stack else function


def extend(target: Any, values: Any, rows: bool = False) -> None:
    """``target.extend(values)``"""
    if rows:
        values = values.unsqueeze(0)
    loop = active_loop()
    if loop is None or not _is_record(loop, target):
        target.extend(values)
    else:
        iadd(target, values)


def iadd(target: Any, value: Any) -> Any:
    """``target += value``"""
    loop = active_loop()
    if loop is None or not _is_record(loop, target):
        if loop is not None and loop.chosen is not None:
            return target + _zero_elsewhere(loop, value)
        if loop is not None and isinstance(target, Tensor):
            return target + value  # a tensor in place would change what the loop carries
        target += value
        return target
    if isinstance(value, (Tensor, LazyTensor)):
        refuse("the code extends a list by the rows of a tensor. Append the tensor")
    for each in value:
        loop.record(target, each)
    return target


def add_to_key(holder: Any, key: Any, default: Any, value: Any) -> None:
    """``holder[key] = holder.get(key, default) + value``"""
    loop = active_loop()
    if loop is not None and type(holder) is dict and key not in holder:
        holder[key] = loop.begin(holder, key, default)
    holder[key] = holder.get(key, default) + value


def _is_record(loop: Loop, target: Any) -> bool:
    if isinstance(target, list):
        return id(target) in loop.lists
    if isinstance(
        target, (Tensor, LazyTensor, Carried, Steps, Scalars, int, float, str, nn.Module)
    ):
        return False
    refuse(
        f"a {type(target).__name__} records the steps of a loop. Record them in a list: "
        "spk_rec.append(spk)"
    )


def _zero_elsewhere(loop: Loop, value: Any) -> Any:
    """What a branch at some of the steps adds to a sum."""
    assert loop.chosen is not None
    if isinstance(value, Scalars):
        chosen = torch.tensor(loop.chosen, device=value.values.device)
        return Scalars(torch.where(chosen, value.values, 0))
    if isinstance(value, (Tensor, LazyTensor)):
        steps = loop.unfold(value)
        chosen = torch.tensor(loop.chosen, device=steps.device)
        return loop.fold(torch.where(chosen.view(-1, *[1] * (steps.dim() - 1)), steps, 0))
    values = value.values if isinstance(value, Steps) else [value] * loop.steps
    return Steps([x if chosen else 0 for x, chosen in zip(values, loop.chosen, strict=True)])


def shown(value: Any, spec: str = "") -> Any:
    """What ``print`` shows of a value: of numbers of the steps all of them."""
    if isinstance(value, (Steps, Scalars)):
        values = value.values.tolist() if isinstance(value, Scalars) else value.values
        return "[" + ", ".join(format(x, spec) for x in values) + "]"
    if isinstance(value, Carried):
        return f"({value.name} of the step before)"
    return format(value, spec) if spec else value


def on_tensor(name: str, value: Any, *arguments: Any) -> Any:
    """``value.name(*arguments)``, where the author's tensor has the rows of one step."""
    loop = active_loop()
    if loop is None or not isinstance(value, (Tensor, LazyTensor, Scalars)):
        return getattr(value, name)(*arguments)
    if isinstance(value, Scalars):
        if name == "item":
            return Steps(value.values.tolist())
        return value if name in REDUCTIONS else getattr(value, name)(*arguments)
    if name == "select" and len(arguments) == 2 and isinstance(arguments[1], Steps):
        dim = arguments[0] % value.dim()
        index = (slice(None),) * dim + (arguments[1],)
        return Indexed(loop, value)[index]
    if name == "narrow" and len(arguments) == 3 and isinstance(arguments[1], Steps):
        dim, first, size = arguments
        index = (slice(None),) * (dim % value.dim()) + (slice(first, first + size),)
        return Indexed(loop, value)[index]
    if name == "to_dense" and not arguments:
        return loop.to_dense(value)
    batch = loop.time.batch
    rows = value.shape[0] if value.dim() else 0
    folded = loop.folded_dim(value) == 0 and loop.steps > 1
    if name == "item" and not isinstance(value, nn.Parameter):
        refuse(
            "the loop over time reads a value of a tensor with .item(). A converted model runs all "
            "steps at once. Take the value after the loop"
        )
    if name in ("view", "reshape") and folded:
        whole = len(arguments) == 1 and isinstance(arguments[0], (tuple, list))
        sizes = tuple(arguments[0]) if whole else arguments
        number = bool(sizes) and isinstance(sizes[0], (int, torch.SymInt))
        if number and sizes[0] == batch:  # the rows of one step
            arguments = (rows, *sizes[1:])
    if name == "numel" and folded:
        return value.numel() // loop.steps
    each = folded or loop.keeps_time(value) or (batch and rows == batch)
    if name in REDUCTIONS and not arguments and each:
        steps = loop.unfold(value).flatten(1)
        return Scalars(getattr(steps, {"max": "amax", "min": "amin"}.get(name, name))(dim=1))
    return getattr(value, name)(*arguments)


def tensor_of(make: Any, number: Any, listed: bool) -> Any:
    """A tensor of one number: ``make`` computes ``torch.tensor([number])``.

    Without ``listed`` it computes ``torch.tensor(number)``.
    """
    loop = active_loop()
    if loop is None or not isinstance(number, Steps) or len(set(number.values)) == 1:
        return make()
    return StepTensor(loop, number, listed)


class at_steps:
    """A branch that only records: it runs if its condition is true at some of the steps."""

    def __init__(self, condition_: Any) -> None:
        self.loop, self.condition = active_loop(), condition_

    def __enter__(self) -> bool:
        mixed = isinstance(self.condition, Steps) and len(set(map(bool, self.condition.values))) > 1
        if self.loop is None or not mixed:
            self.outer = None if self.loop is None else self.loop.chosen
            return bool(condition(self.condition))
        self.outer = self.loop.chosen
        outer = self.outer or [True] * self.loop.steps
        self.loop.chosen = tuple(
            bool(a and b) for a, b in zip(outer, self.condition.values, strict=True)
        )
        return True

    def __exit__(self, *exception: object) -> None:
        if self.loop is not None:
            self.loop.chosen = self.outer


def condition(value: Any) -> Any:
    """The condition of a branch."""
    if (loop := active_loop()) is not None:
        loop.reads(value)
    if loop is not None and isinstance(value, (Tensor, LazyTensor, Carried, Scalars)):
        refuse(
            "a branch depends on the value of a tensor. It may differ from step to step, and a "
            "converted model runs all steps at once. Use torch.where, or take the branch out of "
            "the loop"
        )
    return value
