"""The Triton kernels: interpreted results, and what compilers make of them for each GPU."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate

from snn_single_spike.validation import GRADIENT_RULES, RESETS

from conftest import device_of, runnable
from oracle import operator_run, relative_error
from test_single_spike_leaky import problem

pytest.importorskip("triton", reason="triton is not installed: the kernels cannot be compiled")


from compiled import BASELINE, TARGETS, VARIANTS, ahead, compile_all

NVIDIA = [name for name in TARGETS if name.startswith("sm_")]


@pytest.fixture(scope="session")
def facts():
    # Older ones lack tools for some targets, and fuse multiply-adds on sm_100 unasked.
    pytest.importorskip("triton", minversion="3.7")
    return compile_all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_facts_do_not_worsen(name, target, facts):
    """Against those that `python tests/compiled.py --store` wrote, by the same compiler."""
    import triton

    baseline = json.loads(BASELINE.read_text())
    if baseline["triton"].split(".")[:2] != triton.__version__.split(".")[:2]:
        pytest.skip(f"the facts stored are those of triton {baseline['triton']}")
    known = baseline["facts"][f"{name} {target}"]
    for fact, now in facts[f"{name} {target}"].summary().items():
        allowed = known[fact] * (1.1 if fact == "registers" else 1)
        assert now <= allowed, f"{fact}: {now}, and {known[fact]} before"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_without_spills(name, target, facts):
    assert facts[f"{name} {target}"].spilled == 0


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("name", VARIANTS)
def test_no_barrier_or_shared_memory_in_the_loop_over_time(name, target, facts):
    loops = facts[f"{name} {target}"].loops
    assert loops
    for instructions in loops:
        names = " ".join(instructions)
        assert not any(word in names for word in ("BAR.", "LDS", "STS", "LDSM")), names


@pytest.mark.parametrize("target", NVIDIA)
@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].wide])
def test_loads_are_wide_and_ahead(name, target, facts):
    variant = VARIANTS[name]
    read = {"current", "grad_spikes", "grad_mem"}
    if "backward" in variant.kernel:
        read |= {"mem", "syn", "inh"}
    streams = len(read & set(variant.tensors))
    if "current" in variant.tensors and "backward" in variant.kernel:
        streams += 1  # the membrane that was integrated again is read back
    bits = 32 * variant.dtype.itemsize  # four neurons a thread
    wide = facts[f"{name} {target}"].count(rf"LDG\.E(\.\w+)*\.{bits}(\.\w+)*")
    assert wide >= streams * ahead(variant)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("forward")])
def test_spikes_are_decided_without_fused_multiply_add(name, facts):
    for target in NVIDIA:
        assert facts[f"{name} {target}"].count(r"FFMA.*") == 0
    assert facts[f"{name} gfx942"].count(r"v_(pk_)?(fma|fmac|mac|mad)_(f32|legacy).*") == 0


@pytest.mark.parametrize("backend", runnable("triton"))
def test_a_small_layer_over_a_long_time(backend):
    arguments = problem((2048, 16, 100), torch.float32, per_neuron=True)
    arguments["beta"] = 0.9 + 0.1 * arguments["beta"]
    options = {"surrogate": surrogate.atan(), "rule": "masked", "reset": "subtract"}
    cpu = operator_run(**arguments, **options, backend="torch")
    moved = {name: value.to(device_of(backend)) for name, value in arguments.items()}
    gpu = operator_run(**moved, **options, backend=backend)
    assert torch.equal(gpu.spikes.cpu(), cpu.spikes)
    for name in ("mem", "current", "beta", "threshold"):
        assert relative_error(getattr(gpu, name), getattr(cpu, name)) < 1e-4, name


@pytest.mark.parametrize("backend", runnable("triton"))
@settings(max_examples=20)
@given(
    steps=st.integers(1, 20),
    features=st.integers(1, 9),
    rule=st.sampled_from(GRADIENT_RULES),
    reset=st.sampled_from(RESETS),
    recompute=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_kernels_equal_the_cpu(backend, steps, features, rule, reset, recompute, dtype, seed):
    arguments = problem((steps, 2, features), dtype, seed=seed)
    options = {
        "surrogate": surrogate.fast_sigmoid(slope=10),
        "rule": rule,
        "reset": reset,
        "recompute": recompute,
    }
    cpu = operator_run(**arguments, **options, backend="torch")
    moved = {name: value.to(device_of(backend)) for name, value in arguments.items()}
    gpu = operator_run(**moved, **options, backend=backend)
    assert torch.equal(gpu.spikes.cpu(), cpu.spikes)
    assert torch.equal(gpu.mem.cpu(), cpu.mem)
    for name in ("times", "current", "beta", "threshold", "factor", "mem_0"):
        error = relative_error(getattr(gpu, name), getattr(cpu, name))
        assert error < (1e-5 if dtype == torch.float32 else 1e-12), name
