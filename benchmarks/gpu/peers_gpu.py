"""A layer of neurons on a GPU against every peer that runs there, and a copy of its memory.

    python -m benchmarks.gpu.peers_gpu [--out results.json]

Peers are those of `benchmarks/harness/peers.py`: the snnTorch loop, SpikingJelly (its Triton or
CUDA kernels, where it is installed), the papers' convolutions, and others. First spikes are
compared first. Then all take turns, forward and backward, and the table shows their time over
ours. The copy moves the bytes that a layer must move, forward and backward. `--smoke` runs a tiny
layer in Triton's interpreter.
"""

from __future__ import annotations


from benchmarks.gpu.neuron_gpu import DEVICE, SMOKE  # selects the interpreter

import torch
from torch import Tensor

from snn_single_spike import FusedLeaky, SingleSpikeLeaky

from benchmarks.gpu.results import save, started
from benchmarks.harness.peers import Layer, Peer, peers, same_first_spikes
from benchmarks.harness.race import Contestant, race

# steps, batch, neurons
SHAPES = ((5, 2, 8),) if SMOKE else ((100, 128, 1000), (32, 64, 4096), (1000, 64, 1000))
ROUNDS = 1 if SMOKE else 9
BETA = 0.9
# In words: forward reads the current, writes spikes and membrane; backward reads membrane and
# gradient, writes the gradient.
COPIES = 3  # of a tensor (T, B, N), each a read and a write


def contestant(layer: Layer, current: Tensor, grad: Tensor) -> Contestant:
    return Contestant(lambda _: torch.autograd.grad(layer(current), current, grad))


def ours(refractory: int | None = None) -> Layer:
    backend = "triton"
    if refractory is None:
        return SingleSpikeLeaky(BETA, init_hidden=True, backend=backend)
    return FusedLeaky(BETA, init_hidden=True, backend=backend)


def usable(peer: Peer, num_steps: int) -> str | None:
    """The reason why a peer is left out, or None."""
    if peer.missing:
        return peer.missing
    if "cuda" not in peer.devices:
        return "runs on a CPU only"
    if peer.compiled:
        return "compiles for minutes"
    return f"at most {peer.max_steps} steps" if num_steps > peer.max_steps else None


def cell(num_steps: int, batch: int, neurons: int) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds of ours, their time over ours, and the reasons of the peers left out."""
    draw = torch.Generator().manual_seed(0)
    shape = (num_steps, batch, neurons)
    current = (torch.randn(shape, generator=draw) * 0.3).to(DEVICE).requires_grad_()
    grad = torch.randn(shape, generator=draw).to(DEVICE)
    beta = torch.full((1,), BETA, device=DEVICE)
    single = ours()
    source = torch.empty(COPIES, *shape, device=DEVICE)
    target = torch.empty_like(source)
    found: dict[str, Contestant] = {
        "copy": Contestant(lambda _: target.copy_(source)),
        "FusedLeaky (every spike)": contestant(ours(0), current, grad),
    }
    left_out = {}
    for peer in peers():
        reason = usable(peer, num_steps)
        if reason is None:
            try:
                layer = peer.make(beta, num_steps)
                spikes = layer(current)
                if peer.first_spikes and not same_first_spikes(spikes.detach(), current, beta):
                    reason = "other first spikes"
                found[peer.name] = contestant(layer, current, grad)
            except Exception as error:  # a peer that fails on this GPU must not end the run
                reason = f"{type(error).__name__}: {str(error)[:200]}"
        if reason is not None:
            found.pop(peer.name, None)
            left_out[peer.name] = reason
    timed = race(contestant(single, current, grad), found, ROUNDS, DEVICE)
    figures = {"ours_ms": 1e3 * sorted(timed.ours)[len(timed.ours) // 2]}
    figures |= {name: ratio.median for name, ratio in timed.ratios.items()}
    return figures, left_out


def main() -> None:
    out, machine = started(str(__doc__), "runs a tiny layer")
    cells, left_out = {}, {}
    for shape in SHAPES:
        label = "x".join(map(str, shape))
        figures, left_out = cell(*shape)
        cells[label] = figures
        print(f"T x B x N = {label}: {figures['ours_ms']:.3f} ms", flush=True)
        for peer, ratio in figures.items():
            if peer != "ours_ms":
                print(f"  {peer:40s}{ratio:8.2f}x", flush=True)
        save(out, {"machine": machine, "cells": cells, "left_out": left_out})
    for peer, reason in left_out.items():
        print(f"left out: {peer}: {reason}")


if __name__ == "__main__":
    main()
