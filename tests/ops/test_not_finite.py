"""Gradients where a membrane, a synaptic current or a decay is infinite or NaN."""

import math
from dataclasses import replace

import pytest
import torch

from snn_single_spike import SpikeTimes, backends
from snn_single_spike.backends._surrogate import SURROGATES, Surrogate
from snn_single_spike.backends._types import Neuron, OutputGradients, Saved
from snn_single_spike.functional import (
    single_spike_conv2d,
    single_spike_leaky,
    single_spike_linear,
)

from tests.support.devices import device_of
from tests.support.neurons import LEARN, NEURONS, make, run_ours
from tests.support.oracle import relative_error

pytestmark = pytest.mark.every_case


@pytest.mark.parametrize("name", NEURONS)
def test_states_of_the_last_step_change_no_parameter(name, backend):
    """Step T does not exist, so a parameter has no gradient from V[T-1]: not 0 * inf either."""
    kind = NEURONS[name]
    case = make(kind, (6, 2, 16), surrogate="atan")
    x = case.x.clone()
    x[-1, ..., 0] = math.inf  # the current of all neurons
    loss = {state: w for state, w in case.loss.items() if state != "spk"}
    before = replace(case, x=x[:-1], loss={state: w[:-1] for state, w in loss.items()})
    for weights in loss.values():
        weights[-1] = 0.0
    actual = run_ours(kind, replace(case, x=x, loss=loss), backend)
    expected = run_ours(kind, before, "torch")
    assert not actual["mem"][-1].isfinite().any()
    for parameter in LEARN & case.parameters.keys():
        assert relative_error(actual["d" + parameter], expected["d" + parameter]) < 1e-12


def test_a_half_membrane_that_overflows_in_the_last_step(backend):
    current = torch.full((3, 1, 4), 0.1, dtype=torch.float16, device=device_of(backend))
    current[-1] = 6e4
    beta = torch.tensor(0.9, device=current.device, requires_grad=True)
    mem_0 = torch.full_like(current[0], 0.5)
    _, mem, _ = single_spike_leaky(
        current + mem_0 * 0.5, beta, 2.0, mem=mem_0 * 2e4, reset_mechanism="none", backend=backend
    )
    assert mem[-1].isinf().all()
    mem[0].float().sum().backward()
    assert beta.grad.item() == pytest.approx(4e4, rel=1e-3)  # the initial membranes


@pytest.mark.parametrize("rule", ["masked", "straight_through"])
def test_the_last_membrane_of_a_linear_layer_changes_no_beta(rule, backend):
    device = device_of(backend)
    spikes = SpikeTimes(torch.tensor([[0, 3, 3], [1, 3, 3]], device=device), 4)

    def gradient(large, backend):
        weight = torch.tensor([[0.3, large, large], [0.5, -large, -large]], device=device)
        beta = torch.full((2,), 0.5, device=device, requires_grad=True)
        bias = torch.zeros_like(beta)
        out = single_spike_linear(spikes, weight, bias, beta, gradient=rule, backend=backend)
        (out.to_dense().cumsum(0)).sum().backward()
        return beta.grad

    expected = gradient(1e30, "torch")
    assert (expected != 0).all()
    assert relative_error(gradient(3e38, backend), expected) < 1e-6  # V[T-1] overflows


@pytest.mark.parametrize("rule", ["masked", "straight_through"])
def test_the_last_membrane_of_a_convolution_changes_no_beta(rule, backend):
    device, floats = device_of(backend), torch.float64
    times = torch.tensor([[0, 3, 3], [1, 3, 3]], device=device).view(2, 1, 1, 3)
    spikes = SpikeTimes(times, 4, dtype=floats)

    def gradient(large, backend):
        rows = [[0.3, large, large], [0.5, -large, -large]]
        weight = torch.tensor(rows, device=device, dtype=floats).view(2, 1, 1, 3)
        beta = torch.full((2, 1, 1), 0.5, device=device, dtype=floats, requires_grad=True)
        out = single_spike_conv2d(spikes, weight, None, beta, gradient=rule, backend=backend)
        out.to_dense().cumsum(0).sum().backward()
        return beta.grad

    expected = gradient(1e30, "torch")
    assert (expected != 0).all()
    assert relative_error(gradient(1.5e308, backend), expected) < 1e-12  # V[T-1] overflows


@pytest.mark.parametrize("name", SURROGATES)
def test_slopes_of_a_membrane_that_is_not_finite(name, backend):
    """As snnTorch's derivative: a surrogate that reads the distance is NaN where it is."""
    surrogate = Surrogate(name, 0.7, 0.5)
    current = torch.tensor([[math.nan, -math.inf, math.inf, 0.5]])[None].to(device_of(backend))
    current.requires_grad_()
    spikes, *_ = single_spike_leaky(
        current, 0.5, gradient="straight_through", spike_grad=surrogate, backend=backend
    )
    spikes.sum().backward()
    u = (current.detach() - 1.0).requires_grad_()
    surrogate(u).sum().backward()
    if name == "sigmoid":  # snnTorch's form is inf / inf
        u.grad[..., 1] = 0.0
    torch.testing.assert_close(current.grad, u.grad, equal_nan=True)


@pytest.mark.parametrize("clamp", [False, True])
def test_the_gradient_of_a_decay_that_is_nan(clamp, backend):
    """NaN is outside of a clamp and has no gradient there, as in torch."""
    device = device_of(backend)
    one, beta = torch.ones(1, device=device), torch.tensor([math.nan], device=device)
    neuron = Neuron(beta, one, one, clamp=clamp, reset="none")
    mem = torch.tensor([[0.5], [math.nan]], device=device)
    grads = OutputGradients(grad_mem=torch.ones_like(mem))
    out = {"beta": torch.empty(1, device=device)}
    backends.load(backend, "neuron").neuron_backward(
        2, mem.dtype, Saved(mem), neuron, torch.tensor([-1], device=device), grads,
        "none", Surrogate("straight_through_estimator"), out,
    )  # fmt: skip
    if clamp:
        assert out["beta"].item() == 0.0
    else:
        # lam[1] V[0] + lam[0] V[-1], and lam[0] is NaN
        assert out["beta"].isnan().all()
