"""Converts snnTorch models to whole sequences, and back."""

from __future__ import annotations

from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ..functional import DEFAULT_GRADIENT
from ..modules._base import check_options
from ..modules.leaky import SPIKE_FORMATS
from ..ops.validation import check_choice
from .copies import copy_model
from .explain import explain
from .folded.modules import Converted, revert_in_place
from .parts import convert_parts
from .refusals.layers import ConversionError
from .whole import Options, convert_whole

__all__ = ["ConversionError", "convert", "explain", "revert"]


def convert(
    model: nn.Module,
    *,
    num_steps: int | None = None,
    share_parameters: bool = False,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    refractory: int | None = None,
    spike_format: str = "auto",
    time_dim: int = 0,
    check: bool | None = None,
    strict: bool = True,
    first_spike_pooling: bool = False,
) -> nn.Module:
    """
    Convert a snnTorch model to a model that computes whole sequences at once.

    The model computes one time step a call, or has its own loop over time inside ``forward``. A
    model with its own loop keeps its inputs, its outputs and its number of steps. Its loop runs
    once, for all steps, and the first call compares it with the author's loop, in which every
    neuron spikes at most once.

    Every :class:`snntorch.Leaky`, :class:`snntorch.Synaptic`, :class:`snntorch.Alpha`,
    :class:`snntorch.Lapicque` and one-to-one :class:`snntorch.RLeaky` becomes its single-spike
    form. All other layers stay. The given model is not changed. The ``state_dict`` keys stay the
    same: checkpoints load with ``strict=True`` in both directions.

    Example::

        net = nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snn.Leaky(0.9, init_hidden=True),
            nn.Flatten(), nn.Linear(1728, 10), snn.Leaky(0.9, init_hidden=True, output=True),
        )
        fast = convert(net)
        spk_rec, mem_rec = fast(data)            # (time, batch, ...), no loop, no utils.reset

        fast = convert(net, num_steps=25)
        spk_rec, mem_rec = fast(images)          # (batch, ...): the same image at every step;
                                                 # conv and pool before the first neuron run once

        same = convert(net, refractory=0)
        spk_rec, mem_rec = same(data)            # every spike of net, in less time

        fast = convert(net, spike_format="times")
        spikes, mem = fast(data)                 # SpikeTimes, and a membrane computed on first use

    With ``spike_format="auto"`` the model takes and returns what it does with ``"dense"``. After
    the first call it hands spike times from a Leaky to the next linear layer where the layer and
    the neurons behind it are then faster, and makes events of a sparse input for its first linear
    layer. The choice depends on the sizes, on whether gradients are enabled, and on who reads the
    spikes: see docs/spike-times.md. The results differ by rounding.

    With ``spike_format="times"`` every :class:`snntorch.Leaky` returns
    :class:`snn_single_spike.SpikeTimes`, and the linear layers and convolutions behind it compute
    their current from the spike times. ``nn.Flatten``, reshapes that keep the first dimension,
    ``nn.Identity``, Dropout in eval mode, average pooling, and, between a convolution and its
    Leaky, max pooling and BatchNorm in eval mode keep spike times. All other layers (max pooling of
    spikes, additions, neurons other than Leaky) receive dense tensors, and compute the same result.
    The model then returns:

    - for the spikes of a Leaky: :class:`snn_single_spike.SpikeTimes` of shape
      `(time, batch, ...)`;
    - for the membrane of a Leaky behind such a layer: an object of that shape.
      The first torch function that uses it, or its ``to_dense()``, computes the tensor. Behind
      other layers the membrane is a tensor;
    - for the current of a last ``nn.Linear``: an object that :class:`snn_single_spike.LeakyReadout`
      and :class:`snn_single_spike.SingleSpikeLeaky` support; ``to_dense()`` makes it a tensor. That
      of a last convolution is supported by :class:`snn_single_spike.SingleSpikeLeaky`;
    - for everything else: tensors.

    With ``refractory=0`` the neurons keep all their spikes: outputs and gradients are those of the
    given model, run step by step. (Matrix products over all steps may round differently.) A larger
    number silences a neuron for as many steps after each spike. :class:`snntorch.Leaky`,
    :class:`snntorch.Synaptic` and :class:`snntorch.Lapicque` support it, with dense spikes.

    When training, BatchNorm computes its statistics over time and batch; inside of a loop in
    ``forward`` it computes them at every step, as the loop does. MaxPool after a neuron that spikes
    at most once can pass on more than one spike. convert() warns about both.

    :param model: model whose ``forward`` computes one time step, or loops over time
    :type model: torch.nn.Module

    :param num_steps: time steps for an input `(batch, ...)` that is the same at every step.
        Defaults to None: inputs are `(time, batch, ...)`
    :type num_steps: int, optional

    :param share_parameters: let the new model hold the parameters and buffers of the old one,
        not copies of them. Defaults to False
    :type share_parameters: bool, optional

    :param gradient: gradient rule of the neurons, see
        :func:`snn_single_spike.functional.single_spike_leaky`. Defaults to `"masked"`
    :type gradient: str, optional

    :param backend: see :mod:`snn_single_spike.backends`. Defaults to `"auto"`
    :type backend: str, optional

    :param refractory: number of silent steps after each spike; 0 keeps every spike. Defaults to
        None: at most one spike per neuron and sample
    :type refractory: int, optional

    :param spike_format: format of the spikes that Leaky neurons return: `"dense"` tensors, spike
        `"times"`, or `"auto"`. All accept dense tensors, :class:`snn_single_spike.SpikeTimes` and
        :class:`snn_single_spike.SpikeEvents` as input. Defaults to `"auto"`
    :type spike_format: str, optional

    :param time_dim: dimension of time in input and output tensors: 0 for `(time, batch, ...)`,
        1 for `(batch, time, ...)`. Spike times and other lazy tensors always have
        `(time, batch, ...)`. Defaults to 0
    :type time_dim: int, optional

    :param check: whether the first call, in training mode and in eval mode, compares the model with
        the author's, in a loop over time, on a few samples. Defaults to None: where the model has a
        ``forward`` or hooks of its own
    :type check: bool, optional

    :param strict: if False, a loop over time that cannot run all its steps at once stays the
        author's loop over snnTorch's neurons, and a warning says why. A part of the model that
        has a loop of its own is converted. :func:`explain` reports this beforehand. Defaults to
        True
    :type strict: bool, optional

    :param first_spike_pooling: let the earliest spike of each window alone through every
        :class:`torch.nn.MaxPool2d` that reads the spikes of a Leaky, as
        :class:`snn_single_spike.FirstSpikePool2d` does, from spike times. The model then computes
        something else than the author's, in which several spikes of a window can pass, so no call
        is compared. Requires ``spike_format="times"``. Defaults to False
    :type first_spike_pooling: bool, optional

    :return: model with inputs and outputs of shape `(time, batch, ...)`; those of the author, if
        ``forward`` has the loop
    :rtype: torch.nn.Module

    :raises ConversionError: a layer that cannot run over the whole sequence, or a loop over
        time whose steps depend on one another; the message names the layer, the reason and the edit
    :raises ValueError: ``num_steps`` is not positive, or an unknown option
    :raises TypeError: ``model`` is not a module
    """
    _check_model(model)
    if num_steps is not None and (not isinstance(num_steps, int) or num_steps < 1):
        raise ValueError(f"num_steps={num_steps!r} must be a positive integer or None")
    check_options("Leaky", gradient, backend, {}, refractory)
    check_choice("spike_format", spike_format, ("auto", *SPIKE_FORMATS))
    if time_dim not in (0, 1):
        raise ValueError(
            f"time_dim={time_dim!r} must be 0, for (time, batch, ...), or 1, for (batch, time, ...)"
        )
    if first_spike_pooling:
        check = _check_first_spike_pooling(spike_format, check)
    options = Options(
        *(num_steps, share_parameters, gradient, backend, spike_format, time_dim, check),
        refractory=refractory,
        first_spike_pooling=first_spike_pooling,
    )
    return convert_whole(model, options) if strict else convert_parts(model, options)


