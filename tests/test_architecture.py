"""The imports and signatures that docs/architecture.md promises, read from the source."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.devices import ROOT

PACKAGE = "snn_single_spike"

FLOORS = {
    "cli info": "The command line starts everything else, and nothing imports it.",
    "experiments": "Trainings of the papers: a user's own script could be written the same way.",
    "conversion nir init": "Whole models: they recognize, replace and scale modules.",
    "modules": "nn.Module with parameters and state; they call functions.",
    "data losses memory metrics functional": "Public functions: names and defaults.",
    "spikes": "Values: spike times, events, lazy tensors; layers that read and return them.",
    "ops": "Checks, and registered operators with their gradients; they call a backend.",
    "backends": "Launches of kernels: one folder a backend, one file an operator.",
    "kernels": "Kernels import kernels only.",
}
"""Floors from the top down. A module imports modules of the same floor and of lower floors."""

CONVERSION = ("api", "explain", "whole parts", "folded", "comparison", "call", "one_step")
CONVERSION += ("loops batch", "attributes", "time_axis", "watching", "copies", "refusals", "source")
"""Floors of the folder conversion, from the top down."""

VALUE_TYPES = ("spikes.times", "spikes.events", "spikes.lazy")
USERS = ("experiments",)
"""Modules that import public names of the package; see tests/experiments/test_public_names.py."""
MAX_POSITIONAL = 12
OF_SNNTORCH = ("modules", "__init__")
"""Constructors of neurons, which take the arguments of snnTorch in the same order."""

# Current violations. Delete a violation here when it is fixed. The test fails until then.
KNOWN: dict[str, set[str]] = {}


class Import(NamedTuple):
    importer: str
    imported: str
    """A module; without the package name for modules of this package."""
    names: tuple[str, ...]
    """The imported names; empty if the module itself is imported."""
    runs: bool
    """False for an import under TYPE_CHECKING."""


def name_of(path: Path) -> str:
    """Name of a module below the package; "" is the package itself."""
    base = ROOT if path.is_relative_to(ROOT / "kernels") else ROOT / PACKAGE
    return (
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix("__init__").strip(".")
    )


@cache
def sources() -> dict[str, ast.Module]:
    paths = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return {name_of(path): ast.parse(path.read_text(), path) for path in sorted(paths)}


def is_module(name: str) -> bool:
    return name in sources() or any(other.startswith(name + ".") for other in sources())


def of_package(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


def is_package(name: str) -> bool:
    return name == "" or any(other.startswith(name + ".") for other in sources())


def absolute(importer: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *filter(None, importer.split("."))]
    parts = parts[: len(parts) - node.level + is_package(importer)]
    return ".".join([*parts, *filter(None, [node.module])])


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING:``."""
    tests = (n for n in ast.walk(tree) if isinstance(n, ast.If))
    blocks = (n.body for n in tests if ast.unparse(n.test).endswith("TYPE_CHECKING"))
    return {inner for block in blocks for statement in block for inner in ast.walk(statement)}


