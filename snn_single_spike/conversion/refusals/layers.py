"""Rejects layers that :func:`convert` does not support, and warns about differences.

Every error names the layer, the reason and the edit.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection
from typing import Any

import snntorch as snn
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ...modules._base import NEEDS_THE_LOOP, REFRACTORY, SingleSpikeNeuron
from ...modules.readout import LeakyReadout
from ..source.dataflow import tree_of
from ..source.methods import entry_of
from ..source.place import of_package, user_depth
from ..source.repeated import called_in_loops, starts_neurons

__all__ = [
    "BATCH_NORM",
    "CONVERTIBLE",
    "DROPOUT",
    "MAX_POOL",
    "ConversionError",
    "base_neuron",
    "convertible_kind",
    "is_delay",
    "overridden_parts",
    "reject_neuron",
    "reject_unsupported_layers",
    "reused_in_loop",
    "reused_neuron",
    "shape_advice",
    "warn_about_differences",
]

CONVERTIBLE: tuple[type, ...] = (snn.Leaky, snn.Synaptic, snn.Alpha, snn.Lapicque, snn.RLeaky)
"""snnTorch neurons that have a single-spike form."""

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUT = nn.modules.dropout._DropoutNd
MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_ADAPTIVE = nn.modules.pooling._AdaptiveMaxPoolNd
_PASSES = (DROPOUT, nn.Identity, nn.Flatten, nn.Unflatten)  # a spike stays a spike behind them
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

_WHOLE = "it computes whole sequences itself, without a reset"
_LINEAR = "nn.Linear and snntorch.Leaky"
# Why a neuron has no single-spike form, and what comes nearest.
_NOT_CONVERTIBLE: dict[str, tuple[str, str]] = {
    "SLSTM": ("its gates are non-linear in its own past", "snntorch.Leaky"),
    "SConv2dLSTM": ("its gates are non-linear in its own past", "snntorch.Leaky"),
    "RSynaptic": ("its spikes are fed back into it", "snntorch.Synaptic"),
    "StateLeaky": (_WHOLE, "snntorch.Leaky(beta), which computes one step"),
    "LinearLeaky": (_WHOLE, _LINEAR),
    "AssociativeLeaky": (_WHOLE, _LINEAR),
    "LeakyParallel": ("it has weights between its neurons, over time", _LINEAR),
    "DeltaLeaky": ("it fires when its membrane changes", "snntorch.Leaky"),
}
_OR_KEEP = (
    "or keep the loop: convert(net, strict=False) keeps the loops that cannot be converted, and "
    "converts the other parts"
)


class ConversionError(ValueError):
    """A model cannot run over a whole sequence. The message names layer, reason and edit."""


def convertible_kind(neuron: nn.Module) -> type | None:
    """The snnTorch class that defines the dynamics of ``neuron``; None if it has other dynamics."""
    kind = base_neuron(neuron)
    return None if kind is None or overridden_parts(neuron, kind) else kind


def is_delay(module: nn.Module) -> bool:
    """Whether a module is snnTorch's SynapticDelay, which only new versions of snnTorch have."""
    return any(
        kind.__name__ == "SynapticDelay" and kind.__module__.partition(".")[0] == "snntorch"
        for kind in type(module).__mro__
    )


def base_neuron(neuron: nn.Module) -> type | None:
    """The convertible snnTorch class that ``neuron`` derives from, if any."""
    return next((kind for kind in CONVERTIBLE if isinstance(neuron, kind)), None)


def overridden_parts(neuron: nn.Module, kind: type) -> list[str]:
    """Attributes of ``kind`` that a subclass or a parametrization of ``neuron`` overrides."""
    classes = type(neuron).__mro__
    return sorted(
        name
        for cls in classes[: classes.index(kind)]
        for name, value in vars(cls).items()
        if not name.startswith("__")
        and name != "extra_repr"
        and (hasattr(kind, name) or isinstance(value, property))
    )