def _check_first_spike_pooling(spike_format: str, check: bool | None) -> bool:
    """The ``check`` of a model whose pooling is not the author's."""
    if spike_format != "times":
        raise ValueError(
            f"first_spike_pooling=True requires spike_format='times', not {spike_format!r}: the "
            "earliest spike of a window is found from spike times"
        )
    if check:
        raise ValueError(
            "first_spike_pooling=True does not support check=True: several spikes of a window can "
            "pass in the author's model. Leave check out"
        )
    return False


def revert(model: nn.Module, *, share_parameters: bool = False) -> nn.Module:
    """
    Convert a model of whole sequences back to the snnTorch model that it was.

    The new model has the current weights of ``model``, which is not changed. (snnTorch's own
    Lapicque does not train a beta.)

    :param model: a model that :func:`convert` returned
    :type model: torch.nn.Module
    :param share_parameters: as in :func:`convert`
    :type share_parameters: bool, optional
    :return: model with snnTorch neurons that computes one time step a call, or has its own loop
    :rtype: torch.nn.Module
    :raises TypeError: :func:`convert` did not return ``model``
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    if not any(isinstance(part, Converted) for part in parts):
        raise TypeError(
            f"revert() expects a model that convert() returned, not a {type(model).__name__}: "
            "nothing to revert"
        )
    new = copy_model(model, share_parameters)
    for part in list(new.modules()):
        if isinstance(part, Converted):
            revert_in_place(part)
    return new


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, Converted):
        raise ConversionError("the model is converted already: revert() it first")
    if isinstance(model, SpikingNeuron):
        raise ConversionError(
            f"the model is a single neuron ({type(model).__name__}), but convert() expects a "
            "network: make a single-spike neuron with the same arguments (SingleSpikeLeaky for "
            "snntorch.Leaky)"
        )
