"""The Triton kernels: results in the interpreter, and compiled code for each GPU."""

import contextlib
import functools
import json
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate

import snn_single_spike as snn
from snn_single_spike import SpikeEvents, SpikeTimes
from snn_single_spike.backends import memory
from snn_single_spike.functional import (
    leaky_readout,
    linear_readout,
    single_spike_leaky,
    single_spike_linear,
)
from snn_single_spike.ops.validation import GRADIENT_RULES, REDUCTIONS, RESETS

from tests.support.devices import device_of, runnable
from tests.support.oracle import operator_run, relative_error
from tests.support.problems import problem

pytest.importorskip("triton", reason="triton is not installed: the kernels cannot be compiled")


from snn_single_spike.backends.triton import _launch
from snn_single_spike.backends.triton import linear as triton_linear
from snn_single_spike.backends.triton import neuron as triton_neuron
from snn_single_spike.backends.triton import readout as triton_readout
from snn_single_spike.backends.triton._launch import WIDE, is_wide
from snn_single_spike.backends.triton.linear import DOT_PRODUCTS, EVENTS
from snn_single_spike.kernels.triton import linear as kernels_linear
from snn_single_spike.kernels.triton import neuron as kernels_neuron

from tests.support.compiled import BASELINE, CONV, LINEAR, TARGETS, VARIANTS, ahead, compile_for
from tests.support.launches import a_few_of_each, compile_launches, recorded
from tests.support.selection import COMPILED

NVIDIA = [name for name in TARGETS if name.startswith("sm_")]


@pytest.fixture(scope="session")
def compiled_for(tmp_path_factory, request):
    """Facts of the variants for a target. One process compiles them for all."""
    # Older compilers lack tools for some targets, fuse multiply-adds on sm_100 always, or spill
    # scalar registers on gfx942.
    pytest.importorskip("triton", minversion="3.9")
    names = () if request.config.getoption("--exhaustive") else COMPILED
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    @functools.cache
    def facts(target):
        file = folder / f"{target}.pickle"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_bytes(pickle.dumps(compile_for(target, names)))
            return pickle.loads(file.read_bytes())

    return facts


@pytest.fixture
def facts(compiled_for, target):
    return compiled_for(target)


FUSED = {"gfx942": r"v_(pk_)?(fma|fmac|mac|mad)_(f32|legacy).*"} | dict.fromkeys(NVIDIA, r"FFMA.*")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*VARIANTS, *LINEAR, *CONV])
def test_compiled_facts_do_not_worsen(name, target, facts):
    """Compare with the facts of `python -m tests.support.compiled --store`, same compiler."""
    import triton

    baseline = json.loads(BASELINE.read_text())
    if baseline["triton"].split(".")[:2] != triton.__version__.split(".")[:2]:
        pytest.skip(f"the facts stored are those of triton {baseline['triton']}")
    known = baseline["facts"][f"{name} {target}"]
    recorded_facts = {fact: now for fact, now in facts[name].summary().items() if fact in known}
    assert {"registers", "spilled"} <= recorded_facts.keys()
    for fact, now in recorded_facts.items():
        allowed = known[fact] * (1.1 if fact == "registers" else 1)
        assert now <= allowed, f"{fact}: {now}, and {known[fact]} before"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*VARIANTS, *LINEAR, *CONV])
def test_compiles_without_spills(name, target, facts):
    assert facts[name].spilled == 0


EVENT_FORM = [name for name in LINEAR if name != "linear dot"]


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("name", [*VARIANTS, *EVENT_FORM, *CONV])
def test_no_barrier_or_shared_memory_in_the_loop_over_time(name, target, facts):
    assert facts[name].loops
    assert not facts[name].shared_in_loops()


