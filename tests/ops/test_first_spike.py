"""First spikes are those of snn.Leaky, bit for bit in float32."""

import pytest
import snntorch as snn
import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike.functional import first_spike_time
from snn_single_spike.ops.validation import RESETS

from tests.support.devices import device_of
from tests.support.oracle import snntorch_first_spikes


def both(current, backend, **options):
    theirs, their_mem = snntorch_first_spikes(current, **options)
    options.pop("reset_delay", None)
    spk, mem = SingleSpikeLeaky(**options, backend=backend).to(device_of(backend))(
        current.to(device_of(backend))
    )
    return theirs, their_mem, spk.cpu() != 0, mem.cpu()


def with_ties(num_steps, batch, features, seed=0):
    """Currents on a coarse grid: membranes often land exactly on the threshold."""
    make = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 6, (num_steps, batch, features), generator=make) / 8


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
def test_first_spikes_equal_snntorch(beta, reset, reset_delay, backend):
    for current in (with_ties(25, 8, 40), torch.randn(25, 8, 40) * 0.4):
        theirs, their_mem, ours, mem = both(
            current, backend, beta=beta, reset_mechanism=reset, reset_delay=reset_delay
        )
        assert torch.equal(ours, theirs)
        before = (
            (theirs.cumsum(0) == 0) if not reset_delay else theirs.cumsum(0) - theirs.int() == 0
        )
        assert torch.equal(mem[before], their_mem[before])


@pytest.mark.parametrize("reset", RESETS)
def test_membrane_equals_snntorch_through_the_reset(reset, backend):
    """One strong input and no second spike: the whole membrane must be equal."""
    current = torch.zeros(12, 4, 10)
    current[3] = 1.0 + torch.rand(4, 10)
    theirs, their_mem, ours, mem = both(current, backend, beta=0.5, reset_mechanism=reset)
    assert torch.equal(ours, theirs)
    assert torch.equal(mem, their_mem) or reset == "none"
    if reset == "none":
        assert torch.equal(mem[:4], their_mem[:4])


def test_ties_occur_and_do_not_fire(backend):
    current = torch.full((2, 1, 1), 0.5)
    times = first_spike_time(current.to(device_of(backend)), 1.0, 1.0, backend=backend)
    assert times.item() == -1  # V = 0.5, 1.0: exactly at threshold, which is not above it
    theirs, _ = snntorch_first_spikes(current, beta=1.0)
    assert not theirs.any()


@given(
    num_steps=st.integers(1, 40),
    features=st.integers(1, 6),
    beta=st.floats(0, 1, width=32),
    threshold=st.floats(0.125, 2, width=32),
    reset=st.sampled_from(RESETS),
    seed=st.integers(0, 2**16),
)
def test_any_first_spike_equals_snntorch_on_the_cpu(
    num_steps, features, beta, threshold, reset, seed
):
    current = with_ties(num_steps, 2, features, seed)
    for backend in ("torch", "auto"):
        theirs, _, ours, _ = both(
            current, backend, beta=beta, threshold=threshold, reset_mechanism=reset
        )
        assert torch.equal(ours, theirs)


def test_learned_per_neuron_parameters(backend):
    beta, threshold = torch.rand(40), torch.rand(40) + 0.5
    theirs, _, ours, _ = both(with_ties(25, 8, 40), backend, beta=beta, threshold=threshold)
    assert torch.equal(ours, theirs)


def test_times_agree_with_spikes_and_stop_early(backend):
    """first_spike_time stops reading a block when all neurons of the block have fired."""
    current = torch.randn(70, 3, 11).to(device_of(backend))
    current[9] = 50.0
    current[20:] = float("nan")  # must not be read into a decision
    times = first_spike_time(current, 0.9, backend=backend)
    spk, _ = SingleSpikeLeaky(0.9, reset_mechanism="none", backend=backend).to(current.device)(
        current
    )
    assert torch.equal(times, spk.argmax(0))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_step_by_step_equals_the_whole_sequence(reset, dtype, cpu_backend):
    current = with_ties(30, 4, 20).to(dtype)
    lif = SingleSpikeLeaky(
        torch.rand(20) if dtype != torch.float64 else torch.rand(20, dtype=dtype),
        reset_mechanism=reset,
        graded_spikes_factor=2.0,
        backend=cpu_backend,
    )
    lif = lif.to(dtype) if dtype == torch.float64 else lif
    spk, mem = lif(current)
    state, num_steps, mems = None, [], []
    for x in current:
        out, state = lif.step(x, state)
        num_steps.append(out)
        mems.append(state.mem)
    assert torch.equal(torch.stack(num_steps), spk)
    assert torch.equal(torch.stack(mems).to(dtype), mem)
    assert torch.equal(state.times, first_spike_time(current, lif.beta, backend=cpu_backend))
    assert state.num_steps == 30


def test_step_refuses_a_sequence_state_of_another_shape():
    lif = SingleSpikeLeaky(0.9)
    _, state = lif.step(torch.randn(2, 3))
    with pytest.raises(ValueError, match="mem has shape"):
        lif.step(torch.randn(2, 4), state)
    with pytest.raises(ValueError, match="batch"):
        lif.step(torch.randn(3))


def test_snntorch_neuron_itself_is_unchanged():
    """The import of this package must not change snntorch.Leaky."""
    spk, mem = snn.Leaky(beta=0.9)(torch.full((2, 3), 2.0), torch.zeros(2, 3))
    assert spk.sum() == 6
    assert mem.shape == (2, 3)
