"""The single-spike form of :class:`snntorch.Leaky`."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor

from ..backends._decay import clip_decay
from ..backends._types import state_dtype
from ..functional import SPIKE_FORMATS
from ..functional.neuron import leaky_reset
from ..ops.layer import LayerNeurons
from ..ops.neuron import run_single_spike
from ..ops.validation import check_choice, check_parameter
from ..spikes import ConvCurrent, LazyCurrent, LazyMembrane
from ..spikes.layers import spikes_of_neuron
from ..spikes.lazy import LastState, materialize
from ._base import SingleSpikeNeuron
from .state import LeakyState, checked

__all__ = ["FusedLeaky", "LeakyState", "SingleSpikeLeaky"]


class SingleSpikeLeaky(SingleSpikeNeuron, snn.Leaky):
    """
    Leaky integrate-and-fire neuron that spikes at most once per sample, over a whole
    sequence in one call. The constructor takes the arguments of :class:`snntorch.Leaky`.

    .. math::

            U[t] = βU[t-1] + I_{\\rm in}[t] - R[t] \\\\
            S[t] = 1 \\text{ at the first } t \\text{ with } U[t] > U_{\\rm thr}, \\text{ else } 0

    The reset R acts once, one step after the spike: `"subtract"` subtracts the threshold from the
    membrane, `"zero"` sets the membrane to zero. Spikes up to the first spike, and the membrane
    up to the step after the spike, equal the spikes and membrane of :class:`snntorch.Leaky`.
    Method: Taylor, King and Harper, arXiv:2205.15286.

    Example::

        import torch, torch.nn as nn
        from snn_single_spike import SingleSpikeLeaky

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc1 = nn.Linear(784, 1000)
                self.lif1 = SingleSpikeLeaky(beta=0.9)       # was snn.Leaky(beta=0.9)
                self.fc2 = nn.Linear(1000, 10)
                self.lif2 = SingleSpikeLeaky(beta=0.9)

            def forward(self, x):                            # x: (time, batch, 784)
                spk1, _ = self.lif1(self.fc1(x))             # no loop over time
                return self.lif2(self.fc2(spk1))             # spk2, mem2

    Every call starts a new sample. The layer does not carry the state of an earlier call over, so
    ``utils.reset(net)`` is allowed but not needed. For streaming use :meth:`step`.

    :param beta: membrane potential decay rate per step. Clipped between 0 and 1 during the
        forward pass. A number, or a tensor that broadcasts to the features (one value per neuron)
    :type beta: float or torch.tensor

    :param threshold: a neuron fires at the first step where its membrane is strictly above the
        threshold: a number, or a tensor that broadcasts to the features. Defaults to 1
    :type threshold: float or torch.tensor, optional

    :param spike_grad: surrogate gradient: a surrogate of :mod:`snntorch.surrogate`, or any
        differentiable function of `mem - threshold`. Defaults to None (ATan)
    :type spike_grad: Callable, optional

    :param surrogate_disable: if True, spikes carry no gradient. Defaults to False
    :type surrogate_disable: bool, optional

    :param init_hidden: if True, the layer returns the spikes only. Defaults to False
    :type init_hidden: bool, optional

    :param inhibition: must be False: inhibition couples neurons at every step
    :type inhibition: bool, optional

    :param learn_beta: make beta a parameter. Defaults to False
    :type learn_beta: bool, optional

    :param learn_threshold: make threshold a parameter. Defaults to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: "subtract", "zero" or "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: must be False: quantization makes the membrane non-linear in its input
    :type state_quant: bool, optional

    :param output: if True, the layer returns spikes and membrane also with `init_hidden=True`.
        Defaults to False
    :type output: bool, optional

    :param graded_spikes_factor: height of a spike: a number, or a tensor that broadcasts to the
        features. Defaults to 1
    :type graded_spikes_factor: float or torch.tensor, optional

    :param learn_graded_spikes_factor: make graded_spikes_factor a parameter. Defaults to False
    :type learn_graded_spikes_factor: bool, optional

    :param reset_delay: must be True: the reset comes one step after the spike
    :type reset_delay: bool, optional

    :param gradient: gradient rule, see :func:`snn_single_spike.functional.single_spike_leaky`.
        Defaults to "masked"
    :type gradient: str, optional, keyword only

    :param backend: implementation, see :mod:`snn_single_spike.backends`. Defaults to "auto"
    :type backend: str, optional, keyword only

    :param refractory: number of silent steps after each spike; the neuron may then spike again.
        Every spike resets the membrane. 0 is :class:`snntorch.Leaky` itself, which
        :class:`FusedLeaky` names. `gradient` must be `"masked"`. Defaults to None: at most one
        spike
    :type refractory: int, optional, keyword only

    :param spike_format: format of the returned spikes: a "dense" tensor, or "times":
        :class:`snn_single_spike.SpikeTimes`, and with `refractory`
        :class:`snn_single_spike.SpikeEvents`. With "times" the current of an `nn.Linear` or
        `nn.Conv2d` from spike times is not computed, see :mod:`snn_single_spike.spikes`. A neuron
        with `refractory` computes its current, from events where that is faster. Defaults to
        "dense"
    :type spike_format: str, optional, keyword only

    Inputs: \\input_, mem_0
        - **input_** of shape `(time, batch, *features)`: the whole sequence; float32,
          float64, float16 or bfloat16; or the :class:`snn_single_spike.spikes.LazyCurrent` or
          :class:`snn_single_spike.spikes.ConvCurrent` that `nn.Linear` or `nn.Conv2d` returns for
          spike times
        - **mem_0** of shape `(batch, *features)`: membrane before the first step, zeros by
          default. The empty tensor of `reset_mem()` means zeros, too
        - **state** :class:`LeakyState`, by keyword, in place of **mem**: continues the sample of
          an earlier call. A neuron without `refractory` that has spiked stays silent. `self.state`
          holds the state after each call, detached. Replace its `mem` with the last row of the
          returned membrane for a gradient to the earlier call. `gradient` must be `"masked"`

    Outputs: spk, mem
        - **spk** of shape `(time, batch, *features)`: the spikes, in the type of the input.
          (snnTorch returns float32 for every input)
        - **mem** of the same shape: the membrane at every step, type of the input. With
          `init_hidden=True` the layer returns the spikes only, unless `output=True`. With
          `spike_format="times"` and a current from spike times, the membrane is a
          :class:`snn_single_spike.spikes.LazyMembrane`, which computes the tensor on its first
          use. In a compiled graph the membrane is a tensor

    After a call `self.mem` holds the membrane of the last step, detached. After a call with
    `spike_format="times"` on a current from spike times it is computed on its first use, before
    the weights change. A call of a compiled or an exported module does not update `self.mem`.

    :raises ValueError: an option is not supported over a whole sequence
    :raises TypeError: a membrane is passed with `init_hidden=True`
    :raises ValueError, TypeError, RuntimeError: as
        :func:`snn_single_spike.functional.single_spike_leaky`
    """

    mem: Tensor
    spike_format: str = "dense"  # of pickles from before this option

    def __init__(self, *args: Any, spike_format: str = "dense", **kwargs: Any) -> None:
        check_choice("spike_format", spike_format, SPIKE_FORMATS)
        super().__init__(*args, **kwargs)
        self.spike_format = spike_format

    def forward(
        self, input_: Any, mem: Tensor | None = None, *, state: LeakyState | None = None
    ) -> Any:
        times = self._returns_times(input_)
        if times:
            self._check_hooks()
        zeros = mem is None or (not self.init_hidden and getattr(mem, "shape", None) == (0,))
        lazy = isinstance(input_, LazyCurrent | ConvCurrent)
        if times and lazy and zeros and state is None and self.refractory is None:
            return self._from_spikes(input_.unfold())
        if lazy and self.refractory is not None:
            input_ = input_.to_dense()  # a neuron that spikes again needs the current of every step
        input_ = materialize(input_, self._get_name())
        # SpikeTimes hold the height in an attribute.
        height = {"graded_spikes_factor": 1.0} if times else {}
        states = self._initial(input_, state, mem=mem)
        result = self._run(input_, None, state, **states, **height)
        spikes: Any = result.spikes
        if times:
            once = self.refractory is None
            spikes = spikes_of_neuron(result, self.graded_spikes_factor, once)
        return spikes if result.mem is None else (spikes, result.mem)

    def _returns_times(self, input_: Any) -> bool:
        """Whether this call returns spike times, not dense spikes."""
        return self.spike_format == "times"

    def _check_hooks(self) -> None:
        """Reject backward hooks: torch calls those of layers that return tensors only."""
        if torch.is_grad_enabled() and (self._backward_hooks or self._backward_pre_hooks):
            raise RuntimeError(
                f"{self._get_name()} returns spike times, for which torch calls no backward hooks, "
                "but a hook is registered on this layer: use SingleSpikeLeaky or convert with "
                'spike_format="dense", or remove the hook'
            )

    def _from_spikes(self, current: LazyCurrent | ConvCurrent) -> Any:
        """Open the current of a layer, and run the layer with these neurons."""
        neurons = self._neurons()
        read = (current.weight, current.bias, current.spikes.height, self.beta, self.threshold)

        def membrane(of: LazyCurrent | ConvCurrent) -> Tensor:
            result = run_single_spike(of.to_dense(), want_spikes=False, **neurons._asdict())
            assert result.mem is not None
            return result.mem

        only_spikes = self.init_hidden and not self.output
        if torch.compiler.is_compiling():
            spikes = current.single_spikes(neurons)
            return spikes if only_spikes else (spikes, membrane(current))
        mem = None if only_spikes else LazyMembrane(current, read, lambda: membrane(current))
        last = current.detach()
        kept: Any = LastState(LazyMembrane(last, read, lambda: membrane(last)))
        spikes = current.single_spikes(neurons)
        self._keep_no_state(current.shape[0])
        self.mem = kept
        return spikes if only_spikes else (spikes, mem)

    def _neurons(self) -> LayerNeurons:
        return LayerNeurons(
            self.beta,
            self.threshold,
            self.graded_spikes_factor,
            *self._surrogate(),
            self.gradient,
            self._reset(),
            self.backend,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, spike_format={self.spike_format!r}"

    def _reset(self) -> str:
        return leaky_reset(self.reset_mechanism)

    def step(self, input_: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        """
        Compute one time step, for streaming. The spikes equal those of :meth:`forward` on the
        stacked sequence, on a CPU bit for bit.

        Example::

            state = None
            for x in stream:                       # x: (batch, *features)
                spk, state = lif.step(x, state)

        The step is differentiable by backpropagation through time, as in the `"masked"` rule.
        The other gradient rules need the whole sequence.

        :param input_: current of one step, of shape `(batch, *features)`; float32, float64,
            float16 or bfloat16
        :type input_: torch.Tensor
        :param state: the state that the last step returned. Defaults to None, which starts a
            sample
        :type state: LeakyState, optional
        :return: spikes of shape `(batch, *features)`, type of the input, and the state for the
            next step
        :rtype: tuple(torch.Tensor, LeakyState)
        :raises ValueError: `input_` has fewer than two dimensions, or the state has another shape
        :raises TypeError: `state` is not a :class:`LeakyState`
        """
        if not isinstance(input_, Tensor) or input_.dim() < 2:
            raise ValueError(
                "input_ of step() must be a tensor of shape (batch, *features), not "
                f"{tuple(input_.shape) if isinstance(input_, Tensor) else type(input_).__name__}. "
                "For a whole sequence (time, batch, *features) call the layer itself"
            )
        sequence = input_[None]
        shape = input_.shape[1:]
        beta, theta, factor = (
            check_parameter(name, getattr(self, name), sequence).expand(shape.numel()).view(shape)
            for name in ("beta", "threshold", "graded_spikes_factor")
        )
        if state is None:
            mem = torch.zeros_like(input_, dtype=state_dtype(input_.dtype))
            state = LeakyState(mem, torch.full_like(input_, -1, dtype=torch.int64), 0)
        mem, times, now, _ = checked(state, sequence)
        reset = (times >= 0) & (times == now - 1)
        free = times < 0
        if self.refractory == 0:  # as in snnTorch, the initial membrane may be above the threshold
            reset, free = mem > theta, torch.ones_like(reset)
        elif self.refractory is not None:
            free = free | (now - times > self.refractory)
        if self.reset_mechanism == "zero":
            mem = torch.where(reset, 0.0, mem)
        mem = clip_decay(beta) * mem + input_
        if self.reset_mechanism == "subtract":
            mem = torch.where(reset, mem - theta, mem)
        fire = (mem > theta) & free
        allowed = free.to(mem.dtype)  # the detached gate
        path = self.spike_grad(mem - theta).to(mem.dtype) * allowed
        spk = factor * (fire.to(mem.dtype) + (path - path.detach()))
        return spk.to(input_.dtype), LeakyState(mem, torch.where(fire, now, times), now + 1)


class FusedLeaky(SingleSpikeLeaky):
    """
    :class:`snntorch.Leaky` over a whole sequence in one call, with every spike.

    The same neuron as :class:`SingleSpikeLeaky`, whose `refractory` is 0 by default: spikes,
    membrane and gradients are those of a loop over :class:`snntorch.Leaky`, on a CPU spikes and
    membrane bit for bit in float32. A positive `refractory` silences a neuron for as many steps
    after each spike.

    Example::

        lif = FusedLeaky(beta=0.9)                # was snn.Leaky(beta=0.9)
        spk, mem = lif(current)                   # (time, batch, features), no loop over time

        spk, mem = lif(chunk)                     # a long sequence in parts
        spk, mem = lif(next_chunk, state=lif.state)

    :param beta: membrane potential decay rate per step, and all other arguments of
        :class:`SingleSpikeLeaky`. `gradient` must be `"masked"`
    :type beta: float or torch.tensor

    :param refractory: number of silent steps after each spike. Defaults to 0
    :type refractory: int, optional, keyword only

    Inputs and outputs as for :class:`SingleSpikeLeaky`.
    """

    def __init__(self, *args: Any, refractory: int | None = 0, **kwargs: Any) -> None:
        super().__init__(*args, refractory=refractory, **kwargs)
