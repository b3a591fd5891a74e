"""Runs a model over a whole sequence, with time folded into the batch.

A converted model calls its own one-step ``forward`` once. Tensors inside it have the shape
(T * B, ...). Layers without state compute the same as step by step, so they stay as they are,
with their ``state_dict`` keys. So does a custom ``forward``, with its reshapes, residuals and
functional calls. Only neurons depend on time: they unfold it, run over the sequence, and fold it
again. A folded tensor may be :class:`snn_single_spike.SpikeTimes` of that shape: layers that
support SpikeTimes receive them unchanged.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..modules._base import SingleSpikeNeuron
from ..modules.alpha import SingleSpikeAlpha
from ..modules.lapicque import SingleSpikeLapicque
from ..modules.leaky import SingleSpikeLeaky
from ..modules.rleaky import SingleSpikeRLeaky
from ..modules.synaptic import SingleSpikeSynaptic
from ..spikes.lazy import LazyTensor
from .checks import BATCH_NORM, ConversionError, reused_neuron, shape_advice

__all__ = [
    "DROPOUT",
    "FOLDED",
    "Converted",
    "Folded",
    "FoldedLeaky",
    "Time",
    "make_converted",
    "original_class",
    "static_steps",
]

DROPOUT = nn.modules.dropout._DropoutNd
_TENSORS = (Tensor, LazyTensor)


class Time(threading.local):
    """The time axis of the sequence that a converted model runs on.

    It belongs to one thread: several threads may run the same model at once, as in a server, and
    DataParallel runs replicas of it in threads.
    """

    def __init__(self) -> None:
        self.num_steps = 0  # 0 outside a forward pass
        self.batch = 0
        self.static_input = False  # whether the input is the same at every step
        self.called: list[str] = []  # paths of the neurons that have run

    def __reduce__(self) -> Any:
        return Time, ()  # a copy is not running

    def fold(self, sequence: Any) -> Any:
        """(T, B, ...) to (T * B, ...)."""
        return sequence.fold() if isinstance(sequence, LazyTensor) else sequence.flatten(0, 1)

    def unfold(self, folded: Any) -> Any:
        """(T * B, ...) to (T, B, ...). A static (B, ...) tensor is repeated at every step."""
        rows = folded.shape[0] if folded.dim() else None
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


class Folded(SingleSpikeNeuron):
    """A single-spike neuron inside a converted model, where time is folded into the batch."""

    time: Time
    path: str
    original: type

    def forward(self, input_: Tensor, *states: Tensor | None, **named: Tensor | None) -> Any:
        self._check_call(*states, *named.values())
        self.time.called.append(self.path)
        sequence = self.time.unfold(input_)
        try:
            out = super().forward(sequence, *states, **named)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            raise ConversionError(f"neuron {self.path!r}: {error}") from error
        if isinstance(out, tuple):
            return tuple(map(self.time.fold, out))
        return self.time.fold(out)

    def _check_call(self, *states: Tensor | None) -> None:
        if not self.time.num_steps:
            raise RuntimeError(
                f"neuron {self.path!r} of a converted model was called outside of the model: call "
                "the model, or make a single-spike neuron for use on its own. If a part of the "
                "model is checkpointed, it runs again after the model has ended: checkpoint the "
                "model as a whole"
            )
        if self.path in self.time.called:
            raise reused_neuron(self.path)
        for state in states:
            if isinstance(state, _TENSORS) and state.shape != (0,):
                raise ConversionError(
                    f"neuron {self.path!r} is given an initial state of shape "
                    f"{tuple(state.shape)}, but every sample starts from zeros: leave the state "
                    "out, or pass None"
                )

    def _get_name(self) -> str:
        return type(self).__mro__[2].__name__  # the name of the single-spike class in repr()


class FoldedLeaky(Folded, SingleSpikeLeaky): ...


class FoldedSynaptic(Folded, SingleSpikeSynaptic): ...


class FoldedAlpha(Folded, SingleSpikeAlpha): ...


class FoldedLapicque(Folded, SingleSpikeLapicque): ...


class FoldedRLeaky(Folded, SingleSpikeRLeaky): ...


FOLDED: dict[type, type] = {
    snn.Leaky: FoldedLeaky,
    snn.Synaptic: FoldedSynaptic,
    snn.Alpha: FoldedAlpha,
    snn.Lapicque: FoldedLapicque,
    snn.RLeaky: FoldedRLeaky,
}
"""The class that replaces each of :data:`~snn_single_spike.conversion.checks.CONVERTIBLE`."""


@dataclass
class _Conversion:
    """The attributes that conversion adds to a model."""

    time: Time
    num_steps: int | None


class Converted:
    """Mixed into the class of a converted model: folds its inputs, unfolds its outputs."""

    _single_spike: _Conversion
    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "_single_spike"):
            raise ConversionError(
                "this module is a part of a converted model, such as a slice, and has no time "
                "axis: convert the part itself"
            )
        time = self._single_spike.time
        enter = self._begin(_input_tensors((*args, *kwargs.values())))
        momenta = self._momenta() if self.training else []
        for batch_norm, momentum in momenta:
            # One update of the running statistics replaces the T updates of a loop.
            batch_norm.momentum = 1 - (1 - momentum) ** time.num_steps
        try:
            out = super().forward(  # type: ignore[misc]
                *map(enter, args), **{name: enter(x) for name, x in kwargs.items()}
            )
            return self._leave(out)
        except RuntimeError as error:
            if not re.search(r"\b(shapes?|sizes?|dim(ension)?s?)\b", str(error)):
                raise
            where = _failing_layer(self, error)
            raise ConversionError(f"{where}{error}. {time.advice()}") from error
        finally:
            time.num_steps = 0
            for batch_norm, momentum in momenta:
                batch_norm.momentum = momentum

    def _begin(self, inputs: Sequence[Tensor | LazyTensor]) -> Callable[[Any], Any]:
        """Set the time axis; returns the function that prepares each input."""
        time, num_steps = self._single_spike.time, self._single_spike.num_steps
        if not torch.compiler.is_compiling():
            _reject_new_neurons(self)
        time.called, time.static_input = [], num_steps is not None
        if num_steps is None:
            time.num_steps, time.batch = _sequence_extent(inputs[0])
            return self._enter
        _reject_lazy_inputs(inputs, num_steps)
        time.num_steps, time.batch = num_steps, inputs[0].shape[0]
        if self.training and self._has_dropout():  # it draws another mask at every step
            return lambda x: (
                time.fold(x.expand(num_steps, *x.shape)) if isinstance(x, Tensor) else x
            )
        return lambda x: x  # layers before the first neuron run once for all steps

    def _enter(self, x: Any) -> Any:
        time = self._single_spike.time
        if not isinstance(x, _TENSORS):
            return x
        if x.shape == (0,):  # a membrane from reset_mem() before the first call
            return None
        if tuple(x.shape[:2]) != (time.num_steps, time.batch):
            raise ConversionError(
                f"an input has shape {tuple(x.shape)}, but every tensor given to a converted model "
                f"is a sequence, here ({time.num_steps}, {time.batch}, ...): pass None for "
                "initial membranes, every sample starts from zeros"
            )
        return time.fold(x)

    def _momenta(self) -> list[tuple[Any, float]]:
        """BatchNorm layers with their momentum."""
        return [
            (module, module.momentum)
            for module in self.modules()  # type: ignore[attr-defined]
            if isinstance(module, BATCH_NORM) and module.momentum is not None
        ]

    def _has_dropout(self) -> bool:
        modules = self.modules()  # type: ignore[attr-defined]
        return any(isinstance(module, DROPOUT) and module.p > 0 for module in modules)

    def _leave(self, out: Any) -> Any:
        if isinstance(out, _TENSORS):
            return self._single_spike.time.unfold(out)
        if isinstance(out, dict):
            return {name: self._leave(value) for name, value in out.items()}
        if isinstance(out, tuple) and hasattr(out, "_fields"):
            return type(out)(*map(self._leave, out))
        if isinstance(out, (list, tuple)):
            return type(out)(map(self._leave, out))
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle cannot import the mixed class by name, so it is built again from the original.
        return _rebuild, (original_class(self),), self.__dict__


def make_converted(model: Any, time: Time, num_steps: int | None) -> None:
    """Turn a model with folded neurons into a converted model, in place."""
    original: Any = type(model)
    model.__class__ = _converted_class(original)
    converted: Any = model
    converted._single_spike = _Conversion(time, num_steps)


def original_class(model: Converted) -> type:
    """The class of the model before its conversion."""
    return type(model).__mro__[2]


def static_steps(model: Converted) -> int | None:
    """The ``num_steps`` that the model was converted with."""
    return model._single_spike.num_steps


@functools.cache
def _converted_class(original: Any) -> Any:
    return type(f"Converted{original.__name__}", (Converted, original), {})


def _rebuild(original: type) -> Any:
    return object.__new__(_converted_class(original))


def _input_tensors(given: Sequence[Any]) -> list[Tensor | LazyTensor]:
    inputs = [x for x in given if isinstance(x, _TENSORS)]
    if not inputs:
        found = ", ".join(type(x).__name__ for x in given) or "nothing"
        raise TypeError(
            f"a converted model was called with {found}, but it needs a tensor as its input, or "
            "SpikeTimes or SpikeEvents"
        )
    return inputs


def _sequence_extent(input_: Tensor | LazyTensor) -> tuple[int, int]:
    """T and B of a whole sequence."""
    if 0 in input_.shape[:1]:
        raise ValueError(
            f"the input has shape {tuple(input_.shape)}: no time steps. Pass at least one step"
        )
    if input_.dim() < 3:
        raise ValueError(
            f"the input has shape {tuple(input_.shape)}, but a converted model takes the "
            "whole sequence, (time, batch, ...): stack the steps. For an input that is the "
            "same at every step, convert with num_steps="
        )
    return input_.shape[0], input_.shape[1]


def _reject_lazy_inputs(inputs: Sequence[Tensor | LazyTensor], num_steps: int) -> None:
    for x in inputs:
        if isinstance(x, LazyTensor):
            raise ValueError(
                f"the input is {x}, a sequence, but the model was converted with num_steps="
                f"{num_steps} for inputs that are the same at every step: convert it without "
                "num_steps"
            )


def _reject_new_neurons(model: Any) -> None:
    for path, module in model.named_modules():
        if isinstance(module, SpikingNeuron) and not isinstance(module, Folded):
            raise ConversionError(
                f"neuron {path!r} ({type(module).__name__}) was added to the model after its "
                "conversion: revert() the model, change it, and convert() it again"
            )


def _failing_layer(model: Any, error: BaseException) -> str:
    """The innermost layer that was running, as the beginning of a message."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    found, traceback = "", error.__traceback__
    while traceback:
        module = traceback.tb_frame.f_locals.get("self")
        if id(module) in paths:
            found = f"layer {paths[id(module)]!r} ({type(module).__name__}): "
        traceback = traceback.tb_next
    return found
