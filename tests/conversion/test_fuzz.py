"""Random networks against snnTorch's loop, with all their gradients.

`python -m pytest tests/conversion/test_fuzz.py --networks 2000 --first-network 5000` runs more. A
failure names the network: its number is the seed of everything in it.
"""

import copy

import pytest
import snntorch as snn
import torch

from snn_single_spike import ConversionError, convert

from tests.support import single_spike_loop
from tests.support.networks import loss_of, tensors
from tests.support.random_networks import Maker

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*MaxPool after a neuron"),
    pytest.mark.filterwarnings("ignore:.*when training, BatchNorm"),
]
BATCH = 3


def pytest_generate_tests(metafunc):
    if "number" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-network")
        count = metafunc.config.getoption("--networks")
        metafunc.parametrize("number", range(first, first + count))


def gradients(model, outs):
    model.zero_grad()
    loss_of(outs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def outputs(model, x, num_steps, **options):
    """The converted model and its outputs; ``num_steps`` is None for a whole sequence."""
    fast = convert(copy.deepcopy(model), num_steps=num_steps, **options)
    try:
        return fast, tensors(fast(x))
    except ConversionError as refusal:  # a skip connection around the first neuron
        if num_steps is None or "pass x.expand(num_steps, *x.shape)" not in str(refusal):
            raise
        fast = convert(copy.deepcopy(model), **options)
        return fast, tensors(fast(x.expand(num_steps, *x.shape)))


@pytest.mark.usefixtures("one_thread")
def test_a_random_network_is_the_loop_over_time(number):
    maker = Maker(number)
    model = maker.network().double()
    num_steps, static = maker.draw.randint(1, 9), maker.draw.random() < 0.4
    shape = (BATCH, *maker.input) if static else (num_steps, BATCH, *maker.input)
    x = torch.rand(shape, dtype=torch.float64) * 2
    original, expected = single_spike_loop.run(model, [x] * num_steps if static else list(x))
    right = gradients(original, expected)
    has_leaky = any(isinstance(module, snn.Leaky) for module in model.modules())
    for spike_format in ("dense", "times") if has_leaky else ("dense",):
        given = num_steps if static else None
        fast, outs = outputs(model, x, given, spike_format=spike_format)
        assert torch.equal(outs[0], expected[0]), f"{spike_format}: first spikes of {model}"
        for mine, theirs in zip(outs, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
        found = gradients(fast, outs)
        for name in right.keys() | found.keys():
            zeros = torch.zeros_like(fast.get_parameter(name))
            mine, theirs = found.get(name, zeros), right.get(name, zeros)
            # Surrogates of snnTorch compute in float32.
            close = (mine - theirs).norm() < 1e-5 * theirs.norm().clamp(min=1)
            assert close, f"{spike_format}: the gradient of {name} in {model}"
