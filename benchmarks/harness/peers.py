"""Other implementations of a layer of spiking neurons over a (T, B, N) current.

Every peer has the same decay and threshold as our layer, and a soft reset if the neuron resets.
Every peer calls its library in the fastest way that the library supports. If the loop of a library
makes the backward pass O(T²), the peer calls the library step by step. No code is copied: the forms
of the papers are written from the equations. A library is imported on use, and a peer that cannot
run gives a reason.

Each library uses snnTorch's arctangent as its surrogate if it has one, and its default surrogate
otherwise. The surrogate does not change spikes.

Excluded:

- `snn.LeakyParallel` is an `nn.RNN` with a dense N x N matrix, a linear layer and rectified
  membranes. `snn.AssociativeLeaky` is an associative memory.
- Rockpool's `LIFTorch` has a synaptic current that cannot be disabled. `LIFNeuronTorch` has no
  synaptic current, and is one more loop over x[:, t].
- sinabs.exodus and Rockpool's `LIFExodus` require a separate CUDA extension. They were not tried.

sinabs 3.1.3 requires nir <= 1.0.4, which our NIR export excludes, so sinabs is not in the `bench`
extra. Install it with `pip install --no-deps sinabs==3.1.3` and `pip install pbr`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import snntorch as snn
import torch
from torch import Tensor
from torch.nn import functional as F

from snn_single_spike.functional import first_spike_time

Layer = Callable[[Tensor], Tensor]


class Peer(NamedTuple):
    """A way to compute a layer."""

    name: str
    """The name in tables."""
    computes: str
    """A description: the dynamics, the number of spikes, the gradient."""
    first_spikes: bool
    """Whether first spikes must equal ours, up to rounding (:func:`same_first_spikes`)."""
    make: Callable[[Tensor, int], Layer]
    """(beta (1,) or (N,), T) -> function from current (T, B, N) to spikes (T, B, N),
    differentiable in the current, and in beta if it requires a gradient. Keeps no state."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    missing: str | None = None
    """The reason why the peer cannot run here, or None."""
    max_steps: int = sys.maxsize
    """Longer sequences take too much time to compile or run, or too much memory."""
    quadratic: bool = False
    """Whether the cost grows as T²."""
    compiled: bool = False
    """Whether the peer compiles for every new shape, for a minute."""
    per_neuron: bool = True
    """Whether each neuron can have its own beta."""
    learns_beta: bool = True
    """Whether beta has a gradient."""


def first_spikes(spikes: Tensor) -> Tensor:
    """A mask (T, B, N) of the first spike of each neuron."""
    fired = spikes > 0
    return fired & (fired.cumsum(0) == 1)


def same_first_spikes(spikes: Tensor, current: Tensor, beta: Tensor, rounding=1e-5) -> bool:
    """Whether the first spikes equal ours, up to rounding of membranes at the threshold.

    A sum in another order changes the membrane by about 1e-7. Among millions of neurons, one
    membrane is that close to the threshold. If times differ, the peer's time must be correct for a
    membrane in float64 that may differ by `rounding`.
    """
    with torch.no_grad():
        fired = spikes.flatten(1) > 0
        num_steps = len(fired)
        times = torch.where(fired.any(0), fired.byte().argmax(0), num_steps)
        ours = first_spike_time(current, beta).flatten()
        ours = torch.where(ours < 0, num_steps, ours)
        other = (times != ours).nonzero().squeeze(1)
        x = current.flatten(1)[:, other].double()
        decay = beta.double().expand(current.shape[1:]).flatten()[other]
        mem = torch.zeros_like(x)
        previous = torch.zeros_like(decay)
        for row, drive in zip(mem, x, strict=True):
            previous = row.copy_(decay * previous + drive)
        step = torch.arange(num_steps, device=x.device).unsqueeze(1)
        no_earlier = ((mem <= 1 + rounding) | (step >= times[other])).all(0)
        at_time = ((mem >= 1 - rounding) & (step == times[other])).any(0)
        return bool((no_earlier & (at_time | (times[other] == num_steps))).all())


# snnTorch


