"""The user's functions that a call of a model can run, and the outer names that they refer to."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .methods import entry_of
from .place import of_package

__all__ = [
    "Binding",
    "bindings",
    "followed",
    "is_users_class",
    "is_users_code",
    "methods_of",
    "names_of",
    "outer_names",
]

_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + "/"


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
def bindings(functions: tuple[Callable[..., Any], ...]) -> list[Binding]:
    """The names of functions, and of the functions that they call."""
    return [
        binding
        for function in followed(functions)
        for binding in outer_names(function)
        if not _is_code(binding)
    ]


@functools.lru_cache(256)
def followed(functions: tuple[Any, ...]) -> tuple[Any, ...]:
    """User's functions, and the functions that they name."""
    found: dict[Any, None] = {}
    waiting = list(functions)
    while waiting:
        function = waiting.pop()
        waiting.extend(_wrapped(function))
        if function in found or not _is_users(function):
            continue
        found[function] = None
        for binding in outer_names(function):
            value = binding.value()
            if inspect.isfunction(value):
                waiting.append(value)
    return tuple(found)


@functools.cache
def methods_of(kind: Any) -> dict[Any, None]:
    """The forward of a class, and the methods that it calls."""
    found: dict[Any, None] = {}
    waiting: list[Any] = [getattr(kind, entry_of(kind), None)]
    while waiting:
        function = waiting.pop()
        waiting.extend(_wrapped(function))
        if inspect.isfunction(function) and function not in found and _is_users(function):
            found[function] = None
            named = (getattr(kind, name, None) for name in names_of(function))
            waiting += [method for method in named if inspect.isfunction(method)]
    return found


def _wrapped(function: Any) -> tuple[Any, ...]:
    """The function inside a decorator, which may itself keep a state in its closure."""
    inner = getattr(function, "__wrapped__", None)
    return () if inner is None else (inner,)


def _is_users(function: Any) -> bool:
    if not inspect.isfunction(function) or of_package(function.__module__ or ""):
        return False
    return not _is_installed(function.__code__.co_filename)


def _is_installed(file: str) -> bool:
    return any(part in file for part in ("site-packages", "dist-packages", _STANDARD_LIBRARY))


def outer_names(function: Any) -> Iterator[Binding]:
    names = names_of(function)
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
    return not _is_installed(file)


def _is_code(binding: Binding) -> bool:
    value = binding.value()
    return isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.ModuleType))


@functools.cache
def names_of(function: Any) -> frozenset[str]:
    """All names in the code of a function that are not its own."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names, code.co_freevars)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(names)
