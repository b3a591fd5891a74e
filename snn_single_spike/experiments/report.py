"""One Markdown page with tables and figures from the records of runs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import ExperimentError
from .config import RESUMABLE, Config
from .datasets import DATASETS
from .files import write_bytes
from .runs import Group, Run, read_runs

PAGE = "report.md"
MANY = ("multi-spike", "multi-spike-loop")
"""The references of comparisons, the first before the second."""
# Runs that differ only in these settings are repetitions of each other
_REPEATED = ("seed", *(name for name in RESUMABLE if name != "epochs"))
# Runs with the same values of these settings are compared with each other
_TASK = ("dataset", "layers", "num_steps", "train_samples", "test_samples", "hold_out")


def write(paths: Sequence[Path], out: Path) -> Path:
    """
    Write the page and its figures.

    :param paths: folders of runs, or files with the records of runs
    :param out: folder of the page
    :return: the page
    :raises ExperimentError: a path is not a run, or `out` cannot be written to
    """
    from . import figures

    once = {path.resolve(): path for path in paths}
    runs = [run for path in once.values() for run in read_runs(path)]
    if out.is_file():
        raise ExperimentError(f"--out {out} is a file: choose a folder")
    lines = [
        "# Runs",
        "",
        "Accuracy is measured after the last epoch, in %, on the test set or on held-out samples, "
        "with its standard deviation over seeds. Spikes count the hidden layers, per test sample. "
        "Seconds give the training time of an epoch, the median without the first epoch. Speed-ups "
        "compare runs on the same machine with as many threads and processes; `elsewhere` marks "
        "other runs.",
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
            f"| {run.name} | {facts['data']} | {facts['machine']} | {facts['threads']} "
            f"| {facts['processes']} | {facts['torch']} |"
        )
    lines += ["", "`snn-single-spike train --config FILE` repeats a run: FILE is its `run.jsonl`."]
    write_bytes(out / PAGE, "\n".join([*lines, ""]).encode())
    return out / PAGE


def _tasks(runs: list[Run]) -> dict[str, list[Group]]:
    """Groups of repetitions, with labels, by the task that they are trained on."""
    tasks: dict[str, dict[tuple, Group]] = {}
    for run in runs:
        settings = run.config.model_dump()
        repeated = tuple(value for key, value in settings.items() if key not in _REPEATED)
        by_settings = tasks.setdefault(_task(run), {})
        by_settings.setdefault(repeated, Group([])).runs.append(run)
    made: dict[str, list[Group]] = {}
    for task, by_settings in tasks.items():
        # The reference of the comparison comes first
        groups = sorted(by_settings.values(), key=_place)
        differing = [
            key
            for key in Config.model_fields
            if key not in (*_REPEATED, *_TASK, "neuron", "epochs") and _differs(groups, key)
        ]
        for group in groups:
            group.label = ", ".join([group.config.neuron, *_settings(group.config, differing)])
        if len({group.label for group in groups}) < len(groups):
            for group in groups:
                group.label += f", {group.config.epochs} epochs"
        made[task] = groups
    return made


def _differs(groups: list[Group], key: str) -> bool:
    """Whether the labels need a setting."""
    found = defaultdict(set)
    for config in (group.config for group in groups if _matters(group.config, key)):
        # The format of the spikes is that of the kind of neuron, unless one kind has two
        kind = config.neuron if key == "spike_format" else ""
        found[kind].add(getattr(config, key))
    return any(len(values) > 1 for values in found.values())


def _place(group: Group) -> int:
    kind = group.config.neuron
    return MANY.index(kind) if kind in MANY else len(MANY)


def _settings(config: Config, names: list[str]) -> list[str]:
    """The settings among these that matter to the network, as words."""
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
    """Whether the setting has an effect on a network of this kind of neuron."""
    if name == "spike_format":
        return not config.neuron.endswith("loop")
    return name != "gradient" or config.neuron == "single-spike"


def _task(run: Run) -> str:
    """Heading of the task, and the size of its data, which may be a part of the dataset."""
    config, spec = run.config, DATASETS[run.config.dataset]
    network = f"{math.prod(spec.features)}-{config.layers}-{spec.classes}"
    return f"{config.dataset}, {network}, T={config.num_steps}\n\n{run.facts['data']}."


def _table(groups: list[Group]) -> list[str]:
    kind = next((kind for kind in MANY if any(g.config.neuron == kind for g in groups)), None)
    many = [group for group in groups if group.config.neuron == kind]
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
        lines += [
            "",
            f"Each row is compared with the {kind} runs whose settings are most alike.",
        ]
    return lines


def _alike(one: Config, other: Config) -> int:
    """Number of settings that two runs share, apart from seeds and epochs."""
    names = set(Config.model_fields) - {*_REPEATED, "epochs"}
    return sum(getattr(one, name) == getattr(other, name) for name in names)


def _epochs(group: Group) -> str:
    """Finished epochs, and the number asked for if it is larger."""
    done = sorted({run.last["epoch"] for run in group.runs})
    asked = max(run.config.epochs for run in group.runs)
    text = f"{done[0]} to {done[-1]}" if len(done) > 1 else f"{done[0]}"
    return text if done[0] == asked else f"{text} of {asked}"
