"""Memory, threads and batch pieces of linear layers from spike times."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, SpikeTimes, backends
from snn_single_spike.backends.torch import _layers
from snn_single_spike.functional import spike_count
from snn_single_spike.ops.validation import GRADIENT_RULES

from tests.support.devices import device_of, runnable
from tests.support.linear_modules import inputs
from tests.support.linear_problems import assert_close, on, problem, run


class Largest(TorchDispatchMode):
    """Records the largest storage that an operation of torch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if type(x) is Tensor:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("backend", runnable("numba"))
def test_nothing_of_the_size_of_time_under_spike_time(backend):
    num_steps = 1 << 15
    times = torch.tensor([[100, 101, num_steps - 1, -1], [7, 8, 20000, 20000]])
    layer = SingleSpikeLinear(4, 3, 0.9, gradient="spike_time", backend=backend, learn_beta=True)
    second = SingleSpikeLinear(3, 3, 0.9, gradient="spike_time", backend=backend)
    for module in (layer, second):  # two spikes of a sample merge
        module.weight.data.fill_(0.6)
        module.bias.data.zero_()
    output = nn.Linear(3, 2)
    spikes = SpikeTimes(times, num_steps)
    with Largest() as largest:
        hidden = second(layer(spikes))
        value = LeakyReadout(0.9, backend=backend)(output(hidden)).sum()
        (value + hidden.interpolated_times.sum()).backward()
        assert largest.bytes < num_steps
        assert layer.weight.grad.any()
        assert layer.beta.grad.any()
        assert spike_count(hidden, per="sample").tolist() == [3, 3]
        hidden.to_dense()
        assert largest.bytes >= num_steps  # it does see


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("backend", runnable("torch", "numba"))
def test_nothing_of_the_size_of_time_is_kept(rule, backend):
    num_steps, kept = 2000, []

    def keep(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    layer = SingleSpikeLinear(4, 3, 0.9, gradient=rule, backend=backend, learn_beta=True)
    output = nn.Linear(3, 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = layer(SpikeTimes(torch.tensor([[0, 1999, 5, -1]]), num_steps))
        LeakyReadout(0.9, learn_beta=True, backend=backend)(output(hidden))
    assert kept
    assert max(kept) < num_steps


def test_two_runs_are_equal_bit_for_bit(linear_backend):
    """More lanes and samples than one thread processes."""
    given = on(device_of(linear_backend), problem(20, 21, (30, 270, 4), dtype=torch.float32))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for rule in ("masked", "spike_time"):
            one, two = (run("times", given, (rule,), backend=linear_backend) for _ in range(2))
            assert torch.equal(one[0][0], two[0][0])
            for mine, right in zip(one[1], two[1], strict=True):
                assert torch.equal(mine, right)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("sizes", [(30, 140, 4), (20, 5, 4)], ids=["tiles", "samples"])
def test_threads_change_nothing(sizes, rule, linear_backend):
    given = on(device_of(linear_backend), problem(30, 37, sizes))
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            runs.append(run("times", given, (rule,), backend=linear_backend))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert_close(other, runs[0], 1e-10)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_pieces_of_a_batch_change_nothing(rule, monkeypatch, linear_backend):
    given = on(device_of(linear_backend), problem(30, 11, (20, 140, 130, 4), dtype=torch.float64))
    expected = run("times", given, (rule, rule), backend=linear_backend)

    if linear_backend == "torch":
        monkeypatch.setattr(_layers, "_ELEMENTS", 30 * 140 * 3)
    else:
        module = backends.load(linear_backend, "linear")
        monkeypatch.setattr(module, "_ROWS_BYTES", 99_000, raising=linear_backend != "triton")
    assert_close(run("times", given, (rule, rule), backend=linear_backend), expected, 1e-10)


def test_graphs_are_freed():
    gc.collect()
    gc.disable()
    try:
        net = nn.Sequential(
            SingleSpikeLinear(12, 9, 0.9),
            nn.Linear(9, 8),
            SingleSpikeLeaky(0.9, spike_format="times"),
        )
        net = net.double()
        spikes, mem = net(inputs())
        (mem.sum() + spikes.to_dense().sum()).backward()
        import weakref

        gone = weakref.ref(spikes), weakref.ref(mem)
        del spikes, mem
        assert [x() for x in gone] == [
            None,
            None,
        ]  # without the garbage collector
    finally:
        gc.enable()
