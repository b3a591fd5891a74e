"""Rewrites methods with a loop over time so that the body runs once, for all steps.

The rewritten code calls :mod:`~snn_single_spike.conversion.loops.steps`. It keeps the lines of the
author's file. What follows the loop is not changed, but for ``torch.stack`` of its records.
"""

from __future__ import annotations

import ast
import builtins
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

_MAKES_TENSOR = {"torch.tensor", "torch.as_tensor", "torch.LongTensor", "torch.IntTensor"}
_ON_TENSORS = {"view", "reshape", "select", "narrow", "item", "numel", "to_dense"}
_ON_TENSORS |= steps.REDUCTIONS


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
                "cannot be converted: define the class in a file or a notebook, or write forward "
                "for one step"
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
        self.counter: str | None = None  # the number of the step, in a loop that counts from 0
        self.begun: set[str] = set()  # names that the first step of the loop assigns

    @property
    def in_loop(self) -> bool:
        """Whether a node is in the body of the loop itself, not in a method that it calls."""
        return self.inside and not self.how.inside

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
        self.inside, self.counter, self.begun = True, _counter(node), set()
        body = [self.visit(part) for part in node.body]
        self.inside, self.counter = False, None
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
        begun = statements_at(node, "\n".join(f"{name} = None" for name in sorted(self.begun)))
        return [*begun, *begin, run, *statements_at(node, "_single_spike_loop = None")]

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
        if not self.inside and isinstance(function, ast.Attribute) and function.attr == "stack":
            node.func = _call("stack_of", function, at=node)
            return node
        if self.inside and ast.unparse(function) == "len" and len(node.args) == 1:
            return _call("length", *node.args, at=node)
        if self.inside and (number := _number_of_tensor(node)) is not None:
            make = ast.Lambda(ast.arguments([], [], None, [], [], None, []), node)
            listed = ast.Constant(isinstance(node.args[0], ast.List))
            return _call("tensor_of", make, number, listed, at=node)
        if self.inside and _may_be_loss(function):
            node.func = _call("by_step", function, at=node)
            return node
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

    def visit_Delete(self, node: ast.Delete) -> Any:
        """The names of a loop end with it: ``del cur, spk`` saves memory of one step only."""
        return ast.copy_location(ast.Pass(), node) if self.inside else node

    def visit_Expr(self, node: ast.Expr) -> Any:
        """``print`` shows the numbers of all steps at once."""
        if self.inside and _prints(node):
            node.value = _Shown().visit(node.value)
        self.generic_visit(node)
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        """``out = out + [spk]`` is ``out += [spk]``; a sum may begin with its first value."""
        target: Any = node.targets[0]
        if self.in_loop and (sum_ := _sum_of_key(node)) is not None:
            added = ast.Expr(_call("add_to_key", *map(self.visit, sum_), at=node))
            return ast.copy_location(added, node)
        if self.inside and (value := _extended(node)) is not None:
            return self.visit(ast.copy_location(ast.AugAssign(target, ast.Add(), value), node))
        if self.inside and (parts := _started(node, self.counter)) is not None:
            first, rest, at_first_step = parts
            name = ast.copy_location(ast.Name(target.id, ast.Load()), node)
            if at_first_step:
                self.begun.add(target.id)
            adds = isinstance(rest, ast.BinOp) and isinstance(rest.op, ast.Add)
            sides = {ast.unparse(rest.left), ast.unparse(rest.right)} if adds else set()  # type: ignore[attr-defined]
            if sides == {target.id, ast.unparse(first)}:
                node.value = _call("add_or_start", name, self.visit(first), at=node)
                return node
            if self.in_loop:
                started = _call("starting", name, at=node)
                first, rest = self.visit(first), self.visit(rest)
                node.value = _call("first_or", started, first, rest, at=node)
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
        one = _assigned(node) if self.in_loop and isinstance(node, ast.If) else None
        if one is not None and _started(one, self.counter) is not None:
            return self.visit(one)
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


class _SumOfKey(NamedTuple):
    """``holder[key] = holder.get(key, default) + value``"""

    holder: ast.expr
    key: ast.expr
    default: ast.expr
    value: ast.expr


def _sum_of_key(node: ast.Assign) -> _SumOfKey | None:
    """The parts of a sum by key, which begins with its default."""
    target, value = node.targets[0], node.value
    if len(node.targets) > 1 or not isinstance(target, ast.Subscript):
        return None
    if not isinstance(value, ast.BinOp) or not isinstance(value.op, ast.Add):
        return None
    holder, get = target.value, value.left
    if not isinstance(holder, ast.Name) or not isinstance(get, ast.Call) or len(get.args) != 2:
        return None
    key, default = get.args
    same = ast.unparse(get.func) == f"{holder.id}.get" and ast.dump(key) == ast.dump(target.slice)
    if not same or holder.id in names(value.right):
        return None
    read = ast.copy_location(ast.Name(holder.id, ast.Load()), node)
    return _SumOfKey(read, key, default, value.right)


