"""Yin-Yang with 30 hidden neurons, with and without learned delays.

    python -m benchmarks.studies.yinyang_delays [--seeds 0 1 2] [--no-delays] [--hold-out 4000]

Each of the four inputs has several axons, and every axon learns its delay. So does every hidden
neuron. Weights, decays and delays are trained by Adam, with a warm-up and a cosine of the learning
rates. The spikes of a sample begin within 300 steps of 450, so that delayed ones arrive. Spike
times are whole steps, so more steps are a finer resolution. By `spike_time` they cost little.

With `--hold-out` the study tests on training samples that it holds out: the settings were chosen by
them. Without delays all axons of an input are the same. The study writes a line of JSON for each
run.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional as F

from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeDelay, SpikeTimes
from snn_single_spike.experiments import datasets
from snn_single_spike.functional import GRADIENT_RULES

CODE_STEPS, NUM_STEPS, CLASSES = 300, 450, 3
WARM_UP = 0.05  # share of the training steps
SURROGATES = {"spike_time": 3}  # slopes of fast_sigmoid, otherwise 10


class Net(nn.Module):
    """Axons with delays, hidden neurons with delays, and a readout."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        hidden, axons = options.hidden, options.axons
        first: dict[str, Any] = {}
        if options.delays:
            first = {"delay": 150 * torch.rand(4 * axons), "learn_delay": True}
        self.axons = axons
        self.hidden = SingleSpikeLinear(
            4 * axons,
            hidden,
            torch.full((hidden,), math.exp(-1 / 30)),
            learn_beta=True,
            gradient=options.rule,
            spike_grad=surrogate.fast_sigmoid(SURROGATES.get(options.rule, 10)),
            reset_mechanism="none",
            **first,
        )
        late = SpikeDelay(hidden, 60 * torch.rand(hidden), learn_delay=True)
        self.late = late if options.delays else nn.Identity()
        self.output = nn.Linear(hidden, CLASSES)
        beta = torch.full((CLASSES,), math.exp(-1 / 90))
        self.readout = LeakyReadout(beta, learn_beta=True, scale=options.score_scale)
        first_bound = options.weight_scale * 2 / math.sqrt(axons)
        for layer, bound in ((self.hidden, first_bound), (self.output, hidden**-0.5)):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)

    def forward(self, times: Tensor) -> tuple[Tensor, SpikeTimes]:
        spikes = SpikeTimes(times.repeat(1, self.axons), NUM_STEPS)
        hidden = self.hidden(spikes)
        return self.readout(self.output(self.late(hidden))), hidden

    def groups(self, options: argparse.Namespace) -> list[dict[str, Any]]:
        """The parameters by their learning rates.

        A bias is a current at every step, and a decay acts at every step: both act long.
        """
        rates = {"delay": options.delay_lr, "beta": options.lr / 30, "bias": options.lr / 3}
        found: dict[float, list[Tensor]] = {}
        for name, parameter in self.named_parameters():
            rate = rates.get(name.rpartition(".")[2], options.lr)
            found.setdefault(rate, []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in found.items()]


def times_of(split: datasets.Split) -> Tensor:
    return split.batch(torch.arange(len(split))).times


@torch.no_grad()
def test(net: Net, times: Tensor, labels: Tensor) -> tuple[float, float]:
    """The accuracy, and the mean number of hidden spikes."""
    right, spikes = 0, 0
    for part in torch.arange(len(labels)).split(1000):
        scores, hidden = net(times[part])
        right += int((scores.argmax(1) == labels[part]).sum())
        spikes += int((hidden.times >= 0).sum())
    return right / len(labels), spikes / len(labels)


def train(options: argparse.Namespace, seed: int, data: datasets.Dataset) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = Net(options)
    times, labels, tested = times_of(data.train), data.train.labels, times_of(data.test)
    optimizer = torch.optim.Adam(net.groups(options))
    total = options.epochs * (len(labels) // options.batch)

    def rate(step: int) -> float:
        done = (step + 1) / total
        return min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    history = []
    for epoch in range(1, options.epochs + 1):
        order = torch.randperm(len(labels)).split(options.batch)
        for index in order[: len(labels) // options.batch]:
            loss = F.cross_entropy(net(times[index])[0], labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 5 == 0 or epoch == options.epochs:
            accuracy, spikes = test(net, tested, data.test.labels)
            history.append({"epoch": epoch, "accuracy": accuracy, "spikes": round(spikes, 2)})
            print(f"seed {seed}, epoch {epoch}: {accuracy:.2%}, {spikes:.1f} spikes", flush=True)
    return {"seed": seed, **vars(options), "out": None, "history": history}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rule", choices=GRADIENT_RULES, default="spike_time")
    parser.add_argument("--no-delays", dest="delays", action="store_false")
    parser.add_argument("--hidden", type=int, default=30)
    parser.add_argument("--axons", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--lr", type=float, default=3.5e-3)
    parser.add_argument("--delay-lr", type=float, default=0.15)
    parser.add_argument("--score-scale", type=float, default=1 / 30)
    parser.add_argument(
        "--weight-scale",
        type=float,
        default=1,
        help="factor of the first weights of hidden neurons",
    )
    parser.add_argument("--hold-out", type=int)
    parser.add_argument("--out", type=Path, help="append a line of JSON for each run")
    options = parser.parse_args()
    data = datasets.load("yinyang", num_steps=CODE_STEPS, hold_out=options.hold_out)
    for seed in options.seeds:
        run = train(options, seed, data)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps({k: v for k, v in run.items() if k not in ("out", "seeds")}))
                file.write("\n")


if __name__ == "__main__":
    main()
