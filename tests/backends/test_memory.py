"""Operators write requested outputs only, and save what the backward pass reads."""

import copy
import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from snntorch import surrogate

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike import memory as public
from snn_single_spike.backends import memory
from snn_single_spike.functional import first_spike_time, leaky_readout, single_spike_leaky
from snn_single_spike.ops import _library
from snn_single_spike.ops.validation import GRADIENT_RULES

STEPS, BATCH, NEURONS = 50, 4, 100
ROWS = STEPS * BATCH * NEURONS


@pytest.fixture
def written(monkeypatch):
    """Sizes of all tensors that the operators allocate."""
    sizes = []

    def recording(shape, **options):
        out = memory.empty(shape, **options)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(_library, "empty", recording)
    return sizes


def saved_by(call):
    """Elements of the (T, M) tensors that autograd keeps for the backward pass."""
    tensors = {}

    def pack(tensor):
        tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    return [t for t in tensors.values() if t.numel() >= ROWS], out


def current(**options):
    return torch.randn(STEPS, BATCH, NEURONS, **options)


@pytest.mark.parametrize("gradient", ["masked", "spike_time"])
def test_times_only_writes_nothing_of_size_T(gradient, written, cpu_backend):
    first_spike_time(current(requires_grad=True), 0.9, gradient=gradient, backend=cpu_backend)
    assert max(written) <= 2 * BATCH * NEURONS


def test_readout_writes_and_saves_nothing_of_size_T(written, cpu_backend):
    beta = torch.tensor(0.9, requires_grad=True)
    x = current(requires_grad=True)
    saved, value = saved_by(lambda: leaky_readout(x, beta, backend=cpu_backend))
    assert max(written) == BATCH * NEURONS
    assert not saved
    value.sum().backward()


def test_inference_writes_only_what_is_returned(written, cpu_backend):
    lif = SingleSpikeLeaky(0.9, learn_beta=True, init_hidden=True, backend=cpu_backend)
    with torch.no_grad():
        lif(current())
    assert sum(size == ROWS for size in written) == 1
    written.clear()
    with torch.no_grad():
        single_spike_leaky(current(), 0.9, return_spikes=False, backend=cpu_backend)
    assert sum(size == ROWS for size in written) == 1


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_backward_saves_at_most_one_tensor(rule, cpu_backend):
    x, beta = current(requires_grad=True), torch.tensor(0.9, requires_grad=True)
    saved, out = saved_by(lambda: single_spike_leaky(x, beta, gradient=rule, backend=cpu_backend))
    assert len(saved) == 1
    assert saved[0].data_ptr() == out.mem.data_ptr()  # the returned tensor itself


def test_membrane_is_saved_in_the_input_type(cpu_backend):
    x = current(requires_grad=True, dtype=torch.bfloat16)
    saved, _ = saved_by(
        lambda: single_spike_leaky(x, 0.9, return_mem=False, recompute=False, backend=cpu_backend)
    )
    assert [t.dtype for t in saved] == [torch.bfloat16]


@pytest.mark.parametrize("recompute", [None, True])
def test_recompute_saves_the_current_and_writes_no_membrane(recompute, written, cpu_backend):
    if cpu_backend == "torch":
        recompute = True  # plain torch saves by default
    x = current(requires_grad=True)
    saved, out = saved_by(
        lambda: single_spike_leaky(
            x, 0.9, return_mem=False, recompute=recompute, backend=cpu_backend
        )
    )
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]
    assert sum(size == ROWS for size in written) == 1  # the spikes
    written.clear()
    out.spikes.sum().backward()
    assert sum(size == ROWS for size in written) == 1  # the gradient, and no work space beside


def test_exact_times_with_fixed_beta_save_nothing_of_size_T(cpu_backend):
    x = current(requires_grad=True)
    saved, times = saved_by(
        lambda: first_spike_time(x, 0.9, gradient="spike_time", backend=cpu_backend)
    )
    assert not saved
    times.sum().backward()
    assert x.grad.abs().sum() > 0


def test_membrane_alone_with_fixed_beta_saves_nothing_of_size_T(cpu_backend):
    x = current(requires_grad=True)
    saved, out = saved_by(
        lambda: single_spike_leaky(x, 0.9, return_spikes=False, backend=cpu_backend)
    )
    assert not saved
    out.mem.sum().backward()


def test_gradients_not_needed_are_not_computed(written, cpu_backend):
    beta = torch.full((NEURONS,), 0.9, requires_grad=True)
    out = single_spike_leaky(current(), beta, backend=cpu_backend)
    written.clear()
    out.spikes.sum().backward()
    assert max(written) == BATCH * NEURONS  # the gradient of beta; none of the current


def test_own_surrogates_save_what_autograd_needs_and_still_work(cpu_backend):
    x = current(requires_grad=True)
    out = single_spike_leaky(x, 0.9, spike_grad=surrogate.SSO(), backend=cpu_backend)
    out.spikes.sum().backward()
    assert x.grad.abs().sum() > 0


LARGE = {"dtype": torch.float32, "device": torch.device("cpu")}


def test_large_tensors_are_ordinary_tensors():
    out = memory.empty((3, 1 << 20), **LARGE)
    assert out.fill_(1.0).sum().item() == 3 << 20
    assert out.is_contiguous()
    assert not out._is_view()
    assert copy.deepcopy(out).equal(out)
    file = io.BytesIO()
    torch.save(out, file)
    file.seek(0)
    assert torch.load(file).equal(out)


