"""Existing snnTorch models, whole sequences at once, and back.

A converted model runs its own one-step ``forward`` once, with time folded into the batch:
tensors inside it are (T * B, ...). Layers without state cannot tell the difference, so they
stay as they are, with their ``state_dict`` keys; so does a custom ``forward`` with its
reshapes, residuals and functional calls. Only neurons see time: they unfold it, run over the
sequence, and fold it again. What is folded may be spike times, which stand for a tensor of that
shape (:mod:`snn_single_spike.spikes`): layers that know better than to ask for it get them.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import re
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..functional import DEFAULT_GRADIENT
from ..modules._base import NEEDS_THE_LOOP, STATES, SingleSpikeNeuron, check_options
from ..modules.alpha import SingleSpikeAlpha
from ..modules.lapicque import SingleSpikeLapicque
from ..modules.leaky import SPIKE_FORMATS, SingleSpikeLeaky
from ..modules.readout import LeakyReadout
from ..modules.rleaky import SingleSpikeRLeaky
from ..modules.synaptic import SingleSpikeSynaptic
from ..ops.validation import check_choice
from ..spikes.lazy import LazyTensor

__all__ = ["ConversionError", "convert", "revert"]

# Why a neuron has no single-spike form, and what comes nearest
_NOT_CONVERTIBLE: dict[str, tuple[str, str]] = {
    "SLSTM": ("its gates are non-linear in its own past", "Leaky"),
    "SConv2dLSTM": ("its gates are non-linear in its own past", "Leaky"),
    "RSynaptic": ("its spikes are fed back into it", "Synaptic"),
}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUT = nn.modules.dropout._DropoutNd
_TENSORS = (Tensor, LazyTensor)


class ConversionError(ValueError):
    """A model that cannot run over a whole sequence; says which layer, why, and what to edit."""


class _Time(threading.local):
    """The time axis of the sequence that a converted model is running on, in this thread.

    Threads run one model at once where it serves requests, and replicas of it in DataParallel.
    """

    def __init__(self) -> None:
        self.num_steps = 0  # 0 outside a forward
        self.batch = 0
        self.repeats = False  # whether the input is the same at every step
        self.called: list[str] = []  # paths of the neurons that have run

    def __reduce__(self) -> Any:
        return _Time, ()  # nothing runs on a copy

    def fold(self, sequence: Any) -> Any:
        return sequence.fold() if isinstance(sequence, LazyTensor) else sequence.flatten(0, 1)

    def unfold(self, folded: Any) -> Any:
        """(T * B, ...) to (T, B, ...); what was computed once, (B, ...), is the same every step."""
        if folded.dim() and folded.shape[0] == self.num_steps * self.batch:
            if isinstance(folded, LazyTensor):
                return folded.unfold()
            return folded.unflatten(0, (self.num_steps, self.batch))
        if folded.dim() and folded.shape[0] == self.batch:
            return folded.expand(self.num_steps, *folded.shape)
        raise ConversionError(
            f"a tensor of shape {tuple(folded.shape)} where one of {self.num_steps} steps x "
            f"{self.batch} samples = {self.num_steps * self.batch} rows was expected. {self.advice()}"
        )

    def advice(self) -> str:
        called = (
            "The model may have been called step by step, or with an input that is the same at "
            "every step (convert it with num_steps=)"
        )
        joined = ""
        if self.repeats:
            called = (
                f"The model was converted with num_steps={self.num_steps}, and may have been called "
                "with a sequence"
            )
            joined = (
                "; or it adds or joins what comes before the first neuron, which is computed once, "
                "to what comes after it (convert without num_steps=, and pass "
                "x.expand(num_steps, *x.shape))"
            )
        return (
            f"The input was read as time={self.num_steps}, batch={self.batch}, and inside a converted "
            f"model time is folded into the batch. {called}; or the features of the input are not "
            "those of the first layer (flatten them); or its forward has a loop over time, swaps "
            "the first two dimensions, sums over the batch, or reshapes with a fixed batch size "
            "(write x.flatten(1), or x.view(x.size(0), -1) with the size of that very tensor)"
            f"{joined}"
        )


class _Folded(SingleSpikeNeuron):
    """A single-spike neuron inside a converted model, where time is folded into the batch."""

    time: _Time
    path: str
    original: type

    def forward(self, input_: Tensor, *states: Tensor | None, **named: Tensor | None) -> Any:
        if not self.time.num_steps:
            raise RuntimeError(
                f"neuron {self.path!r} of a converted model was called outside of it: call the "
                "model, or make a single-spike neuron for use on its own; and checkpoint the "
                "model as a whole, not a part, which is run again when the model has ended"
            )
        if self.path in self.time.called:
            raise ConversionError(_loop_message(self.path))
        self.time.called.append(self.path)
        for state in (*states, *named.values()):
            if isinstance(state, _TENSORS) and state.shape != (0,):
                raise ConversionError(
                    f"neuron {self.path!r} is given an initial state of shape "
                    f"{tuple(state.shape)}: leave it out, or pass None; a sample starts from zeros"
                )
        sequence = self.time.unfold(input_)
        try:
            out = super().forward(sequence, *states, **named)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            raise ConversionError(f"neuron {self.path!r}: {error}") from error
        if isinstance(out, tuple):
            return tuple(map(self.time.fold, out))
        return self.time.fold(out)

    def _get_name(self) -> str:
        return type(self).__mro__[2].__name__  # what it prints as


class _FoldedLeaky(_Folded, SingleSpikeLeaky): ...


class _FoldedSynaptic(_Folded, SingleSpikeSynaptic): ...


class _FoldedAlpha(_Folded, SingleSpikeAlpha): ...


class _FoldedLapicque(_Folded, SingleSpikeLapicque): ...


class _FoldedRLeaky(_Folded, SingleSpikeRLeaky): ...


_KINDS: dict[type, type] = {
    snn.Leaky: _FoldedLeaky,
    snn.Synaptic: _FoldedSynaptic,
    snn.Alpha: _FoldedAlpha,
    snn.Lapicque: _FoldedLapicque,
    snn.RLeaky: _FoldedRLeaky,
}


def _kind(neuron: nn.Module) -> type | None:
    """The snnTorch class whose dynamics a neuron has; None if it has its own, or none here."""
    kind = _base(neuron)
    return None if kind is None or _own_parts(neuron, kind) else kind


def _base(neuron: nn.Module) -> type | None:
    return next((kind for kind in _KINDS if isinstance(neuron, kind)), None)


def _own_parts(neuron: nn.Module, kind: type) -> list[str]:
    """What a subclass, or a parametrization, has in the place of parts of a snnTorch neuron."""
    classes = type(neuron).__mro__
    return sorted(
        name
        for cls in classes[: classes.index(kind)]
        for name, value in vars(cls).items()
        if not name.startswith("__")
        and name != "extra_repr"
        and (hasattr(kind, name) or isinstance(value, property))
    )


@dataclass
class _Conversion:
    """What a converted model knows beyond the model it was made from."""

    time: _Time
    num_steps: int | None


class _Converted:
    """Mixed into the class of a converted model; folds what comes in, unfolds what goes out."""

    _single_spike: _Conversion
    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "_single_spike"):
            raise ConversionError(
                "this is a part of a converted model, such as a slice: convert the part itself"
            )
        time = self._single_spike.time
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, _TENSORS)]
        if not inputs:
            raise TypeError(
                "a converted model needs a tensor as its input, or SpikeTimes or SpikeEvents"
            )
        enter = self._begin(inputs)
        momenta = self._momenta() if self.training else []
        for batch_norm, momentum in momenta:
            # One update of the running statistics stands for T of them.
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
        """Set the time axis; returns what to do with each input."""
        input_ = inputs[0]
        time, num_steps = self._single_spike.time, self._single_spike.num_steps
        if not torch.compiler.is_compiling():
            _refuse_new_neurons(self)
        time.called, time.repeats = [], num_steps is not None
        if num_steps is None:
            if 0 in input_.shape[:1]:
                raise ValueError(f"the input has shape {tuple(input_.shape)}: no time steps")
            if input_.dim() < 3:
                raise ValueError(
                    f"the input has shape {tuple(input_.shape)}, but a converted model takes the "
                    "whole sequence, (time, batch, ...): stack the steps, or, for an input that is "
                    "the same at every step, convert with num_steps="
                )
            time.num_steps, time.batch = input_.shape[0], input_.shape[1]
            return self._enter
        for x in inputs:
            if isinstance(x, LazyTensor):
                raise ValueError(
                    f"the input is {x}, a sequence, but the model was converted with num_steps="
                    f"{num_steps} for inputs that are the same at every step: convert it without "
                    "num_steps"
                )
        time.num_steps, time.batch = num_steps, input_.shape[0]
        if self.training and self._has_dropout():  # it draws anew at every step
            return lambda x: (
                time.fold(x.expand(num_steps, *x.shape)) if isinstance(x, Tensor) else x
            )
        return lambda x: x  # the front of the model runs once for all steps

    def _enter(self, x: Any) -> Any:
        time = self._single_spike.time
        if not isinstance(x, _TENSORS):
            return x
        if x.shape == (0,):  # reset_mem() before the first call
            return None
        if tuple(x.shape[:2]) != (time.num_steps, time.batch):
            raise ConversionError(
                f"an input has shape {tuple(x.shape)}, but every tensor that a converted model is "
                f"given is a sequence, here ({time.num_steps}, {time.batch}, ...): pass None for "
                "initial membranes, a sample starts from zeros"
            )
        return time.fold(x)

    def _momenta(self) -> list[tuple[Any, float]]:
        """BatchNorm layers, and the momentum they were made with."""
        return [
            (module, module.momentum)
            for module in self.modules()  # type: ignore[attr-defined]
            if isinstance(module, _BATCH_NORM) and module.momentum is not None
        ]

    def _has_dropout(self) -> bool:
        modules = self.modules()  # type: ignore[attr-defined]
        return any(isinstance(module, _DROPOUT) and module.p > 0 for module in modules)

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
        # The mixed class has no name to import: say how to make it again.
        return _rebuild, (_original_class(self),), self.__dict__


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


def _original_class(model: _Converted) -> type:
    return type(model).__mro__[2]


@functools.cache
def _converted_class(original: Any) -> Any:
    return type(f"Converted{original.__name__}", (_Converted, original), {})


def _rebuild(original: type) -> Any:
    return object.__new__(_converted_class(original))


def convert(
    model: nn.Module,
    *,
    num_steps: int | None = None,
    share_parameters: bool = False,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    spike_format: str = "dense",
) -> nn.Module:
    """
    A snnTorch model that takes one time step a call, as one that takes the whole sequence.

    Every :class:`snntorch.Leaky`, :class:`snntorch.Synaptic`, :class:`snntorch.Alpha`,
    :class:`snntorch.Lapicque` and one-to-one :class:`snntorch.RLeaky` becomes its single-spike
    form; everything else stays. The model given is not touched. Its ``state_dict`` keys are
    kept: checkpoints load with ``strict=True`` both ways.

    Example::

        net = nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snn.Leaky(0.9, init_hidden=True),
            nn.Flatten(), nn.Linear(1728, 10), snn.Leaky(0.9, init_hidden=True, output=True),
        )
        fast = convert(net)
        spk_rec, mem_rec = fast(data)            # (time, batch, ...), no loop, no utils.reset

        fast = convert(net, num_steps=25)
        spk_rec, mem_rec = fast(images)          # (batch, ...): the same image at every step;
                                                 # conv and pool before the first neuron run once

        fast = convert(net, spike_format="times")
        spikes, mem = fast(data)                 # SpikeTimes, and a membrane made when it is used

    With ``spike_format="times"`` every :class:`snntorch.Leaky` passes on
    :class:`snn_single_spike.SpikeTimes`, and the linear layers behind it are computed from them;
    ``nn.Flatten``, reshapes that leave the first dimension alone, ``nn.Identity``, Dropout in
    eval mode and average pooling before a linear layer keep them. Everything else (convolutions,
    normalisation, max pooling, additions, neurons other than Leaky) is given the dense tensor that
    they stand for, with the same result; the logger ``snn_single_spike`` tells which. The model
    then returns, where it returned tensors:

    - spikes of a Leaky: :class:`snn_single_spike.SpikeTimes` of shape `(time, batch, ...)`;
    - the membrane of a Leaky behind a linear layer from spike times: an object of that shape, made
      dense when it is first used in a torch function, or by its ``dense()``; of one behind
      anything else: a tensor;
    - the current of a last ``nn.Linear``: what :class:`snn_single_spike.LeakyReadout` and
      :class:`snn_single_spike.SingleSpikeLeaky` take as it is, ``dense()`` makes it a tensor;
    - everything else: tensors. Compiled and exported models return tensors only.

    BatchNorm takes its statistics over time and batch when training, and MaxPool after a
    neuron can pass more than one spike: both are warned of.

    :param model: model whose ``forward`` computes one time step
    :type model: torch.nn.Module

    :param num_steps: time steps for an input `(batch, ...)` that is the same at every step.
        Defaults to None: inputs are `(time, batch, ...)`
    :type num_steps: int, optional

    :param share_parameters: the new model holds the parameters and buffers of the old one,
        rather than copies. Defaults to False
    :type share_parameters: bool, optional

    :param gradient: gradient rule of the neurons, see
        :func:`snn_single_spike.functional.single_spike_leaky`. Defaults to `"masked"`
    :type gradient: str, optional

    :param backend: see :mod:`snn_single_spike.backends`. Defaults to `"auto"`
    :type backend: str, optional

    :param currency: what spikes are inside the model and on leaving it: `"dense"` tensors, or
        `"times"`. Either takes dense tensors, :class:`snn_single_spike.SpikeTimes` and
        :class:`snn_single_spike.SpikeEvents`. Defaults to `"dense"`
    :type currency: str, optional

    :return: model whose tensors in and out are `(time, batch, ...)`
    :rtype: torch.nn.Module

    :raises ConversionError: a layer that cannot run over the whole sequence, or a loop over
        time inside ``forward``; the message names the layer, the reason and the edit
    :raises ValueError: ``num_steps`` is not positive, or an unknown option
    :raises TypeError: ``model`` is not a module
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if num_steps is not None and (not isinstance(num_steps, int) or num_steps < 1):
        raise ValueError(f"num_steps={num_steps!r} must be a positive integer or None")
    if isinstance(model, _Converted):
        raise ConversionError("the model is converted already: revert() it first")
    if isinstance(model, SpikingNeuron):
        raise ConversionError(
            f"the model is a single neuron ({type(model).__name__}), and convert() takes networks: "
            "make a single-spike neuron with its arguments (of snntorch.Leaky a SingleSpikeLeaky)"
        )
    check_options("Leaky", gradient, backend, {})
    check_choice("spike_format", spike_format, SPIKE_FORMATS)
    _refuse_what_cannot_fold(model)
    _warn_of_what_differs(model)
    new: Any = _copy(model, share_parameters)
    time = _Time()
    neurons: list[_Folded] = []

    for path, neuron in new.named_modules():
        kind = _kind(neuron)
        if kind:
            made_as = type(neuron)
            neuron.__class__ = _KINDS[kind]
            neuron._init_single_spike(gradient, backend)
            if isinstance(neuron, _FoldedLeaky):
                neuron.spike_format = spike_format
            neuron.time, neuron.path, neuron.original = time, path, made_as
            _forget_states(neuron)
            neurons.append(neuron)
    if not neurons:
        raise ConversionError("the model has no snntorch neuron: there is nothing to convert")
    if spike_format == "times" and not any(isinstance(neuron, _FoldedLeaky) for neuron in neurons):
        found = ", ".join(sorted({neuron.original.__name__ for neuron in neurons}))
        raise ConversionError(
            f"spike_format='times' needs a snntorch.Leaky in the model, which has {found} only: these "
            "make dense spikes, so convert with spike_format='dense'"
        )
    original: Any = type(new)
    new.__class__ = _converted_class(original)
    new._single_spike = _Conversion(time, num_steps)
    return new


