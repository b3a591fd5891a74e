"""State that a model keeps from step to step, which a converted model cannot carry.

A loop over time calls ``forward`` at every step, and an attribute that ``forward`` writes is there
at the next step. A converted model runs all steps in one call. :func:`reject_state` finds such
attributes in the source; :mod:`.snapshot` finds the others when they change. Membranes, which go
back to their neuron only, are allowed: a mark on the tensor says whose state it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ...modules._base import STATES
from ...spikes.lazy import LazyTensor
from ..source.dataflow import flow_of_module
from ..source.repeated import states_of_loops
from .layers import ConversionError, is_delay

__all__ = [
    "INTERNAL",
    "are_states",
    "computed_by_torch",
    "detached",
    "is_own_state",
    "is_statistic",
    "mark_own_state",
    "membranes",
    "name_of_layer",
    "reject_state",
    "state_error",
    "states_read",
]

INTERNAL = {*vars(nn.Module()), "_single_spike", "_is_full_backward_hook", "_is_replica"}
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
_MARK = "_single_spike_state_of"


def states_read(module: nn.Module) -> Iterator[tuple[Any, str]]:
    """Neurons, and the states that the code of a module reads from them, ``self.lif.mem``."""
    flow = flow_of_module(module)
    for path in {**flow.neuron_states, **dict.fromkeys(flow.carried)}:
        found = flow.tensor_of_layer(path)
        if found and isinstance(found[0], SpikingNeuron) and found[1] in STATES:
            yield found
    for name in states_of_loops(type(module), STATES):  # mem.append(layer.mem) for each layer
        for neuron in module.modules():
            if isinstance(neuron, SpikingNeuron) and hasattr(neuron, name):
                yield neuron, name


def reject_state(model: nn.Module, looped: Collection[str]) -> None:
    """Raise ConversionError for an attribute that a forward reads before it writes it.

    ``looped`` are the paths of the parts with a loop over time, where a neuron's state is known.
    """
    for path, module in model.named_modules():
        if is_delay(module):
            continue  # its buffer of the last steps is replaced
        flow = flow_of_module(module)
        for name, line in flow.neuron_states.items():
            if path in looped:
                continue
            raise ConversionError(
                f"{name_of_layer(path, module)} reads {'.'.join(('self', *name))!r} ({line}). In a "
                "converted model a neuron holds the state of the last step, not of this one. Use "
                "the membrane that the neuron returns: make it with output=True, or without "
                "init_hidden"
            )
        for name, line in flow.states():
            if is_statistic(module, name[0]):  # read in a forward of its own, as torch reads it
                continue
            named = ".".join(("self", *(part for part in name if part[0] != "[")))
            raise state_error(name_of_layer(path, module), named, f" ({line})", path in looped)


def state_error(where: str, name: str, line: str = "", looped: bool = False) -> ConversionError:
    """The error for a state; a forward that is ``looped`` keeps it from one call to the next."""
    if looped:
        return ConversionError(
            f"{where} keeps the state {name!r} from one call to the next{line}: its forward reads "
            "it before it writes it. A converted model keeps no state between calls, and its first "
            "calls run forward more than once. Set the state in forward, before it is read. Or "
            "give forward its value as an argument, return the new value, and store it outside of "
            "the model"
        )
    return ConversionError(
        f"{where} keeps the state {name!r} from one step to the next{line}: its forward reads it "
        "before it writes it. A converted model runs all steps at once, so the state would be "
        "missing. Replace it by a neuron (the membrane of a snntorch.Leaky with "
        "reset_mechanism='none' is a leaky trace), or compute it outside of the model, for the "
        "whole sequence. If it does not change from step to step, compute it in __init__"
    )


def mark_own_state(state: Any, path: str) -> None:
    """Mark a state that a neuron returns, so that it is recognized in the next call."""
    if not torch.compiler.is_compiling() and isinstance(state, (Tensor, LazyTensor)):
        setattr(state, _MARK, path)


def is_own_state(state: Any, path: str) -> bool:
    """Whether a neuron has returned this tensor in an earlier call."""
    return getattr(state, _MARK, None) == path


def detached(state: Tensor) -> Tensor:
    """A copy without a graph, with the mark of its neuron."""
    new = state.detach().clone()
    if hasattr(state, _MARK):
        setattr(new, _MARK, getattr(state, _MARK))
    return new


def membranes(module: nn.Module) -> set[str]:
    """Attributes that a forward passes to a layer, and writes for the next call."""
    flow = flow_of_module(module)
    early = {path[0] for path in flow.early}
    passed = {path[0] for path in flow.passed} & {path[0] for path in flow.writes}
    return passed - early


def computed_by_torch(module: nn.Module) -> set[str]:
    """Attributes that torch computes before every forward, as for pruning and weight_norm."""
    hooks = module._forward_pre_hooks.values()
    names = (
        getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        for hook in hooks
        if type(hook).__module__.startswith("torch.")
    )
    return {name for name in names if isinstance(name, str)}


def are_states(value: Any) -> bool:
    """Whether all tensors of a value are states that neurons have returned."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(map(are_states, value))
    return hasattr(value, _MARK)


def name_of_layer(path: str, module: nn.Module) -> str:
    name = next(c.__name__ for c in type(module).__mro__ if c.__name__[:9] != "Converted")
    return f"layer {path!r} ({name})" if path else f"the model ({name})"


def is_statistic(module: nn.Module, name: str) -> bool:
    """Whether torch updates a buffer, in a subclass of its BatchNorm."""
    return name in _STATISTICS and isinstance(module, nn.modules.batchnorm._NormBase)
