"""SIMD vectors on the CPU: whole vectors against fewer lanes, half types, narrow registers."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from snntorch import surrogate

from snn_single_spike import SingleSpikeAlpha, SingleSpikeLeaky, backends
from snn_single_spike.backends._arrays import as_numpy
from snn_single_spike.backends._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
)
from snn_single_spike.functional import first_spike_time, single_spike_leaky
from snn_single_spike.ops.surrogate import Surrogate
from snn_single_spike.ops.validation import GRADIENT_RULES, RESETS

numba = pytest.importorskip("numba")

from snn_single_spike.backends.numba import _launch  # noqa: E402
from snn_single_spike.kernels.numba import block, neuron_forward, simd  # noqa: E402
from snn_single_spike.kernels.numba.arguments import ForwardOutputs, Neuron  # noqa: E402
from snn_single_spike.kernels.numba.compiling import ZERO_BEFORE  # noqa: E402

SURROGATES = {
    "atan": surrogate.atan(),
    "fast_sigmoid": surrogate.fast_sigmoid(),
    "sigmoid": surrogate.sigmoid(slope=5),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "triangular": surrogate.triangular(),
    "heaviside": surrogate.heaviside(),
    "spike_rate_escape": surrogate.spike_rate_escape(),
    "SFS": surrogate.SFS(),
    "LSO": Surrogate("LSO", 0.1),
}


class Case:
    """A layer of whole vectors and a few more lanes, with one value per neuron and parameter."""

    def __init__(self, num_steps, lanes=2 * simd.LANES + 3, dtype=torch.float32):
        def lane(low, high):
            return torch.empty(lanes, dtype=dtype).uniform_(low, high).requires_grad_()

        self.current = (0.5 * torch.randn(num_steps, 1, lanes, dtype=dtype)).requires_grad_()
        self.beta, self.theta = lane(0.5, 1.1), lane(0.5, 1.5)  # the clamp is active for some betas
        self.factor, self.mem = lane(0.5, 2.0), lane(-0.5, 0.4)
        self.g, self.h = torch.randn(2, num_steps, 1, lanes, dtype=dtype).unbind(0)

    def run(self, part=slice(None), mem=True, spikes=True, **options):
        """Outputs and gradients of some lanes."""
        inputs = (self.current, self.beta, self.theta, self.factor, self.mem)
        current, beta, theta, factor, mem_0 = (x[..., part] for x in inputs)
        out = single_spike_leaky(
            *(current, beta, theta),
            mem=mem_0[None],
            graded_spikes_factor=factor,
            return_mem=mem,
            return_spikes=spikes,
            backend="numba",
            **options,
        )
        loss = torch.zeros((), dtype=current.dtype)
        if out.spikes is not None:
            loss = loss + (out.spikes * self.g[..., part]).sum()
        if out.mem is not None:
            loss = loss + (out.mem * self.h[..., part]).sum()
        if out.times.is_floating_point():
            loss = loss + (out.times * self.g[0, :, part]).sum()
        if not loss.requires_grad:
            return out, ()
        return out, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    def check(self, **options):
        """Whole vectors, and a last one that overlaps, compute the same as a few padded lanes."""
        whole, grads = self.run(**options)
        lanes = self.current.shape[2]
        pieces = [
            self.run(slice(start, min(start + 5, lanes)), **options) for start in range(0, lanes, 5)
        ]
        for name, mine in whole._asdict().items():
            if mine is not None:
                theirs = torch.cat([getattr(out, name) for out, _ in pieces], -1)
                assert torch.equal(mine, theirs), name
        for mine, theirs in zip(grads, zip(*(g for _, g in pieces), strict=True), strict=False):
            torch.testing.assert_close(mine, sum(theirs))


@pytest.mark.parametrize("num_steps", [1, 3, block.STEPS, 2 * block.STEPS + 1])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("gradient", GRADIENT_RULES)
def test_vectors_are_lanes_a_few_at_a_time(num_steps, reset, gradient):
    for dtype in (torch.float32, torch.float64):
        case = Case(num_steps, dtype=dtype)
        for mem, spikes in ((True, True), (False, True), (True, False), (False, False)):
            case.check(mem=mem, spikes=spikes, reset_mechanism=reset, gradient=gradient)
        case.check(mem=True, recompute=True, reset_mechanism=reset, gradient=gradient)
        case.check(mem=False, recompute=False, reset_mechanism=reset, gradient=gradient)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    for dtype in (torch.float32, torch.float64):
        Case(9, dtype=dtype).check(spike_grad=SURROGATES[name])


@pytest.mark.parametrize("lanes", [1, 15, 16, 17, block.BLOCK + 16, 2 * block.BLOCK + 31])
def test_any_number_of_lanes(lanes):
    Case(6, lanes).check()
    Case(6, lanes).check(mem=False)


@pytest.mark.parametrize("neurons", [1024, 1021])
def test_results_beyond_the_cache(neurons):
    """The loops write large results past the cache if rows begin at a cache line."""
    current = torch.randn(41, 32, neurons, requires_grad=True)
    assert current.nbytes > block.STREAM
    results = []
    for backend in ("numba", "torch"):
        for mem in (False, True):
            out = single_spike_leaky(current, 0.9, return_mem=mem, backend=backend)
            total = out.spikes.cumsum(0).sum() + (0.0 if out.mem is None else out.mem.sum())
            results.append((out, torch.autograd.grad(total, current)[0]))
    for (mine, grad), (theirs, expected) in zip(results[:2], results[2:], strict=True):
        assert torch.equal(mine.spikes, theirs.spikes)
        assert mine.mem is None or torch.equal(mine.mem, theirs.mem)
        torch.testing.assert_close(grad, expected)


def test_nothing_is_read_after_the_last_spike_of_a_vector():
    """Neither pass reads the current after the spike, if the membrane is not requested."""
    current = torch.full((20, 1, simd.LANES), 0.75)
    current[10:] = torch.nan
    current.requires_grad_()
    spikes, _, times = single_spike_leaky(current, 0.9, return_mem=False, backend="numba")
    assert (times == 1).all()
    assert not spikes.isnan().any()
    spikes.sum().backward()
    assert (current.grad[:2] > 0).all()
    assert (current.grad[2:] == 0).all()
    assert (first_spike_time(current, 0.9, backend="numba") == 1).all()


@pytest.mark.parametrize("refractory", [None, 0])
def test_no_fused_multiply_adds_decide_a_spike(refractory):
    one, none1 = np.ones(1, np.float32), np.empty(0, np.float32)
    rows, none2 = np.zeros((5, simd.LANES), np.float32), np.empty((0, 0), np.float32)
    absent = dict.fromkeys(("alpha", "gain", "feedback"))
    absent |= dict.fromkeys(("mem_0", "syn_0", "inh_0"), none1)
    absent["last_0"] = np.empty(0, np.int64)
    neuron = Neuron(one, one, one, **absent, clamp=True, reset=ZERO_BEFORE, refractory=refractory)
    times, phase = np.zeros(simd.LANES, np.int64), np.empty((0, 0), np.uint8)
    when = np.empty(0, np.int64)
    out = ForwardOutputs(rows.copy(), *(none2,) * 5, times=times, phase=phase, when=when)
    # Compile without numba's cache, because code from the cache has no readable assembly.
    forward = numba.njit(error_model="numpy")(neuron_forward._layer.py_func)
    forward(0, simd.LANES, rows, neuron, out)
    (assembly,) = forward.inspect_asm().values()
    assert "mul" in assembly
    assert not any(fused in assembly for fused in ("vfmadd", "vfnmadd", "vfmsub", "fmla", "fmadd"))


HALVES = [torch.float16, torch.bfloat16]


@numba.njit(error_model="numpy")
def _converted(source, target):
    for j in range(0, source.shape[0], simd.LANES):
        simd.store(target, j, simd.load(source, j))


def _bits(tensor):
    return as_numpy(tensor, np.int16 if tensor.dtype == torch.bfloat16 else np.uint16)


def _exactly(numbers):
    """Numbers as bits, with one NaN: torch's own NaN depends on its vector instructions."""
    kind = torch.int32 if numbers.dtype == torch.float32 else torch.int16
    return torch.where(numbers.isnan(), torch.nan, numbers).view(kind)


