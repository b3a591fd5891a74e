"""Gradients of gradients, against the step-by-step reference and against snnTorch."""

import functools
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as of_snntorch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes
from snn_single_spike.backends._surrogate import SURROGATES
from snn_single_spike.backends._types import GRADIENT_RULES, REDUCTIONS, RESETS
from snn_single_spike.functional import leaky_readout, single_spike_leaky, spike_count
from snn_single_spike.losses import first_spike_times
from snn_single_spike.ops import neuron as operators

from tests.support import sequential
from tests.support.covering import spread
from tests.support.neurons import LEAKY, LEARN, NEURONS, build, dense_case, leaf, leaves_of
from tests.support.oracle import relative_error
from tests.support.surrogates import differentiable, fused

pytestmark = pytest.mark.usefixtures("one_thread")


def second_derivatives(case, outputs, leaves):
    """First gradients of a weighted sum of the outputs, and gradients of their weighted sum.

    The loss is linear in the outputs, so every second derivative comes from the neurons.
    """
    upstream = {name: leaf(weights) for name, weights in case.loss.items()}
    loss = sum((outputs[name] * weights).sum() for name, weights in upstream.items())
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
    found = {"d" + name: grad for name, grad in zip(leaves, first, strict=True) if grad is not None}
    draw = torch.Generator().manual_seed(2)
    penalty = torch.zeros(())
    for grad in found.values():
        weights = torch.randn(grad.shape, generator=draw, dtype=grad.dtype)
        penalty = penalty + (weights * grad).sum() + grad.square().sum()
    roots = leaves | {"g_" + name: weights for name, weights in upstream.items()}
    second = torch.autograd.grad(penalty, list(roots.values()), allow_unused=True)
    found |= {
        "dd" + name: torch.zeros_like(root) if grad is None else grad
        for (name, root), grad in zip(roots.items(), second, strict=True)
    }
    return {name: grad.detach() for name, grad in found.items()}


def ours(kind, case, spike_grad, **options):
    neuron, learned = build(kind.ours, kind, case, spike_grad, gradient=case.rule, **options)
    leaves = leaves_of(case)
    given = {name: leaves["_" + name] for name in case.states}
    out = neuron(leaves["x"] @ leaves["weight"], **given)
    outputs = dict(zip(kind.outputs, out if isinstance(out, tuple) else (out,), strict=False))
    return second_derivatives(case, outputs, leaves | learned)


@functools.cache
def reference(kind, case, surrogate):
    learned = {k: leaf(v) for k, v in case.parameters.items() if k in LEARN | {"factor"}}
    leaves = leaves_of(case)
    trace = sequential.run(
        kind.step,
        leaves["x"] @ leaves["weight"],
        case.parameters | learned,
        {name: leaves["_" + name] for name in case.states},
        differentiable(surrogate),
        case.rule,
        case.reset,
    )
    return second_derivatives(case, {"spk": trace.spikes, **trace.states}, leaves | learned)


def assert_same(actual, expected):
    assert {name for name in expected if expected[name].any()} <= set(actual)
    for name, mine in actual.items():
        error = relative_error(mine, expected[name])
        assert error <= 1e-9, f"{name} differs by {error:.1e} relative"


@pytest.mark.parametrize(
    ("neuron", "rule", "reset", "surrogate"),
    spread(list(SURROGATES), NEURONS, GRADIENT_RULES, RESETS),
)
def test_dense_neurons(neuron, rule, reset, surrogate):
    kind, case = NEURONS[neuron], dense_case(neuron, rule, reset)
    actual = ours(kind, case, fused(surrogate))
    expected = reference(kind, case, surrogate)
    assert {"ddx", "ddthreshold", "ddfactor", "dd_mem", "ddg_spk", "ddg_mem"} <= set(actual)
    assert_same(actual, expected)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_without_the_membrane_the_current_is_saved(rule, cpu_backend):
    """With init_hidden the neuron returns no membrane, and integrates the current again."""
    case = dense_case("Leaky", rule, "subtract")
    case = replace(case, loss={"spk": case.loss["spk"]}, states={})
    actual = ours(LEAKY, case, fused("atan"), init_hidden=True, backend=cpu_backend)
    expected = reference(LEAKY, case, "atan")
    assert actual["ddx"].any()
    assert_same(actual, expected)


def penalty_of(neuron, w, x):
    spk = neuron(w * x, torch.zeros_like(x))
    spk = spk[0] if isinstance(spk, tuple) else spk
    (slope,) = torch.autograd.grad(spk.sum(), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), w)[0]


