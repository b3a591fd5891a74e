"""Functional single-spike neurons: whole sequences, no loop over time.

Shapes are time-major, `(T, B, *features)`, as in snnTorch's recordings. Membranes and synaptic
currents are computed in float32, or in float64 for float64 input.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends
from .backends._compiling import is_traced
from .backends._events import Events
from .backends._types import FREE, Convolution, state_dtype
from .backends.torch.differentiable import clip_decay
from .ops.carrier import carrier, carrier_of
from .ops.conv import ConvSpikes
from .ops.count import SpikeCount
from .ops.gate import RuleGate
from .ops.linear import LinearReadout, LinearSettings, LinearSpikes
from .ops.neuron import INPUTS, Settings, SingleSpike, Wanted
from .ops.readout import LeakyReadout
from .ops.surrogate import SpikeGrad, Surrogate, split
from .ops.validation import (
    GRADIENT_RULES,
    REDUCTIONS,
    RESETS,
    NaNError,
    check_choice,
    check_conv,
    check_current,
    check_linear,
    check_parameter,
    check_recording,
    check_refractory,
    check_state,
    check_transforms,
)
from .spikes import SpikeEvents, Spikes, SpikeTimes
from .spikes.current import conv1d_as_2d, dense_conv, dense_linear, height_of_channels
from .spikes.lazy import materialize
from .spikes.pooling import pool_first_spikes
from .spikes.times import first_steps

__all__ = [
    "DEFAULT_GRADIENT",
    "GRADIENT_RULES",
    "REDUCTIONS",
    "SPIKE_FORMATS",
    "Events",
    "NaNError",
    "SingleSpikes",
    "first_spike_pool2d",
    "first_spike_time",
    "leaky_readout",
    "linear_readout",
    "single_spike_conv1d",
    "single_spike_conv2d",
    "single_spike_leaky",
    "single_spike_linear",
    "spike_count",
]

COUNTED = ("neuron", "sample")

DEFAULT_GRADIENT = "masked"
"""The gradient rule of layers and functions by default."""
SPIKE_FORMATS = ("dense", "times")
"""The formats in which neurons return spikes: a dense tensor, or SpikeTimes."""


def leaky_reset(reset_mechanism: str) -> str:
    """The kernel's name of a reset mechanism: the "zero" of Leaky acts before the integration."""
    return "zero_before" if reset_mechanism == "zero" else reset_mechanism


class SingleSpikes(NamedTuple):
    """The result of :func:`single_spike_leaky`."""

    spikes: Tensor | None
    """`(T, B, *features)`, type of the input: ``graded_spikes_factor`` at the first spike of
    each neuron, else 0. None with ``return_spikes=False``."""
    mem: Tensor | None
    """`(T, B, *features)`, type of the input: the membrane. None with ``return_mem=False``."""
    times: Tensor
    """`(B, *features)`: step of the spike, -1 for a silent neuron. int64, or floating-point and
    differentiable under ``gradient="spike_time"``. With ``refractory``: step of the last spike."""


class Result(NamedTuple):
    """The result of :func:`run_single_spike`; an output that was not requested is None."""

    spikes: Tensor | None
    mem: Tensor | None
    syn: Tensor | None
    inh: Tensor | None
    times: Tensor
    final: Tensor | None
    """The states at T-1, (1 to 3, B, *features): the membrane, then the synaptic currents."""


