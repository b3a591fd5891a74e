"""Single-spike models as graphs of the Neuromorphic Intermediate Representation, and back.

NIR has no primitive that fires at most once. A single-spike neuron is the plain LIF or CubaLIF
node that snnTorch writes for it, marked ``metadata["max_spikes"] = 1``: a reader that does not
know the mark sees an ordinary spiking network. ``metadata["reset_mechanism"]`` says what the
spike does to the membrane, because NIR's own reset, to ``v_reset``, cannot say "subtract".

Graphs are written by snnTorch's exporter. It is given a plain chain of layers, not the model:
what it cannot say it drops or prints, and here nothing may be lost in silence.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Container, Iterator
from typing import Any, NoReturn

import numpy as np
import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from .conversion.api import convert, revert
from .conversion.checks import BATCH_NORM, MAX_POOL, overridden_parts
from .conversion.folded import DROPOUT, Converted, static_steps
from .modules._base import SingleSpikeNeuron
from .modules.linear import SingleSpikeLinear
from .spikes.times import versions

try:
    import nir
    from snntorch.export_nir import export_to_nir as write_with_snntorch
    from snntorch.import_nir import import_from_nir as read_with_snntorch
except ImportError as error:
    raise ImportError(
        f"NIR needs packages that are not installed here ({error}): "
        'pip install "snn-single-spike[nir]"'
    ) from error

__all__ = ["export_to_nir", "import_from_nir"]

_DT = 1e-4
"""Seconds a time step, fixed in snnTorch's exporter and importer: beta = 1 - dt / tau."""

_NEURONS = (snn.Leaky, snn.Synaptic, snn.RLeaky)
_NEURON_NODES = (nir.LIF, nir.CubaLIF)
_LAYERS = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.Flatten)
_LAYER_NODES = (nir.Linear, nir.Affine, nir.Conv2d, nir.AvgPool2d, nir.Flatten)
_IDENTITIES = (nn.Identity, DROPOUT)
_INPUTS = ("input_", "input", "spikes")  # as neurons, layers of torch and ours call it
_KNOWN = ("snntorch", "snn_single_spike")
_PLAIN = nn.Sequential()


