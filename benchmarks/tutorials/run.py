"""Whole scripts of snnTorch's tutorials, before and after conversion.

    python -m benchmarks.tutorials.run --data DIR [--out tutorials.json] [--only tutorial_5]

Each script runs as it is written, with every spike (`convert(net, refractory=0)`), and with one
spike (`convert(net)`). `edits.py` has the lines that change. The versions take turns for a few
batches, and the time of a training step is the least of all rounds; the first batch of a round
compiles and checks, and is left out. With one CPU thread it is the time of the processor, which
other programs change less than the time of a clock. Then each version trains, and is tested.
`--quick` runs two batches of random samples.
"""

from __future__ import annotations

import argparse
import linecache
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from torch import nn

from snn_single_spike.functional import spike_count

from benchmarks.gpu.results import save
from benchmarks.harness import machine
from benchmarks.tutorials import setting
from benchmarks.tutorials.edits import TUTORIALS, VERSIONS, Tutorial


@contextmanager
def counted_spikes() -> Iterator[dict[str, float]]:
    """Counts the spikes of all neurons that run in evaluation."""
    count = {"spikes": 0.0}

    def hook(module: nn.Module, given: Any, output: Any) -> None:
        # The first batch of a converted model is compared with the author's loop.
        tested = not module.training and setting.Timed.batch > 0
        if isinstance(module, snn.SpikingNeuron) and tested:
            spikes = output[0] if isinstance(output, tuple) else output
            # snnTorch's are those of a step
            found = (spikes > 0) if type(spikes) is torch.Tensor else spike_count(spikes)
            count["spikes"] += float(found.sum())

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def execute(source: str) -> dict[str, Any]:
    """The names that a script leaves behind. `convert` reads its source from `linecache`."""
    name = f"<script {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    torch.manual_seed(0)
    space: dict[str, Any] = {"__name__": "script"}
    exec(compile(source, name, "exec"), space)
    return space


def step_seconds(tutorial: Tutorial, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training step, one for each round and version."""
    seconds: dict[str, list[float]] = {version: [] for version in VERSIONS}
    for _ in range(rounds):
        for version in VERSIONS:
            space = execute(tutorial.source(version))
            seconds[version].append(min(space["train_loader"].seconds()))
    return seconds


def trained(tutorial: Tutorial, version: str) -> dict[str, float]:
    """Accuracy (or error) and spikes per sample after training."""
    with counted_spikes() as count:
        space = execute(tutorial.source(version))
    _, *tested = space["test_loader"].loader
    kind = "error" if "error" in space else "accuracy"
    samples = sum(batch[-1].shape[1 if kind == "error" else 0] for batch in tested)
    return {kind: space[kind], "spikes": count["spikes"] / samples}


def measure(
    names: list[str], rounds: int, train: bool, quick: bool, keep: Callable[[dict], None]
) -> dict[str, Any]:
    """The figures of the scripts; `keep` gets those so far after each script."""
    found: dict[str, Any] = {}
    for name in names:
        tutorial = TUTORIALS[name]
        setting.quick, setting.epochs, setting.batches = quick, 1, 2 if quick else 5
        setting.train_samples, setting.test_samples = tutorial.train_samples, 100
        seconds = step_seconds(tutorial, rounds)
        setting.test_samples = tutorial.test_samples
        loop = seconds["loop"]
        versions: dict[str, Any] = {}
        for version in VERSIONS:
            versions[version] = {
                "lines": tutorial.lines(version),
                "step_ms": 1e3 * min(seconds[version]),
                "faster": min(loop) / min(seconds[version]),
                "rounds_ms": [round(1e3 * x, 2) for x in seconds[version]],
            }
        if train:
            setting.batches = 2 if quick else None
            setting.epochs = 1 if quick else tutorial.epochs
            for version in VERSIONS:
                versions[version] |= trained(tutorial, version)
        found[name] = versions
        print(table(name, versions), flush=True)
        keep(found)
    return found


def table(name: str, versions: dict[str, Any]) -> str:
    rows = [TUTORIALS[name].title]
    for version, x in versions.items():
        row = f"  {version:13s}{x['lines']:3d} lines{x['step_ms']:10.1f} ms a step"
        row += f"{x['faster']:8.2f}x"
        for key, form in (("accuracy", "10.1%"), ("error", "10.4f"), ("spikes", "10.1f")):
            row += f"  {key}{x[key]:{form}}" if key in x else ""
        rows.append(row)
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TUTORIALS, default=list(TUTORIALS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--device", default=setting.device)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-train", action="store_true", help="only the time of a step")
    parser.add_argument("--quick", action="store_true", help="two batches of random samples")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    setting.device, setting.data = options.device, options.data
    if options.device == "cpu" and torch.get_num_threads() == 1:
        setting.clock = time.process_time
    facts = machine.describe() | {"threads": str(torch.get_num_threads())}

    def keep(found: dict[str, Any]) -> None:
        save(options.out, {"machine": facts, "tutorials": found})

    measure(options.only, options.rounds, not options.no_train, options.quick, keep)


if __name__ == "__main__":
    main()
