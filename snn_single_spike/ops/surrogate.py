"""Recognizes snnTorch's surrogate gradients, so that kernels can fuse their derivatives.

A surrogate of snnTorch is a closure, e.g. ``surrogate.fast_sigmoid(slope=25)``. This module reads
the name and the parameters of the closure. Every other surrogate is custom: the package calls the
function on ``mem - threshold``, and autograd differentiates the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from snntorch import surrogate as snntorch_surrogate
from torch import Tensor

from ..backends._compiling import constant_when_compiled
from ..backends._surrogate import SURROGATES, Surrogate

SpikeGrad = Callable[[Tensor], Tensor]


def surrogate_disabled(input_: Tensor) -> Tensor:
    """The spike without a gradient, as with ``surrogate_disable`` of snnTorch."""
    return (input_ > 0).to(input_.dtype)


def split(spike_grad: SpikeGrad | None) -> tuple[Surrogate | None, SpikeGrad | None]:
    """(Surrogate, None) if kernels can fuse the derivative, or (None, custom function).

    (None, None) for a disabled surrogate.
    """
    if isinstance(spike_grad, Surrogate):
        return spike_grad, None
    if spike_grad is surrogate_disabled:
        return None, None
    known = recognize(spike_grad)
    return known, None if known else spike_grad


@constant_when_compiled
def recognize(spike_grad: SpikeGrad | None) -> Surrogate | None:
    """The :class:`Surrogate` of a snnTorch surrogate; None for a custom function.

    :param spike_grad: the argument of a snnTorch neuron; None means ``atan()``, snnTorch's default
    :raises TypeError: ``spike_grad`` cannot be called
    """
    if spike_grad is None:
        return Surrogate("atan", 2.0)
    if isinstance(spike_grad, Surrogate):
        return spike_grad
    if not callable(spike_grad):
        raise TypeError(
            f"spike_grad={spike_grad!r} cannot be called: pass a surrogate such as "
            "snntorch.surrogate.fast_sigmoid(slope=25), or a differentiable function of "
            "mem - threshold"
        )
    if getattr(spike_grad, "__module__", None) != snntorch_surrogate.__name__:
        return None
    qualname = getattr(spike_grad, "__qualname__", type(spike_grad).__name__)
    if inspect.isfunction(spike_grad) and "." not in qualname:
        raise TypeError(f"spike_grad is a factory: call it, snntorch.surrogate.{qualname}()")
    name = qualname.split(".")[0]
    if name not in SURROGATES:
        return None
    if inspect.isfunction(spike_grad):
        held = inspect.getclosurevars(spike_grad).nonlocals
    else:  # a later snnTorch: surrogates are objects with their parameters as attributes
        held = vars(spike_grad)
    values = [held.get(parameter) for parameter in SURROGATES[name]]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return Surrogate(name, *numbers) if len(numbers) == len(values) else None
