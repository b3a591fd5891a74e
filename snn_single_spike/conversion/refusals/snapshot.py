"""Changes that a call of a model makes to what a later call can read.

:class:`Snapshot` holds the attributes, closures and globals of the user's code at one moment.
:func:`reject_changes` compares two of them. Records, which nothing reads, are allowed. So are
membranes, which go back to their neuron only.
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
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..source.dataflow import flow_of, flow_of_module
from ..source.place import of_package, of_torch
from ..source.users_code import (
    bindings,
    followed,
    is_users_class,
    methods_of,
    names_of,
    outer_names,
)
from .layers import DROPOUT, ConversionError
from .state import (
    INTERNAL,
    are_states,
    computed_by_torch,
    is_statistic,
    membranes,
    name_of_layer,
    state_error,
)

__all__ = ["Snapshot", "reject_changes"]

_OF_CONVERSION = {"_original", "_rewritten", "_rewritten_bases"}  # names of a converted class
_SIMPLE = {int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size}
_CONTAINERS = (list, tuple, set, frozenset, collections.deque, dict)
_BUILT_IN = {*_CONTAINERS}
_LONGEST = 64  # elements of a container that are compared, at either end
_DEPTH = 4
_FIXED = (SpikingNeuron, nn.Linear, nn.modules.conv._ConvNd)
"""Layers that change no buffer."""
_DRAWING = (DROPOUT, nn.RReLU, nn.MultiheadAttention)
_LINK = "_lru_list_elem"  # an entry of a cache of limited size


class Snapshot:
    """The values of all that the code of a model can change, at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[tuple[Any, str], Any] = {}
        self.weights: dict[tuple[nn.Module, str], Any] = {}
        self.settings: dict[tuple[Any, str], Any] = {}  # numbers and flags, by attribute
        self._flags: list[Any] = []
        self.generators: list[torch.Generator] = []
        self.objects: list[Any] = []  # which are alive here, so that their ids stay their own
        self.modules = list(model.modules())
        self._registered = set(self.modules)
        functions: dict[Callable[..., Any], Any] = {}
        classes: dict[type, None] = {}
        for index, module in enumerate(self.modules):
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
                    if value is not None and not is_statistic(module, name):
                        self._add(module, name, value)
                functions.update(methods_of(kind))
        for cls in classes:
            self._add_class(cls)
        for function in followed(tuple(functions)):
            for name, value in vars(function).items():
                if name != "__wrapped__":
                    self._add(function, name, value)
        self.bindings = bindings(tuple(functions))
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
        held: dict[str, Any] = module._parameters
        if module._buffers and isinstance(module, _FIXED) and not module._forward_pre_hooks:
            held = {**held, **module._buffers}  # old spectral_norm is such a hook
        for name, value in held.items():
            if value is not None and not is_lazy(value):
                self.weights[module, name] = value, _version(value)

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
    return id(value), _version(value)


def _version(value: Tensor) -> int | None:
    return None if value.is_inference() else value._version


def reject_changes(model: nn.Module, before: Snapshot, records: set[tuple[Any, str]]) -> Snapshot:
    """Raise ConversionError if a call has changed a value that a later call can read.

    :param before: the values before the call
    :param records: changes that are allowed; the function adds to them
    :return: the values after the call
    """
    after = Snapshot(model)
    for key, held in before.weights.items():
        value, version = after.weights.get(key, held)
        if value is not held[0] or version != held[1]:
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
            if own in names_of(function)
            and name in {*names_of(function), *function.__code__.co_consts}
        ]
        return bool(flows) and all(flow.only_writes(own, name) for flow in flows)
    if not isinstance(holder, (nn.Module, type)):
        return all(
            flow_of(None, function, [name]).only_writes(name)
            for function in _functions(model)
            # A parameter with a default belongs to its function only.
            if name in names_of(function) or id(function) == holder
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
    return flow.only_writes(name) or (flow.complete and unread and are_states(value))


def _hooks_with_modules(model: nn.Module) -> Iterator[tuple[Any, list[str]]]:
    """Hooks, and the names by which they refer to modules."""
    for hook, owner in _hooks(model).items():
        names = [x.name for x in outer_names(hook) if isinstance(x.value(), nn.Module)]
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
    methods = (function for kind in kinds for function in methods_of(kind))
    values = (value for module in model.modules() for value in vars(module).values())
    held = (value for value in values if isinstance(value, types.FunctionType))
    return followed((*_hooks(model), *methods, *held))


def _changed(model: nn.Module, holder: Any, name: str) -> ConversionError:
    if isinstance(holder, nn.Module):
        path = next(path for path, module in model.named_modules() if module is holder)
        where, named = name_of_layer(path, holder), f"self.{name}"
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
        naming = (f.__code__ for f in _functions(model) if name in names_of(f))
        line = next((f" ({code.co_filename}:{code.co_firstlineno})" for code in naming), "")
    if isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
        return ConversionError(
            f"{where} draws from {named!r}, a generator outside of torch. A loop over time draws "
            "at every step, and a converted model draws once for all steps. Draw with torch, one "
            "entry for each row of the input: torch.rand_like(x), torch.bernoulli(x)"
        )
    owner = holder if isinstance(holder, nn.Module) else model
    has_loop = bool(getattr(owner, "_rewritten", ()))
    return state_error(where, named, line, has_loop)


@functools.lru_cache(1024)
def _may_keep_values(cls: type) -> bool:
    """Whether a class is the user's, whose attributes a forward may change."""
    return not of_torch(cls) and is_users_class(cls)


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


def _ends(values: Any) -> Any:
    """The first and the last elements of a long container."""
    if len(values) <= 2 * _LONGEST:
        return values
    if not isinstance(values, (list, tuple)):
        values = list(values)
    return [*values[:_LONGEST], *values[-_LONGEST:]]
