"""One run of a forward of one step: folds time into the batch of inputs, unfolds outputs.

:class:`~snn_single_spike.conversion.loops.running.LoopRun` is a run of a forward with a loop.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..spikes.lazy import LazyTensor, materialize
from .batch import AllRows
from .refusals.layers import BATCH_NORM, ConversionError
from .source.place import failing_layer

__all__ = ["Run"]

_TENSORS = (Tensor, LazyTensor)


class Run:
    """One call of a converted model: its inputs, and the time axis that they have."""

    def __init__(self, model: Any, forward: Any, args: Any, kwargs: Any) -> None:
        self.model, self.forward, self.args, self.kwargs = model, forward, args, kwargs
        conversion = model._single_spike
        self.time, self.time_dim = conversion.time, conversion.time_dim
        inputs = self.inputs = _input_tensors((*args, *kwargs.values()))
        self.devices = {x.device for x in inputs}
        if conversion.num_steps is None:
            self.extent = _sequence_extent(inputs, self.time_dim)
        else:
            _reject_lazy_inputs(inputs, conversion.num_steps)
            self.extent = conversion.num_steps, inputs[0].shape[0]
        self.static_input = conversion.num_steps is not None

    def with_samples(self, samples: int) -> Run:
        """The same call with another number of samples, which repeat; its inputs are dense."""
        dim = 0 if self.static_input else 1 - self.time_dim

        def other(x: Any) -> Any:
            if isinstance(x, LazyTensor):
                x = x.samples(slice(samples)) if hasattr(x, "samples") else x  # spike times
                return resized(x.to_dense(), 1)
            return resized(x, dim)

        def resized(x: Any, dim: int) -> Any:
            if not isinstance(x, Tensor) or x.dim() <= dim or x.shape == (0,):
                return x
            x = x if x.layout is torch.strided else x.to_dense()
            if not x.shape[dim]:
                return x.new_zeros(*x.shape[:dim], samples, *x.shape[dim + 1 :])
            return x.index_select(dim, torch.arange(samples, device=x.device) % x.shape[dim])

        kwargs = {name: other(x) for name, x in self.kwargs.items()}
        return Run(self.model, self.forward, tuple(map(other, self.args)), kwargs)

    def at_step(self, step: int, given: Any) -> Any:
        """The arguments of one step of a loop over time."""

        def one(x: Any) -> Any:
            if not isinstance(x, Tensor) or self.static_input:
                return x
            return None if x.shape == (0,) else x.select(self.time_dim, step)

        return _mapped(one, given)

    def run_folded(self, expand: bool) -> Any:
        """Run the model's own forward; ``expand`` repeats a static input at every step."""
        time = self.time
        time.num_steps, time.batch = self.extent
        time.longest = time.num_steps
        time.called, time.folded, time.static_input = [], [], self.static_input
        time.spans = {}
        momenta = self._momenta() if self.model.training else []
        for batch_norm, momentum in momenta:
            # One update of the running statistics replaces the T updates of a loop.
            batch_norm.momentum = 1 - (1 - momentum) ** time.num_steps
        enter = self._enter_static if self.static_input else self._enter
        fixed = self.model._single_spike.fixed_batch and not torch.compiler.is_compiling()
        try:
            args = [enter(x, expand) for x in self.args]
            kwargs = {name: enter(x, expand) for name, x in self.kwargs.items()}
            with AllRows(*self.extent) if fixed else nullcontext():
                out = self.forward(self.model, *args, **kwargs)
            return self._leave(out)
        except RuntimeError as error:
            if not re.search(r"\b(shapes?|sizes?|dim(ension)?s?)\b", str(error)):
                raise
            where = failing_layer(self.model, error)
            raise ConversionError(f"{where}{error}. {time.advice()}") from error
        finally:
            time.num_steps, time.folded = 0, []
            for batch_norm, momentum in momenta:
                batch_norm.momentum = momentum

    def _momenta(self) -> list[tuple[Any, float]]:
        """BatchNorm layers with their momentum."""
        return [
            (module, module.momentum)
            for module in self.model.modules()
            if isinstance(module, BATCH_NORM) and module.momentum is not None
        ]

    def _enter_static(self, x: Any, expand: bool) -> Any:
        # Layers before the first neuron run once for all steps, unless the input is expanded.
        if not isinstance(x, Tensor) or not expand:
            return x
        x = x if x.layout is torch.strided else x.to_dense()
        return self.time.fold(x.expand(self.time.num_steps, *x.shape))

    def _enter(self, x: Any, expand: bool) -> Any:
        time = self.time
        if not isinstance(x, _TENSORS):
            return x
        if x.shape == (0,):  # a membrane from reset_mem() before the first call
            return None
        if x.dim() < 2:
            raise self._other_extent(x)
        if isinstance(x, Tensor):
            x = x if x.layout is torch.strided else x.to_dense()
            x = x.transpose(0, 1) if self.time_dim else x
        if tuple(x.shape[:2]) != self.extent:
            raise self._other_extent(x)
        return time.fold(x)

    def _other_extent(self, x: Any) -> ConversionError:
        num_steps, batch = self.extent
        shape = f"an input has shape {tuple(x.shape)}"
        if tuple(x.shape[:2]) == (batch, num_steps):
            return ConversionError(
                f"{shape}, and another one is a sequence of time={num_steps}, batch={batch}: the "
                "batch seems to come first. For (batch, time, ...) convert with time_dim=1, or "
                "pass x.transpose(0, 1)"
            )
        return ConversionError(
            f"{shape}, but every tensor given to a converted model is a sequence, here "
            f"({num_steps}, {batch}, ...): pass None for initial membranes, every sample starts "
            "from zeros"
        )

    def _leave(self, out: Any) -> Any:
        if isinstance(out, _TENSORS):
            num_steps, batch = self.extent
            if out.dim() > 1 and tuple(out.shape[:2]) == (1, num_steps * batch) != (1, 1):
                # A record of one step, torch.stack([spk]).
                record = materialize(out, "torch.stack").unflatten(1, self.extent).movedim(1, 0)
                return record.transpose(0, 1) if self.time_dim else record
            unfolded = self.time.unfold(out)
            dense = isinstance(unfolded, Tensor)
            return unfolded.transpose(0, 1) if self.time_dim and dense else unfolded
        if isinstance(out, dict):
            return {name: self._leave(value) for name, value in out.items()}
        if isinstance(out, tuple) and hasattr(out, "_fields"):
            return type(out)(*map(self._leave, out))
        if isinstance(out, (list, tuple)):
            return type(out)(map(self._leave, out))
        if is_dataclass(out) and not isinstance(out, type):
            new = copy.copy(out)
            for part in fields(out):
                object.__setattr__(new, part.name, self._leave(getattr(out, part.name)))
            return new
        return out


