"""Offsets beyond 2**31 elements. The system does not allocate memory that is never written."""

import pytest
import torch

from tests.support.devices import runnable

pytestmark = pytest.mark.untouched

STEPS, LANES, USED = 3, 1 << 30, 8


def reserved(count, dtype):
    """``count`` tensors (STEPS, LANES)."""
    size = count * dtype.itemsize * STEPS * LANES
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < size:
        pytest.skip(f"less than {size >> 30} GB of GPU memory free")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return [torch.empty(STEPS, LANES, dtype=dtype, device=device) for _ in range(count)]
    except RuntimeError as error:
        pytest.skip(f"cannot reserve address space: {error}")


@pytest.fixture
def rows():
    """current, spikes, mem of 3 x 2**30 float16, with a current in a few lanes at the end."""
    made = reserved(3, torch.float16)
    made[0][:, :USED] = torch.tensor([0.5, 0.75, 0.25], device=made[0].device)[:, None]
    return made


@pytest.mark.parametrize("backend", runnable("triton"))
def test_kernel_offsets(backend, rows):
    import triton.language as tl

    from snn_single_spike.kernels.triton.neuron import neuron_backward_kernel, neuron_forward_kernel

    current, spikes, mem = rows
    one = torch.ones(1, device=current.device)
    times = torch.zeros(USED, dtype=torch.int64, device=current.device)
    sizes = (STEPS, LANES, 1, 1, 1, 1, 1, 1)
    options = {
        "CLAMP": True,
        "RESET": "none",
        "STATE": tl.float32,
        "BLOCK": USED,
        "U": 2,
        "num_warps": 1,
    }
    neuron_forward_kernel[(1,)](
        current,
        one,
        one,
        one,
        *(None,) * 7,
        spikes,
        mem,
        *(None, None),
        times,
        *(None,) * 5,
        *sizes,
        **options,
    )
    assert times.tolist() == [1] * USED
    assert spikes[:, :USED].sum(1).tolist() == [0, USED, 0]
    assert mem[:, 0].tolist() == [0.5, 1.25, 1.5]
    # The gradient overwrites the current. The gradient to the spikes is the spikes tensor.
    neuron_backward_kernel[(1,)](
        mem, *(None,) * 4, one, one, one, *(None,) * 7, times, spikes, *(None,) * 6,
        current, *(None,) * 9, *sizes, LANES, 0, 0, 0, *(0.0,) * 4,
        RULE="masked", SURROGATE="straight_through_estimator", **options,
    )  # fmt: skip
    assert current[:, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("backend", runnable("triton"))
def test_kernel_offsets_in_weights(backend):
    from snn_single_spike.kernels.triton.linear import linear_first_spikes_dot_kernel

    (weight,) = reserved(1, torch.float32)
    lanes = torch.full((USED,), 0.5, device=weight.device)
    times = torch.full((1, STEPS), -1, dtype=torch.int32, device=weight.device)
    times[0, -1] = 1  # of the input whose weights begin at element 2**31
    first_spikes = torch.empty(1, USED, dtype=torch.int32, device=weight.device)
    weight[-1, :USED] = 1.0
    linear_first_spikes_dot_kernel[(1, 1)](
        *(times, weight, 0 * lanes, lanes, lanes, first_spikes, 3, STEPS, LANES),
        PRECISION="ieee", STEPS=16, UNITS=16, BLOCK=USED, num_warps=4,
    )  # fmt: skip
    assert first_spikes.tolist() == [[1] * USED]


@pytest.mark.parametrize("backend", runnable("numba"))
def test_numba_offsets(backend):
    import numpy as np

    from snn_single_spike.kernels.numba.arguments import ForwardOutputs, Neuron
    from snn_single_spike.kernels.numba.compiling import RESETS
    from snn_single_spike.kernels.numba.neuron_forward import neuron_forward_loop
    from snn_single_spike.kernels.numba.simd import LANES as VECTOR

    used = VECTOR + 3  # with a vector that begins inside of another

    current = torch.empty(STEPS, LANES).numpy()
    current[:, :used] = np.array([[0.5], [0.75], [0.25]], np.float32)
    spikes, mem = torch.empty(STEPS, LANES).numpy(), torch.empty(STEPS, LANES).numpy()
    one, none1 = np.ones(1, np.float32), np.empty(0, np.float32)
    none2 = np.empty((0, 0), np.float32)
    times = np.zeros(used, np.int64)
    absent = dict.fromkeys(("alpha", "gain", "feedback"))
    absent |= dict.fromkeys(("mem_0", "syn_0", "inh_0"), none1)
    absent["last_0"] = np.empty(0, np.int64)
    options = {"clamp": True, "reset": RESETS["none"], "refractory": None}
    neuron = Neuron(one, one, one, **absent, **options)
    phase, when = np.empty((0, 0), np.uint8), np.empty(0, np.int64)
    out = ForwardOutputs(spikes, mem, *(none2,) * 4, times=times, phase=phase, when=when)
    given = current, tuple(neuron), tuple(out)
    neuron_forward_loop(0, VECTOR, *given)
    neuron_forward_loop(used - VECTOR, used, *given)
    assert times.tolist() == [1] * used
    assert spikes[:, :used].sum(1).tolist() == [0, used, 0]
    assert mem[:, 0].tolist() == [0.5, 1.25, 1.5]
