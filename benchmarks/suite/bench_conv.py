"""A convolution and its neurons, forward and backward, against the convolution alone."""

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_single_spike import SingleSpikeLeaky

from benchmarks.harness.networks import leaky_loop
from benchmarks.harness.peers import first_spikes
from benchmarks.harness.race import Contestant

SHAPES = [
    pytest.param(25, 16, 1, 12, 28, id="T25-B16-1x28x28-12"),
    pytest.param(50, 16, 12, 32, 14, id="T50-B16-12x14x14-32", marks=pytest.mark.full),
    pytest.param(100, 32, 1, 12, 28, id="T100-B32-1x28x28-12", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("num_steps", "batch", "channels", "features", "side"), SHAPES)
def bench_conv(
    num_steps: int, batch: int, channels: int, features: int, side: int, compare, device: str
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, features, 5, padding=2).to(device)
    x = torch.randn(num_steps, batch, channels, side, side, device=device).requires_grad_()
    grad = torch.randn(num_steps, batch, features, side, side, device=device)
    lif, leaky = SingleSpikeLeaky(0.9, init_hidden=True), snn.Leaky(0.9).to(device)

    def alone() -> Tensor:
        return conv(x.flatten(0, 1)).unflatten(0, (num_steps, batch))

    def ours() -> Tensor:
        return lif(alone())

    def loop() -> Tensor:
        return leaky_loop(leaky, x, before=conv)

    differ = (ours() > 0) != first_spikes(loop())
    assert differ.float().mean() < 1e-5  # a convolution rounds differently in a larger batch

    def both(forward) -> Contestant:
        return Contestant(lambda _: torch.autograd.grad(forward(), [x, *conv.parameters()], grad))

    compare(
        both(ours),
        {"convolution alone": both(alone), "snn.Leaky loop": both(loop)},
        cell={"num_steps": num_steps, "batch": batch, "features": features, "side": side},
    )
