"""Losses on spike times, forward and backward, against those of snntorch.functional.

Every neuron fires once at a random step, so both libraries compute the same value. The gradients
differ (snnTorch's is -1 at the spike), so the benchmark checks each gradient against its formula.
snnTorch's backward pass loops over batch and classes in Python.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import snntorch.functional as SF
import torch
from torch import Tensor

from snn_single_spike import losses

from benchmarks.harness.race import Contestant

Loss = Callable[[Tensor, Tensor], Tensor]

TARGETS = {"on_target": 5, "off_target": 20}
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "ce_temporal_loss": (losses.ce_temporal_loss(time_scale=1, on_target=0), SF.ce_temporal_loss()),
    "mse_temporal_loss": (losses.mse_temporal_loss(**TARGETS), SF.mse_temporal_loss(**TARGETS)),
}


def data(num_steps: int, batch: int, classes: int) -> tuple[Tensor, Tensor]:
    """Spikes, one for each neuron, and targets."""
    make = torch.Generator().manual_seed(0)
    # A right class at step 0 has reached its target, and no gradient.
    times = torch.randint(1, num_steps, (1, batch, classes), generator=make)
    spikes = torch.zeros(num_steps, batch, classes).scatter_(0, times, 1.0)
    return spikes.requires_grad_(), torch.randint(classes, (batch,), generator=make)


def run(loss_fn: Loss, spikes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    loss = loss_fn(spikes, targets)
    (grad,) = torch.autograd.grad(loss, spikes)
    return loss.detach(), grad


def check(ours: Loss, theirs: Loss, spikes: Tensor, targets: Tensor) -> None:
    """Check that values are equal, and that gradients follow from the same dL/dtau."""
    (loss, grad), (other, sign_grad) = (run(fn, spikes, targets) for fn in (ours, theirs))
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-6)
    slope = -sign_grad.sum(0)  # snnTorch: -dL/dtau at the spike, 0 elsewhere
    countdown = torch.arange(len(spikes), 0, -1.0)
    expected = -countdown[:, None, None] * slope
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("num_steps", "classes"),
    [(25, 10), pytest.param(100, 10, marks=pytest.mark.full), (100, 100)],
)
def bench_losses(name: str, num_steps: int, classes: int, compare) -> None:
    spikes, targets = data(num_steps, 128, classes)
    check(*LOSSES[name], spikes, targets)
    ours, theirs = (
        Contestant(lambda _, loss_fn=loss_fn: run(loss_fn, spikes, targets))
        for loss_fn in LOSSES[name]
    )
    cell = {"num_steps": num_steps, "batch": 128, "classes": classes}
    compare(ours, {"snntorch.functional": theirs}, cell=cell)
