"""The page made from runs."""

import json
import shutil
import statistics

import pytest

from snn_single_spike.experiments import ExperimentError, report, training
from snn_single_spike.experiments.sources import make

pytest.importorskip("sklearn", reason="scikit-learn has the digits")
pytest.importorskip("matplotlib", reason="matplotlib draws the figures")

SMALL = {
    "dataset": "digits",
    "layers": "20",
    "num_steps": "10",
    "epochs": "2",
    "lr": "5e-3",
    "weight_scale": "3",
    "train_samples": "200",
    "test_samples": "50",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in {
        "multi": {"neuron": "multi-spike"},
        "single-0": {},
        "single-1": {"seed": "1"},
        "pre": {"gradient": "pre_spike"},
        "other": {"num_steps": "8"},
    }.items():
        training.train(make({**SMALL, **flags}), folder / name)
    return folder


def rows(page):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.read_text().splitlines()
        if line.startswith("| ")
    ]


def test_the_page_has_the_figures_of_the_runs(runs, tmp_path):
    names = ("multi", "single-0", "single-1", "pre", "other")
    page = report.write([runs / name for name in reversed(names)], tmp_path)
    text = page.read_text()
    for num_steps in (10, 8):
        assert f"## digits, 64-20-10, T={num_steps}\n\ndigits: 200 of 1,437 (partial)" in text
    table = {row[0]: row[1:] for row in rows(page)}
    multi, single = table["multi-spike"], table["single-spike, gradient masked"]
    last = [report.read_run(runs / name).last for name in names]
    accuracies = [100 * record["test_accuracy"] for record in last[1:3]]
    assert single[0] == "2"  # seeds
    assert single[1] == "2"  # epochs
    assert single[2] == f"{sum(accuracies) / 2:.2f} ± {statistics.stdev(accuracies):.2f}"
    spikes = (last[1]["test_spikes"] + last[2]["test_spikes"]) / 2
    assert single[3] == f"{spikes:.1f}"
    fewer = round(100 * (1 - spikes / last[0]["test_spikes"]))
    assert single[4] == (f"{fewer} %" if fewer >= 0 else f"{-fewer} % more")
    assert multi[2] == f"{100 * last[0]['test_accuracy']:.2f}"
    assert multi[4] == multi[6] == ""  # the others are compared with it
    assert text.index("| multi-spike |") < text.index("| single-spike, gradient masked |")
    assert float(single[6].rstrip("x")) == pytest.approx(
        float(multi[5]) / float(single[5]), rel=0.05, abs=0.06
    )
    assert "single-spike, gradient pre_spike" in table
    assert table["single-spike"][4] == ""  # T=8 has no multi-spike run
    for name in ("curves-1.png", "rasters-1.png", "curves-2.png", "rasters-2.png"):
        assert f"({name})" in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_differs_between_runs_is_their_label(runs, tmp_path):
    other = shutil.copytree(runs / "single-0", tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    settings |= {"milestones": [3, 5], "spike_penalty": 0.003}
    (other / "config.json").write_text(json.dumps(settings))
    page = report.write([runs / "single-0", other], tmp_path / "report")
    assert [row[0] for row in rows(page)][1:3] == [
        "single-spike, spike penalty 0, milestones none",
        "single-spike, spike penalty 0.003, milestones 3,5",
    ]


def test_runs_are_compared_with_those_that_were_trained_alike(runs, tmp_path):
    made = []
    for name, spikes in (("multi", 100), ("single-0", 50)):
        for penalty in (0, 0.003):
            folder = shutil.copytree(runs / name, tmp_path / f"{name}-{penalty}")
            settings = json.loads((folder / "config.json").read_text())
            settings |= {"spike_penalty": penalty}
            if name == "multi" and penalty:
                settings |= {"epochs": 1, "seed": 7}  # which does not make it less alike
            (folder / "config.json").write_text(json.dumps(settings))
            record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
            record["test_spikes"] = spikes if penalty == 0 else 10
            (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
            made.append(folder)
    page = report.write(made, tmp_path / "report")
    fewer = {row[0]: row[5] for row in rows(page)[1:5]}
    assert fewer["single-spike, spike penalty 0"] == "50 %"
    assert fewer["single-spike, spike penalty 0.003"] == "0 %"
    assert fewer["multi-spike, spike penalty 0.003"] == ""
    assert "whose settings are most alike" in page.read_text()


def test_times_of_other_machines_are_not_compared(runs, tmp_path):
    moved = shutil.copytree(runs / "single-0", tmp_path / "moved")
    facts = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**facts, "machine": "abacus"}))
    page = report.write([runs / "multi", moved], tmp_path / "page")
    assert {row[0]: row[-1] for row in rows(page)}["single-spike"] == "elsewhere"


