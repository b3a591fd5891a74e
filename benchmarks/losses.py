"""Losses on spike times, forward and backward, against snntorch.functional.

    python benchmarks/losses.py [--threads 1] [--out results.json]

Every neuron fires once at a random step, where the two agree on the value; snnTorch's
gradient is a different one (-1 at the spike), so each one's own is checked against its formula.
Runs take turns in one process. snnTorch's backward loops over batch and classes in Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import snntorch.functional as SF
import torch
from torch import Tensor

from snn_single_spike import losses

import machine

Loss = Callable[[Tensor, Tensor], Tensor]

TARGETS = {"on_target": 5, "off_target": 20}
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "ce_temporal_loss": (losses.ce_temporal_loss(), SF.ce_temporal_loss()),
    "mse_temporal_loss": (losses.mse_temporal_loss(**TARGETS), SF.mse_temporal_loss(**TARGETS)),
}


def data(steps: int, batch: int, classes: int) -> tuple[Tensor, Tensor]:
    """Spikes, one for each neuron, and targets."""
    make = torch.Generator().manual_seed(0)
    times = torch.randint(steps, (1, batch, classes), generator=make)
    spikes = torch.zeros(steps, batch, classes).scatter_(0, times, 1.0)
    return spikes.requires_grad_(), torch.randint(classes, (batch,), generator=make)


def run(loss_fn: Loss, spikes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    loss = loss_fn(spikes, targets)
    (grad,) = torch.autograd.grad(loss, spikes)
    return loss.detach(), grad


def check(ours: Loss, theirs: Loss, spikes: Tensor, targets: Tensor) -> None:
    """Equal values; gradients by the two formulas from the same dL/dtau."""
    (loss, grad), (other, sign_grad) = (run(fn, spikes, targets) for fn in (ours, theirs))
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-6)
    slope = -sign_grad.sum(0)  # theirs is -dL/dtau at the spike, 0 elsewhere
    countdown = torch.arange(len(spikes), 0, -1.0)
    expected = -countdown[:, None, None] * slope
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


def measure(name: str, shape: tuple[int, int, int], repeats: int) -> dict[str, object]:
    spikes, targets = data(*shape)
    contestants = dict(zip(("single spike", "snntorch"), LOSSES[name], strict=True))
    check(*contestants.values(), spikes, targets)
    seconds: dict[str, list[float]] = {who: [] for who in contestants}
    for _ in range(repeats):
        for who, loss_fn in contestants.items():
            start = time.perf_counter()
            run(loss_fn, spikes, targets)
            seconds[who].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "ms": {who: 1e3 * statistics.median(times) for who, times in seconds.items()},
        "speedup": statistics.median(ratios),
        "speedup_min_max": [min(ratios), max(ratios)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 100])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict] = {}
    print(f"{'':40s}{'single spike':>14s}{'snntorch':>12s}{'speed-up':>10s}")
    for name in LOSSES:
        for steps in options.steps:
            for classes in options.classes:
                label = f"{name}, T={steps}, B={options.batch}, C={classes}"
                row = measure(name, (steps, options.batch, classes), options.repeats)
                results[label] = row
                ours, theirs = row["ms"].values()
                print(f"{label:40s}{ours:11.2f} ms{theirs:9.1f} ms{row['speedup']:9.0f}x")
    if options.out:
        on = machine.describe() | {"threads": options.threads}
        figures = {"machine": on, "repeats": options.repeats, "results": results}
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
