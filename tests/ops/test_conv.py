"""Convolutions from spike times, against dense convolutions."""

import pytest
import torch
from torch.nn import functional as F

from snn_single_spike import SpikeEvents, SpikeTimes
from snn_single_spike.functional import (
    single_spike_conv1d,
    single_spike_conv2d,
    single_spike_leaky,
)
from snn_single_spike.ops import conv as conv_ops
from snn_single_spike.ops.validation import GRADIENT_RULES

from tests.support.conv_problems import (
    CASES,
    Case,
    as_spikes,
    by_times,
    check,
    layer_of,
    spikes_of,
)
from tests.support.oracle import relative_error

STEPS, BATCH = 19, 3
SETTINGS = [
    ("masked", "none"),
    ("straight_through", "zero"),
    ("pre_spike", "subtract"),
    ("spike_time", "zero"),
]


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize(("rule", "reset"), SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_all_sizes(name, rule, reset, cpu_backend):
    case = CASES[name]
    layer = layer_of(case)
    for kind in ("times", "events"):
        dense = spikes_of(case, STEPS, BATCH, kind)
        check(case, layer, dense, kind, rule, reset, cpu_backend, 1e-10)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_float32(rule, cpu_backend):
    case = CASES["padded"]
    layer = layer_of(case, dtype=torch.float32)
    dense = spikes_of(case, STEPS, BATCH, "times", dtype=torch.float32)
    check(case, layer, dense, "times", rule, "subtract", cpu_backend, 1e-4)


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_long_gaps_and_a_bias_alone(rule, cpu_backend):
    """Between distant spikes a bias drives the membrane over the threshold, or does not."""
    case = Case((1, 6, 6), 3, (3, 3), {"padding": 1}, each_neuron=True)
    layer = layer_of(case)
    layer.bias.copy_(torch.tensor([0.05, -0.3, 0.09]))
    layer.threshold[1] = -0.5  # the bias leads down through it
    times = torch.full((4, 1, 6, 6), -1)
    times[0, 0, 2, 2], times[1, 0, 0, 0], times[2, 0, 5, 5] = 150, 0, 299
    dense = SpikeTimes(times, 300, dtype=torch.float64).to_dense()
    given = (case, layer, dense, "times", rule, "zero", cpu_backend, 1e-7)  # slow crossings
    # A silent membrane with a bias approaches its limit: rounding decides the step of its maximum.
    check(*given, surrogate="heaviside" if rule == "spike_time" else "fast_sigmoid")


def test_one_sample_no_sample_and_one_step(cpu_backend):
    case = CASES["padded"]
    layer = layer_of(case)
    layer.threshold.mul_(0.2)
    dense = spikes_of(case, 1, 1, "times") + 0
    dense[0, 0, 0, 2:4] = 1
    check(case, layer, dense, "times", "masked", "none", cpu_backend, 1e-10)
    none = SpikeTimes(torch.zeros(0, *case.maps, dtype=torch.int32), 5, dtype=torch.float64)
    weight = layer.weight.clone().requires_grad_()
    made = single_spike_conv2d(none, weight, None, 0.9, backend=cpu_backend, padding=1)
    made.to_dense().sum().backward()
    assert made.shape[:2] == (5, 0)
    assert not weight.grad.any()


def test_ties_are_decided_as_in_dense_tensors(cpu_backend):
    """Sums of halves are exact. A membrane that only reaches the threshold does not fire."""
    make = torch.Generator().manual_seed(2)
    weight = torch.randint(-2, 4, (8, 2, 3, 3), generator=make).double() / 2
    times = torch.randint(-1, 4, (6, 2, 7, 7), generator=make)
    spikes = SpikeTimes(times, 4, dtype=torch.float64)
    current = F.conv2d(spikes.to_dense().flatten(0, 1), weight).unflatten(0, (4, 6))
    expected = single_spike_leaky(current, 0.5, 1.5, backend="torch")
    made = single_spike_conv2d(spikes, weight, None, 0.5, 1.5, backend=cpu_backend)
    assert torch.equal(made.times.long(), expected.times)
    assert (expected.mem == 1.5).any()


def chain(path, rules, backend, weights, dense):
    """Two convolutions; the second has graded input, and the spikes of both are in the loss."""
    leaves = [w.clone().requires_grad_() for w in weights]
    factor = torch.tensor([0.7, 1.3, 0.9, 1.1], dtype=torch.float64).view(4, 1, 1)
    factor.requires_grad_()
    leaf = dense.clone().requires_grad_()
    x = SpikeTimes.from_dense(leaf) if path == "times" else leaf
    made = []
    for weight, rule, height in zip(leaves[:2], rules, (factor, 1.0), strict=True):
        if path == "times":
            x = single_spike_conv2d(
                x, weight, None, 0.9, 0.5, gradient=rule, stride=2, padding=1, backend=backend,
                graded_spikes_factor=height,
            )  # fmt: skip
        else:
            current = F.conv2d(x.flatten(0, 1), weight, stride=2, padding=1)
            x = single_spike_leaky(
                current.unflatten(0, x.shape[:2]), 0.9, 0.5, gradient=rule, backend="torch",
                graded_spikes_factor=height,
            ).spikes  # fmt: skip
        made.append(x.to_dense() if path == "times" else x)
    ramp = torch.arange(13, dtype=torch.float64).sqrt().view(-1, 1, 1, 1, 1)
    # The last spikes alone: the gradient to the first layer keeps its factors.
    loss = (made[1] * ramp).sum()
    return [loss.detach(), *torch.autograd.grad(loss, (leaf, *leaves[:2], factor))]


MIXED = [("spike_time", "masked"), ("masked", "spike_time")]


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["computed again", "kept"])
@pytest.mark.parametrize("rules", [*((r, r) for r in GRADIENT_RULES), *MIXED], ids="-".join)
def test_a_hidden_layer(rules, kept, cpu_backend, monkeypatch):
    """A large adjoint of the second layer is computed again for the first one."""
    monkeypatch.setattr(conv_ops, "_KEPT", kept)
    make = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(4, 2, 3, 3, generator=make, dtype=torch.float64) / 2,
        torch.randn(3, 4, 3, 3, generator=make, dtype=torch.float64) / 2,
    ]
    times = torch.randint(-1, 13, (3, 2, 9, 9), generator=make)
    dense = SpikeTimes(times, 13, dtype=torch.float64).to_dense()
    actual, expected = (chain(p, rules, cpu_backend, weights, dense) for p in ("times", "dense"))
    for mine, right in zip(actual, expected, strict=True):
        assert right.any()
        assert relative_error(mine, right) < 1e-10


