"""Inference of 784-1000-10, and of its hidden layer's first spike times alone."""

import pytest
import torch
from torch import nn

from snn_single_spike.functional import first_spike_time

from benchmarks.harness.networks import (
    OURS,
    check_first_spikes,
    latency_codes,
    leaky_loop,
    networks,
)
from benchmarks.harness.race import Contestant

SHAPES = [
    pytest.param(100, 128, id="T100-B128"),
    *(pytest.param(t, 128, id=f"T{t}-B128", marks=pytest.mark.full) for t in (25, 300)),
    *(pytest.param(t, 1, id=f"T{t}-B1", marks=pytest.mark.full) for t in (25, 100, 1000)),
]


def no_grad(function) -> Contestant:
    def run(_: object) -> None:
        with torch.no_grad():
            function()

    return Contestant(run)


@pytest.mark.parametrize("form", OURS)
@pytest.mark.parametrize(("num_steps", "batch"), SHAPES)
def bench_inference(num_steps: int, batch: int, form: str, compare, device: str) -> None:
    models = networks(device)
    x = latency_codes(num_steps, batch, device)
    check_first_spikes(models, x)

    def infer(model: nn.Module) -> Contestant:
        return no_grad(lambda: model(x))

    loops = {name: infer(model) for name, model in models.items() if name not in OURS.values()}
    compare(
        infer(models[OURS[form]]),
        loops,
        cell={"num_steps": num_steps, "batch": batch, "form": form},
    )


@pytest.mark.parametrize(("num_steps", "batch"), SHAPES)
def bench_first_spike_time(num_steps: int, batch: int, compare, device: str) -> None:
    models = networks(device)
    with torch.no_grad():
        current = models[OURS["dense"]].fc1(latency_codes(num_steps, batch, device))
    lif = models["snn.Leaky loop"].lif1
    beta = lif.beta.detach()

    def loop() -> torch.Tensor:
        rec = leaky_loop(lif, current)
        return torch.where(rec.any(0), rec.argmax(0), -1)

    with torch.no_grad():
        assert torch.equal(first_spike_time(current, beta), loop())
    compare(
        no_grad(lambda: first_spike_time(current, beta)),
        {"snn.Leaky loop, argmax": no_grad(loop)},
        cell={"num_steps": num_steps, "batch": batch},
    )
