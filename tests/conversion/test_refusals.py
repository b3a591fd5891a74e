"""Models that cannot be converted: each error names the reason and the edit."""

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

from snn_single_spike import ConversionError, LeakyReadout, SingleSpikeLeaky, convert, revert

from tests.support.networks import StateGiven, Tutorial6, leaky, population, readme


class ListLoop(nn.Module):
    """A loop over layers, which is not a loop over time."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), leaky(), nn.Linear(4, 4), leaky()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Hidden(nn.Module):
    """A loop over time that the source code does not show."""

    def __init__(self):
        super().__init__()
        self.lif = leaky()

    def forward(self, x):
        return torch.stack([run(x) for run in [self.lif] * 3])


def test_loops_over_layers_convert():
    assert convert(ListLoop())(torch.rand(5, 2, 4)).shape == (5, 2, 4)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.lif = nn.Linear(3, 3), nn.Linear(3, 3), leaky()

    def forward(self, x):
        return self.lif(self.fc2(self.lif(self.fc1(x))))


class PlainList(nn.Module):
    def __init__(self):
        super().__init__()
        self.lifs, self.lif = [leaky()], leaky()

    def forward(self, x):
        return self.lif(self.lifs[0](x))


class OwnFire(snn.Leaky):
    def fire(self, mem):
        return 0 * super().fire(mem)


class OwnForward(snn.Leaky):
    def forward(self, input_, mem=None):
        return super().forward(2 * input_, mem)


class Comprehension(nn.Module):
    """A loop over time that skips steps, with the neuron in a separate method."""

    def __init__(self):
        super().__init__()
        self.lif = leaky()

    def once(self, x):
        return self.once_more(x)

    def once_more(self, x):
        return self.lif(x)

    def forward(self, x):
        return torch.stack([self.once(step) for step in x if step is not None])


REFUSED = {
    "loop in a comprehension with a condition": (
        Comprehension,
        r"test_refusals.py:\d+: the loop over time is a comprehension with a condition",
    ),
    "SLSTM": (lambda: nn.Sequential(snn.SLSTM(3, 4)), r"'0' \(SLSTM\).*non-linear in its own past"),
    "SConv2dLSTM": (lambda: nn.Sequential(snn.SConv2dLSTM(1, 2, 3)), "SConv2dLSTM"),
    "all-to-all recurrence": (
        lambda: nn.Sequential(snn.RLeaky(beta=0.9, linear_features=3)),
        r"'0' cannot be converted: all_to_all=True.*drive other.*all_to_all=False and a vector V",
    ),
    "RSynaptic": (
        lambda: nn.Sequential(snn.RSynaptic(alpha=0.9, beta=0.8, all_to_all=False)),
        r"'0' \(RSynaptic\) .*its spikes are fed back into it. Replace it by snntorch.Synaptic",
    ),
    "a neuron with another forward": (
        lambda: nn.Sequential(OwnForward(0.9)),
        r"'0' \(OwnForward\) cannot be converted: it overrides forward of snntorch.Leaky",
    ),
    "a neuron with another fire": (
        lambda: nn.Sequential(OwnFire(0.9)),
        r"'0' \(OwnFire\) cannot be converted: it overrides fire of snntorch.Leaky",
    ),
    "neurons in a list": (
        PlainList,
        "'lifs' is a plain list of neurons.*make it an nn.ModuleList",
    ),
    "BatchNorm through time": (
        lambda: nn.Sequential(snn.BatchNormTT1d(4, 5), leaky()),
        "'0' cannot be converted.*BatchNorm for every time step.*Use one BatchNorm for all",
    ),
    "LeakyParallel": (
        lambda: nn.Sequential(snn.LeakyParallel(4, 5)),
        r"'0' \(LeakyParallel\).*weights between its neurons",
    ),
    "one neuron for two layers": (
        Shared,
        "'lif' is called more than once.*make one for each",
    ),
    "no single-spike form": (
        lambda: nn.Sequential(snn.StateLeaky(0.9, channels=3)),
        r"'0' \(StateLeaky\) cannot be converted: it computes whole sequences.*snntorch.Leaky",
    ),
    "recurrent layer": (lambda: nn.Sequential(nn.GRU(3, 3), leaky()), r"'0' \(GRU\).*recurrent"),
    "inhibition": (
        lambda: nn.Sequential(leaky(inhibition=True)),
        r"'0'.*inhibition=True.*Make it with inhibition=False",
    ),
    "state quantization": (
        lambda: nn.Sequential(leaky(state_quant=lambda mem: mem)),
        r"'0'.*state_quant.*Make it with state_quant=False",
    ),
    "immediate reset": (
        lambda: nn.Sequential(snn.Synaptic(0.9, 0.8, reset_delay=False)),
        "only a Leaky resets at the step.*Make it with reset_delay=True: the first spikes",
    ),
    "no neuron": (lambda: nn.Sequential(nn.Linear(2, 2)), "no snntorch neuron"),
    "a neuron alone": (lambda: snn.Leaky(0.9), "single neuron"),
    "single-spike already": (
        lambda: nn.Sequential(SingleSpikeLeaky(0.9)),
        "'0' is already a SingleSpikeLeaky.*without convert",
    ),
    "a readout": (
        lambda: nn.Sequential(nn.Linear(3, 2), leaky(), LeakyReadout(0.9)),
        r"layer '2' is a LeakyReadout.*readout\(fast\(data\)\)",
    ),
    "compiled": (
        lambda: torch.compile(ListLoop()),
        r"the model is compiled.*torch.compile\(convert\(net\)\)",
    ),
    "a compiled part": (
        lambda: nn.Sequential(torch.compile(ListLoop())),
        r"layer '0' is compiled.*torch.compile\(convert\(net\)\)",
    ),
    "converted already": (lambda: convert(ListLoop()), "converted already"),
}


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_with_a_reason(case):
    make, message = REFUSED[case]
    with pytest.raises(ConversionError, match=message):
        convert(make())(torch.rand(4, 2, 3))


def test_a_loop_that_the_source_hides_is_caught_when_it_runs():
    with pytest.raises(ConversionError, match="neuron 'lif' is called more than once"):
        convert(Hidden())(torch.rand(4, 2, 3))


class FixedBatch(Tutorial6):
    def forward(self, x):
        spk2 = self.lif2(F.max_pool2d(self.conv2(F.max_pool2d(self.conv1(x), 4)), 2))
        return self.fc1(spk2.view(2, -1))


def test_a_shape_that_does_not_fit_names_the_layer():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 2)), leaky())
    with pytest.raises(ConversionError, match=r"layer '0.0' \(Linear\).*convert it with num_steps"):
        convert(net)(torch.rand(4, 2, 3))
    with pytest.raises(ConversionError, match="num_steps=5 and called with a sequence"):
        convert(net, num_steps=5)(torch.rand(4, 3))


class OverWhatANeuronReturns(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(3, 2), snn.Leaky(0.9)

    def forward(self, x):
        spk, mem = [tensor.clone() for tensor in self.lif(self.fc(x))]
        for _ in self.fc.parameters():
            spk = 1.0 * spk
        return spk, mem


def test_loops_in_which_no_neuron_is_called():
    net = OverWhatANeuronReturns()
    spk, mem = convert(net)(torch.rand(4, 2, 3))
    assert spk.shape == mem.shape == (4, 2, 2)


def test_other_errors_are_left_alone():
    class Dimmer(OverWhatANeuronReturns):
        def forward(self, x):
            raise RuntimeError("the dimmer is broken")

    with pytest.raises(RuntimeError, match="the dimmer is broken$"):
        convert(Dimmer())(torch.rand(4, 2, 3))


class BatchFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.lif = leaky()

    def forward(self, x):
        return self.lif(x.permute(1, 0, 2))


def test_a_sequence_with_its_batch_first_is_advised():
    with pytest.raises(ConversionError, match="swaps the first two dimensions"):
        convert(BatchFirst())(torch.rand(4, 2, 3))


def test_two_inputs_in_different_orders():
    class Both(StateGiven):
        def forward(self, x, y):
            return self.lif(x + y)[0]

    with pytest.raises(ConversionError, match="batch seems to come first.*time_dim=1"):
        convert(Both())(torch.rand(4, 2, 3), torch.rand(2, 4, 3))


def test_a_forward_of_the_instance_is_refused():
    net = population()
    net.forward = net.forward
    with pytest.raises(ConversionError, match="own `forward` as an attribute.*in the class"):
        convert(net)


def test_a_fixed_batch_size_says_what_to_write():
    with pytest.raises(ConversionError, match=r"fixed batch size.*x.flatten\(1\)"):
        convert(FixedBatch())(torch.rand(4, 2, 1, 68, 68))


def test_membranes_from_outside_and_outputs_without_a_batch():
    model = StateGiven()
    fast = convert(model)
    x = torch.rand(4, 2, 3)
    for nothing in (None, fast.lif.init_leaky()):
        assert fast(x, nothing).shape == (4, 2, 3)
    with pytest.raises(ConversionError, match="pass None for initial membranes"):
        fast(x, torch.zeros(2, 3))
    with pytest.raises(ConversionError, match="sums over the batch"):
        fast(x, total=True)


def test_calls_step_by_step_or_of_the_wrong_kind_say_how_the_input_was_read():
    net = readme()
    with pytest.raises(ConversionError, match="time=2, batch=1.*called step by step"):
        convert(net)(torch.rand(2, 1, 28, 28))
    with pytest.raises(ConversionError, match="converted with num_steps="):
        convert(net, num_steps=5)(torch.rand(5, 2, 1, 28, 28))


def test_a_neuron_put_in_later_and_states_from_outside_are_refused():
    fast = convert(nn.Sequential(nn.Linear(3, 4), leaky(), nn.Linear(4, 2), leaky()))
    fast[3] = leaky()
    with pytest.raises(ConversionError, match=r"neuron '3' \(Leaky\) was added to.*revert\(\)"):
        fast(torch.rand(5, 2, 3))

    class Zeros(StateGiven):
        def forward(self, x):
            return self.lif(x, torch.zeros(x.size(0), 3))

    with pytest.raises(ConversionError, match="'lif' is given an initial state.*leave the state"):
        convert(Zeros())(torch.rand(5, 2, 3))


def test_a_part_of_a_converted_model_is_refused():
    fast = convert(population())
    with pytest.raises(ConversionError, match="part of a converted model.*convert the part"):
        fast[:3](torch.rand(5, 3, 8, 8))


def test_what_is_computed_once_cannot_meet_what_is_not():
    class Skip(StateGiven):
        def forward(self, x):
            return self.lif(x)[0] + x

    x = torch.rand(2, 3) * 2
    with pytest.raises(ConversionError, match=r"before the first neuron.*x\.expand\(num_steps"):
        convert(Skip(), num_steps=5)(x)
    assert convert(Skip())(x.expand(5, *x.shape)).shape == (5, 2, 3)


def test_a_block_that_is_checkpointed_says_to_checkpoint_the_model():
    from torch.utils.checkpoint import checkpoint

    class Block(StateGiven):
        def forward(self, x):
            return checkpoint(lambda x: self.lif(x)[0], x, use_reentrant=False)

    x = torch.rand(5, 2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="checkpoint the model as a whole"):
        convert(Block())(x).sum().backward()
    fast = convert(StateGiven())
    checkpoint(fast, x, use_reentrant=False).sum().backward()
    through, x.grad = x.grad, None
    fast(x).sum().backward()
    assert torch.equal(x.grad, through)


def test_bad_calls():
    with pytest.raises(ValueError, match="no time steps"):
        convert(readme())(torch.rand(0, 2, 1, 28, 28))
    with pytest.raises(TypeError, match="torch.nn.Module, not list"):
        convert([])
    with pytest.raises(ValueError, match="num_steps=0"):
        convert(readme(), num_steps=0)
    with pytest.raises(TypeError, match="nothing to revert"):
        revert(readme())
    with pytest.raises(ValueError, match=r"whole sequence, \(time, batch"):
        convert(population())(torch.rand(3, 64))
    fast = convert(population())
    with pytest.raises(RuntimeError, match="neuron '2'.*called outside of the model"):
        fast[2](torch.rand(3, 40))