def revert(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """
    The sequential snnTorch model that :func:`convert` was given, with the weights as they are
    now. The converted model is not touched. (snnTorch's own Lapicque does not train a beta.)

    :param model: what :func:`convert` returned
    :type model: torch.nn.Module
    :param share_parameters: as in :func:`convert`
    :type share_parameters: bool, optional
    :return: model that computes one time step a call, with snnTorch neurons
    :rtype: torch.nn.Module
    :raises TypeError: ``model`` was not made by :func:`convert`
    """
    if not isinstance(model, _Converted):
        raise TypeError(f"{type(model).__name__} was not made by convert(): nothing to revert")
    new: Any = _copy(model, share_parameters)
    new.__class__ = _original_class(new)
    del new._single_spike
    for neuron in [module for module in new.modules() if isinstance(module, _Folded)]:
        neuron._sync_with_snntorch()
        neuron.__class__ = neuron.original
        for name in ("gradient", "backend", "spike_format", "time", "path", "original"):
            vars(neuron).pop(name, None)
        _forget_states(neuron)
    return new


def _forget_states(neuron: Any) -> None:
    for name in STATES:
        if name in neuron._buffers:
            setattr(neuron, name, torch.zeros(0, device=getattr(neuron, name).device))


def _copy(model: nn.Module, share: bool) -> nn.Module:
    """A deep copy, which snnTorch's neurons refuse after a forward, with or without tensors."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                if name in STATES:  # of an earlier forward, with its graph
                    memo[id(value)] = value.new_zeros(0)
                    continue
                memo[id(value)] = value.detach().clone()
                if name not in module._buffers:
                    warnings.warn(
                        f"{name!r} of {type(module).__name__} was computed, in an earlier forward "
                        "or from parameters: the converted model has its value, not its gradient. "
                        "Compute it in forward",
                        stacklevel=4,
                    )
    if share:
        memo.update((id(tensor), tensor) for tensor in (*model.parameters(), *model.buffers()))
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:  # tensors in lists and the like
        raise ConversionError(
            f"the model cannot be copied: {error}. Delete the tensors that it keeps of an earlier "
            "forward, or keep them detached"
        ) from error


def _refuse_what_cannot_fold(model: nn.Module) -> None:
    for path, module in model.named_modules():
        name = type(module).__name__
        _refuse_hidden_neurons(path, module)
        if isinstance(module, snn.LeakyParallel):
            raise ConversionError(
                f"neuron {path!r} ({name}) cannot be converted: it has weights between its "
                "neurons, over time. Replace it by nn.Linear and snntorch.Leaky"
            )
        if _is_batch_norm_through_time(module):
            raise ConversionError(
                f"layer {path!r} cannot be converted: it is a BatchNorm for every time step "
                "(BatchNormTT), and all steps run at once. Use one BatchNorm for all of them"
            )
        if isinstance(module, _RECURRENT):
            raise ConversionError(
                f"layer {path!r} ({name}) cannot be converted: it is recurrent, so its steps "
                "cannot be computed at once. Replace it by a feed-forward layer, or keep the loop"
            )
        if isinstance(module, SingleSpikeNeuron):
            raise ConversionError(
                f"neuron {path!r} is a {name} already: the model takes whole sequences"
            )
        if isinstance(module, LeakyReadout):
            raise ConversionError(
                f"layer {path!r} is a LeakyReadout, which takes whole sequences, and the model is "
                "to compute one time step: let the model end with the linear layer before it, and "
                "give it what the converted model returns, readout(fast(data))"
            )
        if not isinstance(module, SpikingNeuron):
            if type(module).forward is not nn.Sequential.forward:
                _refuse_loops(path, module)
        elif _kind(module):
            _refuse_options(path, module)
        else:
            nothing = ("it has no single-spike form here", "Leaky")
            reason, nearest = _NOT_CONVERTIBLE.get(name, nothing)
            base = _base(module)
            if base:
                custom_parts = ", ".join(_own_parts(module, base))
                reason, nearest = (
                    f"it has its own {custom_parts} in the place of snnTorch's",
                    base.__name__,
                )
            raise ConversionError(
                f"neuron {path!r} ({name}) cannot be converted: {reason}. Replace it by "
                f"snntorch.{nearest}, or keep the loop"
            )


def _refuse_hidden_neurons(path: str, module: nn.Module) -> None:
    for name, value in vars(module).items():
        held = list(value.values()) if isinstance(value, dict) else value
        if name.startswith("_") or not isinstance(held, (list, tuple)):
            continue
        if any(isinstance(x, SpikingNeuron) for x in held):
            raise ConversionError(
                f"{f'{path}.{name}' if path else name!r} is a plain {type(value).__name__} of "
                "neurons, which torch does not see: make it an nn.ModuleList or nn.ModuleDict"
            )


def _is_batch_norm_through_time(module: nn.Module) -> bool:
    """snnTorch's BatchNormTT1d and 2d make a list of BatchNorms without bias."""
    return (
        isinstance(module, nn.ModuleList)
        and len(module) > 1
        and all(isinstance(layer, _BATCH_NORM) and layer.bias is None for layer in module)
        and len({layer.num_features for layer in module}) == 1
    )


def _refuse_new_neurons(model: Any) -> None:
    for path, module in model.named_modules():
        if isinstance(module, SpikingNeuron) and not isinstance(module, _Folded):
            raise ConversionError(
                f"neuron {path!r} ({type(module).__name__}) was put into the model after it was "
                "converted: revert() the model, change it, and convert() it again"
            )


def _refuse_options(path: str, neuron: Any) -> None:
    for option, only, reason in NEEDS_THE_LOOP:
        if getattr(neuron, option, only) is not only:
            raise ConversionError(
                f"neuron {path!r} cannot be converted: {option}={getattr(neuron, option)!r}, and "
                f"{reason}. Make it with {option}={only}"
            )


def _refuse_loops(path: str, module: nn.Module) -> None:
    """A loop in ``forward`` that calls neurons of this module is a loop over time."""
    neurons = {
        name for name, child in module.named_modules() if isinstance(child, SpikingNeuron) and name
    }
    if not neurons:
        return
    for called in _called_in_loops(type(module), type(module).forward):
        hit = next((n for n in neurons if n == called or n.startswith(called + ".")), None)
        if hit:
            raise ConversionError(_loop_message(f"{path}.{hit}" if path else hit))


def _called_in_loops(owner: type, function: Callable[..., Any]) -> Iterator[str]:
    """Attributes of ``self`` that are called inside a loop, as dotted paths."""
    for method in (function, *_methods(owner, _source(function), set())):
        for node in ast.walk(_source(method)):
            for repeated in _repeated(node):
                yield from _called(repeated)
                for inner in _methods(owner, repeated, set()):
                    yield from _called(_source(inner))


def _repeated(node: ast.AST) -> list[ast.AST]:
    """What a loop does again and again; not what it is over, which is computed once."""
    if isinstance(node, ast.For):
        return [*node.body]
    if isinstance(node, ast.While):
        return [node.test, *node.body]
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        conditions = [test for generator in node.generators for test in generator.ifs]
        return [*made, *conditions, *(generator.iter for generator in node.generators[1:])]
    return []


def _methods(owner: type, tree: ast.AST, seen: set[str]) -> Iterator[Callable[..., Any]]:
    """Methods of a class that a piece of its source calls, and those that they call."""
    for name in _called(tree):
        method = getattr(owner, name, None)
        theirs = getattr(method, "__module__", "").partition(".")[0] in ("torch", "snntorch")
        if inspect.isfunction(method) and name not in seen and not theirs:
            seen.add(name)
            yield method
            yield from _methods(owner, _source(method), seen)


def _called(tree: ast.AST) -> Iterator[str]:
    """Attributes of ``self`` that are called in a piece of source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts, target = [], node.func
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value  # type: ignore[assignment]
            if isinstance(target, ast.Name) and target.id == "self":
                yield ".".join(reversed(parts))


def _source(function: Callable[..., Any]) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])  # as in a notebook's eval: the neurons count their calls


def _loop_message(path: str) -> str:
    return (
        f"neuron {path!r} is called more than once in a forward: in a loop over time, or as the "
        "one neuron of several layers (make one for each). A converted model runs all steps at "
        "once: take the loop out of forward, so that it computes one step and returns that step's "
        "spikes and membrane (no stacking), then convert; for an input that is the same at every "
        "step, convert with num_steps="
    )


def _warn_of_what_differs(model: nn.Module) -> None:
    previous: nn.Module | None = None
    for path, module in model.named_modules():
        if isinstance(module, _BATCH_NORM):
            warnings.warn(
                f"{path!r}: when training, BatchNorm takes its statistics over all time steps "
                "together, not over each; in eval mode nothing differs",
                stacklevel=3,
            )
        if isinstance(module, _MAX_POOL) and isinstance(previous, SpikingNeuron):
            warnings.warn(
                f"{path!r}: MaxPool after a neuron lets through every first spike of its window, "
                "so a pooled unit can spike more than once",
                stacklevel=3,
            )
        if not path.endswith(".recurrent"):  # inside an RLeaky
            previous = module
