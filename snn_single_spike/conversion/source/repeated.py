"""Reads the source of a class: which attributes of ``self`` are called inside a loop."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterator
from typing import Any

__all__ = [
    "called_in_loops",
    "fixes_batch",
    "source_of_forward",
    "starts_neurons",
    "states_of_loops",
]

_STARTS = {
    *("init_leaky", "init_synaptic", "init_alpha", "init_lapicque", "init_rleaky", "init_hidden"),
    *("reset_mem", "utils.reset"),
}


def called_in_loops(owner: type, function: Callable[..., Any]) -> Iterator[str]:
    """Attributes of ``self`` that ``function`` calls inside a loop, as dotted paths.

    The search follows calls of methods of ``owner``, in both directions: a loop in a called
    method, and a method that is called in a loop.
    """
    for method in (function, *_called_methods(owner, _parse(function), set())):
        for node in ast.walk(_parse(method)):
            for repeated in _repeated(node):
                yield from _called(repeated)
                for inner in _called_methods(owner, repeated, set()):
                    yield from _called(_parse(inner))


def source_of_forward(owner: Any) -> Iterator[ast.AST]:
    """All nodes of the forward of a class, and of the methods that it calls."""
    tree = _parse(owner.forward)
    for method in (tree, *map(_parse, _called_methods(owner, tree, set()))):
        yield from ast.walk(method)


def starts_neurons(owner: Any) -> str:
    """The call that starts the neurons in every forward, such as ``self.lif.init_leaky()``.

    "" if there is none, or only one under a condition.
    """
    nodes = list(source_of_forward(owner))
    under = {
        id(inner)
        for node in nodes
        if isinstance(node, (ast.If, ast.IfExp, ast.Try))
        for inner in ast.walk(node)
    }
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names = ast.unparse(node.func).rsplit(".", 2)
            if {names[-1], ".".join(names[-2:])} & _STARTS and id(node) not in under:
                return ast.unparse(node)
    return ""


def states_of_loops(owner: Any, states: Collection[str]) -> set[str]:
    """States that a forward reads from a variable of a loop: ``[lif.mem for lif in self.lifs]``."""
    if not inspect.isfunction(getattr(owner, "forward", None)):
        return set()
    nodes = list(source_of_forward(owner))
    loops = (node for node in nodes if isinstance(node, (ast.For, ast.comprehension)))
    variables = {x.id for loop in loops for x in ast.walk(loop.target) if isinstance(x, ast.Name)}
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.attr in states
        and node.value.id in variables
    }


def fixes_batch(owner: Any) -> bool:
    """Whether a forward reshapes with a size that is not one of its tensors, ``x.view(batch_size,
    -1)``."""
    nodes = list(source_of_forward(owner))
    own = {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
    for node in nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in ("view", "reshape"):
            continue
        of_torch = ast.unparse(node.func.value) == "torch"
        sizes = node.args[1:] if of_torch else node.args
        first = sizes[0] if sizes else None
        if isinstance(first, (ast.Tuple, ast.List)) and first.elts:
            first = first.elts[0]
        number = isinstance(first, ast.Constant) and isinstance(first.value, int)
        named = isinstance(first, ast.Name) and first.id not in own
        attribute = isinstance(first, ast.Attribute) and isinstance(first.value, ast.Name)
        if number or named or attribute:
            return True
    return False


def _repeated(node: ast.AST) -> list[ast.AST]:
    """The parts of a loop that run in every iteration; the first iterable runs only once."""
    if isinstance(node, ast.For):
        return [*node.body]
    if isinstance(node, ast.While):
        return [node.test, *node.body]
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        conditions = [test for generator in node.generators for test in generator.ifs]
        return [*elements, *conditions, *(generator.iter for generator in node.generators[1:])]
    return []


def _called_methods(owner: type, tree: ast.AST, seen: set[str]) -> Iterator[Callable[..., Any]]:
    """Methods of ``owner`` that a syntax tree calls, directly or through other methods."""
    for name in _called(tree):
        method: Any = getattr(owner, name, None)
        package = getattr(method, "__module__", "").partition(".")[0]
        written_by_user = inspect.isfunction(method) and package not in ("torch", "snntorch")
        if written_by_user and name not in seen:
            seen.add(name)
            yield method
            yield from _called_methods(owner, _parse(method), seen)


def _called(tree: ast.AST) -> Iterator[str]:
    """Attributes of ``self`` that a syntax tree calls, as dotted paths."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts, target = [], node.func
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value  # type: ignore[assignment]
            if isinstance(target, ast.Name) and target.id == "self":
                yield ".".join(reversed(parts))


def _parse(function: Callable[..., Any]) -> ast.AST:
    """The syntax tree of a function; an empty one where its source is not available."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        # A class made by exec() has no source. Its neurons then reject a second call.
        return ast.Module([], [])
