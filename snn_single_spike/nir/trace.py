"""Finds the chain of layers that a model calls."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..modules.linear import SingleSpikeLinear
from ..spikes.lazy import versions
from .layers import LAYERS, exportable_layer, exportable_linear, exportable_neuron, reject

__all__ = ["Trace"]

# Names of the input argument of neurons, of torch's layers, and of this package's layers.
_INPUTS = ("input_", "input", "spikes")


class Trace:
    """
    Layers that a model calls in one forward pass, in order, ready for snnTorch's exporter.

    snnTorch's exporter calls nirtorch, which also follows tensors from layer to layer. But
    nirtorch ignores operations between layers without an error, and fails on nested modules.

    ``leading`` is the number of dimensions of ``sample`` before the features.
    """

    def __init__(self, model: nn.Module, sample: Tensor, leading: int) -> None:
        self.leading = leading
        self.features = sample.shape[leading:]
        self.layers: dict[str, nn.Module] = {}
        self.resets: dict[str, str] = {}  # reset mechanisms of the neurons
        self.called: set[str] = set()
        self.path = ""  # of the layer that was called last
        self._pass_on(sample)
        returned = self._run(model, sample)
        if not self.resets:
            raise ValueError(
                "the model has no single-spike neuron: export it with "
                "snntorch.export_nir.export_to_nir"
            )
        self._check_returned(returned)

    def _run(self, model: nn.Module, sample: Tensor) -> list[Any]:
        hooks = [
            # Before other hooks: the graph does not contain their changes of the output.
            module.register_forward_hook(
                functools.partial(self._record, path), with_kwargs=True, prepend=True
            )
            for path, module in _traced_modules(model)
        ]
        with torch.no_grad():
            returned = _tensors(model(sample))
        for hook in hooks:  # the exporter runs the layers once more
            hook.remove()
        return returned

    def _check_returned(self, returned: list[Any]) -> None:
        if (
            not returned
            or not self._is_current(returned[0])
            or not all(any(x is out for out in self.outputs) for x in returned)
        ):
            raise ValueError(
                f"the model returns something other than what its last layer, {self.path!r}, "
                "returned, but the output of a NIR graph is the output of its last layer. Let "
                "forward return the spikes of its last neuron, alone or with its membrane, and "
                "process them outside the model"
            )

    def _pass_on(self, out: Any) -> None:
        """Remember the output of a layer: it must be the input of the next one."""
        self.outputs = out if isinstance(out, tuple) else (out,)
        self.versions = versions(self.outputs)

    def _is_current(self, tensor: Any) -> bool:
        return tensor is self.outputs[0] and versions(self.outputs) == self.versions

    def _record(
        self, path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        given, *states = _arguments(args, kwargs)
        path = path or "neuron"
        if path in self.called:
            reject(
                path, module, "it is called twice in a step", "Use a separate layer for each call"
            )
        layer = self._exportable(path, module, given, out)
        if any(isinstance(x, Tensor) and x.any() for x in states):
            reject(
                path, module, "NIR's neurons start from zero", "Pass it no state other than zeros"
            )
        self._check_given(path, module, given)
        if layer is not None:
            self.layers[path] = layer
        self.called.add(path)
        self.path = path
        self._pass_on(out)

    def _exportable(self, path: str, module: Any, given: Any, out: Any) -> nn.Module | None:
        if not isinstance(module, SpikingNeuron):
            return exportable_layer(path, module, given, self.leading)
        if not getattr(module, "reset_delay", True) and module.reset_mechanism != "none":
            reject(path, module, "reset_delay=False", "Make it with reset_delay=True")
        spikes = out[0] if isinstance(out, tuple) else out
        layer = exportable_neuron(path, module, spikes.shape[self.leading :])
        self.resets[path] = module.reset_mechanism
        if isinstance(module, SingleSpikeLinear):
            if module.delay is not None:
                reject(
                    path,
                    module,
                    "it has delays, which the graph would lose",
                    "Make the layer without delay= and learn_delay=True",
                )
            self.layers[f"{path}.linear"] = exportable_linear(module)
        return layer

    def _check_given(self, path: str, module: Any, given: Any) -> None:
        if self._is_current(given):
            return
        expected = f"what {self.path!r} returned" if self.called else "the input of the model"
        reject(
            path,
            module,
            f"it is not given {expected}. The graph does not contain operations between layers (a "
            "reshape, a pooling, a sum, a skip connection, a membrane in place of spikes)",
            "Make the operation a layer in a chain (nn.Flatten, nn.AvgPool2d). If the model folds "
            "time into the batch by itself, write one time step and convert() it",
        )


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The input of a layer, and then its states."""
    if args:
        return [*args, *kwargs.values()]
    name = next((name for name in (*_INPUTS, *kwargs) if name in kwargs), None)
    states = [value for key, value in kwargs.items() if key not in (*_INPUTS, name)]
    return [None if name is None else kwargs[name], *states]


def _traced_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Neurons, layers with a node in NIR, and other modules without children."""
    whole = (SpikingNeuron, *LAYERS)
    inside = {
        part for module in model.modules() if isinstance(module, whole) for part in module.modules()
    }
    for path, module in model.named_modules():
        if isinstance(module, whole) or (
            module not in inside and next(module.children(), None) is None
        ):
            yield path, module


def _tensors(out: Any) -> list[Any]:
    """The values in nested dicts, lists and tuples, without None."""
    if isinstance(out, dict):
        out = list(out.values())
    if isinstance(out, (list, tuple)):
        return [tensor for value in out for tensor in _tensors(value)]
    return [] if out is None else [out]
