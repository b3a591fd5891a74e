"""Linear layers from spike times under torch.compile."""

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from snn_single_spike import LeakyReadout
from snn_single_spike.functional import single_spike_linear

from tests.support.linear_modules import inputs, net_of
from tests.support.oracle import relative_error


@pytest.mark.parametrize("path", ["module", "neuron"])
def test_compiled(path):
    """Whole or in pieces, with the same spikes and gradients."""
    torch._dynamo.reset()
    net = nn.Sequential(net_of(path), nn.Linear(9, 2).double(), LeakyReadout(0.9))
    compiled = torch.compile(net, backend="aot_eager")
    results = []
    for call, x in ((net, inputs()), (compiled, inputs()), (compiled, inputs().to_dense())):
        net.zero_grad()
        out = call(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    assert results[0][1].any()
    for result in results[1:]:
        for mine, right in zip(result, results[0], strict=True):
            assert relative_error(mine, right) < 1e-10


def test_what_a_compiler_returns():
    torch._dynamo.reset()
    module, spikes = net_of("module"), inputs()
    made = torch.compile(module, backend="aot_eager")(spikes)
    assert type(made) is Tensor
    assert torch.equal(made, module(spikes).to_dense())
    weight = module.weight.detach()

    @torch.compile(backend="aot_eager")
    def run(spikes):
        return single_spike_linear(spikes, weight, None, 0.9, gradient="spike_time")

    made, right = run(spikes), single_spike_linear(spikes, weight, None, 0.9, gradient="spike_time")
    assert torch.equal(made.times, right.times)
    assert torch.allclose(made.interpolated_times, right.interpolated_times)
