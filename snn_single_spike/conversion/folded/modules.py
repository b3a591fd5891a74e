"""Runs a model over a whole sequence, with time folded into the batch.

A converted model calls its own one-step ``forward`` once. Tensors inside it have the shape
(T * B, ...). Layers without state compute the same as step by step, so they stay as they are,
with their ``state_dict`` keys. So does a custom ``forward``, with its reshapes, residuals and
functional calls. Only neurons depend on time: they unfold it, run over the sequence, and fold it
again. A folded tensor may be :class:`snn_single_spike.SpikeTimes` of that shape: layers that
support SpikeTimes receive them unchanged.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...backends._compiling import is_recorded
from ...modules._base import STATES, SingleSpikeNeuron
from ...modules.alpha import SingleSpikeAlpha
from ...modules.lapicque import SingleSpikeLapicque
from ...modules.leaky import SingleSpikeLeaky
from ...modules.rleaky import SingleSpikeRLeaky
from ...modules.synaptic import SingleSpikeSynaptic
from ...spikes import ConvCurrent, LazyCurrent, Spikes, choice
from ...spikes.lazy import LazyTensor, materialize
from ..attributes import Conversion
from ..comparison.reference import state_names
from ..copies import computed_tensors, unfold_delay, unfold_neuron
from ..loops.rewrite import Rewritten, rewritten_methods
from ..loops.running import active_loop
from ..refusals.layers import ConversionError, reused_neuron
from ..refusals.state import is_own_state, mark_own_state
from ..source.methods import entry_of
from ..source.place import of_torch
from ..source.repeated import fixes_batch
from ..time_axis import Time
from .checked import call_model
from .delay import FoldedDelay
from .immediate import resets_at_spike, run_with_immediate_reset
from .pooling import EarliestMaxPool2d

__all__ = [
    "FOLDED",
    "Converted",
    "Folded",
    "FoldedLeaky",
    "Looped",
    "make_converted",
    "original_class",
    "revert_in_place",
    "static_steps",
    "use_dense_inputs",
]

_TENSORS = (Tensor, LazyTensor)
_LAZY_CURRENTS = (LazyCurrent, ConvCurrent)
_OF_TORCH = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


class Folded(SingleSpikeNeuron):
    """A single-spike neuron inside a converted model, where time is folded into the batch."""

    time: Time
    path: str
    original: type
    states_read: tuple[str, ...] = ()
    """States, such as "mem", that the user's code reads from the neuron in a loop over time."""
    _continues = False

    def forward(self, input_: Tensor, *states: Tensor | None, **named: Any) -> Any:
        if (loop := active_loop()) is not None:
            return self._forward_in_loop(loop, input_, states, named)
        if not torch.compiler.is_compiling():
            # A membrane that the model keeps from its last call: every call starts from zeros.
            states = tuple(None if self.starts(s) else s for s in states)
            named = {k: None if self.starts(s) else s for k, s in named.items()}
        self._check_call(*states, *named.values())
        self.time.called.append(self.path)
        out = self._run_folded(input_, lambda sequence: (states, named))
        if isinstance(out, tuple):
            for state in out[1:]:
                mark_own_state(state, self.path)
        return out

    def _run_folded(self, input_: Any, take_states: Callable[[Any], Any]) -> Any:
        """Unfold the input, run over the sequence, and fold what the neuron returns.

        ``take_states(sequence)`` returns the arguments that follow the input.
        """
        readers = self.time.readers
        if readers is not None:
            readers.read_by_neuron(self, input_)
        with self.time.unwatched():
            sequence = self.time.unfold(input_)
            states, named = take_states(sequence)
            try:
                out = self._run_sequence(sequence, *states, **named)
            except (TypeError, ValueError) as error:
                raise ConversionError(f"neuron {self.path!r}: {error}") from error
            out = tuple(map(self.time.fold, out)) if isinstance(out, tuple) else self.time.fold(out)
        if readers is not None:
            readers.returned(self, out)
        return out

    def _run_sequence(self, sequence: Any, *states: Any, **named: Any) -> Any:
        return super().forward(sequence, *states, **named)  # type: ignore[misc]

    def starts(self, state: Any) -> bool:
        """Whether a state is of the last call, or the zeros of ``init_leaky()`` or the like."""
        return is_own_state(state, self.path) or self.starts_from_zeros(state)

    def starts_from_zeros(self, state: Any) -> bool:
        """Whether a state is the zeros of ``init_leaky()`` or the like."""
        own = any(state is vars(self).get(name) for name in STATES)
        if not own or not isinstance(state, Tensor):
            return False
        if torch.compiler.is_compiling() or is_recorded(state):
            return True
        return not state.numel() or not state.any()

    def _forward_in_loop(self, loop: Any, input_: Any, states: Any, named: Any) -> Any:
        """The loop over time of the user's forward carries the states."""
        names = state_names(self.original)
        given = {**dict(zip(names, states, strict=False)), **named}
        kept = isinstance(input_, Tensor) and loop.keeps_time(input_)
        input_ = input_.squeeze(0) if kept else input_
        call = loop.count_call(self, names, given, input_)
        self.time.called.append(self.path)

        def take_states(sequence: Any) -> Any:
            shape = (1, *sequence.shape[1:]) if kept else sequence.shape[1:]
            initial = loop.take_states(self, call, names, given, shape)
            return (), {name: x.squeeze(0) if kept else x for name, x in initial.items()}

        hidden = bool(self.states_read) and self.init_hidden and not self.output
        if hidden:
            self.output = True
        try:
            out = self._run_folded(input_, take_states)
        finally:
            if hidden:
                self.output = False
        if kept:
            out = tree_map_only(Tensor, lambda x: x.unsqueeze(0), out)
        for state in out[1:] if isinstance(out, tuple) else ():
            mark_own_state(state, self.path)
        loop.returned(self, call, names, out)
        return out[0] if hidden else out

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


