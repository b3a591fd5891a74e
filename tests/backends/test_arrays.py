"""numpy views that leave the caller's tensors as they are."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes, backends
from snn_single_spike.backends._arrays import as_numpy

from tests.support.devices import runnable
from tests.support.processes import run_in_two_processes


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(2, 3, 4),
        torch.arange(24.0, dtype=torch.float64).view(2, 3, 4)[:, 1:, ::2],
        torch.arange(6, dtype=torch.int32).view(2, 3).T,
        torch.rand(3, 1, dtype=torch.float16).expand(3, 4),
        torch.rand(5)[2:] > 0.5,
        torch.rand(()),
        torch.rand(0, 3),
        torch.rand(4, 3, requires_grad=True),
        torch._neg_view(torch.rand(3)),
        torch.rand(3, dtype=torch.complex64).conj().imag,
        torch.from_numpy(np.broadcast_to(np.ones(1), 3).copy()),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}-{tensor.dtype}",
)
def test_a_view_has_the_values_of_numpy(tensor):
    expected = tensor.detach().resolve_neg().numpy()
    view = as_numpy(tensor)
    assert view.dtype == expected.dtype
    assert view.shape == expected.shape
    assert np.array_equal(view, expected)
    if expected.size:
        assert view.flags.c_contiguous == expected.flags.c_contiguous


def test_a_view_shares_memory_and_keeps_it_alive():
    tensor = torch.zeros(1000)
    view = as_numpy(tensor)
    view[3] = 5.0
    assert tensor[3] == 5.0
    assert tensor.untyped_storage().resizable()
    part = view[3:4]
    del tensor, view
    gc.collect()
    torch.ones(1000)
    assert part[0] == 5.0


@pytest.mark.parametrize("start", [0, 3])
def test_freed_memory_is_not_read(start):
    tensor = torch.rand(4 + start)[start:]
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"\(4,\) has no memory: .* shard .* as one unit"):
        as_numpy(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_the_caller_stay_resizable(dtype):
    x = torch.rand(10, 4, 20, dtype=dtype).requires_grad_()
    grad = torch.rand(10, 4, 20, dtype=dtype)
    state = torch.promote_types(dtype, torch.float32)
    lif = SingleSpikeLeaky(torch.full((20,), 0.9, dtype=state), learn_beta=True)
    spk, mem = lif(x)
    (spk + mem).backward(grad)
    layer = nn.Sequential(SingleSpikeLinear(20, 128, 0.9), nn.Linear(128, 3), LeakyReadout(0.9))
    times = torch.randint(-1, 10, (4, 20), dtype=torch.int32)
    sparse = torch.zeros(10, 4, 20)
    sparse[0, 0, 0] = 1.0
    for spikes in (SpikeTimes(times, 10), sparse):
        layer(spikes).sum().backward()
    mine = [x, grad, spk, mem, x.grad, times, sparse, *lif.parameters(), *layer.parameters()]
    for tensor in [*mine, *lif.buffers(), *(p.grad for p in layer.parameters())]:
        assert tensor.untyped_storage().resizable(), tensor.shape
    assert spk.detach().resize_(50, 4, 20).shape[0] == 50


FSDP = """
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
mesh = torch.distributed.init_device_mesh("cpu", (2,))
def build(group):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        SingleSpikeLeaky(torch.full((8,), 0.9), init_hidden=True, learn_beta=True),
        *group(
            SingleSpikeLinear(8, 7, torch.full((1,), 0.9), learn_beta=True),
            SingleSpikeLinear(7, 5, 0.9),
            nn.Linear(5, 3),
            LeakyReadout(torch.full((3,), 0.9), learn_beta=True),
        ),
    )
one_unit = lambda *layers: [nn.Sequential(*layers)]
whole, net = build(one_unit), build(one_unit)
for layer in net:
    fully_shard(layer, mesh=mesh)
fully_shard(net, mesh=mesh)
x = torch.rand(10, 4, 6) * 3
for model in (whole, net):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
for (name, p), q in zip(net.named_parameters(), whole.parameters()):
    assert torch.allclose(p.full_tensor(), q, atol=1e-6), name
apart = build(lambda *layers: layers)
for layer in (*apart, apart):
    fully_shard(layer, mesh=mesh)
scalar = SingleSpikeLeaky(0.9, learn_beta=True)
for wrong in (lambda: apart(x), lambda: fully_shard(scalar, mesh=mesh)):
    try:
        wrong()
    except (RuntimeError, ValueError) as error:
        print(error)
torch.distributed.destroy_process_group()
print("rank", rank, "agrees")
"""


def test_sharded_parameters_train_as_whole_ones(tmp_path):
    pytest.importorskip("torch.distributed.fsdp")
    for rank, output in enumerate(run_in_two_processes(FSDP, tmp_path)):
        assert f"rank {rank} agrees" in output, output
        assert "shard the layers that pass spike times to each other" in output
        assert "doesn't support scalar parameters" in output


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", runnable("numba"))
def test_the_work_space_of_tiles_begins_with_a_cache_line(backend, dtype):
    """Else every vector of a loop touches two lines."""
    module = backends.load(backend, "linear")
    space = module.work_space
    made = [*module._scratch(dtype), space.empty((3, 16), dtype), space.zeros((5, 16), dtype)]
    assert not any(array.ctypes.data % 64 for array in made)
    assert not made[0].any()
    assert [array.shape[-1] for array in made] == [128, 128, 128, 16, 16]