def _loop(beta: Tensor, num_steps: int) -> Layer:
    # A buffer holds the caller's tensor, so the gradient reaches it. learn_beta would copy beta.
    lif = snn.Leaky(beta=beta)

    def layer(current: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(current[0]), []
        for x in current.unbind(0):  # the backward of current[t] would be O(T²)
            spk, mem = lif(x, mem)
            spikes.append(spk)
        lif.mem = mem.new_zeros(0)  # else torch.compile would compile twice
        return torch.stack(spikes)

    return layer


def _compiled_loop(beta: Tensor, num_steps: int) -> Layer:
    # A separate cache for each layer, if torch supports it. Else the eighth shape fails.
    known = inspect.signature(torch.compile).parameters
    options = {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
    return torch.compile(_loop(beta, num_steps), fullgraph=True, dynamic=False, **options)


def _state_leaky(beta: Tensor, num_steps: int) -> Layer:
    # The decay of StateLeaky is exp(-1/tau) with tau = 1/(1 - beta). Set tau to get our decay.
    lif = snn.StateLeaky(beta=beta.detach(), channels=beta.numel())

    def layer(current: Tensor) -> Tensor:
        lif.tau = -1 / beta.log()
        return lif(current)[0]

    return layer


# The forms of arXiv:2205.15286, with time as the last dimension, as in the paper

SLOPE = 10.0


class _Crossing(torch.autograd.Function):
    """1 if the membrane is above the threshold. The derivative is that of a fast sigmoid."""

    @staticmethod
    def forward(ctx, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (SLOPE * distance.abs() + 1) ** 2


class _IsOne(torch.autograd.Function):
    """1 where the double sum of crossings is 1, with a straight-through gradient."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return (z == 1).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def _causal(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (B, N, T) with kernels (N, T).

    On a CPU this is four times as fast as `padding=` or one kernel for all neurons.
    """
    neurons, num_steps = kernel.shape
    return F.conv1d(F.pad(x, (num_steps - 1, 0)), kernel.flip(1).unsqueeze(1), groups=neurons)


def _crossings(current: Tensor, beta: Tensor) -> Tensor:
    """Crossings (B, N, T): without a reset the membrane is a convolution, O(T²)."""
    num_steps, _, neurons = current.shape
    step = torch.arange(num_steps, device=current.device)
    kernel = beta.clamp(0, 1).unsqueeze(1) ** step
    return _Crossing.apply(_causal(current.permute(1, 2, 0), kernel.expand(neurons, -1)) - 1)


def _convolutions(beta: Tensor, num_steps: int) -> Layer:
    def layer(current: Tensor) -> Tensor:
        crossings = _crossings(current, beta)
        ramp = torch.arange(1, num_steps + 1, device=current.device, dtype=current.dtype)
        # The double sum of the crossings is 1 at the first of them only.
        z = _causal(crossings, ramp.expand(current.shape[2], -1))
        return (torch.relu(z * (1 - z) + 1) * z).permute(2, 0, 1)

    return layer


def _block(beta: Tensor, num_steps: int) -> Layer:
    def layer(current: Tensor) -> Tensor:
        z = _crossings(current, beta).cumsum(2).cumsum(2)
        return _IsOne.apply(z).permute(2, 0, 1)

    return layer


# Other libraries


def _spikingjelly_lif(beta: Tensor, num_steps: int) -> Layer:
    from spikingjelly.activation_based import functional, surrogate

    options = {"decay_input": False, "v_reset": None, "surrogate_function": surrogate.ATan()}

    def layer(current: Tensor) -> Tensor:
        # LIFNode(step_mode="m") and ParametricLIFNode without their state. The library chooses
        # its CUDA, Triton or torch kernels by the device.
        dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
        v = torch.zeros_like(current[0], dtype=dtype)
        if beta.requires_grad:
            w = torch.logit(1 - beta.squeeze())
            return functional.plif_multi_step(current, v, w, **options)[0]
        interpolated_times = 1 / (1 - beta.item())
        return functional.lif_multi_step(current, v, interpolated_times, **options)[0]

    return layer


def _spikingjelly_psn(beta: Tensor, num_steps: int) -> Layer:
    from spikingjelly.activation_based import neuron

    psn = neuron.PSN(num_steps).to(beta)
    step = torch.arange(num_steps, device=beta.device)
    with torch.no_grad():  # the bias is already -1
        psn.weight.copy_((beta ** (step.unsqueeze(1) - step).clamp(min=0)).tril())
    return psn


def _norse(beta: Tensor, num_steps: int) -> Layer:
    from norse.torch import LIFBoxCell, LIFBoxFeedForwardState, LIFBoxParameters
    from norse.torch.functional.reset import reset_subtract

    def layer(current: Tensor) -> Tensor:
        # The library scales its input, and thus the membrane, by 1 - beta. So scale the threshold.
        gain = 1 - beta
        parameters = LIFBoxParameters(tau_mem_inv=gain, v_th=gain, reset_method=reset_subtract)
        cell = LIFBoxCell(parameters, dt=1.0)
        state, spikes = LIFBoxFeedForwardState(v=torch.zeros_like(current[0])), []
        for x in current.unbind(0):
            spk, state = cell(x, state)
            spikes.append(spk)
        return torch.stack(spikes)

    return layer


def _sinabs(beta: Tensor, num_steps: int) -> Layer:
    from sinabs.activation import MembraneSubtract, SingleExponential, SingleSpike
    from sinabs.layers.functional.lif import lif_forward_single

    threshold = torch.ones((), device=beta.device)

    def layer(current: Tensor) -> Tensor:
        # As sl.LIF(norm_input=False), whose loop indexes x[:, t] and makes the backward pass O(T²).
        state, spikes = {"v_mem": torch.zeros_like(current[0])}, []
        for x in current.unbind(0):
            spk, state = lif_forward_single(
                x,
                alpha_mem=beta,
                alpha_syn=None,
                state=state,
                spike_threshold=threshold,
                spike_fn=SingleSpike,
                reset_fn=MembraneSubtract(),
                surrogate_grad_fn=SingleExponential(),
                min_v_mem=None,
                norm_input=False,
            )
            spikes.append(spk)
        return torch.stack(spikes)

    return layer


class _FromJax(torch.autograd.Function):
    """A compiled JAX function of (current, beta) and its compiled gradient, on torch's memory."""

    @staticmethod
    def forward(ctx, current: Tensor, beta: Tensor, forward: Callable, backward: Callable):
        import jax

        ctx.backward = backward
        inputs = (jax.dlpack.from_dlpack(x.detach().contiguous()) for x in (current, beta))
        # torch may change the memory once we return: wait until it was read.
        spikes, ctx.pullback = jax.block_until_ready(forward(*inputs))
        return torch.from_dlpack(spikes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        import jax

        grads = ctx.backward(ctx.pullback, jax.dlpack.from_dlpack(grad.contiguous()))
        current, *beta = (torch.from_dlpack(x) for x in jax.block_until_ready(grads))
        return current, beta[0] if beta else None, None, None


def _spyx(parallel: bool, beta: Tensor, num_steps: int) -> Layer:
    import jax
    from flax import nnx
    from spyx.experimental import AssociativeLIF
    from spyx.nn import LIF, run

    kind = AssociativeLIF if parallel else LIF

    def spikes(current, decay):
        graph, weights = nnx.split(kind(current.shape[2:], beta=0.5, rngs=nnx.Rngs(0)))
        lif = nnx.merge(graph, jax.tree.map(lambda _: decay, weights))  # beta is all there is
        return lif.parallel(current) if parallel else run(lif, current)[0]

    @jax.jit
    def forward(current, decay):
        if beta.requires_grad:
            return jax.vjp(spikes, current, decay)
        return jax.vjp(lambda x: spikes(x, decay), current)

    @jax.jit
    def backward(pullback, grad):
        return pullback(grad)

    def layer(current: Tensor) -> Tensor:
        return _FromJax.apply(current, beta, forward, backward)

    return layer


@functools.cache
def _missing(*modules: str) -> str | None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except Exception as error:  # an untested version of a library may raise any error
            lines = str(error).strip().splitlines() or [""]
            return f"import {module}: {type(error).__name__}: {lines[0]}"
    return None


def _no_compiler() -> str | None:
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    return None if found else "torch.compile needs a C++ compiler"


def peers() -> list[Peer]:
    """All peers, with a reason if a peer cannot run here."""
    many = "same membrane up to the first spike, many spikes, soft reset"
    free = "same membrane, never reset: a spike at every step above threshold"
    bptt = "backpropagation through time"
    at_once = "the surrogate at every step"
    own_threads = "in JAX, jitted, which torch.set_num_threads does not hold for"
    spikingjelly = _missing("spikingjelly.activation_based.neuron")
    norse = _missing("norse.torch")
    sinabs = _missing("sinabs.layers")
    spyx = _missing("spyx.nn", "spyx.experimental")
    # One run of O(T²) takes minutes beyond this, where T x B x N is large, too.
    longest = 1024
    return [
        Peer("snn.Leaky loop", f"{many}; {bptt}", True, _loop),
        Peer(
            "snn.Leaky loop, compiled",
            f"{many}; {bptt}; torch.compile of the whole loop",
            True,
            _compiled_loop,
            missing=_no_compiler(),
            max_steps=128,  # which took one to two minutes to compile
            compiled=True,
        ),
        Peer(
            "snn.StateLeaky",
            f"{free}; convolution over T steps; {at_once}",
            True,
            _state_leaky,
            max_steps=longest,
            quadratic=True,
        ),
        Peer(
            "papers, v1 form",
            "same membrane, one spike; two convolutions over T steps; our rule pre_spike",
            True,
            _convolutions,
            max_steps=longest,
            quadratic=True,
        ),
        Peer(
            "papers, v2 form",
            "same membrane, one spike; a convolution over T steps and two cumulative sums; "
            "our rule straight_through",
            True,
            _block,
            max_steps=longest,
            quadratic=True,
        ),
        Peer(
            "SpikingJelly LIF",
            f"{many}; {bptt}, derived by hand; the kernels it chooses for the device",
            True,
            _spikingjelly_lif,
            missing=spikingjelly,
            per_neuron=False,
        ),
        Peer(
            "SpikingJelly PSN",
            f"{free}; product with a T x T matrix, which is its weight; {at_once}",
            True,
            _spikingjelly_psn,
            missing=spikingjelly,
            quadratic=True,
            per_neuron=False,
            learns_beta=False,
        ),
        Peer("norse LIFBox loop", f"{many}; {bptt}", True, _norse, missing=norse),
        Peer("sinabs LIF loop", f"{many}; {bptt}", True, _sinabs, missing=sinabs),
        Peer(
            "spyx LIF",
            f"{many}, all one step later; {bptt}; lax.scan {own_threads}",
            False,
            functools.partial(_spyx, False),
            devices=("cpu",),
            missing=spyx,
        ),
        Peer(
            "spyx AssociativeLIF",
            f"{free}; {at_once}; lax.associative_scan {own_threads}",
            True,
            functools.partial(_spyx, True),
            devices=("cpu",),
            missing=spyx,
        ),
    ]
