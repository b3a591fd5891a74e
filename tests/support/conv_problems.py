"""Convolutions from spike times, and the same from dense tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_single_spike import SpikeEvents, SpikeTimes
from snn_single_spike.functional import single_spike_conv2d, single_spike_leaky

from tests.support import sequential
from tests.support.oracle import relative_error
from tests.support.surrogates import fused, smooth


class ConvLayer(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    beta: Tensor
    threshold: Tensor
    factor: Tensor


class Case(NamedTuple):
    """Sizes of a convolution: maps (C, H, W), output channels, kernel, and the options of torch."""

    maps: tuple[int, int, int]
    out: int
    kernel: tuple[int, int]
    options: dict[str, object]
    each_neuron: bool = False
    """Parameters for each neuron, not for each channel."""
    bias: bool = True


CASES = {
    "plain": Case((2, 6, 5), 3, (3, 3), {}, bias=False),
    "padded": Case((1, 5, 7), 17, (3, 2), {"padding": (1, 2)}),
    "strided, each neuron": Case(
        (3, 7, 8), 4, (3, 3), {"stride": (2, 3), "padding": 1}, each_neuron=True
    ),
    "dilated groups": Case((4, 7, 7), 6, (2, 3), {"dilation": (3, 2), "groups": 2}),
    "depthwise": Case((3, 6, 6), 6, (3, 3), {"padding": 1, "groups": 3}, bias=False),
    "same": Case((2, 5, 6), 2, (4, 2), {"padding": "same"}),
    "rows not read": Case((1, 8, 8), 2, (2, 2), {"stride": 3}),
    "one position": Case((2, 3, 3), 2, (3, 3), {}),
}


def layer_of(case: Case, *, dtype=torch.float64, seed=0) -> ConvLayer:
    make = torch.Generator().manual_seed(seed)

    def uniform(*size, low=0.0, high=1.0):
        drawn = torch.rand(size, generator=make, dtype=torch.float64)
        return (low + (high - low) * drawn).to(dtype)

    groups = case.options.get("groups", 1)
    shape = (case.out, case.maps[0] // groups, *case.kernel)
    scale = 2 / math.sqrt(math.prod(shape[1:]))
    weight = (torch.randn(shape, generator=make, dtype=torch.float64) * scale).to(dtype)
    bias = uniform(case.out, low=-0.1, high=0.15) if case.bias else None
    maps = (1, 1)
    if case.each_neuron:
        maps = F.conv2d(torch.zeros(1, *case.maps, dtype=dtype), weight, **case.options).shape[2:]
    return ConvLayer(
        weight,
        bias,
        uniform(case.out, *maps, low=0.5),
        uniform(case.out, *maps, low=0.2, high=0.8),
        uniform(case.out, 1, 1, low=0.5, high=1.5),
    )


def spikes_of(case: Case, num_steps: int, batch: int, kind: str, *, dtype=torch.float64, seed=0):
    """Dense spikes (T, B, C, H, W). A step has many spikes, and many units are silent."""
    make = torch.Generator().manual_seed(seed)
    if kind == "times":
        times = torch.randint(-num_steps, num_steps, (batch, *case.maps), generator=make)
        return SpikeTimes(times.clamp(min=-1), num_steps, dtype=dtype).to_dense()
    drawn = torch.rand((num_steps, batch, *case.maps), generator=make)
    return drawn.to(dtype) * 10 * (drawn < 0.1)


def leaves_of(layer: ConvLayer) -> ConvLayer:
    return ConvLayer(*(None if x is None else x.detach().clone().requires_grad_() for x in layer))


def by_times(spikes, layer, rule, reset, backend, surrogate="fast_sigmoid", **options):
    made = single_spike_conv2d(
        spikes,
        *layer[:4],
        graded_spikes_factor=layer.factor,
        spike_grad=fused(surrogate),
        gradient=rule,
        reset_mechanism=reset,
        backend=backend,
        **options,
    )
    return made, made.interpolated_times


def by_dense(spikes, layer, rule, reset, backend, surrogate="fast_sigmoid", **options):
    current = F.conv2d(spikes.flatten(0, 1), layer.weight, layer.bias, **options)
    made = single_spike_leaky(
        current.unflatten(0, spikes.shape[:2]),
        layer.beta,
        layer.threshold,
        graded_spikes_factor=layer.factor,
        spike_grad=fused(surrogate),
        gradient=rule,
        reset_mechanism=reset,
        return_mem=False,
        backend=backend,
    )
    return made.spikes, made.times if rule == "spike_time" else None


def as_spikes(dense: Tensor, kind: str):
    return SpikeTimes.from_dense(dense) if kind == "times" else SpikeEvents.from_dense(dense)


def by_steps(spikes, layer, rule, reset, backend, surrogate="fast_sigmoid", **options):
    """One step after the other, by :mod:`tests.support.sequential`."""
    current = F.conv2d(spikes.flatten(0, 1), layer.weight, layer.bias, **options)
    current = current.unflatten(0, spikes.shape[:2])
    neuron = {"beta": layer.beta, "threshold": layer.threshold, "factor": layer.factor}
    trace = sequential.run(sequential.leaky, current, neuron, {}, smooth(surrogate), rule, reset)
    return trace.spikes, trace.times if rule == "spike_time" else None


WAYS = {"times": by_times, "dense": by_dense, "steps": by_steps}


def first_steps(dense):
    fired = dense.detach() != 0
    return torch.where(fired.any(0), fired.to(torch.int64).argmax(0), -1)


def on(device: str, layer: ConvLayer) -> ConvLayer:
    return ConvLayer(*(None if x is None else x.to(device) for x in layer))


def run(path, case, layer, dense, kind, rule, reset, backend, surrogate="fast_sigmoid"):
    """Spike times, then interpolated times and the gradients of every leaf."""
    layer = leaves_of(layer)
    leaf = dense.clone().requires_grad_(kind == "times")
    x = as_spikes(leaf, kind) if path == "times" else leaf
    out, moments = WAYS[path](x, layer, rule, reset, backend, surrogate, **case.options)
    times = out.times.long() if path == "times" else first_steps(out)
    spikes = out.to_dense() if path == "times" else out
    make = torch.Generator().manual_seed(5)
    g = torch.randn(spikes.shape, generator=make, dtype=torch.float64).to(spikes)
    loss = (spikes * g).sum()
    if moments is not None:
        loss = loss + moments.square().sum()
    leaves = [x for x in (*([leaf] if kind == "times" else []), *layer) if x is not None]
    grads = torch.autograd.grad(loss, leaves)
    assert all(type(grad) is torch.Tensor for grad in grads)
    return times, spikes.detach(), [x.detach() for x in (moments, *grads) if x is not None]


def check(case, layer, dense, kind, rule, reset, backend, tolerance, **other):
    """Compare a layer from spike times with the same layer on another path."""
    path, surrogate = other.get("path", "dense"), other.get("surrogate", "fast_sigmoid")
    given = (case, layer, dense, kind, rule, reset)
    times, spikes, actual = run("times", *given, backend, surrogate)
    right_times, right, expected = run(path, *given, "torch", surrogate)
    assert torch.equal(times, right_times)
    assert torch.equal(spikes, right)
    assert (times >= 0).any()
    assert (times < 0).any()
    for number, (mine, other) in enumerate(zip(actual, expected, strict=True)):
        error = relative_error(mine, other)
        assert error <= tolerance, f"tensor {number} differs by {error:.1e}"