# Memory round trips of a turn, where it is not one.
ROUND_TRIPS = {
    # The rows of four spikes, of three values each, arrive while powers of beta are computed: ptxas
    # waits for the first ones before it loads the last ones.
    "linear weight impulses": 2,
    # On sm_80 ptxas waits for the times of spikes before it loads their weights, or the gradients.
    # On sm_100 it does so for the maximum.
    "linear readout max": 2,
    "linear input impulses": 2,
    # As for the linear layer, on sm_90.
    "conv weight windows": 2,
}


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("name", [*VARIANTS, *EVENT_FORM, *CONV])
def test_a_turn_waits_for_the_memory_once(name, target, facts):
    found = facts[name].round_trips
    assert max(found, default=0) <= ROUND_TRIPS.get(name, 1)
    assert bool(found) is (name != "backward spike time")
    assert not facts[name].misread_loads


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].wide])
def test_loads_are_wide_and_ahead(name, target, facts):
    variant = VARIANTS[name]
    read = {"current", "grad_spikes", "grad_mem"}
    if "backward" in variant.kernel:
        read |= {"mem", "syn", "inh"}
    streams = len(read & set(variant.tensors))
    if "current" in variant.tensors and "backward" in variant.kernel:
        streams += 1  # the scan reads the membrane that the kernel integrated again
    bits = 32 * variant.dtype.itemsize  # four neurons a thread
    wide = facts[name].count(rf"LDG\.E(\.\w+)*\.{bits}(\.\w+)*")
    assert wide >= streams * ahead(variant)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("forward")])
def test_spikes_are_decided_without_fused_multiply_add(name, target, facts):
    assert facts[name].count(FUSED[target]) == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name",
    [
        *("linear first spikes", "linear crossing", "linear membrane", "linear readout sum"),
        *(name for name in CONV if CONV[name].kernel == "conv_first_spikes_kernel"),
    ],
)
def test_events_are_integrated_without_fused_multiply_add(name, target, facts):
    assert facts[name].count(FUSED[target]) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_tensor_core_form_uses_tensor_cores(target, facts):
    found = facts["linear dot"].count(r"HMMA.*|HGMMA.*|UTC\w*MMA.*|v_mfma_.*")
    assert found >= 8


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize(
    "name", ["linear first spikes", "linear readout sum", "linear weight rows"]
)
def test_rows_of_weights_are_loaded_wide_and_ahead(name, target, facts):
    wide = facts[name].count(r"LDG\.E(\.\w+)*\.128(\.\w+)*")
    assert wide >= EVENTS


