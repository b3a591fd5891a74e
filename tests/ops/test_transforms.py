"""Tools of torch that replace tensors: they work, or the error names the cure."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes
from snn_single_spike.functional import (
    delay_spikes,
    linear_readout,
    single_spike_linear,
    spike_count,
)
from snn_single_spike.losses import first_spike_times

SPIKES = SpikeTimes(torch.tensor([[0, 1, 2], [1, 1, -1]]), num_steps=5)


def dense_input():
    return torch.rand(5, 2, 3)


def times_of(x):
    return SingleSpikeLeaky(0.5, threshold=0.3, init_hidden=True, spike_format="times")(x)


DENSE = {
    "neuron": lambda x: SingleSpikeLeaky(0.5, threshold=0.3, init_hidden=True)(x)[0],
    "membrane": lambda x: SingleSpikeLeaky(0.5, threshold=0.3)(x)[1].sum(0),
    "readout": lambda x: LeakyReadout(0.5)(x),
    "count": lambda x: spike_count(times_of(x)),
    "first spike": lambda x: first_spike_times(times_of(x)),
    "to_dense": lambda x: times_of(x).to_dense()[1],
}


@pytest.mark.parametrize("of", DENSE)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_of_dense_layers(of):
    x = dense_input()
    expected = torch.autograd.functional.jacobian(DENSE[of], x)
    assert expected.any()
    batched = torch.autograd.functional.jacobian(DENSE[of], x, vectorize=True)
    torch.testing.assert_close(batched, expected)
    leaf = x.requires_grad_()
    out = DENSE[of](leaf).flatten()
    (rows,) = torch.func.vmap(lambda v: torch.autograd.grad(out, leaf, v))(torch.eye(len(out)))
    torch.testing.assert_close(rows.view_as(expected), expected)


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
@pytest.mark.parametrize("readout", [True, False])
def test_batched_gradients_from_spike_times_name_the_cure(rule, readout):
    def scores(weight):
        hidden = single_spike_linear(SPIKES, weight, None, 0.5, 0.1, gradient=rule)
        return LeakyReadout(0.5)(nn.Linear(4, 2)(hidden)) if readout else hidden.to_dense()[1]

    weight = torch.rand(4, 3)
    with pytest.raises(RuntimeError, match=r"vectorize=True.*from spike times: pass False"):
        torch.autograd.functional.jacobian(scores, weight, vectorize=True)
    torch.autograd.functional.jacobian(scores, weight)


def test_batched_second_derivatives_name_the_cure():
    x = dense_input().requires_grad_()
    for of in ("neuron", "membrane", "readout"):
        out = DENSE[of](x).flatten()
        rows = torch.eye(len(out))
        with pytest.raises(RuntimeError, match="with create_graph=True: pass False"):
            torch.autograd.grad(out, x, rows, is_grads_batched=True, create_graph=True)


@pytest.mark.parametrize("of", DENSE)
def test_transforms_of_torch_func_name_the_cure(of):
    for transform in (torch.func.grad, torch.func.vmap):
        with pytest.raises(RuntimeError, match=r"torch\.func.*torch\.autograd\.grad"):
            transform(lambda x: DENSE[of](x).sum())(torch.rand(5, 5, 2, 3)[0])


def test_a_transform_of_weights_names_the_cure():
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda w: single_spike_linear(SPIKES, w, None, 0.5).times.sum())(
            torch.rand(4, 3)
        )
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda w: nn.functional.linear(SPIKES, w).sum())(torch.rand(4, 3))


@pytest.mark.parametrize(
    "of",
    [
        lambda spikes, x: single_spike_linear(spikes, x, None, 0.5).to_dense(),
        lambda spikes, x: linear_readout(spikes, x, None, 0.5),
        lambda spikes, x: delay_spikes(spikes, x[0, 0]).to_dense(),
    ],
    ids=["linear", "readout", "delay"],
)
def test_a_transform_over_spikes_that_are_not_sorted_names_the_cure(of):
    """Sorting reads the memory of the times, which a transform hides."""
    spikes = SpikeTimes(torch.zeros(2, 3, dtype=torch.int64), num_steps=5)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda x: of(spikes, x).sum())(torch.rand(4, 3))


def test_functional_call():
    layer = SingleSpikeLinear(3, 4, beta=0.5, bias=False)
    weight = torch.rand(4, 3, requires_grad=True)
    out = torch.func.functional_call(layer, {"weight": weight}, (SPIKES,))
    expected = single_spike_linear(SPIKES, weight, None, 0.5, reset_mechanism="subtract")
    assert torch.equal(out.times, expected.times)
    spike_count(out).sum().backward()
    assert weight.grad.any()


@pytest.mark.parametrize("spike_format", ["dense", "times"])
def test_torch_jit_trace_names_the_cure(spike_format):
    lif = SingleSpikeLeaky(0.9, init_hidden=True, spike_format=spike_format)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace.*torch\.export"):
        torch.jit.trace(nn.Sequential(nn.Linear(3, 4), lif), (dense_input(),))


NETS = {
    "dense": lambda: nn.Sequential(nn.Linear(3, 4), SingleSpikeLeaky(0.9, init_hidden=True)),
    "learned": lambda: nn.Sequential(
        nn.Linear(3, 4), SingleSpikeLeaky(torch.full((4,), 0.9), learn_beta=True, init_hidden=True)
    ),
    "times": lambda: nn.Sequential(
        nn.Linear(3, 4), SingleSpikeLeaky(0.9, init_hidden=True, spike_format="times")
    ),
    "linear": lambda: SingleSpikeLinear(3, 4, beta=0.9),
    "spike_time": lambda: SingleSpikeLinear(3, 4, beta=0.9, gradient="spike_time"),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("given", ["dense", "times"])
def test_fake_tensors_have_the_shapes_of_gradients(net, given):
    with FakeTensorMode():
        model = nn.Sequential(NETS[net](), nn.Linear(4, 2), LeakyReadout(0.9, learn_beta=True))
        x = torch.rand(5, 2, 3)
        if given == "times":
            x = SpikeTimes(torch.zeros(2, 3, dtype=torch.int64), num_steps=5)
        model(x).sum().backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())
