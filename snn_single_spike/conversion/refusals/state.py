"""State that a model keeps from step to step, which a converted model cannot carry.

A loop over time calls ``forward`` at every step, and an attribute that ``forward`` writes is there
at the next step. A converted model runs all steps in one call. :func:`reject_state` finds such
attributes in the source. :class:`Snapshot` finds the others when they change: it compares the
attributes, closures and globals of the user's code before and after a call. Records, which nothing
reads, are allowed. So are membranes, which go back to their neuron only.
"""

from __future__ import annotations

import array
import collections
import contextvars
import functools
import gc
import inspect
import operator
import pickle
import random
import sys
import sysconfig
import types
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ...modules._base import STATES
from ...spikes.lazy import LazyTensor
from ..source.dataflow import flow_of, flow_of_module
from ..source.methods import entry_of
from ..source.place import of_package, of_torch
from ..source.repeated import states_of_loops
from .layers import DROPOUT, ConversionError, is_delay

__all__ = [
    "INTERNAL",
    "Binding",
    "Snapshot",
    "computed_by_torch",
    "detached",
    "is_own_state",
    "is_users_class",
    "is_users_code",
    "mark_own_state",
    "membranes",
    "reject_changes",
    "reject_state",
    "states_read",
]

INTERNAL = {*vars(nn.Module()), "_single_spike", "_is_full_backward_hook", "_is_replica"}
_OF_CONVERSION = {"_original", "_rewritten", "_rewritten_bases"}  # names of a converted class
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
_SIMPLE = {int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size}
_CONTAINERS = (list, tuple, set, frozenset, collections.deque, dict)
_BUILT_IN = {*_CONTAINERS}
_LONGEST = 64  # elements of a container that are compared, at either end
_DEPTH = 4
_DRAWING = (DROPOUT, nn.RReLU, nn.MultiheadAttention)
_LINK = "_lru_list_elem"  # an entry of a cache of limited size
_MARK = "_single_spike_state_of"
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"


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
                f"{_layer(path, module)} reads {'.'.join(('self', *name))!r} ({line}). In a "
                "converted model a neuron holds the state of the last step, not of this one. Use "
                "the membrane that the neuron returns: make it with output=True, or without "
                "init_hidden"
            )
        for name, line in flow.states():
            if _is_statistic(module, name[0]):  # read in a forward of its own, as torch reads it
                continue
            named = ".".join(("self", *(part for part in name if part[0] != "[")))
            raise _state_error(_layer(path, module), named, f" ({line})")


def _state_error(where: str, name: str, line: str = "") -> ConversionError:
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


