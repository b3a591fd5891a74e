"""States of the last step: attributes, where snnTorch has buffers."""

import copy
import pickle

import pytest
import torch
from snntorch import utils
from torch import nn
from torch.optim.swa_utils import AveragedModel

from snn_single_spike import SingleSpikeConv1d, SingleSpikeLinear, SpikeTimes, convert, revert

from tests.support.neurons import KINDS, LEAKY
from tests.support.processes import run_in_two_processes

KIND = {**KINDS, "Leaky": LEAKY}
ARGUMENTS = {
    "Alpha": {"alpha": 0.9, "beta": 0.8},
    "Synaptic": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.9},
    "RLeaky": {"beta": 0.9, "all_to_all": False},
    "Leaky": {"beta": 0.9},
}


def neuron(kind, **options):
    return KIND[kind].ours(**ARGUMENTS[kind], **options)


def theirs(kind, **options):
    return KIND[kind].theirs(**ARGUMENTS[kind], **options)


def current(batch=3):
    return torch.rand(7, batch, 5) * 2


every = pytest.mark.parametrize("kind", KIND)


@every
def test_states_are_no_buffers_and_checkpoints_stay_those_of_snntorch(kind):
    ours, original = neuron(kind), theirs(kind)
    states = KIND[kind].states
    ours(current())
    names = dict(ours.named_buffers())
    assert not set(states) & set(names)
    assert set(names) == set(dict(original.named_buffers())) - set(states)
    assert list(ours.state_dict()) == list(original.state_dict())
    ours.load_state_dict(original.state_dict(), strict=True)
    original.load_state_dict(ours.state_dict(), strict=True)


@every
def test_states_move_and_copy_with_the_module(kind):
    net = nn.Sequential(neuron(kind))
    net(current())
    states = KIND[kind].states
    before = {name: getattr(net[0], name) for name in states}
    assert all(state.shape == (3, 5) for state in before.values())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        for name in states:
            assert torch.equal(getattr(other[0], name), before[name])
            assert getattr(other[0], name) is not before[name]
        other.double()
        assert {getattr(other[0], name).dtype for name in states} == {torch.float64}
        other.to("meta")
        assert {getattr(other[0], name).device.type for name in states} == {"meta"}
    utils.reset(net)
    assert all(torch.equal(getattr(net[0], name), torch.zeros(3, 5)) for name in states)
    net[0].reset_mem()
    net(current(2))
    assert net[0].mem.shape == (2, 5)


@pytest.mark.parametrize(
    "reset",
    [
        lambda lif: lif.reset_mem(),
        lambda lif: type(lif).reset_hidden(),
        lambda lif: utils.reset(nn.Sequential(lif)),
    ],
    ids=["reset_mem", "reset_hidden", "utils.reset"],
)
def test_a_reset_neuron_starts_the_next_sample(reset):
    lif, x = neuron("Leaky"), current()
    expected = lif(x)[0]
    assert lif.double().float().state is not None
    reset(lif)
    assert lif.state is None
    assert torch.equal(lif(x, state=lif.state)[0], expected)


@pytest.mark.parametrize(
    "layer", [SingleSpikeLinear(5, 2, 0.9), SingleSpikeConv1d(1, 2, 2, beta=0.9)]
)
def test_a_call_from_spike_times_leaves_no_state_of_an_earlier_call(layer):
    dense = torch.rand(4, 3, 5) if isinstance(layer, SingleSpikeLinear) else torch.rand(4, 3, 1, 5)
    layer(dense)
    assert layer.state.num_steps == 4
    layer(SpikeTimes.from_dense((dense == dense.amax(0)).float()))
    with pytest.raises(RuntimeError, match="no state was kept"):
        _ = layer.state


@every
def test_revert_makes_buffers_again(kind):
    model = nn.Sequential(nn.Linear(5, 5), theirs(kind, init_hidden=True))
    fast = convert(model)
    fast(current())
    assert fast[1].mem.shape == (3, 5)
    back = revert(fast)
    assert set(dict(back.named_buffers())) == set(dict(model.named_buffers()))
    for name in KIND[kind].states:
        assert back[1]._buffers[name].shape == (0,)
        assert name not in vars(back[1])
    assert back[1]._non_persistent_buffers_set == model[1]._non_persistent_buffers_set
    x = torch.rand(3, 5)
    assert torch.equal(back(x), model(x))
    assert vars(back[1]).keys() == vars(model[1]).keys()


@pytest.mark.parametrize("kind", [*KIND, "Linear"])
def test_an_average_of_models_with_its_buffers(kind):
    layer = SingleSpikeLinear(5, 4, 0.9) if kind == "Linear" else neuron(kind, init_hidden=True)
    net = nn.Sequential(layer, nn.BatchNorm1d(4 if kind == "Linear" else 5))
    average = AveragedModel(net, use_buffers=True)
    for batch in (3, 2, 4):
        net[0](current(batch))
        average.update_parameters(net)
    assert average.module[0](current(2)).shape[1] == 2


DDP = """
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SingleSpikeSynaptic
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), SingleSpikeLeaky(0.9, init_hidden=True, learn_beta=True),
                    nn.Linear(8, 8), SingleSpikeSynaptic(0.9, 0.8, init_hidden=True),
                    SingleSpikeLinear(8, 5, 0.9), nn.Linear(5, 3), LeakyReadout(0.9))
parallel = DistributedDataParallel(net)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for batch in (4, 4 - rank, 4):  # the last batch of an epoch is smaller on one process
    optimizer.zero_grad()
    parallel(torch.rand(10, batch, 6)).square().mean().backward()
    optimizer.step()
    assert net[1].mem.shape == (batch, 8), net[1].mem.shape
total = torch.cat([p.detach().flatten() for p in net.parameters()])
summed = total.clone()
torch.distributed.all_reduce(summed)
assert torch.allclose(summed, 2 * total)
torch.distributed.destroy_process_group()
print("rank", rank, "agrees")
"""


def test_processes_with_batches_of_different_sizes(tmp_path):
    for rank, output in enumerate(run_in_two_processes(DDP, tmp_path)):
        assert f"rank {rank} agrees" in output, output
