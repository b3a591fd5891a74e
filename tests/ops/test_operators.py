"""The registered operators: opcheck, torch.compile, torch.export."""

import pytest
import torch
import torch._dynamo.testing
from snntorch import surrogate

from snn_single_spike import LeakyReadout, SingleSpikeLeaky
from snn_single_spike.backends._surrogate import Surrogate
from snn_single_spike.backends._types import (
    SCANNED,
    ForwardOutputs,
    Neuron,
    OutputGradients,
    Saved,
)
from snn_single_spike.functional import first_spike_time, single_spike_leaky
from snn_single_spike.ops.neuron import Wanted

from tests.support.oracle import relative_error

operators = torch.ops.snn_single_spike


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch._dynamo.reset()


def arguments(neurons=6, num_steps=9):
    return torch.randn(num_steps, neurons), torch.full((1,), 0.9), torch.ones(3), torch.ones(1)


def neuron(*given, **options):
    """A neuron that has some of alpha, gain and feedback."""
    _, beta, threshold, factor = arguments()
    return Neuron(
        beta, threshold, factor, **{name: torch.full((1,), 0.8) for name in given}, **options
    )


NEURONS = {
    "leaky": (),
    "synaptic": ("alpha",),
    "alpha": ("alpha", "gain"),
    "feedback": ("feedback",),
}


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("crossing", [False, True])
def test_opcheck_forward(kind, spikes, crossing, cpu_backend):
    current, *_ = arguments()
    made = neuron(*NEURONS[kind], mem_0=torch.zeros(6), reset="zero_after")
    wanted = Wanted(spikes, mem=True, syn=True, crossing=crossing, final=True)
    torch.library.opcheck(operators.neuron_forward.default, (current, *made, *wanted, cpu_backend))


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_opcheck_backward(kind, recompute, cpu_backend):
    current, *_ = arguments()
    made = neuron(*NEURONS[kind], reset="subtract")
    syn, inh = (None if x is None else torch.randn_like(current) for x in (made.alpha, made.gain))
    present = {"alpha": made.alpha, "gain": made.gain, "feedback": made.feedback}
    present |= {"syn_0": made.alpha, "inh_0": made.gain}
    needs = [present.get(name, current) is not None for name in SCANNED]
    needs[SCANNED.index("mem_0")] = made.gain is None
    times = torch.tensor([0, 1, -1, 3, 8, -1])
    torch.library.opcheck(
        operators.neuron_backward.default,
        (
            *Saved(current, recompute, syn, inh),
            *made,
            times,
            *OutputGradients(current, current, syn, inh),
            *(9, torch.float32, "masked", *Surrogate("atan", 2.0), needs, cpu_backend),
        ),
    )


def test_opcheck_of_a_refractory_period(cpu_backend):
    current, *_ = arguments()
    last = torch.tensor([-1, -2, -3, -4, -4, -4])
    made = neuron("alpha", reset="subtract", last_0=last)._replace(refractory=2)
    wanted = Wanted(syn=True, final=True, phase=True)
    given = (current, *made, *wanted, cpu_backend)
    torch.library.opcheck(operators.neuron_forward.default, given)
    out = ForwardOutputs(*operators.neuron_forward(*given))
    needs = [getattr(made, name, current) is not None for name in SCANNED]
    torch.library.opcheck(
        operators.neuron_backward.default,
        (
            *Saved(out.mem, False, out.syn, None, out.phase),
            *made,
            out.times,
            *OutputGradients(current, current, current),
            *(9, torch.float32, "masked", *Surrogate("atan", 2.0), needs, cpu_backend),
        ),
    )


@pytest.mark.parametrize("reduction", ["sum", "max", "last"])
def test_opcheck_readout(reduction, cpu_backend):
    current, beta, *_ = arguments()
    torch.library.opcheck(
        operators.readout.default,
        (current, beta, None, reduction, True, True, cpu_backend),
    )


def network(**options):
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7),
        SingleSpikeLeaky(0.9, learn_beta=True, init_hidden=True, **options),
        torch.nn.Linear(7, 3),
        LeakyReadout(0.9, learn_beta=True),
    )


