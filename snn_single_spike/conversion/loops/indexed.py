"""What the number of the step indexes: sequences, lists, and layers with a copy for every step."""

from __future__ import annotations

from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ...spikes.lazy import LazyTensor
from ..source.place import of_torch
from .carried import Scalars, Steps
from .running import refuse
from .windows import StepTensor, is_window, window_of

__all__ = ["Indexed", "norms_by_step"]

_NORM, _BATCH_NORM = nn.modules.batchnorm._NormBase, nn.modules.batchnorm._BatchNorm


class Indexed:
    """An object that a subscript reads or writes in a loop."""

    def __init__(self, loop: Any, value: Any) -> None:
        self.loop, self.value = loop, value

    def __getitem__(self, index: Any) -> Any:
        index = _without_tensors(index)
        if not _has_step(index):
            return self.value[index]
        loop, value = self.loop, self.value
        if id(value) in loop.names:
            loop.run.indexed.add((loop.number, loop.names[id(value)]))
        if any(map(is_window, index if isinstance(index, tuple) else (index,))):
            return window_of(loop, value, index)
        if isinstance(value, nn.ModuleList):
            return self._layers(index)
        if isinstance(value, (list, tuple)):
            return self._of_list(index)
        whole = isinstance(index, Steps) and index.values == tuple(range(loop.steps))
        if whole and value.dim() > 1 and value.shape[0] == loop.steps:
            return loop.fold_indexed(value, value)
        part, rows = self._over_time(value, index)
        if part.dim() == 1:  # one number for each step
            return Scalars(part if rows is None else part[rows])
        return loop.fold_indexed(part if rows is None else part[rows], value)

    def _of_list(self, index: Any) -> Any:
        if isinstance(index, Steps):
            found = [self.value[i] for i in index.values]
            if all(isinstance(x, Tensor) for x in found):
                return self.loop.fold(torch.stack(found))
            if all(isinstance(x, (int, float)) for x in found):
                return Steps(found)
        return refuse(
            "the step indexes a list with elements other than tensors and numbers: use a list of "
            "tensors or numbers, or compute the element in the loop"
        )

    def _layers(self, index: Any) -> Any:
        if not isinstance(index, Steps):
            index = Steps([index])
        layers = [self.value[i] for i in index.values]
        if any(isinstance(part, SpikingNeuron) for layer in layers for part in layer.modules()):
            refuse(
                "the step selects a layer with neurons, so every step has its own neuron. Use one "
                "neuron for all steps"
            )

        def call(x: Any) -> Tensor:
            steps = self.loop.unfold(x).unbind(0)
            self.loop.one_step = True
            try:
                return torch.cat([layer(step) for layer, step in zip(layers, steps, strict=True)])
            finally:
                self.loop.one_step = False

        return call

    def __setitem__(self, index: Any, new: Any) -> None:
        if not _has_step(index):
            self.value[index] = new
            return
        loop = self.loop
        if isinstance(self.value, list) and isinstance(index, Steps):
            for i, entry in zip(index.values, loop.each(new), strict=True):
                self.value[i] = entry
            return
        part, rows = self._over_time(self.value, index)
        if rows is not None and len(set(rows.tolist())) < len(rows):
            refuse("several steps write to one place of a tensor. Write out[t] = v")
        if isinstance(new, Scalars):
            new = new.values
        elif isinstance(new, (Tensor, LazyTensor)):
            new = loop.unfold(new)
            if new.shape[1:] != part.shape[1:]:
                refuse(
                    f"a value of shape {tuple(new.shape[1:])} is written to a place of shape "
                    f"{tuple(part.shape[1:])}: write x[t] = v with v of the same shape"
                )
        part[slice(None) if rows is None else rows] = new

    def _over_time(self, value: Any, index: Any) -> tuple[Any, Tensor | None]:
        """The part of a tensor that an index selects, the steps first; and the rows of it to take.

        The rows are None for all of them, in their order.
        """
        parts = list(index) if isinstance(index, tuple) else [index]
        at = next((i for i, part in enumerate(parts) if isinstance(part, Steps)), None)
        for part in parts:
            simple = isinstance(part, (Steps, slice, type(None), type(...))) or type(part) is int
            again = at is not None and isinstance(part, Steps) and part is not parts[at]
            if at is None or not simple or again or is_window(part):
                refuse("the step is part of an index that is not understood. Write x[t] or x[:, t]")
        assert at is not None
        steps: Any = parts[at]
        parts[at] = slice(None)
        whole = value[tuple(parts)]
        kept = [part for part in parts[:at] if not isinstance(part, int)]
        if ... in kept:
            behind = [part for part in parts[at + 1 :] if not isinstance(part, int)]
            hidden = whole.dim() - 1 - len(behind)
        else:
            hidden = len(kept)
        whole = whole.movedim(hidden, 0)
        size = whole.shape[0]
        if any(not -size <= i < size for i in steps.values):
            raise IndexError(
                f"the loop indexes the steps {steps.values[0]} to {steps.values[-1]} of a tensor "
                f"of shape {tuple(value.shape)}, which has {size}: loop over "
                f"range({size}), or pass a longer tensor"
            )
        if steps.values == tuple(range(self.loop.steps)):
            return whole[: self.loop.steps], None
        return whole, torch.tensor([i % size for i in steps.values], device=whole.device)


def _without_tensors(index: Any) -> Any:
    """An index with the step in place of a tensor of it."""
    parts = index if isinstance(index, tuple) else (index,)
    found = [x.as_index(listed=False) if isinstance(x, StepTensor) else x for x in parts]
    return tuple(found) if isinstance(index, tuple) else found[0]


def _has_step(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Steps) or is_window(part) for part in parts)


class norms_by_step:
    """While a loop runs, normalization in training takes its statistics at every step."""

    def __init__(self, loop: Any, modules: list[nn.Module]) -> None:
        self.loop = loop
        self.norms = [m for m in modules if isinstance(m, _NORM) and m.training]

    def __enter__(self) -> None:
        for norm in self.norms:
            vars(norm)["forward"] = self._forward(norm)

    def __exit__(self, *exception: object) -> None:
        for norm in self.norms:
            vars(norm).pop("forward", None)

    def _forward(self, norm: Any) -> Any:
        plain, loop = type(norm).forward, self.loop

        def forward(x: Any) -> Tensor:
            x = loop.to_dense(x)
            rows, batch = x.shape[0], loop.time.batch
            if loop.one_step:
                single: Tensor = plain(norm, x)
                return single
            if batch and rows != batch and rows % (loop.steps * batch) == 0:
                return torch.cat([plain(norm, step) for step in x.chunk(loop.steps)])
            return _same_at_every_step(norm, x, loop.steps)

        return forward


def _same_at_every_step(norm: Any, x: Tensor, steps: int) -> Tensor:
    """The normalization of an input that is the same at every step.

    The running statistics are those of a loop: T updates by the same statistics.
    """
    plain, momentum = type(norm).forward, norm.momentum
    if not norm.track_running_stats:
        out: Tensor = plain(norm, x)
    elif of_torch(plain) and isinstance(norm, _BATCH_NORM) and momentum is not None:
        norm.momentum = 1 - (1 - momentum) ** steps  # of one update in place of T
        try:
            out = plain(norm, x)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(steps - 1)
        finally:
            norm.momentum = momentum
    else:
        out = plain(norm, x)
        with torch.no_grad():
            for _ in range(steps - 1):
                plain(norm, x.detach())
    return out
