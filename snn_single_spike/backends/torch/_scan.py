"""The reverse scan over one block of neurons, in plain torch; see ``kernels/triton/neuron.py``."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import FREE, SPIKED, InputGradients, Neuron, OutputGradients


@dataclass
class History:
    """When each neuron of a block spiked."""

    first: Tensor
    """(n,) the step of the only spike, T for a silent neuron."""
    spikes: Tensor | None = None
    """(T, n) bool: every spike, of neurons with ``refractory``."""
    free: Tensor | None = None
    """(T, n) bool: steps outside of the refractory period. None for all steps."""
    before: Tensor | None = None
    """(n,) bool: spikes one step before the first step."""

    @classmethod
    def of(cls, part: Neuron, first: Tensor, mem: Tensor | None, phase: Tensor | None) -> History:
        if part.refractory is None:
            return cls(first)
        never = torch.zeros_like(first, dtype=torch.bool)
        before = never if part.last_0 is None else part.last_0 == -1
        if phase is not None:
            return cls(first, phase & SPIKED != 0, phase & FREE != 0, before)
        assert mem is not None
        return cls(first, mem.detach() > part.threshold.detach(), None, before)

    def spiked(self, k: int) -> Tensor:
        """The neurons that spike at step ``k``; -1 is the step before the first."""
        if self.spikes is None:
            return self.first == k
        return self.spikes[k] if k >= 0 else self.before  # type: ignore[return-value]

    def gated(self, g: Tensor) -> Tensor:
        """dL/dc, with ``refractory``: g outside of the refractory period."""
        return g if self.free is None else g * self.free


def gate(g: Tensor, first: Tensor, step: Tensor, rule: str, out: Tensor) -> None:
    """Write dL/dc (T, n) into ``out``. g = dL/dS is (T, n), or (1, n) for all steps."""
    # A comparison into floats and a product take a third of the time of torch.where. A gradient
    # that is not finite becomes NaN here; the other backends mask it.
    if rule == "masked":
        torch.le(step, first, out=out).mul_(g)
        return
    if rule == "pre_spike":
        torch.lt(step, first, out=out).mul_(g)
    else:
        out.copy_(g)
    tail, ramp = torch.zeros_like(out[0]), torch.zeros_like(out[0])
    for row in reversed(out.unbind(0)):
        tail.add_(row)
        row.copy_(ramp.add_(tail))


def add_direct_gradients(lam: Tensor, first: Tensor, block: slice, grads: OutputGradients) -> None:
    """Add the gradients to V at every step, and at the steps around the spike."""
    num_steps = lam.shape[0]
    if grads.grad_mem is not None:
        lam += grads.grad_mem[:, block]
    if grads.grad_at is not None:
        assert grads.grad_before is not None
        for gradient, index in ((grads.grad_at, first), (grads.grad_before, first - 1)):
            real = (index >= 0) & (index < num_steps)
            source = gradient[block].masked_fill(~real, 0.0)[None]
            lam.scatter_add_(0, index.clamp(0, num_steps - 1)[None], source)


def scan_leaky(
    lam: Tensor, mem: Tensor, part: Neuron, past: History, d_theta: Tensor, into: InputGradients
) -> None:
    """lam[k] += beta lam[k+1] in place, for a Leaky.

    On entry ``lam`` (T, n) holds the gradient that enters the scan at each step. The function adds
    to ``d_theta``.
    """
    num_steps = lam.shape[0]
    assert part.mem_0 is not None
    carry = torch.zeros_like(d_theta)
    after = carry
    for k in range(num_steps - 1, -1, -1):
        torch.mul(after, part.beta, out=carry)
        if part.reset == "zero_before":
            carry.masked_fill_(past.spiked(k), 0.0)
        after = lam[k].add_(carry)
    to_start = after.masked_fill(past.spiked(-1), 0.0) if part.reset == "zero_before" else after
    if "mem_0" in into:
        into["mem_0"].copy_(part.beta * to_start)
    if "beta" in into:
        product = lam[1:] * mem[:-1]
        if part.reset == "zero_before":
            step = torch.arange(num_steps - 1, device=lam.device)[:, None]
            at_spike = step == past.first if past.spikes is None else past.spikes[:-1]
            product.masked_fill_(at_spike, 0.0)
        into["beta"].copy_(product.sum(0) + to_start * part.mem_0)
    if "threshold" in into and part.reset == "subtract":
        if past.spikes is None:
            following = (past.first + 1).clamp(max=num_steps - 1)[None]
            d_theta -= lam.gather(0, following)[0].masked_fill(past.first + 1 >= num_steps, 0.0)
        else:
            d_theta -= (lam[1:] * past.spikes[:-1]).sum(0) + lam[0] * past.spiked(-1)


@dataclass
class Rows:
    """The tensors that the scan of any neuron reads at each step, (T, n) each."""

    mem: Tensor
    slope: Tensor | None
    """s'(V - theta) times the height of a spike; None if no gradient passes the spikes."""
    syn: Tensor | None
    inh: Tensor | None
    grad_spikes: Tensor | None
    grad_syn: Tensor | None
    grad_inh: Tensor | None