def reject_unsupported_layers(
    model: nn.Module, looped: Collection[str] = (), refractory: int | None = None
) -> None:
    """Raise ConversionError for the first layer that cannot run over a whole sequence.

    ``looped`` are the paths of modules with a loop over time inside ``forward``.
    """
    for path, module in model.named_modules():
        reject_neuron(path, module)
        _reject_compiled(path, module)
        _reject_hidden_neurons(path, module)
        _reject_layers_over_time(path, module, path.rpartition(".")[0] in looped)
        _reject_whole_sequence_layers(path, module)
        if isinstance(module, SpikingNeuron):
            _reject_more_spikes(path, module, refractory)
            continue
        if path not in looped:
            _reject_loops(path, module)


def _reject_compiled(path: str, module: nn.Module) -> None:
    inside = getattr(module, "_orig_mod", None)  # of torch.compile
    if inside is not None and any(isinstance(x, SpikingNeuron) for x in inside.modules()):
        where = f"layer {path!r}" if path else "the model"
        raise ConversionError(
            f"{where} is compiled by torch.compile, with its neurons. Convert first, and compile "
            "the converted model: torch.compile(convert(net)). The module in a compiled one is "
            "compiled._orig_mod"
        )
    if not path and "forward" in vars(module):
        raise ConversionError(
            "the model has its own `forward` as an attribute of the instance, which a converted "
            "model would not call. Define forward in the class"
        )


def _reject_hidden_neurons(path: str, module: nn.Module) -> None:
    for name, value in vars(module).items():
        held = list(value.values()) if isinstance(value, dict) else value
        if name.startswith("_") or not isinstance(held, (list, tuple)):
            continue
        if any(isinstance(x, SpikingNeuron) for x in held):
            raise ConversionError(
                f"{f'{path}.{name}' if path else name!r} is a plain {type(value).__name__} of "
                "neurons, and torch finds no modules in it: make it an nn.ModuleList or "
                "nn.ModuleDict"
            )


def _reject_layers_over_time(path: str, module: nn.Module, in_loop: bool) -> None:
    """Layers with separate weights or statistics for every time step, or with recurrence."""
    name = type(module).__name__
    if _is_batch_norm_through_time(module) and not in_loop:
        raise ConversionError(
            f"layer {path!r} cannot be converted: it has one BatchNorm for every time step "
            "(BatchNormTT), and all steps run at once. Use one BatchNorm for all steps"
        )
    if isinstance(module, _RECURRENT):
        raise ConversionError(
            f"layer {path!r} ({name}) cannot be converted: it is recurrent, so its steps "
            "cannot be computed at once. Replace it by a feed-forward layer, or keep the loop"
        )


def _is_batch_norm_through_time(module: nn.Module) -> bool:
    """snnTorch's BatchNormTT1d and BatchNormTT2d return a list of BatchNorms without bias."""
    return (
        isinstance(module, nn.ModuleList)
        and len(module) > 1
        and all(isinstance(layer, BATCH_NORM) and layer.bias is None for layer in module)
        and len({layer.num_features for layer in module}) == 1
    )


def _reject_whole_sequence_layers(path: str, module: Any) -> None:
    if is_delay(module) and not module.step_mode:
        raise ConversionError(
            f"layer {path!r} (SynapticDelay) has step_mode=False, and takes whole sequences, but "
            "convert() expects a model that computes one time step: make it with step_mode=True, "
            "which has the same delay"
        )
    if isinstance(module, LeakyReadout):
        raise ConversionError(
            f"layer {path!r} is a LeakyReadout, which takes whole sequences, but convert() expects "
            "a model that computes one time step: end the model with the linear layer before the "
            "readout, and call readout(fast(data)), where fast is the converted model"
        )


def reject_neuron(path: str, neuron: Any) -> None:
    """Raise ConversionError for a neuron without a single-spike form."""
    name, base = type(neuron).__name__, base_neuron(neuron)
    parallel = isinstance(neuron, snn.LeakyParallel)
    if not isinstance(neuron, (SpikingNeuron, snn.LeakyParallel)):
        return
    if isinstance(neuron, SingleSpikeNeuron):
        raise ConversionError(
            f"neuron {path!r} is already a {name}, but convert() expects neurons of snnTorch: use "
            "the model without convert(), it takes whole sequences"
        )
    if not parallel and convertible_kind(neuron):
        _reject_options(path, neuron)
        return
    if base and name not in _NOT_CONVERTIBLE:
        overridden = ", ".join(overridden_parts(neuron, base))
        reason = f"it overrides {overridden} of snntorch.{base.__name__}"
        nearest = f"snntorch.{base.__name__}"
    else:
        no_form = ("it has no single-spike form here", "snntorch.Leaky")
        known = (c.__name__ for c in type(neuron).__mro__ if c.__name__ in _NOT_CONVERTIBLE)
        reason, nearest = _NOT_CONVERTIBLE.get(next(known, name), no_form)
    raise ConversionError(
        f"neuron {path!r} ({name}) cannot be converted: {reason}. Replace it by {nearest}, "
        f"{_OR_KEEP}"
    )


