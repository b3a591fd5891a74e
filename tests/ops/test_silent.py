"""The rule "spike_time" at silent neurons: the surrogate at the peak of the membrane."""

import pytest
import torch
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
