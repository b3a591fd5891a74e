"""Copies of models, and snnTorch neurons from folded ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..modules._base import STATES
from .refusals.layers import ConversionError
from .refusals.state import computed_by_torch, detached, membranes
from .source.place import class_name, user_depth

__all__ = ["computed_tensors", "copy_model", "unfold_delay", "unfold_neuron"]


def unfold_neuron(neuron: Any) -> None:
    """Turn a folded neuron back into the snnTorch neuron it was, in place."""
    neuron._sync_with_snntorch()
    neuron._states_to_buffers()
    neuron.__class__ = neuron.original
    options = ("gradient", "backend", "refractory", "spike_format")
    for name in (
        *options,
        "_last_call",
        "_mem_of_last_call",
        "time",
        "path",
        "original",
        "states_read",
    ):
        vars(neuron).pop(name, None)


def unfold_delay(delay: Any) -> None:
    """Turn a folded delay back into the SynapticDelay of snnTorch that it was, in place."""
    delay.__class__ = type(delay)._original
    delay.step_mode = True
    del delay._time, delay._path


def copy_model(model: nn.Module, share: bool, warn: bool = True) -> nn.Module:
    """A deep copy that shares parameters and buffers if ``share``.

    Unlike copy.deepcopy, it supports a model that holds tensors of an earlier forward pass, as
    snnTorch's neurons do. ``warn`` is that of :func:`computed_tensors`.
    """
    memo = computed_tensors(model, warn)
    if share:
        memo.update((id(tensor), tensor) for tensor in (*model.parameters(), *model.buffers()))
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:  # tensors in lists and other containers
        raise ConversionError(
            f"the model cannot be copied: {error}. Delete the tensors that it keeps of an earlier "
            "forward, or keep them detached"
        ) from error
    except TypeError as error:  # a generator, a lock or a file has no copy
        raise ConversionError(
            f"the model cannot be copied: {error}. Keep this object outside of the model, or give "
            "its class a __deepcopy__"
        ) from error


def computed_tensors(model: nn.Module, warn: bool = True) -> dict[int, Any]:
    """Replacements, by id, for tensors with a graph: deepcopy does not support them.

    :param warn: whether to warn of values that the copy does not compute again. Otherwise tensors
        in containers are replaced, too
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        kept = membranes(module)
        for name, value in (*vars(module).items(), *module._buffers.items()):
            if not warn and isinstance(value, (list, tuple, dict)):
                for x in _with_graph(value, 4):
                    memo.setdefault(id(x), detached(x))
            if isinstance(value, Tensor) and name in kept:  # of an earlier forward pass
                memo[id(value)] = value.new_zeros(0)
                continue
            if not isinstance(value, Tensor) or value.is_leaf:
                continue
            if name in STATES:
                memo[id(value)] = value.new_zeros(0)
                continue
            memo[id(value)] = detached(value)
            if warn and name not in module._buffers and name not in computed_by_torch(module):
                warnings.warn(
                    f"{name!r} of {class_name(module)} was computed, in an earlier forward or "
                    "from parameters: the new model has its value, not its gradient. Compute it "
                    "in forward",
                    stacklevel=user_depth(),
                )
    return memo


def _with_graph(value: Any, depth: int) -> Iterator[Tensor]:
    """The tensors of a container that have a graph: records of an earlier forward pass."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif depth and isinstance(value, (list, tuple, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _with_graph(inner, depth - 1)
