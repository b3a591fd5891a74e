"""Which losses train a network of single spikes: snnTorch's and this library's, on digits.

    python benchmarks/losses_accuracy.py [--epochs 15] [--seeds 3] [--out table.md]

scikit-learn's digits, latency-coded, T=25, 64-128-10, SingleSpikeLeaky in both layers, Adam at
5e-3. Accuracy is read by snnTorch's accuracy_rate, by the earliest spike
(metrics.accuracy_temporal) and by the summed membrane of the output layer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import snntorch.functional as SF
import torch
from snntorch import surrogate
from torch import Tensor, nn

from snn_single_spike import SingleSpikeLeaky, losses, metrics
from snn_single_spike.demo import latency_code, load_digits

STEPS, HIDDEN, CLASSES, BATCH = 25, 128, 10, 128
COLUMNS = ("rate", "earliest spike", "membrane", "undecided", "hidden", "output", "seconds")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        options = {"spike_grad": surrogate.fast_sigmoid(slope=10), "learn_beta": True}
        self.fc1 = nn.Linear(64, HIDDEN)
        self.lif1 = SingleSpikeLeaky(torch.full((HIDDEN,), 0.9), **options)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = SingleSpikeLeaky(torch.full((CLASSES,), 0.95), **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, _ = self.lif1(self.fc1(x))
        return spk1, *self.lif2(self.fc2(spk1))


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # spk1, spk2, mem2, targets


def on_spikes(loss: Callable[[Tensor, Tensor], Tensor], *regularisers: Callable) -> Loss:
    """Regularisers are for the hidden layer and the output layer; None leaves one out."""

    def call(spk1: Tensor, spk2: Tensor, mem2: Tensor, targets: Tensor) -> Tensor:
        value = loss(spk2, targets)
        for regulariser, spikes in zip(regularisers, (spk1, spk2), strict=False):
            if regulariser is not None:
                value = value + regulariser(spikes)
        return value

    return call


def on_membrane(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda spk1, spk2, mem2, targets: loss(mem2, targets)


_revive = losses.firing_regulariser()
_later = losses.firing_regulariser(50.0, early=1.0, earliest=8)
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
    "ce_temporal_loss(time_scale=2), firing_regulariser(50, early=1, earliest=8)": on_spikes(
        losses.ce_temporal_loss(time_scale=2), None, _later
    ),
    "mse_temporal_loss()": on_spikes(losses.mse_temporal_loss()),
    "mse_temporal_loss(on_target=8, off_target=24)": on_spikes(
        losses.mse_temporal_loss(on_target=8, off_target=24)
    ),
    "mse_temporal_loss(), firing_regulariser() on both layers": on_spikes(
        losses.mse_temporal_loss(), _revive, _revive
    ),
    "ce_membrane_loss()": on_membrane(losses.ce_membrane_loss()),
}


def train(loss_fn: Loss, epochs: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    x_train, y_train, x_test, y_test = load_digits(seed)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(x_train)).split(BATCH):
            loss = loss_fn(*net(latency_code(x_train[batch], STEPS)), y_train[batch])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        spk1, spk2, mem2 = net(latency_code(x_test, STEPS))
    return {
        "rate": 100 * float(SF.accuracy_rate(spk2, y_test)),
        "earliest spike": 100 * metrics.accuracy_temporal(spk2, y_test),
        "membrane": 100 * (mem2.sum(0).argmax(1) == y_test).float().mean().item(),
        "undecided": 100 * metrics.latency_to_decision(spk2).isnan().float().mean().item(),
        "hidden": spk1.sum().item() / len(x_test),
        "output": spk2.sum().item() / len(x_test),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    options = parser.parse_args()
    lines = [f"| loss | {' | '.join(COLUMNS)} |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for name, loss in CONTESTANTS.items():
        runs = [train(loss, options.epochs, seed) for seed in range(options.seeds)]
        means = [sum(run[column] for run in runs) / len(runs) for column in COLUMNS]
        lines.append(f"| `{name}` | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
