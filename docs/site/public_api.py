"""The entries of public names, as reStructuredText for autodoc."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[2] / "snn_single_spike"


def public_names(module: ModuleType, package: str = "") -> list[str]:
    """The names in ``__all__`` that are no modules.

    :param package: only the names that this subpackage or module defines
    """
    home = f"{module.__name__}.{package}."

    def belongs(value: Any) -> bool:
        return not package or f"{value.__module__}.".startswith(home)

    values = ((name, getattr(module, name)) for name in module.__all__)
    return [name for name, value in values if not inspect.ismodule(value) and belongs(value)]


def constant_doc(name: str) -> str:
    """The string below the assignment of a constant, from the file that has one."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for statement, after in itertools.pairwise(ast.parse(path.read_text()).body):
            named = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name
            if named and isinstance(after, ast.Expr):
                return inspect.cleandoc(ast.literal_eval(after.value))
    return ""


def foreign(cls: type) -> list[str]:
    """Public attributes of a class that are functions of other packages, such as torch's."""
    package = cls.__module__.partition(".")[0]
    return [
        name
        for name, value in inspect.getmembers(cls, callable)
        if name[0] != "_" and str(getattr(value, "__module__", "")).partition(".")[0] != package
    ]


def entry(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    if inspect.isclass(value):
        left_out = ", ".join(["forward", "extra_repr", *foreign(value)])
        return f".. autoclass:: {name}\n   :members:\n   :exclude-members: {left_out}\n"
    if callable(value):
        return f".. autofunction:: {name}\n"
    doc = constant_doc(name).replace("\n", "\n   ")
    return f".. py:data:: {name}\n   :value: {value!r}\n\n   {doc}\n"


def entries(module_name: str, package: str = "") -> str:
    """A summary and an entry for each public name of a module, as a block of a Markdown page."""
    module = importlib.import_module(module_name)
    names = public_names(module, package)
    summary = "\n".join(f"   {name}" for name in names if callable(getattr(module, name)))
    return _block(
        f".. {'currentmodule' if package else 'automodule'}:: {module_name}\n",
        f".. autosummary::\n   :nosignatures:\n\n{summary}\n",
        *(entry(module, name) for name in names),
    )


def description(module_name: str) -> str:
    """The text of a module, and the entries of its public names that the package has not."""
    module = importlib.import_module(module_name)
    package = importlib.import_module(module_name.partition(".")[0])
    names = [name for name in getattr(module, "__all__", ()) if name not in package.__all__]
    entries_of_names = (entry(module, name) for name in names)
    return _block(f".. automodule:: {module_name}\n   :no-members:\n", *entries_of_names)


def _block(*parts: str) -> str:
    return "```{eval-rst}\n" + "\n".join(parts) + "```\n"
