"""Losses on the times of spikes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..backends._types import state_dtype
from ..ops.validation import (
    check_choice,
    check_device,
    check_recording,
    check_targets,
    not_classes,
)
from ..spikes import SpikeTimes
from ..spikes.lazy import to_dense
from ._checks import (
    BATCH_REDUCTIONS,
    check_class_weight,
    check_num_steps,
    check_number,
    check_optional,
    reject_delayed,
    resolve_step,
    values_are_checked,
)
from .first_spike import first_spike_times

__all__ = ["ce_temporal_loss", "mse_temporal_loss"]

INVERSES = ("negate", "reciprocal")


class _TemporalLoss:
    """Options and input of the losses on spike times. The input is spikes, or times."""

    def __init__(
        self,
        reduction: str,
        weight: Tensor | None,
        num_steps: int | None,
        graded_spikes_factor: Tensor | float,
    ) -> None:
        check_choice("reduction", reduction, BATCH_REDUCTIONS)
        self.reduction = reduction
        self.weight = weight
        self.num_steps = check_num_steps(num_steps)
        self.graded_spikes_factor = graded_spikes_factor
        self.__name__ = type(self).__name__

    def _times(self, spk_out: Tensor | SpikeTimes) -> tuple[Tensor, int]:
        """Spike times (B, C), T for a silent neuron; and T."""
        reject_delayed(spk_out)
        if not isinstance(spk_out, SpikeTimes):
            dense: Tensor = to_dense(spk_out)
            if isinstance(dense, Tensor) and dense.dim() == 2:
                return self._given_times(dense)
            check_recording("spk_out", dense)
            spk_out = dense
        if spk_out.dim() != 3:
            raise not_classes("spk_out", spk_out)
        num_steps = spk_out.shape[0]
        if self.num_steps not in (None, num_steps):
            raise ValueError(
                f"num_steps={self.num_steps}, but spk_out has shape {tuple(spk_out.shape)}, "
                f"{num_steps} steps: leave num_steps out, it is only needed for spike times"
            )
        return first_spike_times(spk_out, graded_spikes_factor=self.graded_spikes_factor), num_steps

    def _given_times(self, times: Tensor) -> tuple[Tensor, int]:
        num_steps = self.num_steps
        if num_steps is None:
            raise ValueError(
                f"spk_out has shape {tuple(times.shape)}, which is read as spike times (batch, "
                "classes), but the loss was constructed without the number of time steps: "
                "construct it with num_steps=T. If spk_out holds spikes, pass all steps at once, "
                "(time, batch, classes)"
            )
        if not times.is_floating_point():
            raise TypeError(
                f"spk_out holds spike times of dtype {times.dtype}, which carry no gradient: "
                'compute them with gradient="spike_time", or pass the spikes; for the value '
                "alone use spk_out.float()"
            )
        if values_are_checked(times):
            late = times[times > num_steps]
            if late.numel():
                raise ValueError(
                    f"spk_out holds a spike time of {late[0].item():g}, but num_steps={num_steps}: "
                    "pass the number of time steps of the sequence"
                )
        return torch.where(times < 0, num_steps, times.to(state_dtype(times.dtype))), num_steps


class ce_temporal_loss(_TemporalLoss):
    """
    Cross entropy on spike times: the earlier a class spikes, the larger its logit.

    .. math::

            \\text{logit} = -d / \\text{scale} \\quad (\\text{negate}), \\qquad
            \\text{logit} = \\frac{1}{d / \\text{scale} + 1} \\quad (\\text{reciprocal})

    For a wrong class d = τ, the result of :func:`first_spike_times`. τ is T for a silent class,
    which has a gradient. The logit of the right class is largest at `on_target`:

    .. math::

            d = \\text{on\\_target} + |τ - \\text{on\\_target}|

    With `time_scale=1, on_target=0` the loss equals
    :class:`snntorch.functional.ce_temporal_loss` where every neuron fires. (snnTorch treats a
    silent neuron as one that fires in the last step.) The defaults differ, for two reasons:

    - A cross entropy depends on differences of times only, so an earlier spike of the right class
      always lowers the loss. Networks then decide before the evidence has arrived: with
      `time_scale=1, on_target=0` they decide on latency-coded digits at step 2 or 3, for T = 25,
      50 and 100. `on_target` sets the absolute time. (Göltz et al. 2021 also add a term on the time
      of the right class; their term favors early spikes.)
    - A time scale in steps gives another loss for every T. Göltz et al. divide by a fraction of the
      synaptic time constant; here the time scale is a fraction of T.

    Example::

        loss_fn = losses.ce_temporal_loss()
        loss = loss_fn(spk_out, targets)

        # snnTorch's
        loss_fn = losses.ce_temporal_loss(time_scale=1, on_target=0)

        # exact gradient of interpolated times; silent neurons have none
        times = single_spike_leaky(current, 0.9, gradient="spike_time").times
        loss = losses.ce_temporal_loss(num_steps=100)(times, targets)

    :param inverse: `"negate"`, or `"reciprocal"`: its logits lie between 0 and 1, so the loss
        stays above a bound even for well separated classes. Defaults to `"negate"`
    :type inverse: str, optional

    :param reduction: over the batch: `"mean"`, `"sum"` or `"none"`. Defaults to `"mean"`
    :type reduction: str, optional

    :param weight: one weight per class, `(C,)`. The mean is the weighted mean, as in torch.
        Defaults to None
    :type weight: torch.Tensor, optional

    :param time_scale: number of steps that changes d / scale by one. Defaults to None: T / 12
    :type time_scale: float, optional, keyword only

    :param on_target: spike time in steps at which the logit of the right class is largest; a
        negative value counts from the end; with 0 an earlier spike is always better. Defaults to
        None: T / 3, as in :class:`mse_temporal_loss`
    :type on_target: float, optional, keyword only

    :param num_steps: T; needed only where spk_out holds spike times. Defaults to None
    :type num_steps: int, optional, keyword only

    :param graded_spikes_factor: height of a spike, see :func:`first_spike_times`. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional, keyword only

    Inputs: spk_out, targets
        - **spk_out** of shape `(T, B, C)`: spikes, at most one per neuron, as a tensor or
          :class:`snn_single_spike.SpikeTimes`; or of shape `(B, C)`: floating-point spike times, -1
          for a silent neuron, as from `gradient="spike_time"`. The loss reads a silent entry as T,
          without a gradient
        - **targets** of shape `(B,)`: class indices

    Outputs: scalar, or `(B,)` with `reduction="none"`; float32 or float64

    :raises ValueError: an unknown option, a wrong shape, `T = 0`, batches that differ, a class
        index out of range, a step out of range, neurons with more than one spike, times without
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
            time_scale = check_number("time_scale", time_scale, 0, strict=True)
        self.inverse = inverse
        self.time_scale = time_scale
        self.on_target = check_optional("on_target", on_target)

    def __call__(self, spk_out: Tensor | SpikeTimes, targets: Tensor) -> Tensor:
        times, num_steps = self._times(spk_out)
        targets = check_targets(targets, times)
        on = resolve_step("on_target", self.on_target, num_steps, num_steps / 3)
        right = targets[:, None]
        distance = times.scatter(1, right, on + (times.gather(1, right) - on).abs())
        scaled = distance / (num_steps / 12 if self.time_scale is None else self.time_scale)
        logits = -scaled if self.inverse == "negate" else 1 / (scaled + 1)
        weight = check_class_weight(self.weight, times)
        return cross_entropy(logits, targets, weight, reduction=self.reduction)