class FoldedLeaky(Folded, SingleSpikeLeaky):
    """A Leaky, whose spikes may be spike times: see :mod:`.formats`."""

    def _run_sequence(self, sequence: Any, *states: Any, **named: Any) -> Any:
        if resets_at_spike(self):
            given = states[0] if states else named.get("mem")
            return run_with_immediate_reset(self, sequence, given)
        return self._run_in_format(sequence, *states, **named)

    def _run_in_format(self, sequence: Any, *states: Any, **named: Any) -> Any:
        formats, auto = self.time.formats, self.spike_format == "auto"
        lazy = isinstance(sequence, _LAZY_CURRENTS)
        if auto and lazy and (formats is None or self._reads_tensor(sequence)):
            sequence, lazy = sequence.to_dense(), False
        out = super()._run_sequence(sequence, *states, **named)
        if not auto or formats is None:
            return out
        spikes, *others = out if isinstance(out, tuple) else (out,)
        if lazy and self.path not in formats.layers:
            spikes = spikes.to_dense()
        elif isinstance(spikes, Spikes):
            spikes.opened = self.path in formats.opened
        return (spikes, *others) if isinstance(out, tuple) else spikes

    def _reads_tensor(self, current: LazyCurrent | ConvCurrent) -> bool:
        """Whether these neurons are faster from a dense current, or return their membrane."""
        if self.path in self.time.formats.membranes:
            return True
        if isinstance(current, ConvCurrent):
            return False
        spikes, weight, _ = current.linear()
        return not choice.layer_pays(spikes, weight, self.backend)

    def _returns_times(self, input_: Any) -> bool:
        if self.spike_format != "auto" or self.refractory is not None:
            return super()._returns_times(input_)
        formats = self.time.formats
        lazy = isinstance(input_, _LAZY_CURRENTS)
        return formats is not None and (lazy or formats.spike_times(self, input_.shape))


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
"""The class that replaces each class of ``CONVERTIBLE`` (:mod:`..refusals.layers`)."""


class Looped:
    """Mixed into the class of a part of a converted model that has a loop over time."""

    __slots__ = ()
    _original: type
    _rewritten: Rewritten

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild_part, (original_class(self), self._rewritten), self.__dict__


class Converted:
    """Mixed into the class of a converted model."""

    __slots__ = ()
    _original: type
    _single_spike: Conversion
    _rewritten: Rewritten = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle cannot import the mixed class by name, so it is built again from the original.
        return _rebuild, (original_class(self), self._rewritten), self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Membranes and records of the last call have graphs, which copy.deepcopy rejects.
        memo.update(computed_tensors(self, warn=False))  # type: ignore[arg-type]
        new = memo[id(self)] = _rebuild(original_class(self), self._rewritten)
        new.__setstate__(copy.deepcopy(self.__dict__, memo))
        return new


