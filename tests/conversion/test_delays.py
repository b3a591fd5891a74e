"""snnTorch's SynapticDelay in models that are converted."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_single_spike import ConversionError, SpikeTimes, convert, revert

from tests.support import snntorch_delay

SynapticDelay: Any = getattr(snn, "SynapticDelay", snntorch_delay.SynapticDelay)
T, B = 14, 3


class Loop(nn.Module):
    """A delay of currents and a delay of spikes, in the author's loop over time."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.delay1 = SynapticDelay(5, delay=torch.arange(8) % 4, channels=8, **options)
        self.lif1 = snn.Leaky(0.9, threshold=0.5)
        self.delay2 = SynapticDelay(5, delay=torch.arange(8) % 5 + 0.0, channels=8, **options)
        self.fc2 = nn.Linear(8, 4)
        self.lif2 = snn.Leaky(0.9, threshold=0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        self.delay1.reset_delay()
        self.delay2.reset_delay()
        spikes, membranes = [], []
        for step in range(x.shape[0]):
            spk, mem1 = self.lif1(self.delay1(self.fc1(x[step])), mem1)
            spk, mem2 = self.lif2(self.fc2(self.delay2(spk)), mem2)
            spikes.append(spk)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def sequential(fc1: nn.Module, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        fc1,
        snn.Leaky(0.9, threshold=0.5, init_hidden=True),
        SynapticDelay(5, channels=8, **options),
        nn.Linear(8, 4),
        snn.Leaky(0.9, threshold=0.2, init_hidden=True, output=True),
    )


def by_steps(net: nn.Sequential, x: Tensor) -> Tensor:
    """The first spikes of the last neurons, in a loop whose hidden neurons spike once."""
    delay: Any = net[2]
    delay.reset_delay()
    silent = torch.ones(B, 8)
    first, second = snn.Leaky(0.9, threshold=0.5), snn.Leaky(0.9, threshold=0.2)
    mem1, mem2 = first.init_leaky(), second.init_leaky()
    out = []
    for step in x:
        spk, mem1 = first(net[0](step), mem1)
        spk, silent = spk * silent, silent - (spk * silent).detach()
        spk, mem2 = second(net[3](delay(spk)), mem2)
        out.append(spk)
    dense = torch.stack(out)
    spiked_before = dense.detach().cumsum(0) > dense.detach()
    return dense * ~spiked_before


def weighted(seed: int = 0) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(6, 8), torch.rand(T, B, 6)


@pytest.mark.parametrize("options", [{}, {"learn_delay": True}, {"kernel": "gaussian"}])
def test_an_authors_loop_with_delays_is_compared_and_converted(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    net, x = Loop(**options), torch.rand(T, B, 6) * 2
    net(x)  # its buffers hold the steps of an earlier call
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a model that is not compared warns
        spikes, _ = convert(net, check=True)(x)
    assert spikes.sum() > 0


@pytest.mark.parametrize("spike_format", ["dense", "times"])
@pytest.mark.parametrize("delay", [2, torch.arange(8) % 4, 1.4])
def test_delays_between_a_neuron_and_a_linear_layer(spike_format: str, delay: Any) -> None:
    fc1, x = weighted()
    net = sequential(fc1, delay=delay)
    expected = by_steps(net, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spikes, _ = convert(net, spike_format=spike_format)(x)
    assert isinstance(spikes, SpikeTimes) == (spike_format == "times")
    dense = spikes.to_dense() if isinstance(spikes, SpikeTimes) else spikes
    assert expected.sum() > 0
    assert torch.equal(dense, expected)


def test_learned_delays_have_the_gradient_of_the_loop() -> None:
    fc1, x = weighted(1)
    net = sequential(fc1, delay=torch.rand(8) * 4, learn_delay=True)
    fast = convert(net)
    fast(x)[0].sum().backward()
    by_steps(net, x).sum().backward()
    assert fast[2].delay.grad.abs().sum() > 0
    torch.testing.assert_close(fast[2].delay.grad, net[2].delay.grad)


def test_conversion_goes_back_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SynapticDelay.__module__
    monkeypatch.setitem(sys.modules, module, sys.modules.get(module, snntorch_delay))
    fc1, x = weighted()
    net = sequential(fc1, delay=2)
    fast = convert(net)
    assert fast.state_dict().keys() == net.state_dict().keys()
    spikes = fast(x)[0]
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(copied(x)[0], spikes)
    back = revert(fast)
    assert type(back[2]) is SynapticDelay
    assert back[2].step_mode
    assert torch.equal(by_steps(back, x), spikes)


def test_what_cannot_be_converted_says_so() -> None:
    fc1, x = weighted()
    with pytest.raises(ConversionError, match=r"step_mode=False.*make it with step_mode=True"):
        convert(sequential(fc1, delay=2, step_mode=False))
    with pytest.raises(RuntimeError, match="called outside of the model"):
        convert(sequential(fc1, delay=2))[2](x[0])
