"""Whether CUDA graphs can record converted models, as far as a CPU shows it."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.utils import get_first_incompatible_cudagraph_node

from snn_single_spike import convert
from snn_single_spike.conversion.folded import modules
from snn_single_spike.ops import validation

from tests.support.devices import runnable
from tests.support.waiting import NoWait


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.hidden = nn.Linear(6, 8), snn.Leaky(0.9, learn_beta=True)
        self.out, self.last = nn.Linear(8, 3), snn.Leaky(0.8, learn_threshold=True)

    def forward(self, x):
        hidden, last, record = self.hidden.init_leaky(), self.last.init_leaky(), []
        for t in range(x.shape[0]):
            spikes, hidden = self.hidden(self.fc(x[t]), hidden)
            spikes, last = self.last(self.out(spikes), last)
            record.append(last)
        return torch.stack(record)


def layers():
    return nn.Sequential(
        nn.Linear(6, 8),
        snn.Synaptic(0.9, 0.8, init_hidden=True),
        nn.Linear(8, 3),
        snn.Leaky(0.8, learn_beta=True, init_hidden=True, output=True),
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Values are not read where they would be on a GPU."""
    monkeypatch.setattr(validation, "check_not_nan", lambda *arguments: None)
    monkeypatch.setattr(modules, "is_recorded", lambda tensor: True)


def train(model, optimizer, x):
    out = model(x)
    mem = out[-1] if isinstance(out, tuple) else out
    optimizer.zero_grad(set_to_none=False)
    mem.square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize("make", [layers, Loop])
def test_a_training_step_does_not_wait_for_the_gpu(make, backend, as_on_a_gpu):
    model = convert(make(), spike_format="dense", backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.rand(5, 2, 6)
    train(model, optimizer, x)  # the first call is compared with the author's model
    with NoWait():
        train(model, optimizer, x)


def test_spike_times_wait_for_the_gpu(as_on_a_gpu):
    """The number of spikes is a size, which no graph can change."""
    model = convert(Loop(), spike_format="times", backend="torch")
    x = torch.rand(5, 2, 6)
    model(x).sum().backward()
    with NoWait(), pytest.raises(RuntimeError, match="would wait for the GPU"):
        model(x).sum().backward()


def test_compiled_graphs_fit_cuda_graphs():
    """What mode="reduce-overhead" requires: no operator that a graph cannot hold, no new sizes."""
    graphs = []

    def check(graph, inputs):
        graphs.append(graph)
        assert get_first_incompatible_cudagraph_node(graph) is None
        return graph.forward

    model = convert(layers(), spike_format="dense", backend="torch")
    backend = aot_autograd(fw_compiler=check, bw_compiler=check)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.rand(5, 2, 6)
    compiled(x)[-1].square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x)[-1].square().sum().backward()
    assert len(graphs) == 2  # forward and backward
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
