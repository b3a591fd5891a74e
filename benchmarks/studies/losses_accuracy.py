"""A comparison of losses for single-spike networks, snnTorch's and this library's, on digits.

    python -m benchmarks.studies.losses_accuracy [--epochs 15] [--seeds 3] [--out table.md]
    python -m benchmarks.studies.losses_accuracy --defaults [--out table.md]

scikit-learn's digits, latency-coded, T=25, 64-128-10, SingleSpikeLeaky in both layers, Adam at
5e-3. Accuracy is measured by snnTorch's accuracy_rate, by the earliest spike
(metrics.accuracy_temporal) and by the summed membrane of the output layer.

--defaults compares the defaults of ce_temporal_loss with those of snnTorch, at several numbers of
steps, and on Yin-Yang (Kriener et al., arXiv:2102.08211): 4 coordinates and a bias as spike times,
5-120-3, 2000 samples each to train and to test, 30 epochs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import snntorch.functional as SF
import torch
from snntorch import surrogate
from torch import Tensor, nn

from snn_single_spike import SingleSpikeLeaky, losses, metrics
from snn_single_spike.experiments.demo import latency_code
from snn_single_spike.experiments.digits import load_digits

STEPS, BATCH = 25, 128
COLUMNS = ("rate", "earliest spike", "membrane", "undecided", "hidden", "output", "seconds")


class Net(nn.Module):
    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        options = {"spike_grad": surrogate.fast_sigmoid(slope=10), "learn_beta": True}
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = SingleSpikeLeaky(torch.full((hidden,), 0.9), **options)
        self.fc2 = nn.Linear(hidden, classes)
        self.lif2 = SingleSpikeLeaky(torch.full((classes,), 0.95), **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, _ = self.lif1(self.fc1(x))
        return spk1, *self.lif2(self.fc2(spk1))


@dataclass
class Task:
    """Coded samples (T, B, inputs) and their classes."""

    hidden: int
    classes: int
    epochs: int  # factor of --epochs
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(num_steps: int, seed: int) -> Task:
    x_train, y_train, x_test, y_test = load_digits(seed)
    return Task(
        128,
        10,
        1,
        latency_code(x_train, num_steps),
        y_train,
        latency_code(x_test, num_steps),
        y_test,
    )


def yin_yang(num_steps: int, seed: int) -> Task:
    """Points of the symbol, equally many of the classes yin, yang and dots."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(40_000, 2, generator=generator)
    x, y = points.T
    right, left = torch.hypot(x - 0.75, y - 0.5), torch.hypot(x - 0.25, y - 0.5)
    yin = (right <= 0.1) | ((left > 0.1) & (left <= 0.25)) | ((y > 0.5) & (right > 0.25))
    classes = torch.where((right < 0.1) | (left < 0.1), 2, yin.long())
    inside = torch.hypot(x - 0.5, y - 0.5) <= 0.5
    each = [(inside & (classes == i)).nonzero()[:1333, 0] for i in range(3)]
    samples = torch.cat(each)[torch.randperm(3 * 1333, generator=generator)]
    inputs = torch.cat((points, 1 - points, torch.ones(len(points), 1)), 1)[samples]
    coded, classes = latency_code(inputs, num_steps), classes[samples]
    return Task(120, 3, 2, coded[:, :2000], classes[:2000], coded[:, 2000:], classes[2000:])


TASKS: dict[str, Callable[[int], Task]] = {
    "digits, T=25": lambda seed: digits(25, seed),
    "digits, T=50": lambda seed: digits(50, seed),
    "digits, T=100": lambda seed: digits(100, seed),
    "Yin-Yang, T=50": lambda seed: yin_yang(50, seed),
}

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # spk1, spk2, mem2, targets


def on_spikes(loss: Callable[[Tensor, Tensor], Tensor], *regularizers: Callable) -> Loss:
    """Regularizers of the hidden layer and the output layer, or None."""

    def call(spk1: Tensor, spk2: Tensor, mem2: Tensor, targets: Tensor) -> Tensor:
        value = loss(spk2, targets)
        for regularizer, spikes in zip(regularizers, (spk1, spk2), strict=False):
            if regularizer is not None:
                value = value + regularizer(spikes)
        return value

    return call


