"""Every page: the blocks run as one program, and the targets of links exist."""

import re
from itertools import product

import pytest

from tests.support.devices import ROOT
from tests.support.pages import (
    PAGES,
    anchors_of,
    blocks_of,
    links_of,
    name_of,
    run_blocks,
    sections_of,
)

# Separate tests compare the results of the blocks of these pages.
COMPARED = ("README.md", "docs/guide.md", "docs/spike-times.md")
PROGRAMS = [p for p in PAGES if name_of(p) not in COMPARED and blocks_of(p.read_text())]


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_the_blocks_of_a_page_run_in_order(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # pages write files
    for name, package in (("datasets.load", "sklearn"), ("onnxruntime", "onnxruntime")):
        if name in page.read_text():
            pytest.importorskip(package, reason=f"{package} is not installed")
    run_blocks(blocks_of(page.read_text()))


def test_the_program_of_the_quickstart_learns():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    program, *_ = blocks_of((ROOT / "docs" / "quickstart.md").read_text())
    assert run_blocks([program])["accuracy"] > 0.9


def test_the_losses_shown_train():
    space = run_blocks(blocks_of((ROOT / "docs" / "losses.md").read_text()))
    space["loss"].backward()
    assert space["fc1"].weight.grad.any()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links_of(page.read_text()):
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        if anchor:
            assert anchor in anchors_of(there.read_text()), link


def test_the_results_are_those_of_the_report():
    """The rows of the table, under the headings of their datasets."""
    report = (ROOT / "benchmarks" / "results" / "report" / "report.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text().splitlines()
    start = next(i for i, line in enumerate(results) if line.startswith("| | network |"))
    rows = []
    for line in results[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len(rows) > 5
    for dataset, network, *cells in rows:
        tables = [
            part for part in report.split("\n## ") if part.startswith(f"{dataset}, {network}")
        ]
        assert any(f"\n| {' | '.join(cells)} |" in part for part in tables), (dataset, cells)


def files_of(cell):
    """Files that a cell of the table of modules names; bare names share the first one's folder."""
    first, *others = re.findall(r"`(.*?)`", cell)
    folder = first.rpartition("/")[0]
    for name in (first, *(x if "/" in x else f"{folder}/{x}".strip("/") for x in others)):
        parts = [p[1:-1].split(",") if p[:1] == "{" else [p] for p in re.split(r"({.*?})", name)]
        yield from map("".join, product(*parts))


def test_the_modules_of_the_architecture_exist_and_none_is_missing():
    table = sections_of((ROOT / "docs" / "architecture.md").read_text())
    cells = re.findall(r"^\| (`.*?) \|", table["Modules, one sentence each"], re.M)
    named = set()
    for name in (name for cell in cells for name in files_of(cell)):
        base = ROOT if name.startswith("kernels/") else ROOT / "snn_single_spike"
        found = set(base.glob(f"{name}**/*.py" if name.endswith("/") else name))
        assert found, name
        named |= found
    for folder in ("backends", "conversion", "functional", "modules", "ops", "spikes"):
        files = (ROOT / "snn_single_spike" / folder).rglob("*.py")
        assert {path for path in files if path.name != "__init__.py"} <= named, folder
    kernels = {path for path in (ROOT / "kernels").rglob("*.py") if path.name != "__init__.py"}
    assert kernels <= named
