"""Expected results: the sequential reference, and snnTorch itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import snntorch as snn
import torch
from torch import Tensor

from snn_single_spike.functional import single_spike_leaky
from snn_single_spike.ops import reference

from tests.support import sequential


class Run(NamedTuple):
    """Outputs and gradients. A gradient that is not requested is None."""

    spikes: Tensor
    mem: Tensor
    times: Tensor
    current: Tensor | None
    beta: Tensor | None
    threshold: Tensor | None
    factor: Tensor | None
    mem_0: Tensor | None


def slope_of(surrogate: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Derivative of a snnTorch surrogate, by autograd in float64."""

    def slope(u: np.ndarray) -> np.ndarray:
        x = torch.as_tensor(u, dtype=torch.float64).requires_grad_()
        return torch.autograd.grad(surrogate(x).sum(), x)[0].numpy()

    return slope


def reference_run(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    factor: Tensor,
    mem_0: Tensor,
    surrogate: Callable[[Tensor], Tensor],
    rule: str,
    reset: str,
    g: Tensor,
    h: Tensor,
    grad_times: Tensor,
) -> Run:
    """The reference on (T, B, N) tensors, parameter gradients summed to their shapes."""
    shape = current.shape

    def lanes(tensor: Tensor) -> np.ndarray:
        return tensor.detach().double().cpu().expand(shape[1:]).reshape(-1).numpy()

    def rows(tensor: Tensor) -> np.ndarray:
        return tensor.detach().double().cpu().reshape(shape[0], -1).numpy()

    neuron = (rows(current), lanes(beta), lanes(threshold), lanes(factor), lanes(mem_0))
    out = reference.forward(*neuron, reset)
    grads = reference.backward(
        *neuron, out, slope_of(surrogate), rows(g), rows(h), lanes(grad_times), rule, reset
    )
    times = torch.from_numpy(out.interpolated_times if rule == "spike_time" else out.times)
    times = torch.where(times == shape[0], -1, times).view(shape[1:])

    def summed(gradient: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(gradient).view(shape[1:]).sum_to_size(like.shape)

    return Run(
        torch.from_numpy(out.spikes).view(shape),
        torch.from_numpy(out.mem).view(shape),
        times,
        torch.from_numpy(grads.current).view(shape),
        summed(grads.beta, beta),
        summed(grads.theta, threshold),
        summed(grads.factor, factor),
        torch.from_numpy(grads.mem_0).view(shape[1:]),
    )


def operator_run(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    factor: Tensor,
    mem_0: Tensor,
    surrogate: Callable[[Tensor], Tensor],
    rule: str,
    reset: str,
    g: Tensor,
    h: Tensor,
    grad_times: Tensor,
    backend: str,
    recompute: bool = False,
) -> Run:
    """The operator under test on the same arguments."""
    inputs = [
        x.detach().clone().requires_grad_() for x in (current, beta, threshold, factor, mem_0)
    ]
    spikes, mem, times = single_spike_leaky(
        inputs[0],
        inputs[1],
        inputs[2],
        graded_spikes_factor=inputs[3],
        mem=inputs[4],
        spike_grad=surrogate,
        gradient=rule,
        reset_mechanism=reset,
        backend=backend,
        recompute=recompute,
    )
    loss = (spikes * g).sum() + (mem * h).sum()
    if rule == "spike_time":
        loss = loss + (times * grad_times).sum()
    grads = torch.autograd.grad(loss, inputs)
    return Run(spikes.detach(), mem.detach(), times.detach(), *grads)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value, in float64; 0 for two empty tensors."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp(min=1e-6)  # below it lie sums of opposite numbers
    return ((actual - expected).abs().max() / scale).item()


def assert_runs_close(actual: Run, expected: Run, tolerance: float) -> None:
    """Check that spikes are equal and everything else is close."""
    assert torch.equal(actual.spikes.double().cpu() != 0, expected.spikes.double().cpu() != 0)
    for name, mine, right in zip(Run._fields, actual, expected, strict=True):
        if right is not None:
            error = relative_error(mine, right)
            assert error <= tolerance, f"{name} differs by {error:.1e} relative"


def snntorch_first_spikes(current: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """First spikes and full membrane of snn.Leaky in its loop over time."""
    neuron = snn.Leaky(**options)
    mem = torch.zeros_like(current[0])
    spikes, mems = [], []
    for step in current.unbind(0):
        spk, mem = neuron(step, mem)
        spikes.append(spk)
        mems.append(mem)
    fired = torch.stack(spikes) > 0
    return fired & (fired.cumsum(0) == 1), torch.stack(mems)


def rounding_decides_a_peak(current: Tensor, beta: Tensor, threshold: Tensor | float) -> bool:
    """
    Whether the membrane of a silent neuron is at rest at its peak.

    Rounding then decides which step is the peak, and with it the gradient of ``spike_time``.

    :param current: float64 (T, B, ...)
    """
    mem, mems = torch.zeros_like(current[0]), []
    for x in current.detach():
        mem = sequential.clip(beta) * mem + x
        mems.append(mem)
    if len(mems) == 1:
        return False
    highest, second = torch.stack(mems).topk(2, dim=0).values
    # A membrane that is 0 at every step has its peak at the first one.
    silent = (highest <= threshold) & torch.stack(mems).any(0)
    return bool((silent & (highest - second <= 1e-12 * highest.abs())).any())
