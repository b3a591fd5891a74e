"""The choice between neurons that fire and others, and impulses of neurons at steps far apart."""

import pytest
import torch

from snn_single_spike import SingleSpikeLinear, SpikeTimes
from snn_single_spike.ops.crossing import select

from tests.support.devices import runnable

SPECIAL = [0.0, -0.0, 1.5, float("inf"), -float("inf"), float("nan")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("other", [0.0, -2.5, float("nan"), "tensor"])
@pytest.mark.parametrize("repeats", [1, 300])
def test_select_is_where(repeats, other, dtype):
    chosen = torch.tensor(SPECIAL, dtype=dtype).repeat(6 * repeats)
    if other == "tensor":
        other = torch.tensor(SPECIAL, dtype=dtype).repeat_interleave(6).repeat(repeats)
    for mask in (torch.rand(36 * repeats) < 0.5, chosen.isnan(), chosen > 0):
        expected = torch.where(mask, chosen, other)
        with torch.no_grad():
            found = select(mask, chosen, other)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found.signbit(), expected.signbit())


def test_select_is_recorded():
    given = torch.tensor([1.0, 2.0], requires_grad=True)
    select(torch.tensor([True, False]), given.square()).sum().backward()
    assert given.grad.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("delay", [None, 1.4])
@pytest.mark.parametrize("backend", runnable("numba"))
def test_impulses_at_steps_far_apart(backend, delay):
    """Lists of neurons by their step, in jumps over several words of bits."""
    times = torch.tensor([[3, 131, 250, -1], [0, 63, 64, 128], [-1, -1, -1, 299]])
    found = {}
    for chosen in (backend, "torch"):
        torch.manual_seed(3)
        layer = SingleSpikeLinear(
            4, 40, 0.98, gradient="spike_time", delay=delay, learn_delay=delay is not None,
            backend=chosen,
        )  # fmt: skip
        with torch.no_grad():
            layer.weight.mul_(4)
        out = layer(SpikeTimes(times, 300))
        weight = torch.linspace(-1, 2, 300)[:, None, None]
        (out.to_dense() * weight).sum().add(0.01 * out.interpolated_times.sum()).backward()
        found[chosen] = [out.times, *(parameter.grad for parameter in layer.parameters())]
    fired = found["torch"][0]
    assert 0.2 < (fired >= 0).float().mean() < 0.9
    assert torch.equal(found[backend][0], fired)
    for ours, expected in zip(found[backend][1:], found["torch"][1:], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
