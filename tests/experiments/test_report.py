"""The page made from runs."""

import json
import statistics
from io import BytesIO
from pathlib import Path

import pytest

from snn_single_spike.experiments import ExperimentError, record, report, training
from snn_single_spike.experiments.runs import Group, read_runs
from snn_single_spike.experiments.sources import make

from tests.support.devices import ROOT

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


def changed(run, folder, *, settings=None, facts=None, last=None):
    """A copy of a run with other settings, facts, or metrics of the last epoch."""
    (made,) = record.read(run)
    made.settings |= settings or {}
    made.facts |= facts or {}
    made.history[-1] |= last or {}
    folder.mkdir()
    write(folder, made.lines())
    return folder


def parsed(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_changed_figure_is_found(runs, tmp_path):
    broken = changed(runs / "single-0", tmp_path / "broken")
    file = broken / record.NAME
    text = (runs / "single-0" / record.NAME).read_text()
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    for place in digits[:: max(len(digits) // 20, 1)]:
        other = str((int(text[place]) + 1) % 10)
        changed_text = text[:place] + other + text[place + 1 :]
        if parsed(changed_text) == parsed(text):  # a last digit that rounds to the same number
            continue
        file.write_text(changed_text)
        with pytest.raises(ExperimentError, match=r"is damaged in line \d .*its checksum"):
            record.read(broken)


def write(folder, lines):
    (folder / record.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


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
    last = [read_runs(runs / name)[0].last for name in names]
    accuracies = [100 * metrics["test_accuracy"] for metrics in last[1:3]]
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
    settings = {"milestones": [3, 5], "spike_penalty": 0.003}
    other = changed(runs / "single-0", tmp_path / "other", settings=settings)
    page = report.write([runs / "single-0", other], tmp_path / "report")
    assert [row[0] for row in rows(page)][1:3] == [
        "single-spike, spike penalty 0, milestones none",
        "single-spike, spike penalty 0.003, milestones 3,5",
    ]


def test_labels_name_the_format_of_spikes_where_one_kind_of_neuron_has_two(runs, tmp_path):
    dense = changed(runs / "multi", tmp_path / "dense", settings={"spike_format": "dense"})
    page = report.write([dense, runs / "single-0"], tmp_path / "one")
    assert [row[0] for row in rows(page)][1:3] == ["multi-spike", "single-spike"]
    page = report.write([dense, runs / "multi"], tmp_path / "two")
    assert {row[0] for row in rows(page)[1:3]} == {
        "multi-spike, spike format dense",
        "multi-spike, spike format times",
    }


@pytest.mark.parametrize(
    ("runs", "written"),
    [("experiments/*", "report"), ("convolutions/*.jsonl", "convolutions/report")],
)
def test_the_page_of_the_results_is_what_the_command_writes(runs, written, tmp_path, monkeypatch):
    from snn_single_spike.experiments import figures

    for name in ("curves", "rasters"):
        monkeypatch.setattr(figures, name, lambda groups: b"")
    monkeypatch.chdir(ROOT)  # the page names the files as the command does
    results = Path("benchmarks/results")
    page = report.write(sorted(results.glob(runs)), tmp_path)
    assert page.read_text() == (results / written / report.PAGE).read_text()


def test_legends_of_long_labels_fit_into_the_picture(runs):
    from matplotlib import image

    from snn_single_spike.experiments import figures

    groups = [
        Group(read_runs(runs / name), f"{name}, " + "augment perspective:0.1:0.3, " * repeats)
        for name, repeats in (("single-0", 1), ("multi", 3), ("pre", 7))
    ]
    drawn = image.imread(BytesIO(figures.curves(groups)))
    assert (drawn[:, :2] == 1).all()
    assert (drawn[:, -2:] == 1).all()
    assert (drawn[-2:] == 1).all()


def test_runs_are_compared_with_those_that_were_trained_alike(runs, tmp_path):
    made = []
    for name, spikes in (("multi", 100), ("single-0", 50)):
        for penalty in (0, 0.003):
            settings = {"spike_penalty": penalty}
            if name == "multi" and penalty:
                settings |= {"epochs": 1, "seed": 7}  # which does not make it less alike
            last = {"test_spikes": spikes if penalty == 0 else 10}
            folder = tmp_path / f"{name}-{penalty}"
            made.append(changed(runs / name, folder, settings=settings, last=last))
    page = report.write(made, tmp_path / "report")
    fewer = {row[0]: row[5] for row in rows(page)[1:5]}
    assert fewer["single-spike, spike penalty 0"] == "50 %"
    assert fewer["single-spike, spike penalty 0.003"] == "0 %"
    assert fewer["multi-spike, spike penalty 0.003"] == ""
    assert "whose settings are most alike" in page.read_text()


def test_times_of_other_machines_are_not_compared(runs, tmp_path):
    moved = changed(runs / "single-0", tmp_path / "moved", facts={"machine": "abacus"})
    page = report.write([runs / "multi", moved], tmp_path / "page")
    assert {row[0]: row[-1] for row in rows(page)}["single-spike"] == "elsewhere"


def test_runs_on_other_data_are_not_compared(runs, tmp_path):
    facts = {"data": "digits: 9 samples"}
    other = changed(runs / "single-0", tmp_path / "other", facts=facts)
    page = report.write([runs / "multi", other], tmp_path / "page")
    assert page.read_text().count("## digits") == 2
    assert {row[0]: row[5] for row in rows(page)}["single-spike"] == ""


def test_a_run_that_is_not_finished_says_so(runs, tmp_path):
    begun = changed(runs / "single-0", tmp_path / "begun", settings={"epochs": 9})
    write(begun, record.read(begun)[0].lines()[:-1])  # without the raster
    page = report.write([begun], tmp_path / "page")
    assert {row[0]: row[2] for row in rows(page)}["single-spike"] == "2 of 9"
    assert "rasters" not in page.read_text()
    assert not (tmp_path / "page" / "rasters-1.png").exists()


def test_a_machine_where_time_began_with_compiling(runs):
    (run,) = read_runs(runs / "single-0")
    times = [metrics["train_seconds"] for metrics in run.history]
    assert run.seconds == times[1]
    run.history = run.history[:1]
    assert run.seconds == times[0]


def test_unusable_paths_are_named(runs, tmp_path):
    with pytest.raises(ExperimentError, match=r"is not a run: there is no .*run\.jsonl\. Give the"):
        report.write([tmp_path], tmp_path / "page")
    with pytest.raises(ExperimentError, match=r"gone\.jsonl is not a run: .*gone"):
        report.write([tmp_path / "gone.jsonl"], tmp_path / "page")
    broken = changed(runs / "single-0", tmp_path / "broken")
    file = broken / record.NAME
    lines = file.read_text().splitlines(keepends=True)
    for damaged, number in (
        ([*lines[:2], lines[2][:-20]], 3),
        (lines[1:], 1),
        ([lines[0], '{"epoch": 1}\n'], 2),
        (["[]\n"], 1),
    ):
        file.write_text("".join(damaged))
        with pytest.raises(
            ExperimentError, match=rf"run\.jsonl is damaged in line {number} .*--resume .*broken"
        ):
            report.write([broken], tmp_path / "page")
    unknown = changed(runs / "single-0", tmp_path / "unknown", settings={"tau": 1})
    with pytest.raises(ExperimentError, match=r"unknown: tau is not a setting"):
        report.write([unknown], tmp_path / "page")
    file.write_text(lines[0])
    with pytest.raises(ExperimentError, match="has no finished epoch: wait for the first one, or"):
        report.write([broken], tmp_path / "page")
    file.write_text("")
    with pytest.raises(ExperimentError, match=r"run\.jsonl is empty"):
        report.write([broken], tmp_path / "page")


def test_a_file_of_several_runs_is_reported_as_their_folders_are(runs, tmp_path):
    names = ("multi", "single-0", "single-1")
    folders = report.write([runs / name for name in names], tmp_path / "folders")
    joined = tmp_path / "joined.jsonl"
    joined.write_text("".join((runs / name / record.NAME).read_text() for name in names))
    page = report.write([joined], tmp_path / "page")
    assert rows(page)[:4] == rows(folders)[:4]
    assert [row[0] for row in rows(page)[-3:]] == [f"{joined}, {number}" for number in (1, 2, 3)]
    assert (tmp_path / "page" / "rasters-1.png").exists()


def test_a_run_that_is_given_twice_is_one_and_other_lengths_are_other_rows(runs, tmp_path):
    longer = changed(runs / "single-0", tmp_path / "longer", settings={"epochs": 9})
    page = report.write([runs / "single-0", runs / "single-0", longer], tmp_path / "page")
    assert [row[:2] for row in rows(page)[1:3]] == [
        ["single-spike, 2 epochs", "1"],
        ["single-spike, 9 epochs", "1"],
    ]


def test_silent_references_and_runs_from_a_gpu(runs, tmp_path):
    silent = changed(
        runs / "multi",
        tmp_path / "silent",
        settings={"device": "cuda:3"},
        last={"test_spikes": 0.0},
    )
    page = report.write([silent, runs / "single-0"], tmp_path / "page")
    assert {row[0]: row[5] for row in rows(page)}["single-spike"] == ""
