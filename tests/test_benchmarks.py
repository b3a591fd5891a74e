"""The command of the GPU benchmarks, and the scripts of the tutorials."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.conftest import Baselines
from benchmarks.gpu import run as gpu
from benchmarks.harness.race import Ratio
from benchmarks.tutorials import run as tutorials
from benchmarks.tutorials import setting
from benchmarks.tutorials.edits import TUTORIALS, VERSIONS


def test_the_pieces_are_the_files_of_the_folder_and_on_the_page():
    from tests.support.devices import ROOT

    names = list(gpu.pieces())
    assert names[0] == "check"
    assert {"linear", "neuron", "peers", "tutorials"} <= set(names)
    assert all(gpu.pieces().values())
    page = (ROOT / "docs" / "gpu-day.md").read_text()
    assert all(f"| `{name}` |" in page for name in names)


def test_results_survive_a_stop_and_the_next_run_continues(tmp_path, monkeypatch):
    out, ran = tmp_path / "gpu.json", []

    def piece(name, quick, seconds, figures):
        if ran.count(name) == 0 and name == "neuron":
            ran.append(name)
            raise KeyboardInterrupt
        ran.append(name)
        return {"state": "done" if name != "check" else "failed", "seconds": 1, "figures": {}}

    monkeypatch.setattr(gpu, "run_piece", piece)
    names = ["check", "linear", "neuron", "peers"]
    with pytest.raises(KeyboardInterrupt):
        gpu.run(names, out, 12, True, again=False)
    assert list(json.loads(out.read_text())["pieces"]) == ["check", "linear"]
    found = gpu.run(names, out, 12, True, again=False)
    assert ran == ["check", "linear", "neuron", "check", "neuron", "peers"]
    assert json.loads(out.read_text()) == found
    gpu.run(["linear"], out, 12, True, again=True)
    assert ran[-1] == "linear"
    assert "linear" not in gpu.run(["linear"], tmp_path / "none.json", 0, True, False)["pieces"]


def test_a_piece_that_takes_too_long_keeps_its_figures(tmp_path, monkeypatch):
    figures, killed = tmp_path / "slow.json", []

    class Slow:
        """A process that writes a figure, and does not end before it is killed."""

        def __init__(self, command, cwd):
            Path(command[command.index("--out") + 1]).write_text('{"cells": 1}')

        def wait(self, timeout=None):
            if not killed:
                raise subprocess.TimeoutExpired("slow", timeout)

        def kill(self):
            killed.append(True)

    monkeypatch.setattr(gpu.subprocess, "Popen", Slow)
    found = gpu.run_piece("slow", False, 5, figures)
    assert found["state"] == "stopped after 5 s"
    assert found["figures"] == {"cells": 1}
    assert killed


@pytest.fixture
def one_thread():
    """The loops of the tutorials are many small operations, for which threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_tutorials_run_before_and_after(name, monkeypatch, one_thread):
    for key, value in {"quick": True, "device": "cpu", "batches": 2, "epochs": 1}.items():
        monkeypatch.setattr(setting, key, value)
    tutorial = TUTORIALS[name]
    found = {version: tutorials.trained(tutorial, version) for version in VERSIONS}
    loop, every, once = (found[version] for version in VERSIONS)
    assert every == pytest.approx(loop, rel=1e-3)  # the same spikes, and so the same training
    assert 0 < once["spikes"] <= loop["spikes"]
    assert tutorial.lines("loop") == 0 < tutorial.lines("single spike")


def test_the_table_of_the_readme_has_the_figures_of_the_results():
    from tests.support.devices import ROOT

    results = json.loads((ROOT / "benchmarks" / "results" / "tutorials_1_thread.json").read_text())
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "performance.md").read_text()

    def shown(x):
        return f"{x:.2g}" if x < 100 else f"{x:,.0f}"

    for name, tutorial in TUTORIALS.items():
        loop, once = (results["tutorials"][name][version] for version in ("loop", "single spike"))
        step = " → ".join(shown(x["step_ms"]) for x in (loop, once))
        spikes = " → ".join(f"{x['spikes']:,.0f}" for x in (loop, once))
        row = next(line for line in readme.splitlines() if line.endswith(f"| {spikes} |"))
        assert f"| {tutorial.lines('single spike')} | {step} ms, {once['faster']:.1f}x |" in row
        if "error" in loop:
            assert f"error {loop['error']:.3f} → {once['error']:.3f}" in row
        else:
            assert f"{100 * loop['accuracy']:.0f} → {100 * once['accuracy']:.0f} %" in row
        assert f"{step} ms" in page
        assert tutorial.lines("single spike") == once["lines"]


def test_a_contest_fails_if_the_ratios_to_all_peers_fell():
    baselines = Baselines(update=False)
    baselines.known = {"cell": {"loop": 10.0, "plain": 2.0}}

    def fallen(**medians: float) -> dict[str, str]:
        ratios = {name: Ratio(ratio, ratio, ratio, 1.0) for name, ratio in medians.items()}
        return baselines.fallen("cell", ratios)

    assert fallen(loop=8.1, plain=1.7) == {}
    assert fallen(loop=7.0, plain=1.9) == {}  # the loop became faster
    assert set(fallen(loop=7.0, plain=1.5)) == {"loop", "plain"}
    assert set(fallen(loop=7.0, new=1.0)) == {"loop"}  # a peer without a baseline
    assert fallen(new=1.0) == {}
