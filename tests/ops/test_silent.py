"""The rule "spike_time" at silent neurons: the surrogate at the peak of the membrane."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snntorch import surrogate
from torch.nn import functional as F

from snn_single_spike import SpikeTimes
from snn_single_spike.functional import (
    single_spike_conv2d,
    single_spike_leaky,
    single_spike_linear,
)

from tests.support.devices import device_of

STEPS, BATCH = 70, 3  # longer than one jump between spikes


def spikes_and_leaves(shape, bias, beta, device="cpu"):
    make = torch.Generator().manual_seed(7)
    times = torch.randint(-1, STEPS, (BATCH, *shape[1:]), generator=make)
    times[0] = times[0].clamp(max=2)  # a long time without spikes, from step 0 on
    times[1] = -1
    weight = torch.randn(shape, generator=make, dtype=torch.float64)
    drift = bias * torch.rand(shape[0], generator=make, dtype=torch.float64)
    decay = torch.full((shape[0],), beta, dtype=torch.float64)
    leaves = [x.to(device).requires_grad_() for x in (weight, drift, decay)]
    return SpikeTimes(times.to(device), STEPS, dtype=torch.float64), leaves


def gradients(spikes, leaves):
    ramp = torch.arange(1.0, STEPS + 1, dtype=torch.float64, device=spikes.device).sqrt()
    loss = (spikes * ramp.view(-1, *[1] * (spikes.dim() - 1))).sum()
    return torch.autograd.grad(loss, leaves)


# The bias moves the peak to a step between two spikes, to the first or to the last step.
@pytest.mark.parametrize(("bias", "beta"), [(0.0, 0.9), (0.3, 0.97), (-0.3, 0.97), (0.0, 1.0)])
def test_the_peak_from_spike_times(bias, beta, backend):
    device = device_of(backend)
    spikes, leaves = spikes_and_leaves((40, 6), bias, beta, device)
    weight, drift, decay = leaves
    options = {"threshold": 1e3, "gradient": "spike_time"}
    made = single_spike_linear(spikes, weight, drift, decay, backend=backend, **options)
    current = F.linear(spikes.to_dense(), weight, drift)
    right = single_spike_leaky(current, decay, backend="torch", **options)
    assert (made.times == -1).all()
    expected = gradients(right.spikes, leaves)
    for mine, theirs in zip(gradients(made.to_dense(), leaves), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
    assert expected[0].any()


@pytest.mark.parametrize(("bias", "beta"), [(0.0, 0.9), (0.3, 0.97), (-0.3, 0.97)])
def test_the_peak_behind_a_convolution(bias, beta, cpu_backend):
    spikes, leaves = spikes_and_leaves((4, 2, 3, 3), bias, beta)
    spikes = SpikeTimes(spikes.times.repeat(1, 1, 2, 2), STEPS, dtype=torch.float64)
    weight, drift, decay = leaves
    options = {"threshold": 1e3, "gradient": "spike_time"}
    by_channel = decay.view(-1, 1, 1)
    made = single_spike_conv2d(spikes, weight, drift, by_channel, backend=cpu_backend, **options)
    current = F.conv2d(spikes.to_dense().flatten(0, 1), weight, drift).unflatten(0, (STEPS, BATCH))
    right = single_spike_leaky(current, by_channel, backend="torch", **options)
    expected = gradients(right.spikes, leaves)
    for mine, theirs in zip(gradients(made.to_dense(), leaves), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def dense_gradients(backend, spike_grad, reset="none"):
    current = torch.randn(STEPS, 40, generator=torch.Generator().manual_seed(1)).double()
    current = current[:, None].requires_grad_()
    options = {"gradient": "spike_time", "reset_mechanism": reset, "backend": backend}
    out = single_spike_leaky(current, 0.9, 6.0, spike_grad=spike_grad, **options)
    assert 0 < (out.times >= 0).sum() < 40
    (grad,) = torch.autograd.grad((out.spikes * out.mem.detach()).sum() + out.mem.sum(), current)
    return grad, out


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_loss_on_the_membrane_after_the_peak_is_not_cut(reset, cpu_backend):
    """The peak is no spike: no reset follows it."""
    grad, out = dense_gradients(cpu_backend, surrogate.heaviside(), reset)
    silent = (out.times < 0).nonzero()[0]
    expected = (1 - 0.9 ** (STEPS - torch.arange(STEPS).double())) / (1 - 0.9)
    torch.testing.assert_close(grad[(slice(None), *silent)], expected)


class Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + 5 * x.abs()).square()


def test_a_custom_surrogate(cpu_backend):
    expected, _ = dense_gradients(cpu_backend, surrogate.fast_sigmoid(5))
    actual, _ = dense_gradients(cpu_backend, Triangle.apply)
    torch.testing.assert_close(actual, expected)


def near_a_record(mem, which, distance):
    """A threshold (O,) at this distance from one of the records of each membrane (T, O).

    A record is higher than all steps before it. As the threshold falls from above the record to
    below it, a spike appears there, or comes there from a later record.
    """
    thresholds = []
    for neuron in mem.T:
        before = torch.cat((torch.full((1,), -torch.inf), neuron.cummax(0).values[:-1]))
        records = (neuron > before).nonzero().flatten()
        thresholds.append(neuron[records[which % len(records)]] + distance)
    return torch.stack(thresholds)


def largest_gradient(times, mem, on_spikes):
    """The largest gradient that the rule may give to a membrane (O,)."""
    rise = torch.cat((torch.ones_like(mem[:1]), mem[1:] - mem[:-1]))
    moved = torch.cat((torch.zeros_like(mem[:1]), (on_spikes[1:] - on_spikes[:-1]).abs()))
    fired = (moved / rise).gather(0, times.clamp(min=0)[None])[0]
    return torch.where(times < 0, on_spikes.abs().amax(0), fired)  # s' is at most 1


@given(
    num_steps=st.integers(2, 60),
    beta=st.floats(0, 1),
    which=st.integers(0, 5),
    side=st.sampled_from([-1, 1]),
    exponent=st.integers(-12, -2),
    seed=st.integers(0, 2**16),
)
def test_gradients_are_bounded_where_a_spike_appears_moves_or_vanishes(
    num_steps, beta, which, side, exponent, seed
):
    make = torch.Generator().manual_seed(seed)
    times = torch.randint(0, num_steps, (1, 8), generator=make)
    spikes = SpikeTimes(times, num_steps, dtype=torch.float64)
    weight = torch.randn(16, 8, generator=make, dtype=torch.float64).requires_grad_()
    current = F.linear(spikes.to_dense(), weight).detach().requires_grad_()
    mem = single_spike_leaky(current.detach(), beta, torch.inf).mem[:, 0]
    theta = near_a_record(mem, which, side * 10.0**exponent).requires_grad_()
    on_spikes = torch.randn(num_steps, 16, generator=make, dtype=torch.float64)
    decay = torch.full((16,), beta, dtype=torch.float64)
    options = {"spike_grad": surrogate.fast_sigmoid(3), "gradient": "spike_time"}
    for backend in ("torch", "auto"):
        dense = single_spike_leaky(current, decay, theta, backend=backend, **options)
        made = single_spike_linear(spikes, weight, None, decay, theta, backend=backend, **options)
        for out, leaf in ((dense.spikes, current), (made.to_dense(), weight)):
            first = torch.where(out[:, 0].any(0), out[:, 0].detach().argmax(0), -1)
            bound = largest_gradient(first, mem, on_spikes) * (1 + 1e-6) + 1e-12
            grad, direct = torch.autograd.grad((out[:, 0] * on_spikes).sum(), (leaf, theta))
            largest = grad[:, 0].abs().amax(0) if leaf is current else grad.abs().amax(1)
            assert (largest <= bound).all()
            assert (direct.abs() <= bound).all()
