"""Convolutions from spike times on a GPU: checks the kernels, then times them.

    python -m benchmarks.gpu.conv_gpu [--out results.json]

For every T, the script compares scores and gradients of 32C5-P2-64C5-P2-10 on images of 28 x 28 by
every rule with plain torch on the CPU. Then it times one forward pass of each layer: from spike
times, as a dense convolution (cuDNN) with the scan of `first_spike_time`, and the dense convolution
alone. It times a training step from spike times and one from dense tensors.

`--smoke` runs a tiny network in Triton's interpreter, as a test of the script; its times mean
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

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
from snn_single_spike.functional import first_spike_time, single_spike_conv2d
from snn_single_spike.ops.validation import GRADIENT_RULES

from benchmarks.gpu.results import save, started

STEPS, BATCH, CHECKED = ((3,), 1, 1) if SMOKE else ((25, 100, 400), 64, 4)
MAP, KERNEL, CHANNELS = (7, 2, (2, 2)) if SMOKE else (28, 5, (32, 64))
CLASSES = 3 if SMOKE else 10
POOLED = (MAP - KERNEL + 1) // 2
# Input maps, and the share of units that spike: images first, then a hidden layer.
LAYERS = {
    "first layer": ((1, MAP, MAP), CHANNELS[0], 1.0),
    "hidden layer": ((CHANNELS[0], POOLED, POOLED), CHANNELS[1], 0.3),
}
BETA, BACKEND = 0.9, "triton"


def network(rule: str, spike_format: str, device: str, backend: str) -> nn.Module:
    torch.manual_seed(0)
    one, two = CHANNELS
    hidden = (POOLED - KERNEL + 1) // 2
    options = {"init_hidden": True, "learn_beta": True, "backend": backend, "gradient": rule}
    net = nn.Sequential(
        nn.Conv2d(1, one, KERNEL),
        nn.MaxPool2d(2),
        SingleSpikeLeaky(torch.full((one, 1, 1), BETA), spike_format=spike_format, **options),
        nn.Conv2d(one, two, KERNEL),
        nn.MaxPool2d(2),
        SingleSpikeLeaky(torch.full((two, 1, 1), BETA), spike_format=spike_format, **options),
        nn.Flatten(2),
        nn.Linear(two * hidden * hidden, CLASSES),
        LeakyReadout(torch.full((CLASSES,), 0.95), learn_beta=True, backend=backend),
    )
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight *= 3
    return net.to(device)


def over_time(net: nn.Module, spikes: SpikeTimes | Tensor) -> Tensor:
    """The scores. Dense maps (T, B, ...) pass convolutions and pooling with time in the batch."""
    for layer in net:
        if isinstance(spikes, Tensor) and isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            spikes = layer(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
        else:
            spikes = layer(spikes)
    assert isinstance(spikes, Tensor)
    return spikes


def codes(num_steps: int, device: str, batch: int = BATCH, layer: str = "first layer"):
    make = torch.Generator().manual_seed(num_steps)
    maps, _, share = LAYERS[layer]
    times = torch.randint(num_steps, (batch, *maps), generator=make)
    silent = torch.rand(times.shape, generator=make) >= share
    return SpikeTimes(times.masked_fill(silent, -1), num_steps).to(device)


def check(num_steps: int) -> dict[str, float]:
    """Largest relative error of scores and gradients against the CPU, for each rule."""
    worst = {}
    for rule in GRADIENT_RULES:
        runs = []
        for device, backend in (("cpu", "torch"), (DEVICE, BACKEND)):
            net = network(rule, "times", device, backend)
            scores = over_time(net, codes(num_steps, device, CHECKED))
            scores.square().mean().backward()
            runs.append([scores, *(p.grad for p in net.parameters())])
        pairs = zip(runs[1], runs[0], strict=True)
        worst[rule] = max(error(mine.detach(), theirs.detach()) for mine, theirs in pairs)
    assert max(worst.values()) < 1e-3, worst
    return worst


def forward(num_steps: int, name: str) -> dict[str, float]:
    """Milliseconds of the first spikes of one layer."""
    maps, channels, _ = LAYERS[name]
    conv = nn.Conv2d(maps[0], channels, KERNEL).to(DEVICE)
    spikes = codes(num_steps, DEVICE, layer=name)
    dense = spikes.to_dense()

    @torch.no_grad()
    def times() -> Tensor:
        return single_spike_conv2d(spikes, conv.weight, conv.bias, BETA, backend=BACKEND).times

    @torch.no_grad()
    def convolution() -> Tensor:
        return conv(dense.flatten(0, 1)).unflatten(0, dense.shape[:2])

    @torch.no_grad()
    def scan() -> Tensor:
        return first_spike_time(convolution(), BETA, backend=BACKEND)

    differ = (times() != scan()).float().mean().item()
    assert differ < 1e-3, f"{name}: {differ:.1%} of the spike times differ"
    return {
        f"{name}, from spike times": median_ms(times),
        f"{name}, dense and scan": median_ms(scan),
        f"{name}, dense alone": median_ms(convolution),
    }


def training(num_steps: int, rule: str) -> dict[str, float]:
    """Milliseconds of forward and backward of the network."""
    spikes = codes(num_steps, DEVICE)
    targets = torch.arange(BATCH, device=DEVICE) % CLASSES

    def step(spike_format: str) -> Callable[[], None]:
        net = network(rule, spike_format, DEVICE, BACKEND)
        given = spikes if spike_format == "times" else spikes.to_dense()
        return lambda: F.cross_entropy(over_time(net, given), targets).backward()

    return {
        f"{spike_format}, {rule}": median_ms(step(spike_format))
        for spike_format in ("dense", "times")
    }


def main() -> None:
    out, machine = started(str(__doc__), "runs a tiny network")
    # cuDNN's default for float32 rounds to 10 bits, and spike times would differ.
    torch.backends.cudnn.allow_tf32 = False
    figures: dict[int, dict[str, float]] = {}
    for num_steps in STEPS:
        errors = check(num_steps)
        print(f"T={num_steps}: largest relative error {max(errors.values()):.1e}", flush=True)
        figures[num_steps] = forward(num_steps, "first layer") | forward(num_steps, "hidden layer")
        for rule in ("masked", "spike_time"):
            figures[num_steps] |= training(num_steps, rule)
        for what, milliseconds in figures[num_steps].items():
            print(f"  {what:34s}{milliseconds:10.3f} ms", flush=True)
        save(out, {"machine": machine, "ms": figures})


if __name__ == "__main__":
    main()
