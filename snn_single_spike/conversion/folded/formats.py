"""Chooses the format of spikes in a converted model, for ``spike_format="auto"``.

In the first call every neuron returns dense spikes, and :class:`Readers` records the functions that
read them. A neuron whose spikes reach nothing but linear layers with neurons behind them can return
spike times from the second call on. It does where the layer behind is then faster, by the rules of
:mod:`snn_single_spike.spikes.choice`.
"""

from __future__ import annotations

import ast
import functools
import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ...spikes import SpikeEvents, choice
from ...spikes.between import MAX_POOLS, windows_side_by_side
from ...spikes.choice import Layer
from ...spikes.lazy import LazyTensor
from ..source.place import of_torch
from ..source.repeated import source_of_forward
from ..watching import Watching

__all__ = ["Formats", "Readers", "choose_formats"]

INPUT = ""
"""The path of the model's first input, which is no neuron."""

_RESHAPES = {
    *(torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view),
}
_OF_SHAPE = {
    *("__len__", "dim", "size", "numel", "nelement", "ndimension", "stride", "is_contiguous"),
    *("is_floating_point", "is_complex", "element_size", "get_device"),
}
_PROPERTIES = {
    *("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_cpu"),
    "_version",  # read by loops over time
}
"""Names of functions and properties that read the shape, type or device of a tensor."""


class _Known(NamedTuple):
    """A tensor whose readers are recorded."""

    tensor: Any
    """Kept, so that no other tensor gets its id."""
    role: str
    """"spikes" (folded), the "current" of a layer on them, a "pooled" current, or a "membrane"."""
    path: str
    layer: Layer | None = None
    """The layer of the current."""
    made_by: Any = None
    """The node of autograd. A function of the user's own gives the same tensor another node."""


@dataclass
class Formats:
    """The readers of the spikes of a model."""

    layers: dict[str, list[Layer]] = field(default_factory=dict)
    """Neurons whose spikes reach linear layers and convolutions with neurons only: these layers."""
    membranes: set[str] = field(default_factory=set)
    """Neurons whose membrane is read."""
    opened: set[str] = field(default_factory=set)
    """Neurons behind which linear layers compute their current as a tensor."""

    def spike_times(self, neuron: Any, shape: torch.Size) -> bool:
        """Whether a neuron with a dense current (T, B, *features) returns spike times."""
        layers = self.layers.get(neuron.path)
        if not layers:
            return False
        num_steps, batch, *_ = shape
        pay = all(choice.spike_times_pay(num_steps, batch, layer) for layer in layers)
        return pay and choice.is_measured(neuron.backend, neuron.threshold)

    def sequence(self, path: str, x: Any) -> Any:
        """A sequence (T, B, *features) that the model reads, as events if they pay."""
        layers = self.layers.get(path)
        if not layers or not isinstance(x, Tensor):
            return x
        if not all(choice.events_pay(x, layer) for layer in layers):
            return x
        events = SpikeEvents.from_dense(x)
        events.opened = path in self.opened
        return events

    def input(self, x: Any, time: Any) -> Any:
        """The first input of a model of one time step, folded, as events if they pay."""
        if not self.layers.get(INPUT) or not isinstance(x, Tensor):
            return x
        dense = time.unfold(x)
        sequence = self.sequence(INPUT, dense)
        return x if sequence is dense else time.fold(sequence)


