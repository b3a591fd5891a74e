"""Whole scripts of snnTorch's tutorials on a GPU, before and after conversion.

    python -m benchmarks.gpu.tutorials_gpu [--out results.json]

The time of a training step of the scripts in `benchmarks/tutorials`, on random samples of the
size of the data. Accuracies need the data: `python -m benchmarks.tutorials.run --data DIR`.
`--smoke` runs two batches on the CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.gpu.results import save
from benchmarks.harness import machine
from benchmarks.tutorials import setting
from benchmarks.tutorials.edits import TUTORIALS
from benchmarks.tutorials.run import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="two batches, without a GPU")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("no GPU found; --smoke runs two batches on the CPU")
    setting.device, setting.random = ("cpu" if options.smoke else "cuda"), True
    facts = machine.describe()
    measure(
        list(TUTORIALS),
        rounds=1 if options.smoke else 5,
        train=False,
        quick=options.smoke,
        keep=lambda found: save(options.out, {"machine": facts, "tutorials": found}),
    )


if __name__ == "__main__":
    main()