class Snapshot:
    """The values of all that the code of a model can change, at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[tuple[Any, str], Any] = {}
        self.weights: dict[tuple[nn.Module, str], Any] = {}
        self.settings: dict[tuple[Any, str], Any] = {}  # numbers and flags, by attribute
        self._flags: list[Any] = []
        self.generators: list[torch.Generator] = []
        self.objects: list[Any] = []  # which are alive here, so that their ids stay their own
        modules = list(model.modules())
        self._registered = set(modules)
        functions: dict[Callable[..., Any], Any] = {}
        classes: dict[type, None] = {}
        for index, module in enumerate(modules):
            kind: Any = type(module)
            self._add_weights(module)
            if module._forward_pre_hooks or module._forward_hooks:
                for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
                    self._add_callable(hook, functions)
            elif of_torch(kind):
                if isinstance(module, _DRAWING):
                    rates = (getattr(module, name, None) for name in ("p", "dropout"))
                    self.settings[index, "training"] = module.training, *rates
                continue
            if isinstance(module, SpikingNeuron):
                continue
            self.settings[index, "training"] = module.training
            for name, value in module.__dict__.items():
                if name not in INTERNAL:
                    self._add(module, name, value, index)
                    if isinstance(value, types.FunctionType):
                        functions[value] = None
            if not of_torch(kind):
                classes.update(dict.fromkeys(kind.__mro__))
                for name, value in module._buffers.items():
                    if value is not None and not _is_statistic(module, name):
                        self._add(module, name, value)
                functions.update(_methods(kind))
        for cls in classes:
            self._add_class(cls)
        for function in _followed(tuple(functions)):
            for name, value in vars(function).items():
                if name != "__wrapped__":
                    self._add(function, name, value)
        self.bindings = _bindings(tuple(functions))
        for binding in self.bindings:
            value = binding.value()
            if isinstance(value, type):
                self._add_class(value)
            else:
                self._add(binding.holder, binding.name, value)
            if isinstance(value, functools._lru_cache_wrapper):
                for result in _cached(value):
                    self._add(_Cached(result), binding.name, result)
                    self.settings.pop((_Cached(result), binding.name), None)

    def _add_weights(self, module: nn.Module) -> None:
        """Parameters, and buffers of layers that change none: a forward must not write them."""
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):  # max_norm scales rows in place
            return
        fixed = isinstance(module, (SpikingNeuron, nn.Linear, nn.modules.conv._ConvNd))
        buffers = fixed and not module._forward_pre_hooks  # old spectral_norm is such a hook
        held = (*module._parameters.items(), *(module._buffers.items() if buffers else ()))
        for name, value in held:
            if value is not None and not nn.parameter.is_lazy(value):
                self.weights[module, name] = value, _print_tensor(value)

    def _add_callable(self, hook: Any, functions: dict[Callable[..., Any], Any]) -> None:
        while isinstance(hook, functools.partial):
            self._add(hook.func, "arguments", (hook.args, hook.keywords))
            hook = hook.func
        if of_package(type(hook).__module__) or of_package(getattr(hook, "__module__", "") or ""):
            return
        holder = getattr(hook, "__self__", None)
        function = getattr(hook, "__func__", hook)
        if not inspect.isfunction(function):
            holder, function = hook, type(hook).__call__
        if holder is not None and not isinstance(holder, nn.Module):
            for name, value in getattr(holder, "__dict__", {}).items():
                self._add(_Holder(holder, function), name, value)
        if inspect.isfunction(function):
            functions[function] = holder if isinstance(holder, nn.Module) else None

    def _add_class(self, cls: type) -> None:
        if _may_keep_values(cls):
            for name, value in vars(cls).items():
                held = type(value) in _SIMPLE or isinstance(value, _CONTAINERS)
                if held and not name.startswith("__") and name not in _OF_CONVERSION:
                    self._add(cls, name, value)

    def _add(self, holder: Any, name: str, value: Any, index: int | None = None) -> None:
        self._flags = []
        self.values[holder, name] = self._print(value, _DEPTH)
        if self._flags:
            # Replicas of a model have other modules, in the same order.
            self.settings[holder if index is None else index, name] = self._flags

    def _print(self, value: Any, depth: int) -> Any:
        """A value that differs after any change of an object, short of deep ones."""
        kind = type(value)
        if kind in _SIMPLE:
            self._flags.append(value)
            return kind, value
        self.objects.append(value)
        if isinstance(value, Tensor):
            return _print_tensor(value)
        if depth == 0 or isinstance(value, (type, types.ModuleType)):
            return id(value)
        if isinstance(value, nn.Module):
            hidden = value not in self._registered and not of_torch(kind)
            held = [(k, v) for k, v in vars(value).items() if k not in INTERNAL or k == "_buffers"]
            return id(value), hidden and [(k, self._print(v, depth - 1)) for k, v in held]
        if isinstance(value, _CONTAINERS):
            own = () if kind in _BUILT_IN else self._print_object(value, depth)
            if isinstance(value, dict):
                items = [(k, self._print(v, depth - 1)) for k, v in _ends(value.items())]
                return id(value), len(value), items, own
            return id(value), len(value), [self._print(x, depth - 1) for x in _ends(value)], own
        return id(value), *self._print_object(value, depth)

    def _print_object(self, value: Any, depth: int) -> tuple[Any, ...]:
        if isinstance(value, np.ndarray):
            sample = value if value.size < 1 << 14 else value.ravel()[:: value.size >> 13]
            return (zlib.crc32(np.ascontiguousarray(sample).tobytes()),)
        if isinstance(value, torch.Generator):
            self.generators.append(value)
        elif isinstance(value, random.Random):
            return (hash(value.getstate()),)
        elif isinstance(value, (np.random.Generator, np.random.RandomState)):
            return (zlib.crc32(pickle.dumps(value)),)
        elif isinstance(value, types.FunctionType):
            cells = (getattr(cell, "cell_contents", None) for cell in value.__closure__ or ())
            held = (*cells, vars(value), value.__defaults__)
            return tuple(self._print(x, depth - 1) for x in held)
        elif isinstance(value, (types.MethodType, functools.partial)):
            parts = ("__self__", "func", "args", "keywords")
            return tuple(self._print(getattr(value, part, None), depth - 1) for part in parts)
        elif isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            return (frame.f_lasti, self._print(frame.f_locals, depth - 1)) if frame else ()
        elif isinstance(value, (bytearray, array.array)):
            return (zlib.crc32(value),)
        elif isinstance(value, contextvars.ContextVar):
            return (self._print(value.get(None), depth - 1),)
        elif isinstance(value, Iterator):
            return (repr(value), operator.length_hint(value))
        elif isinstance(value, types.SimpleNamespace) or is_users_class(type(value)):
            slots = (s for c in type(value).__mro__ for s in getattr(c, "__slots__", ()))
            own = {s: getattr(value, s, None) for s in slots} | getattr(value, "__dict__", {})
            return tuple((k, self._print(v, depth - 1)) for k, v in _ends(own.items()))
        return ()

    def has_settings(self, settings: dict[tuple[Any, str], Any], records: Iterable[Any]) -> bool:
        """Whether numbers and flags are those given, but for records."""
        if self.settings == settings:
            return True
        keys = self.settings.keys() | settings.keys()
        changed = {key for key in keys if self.settings.get(key) != settings.get(key)}
        return {name for _, name in changed} <= {name for _, name in records}

    def changes(self, after: Snapshot) -> Iterator[tuple[Any, str]]:
        """What has changed or is new, as holders and names."""
        if self.values != after.values:
            for key, value in after.values.items():
                new = key not in self.values
                made = new and isinstance(key[0], _Cached)  # in the first use of a function
                if not made and (new or self.values[key] != value):
                    yield key


def _print_tensor(value: Tensor) -> tuple[int, int | None]:
    return id(value), None if value.is_inference() else value._version


def reject_changes(model: nn.Module, before: Snapshot, records: set[tuple[Any, str]]) -> Snapshot:
    """Raise ConversionError if a call has changed a value that a later call can read.

    :param before: the values before the call
    :param records: changes that are allowed; the function adds to them
    :return: the values after the call
    """
    after = Snapshot(model)
    for key, (_, printed) in before.weights.items():
        if after.weights.get(key, (None, printed))[1] != printed:
            raise _changed(model, *key)
    for holder, name in before.changes(after):
        record = type(holder) if isinstance(holder, nn.Module) else holder, name
        if record not in records:
            if not _is_record(model, holder, name):
                raise _changed(model, holder, name)
            records.add(record)
    return after


def _is_record(model: nn.Module, holder: Any, name: str) -> bool:
    """Whether nothing reads the value of an earlier call, except neurons their own states."""
    if isinstance(holder, _Cached):
        return False
    if isinstance(holder, _Holder):  # an object with a hook
        return flow_of(holder.value, holder.function).only_writes(name)
    if inspect.isfunction(holder):
        own = holder.__name__
        flows = [
            flow_of(None, function, [own])
            for function in _functions(model)
            if own in _names(function) and name in {*_names(function), *function.__code__.co_consts}
        ]
        return bool(flows) and all(flow.only_writes(own, name) for flow in flows)
    if not isinstance(holder, (nn.Module, type)):
        return all(
            flow_of(None, function, [name]).only_writes(name)
            for function in _functions(model)
            # A parameter with a default belongs to its function only.
            if name in _names(function) or id(function) == holder
        )
    flows = [flow_of_module(module) for module in model.modules()]
    elsewhere = [
        (flow_of(None, hook, modules), modules) for hook, modules in _hooks_with_modules(model)
    ]
    others = [flow for flow, _ in elsewhere]
    if any(name in flow.foreign for flow in (*flows, *others)):
        return False
    if isinstance(holder, type):
        return not any(name in path for flow in flows for path in flow.reads)
    value, flow = getattr(holder, name, None), flow_of_module(holder)
    if isinstance(value, (nn.Module, nn.Parameter)) or name in computed_by_torch(holder):
        return True  # made in the first call
    written = {path[0] for path in flow.writes}
    cached = inspect.getattr_static(type(holder), name, None)
    if isinstance(cached, functools.cached_property) and name not in written:
        return True
    outside = (found.foreign_writes for found in (*flows, *others))
    by_hooks = (
        {path[1] for path in x.writes if path[0] in own and path[1:]} for x, own in elsewhere
    )
    if name not in written.union(*outside, *by_hooks):
        return False  # by code that was not analysed
    if not all(hook.only_writes(own, name) for hook, modules in elsewhere for own in modules):
        return False
    unread = not any(path[0] == name for path in flow.early)
    return flow.only_writes(name) or (flow.complete and unread and _are_states(value))


def _hooks_with_modules(model: nn.Module) -> Iterator[tuple[Any, list[str]]]:
    """Hooks, and the names by which they refer to modules."""
    for hook, owner in _hooks(model).items():
        names = [x.name for x in _outer_names(hook) if isinstance(x.value(), nn.Module)]
        yield hook, names if owner is None else [*names, hook.__code__.co_varnames[0]]


def _hooks(model: nn.Module) -> dict[Callable[..., Any], Any]:
    """Hooks, and the modules that they are methods of."""
    scan = Snapshot(nn.Module())
    found: dict[Callable[..., Any], Any] = {}
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            scan._add_callable(hook, found)
    return found


def _functions(model: nn.Module) -> tuple[Any, ...]:
    """The user's functions that a call can run, as far as they are named."""
    kinds: set[Any] = {type(module) for module in model.modules()}
    methods = (function for kind in kinds for function in _methods(kind))
    values = (value for module in model.modules() for value in vars(module).values())
    held = (value for value in values if isinstance(value, types.FunctionType))
    return _followed((*_hooks(model), *methods, *held))


