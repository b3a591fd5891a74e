"""The command line."""

import json
import os
import re
import subprocess
import sys

import pytest

from snn_single_spike import cli
from snn_single_spike.experiments import demo


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torch ", "snntorch ", "triton ", "numba ", "threads", "backend on cpu"):
        assert word in out


@pytest.mark.parametrize(("command", "buffering"), [("info", -1), ("info", 1), ("--help", -1)])
def test_output_whose_reader_has_ended(command, buffering, monkeypatch):
    """As in ``snn-single-spike info | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=buffering) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main([command]) == 141
        print("discarded", flush=True)  # as Python does when it ends


def test_a_broken_pipe_of_another_process_is_raised(monkeypatch):
    def fails(options):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_info", fails)
    with pytest.raises(BrokenPipeError):
        cli.main(["info"])


@pytest.fixture
def _demo_installed():
    for package in ("sklearn", "rich", "matplotlib"):
        pytest.importorskip(package, reason=f"the demo needs {package}")


@pytest.mark.usefixtures("_demo_installed")
def test_demo_trains_draws_and_reports(tmp_path, capsys):
    out = tmp_path / "figure.png"
    assert cli.main(["demo", "--epochs", "2", "--num-steps", "12", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("test accuracy", "hidden spikes per sample", "seconds per epoch", "faster"):
        assert word in text
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_demo_installed")
def test_demo_networks_start_alike_and_learn():
    x_train, y_train, x_test, y_test = demo.load_digits(0)
    assert len(x_train) + len(x_test) == 1797
    contestants = demo.build(0)
    first = [demo.observe(contestant, x_test[0], 25).spikes for contestant in contestants]
    once = (first[1] > 0) & (first[1].cumsum(0) == 1)
    assert ((first[0] > 0) == once).all()
    for _ in range(6):
        demo.train_epoch(contestants, x_train, y_train, 25)
    for contestant in contestants:
        demo.evaluate(contestant, x_test, y_test, 25)
        assert contestant.accuracy > 0.8, contestant.label
    single, loop = contestants
    assert single.spikes <= demo.HIDDEN
    assert single.spikes < loop.spikes


@pytest.mark.usefixtures("_demo_installed")
@pytest.mark.parametrize("name", ["missing/figure.png", "figure.txt", "."])
def test_demo_refuses_a_bad_path_before_it_trains(name, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / name)]) == 1
    assert "--out" in capsys.readouterr().err


def test_demo_names_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "scikit-learn" in error
    assert "pip install scikit-learn rich matplotlib" in error


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("snn-single-spike ")


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--epochs", "0"], ["demo", "--seed", "-1"], ["learn"], ["report"], []],
)
def test_bad_usage(arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


TRAIN = ["train", "--dataset", "digits", "--num-steps", "10", "--layers", "20", "--epochs", "1"]


@pytest.mark.usefixtures("_demo_installed")
def test_train_resume_and_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--train-samples", "100", "--test-samples", "20"]
    assert cli.main([*TRAIN, *few]) == 0
    run = tmp_path / "runs" / "digits-single-spike-masked-0"
    lines = (run / "run.jsonl").read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["settings", "epoch", "raster"]
    assert cli.main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    assert len((run / "run.jsonl").read_text().splitlines()) == 4
    assert "epoch   2/2" in capsys.readouterr().out
    assert cli.main(["report", str(run), "--out", "page"]) == 0
    assert capsys.readouterr().out.strip() == "page/report.md"
    assert "digits, 64-20-10, T=10" in (tmp_path / "page" / "report.md").read_text()


@pytest.mark.usefixtures("_demo_installed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--dataset is missing"),
        ([*TRAIN, "--gradient", "none"], "--gradient none: use one of masked"),
        ([*TRAIN, "--layers", "x"], "--layers x"),
        (["train", "--resume", "nowhere"], "nowhere is not a run: there is no nowhere/run.jsonl"),
        (["train", "--resume", "a", "--out", "b"], "omit --config and --out"),
        (["report", "nowhere"], "nowhere is not a run: there is no nowhere/run.jsonl"),
        ([*TRAIN, "--out", "file"], "--out file is a file"),
        ([*TRAIN, "--train-samples", "2000"], "--train-samples 2000: there are 1,437"),
    ],
)
def test_train_and_report_name_the_error(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("_demo_installed")
def test_ctrl_c_prints_the_command_that_resumes(tmp_path, capsys, monkeypatch):
    from snn_single_spike.experiments import training

    def interrupted(*args, **kwargs):
        raise training.Interrupted("saved in epoch 3, after 4 of 9 batches")

    monkeypatch.setattr(training, "train", interrupted)
    assert cli.main([*TRAIN, "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert "saved in epoch 3, after 4 of 9 batches; to resume: " in error
    assert f"snn-single-spike train --resume {tmp_path}" in error


@pytest.mark.parametrize(("command", "package"), [("train", "rich"), ("report", "matplotlib")])
def test_train_and_report_name_what_is_not_installed(command, package, monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main([command, "x"] if command == "report" else TRAIN) == 1
    error = capsys.readouterr().err
    assert re.search(rf"{command} needs .*{package}.*: pip install .*{package}", error)


def test_extras_are_imported_where_they_are_used():
    code = (
        "import sys, snn_single_spike.cli, snn_single_spike.info\n"
        "snn_single_spike.cli.main(['info'])\n"
        "extras = {'pydantic', 'filelock', 'kornia'}\n"
        "assert not extras & sys.modules.keys(), sys.modules.keys()\n"
        "from snn_single_spike.experiments import datasets\n"
        "assert not extras & sys.modules.keys(), sys.modules.keys()\n"
        "from snn_single_spike.experiments import report, training\n"
        "extras = {'sklearn', 'matplotlib', 'rich', 'tonic', 'tensorboard', 'kornia'}\n"
        "sys.exit(' '.join(extras & sys.modules.keys()) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_latency_code():
    import torch

    coded = demo.latency_code(torch.tensor([[1.0, 0.5, 0.0]]), 9)
    assert coded.shape == (9, 1, 3)
    assert coded.sum(0).tolist() == [[1.0, 1.0, 1.0]]
    assert coded.argmax(0).tolist() == [[0, 4, 8]]


NETWORK = """
import snntorch as snn, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden, feedback=False):
        super().__init__()
        self.fc, self.lif, self.feedback = nn.Linear(6, hidden), snn.Leaky(0.9), feedback

    def forward(self, x):
        mem, out, last = self.lif.init_leaky(), [], 0
        for t in range(len(x)):
            spk, mem = self.lif(self.fc(x[t]) + (last if self.feedback else 0), mem)
            out.append(spk)
            last = spk
        return torch.stack(out)
"""


def test_explain_says_whether_a_class_in_a_file_converts(tmp_path, capsys):
    file = tmp_path / "network.py"
    file.write_text(NETWORK)
    command = ["explain", f"{file}:Net", "--input", "5,2,6", "--arg", "hidden=8"]
    assert cli.main(command) == 0
    assert "loop over time in forward" in capsys.readouterr().out
    assert cli.main([*command, "--arg", "feedback=True"]) == 1
    assert "'last' of the step before" in capsys.readouterr().out
    assert cli.main(["explain", f"{file}:Net"]) == 1
    assert "required positional argument: 'hidden'. Pass it with --arg" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["explain", str(file)])
    assert "must be FILE.py:CLASS" in capsys.readouterr().err