def run_single_spike(
    current: Tensor,
    beta: Tensor | float,
    threshold: Tensor | float,
    graded_spikes_factor: Tensor | float,
    surrogate: Surrogate | None,
    custom_surrogate: SpikeGrad | None,
    gradient: str,
    reset: str,
    *,
    mem: Tensor | None = None,
    alpha: Tensor | float | None = None,
    gain: Tensor | None = None,
    feedback: Tensor | float | None = None,
    syn: Tensor | None = None,
    inh: Tensor | None = None,
    clamp: bool = True,
    refractory: int | None = None,
    last: Tensor | None = None,
    want_spikes: bool = True,
    want_mem: bool = True,
    want_final: bool = False,
    recompute: bool | None = None,
    backend: str = "auto",
) -> Result:
    """Check the arguments, run the operator, restore the shapes.

    :class:`snn_single_spike.backends._types.Neuron` describes the neuron and ``reset``.
    :func:`snn_single_spike.ops.surrogate.split` returns ``surrogate`` and ``custom_surrogate``.
    ``want_mem`` returns the synaptic currents, too. ``last`` (B, *features) is the step of the last
    spike before the sequence, negative.
    """
    check_current(current)
    check_choice("gradient", gradient, GRADIENT_RULES)
    refractory = check_refractory(refractory, gradient)
    if refractory is not None and (gain is not None or feedback is not None):
        raise ValueError(
            f"refractory={refractory} is not supported by neurons with feedback or a gain, which "
            "spike at most once: pass refractory=None"
        )
    chosen = backends.select(backend, current.device.type)
    exact = gradient == "spike_time"
    threshold_ = check_parameter("threshold", threshold, current)
    factor = check_parameter("graded_spikes_factor", graded_spikes_factor, current)

    # An exported program has no backward pass to save for.
    track = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    # Custom surrogate: the operator returns the membrane, and autograd differentiates the rest.
    composed = track and want_spikes and custom_surrogate is not None and not exact
    # The operator sums the gradient to the height at one spike only.
    apart = composed or (refractory is not None and factor.requires_grad)
    learns = any(isinstance(x, Tensor) and x.requires_grad for x in (current, beta, feedback))
    if composed and feedback is not None and learns:
        raise ValueError(
            "spike_grad is a custom function, but a neuron with feedback requires a surrogate of "
            "snntorch.surrogate: use e.g. snntorch.surrogate.atan(), or gradient='spike_time', "
            "which uses no surrogate"
        )
    settings = Settings(
        clamp=clamp,
        reset=reset,
        refractory=refractory,
        rule=gradient,
        surrogate=None if exact else surrogate,
        spikes_move_times=exact and not (surrogate is None and custom_surrogate is None),
        wanted=Wanted(
            spikes=want_spikes,
            mem=want_mem or composed,
            syn=want_mem and alpha is not None,
            final=want_final,
            phase=composed and bool(refractory),
        ),
        # A second integration costs plain torch a whole pass, and the fused loops almost nothing.
        recompute=(not want_mem and chosen != "torch") if recompute is None else recompute,
        track=track,
        backend=chosen,
    )
    inputs = {
        "current": current.flatten(1).contiguous(),
        "beta": check_parameter("beta", beta, current),
        "threshold": threshold_,
        "graded_spikes_factor": torch.ones_like(factor) if apart else factor,
        "alpha": None if alpha is None else check_parameter("alpha", alpha, current),
        "gain": None if gain is None else check_parameter("gain", gain, current),
        "feedback": None if feedback is None else check_parameter("V", feedback, current),
        "mem_0": check_state("mem", mem, current),
        "syn_0": check_state("syn" if gain is None else "syn_exc", syn, current),
        "inh_0": check_state("syn_inh", inh, current),
    }
    inputs["last_0"] = _last_spike(refractory, last, inputs["mem_0"], threshold_, current)
    spikes, membrane, syn_rec, inh_rec, times, final, _, phase = SingleSpike.apply(
        settings, *(inputs[name] for name in INPUTS)
    )
    shape = current.shape
    spikes = spikes.view(shape) if want_spikes else None
    membrane = membrane.view(shape) if want_mem or composed else None
    times = times.view(shape[1:])
    if composed and custom_surrogate is not None and spikes is not None and membrane is not None:
        crossings = custom_surrogate(membrane.to(threshold_.dtype) - _broadcast(threshold_, shape))
        if phase.numel():
            free = (phase & FREE != 0).view(shape)
            crossings = torch.where(free, crossings, crossings.detach())
        closes = times if refractory is None else torch.full_like(times, -1)
        spikes = RuleGate.apply(crossings, spikes, closes, gradient)
    if apart and spikes is not None:
        spikes = (spikes * _broadcast(factor, shape)).to(current.dtype)
    return Result(
        spikes,
        membrane if want_mem else None,
        syn_rec.view(shape) if want_mem and alpha is not None else None,
        inh_rec.view(shape) if want_mem and gain is not None else None,
        times,
        final.view(len(final), *shape[1:]) if want_final else None,
    )


def _last_spike(
    refractory: int | None,
    last: Tensor | None,
    mem_0: Tensor | None,
    threshold: Tensor,
    current: Tensor,
) -> Tensor | None:
    """The step (M,) of the last spike before the sequence, as the operator reads it.

    Without a refractory period the membrane says whether the neuron spiked one step before, as in
    snnTorch.
    """
    if refractory is None:
        return None
    lowest = -refractory - 2
    if refractory:
        return None if last is None else last.flatten().clamp(lowest, -1).contiguous()
    if mem_0 is None:
        on_cpu = threshold.device.type == "cpu" and not is_traced()
        if on_cpu and bool((threshold >= 0).all()):
            return None
        mem_0 = torch.zeros_like(current[0], dtype=threshold.dtype).flatten()
    above = mem_0.detach().view(-1, threshold.numel()) > threshold.detach()
    return torch.where(above, -1, lowest).flatten()


def _broadcast(parameter: Tensor, shape: torch.Size) -> Tensor:
    return parameter if parameter.numel() == 1 else parameter.view(shape[2:])


