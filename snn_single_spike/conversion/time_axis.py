"""The time axis of a converted model, which its calls, neurons and loops share."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import torch

from ..spikes.lazy import LazyTensor
from .refusals.layers import ConversionError, shape_advice

__all__ = ["Spans", "Time"]

Spans = dict[str, list[list[int]]]
"""The loops over time that call each neuron: how often in a step, and in how many steps."""


class Time(threading.local):
    """The time axis of the sequence that a converted model runs on.

    It belongs to one thread: several threads may run the same model at once, as in a server, and
    DataParallel runs replicas of it in threads.
    """

    def __init__(self) -> None:
        self.num_steps = 0  # 0 outside a forward pass
        self.batch: Any = 0  # None in a loop in forward, before its first tensor
        self.static_input = False  # whether the input is the same at every step
        self.longest = 0  # steps of the longest loop of the last call
        self.provenance: Any = None  # in a loop: where folded tensors come from, if sizes coincide
        self.called: list[str] = []  # paths of the neurons that have run
        self.spans: Spans = {}
        self.folded: list[tuple[Any, Any]] = []  # while compiling: folded tensors, and their form
        self.readers: Any = None  # spike_format="auto": in the first call, who reads the spikes,
        self.formats: Any = None  # and in later calls, the formats that follow

    def __reduce__(self) -> Any:
        return Time, ()  # a copy is not running

    def unwatched(self) -> ExitStack:
        """A context in which no mode of this package sees the functions of torch."""
        paused = ExitStack()
        for mode in (self.provenance, self.readers):  # the innermost one first
            if mode is not None and mode.watches:
                paused.enter_context(mode.paused())
        return paused

    def fold(self, sequence: Any) -> Any:
        """(T, B, ...) to (T * B, ...)."""
        folded = sequence.fold() if isinstance(sequence, LazyTensor) else sequence.flatten(0, 1)
        if self.provenance is not None:
            self.provenance.begin(folded)
        if isinstance(sequence, LazyTensor):
            return folded
        if torch.compiler.is_compiling():
            # A view of a view of symbolic shape adds a guard, which torch.export rejects.
            self.folded.append((folded, sequence))
        return folded

    def unfold(self, folded: Any) -> Any:
        """(T * B, ...) to (T, B, ...). A static (B, ...) tensor is repeated at every step."""
        for known, sequence in self.folded:
            if folded is known:
                return sequence
        rows = folded.shape[0] if folded.dim() else None
        if self.batch is None:  # the first tensor of a loop in forward, the same at every step
            self.batch = rows
        if rows == self.num_steps * self.batch:
            if isinstance(folded, LazyTensor):
                return folded.unfold()
            return folded.unflatten(0, (self.num_steps, self.batch))
        if rows == self.batch:
            return folded.expand(self.num_steps, *folded.shape)
        raise ConversionError(
            f"a tensor has shape {tuple(folded.shape)}, but {self.num_steps} steps x {self.batch} "
            f"samples = {self.num_steps * self.batch} rows are expected. {self.advice()}"
        )

    def advice(self) -> str:
        return shape_advice(self.num_steps, self.batch, self.static_input)
