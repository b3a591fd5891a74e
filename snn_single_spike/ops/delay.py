"""Delays of spikes: the steps of a delayed spike, and the gradients of the spikes and the delay.

A spike that arrives between two steps is shared linearly between them. A delay is a whole number of
steps and a fraction, and the fraction is the share of the later step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends._compiling import is_traced
from ..backends._types import GradientFactors
from .carrier import carrier
from .factored_gradient import At, FactoredGradient
from .validation import check_device, check_not_nan, check_real, check_transforms

_LONGEST = 1 << 30  # later than any sequence; int32 holds it with a step added


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, delay: Tensor, most: float | None) -> Tensor:
        ctx.save_for_backward(delay)
        ctx.most = most
        return delay.clamp(0, most)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (delay,) = ctx.saved_tensors
        outward = (delay < 0) & (grad > 0)
        if ctx.most is not None:
            outward |= (delay > ctx.most) & (grad < 0)
        return grad.masked_fill(outward, 0), None


def clip_delay(delay: Tensor, most: float | None) -> Tensor:
    """A delay between 0 and ``most``.

    Outside of this range a gradient passes that leads back into the range. An optimizer's step may
    leave it, and the gradient of :func:`torch.clamp` would hold a delay there for ever.
    """
    return _Clip.apply(delay, most)


def checked_delay(
    delay: Tensor | float,
    most: float | None,
    features: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A delay that broadcasts to the features of spikes, as a floating-point tensor, clipped."""
    check_transforms()
    check_max_delay(most)
    given, kind = delay, torch.float64 if dtype == torch.float64 else torch.float32
    if not isinstance(delay, Tensor):
        check_delay(delay)
        delay = torch.as_tensor(delay, dtype=kind, device=device)
    check_device("delay", delay, device, "spikes")
    check_real("delay", delay)
    if not delay.is_floating_point():
        delay = delay.to(kind)
    try:
        delay.expand(features)
    except RuntimeError:
        raise ValueError(
            f"delay has shape {tuple(delay.shape)}, which does not broadcast to the features "
            f"{tuple(features)}: use one delay for each unit, or one number"
        ) from None
    check_not_nan("delay", given)
    if not is_traced() and bool(delay.isinf().any()):
        raise ValueError(
            "delay contains an infinite value, but must be finite: it is a number of time steps. "
            "If training caused it, lower the learning rate"
        )
    return clip_delay(delay, most)


def check_delay(delay: Tensor | float) -> None:
    """Reject a delay that is complex, NaN, infinite or negative, before training."""
    check_real("delay", delay)
    check_not_nan("delay", delay)
    values = torch.as_tensor(delay)
    bad = values[~(values.isfinite() & (values >= 0))]
    if bad.numel():
        raise ValueError(
            f"delay contains {float(bad[0])}, but must be finite and not negative: it is a number "
            "of time steps"
        )


def check_max_delay(max_delay: float | None) -> float | None:
    if max_delay is None:
        return None
    if isinstance(max_delay, bool) or not isinstance(max_delay, int | float):
        raise TypeError(f"max_delay must be a number, not {type(max_delay).__name__}")
    if not (math.isfinite(max_delay) and max_delay > 0):
        raise ValueError(
            f"max_delay={max_delay} must be positive and finite: leave it out for none"
        )
    return max_delay


def split_delay(delay: Tensor) -> tuple[Tensor, Tensor]:
    """Whole steps, int32, and the fraction of a step, which carries the gradient."""
    whole = delay.detach().floor()
    longest = min(_LONGEST, torch.finfo(whole.dtype).max)  # float16 ends before
    return whole.clamp(max=longest).to(torch.int32), delay - whole


def delayed_steps(times: Tensor, steps: Tensor, num_steps: int) -> Tensor:
    """Steps of spikes, int32, ``steps`` later; -1 for a spike after the last step."""
    # The sign of a number, in every bit, is 0 or -1. torch.where would branch on each spike.
    given = times.to(torch.int32)
    late = given + steps
    return late | (given >> 31) | ((num_steps - 1 - late) >> 31)


def delayed_sequence(sequence: Tensor, delay: Tensor) -> Tensor:
    """A dense sequence (T, B, *features), delayed. ``delay`` broadcasts to the features."""
    whole, fraction = split_delay(delay)
    last = sequence.shape[0] - 1
    step = torch.arange(last + 1, device=sequence.device).view(-1, *(1,) * (sequence.dim() - 1))

    def earlier(back: Tensor) -> Tensor:
        source = step - back
        rows = sequence.gather(0, source.clamp(0, last).expand(sequence.shape))
        return torch.where(source >= 0, rows, 0.0)

    fraction = fraction.to(sequence.dtype)
    return (1 - fraction) * earlier(whole) + fraction * earlier(whole + 1)