def single_spike_leaky(
    current: Tensor,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    mem: Tensor | None = None,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
    refractory: int | None = None,
    return_spikes: bool = True,
    return_mem: bool = True,
    recompute: bool | None = None,
) -> SingleSpikes:
    """
    A layer of leaky integrate-and-fire neurons that spike at most once, over a whole sequence.

    .. math::

            U[t] = \\text{clamp}(β, 0, 1) U[t-1] + I_{\\rm in}[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    The first spike equals the first spike of :class:`snntorch.Leaky` for every reset mechanism,
    if the initial membrane is not above the threshold. Formulas: Taylor, King and Harper,
    *Robust and accelerated single-spike spiking neural network training with applicability
    to challenging temporal tasks*, arXiv:2205.15286.

    Example::

        from snn_single_spike.functional import single_spike_leaky
        from snntorch import surrogate

        current = torch.randn(100, 32, 128)  # time, batch, neurons
        spikes, mem, times = single_spike_leaky(
            current, beta=0.9, spike_grad=surrogate.fast_sigmoid(slope=10)
        )

    After a NaN in the current the membrane is NaN and the neuron does not fire; an earlier spike
    remains. ``+inf`` fires a neuron that has not fired, and ``-inf`` silences the neuron. Other
    neurons are not affected. Gradients follow IEEE arithmetic on the membrane, as in snnTorch. A
    NaN after the spike changes only gradients that read the membrane at that step.

    :param current: input current of shape `(T, B, *features)` with at least one feature
        dimension and `T >= 1`; float32, float64, float16 or bfloat16
    :type current: torch.Tensor

    :param beta: membrane decay rate per step, clipped between 0 and 1: a number, or a tensor
        that broadcasts to the features (one value per neuron)
    :type beta: float or torch.Tensor

    :param threshold: a neuron fires at the first step where its membrane is strictly above the
        threshold: a number, or a tensor that broadcasts to the features. Defaults to 1
    :type threshold: float or torch.Tensor, optional

    :param mem: membrane before the first step, of shape `(B, *features)`. Defaults to zeros
    :type mem: torch.Tensor, optional

    :param spike_grad: surrogate gradient of the threshold: a surrogate of
        :mod:`snntorch.surrogate`, whose derivative is fused into the backward pass, or any
        differentiable function of `mem - threshold`. Autograd differentiates such a function, and
        its value is not used: a spike has the value 1. Defaults to None:
        `snntorch.surrogate.atan()`
    :type spike_grad: Callable, optional

    :param gradient: rule by which a loss on the spikes reaches the membrane. `"masked"`:
        backpropagation through time with a detached at-most-once gate, up to the spike.
        `"straight_through"`: the block model of arXiv:2205.15286, through the double
        cumulative sum. `"pre_spike"`: FastSNN, the same up to the spike. `"spike_time"`:
        exact gradient of the interpolated crossing time (Göltz et al., Fast & Deep,
        Nature Machine Intelligence 2021), without a surrogate. Under `"spike_time"` a spike at
        step 0 and a silent neuron have no gradient. A loss on the spikes is then a loss on the
        spike time: the spike is shared linearly between the two steps around the crossing.
        Defaults to `"masked"`
    :type gradient: str, optional

    :param backend: `"auto"`, `"triton"`, `"numba"` or `"torch"`; see
        :mod:`snn_single_spike.backends`. Defaults to `"auto"`
    :type backend: str, optional

    :param reset_mechanism: reset of the membrane one step after the spike: `"none"`,
        `"subtract"` or `"zero"`, as in snnTorch. The surrogate reads the membrane after the
        reset, so the block model of arXiv:2205.15286 is `"straight_through"` with `"none"`.
        Defaults to `"none"`
    :type reset_mechanism: str, optional

    :param graded_spikes_factor: height of a spike: a number, or a tensor that broadcasts to the
        features. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional

    :param refractory: number of silent steps after each spike. A neuron may then spike again, and
        every spike resets the neuron. With 0 the spikes and the membrane are those of
        :class:`snntorch.Leaky`: an initial membrane above the threshold is reset, too. With `T` or
        more they are those of one spike per sample. `gradient` must be `"masked"`, which is then
        backpropagation through time with a detached reset, closed in the refractory period.
        Defaults to None: at most one spike
    :type refractory: int, optional

    :param return_spikes: compute the dense spikes. Defaults to True
    :type return_spikes: bool, optional

    :param return_mem: return the membrane. Defaults to True
    :type return_mem: bool, optional

    :param recompute: save the current for the backward pass in place of the membrane. The
        backward pass then integrates the membrane again. For half-precision input the Triton
        kernels round this membrane to the type of the input, and the other backends do not.
        Defaults to None: True if the membrane is not returned and the backend is not `"torch"`.
        The forward pass then does not write the membrane
    :type recompute: bool, optional

    :return: `(spikes, mem, times)`, see :class:`SingleSpikes` for shapes and types
    :rtype: SingleSpikes

    :raises ValueError: the rank is wrong, `T = 0`, a parameter does not broadcast to the
        features, tensors are on several devices, a parameter contains NaN (checked on the CPU),
        or an option is unknown
    :raises TypeError: types are integer or mixed, or the surrogate cannot be called
    :raises RuntimeError: the backend that `backend` names cannot run here
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    result = run_single_spike(
        current,
        beta,
        threshold,
        graded_spikes_factor,
        *split(spike_grad),
        gradient,
        leaky_reset(reset_mechanism),
        mem=mem,
        refractory=refractory,
        want_spikes=return_spikes,
        want_mem=return_mem,
        recompute=recompute,
        backend=backend,
    )
    # A spike before the sequence is no spike of the sequence.
    times = result.times if refractory is None else result.times.clamp(min=-1)
    return SingleSpikes(result.spikes, result.mem, times)


def first_spike_time(
    current: Tensor,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    mem: Tensor | None = None,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
) -> Tensor:
    """
    First spike time of every neuron.

    The function allocates no output of size T, and stops reading the input when all neurons of a
    block have fired. (The plain torch implementation allocates work space and reads all steps.)

    Times from the surrogate rules are integers without a gradient. With `gradient="spike_time"`
    times are interpolated between steps and differentiable (Göltz et al., Fast & Deep, Nature
    Machine Intelligence 2021):

    .. math::

            τ = t^* - 1 + \\frac{U_{\\rm thr} - U[t^*-1]}{U[t^*] - U[t^*-1]}

    A neuron that fires at step 0 has τ = 0. A silent neuron has the time -1 and no gradient. A
    loss on the membrane also trains silent neurons.

    Example::

        times = first_spike_time(current, beta=0.9, gradient="spike_time")
        fired = times >= 0

    :param current: input current of shape `(T, B, *features)`
    :type current: torch.Tensor

    Arguments as in :func:`single_spike_leaky`.

    :return: times of shape `(B, *features)` in steps, -1 for a silent neuron; int64, or
        float32 (float64 for float64 input) with `gradient="spike_time"`
    :rtype: torch.Tensor

    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    return run_single_spike(
        current,
        beta,
        threshold,
        1.0,
        *split(spike_grad),
        gradient,
        "none",
        mem=mem,
        want_spikes=False,
        want_mem=False,
        backend=backend,
    ).times