def export_to_nir(model: nn.Module, sample_data: Tensor) -> nir.NIRGraph:
    """
    Write a single-spike model as a NIR graph, by :func:`snntorch.export_nir.export_to_nir`.

    Every neuron node has ``metadata["max_spikes"] = 1``, ``metadata["reset_mechanism"]``, and
    one value per neuron in each of its parameters. :func:`import_from_nir` gives the model
    back; a reader that does not know the mark sees a network of LIF neurons.

    Example::

        import nir
        from snn_single_spike import convert
        from snn_single_spike.nir import export_to_nir, import_from_nir

        fast = convert(net)
        nir.write("net.nir", export_to_nir(fast, data))        # data (time, batch, ...)
        fast = import_from_nir(nir.read("net.nir"))
        spk_rec, mem_rec = fast(data)

    The network at inference is written, in float32: Dropout and Identity are left out, so is
    a Flatten that has nothing to flatten, beta is clipped as in the forward pass, and a
    Conv2d without bias has one of zeros. Surrogates, gradient rules, `num_steps` and what is
    learned are of the training, not of the network, and are not in the graph.

    :param model: what :func:`snn_single_spike.convert` returned, or a model for whole
        sequences made of single-spike neurons. Its layers form a chain of `nn.Linear`,
        `nn.Conv2d`, `nn.AvgPool2d`, `nn.Flatten` and neurons, and nothing is done to tensors
        between them; a :class:`snn_single_spike.SingleSpikeLinear` is written as its linear
        layer, with `.linear` after its name, and its neurons. It is not touched
    :type model: torch.nn.Module

    :param sample_data: an input of the model: `(time, batch, ...)`, or `(batch, ...)` for one
        that was converted with `num_steps`. Only its shape matters
    :type sample_data: torch.Tensor

    :return: graph with the names of the model's layers
    :rtype: nir.NIRGraph

    :raises ValueError: something in the model cannot be said in NIR, or not by snnTorch's
        exporter, or a neuron may spike more than once; the message names the layer, the
        reason and the edit
    :raises TypeError: ``model`` is not a module, or ``sample_data`` not a tensor
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(sample_data, Tensor):
        raise TypeError(f"sample_data must be a torch.Tensor, not {type(sample_data).__name__}")
    _refuse_other_neurons(model)
    if isinstance(model, Converted):
        one_step, leading = revert(model), 1  # (batch, ...)
        if static_steps(model) is None:
            if sample_data.dim() < 3:
                raise ValueError(
                    f"sample_data has shape {tuple(sample_data.shape)}, but the model takes whole "
                    "sequences, (time, batch, ...)"
                )
            sample_data = sample_data[0]
    else:
        one_step, leading = copy.deepcopy(model), 2  # (time, batch, ...)
        for module in one_step.modules():
            if isinstance(module, SpikingNeuron):
                module.backend = "torch"  # no compilation for the sake of shapes
    trace = _Trace(one_step.cpu().float().eval(), sample_data.detach().cpu().float(), leading)
    layers = trace.layers
    if len(layers) < 2:
        raise ValueError("the model has a single layer; snnTorch's exporter needs two")
    with warnings.catch_warnings():
        # nirtorch's, about the function that snnTorch calls
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = write_with_snntorch(
            nn.Sequential(*layers.values()),
            torch.zeros(1, *trace.features),
            ignore_dims=[0],  # the batch is not part of the network
        )
    return _with_names(graph, list(layers), [trace.resets.get(path) for path in layers])


def import_from_nir(
    graph: nir.NIRGraph, *, single_spike: bool = False, **options: Any
) -> nn.Module:
    """
    Read a NIR graph as a single-spike model for whole sequences.

    Layers without state are made by :func:`snntorch.import_nir.import_from_nir`, neurons here,
    because snnTorch's importer wants one threshold for all neurons of a layer. Of what
    :func:`export_to_nir` wrote, weights, thresholds and decay rates from 0.5 on come back bit
    for bit, and decay rates below within 6e-8.

    A time step is 0.1 ms, as in snnTorch. As there, a gain of the input other than 1 goes
    into the threshold: the membrane is in units of that gain.

    Example::

        fast = import_from_nir(nir.read("net.nir"))
        spk_rec, mem_rec = fast(data)                            # data (time, batch, ...)

        fast = import_from_nir(nir.read("net.nir"), num_steps=25)
        spk_rec, mem_rec = fast(images)                          # (batch, ...)

    :param graph: chain of layers and neurons, each neuron marked
        ``metadata["max_spikes"] = 1``. It is not touched
    :type graph: nir.NIRGraph

    :param single_spike: let neurons without the mark spike at most once, too. Without a
        ``metadata["reset_mechanism"]`` the reset is NIR's, to zero. Defaults to False
    :type single_spike: bool, optional, keyword only

    :param options: as in :func:`snn_single_spike.convert`: `num_steps`, `gradient`, `backend`,
        `spike_format`

    :return: converted :class:`torch.nn.Sequential` in float32, with the names of the nodes.
        It returns the spikes and the states of its last neuron, `(time, batch, ...)`, or the
        tensor of a last layer that is no neuron
    :rtype: torch.nn.Module

    :raises ValueError: a neuron is not marked, or something in the graph cannot be computed
        over whole sequences; the message names the node, the reason and the edit
    :raises TypeError: ``graph`` is not a NIR graph
    """
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph (nir.read), not {type(graph).__name__}")
    recurrences = _recurrences(graph)
    chain = _chain(graph, recurrences)
    unmarked = [
        name
        for name in chain
        if _is_neuron(graph.nodes[name]) and graph.nodes[name].metadata.get("max_spikes") != 1
    ]
    if unmarked and not single_spike:
        raise ValueError(
            f"neurons {', '.join(map(repr, unmarked))} of the graph may spike more than once: "
            'metadata["max_spikes"] is not 1. Pass single_spike=True to let every neuron spike at '
            "most once, or read the graph with snntorch.import_nir.import_from_nir"
        )
    stateless = iter(_stateless([n for n in map(graph.nodes.get, chain) if not _is_neuron(n)]))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name in chain:
        node = graph.nodes[name]
        if _is_neuron(node):
            recurrence = graph.nodes[recurrences[name]] if name in recurrences else None
            layer = _read_neuron(name, node, recurrence, last=name == chain[-1])
        else:
            layer = next(stateless)
        # A module's name has no dots; snnTorch calls the neuron inside an RLeaky "name.lif"
        key = name.removesuffix(".lif") if name in recurrences else name
        layers[_unused(key.replace(".", "_"), layers, _PLAIN)] = layer
    return convert(nn.Sequential(layers), **options)


class _Trace:
    """
    What a model does in one call: the layers it calls, in order, ready for snnTorch's exporter.

    nirtorch, which snnTorch's exporter uses, follows tensors from layer to layer, too, but
    leaves out in silence what happens to them in between, and fails on nested modules.
    """

    def __init__(self, model: nn.Module, sample: Tensor, leading: int) -> None:
        self.leading = leading
        self.features = sample.shape[leading:]
        self.layers: dict[str, nn.Module] = {}
        self.resets: dict[str, str] = {}
        self.called: set[str] = set()
        self.path = ""
        self._hand_over(sample)
        hooks = [
            # Before other hooks: what they do to the output is not in the graph
            module.register_forward_hook(
                functools.partial(self._record, path), with_kwargs=True, prepend=True
            )
            for path, module in _leaves(model)
        ]
        with torch.no_grad():
            returned = _tensors(model(sample))
        for hook in hooks:  # the layers run once more in the exporter
            hook.remove()
        if not self.resets:
            raise ValueError("the model has no single-spike neuron")
        if (
            not returned
            or not self._is_current(returned[0])
            or not all(any(x is out for out in self.outputs) for x in returned)
        ):
            raise ValueError(
                f"the model returns something other than what its last layer, {self.path!r}, "
                "returned: in NIR a network gives the output of its last layer. Let forward return "
                "the spikes of its last neuron, alone or with its membrane, and work on them "
                "outside the model"
            )

    def _hand_over(self, out: Any) -> None:
        self.outputs = out if isinstance(out, tuple) else (out,)
        self.versions = versions(self.outputs)

    def _is_current(self, tensor: Any) -> bool:
        return tensor is self.outputs[0] and versions(self.outputs) == self.versions

    def _record(
        self, path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        given, *rest = (*args, *kwargs.values()) or (None,)
        if not args and kwargs:
            rest = [value for name, value in kwargs.items() if name not in _INPUTS]
            given = next((kwargs[name] for name in _INPUTS if name in kwargs), given)
        path = path or "neuron"
        if path in self.called:
            _refuse(
                path, module, "it is called twice in a step", "Use a layer of its own for each call"
            )
        before = f"what {self.path!r} returned" if self.called else "the input of the model"
        self.called.add(path)
        self.path = path
        layer: nn.Module | None
        if isinstance(module, SpikingNeuron):
            made = out[0] if isinstance(out, tuple) else out
            layer = _plain_neuron(path, module, made.shape[self.leading :])
            self.resets[path] = module.reset_mechanism
            if isinstance(module, SingleSpikeLinear):
                self.layers[f"{path}.linear"] = _plain_linear(module)
        else:
            layer = _plain_layer(path, module, given, self.leading)
        if any(isinstance(x, Tensor) and x.any() for x in rest):
            _refuse(
                path, module, "NIR's neurons start from zero", "Pass it no state other than zeros"
            )
        if not self._is_current(given):
            _refuse(
                path,
                module,
                f"it is not given {before}, and what happens between layers (a reshape, a "
                "pooling, a sum, a skip connection, a membrane in place of spikes) is not in the "
                "graph",
                "Make it a layer in a chain (nn.Flatten, nn.AvgPool2d); for a model that folds "
                "time into the batch by itself, write one time step and convert() it",
            )
        if layer is not None:
            self.layers[path] = layer
        self._hand_over(out)


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    whole = (SpikingNeuron, *_LAYERS)
    inside = {
        part for module in model.modules() if isinstance(module, whole) for part in module.modules()
    }
    for path, module in model.named_modules():
        if isinstance(module, whole) or (
            module not in inside and next(module.children(), None) is None
        ):
            yield path, module


def _tensors(out: Any) -> list[Any]:
    if isinstance(out, dict):
        out = list(out.values())
    if isinstance(out, (list, tuple)):
        return [tensor for value in out for tensor in _tensors(value)]
    return [] if out is None else [out]


def _refuse(path: str, module: nn.Module, reason: str, edit: str) -> NoReturn:
    raise ValueError(
        f"layer {path!r} ({type(module).__name__}) cannot be exported to NIR: {reason}. {edit}"
    )


def _refuse_other_neurons(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, SpikingNeuron) and not isinstance(module, SingleSpikeNeuron):
            _refuse(
                path,
                module,
                "it is not a single-spike neuron of this package",
                "convert() the model, or export it with snntorch.export_nir.export_to_nir",
            )


def _plain_neuron(path: str, neuron: Any, features: torch.Size) -> nn.Module:
    """The neuron as snnTorch's exporter wants it: one value per neuron, beta as it acts."""
    if isinstance(neuron, snn.Lapicque):
        _refuse(
            path,
            neuron,
            "snnTorch's exporter does not know it",
            "It is the snntorch.Leaky of beta = 1 - time_step / (R * C), with the weights of the "
            "layer before it times time_step / C",
        )
    known = next(c for c in type(neuron).__mro__ if c.__module__.split(".")[0] in _KNOWN)
    custom_parts = ", ".join(overridden_parts(neuron, known))
    if custom_parts:
        _refuse(path, neuron, f"it has its own {custom_parts}", f"Use {known.__name__} itself")
    if not isinstance(neuron, _NEURONS):
        _refuse(path, neuron, "NIR has no primitive for it", "Use snntorch.Leaky or Synaptic")
    if (neuron.graded_spikes_factor != 1).any():
        _refuse(
            path,
            neuron,
            "its spikes are graded_spikes_factor high, and those of NIR are 1",
            "Multiply the weights of the next layer by it, and set it to 1",
        )
    values = {}
    for name in ("alpha", "beta", "threshold"):
        if not hasattr(neuron, name):
            continue
        # Time constants are rounded to float32 once, at the end: beta comes back better.
        value = getattr(neuron, name).detach().double()
        if name != "threshold":
            value = value.clamp(0, 1)
            if (value == 1).any():
                _refuse(
                    path,
                    neuron,
                    f"with {name}=1 nothing leaks, and NIR's time constant would be infinite",
                    f"Choose {name} below 1",
                )
        values[name] = _each(value, features)
    if not isinstance(neuron, snn.RLeaky):
        kind = snn.Synaptic if isinstance(neuron, snn.Synaptic) else snn.Leaky
        return kind(**values, init_hidden=True)
    if neuron.all_to_all:
        _refuse(path, neuron, "its spikes drive other neurons", "Make it with all_to_all=False")
    if len(features) != 1:
        _refuse(
            path,
            neuron,
            f"its features are {tuple(features)}, and its recurrence is written as a matrix",
            "Put nn.Flatten() before it",
        )
    v = _each(neuron.V.detach(), features)
    return snn.RLeaky(**values, V=v, all_to_all=False, init_hidden=True)


