"""The factored gradient that one linear layer passes to the layer before."""

import contextlib

import pytest
import torch
from torch import Tensor

from snn_single_spike import SpikeTimes
from snn_single_spike.functional import single_spike_conv2d, single_spike_linear, spike_count
from snn_single_spike.ops.current import event_current
from snn_single_spike.ops.linear import FactoredGradient
from snn_single_spike.ops.validation import GRADIENT_RULES

from tests.support.devices import device_of
from tests.support.linear_problems import (
    LAYERS,
    Layer,
    as_spikes,
    layer_by_times,
    leaves_of,
    on,
    problem,
    readout,
)
from tests.support.oracle import relative_error


# An adjoint that is kept, and one that is not
@pytest.mark.parametrize("wide", [5, 70])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_spikes_that_are_counted_on_their_way(rule, wide, linear_backend, monkeypatch):
    """Counts by neuron and by sample of two layers allocate no dense tensor."""
    device = device_of(linear_backend)
    given = on(device, problem(15, 3, (6, 7, wide, 4), seed=9))
    given = given._replace(
        layers=[layer._replace(factor=torch.ones((), device=device)) for layer in given.layers]
    )
    weights = torch.arange(1.0, 1 + max(7, wide), device=device, dtype=torch.float64)
    results = []
    for path in ("times", "dense"):
        leaves = given._replace(layers=[Layer(*layer) for layer in leaves_of(given).layers])
        *hidden, last = leaves.layers
        x = as_spikes(leaves.spikes, "times") if path == "times" else leaves.spikes
        loss = 0.0
        for layer in hidden:
            x, _ = LAYERS[path](x, layer._replace(factor=1.0), rule, "subtract", linear_backend)
            for per in ("neuron", "sample"):
                counts = spike_count(x, per)
                loss = loss + (counts * weights[: len(counts)].sqrt()).sum()
        value = readout(x, last.weight, last.bias, leaves.beta, backend=linear_backend)
        loss = loss + (value * given.g).sum()
        wanted = [x for layer in hidden for x in layer[:4]]
        if path == "times":

            def forbidden(self):
                raise AssertionError("a dense gradient was made")

            monkeypatch.setattr(FactoredGradient, "to_dense", forbidden)
        results.append([loss.detach(), *torch.autograd.grad(loss, wanted)])
        monkeypatch.undo()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


def test_a_hook_that_changes_a_gradient_in_place_is_refused():
    given = leaves_of(problem(15, 3, (6, 5, 4)))
    hidden, _ = layer_by_times(
        as_spikes(given.spikes, "times"), given.layers[0], "masked", "none", "auto"
    )
    hidden.carrier.register_hook(lambda grad: grad.mul_(0))
    with pytest.raises(TypeError, match="mul_.*Use the operation that returns a new tensor"):
        readout(hidden, given.layers[1].weight, None, 0.9).sum().backward()


def test_anomaly_detection_and_hooks_see_dense_gradients():
    given = leaves_of(problem(15, 3, (6, 5, 4)))
    seen = []
    hidden, _ = layer_by_times(
        as_spikes(given.spikes, "times"), given.layers[0], "masked", "none", "auto"
    )
    hidden.carrier.register_hook(lambda grad: seen.append(grad + 0))
    with torch.autograd.set_detect_anomaly(True):
        readout(hidden, given.layers[1].weight, None, 0.9).sum().backward()
    assert type(seen[0]) is Tensor
    assert seen[0].shape == (15, 3, 5)
    assert given.spikes.grad.any()


WEIGHTS = {
    "linear": [(20, 72), (12, 20), (5, 12)],
    "conv": [(4, 2, 3, 3), (3, 4, 3, 3), (5, 12)],
}


def loss_of(kind: str, reader: str, rule: str, leaves: list[Tensor]) -> Tensor:
    make = torch.Generator().manual_seed(4)
    times = torch.randint(-1, 9, (3, 2, 6, 6), generator=make)
    x = SpikeTimes(times, 9, dtype=torch.float64)
    layer = single_spike_conv2d if kind == "conv" else single_spike_linear
    x = x if kind == "conv" else x.flatten(2)
    *weights, last, beta, threshold = leaves
    for weight in weights:
        x = layer(x, weight, None, beta, threshold, gradient=rule)
    x = x.flatten(2)
    if reader == "readout":
        out = readout(x, last, None, beta)
    else:
        out = event_current(9, x.carrier, last, None, x.events())
    return (out * torch.randn(out.shape, generator=make, dtype=torch.float64)).sum()


def leaves_for(kind: str) -> list[Tensor]:
    make = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(shape, generator=make, dtype=torch.float64) / len(shape)
        for shape in WEIGHTS[kind]
    ]
    parameters = [torch.tensor(x, dtype=torch.float64) for x in (0.9, 0.3)]
    return [x.requires_grad_() for x in (*weights, *parameters)]


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
@pytest.mark.parametrize("reader", ["readout", "current"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("saved", ["itself", "by a checkpoint"])
def test_an_optimizer_that_steps_in_the_backward_pass(saved, kind, reader, rule):
    """Each weight changes in place as soon as its gradient is complete."""
    leaves, found = leaves_for(kind), {}
    expected = torch.autograd.grad(loss_of(kind, reader, rule, leaves), leaves)
    same = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with same if saved == "by a checkpoint" else contextlib.nullcontext():
        loss = loss_of(kind, reader, rule, leaves)

    def step(weight: Tensor) -> None:
        found[weight] = weight.grad
        with torch.no_grad():
            weight.mul_(-1)

    for leaf in leaves:
        leaf.register_post_accumulate_grad_hook(step)
    loss.backward()
    for leaf, right in zip(leaves, expected, strict=True):
        assert right.any()
        assert relative_error(found[leaf], right) < 1e-12


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_weights_that_another_hook_changes_are_refused(kind):
    leaves = leaves_for(kind)
    loss = loss_of(kind, "readout", "masked", leaves)

    def step(_: Tensor) -> None:
        with torch.no_grad():
            leaves[1].mul_(-1)

    leaves[1].register_hook(step)
    with pytest.raises(RuntimeError, match=r"changed in place in the backward.*after backward\(\)"):
        loss.backward()
