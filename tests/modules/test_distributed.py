"""DistributedDataParallel around models that return spike times, in one process."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes
from snn_single_spike.functional import spike_count

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)

SPIKES = SpikeTimes(torch.tensor([[0, 1, 2], [1, 1, -1]]), num_steps=5)


@pytest.fixture(scope="module", autouse=True)
def _group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def layers(*last):
    hidden = SingleSpikeLinear(3, 4, beta=0.9, threshold=0.3)
    return nn.Sequential(hidden, *last)


def neurons(**options):
    return SingleSpikeLeaky(0.9, threshold=0.2, spike_format="times", **options)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.readout = layers(), nn.Sequential(nn.Linear(4, 2), LeakyReadout(0.9))

    def forward(self, spikes):
        hidden = self.hidden(spikes)
        return self.readout(hidden), hidden


def count(out):
    return spike_count(out).sum()


MODELS = {
    "spikes": (lambda: layers(nn.Linear(4, 2), neurons(init_hidden=True)), count),
    "membrane": (lambda: layers(nn.Linear(4, 2), neurons()), lambda out: out[1].max(0)[0].sum()),
    "membrane of one layer": (
        lambda: nn.Sequential(nn.Linear(3, 2), neurons()),
        lambda out: out[1].sum(),
    ),
    "current": (lambda: layers(nn.Linear(4, 2)), lambda out: LeakyReadout(0.9)(out).sum()),
    "current of one layer": (
        lambda: nn.Sequential(nn.Linear(3, 2)),
        lambda out: LeakyReadout(0.9)(out).sum(),
    ),
}


class WithUnused(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.unused = model, nn.Linear(2, 2)

    def forward(self, spikes):
        return self.model(spikes)


def reduced(model, loss, **options):
    """The gradients after two steps, and how often DDP reduced a bucket in the second step."""
    given = WithUnused(model) if options else model
    ddp, calls = DistributedDataParallel(given, **options), []

    def hook(state, bucket):
        calls.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp.register_comm_hook(None, hook)
    for _ in range(2):
        calls.clear()
        ddp.zero_grad()
        loss(ddp(SPIKES)).backward()
    return [p.grad for p in model.parameters()], len(calls)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_reduced(name):
    make, loss = MODELS[name]
    torch.manual_seed(1)
    alone = make()
    loss(alone(SPIKES)).backward()
    expected = [p.grad for p in alone.parameters()]
    assert any(grad.any() for grad in expected)
    for options in ({}, {"static_graph": True}):
        torch.manual_seed(1)
        found, calls = reduced(make(), loss, **options)
        assert calls
        for grad, right in zip(found, expected, strict=True):
            assert torch.equal(grad, right)


@pytest.mark.parametrize("name", MODELS)
def test_unused_parameters_name_the_cure(name):
    make, loss = MODELS[name]
    with pytest.raises(RuntimeError, match=r"find_unused_parameters.*static_graph=True"):
        reduced(make(), loss, find_unused_parameters=True)


def test_unused_parameters_beside_a_tensor():
    def loss(out):
        return out[0].sum() + count(out[1])

    torch.manual_seed(1)
    alone = Both()
    loss(alone(SPIKES)).backward()
    torch.manual_seed(1)
    found, calls = reduced(Both(), loss, find_unused_parameters=True)
    assert calls
    for grad, parameter in zip(found, alone.parameters(), strict=True):
        assert torch.equal(grad, parameter.grad)