def make_converted(
    model: Any,
    time: Time,
    num_steps: int | None,
    time_dim: int = 0,
    loops: dict[str, Rewritten] | None = None,
    check: bool | None = None,
    auto: bool = False,
) -> None:
    """Turn a model with folded neurons into a converted model, in place.

    ``loops`` are the loops over time in the methods of its parts, by their path.
    """
    loops = loops or {}
    for path, part in list(model.named_modules()):
        if path in loops and path:
            kind: Any = type(part)
            part.__class__ = _looped_class(kind, loops[path])
    original: Any = type(model)
    model.__class__ = _converted_class(original, loops.get("", ()))
    converted: Any = model
    fixed = not loops and any(fixes_batch(kind) for kind in _users_classes(model))
    converted._single_spike = Conversion(
        time, num_steps, time_dim, looped=bool(loops), check=check, fixed_batch=fixed, auto=auto
    )


def _users_classes(model: nn.Module) -> set[Any]:
    """The classes of a model's parts whose forward is the user's code."""
    kinds: set[Any] = {type(part) for part in model.modules() if not isinstance(part, Folded)}
    return {kind for kind in kinds if hasattr(kind, "forward") and not of_torch(kind.forward)}


def use_dense_inputs(model: nn.Module) -> None:
    """Give dense spikes to layers of torch with another forward, as of quantization packages.

    Such a forward may test whether its input is a tensor. Spike times are none.
    """
    for layer in model.modules():
        kind: Any = type(layer)
        own = isinstance(layer, _OF_TORCH) and not of_torch(kind.forward)
        if own and not isinstance(layer, SingleSpikeNeuron):
            layer.register_forward_pre_hook(_dense_inputs)


def _dense_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(materialize(x, f"{type(layer).__name__}.forward") for x in inputs)


def revert_in_place(model: Any) -> None:
    """Turn a converted model back into the model of its author, with snnTorch's neurons."""
    model.__class__ = original_class(model)
    del model._single_spike
    for part in list(model.modules()):
        if isinstance(part, Looped):
            part.__class__ = original_class(part)
        elif isinstance(part, Folded):
            unfold_neuron(part)
        elif isinstance(part, FoldedDelay):
            unfold_delay(part)
        elif isinstance(part, EarliestMaxPool2d):
            part.__class__ = nn.MaxPool2d  # type: ignore[assignment]
        for key, hook in list(part._forward_pre_hooks.items()):
            if hook is _dense_inputs:
                del part._forward_pre_hooks[key]


def original_class(model: Converted | Looped) -> type:
    """The class of the model before its conversion."""
    return type(model)._original


def static_steps(model: Converted) -> int | None:
    """The ``num_steps`` that the model was converted with."""
    return model._single_spike.num_steps


@functools.cache
def _converted_class(original: Any, rewritten: Rewritten) -> Any:
    methods = rewritten_methods(original, rewritten)
    entry = entry_of(original)
    author = getattr(original, entry)
    run = methods.pop(entry, author)

    @functools.wraps(author)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "_single_spike"):
            raise ConversionError(
                "this module is a part of a converted model, such as a slice, and has no time "
                "axis: convert the part itself"
            )
        return call_model(self, author, run, args, kwargs)

    names = {entry: forward, "__module__": original.__module__, "__doc__": original.__doc__}
    return _derived(Converted, original, {**names, **methods})


@functools.cache
def _looped_class(original: Any, rewritten: Rewritten) -> Any:
    names = {"__module__": original.__module__, "__doc__": original.__doc__}
    return _derived(Looped, original, {**names, **rewritten_methods(original, rewritten)})


def _derived(mixin: Any, original: Any, names: dict[str, Any]) -> Any:
    """A subclass of the user's class. The class of an object can change to it: its layout is the
    same, because the user's class is the first base."""
    own = {
        name: vars(mixin)[name] for name in ("__reduce_ex__", "__deepcopy__") if name in vars(mixin)
    }
    names |= {"_original": original, **own}
    return type(f"Converted{original.__name__}", (original, mixin), names)


def _rebuild(original: type, rewritten: Rewritten = ()) -> Any:
    return object.__new__(_converted_class(original, rewritten))


def _rebuild_part(original: type, rewritten: Rewritten) -> Any:
    return object.__new__(_looped_class(original, rewritten))
