"""784-1000-10 from spike times: against dense tensors and the loop, and as T grows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_single_spike import SpikeDelay, SpikeTimes
from snn_single_spike.ops.validation import GRADIENT_RULES

from benchmarks.harness.networks import (
    CLASSES,
    INPUTS,
    LoopNet,
    SingleSpikeNet,
    fashion_codes,
    same_weights,
)
from benchmarks.harness.race import Contestant

BATCH = 128
LOOP = "snn.Leaky loop"
RULES = ("masked", "straight_through", "spike_time")
STEP_CELLS = [
    pytest.param(100, "masked", id="T100-masked"),
    pytest.param(100, "spike_time", id="T100-spike_time"),
    *(
        pytest.param(num_steps, rule, id=f"T{num_steps}-{rule}", marks=pytest.mark.full)
        for num_steps in (100, 300, 1000)
        for rule in RULES
        if (num_steps, rule) not in ((100, "masked"), (100, "spike_time"))
    ),
]


def forget_order(spikes: SpikeTimes) -> SpikeTimes:
    """A copy of the spikes without cached events, because every training batch has new spikes."""
    return spikes.samples(slice(None))


def check(net: nn.Module, dense: nn.Module, spikes: SpikeTimes) -> None:
    """Check that spike times and scores are equal, up to rounding."""
    with torch.no_grad():
        hidden = net.lif1(net.fc1(spikes))
        theirs = SpikeTimes.from_dense(dense.lif1(dense.fc1(spikes.to_dense())))
        assert (hidden.times != theirs.times).float().mean() < 1e-4
        assert (hidden.times >= 0).any()
        scores, expected = net(spikes), dense(spikes.to_dense())
        assert (scores - expected).norm() < 1e-3 * expected.norm()


def training(model: nn.Module, x: SpikeTimes | Tensor) -> Contestant:
    """Sort, forward, loss, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)  # the work stays the same
    targets = torch.arange(BATCH, device=x.device) % CLASSES

    def run(_: object) -> None:
        optimizer.zero_grad()
        given = forget_order(x) if isinstance(x, SpikeTimes) else x
        F.cross_entropy(model(given), targets).backward()
        optimizer.step()

    return Contestant(run)


def inference(model: nn.Module, x: SpikeTimes) -> Contestant:
    def run(_: object) -> None:
        with torch.no_grad():
            model(forget_order(x))

    return Contestant(run)


@pytest.mark.parametrize(("num_steps", "rule"), STEP_CELLS)
def bench_step_from_times(
    num_steps: int, rule: str, compare, device: str, data: Path | None
) -> None:
    spikes = fashion_codes(num_steps, BATCH, data, device)
    net, dense, loop = (
        same_weights(model).to(device)
        for model in (SingleSpikeNet("times", rule), SingleSpikeNet("dense", rule), LoopNet())
    )
    check(net, dense, spikes)
    x = spikes.to_dense()
    compare(
        training(net, spikes),
        {"dense tensors": training(dense, x), LOOP: training(loop, x)},
        cell={"num_steps": num_steps, "batch": BATCH, "rule": rule, "codes": str(bool(data))},
    )


@pytest.mark.parametrize("num_steps", [100, pytest.param(1000, marks=pytest.mark.full)])
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def bench_step_with_learned_delays(
    num_steps: int, rule: str, compare, device: str, data: Path | None
) -> None:
    """A delay of each input, learned, against the same network without delays."""
    spikes = fashion_codes(num_steps, BATCH, data, device)
    plain, net = (same_weights(SingleSpikeNet("times", rule)).to(device) for _ in range(2))
    late = SpikeDelay(INPUTS, 5 * torch.rand(INPUTS), learn_delay=True).to(device)
    compare(
        training(nn.Sequential(late, net), spikes),
        {"without delays": training(plain, spikes)},
        cell={"num_steps": num_steps, "batch": BATCH, "rule": rule},
    )


@pytest.mark.parametrize("what", ["inference", *GRADIENT_RULES])
def bench_growth_with_time(what: str, compare, device: str, data: Path | None) -> None:
    """The time of a training step at T=1000 divided by its time at T=100."""
    rule = "masked" if what == "inference" else what
    runs = []
    for num_steps in (1000, 100):
        net = same_weights(SingleSpikeNet("times", rule)).to(device)
        make = inference if what == "inference" else training
        runs.append(make(net, fashion_codes(num_steps, BATCH, data, device)))
    compare(runs[0], {"itself at T=100": runs[1]}, cell={"what": what})
