"""Spike times of at-most-once spikes, with a gradient for silent neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends._types import state_dtype
from ..ops.validation import check_parameter, check_recording, check_transforms
from ..spikes import SpikeTimes
from ..spikes.lazy import to_dense
from ._checks import reject_delayed, values_are_checked

__all__ = ["first_spike_times"]

# Far above the rounding error of a spike's height, far below a second spike.
_TOLERANCE = 1e-3


def first_spike_times(
    spk_out: Tensor | SpikeTimes, *, graded_spikes_factor: Tensor | float = 1.0
) -> Tensor:
    """
    Spike times of neurons that fire at most once, with a gradient for silent neurons.

    .. math::

            τ = T - \\sum_t (T - t) S[t], \\qquad S = S_{\\rm out} / \\text{height}

    τ is the step of the spike, and T for a silent neuron. τ is linear in S, so

    .. math::

            \\frac{∂L}{∂S[t]} = -(T - t) \\frac{∂L}{∂τ} \\quad \\text{at every } t,

    with or without a spike at t. A loss that decreases with τ pushes a silent neuron towards a
    spike at every step, and most at the early steps. The surrogate derivative carries this
    gradient to the membrane, and revives the neuron. (In `snntorch.functional` the gradient is -1
    at the spike only, and at the last step for a silent neuron.) In a layer with
    `gradient="spike_time"` the gradient reaches a silent neuron at the maximum of its membrane.

    Example::

        spk, mem = SingleSpikeLeaky(beta=0.9)(current)
        losses.first_spike_times(spk).mean().backward()    # everyone earlier

    From dense spikes the function computes one weighted sum over time, in float32 for half types.
    From :class:`snn_single_spike.SpikeTimes` of height 1 it reads the times.

    :param spk_out: spikes of shape `(T, B, *features)`, at most one per neuron and sample;
        float32, float64, float16 or bfloat16
    :type spk_out: torch.Tensor or SpikeTimes

    :param graded_spikes_factor: height of a spike, as in the layer: a number or one value per
        neuron. The function divides the spikes by it, so times do not depend on it and give it no
        gradient. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional

    :return: times of shape `(B, *features)` in steps, float32 or float64; T for a silent neuron,
        NaN for a neuron with NaN in its spikes
    :rtype: torch.Tensor

    :raises ValueError: wrong rank, `T = 0`; a factor of 0 or of the wrong shape; more than one
        spike of a neuron, or spikes of another height (checked on the CPU)
    :raises TypeError: not a floating-point tensor
    """
    check_transforms()
    reject_delayed(spk_out)
    if _has_exact_times(spk_out, graded_spikes_factor):
        assert isinstance(spk_out, SpikeTimes)
        return _exact_times(spk_out)
    spikes: Tensor = to_dense(spk_out)
    check_recording("spk_out", spikes)
    state = state_dtype(spikes.dtype)
    height = check_parameter("graded_spikes_factor", graded_spikes_factor, spikes)
    # Spikes have their height rounded to their own type.
    height = height.to(spikes.dtype).to(state)
    if height.numel() > 1:
        height = height.view(spikes.shape[2:])
    if values_are_checked(spikes):
        _check_single_spikes(spikes.detach(), height.detach())
    weighted = _WeightedSum.apply(spikes.flatten(1)).view(spikes.shape[1:])
    return spikes.shape[0] - weighted / height


class _WeightedSum(torch.autograd.Function):
    """Sum over t of (T - t) S[t], (T, M) to (M,), in state precision."""

    @staticmethod
    def forward(ctx, spikes: Tensor) -> Tensor:
        ctx.num_steps, ctx.dtype = spikes.shape[0], spikes.dtype
        state = state_dtype(spikes.dtype)
        # torch computes a product with a vector never in TF32, which rounds times above 2048.
        # Autocast would round times above 256.
        with torch.autocast(spikes.device.type, enabled=False):
            return torch.mv(spikes.to(state).t(), _countdown(ctx.num_steps, state, spikes.device))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        weights = _countdown(ctx.num_steps, grad.dtype, grad.device)
        return (weights[:, None] * grad).to(ctx.dtype)


class _TimesWithGradient(torch.autograd.Function):
    """Known times (B, N), with the gradient of :func:`first_spike_times` to their carrier."""

    @staticmethod
    def forward(ctx, carrier: Tensor, times: Tensor) -> Tensor:
        ctx.num_steps, ctx.dtype = carrier.shape[0], carrier.dtype
        return times.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        weights = _countdown(ctx.num_steps, grad.dtype, grad.device)
        return (-weights[:, None, None] * grad).to(ctx.dtype), None


def _countdown(num_steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """T - t for every step t."""
    return torch.arange(num_steps, 0, -1, dtype=dtype, device=device)


def _has_exact_times(spk_out: object, graded_spikes_factor: Tensor | float) -> bool:
    """Whether the times of ``spk_out`` are those of its dense spikes; else these are checked."""
    return (
        isinstance(spk_out, SpikeTimes)
        and spk_out.height is None
        and not spk_out.folded
        and spk_out.numel() > 0
        and isinstance(graded_spikes_factor, (int, float))
        and graded_spikes_factor == 1
    )


def _exact_times(spikes: SpikeTimes) -> Tensor:
    times = spikes.times.to(state_dtype(spikes.dtype))
    times = torch.where(times < 0, spikes.num_steps, times)
    if spikes.carrier is None:
        return times
    return _TimesWithGradient.apply(spikes.carrier, times.flatten(1)).view(times.shape)


def _check_single_spikes(spk_out: Tensor, height: Tensor) -> None:
    if (height == 0).any():
        raise ValueError(
            "graded_spikes_factor contains 0, and spikes of height 0 have no time: pass the height "
            "of the layer's spikes"
        )
    total = spk_out.sum(0, dtype=height.dtype) / height
    # NaN is within both bounds, and makes the loss NaN.
    wrong = (total.abs() > _TOLERANCE) & ((total - 1).abs() > _TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"spk_out has {int(wrong.sum())} neurons that are neither silent nor have one spike of "
            f"height graded_spikes_factor (the first sums up to {total[wrong][0].item():g} heights "
            "over time): pass the spikes of a single-spike layer, with graded_spikes_factor= of "
            "that layer. For neurons that spike repeatedly use snntorch.functional"
        )