def _are_states(value: Any) -> bool:
    """Whether all tensors of a value are states that neurons have returned."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(map(_are_states, value))
    return hasattr(value, _MARK)


def _changed(model: nn.Module, holder: Any, name: str) -> ConversionError:
    if isinstance(holder, nn.Module):
        path = next(path for path, module in model.named_modules() if module is holder)
        where, named = _layer(path, holder), f"self.{name}"
        line = next(
            (f" ({x})" for p, x in flow_of_module(holder).writes.items() if p[0] == name), ""
        )
        value = getattr(holder, name, None)
        if name in membranes(holder):
            return ConversionError(
                f"{where} keeps {named!r}{line} for the next call of a neuron, but not as the "
                "neuron returns it. Every call of a converted model starts from zeros: assign the "
                "membrane that the neuron returns, unchanged, or call the neuron without it"
            )
    else:
        where, named, value = "the code of the model", name, None
        if inspect.isfunction(holder):
            name = holder.__name__
            named = f"{name}.{named}"
        naming = (f.__code__ for f in _functions(model) if name in _names(f))
        line = next((f" ({code.co_filename}:{code.co_firstlineno})" for code in naming), "")
    if isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
        return ConversionError(
            f"{where} draws from {named!r}, a generator outside of torch. A loop over time draws "
            "at every step, and a converted model draws once for all steps. Draw with torch, one "
            "entry for each row of the input: torch.rand_like(x), torch.bernoulli(x)"
        )
    return _state_error(where, named, line)


def _layer(path: str, module: nn.Module) -> str:
    name = next(c.__name__ for c in type(module).__mro__ if c.__name__[:9] != "Converted")
    return f"layer {path!r} ({name})" if path else f"the model ({name})"


def _is_statistic(module: nn.Module, name: str) -> bool:
    """Whether torch updates a buffer, in a subclass of its BatchNorm."""
    return name in _STATISTICS and isinstance(module, nn.modules.batchnorm._NormBase)


@functools.lru_cache(1024)
def _may_keep_values(cls: type) -> bool:
    """Whether a class is the user's, whose attributes a forward may change."""
    return not of_torch(cls) and is_users_class(cls)