class _Delayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, steps: Tensor) -> Tensor:
        ctx.save_for_backward(steps)
        num_steps, batch, units = given.shape
        return carrier(num_steps, batch, len(steps) * units, given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (steps,) = ctx.saved_tensors
        through = functools.partial(_before_delay, steps=steps)
        return _of_spikes(grad, steps, through, lambda at: at), None


def _of_spikes(
    grad: Tensor,
    steps: Tensor,
    through: Callable[[Tensor], Tensor],
    of_copies: Callable[[At], At],
) -> Tensor:
    """The gradient of spikes from that of what their delay has made of them, factored if it is.

    ``through`` maps rows of the gradient, and ``of_copies`` makes the gradient at the steps of
    all copies.
    """
    if not isinstance(grad, FactoredGradient):
        return through(grad)
    factors, num_steps = grad.factors, grad.shape[0]
    rows = GradientFactors(lambda samples: through(factors.to_dense(samples)), None)
    at = None
    if grad.at is not None:
        at = functools.partial(_at_before_delay, of_copies(grad.at), steps, num_steps)
    like = torch.empty((0, steps.shape[1]), dtype=grad.dtype, device=grad.device)
    return FactoredGradient(num_steps, grad.shape[1], rows, at, like)


def _before_delay(rows: Tensor, steps: Tensor) -> Tensor:
    """The gradient (T, b, N) of spikes whose copies, delayed by ``steps``, have ``rows``."""
    copies, units = steps.shape
    num_steps = rows.shape[0]
    step = torch.arange(num_steps, device=rows.device)[:, None]
    total = rows.new_zeros(num_steps, rows.shape[1], units)
    for delay, part in zip(steps, rows.unflatten(2, (copies, units)).unbind(2), strict=True):
        source = (step + delay)[:, None]
        found = part.gather(0, source.clamp(max=num_steps - 1).expand(total.shape))
        total += torch.where(source < num_steps, found, 0.0)
    return total


def _at_before_delay(at: At, steps: Tensor, num_steps: int, when: Tensor, fired: Tensor) -> Tensor:
    """:data:`~snn_single_spike.ops.factored_gradient.At` of spikes, from that of delayed copies."""
    copies, units = steps.shape
    late = when.to(torch.int32)[:, None] + steps
    late = torch.where((when >= 0)[:, None] & (late <= num_steps), late, -1)
    # A spike one step past the end has a gradient at the step before, which is the last one.
    past = late == num_steps
    given = torch.where(past, num_steps - 1, late).flatten(1)
    found = at(given, fired[:, None].expand(-1, copies, -1).flatten(1))
    now, before = found.unflatten(2, (copies, units))
    arrives = (late >= 0) & ~past
    before = torch.where(past, now, torch.where(arrives, before, 0.0))
    return torch.stack((torch.where(arrives, now, 0.0).sum(1), before.sum(1)))


def delayed_carrier(given: Tensor, steps: Sequence[Tensor]) -> Tensor:
    """The carrier of copies of all units, (T, B, copies * N), each delayed by its steps (N,)."""
    return _Delayed.apply(given, torch.stack(list(steps)))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, whole: Tensor, fraction: Tensor) -> Tensor:
        ctx.save_for_backward(
            torch.stack((whole, whole + 1)), torch.stack((1 - fraction, fraction))
        )
        num_steps, batch, units = given.shape
        return carrier(num_steps, batch, units, given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        steps, shares = ctx.saved_tensors

        def through(rows: Tensor) -> Tensor:
            both = rows[:, :, None] * shares.to(rows.dtype)
            return _before_delay(both.flatten(2), steps)

        def of_parts(at: At) -> At:
            """The gradient at the steps of both parts, (2, B, 2 * N), times their shares."""

            def of_both(when: Tensor, fired: Tensor) -> Tensor:
                parts = zip(*(x.chunk(2, 1) for x in (when, fired)), shares, strict=True)
                return torch.cat([at(*part) * share.to(grad.dtype) for *part, share in parts], 2)

            return of_both

        return _of_spikes(grad, steps, through, of_parts), None, None


def split_carrier(given: Tensor, whole: Tensor, fraction: Tensor) -> Tensor:
    """The carrier of spikes that are delayed by whole steps and a fraction, from that of spikes."""
    return _Split.apply(given, whole, fraction)