def test_runs_on_other_data_are_not_compared(runs, tmp_path):
    other = shutil.copytree(runs / "single-0", tmp_path / "other")
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**facts, "data": "digits: 9 samples"}))
    page = report.write([runs / "multi", other], tmp_path / "page")
    assert page.read_text().count("## digits") == 2
    assert {row[0]: row[5] for row in rows(page)}["single-spike"] == ""


def test_a_run_that_is_not_finished_says_so(runs, tmp_path):
    begun = shutil.copytree(runs / "single-0", tmp_path / "begun")
    (begun / "raster.json").unlink()
    config = make({}, begun / "config.json")
    (begun / "config.json").write_text(json.dumps(config.model_dump() | {"epochs": 9}))
    page = report.write([begun], tmp_path / "page")
    assert {row[0]: row[2] for row in rows(page)}["single-spike"] == "2 of 9"
    assert "rasters" not in page.read_text()
    assert not (tmp_path / "page" / "rasters-1.png").exists()


def test_a_machine_where_time_began_with_compiling(runs):
    run = report.read_run(runs / "single-0")
    times = [record["train_seconds"] for record in run.history]
    assert run.seconds == times[1]
    run.history = run.history[:1]
    assert run.seconds == times[0]


def test_folders_that_cannot_be_used_are_named(runs, tmp_path):
    with pytest.raises(ExperimentError, match=r"config\.json is missing"):
        report.write([tmp_path], tmp_path / "page")
    broken = shutil.copytree(runs / "single-0", tmp_path / "broken")
    metrics = broken / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])
    with pytest.raises(ExperimentError, match=r"metrics\.jsonl is damaged .*--resume"):
        report.write([broken], tmp_path / "page")
    metrics.write_text("")
    with pytest.raises(ExperimentError, match="has no finished epoch: let it train, and if it was"):
        report.write([broken], tmp_path / "page")
    metrics.unlink()
    with pytest.raises(
        ExperimentError, match=r"not the folder of a run: metrics\.jsonl is missing"
    ):
        report.write([broken], tmp_path / "page")
    for name in ("run.json", "raster.json"):
        other = shutil.copytree(runs / "single-0", tmp_path / name)
        (other / name).write_text("")
        with pytest.raises(ExperimentError, match=rf"{name} is damaged \(it has 0 lines\)"):
            report.write([other], tmp_path / "page")


def test_a_run_that_is_given_twice_is_one_and_other_lengths_are_other_rows(runs, tmp_path):
    longer = shutil.copytree(runs / "single-0", tmp_path / "longer")
    settings = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps(settings | {"epochs": 9}))
    page = report.write([runs / "single-0", runs / "single-0", longer], tmp_path / "page")
    assert [row[:2] for row in rows(page)[1:3]] == [
        [f"single-spike, {settings['epochs']} epochs", "1"],
        ["single-spike, 9 epochs", "1"],
    ]


def test_silent_references_and_runs_from_a_gpu(runs, tmp_path):
    silent = shutil.copytree(runs / "multi", tmp_path / "silent")
    record = json.loads((silent / "metrics.jsonl").read_text().splitlines()[-1])
    (silent / "metrics.jsonl").write_text(json.dumps(record | {"test_spikes": 0.0}) + "\n")
    settings = json.loads((silent / "config.json").read_text())
    (silent / "config.json").write_text(json.dumps(settings | {"device": "cuda:3"}))
    page = report.write([silent, runs / "single-0"], tmp_path / "page")
    assert {row[0]: row[5] for row in rows(page)}["single-spike"] == ""