class _Current(NamedTuple):
    """Shape and type of the current of a layer. The current itself is never computed."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _layer_inputs(
    spikes: Spikes, weight: Tensor, height: Tensor | None, bias: Tensor | None
) -> tuple[LinearSettings, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The settings, (carrier, weight, bias), and the events. ``height`` multiplies the weights."""
    state = state_dtype(weight.dtype)
    scaled = weight.to(state)
    if height is not None:
        scaled = scaled * height.to(state)
    drive = scaled.new_zeros(len(weight)) if bias is None else bias.to(state)
    events = spikes.events()
    settings = LinearSettings(
        num_steps=spikes.num_steps,
        at_spikes=spikes.interpolated_times is not None,
        once=events.once,
        padded=events.padded,
        track=torch.is_grad_enabled() and not torch.compiler.is_exporting(),
    )
    tensors = (spikes.carrier, scaled.contiguous(), drive.contiguous())
    return settings, tensors, tuple(events[:4])


def _linear_inputs(
    spikes: Spikes, weight: Tensor, bias: Tensor | None
) -> tuple[_Current, LinearSettings, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The description of the current, and :func:`_layer_inputs`."""
    shape = torch.Size((spikes.num_steps, spikes.batch, len(weight)))
    current = _Current(shape, weight.dtype, weight.device)
    return current, *_layer_inputs(spikes, weight, spikes.height, bias)


def _per_output(name: str, value: Tensor | float, current: _Current) -> Tensor:
    """A parameter as one value for each output (O,)."""
    return check_parameter(name, value, current).expand(current.shape[2]).contiguous()


def run_single_spike_linear(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float,
    graded_spikes_factor: Tensor | float,
    surrogate: Surrogate | None,
    custom_surrogate: SpikeGrad | None,
    gradient: str,
    reset: str,
    backend: str,
) -> SpikeTimes:
    """Check the arguments and run the operator on spike times.

    :func:`single_spike_linear` and :func:`run_single_spike` describe the arguments.
    """
    check_linear(spikes, weight, bias)
    check_choice("gradient", gradient, GRADIENT_RULES)
    chosen = backends.select(backend, weight.device.type)
    exact = gradient == "spike_time"
    custom = custom_surrogate is not None and not exact and torch.is_grad_enabled()
    if custom or not spikes.prefer_events():
        # Autograd differentiates a custom surrogate on the dense membrane.
        by = "linear with a custom spike_grad"
        dense = spikes.materialize(by) if custom else spikes.to_dense()
        current = dense_linear(dense, weight, bias)
        neuron = (beta, threshold, 1.0, surrogate, custom_surrogate, gradient, reset)
        result = run_single_spike(current, *neuron, want_mem=False, backend=backend)
        return spikes_of_result(result, graded_spikes_factor)
    described, settings, tensors, events = _linear_inputs(spikes, weight, bias)
    decay = clip_decay(check_parameter("beta", beta, described)).expand(described.shape[2])
    out = LinearSpikes.apply(
        settings._replace(
            rule=gradient,
            reset=reset,
            surrogate=None if exact else surrogate,
            backend=chosen,
        ),
        *tensors,
        decay.contiguous(),
        _per_output("threshold", threshold, described),
        *events,
    )
    disabled = surrogate is None and custom_surrogate is None
    return _spikes_of_layer(out, described, graded_spikes_factor, exact, disabled)


def run_single_spike_conv(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    sizes: Convolution,
    beta: Tensor | float,
    threshold: Tensor | float,
    graded_spikes_factor: Tensor | float,
    surrogate: Surrogate | None,
    custom_surrogate: SpikeGrad | None,
    gradient: str,
    reset: str,
    *,
    features: torch.Size,
    backend: str,
) -> SpikeTimes:
    """Check the arguments and run the operator on spike times.

    ``features`` are those of the neurons, (O, height, width) or (O, width). ``weight`` has two
    dimensions of the kernel in both cases. :func:`single_spike_conv2d` and
    :func:`run_single_spike` describe the other arguments.
    """
    check_choice("gradient", gradient, GRADIENT_RULES)
    exact = gradient == "spike_time"
    custom = custom_surrogate is not None and not exact and torch.is_grad_enabled()
    heights = height_of_channels(spikes)
    if custom or heights is None or not spikes.prefer_events():
        # Autograd differentiates a custom surrogate on the dense membrane.
        by = "convolution with a custom spike_grad"
        if heights is None:
            by = "a convolution of spikes whose height differs in a channel"
        dense = spikes.materialize(by) if custom or heights is None else spikes.to_dense()
        current = dense_conv(dense, weight, bias, sizes).unflatten(2, features)
        neuron = (beta, threshold, 1.0, surrogate, custom_surrogate, gradient, reset)
        result = run_single_spike(current, *neuron, want_mem=False, backend=backend)
        return spikes_of_result(result, graded_spikes_factor)
    chosen = backends.select(backend, weight.device.type)
    shape = torch.Size((spikes.num_steps, spikes.batch, *features))
    described = _Current(shape, weight.dtype, weight.device)
    factor = None
    if spikes.height is not None:
        # A channel of the input is a column of the weights of its group.
        by_group = heights.expand(sizes.channels).view(sizes.groups, 1, -1)
        of_output = by_group.expand(-1, len(weight) // sizes.groups, -1)
        factor = of_output.reshape(*weight.shape[:2], 1, 1)
    settings, tensors, events = _layer_inputs(spikes, weight, factor, bias)
    out = ConvSpikes.apply(
        settings._replace(
            rule=gradient,
            reset=reset,
            surrogate=None if exact else surrogate,
            backend=chosen,
        ),
        sizes,
        *tensors,
        clip_decay(_per_channel("beta", beta, described)),
        _per_channel("threshold", threshold, described),
        *events,
    )
    disabled = surrogate is None and custom_surrogate is None
    return _spikes_of_layer(out, described, graded_spikes_factor, exact, disabled)


def _spikes_of_layer(
    out: tuple[Tensor, Tensor, Tensor],
    current: _Current,
    graded_spikes_factor: Tensor | float,
    exact: bool,
    disabled: bool,
) -> SpikeTimes:
    """The carrier, the times and the interpolated times of an operator as spikes.

    ``disabled`` is surrogate_disable of snnTorch. Interpolated times keep a gradient.
    """
    new, times, interpolated = out
    num_steps, *size = current.shape
    return SpikeTimes.of_neuron(
        times.view(size),
        num_steps,
        _height(graded_spikes_factor, current),
        current.dtype,
        new.detach() if disabled else new,
        interpolated.view(size) if exact else None,
    )


def _per_channel(name: str, value: Tensor | float, current: _Current) -> Tensor:
    """A parameter of (O, *maps) as (O, 1) if it is the same in a channel, else (O, positions)."""
    channels, *maps = current.shape[2:]
    flat = check_parameter(name, value, current)
    if flat.numel() == 1:
        return flat.expand(channels)[:, None].contiguous()
    by_channel = flat.view(channels, -1)
    assert isinstance(value, Tensor)
    within = value.shape[-len(maps) :] if value.dim() > len(maps) else value.shape
    return by_channel[:, :1].contiguous() if within.numel() == 1 else by_channel


def spikes_of_result(result: Result, graded_spikes_factor: Tensor | float) -> SpikeTimes:
    """Spike times of neurons that were run on a dense current, with spikes of height 1."""
    spikes = result.spikes
    assert spikes is not None
    times = result.times
    interpolated = times if times.is_floating_point() else None
    return SpikeTimes.of_neuron(
        times if interpolated is None else first_steps(spikes.detach() != 0),
        spikes.shape[0],
        _height(graded_spikes_factor, spikes),
        spikes.dtype,
        carrier_of(spikes),
        interpolated,
    )


def _height(factor: Tensor | float, like: Tensor | _Current) -> Tensor | None:
    """The height of spikes; None if the height is 1 and is not learned."""
    if isinstance(factor, float) and factor == 1.0:
        return None
    height = check_parameter("graded_spikes_factor", factor, like)
    readable = not is_traced()
    if readable and not height.requires_grad and height.numel() == 1 and bool(height == 1):
        return None
    if not torch.is_grad_enabled():
        height = height.detach()
    if height.numel() > 1:
        assert isinstance(factor, Tensor)
        height = height.view(like.shape[2:])
        for dim in range(-min(factor.dim(), height.dim()), 0):
            if factor.shape[dim] == 1:
                height = height.narrow(dim, 0, 1)  # one value along this dimension
    # A copy: an optimizer changes the parameter in place, and the height of the spikes must stay.
    return height.to(like.dtype, copy=True)


def _check_type(spikes: Any) -> None:
    if not isinstance(spikes, Spikes):
        raise TypeError(
            f"spikes must be SpikeTimes or SpikeEvents, not {type(spikes).__name__}: make them "
            "with SpikeTimes.from_dense(spikes) or SpikeEvents.from_dense(spikes)"
        )


def _check_spikes(spikes: Any) -> Spikes:
    _check_type(spikes)
    if len(spikes.features) != 1:
        raise ValueError(
            f"spikes has shape {tuple(spikes.shape)}, but one feature dimension is expected, "
            "(time, batch, in): use spikes.flatten(2)"
        )
    return spikes


def single_spike_linear(
    spikes: SpikeTimes | SpikeEvents,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
) -> SpikeTimes:
    """
    A linear layer and its single-spike neurons, from spike times to spike times.

    The result equals :func:`single_spike_leaky` of
    `torch.nn.functional.linear(spikes.to_dense(), weight, bias)`, with the same gradients by every
    rule. No current `(T, B, out)` is computed: every spike adds its column of weights once.

    The forward pass saves nothing of size T. Under a surrogate rule the time of the backward pass
    grows with T. Under a surrogate rule a layer whose input spikes come from another hidden layer
    keeps its adjoint `(T, B, out)` during the backward pass. Under `gradient="spike_time"` it
    allocates no such tensor, and its time hardly grows with T. Formulas as in
    :func:`single_spike_leaky`.

    Example::

        spikes = SpikeTimes(times, num_steps=100)                  # (B, 784)
        hidden = single_spike_linear(spikes, weight, bias, beta=0.9)
        hidden.times                                           # (B, out)

    :param spikes: spikes of the layer before, with one feature dimension
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in)`; float32 or float64, half types are computed in
        float32
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    Other arguments as in :func:`single_spike_leaky`. With a custom surrogate the layer is
    computed on dense tensors.

    :return: spikes of shape `(T, B, out)`, with `times` of shape `(B, out)`, and with
        `interpolated_times` under `gradient="spike_time"`
    :rtype: SpikeTimes

    :raises TypeError: `spikes` is a dense tensor
    :raises ValueError: `spikes` has more than one feature dimension, or does not fit `weight`
    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    return run_single_spike_linear(
        _check_spikes(spikes),
        weight,
        bias,
        beta,
        threshold,
        graded_spikes_factor,
        *split(spike_grad),
        gradient,
        leaky_reset(reset_mechanism),
        backend,
    )


def single_spike_conv2d(
    spikes: SpikeTimes | SpikeEvents,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
) -> SpikeTimes:
    """
    A convolution and its single-spike neurons, from spike times to spike times.

    The result equals :func:`single_spike_leaky` of `torch.nn.functional.conv2d` on every step of
    `spikes.to_dense()`, with the same gradients by every rule. Every spike adds its patch of
    weights to the outputs that it reaches once. No current `(T, B, out, height, width)` is stored
    in the forward or in the backward pass.

    Under a surrogate rule the backward pass visits every time step, a few samples at a time. A
    hidden layer receives its gradient from the next convolution in the same way: the next layer
    computes its adjoint a second time for these samples. Under `gradient="spike_time"` only steps
    with spikes are visited, in all layers. Formulas as in :func:`single_spike_leaky`.

    Example::

        spikes = SpikeTimes(times, num_steps=100)                    # (B, 1, 28, 28)
        hidden = single_spike_conv2d(spikes, weight, bias, beta=0.9, padding=2)
        hidden.times                                                 # (B, out, 28, 28)

    :param spikes: spikes of the layer before, with the features `(channels, height, width)`
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, channels / groups, height, width)`; float32 or float64,
        half types are computed in float32
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    `stride`, `padding` (of zeros, a number, two numbers, `"same"` or `"valid"`), `dilation` and
    `groups` as in :func:`torch.nn.functional.conv2d`. Other arguments as in
    :func:`single_spike_leaky`, with parameters that broadcast to `(out, height, width)`, e.g.
    `(out, 1, 1)`. With a custom surrogate, or if the height of the input spikes differs within a
    channel, the layer is computed on dense tensors, with a :class:`MaterializationWarning`.

    :return: spikes of shape `(T, B, out, height, width)`, with `interpolated_times` under
        `gradient="spike_time"`
    :rtype: SpikeTimes

    :raises TypeError: `spikes` is a dense tensor
    :raises ValueError: `spikes` has other feature dimensions, or does not fit `weight`
    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    _check_type(spikes)
    sizes = check_conv(spikes, weight, bias, stride, padding, dilation, groups)
    return run_single_spike_conv(
        *(spikes, weight, bias, sizes, beta, threshold, graded_spikes_factor),
        *split(spike_grad),
        *(gradient, leaky_reset(reset_mechanism)),
        features=torch.Size((len(weight), sizes.out_height, sizes.out_width)),
        backend=backend,
    )


