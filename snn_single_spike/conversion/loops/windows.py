"""Windows of several steps: ``x[:, t * k : (t + 1) * k]``, and ``x[t : t + 1]``, which keeps time.

Inside a loop, the time dimension that a window keeps is a dimension of each step's tensor. Where it
comes before the batch, ``x[t : t + 1]`` of (time, batch, features), the folded tensor is
(1, T * B, features), as of ``x[t].unsqueeze(0)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...spikes.lazy import LazyTensor
from .carried import Steps
from .running import refuse

__all__ = ["StepTensor", "is_window", "keeps_time", "window_of"]

_KEEPS = ("to", "cpu", "cuda", "int", "long", "clone", "detach")


class StepTensor:
    """``torch.tensor([t])`` or ``torch.tensor(t)``, where t is the number of the step.

    It is an index: ``x[torch.tensor([t])]``, ``torch.index_select(x, 0, torch.tensor([t]))``.
    """

    def __init__(self, loop: Any, number: Steps, listed: bool) -> None:
        self.loop, self.number, self.listed = loop, number, listed

    def as_index(self, listed: bool) -> Any:
        """The index that selects the same entries; ``listed`` keeps their dimension."""
        number: Any = self.number
        if not all(type(value) is int and value >= 0 for value in number.values):
            number._no()
        return slice(number, number + 1) if listed or self.listed else number

    def __getattr__(self, name: str) -> Any:
        if name not in _KEEPS:
            self.number._no()
        return lambda *_, **__: self

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(zip(("input", "dim", "index"), args, strict=False)) | (kwargs or {})
        index = given.get("index")
        if function in (torch.index_select, Tensor.index_select) and isinstance(index, StepTensor):
            value, dim = given["input"], given["dim"] % given["input"].dim()
            return window_of(index.loop, value, (*[slice(None)] * dim, index.as_index(listed=True)))
        found = next(x for x in (*args, *given.values()) if isinstance(x, StepTensor))
        return found.number._no()


def is_window(part: Any) -> bool:
    """Whether a part of an index is a slice from or to the step."""
    return isinstance(part, slice) and any(
        isinstance(x, Steps) for x in (part.start, part.stop, part.step)
    )


def window_of(loop: Any, value: Any, index: Any) -> Any:
    """``value[index]`` at every step, where one part of the index is a window."""
    if not isinstance(value, (Tensor, LazyTensor)):
        refuse("a window of steps is taken of an object that is no tensor. Stack it first")
    value = loop.to_dense(value)
    parts = list(index) if isinstance(index, tuple) else [index]
    at = next(i for i, part in enumerate(parts) if is_window(part))
    for part in (*parts[:at], *parts[at + 1 :]):
        simple = isinstance(part, (slice, type(None), type(...))) or type(part) is int
        if not simple or is_window(part):
            refuse(
                "the step is part of an index that is not understood. Write x[t : t + 1] or "
                "x[:, t * size : (t + 1) * size]"
            )
    window, parts[at] = parts[at], slice(None)
    whole = value[tuple(parts)]
    before = [part for part in parts[:at] if not isinstance(part, int)]
    if ... in before:
        behind = [part for part in parts[at + 1 :] if not isinstance(part, int)]
        dim = whole.dim() - 1 - len(behind)
    else:
        dim = len(before)
    rows = _rows(loop, window, whole.shape[dim])
    size = len(rows) // loop.steps
    if rows == list(range(rows[0], rows[0] + len(rows))):
        taken = whole.narrow(dim, rows[0], len(rows))
    else:
        taken = whole.index_select(dim, torch.tensor(rows, device=whole.device))
    sequence = taken.unflatten(dim, (loop.steps, size)).movedim(dim, 0)
    if dim:
        return loop.fold(sequence, value)
    return keeps_time(loop, sequence, value)


def keeps_time(loop: Any, sequence: Tensor, value: Any) -> Tensor:
    """The folded form of a sequence whose steps (window, batch, ...) begin with time.

    A step with two or four dimensions is a sample, or an image, and its window is the batch.
    """
    if sequence.dim() in (3, 5):
        folded: Tensor = loop.fold(sequence, value)
        return folded
    loop.time_kept = True
    return loop.fold(sequence.transpose(1, 2), value).transpose(0, 1)


def _rows(loop: Any, window: slice, size: int) -> list[int]:
    """The positions that the windows of all steps select, one window after the other."""

    def at(bound: Any, step: int) -> Any:
        return bound.values[step] if isinstance(bound, Steps) else bound

    found = [
        range(size)[slice(*(at(x, t) for x in (window.start, window.stop, window.step)))]
        for t in range(loop.steps)
    ]
    lengths = {len(each) for each in found}
    if len(lengths) > 1 or 0 in lengths:
        shown = " and ".join(map(str, sorted(lengths)))
        refuse(
            f"the loop takes windows of {shown} entries of a dimension of {size}. A converted "
            "model runs all steps at once, so every step needs a window of one size, such as "
            "x[t * size : (t + 1) * size] with a whole number of windows. Pad the input"
        )
    return [position for each in found for position in each]
