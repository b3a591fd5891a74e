"""Small networks of linear layers, computed from spike times, from dense tensors and by steps."""

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_single_spike import SpikeEvents, SpikeTimes
from snn_single_spike.functional import (
    leaky_readout,
    linear_readout,
    single_spike_leaky,
    single_spike_linear,
)

from tests.support import sequential
from tests.support.devices import runnable
from tests.support.oracle import relative_error
from tests.support.surrogates import fused, smooth

KINDS = ("times", "events")
CPU_BACKENDS = [
    parameter.values[0] for parameter in runnable("torch", "numba") if not parameter.marks
]


class Layer(NamedTuple):
    weight: Tensor
    bias: Tensor
    beta: Tensor
    threshold: Tensor
    factor: Tensor


class Problem(NamedTuple):
    """Spikes (T, B, N), layers, the beta of a readout, and gradients to all outputs."""

    spikes: Tensor
    kind: str
    layers: list[Layer]
    beta: Tensor
    g: Tensor


def problem(num_steps, batch, sizes, *, kind="times", dtype=torch.float64, seed=0) -> Problem:
    """A network with ``sizes`` units per layer; the first are inputs, the last is the readout."""
    make = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0):
        return torch.randn(size, generator=make, dtype=torch.float64).to(dtype) * scale

    def uniform(*size, low=0.0, high=1.0):
        drawn = torch.rand(size, generator=make, dtype=torch.float64)
        return (low + (high - low) * drawn).to(dtype)

    if kind == "times":
        times = torch.randint(-1, num_steps, (batch, sizes[0]), generator=make)
        spikes = SpikeTimes(times, num_steps, dtype=dtype).to_dense()
    else:
        fires = torch.rand((num_steps, batch, sizes[0]), generator=make) < 0.15
        spikes = uniform(num_steps, batch, sizes[0], low=0.5, high=2.0) * fires
    layers = [
        Layer(
            normal(out, n, scale=1.5 / math.sqrt(n)),
            normal(out, scale=0.1),
            uniform(out, low=0.5),
            uniform(out, low=0.2, high=0.8),
            uniform(out, low=0.5, high=1.5),
        )
        for n, out in itertools.pairwise(sizes)
    ]
    # A readout with decay comes to rest, and then rounding decides which step is the maximum.
    beta = uniform(sizes[-1], low=0.9)
    return Problem(spikes, kind, layers, beta, normal(batch, sizes[-1]))


def on(device, given: Problem) -> Problem:
    layers = [Layer(*(x.to(device) for x in layer)) for layer in given.layers]
    return Problem(
        given.spikes.to(device), given.kind, layers, given.beta.to(device), given.g.to(device)
    )


def leaves_of(given: Problem) -> Problem:
    def leaf(x):
        return x.detach().clone().requires_grad_()

    layers = [Layer(*map(leaf, layer)) for layer in given.layers]
    spikes = leaf(given.spikes) if given.kind == "times" else given.spikes
    return given._replace(spikes=spikes, layers=layers, beta=leaf(given.beta))


def every_leaf(given: Problem) -> list[Tensor]:
    """The last layer is a readout, which has no threshold and no height."""
    *hidden, last = given.layers
    spikes = [given.spikes] if given.kind == "times" else []
    parameters = [x for layer in hidden for x in layer]
    return [*spikes, *parameters, last.weight, last.bias, given.beta]


def as_spikes(dense, kind):
    return SpikeTimes.from_dense(dense) if kind == "times" else SpikeEvents.from_dense(dense)


def layer_by_times(spikes, layer, rule, reset, backend, surrogate="fast_sigmoid"):
    made = single_spike_linear(
        spikes,
        *layer[:4],
        graded_spikes_factor=layer.factor,
        spike_grad=fused(surrogate),
        gradient=rule,
        reset_mechanism=reset,
        backend=backend,
    )
    return made, made.interpolated_times


