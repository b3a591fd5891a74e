"""Rewrites methods with a loop over time so that the body runs once, for all steps.

The rewritten code calls :mod:`~snn_single_spike.conversion.steps`. It keeps the lines of the
author's file. What follows the loop is not changed.
"""

from __future__ import annotations

import ast
import copy
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from . import steps
from .checks import ConversionError
from .dataflow import tree_of
from .place import of_package

__all__ = ["Rewritten", "find_loops", "rewritten_methods"]

Rewritten = tuple[tuple[str, tuple[int, ...]], ...]
"""Methods to rewrite: names, and the lines of their loops over time, from the first line."""

_READS_VALUES = {"item", "tolist", "numpy"}
_REFUSED: dict[type, str] = {
    ast.Break: "leaves the loop early",
    ast.Continue: "skips a part of a step",
    ast.Return: "returns from inside of the loop",
    ast.While: "has a while loop in it",
    ast.Try: "catches exceptions in it",
    ast.FunctionDef: "defines a function in it",
    ast.Lambda: "defines a function in it",
    ast.ClassDef: "defines a class in it",
    ast.Global: "assigns global names",
    ast.Nonlocal: "assigns names of an outer function",
    ast.Delete: "deletes names",
    ast.Yield: "yields values",
    ast.YieldFrom: "yields values",
    ast.Await: "awaits",
    ast.Match: "has a match statement in it",
    ast.NamedExpr: "assigns names inside of expressions",
}


def find_loops(module: nn.Module) -> Rewritten:
    """The methods of a module with a loop over time, and the methods that these loops call.

    :raises ConversionError: a loop over time that cannot run all its steps at once
    """
    return _Finder(module).find()