def test_freed_memory_is_lent_again_and_never_while_in_use():
    memory.release()
    first = memory.empty((2, 1 << 20), **LARGE)
    view, address = first[1:], first.data_ptr()
    del first
    second = memory.empty((2, 1 << 20), **LARGE)  # the view still holds the first block
    assert second.data_ptr() != address
    del view
    assert memory.empty((2, 1 << 20), **LARGE).data_ptr() == address
    third = memory.empty((1 << 20,), **LARGE)  # half the size fits as well
    assert third.data_ptr() == address


def test_unused_memory_is_bounded_and_can_be_released():
    memory.release()
    for rows in range(1, 30):
        memory.empty((rows, 1 << 20), **LARGE)
    blocks = memory._blocks
    assert sum(map(len, blocks._free)) <= blocks._most_lent <= 30 * (4 << 20)
    memory.release()
    assert not blocks._free


def test_results_that_are_kept_occupy_their_size():
    memory.release()
    lent = memory._blocks._lent
    for _ in range(2):  # new blocks, and blocks that are lent again
        kept = [memory.empty((150_000 + 1000 * i,), **LARGE) for i in range(400)]
        size = sum(tensor.nbytes for tensor in kept)
        assert size <= memory._blocks._lent - lent <= 1.01 * size + memory._MOST_SPARE
        del kept
    memory.release()
    assert memory._blocks._spare <= memory._blocks._lent


def test_the_allocator_of_torch(monkeypatch):
    assert public.allocator() == "reuse"
    first, second = (memory.empty((1 << 20,), **LARGE) for _ in range(2))
    del first
    public.set_allocator("torch")
    try:
        assert public.allocator() == "torch"
        assert not memory._blocks._free
        monkeypatch.setattr(memory._Blocks, "lend", None)
        third = memory.empty((1 << 20,), **LARGE)
        assert third.untyped_storage().resizable()
        del second  # lent before the switch: it is not kept
        memory.empty((1 << 20,), **LARGE)
        assert not memory._blocks.holds_unused()
    finally:
        public.set_allocator("reuse")
    with pytest.raises(ValueError, match="allocator='malloc' is not known: use 'reuse' or 'torch'"):
        public.set_allocator("malloc")


def test_the_allocator_in_the_environment():
    script = "from snn_single_spike import memory; print(memory.allocator())"

    def run(value):
        environment = os.environ | {"SNN_SINGLE_SPIKE_MEMORY": value}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run("torch").stdout.strip() == "torch"
    assert "SNN_SINGLE_SPIKE_MEMORY='none' is not known: use" in run("none").stderr


NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # Lightning searches for this text


def test_out_of_memory_is_the_error_of_torch():
    for elements in (1 << 45, 1 << 60):
        with pytest.raises(RuntimeError) as raised:
            memory.empty((elements,), **LARGE)
        with pytest.raises(RuntimeError) as expected:
            torch.empty((elements,), **LARGE)
        assert str(raised.value) == str(expected.value)
        assert elements > 1 << 45 or NO_MEMORY in str(raised.value)


def test_unused_memory_makes_room(monkeypatch):
    memory.release()
    memory.empty((1 << 20,), **LARGE)
    given = memory._map

    def full_until_room(size):
        if memory._blocks._free:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return given(size)

    monkeypatch.setattr(memory, "_map", full_until_room)
    assert memory.empty((3 << 20,), **LARGE).numel() == 3 << 20
    assert not memory._blocks._free


def test_no_memory_for_the_gradients_of_a_linear_layer():
    space = pytest.importorskip("snn_single_spike.backends.numba._work_space")
    with pytest.raises(RuntimeError, match=NO_MEMORY):
        space.zeros((1 << 45,), "float32")


def test_threads_never_share_a_block():
    def use(value):
        for _ in range(30):
            out = memory.empty((1 << 20,), **LARGE).fill_(value)
            if not (out == value).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(8)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_memory_of_its_own():
    out = memory.empty((1 << 20,), **LARGE)
    out.numpy()[:] = 1.0
    child = os.fork()
    if not child:
        out.numpy()[:] = 2.0
        os._exit(0)
    os.waitpid(child, 0)
    assert (out.numpy() == 1.0).all()


def test_outputs_may_be_edited_in_place():
    current = torch.randn(100, 16, 1000, requires_grad=True)
    spikes, mem, _ = single_spike_leaky(current, 0.9, recompute=True)
    spikes.mul_(2.0)
    mem.add_(1.0)
    (spikes.sum() + mem.sum()).backward()
    assert current.grad.isfinite().all()


def test_a_network_with_large_layers_trains_alike_with_and_without_kept_memory(monkeypatch):
    def train():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(20, 1500),
            SingleSpikeLeaky(0.9, init_hidden=True, learn_beta=True),
            torch.nn.Linear(1500, 1500),
            SingleSpikeLeaky(0.9, init_hidden=True),
        )
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(4):
            loss = net(torch.rand(50, 16, 20) * 2).sum(0).var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    kept = train()
    monkeypatch.setattr(_library, "empty", torch.empty)
    for mine, right in zip(kept, train(), strict=True):
        assert torch.equal(mine, right)
