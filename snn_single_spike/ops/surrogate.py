"""snnTorch's surrogate gradients, recognised so that kernels can fuse their derivative.

snnTorch hands out a surrogate as a closure, ``surrogate.fast_sigmoid(slope=25)``. Its kind
and parameters are read here; a surrogate that is not one of snnTorch's own is never guessed
at: it is called on ``mem - threshold`` and differentiated by autograd.
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
    """snnTorch's ``surrogate_disable``: the spike, with no gradient."""
    return (input_ > 0).to(input_.dtype)


def split(spike_grad: SpikeGrad | None) -> tuple[Surrogate | None, SpikeGrad | None]:
    """The surrogate if its derivative is known, or the user's own function; neither for none."""
    if isinstance(spike_grad, Surrogate):
        return spike_grad, None
    if spike_grad is surrogate_disabled:
        return None, None
    known = recognise(spike_grad)
    return known, None if known else spike_grad


@constant_when_compiled
def recognise(spike_grad: SpikeGrad | None) -> Surrogate | None:
    """The :class:`Surrogate` that snnTorch made, None for a function of anybody else's.

    :param spike_grad: surrogate as given to a snnTorch neuron; None is ``atan()``, the
        default of snnTorch
    :raises TypeError: ``spike_grad`` cannot be called
    """
    if spike_grad is None:
        return Surrogate("atan", 2.0)
    if isinstance(spike_grad, Surrogate):
        return spike_grad
    if not callable(spike_grad):
        raise TypeError(
            f"spike_grad={spike_grad!r} cannot be called: pass a surrogate such as "
            "snntorch.surrogate.fast_sigmoid(slope=25), or any function of mem - threshold"
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
    else:  # snnTorch's later surrogates are objects that hold their parameters
        held = vars(spike_grad)
    values = [held.get(parameter) for parameter in SURROGATES[name]]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return Surrogate(name, *numbers) if len(numbers) == len(values) else None
