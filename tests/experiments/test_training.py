"""Training: learning, bit-for-bit resume, files of a run, and several processes."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from torch import distributed

from snn_single_spike.experiments import (
    ExperimentError,
    checkpoint,
    files,
    record,
    training,
)
from snn_single_spike.experiments.progress import Silent, Terminal
from snn_single_spike.experiments.sources import make

from tests.support.devices import DEVICE
from tests.support.recordings import write_nmnist
from tests.support.runs import SMALL, recorded, same, settings, state, without_times

pytest.importorskip("sklearn", reason="scikit-learn has the digits")


class Interrupter(Silent):
    """Sends a signal to this process after a number of batches."""

    def __init__(self, after, number=signal.SIGINT):
        self.left, self.number = after, number

    def batch(self, epoch, done, figures):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def _every_batch_is_shown(monkeypatch):
    monkeypatch.setattr(training, "SHOWN_EVERY", 0)


def test_digits_are_learned(tmp_path):
    made = make({"dataset": "digits", "num_steps": "20", "epochs": "10", "lr": "5e-3"})
    history = training.train(made, tmp_path)
    assert history[-1]["test_accuracy"] > 0.85
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 3
    assert 5 < history[-1]["test_spikes"] <= 128


@pytest.mark.parametrize("spike_format", ["times", "dense"])
def test_silent_neurons_train_by_the_exact_rule(spike_format, tmp_path):
    """From weights with which no hidden neuron fires."""
    made = make(
        {
            "dataset": "digits",
            "num_steps": "20",
            "epochs": "10",
            "lr": "5e-3",
            "gradient": "spike_time",
            "surrogate": "atan",
            "score_scale": "0.1",
            "weight_scale": "0.1,1",
            "spike_format": spike_format,
        }
    )
    history = training.train(made, tmp_path)
    assert history[0]["train_spikes"] < 30
    assert history[-1]["test_accuracy"] > 0.85


def test_calibrated_neurons_fire_from_the_first_epoch(tmp_path):
    made = settings(epochs="1", lr="1e-6", calibrate="0.5", weight_scale="0.01")
    history = training.train(made, tmp_path)
    half = sum(int(n) for n in made.layers.split("-")) / 2
    assert 0.7 * half < history[0]["test_spikes"] < 1.6 * half  # and those of the last step


def test_a_run_writes_its_record(tmp_path):
    history = training.train(settings(epochs="2"), tmp_path)
    found = recorded(tmp_path)
    assert found.history == history
    assert [metrics["epoch"] for metrics in history] == [1, 2]
    assert make({}, tmp_path / "run.jsonl") == settings(epochs="2")
    facts = found.facts
    assert facts["data"].startswith("digits: 200 of 1,437 (partial)")
    assert facts["parameters"] == 64 * 20 + 20 + 20 + 20 * 10 + 10 + 10
    (layer,) = found.raster["layers"]
    assert found.raster["num_steps"] == 10
    assert layer["neurons"] == 20
    assert len(layer["times"]) == len(set(layer["spiking"])) > 0
    names = {"run.jsonl", "checkpoint.pt", "checkpoint-previous.pt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_the_figures_are_those_of_the_network(tmp_path):
    history = training.train(settings(epochs="1"), tmp_path)
    net = training.Network(settings(epochs="1"))
    net.load_state_dict(state(tmp_path)["network"])
    test = training.load_dataset(settings()).test
    with torch.no_grad():
        scores, (hidden,) = net(test.batch(torch.arange(50)).to_dense())
    loss = torch.nn.functional.cross_entropy(scores, test.labels)
    assert history[0]["test_accuracy"] == (scores.argmax(1) == test.labels).sum().item() / 50
    assert history[0]["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert history[0]["test_spikes"] == hidden.sum().item() / 50


def test_runs_of_one_seed_are_the_same_and_of_another_are_not(tmp_path):
    flags = {"epochs": "2", "augment": "crop:1,noise:0.2:1"}
    first, again, other = (
        without_times(training.train(settings(seed=seed, **flags), tmp_path / name))
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    assert first == again
    assert first != other


@pytest.mark.usefixtures("_every_batch_is_shown")
@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGINT, {"layers": "20", "schedule": "cosine"}),
        (signal.SIGTERM, {"layers": "4C3-P2-20", "milestones": "1"}),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, number, flags):
    made = settings(augment="crop:1,noise:0.2:1", weight_decay="1e-4", **flags)
    whole = training.train(made, tmp_path / "whole")
    cut = tmp_path / "cut"
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    # 4 batches an epoch: stop in the second epoch, and once more in the third
    with pytest.raises(training.Interrupted, match="saved in epoch 2, after 2 of 4 batches"):
        training.train(made, cut, show=lambda batches: Interrupter(6, number))
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert len(recorded(cut).history) == 1
    assert recorded(cut).raster is None
    torch.manual_seed(99)  # a new process has other random numbers
    with pytest.raises(training.Interrupted, match="saved in epoch 3, after 1 of 4 batches"):
        training.train(made, cut, resume=True, show=lambda batches: Interrupter(3, number))
    torch.manual_seed(98)
    resumed = training.train(made, cut, resume=True)
    assert without_times(resumed) == without_times(whole)
    assert same(state(cut), state(tmp_path / "whole"))
    assert recorded(cut).raster == recorded(tmp_path / "whole").raster


def test_a_finished_run_trains_for_more_epochs(tmp_path):
    whole = training.train(settings(), tmp_path / "whole")
    training.train(settings(epochs="1"), tmp_path / "grown")
    grown = training.train(settings(), tmp_path / "grown", resume=True)
    assert without_times(grown) == without_times(whole)
    again = training.train(settings(), tmp_path / "grown", resume=True)
    assert again == grown  # nothing is left to do


def test_metrics_after_the_checkpoint_are_dropped(tmp_path, caplog):
    training.train(settings(epochs="1"), tmp_path)
    log = tmp_path / record.NAME
    log.write_text(log.read_text() + '{"epoch": 2, "cut off')
    history = training.train(settings(epochs="2"), tmp_path, resume=True)
    assert recorded(tmp_path).history == history
    assert "run.jsonl is damaged in line 4" in caplog.text
    assert "it is rewritten from the checkpoint, of 1 epochs" in caplog.text


def without_checksum(line):
    """A line as earlier versions have written it."""
    return re.sub(r', "checksum": "\w+"', "", line)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:2], "has 1 epochs: it"),
        (lambda lines: [*lines[:2], lines[1], lines[2]], "damaged in line 3 (its checksum"),
        (lambda lines: [lines[0], *lines[2:]], "damaged in line 2 (its checksum"),
        (
            lambda lines: [lines[0], lines[1].replace("0.", "1.", 1), *lines[2:]],
            "damaged in line 2 (its checksum does not match): it is rewritten",
        ),
        (lambda lines: [without_checksum(line) for line in lines], None),
        (
            lambda lines: [without_checksum(line).replace("0.", "1.") for line in lines],
            "with other figures: it",
        ),
        (lambda lines: lines, None),
    ],
)
def test_a_record_that_is_rewritten_is_named(change, reason, tmp_path, caplog):
    training.train(settings(epochs="2"), tmp_path)
    log = tmp_path / record.NAME
    log.write_text("".join(change(log.read_text().splitlines(keepends=True))))
    history = training.train(settings(epochs="2"), tmp_path, resume=True)
    assert recorded(tmp_path).history == history
    assert (reason or "") in caplog.text
    assert reason or not caplog.text


def test_an_interrupted_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    training.train(settings(epochs="1"), tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def save(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        training.train(settings(epochs="2"), tmp_path, resume=True)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_reported_and_the_old_file_kept(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def full(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ExperimentError, match=r"file cannot be written \(No space left.*free some"):
        files.write_atomically(path, full)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="cannot be written .*choose another folder"):
        training.train(settings(), tmp_path / "file" / "run")


def test_a_run_is_not_written_over(tmp_path):
    training.train(settings(epochs="1"), tmp_path)
    with pytest.raises(ExperimentError, match="holds a run: resume it by --resume"):
        training.train(settings(epochs="1"), tmp_path)


def test_unusable_checkpoints_are_reported(tmp_path):
    with pytest.raises(ExperimentError, match=r"there is no checkpoint\.pt"):
        training.train(settings(), tmp_path, resume=True)
    training.train(settings(epochs="1"), tmp_path)
    path = tmp_path / checkpoint.NAME
    whole, held = path.read_bytes(), state(tmp_path)
    for damaged in (b"", whole[:500], whole[: len(whole) - 200], b"\0" * 4000):
        path.write_bytes(damaged)
        with pytest.raises(ExperimentError, match=r"checkpoint\.pt is corrupt"):
            training.train(settings(), tmp_path, resume=True)
    content = io.BytesIO()
    torch.save({**held, "format": 0}, content)
    path.write_bytes(checkpoint.sealed(content.getvalue()))
    with pytest.raises(ExperimentError, match="has format 0, but this version reads 1"):
        training.train(settings(), tmp_path, resume=True)
    path.write_bytes(whole)
    with pytest.raises(ExperimentError, match=r"is of another network .*Error.* loading"):
        training.train(settings(layers="30"), tmp_path, resume=True)


def nan(figures):
    figures.totals += torch.nan
    return torch.zeros(())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    training.train(settings(epochs="1"), tmp_path)
    real = training.F.cross_entropy
    monkeypatch.setattr(
        training.F, "cross_entropy", lambda *args, **kwargs: real(*args, **kwargs) * torch.nan
    )
    with pytest.raises(ExperimentError, match=r"the loss of epoch 2 is nan: lower --lr 0\.005"):
        training.train(settings(), tmp_path, resume=True)
    # On a GPU it is looked at once an epoch
    monkeypatch.setattr(training._Run, "_step", lambda run, index, seed, figures: nan(figures))
    with pytest.raises(ExperimentError, match=r"the loss of epoch 2 is nan"):
        training.train(settings(), tmp_path, resume=True)
    assert len(state(tmp_path)["position"]["history"]) == 1


def test_parameters_that_become_nan_stop_the_run(tmp_path, monkeypatch):
    def step(optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(ExperimentError, match=r"epoch 1: .* contains NaN.*--lr is 0\.005"):
        training.train(settings(), tmp_path)


def test_the_learning_rate_falls_after_its_milestones(tmp_path):
    made = settings(milestones="1,2", lr_decay="0.5", lr="0.8")
    assert [training.learning_rate(made, epoch) for epoch in (1, 2, 3, 4)] == [0.8, 0.4, 0.2, 0.2]
    history = training.train(settings(milestones="2", lr="0.01", epochs="3"), tmp_path)
    assert [metrics["lr"] for metrics in history] == pytest.approx([0.01, 0.01, 0.001])
    assert state(tmp_path)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.001)


def test_the_cosine_schedule_is_that_of_torch(tmp_path):
    batches, made = 5, settings(schedule="cosine", lr="0.8", epochs="3")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 0.8)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * batches)
    for epoch in (1, 2, 3):
        for batch in range(batches):
            (expected,) = reference.get_last_lr()
            rate = training.learning_rate(made, epoch, batch / batches)
            assert rate == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            reference.step()
    history = training.train(made, tmp_path)
    assert [metrics["lr"] for metrics in history] == pytest.approx([0.8, 0.6, 0.2])
    last = state(tmp_path)["optimizer"]["param_groups"][0]["lr"]  # of the last of 4 batches
    assert last == pytest.approx(training.learning_rate(made, 3, 3 / 4))


@pytest.mark.parametrize(
    "flags",
    [
        {"precision": "float64"},
        {"precision": "bfloat16", "spike_format": "dense"},
        {"neuron": "multi-spike", "precision": "bfloat16"},
        {"neuron": "multi-spike", "precision": "float64"},
        {"layers": "4C3-P2-20", "neuron": "multi-spike"},
        {"neuron": "multi-spike-loop"},
        {"layers": "4C3-P2-20"},
        {"dataset": "yinyang", "layers": "20"},
    ],
    ids=str,
)
def test_other_settings_train(tmp_path, flags):
    history = training.train(settings(**flags, epochs="1"), tmp_path)
    assert history[0]["test_spikes"] > 0
    wanted = torch.float64 if flags.get("precision") == "float64" else torch.float32
    assert state(tmp_path)["network"]["output.weight"].dtype == wanted
    if "precision" in flags:
        usual = {k: v for k, v in flags.items() if k != "precision"}
        (metrics,) = training.train(settings(**usual, epochs="1"), tmp_path / "usual")
        assert history[0]["train_loss"] == pytest.approx(metrics["train_loss"], rel=0.05)
        assert history[0]["train_loss"] != metrics["train_loss"]


@pytest.mark.parametrize("spike_format", ["dense", "times"])
def test_events_train(tmp_path, spike_format):
    made = make(
        {
            "dataset": "nmnist",
            "data": str(write_nmnist(tmp_path / "data")),
            "cache": str(tmp_path / "cache"),
            "spike_format": spike_format,
            "layers": "20",
            "weight_scale": "8",
            "epochs": "2",
            "batch": "6",
        }
    )
    history = training.train(made, tmp_path / "run")
    assert history[-1]["test_spikes"] > 0


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"layers": "30-20", "spike_penalty": "1e-2"},
        {"layers": "4C3-P2-20"},
        {"layers": "4C3-AP2-20"},
        {"gradient": "pre_spike"},
    ],
    ids=str,
)
def test_spike_times_train_as_dense_spikes_do(tmp_path, flags):
    dense, times = (
        training.train(
            settings(spike_format=spike_format, precision="float64", **flags),
            tmp_path / spike_format,
        )
        for spike_format in ("dense", "times")
    )
    for a, b in zip(without_times(dense), without_times(times), strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    assert dense[-1]["train_spikes"] > 1


def test_a_spike_penalty_reduces_spikes_and_is_not_in_the_loss(tmp_path):
    free, dear = (
        training.train(settings(spike_penalty=penalty), tmp_path / penalty)
        for penalty in ("0", "0.05")
    )
    assert dear[-1]["test_spikes"] < 0.8 * free[-1]["test_spikes"]
    # 20 neurons that may cost 1 in all
    assert dear[0]["train_loss"] == pytest.approx(free[0]["train_loss"], rel=0.05)


@pytest.mark.skipif(DEVICE != "cuda", reason="no GPU")
@pytest.mark.parametrize("spike_format", ["dense", "times"])
def test_a_gpu_trains_as_the_cpu_does(tmp_path, spike_format):
    flags = {"spike_format": spike_format, "augment": "crop:1,noise:0.2:1"}
    on_cpu = training.train(settings(**flags), tmp_path / "cpu")
    training.train(settings(**flags, epochs="1", device="cuda"), tmp_path / "gpu")
    on_gpu = training.train(settings(**flags, device="cuda"), tmp_path / "gpu", resume=True)
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)
        assert a["test_spikes"] == pytest.approx(b["test_spikes"], rel=0.05)


def test_a_silent_network_is_reported_as_silent(tmp_path):
    (metrics,) = training.train(settings(weight_scale="0.01", epochs="1", lr="1e-9"), tmp_path)
    assert metrics["train_spikes"] == metrics["test_spikes"] == 0


def test_tensorboard_has_every_metric(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training.train(settings(epochs="1", tensorboard=True), tmp_path)
    history = training.train(settings(epochs="2", tensorboard=True), tmp_path, resume=True)
    held = EventAccumulator(str(tmp_path)).Reload()
    for name in history[0].keys() - {"epoch"}:
        scalars = held.Scalars(name.replace("_", "/", 1))
        assert [s.step for s in scalars] == [1, 2]
        assert [s.value for s in scalars] == pytest.approx([metrics[name] for metrics in history])


def test_a_missing_tensorboard_is_reported_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExperimentError, match="needs tensorboard: pip install tensorboard"):
        training.train(settings(tensorboard=True), tmp_path)


@pytest.mark.usefixtures("_every_batch_is_shown")
def test_the_terminal_shows_the_figures(tmp_path, capsys):
    pytest.importorskip("rich", reason="rich is not installed")
    made = settings(epochs="2")
    history = training.train(made, tmp_path, show=lambda batches: Terminal(made, batches))
    text = capsys.readouterr().out
    assert "digits: 200 of 1,437 (partial) training" in text
    assert "epoch   2/2" in text
    assert f"{history[1]['test_accuracy']:.2%}, {history[1]['test_spikes']:.1f} spikes" in text
    assert "8/8" in text  # batches
    assert (
        f"{tmp_path} is trained; to train longer: snn-single-spike train --resume {tmp_path}"
        in text
    )
    assert "samples/s" in text


def test_training_runs_outside_the_main_thread(tmp_path):
    histories = []
    thread = threading.Thread(
        target=lambda: histories.append(training.train(settings(epochs="1"), tmp_path))
    )
    thread.start()
    thread.join()
    assert len(histories[0]) == 1


def torchrun(tmp_path, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "snn_single_spike.cli", "train"]
    return subprocess.run(
        [*command, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not distributed.is_available(), reason="torch has no distributed")
def test_two_processes_train_as_one(tmp_path):
    pytest.importorskip("rich", reason="rich is not installed")
    # The last batch has 9 samples, and is shared unevenly
    flags = {"train_samples": "201", "augment": "crop:1,noise:0.2:1", "epochs": "2"}
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | flags).items()]
    result = torchrun(tmp_path, *arguments, "--out", "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch   2/2") == 1  # only one of them prints
    assert recorded(tmp_path / "two").facts["processes"] == 2
    training.train(settings(**flags), tmp_path / "one")
    one, two = (recorded(tmp_path / name).history for name in ("one", "two"))
    for a, b in zip(without_times(one), without_times(two), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    a, b = state(tmp_path / "one")["network"], state(tmp_path / "two")["network"]
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)
def test_no_thread_holds_a_tensor_after_a_sum_over_processes(monkeypatch):
    """Such a thread aborts the process if the interpreter ends before it."""
    given, reduce = [], distributed.all_reduce

    def recorded(value):
        given.append(weakref.ref(value))
        reduce(value)

    monkeypatch.setattr(distributed, "all_reduce", recorded)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        total = training.Processes(torch.device("cpu"), 0, 2).sum(torch.ones(3))
    finally:
        distributed.destroy_process_group()
    assert total.tolist() == [1.0, 1.0, 1.0]
    assert [reference() for reference in given] == [None]


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch, tmp_path):
    from contextlib import contextmanager

    @contextmanager
    def four(device):
        yield training.Processes(torch.device("cpu"), 0, 4)

    monkeypatch.setattr(training, "processes", four)
    with pytest.raises(ExperimentError, match="--batch 3: 4 processes share a batch"):
        training.train(settings(batch="3"), tmp_path)


def test_a_folder_is_of_one_run_at_a_time(tmp_path):
    from filelock import FileLock

    with (
        FileLock(tmp_path / training.LOCK),
        pytest.raises(ExperimentError, match="is in use by a run that is training now"),
    ):
        training.train(settings(epochs="1"), tmp_path)
    assert not (tmp_path / record.NAME).exists()
    leftover = tmp_path / f".{checkpoint.NAME}.123"
    leftover.write_bytes(b"half")
    training.train(settings(epochs="1"), tmp_path)
    assert not leftover.exists()


def test_the_checkpoint_of_a_running_run_is_not_read(tmp_path, monkeypatch):
    from filelock import FileLock

    training.train(settings(epochs="1"), tmp_path)
    monkeypatch.setattr(checkpoint, "restore", lambda *_: pytest.fail("read"))
    with FileLock(tmp_path / training.LOCK), pytest.raises(ExperimentError, match="training now"):
        training.train(settings(epochs="2"), tmp_path, resume=True)


def test_a_signal_stops_after_an_epoch_of_one_batch(tmp_path, monkeypatch):
    config = settings(epochs="50", batch="200")
    step = training._Run._step
    calls = []

    def stop(self, *arguments):
        calls.append(1)
        self.stop.set()
        return step(self, *arguments)

    monkeypatch.setattr(training._Run, "_step", stop)
    with pytest.raises(training.Interrupted, match="saved after epoch 1"):
        training.train(config, tmp_path)
    assert len(calls) == 1
    monkeypatch.setattr(training._Run, "_step", step)
    assert len(training.train(config, tmp_path, resume=True)) == 50


def test_resuming_what_is_done_changes_nothing_and_fewer_epochs_are_refused(tmp_path, monkeypatch):
    training.train(settings(epochs="2"), tmp_path)
    before = (tmp_path / record.NAME).read_bytes()
    monkeypatch.setattr(training, "_machine", lambda device: "another")
    training.train(settings(epochs="2"), tmp_path, resume=True)
    assert (tmp_path / record.NAME).read_bytes() == before
    with pytest.raises(
        ExperimentError, match="--epochs 1: .* has already trained for 2; use at least"
    ):
        training.train(settings(epochs="1"), tmp_path, resume=True)
