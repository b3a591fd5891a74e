"""The factored gradient that one linear layer passes to the layer before."""

import pytest
import torch
from torch import Tensor

from snn_single_spike.functional import spike_count
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
