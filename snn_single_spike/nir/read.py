"""Reads NIR graphs as single-spike models for whole sequences."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections import OrderedDict
from typing import Any, NoReturn

import nir
import numpy as np
import snntorch as snn
import torch
from snntorch.import_nir import import_from_nir as read_with_snntorch
from torch import nn

from ..conversion.api import convert
from ._common import DT, NEURON_NODES, is_neuron, pair, unused_name

__all__ = ["import_from_nir"]

_LAYER_NODES = (nir.Linear, nir.Affine, nir.Conv2d, nir.AvgPool2d, nir.Flatten)
_EMPTY_MODEL = nn.Sequential()


def import_from_nir(
    graph: nir.NIRGraph,
    *,
    single_spike: bool = False,
    refractory: int | None = None,
    **options: Any,
) -> nn.Module:
    """
    Read a NIR graph as a single-spike model for whole sequences.

    :func:`snntorch.import_nir.import_from_nir` makes the layers without state. This function
    makes the neurons, because snnTorch's importer only supports one threshold for all neurons of a
    layer. From a graph of :func:`export_to_nir`, weights, thresholds and decay rates of at least
    0.5 come back bit for bit, and smaller decay rates within 6e-8.

    A time step is 0.1 ms, as in snnTorch. As in snnTorch, the threshold is divided by a gain of
    the input other than 1: the membrane is in units of the gain.

    Example::

        fast = import_from_nir(nir.read("net.nir"))
        spk_rec, mem_rec = fast(data)                            # data (time, batch, ...)

        fast = import_from_nir(nir.read("net.nir"), num_steps=25)
        spk_rec, mem_rec = fast(images)                          # (batch, ...)

    :param graph: chain of layers and neurons, each neuron with the mark
        ``metadata["max_spikes"] = 1``, or all with the same ``metadata["refractory"]``. It is not
        changed
    :type graph: nir.NIRGraph

    :param single_spike: let neurons without the mark spike at most once, too. Without a
        ``metadata["reset_mechanism"]`` the reset is NIR's, to zero. Defaults to False
    :type single_spike: bool, optional, keyword only

    :param refractory: number of silent steps after each spike of every neuron, whatever their marks
        say. 0 keeps all spikes of a graph from elsewhere. Defaults to None: as the marks say
    :type refractory: int, optional, keyword only

    :param options: as in :func:`snn_single_spike.convert`: `num_steps`, `gradient`, `backend`,
        `spike_format`

    :return: converted :class:`torch.nn.Sequential` in float32, with the names of the nodes. It
        returns the spikes and the states of its last neuron, `(time, batch, ...)`. If its last
        layer is no neuron, it returns the tensor of that layer
    :rtype: torch.nn.Module

    :raises ValueError: a neuron has no mark, or a part of the graph cannot be computed over whole
        sequences; the message names the node, the reason and the edit
    :raises TypeError: ``graph`` is not a NIR graph
    """
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph (nir.read), not {type(graph).__name__}")
    recurrences = _recurrences(graph)
    chain = _chain(graph, recurrences)
    if refractory is None and not single_spike:
        refractory = _refractory(graph, chain)
    stateless = iter(_stateless([n for n in map(graph.nodes.get, chain) if not is_neuron(n)]))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name in chain:
        node = graph.nodes[name]
        if is_neuron(node):
            recurrence = graph.nodes[recurrences[name]] if name in recurrences else None
            layer = _read_neuron(name, node, recurrence, last=name == chain[-1])
        else:
            layer = next(stateless)
        # Names of modules have no dots. snnTorch names the neuron inside an RLeaky "name.lif".
        key = name.removesuffix(".lif") if name in recurrences else name
        layers[unused_name(key.replace(".", "_"), layers, _EMPTY_MODEL)] = layer
    return convert(nn.Sequential(layers), refractory=refractory, **options)


def _refractory(graph: nir.NIRGraph, chain: list[str]) -> int | None:
    """The silent steps after each spike by the marks; None for at most one spike."""
    marks = {name: graph.nodes[name].metadata for name in chain if is_neuron(graph.nodes[name])}
    periods = {name: mark["refractory"] for name, mark in marks.items() if "refractory" in mark}
    if periods:
        if len(periods) < len(marks) or len(set(map(int, periods.values()))) > 1:
            raise ValueError(
                f"the neurons {', '.join(map(repr, marks))} of the graph have several marks, but "
                'one metadata["refractory"] for all is supported: pass refractory=R, or '
                "single_spike=True"
            )
        return int(next(iter(periods.values())))
    unmarked = [name for name, mark in marks.items() if mark.get("max_spikes") != 1]
    if unmarked:
        raise ValueError(
            f"neurons {', '.join(map(repr, unmarked))} of the graph may spike more than once: "
            'metadata["max_spikes"] is not 1. Pass single_spike=True to let every neuron spike at '
            "most once, or refractory=0 to keep every spike"
        )
    return None


def _reject_node(name: str, node: nir.NIRNode, reason: str, edit: str) -> NoReturn:
    raise ValueError(
        f"node {name!r} ({type(node).__name__}) of the graph cannot be read: {reason}. {edit}"
    )


def _neighbors(graph: nir.NIRGraph, name: str) -> tuple[set[str], set[str]]:
    """Nodes before and after a node."""
    return {a for a, b in graph.edges if b == name}, {b for a, b in graph.edges if a == name}


def _recurrences(graph: nir.NIRGraph) -> dict[str, str]:
    """Neuron nodes that receive their own spikes, and the node of the recurrent weights."""
    found = {}
    for name, node in graph.nodes.items():
        before, after = _neighbors(graph, name)
        if isinstance(node, (nir.Linear, nir.Affine)) and before == after and len(before) == 1:
            neuron = next(iter(before))
            if is_neuron(graph.nodes[neuron]):
                found[neuron] = name
    return found


def _chain(graph: nir.NIRGraph, recurrences: dict[str, str]) -> list[str]:
    """Nodes between the input and the output. Together they must be the whole graph."""
    recurrent = set(recurrences.values())
    inputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise ValueError(
            f"the graph has {len(inputs)} inputs, but one is expected: join them to one nir.Input "
            "in front of the first layer"
        )
    chain, here = [], inputs[0]
    while not isinstance(graph.nodes[here], nir.Output):
        after = _neighbors(graph, here)[1] - recurrent
        there = next(iter(after), None)
        if there is None or len(after) > 1 or len(_neighbors(graph, there)[0] - recurrent) > 1:
            _reject_node(
                here,
                graph.nodes[here],
                f"it leads to {sorted(after)}, but only a chain of layers is supported",
                "Write the model in snnTorch, one time step, and convert() it",
            )
        chain.append(there)
        here = there
    rest = set(graph.nodes) - {*chain, *inputs, *recurrent}
    if rest:
        raise ValueError(
            f"nodes {sorted(rest)} are not between the graph's input and output: remove them"
        )
    layers = chain[:-1]
    for name in layers:
        _check_node(name, graph.nodes[name])
    return layers


def _check_node(name: str, node: nir.NIRNode) -> None:
    if isinstance(node, nir.IF):
        _reject_node(
            name, node, "snnTorch reads an IF with a leak", "Use a nir.LIF with a large tau"
        )
    if isinstance(node, nir.Conv2d) and node.groups != 1:
        _reject_node(
            name,
            node,
            f"it has groups={node.groups}, but snnTorch only reads convolutions of one group",
            "Write its weight with zeros between the groups, and groups=1",
        )
    if not isinstance(node, (*NEURON_NODES, *_LAYER_NODES)):
        known = ", ".join(kind.__name__ for kind in (*_LAYER_NODES, *NEURON_NODES))
        _reject_node(name, node, f"only {known} are supported", "Replace it, or leave it out")


def _stateless(nodes: list[nir.NIRNode]) -> list[nn.Module]:
    """Layers for nodes without state, by snnTorch."""
    if not nodes:
        return []
    readable: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=None)}
    for i, node in enumerate(nodes):
        if isinstance(node, nir.AvgPool2d):  # snnTorch expects pairs
            kernel, stride, padding = map(pair, (node.kernel_size, node.stride, node.padding))
            node = nir.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding)
        readable[f"layer{i}"] = node
    readable["output"] = nir.Output(output_type=None)
    names = list(readable)
    with contextlib.redirect_stdout(io.StringIO()):  # snnTorch prints its progress
        model = read_with_snntorch(
            nir.NIRGraph(readable, list(itertools.pairwise(names)), type_check=False)
        )
    layers = []
    for name, node in list(readable.items())[1:-1]:
        layer = model.get_submodule(name)
        if isinstance(node, nir.Flatten):
            # NIR does not count the batch among the dimensions; snnTorch does not add it.
            start, end = int(node.start_dim), int(node.end_dim)
            layer = nn.Flatten(start + (start >= 0), end + (end >= 0))
        layers.append(layer)
    return layers


def _read_neuron(
    name: str, node: nir.NIRNode, recurrence: nir.NIRNode | None, *, last: bool
) -> nn.Module:
    """The snnTorch neuron of a node, with the parameters of each neuron."""
    if np.any(node.v_leak) or np.any(node.v_reset):
        reason = "it leaks, or is reset, to something other than 0"
        _reject_node(name, node, reason, "Shift the membrane so that v_leak and v_reset are 0")
    values = _parameters(name, node)
    kind: Any = snn.Synaptic if isinstance(node, nir.CubaLIF) else snn.Leaky
    options: dict[str, Any] = {}
    if recurrence is not None:
        kind, options = snn.RLeaky, {"all_to_all": False}
        values["V"] = _own_feedback(name, node, recurrence)
    return kind(
        **{key: torch.as_tensor(_compact(v), dtype=torch.float32) for key, v in values.items()},
        **options,
        init_hidden=True,
        output=last,
        reset_mechanism=node.metadata.get("reset_mechanism", "zero"),
    )


def _parameters(name: str, node: nir.NIRNode) -> dict[str, Any]:
    """Decay rates and threshold; the threshold is divided by the gain of the input."""
    synaptic = isinstance(node, nir.CubaLIF)
    taus = {"beta": np.float64(node.tau_mem if synaptic else node.tau)}
    if synaptic:
        taus["alpha"] = np.float64(node.tau_syn)
    for tau in taus.values():
        if not (np.isfinite(tau) & (tau > DT * (1 - 1e-6))).all():
            reason = f"a time constant is not between the time step, {DT} s, and infinity"
            _reject_node(name, node, reason, f"Choose a finite time constant above {DT} s")
    gain = node.r * DT / taus["beta"]
    if synaptic:
        gain = gain * node.w_in * DT / taus["alpha"]
    if not (np.isfinite(gain) & (gain > 0)).all():
        _reject_node(name, node, "r or w_in is not positive", "Put the sign into the weights")
    values = {key: (1 - DT / tau).clip(0, 1) for key, tau in taus.items()}
    # snnTorch writes a gain of 1 with rounding errors.
    values["threshold"] = node.v_threshold / (1 if np.allclose(gain, 1) else gain)
    return values


def _own_feedback(name: str, node: nir.NIRNode, recurrence: nir.NIRNode) -> np.ndarray:
    """The weight from each neuron to itself."""
    if isinstance(node, nir.CubaLIF):
        _reject_node(name, node, "a CubaLIF with recurrence is not supported", "Use a LIF")
    feedback = np.diag(recurrence.weight)
    if np.any(recurrence.weight != np.diag(feedback)) or np.any(getattr(recurrence, "bias", 0)):
        _reject_node(
            name, node, "its spikes drive other neurons", "Use weights on the diagonal only"
        )
    return feedback


def _compact(values: Any) -> np.ndarray:
    """One value where all are the same: a scalar, or (C, 1, 1) for the channels of images."""
    values = np.array(values)  # a copy, independent of the graph
    for axis in range(values.ndim):
        first = values.take([0], axis)
        if (values == first).all():
            values = first
    return values.reshape(()) if values.size == 1 else values
