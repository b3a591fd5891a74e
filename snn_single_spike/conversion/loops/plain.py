"""Writes loops over time as plain ``for`` loops: comprehensions, counters and progress bars.

[self.step(x[t]) for t in range(n)]           a list, and a loop that appends to it
while t < n: ...; t += 1                      for t in range(n)
for t in tqdm(range(n))                       for t in range(n)
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterator
from typing import Any

__all__ = ["Position", "names", "plain_loops", "position", "statements_at", "stored_names"]

Position = tuple[int, int]
"""Line and column of a loop; lines from the first one of the function."""

_OPPOSITES: dict[type, Any] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
_COMPREHENSIONS = (ast.ListComp, ast.GeneratorExp)


def position(tree: Any, node: Any) -> Position:
    """The position of a loop in a function."""
    return node.lineno - tree.lineno, node.col_offset


def plain_loops(tree: Any, loops: Collection[Position]) -> Any:
    """A copy of a function, in which the loops at these positions are ``for`` loops.

    A loop of an unknown form stays as it is.
    """
    tree = copy.deepcopy(tree)
    return _Plain(tree, loops).visit(tree) if loops else tree


class _Plain(ast.NodeTransformer):
    def __init__(self, tree: Any, loops: Collection[Position]) -> None:
        self.tree, self.loops = tree, loops
        self.lists = 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, list(self._block(block)))
        for handler in getattr(node, "handlers", ()):
            self.visit(handler)
        return node

    def _block(self, block: list[ast.stmt]) -> Iterator[ast.stmt]:
        done: list[ast.stmt] = []
        for statement in block:
            for comprehension in [n for n in _header(statement) if self._is_loop(n)]:
                if isinstance(comprehension, _COMPREHENSIONS):
                    loop, value = self._loop_of(comprehension)
                    done += loop
                    statement = _Replace(comprehension, value).visit(statement)
            new: Any = self.visit(statement)
            made = [new]
            if isinstance(new, ast.While) and self._is_loop(new):
                made = self._counted(new, done)
            for each in made:
                if isinstance(each, ast.For) and self._is_loop(each):
                    each.iter = _Bars().visit(each.iter)
                    done += _without_branches(each)
                else:
                    done.append(each)
        yield from done

    def _is_loop(self, node: Any) -> bool:
        return hasattr(node, "lineno") and position(self.tree, node) in self.loops

    def _loop_of(self, comprehension: Any) -> tuple[list[ast.stmt], ast.expr]:
        """A list and its loop, and the name of the list."""
        generators = comprehension.generators
        if len(generators) > 1 or generators[0].ifs or generators[0].is_async:
            return [], comprehension
        (generator,), element = generators, comprehension.elt
        own = stored_names([generator.target])
        outside = names(self.tree, without=comprehension) & own
        if outside:  # the target of a comprehension is a name of its own
            rename = {name: f"{name}_of_list" for name in outside}
            for part in (element, generator.target):
                for node in ast.walk(part):
                    if isinstance(node, ast.Name):
                        node.id = rename.get(node.id, node.id)
        name = f"_single_spike_list{self.lists}"
        self.lists += 1
        made, append = statements_at(comprehension, f"{name} = []\n{name}.append(None)")
        append.value.args = [element]
        loop = ast.For(generator.target, _Bars().visit(generator.iter), [append], [])
        ast.copy_location(loop, comprehension)
        (use,) = statements_at(comprehension, name)
        return [made, ast.fix_missing_locations(loop)], use.value

    def _counted(self, loop: ast.While, before: list[ast.stmt]) -> list[ast.stmt]:
        """``while t < n: ...; t += 1`` as a loop over a range."""
        test, body, last = loop.test, loop.body[:-1], loop.body[-1]
        if not isinstance(test, ast.Compare) or not isinstance(test.left, ast.Name):
            return [loop]
        counter, (bound,) = test.left.id, test.comparators[:1]
        written = stored_names(body)
        attributes = {
            n.attr
            for statement in body
            for n in ast.walk(statement)
            if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
        }
        read = {n.attr for n in ast.walk(bound) if isinstance(n, ast.Attribute)}
        start = next((s for s in reversed(before) if counter in stored_names([s])), None)
        counts = (
            len(test.ops) == 1
            and isinstance(test.ops[0], ast.Lt)
            and not loop.orelse
            and body
            and ast.unparse(last) in (f"{counter} += 1", f"{counter} = {counter} + 1")
            and start is not None
            and ast.unparse(start) == f"{counter} = 0"
            and counter not in written
            and not (names(bound) & (written | {counter}))
            and not (read & attributes)
            and not any(isinstance(n, (ast.Continue, ast.Break)) for s in body for n in ast.walk(s))
        )
        if not counts:
            return [loop]
        made = statements_at(loop, f"for {counter} in range(0): pass\n{counter} = 0")
        made[0].iter.args, made[0].body = [bound], body
        made[1].value = copy.deepcopy(bound)
        return made


def _without_branches(loop: ast.For) -> list[ast.stmt]:
    """A loop, after what only its first step does, and before what only its last step does."""
    if not isinstance(loop.target, ast.Name) or loop.orelse:
        return [loop]
    step, iterable = loop.target.id, loop.iter
    ranges = isinstance(iterable, ast.Call) and ast.unparse(iterable.func) == "range"
    if not ranges or len(iterable.args) != 1:  # type: ignore[attr-defined]
        return [loop]
    (count,) = iterable.args  # type: ignore[attr-defined]
    if names(count) & stored_names(loop.body):
        return [loop]
    last = f"{ast.unparse(count)} - 1"
    loop.body = _without_continue(loop.body)
    before: list[ast.stmt] = []
    behind: list[ast.stmt] = []
    while len(loop.body) > 1 and _only_at(loop.body[0], step, "0"):
        before += loop.body.pop(0).body  # type: ignore[attr-defined]
    while len(loop.body) > 1 and _only_at(loop.body[-1], step, last):
        behind = [*loop.body.pop().body, *behind]  # type: ignore[attr-defined]
    return [*before, loop, *behind]


def _only_at(statement: ast.stmt, step: str, number: str) -> bool:
    """Whether a statement is ``if step == number``, whose body does not use the step."""
    return (
        isinstance(statement, ast.If)
        and not statement.orelse
        and ast.unparse(statement.test) == f"{step} == {number}"
        and step not in names(*statement.body)
        and not any(isinstance(n, (ast.Break, ast.Continue)) for n in ast.walk(statement))
    )


def _without_continue(body: list[ast.stmt]) -> list[ast.stmt]:
    """``if test: continue`` with the rest of the body under the opposite test."""
    for i, statement in enumerate(body[:-1]):
        skips = isinstance(statement, ast.If) and not statement.orelse
        if skips and [type(x) for x in statement.body] == [ast.Continue]:  # type: ignore[attr-defined]
            rest = _without_continue(body[i + 1 :])
            test = _opposite(statement.test)  # type: ignore[attr-defined]
            return [*body[:i], ast.copy_location(ast.If(test, rest, []), statement)]
    return body


def _opposite(test: ast.expr) -> ast.expr:
    if isinstance(test, ast.Compare) and type(test.ops[0]) in _OPPOSITES and len(test.ops) == 1:
        opposite = ast.Compare(test.left, [_OPPOSITES[type(test.ops[0])]()], test.comparators)
        return ast.copy_location(opposite, test)
    return ast.copy_location(ast.UnaryOp(ast.Not(), test), test)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


class _Bars(ast.NodeTransformer):
    """Takes progress bars away: a converted model runs all steps at once."""

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        name = ast.unparse(node.func).rpartition(".")[2]
        if name == "tqdm" and node.args:
            return node.args[0]
        if name == "trange":
            called = ast.Call(ast.copy_location(ast.Name("range", ast.Load()), node), node.args, [])
            return ast.copy_location(called, node)
        return node


def statements_at(place: ast.AST, code: str) -> list[Any]:
    """Statements at the line of the author's loop."""
    made = ast.parse(code).body
    for node in (n for statement in made for n in ast.walk(statement)):
        if "lineno" in node._attributes:
            ast.copy_location(node, place)
    return list(made)


def _header(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement that it runs once, without the blocks in it."""
    if isinstance(statement, (ast.While, ast.FunctionDef, ast.ClassDef)):
        return
    waiting: list[Any] = [statement]
    while waiting:
        for field, value in ast.iter_fields(waiting.pop(0)):
            if field in ("body", "orelse", "finalbody", "handlers") and isinstance(value, list):
                continue
            inner = value if isinstance(value, list) else [value]
            found = [x for x in inner if isinstance(x, ast.AST)]
            yield from found
            waiting += found


def stored_names(trees: Any) -> set[str]:
    """Names that syntax trees assign."""
    nodes = (x for tree in trees for x in ast.walk(tree))
    return {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}


def names(*trees: ast.AST, without: ast.AST | None = None) -> set[str]:
    """Names in syntax trees, outside of one part."""
    left = {id(x) for x in ast.walk(without)} if without is not None else ()
    nodes = (x for tree in trees for x in ast.walk(tree))
    return {x.id for x in nodes if isinstance(x, ast.Name) and id(x) not in left}
