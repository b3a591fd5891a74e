"""Rewrites methods with a loop over time so that the body runs once, for all steps.

The rewritten code calls :mod:`~snn_single_spike.conversion.loops.steps`. It keeps the lines of the
author's file. What follows the loop is not changed.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import types
from typing import Any, NamedTuple

from ..refusals.layers import ConversionError
from ..source.dataflow import tree_of
from ..source.methods import Method, called_on_self, find_method, replace_inside, self_path
from . import steps
from .plain import Position, names, plain_loops, position, statements_at, stored_names

__all__ = ["Rewritten", "RewrittenMethod", "rewritten_methods"]

_ON_TENSORS = {"view", "reshape", "select", "item", "numel", *steps.REDUCTIONS}


class RewrittenMethod(NamedTuple):
    """A method to rewrite."""

    name: str
    depth: int
    """Position in the ``__mro__`` of the class that defines the method."""
    loops: tuple[Position, ...]
    """The loops over time in it."""
    inside: bool
    """Whether a loop over time calls it."""


Rewritten = tuple[RewrittenMethod, ...]


def rewritten_methods(cls: type, rewritten: Rewritten) -> dict[str, Any]:
    """The attributes of a class whose loops over time run all steps at once.

    ``_rewritten_bases`` are the methods that ``super()`` finds, by the functions that they replace.
    """
    made: dict[str, Any] = {}
    bases: dict[Any, Any] = {}
    for each in rewritten:
        method = find_method(cls, each.name, each.depth - 1)
        new = _rewrite(cls, method, each) if method and method.depth == each.depth else None
        if method is None or new is None:
            raise ConversionError(
                f"the source of {cls.__name__}.{each.name} is not available, so its loop over time "
                "cannot be converted"
            )
        bases[method.attribute] = new
        first = next(i for i, c in enumerate(cls.__mro__) if each.name in vars(c))
        if first == each.depth:
            made[each.name] = new
    return {**made, "_rewritten": rewritten, "_rewritten_bases": bases}


def _rewrite(cls: Any, method: Method, how: RewrittenMethod) -> Any:
    function, tree = method.function, tree_of(method.function)
    if not isinstance(tree, ast.FunctionDef):
        return None
    new = plain_loops(tree, how.loops)
    new = _Rewrite(cls, new, how).visit(new)
    defining = cls.__mro__[method.depth].__name__.lstrip("_")
    for node in ast.walk(new):  # as the compiler does inside of a class
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            node.attr = f"_{defining}{node.attr}"
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
    functools.update_wrapper(made, function)
    made.__kwdefaults__ = function.__kwdefaults__
    return replace_inside(method.attribute, function, made)


def _future(function: Any) -> int:
    return function.__code__.co_flags & 0x1000000  # from __future__ import annotations


def _code_in(code: Any, name: str) -> Any:
    return next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)


class _Rewrite(ast.NodeTransformer):
    """Rewrites a method with plain loops."""

    def __init__(self, cls: type, tree: ast.FunctionDef, how: RewrittenMethod) -> None:
        self.cls, self.tree, self.how = cls, tree, how
        self.inside = how.inside
        self.owner = tree.args.args[0].arg if tree.args.args else "self"
        tree.decorator_list = []
        self.depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        """A function in the method may run in the loop."""
        outer = self.inside
        self.inside = outer or node is not self.tree
        self.generic_visit(node)
        self.inside = outer
        return node

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return self.visit_FunctionDef(node)  # type: ignore[arg-type]

    def visit_For(self, node: ast.For) -> Any:
        if self.inside or position(self.tree, node) not in self.how.loops:
            self.depth += 1
            self.generic_visit(node)
            self.depth -= 1
            return node
        parts = [node.target, *node.body]
        own = {*stored_names([self.tree]), *(x.arg for x in _arguments(self.tree))}
        used = sorted((stored_names(parts) | names(*node.body)) & (own - {self.owner}))
        body_nodes = {id(x) for part in parts for x in ast.walk(part)}
        needed = {
            x.id
            for x in ast.walk(self.tree)
            if isinstance(x, ast.Name)
            and isinstance(x.ctx, ast.Load)
            and (self.depth or id(x) not in body_nodes)
        }
        attributes, written = self._written(node.body)
        zipped, iterables = _iterables(node.iter)
        self.inside = True
        body = [self.visit(part) for part in node.body]
        self.inside = False
        begin = statements_at(
            node,
            f"_single_spike_loop = _single_spike_steps.start({self.owner}, {zipped}, (), locals(), "
            f"{tuple(sorted(stored_names(parts)))}, {tuple(attributes)}, {tuple(written)})",
        )
        begin[0].value.args[2] = ast.copy_location(ast.Tuple(iterables, ast.Load()), node)
        enter = [
            f"if {n!r} in _single_spike_loop.entered: {n} = _single_spike_loop.entered[{n!r}]"
            for n in used
        ]
        (run,) = statements_at(node, "with _single_spike_loop: pass")
        (target,) = statements_at(node, "_ = _single_spike_loop.index()")
        target.targets = [node.target]
        end = [f"_single_spike_loop = _single_spike_loop.end(locals(), {tuple(sorted(needed))})"]
        end += [f"if {n!r} in _single_spike_loop: {n} = _single_spike_loop[{n!r}]" for n in used]
        run.body = [*statements_at(node, "\n".join(enter)), target, *body]
        run.body += statements_at(node, "\n".join(end))
        return [*begin, run, *statements_at(node, "_single_spike_loop = None")]

    def _written(self, body: list[ast.stmt]) -> tuple[list[str], list[str]]:
        """Attributes of self that a loop writes, and names of containers that it writes into."""
        attributes: set[str] = set()
        written: set[str] = set()
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
                        written.add(base.id)
                if isinstance(node, ast.Call) and (path := self_path(node.func)):
                    method = find_method(self.cls, path[0]) if len(path) == 1 else None
                    inner = tree_of(method.function) if method else None
                    if isinstance(inner, ast.FunctionDef):
                        written |= _arguments_written(node, inner)
                        if path[0] not in seen:
                            seen.add(path[0])
                            trees.append(inner)
                            owners |= {inner.args.args[0].arg} if inner.args.args else set()
        return sorted(attributes), sorted(written)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        if self.inside and not isinstance(node.ctx, ast.Del):
            node.value = _call("source", node.value, at=node)
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        function = node.func
        if (called := called_on_self(node)) and called[1]:
            node.func = _call("rewritten", ast.Name(self.owner, ast.Load()), function, at=node)
            return node
        if self.inside and ast.unparse(function) == "len" and len(node.args) == 1:
            return _call("length", *node.args, at=node)
        if not (self.inside and isinstance(function, ast.Attribute)) or node.keywords:
            return node
        base, name, arguments = function.value, function.attr, node.args
        if name in ("append", "extend") and len(arguments) == 1:
            (value,), more = arguments, []
            if _adds_a_dimension(value):  # the stack of the rows that torch.cat makes
                value, more = value.func.value, [ast.Constant(True)]  # type: ignore[attr-defined]
            return _call(name, base, value, *more, at=node)
        if isinstance(base, ast.Name) and base.id == "torch" and name in _ON_TENSORS and arguments:
            base, *arguments = arguments
        if name in _ON_TENSORS:
            return _call("on_tensor", ast.Constant(name), base, *arguments, at=node)
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        """``out = out + [spk]`` is ``out += [spk]``; a sum may begin with its first value."""
        target: Any = node.targets[0]
        if self.inside and (value := _extended(node)) is not None:
            return self.visit(ast.copy_location(ast.AugAssign(target, ast.Add(), value), node))
        if self.inside and (value := _started(node)) is not None:
            name = ast.copy_location(ast.Name(target.id, ast.Load()), node)
            node.value = _call("add_or_start", name, self.visit(value), at=node)
            return node
        self.generic_visit(node)
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
        records = isinstance(node, ast.If) and not node.orelse and all(map(_records, node.body))
        self.generic_visit(node)
        if not self.inside:
            return node
        if records:  # at some of the steps only
            (chosen,) = statements_at(node, "with _ as _single_spike_chosen: pass")
            chosen.items[0].context_expr = _call("at_steps", node.test, at=node)
            node.test = ast.copy_location(ast.Name("_single_spike_chosen", ast.Load()), node)
            chosen.body = [node]
            return chosen
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


def _extended(node: ast.Assign) -> ast.expr | None:
    """``[b]`` in ``a = a + [b]``."""
    target, value = node.targets[0], node.value
    if len(node.targets) > 1 or not isinstance(target, ast.Name):
        return None
    adds = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)
    if not adds or not isinstance(value.right, ast.List):  # type: ignore[attr-defined]
        return None
    return value.right if ast.unparse(value.left) == target.id else None  # type: ignore[attr-defined]


def _started(node: ast.Assign) -> ast.expr | None:
    """``b`` in ``a = b if a is None else a + b``."""
    target, value = node.targets[0], node.value
    if (
        len(node.targets) > 1
        or not isinstance(target, ast.Name)
        or not isinstance(value, ast.IfExp)
    ):
        return None
    name, first = target.id, ast.unparse(value.body)
    absent = ast.unparse(value.test) == f"{name} is None"
    adds = isinstance(value.orelse, ast.BinOp) and isinstance(value.orelse.op, ast.Add)
    if not absent or not adds or name in names(value.body):
        return None
    sides = {ast.unparse(value.orelse.left), ast.unparse(value.orelse.right)}  # type: ignore[attr-defined]
    return value.body if sides == {name, first} else None


def _iterables(node: ast.expr) -> tuple[bool, list[ast.expr]]:
    """What a loop iterates over, and whether it zips it. ``enumerate`` zips numbers."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False, [node]
    if node.func.id == "zip":  # strict= only raises
        return True, node.args
    if node.func.id != "enumerate":
        return False, [node]
    first = [*node.args[1:], *(keyword.value for keyword in node.keywords)]
    return True, [_call("Numbers", *first, at=node), node.args[0]]


def _records(statement: ast.stmt) -> bool:
    """Whether a statement only appends to a list, or adds to a sum."""
    if isinstance(statement, ast.AugAssign):
        return isinstance(statement.op, ast.Add)
    call = statement.value if isinstance(statement, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("append", "extend")
    )


def _adds_a_dimension(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "unsqueeze"
        and [ast.unparse(x) for x in node.args] == ["0"]
    )


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
    return ast.fix_missing_locations(call)


def _is_private(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")