def single_spike_conv1d(
    spikes: SpikeTimes | SpikeEvents,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
) -> SpikeTimes:
    """
    A convolution in one dimension and its single-spike neurons: :func:`single_spike_conv2d` for
    spikes with the features `(channels, length)` and weights `(out, channels / groups, length)`.

    :return: spikes of shape `(T, B, out, length)`
    :rtype: SpikeTimes

    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_conv2d`
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    _check_type(spikes)
    maps, kernel, sizes = conv1d_as_2d(spikes, weight, bias, stride, padding, dilation, groups)
    return run_single_spike_conv(
        *(maps, kernel, bias, sizes, beta, threshold, graded_spikes_factor),
        *split(spike_grad),
        *(gradient, leaky_reset(reset_mechanism)),
        features=torch.Size((len(weight), sizes.out_width)),
        backend=backend,
    )


def leaky_readout(
    current: Tensor,
    beta: Tensor | float,
    *,
    mem: Tensor | None = None,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """
    A leaky membrane that never fires, reduced over time as it is integrated.

    .. math::

            U[t] = \\text{clamp}(β, 0, 1) U[t-1] + I_{\\rm in}[t], \\qquad
            y = \\sum_t U[t], \\; \\max_t U[t] \\text{ or } U[T-1]

    The function does not write the membrane over time, and saves nothing of size T for the
    backward pass. With `"sum"` it is the readout of Taylor, King and Harper, arXiv:2205.15286.

    Example::

        scores = leaky_readout(current, beta=0.95)         # (T, B, 10) -> (B, 10)

    :param current: input current of shape `(T, B, *features)`; float32, float64, float16 or
        bfloat16. For spike times use :func:`linear_readout`
    :type current: torch.Tensor

    :param beta: decay rate per step, clipped between 0 and 1: a number, or a tensor that
        broadcasts to the features
    :type beta: float or torch.Tensor

    :param mem: membrane before the first step, of shape `(B, *features)`. Defaults to zeros
    :type mem: torch.Tensor, optional

    :param reduction: `"sum"`, `"max"` or `"last"` over time. The gradient of `"max"` goes to the
        first of equal maxima. Defaults to `"sum"`
    :type reduction: str, optional

    :param backend: as in :func:`single_spike_leaky`. Defaults to `"auto"`
    :type backend: str, optional

    :return: tensor of shape `(B, *features)`, type of the input
    :rtype: torch.Tensor

    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    check_choice("reduction", reduction, REDUCTIONS)
    current = check_current(materialize(current, "leaky_readout"))
    chosen = backends.select(backend, current.device.type)
    value = LeakyReadout.apply(
        current.flatten(1).contiguous(),
        check_parameter("beta", beta, current),
        check_state("mem", mem, current),
        reduction,
        torch.is_grad_enabled() and not torch.compiler.is_exporting(),
        chosen,
    )
    return value.view(current.shape[1:])


