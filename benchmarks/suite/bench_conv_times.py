"""Convolutions from spike times: single layers and a network, against dense maps and the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn
from torch.nn import functional as F

from snn_single_spike import SingleSpikeConv2d, SingleSpikeLeaky, SpikeTimes, convert
from snn_single_spike.functional import spike_count

from benchmarks.harness.networks import fashion_codes, leaky_loop
from benchmarks.harness.peers import first_spikes, peers
from benchmarks.harness.race import Contestant

LOOP = "snn.Leaky loop, a convolution a step"
LAYERS = {
    "1x28x28-32": (100, 32, 1, 28, 32, 1.0),
    "1x28x28-12": (100, 32, 1, 28, 12, 1.0),
    "12x12x12-64": (100, 32, 12, 12, 64, 0.3),
    "32x12x12-64": (25, 32, 32, 12, 64, 0.3),
}
QUICK = {"1x28x28-12 forward", "32x12x12-64 spike_time"}


def _cells():
    for layer in LAYERS:
        for what in ("forward", "masked", "spike_time"):
            rare = [] if f"{layer} {what}" in QUICK else [pytest.mark.full]
            yield pytest.param(layer, what, id=f"{layer}-{what}", marks=rare)


def fresh(spikes: SpikeTimes) -> SpikeTimes:
    """A copy without cached events: every training batch has new spikes."""
    return spikes.samples(slice(None))


def codes(num_steps: int, batch: int, channels: int, side: int, share: float) -> SpikeTimes:
    """One spike for a share of the units, at a random step."""
    make = torch.Generator().manual_seed(0)
    times = torch.randint(num_steps, (batch, channels, side, side), generator=make)
    silent = torch.rand(times.shape, generator=make) >= share
    return SpikeTimes(times.masked_fill(silent, -1), num_steps)


@pytest.mark.parametrize(("layer", "what"), list(_cells()))
def bench_conv_from_times(layer: str, what: str, compare, device: str) -> None:
    num_steps, batch, channels, side, features, share = LAYERS[layer]
    rule = "masked" if what == "forward" else what
    torch.manual_seed(0)
    fused = SingleSpikeConv2d(channels, features, 5, 0.9, gradient=rule).to(device)
    fused.weight.data.mul_(2 if channels == 1 else 4)  # a part of the neurons fires
    conv = nn.Conv2d(channels, features, 5).to(device)
    conv.load_state_dict({name: fused.state_dict()[name] for name in ("weight", "bias")})
    form = "times" if rule == "spike_time" else "dense"  # for interpolated times
    lif = SingleSpikeLeaky(0.9, init_hidden=True, gradient=rule, spike_format=form).to(device)
    leaky = snn.Leaky(0.9).to(device)
    spikes = codes(num_steps, batch, channels, side, share).to(device)
    x = spikes.to_dense()

    def alone() -> Tensor:
        return conv(x.flatten(0, 1)).unflatten(0, (num_steps, batch))

    def ours() -> SpikeTimes:
        return fused(fresh(spikes))

    def dense() -> Tensor:
        return lif(alone())

    def loop() -> Tensor:
        return leaky_loop(leaky, x, before=conv)

    spikingjelly = next(peer for peer in peers() if peer.name == "SpikingJelly LIF")
    multi_step = None
    if spikingjelly.missing is None:
        multi_step = spikingjelly.make(torch.tensor([0.9], device=device), num_steps)

    def others() -> Tensor:
        assert multi_step is not None
        return multi_step(alone())

    with torch.no_grad():
        made, right = ours(), dense()
        right = right.to_dense()  # torch's, or that of spike times
        assert 0.05 < (made.times >= 0).float().mean() < 0.95
        assert (made.to_dense() != right).float().mean() < 1e-6
        assert ((right > 0) != first_spikes(loop())).float().mean() < 1e-5
        if multi_step:
            assert ((right > 0) != first_spikes(others())).float().mean() < 1e-5
    reads = torch.randn(features * (side - 4) ** 2, device=device)

    def contestant(forward) -> Contestant:
        def run(_: object) -> None:
            with torch.set_grad_enabled(what != "forward"):
                out = forward()
            if what == "forward":
                return
            moments = getattr(out, "interpolated_times", None)
            loss = spike_count(out) if moments is None else moments.flatten(1).sum(0)
            (loss @ reads).backward()

        return Contestant(run)

    compare(
        contestant(ours),
        {
            "convolution alone": contestant(alone),
            "convolution, SingleSpikeLeaky": contestant(dense),
            LOOP: contestant(loop),
            **({"convolution, SpikingJelly LIF": contestant(others)} if multi_step else {}),
        },
        cell={"layer": layer, "num_steps": num_steps, "batch": batch, "what": what},
    )


def network() -> nn.Sequential:
    """32C5-P2-64C5-P2-10 as written for snnTorch. The last neurons are read out."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.9, init_hidden=True, learn_beta=True),
        nn.Conv2d(32, 64, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.9, init_hidden=True, learn_beta=True),
        nn.Flatten(),
        nn.Linear(1024, 10),
        snn.Leaky(beta=0.95, init_hidden=True, output=True, threshold=1e9),
    )
    with torch.no_grad():
        net[3].weight.mul_(1.5)  # about a third of the neurons fires
    return net


STEPS = [
    pytest.param(25, "masked", id="T25-masked", marks=pytest.mark.full),
    pytest.param(25, "spike_time", id="T25-spike_time"),
    pytest.param(100, "masked", id="T100-masked", marks=pytest.mark.full),
    pytest.param(100, "spike_time", id="T100-spike_time", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("num_steps", "rule"), STEPS)
def bench_conv_network(num_steps: int, rule: str, compare, device: str, data: Path | None) -> None:
    """A training step of a network of convolutions with maxima of windows."""
    batch = 64
    if data is None:
        spikes = codes(num_steps, batch, 1, 28, 0.5).to(device)
    else:
        images = fashion_codes(num_steps, batch, data, device)
        spikes = SpikeTimes(images.times.view(batch, 1, 28, 28), num_steps)
    x = spikes.to_dense()
    targets = torch.arange(batch, device=device) % 10
    loop = network().to(device)
    times, dense = (
        convert(network(), spike_format=form, gradient=rule).to(device)
        for form in ("times", "dense")
    )

    def by_steps(given: Tensor) -> Tensor:
        utils.reset(loop)
        return torch.stack([loop(step)[1] for step in given.unbind(0)])

    def membrane(out: tuple[object, Tensor]) -> Tensor:
        return out[1] if isinstance(out[1], Tensor) else out[1].to_dense()

    def training(model: nn.Module, forward) -> Contestant:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)  # the work stays the same

        def run(_: object) -> None:
            optimizer.zero_grad()
            F.cross_entropy(forward().sum(0), targets).backward()
            optimizer.step()

        return Contestant(run)

    with torch.no_grad():
        one, two = membrane(times(spikes)), membrane(dense(x))
        assert (one - two).norm() < 1e-3 * two.norm()
    compare(
        training(times, lambda: membrane(times(fresh(spikes)))),
        {
            "dense maps, ours": training(dense, lambda: membrane(dense(x))),
            "snn.Leaky loop": training(loop, lambda: by_steps(x)),
        },
        # The dense form takes so much memory that ours is returned to the system in its turn.
        steady=True,
        cell={"num_steps": num_steps, "batch": batch, "rule": rule, "codes": str(bool(data))},
    )
