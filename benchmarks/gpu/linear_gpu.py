"""Linear layers from spike times on a GPU: checks the kernels, then times them.

    python -m benchmarks.gpu.linear_gpu [--out results.json]

For every T, the script compares spike times, scores and gradients of 784-1000-10 by every rule
with plain torch on the CPU. Then it times one forward pass of the first layer: in the event form,
in the tensor-core form, and as a dense product (cuBLAS) with the scan of `first_spike_time`. It
times a training step from spike times and one from dense tensors.

It times both forms for short sequences, too. `backends/triton/linear.py` measures the T at which
both take the same time, and should find the same T. `--smoke` runs a tiny network in Triton's
interpreter, as a test of the script; its times mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from unittest import mock

from benchmarks.gpu.neuron_gpu import (
    DEVICE,
    SMOKE,
    error,
    median_ms,
)  # selects the interpreter before triton is imported

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SpikeTimes
from snn_single_spike.backends.triton import linear as triton_linear
from snn_single_spike.functional import first_spike_time, single_spike_linear
from snn_single_spike.ops.validation import GRADIENT_RULES

from benchmarks.gpu.results import save, started

STEPS, SIZES, BATCH = ((5,), (9, 12, 3), 2) if SMOKE else ((64, 256, 1024), (784, 1000, 10), 128)
SHORT = (2, 3) if SMOKE else (8, 16, 32, 48, 64, 96, 128)
BACKEND = "triton"
EVENTS, DOT = "event form", "tensor-core form"


def network(rule: str, spike_format: str, device: str, backend: str) -> nn.Module:
    torch.manual_seed(0)
    inputs, hidden, classes = SIZES
    options = {"init_hidden": True, "learn_beta": True, "backend": backend}
    net = nn.Sequential(
        nn.Linear(inputs, hidden),
        SingleSpikeLeaky(
            torch.full((hidden,), 0.9), gradient=rule, spike_format=spike_format, **options
        ),
        nn.Linear(hidden, classes),
        LeakyReadout(torch.full((classes,), 0.95), learn_beta=True, backend=backend),
    )
    with torch.no_grad():
        net[0].weight *= 3
    return net.to(device)


def codes(num_steps: int, device: str) -> SpikeTimes:
    make = torch.Generator().manual_seed(num_steps)
    return SpikeTimes(torch.randint(num_steps, (BATCH, SIZES[0]), generator=make), num_steps).to(
        device
    )


def check(num_steps: int) -> dict[str, float]:
    """Largest relative error of scores and gradients against the CPU, for each rule."""
    worst = {}
    for rule in GRADIENT_RULES:
        runs = []
        for device, backend in (("cpu", "torch"), (DEVICE, BACKEND)):
            net = network(rule, "times", device, backend)
            scores = net(codes(num_steps, device))
            scores.square().mean().backward()
            runs.append([scores, *(p.grad for p in net.parameters())])
        pairs = zip(runs[1], runs[0], strict=True)
        worst[rule] = max(error(mine.detach(), theirs.detach()) for mine, theirs in pairs)
    assert max(worst.values()) < 1e-3, worst
    return worst


def forms(num_steps: int) -> dict[str, float]:
    """Milliseconds of the first spikes of one layer."""
    spikes = codes(num_steps, DEVICE)
    linear = network("masked", "times", DEVICE, BACKEND)[0]
    dense = spikes.to_dense()

    def times() -> Tensor:
        with torch.no_grad():
            layer = (linear.weight, linear.bias, 0.9)
            return single_spike_linear(spikes, *layer, backend=BACKEND).times

    def product() -> Tensor:
        with torch.no_grad():
            return first_spike_time(linear(dense), 0.9, backend=BACKEND)

    found = {"dense product and scan": median_ms(product)}
    expected = product()
    for name, pays in ((EVENTS, False), (DOT, True)):
        with mock.patch.object(triton_linear, "dot_pays", return_value=pays):
            differ = (times() != expected).float().mean().item()
            assert differ < 1e-3, f"{name}: {differ:.1%} of the spike times differ"
            found[name] = median_ms(times)
    return found


def level(figures: dict[int, dict[str, float]]) -> float:
    """Steps at which both forms take the same time, interpolated between measured steps."""
    before = None
    for num_steps, ms in sorted(figures.items()):
        lead = math.log(ms[DOT] / ms[EVENTS])
        if lead > 0:
            if before is None:
                return num_steps
            earlier, its_lead = before
            return earlier + (num_steps - earlier) * its_lead / (its_lead - lead)
        before = num_steps, lead
    return max(figures)


def training(num_steps: int, rule: str) -> dict[str, float]:
    """Milliseconds of forward and backward of the network."""
    spikes = codes(num_steps, DEVICE)
    targets = torch.arange(BATCH, device=DEVICE) % SIZES[2]

    def step(spike_format: str) -> Callable[[], None]:
        net = network(rule, spike_format, DEVICE, BACKEND)
        given = spikes if spike_format == "times" else spikes.to_dense()
        return lambda: F.cross_entropy(net(given), targets).backward()

    return {
        f"{spike_format}, {rule}": median_ms(step(spike_format))
        for spike_format in ("dense", "times")
    }


def main() -> None:
    out, machine = started(str(__doc__), "runs a tiny network")
    figures: dict[int, dict[str, float]] = {}
    for num_steps in STEPS:
        errors = check(num_steps)
        print(f"T={num_steps}: largest relative error {max(errors.values()):.1e}", flush=True)
        figures[num_steps] = forms(num_steps)
        for rule in ("masked", "spike_time"):
            figures[num_steps] |= training(num_steps, rule)
        for what, milliseconds in figures[num_steps].items():
            print(f"  {what:28s}{milliseconds:10.3f} ms", flush=True)
        save(out, {"machine": machine, "ms": figures})
    short = {num_steps: forms(num_steps) for num_steps in SHORT}
    for num_steps, found in short.items():
        times = ", ".join(f"{what} {ms:.3f}" for what, ms in found.items())
        print(f"T={num_steps}: {times} ms", flush=True)
    products, itself = level(short), triton_linear.dot_products(codes(1, DEVICE).times.device)
    print(f"forms are level at {products:.0f} steps; the package itself finds {itself:.0f}")
    content = {"machine": machine, "ms": short | figures, "level": products, "found": itself}
    save(out, content)


if __name__ == "__main__":
    main()
