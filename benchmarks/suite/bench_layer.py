"""A linear layer and its neurons, forward and backward, against the matrix product alone."""

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_single_spike import SingleSpikeLeaky

from benchmarks.harness.networks import leaky_loop
from benchmarks.harness.peers import first_spikes
from benchmarks.harness.race import Contestant

SHAPES = [
    pytest.param(100, 128, 784, 1000, id="T100-B128-784-1000"),
    *(
        pytest.param(t, 32, n, n, id=f"T{t}-B32-{n}-{n}", marks=pytest.mark.full)
        for t in (32, 256)
        for n in (100, 1000)
    ),
    pytest.param(1024, 32, 100, 100, id="T1024-B32-100-100", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("num_steps", "batch", "inputs", "neurons"), SHAPES)
def bench_layer(
    num_steps: int, batch: int, inputs: int, neurons: int, compare, device: str
) -> None:
    torch.manual_seed(0)
    fc = nn.Linear(inputs, neurons).to(device)
    x = torch.randn(num_steps, batch, inputs, device=device).requires_grad_()
    grad = torch.randn(num_steps, batch, neurons, device=device)
    lif, leaky = SingleSpikeLeaky(0.9, init_hidden=True), snn.Leaky(0.9).to(device)

    def ours() -> Tensor:
        return lif(fc(x))

    def loop(outside: bool) -> Tensor:
        return leaky_loop(leaky, fc(x)) if outside else leaky_loop(leaky, x, before=fc)

    assert torch.equal(ours() > 0, first_spikes(loop(outside=True)))

    def both(forward) -> Contestant:
        return Contestant(lambda _: torch.autograd.grad(forward(), [x, *fc.parameters()], grad))

    compare(
        both(ours),
        {
            "matrix product alone": both(lambda: fc(x)),
            "snn.Leaky loop": both(lambda: loop(outside=False)),
            "snn.Leaky loop, linear layer outside": both(lambda: loop(outside=True)),
        },
        cell={"num_steps": num_steps, "batch": batch, "inputs": inputs, "neurons": neurons},
    )
