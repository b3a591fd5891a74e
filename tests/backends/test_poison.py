"""The poisoned memory of the tests: an output that a kernel does not write fails a test."""

import pytest
import torch

from snn_single_spike import SpikeTimes, backends
from snn_single_spike.backends import memory
from snn_single_spike.functional import single_spike_leaky, single_spike_linear

from tests.support.devices import device_of, runnable

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int32, torch.int64)
ALLOCATIONS = {
    "torch": lambda dtype: torch.empty(5, dtype=dtype),
    "of another": lambda dtype: torch.zeros(1, dtype=dtype).new_empty(5),
    "like another": lambda dtype: torch.empty_like(torch.zeros(5, dtype=dtype)),
    "small": lambda dtype: memory.empty((5,), dtype=dtype, device=torch.device("cpu")),
    "kept": lambda dtype: memory.empty((3, 1 << 18), dtype=dtype, device=torch.device("cpu")),
}


@pytest.mark.parametrize("dtype", FLOATING + INTEGER, ids=str)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_memory_is_poisoned(allocation, dtype):
    for _ in range(2):  # new, and kept from the last time
        tensor = ALLOCATIONS[allocation](dtype)
        if allocation == "kept":
            assert tensor.nbytes >= memory._MIN_BYTES
        assert (tensor.isnan() if dtype.is_floating_point else tensor > 1 << 24).all()
        tensor.zero_()
        del tensor


@pytest.mark.parametrize("backend", runnable("numba"))
def test_the_scratch_of_launches_is_poisoned(backend):
    module = backends.load(backend, "linear")
    assert any(torch.from_numpy(scratch).isnan().all() for scratch in module._scratch("float32"))


@pytest.mark.parametrize("size", [3, 60_000], ids=["small", "kept"])
def test_a_membrane_that_a_backend_leaves_unwritten(size, backend, monkeypatch):
    """A planted error: the last output of the forward pass is not written."""
    module = backends.load(backend, "neuron")
    real = module.neuron_forward

    def forgetful(current, neuron, out):
        real(current, neuron, out._replace(mem=torch.zeros_like(out.mem)))

    current = torch.rand(5, 1, size, device=device_of(backend))
    good = single_spike_leaky(current, 0.9, backend=backend)
    monkeypatch.setattr(module, "neuron_forward", forgetful)
    found = single_spike_leaky(current, 0.9, backend=backend)
    assert torch.equal(found.spikes, good.spikes)
    assert good.mem.isfinite().all()
    assert found.mem.isnan().all()


def test_a_crossing_that_a_backend_leaves_unwritten(cpu_backend, monkeypatch):
    """A planted error: an output of linear layers from spike times is not written."""
    module = backends.load(cpu_backend, "linear")
    real = module.linear_first_spikes

    def forgetful(events, num_steps, layer, times, crossing, sensitivity, when):
        real(events, num_steps, layer, times, torch.zeros_like(crossing), sensitivity, when)

    def run():
        made = single_spike_linear(
            spikes, torch.rand(4, 6), None, 0.9, gradient="spike_time", backend=cpu_backend
        )
        return made.interpolated_times

    spikes = SpikeTimes(torch.randint(1, 20, (3, 6)), 20)
    assert run().isfinite().all()
    monkeypatch.setattr(module, "linear_first_spikes", forgetful)
    assert run().isnan().any()