class _Finder:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.cls = module, type(module)
        self.neurons = {n for n, m in module.named_modules() if isinstance(m, SpikingNeuron) and n}

    def find(self) -> Rewritten:
        forward = _method(self.cls, "forward")
        if not self.neurons or forward is None:
            return ()
        methods = {"forward": forward, **dict(self._called_methods(tree_of(forward), set()))}
        found: dict[str, tuple[int, ...]] = {}
        inside: dict[str, Any] = {}
        for name, function in methods.items():
            tree = tree_of(function)
            if not isinstance(tree, ast.FunctionDef):
                continue
            loops = list(self._time_loops(tree, self._layer_names(tree)))
            if loops and tree.decorator_list:
                _refuse(function, tree, "is in a method with a decorator")
            for loop in loops:
                self._check(function, loop, self._layer_names(tree), loop)
                inside.update(self._called_methods(loop, set()))
            if loops:
                found[name] = tuple(loop.lineno - tree.lineno for loop in loops)
        for name, function in inside.items():
            tree = tree_of(function)
            if name in found:
                _refuse(function, tree, "calls a method with a loop over time")
            if tree.decorator_list:
                _refuse(function, tree, "calls a method with a decorator")
            self._check(function, tree, self._layer_names(tree), None)
            found[name] = ()
        return tuple(found.items()) if any(found.values()) else ()

    def _called_methods(self, tree: Any, seen: set[str]) -> Iterator[tuple[str, Any]]:
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Call) and (path := _self_path(node.func)) and len(path) == 1:
                method = _method(self.cls, path[0])
                if method is not None and path[0] not in seen and tree_of(method) is not None:
                    seen.add(path[0])
                    yield path[0], method
                    yield from self._called_methods(tree_of(method), seen)

    def _time_loops(self, tree: ast.AST, layers: set[str]) -> Iterator[ast.For]:
        """The outermost loops that call neurons and do not iterate over layers."""
        for node in ast.iter_child_nodes(tree):
            if (
                isinstance(node, ast.For)
                and not self._over_layers(node)
                and any(self._calls_neurons(x, layers, set()) for x in node.body)
            ):
                yield node
            else:
                yield from self._time_loops(node, layers)

    def _calls_neurons(self, tree: ast.AST, layers: set[str], seen: set[str]) -> bool:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            root = node.func
            while isinstance(root, ast.Subscript):
                root = root.value
            if isinstance(root, ast.Name) and root.id in layers:
                return True
            path = ".".join(_self_path(root) or ())
            if path and any(n == path or n.startswith(path + ".") for n in self.neurons):
                return True
            if path and path not in seen and (method := _method(self.cls, path)) is not None:
                seen.add(path)
                inner = tree_of(method)
                if inner is not None and self._calls_neurons(inner, self._layer_names(inner), seen):
                    return True
        return False

    def _over_layers(self, node: ast.For) -> bool:
        if self._names_layers(node.iter):
            return True
        names = _stored_names([node.target])
        return any(
            isinstance(x, ast.Subscript) and self._is_module(x.value) and names & _names(x.slice)
            for x in ast.walk(node)
        )

    def _names_layers(self, tree: ast.AST) -> bool:
        called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        return any(id(n) not in called and self._is_module(n) for n in ast.walk(tree))

    def _is_module(self, node: ast.AST) -> bool:
        value: Any = self.module
        for name in _self_path(node) or ():
            value = getattr(value, name, None)
        return bool(_self_path(node)) and isinstance(value, nn.Module)

    def _layer_names(self, tree: ast.AST) -> set[str]:
        """Local names of layers."""
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, (ast.For, ast.comprehension)) and self._names_layers(node.iter):
                names |= _stored_names([node.target])
            alias = isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call)
            if alias and self._names_layers(node.value):  # type: ignore[attr-defined]
                names |= _stored_names(node.targets)  # type: ignore[attr-defined]
        return names

    def _check(self, function: Any, tree: Any, layers: set[str], loop: ast.For | None) -> None:
        """Reject code that cannot run for all steps at once."""
        stored = _stored_names(tree.body)
        nested = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.For) and node is not loop
            for part in node.body
            for inner in ast.walk(part)
            if isinstance(inner, (ast.Break, ast.Continue))
        }
        if loop is not None and loop.orelse:
            _refuse(function, loop, "has an else branch")
        for node in (x for part in tree.body for x in ast.walk(part)):
            reason = _REFUSED.get(type(node))
            if isinstance(node, ast.Return) and loop is None:
                reason = None
            if reason and id(node) not in nested:
                _refuse(function, node, reason)
            over_time = isinstance(node, ast.For) and not self._over_layers(node)
            if over_time and any(self._calls_neurons(x, layers, set()) for x in node.body):  # type: ignore[attr-defined]
                _refuse(function, node, "has another loop in it that calls neurons")
            if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
                layered = all(self._names_layers(g.iter) for g in node.generators)
                if not layered and self._calls_neurons(node, layers, set()):
                    _refuse(function, node, "has another loop in it that calls neurons")
            if isinstance(node, ast.Call):
                self._check_call(function, node, stored)

    def _check_call(self, function: Any, node: ast.Call, stored: set[str]) -> None:
        if any(keyword.arg == "out" for keyword in node.keywords):
            _refuse(function, node, "writes into a tensor with out=")
        if isinstance(node.func, ast.Name) and node.func.id in ("locals", "setattr", "exec"):
            _refuse(function, node, f"calls {node.func.id}()")
        if not isinstance(node.func, ast.Attribute):
            return
        name = node.func.attr
        if name in _READS_VALUES:
            _refuse(function, node, f"reads values of tensors with .{name}()")
        if name in ("insert", "appendleft", "update", "setdefault"):
            _refuse(function, node, f"changes a container with .{name}()")
        root: ast.AST = node.func.value
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            root = root.value
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(root, ast.Name) and root.id not in stored:
            _refuse(function, node, f"changes a value from before the loop with .{name}()")


def _refuse(function: Any, node: ast.AST, reason: str) -> NoReturn:
    place = f"{inspect.getsourcefile(function)}:{getattr(node, 'lineno', '?')}"
    raise ConversionError(
        f"{place}: the loop over time {reason}. A converted model runs all steps at once. Write a "
        "loop without it, or take the loop out of forward: forward must compute one step, and "
        "return the spikes and the membrane of this step (no stacking)"
    )


def rewritten_methods(cls: type, rewritten: Rewritten) -> dict[str, Any]:
    """The methods of a class, rewritten to run the loops over time at once."""
    return {name: _rewrite(cls, name, lines) for name, lines in rewritten}