def own_surrogate(u):
    soft = torch.sigmoid(4 * u)
    return soft + ((u > 0).to(u) - soft).detach()


@pytest.mark.parametrize(
    ("rule", "spike_grad"),
    [
        ("masked", None),
        ("masked", own_surrogate),
        ("pre_spike", surrogate.fast_sigmoid(10)),
        ("straight_through", own_surrogate),
        ("spike_time", None),
    ],
)
def test_compile_fullgraph(rule, spike_grad):
    net = network(gradient=rule, spike_grad=spike_grad)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 2, 5)
    for call in (net, compiled):
        net.zero_grad()
        out = call(x)
        out.square().sum().backward()
        grads = [out.detach(), *(p.grad.clone() for p in net.parameters())]
        if call is net:
            expected = grads
    for mine, right in zip(grads, expected, strict=True):
        assert relative_error(mine, right) < 1e-5


def test_compile_with_dynamic_shapes_compiles_once():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    net = network()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for num_steps, batch in ((8, 2), (9, 3), (30, 5)):
        x = torch.randn(num_steps, batch, 5)
        assert torch.equal(compiled(x), net(x))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


class OwnFunction(torch.autograd.Function):
    """A custom autograd Function as a surrogate, passed as its `apply`."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + 10 * u.abs()) ** 2


def test_compile_a_surrogate_given_as_apply():
    net = network(spike_grad=OwnFunction.apply)
    expected = network(spike_grad=surrogate.fast_sigmoid(slope=10))
    expected.load_state_dict(net.state_dict())
    x = torch.randn(8, 2, 5)
    torch.compile(net, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    expected(x).square().sum().backward()
    for mine, right in zip(net.parameters(), expected.parameters(), strict=True):
        assert relative_error(mine.grad, right.grad) < 1e-4


def test_compile_functions():
    current = torch.randn(8, 2, 5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(current):
        spikes, mem, times = single_spike_leaky(
            current, 0.9, 1.0, spike_grad=surrogate.fast_sigmoid(slope=5)
        )
        return spikes, mem, times, first_spike_time(current, 0.9, gradient="spike_time")

    spikes, mem, times = single_spike_leaky(current, 0.9)
    compiled = run(current)
    assert torch.equal(compiled[0], spikes)
    assert torch.equal(compiled[1], mem)
    assert torch.equal(compiled[2], times)
    assert torch.equal(compiled[3] >= 0, times >= 0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_functions_with_changing_numbers(dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def run(current, beta):
        return single_spike_leaky(current, beta).mem, first_spike_time(current, beta)

    for beta, num_steps in ((0.9, 8), (0.8, 9), (0.7, 9)):
        current = torch.randn(num_steps, 2, 5)
        mem, times = run(current, beta)
        expected = single_spike_leaky(current, beta)
        assert torch.equal(mem, expected.mem)
        assert torch.equal(times, expected.times)


def test_exported_program_writes_no_membrane_for_a_backward_pass():
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), SingleSpikeLeaky(0.9, init_hidden=True))
    program = torch.export.export(net, (torch.randn(8, 2, 5),))
    (node,) = (n for n in program.graph.nodes if "neuron_forward" in str(n.target))
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False))
    assert given["spikes"]
    assert not given["mem"]


@pytest.mark.parametrize("output", [False, True])
def test_export(output):
    net = torch.nn.Sequential(
        torch.nn.Linear(5, 7), SingleSpikeLeaky(0.9, init_hidden=True, output=output)
    )
    x = torch.randn(8, 2, 5)
    dynamic = {0: torch.export.Dim("time"), 1: torch.export.Dim("batch")}
    program = torch.export.export(net, (x,), dynamic_shapes=(dynamic,))
    for shape in ((8, 2, 5), (11, 3, 5)):
        x = torch.randn(shape)
        for mine, right in zip(program.module()(x), net(x), strict=True):
            assert torch.equal(mine, right)
