"""Every backend computes the same as the step-by-step reference, with all gradients.

The tests run over the tables of the package: every declared gradient rule, reset, reduction,
surrogate and tensor of a neuron.
"""

import functools
from dataclasses import replace

import pytest
import torch

from snn_single_spike import backends
from snn_single_spike.backends._surrogate import SURROGATES
from snn_single_spike.backends._types import (
    GRADIENT_RULES,
    KERNEL_RESETS,
    REDUCTIONS,
    RESETS,
    TENSORS,
)

from tests.support import conv_problems
from tests.support.covering import spread
from tests.support.devices import device_of, runnable
from tests.support.linear_problems import KINDS, assert_close, on, problem, run
from tests.support.neurons import NEURONS, assert_same, dense_case, run_ours, run_reference
from tests.support.surrogates import fused, smooth

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.every_case]


@pytest.mark.parametrize(
    ("neuron", "rule", "reset", "surrogate"),
    spread(list(SURROGATES), NEURONS, GRADIENT_RULES, RESETS),
)
def test_dense_neurons(neuron, rule, reset, surrogate, backend):
    kind, case = NEURONS[neuron], dense_case(neuron, rule, reset)
    actual = run_ours(kind, case, backend, fused(surrogate))
    expected = run_reference(kind, case, smooth(surrogate))
    assert set(actual) == set(expected)
    assert {"spk", "mem", "dx", "d_mem", "dfactor", "dthreshold"} <= set(actual)
    assert_same(actual, expected)


@pytest.mark.parametrize(
    ("neuron", "reset", "refractory"),
    [
        (neuron, reset, (0, 1, 5)[(i + j) % 3])
        for i, neuron in enumerate(("Leaky", "Synaptic", "Lapicque"))
        for j, reset in enumerate(RESETS)
    ],
)
def test_neurons_with_a_refractory_period(neuron, reset, refractory, backend):
    """Every spike, with membranes that begin above the threshold."""
    kind, case = NEURONS[neuron], dense_case(neuron, "masked", reset)
    mem = case.states["mem"] + 2.0 * (torch.arange(3) == 1)
    case = replace(case, states=case.states | {"mem": mem}, refractory=refractory)
    expected = run_reference(kind, case, smooth("atan"))
    assert refractory == 5 or (expected["spk"] != 0).sum(0).max() > 2
    assert_same(run_ours(kind, case, backend, fused("atan")), expected)


def test_the_dense_neurons_give_every_declared_tensor_and_reset(monkeypatch):
    module = backends.load("torch", "neuron")
    real, tensors, resets = module.neuron_forward, set(), set()

    def spy(current, neuron, out):
        tensors.update(name for name, value in neuron.tensors().items() if value is not None)
        resets.add(neuron.reset)
        real(current, neuron, out)

    monkeypatch.setattr(module, "neuron_forward", spy)
    for neuron, kind in NEURONS.items():
        for reset in RESETS:
            run_ours(kind, dense_case(neuron, "masked", reset), "torch")
    again = replace(dense_case("Leaky", "masked", "none"), refractory=0)
    run_ours(NEURONS["Leaky"], again, "torch")
    assert tensors == set(TENSORS)
    assert resets == set(KERNEL_RESETS)


@functools.cache
def linear_problem(kind):
    return problem(8, 2, (4, 4, 2), kind=kind, seed=5)


@functools.cache
def linear_by_steps(kind, rule, reset, reduction, surrogate="atan"):
    given = linear_problem(kind)
    times, tensors = run("steps", given, (rule,), reset, reduction, surrogate=surrogate)
    assert (times[0] >= 0).any()
    assert (times[0] < 0).any()
    return times, tensors


LINEAR = spread(list(SURROGATES), KINDS, GRADIENT_RULES, RESETS, REDUCTIONS)
FEWER = set(spread(REDUCTIONS, KINDS, GRADIENT_RULES, RESETS))


def check_linear(kind, rule, reset, reduction, surrogate, backend):
    given = on(device_of(backend), linear_problem(kind))
    actual = run("times", given, (rule,), reset, reduction, backend, surrogate)
    assert_close(actual, linear_by_steps(kind, rule, reset, reduction, surrogate), 1e-10)


@pytest.mark.parametrize(("kind", "rule", "reset", "reduction", "surrogate"), LINEAR)
def test_linear_layers_and_their_readout(kind, rule, reset, reduction, surrogate, cpu_backend):
    """Linear layers from spike times and from events."""
    check_linear(kind, rule, reset, reduction, surrogate, cpu_backend)


CONVOLUTIONS = list(dict.fromkeys((*row[:3], row[4]) for row in LINEAR))


def check_convolution(kind, rule, reset, surrogate, backend, num_steps=8):
    case, device = conv_problems.Case((2, 4, 4), 3, (2, 3), {"padding": (0, 1)}), device_of(backend)
    layer = conv_problems.on(device, conv_problems.layer_of(case))
    dense = conv_problems.spikes_of(case, num_steps, 2, kind).to(device)
    given = (case, layer, dense, kind, rule, reset, backend, 1e-10)
    conv_problems.check(*given, path="steps", surrogate=surrogate)


@pytest.mark.parametrize(("kind", "rule", "reset", "surrogate"), CONVOLUTIONS)
def test_convolutions(kind, rule, reset, surrogate, cpu_backend):
    """Convolutions from spike times and from events."""
    check_convolution(kind, rule, reset, surrogate, cpu_backend)


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize(
    ("rule", "reset", "kind", "surrogate"),
    [
        (*row, list(SURROGATES)[i % len(SURROGATES)])
        for i, row in enumerate(spread(KINDS, GRADIENT_RULES, RESETS))
    ],
)
def test_convolution_kernels_for_a_gpu(rule, reset, kind, surrogate, backend):
    """One kind of input for each rule and reset, because of the time of the interpreter."""
    check_convolution(kind, rule, reset, surrogate, backend, num_steps=5)


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize(
    ("kind", "rule", "reset", "reduction", "surrogate"),
    [row for row in LINEAR if row[:4] in FEWER],
)
def test_linear_kernels_for_a_gpu(kind, rule, reset, reduction, surrogate, backend):
    """One reduction per backend, because a run in the interpreter takes a second."""
    check_linear(kind, rule, reset, reduction, surrogate, backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_the_same_layers_from_dense_tensors(rule, reduction, backend):
    given = on(device_of(backend), linear_problem("times"))
    actual = run("dense", given, (rule,), "zero", reduction, backend, "atan")
    assert_close(actual, linear_by_steps("times", rule, "zero", reduction), 1e-10)