def linear_readout(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    *,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """
    A linear layer and a leaky membrane that never fires, from spike times to class scores.

    The result equals :func:`leaky_readout` of
    `torch.nn.functional.linear(spikes.to_dense(), weight, bias)`. No current `(T, B, out)` is
    computed. The readout of Taylor, King and Harper, arXiv:2205.15286.

    Example::

        hidden = single_spike_linear(spikes, weight_1, bias_1, beta=0.9)
        scores = linear_readout(hidden, weight_2, bias_2, beta=0.95)       # (B, out)

    :param spikes: spikes of the layer before, with one feature dimension
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in)`
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    Other arguments as in :func:`leaky_readout`.

    :return: tensor of shape `(B, out)`, type of the weights
    :rtype: torch.Tensor

    :raises TypeError: `spikes` is a dense tensor
    :raises ValueError: `spikes` has more than one feature dimension, or does not fit `weight`
    :raises ValueError, TypeError, RuntimeError: as :func:`leaky_readout`
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_linear(_check_spikes(spikes), weight, bias)
    chosen = backends.select(backend, weight.device.type)
    if not spikes.prefer_events():
        current = dense_linear(spikes.to_dense(), weight, bias)
        return leaky_readout(current, beta, reduction=reduction, backend=backend)
    described, settings, tensors, events = _linear_inputs(spikes, weight, bias)
    decay = clip_decay(check_parameter("beta", beta, described)).expand(described.shape[2])
    value = LinearReadout.apply(
        settings._replace(reduction=reduction, backend=chosen),
        *tensors,
        decay.contiguous(),
        *events,
    )
    return value.to(weight.dtype)


def first_spike_pool2d(
    spikes: SpikeTimes,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
) -> SpikeTimes:
    """
    The earliest spike of each window, from maps of spike times.

    One spike at most leaves a window. (`torch.nn.MaxPool2d` of dense spikes lets every spike of a
    window through that is alone at its step.) The gradient of a pooled unit flows to the unit with
    the earliest spike, at every step, and of a silent window to its first unit.

    Example::

        pooled = first_spike_pool2d(spikes, 2)         # (T, B, C, 28, 28) -> (T, B, C, 14, 14)

    :param spikes: spike times with the features `(channels, height, width)`
    :type spikes: SpikeTimes

    Other arguments as in :func:`torch.nn.functional.max_pool2d`. Padding is silent.

    :return: the pooled spike times. `interpolated_times` are those of the earliest spikes
    :rtype: SpikeTimes

    :raises TypeError: `spikes` are not :class:`SpikeTimes`
    :raises ValueError: the spikes are not maps, or their height differs within a channel
    """
    if not isinstance(spikes, SpikeTimes):
        raise TypeError(
            f"spikes must be SpikeTimes, not {type(spikes).__name__}: make them with "
            "SpikeTimes.from_dense(spikes)"
        )
    if len(spikes.features) != 3:
        raise ValueError(
            f"the spikes have features {tuple(spikes.features)}, but maps (channels, height, "
            "width) are expected"
        )
    return pool_first_spikes(spikes, kernel_size, stride, padding, ceil_mode)


def spike_count(spk_out: Tensor | SpikeTimes | SpikeEvents, per: str = "neuron") -> Tensor:
    """
    Number of spikes, differentiable.

    The count is linear in the spikes, so its gradient is the same at every step. The surrogate
    rules carry this gradient to the membrane. Under `gradient="spike_time"` the gradient is
    zero: this rule moves spikes, and their number stays the same. Spike times are counted without
    dense spikes, forward and backward.

    Example::

        hidden = lif1(fc1(x))                                  # spikes or SpikeTimes
        loss = loss_fn(scores, targets) + 1e-3 * spike_count(hidden, per="sample").mean()

    :param spk_out: spikes of shape `(T, B, *features)`. A graded spike counts by its height
    :type spk_out: torch.Tensor, SpikeTimes or SpikeEvents

    :param per: `"neuron"` sums over the batch, `"sample"` sums over the neurons. Defaults to
        `"neuron"`
    :type per: str, optional

    :return: counts of shape `(N,)` for `"neuron"`, where N is the number of neurons, or `(B,)` for
        `"sample"`; float32, or float64 for float64 spikes
    :rtype: torch.Tensor

    :raises ValueError: `per` is unknown, the shape is wrong, or `T = 0`
    :raises TypeError: the spikes are not floating-point
    """
    check_choice("per", per, COUNTED)
    if isinstance(spk_out, SpikeEvents):
        return _count_events(spk_out, per)
    if isinstance(spk_out, SpikeTimes):
        return _count_times(spk_out, per)
    dense: Tensor = materialize(spk_out, "spike_count")
    check_recording("spk_out", dense)
    return dense.flatten(2).sum((0, 1 if per == "neuron" else 2), dtype=state_dtype(dense.dtype))


def _count_times(spikes: SpikeTimes, per: str) -> Tensor:
    check_transforms()
    times, height = spikes.times.flatten(1), spikes.height
    given = spikes.carrier
    if given is None:
        like = times.new_empty(0, dtype=spikes.dtype)
        given = carrier(spikes.num_steps, spikes.batch, times.shape[1], like)
    return SpikeCount.apply(given, times, None if height is None else height.flatten(), per)


def _count_events(spikes: SpikeEvents, per: str) -> Tensor:
    events, dtype = spikes.events(), state_dtype(spikes.dtype)
    heights = torch.ones((), device=spikes.device) if events.values is None else events.values
    where = events.units.long() if per == "neuron" else events.samples()
    size = spikes.features.numel() if per == "neuron" else spikes.batch
    count = torch.zeros(size, dtype=dtype, device=spikes.device)
    return count.index_add_(0, where, heights.to(dtype).expand(len(where)))
