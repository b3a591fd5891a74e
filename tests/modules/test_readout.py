"""The non-firing readout, against the membrane of snn.Leaky and against torch reductions."""

import pytest
import snntorch as snn
import torch

from snn_single_spike import LeakyReadout, SingleSpikeLeaky
from snn_single_spike.functional import leaky_readout
from snn_single_spike.ops.validation import REDUCTIONS

from tests.support.devices import device_of
from tests.support.oracle import relative_error
from tests.support.sequential import clip


def membrane(current, beta, mem_0):
    mem, mems = mem_0, []
    for x in current.unbind(0):
        mem = clip(beta) * mem + x
        mems.append(mem)
    return torch.stack(mems)


REDUCE = {
    "sum": lambda mem: mem.sum(0),
    "max": lambda mem: mem.max(0).values,
    "last": lambda mem: mem[-1],
}


@pytest.mark.parametrize("num_steps", [1, 16, 37])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("per_class", [False, True])
def test_values_and_gradients(reduction, per_class, num_steps, backend):
    device = device_of(backend)
    to = {"dtype": torch.float64, "device": device}
    current = torch.randn(num_steps, 3, 4, **to)
    beta = torch.rand(4 if per_class else (), **to)
    mem_0, weight = torch.randn(3, 4, **to), torch.randn(3, 4, **to)
    results = []
    for fused in (True, False):
        leaves = [x.clone().requires_grad_() for x in (current, beta, mem_0)]
        if fused:
            x, b, m = leaves
            value = leaky_readout(x, b, mem=m, reduction=reduction, backend=backend)
        else:
            value = REDUCE[reduction](membrane(*leaves))
        results.append([value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-10


@pytest.mark.parametrize("beta", [-1.0, 0.0, 1.0, 2.0])
def test_beta_at_and_beyond_its_bounds(beta, backend):
    to = {"dtype": torch.float64, "device": device_of(backend)}
    current, mem_0 = torch.randn(9, 2, 3, **to), torch.zeros(2, 3, **to)
    grads = []
    for call in (
        lambda b: leaky_readout(current, b, backend=backend),
        lambda b: membrane(current, b, mem_0).sum(0),
    ):
        leaf = torch.tensor(beta, **to, requires_grad=True)
        call(leaf).sum().backward()
        grads.append(leaf.grad)
    assert relative_error(*grads) < 1e-10


def test_without_reduction_it_is_the_membrane_of_snntorch(backend):
    current = torch.randn(20, 3, 4)
    mem, mems = torch.zeros(3, 4), []
    neuron = snn.Leaky(beta=0.9, reset_mechanism="none")
    for x in current:
        _, mem = neuron(x, mem)
        mems.append(mem)
    readout = LeakyReadout(0.9, reduction=None, backend=backend).to(device_of(backend))
    assert torch.equal(readout(current.to(device_of(backend))).cpu(), torch.stack(mems))


def test_nan_wins_the_maximum_as_in_torch(backend):
    current = torch.tensor([[1.0, 1.0], [float("nan"), -5.0]], device=device_of(backend))[:, None]
    value = leaky_readout(current, 0.0, reduction="max", backend=backend)
    assert value[0, 0].isnan()
    assert value[0, 1] == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_half_precision_sums_in_float32(reduction, dtype, backend):
    current = (torch.rand(64, 2, 3) * 8).round() / 8
    exact = leaky_readout(current, 1.0, reduction=reduction)
    half = current.to(dtype).to(device_of(backend)).requires_grad_()
    value = leaky_readout(half, 1.0, reduction=reduction, backend=backend)
    assert value.dtype == dtype
    assert relative_error(value, exact) < torch.finfo(dtype).eps
    value.sum().backward()
    assert half.grad.dtype == dtype


def test_module_learns_beta_and_moves_with_it():
    readout = LeakyReadout(torch.full((4,), 0.9), learn_beta=True)
    readout(torch.randn(8, 2, 4)).sum().backward()
    assert readout.beta.grad.shape == (4,)
    assert list(readout.state_dict()) == ["beta"]
    assert list(LeakyReadout(0.5).state_dict()) == ["beta"]


def test_empty_batch(backend):
    current = torch.zeros(4, 0, 3, device=device_of(backend), requires_grad=True)
    value = leaky_readout(current, 0.9, backend=backend)
    assert value.shape == (0, 3)
    value.sum().backward()
    assert current.grad.shape == (4, 0, 3)


def test_unknown_reduction_and_nan_beta():
    with pytest.raises(ValueError, match="reduction='mean'"):
        LeakyReadout(0.9, reduction="mean")
    with pytest.raises(ValueError, match="beta contains NaN"):
        LeakyReadout(float("nan"))
    with pytest.raises(TypeError, match="beta must be a number or a tensor, not '0.9'"):
        LeakyReadout("0.9")


@pytest.mark.parametrize("reduction", ["sum", None])
def test_what_a_neuron_returns_is_to_be_unpacked(reduction):
    both = SingleSpikeLeaky(0.9)(torch.rand(4, 2, 3))
    with pytest.raises(TypeError, match="not tuple: unpack the result of a neuron"):
        LeakyReadout(0.9, reduction=reduction)(both)


@pytest.mark.parametrize("reduction", [*REDUCTIONS, None])
def test_scale(reduction):
    current = torch.randn(5, 2, 3)
    plain = LeakyReadout(0.9, reduction=reduction)
    fixed = LeakyReadout(0.9, reduction=reduction, scale=0.25)
    assert torch.equal(fixed(current), 0.25 * plain(current))
    assert fixed.state_dict().keys() == plain.state_dict().keys()
    each = torch.tensor([1.0, 2.0, 3.0])
    learned = LeakyReadout(0.9, reduction=reduction, scale=each, learn_scale=True)
    learned(current).sum().backward()
    expected = plain(current).flatten(0, -2).sum(0)
    torch.testing.assert_close(learned.scale.grad, expected)
    kept = LeakyReadout(0.9, reduction=reduction, scale=each)
    assert torch.equal(kept.state_dict()["scale"], each)
    with pytest.raises(ValueError, match=r"scale has shape \(2,\)"):
        LeakyReadout(0.9, reduction=reduction, scale=torch.ones(2))(current)