def is_users_class(cls: type) -> bool:
    """Whether a class is defined in the user's code."""
    module = sys.modules.get(cls.__module__)
    return module is None or _is_users_module(module)


def is_users_code(hook: Any) -> bool:
    """Whether a hook is the user's or torch's, and not that of another package, as a logger's."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    if of_package(getattr(hook, "__module__", None) or type(hook).__module__):
        return True
    function = getattr(hook, "__func__", hook)
    return _is_users(function if inspect.isfunction(function) else type(hook).__call__)


class _ByIdentity:
    """A holder that equals another one of its kind if both hold the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Holder(_ByIdentity):
    """An object whose method is a hook."""

    def __init__(self, value: Any, function: Any) -> None:
        super().__init__(value)
        self.function = function


class _Cached(_ByIdentity):
    """A result that a function keeps in its cache."""


def _cached(function: Any) -> Iterator[Any]:
    """The results in the cache of ``functools.lru_cache`` or ``functools.cache``."""
    unlimited = function.cache_info().maxsize is None
    for part in gc.get_referents(function):
        if type(part) is not dict:
            if not unlimited and not isinstance(part, (type, types.FunctionType)):
                yield part  # a cache of limited size refers to its results
        elif part is not vars(function):
            links = all(type(value).__name__ == _LINK for value in part.values())
            yield from part.values() if unlimited else () if links else (part,)