def test_one_dimension(cpu_backend):
    make = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 2, 3, generator=make, dtype=torch.float64)
    beta = torch.rand(5, 1, generator=make, dtype=torch.float64)
    times = torch.randint(-1, 11, (3, 4, 9), generator=make)
    spikes = SpikeTimes(times, 11, dtype=torch.float64)
    options = {"stride": 2, "padding": 2, "dilation": 2, "groups": 1}
    weight = torch.randn(5, 4, 3, generator=make, dtype=torch.float64)
    made = single_spike_conv1d(spikes, weight, None, beta, backend=cpu_backend, **options)
    current = F.conv1d(spikes.to_dense().flatten(0, 1), weight, **options).unflatten(0, (11, 3))
    expected = single_spike_leaky(current, beta, backend="torch")
    assert made.shape == expected.spikes.shape
    assert torch.equal(made.to_dense(), expected.spikes)


def test_inputs_that_are_not_contiguous(cpu_backend):
    case = CASES["padded"]
    layer = layer_of(case)
    dense = spikes_of(case, STEPS, BATCH, "times")
    expected, _ = by_times(as_spikes(dense, "times"), layer, "masked", "none", cpu_backend)
    last = layer.weight.to(memory_format=torch.channels_last)
    times = SpikeTimes.from_dense(dense).times.to(memory_format=torch.channels_last)
    moved = SpikeTimes(times, STEPS, dtype=torch.float64)
    made, _ = by_times(moved, layer._replace(weight=last), "masked", "none", cpu_backend)
    assert torch.equal(made.times, expected.times)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32(dtype, cpu_backend):
    case = CASES["padded"]
    layer = layer_of(case, dtype=torch.float32)
    weight = layer.weight.to(dtype)
    spikes = SpikeTimes.from_dense(spikes_of(case, STEPS, BATCH, "times", dtype=torch.float32))
    made = single_spike_conv2d(spikes, weight, None, 0.9, backend=cpu_backend)
    expected = single_spike_conv2d(spikes, weight.float(), None, 0.9, backend=cpu_backend)
    assert made.dtype == dtype
    assert torch.equal(made.times, expected.times)


