"""Single-spike neurons on a dense current."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..ops.neuron import run_single_spike
from ..ops.surrogate import SpikeGrad, split
from ..ops.validation import RESETS, check_choice

__all__ = [
    "DEFAULT_GRADIENT",
    "SPIKE_FORMATS",
    "SingleSpikes",
    "first_spike_time",
    "leaky_reset",
    "single_spike_leaky",
]

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
        Nature Machine Intelligence 2021). Under `"spike_time"` a spike at step 0 has no gradient,
        and a silent neuron has the gradient of the surrogate at the maximum of its membrane only
        (`surrogate.heaviside()` gives it none). A loss on the spikes is then a loss on the
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