def _rewrite(cls: type, name: str, lines: tuple[int, ...]) -> Any:
    function = _method(cls, name)
    tree = tree_of(function) if function else None
    if not isinstance(tree, ast.FunctionDef):
        raise ConversionError(
            f"the source of {cls.__name__}.{name} is not available, so its loop over time cannot "
            "be converted"
        )
    defining = next(c for c in cls.__mro__ if vars(c).get(name) is function)
    new = copy.deepcopy(tree)
    new = _Rewrite(cls, new, lines).visit(new)
    for node in ast.walk(new):  # as the compiler does inside of a class
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            node.attr = f"_{defining.__name__.lstrip('_')}{node.attr}"
    outer = (*function.__code__.co_freevars, "_single_spike_steps")
    arguments = ast.arguments([], [ast.arg(x) for x in outer], None, [], [], None, [])
    factory = ast.FunctionDef("factory", arguments, [new], [])
    module = ast.fix_missing_locations(ast.Module([factory], []))
    file = inspect.getsourcefile(function) or function.__code__.co_filename
    compiled = compile(module, file, "exec", dont_inherit=True, flags=_future(function))
    code = _code_in(_code_in(compiled, "factory"), new.name)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells["_single_spike_steps"] = types.CellType(steps)
    closure = tuple(cells[x] for x in code.co_freevars)
    made = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__ = function.__kwdefaults__
    for attribute in ("__doc__", "__module__", "__qualname__", "__annotations__"):
        setattr(made, attribute, getattr(function, attribute))
    made.__wrapped__ = function  # type: ignore[attr-defined]
    return made


def _future(function: Any) -> int:
    return function.__code__.co_flags & 0x1000000  # from __future__ import annotations


def _code_in(code: Any, name: str) -> Any:
    return next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)


class _Rewrite(ast.NodeTransformer):
    """Rewrites a method. Without lines of loops, all of it runs inside of a loop."""

    def __init__(self, cls: type, tree: ast.FunctionDef, lines: tuple[int, ...]) -> None:
        self.cls, self.tree = cls, tree
        self.lines = {tree.lineno + line for line in lines}
        self.inside = not lines
        self.owner = tree.args.args[0].arg if tree.args.args else "self"
        tree.decorator_list = []
        self.depth = 0

    def visit_For(self, node: ast.For) -> Any:
        if self.inside or node.lineno not in self.lines:
            self.depth += 1
            self.generic_visit(node)
            self.depth -= 1
            return node
        names = sorted({*_stored_names([node.target, *node.body]), *_names(*node.body)})
        own = {*_stored_names([self.tree]), *(x.arg for x in _arguments(self.tree))}
        names = [name for name in names if name in own and name != self.owner]
        stored = sorted(_stored_names([node.target, *node.body]))
        body_nodes = {id(x) for part in [node.target, *node.body] for x in ast.walk(part)}
        needed = sorted(
            {
                x.id
                for x in ast.walk(self.tree)
                if isinstance(x, ast.Name)
                and isinstance(x.ctx, ast.Load)
                and (self.depth or id(x) not in body_nodes)
            }
        )
        attributes, written = self._written(node.body)
        kind, iterables = "", [node.iter]
        if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name):
            called = node.iter.func.id
            plain = (called == "enumerate" and len(node.iter.args) == 1) or called == "zip"
            if plain and not node.iter.keywords:
                kind, iterables = called, node.iter.args
        self.inside = True
        body = [self.visit(part) for part in node.body]
        self.inside = False
        begin = _parse(
            f"_single_spike_loop = _single_spike_steps.start({self.owner}, {kind!r}, (), locals(), "
            f"{tuple(stored)}, {tuple(attributes)}, {tuple(written)})",
            node,
        )
        begin[0].value.args[2] = ast.copy_location(ast.Tuple(iterables, ast.Load()), node)
        enter = [
            f"if {n!r} in _single_spike_loop.entered: {n} = _single_spike_loop.entered[{n!r}]"
            for n in names
        ]
        (run,) = _parse("with _single_spike_loop: pass", node)
        (target,) = _parse("_ = _single_spike_loop.index()", node)
        target.targets = [node.target]
        end = [f"_single_spike_loop = _single_spike_loop.end(locals(), {tuple(needed)})"]
        end += [f"if {n!r} in _single_spike_loop: {n} = _single_spike_loop[{n!r}]" for n in names]
        run.body = [*_parse("\n".join(enter), node), target, *body]
        run.body += _parse("\n".join(end), node)
        return [*begin, run, *_parse("_single_spike_loop = None", node)]

    def _written(self, body: list[ast.stmt]) -> tuple[list[str], list[str]]:
        """Attributes of self that a loop writes, and names of containers that it writes into."""
        attributes: set[str] = set()
        names: set[str] = set()
        trees: list[ast.AST] = list(body)
        seen: set[str] = set()
        owners = {self.owner}
        while trees:
            for node in ast.walk(trees.pop()):
                if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(
                    node.ctx, ast.Store
                ):
                    base: Any = node
                    while isinstance(base, ast.Subscript):
                        base = base.value
                    if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
                        if base.value.id in owners:
                            attributes.add(base.attr)
                    elif isinstance(base, ast.Name):
                        names.add(base.id)
                if isinstance(node, ast.Call) and (path := _self_path(node.func)):
                    method = _method(self.cls, path[0]) if len(path) == 1 else None
                    inner = tree_of(method) if method else None
                    if isinstance(inner, ast.FunctionDef):
                        names |= _arguments_written(node, inner)
                        if path[0] not in seen:
                            seen.add(path[0])
                            trees.append(inner)
                            owners |= {inner.args.args[0].arg} if inner.args.args else set()
        return sorted(attributes), sorted(names)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        if self.inside and not isinstance(node.ctx, ast.Del):
            node.value = _call("source", node.value, at=node)
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        function = node.func
        appends = isinstance(function, ast.Attribute) and function.attr == "append"
        if self.inside and appends and len(node.args) == 1 and not node.keywords:
            return _call("append", function.value, node.args[0], at=node)  # type: ignore[attr-defined]
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        if not (self.inside and isinstance(node.op, ast.Add)):
            self.generic_visit(node)
            return node
        read = copy.deepcopy(node.target)
        read.ctx = ast.Load()
        target, read, value = self.visit(node.target), self.visit(read), self.visit(node.value)
        return ast.copy_location(ast.Assign([target], _call("iadd", read, value, at=node)), node)

    def visit_If(self, node: Any) -> Any:
        self.generic_visit(node)
        if self.inside:
            node.test = _call("condition", node.test, at=node)
        return node

    visit_IfExp = visit_Assert = visit_If

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        if self.inside:
            node.values = [_call("condition", value, at=value) for value in node.values]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        self.generic_visit(node)
        if self.inside and isinstance(node.op, ast.Not):
            node.operand = _call("condition", node.operand, at=node)
        return node