SPIKES = SpikeTimes(torch.zeros(2, 3, 6, 6, dtype=torch.int32), 4)
WEIGHT = torch.ones(4, 3, 3, 3)
REFUSED = {
    "weight of a linear layer": ((SPIKES, torch.ones(4, 3), None), {}, "weight has shape"),
    "flat spikes": ((SPIKES.flatten(2), WEIGHT, None), {}, "reshape them"),
    "channels": ((SPIKES, torch.ones(4, 2, 3, 3), None), {}, "in_channels=3"),
    "groups": ((SPIKES, WEIGHT, None), {"groups": 2}, "groups=2 must divide"),
    "bias": ((SPIKES, WEIGHT, torch.ones(3)), {}, r"shape \(4,\)"),
    "kernel": ((SPIKES, torch.ones(4, 3, 7, 7), None), {}, "smaller than the kernel"),
    "stride": ((SPIKES, WEIGHT, None), {"stride": 0}, "at least 1"),
    "padding": ((SPIKES, WEIGHT, None), {"padding": -1}, "must not be negative"),
    "same": ((SPIKES, WEIGHT, None), {"padding": "same", "stride": 2}, "requires stride=1"),
    "beta": ((SPIKES, WEIGHT, None, torch.ones(5, 1, 1)), {}, "beta has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    arguments, options, message = REFUSED[name]
    beta = () if len(arguments) > 3 else (0.9,)
    with pytest.raises(ValueError, match=message):
        single_spike_conv2d(*arguments, *beta, **options)


def test_other_refusals():
    with pytest.raises(TypeError, match="must be SpikeTimes or SpikeEvents"):
        single_spike_conv2d(SPIKES.to_dense(), WEIGHT, None, 0.9)
    with pytest.raises(TypeError, match=r"weight.float\(\)"):
        single_spike_conv2d(SPIKES, WEIGHT.int(), None, 0.9)
    weight = WEIGHT.clone().requires_grad_()
    made = single_spike_conv2d(SPIKES, weight, None, 0.9)
    with pytest.raises(RuntimeError, match=r"nn\.Conv2d of spikes\.to_dense"):
        torch.autograd.grad(made.to_dense().sum(), weight, create_graph=True)


def test_events_with_several_spikes_at_one_step(cpu_backend):
    """As average pooling makes them: the spikes of a unit at one step add up."""
    from snn_single_spike.backends._events import Events

    offsets, times = torch.tensor([0, 3, 4]), torch.tensor([1, 1, 2, 0])
    events = SpikeEvents(Events(offsets, times, torch.tensor([4, 4, 4, 0]), None), 4, (1, 3, 3))
    weight = torch.randn(2, 1, 2, 2)
    made = single_spike_conv2d(events, weight, None, 0.9, 0.3, backend=cpu_backend)
    current = F.conv2d(events.to_dense().flatten(0, 1), weight).unflatten(0, (4, 2))
    assert torch.equal(made.times.long(), single_spike_leaky(current, 0.9, 0.3).times)
