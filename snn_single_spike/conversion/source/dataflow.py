"""Which attributes of ``self`` a forward reads before it writes them, read from its source.

A path is an attribute with its own attributes: ``self.helper.value`` is ``("helper", "value")``.
Names of closures and globals are paths of functions, in the same way.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import itertools
import linecache
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ...modules._base import STATES
from .methods import entry_of
from .place import of_torch

__all__ = ["Flow", "flow_of", "flow_of_module"]

Path = tuple[str, ...]
_MUTATES = {
    *("append", "appendleft", "extend", "extendleft", "insert", "add", "update", "clear"),
    *("remove", "discard", "rotate", "reverse", "sort", "setdefault", "put", "fill"),
}
_TAKES = {"pop", "popleft", "popitem"}  # return what they remove
# Attributes of a tensor that do not depend on its values.
_METADATA = {
    "shape",
    "size",
    "dim",
    "ndim",
    "numel",
    "device",
    "dtype",
    "requires_grad",
    "training",
}


_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try)


class Flow:
    """Reads and writes of the functions that one call runs, in their order.

    - ``early``: reads that may come before a write in the same call, with the line of the first
    - ``passed``: such reads as arguments of a layer, which may be states of its neuron
    - ``writes``: writes, other than the first of an attribute that was None
    - ``reads``: all reads, early or not
    - ``carried``: attributes that are computed from themselves, as counters
    - ``neuron_states``: reads of the states of a neuron
    - ``foreign``, ``foreign_writes``: names of attributes of other objects, read and written
    - ``after``: attributes that are certainly written at the end
    - ``complete``: False if the source is missing, or ``self`` is passed to other functions
    """

    def __init__(self, owner: Any, names: Iterable[str] = ()) -> None:
        self.owner = owner
        self.early: dict[Path, str] = {}
        self.passed: dict[Path, str] = {}
        self.writes: dict[Path, str] = {}
        self.carried: set[Path] = set()
        self.reads: set[Path] = set()
        self.neuron_states: dict[Path, str] = {}
        self.foreign: set[str] = set()
        self.foreign_writes: set[str] = set()
        self.after: frozenset[Path] = frozenset()
        self.complete = True
        self._names = set(names)
        # Local names of attributes, with what was written when they were given.
        self._aliases: dict[str, tuple[Path, frozenset[Path]]] = {}
        self._file = ""
        self._self = "self"
        self._running: list[Any] = []
        self._returns: list[frozenset[Path]] = []

    def states(self) -> Iterator[tuple[Path, str]]:
        """Attributes that are written, and read before: the read is of an earlier call."""
        for path, line in self.writes.items():
            read = self.reads if path in self.carried else self.early
            if any(_overlap(path, other) for other in read):
                yield path, line

    def only_writes(self, *name: str) -> bool:
        """Whether no value of an earlier call can be read from an attribute."""
        carried = any(_overlap(path, name) for path in self.carried)
        reads = self.reads if carried else (*self.early, *self.passed)
        return self.complete and not any(_overlap(path, name) for path in reads)

    def run(self, function: Callable[..., Any], written: frozenset[Path]) -> frozenset[Path]:
        """Analyse a function; returns the attributes that are certainly written after it."""
        node = tree_of(function)
        if node is None:
            self.complete = False
            return written
        if function in self._running:
            return written
        outer = self._file, self._self, self._returns, self._aliases
        self._aliases = {}
        self._running.append(function)
        self._returns = []
        self._file = inspect.getsourcefile(function) or ""
        if isinstance(node, ast.Lambda):
            self._value(node.body, written, used=False)
        else:
            arguments = [*node.args.posonlyargs, *node.args.args]
            self._self = arguments[0].arg if arguments else ""
            if self.owner is None:
                self._self = ""
            end = self._block(node.body, written)
            ends = self._returns + ([] if end is None else [end])
            written = frozenset.intersection(*ends) if ends else written
        self._file, self._self, self._returns, self._aliases = outer
        self._running.pop()
        return written

    # Statements. They return the attributes that are certainly written after them, or None if
    # nothing runs after them.

    def _block(
        self, statements: Iterable[ast.stmt], written: frozenset[Path] | None
    ) -> frozenset[Path] | None:
        for statement in statements:
            if written is None:
                return None
            before = self._aliases if isinstance(statement, _BRANCHES) else {}
            self._aliases = dict(self._aliases)
            written = self._statement(statement, written)
            self._aliases = {**before, **self._aliases}  # a branch may not run
        return written

    def _statement(self, node: ast.stmt, written: frozenset[Path]) -> frozenset[Path] | None:
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            return self._assign(node, written)
        if isinstance(node, ast.Expr):
            return self._value(node.value, written, used=False)
        if isinstance(node, (ast.Return, ast.Raise)):
            for child in ast.iter_child_nodes(node):
                written = self._value(child, written)
            if isinstance(node, ast.Return):
                self._returns.append(written)
            return None
        if isinstance(node, ast.If):
            return self._if(node, written)
        if isinstance(node, (ast.For, ast.AsyncFor)):
            written = self._value(node.iter, written)
            written = self._target(node.target, written)
            self._block(node.body, written)
            self._block(node.orelse, written)
            return written
        if isinstance(node, ast.While):
            written = self._value(node.test, written)
            self._block(node.body, written)
            self._block(node.orelse, written)
            return written
        if isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                written = self._value(
                    item.context_expr, written, used=item.optional_vars is not None
                )
            return self._block(node.body, written)
        if isinstance(node, ast.Try):
            after = self._block(node.body, written)
            for handler in node.handlers:
                self._block(handler.body, written)
            self._block(node.orelse, after)
            self._block(node.finalbody, written)
            return written
        if isinstance(node, ast.Delete):
            for target in node.targets:
                self._write(target, written)
            return written
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child, written)
            else:
                self._value(child, written)
        return written

    def _assign(self, node: Any, written: frozenset[Path]) -> frozenset[Path]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if isinstance(node, ast.Assign) and len(targets) == 1:
            pairs = list(_pairs(targets[0], node.value))
            paths = [self._path(value) for _, value in pairs]
            if all(paths) and all(isinstance(target, ast.Name) for target, _ in pairs):
                # A name of an attribute reads it where the name is used.
                named = {
                    target.id: (path, written)
                    for (target, _), path in zip(pairs, paths, strict=True)
                }
                self._aliases.update(named)
                return written
        own: ast.AST | None = targets[0] if len(targets) == 1 else None
        if node.value is not None:
            # self.count = self.count + 1 reads the attribute for itself only.
            unread = ast.unparse(own) if own is not None and self._path(own) else None
            written = self._value(node.value, written, unread=unread)
        for target in targets:
            if isinstance(node, ast.AugAssign):
                self._write(target, written, in_place=True)
            elif node.value is not None:
                written = self._target(target, written)
        return written

    def _target(self, target: ast.AST, written: frozenset[Path]) -> frozenset[Path]:
        if isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                written = self._target(element, written)
            return written
        if isinstance(target, ast.Starred):
            return self._target(target.value, written)
        return self._write(target, written)

    def _write(
        self, target: ast.AST, written: frozenset[Path], in_place: bool = False
    ) -> frozenset[Path]:
        if isinstance(target, ast.Name) and target.id in self._aliases:
            aliased, _ = self._aliases[target.id]
            if not in_place:
                del self._aliases[target.id]
            elif not isinstance(self._resolve(aliased), (int, float, str)):
                self._record(aliased, target, self.writes)
            return written
        path = self._path(target)
        if isinstance(target, ast.Subscript) and not (path and path[-1][0] == "["):
            self._value(target.slice, written)
            self._record(path, target, self.writes)
            return written
        if not path:
            if isinstance(target, ast.Attribute):
                self.foreign_writes.add(target.attr)
            return written
        self._record(path, target, self.writes)
        return written | {path}

    def _if(self, node: ast.If, written: frozenset[Path]) -> frozenset[Path] | None:
        written = self._value(node.test, written)
        absent = self._absent(node.test)
        if absent and not node.orelse:
            known = set(self.writes)
            self._block(node.body, written)
            if absent in set(self.writes) - known:
                del self.writes[absent]
            return written
        branches = [self._block(block, written) for block in (node.body, node.orelse)]
        ends = [branch for branch in branches if branch is not None]
        return frozenset.intersection(*ends) if ends else None

    def _absent(self, test: ast.AST) -> Path | None:
        """The attribute that a condition finds to be None, or missing."""
        if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is):
            return self._path(test.left)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            call = test.operand
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "hasattr":
                return _named(call)
        return None

    # Expressions

    def _value(
        self,
        node: Any,
        written: frozenset[Path],
        used: bool = True,
        unread: str | None = None,
    ) -> frozenset[Path]:
        if unread and isinstance(node, (ast.Attribute, ast.Subscript)) and _same(node, unread):
            if (path := self._path(node)) and not _known(path, written):
                self.carried.add(path)
            return written
        if isinstance(node, ast.stmt):  # in a match statement
            return self._statement(node, written) or written
        if isinstance(node, ast.Call):
            return self._call(node, written, used, unread)
        if _is_identity(node) and self._path(node.left):
            return written
        if isinstance(node, (ast.Attribute, ast.Subscript, ast.Name)):
            path = self._path(node)
            if path:
                getter = self._getter(path[0])
                if getter is not None:
                    return self.run(getter, written)
                if not _METADATA & set(path[1:]):
                    self._read(path, node, self._before(node, written), self.early)
            elif isinstance(node, ast.Name):
                self.complete &= node.id != self._self
            elif isinstance(node, ast.Attribute):
                self.foreign.add(node.attr)
                written = self._value(node.value, written)
            else:
                written = self._value(node.value, written)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Subscript):
                    written = self._value(inner.slice, written)
            return written
        for child in ast.iter_child_nodes(node):
            written = self._value(child, written, unread=unread)
        return written

    def _call(
        self, node: ast.Call, written: frozenset[Path], used: bool, unread: str | None
    ) -> frozenset[Path]:
        function = node.func
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        text = ast.unparse(function)
        if text in ("setattr", "getattr", "hasattr", "delattr", "next") and node.args:
            return self._builtin(text, node, written)
        to_layer = self._is_layer(function)
        for argument in arguments:
            path = self._path(argument)
            if path and to_layer and (unread is None or ast.unparse(argument) != unread):
                self._read(path, argument, self._before(argument, written), self.passed)
            else:
                written = self._value(argument, written, unread=unread)
        for keyword in node.keywords:
            if keyword.arg == "out":
                self._write(keyword.value, written)
        method = self._method(function)
        if method is not None:
            return self.run(method, written)
        if isinstance(function, ast.Attribute):
            base = self._path(function.value)
            if base and not self._is_module(base):
                name = function.attr
                changes = name in _MUTATES or (name.endswith("_") and not name.endswith("__"))
                if changes or name in _TAKES or not used:
                    self._record(base, node, self.writes)
                if (used and name not in _METADATA) or name in _TAKES:
                    self._value(function.value, written, unread=unread)
                return written
            if self._own(function.value):
                method = getattr(type(self.owner), function.attr, None)
                layer = self._resolve((function.attr,))
                if isinstance(layer, nn.Module):
                    inner = flow_of_module(layer).after
                    return written | {(function.attr, *path) for path in inner}
                if method is None:
                    return self._value(function, written)  # a callable object
                if function.attr == "register_buffer" and (path := _named(node, 0)):
                    self._record(path, node, self.writes)
                return written
            if base:
                return written  # a method of a layer
            # x.mul_(0.9).add_(y): the innermost object is changed
            self.foreign.add(function.attr)
            return self._value(function.value, written, used=used, unread=unread)
        return self._value(function, written)

    def _builtin(self, name: str, node: ast.Call, written: frozenset[Path]) -> frozenset[Path]:
        first, *others = node.args
        for other in others:
            written = self._value(other, written)
        path = _named(node) if self._own(first) else None
        if name == "next":
            self._record(self._path(first), node, self.writes)
            return self._value(first, written)
        if path is None:
            constant = others[0].value if others and isinstance(others[0], ast.Constant) else None
            if self._own(first):
                self.complete = False
            elif isinstance(constant, str) and name != "setattr":
                self.foreign.add(constant)
            return written if self._own(first) else self._value(first, written)
        if name == "setattr":
            self._record(path, node, self.writes)
            return written | {path}
        if name == "getattr":
            self._read(path, node, written, self.early)
        return written

    def _read(
        self, path: Path, node: ast.AST, written: frozenset[Path], into: dict[Path, str]
    ) -> None:
        self.complete &= path[0] != "__dict__"
        tensor = self.tensor_of_layer(path)
        if tensor and isinstance(tensor[0], SpikingNeuron) and tensor[1] in STATES:
            self._record(path, node, self.neuron_states)
        else:
            self.reads.add(path)
            if not _known(path, written):
                self.foreign.update(path[1:])
                self._record(path, node, into)

    def _record(self, path: Path | None, node: ast.AST, into: dict[Path, str]) -> None:
        if not path:
            return
        line = f"{self._file}:{getattr(node, 'lineno', '?')}"
        if into is self.writes and (tensor := self.tensor_of_layer(path)):
            if isinstance(tensor[0], SpikingNeuron):
                return  # a reset
            self.early.setdefault(path, line)  # the layer reads its tensors
        into.setdefault(path, line)

    def tensor_of_layer(self, path: Path) -> tuple[nn.Module, str] | None:
        """The submodule, and the name of its parameter, buffer or state, that a path leads to."""
        layer = self.owner
        for layer_path, name in itertools.pairwise(path):
            layer = _part(layer, layer_path)
            if not isinstance(layer, nn.Module):
                return None
            if isinstance(layer, SpikingNeuron) and name in STATES:
                return layer, name
            if name in layer._parameters or name in layer._buffers:
                return layer, name
        return None

    # Names

    def _own(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self._self

    def _path(self, node: ast.AST) -> Path | None:
        """The attribute of self that an expression is, or is an element of.

        A constant key is a part of the path: self.cache["h"] is ("cache", "['h']").
        """
        parts: list[str] = []
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Subscript):
                key = node.slice
                if isinstance(key, ast.Constant) and isinstance(key.value, (str, int)):
                    parts.append(f"[{key.value!r}]")
                else:
                    parts.clear()
            else:
                parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in self._aliases:
            parts += reversed(self._aliases[node.id][0])
        elif isinstance(node, ast.Name) and node.id in self._names:
            parts.append(node.id)
        elif not self._own(node):
            return None
        return tuple(reversed(parts)) or None

    def _before(self, node: ast.AST, written: frozenset[Path]) -> frozenset[Path]:
        """What was written when the value of an expression was: a name may hold the old value."""
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        if not (isinstance(node, ast.Name) and node.id in self._aliases):
            return written
        path, then = self._aliases[node.id]
        return then if _known(path, written) and not _known(path, then) else written

    def _resolve(self, path: Path) -> Any:
        value = self.owner
        for name in path:
            value = _part(value, name)
        return value

    def _getter(self, name: str) -> Any:
        """The user's function that computes an attribute."""
        found = inspect.getattr_static(type(self.owner), name, None)
        if isinstance(found, functools.cached_property):
            return found.func
        getter = found.fget if isinstance(found, property) else None
        return None if getter is None or of_torch(getter) else getter

    def _is_module(self, path: Path) -> bool:
        return isinstance(self._resolve(path), nn.Module)

    def _is_layer(self, function: ast.AST) -> bool:
        """Whether a call may run a neuron with the states that it is given."""
        path = self._path(function)
        if path:
            layer = self._resolve(path)
            return isinstance(layer, nn.Module) and any(
                not type(part).__module__.startswith("torch.") for part in layer.modules()
            )
        root = function
        while isinstance(root, ast.Subscript):
            root = root.value
        return isinstance(root, ast.Name) and root.id not in self._globals()

    def _globals(self) -> dict[str, Any]:
        function: Any = self._running[-1]
        function = getattr(function, "__func__", function)
        return {**vars(builtins), **function.__globals__}

    def _method(self, function: ast.AST) -> Any:
        """The method of the user's class that an expression calls."""
        if not isinstance(function, ast.Attribute) or self.owner is None:
            return None
        classes = type(self.owner).__mro__
        if ast.unparse(function.value).startswith("super("):
            current = self._running[-1]
            defining = next((i for i, c in enumerate(classes) if current in vars(c).values()), 0)
            classes = classes[defining + 1 :]
        elif not self._own(function.value):
            return None
        method = next((vars(c)[function.attr] for c in classes if function.attr in vars(c)), None)
        method = getattr(method, "__func__", method)
        return method if inspect.isfunction(method) and not of_torch(method) else None


