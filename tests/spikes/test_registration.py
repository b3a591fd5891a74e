"""torch knows spikes: pytree nodes, DataLoader, pinned memory, torch.load."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from snn_single_spike import SingleSpikeLinear, SpikeEvents, SpikeTimes
from snn_single_spike.spikes import LazyCurrent

STEPS = 12


def times(**options):
    make = torch.Generator().manual_seed(0)
    return SpikeTimes(torch.randint(-1, STEPS, (4, 2, 3), generator=make), STEPS, **options)


MADE = {
    "times": times,
    "graded times": lambda: times(height=torch.tensor([0.5, 1.0, 2.0]), dtype=torch.float32),
    "double times": lambda: times(dtype=torch.float64),
    "events": lambda: SpikeEvents.from_dense(times().to_dense()),
    "graded events": lambda: SpikeEvents.from_dense(2.5 * times().to_dense()),
}


def assert_same(made, right):
    assert type(made) is type(right)
    assert made.dtype == right.dtype
    assert made.shape == right.shape
    assert torch.equal(made.to_dense(), right.to_dense())


@pytest.mark.parametrize("name", MADE)
def test_pytree_nodes(name):
    for spikes in (MADE[name](), MADE[name]().fold()):
        leaves, tree = pytree.tree_flatten({"a": [spikes, 1]})
        assert all(leaf is None or isinstance(leaf, (torch.Tensor, int)) for leaf in leaves)
        assert_same(pytree.tree_unflatten(leaves, tree)["a"][0], spikes)
        keyed, _ = pytree.tree_flatten_with_path(spikes)
        assert any(str(path[-1]) in (".times", "times") for path, _ in keyed)
        other = pytree.treespec_loads(pytree.treespec_dumps(pytree.tree_structure(spikes)))
        assert_same(pytree.tree_unflatten(pytree.tree_leaves(spikes), other), spikes)


def test_a_tree_keeps_the_gradient():
    leaf = times(dtype=torch.float64).to_dense().requires_grad_()
    spikes = SpikeTimes.from_dense(leaf)
    mapped = pytree.tree_map(lambda x: x, spikes)
    mapped.to_dense().sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_a_current_is_a_node():
    spikes = times().flatten(2)
    linear = torch.nn.Linear(6, 5)
    current = linear(spikes)
    leaves, tree = pytree.tree_flatten(current)
    assert any(leaf is linear.weight for leaf in leaves)
    made = pytree.tree_unflatten(leaves, tree)
    assert type(made) is LazyCurrent
    assert torch.equal(made.to_dense(), current.to_dense())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", MADE)
def test_a_data_loader_collates(name, workers):
    whole = MADE[name]()
    samples = [(whole.samples(slice(i, i + 1)), i) for i in range(whole.batch)]
    batches = list(DataLoader(samples, batch_size=3, num_workers=workers))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3]]
    assert_same(batches[0][0], whole.samples(slice(0, 3)))
    assert_same(batches[1][0], whole.samples(slice(3, 4)))


def test_samples_that_do_not_fit_each_other():
    first = times()
    for other, message in (
        (
            SpikeTimes(first.times, STEPS + 1),
            r"different num_steps, \[12, 13\]: construct all samples with the same",
        ),
        (SpikeTimes(first.times[:, :1], STEPS), "different features"),
        (times(dtype=torch.float64), "different dtype"),
        (times(height=torch.tensor(2.0)), "different heights"),
    ):
        with pytest.raises(ValueError, match=message):
            next(iter(DataLoader([first, other], batch_size=2)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for a GPU")
@pytest.mark.parametrize("name", MADE)
def test_pinned_memory(name):
    whole = MADE[name]()
    samples = [whole.samples(slice(i, i + 1)) for i in range(whole.batch)]
    (batch,) = DataLoader(samples, batch_size=4, pin_memory=True)
    assert all(x.is_pinned() for x in pytree.tree_leaves(batch) if isinstance(x, torch.Tensor))
    assert_same(batch, whole)


@pytest.mark.parametrize("name", MADE)
def test_a_loader_that_pins_makes_nothing_dense(name, monkeypatch):
    """`pin_memory` is called on the spikes, and pins their tensors."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    spikes = MADE[name]()
    assert_same(spikes.pin_memory(), spikes)
    tensors = [x for x in pytree.tree_leaves(spikes) if isinstance(x, torch.Tensor)]
    assert len(pinned) == len(tensors)


@pytest.mark.parametrize("name", MADE)
def test_weights_only_loads_spikes(name):
    spikes, file = MADE[name](), io.BytesIO()
    torch.save({"spikes": spikes, "folded": spikes.fold()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_same(loaded["spikes"], spikes)
    assert_same(loaded["folded"], spikes.fold())


def test_copies_have_no_gradient():
    layer = SingleSpikeLinear(6, 5, 0.9, learn_graded_spikes_factor=True)
    spikes = layer(times().flatten(2))
    assert spikes.requires_grad
    for other in (pickle.loads(pickle.dumps(spikes)), copy.deepcopy(spikes)):
        assert not other.requires_grad
        assert_same(other, spikes.detach())
