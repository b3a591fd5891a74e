"""The current of a linear layer as a tensor: from events, as from dense spikes."""

import pytest
import torch
import torch.nn.functional as F

from snn_single_spike import SingleSpikeLinear, SpikeEvents, SpikeTimes, backends
from snn_single_spike.spikes import choice


@pytest.fixture(params=[False, True], ids=["dense", "events"])
def computed(request, monkeypatch):
    monkeypatch.setattr(choice, "current_pays", lambda spikes, weight: request.param)


def spikes_of(kind):
    times = torch.randint(-1, 7, (3, 6))
    if kind == "times":
        return SpikeTimes(times, 7, dtype=torch.float64)
    if kind == "graded":
        return SpikeTimes(times, 7, height=torch.rand(6, dtype=torch.float64, requires_grad=True))
    return SpikeEvents.from_dense(torch.poisson(torch.full((7, 3, 6), 0.4, dtype=torch.float64)))


@pytest.mark.parametrize("outputs", [131, 10])  # two tiles, and a single vector
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["times", "graded", "events", "hidden", "silent", "empty"])
def test_current_and_gradients(kind, bias, outputs, monkeypatch):
    found = []
    for from_events in (True, False):
        monkeypatch.setattr(choice, "current_pays", lambda *_, pays=from_events: pays)
        torch.manual_seed(0)
        layer = SingleSpikeLinear(6, 5, 0.8, threshold=0.1).double()
        spikes = spikes_of(kind if kind in ("graded", "events") else "times")
        leaves = [layer.weight]
        if kind == "hidden":
            spikes = layer(spikes)
        elif kind == "graded":
            leaves = [spikes.height]
        elif kind == "silent":
            spikes = SpikeTimes(torch.full((3, 6), -1), 7, dtype=torch.float64)
        elif kind == "empty":
            spikes = SpikeTimes(torch.zeros(0, 6, dtype=torch.long), 7, dtype=torch.float64)
        weight = torch.randn(outputs, spikes.features[0], dtype=torch.float64, requires_grad=True)
        given = torch.randn(outputs, dtype=torch.float64, requires_grad=True) if bias else None
        current = F.linear(spikes, weight, given).to_dense()
        loss = (current * torch.arange(current.numel()).view_as(current)).sum()
        wanted = [weight, *([given] if bias else [])]
        wanted += leaves if kind in ("hidden", "graded") else []
        found.append([current, *torch.autograd.grad(loss, wanted)])
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


def test_second_derivatives(computed):
    spikes = spikes_of("times")
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def penalty(weight, bias):
        current = F.linear(spikes, weight, bias).to_dense()
        (slope,) = torch.autograd.grad(current.pow(3).sum(), weight, create_graph=True)
        return slope.square().sum()

    assert torch.autograd.gradcheck(penalty, (weight, bias))


def test_few_events_of_many_entries_pay(monkeypatch):
    times = torch.zeros(2, 20, dtype=torch.long)
    compiled = backends.explain("cpu")[0] == "numba"

    def least_steps(outputs, **options):
        weight = torch.zeros(outputs, 20, **options)
        pays = (T for T in range(1, 100) if choice.current_pays(SpikeTimes(times, T), weight))
        return next(pays, None)

    assert least_steps(128) == (4 if compiled else 60)
    assert least_steps(64) == (8 if compiled else 60)
    assert least_steps(128, dtype=torch.bfloat16) is None
    with torch.autocast("cpu"):
        assert least_steps(128) == (4 if compiled else 60)
