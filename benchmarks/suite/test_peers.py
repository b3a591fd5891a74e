"""Every installed peer computes what its description says. Other peers skip with their reason.

python -m pytest benchmarks/suite/test_peers.py
"""

from __future__ import annotations

import pytest
import torch
from snntorch import surrogate
from torch import Tensor

from snn_single_spike.functional import single_spike_leaky

from benchmarks.harness.peers import SLOPE, Peer, first_spikes, peers, same_first_spikes

CPU_PEERS = [p for p in peers() if "cpu" in p.devices]


def ids(peer: Peer) -> str:
    return peer.name


def skip_missing(peer: Peer) -> None:
    if peer.missing:
        pytest.skip(peer.missing)


def problem(num_steps: int, batch: int, neurons: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(num_steps * neurons)
    current = torch.randn(num_steps, batch, neurons, generator=make, dtype=dtype) * 0.4
    return current.requires_grad_(), torch.randn(
        num_steps, batch, neurons, generator=make, dtype=dtype
    )


def steps_of(peer: Peer) -> int:
    return 6 if "compiled" in peer.name else 40  # compiles for seconds


def decay(peer: Peer, neurons: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(0.6, 0.95, neurons if peer.per_neuron else 1, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("peer", CPU_PEERS, ids=ids)
def test_first_spikes_and_finite_gradients(peer: Peer, dtype: torch.dtype) -> None:
    skip_missing(peer)
    if dtype == torch.float64 and ("spyx" in peer.name or "compiled" in peer.name):
        pytest.skip("JAX has float64 for a whole process only, and compiling takes long")
    current, grad = problem(steps_of(peer), 16, 40, dtype)
    beta = decay(peer, 40, dtype).requires_grad_(peer.learns_beta)
    inputs = [current, beta] if peer.learns_beta else [current]
    layer = peer.make(beta, len(current))
    runs = []
    for _ in range(2):  # the first call leaves no state
        spikes = layer(current)
        runs.append([spikes.detach().clone(), *torch.autograd.grad(spikes, inputs, grad)])
    spikes, *grads = runs[0]
    assert spikes.shape == current.shape
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    for value, of in zip(grads, inputs, strict=True):
        assert value.shape == of.shape
        assert value.isfinite().all()
        assert value.any()
    ours = single_spike_leaky(current, beta, return_mem=False).spikes.detach()
    assert 0.1 < ours.sum(0).mean() < 0.98  # neurons that fire and silent ones
    if peer.first_spikes:
        assert same_first_spikes(spikes, current, beta)
    if peer.name == "snn.Leaky loop" or (peer.first_spikes and dtype == torch.float64):
        assert torch.equal(first_spikes(spikes), ours > 0)


@pytest.mark.parametrize("peer", CPU_PEERS, ids=ids)
def test_a_shared_and_fixed_beta(peer: Peer) -> None:
    skip_missing(peer)
    current, grad = problem(steps_of(peer), 4, 10, torch.float32)
    beta = torch.full((1,), 0.9)
    spikes = peer.make(beta, len(current))(current)
    (gradient,) = torch.autograd.grad(spikes, current, grad)
    assert gradient.isfinite().all()
    if peer.first_spikes:
        assert same_first_spikes(spikes, current, beta)
    if "compiled" in peer.name:
        loop = next(p for p in CPU_PEERS if p.name == "snn.Leaky loop")
        expected = loop.make(beta, len(current))(current)
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(gradient, *torch.autograd.grad(expected, current, grad))


def test_a_layer_is_compiled_once() -> None:
    """The first run sets the state of snn.Leaky. The next run must not read it."""
    peer = next(p for p in CPU_PEERS if "compiled" in p.name)
    skip_missing(peer)
    current, grad = problem(3, 2, 5, torch.float32)
    layer = peer.make(torch.full((1,), 0.9), len(current))
    torch.autograd.grad(layer(current), current, grad)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.autograd.grad(layer(current), current, grad)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0


@pytest.mark.parametrize("neurons", [1, 12], ids=["shared", "per neuron"])
@pytest.mark.parametrize(
    ("name", "rule"), [("papers, v1 form", "pre_spike"), ("papers, v2 form", "straight_through")]
)
def test_the_forms_of_the_papers_have_our_gradients(name: str, rule: str, neurons: int) -> None:
    peer = next(p for p in peers() if p.name == name)
    current, grad = problem(60, 6, 12, torch.float64)
    beta = torch.linspace(0.7, 0.95, neurons, dtype=torch.float64).requires_grad_()
    theirs = peer.make(beta, len(current))(current)
    ours = single_spike_leaky(
        current, beta, spike_grad=surrogate.fast_sigmoid(SLOPE), gradient=rule
    ).spikes
    assert torch.equal(theirs, ours)
    pairs = zip(
        *(torch.autograd.grad(spikes, (current, beta), grad) for spikes in (theirs, ours)),
        strict=True,
    )
    for actual, expected in pairs:
        assert (actual - expected).norm() <= 1e-10 * expected.norm()


def test_the_scan_of_spyx_is_one_step_late() -> None:
    peer = next(p for p in peers() if p.name == "spyx LIF")
    skip_missing(peer)
    current, _ = problem(40, 16, 40, torch.float32)
    beta = decay(peer, 40, torch.float32)
    spikes = peer.make(beta, len(current))(current)
    assert not spikes[0].any()
    assert same_first_spikes(spikes[1:], current[:-1], beta)


def test_same_first_spikes_forgives_rounding_only() -> None:
    """One neuron touches the threshold at step 1 and is above it at step 2; one never fires."""
    beta = torch.full((1,), 0.5)
    current = torch.tensor([[1.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.0]]).unsqueeze(1)

    def spikes_at(step: int, neuron: int = 0) -> Tensor:
        return torch.zeros_like(current).index_put(
            tuple(torch.tensor(i) for i in (step, 0, neuron)), torch.tensor(1.0)
        )

    assert single_spike_leaky(current, beta).times.tolist() == [[2, -1]]
    assert same_first_spikes(spikes_at(2), current, beta)
    assert same_first_spikes(spikes_at(1), current, beta)  # by rounding
    assert same_first_spikes(spikes_at(1) + spikes_at(3), current, beta)
    assert not same_first_spikes(spikes_at(3), current, beta)  # too late
    assert not same_first_spikes(torch.zeros_like(current), current, beta)
    assert not same_first_spikes(spikes_at(2) + spikes_at(1, neuron=1), current, beta)


def test_names_and_reasons_fit_a_table() -> None:
    for peer in peers():
        assert "\n" not in f"{peer.name}{peer.computes}{peer.missing}"
    assert len({p.name for p in peers()}) == len(peers())
