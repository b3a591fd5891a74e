"""Every neuron, linear layer, convolution and readout on a GPU, compared with torch on the CPU.

    python -m benchmarks.gpu.check_gpu [--out results.json]

For each layer, gradient rule, reset and type, the script compares outputs and gradients. In
float32 a spike may differ where a membrane is within rounding of the threshold: at most one in a
thousand, and then float64 compares the gradients. Combinations that plain torch rejects are left
out. Every difference is printed; the exit status is 1 if there is one. `--smoke` checks a few
combinations of tiny layers in Triton's interpreter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.neuron_gpu import DEVICE, SMOKE  # selects the interpreter

import torch
from torch import Tensor, nn

import snn_single_spike
from snn_single_spike import (
    LeakyReadout,
    SingleSpikeConv2d,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.ops.validation import GRADIENT_RULES, REDUCTIONS, RESETS

from benchmarks.gpu.results import save, started

STEPS, BATCH, UNITS = (5, 2, 6) if SMOKE else (100, 32, 300)
EVERY = 11 if SMOKE else 1  # the interpreter takes a tenth of a second for a launch
MAPS, SIDE = ((2, 3), 5) if SMOKE else ((8, 16), 14)
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
DIFFER = 1e-3
PARAMETERS: dict[str, dict[str, Any]] = {
    "SingleSpikeLeaky": {"beta": 0.9},
    "SingleSpikeSynaptic": {"alpha": 0.8, "beta": 0.9},
    "SingleSpikeAlpha": {"alpha": 0.9, "beta": 0.8},
    "SingleSpikeLapicque": {"beta": 0.9},
    "SingleSpikeRLeaky": {"beta": 0.9, "V": 0.5, "all_to_all": False},
}

Make = Callable[[str], nn.Module]
"""A layer of a backend."""


def layers() -> Iterator[tuple[str, Make, torch.dtype, str]]:
    """Name, layer, type and input of every combination."""
    for dtype in DTYPES:
        options = itertools.product(PARAMETERS.items(), GRADIENT_RULES, RESETS, (None, 0, 3))
        for (name, given), rule, reset, refractory in options:
            more = {"gradient": rule, "reset_mechanism": reset, "refractory": refractory}

            def neuron(backend: str, name=name, options=given | more) -> nn.Module:
                kind = getattr(snn_single_spike, name)
                return kind(**options, backend=backend, learn_threshold=True)

            yield f"{name} {rule} {reset} {refractory} {dtype}", neuron, dtype, "current"
        for rule, reset, kind in itertools.product(GRADIENT_RULES, RESETS, ("times", "events")):
            more = {"gradient": rule, "reset_mechanism": reset}

            def linear(backend: str, options=more) -> nn.Module:
                return SingleSpikeLinear(UNITS, UNITS, 0.9, backend=backend, **options)

            yield f"SingleSpikeLinear {rule} {reset} from {kind} {dtype}", linear, dtype, kind
        for rule, reset in itertools.product(GRADIENT_RULES, RESETS):
            more = {"gradient": rule, "reset_mechanism": reset}

            def conv(backend: str, options=more) -> nn.Module:
                return SingleSpikeConv2d(*MAPS, 3, 0.9, padding=1, backend=backend, **options)

            yield f"SingleSpikeConv2d {rule} {reset} {dtype}", conv, dtype, "images"
        for reduction, kind in itertools.product(REDUCTIONS, ("current", "times", "events")):

            def readout(backend: str, reduction=reduction, kind=kind) -> nn.Module:
                made = LeakyReadout(0.95, learn_beta=True, reduction=reduction, backend=backend)
                return made if kind == "current" else nn.Sequential(nn.Linear(UNITS, 10), made)

            yield f"LeakyReadout {reduction} from {kind} {dtype}", readout, dtype, kind


def run(make: Make, device: str, backend: str, dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Outputs of the layer, then gradients of a loss on them."""
    torch.manual_seed(0)
    layer = make(backend).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() >= 2:
                parameter *= 3
    layer = layer.to(device)
    draw = torch.Generator().manual_seed(1)
    if kind == "current":
        given: Any = torch.randn(STEPS, BATCH, UNITS, generator=draw).to(dtype) * 0.3
        given = given.to(device).requires_grad_()
    else:
        units = (MAPS[0], SIDE, SIDE) if kind == "images" else (UNITS,)
        times = torch.randint(-1, STEPS, (BATCH, *units), generator=draw)
        spikes: Any = SpikeTimes(times, STEPS, dtype=dtype)
        spikes = SpikeEvents.from_dense(spikes.to_dense()) if kind == "events" else spikes
        given = spikes.to(device)
    found = layer(given)
    outputs = [found] if not isinstance(found, tuple) else list(found)
    if isinstance(outputs[0], SpikeTimes):
        outputs = [outputs[0].to_dense()]
    loss = torch.zeros((), dtype=dtype, device=device)
    for out in outputs:
        weight = torch.randn(out.shape, generator=draw).to(out)
        loss = loss + (out * weight).sum()
    leaves = [p for p in layer.parameters() if p.requires_grad]
    leaves += [given] if isinstance(given, Tensor) else []
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    kept = [g for g in grads if g is not None]
    return [x.detach().double().cpu() for x in (*outputs, *kept)]


def compare(make: Make, dtype: torch.dtype, kind: str) -> dict[str, float] | None:
    """The largest relative error, and the part of outputs at another spike. None: rejected."""
    try:
        expected = run(make, "cpu", "torch", dtype, kind)
    except (ValueError, NotImplementedError, TypeError):
        return None
    actual = run(make, DEVICE, "triton", dtype, kind)
    first, mine = expected[0], actual[0]
    spikes = first.dim() > 2  # scores of a readout are (B, classes)
    apart = ((first - mine).abs() > 0.5).any(0)
    differ = apart.double().mean().item() if spikes else 0.0
    if differ:  # gradients of parameters contain the neurons that differ
        allowed = dtype == torch.float32 and differ <= DIFFER
        return {"differ": differ, "error": 0.0 if allowed else float("inf")}
    errors = [
        ((a - e).norm() / e.norm().clamp(min=1e-30)).item()
        for a, e in zip(actual, expected, strict=True)
    ]
    return {"differ": 0.0, "error": max(errors)}


def main() -> None:
    torch.backends.cudnn.allow_tf32 = False  # else spike times of dense convolutions differ
    out, machine = started(str(__doc__), "checks tiny layers")
    cells: dict[str, dict[str, float]] = {}
    wrong, rejected = [], 0
    for label, make, dtype, kind in itertools.islice(layers(), 0, None, EVERY):
        try:
            found = compare(make, dtype, kind)
        except Exception as error:  # one broken kernel must not hide the others
            found = {"differ": 0.0, "error": float("inf"), "raised": str(error)}  # type: ignore
        if found is None:
            rejected += 1
            continue
        cells[label] = found
        if not found["error"] <= TOLERANCE[dtype]:
            wrong.append(label)
            print(f"DIFFERS: {label}: {found}", flush=True)
        save(out, {"machine": machine, "wrong": wrong, "cells": cells})
    worst = max((cell["error"] for cell in cells.values()), default=0.0)
    close = sum(cell["differ"] > 0 for cell in cells.values())
    print(
        f"{len(cells)} combinations, {len(wrong)} differ, largest error {worst:.1e}; "
        f"{close} have a spike within rounding of the threshold; {rejected} are not supported"
    )
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
