"""Initial weights and scores: every neuron fires in the share of the batch."""

import pytest
import torch
from torch import nn

from snn_single_spike import (
    LeakyReadout,
    SingleSpikeConv2d,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SingleSpikeSynaptic,
    SpikeTimes,
    init,
)

T, BATCH = 20, 64


def images():
    make = torch.Generator().manual_seed(0)
    return SpikeTimes(torch.randint(0, T - 4, (BATCH, 1, 6, 6), generator=make), T)


def lif(**options):
    return SingleSpikeLeaky(0.9, init_hidden=True, **options)


NETS = {
    "spike times": lambda: nn.Sequential(
        nn.Flatten(2), SingleSpikeLinear(36, 12, 0.9, threshold=2.0), SingleSpikeLinear(12, 8, 0.9)
    ),
    "lazy currents": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(36, 12), lif(spike_format="times"), nn.Linear(12, 8), lif()
    ),
    "dense": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(36, 12, bias=False),
        SingleSpikeSynaptic(0.8, 0.9, init_hidden=True), nn.Linear(12, 8), lif(),
    ),
    "convolution": lambda: nn.Sequential(
        SingleSpikeConv2d(1, 4, 3, 0.9), nn.Flatten(2), nn.Linear(64, 8), lif()
    ),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_each_neuron_fires_in_the_share(name, share):
    torch.manual_seed(1)
    net, x = NETS[name](), images()
    given = x.to_dense() if name == "dense" else x
    assert init.calibrate_(net, given, share) is net
    seen = {}
    for module in net:
        given = module(given)
        if isinstance(module, SingleSpikeLeaky | SingleSpikeSynaptic):
            spikes = given if isinstance(given, torch.Tensor) else given.to_dense()
            early = spikes[:-1].sum(0)
            units = early.mean((0, 2, 3)) if early.dim() == 4 else early.mean(0)
            seen[module] = units
    assert len(seen) == 2
    for units in seen.values():
        # A neuron whose membrane is above 0 in fewer samples fires in fewer.
        assert (units <= share + 0.02).all()
        assert ((units - share).abs() < 0.02).sum() >= 2


def test_what_is_not_proportional_is_refused():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), lif())
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match="'2' is not proportional to the weights of '0'"):
        init.calibrate_(net, torch.rand(T, BATCH, 5))
    assert torch.equal(net[0].weight, before)
    with pytest.raises(ValueError, match="no neurons of this package"):
        init.calibrate_(nn.Linear(5, 3), torch.rand(T, BATCH, 5))
    with pytest.raises(ValueError, match="share=1 must be above 0"):
        init.calibrate_(net, torch.rand(T, BATCH, 5), share=1)
    net = nn.Sequential(nn.Linear(6, 4), nn.Flatten(2), lif())
    with pytest.raises(ValueError, match="12 features, but the layer in front of them has 4"):
        init.calibrate_(net, torch.rand(T, BATCH, 3, 6))


@pytest.mark.parametrize("reduction", ["sum", "last"])
def test_a_spike_changes_a_score_by_one(reduction):
    """On average over the steps at which it may arrive."""
    beta, num_steps = 0.97, 30
    scale = init.readout_scale(beta, num_steps, reduction)
    readout = LeakyReadout(beta, reduction=reduction, scale=scale)
    scores = readout(torch.eye(num_steps)[:, :, None])  # a spike of weight 1 at each step
    assert scores.mean().item() == pytest.approx(1.0, rel=1e-5)
    assert init.readout_scale(beta, num_steps, "max") == 1.0


def test_what_no_readout_has_is_refused():
    for arguments, message in (
        ((1.5, 10), "beta=1.5"), ((0.9, 0), "num_steps=0"), ((0.9, 10, "mean"), "reduction"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            init.readout_scale(*arguments)
