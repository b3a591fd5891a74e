"""Training a single-spike network, or a multi-spike peer, on one of the datasets.

All random numbers follow from (seed, epoch, batch): a resumed run, and several processes, see the
same samples as one uninterrupted process.
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional as F

from .. import SpikeDelay, SpikeTimes, init
from ..functional import NaNError
from . import ExperimentError, augment, checkpoint, datasets, record, rules
from .checkpoint import Position
from .config import Config
from .datasets import Batch, Dataset
from .distributed import Processes, processes
from .files import remove_leftovers
from .network import Network, count_spikes
from .progress import Silent

LOCK = ".lock"
SHOWN_EVERY = 0.5  # seconds between updates of the terminal

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


class Interrupted(Exception):
    """The run was stopped by a signal, and has been saved."""


@dataclass
class Figures:
    """Sums over samples. They stay on the device until they are read."""

    totals: Tensor
    """(4,) float64: cross-entropy, correct answers, spikes, samples."""

    @classmethod
    def zero(cls, device: torch.device, totals: list[float] | None = None) -> Figures:
        return cls(torch.tensor(totals or [0.0] * 4, dtype=torch.float64, device=device))

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor, hidden: list[Any]) -> None:
        right = (scores.argmax(1) == labels).sum()
        batch = [loss.detach(), right, count_spikes(hidden).detach()]
        self.totals[:3] += torch.stack([value.to(torch.float64) for value in batch])
        self.totals[3] += len(labels)

    def read(self, among: Processes | None = None) -> dict[str, float]:
        """Means over the samples of this process, or of all processes."""
        totals = among.sum(self.totals) if among else self.totals
        loss, right, spikes, samples = totals.tolist()
        samples = samples or math.nan
        return {
            "loss": loss / samples,
            "accuracy": right / samples,
            "spikes": spikes / samples,
            "samples": samples,
        }


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    show: Callable[[int], Silent] | None = None,
) -> list[dict[str, Any]]:
    """
    Train, and test after every epoch. Writes the record of the run (`run.jsonl`) and the state
    from which it can be resumed (`checkpoint.pt`) into the folder `out`.

    Example::

        from snn_single_spike.experiments import sources, training

        settings = sources.make({"dataset": "digits", "epochs": 5, "gradient": "pre_spike"})
        history = training.train(settings, Path("runs/digits"))
        history[-1]["test_accuracy"]

    :param config: from :func:`snn_single_spike.experiments.sources.make`
    :param out: folder of the run
    :param resume: resume from the checkpoint in `out`. Defaults to False
    :param show: called with the number of batches in an epoch, returns the progress display.
        Defaults to None: no display
    :return: metrics of each epoch
    :raises ExperimentError: an invalid setting, file or checkpoint; a loss that is not finite;
        `out` already holds a run
    :raises Interrupted: on Ctrl-C or SIGTERM, after the run has been saved
    """
    if not resume:
        _refuse_run(out)
    rules.check_device(config.device)
    if config.augment:
        augment.check_installed()
    torch.manual_seed(config.seed)
    network = Network(config).to(DTYPES[config.precision])
    with processes(config.device) as among, _stop_signals() as stop:
        if config.batch < among.count:
            raise ExperimentError(
                f"--batch {config.batch}: {among.count} processes share a batch; use at least "
                f"{among.count} samples"
            )
        with among.main_first():
            dataset = load_dataset(config)
        return _Run(config, out, network, dataset, among, stop, show).run(resume)


def _refuse_run(out: Path) -> None:
    if out.is_file():
        raise ExperimentError(f"--out {out} is a file: choose a folder")
    if (out / checkpoint.NAME).exists() or (out / checkpoint.PREVIOUS).exists():
        raise ExperimentError(
            f"--out {out} holds a run: resume it by --resume {out}, or choose another folder"
        )


def load_dataset(config: Config) -> Dataset:
    """Load the dataset of a run."""
    return datasets.load(
        config.dataset,
        config.num_steps,
        data=None if config.data is None else Path(config.data),
        cache=None if config.cache is None else Path(config.cache),
        dtype=DTYPES[config.precision],
        train_samples=config.train_samples,
        test_samples=config.test_samples,
        hold_out=config.hold_out,
        download=config.download,
        coding=config.coding,
    )


def learning_rate(config: Config, epoch: int, progress: float = 0.0) -> float:
    """The learning rate in an epoch, counted from 1, after this part of its batches."""
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * (epoch - 1 + progress) / config.epochs)) / 2
    return config.lr * config.lr_decay ** sum(epoch > m for m in config.milestones)


def groups(network: Network, config: Config) -> list[dict[str, Any]]:
    """Groups of parameters for the optimizer. Delays have their own learning rate."""
    delays = [m.delay for m in network.modules() if isinstance(m, SpikeDelay)]
    if not delays:
        return [{"params": list(network.parameters()), "times_lr": 1.0}]
    ids = {id(delay) for delay in delays}
    others = [p for p in network.parameters() if id(p) not in ids]
    times_lr = config.delay_lr / config.lr
    return [
        {"params": others, "times_lr": 1.0},
        {"params": delays, "times_lr": times_lr, "weight_decay": 0.0},
    ]


class _Run:
    def __init__(
        self,
        config: Config,
        out: Path,
        network: Network,
        dataset: Dataset,
        among: Processes,
        stop: threading.Event,
        show: Callable[[int], Silent] | None,
    ) -> None:
        self.config, self.out, self.among, self.stop = config, out, among, stop
        self.description, self.left_out = dataset.describe(), dataset.left_out()
        self.training, self.testing = (s.to(among.device) for s in (dataset.train, dataset.test))
        self.augmentations = [augment.parse(text) for text in config.augment]
        self.network = network.to(among.device)
        self.wrapped = among.wrap(self.network)
        self.optimizer = torch.optim.Adam(
            groups(self.network, config), config.lr, weight_decay=config.weight_decay
        )
        self.batches = math.ceil(len(self.training) / config.batch)
        self.display = show(self.batches) if show and among.main else Silent()

    def run(self, resume: bool) -> list[dict[str, Any]]:
        with self._alone(resume):
            position = self._begin(resume)
            history = position["history"]
            if resume and self.among.main:
                record.warn_of_changes(self.out, history)
            with self._log(history) as log, self.display:
                done = len(history) * self.batches + position["batch"]
                self.display.begin(self.description + self.left_out, done)
                for epoch in range(len(history) + 1, self.config.epochs + 1):
                    metrics = self._epoch(epoch, position)
                    history.append(metrics)
                    position = checkpoint.after(history)
                    if log:
                        log.epoch(metrics)
                        self._save(position)
                    self.display.epoch(metrics)
                    if self.among.any(self.stop.is_set()) and epoch < self.config.epochs:
                        self.among.wait()  # torchrun ends all processes when the first one ends
                        raise Interrupted(f"saved after epoch {epoch}")
                if log:
                    log.end(self._raster())
        self.display.end(f"{self.out} is trained{self._longer()}")
        return history

    def _longer(self) -> str:
        if self.config.schedule == "cosine":  # the learning rate has come down to 0
            return ""
        again = f"snn-single-spike train --resume {shlex.quote(str(self.out))} --epochs N"
        return f"; to train longer: {again}"

    def _begin(self, resume: bool) -> Position:
        if not resume:
            self._calibrate()
            return checkpoint.after([])
        found = checkpoint.restore(self.out, self.network, self.optimizer, self.among.device)
        if self.config.epochs < len(found["history"]):
            raise ExperimentError(
                f"--epochs {self.config.epochs}: {self.out} has already trained for "
                f"{len(found['history'])}; use at least as many"
            )
        return found

    def _calibrate(self) -> None:
        """Scale the initial weights. Every process reads the same samples."""
        if self.config.calibrate is None:
            return
        first = torch.arange(min(len(self.training), self.config.batch), device=self.among.device)
        try:
            init.calibrate_(self.network, self._input(first), self.config.calibrate)
        except ValueError as error:
            raise ExperimentError(f"--calibrate {self.config.calibrate}: {error}") from None

    def _input(self, index: Tensor) -> Any:
        """Training samples without augmentation, as the network takes them."""
        return self._formatted(self.training.batch(index))

    def _formatted(self, x: Batch) -> Any:
        """A batch in the format that layers pass on."""
        dense = self.config.spike_format == "dense" and not isinstance(x, Tensor)
        return x.to_dense() if dense else x

    @contextlib.contextmanager
    def _alone(self, resume: bool) -> Iterator[None]:
        """Lock the folder, so that no other run writes into it."""
        if not self.among.main:
            yield
            return
        with contextlib.suppress(OSError):  # the first write reports the error
            self.out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.out / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ExperimentError(
                f"{self.out} is in use by a run that is training now: wait for it, or choose "
                "another --out"
            ) from None
        except OSError as error:
            raise ExperimentError(
                f"{self.out / LOCK} cannot be written ({error.strerror or error}): free some "
                "space, or choose another folder"
            ) from None
        try:
            if not resume:
                _refuse_run(self.out)
            remove_leftovers(self.out)
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes it with its last use
                (self.out / LOCK).unlink()
            lock.release()

    def _log(self, history: list[dict[str, Any]]) -> contextlib.AbstractContextManager:
        if not self.among.main:
            return contextlib.nullcontext()
        left = len(history) < self.config.epochs
        # A finished run that is resumed trained where its record says
        facts = self._facts() if left else record.read_header(self.out).facts
        begun = record.Record(self.config.model_dump(mode="json"), facts, history)
        return record.Log(self.out, begun, self.config.tensorboard)

    def _facts(self) -> dict[str, Any]:
        return {
            "data": self.description,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "processes": self.among.count,
            "threads": torch.get_num_threads(),
            "machine": _machine(self.among.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def _epoch(self, epoch: int, position: Position) -> dict[str, Any]:
        """Train for the rest of an epoch, then test."""
        self.network.train()
        # A checkpoint holds the sums over all processes
        figures = Figures.zero(self.among.device, position["totals"] if self.among.main else None)
        start, shown = time.perf_counter() - position["seconds"], 0.0
        generator = torch.Generator().manual_seed(_seed(self.config.seed, epoch))
        order = torch.randperm(len(self.training), generator=generator).split(self.config.batch)
        for batch in range(position["batch"], self.batches):
            # A trailing 0 would give the seed of the sample order
            seed = _seed(self.config.seed, epoch, batch + 1)
            rate = learning_rate(self.config, epoch, batch / self.batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group.get("times_lr", 1.0)
            try:
                loss = self._step(order[batch], seed, figures)
            except NaNError as error:
                raise ExperimentError(
                    f"epoch {epoch}: {error} (--lr is {self.config.lr}; the checkpoint is of an "
                    "earlier epoch)"
                ) from None
            if self.among.device.type == "cpu":  # reading it would stall a GPU
                self._check_finite(loss.item(), epoch)
            now = time.perf_counter()
            if now - shown > SHOWN_EVERY:
                shown = now
                read = figures.read()
                read["samples_per_second"] = read["samples"] * self.among.count / (now - start)
                self.display.batch(epoch, batch + 1, read)
            if self.among.any(self.stop.is_set()) and batch + 1 < self.batches:
                self._interrupt(epoch, batch + 1, figures, now - start, position)
        trained = figures.read(self.among)
        seconds = time.perf_counter() - start
        self._check_finite(trained["loss"], epoch)
        tested = self._test()
        return {
            "epoch": epoch,
            "train_loss": trained["loss"],
            "train_accuracy": trained["accuracy"],
            "train_spikes": trained["spikes"],
            "train_seconds": seconds,
            "train_samples_per_second": trained["samples"] / seconds,
            "test_loss": tested["loss"],
            "test_accuracy": tested["accuracy"],
            "test_spikes": tested["spikes"],
            "lr": learning_rate(self.config, epoch),
        }

    def _check_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise ExperimentError(
                f"the loss of epoch {epoch} is {loss}: lower --lr {self.config.lr} (the checkpoint "
                "is of an earlier epoch)"
            )

    def _step(self, index: Tensor, seed: int, figures: Figures) -> Tensor:
        """One optimizer step on the share of the batch that belongs to this process."""
        share = self.among.share
        index = index.to(self.among.device)
        if self.augmentations:
            # Every process transforms the whole batch, so that it sees what one process would
            transform = functools.partial(
                augment.augment, augmentations=self.augmentations, seed=seed
            )
            whole = self.training.batch(index, transform)
            x = whole[:, share] if isinstance(whole, Tensor) else whole.samples(share)
        else:
            x = self.training.batch(index[share])
        labels = self.training.labels[index[share]]
        scores, hidden = self._forward(self.wrapped, x)
        loss = F.cross_entropy(scores, labels, reduction="sum")
        cost = loss
        if self.config.spike_penalty:
            cost = loss + self.config.spike_penalty * count_spikes(hidden)
        self.optimizer.zero_grad()
        # The mean over the whole batch, since gradients are averaged over the processes
        (cost * (self.among.count / len(index))).backward()
        self.optimizer.step()
        figures.add(loss, scores, labels, hidden)
        return loss.detach()

    def _forward(self, network: nn.Module, x: Batch) -> tuple[Tensor, list[Any]]:
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.among.device.type, torch.bfloat16, enabled=half):
            scores, hidden = network(self._formatted(x))
        return scores.to(DTYPES[self.config.precision]), hidden

    @torch.no_grad()
    def _test(self) -> dict[str, float]:
        self.network.eval()
        figures = Figures.zero(self.among.device)
        samples = torch.arange(len(self.testing), device=self.among.device)[self.among.share]
        for index in samples.split(self.config.batch):
            labels = self.testing.labels[index]
            scores, hidden = self._forward(self.network, self.testing.batch(index))
            loss = F.cross_entropy(scores, labels, reduction="sum")
            figures.add(loss, scores, labels, hidden)
        return figures.read(self.among)

    @torch.no_grad()
    def _raster(self) -> dict[str, Any]:
        """Hidden spikes of the first test sample, for the report."""
        self.network.eval()
        first = torch.zeros(1, dtype=torch.int64, device=self.among.device)
        scores, hidden = self._forward(self.network, self.testing.batch(first))
        layers = []
        for spikes in hidden:
            dense = spikes.to_dense() if isinstance(spikes, SpikeTimes) else spikes
            times, neurons = dense[:, 0].flatten(1).nonzero(as_tuple=True)
            layers.append(
                {
                    "neurons": dense[0, 0].numel(),
                    "times": times.tolist(),
                    "spiking": neurons.tolist(),
                }
            )
        return {
            "label": int(self.testing.labels[0]),
            "answer": int(scores.argmax()),
            "num_steps": self.config.num_steps,
            "layers": layers,
        }

    def _interrupt(
        self, epoch: int, batch: int, figures: Figures, seconds: float, position: Position
    ) -> None:
        totals = self.among.sum(figures.totals)
        if self.among.main:
            self._save(
                {
                    "history": position["history"],
                    "batch": batch,
                    "totals": totals.tolist(),
                    "seconds": seconds,
                }
            )
        self.among.wait()  # torchrun ends all processes when the first one ends
        raise Interrupted(f"saved in epoch {epoch}, after {batch} of {self.batches} batches")

    def _save(self, position: Position) -> None:
        checkpoint.save(self.out, self.network, self.optimizer, position)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _seed(*numbers: int) -> int:
    """A seed of 64 bits that follows from these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set. A second signal stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread receives signals
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
