"""The earliest spike of a window."""

import pickle
import warnings

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

from snn_single_spike import (
    FirstSpikePool2d,
    LeakyReadout,
    SingleSpikeConv2d,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
    convert,
    revert,
)
from snn_single_spike.conversion import ConversionError
from snn_single_spike.functional import first_spike_pool2d

STEPS = 9


def spikes_of(features=(2, 6, 5), **options):
    times = torch.randint(-4, STEPS, (3, *features)).clamp(min=-1)
    return SpikeTimes(times, STEPS, dtype=torch.float64, **options)


@pytest.mark.parametrize("window", [(2,), (3, 2, 1), ((2, 3), (1, 2)), (2, 2, 0, True)], ids=repr)
def test_the_earliest_spike_leaves(window):
    """The first step at which the maximum of the dense window is 1."""
    spikes = spikes_of(height=torch.tensor([[[2.0]], [[3.0]]], dtype=torch.float64))
    kernel, stride, padding, ceil = (*window, *(None, 0, False)[len(window) - 1 :])
    made = FirstSpikePool2d(*window)(spikes)
    fired = F.max_pool2d(
        (spikes.to_dense() != 0).double().flatten(0, 1), kernel, stride, padding, ceil_mode=ceil
    )
    fired = fired.unflatten(0, (STEPS, 3)) != 0
    first = torch.where(fired.any(0), fired.byte().argmax(0), -1)
    assert torch.equal(made.times.long(), first)
    assert set(made.to_dense()[:, :, 1].unique().tolist()) == {0.0, 3.0}
    assert made.dtype == torch.float64


def test_the_gradient_flows_to_the_earliest_spike():
    spikes = spikes_of()
    times = spikes.times.long()
    times[0, 0, :2, :2] = torch.tensor([[5, 3], [3, -1]])  # the first of two at step 3
    times[0, 0, :2, 2:4] = -1  # a silent window: its first unit
    dense = SpikeTimes(times, STEPS, dtype=torch.float64).to_dense().requires_grad_()
    made = FirstSpikePool2d(2)(SpikeTimes.from_dense(dense))
    g = torch.randn(made.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad((made.to_dense() * g).sum(), dense)
    assert torch.equal(grad[:, 0, 0, 0, 1], g[:, 0, 0, 0, 0])
    assert torch.equal(grad[:, 0, 0, 0, 2], g[:, 0, 0, 0, 1])
    assert (grad != 0).sum() == g.numel()
    torch.testing.assert_close(grad.sum((3, 4)), g.sum((3, 4)))


@pytest.mark.parametrize("rules", [("masked",) * 2, ("spike_time",) * 2, ("spike_time", "masked")])
def test_a_network_equals_the_one_with_the_winners_alone(rules):
    """Losers of a window neither reach the next layer nor get a gradient."""
    found = []
    for path in ("pool", "mask"):
        torch.manual_seed(1)
        one = SingleSpikeConv2d(1, 4, 3, 0.9, gradient=rules[0], threshold=0.3).double()
        two = SingleSpikeLinear(16, 6, 0.9, gradient=rules[1], threshold=0.2).double()
        score = nn.Linear(6, 3).double()
        hidden = one(spikes_of((1, 6, 6)))
        pooled = first_spike_pool2d(hidden, 2)
        if path == "mask":
            units = pooled.carrier.grad_fn.saved_tensors[0]  # of the same forward pass
            dense = hidden.to_dense().flatten(2)
            rows = dense.gather(2, units.expand(STEPS, -1, -1))
            pooled = SpikeTimes.from_dense(rows).reshape(STEPS, 3, 4, 2, 2)
        scores = LeakyReadout(0.9)(score(two(pooled.flatten(2))))
        scores.square().sum().backward()
        found.append([scores.detach(), *(p.grad for p in (*one.parameters(), *two.parameters()))])
    for mine, right in zip(*found, strict=True):
        assert right.any()
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)


def test_interpolated_times_are_pooled():
    layer = SingleSpikeConv2d(1, 4, 3, 0.9, gradient="spike_time", threshold=0.3).double()
    hidden = layer(spikes_of((1, 6, 6)))
    pooled = first_spike_pool2d(hidden, 2)
    late = torch.where(hidden.times < 0, 99.0, hidden.interpolated_times)
    earliest = -F.max_pool2d(-late, 2)
    assert torch.equal(torch.where(pooled.times < 0, 99.0, pooled.interpolated_times), earliest)
    pooled.interpolated_times.sum().backward()
    assert layer.weight.grad.any()


def test_refusals():
    with pytest.raises(TypeError, match="SpikeTimes.from_dense"):
        first_spike_pool2d(spikes_of().to_dense(), 2)
    with pytest.raises(TypeError, match="must be SpikeTimes, not SpikeEvents"):
        first_spike_pool2d(SpikeEvents.from_dense(spikes_of().to_dense()), 2)
    with pytest.raises(ValueError, match="maps"):
        first_spike_pool2d(spikes_of().flatten(2), 2)
    with pytest.raises(ValueError, match=r"\(channels, 1, 1\)"):
        first_spike_pool2d(spikes_of(height=torch.rand(2, 6, 5, dtype=torch.float64)), 2)


def model():
    """Two poolings: of currents, and of spikes."""
    hidden = {"beta": 0.9, "threshold": 0.2, "init_hidden": True}
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.MaxPool2d(2, 1),
        snn.Leaky(**hidden),
        nn.MaxPool2d((2, 3), stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(24, 5),
        snn.Leaky(**hidden, output=True),
    ).double()


@pytest.mark.filterwarnings("ignore:'3'. MaxPool after a neuron")
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_converted_models_pool_the_first_spikes(rule):
    net, spikes = model(), spikes_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of several spikes of a window
        fast = convert(
            net, spike_format="times", gradient=rule, first_spike_pooling=True, check=False
        )
    right = convert(net, spike_format="times", gradient=rule, check=False)
    right[3] = FoldedFirst((2, 3), 2, 1)
    found = []
    for made in (fast, pickle.loads(pickle.dumps(fast)), right):
        out, mem = made(spikes)
        (mem.to_dense().square().sum() + out.to_dense().sum()).backward()
        found.append([out.times, *(p.grad for p in made.parameters())])
    assert (found[0][0] >= 0).any()
    for mine, copied, expected in zip(*found, strict=True):
        assert torch.equal(mine, expected)
        assert torch.equal(copied, expected)
    assert repr(fast[3]) == repr(net[3])
    assert type(revert(fast)[3]) is nn.MaxPool2d


class FoldedFirst(FirstSpikePool2d):
    def forward(self, spikes):
        return super().forward(spikes.unfold()).fold()


def test_first_spike_pooling_is_refused_where_it_changes_nothing():
    with pytest.raises(ValueError, match="requires spike_format='times', not 'auto'"):
        convert(model(), first_spike_pooling=True)
    with pytest.raises(ValueError, match="does not support check=True"):
        convert(model(), spike_format="times", first_spike_pooling=True, check=True)
    with pytest.raises(ConversionError, match=r"needs an nn\.MaxPool2d"):
        convert(model()[4:], spike_format="times", first_spike_pooling=True)
    with pytest.warns(UserWarning, match="first_spike_pooling=True the earliest spike"):
        convert(model())