@pytest.mark.parametrize("name", [name for name in SURROGATES if name != "LSO"])  # it raises there
def test_one_step_is_that_of_snntorch(name):
    w, x = torch.tensor(0.5, requires_grad=True), torch.rand(1, 1, 40).mul(8).requires_grad_()
    theirs = snn.Leaky(0.9, spike_grad=fused(name))
    mine = SingleSpikeLeaky(0.9, spike_grad=fused(name))
    expected = penalty_of(theirs, w, x)
    assert expected != 0
    torch.testing.assert_close(
        penalty_of(lambda current, mem: mine(current), w, x), expected, rtol=1e-5, atol=0
    )


def test_a_penalty_of_the_gradient_reaches_the_surrogate():
    w, x = torch.tensor(0.5, requires_grad=True), torch.full((1, 1, 1), 0.8, requires_grad=True)
    found = penalty_of(lambda current, mem: SingleSpikeLeaky(0.9)(current), w, x)
    # s'(u) = 1 / (1 + (pi u)^2) at u = w x - 1, and the penalty is (w s')^2.
    u = 0.8 * 0.5 - 1
    slope = 1 / (1 + (torch.pi * u) ** 2)
    bend = -2 * torch.pi**2 * u * slope**2
    assert found.item() == pytest.approx(2 * 0.5 * slope**2 + 2 * 0.25 * slope * bend * 0.8)


def test_silent_neurons_are_those_of_snntorch():
    weight = torch.rand(3, 4).requires_grad_()

    def penalty(run):
        x = 0.1 * torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(1))
        spikes = run(nn.functional.linear(x.requires_grad_(), weight))
        (grad,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), weight)[0]

    def loop(current):
        neuron, mem, spikes = snn.Leaky(0.9, reset_mechanism="none"), torch.zeros(2, 3), []
        for step in current:
            spk, mem = neuron(step, mem)
            spikes.append(spk)
        assert not torch.stack(spikes).any()
        return torch.stack(spikes)

    mine = penalty(lambda x: SingleSpikeLeaky(0.9, reset_mechanism="none")(x)[0])
    torch.testing.assert_close(mine, penalty(loop))


