"""Classes with a loop over time inside ``forward``, and the author's loop as their reference."""

from __future__ import annotations

import copy
import dataclasses
import linecache
from typing import Any

import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from tests.support.single_spike_loop import hold_to_one_spike

T, B = 7, 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_steps = T
        self.fc1, self.lif1 = nn.Linear(6, 12), snn.Leaky(beta=0.9, learn_beta=True)
        self.fc2, self.lif2 = nn.Linear(12, 4), snn.Leaky(beta=0.8, learn_threshold=True)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)


def leaves(out):
    if isinstance(out, torch.Tensor):
        return [out]
    if dataclasses.is_dataclass(out):
        out = vars(out)
    if not isinstance(out, (list, tuple, dict)):
        return [torch.tensor(out)]
    return [x for value in (out.values() if isinstance(out, dict) else out) for x in leaves(value)]


def author(net, *inputs):
    net = copy.deepcopy(net)
    for neuron in net.modules():
        if isinstance(neuron, SpikingNeuron):
            hold_to_one_spike(neuron)
    return net, leaves(net(*inputs))


def backward(outs):
    sum(
        (x * torch.arange(1, x.numel() + 1).view(x.shape).cos()).sum()
        for x in outs
        if x.requires_grad
    ).backward()


def body(
    *lines,
    before="mem, out = self.lif1.init_leaky(), []",
    loop="for t in range(x.shape[0]):",
    after=(),
):
    """A class with a loop of these lines."""
    text = ["class Made(Net):", " def forward(self, x):", f"  {before}", f"  {loop}"]
    text += [*(f"   {line}" for line in lines), *after, "  return torch.stack(out)", ""]
    source = "\n".join(text)
    name = f"<made {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space = {"Net": Net, "torch": torch, "__name__": "made"}
    exec(compile(source, name, "exec"), space)
    return space["Made"]


def assert_as_author(net: nn.Module, fast: Any, *inputs: torch.Tensor) -> None:
    """Outputs, gradients and buffers of a converted model are those of the author's loop."""
    original, expected = author(net, *inputs)
    outs = leaves(fast(*inputs))
    assert any(x.any() for x in expected)
    for mine, right in zip(outs, expected, strict=True):
        assert mine.shape == right.shape
        assert torch.allclose(mine, right, atol=1e-5)
    if any(x.requires_grad for x in expected):
        backward(outs)
        backward(expected)
        right_gradients = dict(original.named_parameters())
        found = [p.grad.abs().max().item() for p in original.parameters() if p.grad is not None]
        tolerance = 1e-4 + 1e-6 * max(found)  # BatchNorm leaves noise for the biases before it
        for key, parameter in fast.named_parameters():
            right = right_gradients[key].grad
            assert (parameter.grad is None) == (right is None), key
            if right is not None:
                assert torch.allclose(parameter.grad, right, rtol=1e-3, atol=tolerance), key
    state = original.state_dict()
    for key, value in fast.state_dict().items():
        assert torch.allclose(value, state[key], atol=1e-5), key
