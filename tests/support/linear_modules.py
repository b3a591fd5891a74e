"""A linear layer and its neuron as two modules, as one module, and from dense tensors."""

import torch
from torch import nn

from snn_single_spike import SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes


def net_of(path, device="cpu", backend="auto", **options):
    """Two modules that compute the same."""
    torch.manual_seed(3)
    dense = nn.Sequential(
        nn.Linear(12, 9), SingleSpikeLeaky(0.8, backend=backend, init_hidden=True, **options)
    )
    dense = dense.double().to(device)
    dense[0].weight.data.mul_(4)
    if path == "dense":
        return dense
    if path == "neuron":
        dense[1].spike_format = "times"
        return dense
    module = SingleSpikeLinear(12, 9, 0.8, backend=backend, **options).double().to(device)
    module.load_state_dict({name[2:]: value for name, value in dense.state_dict().items()})
    return module


LEARNS = {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True}


def gradients(net):
    named = {name.rpartition(".")[2]: p.grad for name, p in net.named_parameters()}
    assert set(named) >= {"weight", "bias"}
    return [named[name] for name in sorted(named)]


def inputs(device="cpu", num_steps=17, batch=4):
    make = torch.Generator().manual_seed(5)
    times = torch.randint(-1, num_steps, (batch, 12), generator=make)
    return SpikeTimes(times.to(device), num_steps, dtype=torch.float64)


def net_parameters(net):
    return {name.rpartition(".")[2]: p for name, p in net.named_parameters()}
