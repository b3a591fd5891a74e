"""Edge cases of linear layers from spike times."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes
from snn_single_spike.functional import single_spike_leaky, single_spike_linear
from snn_single_spike.ops.validation import GRADIENT_RULES, REDUCTIONS, RESETS

from tests.support.devices import device_of, runnable
from tests.support.linear_problems import (
    CPU_BACKENDS,
    KINDS,
    Layer,
    Problem,
    as_spikes,
    assert_close,
    on,
    readout,
    run,
)
from tests.support.oracle import rounding_decides_a_peak

# All numbers are small multiples of a power of two. No backend rounds, so all backends must agree
# on membranes exactly at the threshold.
QUARTERS = st.integers(-6, 6).map(lambda n: n / 4)
PATTERNS = ("silent", "first step", "last step", "one step", "few", "many")


def pattern(name, num_steps, batch, units, make):
    times = torch.randint(0, num_steps, (batch, units), generator=make)
    if name == "silent":
        times.fill_(-1)
    elif name == "first step":
        times.zero_()
    elif name == "last step":
        times.fill_(num_steps - 1)
    elif name == "one step":
        times[:] = times[:, :1]
    elif name == "few":
        times[torch.rand(times.shape, generator=make) < 0.8] = -1
    return times


@settings(max_examples=50)
@given(data=st.data())
def test_values_at_the_edge(data):
    draw = data.draw
    beta = draw(st.sampled_from([0.0, 0.5, 1.0, -0.5, 1.5]))
    beta_2 = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    # More halvings would round.
    num_steps = draw(st.integers(1, 40)) if 0.5 in (beta, beta_2) else draw(st.integers(1, 300))
    batch, units, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 4)), 4
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    times = pattern(draw(st.sampled_from(PATTERNS)), num_steps, batch, units, make)
    to = {"dtype": torch.float64}
    weight = torch.randint(-4, 5, (outputs, units), generator=make).to(**to) / 4
    bias = torch.tensor(draw(st.lists(QUARTERS, min_size=4, max_size=4)), **to) / 8
    threshold = draw(st.lists(st.one_of(QUARTERS, st.just(math.inf)), min_size=4, max_size=4))
    layer = Layer(weight, bias, torch.full((4,), beta, **to), torch.tensor(threshold, **to),
                  torch.ones(4, **to))  # fmt: skip
    last = Layer(torch.randint(-4, 5, (2, 4), generator=make).to(**to) / 4,
                 torch.tensor([0.0, 0.25], **to), *layer[2:])  # fmt: skip
    given = Problem(
        SpikeTimes(times, num_steps, dtype=torch.float64).to_dense(),
        draw(st.sampled_from(KINDS)),
        [layer, last],
        torch.full((2,), beta_2, **to),
        torch.randn(batch, 2, generator=make, **to),
    )
    rule, reset = draw(st.sampled_from(GRADIENT_RULES)), draw(st.sampled_from(RESETS))
    reduction = draw(st.sampled_from(REDUCTIONS))
    current = F.linear(given.spikes, weight, bias)
    assume(
        rule != "spike_time" or not rounding_decides_a_peak(current, layer.beta, layer.threshold)
    )
    expected = run("dense", given, (rule,), reset, reduction, "torch")
    for backend in CPU_BACKENDS:
        assert_close(run("times", given, (rule,), reset, reduction, backend), expected, 1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 60, 64, 65, 128, 129, 130, 400])
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_a_bias_crosses_the_threshold_between_spikes(rule, num_steps, linear_backend):
    """Gaps longer than one and two jumps. For every step there is a neuron that crosses there."""
    lanes = 150
    device = device_of(linear_backend)
    layer = Layer(
        torch.full((lanes, 1), -0.5, dtype=torch.float64),
        torch.ones(lanes, dtype=torch.float64),
        torch.ones(lanes, dtype=torch.float64),
        torch.arange(lanes, dtype=torch.float64) * num_steps / lanes - 0.75,
        torch.ones(lanes, dtype=torch.float64),
    )
    last = Layer(*(x[:, :1].T if x.dim() > 1 else x for x in layer))
    last = last._replace(
        weight=torch.rand(2, lanes, dtype=torch.float64), bias=torch.zeros(2).double()
    )
    for fires in (-1, 0, num_steps - 1, num_steps // 2):
        spikes = SpikeTimes(torch.tensor([[fires]]), num_steps, dtype=torch.float64).to_dense()
        ones = torch.ones(1, 2, dtype=torch.float64)
        given = on(device, Problem(spikes, "times", [layer, last], torch.rand(2).double(), ones))
        expected = run("dense", given, (rule,), backend=linear_backend)
        assert (expected[0][0] >= 0).any()
        assert_close(run("times", given, (rule,), backend=linear_backend), expected, 1e-9)


@pytest.mark.parametrize("fires", [-1, 0, 3])
def test_a_negative_threshold_is_crossed_on_the_way_down(fires, linear_backend):
    """A membrane that falls from 0 is above a negative threshold at its first steps only."""
    device = device_of(linear_backend)
    spikes = SpikeTimes(torch.tensor([[fires]], device=device), 200)
    bias = torch.tensor([-0.75, -1.0, -1.25, 0.0], device=device)
    times = single_spike_linear(
        spikes, torch.zeros(4, 1, device=device), bias, 1.0, -1.0, backend=linear_backend
    ).times
    assert times.tolist() == [[0, -1, -1, 0]]


def test_the_first_of_equal_maxima_has_the_gradient(linear_backend):
    """With beta=0, the membrane is the same at every step without spikes."""
    device = device_of(linear_backend)
    dense = torch.zeros(90, 1, 2, dtype=torch.float64)
    dense[2, 0, 0] = 1
    weight, bias = torch.tensor([[-1.0, 1.0]]).double(), torch.tensor([0.5]).double()
    grads = []
    for path in ("times", "dense"):
        leaves = [
            x.clone().to(device).requires_grad_() for x in (weight, bias, torch.zeros(1).double())
        ]
        x = dense.to(device)
        x = as_spikes(x, "times") if path == "times" else x
        value = readout(x, *leaves, reduction="max", backend=linear_backend)
        grads.append(torch.autograd.grad(value.sum(), leaves))
    for mine, right in zip(*grads, strict=True):
        assert torch.equal(mine, right)
    # and where it falls first, so that the maximum comes after a spike
    x = SpikeTimes.from_dense(dense[2:].to(device))
    beta = torch.zeros(1, dtype=torch.float64, device=device, requires_grad=True)
    layer = (weight.to(device), bias.to(device))
    readout(x, *layer, beta, reduction="max", backend=linear_backend).sum().backward()
    assert beta.grad.item() == -0.5  # the membrane of the step before, with the spike


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.9, 0.95])
def test_a_membrane_that_comes_to_rest_at_the_threshold(beta, linear_backend):
    """Rounding decides whether a neuron fires. A neuron that fires was below and is above."""
    thresholds = torch.tensor([0.3, 0.7, 1.0, 2.0]).repeat(80)
    ulps = torch.arange(-40, 40).repeat_interleave(4)
    bias = thresholds * (1 - beta)
    bias = (bias + ulps * (bias.nextafter(torch.tensor(torch.inf)) - bias)).requires_grad_()
    device = device_of(linear_backend)
    spikes = single_spike_linear(
        SpikeTimes(torch.tensor([[-1], [150]]), 300).to(device),
        torch.zeros(320, 1, device=device),
        bias.to(device),
        beta,
        thresholds.to(device),
        gradient="spike_time",
        backend=linear_backend,
    )
    assert spikes.interpolated_times is not None
    spikes.interpolated_times.sum().backward()
    assert bias.grad is not None
    assert bias.grad.isfinite().all()
    fired = spikes.times >= 0
    assert (
        (spikes.interpolated_times <= spikes.times)
        & (spikes.interpolated_times >= spikes.times - 1)
    )[fired].all()
    assert 0 < fired.float().mean() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [30, 65, 200])
def test_a_maximum_at_which_a_membrane_comes_to_rest(num_steps, dtype, linear_backend):
    """The gradient belongs to the step of the maximum, not to the end of the jump."""
    device = device_of(linear_backend)
    hidden = single_spike_linear(
        SpikeTimes(torch.tensor([[3]], device=device), num_steps, dtype=dtype),
        torch.full((1, 1), 0.5, dtype=dtype, device=device, requires_grad=True),
        None,
        0.9,
        gradient="straight_through",
        backend=linear_backend,
    )
    weight, bias = torch.tensor([[0.5]], dtype=dtype), torch.ones(1, dtype=dtype)
    layer = (weight.to(device), bias.to(device))
    grads = []
    for x in (hidden, hidden.to_dense()):
        beta = torch.tensor(0.5, dtype=dtype, device=device, requires_grad=True)
        value = readout(x, *layer, beta, reduction="max", backend=linear_backend)
        assert value.item() == pytest.approx(2)
        grads.append(torch.autograd.grad(value, (hidden.carrier, beta)))
    for mine, right in zip(*grads, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine + 0), right, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", runnable("torch", "numba", "triton"))
def test_a_bias_that_is_not_contiguous(backend):
    device = device_of(backend)
    spikes = SpikeTimes(torch.randint(0, 20, (3, 6), device=device), 20)
    weight = torch.randn(4, 6, device=device)
    for bias in (torch.rand(4, 2, device=device)[:, 0], torch.rand(1, device=device).expand(4)):
        times = [
            single_spike_linear(spikes, weight, b, 0.9, backend=backend).times
            for b in (bias, bias.clone(memory_format=torch.contiguous_format))
        ]
        assert torch.equal(*times)


def test_another_default_device(linear_backend):
    times, x = torch.zeros(4, 6, dtype=torch.long), torch.rand(3, 70, 1000)
    weight = torch.rand(3, 6)
    torch.set_default_device("meta")
    try:
        found = single_spike_linear(
            SpikeTimes(times, 10), weight, None, 0.9, backend=linear_backend
        ).times
        single_spike_leaky(x.requires_grad_(), 0.9, backend=linear_backend)
    finally:
        torch.set_default_device(None)
    assert found.device.type == "cpu"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spikes": torch.zeros(5, 2, 3)}, TypeError, r"SpikeTimes.from_dense\(spikes\) or Spik"),
        ({"spikes": None}, TypeError, "not NoneType"),
        (
            {"spikes": SpikeTimes(torch.zeros(2, 3, 1, dtype=torch.int8), 5)},
            ValueError,
            r"one feature dimension is expected, \(time, batch, in\): use spikes.flatten\(2\)",
        ),
        (
            {"weight": torch.zeros(4, 2)},
            ValueError,
            "have 3 features, but the linear layer takes 2",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias has shape \(3,\)"),
        ({"beta": torch.ones(3)}, ValueError, r"beta has shape \(3,\), which does not broadcast"),
        ({"beta": math.nan}, ValueError, "beta is NaN"),
        ({"beta": "a"}, TypeError, "beta must be a number or a tensor, not str"),
        ({"beta": torch.ones(4).double()}, TypeError, "beta has dtype torch.float64"),
        ({"threshold": torch.ones(3)}, ValueError, r"threshold has shape \(3,\)"),
        ({"graded_spikes_factor": torch.ones(3)}, ValueError, r"graded_spikes_factor has shape"),
        ({"gradient": "exact"}, ValueError, "gradient='exact'"),
        ({"reset_mechanism": "clear"}, ValueError, "reset_mechanism='clear'"),
        ({"backend": "jax"}, ValueError, "backend='jax' is not known"),
        ({"spike_grad": 3}, TypeError, "spike_grad=3 cannot be called"),
    ],
)
def test_arguments_that_are_refused(change, error, message):
    given = {
        "spikes": SpikeTimes(torch.zeros(2, 3, dtype=torch.int8), 5),
        "weight": torch.zeros(4, 3),
        "bias": None,
        "beta": 0.9,
    }
    with pytest.raises(error, match=message):
        single_spike_linear(**(given | change))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dense_spikes_of_half_weights_are_half(dtype):
    times = torch.randint(-1, 10, (4, 6))
    layer = SingleSpikeLinear(6, 5, 0.9, threshold=0.2, dtype=dtype, backend="torch")
    spikes = layer(SpikeTimes(times, 10, dtype=dtype))
    dense = spikes.to_dense()
    assert spikes.dtype == dense.dtype == dtype
    dense.sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_autocast_does_not_reach_plain_torch():
    layer = SingleSpikeLinear(6, 5, 0.9, threshold=0.2, backend="torch")
    readout = nn.Sequential(nn.Linear(5, 3), LeakyReadout(0.9, backend="torch"))
    spikes = SpikeTimes(torch.randint(-1, 10, (4, 6)), 10)
    right = readout(layer(spikes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(readout(layer(spikes)), right)