def _extended(node: ast.Assign) -> ast.expr | None:
    """``[b]`` in ``a = a + [b]``."""
    target, value = node.targets[0], node.value
    if len(node.targets) > 1 or not isinstance(target, ast.Name):
        return None
    adds = isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)
    if not adds or not isinstance(value.right, ast.List):  # type: ignore[attr-defined]
        return None
    return value.right if ast.unparse(value.left) == target.id else None  # type: ignore[attr-defined]


def _started(node: ast.Assign, counter: str | None) -> tuple[ast.expr, ast.expr, bool] | None:
    """The parts of ``a = first if a is None else rest``, or of ``... if t == 0 else rest``.

    The last one is whether the test is of the step.
    """
    target, value = node.targets[0], node.value
    if (
        len(node.targets) > 1
        or not isinstance(target, ast.Name)
        or not isinstance(value, ast.IfExp)
    ):
        return None
    name, test = target.id, ast.unparse(value.test)
    zero = {f"{counter} == 0", f"0 == {counter}", f"not {counter}"} if counter else set()
    later = {f"{counter} > 0", f"{counter} != 0", f"0 < {counter}", str(counter)} if counter else ()
    first, rest = value.body, value.orelse
    if test == f"{name} is not None" or test in later:
        first, rest = rest, first
    elif test != f"{name} is None" and test not in zero:
        return None
    return None if name in names(first) else (first, rest, " is " not in test)


def _assigned(node: ast.If) -> ast.Assign | None:
    """``if test: a = b`` with ``else: a = c`` as ``a = b if test else c``."""
    parts = [*node.body, *node.orelse]
    if len(node.body) != 1 or len(node.orelse) != 1:
        return None
    then, other = (_plain_assignment(part) for part in parts)
    if then is None or other is None:
        return None
    if ast.unparse(then.targets[0]) != ast.unparse(other.targets[0]):
        return None
    value = ast.copy_location(ast.IfExp(node.test, then.value, other.value), node)
    return ast.copy_location(ast.Assign(then.targets, value), node)


def _plain_assignment(node: ast.stmt) -> ast.Assign | None:
    """An assignment to one name; ``a += b`` is ``a = a + b``."""
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        read = ast.Name(node.target.id, ast.Load())
        value = ast.copy_location(ast.BinOp(read, node.op, node.value), node)
        made = ast.copy_location(ast.Assign([node.target], value), node)
        return ast.fix_missing_locations(made)
    single = isinstance(node, ast.Assign) and len(node.targets) == 1
    return node if single and isinstance(node.targets[0], ast.Name) else None  # type: ignore[attr-defined, return-value]


def _counter(loop: ast.For) -> str | None:
    """The name of the number of the step, if it counts from 0 by 1."""
    target, iterable = loop.target, loop.iter
    if not isinstance(iterable, ast.Call) or iterable.keywords or len(iterable.args) != 1:
        return None
    name = ast.unparse(iterable.func)
    if name == "enumerate" and isinstance(target, ast.Tuple):
        target = target.elts[0]
    elif name != "range":
        return None
    return target.id if isinstance(target, ast.Name) else None


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
    """Whether a statement only appends to a list, adds to a sum, or prints."""
    if _prints(statement):
        return True
    if isinstance(statement, ast.AugAssign):
        return isinstance(statement.op, ast.Add)
    call = statement.value if isinstance(statement, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("append", "extend")
    )


def _prints(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "print"


class _Shown(ast.NodeTransformer):
    """Wraps what a statement prints, so that a number of the step has a text."""

    def visit_Call(self, node: ast.Call) -> Any:
        node.args = [
            self.visit(x) if isinstance(x, ast.JoinedStr) else _shown(x) for x in node.args
        ]
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> Any:
        node.value, node.format_spec = _shown(node.value, node.format_spec), None
        return node


def _shown(value: ast.expr, spec: Any = None) -> ast.expr:
    if isinstance(value, (ast.Constant, ast.Starred)):
        return value
    return _call("shown", value, *([spec] if spec is not None else []), at=value)


def _number_of_tensor(node: ast.Call) -> ast.expr | None:
    """``t`` in ``torch.tensor([t])`` and ``torch.tensor(t)``."""
    if ast.unparse(node.func) not in _MAKES_TENSOR or len(node.args) != 1:
        return None
    (value,) = node.args
    if isinstance(value, ast.List) and len(value.elts) == 1:
        (value,) = value.elts
    simple = isinstance(value, (ast.Name, ast.BinOp, ast.Subscript))
    return copy.deepcopy(value) if simple else None


def _may_be_loss(function: ast.expr) -> bool:
    """Whether a call may be that of a loss: not a method that is known."""
    if isinstance(function, ast.Name):
        return not hasattr(builtins, function.id)
    known = {*_ON_TENSORS, "append", "extend"}
    return isinstance(function, ast.Attribute) and function.attr not in known


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
