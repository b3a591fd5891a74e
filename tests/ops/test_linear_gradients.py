"""Gradients of linear layers from spike times, against dense tensors and the step reference."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from snn_single_spike import SpikeTimes
from snn_single_spike.functional import single_spike_linear
from snn_single_spike.ops.validation import GRADIENT_RULES, REDUCTIONS, RESETS

from tests.support.devices import device_of
from tests.support.linear_problems import (
    CPU_BACKENDS,
    KINDS,
    LAYERS,
    Layer,
    as_spikes,
    assert_close,
    expected_by_steps,
    leaves_of,
    on,
    problem,
    readout,
    run,
    small,
)
from tests.support.oracle import relative_error, rounding_decides_a_peak

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
    first = given.layers[0]
    current = F.linear(given.spikes, first.weight, first.bias)
    assume(
        rule != "spike_time" or not rounding_decides_a_peak(current, first.beta, first.threshold)
    )
    expected = run("dense", given, (rule,), reset, reduction, "torch")
    for backend in CPU_BACKENDS:
        actual = run("times", given, (rule,), reset, reduction, backend)
        assert_close(actual, expected, 1e-7)  # a slow crossing divides by a small number


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_spikes_that_go_several_ways(rule, linear_backend):
    """Two layers, a dense tensor and the times add their gradients at the layer before."""
    device = device_of(linear_backend)
    given = on(device, problem(15, 3, (6, 5, 4), seed=4))
    results = []
    for path in ("times", "dense"):
        leaves = leaves_of(given)
        first, second = leaves.layers
        x = as_spikes(leaves.spikes, "times") if path == "times" else leaves.spikes
        hidden, interpolated_times = LAYERS[path](x, first, rule, "none", linear_backend)
        one, _ = LAYERS[path](hidden, second, rule, "none", linear_backend)
        two = readout(
            hidden, second.weight, None, second.beta, reduction="max", backend=linear_backend
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
        value = readout(x, leaves.layers[2].weight, None, given.beta, backend=linear_backend)
        (value * given.g).sum().backward()
        results.append([x.grad for x in (leaves.spikes, *leaves.layers[0], *leaves.layers[1])])
    assert any(grad is None for grad in results[0])
    for mine, right in zip(*results, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            assert relative_error(mine, right) < 1e-10


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
        value = readout(hidden, w2, b2, 0.9, backend=linear_backend)
        assert value.dtype == kind
        value.float().sum().backward()
        results.append([x.grad for x in (w1, b1, beta, w2, b2)])
        assert [x.dtype for x in results[-1]] == [kind, kind, torch.float32, kind, kind]
    for mine, right in zip(*results, strict=True):
        assert right.any()
        assert relative_error(mine, right) < 8 * torch.finfo(dtype).eps
