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
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from ..modules._base import STATES, SingleSpikeNeuron
from ..modules.alpha import SingleSpikeAlpha
from ..modules.lapicque import SingleSpikeLapicque
from ..modules.leaky import SingleSpikeLeaky
from ..modules.rleaky import SingleSpikeRLeaky
from ..modules.synaptic import SingleSpikeSynaptic
from ..spikes.lazy import LazyTensor
from .call import Conversion, Time, run_converted
from .checks import ConversionError, reused_neuron
from .state import is_own_state, mark_own_state

__all__ = [
    "DROPOUT",
    "FOLDED",
    "Converted",
    "Folded",
    "FoldedLeaky",
    "make_converted",
    "original_class",
    "static_steps",
]

DROPOUT = nn.modules.dropout._DropoutNd
_TENSORS = (Tensor, LazyTensor)


class Folded(SingleSpikeNeuron):
    """A single-spike neuron inside a converted model, where time is folded into the batch."""

    time: Time
    path: str
    original: type

    def forward(self, input_: Tensor, *states: Tensor | None, **named: Tensor | None) -> Any:
        if not torch.compiler.is_compiling():
            # A membrane that the model keeps from its last call: every call starts from zeros.
            states = tuple(None if self._starts(s) else s for s in states)
            named = {k: None if self._starts(s) else s for k, s in named.items()}
        self._check_call(*states, *named.values())
        self.time.called.append(self.path)
        sequence = self.time.unfold(input_)
        try:
            out = super().forward(sequence, *states, **named)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            raise ConversionError(f"neuron {self.path!r}: {error}") from error
        if isinstance(out, tuple):
            folded = tuple(map(self.time.fold, out))
            for state in folded[1:]:
                mark_own_state(state, self.path)
            return folded
        return self.time.fold(out)

    def _starts(self, state: Any) -> bool:
        """Whether a state is of the last call, or the zeros of ``init_leaky()`` or the like."""
        if is_own_state(state, self.path):
            return True
        own = any(state is vars(self).get(name) for name in STATES)
        return own and isinstance(state, Tensor) and not state.any()

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


class Converted:
    """Mixed into the class of a converted model."""

    _single_spike: Conversion

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle cannot import the mixed class by name, so it is built again from the original.
        return _rebuild, (original_class(self),), self.__dict__


def make_converted(model: Any, time: Time, num_steps: int | None, time_dim: int = 0) -> None:
    """Turn a model with folded neurons into a converted model, in place."""
    original: Any = type(model)
    model.__class__ = _converted_class(original)
    converted: Any = model
    converted._single_spike = Conversion(time, num_steps, time_dim)


def original_class(model: Converted) -> type:
    """The class of the model before its conversion."""
    return type(model).__mro__[2]


def static_steps(model: Converted) -> int | None:
    """The ``num_steps`` that the model was converted with."""
    return model._single_spike.num_steps


@functools.cache
def _converted_class(original: Any) -> Any:
    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "_single_spike"):
            raise ConversionError(
                "this module is a part of a converted model, such as a slice, and has no time "
                "axis: convert the part itself"
            )
        return run_converted(self, original.forward, args, kwargs)

    names = {"forward": forward, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(f"Converted{original.__name__}", (Converted, original), names)


def _rebuild(original: type) -> Any:
    return object.__new__(_converted_class(original))
