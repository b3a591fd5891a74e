"""Counts of spikes, by neuron and by sample."""

import pytest
import torch

from snn_single_spike import SpikeTimes
from snn_single_spike.functional import spike_count


@pytest.mark.parametrize("per", ["neuron", "sample"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_spike_count(per, dtype):
    times = torch.tensor([[[0, -1], [3, 2]], [[-1, -1], [3, 0]], [[-1, -1], [1, -1]]])
    spikes = SpikeTimes(times, 4, dtype=dtype)
    expected = [1, 0, 3, 2] if per == "neuron" else [3, 2, 1]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    leaf = spikes.to_dense().requires_grad_()
    high = SpikeTimes(times, 4, height=torch.tensor(2.0, dtype=dtype))
    for some, factor in ((spikes, 1), (leaf, 1), (SpikeTimes.from_dense(leaf), 1), (high, 2)):
        counts = spike_count(some, per)
        assert counts.dtype == state
        assert counts.tolist() == [factor * n for n in expected]
        if some.requires_grad:
            scale = torch.arange(1.0, 1 + len(expected))
            (grad,) = torch.autograd.grad((counts * scale).sum(), leaf)
            shape = (1, 1, 2, 2) if per == "neuron" else (1, 3, 1, 1)
            assert torch.equal(grad, scale.to(dtype).view(shape).expand(leaf.shape))
    assert spike_count(SpikeTimes(times[:0], 4), per).tolist() == [0] * (4 * (per == "neuron"))


def test_spikes_that_cannot_be_counted():
    with pytest.raises(ValueError, match="per='train' is not known"):
        spike_count(torch.zeros(4, 1, 2), per="train")
    with pytest.raises(TypeError, match="must be floating-point"):
        spike_count(torch.zeros(4, 1, 2).int())