@pytest.mark.skipif(not simd.has_float16(), reason="float16 is converted in separate passes")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_types_convert_as_in_torch(dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    wide = torch.empty(len(every))
    _converted(_bits(every), as_numpy(wide))
    assert torch.equal(_exactly(wide), _exactly(every.float()))
    # Each number, the middle to the next one, and the neighbors of the middle
    word = wide.view(torch.int32)
    gap = 1 << (16 if dtype == torch.bfloat16 else 13)
    around = torch.cat([word + gap // 2 + d for d in (-gap // 2, -1, 0, 1)])
    anything = torch.randint(-(1 << 31), 1 << 31, (1 << 16,)).to(torch.int32)
    numbers = torch.cat([around, anything]).view(torch.float32)
    narrow = torch.empty(len(numbers), dtype=dtype)
    _converted(as_numpy(numbers), _bits(narrow))
    assert torch.equal(_exactly(narrow), _exactly(numbers.to(dtype)))


def check_half_type(dtype, kind, options):
    """Results are rounded once, from float32."""
    current = torch.randn(9, 3, 17).to(dtype).requires_grad_()
    results = []
    for backend in ("numba", "torch"):
        out = kind(**options, backend=backend)(current)
        results.append((*out, *torch.autograd.grad([x.cumsum(0).sum() for x in out], current)))
    assert results[0][0].any()
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("dtype", "kind", "options"),
    [
        (torch.float16, SingleSpikeLeaky, {"beta": 0.9}),
        (torch.bfloat16, SingleSpikeAlpha, {"alpha": 0.9, "beta": 0.8}),
    ],
    ids=str,
)
def test_half_types_in_registers(dtype, kind, options):
    check_half_type(dtype, kind, options)


def test_float16_in_separate_passes(monkeypatch):
    monkeypatch.delitem(_launch._BITS, torch.float16, raising=False)
    check_half_type(torch.float16, SingleSpikeLeaky, {"beta": 0.9})


class Linear:
    """A linear layer of two tiles with padding, and a few steps more than a jump."""

    steps, batch, units, out_features = 70, 3, 9, 131

    def __init__(self, dtype, reset):
        def values(*shape, low=-1.0, high=1.0):
            return torch.empty(shape, dtype=dtype).uniform_(low, high)

        self.dtype, shape = dtype, (self.batch, self.out_features)
        times = torch.randint(-1, self.steps, (self.batch, self.units), dtype=torch.int32)
        self.events = backends.load("numba", "linear").sort_spikes(times, self.steps)
        self.layer = LinearNeurons(
            values(self.out_features, self.units),
            values(self.out_features, low=-0.05, high=0.2),
            values(self.out_features, low=0.3, high=0.95),
            values(self.out_features, low=0.5, high=1.0),
            reset,
        )
        self.given = [values(*shape) for _ in range(3)]
        self.dense = values(self.steps, *shape)
        self.times = torch.empty(shape, dtype=torch.int32)
        backends.load("torch", "linear").linear_first_spikes(
            self.events, self.steps, self.layer, self.times, *(None,) * 3
        )

    def empty(self, *shape, dtype=None):
        return torch.empty(shape, dtype=dtype or self.dtype)  # poisoned, as in every test

    def first_spikes(self, launcher):
        shape = self.batch, self.out_features
        times, when = (self.empty(*shape, dtype=torch.int32) for _ in range(2))
        out = times, self.empty(2, *shape), self.empty(2, *shape), when
        launcher.linear_first_spikes(self.events, self.steps, self.layer, *out)
        return out

    def readout(self, launcher, reduction):
        shape = self.batch, self.out_features
        out = self.empty(*shape), self.empty(*shape), self.empty(*shape, dtype=torch.int64)
        weight, bias, beta = self.layer[:3]
        launcher.linear_readout(self.events, self.steps, weight, bias, beta, reduction, *out)
        return out

    def closed_form(self, launcher, every):
        given, at, before = self.given
        at, before = at * (self.times >= 0), before * (self.times >= 0)  # none of silent neurons
        adjoint = ClosedFormAdjoint(at=at, before=before, when=self.times.long())
        if every:
            adjoint = ClosedFormAdjoint(every=given)
        weight, bias, beta = self.layer[:3]
        out = torch.zeros_like(weight), torch.zeros_like(bias)
        launcher.linear_backward_closed_form(
            self.events, self.steps, weight, beta, adjoint, *out, None
        )
        return out

    def scan(self, launcher, rule):
        zeros = (torch.zeros_like(x) for x in self.layer[:4])
        out = LinearGradients(*zeros, self.empty(self.steps, self.batch, self.out_features))
        gradient = GradientFactors(lambda samples: self.dense[:, samples], None)
        launcher.linear_backward_scan(
            self.events,
            self.steps,
            self.layer,
            self.times,
            gradient,
            rule,
            Surrogate("atan", 2.0),
            out,
        )
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reset", ["none", "subtract", "zero_before"])
def test_linear_layers_write_every_output(reset, dtype):
    case = Linear(dtype, reset)
    ours, plain = backends.load("numba", "linear"), backends.load("torch", "linear")
    for method, arguments in (
        (case.first_spikes, [()]),
        (case.readout, [("sum",), ("max",), ("last",)]),
        (case.closed_form, [(True,), (False,)]),
        (case.scan, [(rule,) for rule in GRADIENT_RULES if rule != "spike_time"]),
    ):
        for options in arguments:
            mine, theirs = method(ours, *options), method(plain, *options)
            for actual, expected in zip(mine, theirs, strict=True):
                torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


def test_on_a_processor_with_narrow_registers(tmp_path):
    script = """
import torch
from snn_single_spike.functional import single_spike_leaky
current = torch.randn(9, 4, 8, requires_grad=True)  # whole vectors: fewer loops to compile
for mem in (False, True):
    spikes, grads = [], []
    for backend in ("numba", "torch"):
        spikes.append(single_spike_leaky(current, 0.9, return_mem=mem, backend=backend).spikes)
        grads += torch.autograd.grad(spikes[-1].cumsum(0).sum(), current)
    assert torch.equal(*spikes)
    torch.testing.assert_close(*grads)
print("the same")
"""
    narrow = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | narrow,
        timeout=300,
        check=False,
    )
    assert "the same" in done.stdout, done.stderr
