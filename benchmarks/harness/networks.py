"""The network of the papers' Fashion-MNIST experiment, in our form and in snnTorch's loop.

784-1000-10 with a learned decay per neuron, one input spike per pixel, and a readout that never
fires and sums its membrane over time (arXiv:2205.15286). Both forms compute the same until the
second spike of a neuron. Only the loop has second spikes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes
from snn_single_spike.experiments.datasets import load

from benchmarks.harness.peers import first_spikes

INPUTS, HIDDEN, CLASSES = 784, 1000, 10
BETA, READOUT_BETA = 0.905, 0.951
OURS = {
    "dense": "single spike",  # nn.Linear, SingleSpikeLeaky
    "fused": "single spike, layer in one",  # SingleSpikeLinear, from the same dense input
}


def leaky_loop(
    lif: snn.Leaky, x: Tensor, before: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The spikes of snn.Leaky in a loop over time, with the layer ``before`` inside the loop."""
    mem, spikes = lif.reset_mem(), []
    for step in x.unbind(0):
        spk, mem = lif(before(step) if before else step, mem)
        spikes.append(spk)
    return torch.stack(spikes)


def latency_codes(num_steps: int, batch: int, device: str = "cpu") -> Tensor:
    """(T, B, 784): every pixel spikes once."""
    make = torch.Generator().manual_seed(0)
    times = torch.randint(num_steps, (1, batch, INPUTS), generator=make)
    return torch.zeros(num_steps, batch, INPUTS).scatter_(0, times, 1.0).to(device)


def fashion_codes(num_steps: int, batch: int, data: Path | None, device: str = "cpu") -> SpikeTimes:
    """Latency codes of Fashion-MNIST images, or random codes if ``data`` is None."""
    if data is None:
        return SpikeTimes.from_dense(latency_codes(num_steps, batch)).to(device)
    images = load("fashion-mnist", num_steps, data=data).train
    return images.batch(torch.arange(batch)).flatten(2).to(device)


class SingleSpikeNet(nn.Module):
    def __init__(self, spike_format: str = "dense", gradient: str = "masked") -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = SingleSpikeLeaky(
            torch.full((HIDDEN,), BETA),
            learn_beta=True,
            init_hidden=True,
            spike_format=spike_format,
            gradient=gradient,
        )
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.readout = LeakyReadout(torch.full((CLASSES,), READOUT_BETA), learn_beta=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.fc2(self.lif1(self.fc1(x))))


class FusedNet(SingleSpikeNet):
    """The same network with a SingleSpikeLinear, which converts its dense input to events."""

    def __init__(self) -> None:
        super().__init__()
        beta = torch.full((HIDDEN,), BETA)
        self.fc1 = SingleSpikeLinear(INPUTS, HIDDEN, beta, learn_beta=True)
        self.lif1 = nn.Identity()


class LoopNet(nn.Module):
    """As in the snnTorch tutorials. ``outside`` moves the linear layers out of the loop."""

    def __init__(self, outside: bool = False) -> None:
        super().__init__()
        self.outside = outside
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snn.Leaky(torch.full((HIDDEN,), BETA), learn_beta=True)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.readout = snn.Leaky(
            torch.full((CLASSES,), READOUT_BETA),
            threshold=1e9,
            learn_beta=True,
            reset_mechanism="none",
        )

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.readout.reset_mem()
        spikes, total = [], torch.zeros((), device=x.device)
        if self.outside:
            for step in self.fc1(x).unbind(0):
                spk1, mem1 = self.lif1(step, mem1)
                spikes.append(spk1)
            for step in self.fc2(torch.stack(spikes)).unbind(0):
                _, mem2 = self.readout(step, mem2)
                total = total + mem2
            return total
        for step in x.unbind(0):
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            _, mem2 = self.readout(self.fc2(spk1), mem2)
            total = total + mem2
        return total


def networks(device: str = "cpu") -> dict[str, nn.Module]:
    """All networks, with the same weights."""
    made = {
        OURS["dense"]: SingleSpikeNet(),
        OURS["fused"]: FusedNet(),
        "snn.Leaky loop": LoopNet(),
        "snn.Leaky loop, linear layers outside": LoopNet(outside=True),
    }
    return {name: same_weights(model).to(device) for name, model in made.items()}


def same_weights(model: nn.Module) -> nn.Module:
    """The weights of every network, large enough for some neurons to fire."""
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            made = nn.Linear(layer.in_features, layer.out_features)
            layer.weight.copy_(made.weight)
            layer.bias.copy_(made.bias)
        model.fc1.weight *= 3
    return model


def check_first_spikes(models: dict[str, nn.Module], x: Tensor) -> None:
    """Check that the first spikes of the hidden layers are equal, up to rounding of products."""
    ours = models[OURS["dense"]]
    with torch.no_grad():
        current = ours.fc1(x)
        theirs = leaky_loop(models["snn.Leaky loop"].lif1, current)
        spikes = ours.lif1(current)
        assert torch.equal(spikes > 0, first_spikes(theirs))
        # The sums have another order.
        fused = models[OURS["fused"]].fc1(x).to_dense()
        assert (fused != spikes).float().mean() < 1e-5