class mse_temporal_loss(_TemporalLoss):
    """
    Mean squared error between spike times and target times, in units of T steps.

    .. math::

            L = \\text{mean} \\left( \\frac{τ - τ_{\\rm target}}{T} \\right)^2

    τ is the result of :func:`first_spike_times`: T for a silent neuron, which has a gradient. The
    loss equals :class:`snntorch.functional.mse_temporal_loss` where every neuron fires and the
    targets are given. The default targets differ: those of snnTorch are 0 for every class. Here
    the target of the right class is T / 3, and the target of the other classes is silence. (An
    earlier target is worse: on latency-coded digits 0 costs three points of accuracy, because the
    evidence has not arrived by then.)

    Example::

        loss_fn = losses.mse_temporal_loss(on_target=5, off_target=20, tolerance=2)
        loss = loss_fn(spk_out, targets)

        # a time for each output neuron
        loss_fn = losses.mse_temporal_loss(target_is_time=True)
        loss = loss_fn(spk_out, torch.tensor([5, 10, 15, 20, 25]))

    :param target_is_time: targets are spike times, not class indices. Defaults to False
    :type target_is_time: bool, optional

    :param on_target: spike time for the right class in steps; a negative value counts from the
        end, as in snnTorch (-1 is T - 1). Defaults to None: T / 3
    :type on_target: float, optional

    :param off_target: spike time for the other classes, as `on_target`. Defaults to None: T, which
        is silence
    :type off_target: float, optional

    :param tolerance: errors below this number of steps cost nothing. Defaults to 0
    :type tolerance: float, optional

    :param multi_spike: must be False: a neuron fires at most once
    :type multi_spike: bool, optional

    :param reduction: over batch and neurons: `"mean"`, `"sum"` or `"none"`. Defaults to `"mean"`
    :type reduction: str, optional

    :param weight: one weight per class, `(C,)`: the loss of a sample is multiplied by the weight
        of its target. Not supported with `target_is_time`. Defaults to None
    :type weight: torch.Tensor, optional

    :param num_steps: T; needed only where spk_out holds spike times. Defaults to None
    :type num_steps: int, optional, keyword only

    :param graded_spikes_factor: height of a spike, see :func:`first_spike_times`. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional, keyword only

    Inputs: spk_out, targets
        - **spk_out** of shape `(T, B, C)`: spikes, or `(B, C)`: floating-point spike times, as
          in :class:`ce_temporal_loss`
        - **targets** of shape `(B,)`: class indices; with `target_is_time` of shape `(C,)` or
          `(B, C)`: times from -T to T, where T is silence. Not modified

    Outputs: scalar, or `(B, C)` with `reduction="none"`; float32 or float64

    :raises ValueError, TypeError: as :class:`ce_temporal_loss`; a target time out of range;
        `multi_spike=True`
    """

    def __init__(
        self,
        target_is_time: bool = False,
        on_target: float | None = None,
        off_target: float | None = None,
        tolerance: float = 0,
        multi_spike: bool = False,
        reduction: str = "mean",
        weight: Tensor | None = None,
        *,
        num_steps: int | None = None,
        graded_spikes_factor: Tensor | float = 1.0,
    ) -> None:
        super().__init__(reduction, weight, num_steps, graded_spikes_factor)
        if multi_spike is not False:
            raise ValueError(
                f"multi_spike={multi_spike!r} is not supported, because a neuron fires at most "
                "once: leave multi_spike out. For neurons that spike repeatedly use "
                "snntorch.functional.mse_temporal_loss"
            )
        if target_is_time and weight is not None:
            raise ValueError(
                "weight needs class indices as targets, but with target_is_time=True the targets "
                'are times: leave weight out, or use reduction="none" and multiply the result'
            )
        self.target_is_time = target_is_time
        self.on_target = check_optional("on_target", on_target)
        self.off_target = check_optional("off_target", off_target)
        if target_is_time and (on_target, off_target) != (None, None):
            raise ValueError(
                "on_target and off_target are the times of classes, but with target_is_time=True "
                "the targets are times themselves: leave on_target and off_target out"
            )
        self.tolerance = check_number("tolerance", tolerance, 0)

    def __call__(self, spk_out: Tensor | SpikeTimes, targets: Tensor) -> Tensor:
        times, num_steps = self._times(spk_out)
        if self.target_is_time:
            error = times - _target_times(targets, times, num_steps)
        else:
            targets = check_targets(targets, times)
            error = times - self._times_of_classes(targets, times, num_steps)
        if self.tolerance:
            error = torch.where(error.abs() < self.tolerance, 0.0, error)
        loss = (error / num_steps).square()
        weight = check_class_weight(self.weight, times)
        if weight is not None:
            loss = loss * weight[targets][:, None]
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def _times_of_classes(self, targets: Tensor, times: Tensor, num_steps: int) -> Tensor:
        on = resolve_step("on_target", self.on_target, num_steps, num_steps / 3)
        off = resolve_step("off_target", self.off_target, num_steps, num_steps)
        return torch.full_like(times, off).scatter(1, targets[:, None], on)


def _target_times(targets: Tensor, times: Tensor, num_steps: int) -> Tensor:
    """Given target times, (C,) or (B, C), in the type of ``times``."""
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"targets must be a torch.Tensor, not {type(targets).__name__}: use "
            "torch.as_tensor(targets)"
        )
    if targets.shape not in (times.shape, times.shape[1:]):
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but target_is_time=True expects one time "
            f"per neuron, {tuple(times.shape[1:])}, or per sample and neuron, {tuple(times.shape)}"
        )
    check_device("targets", targets, times.device, "recording")
    if values_are_checked(targets):
        wrong = targets[(targets < -num_steps) | (targets > num_steps)]
        if wrong.numel():
            resolve_step("a time in targets", wrong[0].item(), num_steps)
    wanted = targets.to(times.dtype)
    return torch.where(wanted < 0, wanted + num_steps, wanted)