def on_membrane(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda spk1, spk2, mem2, targets: loss(mem2, targets)


_revive = losses.firing_regularizer()
CONTESTANTS: dict[str, Loss] = {
    "SF.ce_rate_loss()": on_spikes(SF.ce_rate_loss()),
    "SF.ce_count_loss()": on_spikes(SF.ce_count_loss()),
    "SF.mse_count_loss(0.8, 0.2)": on_spikes(SF.mse_count_loss(0.8, 0.2)),
    "SF.mse_count_loss(1 / T, 0)": on_spikes(SF.mse_count_loss(1 / STEPS, 0)),
    "SF.ce_max_membrane_loss()": on_membrane(SF.ce_max_membrane_loss()),
    "SF.mse_membrane_loss()": on_membrane(SF.mse_membrane_loss()),
    "SF.ce_temporal_loss()": on_spikes(SF.ce_temporal_loss()),
    "SF.mse_temporal_loss()": on_spikes(SF.mse_temporal_loss()),
    "SF.mse_temporal_loss(on_target=8, off_target=24)": on_spikes(
        SF.mse_temporal_loss(on_target=8, off_target=24)
    ),
    "ce_temporal_loss()": on_spikes(losses.ce_temporal_loss()),
    "ce_temporal_loss(time_scale=1, on_target=0)": on_spikes(
        losses.ce_temporal_loss(time_scale=1, on_target=0)
    ),
    "mse_temporal_loss()": on_spikes(losses.mse_temporal_loss()),
    "mse_temporal_loss(on_target=8, off_target=24)": on_spikes(
        losses.mse_temporal_loss(on_target=8, off_target=24)
    ),
    "mse_temporal_loss(), firing_regularizer() on both layers": on_spikes(
        losses.mse_temporal_loss(), _revive, _revive
    ),
    "ce_membrane_loss()": on_membrane(losses.ce_membrane_loss()),
}


# snnTorch's; this library's with snnTorch's arguments; one change each; both; squared error
DEFAULTS: dict[str, Loss] = {
    "SF.ce_temporal_loss()": on_spikes(SF.ce_temporal_loss()),
    "ce_temporal_loss(time_scale=1, on_target=0)": on_spikes(
        losses.ce_temporal_loss(time_scale=1, on_target=0)
    ),
    "ce_temporal_loss(on_target=0)": on_spikes(losses.ce_temporal_loss(on_target=0)),
    "ce_temporal_loss(time_scale=1)": on_spikes(losses.ce_temporal_loss(time_scale=1)),
    "ce_temporal_loss()": on_spikes(losses.ce_temporal_loss()),
    "mse_temporal_loss()": on_spikes(losses.mse_temporal_loss()),
}


def train(loss_fn: Loss, task: Task, epochs: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    net = Net(task.x_train.shape[2], task.hidden, task.classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    start = time.perf_counter()
    for _ in range(epochs * task.epochs):
        for batch in torch.randperm(len(task.y_train)).split(BATCH):
            loss = loss_fn(*net(task.x_train[:, batch]), task.y_train[batch])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        spk1, spk2, mem2 = net(task.x_test)
    latency = metrics.latency_to_decision(spk2)
    samples = len(task.y_test)
    return {
        "rate": 100 * float(SF.accuracy_rate(spk2, task.y_test)),
        "earliest spike": 100 * metrics.accuracy_temporal(spk2, task.y_test),
        "membrane": 100 * metrics.accuracy_membrane(mem2, task.y_test),
        "undecided": 100 * latency.isnan().float().mean().item(),
        "decided at": latency.nanmean().item(),
        "hidden": spk1.sum().item() / samples,
        "output": spk2.sum().item() / samples,
        "seconds": seconds,
    }


def compare_losses(epochs: int, seeds: int) -> list[str]:
    """Every loss on digits, T=25."""
    lines = [f"| loss | {' | '.join(COLUMNS)} |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for name, loss in CONTESTANTS.items():
        runs = [train(loss, digits(STEPS, seed), epochs, seed) for seed in range(seeds)]
        means = [statistics.mean(run[column] for run in runs) for column in COLUMNS]
        lines.append(f"| `{name}` | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
        print(lines[-1], flush=True)
    return lines


def compare_defaults(epochs: int, seeds: int) -> list[str]:
    """Accuracy by the earliest spike (mean, minimum, maximum) and the step of the decision."""
    lines = [f"| loss | {' | '.join(TASKS)} |", "|---" + "|--:" * len(TASKS) + "|"]
    for name, loss in DEFAULTS.items():
        cells = []
        for make in TASKS.values():
            runs = [train(loss, make(seed), epochs, seed) for seed in range(seeds)]
            found = [run["earliest spike"] for run in runs]
            # Without seeds whose network never decides.
            num_steps = [run["decided at"] for run in runs if not math.isnan(run["decided at"])]
            step = statistics.mean(num_steps)
            cells.append(
                f"{statistics.mean(found):.1f} ({min(found):.0f} to {max(found):.0f}), {step:.0f}"
            )
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--defaults", action="store_true", help="compare defaults across tasks")
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    compare = compare_defaults if options.defaults else compare_losses
    lines = compare(options.epochs, options.seeds)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
