"""Converts a model as a whole: all its neurons, and all its loops over time."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from .copies import copy_model
from .folded.delay import fold_delay
from .folded.immediate import resets_at_spike
from .folded.modules import FOLDED, FoldedLeaky, make_converted, use_dense_inputs
from .folded.pooling import pool_earliest
from .loops.find import find_loops
from .refusals.layers import (
    ConversionError,
    convertible_kind,
    is_delay,
    reject_unsupported_layers,
    warn_about_differences,
)
from .refusals.state import reject_state, states_read
from .time_axis import Time

__all__ = ["Options", "convert_whole"]


class Options(NamedTuple):
    """The options of :func:`~snn_single_spike.convert`."""

    num_steps: int | None
    share_parameters: bool
    gradient: str
    backend: str
    spike_format: str
    time_dim: int
    check: bool | None
    refractory: int | None = None
    first_spike_pooling: bool = False


def convert_whole(model: nn.Module, options: Options) -> nn.Module:
    """A converted copy of a model.

    :raises ConversionError: a layer, or a loop over time, that cannot run all steps at once
    """
    found = {path: find_loops(part) for path, part in model.named_modules()}
    loops = {path: loops for path, loops in found.items() if loops.rewritten}
    reject_unsupported_layers(model, loops, options.refractory)
    for each in loops.values():
        each.reject()
    if loops and (options.num_steps is not None or options.time_dim):
        raise ConversionError(
            "the model has its own loop over time inside forward, which keeps its inputs and its "
            "number of steps: convert it without num_steps= and time_dim="
        )
    reject_state(model, loops)
    warn_about_differences(model, loops, options.refractory is None, options.first_spike_pooling)
    new, time = copy_model(model, options.share_parameters), Time()
    neurons = [
        _fold(neuron, kind, time, path, options)
        for path, neuron in new.named_modules()
        if (kind := convertible_kind(neuron))
    ]
    for path, layer in new.named_modules():
        if is_delay(layer):
            fold_delay(layer, time, path)
    _check_neurons(neurons, options)
    for path in loops:
        for neuron, name in states_read(new.get_submodule(path)):
            neuron.states_read = tuple(dict.fromkeys((*neuron.states_read, name)))
    if options.spike_format == "times":
        use_dense_inputs(new)
    if options.first_spike_pooling:
        pool_earliest(new)
    rewritten = {path: each.rewritten for path, each in loops.items()}
    auto = options.spike_format == "auto"
    make_converted(new, time, options.num_steps, options.time_dim, rewritten, options.check, auto)
    return new


def _check_neurons(neurons: list[Any], options: Options) -> None:
    if not neurons:
        raise ConversionError("the model has no snntorch neuron: there is nothing to convert")
    for neuron in neurons:
        if resets_at_spike(neuron) and options.gradient != "masked":
            raise ConversionError(
                f"neuron {neuron.path!r} has reset_delay=False, which only gradient='masked' "
                f"supports, not {options.gradient!r}: make it with reset_delay=True, which has the "
                "same first spikes"
            )
    if options.spike_format == "times" and not any(
        isinstance(neuron, FoldedLeaky) for neuron in neurons
    ):
        found = ", ".join(sorted({neuron.original.__name__ for neuron in neurons}))
        raise ConversionError(
            f"spike_format='times' needs a snntorch.Leaky in the model, which only has {found}. "
            "These neurons return dense spikes: convert with spike_format='dense'"
        )


def _fold(neuron: Any, kind: type, time: Time, path: str, options: Options) -> Any:
    """Turn a snnTorch neuron into its folded single-spike form, in place."""
    original = type(neuron)
    neuron.__class__ = FOLDED[kind]
    neuron._init_single_spike(options.gradient, options.backend, options.refractory)
    if isinstance(neuron, FoldedLeaky):
        neuron.spike_format = options.spike_format
    neuron.time, neuron.path, neuron.original = time, path, original
    return neuron
