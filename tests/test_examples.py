"""The examples run and learn."""

import re
import subprocess
import sys

import pytest
import torch

from tests.support.devices import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SCRIPTS = ROOT / "examples" / "scripts"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    for package in ("sklearn", "tonic"):
        if f" {package}" in path.read_text():
            pytest.importorskip(package)
    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().axes))
    space = {}
    exec(compile(path.read_text(), path, "exec"), space)
    pyplot.close("all")
    assert shown
    assert all(axes.has_data() for figure in shown for axes in figure)
    if "accuracy" in space:
        assert space["accuracy"] > 0.8
    else:
        assert abs(space["history"][-1] - 30) < 4 < abs(space["history"][0] - 30)


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("streaming", ()),
        ("export_graphs", ("nir", "onnxruntime", "onnxscript")),
        ("lightning_digits", ("lightning", "sklearn")),
    ],
)
def test_a_script_runs(name, packages, monkeypatch, tmp_path, capsys):
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # one writes files
    space = {}
    path = SCRIPTS / f"{name}.py"
    exec(compile(path.read_text(), path, "exec"), space)
    if "accuracy" in space:
        assert space["accuracy"] > 0.6  # of one batch
    else:
        spikes = re.search(r"^(\d+) ", capsys.readouterr().out.splitlines()[-1])
        assert int(spikes.group(1)) > 0


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_train_together():
    pytest.importorskip("sklearn")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    result = subprocess.run(
        [sys.executable, *command, SCRIPTS / "torchrun_digits.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    accuracy = re.search(r"2 processes: ([\d.]+)%", result.stdout)
    assert float(accuracy.group(1)) > 70


def test_every_script_is_on_the_page():
    page = (ROOT / "examples" / "README.md").read_text()
    for path in (*EXAMPLES, *SCRIPTS.glob("*.py")):
        assert f"({path.relative_to(ROOT / 'examples').as_posix()})" in page
