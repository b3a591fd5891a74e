"""One neuron layer on a GPU: checks the kernels, then times them against snn.Leaky and a copy.

    python -m benchmarks.gpu.neuron_gpu [--out results.json]

For every cell of the grid, the script compares spikes, membrane and gradients with the CPU. Then
it times forward and backward with events, and flushes the cache before each run. It compares them
with the snnTorch loop over `unbind(0)`, and the bytes that must move with a measured copy. It
times the forward pass in replays of a CUDA graph, too. `--smoke` runs a tiny grid in Triton's
interpreter, as a test of the script; its times mean nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

SMOKE = "--smoke" in sys.argv
if SMOKE:
    os.environ["TRITON_INTERPRET"] = "1"

import snntorch as snn
import torch
import triton
from snntorch import surrogate
from torch import Tensor

from snn_single_spike.functional import first_spike_time, single_spike_leaky
from snn_single_spike.ops.validation import GRADIENT_RULES

from benchmarks.gpu.results import save, started

STEPS, NEURONS, BATCH = (32, 128, 512, 2048), (100, 1000, 10_000), 64
LOOP_STEPS = 512  # the loop is timed up to here; its time per step is used beyond
if SMOKE:
    STEPS, NEURONS, BATCH = (5,), (10,), 2
DEVICE = "cpu" if SMOKE else "cuda"
BETA = 0.9


def median_ms(function: Callable[[], object]) -> float:
    if SMOKE:
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    return triton.testing.do_bench(function, warmup=20, rep=100, return_mode="median")


def replay_ms(function: Callable[[], object]) -> float:
    """Milliseconds of a run, from twenty runs in a CUDA graph, without launch overhead."""
    if SMOKE:
        return median_ms(function)
    return triton.testing.do_bench_cudagraph(function, rep=20, return_mode="median")


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy, counting bytes read and written."""
    source = torch.randn(1 << (10 if SMOKE else 29), device=DEVICE)
    target = torch.empty_like(source)
    return 2e-6 * source.nbytes / median_ms(lambda: target.copy_(source))


def error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.double().cpu(), expected.double()
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def check(num_steps: int, neurons: int) -> dict[str, float]:
    """Largest relative error against the CPU over the rules; spikes must be equal."""
    make = torch.Generator().manual_seed(num_steps * neurons)
    batch = max(1, min(BATCH, 2_000_000 // (num_steps * neurons)))
    current = torch.randn(num_steps, batch, neurons, generator=make) * 0.3
    g, h = (torch.randn(current.shape, generator=make) for _ in range(2))
    beta = torch.rand(neurons, generator=make)
    worst = {"mem": 0.0, "current": 0.0, "beta": 0.0}
    for rule in GRADIENT_RULES:
        for recompute in (False, True):
            runs = []
            for device, backend in (("cpu", "torch"), (DEVICE, "triton")):
                x = current.to(device).requires_grad_()
                b = beta.to(device).requires_grad_()
                spikes, mem, times = single_spike_leaky(
                    x,
                    b,
                    spike_grad=surrogate.fast_sigmoid(10),
                    gradient=rule,
                    reset_mechanism="subtract",
                    recompute=recompute,
                    backend=backend,
                )
                loss = (spikes * g.to(device)).sum() + (mem * h.to(device)).sum()
                grads = torch.autograd.grad(loss, (x, b))
                runs.append((spikes.detach(), times.detach(), mem.detach(), *grads))
            (spikes, _, mem, *grads), (mine, _, my_mem, *my_grads) = runs
            assert torch.equal(mine.cpu(), spikes), (rule, num_steps, neurons)
            found = (error(my_mem, mem), *(error(*p) for p in zip(my_grads, grads, strict=True)))
            worst = {k: max(v, e) for (k, v), e in zip(worst.items(), found, strict=True)}
    assert max(worst.values()) < 1e-4, worst
    return worst


def loop(current: Tensor, grad: Tensor) -> None:
    neuron = snn.Leaky(beta=BETA).to(current.device)
    mem, spikes = torch.zeros_like(current[0]), []
    for x in current.unbind(0):
        spk, mem = neuron(x, mem)
        spikes.append(spk)
    out = torch.stack(spikes)
    if grad is not None:
        out.backward(grad)


def cell(num_steps: int, neurons: int, copy: float) -> dict[str, float]:
    shape = (num_steps, BATCH, neurons)
    current = (torch.randn(shape, device=DEVICE) * 0.3).requires_grad_()
    grad = torch.randn(shape, device=DEVICE)
    beta = torch.full((1,), BETA, device=DEVICE)
    row = current.nbytes  # one (T, M) tensor

    def forward() -> Tensor:
        return single_spike_leaky(current, beta, backend="triton").spikes

    def both() -> None:
        current.grad = None
        forward().backward(grad)

    spikes = forward()

    def backward() -> None:
        torch.autograd.grad(spikes, current, grad, retain_graph=True)

    def times() -> None:
        with torch.no_grad():
            first_spike_time(current, beta, backend="triton")

    few = min(num_steps, LOOP_STEPS)
    short, short_grad = current.detach()[:few].requires_grad_(), grad[:few]
    result = {
        "forward_ms": median_ms(forward),
        "backward_ms": median_ms(backward),
        "both_ms": median_ms(both),
        "times_ms": median_ms(times),
        "loop_ms": median_ms(lambda: loop(short, short_grad)) * num_steps / few,
        "loop_timed_steps": few,
    }
    with torch.no_grad():
        result["forward_replay_ms"] = replay_ms(
            lambda: single_spike_leaky(current, beta, backend="triton")
        )
    # forward reads the current, writes spikes and membrane; backward reads membrane and
    # gradient, writes the gradient
    result["forward_of_copy"] = 3e-6 * row / result["forward_replay_ms"] / copy
    result["backward_of_copy"] = 3e-6 * row / result["backward_ms"] / copy
    result["speedup"] = result["loop_ms"] / result["both_ms"]
    return result


def main() -> None:
    out, machine = started(str(__doc__), "runs a tiny grid")
    copy = copy_bandwidth()
    print(f"copy {copy:.0f} GB/s")
    checks = {f"{t}x{n}": check(t, n) for t in STEPS for n in NEURONS}
    print("spikes equal those of the CPU; largest relative errors:")
    print({k: f"{max(c[k] for c in checks.values()):.1e}" for k in ("mem", "current", "beta")})
    print(f"\n{'T':>5s}{'M':>8s}{'fwd ms':>9s}{'graph':>8s}{'of copy':>9s}{'bwd ms':>9s}", end="")
    print(f"{'of copy':>9s}{'times':>8s}{'loop ms':>10s}{'speed-up':>10s}")
    cells: dict[str, dict[str, float]] = {}
    for num_steps in STEPS:
        for neurons in NEURONS:
            cells[f"{num_steps}x{BATCH * neurons}"] = r = cell(num_steps, neurons, copy)
            print(
                f"{num_steps:5d}{BATCH * neurons:8d}{r['forward_ms']:9.4f}"
                f"{r['forward_replay_ms']:8.4f}{r['forward_of_copy']:9.0%}{r['backward_ms']:9.4f}"
                f"{r['backward_of_copy']:9.0%}{r['times_ms']:8.4f}{r['loop_ms']:10.2f}"
                f"{r['speedup']:9.0f}x",
                flush=True,
            )
            figures = {"machine": machine, "copy_gb_s": copy, "errors": checks, "cells": cells}
            save(out, figures)


if __name__ == "__main__":
    main()