def imports_of(importer: str) -> Iterator[Import]:
    """Imports of this package, at the top of a module and in functions."""
    tree = sources()[importer]
    typed = for_types_only(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in filter(lambda alias: of_package(alias.name), node.names):
                inside = alias.name.removeprefix(PACKAGE).strip(".")
                yield Import(importer, inside, (), node not in typed)
        elif isinstance(node, ast.ImportFrom) and of_package(absolute(importer, node)):
            inside = absolute(importer, node).removeprefix(PACKAGE).strip(".")
            names = []
            for alias in node.names:
                module = f"{inside}.{alias.name}".strip(".")
                if is_module(module):
                    yield Import(importer, module, (), node not in typed)
                else:
                    names.append(alias.name)
            if names:
                yield Import(importer, inside, tuple(names), node not in typed)


@cache
def imports() -> list[Import]:
    found = [each for importer in sources() for each in imports_of(importer)]
    assert len(found) > 100  # it does see
    return found


def hold(rule: str, found: set[str]) -> None:
    known = KNOWN.get(rule, set())
    assert not found - known, f"{rule}:\n" + "\n".join(sorted(found - known))
    assert not known - found, "mended, delete from KNOWN:\n" + "\n".join(sorted(known - found))


def floor_of(module: str) -> int:
    top = module.split(".")[0]
    return next(number for number, names in enumerate(FLOORS) if top in names.split())


def inside(module: str, folder: str) -> bool:
    return module == folder or module.startswith(folder + ".")


def test_every_module_is_on_a_floor():
    on_floors = {name for names in FLOORS for name in names.split()}
    # The package itself collects the public names, and _checkout makes the kernels importable.
    assert {name.split(".")[0] for name in sources()} - {"", "_checkout"} == on_floors


def test_imports_run_downwards():
    rising = set()
    for importer, imported, names, _ in imports():
        if importer in ("", "_checkout"):
            continue
        if imported == "":  # the package, which collects what users import
            allowed = any(inside(importer, user) for user in USERS)
        else:
            allowed = floor_of(imported) >= floor_of(importer)
        if not allowed:
            rising.add(f"{importer} -> {imported or ', '.join(names)}")
    hold("upwards", rising)


def test_imports_of_conversion_run_downwards():
    def floor(module: str) -> int:
        name = module.split(".")[1]
        return next(i for i, names in enumerate(CONVERSION) if name in names.split())

    within = [
        each
        for each in imports()
        if each.importer.startswith("conversion.") and each.imported.startswith("conversion.")
    ]
    assert len(within) > 50
    rising = {x for x in within if floor(x.imported) < floor(x.importer)}
    hold("upwards in conversion", {f"{x.importer} -> {x.imported}" for x in rising})


def test_no_modules_import_each_other_in_a_circle():
    after: dict[str, set[str]] = {name: set() for name in sources()}
    for each in imports():
        # Public names come through the package, which imports none of its users.
        if each.runs and each.imported in after and each.importer != each.imported:
            after[each.importer].add(each.imported)
    while leaves := {name for name, imported in after.items() if not imported}:
        after = {name: imported - leaves for name, imported in after.items() if imported}
    # What imports a circle without being part of one is not to blame.
    while roots := set(after) - {name for imported in after.values() for name in imported}:
        after = {name: imported for name, imported in after.items() if name not in roots}
    hold("circles", {f"{a} -> {b}" for a, imported in after.items() for b in imported})


@pytest.mark.parametrize("floor", ["backends", "kernels"])
def test_a_backend_imports_no_other(floor):
    backends = {name.split(".")[1] for name in sources() if name.startswith("kernels.")}
    assert backends >= {"numba", "triton"}
    backends.add("torch")
    found = set()
    for each in imports():
        for mine in backends:
            if inside(each.importer, f"{floor}.{mine}"):
                others = backends - {mine}
                other = any(
                    inside(each.imported, f"{of}.{name}")
                    for of in ("backends", "kernels")
                    for name in others
                )
                elsewhere = floor == "kernels" and not inside(each.imported, f"kernels.{mine}")
                if other or elsewhere:
                    found.add(f"{each.importer} -> {each.imported}")
    hold(f"one backend, {floor}", found)


def test_values_have_no_autograd():
    found = set()
    assert set(VALUE_TYPES) & set(sources())
    for module in set(VALUE_TYPES) & set(sources()):
        for node in ast.walk(sources()[module]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "torch.autograd"
            ):
                found.add(f"{module} imports {node.module}")
            elif isinstance(node, ast.Import):
                found |= {f"{module} imports {a.name}" for a in node.names if "autograd" in a.name}
            elif isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                found |= {f"{module} defines {node.name}"} if "Function" in bases else set()
    hold("values", found)


def test_autograd_functions_are_called_on_their_own_floor():
    """Whoever is above calls an entry, which checks the arguments and then runs the function."""
    functions = {
        module: {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(base).endswith("autograd.Function") for base in node.bases)
        }
        for module, tree in sources().items()
    }
    assert sum(map(len, functions.values())) > 10
    found = set()
    for importer, imported, names, _ in imports():
        if importer and imported and floor_of(importer) != floor_of(imported):
            taken = functions[imported].intersection(names)
            found |= {f"{importer} -> {imported}.{name}" for name in taken}
    hold("autograd functions", found)


def test_few_positional_parameters():
    found = set()
    for module, tree in sources().items():
        if inside(module, "kernels"):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            names = [x.arg for x in (*node.args.posonlyargs, *node.args.args)]
            if names[:1] and names[0] in ("self", "cls", "ctx"):
                names = names[1:]
            name = getattr(node, "name", "lambda")
            count = len(names) + (node.args.vararg is not None)
            if count > MAX_POSITIONAL and (module.split(".")[0], name) != OF_SNNTORCH:
                found.add(f"{module}.{name} has {count}")
    hold("positional", found)


def test_tests_import_no_other_tests():
    found = set()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if any(part.startswith("test_") for part in name.split(".")):
                    found.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not found


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "docs", "examples"])
def test_a_checkout_is_not_part_of_the_package(folder):
    assert importlib.util.find_spec(f"{PACKAGE}.{folder}") is None


@pytest.mark.parametrize("module", ["triton.neuron", "numba.neuron_forward"])
def test_kernels_are_part_of_the_package(module):
    assert importlib.util.find_spec(f"{PACKAGE}.kernels.{module}") is not None