@contextlib.contextmanager
def poisoned_memory():
    """New memory is NaN or the largest integer, so an unwritten output fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_MIN_BYTES", sys.maxsize)  # kept memory is not filled
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            assert torch.empty(1).isnan()
            yield
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", runnable("triton"))
def test_a_small_layer_over_a_long_time(backend):
    arguments = problem((300, 16, 100), torch.float32, per_neuron=True)
    arguments["beta"] = 0.9 + 0.1 * arguments["beta"]
    options = {"surrogate": surrogate.atan(), "rule": "masked", "reset": "subtract"}
    cpu = operator_run(**arguments, **options, backend="torch")
    moved = {name: value.to(device_of(backend)) for name, value in arguments.items()}
    with poisoned_memory():
        gpu = operator_run(**moved, **options, backend=backend)
    assert torch.equal(gpu.spikes.cpu(), cpu.spikes)
    for name in ("mem", "current", "beta", "threshold"):
        assert relative_error(getattr(gpu, name), getattr(cpu, name)) < 1e-4, name


@pytest.mark.parametrize("backend", runnable("triton"))
@settings(max_examples=8)
@given(
    num_steps=st.integers(1, 20),
    features=st.integers(1, 9),
    rule=st.sampled_from(GRADIENT_RULES),
    reset=st.sampled_from(RESETS),
    recompute=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_kernels_equal_the_cpu(backend, num_steps, features, rule, reset, recompute, dtype, seed):
    arguments = problem((num_steps, 2, features), dtype, seed=seed)
    options = {
        "surrogate": surrogate.fast_sigmoid(slope=10),
        "rule": rule,
        "reset": reset,
        "recompute": recompute,
    }
    cpu = operator_run(**arguments, **options, backend="torch")
    moved = {name: value.to(device_of(backend)) for name, value in arguments.items()}
    with poisoned_memory():
        gpu = operator_run(**moved, **options, backend=backend)
    assert torch.equal(gpu.spikes.cpu(), cpu.spikes)
    assert torch.equal(gpu.mem.cpu(), cpu.mem)
    for name in ("times", "current", "beta", "threshold", "factor", "mem_0"):
        error = relative_error(getattr(gpu, name), getattr(cpu, name))
        assert error < (1e-5 if dtype == torch.float32 else 1e-12), name


def _linear_run(backend, spikes, dtype, rule, reset, reduction, surrogate_, device):
    """Scores and all gradients of two layers and a readout, from spike times."""
    make = torch.Generator().manual_seed(3)

    def draw(*shape, low=-1.0, high=1.0):
        values = torch.rand(*shape, generator=make, dtype=torch.float64) * (high - low) + low
        return values.to(device, dtype).requires_grad_()

    n, hidden, out = spikes.features[0], 11, 3
    first = (draw(hidden, n), draw(hidden, high=0.2), draw(hidden, low=0.5))
    second = (draw(hidden, hidden), draw(hidden, low=0.2), draw(hidden, low=0.5))
    last = (draw(out, hidden), draw(out), draw(out, low=0.5))
    options = {"gradient": rule, "reset_mechanism": reset, "backend": backend}
    options |= {"spike_grad": surrogate_}
    x, theta = spikes.to(device), draw(hidden, low=0.1, high=0.6)
    x = single_spike_linear(x, *first, theta, **options)
    y = single_spike_linear(x, *second, theta, **options)
    scores = linear_readout(y, *last, reduction=reduction, backend=backend)
    weights = torch.linspace(-1, 1, scores.numel(), dtype=dtype, device=device).view_as(scores)
    grads = torch.autograd.grad((scores * weights).sum(), (*first, *second, *last, theta))
    return (x.times, y.times), (scores, *grads)


@pytest.mark.parametrize("backend", runnable("triton"))
@settings(max_examples=5)
@given(
    num_steps=st.integers(1, 12),
    units=st.integers(1, 9),
    rule=st.sampled_from(GRADIENT_RULES),
    reset=st.sampled_from(RESETS),
    reduction=st.sampled_from(REDUCTIONS),
    weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_linear_kernels_equal_plain_torch(
    backend, num_steps, units, rule, reset, reduction, weighted, dtype, seed
):
    make = torch.Generator().manual_seed(seed)
    spikes = SpikeTimes(torch.randint(-1, num_steps, (2, units), generator=make), num_steps)
    if weighted:
        dense = torch.rand(num_steps, 2, units, generator=make, dtype=dtype).round(decimals=1)
        spikes = SpikeEvents.from_dense(dense * (dense > 0.6))
    options = (spikes, dtype, rule, reset, reduction, surrogate.fast_sigmoid(slope=10))
    times, values = _linear_run("torch", *options, "cpu")
    with poisoned_memory():
        their_times, theirs = _linear_run(backend, *options, device_of(backend))
    for mine, other in zip(times, their_times, strict=True):
        assert torch.equal(other.cpu(), mine)
    for mine, other in zip(values, theirs, strict=True):
        assert relative_error(other, mine) < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize("num_steps", [16, 20, DOT_PRODUCTS])
def test_tensor_core_form_against_float64(backend, num_steps, monkeypatch):
    """Spikes equal float64 spikes unless the membrane is within 1e-5 of the threshold."""
    device = device_of(backend)
    monkeypatch.setattr(triton_linear, "dot_products", lambda device: 2 * num_steps)
    times = torch.randint(-1, num_steps, (3, 50))
    weight, bias = torch.randn(70, 50) / 5, torch.randn(70) / 20
    beta = torch.rand(70)
    layer = (weight.to(device), bias.to(device), beta.to(device))
    spikes = SpikeTimes(times.to(device), num_steps)
    with poisoned_memory():
        found = single_spike_linear(spikes, *layer, backend=backend).times.cpu()
    current = torch.nn.functional.linear(
        SpikeTimes(times, num_steps, dtype=torch.float64).to_dense(), weight.double(), bias.double()
    )
    exact = single_spike_leaky(current, beta.double(), backend="torch")
    assert exact.mem is not None
    close = ((exact.mem - 1).abs() < 1e-5).any(0)
    assert torch.equal(found[~close].long(), exact.times[~close])
    assert close.float().mean() < 0.01
    assert (found >= 0).any()


@pytest.mark.parametrize(
    ("num_steps", "silent", "dtype", "faster"),
    [
        (DOT_PRODUCTS, 0, torch.float32, True),
        (DOT_PRODUCTS + 1, 0, torch.float32, False),
        (DOT_PRODUCTS // 2, 25, torch.float32, True),
        (DOT_PRODUCTS // 2, 26, torch.float32, False),
        (DOT_PRODUCTS // 2, 0, torch.float64, False),
    ],
)
def test_tensor_core_form_where_it_takes_less_time(num_steps, silent, dtype, faster, monkeypatch):
    monkeypatch.setattr(triton_linear, "dot_products", lambda device: DOT_PRODUCTS)
    times = torch.zeros(3, 50, dtype=torch.int32)
    times[:, :silent] = -1
    weight = torch.zeros(7, 50, dtype=dtype)
    events = triton_linear.sort_spikes(times, num_steps)
    assert triton_linear.dot_pays(events, num_steps, weight) is faster
    assert not triton_linear.dot_pays(events._replace(once=False), num_steps, weight)


@pytest.fixture
def timeable(monkeypatch):
    """Fake the GPU times of both forms. Both forms run in the interpreter on the CPU."""
    taken = []

    def milliseconds(run):
        run()
        return taken.pop(0)

    small = {"num_steps": 16, "batch": 2, "in_features": 9, "out_features": 5}
    monkeypatch.setattr(triton_linear, "_TIMED", small)
    monkeypatch.setattr(triton_linear, "_measured", {})
    monkeypatch.setattr(triton_linear, "_milliseconds", milliseconds)
    monkeypatch.setattr(triton_linear, "warp_size", lambda: 32)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return taken


@pytest.mark.untouched  # poisoned memory makes torch deterministic: nothing is timed then
@pytest.mark.parametrize("backend", runnable("triton"))
def test_forms_are_timed_once_for_each_device(backend, timeable):
    device = torch.device(device_of(backend))
    generator = torch.get_rng_state()
    timeable += [1.0, 4.0, "not timed again"]  # 16 products in a quarter of the time: 4
    assert triton_linear.dot_products(device) == 4
    assert triton_linear.dot_products(device) == 4
    assert torch.equal(torch.get_rng_state(), generator)
    timeable[:] = [1.0, 4.3]
    triton_linear._measured.clear()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert triton_linear.dot_products(device) == 4  # rounded: the next run chooses the same
    finally:
        torch.set_default_dtype(default)


@pytest.mark.untouched  # poisoned memory makes torch deterministic: nothing is timed then
@pytest.mark.parametrize("backend", runnable("triton"))
def test_form_where_nothing_may_be_timed(backend, timeable, monkeypatch):
    device = torch.device(device_of(backend))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert triton_linear.dot_products(device) == DOT_PRODUCTS
    timeable += [1.0, 1.0]
    assert triton_linear.dot_products(device) == 16
    torch.use_deterministic_algorithms(True)
    try:
        assert triton_linear.dot_products(device) == DOT_PRODUCTS
    finally:
        torch.use_deterministic_algorithms(False)


NEURONS = {
    "leaky": lambda n, **o: snn.SingleSpikeLeaky(torch.rand(n), learn_beta=True, **o),
    "one beta": lambda n, **o: snn.SingleSpikeLeaky(0.9, **o),
    "synaptic": lambda n, **o: snn.SingleSpikeSynaptic(0.9, torch.rand(n), learn_alpha=True, **o),
    "alpha": lambda n, **o: snn.SingleSpikeAlpha(0.9, 0.8, learn_alpha=True, **o),
    "feedback": lambda n, **o: snn.SingleSpikeRLeaky(0.9, V=0.1, all_to_all=False, **o),
}


def _launch_all(shape, dtype, rule, unaligned=False):
    """Run every kernel forward and backward, on (T, B, N)."""
    options = {"gradient": rule, "reset_mechanism": "subtract", "backend": "triton"}
    for make in NEURONS.values():
        neuron = make(shape[2], **options).to(dtype)
        x = torch.randn(shape, dtype=dtype)
        if unaligned:
            x = torch.randn(x.numel() + 1, dtype=dtype)[1:].view(shape)
        out = neuron(x.requires_grad_())
        sum(x.sum() for x in out if x.requires_grad).backward()
    if dtype not in (torch.float32, torch.float64):
        return
    fast = surrogate.fast_sigmoid(slope=10)
    spikes = SpikeTimes(torch.randint(-1, shape[0], shape[1:]), shape[0])
    for reduction in ("sum", "max"):
        _linear_run("triton", spikes, dtype, rule, "subtract", reduction, fast, "cpu")
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    leaky_readout(x, 0.9, reduction="max", backend="triton").sum().backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the launches themselves are it")
def test_launches_compile(monkeypatch, request):
    for module in (_launch, triton_linear):
        monkeypatch.setattr(module, "warp_size", lambda: 32)
    monkeypatch.setattr(triton_linear, "_PIECE_BYTES", 1)  # the second piece begins at sample 1
    every = [(torch.float32, "spike_time"), (torch.float64, "masked"), (torch.bfloat16, "masked")]
    if request.config.getoption("--exhaustive"):
        every += [(torch.float32, rule) for rule in GRADIENT_RULES]
        every += [(torch.float64, "spike_time")]
    with recorded() as launches:
        for products in (0, 100):
            monkeypatch.setattr(triton_linear, "dot_products", lambda device, n=products: n)
            _launch_all((1, 1, 1), torch.float32, "masked")
            _launch_all((3, 2, 16), torch.float32, "masked")
        for dtype, rule in every:
            _launch_all((3, 2, 5), dtype, rule)
        for module in (triton_neuron, triton_readout):  # wide programs, where the layout allows
            for limit in {"FORWARD_WIDE", "BACKWARD_WIDE"} & vars(module).keys():
                monkeypatch.setattr(module, limit, 1)
        for features in (8, 5):  # M % 16 is 0, and 10
            _launch_all((3, 2, features), torch.bfloat16, "masked")
        _launch_all((3, 2, 8), torch.bfloat16, "masked", unaligned=True)
        blocks = {dict(launch.constants).get("BLOCK") for launch in launches.values()}
        assert {32, WIDE} <= blocks
    made = {launch.kernel for launch in launches.values()}
    for module in (kernels_neuron, kernels_linear):
        assert {name for name in vars(module) if name.endswith("_kernel")} <= made
    for launch in launches.values():  # the default of the compiler changes with its version
        assert "enable_fp_fusion" in dict(launch.constants), launch.kernel
    checked = list(launches.values())
    if not request.config.getoption("--exhaustive"):
        checked = a_few_of_each(checked)
    for launch, facts in zip(checked, compile_launches(checked), strict=True):
        if launch.kernel != "linear_first_spikes_dot_kernel":
            assert not facts.shared_in_loops(), launch
            assert not facts.spilled, launch
        assert max(facts.round_trips, default=0) <= 1, launch


@pytest.mark.untouched
def test_wide_programs_only_where_rows_are_aligned():
    rows = torch.zeros(2 * 64 + 1)
    aligned, shifted = rows[:-1].view(2, 64), rows[1:].view(2, 64)
    assert aligned.data_ptr() % 16 == 0
    assert is_wide(torch.float32, 64, 64, aligned, None)
    assert not is_wide(torch.float32, 64, 65, aligned)
    assert not is_wide(torch.float32, 72, 64, aligned)
    assert not is_wide(torch.float32, 64, 64, aligned, shifted)
    assert not is_wide(torch.float64, 64, 64, aligned)


@pytest.mark.parametrize(("neurons", "warp", "block"), [(80, 32, 128), (70, 32, 32), (70, 64, 64)])
def test_linear_programs_are_wide_only_where_rows_are_aligned(neurons, warp, block):
    assert triton_linear.block(neurons, warp) == block


def test_numbers_for_a_kernel_in_two_parts():
    a, b, a_rest, b_rest = triton_neuron._single(0.1, 25.0)
    assert (a, b, b_rest) == (float(np.float32(0.1)), 25.0, 0.0)
    assert a + a_rest == 0.1
