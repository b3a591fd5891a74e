"""Rejects layers that :func:`convert` does not support, and warns about differences.

Every error names the layer, the reason and the edit.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import snntorch as snn
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ..modules._base import NEEDS_THE_LOOP, REFRACTORY, SingleSpikeNeuron
from ..modules.readout import LeakyReadout
from .source import called_in_loops

__all__ = [
    "BATCH_NORM",
    "CONVERTIBLE",
    "DROPOUT",
    "MAX_POOL",
    "ConversionError",
    "base_neuron",
    "convertible_kind",
    "overridden_parts",
    "reject_unsupported_layers",
    "reused_neuron",
    "shape_advice",
    "warn_about_differences",
]

CONVERTIBLE: tuple[type, ...] = (snn.Leaky, snn.Synaptic, snn.Alpha, snn.Lapicque, snn.RLeaky)
"""snnTorch neurons that have a single-spike form."""

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUT = nn.modules.dropout._DropoutNd
MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

# Why a neuron has no single-spike form, and the neuron that comes nearest.
_NOT_CONVERTIBLE: dict[str, tuple[str, str]] = {
    "SLSTM": ("its gates are non-linear in its own past", "Leaky"),
    "SConv2dLSTM": ("its gates are non-linear in its own past", "Leaky"),
    "RSynaptic": ("its spikes are fed back into it", "Synaptic"),
}


class ConversionError(ValueError):
    """A model cannot run over a whole sequence. The message names layer, reason and edit."""


def convertible_kind(neuron: nn.Module) -> type | None:
    """The snnTorch class that defines the dynamics of ``neuron``; None if it has other dynamics."""
    kind = base_neuron(neuron)
    return None if kind is None or overridden_parts(neuron, kind) else kind


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

    ``looped`` are the paths of modules with a loop over time that can run all its steps at once.
    """
    for path, module in model.named_modules():
        _reject_compiled(path, module)
        _reject_hidden_neurons(path, module)
        _reject_layers_over_time(path, module)
        _reject_whole_sequence_layers(path, module)
        if isinstance(module, SpikingNeuron):
            _reject_neuron(path, module)
            _reject_more_spikes(path, module, refractory)
        elif path not in looped:
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


def _reject_layers_over_time(path: str, module: nn.Module) -> None:
    """Layers with separate weights or statistics for every time step, or with recurrence."""
    name = type(module).__name__
    if isinstance(module, snn.LeakyParallel):
        raise ConversionError(
            f"neuron {path!r} ({name}) cannot be converted: it has weights between its "
            "neurons, over time. Replace it by nn.Linear and snntorch.Leaky"
        )
    if _is_batch_norm_through_time(module):
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


def _reject_whole_sequence_layers(path: str, module: nn.Module) -> None:
    if isinstance(module, SingleSpikeNeuron):
        raise ConversionError(
            f"neuron {path!r} is already a {type(module).__name__}, but convert() expects neurons "
            "of snnTorch: use the model without convert(), it takes whole sequences"
        )
    if isinstance(module, LeakyReadout):
        raise ConversionError(
            f"layer {path!r} is a LeakyReadout, which takes whole sequences, but convert() expects "
            "a model that computes one time step: end the model with the linear layer before the "
            "readout, and call readout(fast(data)), where fast is the converted model"
        )


def _reject_neuron(path: str, neuron: Any) -> None:
    if convertible_kind(neuron):
        _reject_options(path, neuron)
        return
    name, base = type(neuron).__name__, base_neuron(neuron)
    if base:
        overridden = ", ".join(overridden_parts(neuron, base))
        reason, nearest = f"it overrides {overridden} of snntorch.{base.__name__}", base.__name__
    else:
        no_form = ("it has no single-spike form here", "Leaky")
        reason, nearest = _NOT_CONVERTIBLE.get(name, no_form)
    raise ConversionError(
        f"neuron {path!r} ({name}) cannot be converted: {reason}. Replace it by "
        f"snntorch.{nearest}, or keep the loop"
    )


def _reject_more_spikes(path: str, neuron: Any, refractory: int | None) -> None:
    kind: Any = convertible_kind(neuron)
    if refractory is not None and kind.__name__ not in REFRACTORY:
        raise ConversionError(
            f"neuron {path!r} ({kind.__name__}) cannot be converted with refractory={refractory}: "
            f"it spikes at most once here. Convert without refractory=, replace it by "
            "snntorch.Leaky, or keep the loop"
        )


def _reject_options(path: str, neuron: Any) -> None:
    for option, only, reason in NEEDS_THE_LOOP:
        if getattr(neuron, option, only) is not only:
            raise ConversionError(
                f"neuron {path!r} cannot be converted: {option}={getattr(neuron, option)!r}, and "
                f"{reason}. Make it with {option}={only}"
            )


def _reject_loops(path: str, module: nn.Module) -> None:
    """A loop in ``forward`` that calls neurons of this module is a loop over time."""
    neurons = {
        name for name, child in module.named_modules() if isinstance(child, SpikingNeuron) and name
    }
    forward = getattr(type(module), "forward", None)  # None in a module of torch.jit.script
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


def shape_advice(num_steps: int, batch: int, static_input: bool) -> str:
    """Likely causes of a wrong shape inside a converted model, and their fixes."""
    called = (
        "the model was called step by step, or with an input that is the same at every step "
        "(convert it with num_steps=), or with the batch first (convert it with time_dim=1)"
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


def warn_about_differences(model: nn.Module, once: bool = True) -> None:
    """Warn about layers that compute something else over a whole sequence than step by step.

    ``once`` says that every neuron spikes at most once in the converted model.
    The warnings point at the caller of the function that calls this one.
    """
    previous: nn.Module | None = None
    for path, module in model.named_modules():
        if isinstance(module, BATCH_NORM):
            warnings.warn(
                f"{path!r}: when training, BatchNorm takes its statistics over all time steps "
                "together, not over each step; in eval mode nothing differs",
                stacklevel=3,
            )
        if once and isinstance(module, MAX_POOL) and isinstance(previous, SpikingNeuron):
            warnings.warn(
                f"{path!r}: MaxPool after a neuron passes on every first spike of its window, "
                "so a pooled unit can spike more than once",
                stacklevel=3,
            )
        if not path.endswith(".recurrent"):  # inside an RLeaky
            previous = module
