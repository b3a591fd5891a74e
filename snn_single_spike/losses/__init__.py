"""Losses for single spikes, in the form of :mod:`snntorch.functional`, without loops.

Construct with the options, call with recordings and targets::

    from snn_single_spike import losses

    loss_fn, reg_fn = losses.ce_temporal_loss(), losses.firing_regulariser()
    spk1, _ = lif1(fc1(x))                       # (time, batch, hidden)
    spk2, mem2 = lif2(fc2(spk1))                 # (time, batch, classes)
    loss = loss_fn(spk2, targets) + reg_fn(spk1) + reg_fn(spk2)

Losses are computed in float32, or float64 for float64 input, under autocast too. Values are
checked on the CPU only, and not in a compiled graph: reading them back would stall a GPU.
NaN in a recording makes the loss NaN; the mean over an empty batch is NaN, as in torch.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..backends._types import state_dtype
from ..functional import COUNTED, spike_count
from ..ops.validation import (
    REDUCTIONS,
    check_choice,
    check_device,
    check_parameter,
    check_recording,
    check_targets,
)
from ..spikes.lazy import materialize

__all__ = [
    "ce_membrane_loss",
    "ce_temporal_loss",
    "firing_regulariser",
    "first_spike_times",
    "mse_temporal_loss",
    "spike_count_regulariser",
]

INVERSES = ("negate", "reciprocal")
BATCH_REDUCTIONS = ("mean", "sum", "none")
PENALTIES = ("squared", "hinge")

# Far above the rounding of a spike's height, far below a second spike
_TOLERANCE = 1e-3


class _Latency(torch.autograd.Function):
    """Sum over t of (T - t) S[t], (T, M) to (M,), in state precision."""

    @staticmethod
    def forward(ctx, spikes: Tensor) -> Tensor:
        ctx.num_steps, ctx.dtype = spikes.shape[0], spikes.dtype
        state = state_dtype(spikes.dtype)
        # A product with a vector is never done in TF32, which would round times above 2048;
        # autocast would round those above 256.
        with torch.autocast(spikes.device.type, enabled=False):
            return torch.mv(spikes.to(state).t(), _countdown(ctx.num_steps, state, spikes.device))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        weights = _countdown(ctx.num_steps, grad.dtype, grad.device)
        return (weights[:, None] * grad).to(ctx.dtype)


def _countdown(num_steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """T - t for every step t."""
    return torch.arange(num_steps, 0, -1, dtype=dtype, device=device)


def first_spike_times(spk_out: Tensor, *, graded_spikes_factor: Tensor | float = 1.0) -> Tensor:
    """
    Spike times of at-most-once spike trains, with a gradient for silent neurons.

    .. math::

            τ = T - \\sum_t (T - t) S[t], \\qquad S = S_{\\rm out} / \\text{height}

    This is the step of the spike, and T for a silent neuron. It is linear in S, so

    .. math::

            \\frac{∂L}{∂S[t]} = -(T - t) \\frac{∂L}{∂τ} \\quad \\text{at every } t,

    whether there is a spike at t or not: a spike there would bring τ down from T to t. A loss
    that wants a silent neuron earlier therefore asks for a spike at every step, most of all at
    the early ones, and the surrogate derivative carries that to its membrane and revives it.
    (`snntorch.functional` has -1 at the spike only, and at the last step for a silent
    neuron.) A layer with `gradient="spike_time"` has no surrogate: its silent neurons get
    no gradient from any loss on spikes.

    Example::

        spk, mem = SingleSpikeLeaky(beta=0.9)(current)
        losses.first_spike_times(spk).mean().backward()    # everyone earlier

    The linear form is that of a spike as a unit mass on the time axis; nothing beyond one
    weighted sum over time is computed (half precision is converted to float32 for it).

    :param spk_out: spikes of shape `(T, B, *features)`, at most one per neuron and sample;
        float32, float64, float16 or bfloat16
    :type spk_out: torch.Tensor

    :param graded_spikes_factor: height of a spike, as given to the layer: a number or one
        value per neuron. The spikes are divided by it, so that times do not depend on it and
        give no gradient to it. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional

    :return: times of shape `(B, *features)` in steps, float32 or float64; T if silent. NaN
        where a train contains NaN
    :rtype: torch.Tensor

    :raises ValueError: wrong rank, `T = 0`; a factor of 0 or of the wrong shape; more than one
        spike in a train, or spikes of another height (checked on the CPU)
    :raises TypeError: not a floating-point tensor
    """
    spk_out = materialize(spk_out, "a loss")
    check_recording("spk_out", spk_out)
    state = state_dtype(spk_out.dtype)
    height = check_parameter("graded_spikes_factor", graded_spikes_factor, spk_out)
    # The height that spikes of this type really have
    height = height.to(spk_out.dtype).to(state)
    if height.numel() > 1:
        height = height.view(spk_out.shape[2:])
    if spk_out.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_once(spk_out.detach(), height.detach())
    weighted = _Latency.apply(spk_out.flatten(1)).view(spk_out.shape[1:])
    return spk_out.shape[0] - weighted / height


def _check_once(spk_out: Tensor, height: Tensor) -> None:
    if (height == 0).any():
        raise ValueError(
            "graded_spikes_factor contains 0: spikes of no height have no time; pass the height "
            "of the layer's spikes"
        )
    total = spk_out.sum(0, dtype=height.dtype) / height
    # NaN is neither, and goes on to the loss.
    wrong = (total.abs() > _TOLERANCE) & ((total - 1).abs() > _TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"spk_out has {int(wrong.sum())} spike trains that are not silent or one spike of "
            f"height graded_spikes_factor (their sum over time is {total[wrong][0].item():g} "
            "heights, for one): take it from a single-spike layer, pass that layer's "
            "graded_spikes_factor=, or use snntorch.functional for neurons that spike repeatedly"
        )


def _check_number(name: str, value: float, least: float = -math.inf, strict: bool = False) -> float:
    """A finite number from ``least`` on, or above it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number > least if strict else number >= least) or math.isinf(number):
        bound = "" if least == -math.inf else f" {'above' if strict else 'of at least'} {least:g}"
        raise ValueError(f"{name}={value!r} must be a number{bound}")
    return number


