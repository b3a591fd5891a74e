"""The documentation site, without building it: its API entries, its table and its navigation."""

import ast
import importlib
import inspect
import re
from collections import Counter
from importlib.util import find_spec

import pytest

import snn_single_spike
from snn_single_spike import SingleSpikeLeaky, backends

from docs.site import capabilities
from docs.site.pages import example, generate, link_to, navigation
from docs.site.public_api import public_names
from tests.support.devices import ROOT

DOCS = ROOT / "docs"
NAMES = [
    name for name in snn_single_spike.__all__ if inspect.ismodule(vars(snn_single_spike)[name])
]
NIR = [importlib.import_module("snn_single_spike.nir")] if find_spec("nir") else []
MODULES = [snn_single_spike, *(vars(snn_single_spike)[name] for name in NAMES), *NIR]


def api_pages():
    pages = sorted((DOCS / "api").glob("*.md"))
    return [page for page in pages if page.stem != "nir" or NIR]


def entries_of_the_site():
    for page in api_pages():
        module = ""
        for kind, name in re.findall(r"^\.\. ([a-z:]+):: (\S+)$", generate(page.read_text()), re.M):
            if kind in ("automodule", "currentmodule"):
                module = name
            elif kind in ("autoclass", "autofunction", "py:data"):
                yield module, name


def test_every_public_name_has_one_entry():
    public = {(module.__name__, name) for module in MODULES for name in public_names(module)}
    found = Counter(entries_of_the_site())
    assert len(public) > 40
    assert public - found.keys() == set()
    assert max(found.values()) == 1


def test_every_public_class_and_function_is_described():
    for module in MODULES:
        for name in public_names(module):
            value = getattr(module, name)
            if callable(value):
                assert value.__doc__, name
                assert not value.__doc__.startswith(f"{name}("), name  # of a NamedTuple


def test_a_name_that_was_not_there_before_gets_an_entry(monkeypatch):
    def new(x):
        """New."""

    monkeypatch.setattr(snn_single_spike.losses, "new", new, raising=False)
    monkeypatch.setattr(snn_single_spike.losses, "__all__", ["new"])
    assert ".. autofunction:: new" in generate("<!-- public-api: snn_single_spike.losses -->")


def test_the_index_leads_to_every_page():
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
    pages |= {f"examples/{path.stem}" for path in (ROOT / "examples").glob("*.py")}
    listed = re.findall(r"^[\w/-]+$", navigation((DOCS / "index.md").read_text()), re.M)
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("guide", "../README.md#neurons", "https://host/README.md#neurons"),
        ("api/layers", "../guide.md", "../guide.md"),
        ("api/layers", "../../README.md", "https://host/README.md"),
        ("guide", "losses.md#a", "losses.md#a"),
        ("index", "../examples/01_first_layer.py", "examples/01_first_layer.py"),
        ("api/data", "../../examples/01_first_layer.py", "../examples/01_first_layer.py"),
        ("index", "../examples/scripts/streaming.py", "https://host/examples/scripts/streaming.py"),
    ],
)
def test_links_out_of_the_site_lead_to_the_repository(page, link, expected):
    text = f"see [`x`]({link})."
    assert link_to("https://host/", page, text) == f"see [`x`]({expected})."


def test_the_page_of_an_example_is_the_example_and_where_to_get_it():
    for path in (ROOT / "examples").glob("*.py"):
        text = example("https://host/", f"examples/{path.stem}", path.read_text())
        assert text.startswith(path.read_text())
        last = text.split("# %%")[-1]
        assert last.startswith(" [markdown]\n")
        assert f"(https://host/examples/{path.name})" in last
        assert f"{{nb-download}}`{path.stem}.ipynb`" in last


def test_every_layer_can_be_built_for_the_table():
    layers = capabilities.layers()
    for name in ("SingleSpikeLeaky", "FusedLeaky"):
        assert {f"`{name}`", f'`{name}(..., spike_format="times")`'} <= layers.keys()
    for layer in layers.values():
        assert any(name.endswith("weight") for name in capabilities.build(layer).state_dict())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LeakyReadout", "computed | computed | – | – | all | all"),  # it never fires
        ("SingleSpikeLinear", "computed | computed | all | all | all | all"),
        ("SingleSpikeSynaptic", "made dense | made dense | all | all | all | all"),
    ],
)
def test_a_row_of_the_table(name, expected):
    cells = capabilities.row(name, capabilities.layers()[f"`{name}`"])
    assert " | ".join(cells) == f"{name} | {expected}"


def test_the_table_finds_what_a_layer_does_not_support():
    assert capabilities.works(SingleSpikeLeaky, "reset_mechanism", "zero")
    assert not capabilities.works(SingleSpikeLeaky, "reset_mechanism", "mirror")
    assert not capabilities.works(SingleSpikeLeaky, "backend", "abacus")


def test_the_devices_of_the_table_are_those_of_the_backends():
    found = {name: capabilities.devices(name) for name in backends.BACKENDS}
    assert found == {"triton": "GPU", "numba": "CPU", "torch": "CPU and GPU"}


def variables_of(tree):
    """The environment variables that a file reads, as literals or through its constants."""
    constants = {
        ast.unparse(node.targets[0]): node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            name = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            name = node.slice
        if name is not None:
            yield ast.literal_eval(constants.get(ast.unparse(name), name))


def test_every_environment_variable_is_on_its_page():
    files = (*ROOT.glob("snn_single_spike/**/*.py"), *ROOT.glob("kernels/**/*.py"))
    read = {name for path in files for name in variables_of(ast.parse(path.read_text()))}
    page = (DOCS / "environment.md").read_text()
    assert {"SNN_SINGLE_SPIKE_MEMORY", "TRITON_INTERPRET"} <= read
    assert {name for name in read if f"`{name}`" not in page} == set()
