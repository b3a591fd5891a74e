"""Experiments and the demo import public names only, as the script of a user does."""

import ast
import importlib
from pathlib import Path

import pytest

import snn_single_spike

PACKAGE = Path(snn_single_spike.__file__).parent
FILES = sorted((PACKAGE / "experiments").glob("*.py"))
PUBLIC = {"", "functional", "init", "losses", "metrics"}


def imports(path):
    """The (module, name) pairs that a file imports from this package, with relative modules."""
    inside = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ("snn_single_spike", *inside)[: len(inside) + 2 - node.level]
            parts = [*(above if node.level else ()), *filter(None, [node.module])]
            found = [(".".join(parts), alias.name) for alias in node.names]
        else:
            continue
        for module, name in found:
            if module.split(".")[0] == "snn_single_spike":
                yield module.partition(".")[2], name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_public_names_are_imported(path):
    for module, name in imports(path):
        if module.split(".")[0] == "experiments":
            continue
        assert module in PUBLIC, (module, name)
        held = importlib.import_module(f"snn_single_spike.{module}".rstrip("."))
        assert name in held.__all__, (module, name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_private_attribute_of_another_object_is_used(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            assert owner in ("self", "cls") or node.attr.endswith("__"), ast.unparse(node)


def test_the_imports_of_a_file_are_found():
    found = set(imports(PACKAGE / "experiments" / "network.py"))
    assert {("", "SingleSpikeLeaky"), ("functional", "spike_count")} <= found
    assert ("experiments.datasets", "DATASETS") in found
    assert ("", "LeakyReadout") in set(imports(PACKAGE / "experiments" / "demo.py"))