class Binding(NamedTuple):
    """A name of a function that means something outside of it: a closure, a global, a default."""

    holder: Any
    name: str
    place: Any  # the dictionary of globals, the cell, or the parameter

    def value(self) -> Any:
        """The value now; None if there is none."""
        if isinstance(self.place, dict):
            return self.place.get(self.name)
        if isinstance(self.place, inspect.Parameter):
            return self.place.default
        return getattr(self.place, "cell_contents", None)  # a cell may be empty

    def set(self, value: Any) -> None:
        """Set the value, but for a default."""
        if isinstance(self.place, dict):
            self.place[self.name] = value
        elif isinstance(self.place, types.CellType):
            self.place.cell_contents = value


@functools.lru_cache(256)
def _bindings(functions: tuple[Callable[..., Any], ...]) -> list[Binding]:
    """The names of functions, and of the functions that they call."""
    return [
        binding
        for function in _followed(functions)
        for binding in _outer_names(function)
        if not _is_code(binding)
    ]


@functools.lru_cache(256)
def _followed(functions: tuple[Any, ...]) -> tuple[Any, ...]:
    """User's functions, and the functions that they name."""
    found: dict[Any, None] = {}
    waiting = list(functions)
    while waiting:
        function = waiting.pop()
        waiting.extend(_wrapped(function))
        if function in found or not _is_users(function):
            continue
        found[function] = None
        for binding in _outer_names(function):
            value = binding.value()
            if inspect.isfunction(value):
                waiting.append(value)
    return tuple(found)


@functools.cache
def _methods(kind: Any) -> dict[Any, None]:
    """The forward of a class, and the methods that it calls."""
    found: dict[Any, None] = {}
    waiting: list[Any] = [getattr(kind, entry_of(kind), None)]
    while waiting:
        function = waiting.pop()
        waiting.extend(_wrapped(function))
        if inspect.isfunction(function) and function not in found and _is_users(function):
            found[function] = None
            named = (getattr(kind, name, None) for name in _names(function))
            waiting += [method for method in named if inspect.isfunction(method)]
    return found


def _wrapped(function: Any) -> tuple[Any, ...]:
    """The function inside a decorator, which may itself keep a state in its closure."""
    inner = getattr(function, "__wrapped__", None)
    return () if inner is None else (inner,)


def _is_users(function: Any) -> bool:
    if not inspect.isfunction(function) or of_package(function.__module__ or ""):
        return False
    file = function.__code__.co_filename
    return not any(part in file for part in ("site-packages", "dist-packages", _STANDARD_LIBRARY))


def _outer_names(function: Any) -> Iterator[Binding]:
    names = _names(function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Binding(id(function), name, cell)
    for name, parameter in inspect.signature(function, follow_wrapped=False).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            yield Binding(id(function), name, parameter)
    space = function.__globals__
    for name in names & space.keys():
        value = space[name]
        if not isinstance(value, types.ModuleType):
            yield Binding(space.get("__name__"), name, space)
        elif _is_users_module(value):
            for inner in names & vars(value).keys():
                yield Binding(value.__name__, inner, vars(value))


@functools.cache
def _is_users_module(module: types.ModuleType) -> bool:
    name, file = module.__name__, getattr(module, "__file__", None) or ""
    if of_package(name) or name.partition(".")[0] in sys.stdlib_module_names:
        return False
    return not any(part in file for part in ("site-packages", "dist-packages", _STANDARD_LIBRARY))


def _is_code(binding: Binding) -> bool:
    value = binding.value()
    return isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.ModuleType))


@functools.cache
def _names(function: Any) -> frozenset[str]:
    """All names in the code of a function that are not its own."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names, code.co_freevars)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(names)


def _ends(values: Any) -> Any:
    """The first and the last elements of a long container."""
    if len(values) <= 2 * _LONGEST:
        return values
    if not isinstance(values, (list, tuple)):
        values = list(values)
    return [*values[:_LONGEST], *values[-_LONGEST:]]
