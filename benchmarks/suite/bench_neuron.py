"""The neuron alone, from current to spikes: forward, backward, and both.

The grid is the grid of arXiv:2205.15286: time steps, neurons, batch, types, and a decay rate that
is fixed or learned for every neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import snntorch as snn
import torch
from torch import Tensor

from snn_single_spike import (
    FusedLeaky,
    SingleSpikeAlpha,
    SingleSpikeLapicque,
    SingleSpikeLeaky,
    SingleSpikeRLeaky,
    SingleSpikeSynaptic,
)
from snn_single_spike.functional import single_spike_leaky
from snn_single_spike.ops.validation import GRADIENT_RULES

from benchmarks.harness.peers import Peer, first_spikes, peers, same_first_spikes
from benchmarks.harness.race import Contestant


class Cell(NamedTuple):
    num_steps: int
    batch: int
    neurons: int
    direction: str = "both"
    dtype: str = "float32"
    learned: bool = False

    def __str__(self) -> str:
        learned = "-learned" if self.learned else ""
        size = f"T{self.num_steps}-B{self.batch}-N{self.neurons}"
        return f"{size}-{self.direction}-{self.dtype}{learned}"


STEPS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
QUICK = [
    Cell(100, 128, 1000),
    Cell(32, 16, 100),
    Cell(512, 16, 100),
    Cell(100, 32, 1000, "forward"),
]
FULL = [
    *(Cell(t, b, n) for n in (100, 1000, 10_000) for b in (16, 128) for t in STEPS),
    *(Cell(t, 16, 20_000) for t in (8, 32, 128)),
    *(Cell(100, 128, 1000, direction) for direction in ("forward", "backward")),
    *(Cell(100, 128, 1000, "both", dtype) for dtype in ("float16", "bfloat16")),
    Cell(100, 128, 1000, learned=True),
]
# Peers hold up to a dozen (T, B, N) tensors of float32.
MOST_ELEMENTS = 1 << 26
MOST_QUADRATIC = 1 << 31  # T x T x B x N of peers that cost O(T²): some ten seconds
LOOP = "snn.Leaky loop"
MANY = "many spikes"  # what such a peer computes
SWEEP = (LOOP, "papers, v2 form", "SpikingJelly LIF")  # peers over the whole grid


def contestant(
    layer: Callable[[Tensor], Tensor], current: Tensor, grad: Tensor, inputs: list, direction: str
) -> Contestant:
    if direction == "forward":
        return Contestant(lambda _: layer(current))
    if direction == "backward":
        return Contestant(
            lambda spikes: torch.autograd.grad(spikes, inputs, grad.to(spikes.dtype)),
            lambda: layer(current),
        )

    def both(_: object) -> None:
        spikes = layer(current)
        torch.autograd.grad(spikes, inputs, grad.to(spikes.dtype))

    return Contestant(both)


def entrants(cell: Cell, device: str, full: bool) -> list[Peer]:
    """The peers that run a cell in reasonable time."""
    able = [p for p in peers() if p.missing is None and device in p.devices]
    able = [p for p in able if cell.num_steps <= p.max_steps]
    if cell.learned:
        able = [p for p in able if p.per_neuron and p.learns_beta]
    if cell.dtype != "float32":  # only snnTorch's loop surely supports half types
        return [p for p in able if p.name == LOOP]
    if cell not in QUICK:
        able = [p for p in able if p.name in SWEEP]
    if cell.num_steps**2 * cell.batch * cell.neurons > MOST_QUADRATIC:
        able = [p for p in able if not p.quadratic]
    # A compilation takes a minute for each shape.
    return [p for p in able if full or not p.compiled]


CELLS = [pytest.param(cell, id=str(cell)) for cell in QUICK]
CELLS += [
    pytest.param(cell, id=str(cell), marks=pytest.mark.full) for cell in FULL if cell not in QUICK
]


@pytest.mark.parametrize("cell", CELLS)
def bench_neuron(cell: Cell, compare, device: str, copy_speed: float, request) -> None:
    elements = cell.num_steps * cell.batch * cell.neurons
    if elements > MOST_ELEMENTS:
        pytest.skip(f"{elements} elements: the peers would need more memory than is common")
    make = torch.Generator().manual_seed(0)
    shape = (cell.num_steps, cell.batch, cell.neurons)
    current = (torch.randn(shape, generator=make) * 0.3).to(device, getattr(torch, cell.dtype))
    grad = torch.randn(shape, generator=make).to(device)
    current.requires_grad_()
    beta = torch.full((cell.neurons if cell.learned else 1,), 0.9, device=device)
    beta = beta.to(current.dtype).requires_grad_(cell.learned)
    inputs = [current, beta] if cell.learned else [current]

    def ours(current: Tensor) -> Tensor:
        spikes = single_spike_leaky(
            current, beta, reset_mechanism="subtract", return_mem=False
        ).spikes
        assert spikes is not None
        return spikes

    contestants, computes = {}, {}
    for peer in entrants(cell, device, request.config.getoption("--full")):
        layer = peer.make(beta, cell.num_steps)
        if peer.first_spikes:
            assert same_first_spikes(layer(current), current, beta), peer.name
        contestants[peer.name] = contestant(layer, current, grad, inputs, cell.direction)
        computes[peer.name] = peer.computes
    # Read the current, write spikes; read gradient and current, write the gradient
    rows = {"forward": 2, "backward": 3, "both": 5}[cell.direction]
    compare(
        contestant(ours, current, grad, inputs, cell.direction),
        contestants,
        computes,
        cell=cell._asdict(),
        bytes=rows * current.nbytes,
        copy_speed=copy_speed,
    )


@pytest.mark.parametrize("refractory", [0, 5])
def bench_every_spike(refractory: int, compare, device: str, request) -> None:
    """Every spike of snn.Leaky, or those outside of a refractory period, against the same peers.

    The loop has no refractory period. For the period its row says what the gate costs.
    """
    make = torch.Generator().manual_seed(0)
    current, grad = (torch.randn(100, 128, 1000, generator=make).to(device) for _ in range(2))
    current = current.mul_(0.3).requires_grad_()
    beta = torch.full((1,), 0.9, device=device)
    lif = FusedLeaky(0.9, refractory=refractory, init_hidden=True).to(device)
    contestants, computes = {}, {}
    for peer in peers():
        slow = peer.compiled and not request.config.getoption("--full")
        if peer.missing is None and device in peer.devices and MANY in peer.computes and not slow:
            layer = peer.make(beta, 100)
            if peer.name == LOOP and refractory == 0:
                assert torch.equal(layer(current), lif(current))
            contestants[peer.name] = contestant(layer, current, grad, [current], "both")
            computes[peer.name] = peer.computes
    contestants["one spike"] = contestant(
        SingleSpikeLeaky(0.9, init_hidden=True).to(device), current, grad, [current], "both"
    )
    compare(contestant(lif, current, grad, [current], "both"), contestants, computes)


@pytest.mark.parametrize("membrane", [False, True], ids=["spikes", "spikes-and-membrane"])
def bench_variants(membrane: bool, compare, device: str) -> None:
    """Our outputs, gradient rules and backends, at one size."""
    make = torch.Generator().manual_seed(0)
    current, grad = (torch.randn(100, 128, 1000, generator=make).to(device) for _ in range(2))
    current = current.mul_(0.3).requires_grad_()
    leaky = snn.Leaky(0.9).to(device)

    def loop(x: Tensor) -> Tensor:
        mem, spikes, mems = leaky.reset_mem(), [], []
        for step in x.unbind(0):
            spk, mem = leaky(step, mem)
            spikes.append(spk)
            mems.append(mem)
        if membrane:
            torch.stack(mems)
        return torch.stack(spikes)

    def ours(**options: str) -> Callable[[Tensor], Tensor]:
        lif = SingleSpikeLeaky(0.9, init_hidden=True, output=membrane, **options).to(device)
        return (lambda x: lif(x)[0]) if membrane else lif

    variants = {LOOP: loop}
    variants |= {f"{rule} rule": ours(gradient=rule) for rule in GRADIENT_RULES[1:]}
    variants["plain torch"] = ours(backend="torch")
    expected = first_spikes(loop(current))
    for name, layer in variants.items():
        assert torch.equal(first_spikes(layer(current)), expected), name
    assert torch.equal(ours()(current) > 0, expected)
    peers = {
        name: contestant(layer, current, grad, [current], "both")
        for name, layer in variants.items()
    }
    compare(contestant(ours(), current, grad, [current], "both"), peers)


NEURONS: dict[str, tuple[type, type, dict[str, object]]] = {
    "Synaptic": (SingleSpikeSynaptic, snn.Synaptic, {"alpha": 0.8, "beta": 0.9}),
    "Alpha": (SingleSpikeAlpha, snn.Alpha, {"alpha": 0.9, "beta": 0.8}),
    "Lapicque": (SingleSpikeLapicque, snn.Lapicque, {"beta": 0.9}),
    "RLeaky": (
        SingleSpikeRLeaky,
        snn.RLeaky,
        {"beta": 0.9, "V": 0.5, "all_to_all": False, "learn_recurrent": False},
    ),
}


@pytest.mark.parametrize("neuron", NEURONS)
def bench_other_neurons(neuron: str, compare, device: str) -> None:
    """Neurons with more states, or with feedback, against the loops of snnTorch."""
    make = torch.Generator().manual_seed(0)
    current, grad = (torch.randn(100, 128, 1000, generator=make).to(device) for _ in range(2))
    current = current.mul_(0.3).requires_grad_()
    ours, theirs, options = NEURONS[neuron]
    once, again = (kind(**options, init_hidden=True).to(device) for kind in (ours, theirs))

    def loop(x: Tensor) -> Tensor:
        again.reset_mem()
        return torch.stack([again(step) for step in x.unbind(0)])

    assert torch.equal(once(current) > 0, first_spikes(loop(current)))
    peers = {f"snn.{neuron} loop": contestant(loop, current, grad, [current], "both")}
    compare(contestant(once, current, grad, [current], "both"), peers)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def bench_half_types(dtype: str, compare, device: str) -> None:
    """Half types against float32: below 1 they are slower."""
    make = torch.Generator().manual_seed(0)
    current, grad = (torch.randn(100, 128, 1000, generator=make).to(device) for _ in range(2))
    lif = SingleSpikeLeaky(0.9, init_hidden=True).to(device)
    mine, theirs = (
        contestant(lif, x, grad.to(x.dtype), [x], "both")
        for x in (
            (0.3 * current).to(kind).requires_grad_()
            for kind in (getattr(torch, dtype), torch.float32)
        )
    )
    compare(mine, {"float32": theirs})
