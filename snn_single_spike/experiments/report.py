"""One Markdown page with tables and figures from the folders of runs."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ExperimentError, metrics_log, training
from .config import RESUMABLE, Config, check_run, make, not_of_a_run
from .datasets import DATASETS
from .files import write_bytes

PAGE = "report.md"
MANY = "multi-spike"
# Runs that differ only in these are repetitions of one another
_REPEATED = ("seed", *(name for name in RESUMABLE if name != "epochs"))
# Runs that share these are compared with each other
_TASK = ("dataset", "layers", "num_steps", "train_samples", "test_samples", "hold_out")


@dataclass
class Run:
    """What the folder of a run holds."""

    folder: Path
    config: Config
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    raster: dict[str, Any] | None

    @property
    def last(self) -> dict[str, Any]:
        return self.history[-1]

    @property
    def seconds(self) -> float:
        """Training time of an epoch; the first one also compiles."""
        times = [record["train_seconds"] for record in self.history]
        return statistics.median(times[1:] or times)

    @property
    def place(self) -> tuple[Any, ...]:
        """Where it ran: times of different places are not compared."""
        return tuple(self.facts[key] for key in ("machine", "threads", "processes"))


def read_run(folder: Path) -> Run:
    """
    Read the folder of a run.

    :raises ExperimentError: it is not one, a file is damaged, or no epoch is finished
    """

    def lines(name: str) -> list[dict[str, Any]]:
        try:
            text = (folder / name).read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines()]
        except OSError:
            raise not_of_a_run(folder / name) from None
        except ValueError as error:
            raise ExperimentError(
                f"{folder / name} is damaged ({error}): go on with the run by --resume {folder}, "
                "which writes it anew"
            ) from None

    def one(name: str) -> dict[str, Any]:
        held = lines(name)
        if len(held) != 1:
            raise ExperimentError(
                f"{folder / name} is damaged (it has {len(held)} lines): go on with the run by "
                f"--resume {folder}, or train anew"
            )
        return held[0]

    check_run(folder / training.CONFIG)
    config = make({}, folder / training.CONFIG)
    history = lines(metrics_log.NAME)
    if not history:
        raise ExperimentError(
            f"{folder} has no finished epoch: let it train, and if it was stopped, train again"
        )
    raster = one(training.RASTER) if (folder / training.RASTER).is_file() else None
    return Run(folder, config, one(training.FACTS), history, raster)


@dataclass
class Group:
    """Runs that differ in their seed only."""

    runs: list[Run]
    label: str = ""

    @property
    def config(self) -> Config:
        return self.runs[0].config

    def values(self, of: Callable[[Run], float]) -> list[float]:
        return [of(run) for run in self.runs]

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.values(lambda run: 100 * run.last["test_accuracy"]))

    @property
    def spikes(self) -> float:
        return statistics.mean(self.values(lambda run: run.last["test_spikes"]))

    @property
    def seconds(self) -> float:
        return statistics.median(self.values(lambda run: run.seconds))

    @property
    def raster(self) -> dict[str, Any] | None:
        """That of the first run which has ended."""
        return next((run.raster for run in self.runs if run.raster), None)

    @property
    def places(self) -> set[tuple[Any, ...]]:
        return {run.place for run in self.runs}


def write(folders: Sequence[Path], out: Path) -> Path:
    """
    Write the page and its figures.

    :param folders: of the runs
    :param out: folder of the page
    :return: the page
    :raises ExperimentError: a folder is not that of a run, or `out` cannot be written to
    """
    from . import figures

    once = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in once.values()]
    if out.is_file():
        raise ExperimentError(f"--out {out} is a file: choose a folder")
    lines = [
        "# Runs",
        "",
        "Accuracy is that after the last epoch, in %, of the test set or of what was held out in "
        "its place, with its standard deviation over seeds. Spikes are those of the hidden layers, "
        "per test sample. Seconds are those of "
        "training in an epoch, median without the first; they are compared where machine, threads "
        "and processes are the same, and else the run was elsewhere.",
        "",
    ]
    for number, (task, groups) in enumerate(_tasks(runs).items(), 1):
        lines += [f"## {task}", "", *_table(groups), ""]
        curves, rasters = f"curves-{number}.png", f"rasters-{number}.png"
        write_bytes(out / curves, figures.curves(groups))
        lines += [f"![Learning curves, and accuracy against spikes]({curves})", ""]
        if any(group.raster for group in groups):
            write_bytes(out / rasters, figures.rasters(groups))
            lines += [f"![Hidden spikes of one test sample]({rasters})", ""]
    lines += ["## Where they ran", "", "| run | data | machine | threads | processes | torch |"]
    lines.append("|---|---|---|--:|--:|---|")
    for run in runs:
        facts = run.facts
        lines.append(
            f"| {run.folder} | {facts['data']} | {facts['machine']} | {facts['threads']} "
            f"| {facts['processes']} | {facts['torch']} |"
        )
    lines += ["", "Each run can be repeated by `snn-single-spike train --config RUN/config.json`."]
    write_bytes(out / PAGE, "\n".join([*lines, ""]).encode())
    return out / PAGE


def _tasks(runs: list[Run]) -> dict[str, list[Group]]:
    """Groups of repetitions by what they are trained on, each with its label."""
    tasks: dict[str, dict[tuple, Group]] = {}
    for run in runs:
        settings = dataclasses.asdict(run.config)
        repeated = tuple(value for key, value in settings.items() if key not in _REPEATED)
        by_settings = tasks.setdefault(_task(run), {})
        by_settings.setdefault(repeated, Group([])).runs.append(run)
    made: dict[str, list[Group]] = {}
    for task, by_settings in tasks.items():
        # What the others are compared with comes first.
        groups = sorted(by_settings.values(), key=lambda group: group.config.neuron != MANY)
        differing = [
            key
            for key in Config.__dataclass_fields__
            if key not in (*_REPEATED, *_TASK, "neuron", "epochs")
            and len({getattr(g.config, key) for g in groups if _matters(g.config, key)}) > 1
        ]
        for group in groups:
            group.label = ", ".join([group.config.neuron, *_settings(group.config, differing)])
        if len({group.label for group in groups}) < len(groups):
            for group in groups:
                group.label += f", {group.config.epochs} epochs"
        made[task] = groups
    return made


def _settings(config: Config, names: list[str]) -> list[str]:
    """Those of these settings that the network has, as words."""
    words = []
    for name in names:
        if _matters(config, name):
            words.append(f"{name.replace('_', ' ')} {_shown(getattr(config, name))}")
    return words


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _matters(config: Config, name: str) -> bool:
    """Whether a network of this kind of neuron has such a setting."""
    if name in ("gradient", "spike_format"):
        return config.neuron == "single-spike"
    return name != "surrogate" or config.gradient != "spike_time"


def _task(run: Run) -> str:
    """What is trained on, a heading and the size of the data, which may be a part of the set."""
    config, spec = run.config, DATASETS[run.config.dataset]
    network = f"{math.prod(spec.features)}-{config.layers}-{spec.classes}"
    return f"{config.dataset}, {network}, T={config.num_steps}\n\n{run.facts['data']}."


def _table(groups: list[Group]) -> list[str]:
    many = [group for group in groups if group.config.neuron == MANY]
    lines = [
        "| | seeds | epochs | accuracy | spikes | fewer spikes | s per epoch | speed-up |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for group in groups:
        accuracies = group.values(lambda run: 100 * run.last["test_accuracy"])
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        fewer = faster = ""
        if many and group not in many:
            reference = max(many, key=lambda other: _alike(other.config, group.config))
            if reference.spikes:
                share = 100 * (1 - group.spikes / reference.spikes)
                fewer = f"{share:.0f} %" if share >= 0 else f"{-share:.0f} % more"
            same = group.places == reference.places and len(group.places) == 1
            faster = f"{reference.seconds / group.seconds:.1f}x" if same else "elsewhere"
        cells = (
            group.label,
            f"{len(accuracies)}",
            _epochs(group),
            f"{group.accuracy:.2f}{spread}",
            f"{group.spikes:.1f}",
            fewer,
            f"{group.seconds:.3g}",
            faster,
        )
        lines.append(f"| {' | '.join(cells)} |")
    if len(many) > 1:
        lines += ["", "Compared with the multi-spike runs whose settings are most alike."]
    return lines


def _alike(one: Config, other: Config) -> int:
    """In how many settings two runs agree, apart from their seeds and lengths."""
    names = set(Config.__dataclass_fields__) - {*_REPEATED, "epochs"}
    return sum(getattr(one, name) == getattr(other, name) for name in names)


def _epochs(group: Group) -> str:
    """Epochs done, and those asked for if they are more."""
    done = sorted({run.last["epoch"] for run in group.runs})
    asked = max(run.config.epochs for run in group.runs)
    text = f"{done[0]} to {done[-1]}" if len(done) > 1 else f"{done[0]}"
    return text if done[0] == asked else f"{text} of {asked}"
