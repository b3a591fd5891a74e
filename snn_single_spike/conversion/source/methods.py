"""Methods of the user's classes: where they are defined, and copies of them with other code."""

from __future__ import annotations

import ast
import inspect
import types
from typing import Any, NamedTuple

from torch import nn

from .place import of_package

__all__ = [
    "Method",
    "called_on_self",
    "entry_of",
    "find_method",
    "method_of_call",
    "replace_inside",
    "self_path",
]


class Method(NamedTuple):
    """A method of a user's class."""

    name: str
    depth: int
    """Position in the ``__mro__`` of the class that defines the method."""
    attribute: Any
    """The attribute of this class, with its decorators."""
    function: Any
    """The function inside the decorators."""


def entry_of(cls: Any) -> str:
    """The method that a call runs: ``__call__`` if a user's class has no ``forward``."""
    own = inspect.getattr_static(cls, "__call__", None)
    missing = getattr(cls, "forward", None) is nn.Module.forward
    return "__call__" if missing and own is not vars(nn.Module)["__call__"] else "forward"


def find_method(cls: type, name: str, after: int = -1) -> Method | None:
    """The method that ``self.name`` is, or ``super().name`` in the class at depth ``after``.

    None for methods of torch, snnTorch and this package, and for what is no function.
    """
    for depth, defining in enumerate(cls.__mro__):
        if depth <= after or name not in vars(defining):
            continue
        attribute = vars(defining)[name]
        if not inspect.isfunction(attribute):
            return None
        function = inspect.unwrap(attribute)
        if not inspect.isfunction(function) or of_package(function.__module__ or ""):
            return None
        return Method(name, depth, attribute, function)
    return None


def replace_inside(decorated: Any, function: Any, new: Any) -> Any:
    """A copy of a decorated function, with another function inside; None if there is no way in.

    A decorator made with functools.wraps holds the function in its closure.
    """
    if decorated is function:
        return new
    below = getattr(decorated, "__wrapped__", None)
    compiles = "_dynamo" in decorated.__code__.co_filename
    inner = None if below is None or compiles else replace_inside(below, function, new)
    cells = decorated.__closure__ or ()
    if inner is None or not any(_content(cell) is below for cell in cells):
        return None
    cells = tuple(types.CellType(inner) if _content(cell) is below else cell for cell in cells)
    made = types.FunctionType(
        decorated.__code__,
        decorated.__globals__,
        decorated.__name__,
        decorated.__defaults__,
        cells,
    )
    made.__kwdefaults__ = decorated.__kwdefaults__
    made.__dict__.update(decorated.__dict__, __wrapped__=inner)
    for attribute in ("__doc__", "__module__", "__qualname__", "__annotations__"):
        setattr(made, attribute, getattr(decorated, attribute))
    return made


def called_on_self(node: ast.AST) -> tuple[str, str] | None:
    """The name of the method that a call runs on ``self``, and the class that it names.

    The class is "" for ``self.name(...)``, "super" for ``super().name(...)`` and "Base" for
    ``Base.name(self, ...)``.
    """
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    base = node.func.value
    if isinstance(base, ast.Name) and base.id == "self":
        return node.func.attr, ""
    if isinstance(base, ast.Name) and node.args and ast.unparse(node.args[0]) == "self":
        return node.func.attr, base.id
    if isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super":
        return node.func.attr, "super"
    return None


def method_of_call(cls: type, caller: Method, node: ast.AST) -> Method | None:
    """The user's method that a call in another method runs on ``self``."""
    called = called_on_self(node)
    if called is None:
        return None
    name, by = called
    if by in ("", "super"):
        return find_method(cls, name, caller.depth if by else -1)
    named = (depth for depth, base in enumerate(cls.__mro__) if base.__name__ == by)
    depth = next(named, None)
    return None if depth is None else find_method(cls, name, depth - 1)


def self_path(node: ast.AST) -> tuple[str, ...] | None:
    """The attributes of ``self.a.b``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id == "self" and parts:
        return tuple(reversed(parts))
    return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
