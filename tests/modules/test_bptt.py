"""The masked rule is backpropagation through snn.Leaky with a detached at-most-once gate."""

import pytest
import snntorch as snn
import torch
from snntorch import surrogate

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike.ops.validation import RESETS

from tests.support.devices import device_of
from tests.support.oracle import relative_error


def bptt(neuron, current):
    """snn.Leaky in a loop over time. A detached gate removes spikes after the first."""
    mem = torch.zeros_like(current[0])
    fired = torch.zeros_like(current[0])
    spikes = []
    for x in current.unbind(0):
        spk, mem = neuron(x, mem)
        spikes.append(spk * (1 - fired))
        fired = torch.maximum(fired, (spk > 0).to(fired)).detach()
    return torch.stack(spikes)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    "spike_grad",
    [None, surrogate.fast_sigmoid(slope=10), surrogate.sigmoid(slope=4)],
    ids=["default", "fast_sigmoid", "sigmoid"],
)
def test_masked_gradients_equal_bptt(spike_grad, reset, backend):
    options = {
        "spike_grad": spike_grad,
        "learn_beta": True,
        "learn_threshold": True,
        "reset_mechanism": reset,
    }
    beta, threshold = torch.rand(6), torch.rand(6) + 0.5
    theirs = snn.Leaky(beta.clone(), threshold.clone(), **options)
    ours = SingleSpikeLeaky(beta.clone(), threshold.clone(), **options, backend=backend)
    ours.to(device_of(backend))
    current, g = torch.randn(20, 3, 6) * 0.5, torch.randn(20, 3, 6)

    x = current.clone().requires_grad_()
    (bptt(theirs, x) * g).sum().backward()
    y = current.to(device_of(backend)).requires_grad_()
    (ours(y)[0] * g.to(y.device)).sum().backward()

    assert relative_error(y.grad, x.grad) < 1e-5
    assert relative_error(ours.beta.grad, theirs.beta.grad) < 1e-5
    assert relative_error(ours.threshold.grad, theirs.threshold.grad) < 1e-5


def test_membrane_gradients_equal_snntorch(backend):
    """If no neuron fires, a loss on the membrane has exactly snnTorch's gradient."""
    current = torch.rand(15, 2, 5) * 0.05
    weights = torch.randn(15, 2, 5)
    theirs = snn.Leaky(beta=torch.rand(5), learn_beta=True)
    ours = SingleSpikeLeaky(theirs.beta.detach().clone(), learn_beta=True, backend=backend)
    ours.to(device_of(backend))
    mem, mems = torch.zeros(2, 5), []
    x = current.clone().requires_grad_()
    for step in x.unbind(0):
        _, mem = theirs(step, mem)
        mems.append(mem)
    (torch.stack(mems) * weights).sum().backward()
    y = current.to(device_of(backend)).requires_grad_()
    (ours(y)[1] * weights.to(y.device)).sum().backward()
    assert relative_error(y.grad, x.grad) < 1e-5
    assert relative_error(ours.beta.grad, theirs.beta.grad) < 1e-5


@pytest.mark.parametrize("reset", RESETS)
def test_step_by_step_has_the_masked_gradient(reset):
    lif = SingleSpikeLeaky(0.8, learn_beta=True, learn_threshold=True, reset_mechanism=reset)
    current, g = torch.randn(20, 3, 6) * 0.5, torch.randn(20, 3, 6)
    x = current.clone().requires_grad_()
    (lif(x)[0] * g).sum().backward()
    whole = [lif.beta.grad.clone(), lif.threshold.grad.clone()]
    lif.zero_grad()
    y = current.clone().requires_grad_()
    state, loss = None, torch.zeros(())
    for step, weight in zip(y.unbind(0), g, strict=True):
        spk, state = lif.step(step, state)
        loss = loss + (spk * weight).sum()
    loss.backward()
    assert relative_error(y.grad, x.grad) < 1e-5
    assert relative_error(lif.beta.grad, whole[0]) < 1e-5
    assert relative_error(lif.threshold.grad, whole[1]) < 1e-5