def flow_of(owner: Any, function: Callable[..., Any], names: Iterable[str] = ()) -> Flow:
    """The flow of a function, a method of ``owner`` unless ``owner`` is None."""
    flow = Flow(owner, names)
    flow.after = flow.run(function, frozenset())
    return flow


def flow_of_module(module: nn.Module) -> Flow:
    """The flow of the forward of a module, empty if the forward is torch's."""
    entry: Any = getattr(module, entry_of(type(module)))
    forward = inspect.unwrap(getattr(entry, "__func__", entry))
    if isinstance(module, SpikingNeuron) or not inspect.isfunction(forward) or of_torch(forward):
        return Flow(module)
    return flow_of(module, forward)


def tree_of(function: Callable[..., Any]) -> Any:
    """The syntax tree of a function or lambda; None if its source is not available."""
    try:
        file = inspect.getsourcefile(function)
        code = function.__code__
    except (TypeError, AttributeError):
        return None
    if file is None:
        return None
    lines = linecache.getlines(file, getattr(function, "__globals__", None))
    found = _functions(tuple(lines)).get((code.co_firstlineno, code.co_name), [])
    return found[0] if len(found) == 1 else None


@functools.lru_cache(64)
def _functions(lines: tuple[str, ...]) -> dict[tuple[int, str], list[ast.AST]]:
    """All functions of a file, by first line and name."""
    found: dict[tuple[int, str], list[ast.AST]] = {}
    try:
        tree = _Attributes().visit(ast.parse("".join(lines)))
    except SyntaxError:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                _name_self(method)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.setdefault((line, node.name), []).append(node)
        elif isinstance(node, ast.Lambda):
            found.setdefault((node.lineno, "<lambda>"), []).append(node)
    return found


