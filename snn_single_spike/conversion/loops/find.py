"""Finds the loops over time in the methods of a module, and rejects loops that cannot run at once.

A loop over time calls neurons, and does not iterate over layers. It may be a ``for`` loop, a
``while`` loop that counts, or a comprehension.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ..refusals.layers import ConversionError
from ..source.dataflow import tree_of
from ..source.methods import (
    Method,
    called_on_self,
    entry_of,
    find_method,
    method_of_call,
    replace_inside,
    self_path,
)
from .plain import names, plain_loops, position, stored_names
from .rewrite import Rewritten, RewrittenMethod

__all__ = ["FoundLoop", "FoundLoops", "find_loops"]

_CHANGES = {"insert", "appendleft", "update", "setdefault", "pop", "popleft", "clear", "remove"}
_READS_VALUES = {"tolist", "numpy"}
_LOOPS = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)
_CHILDREN = {"children", "named_children", "modules", "named_modules"}
_REFUSED: dict[type, str] = {
    ast.Break: (
        "leaves the loop early. Let it run all its steps, and cut what it records behind it: "
        "torch.stack(spk_rec[:n])"
    ),
    ast.Continue: "skips a part of a step",
    ast.Return: "returns from inside of the loop. Return behind it",
    ast.While: "has a while loop in it",
    ast.Try: "catches exceptions in it",
    ast.FunctionDef: "defines a function in it",
    ast.Lambda: "defines a function in it",
    ast.ClassDef: "defines a class in it",
    ast.Global: "assigns global names",
    ast.Nonlocal: "assigns names of an outer function",
    ast.Delete: "deletes parts of objects",
    ast.Yield: "yields values",
    ast.YieldFrom: "yields values",
    ast.Await: "awaits",
    ast.Match: "has a match statement in it",
    ast.NamedExpr: "assigns names inside of expressions",
}
_ADVICE = (
    "A converted model runs all steps at once. Write a loop without it, or take the loop out of "
    "forward: forward must compute one step, and return the spikes and the membrane of this step "
    "(no stacking)"
)


@dataclass
class FoundLoop:
    """A loop over time in a method of a module."""

    place: str
    """File and line."""
    method: str
    error: ConversionError | None
    """Why it cannot run all steps at once, as far as its source shows."""


@dataclass
class FoundLoops:
    """The loops over time in the methods of a module."""

    loops: list[FoundLoop]
    rewritten: Rewritten
    """These methods, and the methods that the loops call."""

    def reject(self) -> None:
        """Raise ConversionError for a loop that cannot run all its steps at once."""
        for loop in self.loops:
            if loop.error is not None:
                raise loop.error


def find_loops(module: nn.Module) -> FoundLoops:
    """The loops over time in the methods of a module."""
    finder = _Finder(module)
    rewritten = finder.find()
    return FoundLoops(finder.loops, rewritten)


class _Finder:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.cls = module, type(module)
        self.neurons = {n for n, m in module.named_modules() if isinstance(m, SpikingNeuron) and n}
        self.loops: list[FoundLoop] = []

    def find(self) -> Rewritten:
        entry = find_method(self.cls, entry_of(self.cls)) if self.neurons else None
        if entry is None:
            return ()
        methods = self._reached(entry)
        found: dict[Any, RewrittenMethod] = {}
        inside: dict[Any, Method] = {}
        for key, method in methods.items():
            tree = tree_of(method.function)
            if not isinstance(tree, ast.FunctionDef):
                continue
            over_time = list(self._time_loops(tree, self._layer_names(tree)))
            places = tuple(position(tree, node) for node in over_time)
            if places:
                found[key] = RewrittenMethod(method.name, method.depth, places, False)
            plain = plain_loops(tree, places)
            by_place = {position(plain, n): n for n in ast.walk(plain) if isinstance(n, ast.For)}
            for node, place in zip(over_time, places, strict=True):
                loop = by_place.get(place)
                self._add(method, tree, node, loop)
                for statement in loop.body if loop else ():
                    self._called(method, statement, inside)
        for key, method in inside.items():
            if key not in found:
                found[key] = RewrittenMethod(method.name, method.depth, (), True)
        if not self.loops:
            return ()
        for key, method in reversed(methods.items()):  # methods that reach others by super()
            for node in ast.walk(tree_of(method.function)):
                called = called_on_self(node)
                base = self._method(method, node) if called and called[1] else None
                if base and (base.name, base.depth) in found and key not in found:
                    found[key] = RewrittenMethod(method.name, method.depth, (), False)
        return tuple(found.values())

    def _reached(self, entry: Method) -> dict[Any, Method]:
        """The methods that a call runs, the first one first."""
        found = {(entry.name, entry.depth): entry}
        waiting = [entry]
        while waiting:
            method = waiting.pop(0)
            tree = tree_of(method.function)
            for node in ast.walk(tree) if tree is not None else ():
                called = self._method(method, node)
                if called and (called.name, called.depth) not in found:
                    found[called.name, called.depth] = called
                    waiting.append(called)
        return {key: m for key, m in found.items() if tree_of(m.function) is not None}

    def _called(self, method: Method, tree: ast.AST, found: dict[Any, Method]) -> None:
        """Methods that a part of a method calls, directly or through others."""
        for node in ast.walk(tree):
            called = self._method(method, node)
            if called and (called.name, called.depth) not in found:
                inner = tree_of(called.function)
                if inner is not None:
                    found[called.name, called.depth] = called
                    self._called(called, inner, found)

    def _method(self, method: Method, node: ast.AST) -> Method | None:
        return method_of_call(self.cls, method, node)

    def _add(self, method: Method, tree: Any, node: Any, loop: ast.For | None) -> None:
        """Remember a loop, and whether its source shows that it cannot fold."""
        place = f"{inspect.getsourcefile(method.function)}:{node.lineno}"
        error = None
        try:
            if replace_inside(method.attribute, method.function, method.function) is None:
                _refuse(
                    method.function, node, "is in a method with a decorator that cannot be kept"
                )
            if loop is None:
                _refuse(method.function, node, _form(node))
            self._check(method, loop, self._layer_names(tree), loop)
            called: dict[Any, Method] = {}
            for statement in loop.body:
                self._called(method, statement, called)
            for inner in called.values():
                inner_tree = tree_of(inner.function)
                layers = self._layer_names(inner_tree)
                if next(self._time_loops(inner_tree, layers), None) is not None:
                    _refuse(inner.function, inner_tree, "calls a method with a loop over time")
                if replace_inside(inner.attribute, inner.function, inner.function) is None:
                    _refuse(inner.function, inner_tree, "calls a method with an unknown decorator")
                self._check(inner, inner_tree, layers, None)
        except ConversionError as refused:
            error = refused
        self.loops.append(FoundLoop(place, method.name, error))

    def _time_loops(self, tree: ast.AST, layers: set[str]) -> Iterator[Any]:
        """The outermost loops that call neurons and do not iterate over layers."""
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
                continue
            if self._is_time_loop(node, layers):
                yield node
            else:
                yield from self._time_loops(node, layers)

    def _is_time_loop(self, node: ast.AST, layers: set[str]) -> bool:
        if not isinstance(node, _LOOPS) or self._over_layers(node):
            return False
        return any(self._calls_neurons(x, layers, set()) for x in _repeated(node))

    def _calls_neurons(self, tree: ast.AST, layers: set[str], seen: set[str]) -> bool:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            root = node.func
            while isinstance(root, ast.Subscript):
                root = root.value
            if isinstance(root, ast.Name) and root.id in layers:
                return True
            if self._gets_attribute(root):
                return True
            path = ".".join(self_path(root) or ())
            if path and any(n == path or n.startswith(path + ".") for n in self.neurons):
                return True
            passed = [*node.args, *(keyword.value for keyword in node.keywords)]
            if isinstance(root, ast.Name) and any(ast.unparse(x) == "self" for x in passed):
                return True
            called = called_on_self(node)
            if called and called[0] not in seen and (method := find_method(self.cls, called[0])):
                seen.add(called[0])
                inner = tree_of(method.function)
                if inner is not None and self._calls_neurons(inner, self._layer_names(inner), seen):
                    return True
        return False

    def _gets_attribute(self, node: ast.AST) -> bool:
        """Whether an expression is ``getattr(self, name)``, which may be a neuron."""
        return (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "getattr"
            and bool(node.args)
            and ast.unparse(node.args[0]) == "self"
        )

    def _over_layers(self, node: Any) -> bool:
        """Whether a loop iterates over modules, or over indices of modules with neurons."""
        if isinstance(node, ast.While):
            return False
        generators = [node] if isinstance(node, ast.For) else node.generators
        if any(self._names_layers(generator.iter) for generator in generators):
            return True
        targets = stored_names([generator.target for generator in generators])
        return any(
            bool(targets & names(x.slice)) and self._has_neurons(x.value)
            if isinstance(x, ast.Subscript)
            else self._gets_attribute(x) and bool(targets & names(x))
            for x in ast.walk(node)
        )

    def _names_layers(self, tree: ast.AST) -> bool:
        called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            lists = isinstance(node, ast.Attribute) and node.attr in {*_CHILDREN, "_modules"}
            if lists and ast.unparse(node).startswith("self."):
                return True
            if id(node) not in called and isinstance(self._value(node), nn.Module):
                return True
        return False

    def _value(self, node: ast.AST) -> Any:
        """The attribute of the module that an expression is."""
        path = self_path(node)
        value: Any = self.module if path else None
        for name in path or ():
            value = getattr(value, name, None)
        return value

    def _has_neurons(self, node: ast.AST) -> bool:
        value = self._value(node)
        return isinstance(value, nn.Module) and any(
            isinstance(module, SpikingNeuron) for module in value.modules()
        )

    def _layer_names(self, tree: ast.AST) -> set[str]:
        """Local names of layers, and of functions in the method that call neurons."""
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, (ast.For, ast.comprehension)) and self._names_layers(node.iter):
                found |= stored_names([node.target])
            alias = isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call)
            if alias and not isinstance(node.value, _LOOPS) and self._names_layers(node.value):  # type: ignore[attr-defined]
                found |= stored_names(node.targets)  # type: ignore[attr-defined]
            gets = isinstance(node, ast.Assign) and self._gets_attribute(node.value)
            if gets:
                found |= stored_names(node.targets)  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            own = node is not tree and isinstance(node, ast.FunctionDef)
            if own and self._calls_neurons(node, found, set()):
                found.add(node.name)  # type: ignore[attr-defined]
        return found

    def _check(self, method: Method, tree: Any, layers: set[str], loop: Any) -> None:
        """Reject code that cannot run for all steps at once."""
        function = method.function
        stored = stored_names(tree.body)
        nested = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.For) and node is not loop
            for part in node.body
            for inner in ast.walk(part)
            if isinstance(inner, (ast.Break, ast.Continue))
        }
        if loop is not None and loop.orelse:
            _refuse(function, loop, "has an else branch. Write its code behind the loop")
        for node in (x for part in tree.body for x in ast.walk(part)):
            reason = _REFUSED.get(type(node))
            if isinstance(node, ast.Return) and loop is None:
                reason = None
            if isinstance(node, ast.Delete) and all(isinstance(x, ast.Name) for x in node.targets):
                reason = None
            if reason and id(node) not in nested:
                _refuse(function, node, reason)
            if self._is_time_loop(node, layers):
                _refuse(function, node, "has another loop in it that calls neurons")
            if isinstance(node, ast.Call):
                self._check_call(function, node, stored)

    def _check_call(self, function: Any, node: ast.Call, stored: set[str]) -> None:
        if any(keyword.arg == "out" for keyword in node.keywords):
            _refuse(function, node, "writes into a tensor with out=")
        if isinstance(node.func, ast.Name):
            name = node.func.id
            if name in ("locals", "setattr", "exec"):
                _refuse(function, node, f"calls {name}()")
            passed = [*node.args, *(keyword.value for keyword in node.keywords)]
            if name not in ("getattr", "hasattr", "isinstance", "len", "print", "super") and any(
                ast.unparse(x) == "self" for x in passed
            ):
                _refuse(
                    function, node, f"passes self to {name}(). Make {name} a method of the class"
                )
        if not isinstance(node.func, ast.Attribute):
            return
        name = node.func.attr
        if name in _READS_VALUES:
            _refuse(function, node, f"reads values of tensors with .{name}()")
        if name in _CHANGES:
            _refuse(function, node, f"changes a container with .{name}()")
        root: ast.AST = node.func.value
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(root, ast.Name) and root.id not in stored:
            _refuse(function, node, f"changes a value from before the loop with .{name}()")


def _repeated(node: Any) -> list[ast.AST]:
    """What a loop runs at every step."""
    if isinstance(node, (ast.For, ast.While)):
        return [*node.body]
    return [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]


def _form(node: ast.AST) -> str:
    """Why a loop is no plain ``for`` loop."""
    if isinstance(node, ast.While):
        return (
            "is a while loop. Write `for t in range(num_steps)`. (`t = 0`, `while t < num_steps:` "
            "and `t += 1` as its last line are read as this)"
        )
    return (
        "is a comprehension with a condition or two loops, or a dict or set, or stands in the "
        "condition of a loop. Write `for t in range(num_steps)`, and append to a list"
    )


def _refuse(function: Any, node: ast.AST, reason: str) -> NoReturn:
    place = f"{inspect.getsourcefile(function)}:{getattr(node, 'lineno', '?')}"
    raise ConversionError(f"{place}: the loop over time {reason}. {_ADVICE}")
