"""Writes single-spike models as NIR graphs, by snnTorch's exporter.

The exporter receives a plain chain of layers, not the model: without an error it drops operations
and layers that it does not support.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import nir
import numpy as np
import torch
from snntorch._neurons.neurons import SpikingNeuron
from snntorch.export_nir import export_to_nir as write_with_snntorch
from torch import Tensor, nn

from ..conversion.api import revert
from ..conversion.folded.modules import Converted, static_steps
from ._common import is_neuron, unused_name
from .layers import reject_other_neurons
from .trace import Trace

__all__ = ["export_to_nir"]


def export_to_nir(model: nn.Module, sample_data: Tensor) -> nir.NIRGraph:
    """
    Write a single-spike model as a NIR graph, by :func:`snntorch.export_nir.export_to_nir`.

    Every neuron node has ``metadata["max_spikes"] = 1``, or ``metadata["refractory"]``, the silent
    steps after each spike. It has ``metadata["reset_mechanism"]``, and one value per neuron in each
    of its parameters. :func:`import_from_nir` reads the model back. A reader without support for
    these marks reads a network of LIF neurons.

    Example::

        import nir
        from snn_single_spike import convert
        from snn_single_spike.nir import export_to_nir, import_from_nir

        fast = convert(net)
        nir.write("net.nir", export_to_nir(fast, data))        # data (time, batch, ...)
        fast = import_from_nir(nir.read("net.nir"))
        spk_rec, mem_rec = fast(data)

    The graph holds the network in eval mode, in float32. It contains no Dropout, no Identity and
    no Flatten without effect. beta is clipped as in the forward pass. A Conv2d without bias gets a
    bias of zeros. Options of the training are not in the graph: surrogates, gradient rules,
    `num_steps`, and which parameters are learned.

    :param model: a model that :func:`snn_single_spike.convert` returned, or a model for whole
        sequences made of single-spike neurons. Its layers form a chain of `nn.Linear`,
        `nn.Conv2d`, `nn.AvgPool2d`, `nn.Flatten` and neurons, without operations on tensors
        between them. A :class:`snn_single_spike.SingleSpikeLinear` becomes two nodes: its linear
        layer, with `.linear` after its name, and its neurons. The model is not changed
    :type model: torch.nn.Module

    :param sample_data: an input of the model: `(time, batch, ...)`, or `(batch, ...)` for a model
        that was converted with `num_steps`. Only its shape matters
    :type sample_data: torch.Tensor

    :return: graph with the names of the model's layers
    :rtype: nir.NIRGraph

    :raises ValueError: NIR or snnTorch's exporter does not support a part of the model; the message
        names the layer, the reason and the edit
    :raises TypeError: ``model`` is not a module, or ``sample_data`` not a tensor
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(sample_data, Tensor):
        raise TypeError(f"sample_data must be a torch.Tensor, not {type(sample_data).__name__}")
    reject_other_neurons(model)
    trace = _trace(model, sample_data)
    layers = trace.layers
    if len(layers) < 2:
        raise ValueError(
            "the model has a single layer, but snnTorch's exporter needs at least two: add a layer"
        )
    with warnings.catch_warnings():
        # nirtorch warns about the function that snnTorch calls.
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = write_with_snntorch(
            nn.Sequential(*layers.values()),
            torch.zeros(1, *trace.features),
            ignore_dims=[0],  # the batch is not part of the network
        )
    neurons = dict(model.named_modules())
    marks = [
        {"reset_mechanism": trace.resets.get(path)} | _spikes(neurons.get(path)) for path in layers
    ]
    return _with_names(graph, list(layers), marks)


def _spikes(neuron: nn.Module | None) -> dict[str, int]:
    """The mark that says how often a neuron may spike."""
    refractory = getattr(neuron, "refractory", None)
    return {"max_spikes": 1} if refractory is None else {"refractory": refractory}


def _trace(model: nn.Module, sample: Tensor) -> Trace:
    """Run a copy of the model on the sample; a converted model as its one-step original."""
    if isinstance(model, Converted):
        runnable, leading = revert(model), 1  # (batch, ...)
        if static_steps(model) is None:
            if sample.dim() < 3:
                raise ValueError(
                    f"sample_data has shape {tuple(sample.shape)}, but the model takes whole "
                    "sequences: pass (time, batch, ...)"
                )
            sample = sample[0]
    else:
        runnable, leading = copy.deepcopy(model), 2  # (time, batch, ...)
        for module in runnable.modules():
            if isinstance(module, SpikingNeuron):
                module.backend = "torch"  # compiles nothing
    return Trace(runnable.cpu().float().eval(), sample.detach().cpu().float(), leading)


def _with_names(graph: nir.NIRGraph, paths: list[str], marks: list[dict[str, Any]]) -> nir.NIRGraph:
    """snnTorch's graph of the chain, with the model's names, the marks, and numpy's float32."""
    keys = {"input": "input", "output": "output"}
    for i, path in enumerate(paths):
        keys[str(i)] = unused_name(path, keys.values())  # a layer may have the name "output"

    def rename(key: str) -> str:
        layer, dot, part = key.partition(".")  # "1.lif" and "1.w_rec" are an RLeaky
        return keys[layer] + dot + part

    for key, node in graph.nodes.items():
        _own_arrays(node)
        if is_neuron(node):
            node.metadata = marks[int(key.partition(".")[0])]
    return nir.NIRGraph(
        nodes={rename(key): node for key, node in graph.nodes.items()},
        edges=sorted((rename(source), rename(target)) for source, target in graph.edges),
    )


def _own_arrays(node: nir.NIRNode) -> None:
    """Replace tensors and arrays by float32 copies: snnTorch's share memory with the weights."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        value = value.numpy() if isinstance(value, Tensor) else value
        if isinstance(value, np.ndarray):
            setattr(node, field.name, value.astype(np.float32))