class Scan:
    """The reverse scan of any neuron, in operations that autograd can differentiate.

    ``after`` is the adjoint of the membrane one step later. ``lam_s`` and ``lam_i`` are the
    adjoints of the synaptic currents. With feedback, the gradient through the spikes depends on the
    scan, so the scan applies the gradient rule. The states of the last step carry nothing on:
    parameters have no gradient from them, also where they are infinite or NaN.
    """

    def __init__(
        self, rows: Rows, part: Neuron, past: History, rule: str, needs: Container[str]
    ) -> None:
        self.rows, self.part, self.past, self.rule, self.needs = rows, part, past, rule, needs
        self.first = past.first  # feedback and Alpha are defined for one spike
        zeros = torch.zeros_like(past.first, dtype=rows.mem.dtype)
        self.after, self.lam_s, self.lam_i = zeros, zeros, zeros
        self.tail, self.ramp = zeros, zeros
        self.d_theta, self.d_beta, self.d_alpha, self.d_gain = zeros, zeros, zeros, zeros
        self.d_feedback = zeros

    def run(self, direct: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield k = T-1 ... 0 and the adjoints of the membrane and the input current at step k.

        ``direct`` (T, n) is the direct gradient to V. The caller may overwrite row k of it.
        """
        self.last = direct.shape[0] - 1
        for k in range(self.last, -1, -1):
            entering = self._adjoint_membrane(k, direct[k].clone())
            current = entering if self.part.alpha is None else self._adjoint_synaptic(k, entering)
            yield k, entering, current
            self.after = entering

    def _through_spikes(self, k: int) -> Tensor | None:
        """The gradient that reaches V[k] through the spikes and their feedback, by the rule."""
        rows, part = self.rows, self.part
        if part.feedback is None or rows.slope is None:
            return None
        g = self.after * part.feedback
        if rows.grad_spikes is not None:
            g = g + rows.grad_spikes[k % rows.grad_spikes.shape[0]]
        if self.rule == "masked":
            g = g.masked_fill(self.first < k, 0.0)
        else:
            if self.rule == "pre_spike":
                g = g.masked_fill(self.first <= k, 0.0)
            self.tail = self.tail + g
            g = self.ramp = self.ramp + self.tail
        return rows.slope[k] * g

    def _adjoint_membrane(self, k: int, entering: Tensor) -> Tensor:
        part, after, past = self.part, self.after, self.past
        through = self._through_spikes(k)
        if through is not None:
            self.d_theta = self.d_theta - through
            entering = entering + through
        if part.feedback is not None:
            self.d_feedback = torch.where(self.first == k, after, self.d_feedback)
        if part.gain is None:  # the membrane of Alpha does not depend on the step before
            if part.reset == "subtract":
                self.d_theta = self.d_theta - after.masked_fill(~past.spiked(k), 0.0)
            carried = self._carried(k)
            if "beta" in self.needs and k < self.last:
                product = carried * self.rows.mem[k]
                if part.reset == "zero_before":
                    product = product.masked_fill(past.spiked(k), 0.0)
                self.d_beta = self.d_beta + product
            entering = entering + part.beta * carried
        if part.reset == "zero_after":
            entering = entering.masked_fill(past.spiked(k - 1), 0.0)
        return entering

    def _carried(self, k: int) -> Tensor:
        """lam[k+1] as far as V[k] reaches it."""
        if self.part.reset == "zero_before":
            return self.after.masked_fill(self.past.spiked(k), 0.0)
        return self.after

    def _adjoint_synaptic(self, k: int, entering: Tensor) -> Tensor:
        """Update the adjoints of the synaptic currents, and return that of the input current."""
        rows, part, after = self.rows, self.part, self.after
        assert part.alpha is not None
        if rows.syn is not None and k < self.last:
            self.d_alpha = self.d_alpha + self.lam_s * rows.syn[k]
            if rows.inh is not None:
                # The gain multiplies this sum at k+1. The input current cancels there.
                both = part.alpha * rows.syn[k] + part.beta * rows.inh[k]
                self.d_gain = self.d_gain + after * both
        lam_s = part.alpha * self.lam_s
        if rows.grad_syn is not None:
            lam_s = lam_s + rows.grad_syn[k % rows.grad_syn.shape[0]]
        if part.gain is None:
            self.lam_s = lam_s + entering
            return self.lam_s
        return self._adjoint_alpha(k, entering, lam_s)

    def _adjoint_alpha(self, k: int, entering: Tensor, lam_s: Tensor) -> Tensor:
        rows, part = self.rows, self.part
        assert part.gain is not None
        if rows.inh is not None and k < self.last:
            self.d_beta = self.d_beta + self.lam_i * rows.inh[k]
        lam_i = part.beta * self.lam_i
        if rows.grad_inh is not None:
            lam_i = lam_i + rows.grad_inh[k % rows.grad_inh.shape[0]]
        reset_next, reset_now = self.first == k, self.first == k - 1
        if part.reset == "subtract":
            lam_i = torch.where(reset_next, lam_i + self.after, lam_i)
            self.d_theta = self.d_theta - lam_s.masked_fill(~reset_now, 0.0)
            lam_i = lam_i.masked_fill(reset_now, 0.0)
        lam_s = lam_s + part.gain * entering
        lam_i = lam_i + part.gain * entering
        if part.reset == "zero_after":
            lam_s, lam_i = (x.masked_fill(reset_now, 0.0) for x in (lam_s, lam_i))
        self.lam_s, self.lam_i = lam_s, lam_i
        return lam_s - lam_i

    def gradients(self) -> dict[str, Tensor]:
        """The gradients to parameters and to initial states, after :meth:`run`."""
        part, after = self.part, self.after
        assert part.mem_0 is not None
        assert part.syn_0 is not None
        assert part.inh_0 is not None
        found = {"threshold": self.d_theta, "feedback": self.d_feedback}
        if part.gain is None:
            if part.reset == "subtract" and part.refractory is not None:
                found["threshold"] = self.d_theta - after.masked_fill(~self.past.spiked(-1), 0.0)
            carried = self._carried(-1)
            found |= {"beta": self.d_beta + carried * part.mem_0, "mem_0": part.beta * carried}
        else:
            found |= {"beta": self.d_beta + self.lam_i * part.inh_0}
            found |= {"inh_0": part.beta * self.lam_i}
        if part.alpha is not None:
            found |= {"alpha": self.d_alpha + self.lam_s * part.syn_0}
            found |= {"syn_0": part.alpha * self.lam_s}
            if part.gain is not None:
                both = part.alpha * part.syn_0 + part.beta * part.inh_0
                found |= {"gain": self.d_gain + after * both}
        return found
