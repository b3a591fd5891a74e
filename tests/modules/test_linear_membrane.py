"""The membrane of a neuron behind a linear layer from spike times."""

import pytest
import torch

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike.ops.validation import GRADIENT_RULES, RESETS

from tests.support.devices import device_of
from tests.support.linear_modules import LEARNS, gradients, inputs, net_of
from tests.support.oracle import relative_error


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("reset", RESETS)
def test_a_loss_on_the_membrane(reset, rule, linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    h = torch.randn(17, 4, 9, dtype=torch.float64, device=device)
    for path in ("neuron", "dense"):
        net = net_of(
            path,
            device,
            linear_backend,
            gradient=rule,
            reset_mechanism=reset,
            output=True,
            **LEARNS,
        )
        out, mem = net(spikes if path == "neuron" else spikes.to_dense())
        assert mem.shape == (17, 4, 9)
        assert mem.requires_grad
        ((mem * h).sum() + (out * h).sum()).backward()
        results.append([mem + 0, *gradients(net)])
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


def test_an_initial_membrane_takes_dense_tensors(linear_backend):
    device = device_of(linear_backend)
    lin, neuron = net_of("neuron", device, linear_backend)
    neuron.init_hidden = False
    start = torch.rand(4, 9, dtype=torch.float64, device=device)
    spikes, mem = neuron(lin(inputs(device)), start)
    dense = SingleSpikeLeaky(0.8, backend=linear_backend).double().to(device)
    right, right_mem = dense(lin(inputs(device).to_dense()), start)
    assert torch.equal(spikes.to_dense(), right)
    assert torch.equal(mem, right_mem)
    with pytest.raises(TypeError, match="mem must be a torch.Tensor or None, not float"):
        neuron(lin(inputs(device)), 0.0)
    again, _ = neuron(lin(inputs(device)), torch.zeros(0, device=device))  # of reset_mem()
    assert torch.equal(again.times, neuron(lin(inputs(device)))[0].times)


def test_the_membrane_is_made_once_and_when_it_is_used(monkeypatch, linear_backend):
    import snn_single_spike.modules.leaky as module

    calls = []
    real = module.run_single_spike
    monkeypatch.setattr(
        module, "run_single_spike", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    device = device_of(linear_backend)
    net = net_of("neuron", device, linear_backend, output=True)
    _, mem = net(inputs(device))
    assert mem.shape == (17, 4, 9)
    assert calls == []
    mem.sum()
    mem.mean()
    assert calls == [1]


def test_a_membrane_is_that_of_the_call():
    lin, neuron = net_of("neuron", output=True)
    with torch.no_grad():
        _, quiet = neuron(lin(inputs()))
        _, mem = neuron(lin(inputs()))
        right = mem.to_dense().clone()
    assert not quiet.requires_grad
    assert torch.equal(quiet.to_dense(), right)
    assert not quiet.to_dense().requires_grad
    for changed in (lin.weight, lin.bias, neuron.beta, neuron.threshold):
        _, used = neuron(lin(inputs()))
        used.to_dense()
        _, late = neuron(lin(inputs()))
        with torch.no_grad():
            changed.mul_(0.5)
        assert used.to_dense().shape == (17, 4, 9)  # made before the change
        with pytest.raises(RuntimeError, match="has been changed in place since"):
            late.to_dense()
