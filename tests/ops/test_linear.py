"""Linear layers from spike times: against dense tensors, and against one step at a time."""

import copy
import functools
import gc
import io
import itertools
import math
from typing import NamedTuple

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snn_single_spike import (
    LeakyReadout,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
    backends,
)
from snn_single_spike.functional import (
    leaky_readout,
    single_spike_leaky,
    single_spike_linear,
    spike_count,
)
from snn_single_spike.modules import linear
from snn_single_spike.ops.linear import FactoredGradient
from snn_single_spike.ops.validation import GRADIENT_RULES, REDUCTIONS, RESETS
from snn_single_spike.spikes.times import LazyCurrent

from tests.support import sequential
from tests.support.devices import device_of, runnable
from tests.support.oracle import relative_error

RULES = [rule for rule in GRADIENT_RULES if rule != "spike_time"]
KINDS = ("times", "events")
FAST = surrogate.fast_sigmoid(slope=5)
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
    """Spikes (T, B, N), layers, a readout's beta, and gradients to all that comes out."""

    spikes: Tensor
    kind: str
    layers: list[Layer]
    beta: Tensor
    g: Tensor


def problem(num_steps, batch, sizes, *, kind="times", dtype=torch.float64, seed=0) -> Problem:
    """A net with ``sizes`` units a layer, the first its inputs and the last its readout."""
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
    # A readout that forgets comes to rest, where rounding decides which step is its maximum.
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
    """The last layer is a readout: it has no threshold and no height."""
    *hidden, last = given.layers
    spikes = [given.spikes] if given.kind == "times" else []
    parameters = [x for layer in hidden for x in layer]
    return [*spikes, *parameters, last.weight, last.bias, given.beta]


def as_spikes(dense, kind):
    return SpikeTimes.from_dense(dense) if kind == "times" else SpikeEvents.from_dense(dense)


def layer_by_times(spikes, layer, rule, reset, backend):
    made = single_spike_linear(
        spikes,
        *layer[:4],
        graded_spikes_factor=layer.factor,
        spike_grad=FAST,
        gradient=rule,
        reset_mechanism=reset,
        backend=backend,
    )
    return made, made.interpolated_times


def layer_by_dense(spikes, layer, rule, reset, backend):
    weight, bias, beta, threshold, factor = layer
    made = single_spike_leaky(
        F.linear(spikes, weight, bias),
        beta,
        threshold,
        graded_spikes_factor=factor,
        spike_grad=FAST,
        gradient=rule,
        reset_mechanism=reset,
        return_mem=False,
        backend=backend,
    )
    return made.spikes, made.times if rule == "spike_time" else None


def fast(u):
    """Has the derivative of FAST, and in float64."""
    return u / (1 + 5 * u.abs())


def layer_by_steps(spikes, layer, rule, reset, backend):
    weight, bias, beta, threshold, factor = layer
    neuron = {"beta": beta, "threshold": threshold, "factor": factor}
    current = F.linear(spikes, weight, bias)
    trace = sequential.run(sequential.leaky, current, neuron, {}, fast, rule, reset)
    return trace.spikes, trace.times if rule == "spike_time" else None


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


def run(path, given, rules, reset="subtract", reduction="sum", backend="torch"):
    """Times of every layer, the values of the readout, and the gradients of every leaf."""
    given = leaves_of(given)
    x = as_spikes(given.spikes, given.kind) if path == "times" else given.spikes
    times, taus = [], []
    for layer, rule in zip(given.layers[:-1], rules, strict=True):
        x, interpolated_times = LAYERS[path](x, layer, rule, reset, backend)
        if path == "times":
            times.append(x.times.long())
        else:
            fired = x.detach() != 0
            times.append(torch.where(fired.any(0), fired.to(torch.int64).argmax(0), -1))
        if interpolated_times is not None:
            taus.append(interpolated_times)
    last = given.layers[-1]
    current = F.linear(x, last.weight, last.bias)
    assert isinstance(current, LazyCurrent) == (path == "times")
    if path == "steps":
        value = readout_by_steps(current, given.beta, reduction)
    else:
        value = leaky_readout(current, given.beta, reduction=reduction, backend=backend)
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
def expected_by_steps(kind, rules, reset, reduction):
    return run("steps", small(kind, len(rules)), rules, reset, reduction)


@functools.cache
def small(kind, hidden):
    return problem(13, 2, (*(6, 5, 4, 5)[: hidden + 1], 3), kind=kind, seed=hidden)


# Every rule against one step at a time, and against dense tensors


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_reset_and_reduction(kind, rule, reset, reduction, linear_backend):
    expected = expected_by_steps(kind, (rule,), reset, reduction)
    assert any((times >= 0).any() for times in expected[0])
    given = on(device_of(linear_backend), small(kind, 1))
    actual = run("times", given, (rule,), reset, reduction, linear_backend)
    assert_close(actual, expected, 1e-10)
    if linear_backend == "torch":
        assert_close(run("dense", given, (rule,), reset, reduction), expected, 1e-10)


DEEP = [
    *((rule,) * 3 for rule in GRADIENT_RULES),
    ("masked", "spike_time"),
    ("spike_time", "masked"),
    ("straight_through", "spike_time", "pre_spike"),
    ("spike_time", "straight_through", "spike_time"),
    ("pre_spike", "masked", "straight_through"),
]


@pytest.mark.parametrize("rules", DEEP, ids="-".join)
@pytest.mark.parametrize("kind", KINDS)
def test_deep_nets_and_mixed_rules(kind, rules, linear_backend):
    expected = expected_by_steps(kind, rules, "zero", "sum")
    assert all((times >= 0).any() and (times < 0).any() for times in expected[0][:2])
    given = on(device_of(linear_backend), small(kind, len(rules)))
    assert_close(run("times", given, rules, "zero", "sum", linear_backend), expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_wider_nets_against_dense_tensors(kind, rule, dtype, linear_backend):
    given = on(device_of(linear_backend), problem(40, 5, (30, 140, 70, 5), kind=kind, dtype=dtype))
    rules = (rule, rule)
    expected = run("dense", given, rules, backend=linear_backend)
    actual = run("times", given, rules, backend=linear_backend)
    assert_close(actual, expected, 1e-4 if dtype == torch.float32 else 1e-10)


SIZES = st.one_of(st.integers(1, 5), st.sampled_from([127, 128, 129, 300]))


@settings(max_examples=40)
@given(
    num_steps=st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 66, 127, 128, 129, 200])),
    batch=st.integers(0, 3),
    sizes=st.tuples(SIZES, SIZES, st.integers(1, 3)),
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(GRADIENT_RULES),
    reset=st.sampled_from(RESETS),
    reduction=st.sampled_from(REDUCTIONS),
    seed=st.integers(0, 2**16),
)
def test_any_shape(num_steps, batch, sizes, kind, rule, reset, reduction, seed):
    given = problem(num_steps, batch, sizes, kind=kind, seed=seed)
    expected = run("dense", given, (rule,), reset, reduction, "torch")
    for backend in CPU_BACKENDS:
        actual = run("times", given, (rule,), reset, reduction, backend)
        assert_close(actual, expected, 1e-7)  # a slow crossing divides by little


