"""Networks as users of snnTorch write them."""

from __future__ import annotations

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import surrogate
from torch import nn

from snn_single_spike.spikes.lazy import LazyTensor

SPIKE_GRAD = surrogate.fast_sigmoid(slope=25)


class Tutorial5(nn.Module):
    """Fully connected, without a loop in forward, as the guide describes."""

    def __init__(self):
        super().__init__()
        self.num_steps = 25  # an attribute of the user with this name
        self.fc1 = nn.Linear(20, 30)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(30, 10)
        self.lif2 = snn.Leaky(beta=0.95)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem2


class Tutorial5Loop(Tutorial5):
    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _step in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Tutorial6(nn.Module):
    """One step of a convolutional network, functional pooling and a reshape inside."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5)
        self.lif1 = snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD, init_hidden=True)
        self.conv2 = nn.Conv2d(4, 8, 5)
        self.lif2 = snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD, init_hidden=True)
        self.fc1 = nn.Linear(8 * 4 * 4, 10)
        self.lif3 = snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD, init_hidden=True, output=True)

    def forward(self, x):
        spk1 = self.lif1(F.max_pool2d(self.conv1(x), 2))
        spk2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2))
        return self.lif3(self.fc1(spk2.view(spk2.size(0), -1)))


def leaky(**options):
    return snn.Leaky(beta=0.5, spike_grad=SPIKE_GRAD, init_hidden=True, **options)


def readme():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5),
        nn.MaxPool2d(2),
        leaky(),
        nn.Conv2d(4, 8, 5),
        nn.MaxPool2d(2),
        leaky(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
        leaky(output=True),
    )


def tutorial7():
    return nn.Sequential(
        nn.Conv2d(2, 4, 5),
        nn.MaxPool2d(2),
        leaky(),
        nn.Conv2d(4, 6, 5),
        nn.MaxPool2d(2),
        leaky(),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 10),
        leaky(output=True),
    )


def population(outputs=50):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 40),
        leaky(),
        nn.Linear(40, outputs),
        leaky(output=True),
    )


class Residual(nn.Module):
    """Nested containers, normalization, a skip connection, a neuron that returns its membrane."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), leaky())
        self.block = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, padding=1), "lif": leaky()})
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)
        )
        self.out = snn.Leaky(beta=torch.rand(3), threshold=0.8, learn_beta=True)

    def forward(self, x):
        a = self.front(x)
        b = self.block["lif"](self.block["conv"](a) + a)
        spk, mem = self.out(self.head(a + b))
        return {"spikes": spk, "rest": [mem, b]}


def siblings():
    """The other neurons of snnTorch, with hidden states."""
    return nn.Sequential(
        nn.Linear(20, 30),
        snn.Synaptic(alpha=0.7, beta=0.6, init_hidden=True, learn_alpha=True, learn_beta=True),
        nn.Linear(30, 25),
        snn.Alpha(alpha=0.8, beta=0.5, threshold=0.5, init_hidden=True, learn_beta=True),
        nn.Linear(25, 20),
        snn.Lapicque(R=2.0, C=1.5, init_hidden=True, reset_mechanism="zero"),
        nn.Linear(20, 8),
        snn.RLeaky(0.8, V=torch.rand(8), all_to_all=False, init_hidden=True, output=True),
    )


class Outputs(nn.Module):
    """Neurons that return their states and receive them at the next step."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(20, 6)
        self.synaptic = snn.Synaptic(alpha=0.8, beta=0.7)
        self.alpha = snn.Alpha(alpha=0.8, beta=0.5)

    def forward(self, x):
        syn, mem = self.synaptic.reset_mem() if not self.synaptic.mem.numel() else (None, None)
        spk, syn, mem = self.synaptic(self.fc(x), syn, mem)
        return (*self.alpha(2 * mem)[:2], spk)


MODELS = {
    "tutorial 5": (Tutorial5, (20,)),
    "tutorial 6": (Tutorial6, (1, 28, 28)),
    "tutorial 7": (tutorial7, (2, 34, 34)),
    "population": (population, (8, 8)),
    "readme": (readme, (1, 28, 28)),
    "residual": (Residual, (1, 6, 6)),
    "siblings": (siblings, (20,)),
    "states": (Outputs, (20,)),
}


def awake(model):
    """Weights large enough that the last layer fires."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data *= 4
    return model


class StateGiven(nn.Module):
    """A membrane from outside, an output summed over the batch."""

    def __init__(self):
        super().__init__()
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x, mem=None, total=False):
        spk, mem = self.lif(x, mem)
        return spk.sum() if total else spk


def tensors(out):
    """The outputs of a model as a list of dense tensors."""
    if isinstance(out, (torch.Tensor, LazyTensor)):
        return [out.to_dense() if isinstance(out, LazyTensor) else out]
    values = out.values() if isinstance(out, dict) else out
    return [tensor for value in values for tensor in tensors(value)]


def loss_of(outs):
    torch.manual_seed(3)
    return sum((out * torch.randn_like(out) + out**2 / 7).sum() for out in outs)
