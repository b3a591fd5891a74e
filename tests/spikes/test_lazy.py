"""Lazy tensors: torch receives the dense tensor, and a layer receives the spikes."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from snn_single_spike import (
    LeakyReadout,
    MaterializationWarning,
    SingleSpikeAlpha,
    SingleSpikeLeaky,
    SingleSpikeSynaptic,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.spikes import LazyCurrent
from snn_single_spike.spikes.lazy import LazyTensor

from tests.support.spikes import (
    BATCH,
    FEATURES,
    STANDING_FOR_DENSE,
    STEPS,
    current,
    dense_of,
    times_of,
)

OPERATIONS = {
    "add": lambda x: x + 1,
    "radd": lambda x: torch.ones(()) + x,
    "sub": lambda x: x - 2,
    "rsub": lambda x: 1 - x,
    "mul": lambda x: x * 3,
    "rmul": lambda x: 3.0 * x,
    "div": lambda x: x / 2,
    "rdiv": lambda x: 1 / (x + 1),
    "floordiv": lambda x: x // 2,
    "mod": lambda x: x % 2,
    "pow": lambda x: x**2,
    "rpow": lambda x: 2**x,
    "neg": lambda x: -x,
    "abs": lambda x: abs(x),
    "gt": lambda x: x > 0,
    "ge": lambda x: x >= 1,
    "lt": lambda x: x < 1,
    "le": lambda x: x <= 0,
    "eq": lambda x: x == 1,
    "ne": lambda x: x != 1,
    "two": lambda x: x + x,
    "matmul": lambda x: x @ torch.ones(x.shape[-1], 3),
    "rmatmul": lambda x: torch.ones(x.shape[-2], x.shape[-2]) @ x,
    "item": lambda x: x[0],
    "slice": lambda x: x[1:3, ..., -1],
    "iter": lambda x: torch.stack(list(x)),
    "unbind": lambda x: x.unbind(0)[2],
    "sum": lambda x: x.sum(0),
    "torch.sum": lambda x: torch.sum(x, dim=0),
    "keyword": lambda x: torch.sum(input=x, dim=0),
    "mean": lambda x: x.mean(),
    "cat": lambda x: torch.cat([x, x * 2], dim=1),
    "stack": lambda x: torch.stack((x, x)),
    "where": lambda x: torch.where(x > 0, x, -1.0),
    "transpose": lambda x: x.transpose(0, 1),
    "T": lambda x: x.mT,
    "cumsum": lambda x: x.cumsum(0),
    "double": lambda x: x.double(),
    "relu": lambda x: F.relu(x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) + 0,  # stores its input
    "linear": lambda x: F.linear(x, torch.ones(2, x.shape[-1])) + 0,
    "linear by keywords": lambda x: F.linear(input=x, weight=torch.ones(2, x.shape[-1])) + 0,
    "einsum": lambda x: torch.einsum("...n->...", x),
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "asarray": lambda x: torch.from_numpy(np.asarray(x)),
    "assigned": lambda x: torch.zeros(x.shape).copy_(x),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", STANDING_FOR_DENSE)
def test_torch_is_given_the_dense_tensor(name, operation):
    spikes = STANDING_FOR_DENSE[name]()
    with torch.no_grad():
        result = OPERATIONS[operation](spikes)
        assert type(result) is torch.Tensor
        assert torch.equal(result, OPERATIONS[operation](spikes.to_dense()))


def test_numpy_makes_one_dense_tensor():
    with pytest.warns(MaterializationWarning) as warned:
        array = np.asarray(STANDING_FOR_DENSE["times"]())
    assert array.shape == (STEPS, BATCH, *FEATURES)
    assert len(warned) == 1


@pytest.mark.parametrize("name", STANDING_FOR_DENSE)
def test_what_is_known_without_the_tensor(name):
    spikes = STANDING_FOR_DENSE[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        known = [
            *(spikes.shape, spikes.dtype, spikes.device, spikes.ndim, spikes.dim(), len(spikes)),
            *(spikes.size(), spikes.size(0), spikes.size(-1), spikes.numel()),
            spikes.is_floating_point(),
        ]
        repr(spikes)
        hash(spikes)
    dense = spikes.to_dense()
    assert known == [
        *(dense.shape, dense.dtype, dense.device, dense.ndim, dense.dim(), len(dense)),
        *(dense.size(), dense.size(0), dense.size(-1), dense.numel()),
        dense.is_floating_point(),
    ]


def test_a_warning_says_what_was_made_dense():
    spikes = STANDING_FOR_DENSE["times"]()
    with pytest.warns(MaterializationWarning) as warned:  # noqa: PT031
        torch.cumsum(spikes, 0)
        spikes.mean()
        spikes.flatten(0, 1)
        _ = spikes + 1
        spikes.flatten(2)
        F.linear(spikes.flatten(2), torch.ones(2, 10))
    assert [str(w.message).partition(" does not support SpikeTimes")[0] for w in warned] == [
        *("cumsum", "Tensor.mean", "flatten over time or batch", "__add__")
    ]
    assert {w.filename for w in warned} == {__file__}


def test_a_call_site_warns_once_and_can_be_silenced():
    spikes = STANDING_FOR_DENSE["times"]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        for _ in range(3):
            torch.cumsum(spikes, 0)
        torch.cumsum(spikes, 0)
    assert len(warned) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=MaterializationWarning)
        torch.cumsum(spikes, 0)
        spikes.to_dense()
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        with pytest.raises(MaterializationWarning, match="cumsum does not support SpikeTimes"):
            torch.cumsum(spikes, 0)


def test_the_warning_names_the_layer():
    spikes = SpikeTimes(torch.zeros(2, 3, dtype=torch.int8), 5)
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.LayerNorm(3)))
    with pytest.warns(MaterializationWarning, match=r"layer_norm in layer '1.0' \(LayerNorm\)"):
        net(spikes)


def test_other_attributes_are_refused():
    with pytest.raises(
        AttributeError, match=r"SpikeTimes has no attribute 'spam'\..*\.to_dense\(\)"
    ):
        STANDING_FOR_DENSE["times"]().spam  # noqa: B018
    with pytest.raises(NotImplementedError):
        LazyTensor().to_dense()


def test_what_is_printed():
    assert repr(STANDING_FOR_DENSE["times"]()) == (
        "SpikeTimes(shape=(7, 3, 2, 5), times=torch.int8, device='cpu')"
    )
    leaf = dense_of(times_of(), STEPS).requires_grad_()
    assert repr(SpikeTimes.from_dense(leaf)).endswith("device='cpu', requires_grad=True)")
    assert repr(SpikeEvents.from_dense(torch.ones(2, 1, 3))) == (
        "SpikeEvents(shape=(2, 1, 3), events=6, device='cpu')"
    )
    assert repr(current()).startswith("LazyCurrent(shape=(7, 3, 4), of=SpikeTimes(")


@pytest.mark.parametrize(
    "neuron", [SingleSpikeSynaptic(0.8, 0.9), SingleSpikeAlpha(0.9, 0.8), SingleSpikeLeaky(0.9)]
)
def test_other_neurons_take_a_deferred_current(neuron):
    for mine, right in zip(neuron(current()), neuron(current().to_dense()), strict=True):
        assert torch.equal(mine, right)


def test_a_linear_layer_takes_the_last_of_several_features_as_ever():
    spikes, weight = STANDING_FOR_DENSE["times"](), torch.randn(3, 5)
    assert torch.equal(F.linear(spikes, weight), F.linear(spikes.to_dense(), weight))


@pytest.mark.parametrize("learns", ["weight", "bias", "spikes", "nothing"])
def test_a_current_knows_whether_a_gradient_can_flow_into_it(learns):
    dense = dense_of(times_of(features=(10,)), STEPS).requires_grad_(learns == "spikes")
    weight = torch.randn(4, 10, requires_grad=learns == "weight")
    bias = torch.randn(4, requires_grad=learns == "bias")
    made = F.linear(SpikeTimes.from_dense(dense), weight, bias)
    assert isinstance(made, LazyCurrent)
    assert made.requires_grad == made.to_dense().requires_grad == (learns != "nothing")
    assert not made.detach().requires_grad
    assert not made.detach().to_dense().requires_grad
    if learns != "nothing":
        g = torch.randn(STEPS, BATCH, 4)
        leaf = {"weight": weight, "bias": bias, "spikes": dense}[learns]
        (mine,) = torch.autograd.grad((made.to_dense() * g).sum(), leaf)
        (right,) = torch.autograd.grad((F.linear(dense, weight, bias) * g).sum(), leaf)
        assert torch.allclose(mine, right)


def test_a_linear_layer_that_does_not_fit():
    spikes = SpikeTimes(times_of(), STEPS).flatten(2)
    with pytest.raises(
        ValueError, match="the spikes have 10 features, but the linear layer takes 9"
    ):
        F.linear(spikes, torch.ones(4, 9))
    with pytest.raises(ValueError, match=r"weight has shape \(10,\), but \(out, in\) is expected"):
        F.linear(spikes, torch.ones(10))
    with pytest.raises(ValueError, match=r"bias has shape \(1,\), but the linear layer has 4"):
        F.linear(spikes, torch.ones(4, 10), torch.ones(1))
    with pytest.raises(ValueError, match="weight is on meta, but the spikes is on cpu"):
        F.linear(spikes, torch.ones(4, 10, device="meta"))
    with pytest.raises(ValueError, match="bias is on meta, but the spikes is on cpu"):
        F.linear(spikes, torch.ones(4, 10), torch.ones(4, device="meta"))
    with pytest.raises(TypeError, match="weight has dtype torch.int64"):
        F.linear(spikes, torch.ones(4, 10, dtype=torch.int64))


def times_and_linear():
    return SpikeTimes(torch.randint(-1, 6, (4, 5)), 6), torch.nn.Linear(5, 7)


def test_a_current_of_weights_that_have_changed_is_refused():
    spikes, linear = times_and_linear()
    current = linear(spikes)
    copied = copy.deepcopy(current)
    with torch.no_grad():
        linear.bias.zero_()
    for use in (
        current.to_dense,
        lambda: LeakyReadout(0.9)(current),
        lambda: copy.deepcopy(current),
        lambda: copy.copy(current),
    ):
        with pytest.raises(RuntimeError, match=r"changed in place .* ahead of optimizer.step"):
            use()
    assert copied.to_dense().shape == (6, 4, 7)


def test_a_current_made_without_gradients_has_none():
    spikes, linear = times_and_linear()
    with torch.no_grad():
        current = linear(spikes)
        assert not SpikeTimes.from_dense(spikes.to_dense().requires_grad_()).requires_grad
    assert not current.requires_grad
    assert not LeakyReadout(0.9)(current).requires_grad
    assert linear(spikes).requires_grad


def test_results_are_not_written_where_they_would_be_lost():
    spikes, _ = times_and_linear()
    with pytest.raises(
        TypeError, match=r"In-place mul with out= is not supported on SpikeTimes.*x = x.mul"
    ):
        torch.mul(spikes, 5, out=spikes)


class _Falsy(nn.Module):
    def __len__(self):
        return 0

    def forward(self, x):
        return torch.cumsum(x, 0)


def test_the_warning_names_a_layer_that_is_falsy():
    spikes = SpikeTimes(torch.zeros(2, 3, dtype=torch.int8), 5)
    with pytest.warns(MaterializationWarning, match=r"cumsum in layer '0' \(_Falsy\)"):
        nn.Sequential(_Falsy())(spikes)


def test_the_warning_names_a_neuron_once():
    spikes = SpikeTimes(torch.zeros(2, 3, dtype=torch.int8), 5)
    net = nn.Sequential(nn.Linear(3, 2), SingleSpikeLeaky(0.9, init_hidden=True))
    with pytest.warns(MaterializationWarning, match=r"^layer '1' \(SingleSpikeLeaky\) does not"):
        net(spikes)


def test_a_current_is_rebuilt_from_placeholders():
    current = nn.Linear(3, 2)(SpikeTimes(torch.zeros(2, 3, dtype=torch.int8), 5))
    leaves, spec = pytree.tree_flatten(current)
    assert type(pytree.tree_unflatten([None] * len(leaves), spec)) is LazyCurrent
    with torch.no_grad():
        assert pytree.tree_unflatten(leaves, spec).requires_grad


PROPERTIES = {
    name: (lambda x, name=name: getattr(x, name))
    for name in (
        *("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_sparse_csr", "is_mkldnn"),
        *("is_quantized", "is_nested", "layout", "itemsize"),
    )
} | {
    "stride": lambda x: x.stride(),
    "stride of one": lambda x: x.stride(-1),
    "is_contiguous": lambda x: x.is_contiguous(),
    "is_complex": lambda x: x.is_complex(),
    "element_size": lambda x: x.element_size(),
    "nelement": lambda x: x.nelement(),
    "get_device": lambda x: x.get_device(),
    "torch.is_floating_point": torch.is_floating_point,
    "torch.is_complex": torch.is_complex,
    "torch.numel": torch.numel,
}


@pytest.mark.parametrize("kind", STANDING_FOR_DENSE)
def test_properties_need_no_dense_tensor(kind):
    x = STANDING_FOR_DENSE[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        found = {name: of(x) for name, of in PROPERTIES.items()}
    dense = x.to_dense().contiguous()
    assert found == {name: of(dense) for name, of in PROPERTIES.items()}


@pytest.mark.parametrize("height", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_iteration_over_input_spikes_makes_one_step_at_a_time(height):
    times = SpikeTimes(torch.tensor([[0, 3, -1], [1, 1, 3]]), 4, height=height)
    events = SpikeEvents.from_dense(times.to_dense() + 2 * times.to_dense().flip(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        for spikes in (times, events):
            steps = list(spikes)
            assert torch.equal(torch.stack(steps), spikes.to_dense())
            assert steps[0].dtype == spikes.dtype
    folded = list(times.fold())
    assert torch.equal(torch.stack(folded), times.to_dense().flatten(0, 1))


def test_iteration_keeps_a_gradient():
    dense = torch.zeros(3, 1, 2).index_put((torch.tensor([1]),), torch.ones(())).requires_grad_()
    with pytest.warns(MaterializationWarning, match="__iter__"):
        first, *_ = SpikeTimes.from_dense(dense)
    first.sum().backward()
    assert torch.equal(dense.grad[0], torch.ones(1, 2))


@pytest.mark.parametrize("num_steps", [1, 40])
def test_events_of_no_spikes_iterate(num_steps):
    silent = SpikeEvents.from_dense(torch.zeros(num_steps, 2, 3))
    assert torch.equal(torch.stack(list(silent)), torch.zeros(num_steps, 2, 3))
