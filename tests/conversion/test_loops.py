"""Classes with their loop over time inside ``forward``, compared with the author's loop."""

import copy
import pickle
import warnings

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from snn_single_spike import ConversionError, convert, revert

from tests.support.loops import B, Net, T, author, backward, body, leaves
from tests.support.networks import Tutorial5Loop, awake


class LastAxis(Net):
    def forward(self, x):
        mem1 = mem2 = None
        total, early = 0, torch.zeros(x.size(0), 4)
        for t in range(x.shape[-1]):
            spk1, mem1 = self.lif1(self.fc1(x[..., t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = mem2 + total
            early += spk2
        return {"mean": total / x.shape[-1], "count": early, "last": mem2, "step": t}


class Frames(Net):
    def forward(self, x, y=None):
        self.mem1, states, out = None, [self.lif2.init_leaky()], []
        for i, frame in enumerate(x):
            spk, self.mem1 = self.lif1(self.fc1(frame + x[i]), self.mem1)
            spk, states[0] = self.lif2(self.fc2(spk), states[0])
            out += [(spk, i)]
        return torch.stack([spk for spk, _ in out], 1), [i for _, i in out]


class Pairs(Net):
    def forward(self, x, y):
        mems = (self.lif1.init_leaky(), torch.full((x.shape[1], 4), 0.2))
        record = {"spk": [], "mem": []}
        for a, b in zip(x, y):  # noqa: B905
            mem1, mem2 = mems
            spk1, mem1 = self.lif1(self.fc1(a - b), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            mems = (mem1, mem2)
            record["spk"].append(spk2)
            record["mem"].append(mem2)
        return {name: torch.stack(values) for name, values in record.items()}


class Written(Net):
    """Outputs in a tensor, a skip connection from a static input, a loop in a method."""

    def __init__(self):
        super().__init__()
        self.skip = nn.Linear(6, 4)

    def run(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = torch.zeros(x.shape[0], T, 4)
        for t in range(T):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            out[:, t], mem2 = self.lif2(self.fc2(spk) + self.skip(x), mem2)
        return out

    def forward(self, x):
        return self.run(2 * x).sum(1)


class Inherited(Written):
    pass


class Blocks(nn.Module):
    """Two loops in series, the first over a block with hidden states."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), snn.Leaky(0.9, init_hidden=True)
        )
        self.fc, self.out = nn.Linear(8, 4), snn.Synaptic(alpha=0.8, beta=0.7)

    def forward(self, x):
        utils.reset(self.front)
        hidden, spk_rec = [], []
        for t in range(x.size(1)):
            hidden.append(self.front(x[:, t]))
        hidden = torch.stack(hidden)
        syn, mem = self.out.reset_mem()
        for step in range(len(hidden)):
            spk, syn, mem = self.out(self.fc(hidden[step]), syn, mem)
            spk_rec.append(spk)
        return torch.stack(spk_rec), syn, mem


STATIC, SEQUENCE = (B, 6), (T, B, 6)
IDIOMS = {
    "static": (Net, [STATIC]),
    "time last": (LastAxis, [(B, 6, T)]),
    "frames": (Frames, [SEQUENCE]),
    "pairs": (Pairs, [SEQUENCE, SEQUENCE]),
    "written": (Written, [STATIC]),
    "inherited": (Inherited, [STATIC]),
    "blocks": (Blocks, [(B, T, 6)]),
    "a part": (lambda: nn.Sequential(nn.Linear(6, 6), Net()), [STATIC]),
}


@pytest.mark.filterwarnings("ignore:.*BatchNorm takes")
@pytest.mark.parametrize("name", IDIOMS)
def test_a_loop_gives_what_the_author_s_loop_gives(name):
    make, shapes = IDIOMS[name]
    torch.manual_seed(4)
    net = awake(make()).eval()
    inputs = [2 * torch.rand(shape) for shape in shapes]
    before = copy.deepcopy(net.state_dict())
    original, expected = author(net, *inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*BatchNorm takes")
        fast = convert(net)
        state = torch.get_rng_state()
        for _ in range(2):
            outs = leaves(fast(*inputs))
    assert torch.equal(state, torch.get_rng_state())
    assert expected[0].any()
    for mine, right in zip(outs, expected, strict=True):
        assert mine.shape == right.shape
        assert torch.allclose(mine, right, atol=1e-5)
    backward(outs)
    backward(expected)
    right = dict(original.named_parameters())
    for key, parameter in fast.named_parameters():
        assert torch.allclose(parameter.grad, right[key].grad, rtol=1e-3, atol=1e-4), key
    assert all(torch.equal(before[key], value) for key, value in fast.state_dict().items())
    back = revert(fast)
    assert [type(x) for x in back.modules()] == [type(x) for x in net.modules()]
    for again in (pickle.loads(pickle.dumps(fast)), copy.deepcopy(convert(net))):
        assert type(again) is type(fast)
        assert torch.equal(leaves(again(*inputs))[0], outs[0])
    fast.train()
    fast(*inputs)  # compares gradients, too


def test_the_class_of_tutorial_5():
    x = torch.rand(3, 20)
    net = awake(Tutorial5Loop())
    for mine, right in zip(convert(net)(x), author(net, x)[1], strict=True):
        assert torch.allclose(mine, right, atol=1e-5)


STEP = "spk, mem = self.lif1(self.fc1(x[t]), mem)"
TWO_STEPS = [STEP, "spk, mem = self.lif1(self.fc1(x[t]), mem)"]
FRESH = "spk, _ = self.lif1(self.fc1(x[t]), self.lif1.init_leaky())"
APPEND = "out.append(spk)"
HAZARDS = {
    "trace": (
        [STEP, "trace = 0.9 * trace + spk", "out.append(self.fc2(trace))"],
        "'trace' of the step before",
    ),
    "read by a neuron": (
        [STEP, "trace = 0.9 * trace + spk", "spk, _ = self.lif2(trace)", APPEND],
        "'trace' of the step before",
    ),
    "read as a state": (
        ["mem = 0.5 * mem", STEP, APPEND],
        "'lif1' is given a state 'mem' that is not its own",
    ),
    "the state of the step before": (
        ["spk, mem = self.lif1(self.fc1(x[t]) - self.lif1.mem.mean(), mem)", APPEND],
        "'lif1.mem' of the step before",
    ),
    "a power": ([STEP, "trace = spk + trace ** 2", APPEND], "'trace' of the step before"),
    "at some steps": (
        [STEP, "if t > 2:", " trace = 0.9 * trace + spk", APPEND],
        "'trace' of the step before|branch differs",
    ),
    "in place": ([STEP, "trace = torch.add(spk, 1, out=trace)", APPEND], "with out="),
    "a window": ([STEP, "out.append(spk * x[t : t + 2].sum())"], "windows of 1 and 2 entries"),
    "clamp": ([STEP, "mem = mem.clamp(max=1)", APPEND], "'lif1': its state 'mem'"),
    "clamp in place": ([STEP, "mem.detach().clamp_(max=0)", APPEND], "'lif1': its state 'mem'"),
    "branch": ([STEP, "if spk.sum() > 1:", " spk = 2 * spk", APPEND], "branch depends"),
    "branch on the step": ([STEP, "if t > 2:", " spk = 2 * spk", APPEND], "branch differs"),
    "break": ([STEP, APPEND, "if x is None:", " break"], "leaves the loop early"),
    "item": ([STEP, "out.append(spk * spk.flatten().max(0)[0].item())"], r"\.item\(\)"),
    "batch": ([STEP, "out.append(spk - spk.mean(0))"], "differs from that of the author's loop"),
    "loss": ([STEP, "out.append((spk - mem).norm(dim=None))"], "one entry for each sample"),
    "fresh state": ([FRESH, APPEND], "not its own state"),
    "twice": ([*TWO_STEPS, APPEND], "more than once"),
    "two writes": ([STEP, "x[t // 2] = mem[:, :6]", APPEND], "several steps write to one place"),
    "the records": ([STEP, "out.append(spk + len(out))"], "reads a list to which it appends"),
    "the last record": (
        [STEP, "out.append(spk + out[-1] if out else spk)"],
        "reads a list to which it appends",
    ),
    "self": (["spk, mem = run(self, x[t], mem)", APPEND], r"passes self to run\(\)"),
    "torch.tensor": (
        [STEP, "out.append(spk * torch.tensor(t / 2))"],
        "the number of the time step for other things",
    ),
}


@pytest.mark.parametrize("name", HAZARDS)
def test_steps_that_depend_on_one_another_are_refused(name):
    lines, message = HAZARDS[name]
    before = "mem, out, trace, last = self.lif1.init_leaky(), [], 0, 0"
    torch.manual_seed(0)
    with pytest.raises(ConversionError, match=message):
        convert(awake(body(*lines, before=before)()))(2 * torch.rand(T, B, 6))


def test_a_model_with_its_own_loop_has_its_own_steps():
    with pytest.raises(ConversionError, match="without num_steps="):
        convert(Net(), num_steps=3)


def test_random_numbers_are_drawn_at_every_step_and_compared():
    poisson = body(
        "spk, mem = self.lif1(self.fc1((torch.rand_like(x) < x).float()), mem)",
        "out.append(mem)",
        before="mem, out, x = self.lif1.init_leaky(), [], x + 0 * torch.rand(1)",
        loop="for t in range(5):",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = convert(poisson())(torch.full((B, 6), 0.5))
    assert not torch.equal(out[1] - 0.9 * out[0], out[2] - 0.9 * out[1])
    mixed = body(
        "spk, mem = self.lif1(self.fc1(x[t] * torch.rand(len(x[t]), 1)), mem)",
        "out.append(spk - spk.mean(0))",
    )
    with pytest.raises(ConversionError, match="differs from that of the author's loop"):
        convert(awake(mixed()))(2 * torch.rand(T, B, 6))


def test_spike_times_and_the_state_of_batch_norm():
    x = 2 * torch.rand(B, 6)
    net = awake(Net())
    assert torch.equal(convert(net, spike_format="times")(x)[0], convert(net)(x)[0])


class OtherName(nn.Module):
    """The first parameter of its methods has another name than self."""

    def __init__(net):
        super().__init__()
        net.fc, net.lif = nn.Linear(6, 4), snn.Leaky(0.9)

    def forward(net, x):
        mem, spikes = net.lif.init_leaky(), []
        for step in range(x.size(0)):
            spk, mem = net.lif(net.fc(x[step]), mem)
            spikes.append(spk)
        return torch.stack(spikes)


def test_the_first_parameter_may_have_any_name():
    x = torch.rand(7, 3, 6) * 3
    spikes = convert(OtherName())(x)
    assert spikes.shape == (7, 3, 4)
    assert spikes.sum(0).max() == 1


class Bodies(nn.Module):
    """A layer, a neuron and a vector of as many elements as the layer has outputs."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 12), snn.Leaky(0.9)
        self.register_buffer("scale", torch.rand(12))


class Plain(Bodies):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for t in range(x.shape[0]):
            spk, mem = self.lif(self.fc(x[t]), mem)
            out.append(spk - self.lif.threshold)  # a constant, and no state
        return torch.stack(out)


class Vectors(Bodies):
    def forward(self, x):
        mem, trace, out = self.lif.init_leaky(), torch.zeros(x.shape[1], 12), []
        for frame in x:
            weight = torch.sigmoid(self.scale)
            spk, mem = self.lif(self.fc(frame), mem)
            trace = weight * trace + torch.where(spk > 0, self.scale[None], 0.1 * trace)
            out.append(mem * weight)
        return torch.stack(out), trace, weight.expand(x.shape[1], 12)


class Factors(Bodies):
    """A factor for each sample meets tensors of all steps, so it is expanded over time."""

    def forward(self, x):
        mem, out, factor = self.lif.init_leaky(), [], x.mean((0, 2))[:, None]
        for t in range(x.shape[0]):
            _, mem = self.lif(self.fc(x[t]), mem)
            out.append(mem * factor)
        return torch.stack(out)


@pytest.mark.parametrize("make", [Plain, Vectors, Factors])
def test_sizes_that_coincide_change_nothing(make):
    """Each sample alone gives what it gives in a batch: steps, samples, units may be as many."""
    torch.manual_seed(1)
    fast = convert(awake(make()))
    fast(torch.rand(7, 3, 6))
    for steps, batch in ((5, 1), (12, 1), (4, 3), (6, 2), (3, 5), (7, 3), (1, 12)):
        x = 2 * torch.rand(steps, batch, 6)
        filler = torch.rand(steps, 13, 6)
        for mine, right in zip(
            leaves(fast(x)), leaves(fast(torch.cat([x, filler], 1))), strict=True
        ):
            right = right.narrow(-2, 0, batch)
            assert mine.shape == right.shape
            assert torch.allclose(mine, right, atol=1e-5)


class DenseOperations(Bodies):
    """Methods of spike times that make them dense, or return others."""

    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for frame in x:
            spk, mem = self.lif(self.fc(frame), mem)
            dense = [2 * spk, spk * self.scale, spk.float(), spk[:, 1:], spk.to_dense()]
            out.append((*dense, spk.detach()))
        return [torch.stack(parts) for parts in zip(*out, strict=True)]


@pytest.mark.filterwarnings("ignore::snn_single_spike.MaterializationWarning")
@pytest.mark.parametrize(("steps", "batch"), [(4, 3), (3, 5)])
def test_dense_operations_on_spike_times_where_sizes_coincide(steps, batch):
    net, x = awake(DenseOperations()), 2 * torch.rand(steps, batch, 6)
    expected = convert(net, spike_format="dense")(x)
    assert all(part.any() for part in expected)
    for mine, right in zip(convert(net, spike_format="times")(x), expected, strict=True):
        assert torch.equal(mine, right)


def copied_by_numpy(x):
    return torch.from_numpy(x.detach().numpy().copy())


class OutOfSight(Bodies):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for frame in x:
            spk, mem = self.lif(self.fc(frame), mem)
            out.append(copied_by_numpy(spk))
        return torch.stack(out)


def test_a_value_that_may_be_folded_or_of_the_model_is_refused():
    fast = convert(awake(OutOfSight()))
    with pytest.raises(ConversionError, match=r"12, too.*Call the model with another batch size"):
        fast(torch.rand(4, 3, 6))
    assert fast(torch.rand(4, 2, 6)).shape == (4, 2, 12)


def test_a_comparison_over_one_step_is_repeated_over_more():
    fast = convert(awake(body(STEP, "out.append(mem - mem.mean(0))")()))
    fast(torch.rand(1, B, 6))
    with pytest.raises(ConversionError, match="differs from that of the author's loop"):
        fast(torch.rand(T, B, 6))
