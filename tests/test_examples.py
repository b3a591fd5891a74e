"""The examples run and learn."""

import pytest

from tests.support.devices import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


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