def _parse(code: str, at: ast.AST) -> list[Any]:
    """Statements at the line of the author's loop."""
    made = ast.parse(code).body
    for statement in made:
        for node in ast.walk(statement):
            if "lineno" in node._attributes:
                ast.copy_location(node, at)
    return list(made)


def _arguments(tree: ast.FunctionDef) -> list[ast.arg]:
    given = tree.args
    others = [x for x in (given.vararg, given.kwarg) if x is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *others]


def _arguments_written(call: ast.Call, method: ast.FunctionDef) -> set[str]:
    """Names that a call passes to parameters that the method writes into."""
    written = {
        base.id
        for node in ast.walk(method)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        for base in [node.value]
        if isinstance(base, ast.Name)
    }
    parameters = [argument.arg for argument in method.args.args[1:]]
    given = [*zip(parameters, call.args, strict=False)]
    given += [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg]
    return {x.id for name, x in given if name in written and isinstance(x, ast.Name)}


def _call(name: str, *arguments: Any, at: Any) -> ast.Call:
    function = ast.Attribute(ast.Name("_single_spike_steps", ast.Load()), name, ast.Load())
    call = ast.Call(function, list(arguments), [])
    for node in (call, function, function.value):
        ast.copy_location(node, at)
    return call


def _method(cls: type, name: str) -> Any:
    """The function of a user's class; None for others."""
    method = inspect.getattr_static(cls, name, None)
    if not inspect.isfunction(method):
        return None
    method = inspect.unwrap(method)
    return None if of_package(method.__module__ or "") else method


def _self_path(node: ast.AST) -> tuple[str, ...] | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id == "self" and parts:
        return tuple(reversed(parts))
    return None


def _stored_names(trees: Iterable[ast.AST]) -> set[str]:
    nodes = (x for tree in trees for x in ast.walk(tree))
    return {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}


def _names(*trees: ast.AST) -> set[str]:
    nodes = (x for tree in trees for x in ast.walk(tree))
    return {x.id for x in nodes if isinstance(x, ast.Name)}


def _is_private(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")
