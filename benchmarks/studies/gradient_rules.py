"""A comparison of gradient rules and surrogates, also from a silent network.

    python -m benchmarks.studies.gradient_rules --data DIR [--tasks yinyang digits] [--seeds 3]

The study trains every rule with every surrogate on Yin-Yang 4-120-3, on digits with one to three
hidden layers of 128, and on Fashion-MNIST with a hidden layer of 200 or 1000. All rules have the
same decays, the same schedule of the learning rate, and the same scale of the scores, with which
these do not saturate. The settings were chosen on training samples that were held out. The rule
`spike_time` reads the surrogate at silent neurons only; "heaviside" is the exact gradient alone.
The study also trains silent networks, whose first weights are a tenth of the recipe's. The same
command resumes a stopped study and skips finished runs. The study writes tables and learning curves
beside the runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from snn_single_spike.experiments import ExperimentError, checkpoint, report, training
from snn_single_spike.experiments.config import Config
from snn_single_spike.experiments.datasets import NEEDS_FILES
from snn_single_spike.experiments.files import write_bytes
from snn_single_spike.experiments.progress import Terminal
from snn_single_spike.experiments.runs import read_runs
from snn_single_spike.experiments.sources import make
from snn_single_spike.functional import GRADIENT_RULES

DIGITS = {"dataset": "digits", "epochs": 30}  # the recipe has the rest
FASHION = {
    "dataset": "fashion-mnist",
    "epochs": 5,
    "schedule": "cosine",
    "augment": (),
    "beta": 0.97,
    "readout_beta": 0.97,
    "learn_beta": False,
    "score_scale": 0.05,
}
TASKS: dict[str, dict[str, Any]] = {
    "yinyang": {
        "dataset": "yinyang",
        "epochs": 30,
        "lr": 2e-3,
        "schedule": "cosine",
        "beta": 0.97,
        "readout_beta": 0.97,
        "score_scale": 0.1,
    },
    "digits": DIGITS,
    "digits-2-layers": {**DIGITS, "layers": "128-128"},
    "digits-3-layers": {**DIGITS, "layers": "128-128-128"},
    "fashion-mnist": {**FASHION, "layers": "200"},
    # Three times as many steps: decays and scores for the same durations
    "fashion-mnist-1000": {
        **FASHION,
        "layers": "1000",
        "num_steps": 300,
        "beta": 0.99,
        "readout_beta": 0.99,
        "score_scale": 0.017,
    },
}
# The papers' second and first version, snnTorch's default, and two other shapes
SURROGATES = ("fast_sigmoid:10", "fast_sigmoid:100", "atan:2", "sigmoid:25", "triangular:1")
SILENT = 0.1

Runs = dict[tuple[str, str], list[Path]]
"""Folders of the runs, one per seed, by rule and surrogate."""


def settings(task: str, options: argparse.Namespace, **changes: Any) -> Config:
    files = {"data": options.data} if TASKS[task]["dataset"] in NEEDS_FILES else {}
    changes |= {"epochs": options.epochs} if options.epochs else {}
    return make({**TASKS[task], **files, **changes})


def train(config: Config, folder: Path) -> Path:
    print(f"\n{folder}", flush=True)
    try:
        training.train(
            config,
            folder,
            resume=(folder / checkpoint.NAME).exists(),
            show=lambda batches: Terminal(config, batches),
        )
    except training.Interrupted as stopped:
        sys.exit(f"{stopped}; the same command resumes")
    return folder


def compare(task: str, options: argparse.Namespace, silent: bool) -> Runs:
    """Train every rule with every surrogate, and silent networks with the first surrogate."""
    found: Runs = {}
    surrogates = options.surrogates[:1] if silent else options.surrogates
    for rule in options.rules:
        for surrogate in surrogates:
            for seed in range(options.seeds):
                name = f"{task}-{rule}-{surrogate.replace(':', '-')}-{seed}"
                config = settings(task, options, gradient=rule, surrogate=surrogate, seed=seed)
                if silent:
                    name += "-silent"
                    config = settings(
                        task,
                        options,
                        gradient=rule,
                        surrogate=surrogate,
                        seed=seed,
                        weight_scale=silent_scales(config),
                    )
                found.setdefault((rule, surrogate), []).append(train(config, options.out / name))
    return found


def silent_scales(config: Config) -> tuple[float, ...]:
    """The factors of the initial weights, of the first layer a tenth."""
    scales = config.weight_scale
    if len(scales) == 1:
        scales *= config.layers.count("-") + 2  # the hidden layers and the readout
    return (SILENT * scales[0], *scales[1:])


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def by_surrogate(runs: Runs) -> list[str]:
    """Test accuracy after the last epoch in %: mean and extremes."""
    surrogates = list(dict.fromkeys(surrogate for _, surrogate in runs))
    lines = [f"| | {' | '.join(surrogates)} |", "|---" + "|--:" * len(surrogates) + "|"]
    for rule in dict.fromkeys(rule for rule, _ in runs):
        cells = []
        for surrogate in surrogates:
            last = [read_runs(folder)[0].last for folder in runs[rule, surrogate]]
            cells.append(spread([100 * record["test_accuracy"] for record in last]))
        lines.append(f"| `{rule}` | {' | '.join(cells)} |")
    return lines


def from_silence(runs: Runs) -> list[str]:
    """Spikes per sample in the first and last epochs, and the final accuracy."""
    lines = ["| | spikes in epoch 1 | epoch 2 | last | accuracy |", "|---|--:|--:|--:|--:|"]
    for (rule, _), folders in runs.items():
        histories = [read_runs(folder)[0].history for folder in folders]
        spikes = [
            statistics.mean(history[at]["train_spikes"] for history in histories)
            for at in (0, min(1, len(histories[0]) - 1), -1)
        ]
        reached = spread([100 * history[-1]["test_accuracy"] for history in histories])
        lines.append(f"| `{rule}` | " + " | ".join(f"{s:.1f}" for s in spikes) + f" | {reached} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with Fashion-MNIST")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rules", nargs="+", choices=GRADIENT_RULES, default=GRADIENT_RULES)
    parser.add_argument("--surrogates", nargs="+", default=SURROGATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of each task's own")
    parser.add_argument("--out", type=Path, default=Path("runs/gradient_rules"))
    options = parser.parse_args()
    for task in options.tasks:
        try:
            settings(task, options)  # reports a missing --data before the first run
        except ExperimentError as error:
            parser.error(str(error))

    lines = ["# Gradient rules", ""]
    folders: list[Path] = []
    for task in options.tasks:
        runs, silent = (compare(task, options, silent) for silent in (False, True))
        epochs = settings(task, options).epochs
        lines += [
            f"## {task}",
            "",
            f"Test accuracy in % after {epochs} epochs, mean and extremes of {options.seeds} "
            "seeds.",
            "",
            *by_surrogate(runs),
            "",
            f"From a silent network (first weights x{SILENT}), {options.surrogates[0]}:",
            "",
            *from_silence(silent),
            "",
        ]
        folders += [folder for found in runs.values() for folder in found]
    page = report.write(folders, options.out / "report")
    lines.append(f"Learning curves: [{page.name}](report/{page.name})")
    write_bytes(options.out / "gradient_rules.md", "\n".join([*lines, ""]).encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
