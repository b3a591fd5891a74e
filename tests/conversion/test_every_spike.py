"""Networks converted with ``refractory=``: every spike of the original, or a refractory period."""

import copy
import warnings

import pytest
import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from snn_single_spike import ConversionError, convert, revert

from tests.support.networks import (
    Tutorial5,
    Tutorial5Loop,
    Tutorial6,
    awake,
    leaky,
    readme,
    tutorial7,
)


def synaptic():
    """MaxPool behind a neuron, three kinds of neurons, learned parameters, graded spikes."""
    graded = leaky(learn_beta=True, learn_threshold=True, graded_spikes_factor=0.5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 5),
        graded,
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(108, 20),
        snn.Synaptic(0.7, 0.6, 0.2, init_hidden=True, reset_mechanism="zero", learn_alpha=True),
        nn.Linear(20, 8),
        snn.Lapicque(beta=0.8, threshold=0.05, init_hidden=True, output=True),
    )


MODELS = {
    "tutorial 5": (Tutorial5, (20,)),
    "tutorial 6": (Tutorial6, (1, 28, 28)),
    "tutorial 7": (tutorial7, (2, 32, 32)),
    "synaptic": (synaptic, (1, 28, 28)),
}


def by_steps(model, x):
    """The snnTorch model, step by step. Its spikes are float32, so hooks widen them."""
    model = copy.deepcopy(model)
    for neuron in model.modules():
        if isinstance(neuron, SpikingNeuron):
            neuron.register_forward_hook(
                lambda _, given, out: (
                    (out[0].to(given[0]), *out[1:]) if isinstance(out, tuple) else out.to(given[0])
                )
            )
            neuron.init_leaky = lambda: None  # Tutorial 5 calls it at every step
    return model, [torch.stack(rows) for rows in zip(*map(model, x), strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_original_in_every_spike(name):
    make, shape = MODELS[name]
    model = awake(make()).double()
    x = torch.rand(9, 3, *shape, dtype=torch.float64) * 3
    original, expected = by_steps(model, x)
    assert expected[0].sum(0).max() > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the forward of Tutorial5 .* starts its neurons anew")
        fast = convert(model, refractory=0)
    spikes, mem = fast(x)
    assert torch.equal(spikes, expected[0])
    assert torch.allclose(mem, expected[1])
    assert torch.equal(fast(x)[0], spikes)  # spike_format="auto" decides after the first call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some layers read dense spikes
        of_events = convert(model, refractory=0, spike_format="times")
        assert torch.allclose(of_events(x)[0].to_dense(), spikes)
    weights = torch.randn_like(mem)
    for spk, u in ((spikes, mem), expected):
        (spk * weights + u * weights.cos()).sum().backward()
    grads = dict(original.named_parameters())
    for key, parameter in fast.named_parameters():
        gap = (parameter.grad - grads[key].grad).norm()
        assert gap <= 1e-5 * grads[key].grad.norm(), key  # snnTorch's surrogates round to float32
    back = revert(fast)
    assert [type(part) for part in back.modules()] == [type(part) for part in model.modules()]
    assert "refractory" not in vars(next(m for m in back.modules() if isinstance(m, SpikingNeuron)))


@pytest.mark.parametrize("refractory", [0, 2])
def test_a_loop_inside_forward_is_compared_with_its_own_spikes(refractory):
    torch.manual_seed(3)
    net, x = awake(Tutorial5Loop()), torch.rand(3, 20)
    fast = convert(net, refractory=refractory)
    spikes, mem = fast(x)  # raises if the author's loop differs
    assert spikes.sum() > 3
    if refractory == 0:
        expected = net(x)
        assert torch.equal(spikes, expected[0])
        assert torch.allclose(mem, expected[1], atol=1e-5)
    else:
        windows = spikes.unfold(0, refractory + 1, 1).sum(-1)
        assert windows.max() == 1


@pytest.mark.parametrize(
    ("neuron", "options", "error", "match"),
    [
        (snn.Alpha(0.8, 0.5, init_hidden=True), {}, ConversionError, "'1' .Alpha.* at most once"),
        (
            snn.RLeaky(0.8, V=0.5, all_to_all=False, init_hidden=True),
            {},
            ConversionError,
            "'1' .RLeaky.* without refractory=",
        ),
        (leaky(reset_delay=False), {}, ConversionError, "make it with reset_delay=True"),
        (leaky(), {"gradient": "spike_time"}, ValueError, "gradient='masked'"),
        (leaky(), {"refractory": -1}, ValueError, "0 or more"),
    ],
)
def test_what_cannot_be_is_refused(neuron, options, error, match):
    with pytest.raises(error, match=match):
        convert(nn.Sequential(nn.Linear(4, 4), neuron), **{"refractory": 0} | options)


def test_a_static_input_and_a_checkpoint():
    model = readme().eval()
    image = torch.rand(2, 1, 28, 28)
    static = convert(model, num_steps=5, refractory=0)
    again = convert(readme(), refractory=0)
    again.load_state_dict(static.state_dict())
    spikes, mem = static(image)
    for mine, right in zip((spikes, mem), again(image.expand(5, *image.shape)), strict=True):
        assert torch.allclose(mine, right, atol=1e-5)