# Values that are easy to get wrong. Everything is a small multiple of a power of two: no backend
# rounds, and all must agree on what is exactly at threshold.

QUARTERS = st.integers(-6, 6).map(lambda n: n / 4)
PATTERNS = ("silent", "first step", "last step", "one step", "few", "many")


def pattern(name, num_steps, batch, units, make):
    times = torch.randint(0, num_steps, (batch, units), generator=make)
    if name == "silent":
        times.fill_(-1)
    elif name == "first step":
        times.zero_()
    elif name == "last step":
        times.fill_(num_steps - 1)
    elif name == "one step":
        times[:] = times[:, :1]
    elif name == "few":
        times[torch.rand(times.shape, generator=make) < 0.8] = -1
    return times


@settings(max_examples=50)
@given(data=st.data())
def test_values_at_the_edge(data):
    draw = data.draw
    beta = draw(st.sampled_from([0.0, 0.5, 1.0, -0.5, 1.5]))
    beta_2 = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    # More halvings than that would round.
    num_steps = draw(st.integers(1, 40)) if 0.5 in (beta, beta_2) else draw(st.integers(1, 300))
    batch, units, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 4)), 4
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    times = pattern(draw(st.sampled_from(PATTERNS)), num_steps, batch, units, make)
    to = {"dtype": torch.float64}
    weight = torch.randint(-4, 5, (outputs, units), generator=make).to(**to) / 4
    bias = torch.tensor(draw(st.lists(QUARTERS, min_size=4, max_size=4)), **to) / 8
    threshold = draw(st.lists(st.one_of(QUARTERS, st.just(math.inf)), min_size=4, max_size=4))
    layer = Layer(weight, bias, torch.full((4,), beta, **to), torch.tensor(threshold, **to),
                  torch.ones(4, **to))  # fmt: skip
    last = Layer(torch.randint(-4, 5, (2, 4), generator=make).to(**to) / 4,
                 torch.tensor([0.0, 0.25], **to), *layer[2:])  # fmt: skip
    given = Problem(
        SpikeTimes(times, num_steps, dtype=torch.float64).to_dense(),
        draw(st.sampled_from(KINDS)),
        [layer, last],
        torch.full((2,), beta_2, **to),
        torch.randn(batch, 2, generator=make, **to),
    )
    rule, reset = draw(st.sampled_from(GRADIENT_RULES)), draw(st.sampled_from(RESETS))
    reduction = draw(st.sampled_from(REDUCTIONS))
    expected = run("dense", given, (rule,), reset, reduction, "torch")
    for backend in CPU_BACKENDS:
        assert_close(run("times", given, (rule,), reset, reduction, backend), expected, 1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 60, 64, 65, 128, 129, 130, 400])
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_a_bias_crosses_the_threshold_between_spikes(rule, num_steps, linear_backend):
    """Gaps longer than one and two jumps; a neuron each that crosses at every step."""
    lanes = 150
    device = device_of(linear_backend)
    layer = Layer(
        torch.full((lanes, 1), -0.5, dtype=torch.float64),
        torch.ones(lanes, dtype=torch.float64),
        torch.ones(lanes, dtype=torch.float64),
        torch.arange(lanes, dtype=torch.float64) * num_steps / lanes - 0.75,
        torch.ones(lanes, dtype=torch.float64),
    )
    last = Layer(*(x[:, :1].T if x.dim() > 1 else x for x in layer))
    last = last._replace(
        weight=torch.rand(2, lanes, dtype=torch.float64), bias=torch.zeros(2).double()
    )
    for fires in (-1, 0, num_steps - 1, num_steps // 2):
        spikes = SpikeTimes(torch.tensor([[fires]]), num_steps, dtype=torch.float64).to_dense()
        ones = torch.ones(1, 2, dtype=torch.float64)
        given = on(device, Problem(spikes, "times", [layer, last], torch.rand(2).double(), ones))
        expected = run("dense", given, (rule,), backend=linear_backend)
        assert (expected[0][0] >= 0).any()
        assert_close(run("times", given, (rule,), backend=linear_backend), expected, 1e-9)


@pytest.mark.parametrize("fires", [-1, 0, 3])
def test_a_negative_threshold_is_crossed_on_the_way_down(fires, linear_backend):
    """A membrane that falls from 0 is above a negative threshold at its first steps only."""
    device = device_of(linear_backend)
    spikes = SpikeTimes(torch.tensor([[fires]], device=device), 200)
    bias = torch.tensor([-0.75, -1.0, -1.25, 0.0], device=device)
    times = single_spike_linear(
        spikes, torch.zeros(4, 1, device=device), bias, 1.0, -1.0, backend=linear_backend
    ).times
    assert times.tolist() == [[0, -1, -1, 0]]


def test_the_first_of_equal_maxima_has_the_gradient(linear_backend):
    """Without memory, every step without spikes has the same membrane."""
    device = device_of(linear_backend)
    dense = torch.zeros(90, 1, 2, dtype=torch.float64)
    dense[2, 0, 0] = 1
    weight, bias = torch.tensor([[-1.0, 1.0]]).double(), torch.tensor([0.5]).double()
    grads = []
    for path in ("times", "dense"):
        leaves = [
            x.clone().to(device).requires_grad_() for x in (weight, bias, torch.zeros(1).double())
        ]
        x = dense.to(device)
        x = as_spikes(x, "times") if path == "times" else x
        current = F.linear(x, *leaves[:2])
        value = leaky_readout(current, leaves[2], reduction="max", backend=linear_backend)
        grads.append(torch.autograd.grad(value.sum(), leaves))
    for mine, right in zip(*grads, strict=True):
        assert torch.equal(mine, right)
    # and where it falls first, so that the maximum comes after a spike
    x = SpikeTimes.from_dense(dense[2:].to(device))
    beta = torch.zeros(1, dtype=torch.float64, device=device, requires_grad=True)
    current = F.linear(x, weight.to(device), bias.to(device))
    leaky_readout(current, beta, reduction="max", backend=linear_backend).sum().backward()
    assert beta.grad.item() == -0.5  # the membrane of the step before, with the spike


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.9, 0.95])
def test_a_membrane_that_comes_to_rest_at_the_threshold(beta, linear_backend):
    """Rounding decides whether a neuron fires, but one that does was below and is above."""
    thresholds = torch.tensor([0.3, 0.7, 1.0, 2.0]).repeat(80)
    ulps = torch.arange(-40, 40).repeat_interleave(4)
    bias = thresholds * (1 - beta)
    bias = (bias + ulps * (bias.nextafter(torch.tensor(torch.inf)) - bias)).requires_grad_()
    device = device_of(linear_backend)
    spikes = single_spike_linear(
        SpikeTimes(torch.tensor([[-1], [150]]), 300).to(device),
        torch.zeros(320, 1, device=device),
        bias.to(device),
        beta,
        thresholds.to(device),
        gradient="spike_time",
        backend=linear_backend,
    )
    assert spikes.interpolated_times is not None
    spikes.interpolated_times.sum().backward()
    assert bias.grad is not None
    assert bias.grad.isfinite().all()
    fired = spikes.times >= 0
    assert (
        (spikes.interpolated_times <= spikes.times)
        & (spikes.interpolated_times >= spikes.times - 1)
    )[fired].all()
    assert 0 < fired.float().mean() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [30, 65, 200])
