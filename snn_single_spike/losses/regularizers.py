"""Regularizers: how many spikes there are, and whether neurons fire at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.count import COUNTED, spike_count
from ..ops.validation import check_choice
from ._checks import check_number, check_optional, resolve_step
from .first_spike import first_spike_times

__all__ = ["firing_regularizer", "spike_count_regularizer"]

PENALTIES = ("squared", "hinge")


class spike_count_regularizer:
    """
    Distance of spike counts to a range, squared or absolute, averaged.

    .. math::

            R = Λ \\, \\text{mean} \\left( d^2 \\text{ or } d \\right), \\qquad
            d = \\max(\\text{lower} - n, \\, n - \\text{upper}, \\, 0)

    With `per="neuron"` n is the number of spikes of a neuron, averaged over the batch: for single
    spikes the fraction of samples in which the neuron fires. With `per="sample"` n is the number
    of spikes of a sample, averaged over the neurons: for single spikes the fraction of neurons
    that fire. n is linear in the spikes, so a silent neuron below `lower` has a gradient at every
    step.

    Example::

        # every hidden neuron shall fire in 5 % to 50 % of the samples
        reg_fn = losses.spike_count_regularizer(lower=0.05, upper=0.5)
        loss = loss_fn(spk2, targets) + reg_fn(spk1)

    :param lower: smallest count without a penalty. Defaults to None: no bound
    :type lower: float, optional

    :param upper: largest count without a penalty. Defaults to None: no bound
    :type upper: float, optional

    :param Lambda: factor of the regularizer. Defaults to 1
    :type Lambda: float, optional

    :param penalty: `"squared"`, or `"hinge"` for the absolute distance. Defaults to `"squared"`
    :type penalty: str, optional, keyword only

    :param per: `"neuron"` or `"sample"`. Defaults to `"neuron"`
    :type per: str, optional, keyword only

    Inputs: spk_out of shape `(T, B, *features)`: spikes, single or repeated, as
    :func:`snn_single_spike.functional.spike_count` counts them. A graded spike counts by its
    height. :class:`snn_single_spike.SpikeTimes` are counted without dense spikes

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
        self.lower = check_optional("lower", lower)
        self.upper = check_optional("upper", upper)
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower={lower!r} is above upper={upper!r}: swap them")
        self.Lambda = check_number("Lambda", Lambda)
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


class firing_regularizer:
    """
    Revives silent neurons, and penalises late or early spikes.

    .. math::

            R = Λ \\, \\text{mean} \\left(
            w_{\\rm silent} \\frac{τ}{T} [\\text{silent}]
            + w_{\\rm late} \\frac{\\max(τ - \\text{latest}, 0)}{T} [\\text{fired}]
            + w_{\\rm early} \\frac{\\max(\\text{earliest} - τ, 0)}{T} [\\text{fired}] \\right)

    The mean runs over neurons and samples; τ is the result of :func:`first_spike_times`. A silent
    neuron costs 1 (τ = T). Its gradient through τ favors a spike at every step. A neuron that is
    silent in at most `max_silent` of the batch costs nothing for it: sparse firing is allowed,
    a dead neuron is not.

    Example::

        reg_fn = losses.firing_regularizer()                        # hidden layer: no dead neurons
        reg_fn = losses.firing_regularizer(max_silent=0)            # output layer: always a spike
        reg_fn = losses.firing_regularizer(late=1.0, latest=20)     # and spikes by step 20

    :param Lambda: factor of the regularizer. Defaults to 0.01, which revives neurons without loss
        of accuracy on latency-coded digits (1 costs three points of accuracy there)
    :type Lambda: float, optional

    :param silent: weight of silent neurons. Defaults to 1
    :type silent: float, optional, keyword only

    :param late: weight of late spikes. Defaults to 0
    :type late: float, optional, keyword only

    :param early: weight of early spikes. Defaults to 0
    :type early: float, optional, keyword only

    :param latest: step after which a spike costs more with every step; a negative value counts
        from the end. Defaults to 0
    :type latest: float, optional, keyword only

    :param earliest: step before which a spike costs more with every step; a negative value counts
        from the end. Defaults to None: T
    :type earliest: float, optional, keyword only

    :param max_silent: fraction of the batch in which a neuron may be silent without a penalty.
        Defaults to 0.9
    :type max_silent: float, optional, keyword only

    :param graded_spikes_factor: height of a spike, see :func:`first_spike_times`. Defaults to 1
    :type graded_spikes_factor: float or torch.Tensor, optional, keyword only

    Inputs: spk_out of shape `(T, B, *features)`: spikes, at most one per neuron. A tensor of spike
    times `(B, *features)` is rejected: its silent entries have no gradient

    Outputs: scalar, float32 or float64

    :raises ValueError: a negative weight, a fraction outside 0 to 1, a step out of range, a
        wrong shape, `T = 0`, neurons with more than one spike
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
        self.Lambda = check_number("Lambda", Lambda)
        self.silent = check_number("silent", silent, 0)
        self.late = check_number("late", late, 0)
        self.early = check_number("early", early, 0)
        if not 0 <= max_silent <= 1:
            raise ValueError(f"max_silent={max_silent!r} must be a fraction, from 0 to 1")
        self.latest = check_number("latest", latest)
        self.earliest = check_optional("earliest", earliest)
        for name, given, weight in (("latest", latest, "late"), ("earliest", earliest, "early")):
            if given and not getattr(self, weight):
                raise ValueError(
                    f"{name}={given!r} has no effect with {weight}=0: pass {weight}=1, or leave "
                    f"{name} out"
                )
        self.max_silent = max_silent
        self.graded_spikes_factor = graded_spikes_factor
        self.__name__ = type(self).__name__

    def __call__(self, spk_out: Tensor) -> Tensor:
        if isinstance(spk_out, Tensor) and spk_out.dim() == 2:
            raise ValueError(
                f"spk_out has shape {tuple(spk_out.shape)}: spike times have no gradient where a "
                "neuron is silent. Pass the spikes, (time, batch, *features)"
            )
        times = first_spike_times(spk_out, graded_spikes_factor=self.graded_spikes_factor)
        num_steps = spk_out.shape[0]
        # Half a step below T: a spike in the last step has the time T - 1.
        silent = times.detach() > num_steps - 0.5
        dead = silent.to(times.dtype).mean(0) > self.max_silent
        cost = self.silent * times * (silent & dead)
        if self.late:
            late = times - resolve_step("latest", self.latest, num_steps)
            cost = cost + self.late * late.relu() * ~silent
        if self.early:
            earliest = resolve_step("earliest", self.earliest, num_steps, num_steps)
            cost = cost + self.early * (earliest - times).relu() * ~silent
        return self.Lambda * (cost / num_steps).mean()