def _mapped(function: Callable[[Any], Any], given: Any) -> Any:
    if isinstance(given, dict):
        return {name: function(x) for name, x in given.items()}
    return tuple(map(function, given))


def _input_tensors(given: Sequence[Any]) -> list[Tensor | LazyTensor]:
    inputs = [x for x in given if isinstance(x, _TENSORS)]
    if not inputs:
        found = ", ".join(type(x).__name__ for x in given) or "nothing"
        raise TypeError(
            f"a converted model was called with {found}, but it needs a tensor as its input, or "
            "SpikeTimes or SpikeEvents"
        )
    return inputs


def _sequence_extent(inputs: Sequence[Tensor | LazyTensor], time_dim: int) -> tuple[int, int]:
    """T and B of a whole sequence."""
    input_ = inputs[0]
    token_ids = isinstance(input_, Tensor) and not input_.is_floating_point()
    if input_.dim() < (2 if token_ids else 3):
        raise ValueError(
            f"the input has shape {tuple(input_.shape)}, but a converted model takes the "
            "whole sequence, (time, batch, ...): stack the steps. For an input that is the "
            "same at every step, convert with num_steps="
        )
    dense = isinstance(input_, Tensor)
    first = time_dim if dense else 0
    if 0 in input_.shape[first : first + 1]:
        raise ValueError(
            f"the input has shape {tuple(input_.shape)}: no time steps. Pass at least one step"
        )
    return input_.shape[first], input_.shape[1 - first]


def _reject_lazy_inputs(inputs: Sequence[Tensor | LazyTensor], num_steps: int) -> None:
    for x in inputs:
        if isinstance(x, LazyTensor):
            raise ValueError(
                f"the input is {x}, a sequence, but the model was converted with num_steps="
                f"{num_steps} for inputs that are the same at every step: convert it without "
                "num_steps"
            )
