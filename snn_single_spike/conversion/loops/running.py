"""Which call of a model with folded loops, and which of its loops, runs in this thread."""

from __future__ import annotations

import operator
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..refusals.layers import ConversionError
from ..source.place import user_line

__all__ = ["KEEP", "LoopRun", "Record", "active_loop", "active_run", "refuse"]

KEEP = "take the loop out of forward, so that forward computes one step"
_active = threading.local()


class Record(NamedTuple):
    """A list with the steps of one value, as a loop has filled it."""

    filled: list[Any]
    """Kept, so that no other list gets its id."""
    entries: list[Tensor]
    sequence: Tensor
    """(T, B, ...)."""


@dataclass
class LoopRun:
    """One call of a model with folded loops.

    :param time: the time axis that the neurons of the model share
    :param expand: whether tensors from before a loop are repeated at every step. Otherwise the
        layers that use them run once
    """

    model: Any
    time: Any
    expand: bool = False
    batches: list[int] = field(default_factory=list)  # of every loop, found by an earlier run
    indexed: set[tuple[int, str]] = field(default_factory=set)  # names that a step indexes
    fixed: dict[tuple[int, str], ConversionError] = field(default_factory=dict)
    """Names of loops that an earlier run has found to be read: they must keep their values."""
    loop: Any = None
    number: int = 0
    sequences: int = 0  # that steps have indexed so far
    loop_failed: tuple[int, int] | None = None  # steps and batch of a loop that raised
    states: list[tuple[Any, str, Any]] = field(default_factory=list)
    """Neurons, with the states that they get back after the call."""
    recorded: dict[int, Record] = field(default_factory=dict)
    """Lists that loops have filled, by their id."""

    def __enter__(self) -> LoopRun:
        self.outer = active_run()
        self.time.called, self.time.folded, self.number, self.sequences = [], [], 0, 0
        self.time.longest, self.time.spans = 0, {}
        _active.run = self
        return self

    def __exit__(self, *exception: object) -> None:
        _active.run = self.outer
        for neuron, name, state in self.states:
            vars(neuron)[name] = state
        self.states.clear()
        self.recorded.clear()

    def stack(self, tensors: Any, dim: int | None = None, **other: Any) -> Tensor:
        """``torch.stack``. A copy of the sequence replaces the stack of its steps.

        The backward pass of a stack takes the gradient apart, step by step.
        """
        given = other if dim is None else {"dim": dim, **other}  # torch knows dim as axis, too
        record = self.recorded.get(id(tensors))
        if record is None or other or len(tensors) != len(record.entries):
            return torch.stack(tensors, **given)
        changed = not all(map(operator.is_, tensors, record.entries))
        strides = record.sequence.stride()[1:]  # others after entry.unsqueeze_(1) and the like
        if changed or any(
            x.retains_grad or x._backward_hooks or x.stride() != strides for x in record.entries
        ):
            return torch.stack(tensors, **given)
        return record.sequence.movedim(0, dim or 0).clone(memory_format=torch.contiguous_format)


def active_run() -> LoopRun | None:
    """The running call of a model with folded loops, in this thread."""
    return getattr(_active, "run", None)


def active_loop() -> Any:
    """The loop over time that is running in this thread; None outside of loops."""
    run = active_run()
    return run.loop if run else None


def refuse(reason: str) -> NoReturn:
    """Raise ConversionError with the line of the user's code that runs."""
    run = active_run()
    where = user_line(sys._getframe(1), run.model if run else torch.nn.Module())
    raise ConversionError(f"{where}: {reason}")