def _each(value: Tensor, features: torch.Size) -> Tensor:
    """One value per neuron; a parameter may have leading dimensions of one."""
    while value.dim() > len(features):
        value = value.squeeze(0)
    return value.expand(features).clone()


def _plain_linear(layer: SingleSpikeLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.load_state_dict({k: v for k, v in layer.named_parameters() if k in ("weight", "bias")})
    return linear


def _plain_layer(path: str, layer: Any, given: Any, leading: int) -> nn.Module | None:
    """A layer without state as snnTorch's exporter wants it; None if it does nothing."""
    if isinstance(layer, _IDENTITIES):
        return None
    if type(layer) not in _LAYERS:
        edit = "Replace it by one of these, or export the model without it"
        if isinstance(layer, BATCH_NORM):
            edit = "Fold it into the layer before it: fuse_conv_bn_eval of torch.nn.utils.fusion"
        elif isinstance(layer, MAX_POOL):
            edit = "Use nn.AvgPool2d"
        known = ", ".join(f"nn.{kind.__name__}" for kind in _LAYERS)
        _refuse(path, layer, f"snnTorch writes {known} and neurons only", edit)
    features = tuple(given.shape[leading:])
    wanted = {nn.Linear: 1, nn.Conv2d: 3, nn.AvgPool2d: 3}.get(type(layer), len(features))
    if len(features) != wanted:
        axes = "channels, height, width" if wanted == 3 else "features"
        edit = f"Give it (batch, {axes}), with nn.Flatten() before a Linear"
        _refuse(path, layer, f"it is given features of shape {features}", edit)
    if isinstance(layer, nn.Flatten):
        start, end = layer.start_dim % given.dim(), layer.end_dim % given.dim()
        if start < leading:
            _refuse(path, layer, "it flattens the batch", f"Flatten from dimension {leading}")
        # nirtorch takes a layer that returns its input for a loop
        return None if start == end else nn.Flatten(start - leading + 1, end - leading + 1)
    if isinstance(layer, nn.AvgPool2d):
        if _pair(layer.padding) != (0, 0) or layer.ceil_mode or layer.divisor_override:
            reason = "snnTorch writes it without padding, ceil_mode and divisor_override"
            _refuse(path, layer, reason, "Make it without them")
        return nn.AvgPool2d(_pair(layer.kernel_size), _pair(layer.stride))
    if isinstance(layer, nn.Conv2d):
        _refuse_conv(path, layer)
    return layer


def _refuse_conv(path: str, conv: nn.Conv2d) -> None:
    height, width = conv.kernel_size
    for refused, reason, edit in (
        (conv.padding_mode != "zeros", "NIR pads with zeros", 'Use padding_mode="zeros"'),
        (conv.groups != 1, "nir cannot read groups back from a file", "Use groups=1"),
        (
            height != width and conv.padding != "same",
            "nir computes the shape of its output with the height of the kernel for both sides",
            'Use a square kernel, or padding="same"',
        ),
    ):
        if refused:
            _refuse(path, conv, reason, edit)


def _pair(value: Any) -> tuple[int, int]:
    height, width = np.broadcast_to(value, 2)
    return int(height), int(width)


def _with_names(graph: nir.NIRGraph, paths: list[str], resets: list[str | None]) -> nir.NIRGraph:
    """snnTorch's graph of the chain, with the model's names, the marks, and numpy's float32."""
    keys = {"input": "input", "output": "output"}
    for i, path in enumerate(paths):
        keys[str(i)] = _unused(path, keys.values())  # a layer may be called "output"

    def rename(key: str) -> str:
        layer, dot, part = key.partition(".")  # "1.lif" and "1.w_rec" are an RLeaky
        return keys[layer] + dot + part

    for key, node in graph.nodes.items():
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            value = value.numpy() if isinstance(value, Tensor) else value
            if isinstance(value, np.ndarray):
                # A copy, too: snnTorch's nodes share the memory of the weights
                setattr(node, field.name, value.astype(np.float32))
        if _is_neuron(node):
            node.metadata = {
                "max_spikes": 1,
                "reset_mechanism": resets[int(key.partition(".")[0])],
            }
    return nir.NIRGraph(
        nodes={rename(key): node for key, node in graph.nodes.items()},
        edges=sorted((rename(source), rename(target)) for source, target in graph.edges),
    )


def _unused(name: str, taken: Container[str], beside: object = None) -> str:
    """A name that is neither taken, nor an attribute of the object that it becomes one of."""
    while not name or name in taken or (beside is not None and hasattr(beside, name)):
        name += "_"
    return name


def _is_neuron(node: nir.NIRNode) -> bool:
    return isinstance(node, _NEURON_NODES)


def _refuse_node(name: str, node: nir.NIRNode, reason: str, edit: str) -> NoReturn:
    raise ValueError(
        f"node {name!r} ({type(node).__name__}) of the graph cannot be read: {reason}. {edit}"
    )


def _neighbours(graph: nir.NIRGraph, name: str) -> tuple[set[str], set[str]]:
    """Nodes before and after a node."""
    return {a for a, b in graph.edges if b == name}, {b for a, b in graph.edges if a == name}


def _recurrences(graph: nir.NIRGraph) -> dict[str, str]:
    """Neuron nodes that are fed by their own spikes, and the node of the weights."""
    found = {}
    for name, node in graph.nodes.items():
        before, after = _neighbours(graph, name)
        if isinstance(node, (nir.Linear, nir.Affine)) and before == after and len(before) == 1:
            neuron = next(iter(before))
            if _is_neuron(graph.nodes[neuron]):
                found[neuron] = name
    return found


def _chain(graph: nir.NIRGraph, recurrences: dict[str, str]) -> list[str]:
    """Nodes from the input to the output, which are the whole graph."""
    recurrent = set(recurrences.values())
    inputs = [name for name, node in graph.nodes.items() if isinstance(node, nir.Input)]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs; a graph of one can be read")
    chain, here = [], inputs[0]
    while not isinstance(graph.nodes[here], nir.Output):
        after = _neighbours(graph, here)[1] - recurrent
        there = next(iter(after), None)
        if there is None or len(after) > 1 or len(_neighbours(graph, there)[0] - recurrent) > 1:
            _refuse_node(
                here,
                graph.nodes[here],
                f"it leads to {sorted(after)}, and a graph that is no chain of layers is not "
                "converted",
                "Write the model in snnTorch, one time step, and convert() it",
            )
        chain.append(there)
        here = there
    rest = set(graph.nodes) - {*chain, *inputs, *recurrent}
    if rest:
        raise ValueError(f"nodes {sorted(rest)} are not between the graph's input and output")
    for name in chain[:-1]:
        node = graph.nodes[name]
        if isinstance(node, nir.IF):
            _refuse_node(
                name,
                node,
                "snnTorch reads it with a leak that it does not have",
                "Use a nir.LIF with a large tau",
            )
        if isinstance(node, nir.Conv2d) and node.groups != 1:
            _refuse_node(
                name,
                node,
                f"it has groups={node.groups}, and snnTorch reads convolutions of one group",
                "Write its weight with zeros between the groups, and groups=1",
            )
        if not isinstance(node, (*_NEURON_NODES, *_LAYER_NODES)):
            known = ", ".join(kind.__name__ for kind in (*_LAYER_NODES, *_NEURON_NODES))
            _refuse_node(name, node, f"only {known} can", "Replace it, or leave it out")
    return chain[:-1]


def _stateless(nodes: list[nir.NIRNode]) -> list[nn.Module]:
    """Layers for nodes without state, by snnTorch."""
    if not nodes:
        return []
    readable: dict[str, nir.NIRNode] = {"input": nir.Input(input_type=None)}
    for i, node in enumerate(nodes):
        if isinstance(node, nir.AvgPool2d):  # snnTorch wants pairs
            kernel, stride, padding = map(_pair, (node.kernel_size, node.stride, node.padding))
            node = nir.AvgPool2d(kernel_size=kernel, stride=stride, padding=padding)
        readable[f"layer{i}"] = node
    readable["output"] = nir.Output(output_type=None)
    names = list(readable)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        model = read_with_snntorch(
            nir.NIRGraph(readable, list(itertools.pairwise(names)), type_check=False)
        )
    layers = []
    for name, node in list(readable.items())[1:-1]:
        layer = model.get_submodule(name)
        if isinstance(node, nir.Flatten):
            # NIR's dimensions have no batch; snnTorch takes them as they are
            start, end = int(node.start_dim), int(node.end_dim)
            layer = nn.Flatten(start + (start >= 0), end + (end >= 0))
        layers.append(layer)
    return layers


def _read_neuron(
    name: str, node: nir.NIRNode, recurrence: nir.NIRNode | None, *, last: bool
) -> nn.Module:
    """The snnTorch neuron of a node, with the value of each neuron."""
    if np.any(node.v_leak) or np.any(node.v_reset):
        reason = "it leaks, or is reset, to something other than 0"
        _refuse_node(name, node, reason, "Shift the membrane so that v_leak and v_reset are 0")
    synaptic = isinstance(node, nir.CubaLIF)
    taus = {"beta": np.float64(node.tau_mem if synaptic else node.tau)}
    if synaptic:
        taus["alpha"] = np.float64(node.tau_syn)
    for tau in taus.values():
        if not (np.isfinite(tau) & (tau > _DT * (1 - 1e-6))).all():
            reason = f"a time constant is not between the time step, {_DT} s, and infinity"
            _refuse_node(name, node, reason, "Choose another")
    gain = node.r * _DT / taus["beta"]
    if synaptic:
        gain = gain * node.w_in * _DT / taus["alpha"]
    if not (np.isfinite(gain) & (gain > 0)).all():
        _refuse_node(name, node, "r or w_in is not positive", "Put the sign into the weights")
    values = {key: (1 - _DT / tau).clip(0, 1) for key, tau in taus.items()}
    # Within rounding of 1, as snnTorch writes it, it is 1
    values["threshold"] = node.v_threshold / (1 if np.allclose(gain, 1) else gain)
    kind: Any = snn.Synaptic if synaptic else snn.Leaky
    options: dict[str, Any] = {}
    if recurrence is not None:
        if synaptic:
            _refuse_node(name, node, "a CubaLIF with recurrence is not converted", "Use a LIF")
        kind, options = snn.RLeaky, {"all_to_all": False}
        values["V"] = np.diag(recurrence.weight)
        if np.any(recurrence.weight != np.diag(values["V"])) or np.any(
            getattr(recurrence, "bias", 0)
        ):
            _refuse_node(
                name, node, "its spikes drive other neurons", "Use weights on the diagonal only"
            )
    return kind(
        **{key: torch.as_tensor(_compact(v), dtype=torch.float32) for key, v in values.items()},
        **options,
        init_hidden=True,
        output=last,
        reset_mechanism=node.metadata.get("reset_mechanism", "zero"),
    )


def _compact(values: Any) -> np.ndarray:
    """One value where all are the same: a scalar, or (C, 1, 1) for the channels of images."""
    values = np.array(values)  # a copy, that is not of the graph
    for axis in range(values.ndim):
        first = values.take([0], axis)
        if (values == first).all():
            values = first
    return values.reshape(()) if values.size == 1 else values
