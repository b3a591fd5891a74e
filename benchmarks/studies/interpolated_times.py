"""Spikes handed on at their steps, or at their interpolated times, by networks of several layers.

    python -m benchmarks.studies.interpolated_times [--layers 1 2 3] [--seeds 3] [--epochs 30]

The study trains digits with hidden layers of 128 neurons by the rule `spike_time`, from dense
tensors, with the settings of :mod:`benchmarks.studies.gradient_rules`. A spike that is handed on at
its interpolated time is shared between the two steps around it, in proportion. The next layer then
computes from the time whose gradient the rule computes. Both forms have the same gradients.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike.experiments import training
from snn_single_spike.experiments.config import Config
from snn_single_spike.experiments.network import Network
from snn_single_spike.experiments.sources import make

from benchmarks.studies.gradient_rules import DIGITS


class Interpolated(nn.Module):
    """Neurons whose spikes are shared between the two steps around their interpolated times."""

    def __init__(self, lif: SingleSpikeLeaky) -> None:
        super().__init__()
        self.lif = lif

    def forward(self, current: Tensor) -> Tensor:
        """Spikes (T, B, N) from the current (T, B, N)."""
        self.lif.init_hidden = False  # returns the membrane too
        spikes, mem = self.lif(current)
        fired, mem = spikes.detach() > 0, mem.detach()
        before = mem.roll(1, 0)
        now = torch.where(fired, (self.lif.threshold - before) / (mem - before), 0.0)
        now[0] = fired[0].to(now)  # no crossing lies before step 0
        earlier = torch.where(fired, 1 - now, 0.0).roll(-1, 0)
        return spikes + (now + earlier - spikes).detach()


def network(config: Config, interpolated: bool) -> Network:
    torch.manual_seed(config.seed)
    net = Network(config)
    if interpolated:
        for at, stage in enumerate(net.stages):
            if isinstance(stage, SingleSpikeLeaky):
                net.stages[at] = Interpolated(stage)
    return net


def train(config: Config, interpolated: bool) -> float:
    """Test accuracy after the last epoch."""
    net, data = network(config, interpolated), training.load_dataset(config)
    optimizer = torch.optim.Adam(net.parameters(), config.lr)
    order = torch.Generator().manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        batches = torch.randperm(len(data.train), generator=order).split(config.batch)
        for batch, index in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate(config, epoch, batch / len(batches))
            scores, _ = net(data.train.batch(index).to_dense())
            optimizer.zero_grad()
            F.cross_entropy(scores, data.train.labels[index]).backward()
            optimizer.step()
    with torch.no_grad():
        scores, _ = net(data.test.batch(torch.arange(len(data.test))).to_dense())
    return (scores.argmax(1) == data.test.labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=DIGITS["epochs"])
    options = parser.parse_args()
    print("| hidden layers | at steps | at interpolated times |\n|--:|--:|--:|")
    for layers in options.layers:
        cells = []
        for interpolated in (False, True):
            reached = []
            for seed in range(options.seeds):
                settings = {
                    **DIGITS,
                    "layers": "-".join(["128"] * layers),
                    "epochs": options.epochs,
                    "gradient": "spike_time",
                    "surrogate": "atan:2",
                    "spike_format": "dense",
                    "seed": seed,
                }
                reached.append(100 * train(make(settings), interpolated))
            cells.append(
                f"{statistics.mean(reached):.2f} ({min(reached):.2f} to {max(reached):.2f})"
            )
        print(f"| {layers} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