def test_a_maximum_at_which_a_membrane_comes_to_rest(num_steps, dtype, linear_backend):
    """Its gradient is that of the step where it arrived, not of the end of a jump."""
    device = device_of(linear_backend)
    hidden = single_spike_linear(
        SpikeTimes(torch.tensor([[3]], device=device), num_steps, dtype=dtype),
        torch.full((1, 1), 0.5, dtype=dtype, device=device, requires_grad=True),
        None,
        0.9,
        gradient="straight_through",
        backend=linear_backend,
    )
    weight, bias = torch.tensor([[0.5]], dtype=dtype), torch.ones(1, dtype=dtype)
    layer = (weight.to(device), bias.to(device))
    grads = []
    for x in (hidden, hidden.to_dense()):
        beta = torch.tensor(0.5, dtype=dtype, device=device, requires_grad=True)
        value = leaky_readout(F.linear(x, *layer), beta, reduction="max", backend=linear_backend)
        assert value.item() == pytest.approx(2)
        grads.append(torch.autograd.grad(value, (hidden.carrier, beta)))
    for mine, right in zip(*grads, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine + 0), right, rtol=1e-6, atol=0)


# What a net can do with spike times


def net_of(path, device="cpu", backend="auto", **options):
    """Two modules that mean the same."""
    torch.manual_seed(3)
    dense = nn.Sequential(
        nn.Linear(12, 9), SingleSpikeLeaky(0.8, backend=backend, init_hidden=True, **options)
    )
    dense = dense.double().to(device)
    dense[0].weight.data.mul_(4)
    if path == "dense":
        return dense
    if path == "neuron":
        dense[1].spike_format = "times"
        return dense
    module = SingleSpikeLinear(12, 9, 0.8, backend=backend, **options).double().to(device)
    module.load_state_dict({name[2:]: value for name, value in dense.state_dict().items()})
    return module


LEARNS = {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True}


def gradients(net):
    named = {name.rpartition(".")[2]: p.grad for name, p in net.named_parameters()}
    assert set(named) >= {"weight", "bias"}
    return [named[name] for name in sorted(named)]