def layer_by_dense(spikes, layer, rule, reset, backend, surrogate="fast_sigmoid"):
    weight, bias, beta, threshold, factor = layer
    made = single_spike_leaky(
        F.linear(spikes, weight, bias),
        beta,
        threshold,
        graded_spikes_factor=factor,
        spike_grad=fused(surrogate),
        gradient=rule,
        reset_mechanism=reset,
        return_mem=False,
        backend=backend,
    )
    return made.spikes, made.times if rule == "spike_time" else None


def layer_by_steps(spikes, layer, rule, reset, backend, surrogate="fast_sigmoid"):
    weight, bias, beta, threshold, factor = layer
    neuron = {"beta": beta, "threshold": threshold, "factor": factor}
    current = F.linear(spikes, weight, bias)
    trace = sequential.run(sequential.leaky, current, neuron, {}, smooth(surrogate), rule, reset)
    return trace.spikes, trace.times if rule == "spike_time" else None


def readout(x, weight, bias, beta, **options):
    """Compute the network from spike times or from dense spikes."""
    if isinstance(x, Tensor):
        return leaky_readout(F.linear(x, weight, bias), beta, **options)
    return linear_readout(x, weight, bias, beta, **options)


def readout_by_steps(current, beta, reduction):
    mem, mems = torch.zeros_like(current[0]), []
    for x in current:
        mem = beta.clamp(0, 1) * mem + x
        mems.append(mem)
    mems = torch.stack(mems)
    if reduction == "sum":
        return mems.sum(0)
    return mems.max(0).values if reduction == "max" else mems[-1]


LAYERS = {"times": layer_by_times, "dense": layer_by_dense, "steps": layer_by_steps}


def run(
    path,
    given,
    rules,
    reset="subtract",
    reduction="sum",
    backend="torch",
    surrogate="fast_sigmoid",
):
    """Times of every layer, the values of the readout, and the gradients of every leaf."""
    given = leaves_of(given)
    x = as_spikes(given.spikes, given.kind) if path == "times" else given.spikes
    times, taus = [], []
    for layer, rule in zip(given.layers[:-1], rules, strict=True):
        x, interpolated_times = LAYERS[path](x, layer, rule, reset, backend, surrogate)
        if path == "times":
            times.append(x.times.long())
        else:
            fired = x.detach() != 0
            times.append(torch.where(fired.any(0), fired.to(torch.int64).argmax(0), -1))
        if interpolated_times is not None:
            taus.append(interpolated_times)
    last = given.layers[-1]
    if path == "steps":
        current = F.linear(x, last.weight, last.bias)
        value = readout_by_steps(current, given.beta, reduction)
    else:
        value = readout(x, *last[:2], given.beta, reduction=reduction, backend=backend)
    loss = (value * given.g).sum() + sum(
        interpolated_times.square().sum() for interpolated_times in taus
    )
    leaves = every_leaf(given)
    grads = torch.autograd.grad(loss, leaves)
    for grad, leaf in zip(grads, leaves, strict=True):
        assert type(grad) is Tensor
        assert grad.shape == leaf.shape
        assert grad.dtype == leaf.dtype
    return times, [
        value.detach(),
        *(interpolated_times.detach() for interpolated_times in taus),
        *grads,
    ]


def assert_close(actual, expected, tolerance):
    for mine, right in zip(actual[0], expected[0], strict=True):
        assert torch.equal(mine.cpu(), right.cpu())
    for number, (mine, right) in enumerate(zip(actual[1], expected[1], strict=True)):
        error = relative_error(mine, right)
        assert error <= tolerance, f"tensor {number} of {len(actual[1])} differs by {error:.1e}"


@functools.cache
def expected_by_steps(kind, rules, reset, reduction, surrogate="fast_sigmoid"):
    given = small(kind, len(rules))
    return run("steps", given, rules, reset, reduction, surrogate=surrogate)


@functools.cache
def small(kind, hidden):
    return problem(13, 2, (*(6, 5, 4, 5)[: hidden + 1], 3), kind=kind, seed=hidden)