def _reject_more_spikes(path: str, neuron: Any, refractory: int | None) -> None:
    if refractory is None:
        return
    kind: Any = convertible_kind(neuron)
    given = f"neuron {path!r} ({kind.__name__}) cannot be converted with refractory={refractory}: "
    if kind.__name__ not in REFRACTORY:
        raise ConversionError(
            f"{given}it spikes at most once here. Convert without refractory=, replace it by "
            "snntorch.Leaky, or keep the loop"
        )
    if not getattr(neuron, "reset_delay", True) and neuron.reset_mechanism != "none":
        raise ConversionError(
            f"{given}it has reset_delay=False, and spikes at most once here. Convert without "
            "refractory=, or make it with reset_delay=True"
        )


def _reject_options(path: str, neuron: Any) -> None:
    for option, only, reason in NEEDS_THE_LOOP:
        if getattr(neuron, option, only) is only:
            continue
        if option == "reset_delay":
            if isinstance(neuron, snn.Leaky) or neuron.reset_mechanism == "none":
                continue
            reason = "here only a Leaky resets at the step of its spike"
        edit = f"Make it with {option}={only}"
        if option == "reset_delay":
            edit += ": the first spikes and the membranes before them are the same"
        if option == "all_to_all":
            edit = (
                "Make it with all_to_all=False and a vector V, and without linear_features, "
                "conv2d_channels and kernel_size, which snnTorch does not accept then: every "
                "neuron drives itself only, and the key 'V' replaces 'recurrent.weight' in "
                "checkpoints"
            )
        raise ConversionError(
            f"neuron {path!r} cannot be converted: {option}={getattr(neuron, option)!r}, and "
            f"{reason}. {edit}, {_OR_KEEP}"
        )


def _reject_loops(path: str, module: nn.Module) -> None:
    """A loop in ``forward`` that calls neurons of this module is a loop over time."""
    neurons = {
        name for name, child in module.named_modules() if isinstance(child, SpikingNeuron) and name
    }
    # None in a module of torch.jit.script
    forward = getattr(type(module), entry_of(type(module)), None)
    if not neurons or forward in (None, nn.Sequential.forward):
        return
    for called in called_in_loops(type(module), forward):
        hit = next((n for n in neurons if n == called or n.startswith(called + ".")), None)
        if hit:
            raise reused_neuron(f"{path}.{hit}" if path else hit)


def reused_neuron(path: str) -> ConversionError:
    """The error for a neuron that one forward pass calls more than once."""
    return ConversionError(
        f"neuron {path!r} is called more than once in one forward pass. If forward has a loop over "
        "time, take the loop out of forward: forward must compute one step, and return the spikes "
        "and the membrane of this step (no stacking). For an input that is the same at every step, "
        "convert with num_steps=. If several layers share the neuron, make one for each layer"
    )


def reused_in_loop(path: str) -> ConversionError:
    """The error for a neuron that a loop over time inside forward calls again."""
    return ConversionError(
        f"neuron {path!r} is called more than once: twice in a loop over time, or in two loops of "
        "one forward pass. Make a neuron for each place. The layers before it may stay shared. "
        "(Two calls of one step convert if both are given a membrane of their own, and their "
        "shapes differ. Two loops in series convert if the second one starts from zeros that it is "
        "given: mem = self.lif.init_leaky())"
    )