def inputs(device="cpu", num_steps=17, batch=4):
    make = torch.Generator().manual_seed(5)
    times = torch.randint(-1, num_steps, (batch, 12), generator=make)
    return SpikeTimes(times.to(device), num_steps, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, LEARNS], ids=["fixed", "learned"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("path", ["neuron", "module"])
def test_modules_equal_the_dense_one(path, rule, options, linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    g = torch.randn(17, 4, 9, dtype=torch.float64, device=device)
    for way in (path, "dense"):
        net = net_of(way, device, linear_backend, gradient=rule, **options)
        out = net(spikes if way == path else spikes.to_dense())
        assert type(out) is (SpikeTimes if way == path else Tensor)
        dense = out.to_dense() if way == path else out
        (dense * g).sum().backward()
        results.append([dense.detach(), *gradients(net)])
    assert results[0][0].any()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_dense_input_of_a_module(rule, linear_backend):
    device = device_of(linear_backend)
    dense = torch.rand(17, 4, 12, dtype=torch.float64, device=device).requires_grad_()
    results = []
    for path in ("module", "neuron", "dense"):
        net = net_of(path, device, linear_backend, gradient=rule, **LEARNS)
        out = net(dense)
        spikes = out if path == "dense" else out.to_dense()
        if path != "dense":
            assert isinstance(out, SpikeTimes)
            assert (out.interpolated_times is None) == (rule != "spike_time")
        dense.grad = None
        spikes.square().sum(1)[3:].sum().backward()
        results.append([spikes.detach(), dense.grad, *gradients(net)])
    assert results[0][0].any()
    for result in results[:2]:
        for mine, right in zip(result, results[2], strict=True):
            assert relative_error(mine, right) < 1e-10


def sparse_problem(dtype, high=False):
    """A dense input of few spikes, and a layer wide enough to look for them."""
    make = torch.Generator().manual_seed(0)
    dense = (torch.rand(17, 4, 12, generator=make) < 0.02).to(dtype)
    if high:
        dense *= torch.rand(dense.shape, generator=make).to(dtype) - 0.3
    torch.manual_seed(0)
    layer = SingleSpikeLinear(12, linear.WIDE, 0.8, threshold=0.05, learn_beta=True).to(dtype)
    return dense, layer


@pytest.fixture
def found(monkeypatch):
    """How many dense inputs were taken as their spikes."""
    found, from_dense = [], SpikeEvents.from_dense
    spy = lambda dense: (found.append(dense), from_dense(dense))[1]  # noqa: E731
    monkeypatch.setattr(SpikeEvents, "from_dense", spy)
    return found


needs_numba = pytest.mark.skipif(
    backends.explain("cpu")[0] != "numba", reason="numba is not installed"
)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("high", [False, True])
def test_a_dense_input_that_is_nearly_all_zeros(high, dtype, found, monkeypatch):
    """It is taken as its spikes where they are few, with the same results."""
    results = []
    for few in (32, math.inf):  # at most one in so many
        monkeypatch.setattr(linear, "SPARSE", few)
        dense, layer = sparse_problem(dtype, high)
        out = layer(dense)
        out.to_dense()[3:].square().sum().backward()
        results.append([out.to_dense().detach(), *gradients(layer)])
    assert len(found) == 1
    assert results[0][0].any()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < (1e-10 if dtype == torch.float64 else 1e-5)


@needs_numba
def test_dense_inputs_that_are_multiplied(found, monkeypatch):
    few, layer = sparse_problem(torch.float32)
    narrow = SingleSpikeLinear(12, linear.WIDE - 1, 0.8)
    layer(torch.rand_like(few))
    narrow(few)
    layer(few.clone().requires_grad_())
    layer(few[:, :0])
    with torch.autocast("cpu", torch.bfloat16):
        layer(few)
    layer.bfloat16()(few.bfloat16())
    monkeypatch.setattr(backends, "explain", lambda device: ("torch", "a test"))
    layer.float()(few)
    assert not found
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(few.double())


def test_any_height_of_the_spikes_of_a_dense_input(linear_backend):
    device = device_of(linear_backend)
    heights = torch.tensor([-2.0, 1.0, 0.5], device=device)
    neuron = SingleSpikeLeaky(
        0.9, spike_format="times", graded_spikes_factor=heights, learn_graded_spikes_factor=True,
        backend=linear_backend, init_hidden=True, gradient="spike_time",
    )  # fmt: skip
    current = torch.full((5, 2, 3), 0.4, device=device, requires_grad=True)
    spikes = neuron(current)
    assert (spikes.times == 2).all()
    spikes.to_dense()[2].sum().backward()
    assert torch.equal(neuron.graded_spikes_factor.grad, torch.full((3,), 2.0, device=device))
    assert current.grad.isfinite().all()
    assert current.grad[:, :, 1].any()


@pytest.mark.parametrize("wide", [5, 70])  # an adjoint that is kept, and one that is not
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_spikes_that_are_counted_on_their_way(rule, wide, linear_backend, monkeypatch):
    """Counts by neuron and by sample, of two layers: nothing dense is made for them."""
    device = device_of(linear_backend)
    given = on(device, problem(15, 3, (6, 7, wide, 4), seed=9))
    given = given._replace(
        layers=[layer._replace(factor=torch.ones((), device=device)) for layer in given.layers]
    )
    weights = torch.arange(1.0, 1 + max(7, wide), device=device, dtype=torch.float64)
    results = []
    for path in ("times", "dense"):
        leaves = given._replace(layers=[Layer(*layer) for layer in leaves_of(given).layers])
        *hidden, last = leaves.layers
        x = as_spikes(leaves.spikes, "times") if path == "times" else leaves.spikes
        loss = 0.0
        for layer in hidden:
            x, _ = LAYERS[path](x, layer._replace(factor=1.0), rule, "subtract", linear_backend)
            for per in ("neuron", "sample"):
                counts = spike_count(x, per)
                loss = loss + (counts * weights[: len(counts)].sqrt()).sum()
        value = leaky_readout(
            F.linear(x, last.weight, last.bias), leaves.beta, backend=linear_backend
        )
        loss = loss + (value * given.g).sum()
        wanted = [x for layer in hidden for x in layer[:4]]
        if path == "times":

            def forbidden(self):
                raise AssertionError("a dense gradient was made")

            monkeypatch.setattr(FactoredGradient, "to_dense", forbidden)
        results.append([loss.detach(), *torch.autograd.grad(loss, wanted)])
        monkeypatch.undo()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


@pytest.mark.parametrize("per", ["neuron", "sample"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_spike_count(per, dtype):
    times = torch.tensor([[[0, -1], [3, 2]], [[-1, -1], [3, 0]], [[-1, -1], [1, -1]]])
    spikes = SpikeTimes(times, 4, dtype=dtype)
    expected = [1, 0, 3, 2] if per == "neuron" else [3, 2, 1]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    leaf = spikes.to_dense().requires_grad_()
    high = SpikeTimes(times, 4, height=torch.tensor(2.0, dtype=dtype))
    for some, factor in ((spikes, 1), (leaf, 1), (SpikeTimes.from_dense(leaf), 1), (high, 2)):
        counts = spike_count(some, per)
        assert counts.dtype == state
        assert counts.tolist() == [factor * n for n in expected]
        if some.requires_grad:
            scale = torch.arange(1.0, 1 + len(expected))
            (grad,) = torch.autograd.grad((counts * scale).sum(), leaf)
            shape = (1, 1, 2, 2) if per == "neuron" else (1, 3, 1, 1)
            assert torch.equal(grad, scale.to(dtype).view(shape).expand(leaf.shape))
    assert spike_count(SpikeTimes(times[:0], 4), per).tolist() == [0] * (4 * (per == "neuron"))


def test_spikes_that_cannot_be_counted():
    with pytest.raises(ValueError, match="per='train' is not known"):
        spike_count(torch.zeros(4, 1, 2), per="train")
    with pytest.raises(ValueError, match="all steps are expected at once"):
        spike_count(SpikeTimes(torch.zeros(1, 2).int(), 4).fold())
    with pytest.raises(TypeError, match="must be floating-point"):
        spike_count(torch.zeros(4, 1, 2).int())


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_spikes_that_go_several_ways(rule, linear_backend):
    """Two layers, a dense tensor, their own times: the gradients meet at the layer before."""
    device = device_of(linear_backend)
    given = on(device, problem(15, 3, (6, 5, 4), seed=4))
    results = []
    for path in ("times", "dense"):
        leaves = leaves_of(given)
        first, second = leaves.layers
        x = as_spikes(leaves.spikes, "times") if path == "times" else leaves.spikes
        hidden, interpolated_times = LAYERS[path](x, first, rule, "none", linear_backend)
        one, _ = LAYERS[path](hidden, second, rule, "none", linear_backend)
        two = leaky_readout(
            F.linear(hidden, second.weight), second.beta, reduction="max", backend=linear_backend
        )
        ways = [hidden, one, x]
        if path == "times":
            ways = [way.to_dense() for way in ways]
        ramp = torch.arange(15.0, device=device, dtype=torch.float64).sqrt()[:, None, None]
        loss = two.square().sum() + sum((way * ramp).sum() for way in ways)
        if interpolated_times is not None:
            loss = loss + interpolated_times.square().sum()
        wanted = [leaves.spikes, *first, *second]
        results.append([loss.detach(), *torch.autograd.grad(loss, wanted)])
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


def test_a_loss_on_the_times_alone(linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    for path in ("module", "dense"):
        net = net_of(path, device, linear_backend, gradient="spike_time", **LEARNS)
        if path == "module":
            interpolated_times = net(spikes).interpolated_times
        else:
            interpolated_times = single_spike_leaky(
                net[0](spikes.to_dense()), net[1].beta, net[1].threshold, gradient="spike_time"
            ).times
        assert (interpolated_times > 0).any()
        interpolated_times.square().sum().backward()
        results.append([interpolated_times.detach(), *(x for x in gradients(net) if x is not None)])
        assert net_parameters(net)["graded_spikes_factor"].grad is None or not net_parameters(net)[
            "graded_spikes_factor"
        ].grad.any()  # fmt: skip
    for mine, right in zip(results[0], results[1], strict=False):
        if mine.shape == right.shape:
            assert relative_error(mine, right) < 1e-10


def net_parameters(net):
    return {name.rpartition(".")[2]: p for name, p in net.named_parameters()}


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("reset", RESETS)
def test_a_loss_on_the_membrane(reset, rule, linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    h = torch.randn(17, 4, 9, dtype=torch.float64, device=device)
    for path in ("neuron", "dense"):
        net = net_of(
            path,
            device,
            linear_backend,
            gradient=rule,
            reset_mechanism=reset,
            output=True,
            **LEARNS,
        )
        out, mem = net(spikes if path == "neuron" else spikes.to_dense())
        assert mem.shape == (17, 4, 9)
        assert mem.requires_grad
        ((mem * h).sum() + (out * h).sum()).backward()
        results.append([mem + 0, *gradients(net)])
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


def test_an_initial_membrane_takes_dense_tensors(linear_backend):
    device = device_of(linear_backend)
    lin, neuron = net_of("neuron", device, linear_backend)
    neuron.init_hidden = False
    start = torch.rand(4, 9, dtype=torch.float64, device=device)
    spikes, mem = neuron(lin(inputs(device)), start)
    dense = SingleSpikeLeaky(0.8, backend=linear_backend).double().to(device)
    right, right_mem = dense(lin(inputs(device).to_dense()), start)
    assert torch.equal(spikes.to_dense(), right)
    assert torch.equal(mem, right_mem)
    with pytest.raises(TypeError, match="mem must be a torch.Tensor or None, not float"):
        neuron(lin(inputs(device)), 0.0)
    again, _ = neuron(lin(inputs(device)), torch.zeros(0, device=device))  # of reset_mem()
    assert torch.equal(again.times, neuron(lin(inputs(device)))[0].times)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_graph_kept_for_a_second_pass(rule, linear_backend):
    device = device_of(linear_backend)
    hidden = net_of("module", device, linear_backend, gradient=rule, **LEARNS)
    torch.manual_seed(1)
    output = nn.Linear(9, 2).double().to(device)
    scores = LeakyReadout(0.9, backend=linear_backend)(output(hidden(inputs(device))))
    scores.square().sum().backward(retain_graph=True)
    once = [*gradients(hidden), output.weight.grad]
    once = [x.clone() for x in once if x is not None]
    scores.square().sum().backward()
    twice = [x for x in [*gradients(hidden), output.weight.grad] if x is not None]
    assert all(x.any() for x in once)
    for one, two in zip(once, twice, strict=True):
        assert torch.equal(2 * one, two)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_without_a_gradient(rule, linear_backend):
    device = device_of(linear_backend)
    net = net_of("module", device, linear_backend, gradient=rule, **LEARNS)
    spikes = net(inputs(device))
    with torch.no_grad():
        quiet = net(inputs(device))
    with torch.inference_mode():
        inferred = net(inputs(device))
        assert torch.equal(inferred.to_dense(), spikes.to_dense())
    for other in (quiet, inferred, spikes.detach()):
        assert torch.equal(other.times, spikes.times)
        assert not other.requires_grad
        assert not other.to_dense().requires_grad
        if rule == "spike_time":
            assert torch.equal(other.interpolated_times, spikes.interpolated_times)
            assert not other.interpolated_times.requires_grad
    assert spikes.requires_grad
    frozen = net_of("module", device, linear_backend, gradient=rule).requires_grad_(False)
    assert not frozen(inputs(device)).requires_grad


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "input"])
def test_some_leaves_need_no_gradient(frozen, rule, linear_backend):
    given = on(device_of(linear_backend), problem(15, 3, (6, 5, 4, 2), seed=4))
    results = []
    for path in ("times", "dense"):
        leaves = leaves_of(given)
        names = {"weight": ["weight"], "bias": ["bias"], "both": ["weight", "bias"], "input": []}
        for name in names[frozen]:
            getattr(leaves.layers[1], name).requires_grad_(False)
        x = leaves.spikes.detach() if frozen == "input" else leaves.spikes
        x = as_spikes(x, "times") if path == "times" else x
        for layer in leaves.layers[:2]:
            x, _ = LAYERS[path](x, layer, rule, "none", linear_backend)
        value = leaky_readout(
            F.linear(x, leaves.layers[2].weight), given.beta, backend=linear_backend
        )
        (value * given.g).sum().backward()
        results.append([x.grad for x in (leaves.spikes, *leaves.layers[0], *leaves.layers[1])])
    assert any(grad is None for grad in results[0])
    for mine, right in zip(*results, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            assert relative_error(mine, right) < 1e-10


def test_no_bias(linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    for bias in (None, torch.zeros(5, dtype=torch.float64, device=device)):
        weight = torch.ones(5, 12, dtype=torch.float64, device=device).cumsum(0) / 9
        out = single_spike_linear(spikes, weight, bias, 0.9, backend=linear_backend)
        results.append(out.times)
    assert torch.equal(*results)
    assert (results[0] >= 0).any()
    module = SingleSpikeLinear(12, 5, 0.9, bias=False)
    assert module.bias is None
    assert "bias" not in module.state_dict()
    assert "bias=False" in repr(module)
    assert module(inputs()).shape == (17, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_half_precision_weights_with_float32_state(rule, dtype, linear_backend):
    device = device_of(linear_backend)
    given = problem(15, 3, (6, 5, 2), dtype=torch.float32, seed=2)
    # Quarters make half types exact, so that only rounding of gradients is left.
    first, last = (
        Layer(*((x * 4).round() / 4 for x in layer[:2]), *layer[2:]) for layer in given.layers
    )
    results = []
    for kind in (dtype, torch.float32):
        w1, b1, w2, b2 = (x.to(device, kind).requires_grad_() for x in (*first[:2], *last[:2]))
        beta = first.beta.to(device).requires_grad_()
        spikes = SpikeTimes.from_dense(given.spikes.to(device))
        hidden = single_spike_linear(
            spikes, w1, b1, beta, 0.5, gradient=rule, backend=linear_backend
        )
        assert hidden.dtype == hidden.to_dense().dtype == kind
        value = leaky_readout(F.linear(hidden, w2, b2), 0.9, backend=linear_backend)
        assert value.dtype == kind
        value.float().sum().backward()
        results.append([x.grad for x in (w1, b1, beta, w2, b2)])
        assert [x.dtype for x in results[-1]] == [kind, kind, torch.float32, kind, kind]
    for mine, right in zip(*results, strict=True):
        assert right.any()
        assert relative_error(mine, right) < 8 * torch.finfo(dtype).eps


def soft(u):
    path = torch.sigmoid(4 * u)
    return path + ((u > 0).to(u) - path).detach()


@pytest.mark.parametrize("learns", ["all", "neuron"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_surrogate_of_the_users_own(rule, learns, linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    for path in ("module", "neuron", "dense"):
        net = net_of(path, device, linear_backend, gradient=rule, spike_grad=soft, **LEARNS)
        if learns == "neuron":
            net_parameters(net)["weight"].requires_grad_(False)
            net_parameters(net)["bias"].requires_grad_(False)
        out = net(spikes.to_dense() if path == "dense" else spikes)
        out = out if path == "dense" else out.to_dense()
        (out.cumsum(0)).square().sum().backward()
        results.append([out.detach(), *gradients(net)])
    assert results[0][1] is not None
    for result in results[:2]:
        for mine, right in zip(result, results[2], strict=True):
            assert (mine is None) == (right is None)
            if mine is not None:
                assert relative_error(mine, right) < 1e-10


def test_a_surrogate_that_learns(linear_backend):
    device = device_of(linear_backend)
    slope = torch.tensor(4.0, dtype=torch.float64, device=device, requires_grad=True)

    def learned(u):
        path = torch.sigmoid(slope * u)
        return path + ((u > 0).to(u) - path).detach()

    net = net_of("module", device, linear_backend, spike_grad=learned).requires_grad_(False)
    net(inputs(device)).to_dense().sum().backward()
    assert slope.grad.abs() > 0


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("path", ["module", "neuron"])
def test_surrogate_disable_stops_gradients_from_spikes(path, rule, linear_backend):
    device = device_of(linear_backend)
    net = net_of(path, device, linear_backend, gradient=rule, surrogate_disable=True)
    spikes = net(inputs(device))
    assert not spikes.requires_grad
    assert not spikes.to_dense().requires_grad
    if rule == "spike_time":
        assert spikes.interpolated_times.requires_grad  # as the times of single_spike_leaky


# Memory, threads, what lasts


class Largest(TorchDispatchMode):
    """The largest storage that any operation of torch returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if type(x) is Tensor:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("backend", runnable("numba"))
def test_nothing_of_the_size_of_time_under_spike_time(backend):
    num_steps = 1 << 15
    times = torch.tensor([[100, 101, num_steps - 1, -1], [7, 8, 20000, 20000]])
    layer = SingleSpikeLinear(4, 3, 0.9, gradient="spike_time", backend=backend, learn_beta=True)
    second = SingleSpikeLinear(3, 3, 0.9, gradient="spike_time", backend=backend)
    for module in (layer, second):  # two spikes of a sample make one
        module.weight.data.fill_(0.6)
        module.bias.data.zero_()
    output = nn.Linear(3, 2)
    spikes = SpikeTimes(times, num_steps)
    with Largest() as largest:
        hidden = second(layer(spikes))
        value = LeakyReadout(0.9, backend=backend)(output(hidden)).sum()
        (value + hidden.interpolated_times.sum()).backward()
        assert largest.bytes < num_steps
        assert layer.weight.grad.any()
        assert layer.beta.grad.any()
        assert hidden.count().tolist() == [3, 3]
        hidden.to_dense()
        assert largest.bytes >= num_steps  # it does see


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("backend", runnable("torch", "numba"))
def test_nothing_of_the_size_of_time_is_kept(rule, backend):
    num_steps, kept = 2000, []

    def keep(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    layer = SingleSpikeLinear(4, 3, 0.9, gradient=rule, backend=backend, learn_beta=True)
    output = nn.Linear(3, 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = layer(SpikeTimes(torch.tensor([[0, 1999, 5, -1]]), num_steps))
        LeakyReadout(0.9, learn_beta=True, backend=backend)(output(hidden))
    assert kept
    assert max(kept) < num_steps


def test_the_membrane_is_made_once_and_when_it_is_used(monkeypatch, linear_backend):
    import snn_single_spike.modules.leaky as module

    calls = []
    real = module.run_single_spike
    monkeypatch.setattr(
        module, "run_single_spike", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    device = device_of(linear_backend)
    net = net_of("neuron", device, linear_backend, output=True)
    _, mem = net(inputs(device))
    assert mem.shape == (17, 4, 9)
    assert calls == []
    mem.sum()
    mem.mean()
    assert calls == [1]


def test_a_membrane_is_that_of_the_call():
    lin, neuron = net_of("neuron", output=True)
    with torch.no_grad():
        _, quiet = neuron(lin(inputs()))
        _, mem = neuron(lin(inputs()))
        right = mem.to_dense().clone()
    assert not quiet.requires_grad
    assert torch.equal(quiet.to_dense(), right)
    assert not quiet.to_dense().requires_grad
    for changed in (lin.weight, lin.bias, neuron.beta, neuron.threshold):
        _, used = neuron(lin(inputs()))
        used.to_dense()
        _, late = neuron(lin(inputs()))
        with torch.no_grad():
            changed.mul_(0.5)
        assert used.to_dense().shape == (17, 4, 9)  # made before the change
        with pytest.raises(RuntimeError, match="has been changed in place since"):
            late.to_dense()


def test_two_runs_are_equal_bit_for_bit(linear_backend):
    """More lanes and samples than one thread takes."""
    given = on(device_of(linear_backend), problem(20, 21, (30, 270, 4), dtype=torch.float32))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for rule in ("masked", "spike_time"):
            one, two = (run("times", given, (rule,), backend=linear_backend) for _ in range(2))
            assert torch.equal(one[0][0], two[0][0])
            for mine, right in zip(one[1], two[1], strict=True):
                assert torch.equal(mine, right)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("sizes", [(30, 140, 4), (20, 5, 4)], ids=["tiles", "samples"])
def test_threads_change_nothing(sizes, rule, linear_backend):
    given = on(device_of(linear_backend), problem(30, 37, sizes))
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            runs.append(run("times", given, (rule,), backend=linear_backend))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert_close(other, runs[0], 1e-10)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_pieces_of_a_batch_change_nothing(rule, monkeypatch, linear_backend):
    given = on(device_of(linear_backend), problem(30, 11, (20, 140, 130, 4), dtype=torch.float64))
    expected = run("times", given, (rule, rule), backend=linear_backend)
    from snn_single_spike import backends

    module = backends.load(linear_backend, "linear")
    name, size = (
        ("_ELEMENTS", 30 * 140 * 3) if linear_backend == "torch" else ("_ROWS_BYTES", 99_000)
    )
    monkeypatch.setattr(module, name, size, raising=linear_backend != "triton")
    assert_close(run("times", given, (rule, rule), backend=linear_backend), expected, 1e-10)


def test_graphs_are_freed():
    gc.collect()
    gc.disable()
    try:
        net = nn.Sequential(
            SingleSpikeLinear(12, 9, 0.9),
            nn.Linear(9, 8),
            SingleSpikeLeaky(0.9, spike_format="times"),
        )
        net = net.double()
        spikes, mem = net(inputs())
        (mem.sum() + spikes.to_dense().sum()).backward()
        import weakref

        gone = weakref.ref(spikes), weakref.ref(mem)
        del spikes, mem
        assert [x() for x in gone] == [None, None]  # by their last reference, without a search
    finally:
        gc.enable()


@pytest.mark.parametrize("learn", [False, True])
def test_state_dicts_load_strictly_both_ways(learn):
    options = {
        "learn_beta": learn,
        "learn_threshold": learn,
        "learn_graded_spikes_factor": learn,
    }
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Linear(12, 9), SingleSpikeLeaky(0.7, init_hidden=True, **options))
    module = SingleSpikeLinear(12, 9, 0.5, **options)
    joined = {name.split(".")[1]: value for name, value in pair.state_dict().items()}
    assert set(joined) == set(module.state_dict())
    module.load_state_dict(joined, strict=True)
    spikes = SpikeTimes(inputs().times, 17)
    assert torch.equal(module(spikes).to_dense(), pair(spikes.to_dense()))
    own = {"weight": "0", "bias": "0"}
    back = {f"{own.get(name, '1')}.{name}": value for name, value in module.state_dict().items()}
    pair.load_state_dict(back, strict=True)
    assert dict(module.named_parameters()).keys() == {
        name.split(".")[1] for name, _ in pair.named_parameters()
    }


def test_initialised_as_torch_does():
    torch.manual_seed(0)
    module = SingleSpikeLinear(12, 9, 0.9, dtype=torch.float64)
    torch.manual_seed(0)
    assert torch.equal(module.weight, nn.Linear(12, 9, dtype=torch.float64).weight)
    meta = SingleSpikeLinear(12, 9, 0.9, device="meta").weight
    assert (meta.shape, meta.device.type) == ((9, 12), "meta")
    assert "12, 9, bias=True" in repr(module)
    assert "spike_format='times'" in repr(module)


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_after_a_forward(how):
    net = SingleSpikeLinear(12, 9, 0.9, learn_beta=True, spike_grad=FAST, gradient="spike_time")
    spikes = SpikeTimes(inputs().times, 17)
    expected = net(spikes)
    expected.interpolated_times.sum().backward()
    if how == "deepcopy":
        other = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(spikes).times, expected.times)
    assert other(spikes).requires_grad
    assert other.weight.data_ptr() != net.weight.data_ptr()
    assert repr(other) == repr(net)


def test_one_step_at_a_time_goes_through_the_weights():
    net = net_of("module")
    state, num_steps = None, []
    for x in inputs().to_dense():
        out, state = net.step(x, state)
        num_steps.append(out)
    assert torch.equal(torch.stack(num_steps), net(inputs()).to_dense())
    assert torch.stack(num_steps).any()


@pytest.mark.parametrize("path", ["module", "neuron"])
def test_compiled(path):
    """Whole or in pieces, with the same spikes and gradients."""
    torch._dynamo.reset()
    net = nn.Sequential(net_of(path), nn.Linear(9, 2).double(), LeakyReadout(0.9))
    compiled = torch.compile(net, backend="aot_eager")
    results = []
    for call, x in ((net, inputs()), (compiled, inputs()), (compiled, inputs().to_dense())):
        net.zero_grad()
        out = call(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    assert results[0][1].any()
    for result in results[1:]:
        for mine, right in zip(result, results[0], strict=True):
            assert relative_error(mine, right) < 1e-10


def test_what_a_compiler_returns():
    torch._dynamo.reset()
    module, spikes = net_of("module"), inputs()
    made = torch.compile(module, backend="aot_eager")(spikes)
    assert type(made) is Tensor
    assert torch.equal(made, module(spikes).to_dense())
    weight = module.weight.detach()

    @torch.compile(backend="aot_eager")
    def run(spikes):
        return single_spike_linear(spikes, weight, None, 0.9, gradient="spike_time")

    made, right = run(spikes), single_spike_linear(spikes, weight, None, 0.9, gradient="spike_time")
    assert torch.equal(made.times, right.times)
    assert torch.allclose(made.interpolated_times, right.interpolated_times)


def test_a_hook_that_changes_a_gradient_in_place_is_refused():
    given = leaves_of(problem(15, 3, (6, 5, 4)))
    hidden, _ = layer_by_times(
        as_spikes(given.spikes, "times"), given.layers[0], "masked", "none", "auto"
    )
    hidden.carrier.register_hook(lambda grad: grad.mul_(0))
    with pytest.raises(TypeError, match="mul_.*use the operation that returns a new tensor"):
        leaky_readout(F.linear(hidden, given.layers[1].weight), 0.9).sum().backward()


@pytest.mark.parametrize("backend", runnable("torch", "numba", "triton"))
def test_a_bias_that_is_not_contiguous(backend):
    device = device_of(backend)
    spikes = SpikeTimes(torch.randint(0, 20, (3, 6), device=device), 20)
    weight = torch.randn(4, 6, device=device)
    for bias in (torch.rand(4, 2, device=device)[:, 0], torch.rand(1, device=device).expand(4)):
        times = [
            single_spike_linear(spikes, weight, b, 0.9, backend=backend).times
            for b in (bias, bias.clone(memory_format=torch.contiguous_format))
        ]
        assert torch.equal(*times)


def test_another_default_device(linear_backend):
    times, x = torch.zeros(4, 6, dtype=torch.long), torch.rand(3, 70, 1000)
    weight = torch.rand(3, 6)
    torch.set_default_device("meta")
    try:
        found = single_spike_linear(
            SpikeTimes(times, 10), weight, None, 0.9, backend=linear_backend
        ).times
        single_spike_leaky(x.requires_grad_(), 0.9, backend=linear_backend)
    finally:
        torch.set_default_device(None)
    assert found.device.type == "cpu"


def test_anomaly_detection_and_hooks_see_dense_gradients():
    given = leaves_of(problem(15, 3, (6, 5, 4)))
    seen = []
    hidden, _ = layer_by_times(
        as_spikes(given.spikes, "times"), given.layers[0], "masked", "none", "auto"
    )
    hidden.carrier.register_hook(lambda grad: seen.append(grad + 0))
    with torch.autograd.set_detect_anomaly(True):
        leaky_readout(F.linear(hidden, given.layers[1].weight), 0.9).sum().backward()
    assert type(seen[0]) is Tensor
    assert seen[0].shape == (15, 3, 5)
    assert given.spikes.grad.any()


# What is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spikes": torch.zeros(5, 2, 3)}, TypeError, r"SpikeTimes.from_dense\(spikes\) or Spik"),
        ({"spikes": None}, TypeError, "not NoneType"),
        (
            {"spikes": SpikeTimes(torch.zeros(2, 3, 1, dtype=torch.int8), 5)},
            ValueError,
            r"one feature dimension is expected, \(time, batch, in\): use spikes.flatten\(2\)",
        ),
        (
            {"weight": torch.zeros(4, 2)},
            ValueError,
            "have 3 features, but the linear layer takes 2",
        ),
        ({"bias": torch.zeros(3)}, ValueError, r"bias has shape \(3,\)"),
        ({"beta": torch.ones(3)}, ValueError, r"beta has shape \(3,\), which does not broadcast"),
        ({"beta": math.nan}, ValueError, "beta is NaN"),
        ({"beta": "a"}, TypeError, "beta must be a number or a tensor, not str"),
        ({"beta": torch.ones(4).double()}, TypeError, "beta has dtype torch.float64"),
        ({"threshold": torch.ones(3)}, ValueError, r"threshold has shape \(3,\)"),
        ({"graded_spikes_factor": torch.ones(3)}, ValueError, r"graded_spikes_factor has shape"),
        ({"gradient": "exact"}, ValueError, "gradient='exact'"),
        ({"reset_mechanism": "clear"}, ValueError, "reset_mechanism='clear'"),
        ({"backend": "jax"}, ValueError, "backend='jax' is not known"),
        ({"spike_grad": 3}, TypeError, "spike_grad=3 cannot be called"),
    ],
)
def test_arguments_that_are_refused(change, error, message):
    given = {
        "spikes": SpikeTimes(torch.zeros(2, 3, dtype=torch.int8), 5),
        "weight": torch.zeros(4, 3),
        "bias": None,
        "beta": 0.9,
    }
    with pytest.raises(error, match=message):
        single_spike_linear(**(given | change))


@pytest.mark.parametrize("option", ["init_hidden", "output", "spike_format"])
def test_options_that_the_module_does_not_have(option):
    with pytest.raises(TypeError, match=f"SingleSpikeLinear has no {option}: it returns spike ti"):
        SingleSpikeLinear(3, 4, 0.9, **{option: True})


def test_other_options_that_are_refused():
    with pytest.raises(ValueError, match="spike_format='events'"):
        SingleSpikeLeaky(0.9, spike_format="events")
    with pytest.raises(TypeError, match="unexpected keyword argument 'spam'"):
        SingleSpikeLinear(3, 4, 0.9, spam=1)
    with pytest.raises(ValueError, match="beta contains NaN"):
        SingleSpikeLinear(3, 4, math.nan)
    with pytest.raises(ValueError, match="reduction='mean'"):
        leaky_readout(F.linear(inputs(), torch.zeros(2, 12).double()), 0.9, reduction="mean")
    with pytest.raises(ValueError, match=r"beta has shape \(3,\), which does not broadcast"):
        leaky_readout(F.linear(inputs(), torch.zeros(2, 12).double()), torch.ones(3).double())


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_spikes_of_height_0_from_a_dense_current_are_spikes(rule):
    current = torch.full((5, 2, 3), 0.6)
    height = torch.tensor([0.0, 1.0, 2.0])
    lif = SingleSpikeLeaky(
        0.9, graded_spikes_factor=height, gradient=rule, init_hidden=True, spike_format="times"
    )
    spikes = lif(current)
    assert torch.equal(spikes.times, torch.ones(2, 3, dtype=torch.int8))
    assert torch.equal(spikes.to_dense()[1], height.expand(2, 3))


@pytest.mark.parametrize(
    ("spikes", "kind", "message"),
    [
        (torch.zeros(5, 2, 3), ValueError, r"\(time, batch, 4\) is expected.*in_features=3"),
        (torch.zeros(5, 2, 1, 4), ValueError, r"use spikes.flatten\(2\)"),
        (SpikeTimes(torch.zeros(2, 2, 2, dtype=int), 5), ValueError, r"use spikes.flatten\(2\)"),
        (torch.zeros(5, 2, 4, dtype=int), TypeError, r"use spikes.float\(\)"),
        (torch.zeros(2, 4), ValueError, "the whole sequence is expected"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_input_that_does_not_fit_the_layer(spikes, kind, message):
    with pytest.raises(kind, match=message):
        SingleSpikeLinear(4, 6, beta=0.9)(spikes)