def _check_optional(name: str, value: float | None) -> float | None:
    return None if value is None else _check_number(name, value)


def _check_weight(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """One weight per class, in the type of ``like``, (B, C)."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or weight.shape != like.shape[1:]:
        found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(
            f"weight must be a tensor with one value per class, ({like.shape[1]},), not {found}"
        )
    check_device("weight", weight, like.device, "recording")
    return weight.to(like.dtype)


class _Temporal:
    """What the losses on spike times share: they take spikes, or times."""

    def __init__(
        self,
        reduction: str,
        weight: Tensor | None,
        num_steps: int | None,
        graded_spikes_factor: Tensor | float,
    ) -> None:
        check_choice("reduction", reduction, BATCH_REDUCTIONS)
        if num_steps is not None:
            try:
                num_steps = operator.index(num_steps)
            except TypeError:
                raise TypeError(
                    f"num_steps={num_steps!r} must be the number of time steps, an integer"
                ) from None
            if num_steps < 1:
                raise ValueError(f"num_steps={num_steps} must be the number of time steps, T >= 1")
        self.reduction = reduction
        self.weight = weight
        self.num_steps = num_steps
        self.graded_spikes_factor = graded_spikes_factor
        self.__name__ = type(self).__name__

    def _times(self, spk_out: Tensor) -> tuple[Tensor, int]:
        """Spike times (B, C), T for a silent neuron; and T."""
        spk_out = materialize(spk_out, "a loss")
        if isinstance(spk_out, Tensor) and spk_out.dim() == 2:
            return self._given_times(spk_out)
        check_recording("spk_out", spk_out)
        if spk_out.dim() != 3:
            raise ValueError(
                f"spk_out has shape {tuple(spk_out.shape)}, but (time, batch, classes) is "
                "expected: use spk_out.flatten(2)"
            )
        num_steps = spk_out.shape[0]
        if self.num_steps not in (None, num_steps):
            raise ValueError(
                f"num_steps={self.num_steps}, but spk_out has shape {tuple(spk_out.shape)}, "
                f"{num_steps} steps: leave num_steps out, spikes tell it"
            )
        return first_spike_times(spk_out, graded_spikes_factor=self.graded_spikes_factor), num_steps

    def _given_times(self, times: Tensor) -> tuple[Tensor, int]:
        num_steps = self.num_steps
        if num_steps is None:
            raise ValueError(
                f"spk_out has shape {tuple(times.shape)}, which is read as spike times (batch, "
                "classes), so the number of time steps must be told: construct the loss with "
                f"num_steps=T. For spikes pass all steps at once, (time, batch, classes)"
            )
        if not times.is_floating_point():
            raise TypeError(
                f"spk_out holds spike times of dtype {times.dtype}, which carry no gradient: "
                'compute them with gradient="spike_time", or pass the spikes; for the value '
                "alone use spk_out.float()"
            )
        if times.device.type == "cpu" and not torch.compiler.is_compiling():
            late = times[times > num_steps]
            if late.numel():
                raise ValueError(
                    f"spk_out holds a spike time of {late[0].item():g}, but num_steps={num_steps}: "
                    "pass the number of time steps of the sequence"
                )
        return torch.where(times < 0, num_steps, times.to(state_dtype(times.dtype))), num_steps


class ce_temporal_loss(_Temporal):
    """
    Cross entropy on spike times: the earlier a class spikes, the larger its logit.

    .. math::

            \\text{logit} = -d / \\text{scale} \\quad (\\text{negate}), \\qquad
            \\text{logit} = \\frac{1}{d / \\text{scale} + 1} \\quad (\\text{reciprocal})

    with d = τ from :func:`first_spike_times`, T for a silent class, which has a gradient; but
    for the right class, whose logit is largest at `on_target`,

    .. math::

            d = \\text{on\\_target} + |τ - \\text{on\\_target}|

    Mappings of :class:`snntorch.functional.ce_temporal_loss`, which it equals with
    `time_scale=1, on_target=0` where every neuron fires (snnTorch takes a silent neuron for one
    that fires in the last step). The defaults differ, for two reasons:

    - Only differences of times enter a cross entropy, and the right class gains on silent ones
      with every step it is earlier. Nothing holds it back until the evidence is there: with
      `time_scale=1, on_target=0` networks on latency-coded digits decide at step 2 or 3, whether
      T is 25, 50 or 100. `on_target` sets the absolute time. (Göltz et al. 2021 add a term on the
      time of the right class as well; theirs favours early spikes.)
    - A time scale in steps is another loss for every T. Göltz et al. divide by a fraction of the
      synaptic time constant; here it is a fraction of T.

    Example::

        loss_fn = losses.ce_temporal_loss()
        loss = loss_fn(spk_out, targets)

        # snnTorch's
        loss_fn = losses.ce_temporal_loss(time_scale=1, on_target=0)

        # exact gradient of interpolated times; silent neurons have none
        times = single_spike_leaky(current, 0.9, gradient="spike_time").times
        loss = losses.ce_temporal_loss(num_steps=100)(times, targets)

    :param inverse: `"negate"`, or `"reciprocal"`, whose logits lie between 0 and 1, so that
        the loss stays soft however well the classes are separated. Defaults to `"negate"`
    :type inverse: str, optional

    :param reduction: over the batch: `"mean"`, `"sum"` or `"none"`. Defaults to `"mean"`
    :type reduction: str, optional

    :param weight: one weight per class, `(C,)`; as in torch the mean is the weighted one.
        Defaults to None
    :type weight: torch.Tensor, optional

    :param time_scale: steps that make a difference of one in the logits. Defaults to None,
        which is T / 12
    :type time_scale: float, optional, keyword only

    :param on_target: spike time in steps at which the logit of the right class is largest; a
        negative one counts from the end; 0: the earlier the better. Defaults to None, which is
        T / 3, as in :class:`mse_temporal_loss`
    :type on_target: float, optional, keyword only

    :param num_steps: T; needed for spike times, which do not tell it. Defaults to None
    :type num_steps: int, optional, keyword only

    :param graded_spikes_factor: height of a spike, see :func:`first_spike_times`. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional, keyword only

    Inputs: spk_out, targets
        - **spk_out** of shape `(T, B, C)`: spikes, at most one per neuron; or of shape
          `(B, C)`: floating-point spike times, -1 if silent, as from `gradient="spike_time"`.
          A silent entry of these is read as T and carries no gradient
        - **targets** of shape `(B,)`: class indices

    Outputs: scalar, or `(B,)` with `reduction="none"`; float32 or float64

    :raises ValueError: an unknown option, a wrong shape, `T = 0`, batches that differ, a class
        index out of range, a step out of range, trains with more than one spike, times without
        `num_steps`
    :raises TypeError: integer times or spikes, targets that are not integers
    """

    def __init__(
        self,
        inverse: str = "negate",
        reduction: str = "mean",
        weight: Tensor | None = None,
        *,
        time_scale: float | None = None,
        on_target: float | None = None,
        num_steps: int | None = None,
        graded_spikes_factor: Tensor | float = 1.0,
    ) -> None:
        super().__init__(reduction, weight, num_steps, graded_spikes_factor)
        check_choice("inverse", inverse, INVERSES)
        if time_scale is not None:
            time_scale = _check_number("time_scale", time_scale, 0, strict=True)
        self.inverse = inverse
        self.time_scale = time_scale
        self.on_target = _check_optional("on_target", on_target)

    def __call__(self, spk_out: Tensor, targets: Tensor) -> Tensor:
        interpolated_times, num_steps = self._times(spk_out)
        targets = check_targets(targets, interpolated_times)
        on = _resolve("on_target", self.on_target, num_steps, num_steps / 3)
        right = targets[:, None]
        distance = interpolated_times.scatter(
            1, right, on + (interpolated_times.gather(1, right) - on).abs()
        )
        scaled = distance / (num_steps / 12 if self.time_scale is None else self.time_scale)
        logits = -scaled if self.inverse == "negate" else 1 / (scaled + 1)
        return cross_entropy(
            logits,
            targets,
            _check_weight(self.weight, interpolated_times),
            reduction=self.reduction,
        )


class mse_temporal_loss(_Temporal):
    """
    Mean squared error between spike times and target times, in units of T steps.

    .. math::

            L = \\text{mean} \\left( \\frac{τ - τ_{\\rm target}}{T} \\right)^2

    with τ from :func:`first_spike_times`: T for a silent neuron, which has a gradient. Equals
    :class:`snntorch.functional.mse_temporal_loss` where every neuron fires and the targets
    are given. The default targets differ: snnTorch's come out as 0 for every class. Here the
    right class is asked to fire at T / 3 and the others not at all. (Earlier is worse: on
    latency-coded digits 0 costs three points, since the evidence has not arrived by then.)

    Example::

        loss_fn = losses.mse_temporal_loss(on_target=5, off_target=20, tolerance=2)
        loss = loss_fn(spk_out, targets)

        # a time for each output neuron
        loss_fn = losses.mse_temporal_loss(target_is_time=True)
        loss = loss_fn(spk_out, torch.tensor([5, 10, 15, 20, 25]))

    :param target_is_time: targets are spike times rather than class indices. Defaults to False
    :type target_is_time: bool, optional

    :param on_target: spike time for the right class in steps; a negative one counts from the
        end, as in snnTorch (-1 is T - 1). Defaults to None, which is T / 3
    :type on_target: float, optional

    :param off_target: likewise for the other classes. Defaults to None, which is T: silence
    :type off_target: float, optional

    :param tolerance: a spike closer than this to its target, in steps, adds nothing. Defaults
        to 0
    :type tolerance: float, optional

    :param reduction: over batch and neurons: `"mean"`, `"sum"` or `"none"`. Defaults to `"mean"`
    :type reduction: str, optional

    :param weight: one weight per class, `(C,)`: samples count by the weight of their target.
        Not with `target_is_time`. Defaults to None
    :type weight: torch.Tensor, optional

    :param num_steps: T; needed for spike times, which do not tell it. Defaults to None
    :type num_steps: int, optional, keyword only

    :param graded_spikes_factor: height of a spike, see :func:`first_spike_times`. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional, keyword only

    Inputs: spk_out, targets
        - **spk_out** of shape `(T, B, C)`: spikes, or `(B, C)`: floating-point spike times, as
          in :class:`ce_temporal_loss`
        - **targets** of shape `(B,)`: class indices; with `target_is_time` of shape `(C,)` or
          `(B, C)`: times from -T to T, where T asks for silence. Not modified

    Outputs: scalar, or `(B, C)` with `reduction="none"`; float32 or float64

    :raises ValueError, TypeError: as :class:`ce_temporal_loss`; a target time out of range
    """

    def __init__(
        self,
        target_is_time: bool = False,
        on_target: float | None = None,
        off_target: float | None = None,
        tolerance: float = 0,
        reduction: str = "mean",
        weight: Tensor | None = None,
        *,
        num_steps: int | None = None,
        graded_spikes_factor: Tensor | float = 1.0,
    ) -> None:
        super().__init__(reduction, weight, num_steps, graded_spikes_factor)
        if target_is_time and weight is not None:
            raise ValueError(
                "weight counts samples by their class, which target_is_time=True does not tell: "
                'leave it out, or use reduction="none" and weigh the result'
            )
        self.target_is_time = target_is_time
        self.on_target = _check_optional("on_target", on_target)
        self.off_target = _check_optional("off_target", off_target)
        if target_is_time and (on_target, off_target) != (None, None):
            raise ValueError(
                "on_target and off_target are times of classes, and with target_is_time=True the "
                "targets are times themselves: leave them out"
            )
        self.tolerance = _check_number("tolerance", tolerance, 0)

    def __call__(self, spk_out: Tensor, targets: Tensor) -> Tensor:
        interpolated_times, num_steps = self._times(spk_out)
        if self.target_is_time:
            error = interpolated_times - _target_times(targets, interpolated_times, num_steps)
        else:
            targets = check_targets(targets, interpolated_times)
            on = _resolve("on_target", self.on_target, num_steps, num_steps / 3)
            off = _resolve("off_target", self.off_target, num_steps, num_steps)
            error = interpolated_times - torch.full_like(interpolated_times, off).scatter(
                1, targets[:, None], on
            )
        if self.tolerance:
            error = torch.where(error.abs() < self.tolerance, 0.0, error)
        loss = (error / num_steps).square()
        weight = _check_weight(self.weight, interpolated_times)
        if weight is not None:
            loss = loss * weight[targets][:, None]
        return _reduce(loss, self.reduction)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _resolve(name: str, value: float | None, num_steps: int, default: float = 0.0) -> float:
    """A time in steps; a negative one counts from the end."""
    if value is None:
        return default
    if not -num_steps <= value <= num_steps:
        raise ValueError(
            f"{name}={value!r} is out of range for {num_steps} time steps: use 0 to {num_steps} "
            f"({num_steps} asks for silence), or -{num_steps} to -1 to count from the end"
        )
    return num_steps + value if value < 0 else value


def _target_times(targets: Tensor, interpolated_times: Tensor, num_steps: int) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"targets must be a torch.Tensor, not {type(targets).__name__}: use "
            "torch.as_tensor(targets)"
        )
    if targets.shape not in (interpolated_times.shape, interpolated_times.shape[1:]):
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but target_is_time=True expects a time "
            f"for each of the neurons, {tuple(interpolated_times.shape[1:])}, or for each sample and neuron, "
            f"{tuple(interpolated_times.shape)}"
        )
    check_device("targets", targets, interpolated_times.device, "recording")
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = targets[(targets < -num_steps) | (targets > num_steps)]
        if wrong.numel():
            _resolve("a time in targets", wrong[0].item(), num_steps)
    times = targets.to(interpolated_times.dtype)
    return torch.where(times < 0, times + num_steps, times)


class ce_membrane_loss:
    """
    Cross entropy on a membrane reduced over time: its sum, its maximum or its last value.

    The readout loss of arXiv:2205.15286 (sum); with `"max"` it is
    :class:`snntorch.functional.ce_max_membrane_loss`. Depends on spikes of the output layer
    only through resets, so it trains silent neurons too.

    Example::

        loss_fn = losses.ce_membrane_loss("max")
        loss = loss_fn(mem_out, targets)                     # mem_out: (time, batch, classes)
        loss = loss_fn(LeakyReadout(0.95)(current), targets) # scores, already reduced

    :param reduction: over time: `"sum"`, `"max"` or `"last"`, as
        :class:`snn_single_spike.LeakyReadout` has it. Defaults to `"sum"`
    :type reduction: str, optional

    :param weight: one weight per class, `(C,)`; as in torch the mean is the weighted one, where
        snnTorch divides by the number of samples. Defaults to None
    :type weight: torch.Tensor, optional

    :param batch_reduction: over the batch: `"mean"`, `"sum"` or `"none"` (snnTorch's
        `reduction`). Defaults to `"mean"`
    :type batch_reduction: str, optional, keyword only

    Inputs: mem_out, targets
        - **mem_out** of shape `(T, B, C)`: the membrane at every step, or `(B, C)`: scores,
          taken as they are
        - **targets** of shape `(B,)`: class indices

    Outputs: scalar, or `(B,)` with `batch_reduction="none"`; float32 or float64

    :raises ValueError: an unknown option, a wrong shape, `T = 0`, batches that differ, a class
        index out of range
    :raises TypeError: a membrane that is not floating-point, targets that are not integers
    """

    def __init__(
        self,
        reduction: str = "sum",
        weight: Tensor | None = None,
        *,
        batch_reduction: str = "mean",
    ) -> None:
        if reduction in BATCH_REDUCTIONS and reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction={reduction!r} is not known: it is the one over time, 'sum', 'max' or "
                f"'last'. For the batch use batch_reduction={reduction!r}"
            )
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("batch_reduction", batch_reduction, BATCH_REDUCTIONS)
        self.reduction = reduction
        self.weight = weight
        self.batch_reduction = batch_reduction
        self.__name__ = type(self).__name__

    def __call__(self, mem_out: Tensor, targets: Tensor) -> Tensor:
        scores = self._scores(mem_out)
        targets = check_targets(targets, scores)
        weight = _check_weight(self.weight, scores)
        return cross_entropy(scores, targets, weight, reduction=self.batch_reduction)

    def _scores(self, mem_out: Tensor) -> Tensor:
        mem_out = materialize(mem_out, "a loss")
        if isinstance(mem_out, Tensor) and mem_out.dim() == 2:
            check_recording("mem_out", mem_out[None])
            return mem_out.to(state_dtype(mem_out.dtype))
        check_recording("mem_out", mem_out)
        if mem_out.dim() != 3:
            raise ValueError(
                f"mem_out has shape {tuple(mem_out.shape)}, but (time, batch, classes) or (batch, "
                "classes) is expected: use mem_out.flatten(2)"
            )
        state = state_dtype(mem_out.dtype)
        if self.reduction == "sum":
            return mem_out.sum(0, dtype=state)
        return (mem_out.max(0).values if self.reduction == "max" else mem_out[-1]).to(state)


class spike_count_regulariser:
    """
    Distance of spike counts to a range, squared or absolute, averaged.

    .. math::

            R = Λ \\, \\text{mean} \\left( d^2 \\text{ or } d \\right), \\qquad
            d = \\max(\\text{lower} - n, \\, n - \\text{upper}, \\, 0)

    n is the spikes of each neuron, averaged over the batch (for single spikes the fraction of
    samples in which it fires), or the spikes of each sample, averaged over the neurons (the
    fraction of neurons that fire). n is linear in the spikes, so that silent neurons below
    `lower` have a gradient at every step.

    Example::

        # every hidden neuron is to fire in 5 % to 50 % of the samples
        reg_fn = losses.spike_count_regulariser(lower=0.05, upper=0.5)
        loss = loss_fn(spk2, targets) + reg_fn(spk1)

    :param lower: least count that costs nothing. Defaults to None: no bound
    :type lower: float, optional

    :param upper: greatest count that costs nothing. Defaults to None: no bound
    :type upper: float, optional

    :param Lambda: factor of the whole. Defaults to 1
    :type Lambda: float, optional

    :param penalty: `"squared"` or `"hinge"` (absolute distance). Defaults to `"squared"`
    :type penalty: str, optional, keyword only

    :param per: `"neuron"` or `"sample"`. Defaults to `"neuron"`
    :type per: str, optional, keyword only

    Inputs: spk_out of shape `(T, B, *features)`: spikes, also repeated ones. Graded spikes
    count by their height. :class:`snn_single_spike.SpikeTimes` are counted as they are

    Outputs: scalar, float32 or float64

    :raises ValueError: an unknown option, no bound, `lower > upper`, a wrong shape, `T = 0`
    :raises TypeError: spikes that are not floating-point
    """

    def __init__(
        self,
        lower: float | None = None,
        upper: float | None = None,
        Lambda: float = 1.0,
        *,
        penalty: str = "squared",
        per: str = "neuron",
    ) -> None:
        check_choice("penalty", penalty, PENALTIES)
        check_choice("per", per, COUNTED)
        if lower is None and upper is None:
            raise ValueError("lower=None and upper=None bound nothing: pass one of them or both")
        self.lower = _check_optional("lower", lower)
        self.upper = _check_optional("upper", upper)
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower={lower!r} is above upper={upper!r}: swap them")
        self.Lambda = _check_number("Lambda", Lambda)
        self.penalty = penalty
        self.per = per
        self.__name__ = type(self).__name__

    def __call__(self, spk_out: Tensor) -> Tensor:
        total = spike_count(spk_out, self.per)
        averaged = spk_out.shape[1:2] if self.per == "neuron" else spk_out.shape[2:]
        count = total / averaged.numel()
        distance = torch.zeros_like(count)
        if self.lower is not None:
            distance = distance + (self.lower - count).relu()
        if self.upper is not None:
            distance = distance + (count - self.upper).relu()
        cost = distance.square() if self.penalty == "squared" else distance
        return self.Lambda * cost.mean()


class firing_regulariser:
    """
    Revives silent neurons, and makes late or early spikes cost something.

    .. math::

            R = Λ \\, \\text{mean} \\left(
            w_{\\rm silent} \\frac{τ}{T} [\\text{silent}]
            + w_{\\rm late} \\frac{\\max(τ - \\text{latest}, 0)}{T} [\\text{fired}]
            + w_{\\rm early} \\frac{\\max(\\text{earliest} - τ, 0)}{T} [\\text{fired}] \\right)

    over neurons and samples, with τ from :func:`first_spike_times`. A silent neuron costs 1
    (τ = T), and through τ has a gradient that asks for a spike at every step. A neuron that
    is silent in no more than `max_silent` of the batch is left so: sparse firing is no fault,
    never firing is.

    Example::

        reg_fn = losses.firing_regulariser()                        # hidden layer: no dead neurons
        reg_fn = losses.firing_regulariser(max_silent=0)            # output layer: always a spike
        reg_fn = losses.firing_regulariser(late=1.0, latest=20)     # and spikes by step 20

    :param Lambda: factor of the whole. Defaults to 0.01, which revives neurons at no cost in
        accuracy on latency-coded digits (1 costs three points there)
    :type Lambda: float, optional

    :param silent: weight of silent neurons. Defaults to 1
    :type silent: float, optional, keyword only

    :param late: weight of late spikes. Defaults to 0
    :type late: float, optional, keyword only

    :param early: weight of early spikes. Defaults to 0
    :type early: float, optional, keyword only

    :param latest: step from which on a spike is late; negative counts from the end. Defaults
        to 0: the later, the more it costs
    :type latest: float, optional, keyword only

    :param earliest: step before which a spike is early; negative counts from the end. Defaults
        to None, which is T: the earlier, the more it costs
    :type earliest: float, optional, keyword only

    :param max_silent: fraction of the batch in which a neuron may be silent at no cost.
        Defaults to 0.9
    :type max_silent: float, optional, keyword only

    :param graded_spikes_factor: height of a spike, see :func:`first_spike_times`. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional, keyword only

    Inputs: spk_out of shape `(T, B, *features)`: spikes, at most one per neuron. Spike times do
    not do: their silent entries have no gradient

    Outputs: scalar, float32 or float64

    :raises ValueError: a negative weight, a fraction outside 0 to 1, a step out of range, a
        wrong shape, `T = 0`, trains with more than one spike
    :raises TypeError: spikes that are not floating-point
    """

    def __init__(
        self,
        Lambda: float = 0.01,
        *,
        silent: float = 1.0,
        late: float = 0.0,
        early: float = 0.0,
        latest: float = 0,
        earliest: float | None = None,
        max_silent: float = 0.9,
        graded_spikes_factor: Tensor | float = 1.0,
    ) -> None:
        self.Lambda = _check_number("Lambda", Lambda)
        self.silent = _check_number("silent", silent, 0)
        self.late = _check_number("late", late, 0)
        self.early = _check_number("early", early, 0)
        if not 0 <= max_silent <= 1:
            raise ValueError(f"max_silent={max_silent!r} must be a fraction, from 0 to 1")
        self.latest = _check_number("latest", latest)
        self.earliest = _check_optional("earliest", earliest)
        for name, given, weight in (("latest", latest, "late"), ("earliest", earliest, "early")):
            if given and not getattr(self, weight):
                raise ValueError(f"{name}={given!r} does nothing with {weight}=0: pass {weight}=1")
        self.max_silent = max_silent
        self.graded_spikes_factor = graded_spikes_factor
        self.__name__ = type(self).__name__

    def __call__(self, spk_out: Tensor) -> Tensor:
        if isinstance(spk_out, Tensor) and spk_out.dim() == 2:
            raise ValueError(
                f"spk_out has shape {tuple(spk_out.shape)}: spike times have no gradient where a "
                "neuron is silent. Pass the spikes, (time, batch, *features)"
            )
        interpolated_times = first_spike_times(
            spk_out, graded_spikes_factor=self.graded_spikes_factor
        )
        num_steps = spk_out.shape[0]
        # Half a step: a spike in the last step has tau = T - 1.
        silent = interpolated_times.detach() > num_steps - 0.5
        quiet = silent.to(interpolated_times.dtype).mean(0) > self.max_silent
        cost = self.silent * interpolated_times * (silent & quiet)
        if self.late:
            late = interpolated_times - _resolve("latest", self.latest, num_steps)
            cost = cost + self.late * late.relu() * ~silent
        if self.early:
            earliest = _resolve("earliest", self.earliest, num_steps, num_steps)
            cost = cost + self.early * (earliest - interpolated_times).relu() * ~silent
        return self.Lambda * (cost / num_steps).mean()