def shape_advice(num_steps: int, batch: int, static_input: bool) -> str:
    """Likely causes of a wrong shape inside a converted model, and their fixes."""
    called = (
        "the model was called step by step, or with an input that is the same at every step "
        "(convert it with num_steps=), or with the batch first (convert it with time_dim=1), or "
        "with one sample without a batch dimension (pass x.unsqueeze(1))"
    )
    mixed = ""
    if static_input:
        called = f"the model was converted with num_steps={num_steps} and called with a sequence"
        mixed = (
            "; forward adds or joins a tensor from before the first neuron, which is computed "
            "once, to a tensor from behind it (convert without num_steps=, and pass "
            "x.expand(num_steps, *x.shape))"
        )
    return (
        f"The input was read as time={num_steps}, batch={batch}, and a converted model folds time "
        f"into the batch. Possible causes: {called}; the features of the input do not fit the "
        "first layer (flatten them); forward has a loop over time, swaps the first two dimensions, "
        "sums over the batch, or reshapes with a fixed batch size (write x.flatten(1), or "
        f"x.view(x.size(0), -1) with the size of the same tensor){mixed}"
    )


def warn_about_differences(
    model: nn.Module,
    looped: Collection[str] = (),
    once: bool = True,
    first_spike_pooling: bool = False,
) -> None:
    """Warn about layers that compute something else over a whole sequence than step by step.

    :param looped: paths of modules with a loop over time inside ``forward``, which take the
        statistics of BatchNorm at every step
    :param once: whether every neuron spikes at most once in the converted model
    :param first_spike_pooling: whether MaxPool2d lets one spike of a window through
    """
    previous: nn.Module | None = None
    fix = (
        ". With spike_format='times' and first_spike_pooling=True the earliest spike of each "
        "window passes alone"
    )
    for path, module in model.named_modules():
        in_loop = any(not p or path.startswith(f"{p}.") for p in looped)
        if isinstance(module, BATCH_NORM) and not in_loop:
            warnings.warn(
                f"{path!r}: when training, BatchNorm takes its statistics over all time steps "
                "together, not over each step; in eval mode nothing differs",
                stacklevel=user_depth(),
            )
        pools = isinstance(module, (*MAX_POOL, _ADAPTIVE)) and isinstance(previous, SpikingNeuron)
        if once and pools and not (first_spike_pooling and type(module) is nn.MaxPool2d):
            name = "AdaptiveMaxPool" if isinstance(module, _ADAPTIVE) else "MaxPool"
            warnings.warn(
                f"{path!r}: {name} after a neuron passes on every first "
                "spike of its window, so a pooled unit can spike more than once"
                f"{fix if type(module) is nn.MaxPool2d else ''}",
                stacklevel=user_depth(),
            )
        if not path.endswith(".recurrent") and not isinstance(module, _PASSES):  # of an RLeaky
            previous = module
        if not looped and (call := _starts_neurons(module)):
            name = type(module).__name__
            warnings.warn(
                f"the forward of {name} computes one step, and starts its neurons anew in every "
                f"call: {call}. In a loop over time around it they keep nothing from step to step. "
                "The converted model starts them once, and carries their states over the whole "
                "sequence: leave the call out, and the model does the same without this warning",
                stacklevel=user_depth(),
            )
        if _hides_a_loop(module):
            warnings.warn(
                f"the source of {type(module).__name__}.forward is not available, so a loop over "
                "time in it is not found, and forward is read as one step. If forward has the "
                "loop, define the class in a file or a notebook",
                stacklevel=user_depth(),
            )


def _starts_neurons(module: nn.Module) -> str:
    """The call by which the user's forward starts the neurons of a module; "" without one."""
    kind: Any = type(module)
    own = not of_package(getattr(getattr(kind, "forward", None), "__module__", "") or "torch")
    neurons = own and any(isinstance(part, SpikingNeuron) for part in module.modules())
    return starts_neurons(kind) if neurons and not isinstance(module, SpikingNeuron) else ""


def _hides_a_loop(module: nn.Module) -> bool:
    """Whether a class with neurons was defined where Python keeps no source, as by exec()."""
    forward = inspect.unwrap(getattr(type(module), entry_of(type(module)), nn.Module.forward))
    if of_package(getattr(forward, "__module__", "") or "") or not inspect.isfunction(forward):
        return False
    neurons = any(isinstance(part, SpikingNeuron) for part in module.modules())
    return neurons and tree_of(forward) is None
