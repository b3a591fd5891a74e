"""One whole training step of 784-1000-10: forward, loss, backward, Adam."""

import pytest
import torch
from torch import nn

from benchmarks.harness.networks import CLASSES, OURS, check_first_spikes, latency_codes, networks
from benchmarks.harness.race import Contestant

SHAPES = [
    pytest.param(100, 128, id="T100-B128"),
    *(pytest.param(t, 128, id=f"T{t}-B128", marks=pytest.mark.full) for t in (25, 300)),
    *(pytest.param(t, 32, id=f"T{t}-B32", marks=pytest.mark.full) for t in (25, 100, 300, 1000)),
]


@pytest.mark.parametrize("form", OURS)
@pytest.mark.parametrize(("num_steps", "batch"), SHAPES)
def bench_training_step(num_steps: int, batch: int, form: str, compare, device: str) -> None:
    models = networks(device)
    x = latency_codes(num_steps, batch, device)
    targets = torch.arange(batch, device=device) % CLASSES
    check_first_spikes(models, x)

    def step(model: nn.Module) -> Contestant:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)  # the work stays the same

        def run(_: object) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), targets).backward()
            optimizer.step()

        return Contestant(run)

    loops = {name: step(model) for name, model in models.items() if name not in OURS.values()}
    compare(
        step(models[OURS[form]]), loops, cell={"num_steps": num_steps, "batch": batch, "form": form}
    )
