"""The decompositions of operators, which the ONNX exporter uses, equal the operators."""

import pytest
import torch
from torch import nn

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, convert
from snn_single_spike.backends._types import (
    KERNEL_RESETS,
    REDUCTIONS,
    ForwardOutputs,
    Neuron,
    ReadoutOutputs,
)
from snn_single_spike.ops import decomposition
from snn_single_spike.ops.neuron import Wanted

from tests.support.networks import Outputs, Tutorial5, Tutorial6, awake, leaky, siblings, tensors

operators = torch.ops.snn_single_spike
KINDS = {
    "leaky": (),
    "synaptic": ("alpha",),
    "alpha": ("alpha", "gain"),
    "feedback": ("feedback",),
}


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("reset", KERNEL_RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_neurons(kind, reset, clamp, dtype):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    current = torch.randn(12, 15).to(dtype)
    given = {name: torch.rand(1, dtype=state) + 0.1 for name in KINDS[kind]}
    given |= {name: torch.rand(15, dtype=state) - 0.5 for name in ("mem_0", "syn_0", "inh_0")}
    beta, theta = 1.3 * torch.rand(5, dtype=state), torch.rand(5, dtype=state) + 0.2
    factor = torch.full((1,), 0.5, dtype=state)
    if kind == "leaky" and reset == "subtract":
        theta[0] = torch.inf  # a reset that is computed and not used
        current[3, 2] = torch.nan
    neuron = Neuron(beta, theta, factor, **given, clamp=clamp, reset=reset)
    for wanted in (Wanted(True, True, True, True, True), Wanted(False, False)):
        expected = operators.neuron_forward(current, *neuron, *wanted, "torch")
        assert_same(decomposition.neuron_forward(current, *neuron, *wanted, "torch"), expected)
    times = ForwardOutputs(*expected).times
    assert {True, False} <= set((times >= 0).tolist())


@pytest.mark.parametrize("reset", KERNEL_RESETS)
@pytest.mark.parametrize("refractory", [0, 2])
def test_neurons_with_a_refractory_period(refractory, reset):
    given = {"alpha": torch.full((1,), 0.5), "mem_0": 2 * torch.rand(15)}
    given["last_0"] = torch.randint(-2 - refractory, 0, (15,))
    neuron = Neuron(*torch.tensor([[0.9], [0.4], [0.5]]), **given, reset=reset)
    neuron = neuron._replace(refractory=refractory)
    wanted = Wanted(syn=True, final=True, phase=True)
    current = torch.randn(12, 15)
    expected = operators.neuron_forward(current, *neuron, *wanted, "torch")
    assert_same(decomposition.neuron_forward(current, *neuron, *wanted, "torch"), expected)
    assert ForwardOutputs(*expected).spikes.count_nonzero() > 20


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_readouts(reduction):
    current, beta, mem_0 = torch.randn(9, 6), torch.tensor([1.2, 0.5, -0.1]), torch.randn(6)
    given = (current, beta, mem_0, reduction, False, False, "torch")
    expected = ReadoutOutputs(*operators.readout(*given))
    torch.testing.assert_close(decomposition.leaky_readout(*given)[0], expected.value)


def modules():
    return nn.Sequential(
        nn.Linear(20, 15),
        SingleSpikeLeaky(0.9, init_hidden=True, gradient="spike_time"),
        nn.Linear(15, 3),
        LeakyReadout(0.9),
    )


def from_spike_times():
    hidden = awake(nn.Sequential(nn.Linear(20, 15), leaky(), nn.Linear(15, 3)))
    return nn.Sequential(convert(hidden, spike_format="times"), LeakyReadout(0.9))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (modules, (9, 2, 20)),
        (lambda: convert(awake(Tutorial5())), (9, 2, 20)),
        (lambda: convert(awake(Tutorial5()), num_steps=6), (2, 20)),
        (from_spike_times, (9, 2, 20)),
        (lambda: convert(awake(Tutorial6()), num_steps=4), (2, 1, 28, 28)),
        (lambda: convert(awake(siblings())), (9, 2, 20)),
        (lambda: convert(awake(Outputs())), (9, 2, 20)),
    ],
    ids=["modules", "sequence", "static", "times", "convolutions", "other neurons", "states"],
)
def test_onnx_runtime_gives_the_same_spikes(make, shape, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, x = make().eval(), 3 * torch.rand(shape)
    torch.onnx.export(net, (x,), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = tensors(net(x))
    assert expected[0].any()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), other.detach(), rtol=1e-4, atol=1e-4)


def test_a_dynamic_number_of_time_steps_is_refused():
    pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("time")},)
    with pytest.raises(Exception, match="the number of time steps is dynamic"):
        torch.onnx.export(
            *(modules().eval(), (torch.rand(9, 2, 20),)), dynamo=True, dynamic_shapes=shapes
        )