class _Attributes(ast.NodeTransformer):
    """Writes ``getattr(self.lif, "mem")`` as ``self.lif.mem``."""

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        named = isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if not named or len(node.args) != 2 or node.keywords:
            return node
        owner, name = node.args
        if not isinstance(name, ast.Constant) or not str(name.value).isidentifier():
            return node
        if str(name.value).startswith("__"):  # a class changes such a name in its own code
            return node
        return ast.copy_location(ast.Attribute(owner, str(name.value), ast.Load()), node)


def _name_self(method: ast.stmt) -> None:
    """Rename the first parameter of a method to ``self``, the name that all analysis looks for."""
    if not isinstance(method, ast.FunctionDef) or not method.args.args:
        return
    first = method.args.args[0]
    decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
    names = {node.id for node in ast.walk(method) if isinstance(node, ast.Name)}
    if decorators & {"staticmethod", "classmethod"} or "self" in names | {first.arg}:
        return
    for node in ast.walk(method):
        if isinstance(node, ast.Name) and node.id == first.arg:
            node.id = "self"
    first.arg = "self"


def _named(call: ast.Call, position: int = 1) -> Path | None:
    """The attribute that setattr(self, "name", ...) and the like name."""
    if len(call.args) > position and isinstance(call.args[position], ast.Constant):
        return (str(call.args[position].value),)  # type: ignore[attr-defined]
    return None


def _pairs(target: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """The parts of an assignment, also of tuples."""
    both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
    if both and len(target.elts) == len(value.elts):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value


def _part(value: Any, name: str) -> Any:
    """An attribute, or the element with a constant key."""
    if name[0] != "[":
        return getattr(value, name, None)
    try:
        return value[ast.literal_eval(name[1:-1])]
    except (LookupError, TypeError):
        return None


def _known(path: Path, written: frozenset[Path]) -> bool:
    return any(path[: len(known)] == known for known in written)


def _same(node: ast.AST, text: str) -> bool:
    return ast.unparse(node) == text


def _is_identity(node: Any) -> bool:
    """Whether an expression is `a is b`: it depends on no value."""
    return isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot))


def _overlap(one: Path, other: Path) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]