@pytest.mark.parametrize("rule", ["masked", "straight_through", "pre_spike"])
def test_a_custom_surrogate(rule):
    """Autograd differentiates it, twice."""

    def custom(u):
        return of_snntorch.atan(alpha=3.0)(u.float()).to(u)

    case = dense_case("Leaky", rule, "zero")
    actual, expected = ours(LEAKY, case, custom), reference(LEAKY, case, "atan")
    for name in expected:
        assert relative_error(actual[name], expected[name]) < 1e-5, name


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_any_order(rule):
    """Finite differences of second derivatives: the third derivatives, where no step changes."""
    g = torch.randn(5, 2, 3, dtype=torch.float64)
    weights = torch.randn(2, 3, dtype=torch.float64)

    def first(current, beta):
        out = single_spike_leaky(current, beta, gradient=rule)
        loss = (out.spikes * g).sum() + (out.mem * g.flip(0)).sum()
        if rule == "spike_time":
            loss = loss + (out.times * weights).sum()
        return torch.autograd.grad(loss, (current, beta), create_graph=True)

    current = torch.randn(5, 2, 3, dtype=torch.float64).add(0.3).requires_grad_()
    beta = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(first, (current, beta), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradgradcheck(first, (current, beta), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    current = torch.randn(5, 2, 3)
    found = []
    for kind in (dtype, torch.float32):
        x = current.to(dtype).to(kind).requires_grad_()
        out = SingleSpikeLeaky(0.9, init_hidden=True)(x)
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        assert grad.dtype == kind
        (second,) = torch.autograd.grad(grad.float().square().sum(), x)
        assert second.dtype == kind
        found.append(second.float())
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_readout_of_a_dense_current(reduction):
    x, mem = (torch.randn(size, dtype=torch.float64) for size in ((6, 2, 3), (2, 3)))

    def loss(x, mem):
        return leaky_readout(x, 0.9, mem=mem, reduction=reduction).square().sum()

    leaves = x.requires_grad_(), mem.requires_grad_()
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_a_readout_with_a_learned_beta_names_the_cure():
    x = torch.rand(6, 2, 3, requires_grad=True)
    readout = LeakyReadout(0.9, learn_beta=True)
    with pytest.raises(RuntimeError, match=r"leaky_readout.*reduction=None\)\(x\).sum\(0\)"):
        torch.autograd.grad(readout(x).sum(), x, create_graph=True)
    cured = LeakyReadout(0.9, learn_beta=True, reduction=None)
    (grad,) = torch.autograd.grad(cured(x).sum(0).sum(), x, create_graph=True)
    (d_beta,) = torch.autograd.grad(grad.sum(), cured.beta)
    assert d_beta > 0


def test_counts_and_times_of_spikes():
    """Both are linear in the spikes, from dense spikes and from spike times."""
    found = []
    for spike_format in ("dense", "times"):
        torch.manual_seed(0)
        x = torch.rand(5, 2, 3).requires_grad_()
        factor = torch.tensor(2.0)
        lif = SingleSpikeLeaky(
            0.8, graded_spikes_factor=factor, learn_graded_spikes_factor=True,
            init_hidden=True, spike_format=spike_format,
        )  # fmt: skip
        spikes = lif(x)
        times = first_spike_times(spikes, graded_spikes_factor=2.0)
        loss = spike_count(spikes, "sample").square().sum() + times.square().sum()
        leaves = (x, lif.graded_spikes_factor)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append((*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)))
    for dense, times in zip(*found, strict=True):
        assert dense.any()
        torch.testing.assert_close(times, dense)


LAYERS = {
    "SingleSpikeLeaky": lambda: nn.Sequential(nn.Linear(3, 2), SingleSpikeLeaky(
        0.9, init_hidden=True, spike_format="times")),
    "single_spike_linear": lambda: SingleSpikeLinear(3, 2, beta=0.9, gradient="spike_time"),
    "LeakyReadout": lambda: nn.Sequential(nn.Linear(3, 2), LeakyReadout(0.9)),
}  # fmt: skip


@pytest.mark.parametrize("named", LAYERS)
def test_layers_from_spike_times_refuse_a_recorded_backward_pass(named):
    net = LAYERS[named]()
    out = net(SpikeTimes(torch.tensor([[0, 1, 2], [1, 1, -1]]), num_steps=4))
    loss = (out.to_dense() if isinstance(out, SpikeTimes) else out).sum()
    weight = next(net.parameters())
    (plain,) = torch.autograd.grad(loss, weight, retain_graph=True)
    for upstream in (None, torch.tensor(1.0, requires_grad=True)):
        with pytest.raises(RuntimeError, match=rf"{named}.*\(2, 3\).*\.to_dense\(\)"):
            torch.autograd.grad(loss, weight, upstream, create_graph=True)
    # The graph is as it was.
    assert torch.equal(torch.autograd.grad(loss, weight)[0], plain)


def test_a_plain_backward_pass_runs_the_kernels(monkeypatch):
    """Without create_graph, also inside of a checkpoint and with gradients enabled around it."""

    def no(*_):
        raise AssertionError

    monkeypatch.setattr(operators.differentiable, "neuron_backward", no)
    lif = SingleSpikeLeaky(0.9, init_hidden=True)
    x = torch.rand(5, 2, 3, requires_grad=True)
    with torch.enable_grad():
        lif(x).sum().backward(retain_graph=True)
    for reentrant in (True, False):
        checkpoint(lif, x, use_reentrant=reentrant).sum().backward()
    with pytest.raises(AssertionError):
        torch.autograd.grad(lif(x).sum(), x, create_graph=True)


def test_a_compiled_backward_pass_runs_the_kernels(monkeypatch):
    """A compiler traces backward passes while gradients are enabled around it."""

    def no(*_):
        raise AssertionError

    net = nn.Sequential(SingleSpikeLeaky(0.9, init_hidden=True, learn_beta=True), LeakyReadout(0.9))
    x = torch.rand(5, 2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    monkeypatch.setattr(operators.differentiable, "neuron_backward", no)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_checkpoints_and_hessians():
    lif = SingleSpikeLeaky(0.9, init_hidden=True)
    x = torch.rand(4, 1, 3, dtype=torch.float64, requires_grad=True)

    def plain(x):
        return (lif(x) * x.detach()).sum()

    def checkpointed(x):
        return (checkpoint(lif, x, use_reentrant=False) * x.detach()).sum()

    expected = torch.autograd.functional.hessian(plain, x)
    assert expected.any()
    torch.testing.assert_close(torch.autograd.functional.hessian(checkpointed, x), expected)
    flat = expected.view(12, 12)
    torch.testing.assert_close(flat, flat.t())
    _, product = torch.autograd.functional.hvp(plain, x, torch.ones_like(x))
    torch.testing.assert_close(product.flatten(), flat.sum(0))
