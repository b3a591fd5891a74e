"""A small comparison: one network with single-spike layers, and in a loop over time.

scikit-learn's digits (no download), latency-coded; 64 - 128 - 10 with a membrane readout.
Both networks start from the same weights, and train on the same batches in turns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from . import LeakyReadout, SingleSpikeLeaky
from .experiments.digits import load_digits

HIDDEN, CLASSES = 128, 10
HIDDEN_BETA, READOUT_BETA = 0.9, 0.95
BATCH = 128
SHOWN = 3  # hidden neurons whose membranes the figure shows


class SingleSpikeNet(nn.Module):
    """The network without a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN)
        self.lif1 = SingleSpikeLeaky(
            torch.full((HIDDEN,), HIDDEN_BETA),
            spike_grad=surrogate.fast_sigmoid(slope=10),
            learn_beta=True,
        )
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.readout = LeakyReadout(torch.full((CLASSES,), READOUT_BETA), learn_beta=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk, mem = self.lif1(self.fc1(x))
        return self.readout(self.fc2(spk)), spk, mem


class LoopNet(nn.Module):
    """The same network in snnTorch, with only the neurons inside the loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN)
        self.lif1 = snn.Leaky(
            torch.full((HIDDEN,), HIDDEN_BETA),
            spike_grad=surrogate.fast_sigmoid(slope=10),
            learn_beta=True,
        )
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.readout = snn.Leaky(
            torch.full((CLASSES,), READOUT_BETA), learn_beta=True, reset_mechanism="none"
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mem, spikes, mems = self.lif1.reset_mem(), [], []
        for current in self.fc1(x).unbind(0):
            spk, mem = self.lif1(current, mem)
            spikes.append(spk)
            mems.append(mem)
        hidden = torch.stack(spikes)
        out, total = self.readout.reset_mem(), torch.zeros(())
        for current in self.fc2(hidden).unbind(0):
            _, out = self.readout(current, out)
            total = total + out
        return total, hidden, torch.stack(mems)


@dataclass
class Contestant:
    """A network in training, and its measurements."""

    label: str
    net: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    spikes: float = 0.0


@dataclass
class Activity:
    """Hidden spikes and membranes of one sample."""

    spikes: Tensor
    mem: Tensor


def latency_code(pixels: Tensor, num_steps: int) -> Tensor:
    """(T, B, n) spikes, one per pixel of (B, n): at floor((1 - x)(T - 1)) for x in [0, 1]."""
    times = ((1 - pixels) * (num_steps - 1)).floor().long()
    return torch.zeros(num_steps, *pixels.shape).scatter_(0, times[None], 1.0)


def build(seed: int) -> list[Contestant]:
    """Build both networks, with the same weights."""
    torch.manual_seed(seed)
    ours, loop = SingleSpikeNet(), LoopNet()
    state = ours.state_dict()
    loop.load_state_dict({k: v for k, v in state.items() if k in loop.state_dict()}, strict=False)
    return [
        Contestant(label, net, torch.optim.Adam(net.parameters(), lr=5e-3))
        for label, net in (("single spike", ours), ("snn.Leaky loop", loop))
    ]


def train_epoch(contestants: list[Contestant], x: Tensor, y: Tensor, num_steps: int) -> None:
    """Train all networks for an epoch, in turns batch by batch, so that their times compare."""
    elapsed = [0.0] * len(contestants)
    for batch in torch.randperm(len(x)).split(BATCH):
        coded, target = latency_code(x[batch], num_steps), y[batch]
        for i, contestant in enumerate(contestants):
            start = time.perf_counter()
            scores, _, _ = contestant.net(coded)
            loss = nn.functional.cross_entropy(scores / num_steps, target)
            contestant.optimizer.zero_grad()
            loss.backward()
            contestant.optimizer.step()
            elapsed[i] += time.perf_counter() - start
    for contestant, seconds in zip(contestants, elapsed, strict=True):
        contestant.seconds.append(seconds)


@torch.no_grad()
def evaluate(contestant: Contestant, x: Tensor, y: Tensor, num_steps: int) -> None:
    """Accuracy, and hidden spikes per sample."""
    scores, spikes, _ = contestant.net(latency_code(x, num_steps))
    contestant.accuracy = (scores.argmax(1) == y).float().mean().item()
    contestant.spikes = spikes.sum().item() / len(x)


@torch.no_grad()
def observe(contestant: Contestant, sample: Tensor, num_steps: int) -> Activity:
    _, spikes, mem = contestant.net(latency_code(sample[None], num_steps))
    return Activity(spikes[:, 0], mem[:, 0])


def figure(
    path: Path, contestants: list[Contestant], before: list[Activity], after: list[Activity]
) -> None:
    """Rasters and membranes of one test digit, before and after training."""
    from matplotlib.figure import Figure

    # Neurons that fire after the first step in the trained network
    times = after[0].spikes.argmax(0)
    shown = times.gt(0).nonzero().flatten()[:SHOWN]
    fig = Figure(figsize=(11, 9), layout="constrained")
    axes = fig.subplots(4, 2, sharex=True, height_ratios=(2, 1, 2, 1))
    for column, (title, activities) in enumerate((("before", before), ("after training", after))):
        for i, (contestant, activity) in enumerate(zip(contestants, activities, strict=True)):
            raster, traces = axes[2 * i, column], axes[2 * i + 1, column]
            when, neuron = activity.spikes.nonzero(as_tuple=True)
            raster.scatter(when, neuron, s=5, color=f"C{i}", linewidths=0)
            raster.set(
                title=f"{contestant.label}, {title}: {len(when)} spikes",
                ylabel="hidden neuron",
                ylim=(-2, HIDDEN + 1),
            )
            for neuron in shown.tolist():
                traces.plot(activity.mem[:, neuron], linewidth=1, label=f"neuron {neuron}")
            traces.legend(fontsize=7, loc="lower left")
            traces.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--")
            traces.set(ylabel="membrane")
    for axis in axes[-1]:
        axis.set(xlabel="time step")
    fig.savefig(path, dpi=120)


def table(contestants: list[Contestant], warm: int) -> Any:
    """The result, as a rich table."""
    from rich.table import Table

    single, loop = contestants

    def per_epoch(contestant: Contestant) -> float:
        return torch.tensor(contestant.seconds[warm:] or contestant.seconds).median().item()

    ratio = per_epoch(loop) / per_epoch(single)
    fewer = 1 - single.spikes / loop.spikes if loop.spikes else 0.0
    out = Table(title="scikit-learn digits, latency-coded")
    for name in ("", single.label, loop.label, ""):
        out.add_column(name, justify="left" if not name else "right")
    out.add_row(
        "test accuracy",
        f"{single.accuracy:.1%}",
        f"{loop.accuracy:.1%}",
        f"{100 * (single.accuracy - loop.accuracy):+.1f} points",
    )
    out.add_row(
        "hidden spikes per sample",
        f"{single.spikes:.1f}",
        f"{loop.spikes:.1f}",
        f"{fewer:.0%} fewer" if fewer >= 0 else f"{-fewer:.0%} more",
    )
    out.add_row(
        "seconds per epoch",
        f"{per_epoch(single):.3f}",
        f"{per_epoch(loop):.3f}",
        f"{ratio:.1f}x faster",
    )
    return out


def run(epochs: int, num_steps: int, seed: int, out: Path) -> None:
    """Train both, print the table, write the figure."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console()
    x_train, y_train, x_test, y_test = load_digits(seed)
    contestants = build(seed)
    before = [observe(contestant, x_test[0], num_steps) for contestant in contestants]
    warm = 1 if epochs > 1 else 0  # the first epoch compiles
    console.print(
        f"{len(x_train)} training and {len(x_test)} test digits, {num_steps} time steps, "
        f"64-{HIDDEN}-{CLASSES}, {torch.get_num_threads()} threads"
    )
    with Progress(
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    ) as progress:
        task = progress.add_task("train", total=epochs, status="")
        for _ in range(epochs):
            train_epoch(contestants, x_train, y_train, num_steps)
            for contestant in contestants:
                evaluate(contestant, x_test, y_test, num_steps)
            status = ", ".join(f"{c.label} {c.accuracy:.1%}" for c in contestants)
            progress.update(task, advance=1, status=status)
    after = [observe(contestant, x_test[0], num_steps) for contestant in contestants]
    console.print(table(contestants, warm))
    figure(out, contestants, before, after)
    console.print(f"rasters and membranes before and after: {out}")