def _reads_shape(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(function.__self__, "__name__", "") in _PROPERTIES  # type: ignore[attr-defined]
    return name in _OF_SHAPE


def _node(x: Any) -> Any:
    with torch._C.DisableTorchFunction():  # the mode sees properties, too
        return x.grad_fn if isinstance(x, Tensor) else None


def _keeps_spikes(function: Callable[..., Any], spikes: Tensor, kwargs: Any, out: Any) -> bool:
    """Whether a function returns spike times unchanged, or in another shape."""
    if function in _RESHAPES:
        return out.dim() > 1 and out.shape[0] == spikes.shape[0]
    return function is F.dropout and not (kwargs["training"] and kwargs["p"])


def _layer(function: Callable[..., Any], args: Sequence[Any], out: Tensor) -> Layer | None:
    """The layer that a function computes, with spikes as its first argument."""
    if len(args) < 2 or not isinstance(args[1], Tensor) or args[1].layout is not torch.strided:
        return None
    weight = args[1]
    if function is F.linear and out.dim() == 2:
        return Layer(len(weight), weight.numel())
    if function in (F.conv1d, F.conv2d) and out.dim() == weight.dim():
        return Layer(len(weight), out[:1].numel() * weight[:1].numel(), convolution=True)
    return None


class Readers(Watching):
    """Records which functions read the spikes and membranes of a model, during one call."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, _Known] = {}
        self._sequences = {INPUT}  # paths that are no neurons
        self._dense: set[str] = set()  # neurons whose spikes are read by other functions
        self._membranes: set[str] = set()
        self._layers: dict[str, list[Layer]] = {}  # that read spikes
        self._neurons: dict[str, list[Any]] = {}  # behind these layers
        self._opened: set[str] = set()  # paths, behind which a current is read by anything else

    def given(self, x: Any) -> None:
        """The first input of the model, folded."""
        if isinstance(x, (Tensor, LazyTensor)):
            self._remember(_Known(x, "spikes", INPUT))

    def returned(self, neuron: Any, out: Any) -> None:
        """What a neuron has returned, folded."""
        if not hasattr(neuron, "spike_format"):
            return  # its spikes are always dense
        spikes, *membrane = out if isinstance(out, tuple) else (out,)
        self._remember(_Known(spikes, "spikes", neuron.path))
        for x in membrane:
            self._remember(_Known(x, "membrane", neuron.path))

    def read_by_neuron(self, neuron: Any, input_: Any) -> None:
        known = next(self._among(input_), None)
        if known is not None and known.role in ("current", "pooled"):
            self._neurons.setdefault(known.path, []).append(neuron)
        elif known is not None:
            self._other(known)

    def ended(self, out: Any, model: Any) -> None:
        """The forward has ended: who holds a tensor now, holds it for later."""
        for known in self._among((out, *map(vars, model.modules()))):
            self._other(known)
        if self._layers.keys() - self._dense:
            held = {id(x): known for x, known in self._held()}
            for known in held.values():
                self._other(known)

    def _held(self) -> Iterator[tuple[Any, _Known]]:
        """Tensors that objects, lists, closures, ... refer to. The caller holds the input."""
        tensors = [x.tensor for x in self._known.values() if x.path not in self._sequences]
        for holder in gc.get_referrers(*tensors):
            if not isinstance(holder, (_Known, FrameType)) and holder is not tensors:
                for x in gc.get_referents(holder):
                    if id(x) in self._known:
                        yield x, self._known[id(x)]

    def indexed(self, path: str, folded: Any) -> None:
        """All steps of a sequence that a loop over time has indexed."""
        self._sequences.add(path)
        self._remember(_Known(folded, "spikes", path))

    def formats(self) -> Formats:
        found, opened = {}, set()
        for path, layers in self._layers.items():
            read_as_tensor = any(map(self._reads_tensor, self._neurons.get(path, ())))
            convolutions = any(layer.convolution for layer in layers)
            if path in self._dense or (read_as_tensor and convolutions):
                continue
            found[path] = layers
            if read_as_tensor or path in self._opened:
                opened.add(path)
        return Formats(found, self._membranes, opened)

    def _reads_tensor(self, neuron: Any) -> bool:
        """Whether a neuron computes from a dense current only, or its membrane is read."""
        leaky = hasattr(neuron, "spike_format") and neuron._surrogate()[1] is None
        # A neuron with a refractory period computes its membrane at every step.
        return not leaky or neuron.refractory is not None or neuron.path in self._membranes

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if not self._paused:
            self._saw(function, args, kwargs or {}, out)
        return out

    def _saw(self, function: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
        found = list(self._among((args, kwargs)))
        if not found or _reads_shape(function):
            return
        (first, *others) = found
        role = "" if others or not args or first.tensor is not args[0] else first.role
        pools = role == "current" and function in MAX_POOLS
        if pools and windows_side_by_side(function, *args[1:], **kwargs):
            self._remember(first._replace(tensor=out, role="pooled"))
        elif role != "spikes":
            for known in found:
                self._other(known)
        elif (layer := _layer(function, args, out)) is not None:
            self._layers.setdefault(first.path, []).append(layer)
            self._remember(_Known(out, "current", first.path, layer))
        elif _keeps_spikes(function, first.tensor, kwargs, out):
            self._remember(first._replace(tensor=out))
        else:
            self._other(first)

    def _remember(self, known: _Known) -> None:
        self._known[id(known.tensor)] = known._replace(made_by=_node(known.tensor))

    def _among(self, values: Any) -> Iterator[_Known]:
        for leaf in tree_leaves(values, is_leaf=lambda x: isinstance(x, LazyTensor)):
            known = self._known.get(id(leaf))
            if known is None:
                continue
            if _node(leaf) is not known.made_by:  # a function of the user's own has made it
                self._other(known)
                self._dense.add(known.path)
            yield known

    def _other(self, known: _Known) -> None:
        if known.role == "membrane":
            self._membranes.add(known.path)
        elif known.role == "current" and known.layer is not None and not known.layer.convolution:
            self._opened.add(known.path)
        else:
            self._dense.add(known.path)


def choose_formats(forward: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """``forward`` of a model that was converted with ``spike_format="auto"``."""
    if torch.compiler.is_compiling():
        return forward
    parts = tuple(model.modules())
    if _sees_tensors(model, parts):
        return forward
    conversion = model._single_spike
    time = conversion.time

    def run(model: Any, *args: Any, **kwargs: Any) -> Any:
        key = _kind_of_call(model, parts, args, kwargs)
        time.formats = conversion.formats.get(key)
        try:
            if time.formats is None:
                out, conversion.formats[key] = first(model, args, kwargs)
                return out
            if args and not conversion.looped:
                args = (time.formats.input(args[0], time), *args[1:])
            return forward(model, *args, **kwargs)
        finally:
            time.formats = None

    def first(model: Any, args: Any, kwargs: Any) -> tuple[Any, Formats]:
        readers = time.readers = Readers()
        if args and conversion.num_steps is None and not conversion.looped:
            readers.given(args[0])
        try:
            with readers:
                out = forward(model, *args, **kwargs)
        finally:
            time.readers = None
        readers.ended(out, model)
        return out, readers.formats()

    return run


def _kind_of_call(model: Any, parts: tuple[Any, ...], args: Any, kwargs: Any) -> Any:
    """What the readers of spikes depend on, apart from the sizes of a batch."""

    def kind(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.dim(), x.dtype, x.requires_grad
        return x if isinstance(x, (bool, int, float, str, type(None))) else type(x)

    given = tuple(map(kind, args)), tuple((name, kind(x)) for name, x in kwargs.items())
    rules = tuple([vars(part).get("spike_grad") for part in parts])
    return model.training, torch.is_grad_enabled(), given, parts, rules


def _sees_tensors(model: Any, parts: tuple[Any, ...]) -> bool:
    """Whether user code reads the tensors between the layers: hooks, ``isinstance``, ..."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    return any(
        (part is not model and _is_watched(part))
        or (not isinstance(part, SpikingNeuron) and _asks_for_types(cast(Hashable, type(part))))
        for part in parts
    )


def _is_watched(part: torch.nn.Module) -> bool:
    """Whether hooks see the tensors of a part of the model, or torch.compile its code."""
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or part._compiled_call_impl is not None
        or "_orig_mod" in part._modules  # torch.compile(part)
    )


@functools.cache
def _asks_for_types(kind: Any) -> bool:
    """Whether the forward of a class asks whether a value is a tensor."""
    if of_torch(kind):
        return False
    return any(
        (isinstance(node, ast.Name) and node.id in ("isinstance", "type", "issubclass"))
        or (isinstance(node, ast.Attribute) and node.attr == "is_tensor")
        for node in source_of_forward(kind)
    )
