"""What a loop over time may contain, after a survey of public networks; each with its own loop."""

import copy
import io
import warnings
from contextlib import redirect_stdout

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

from snn_single_spike import ConversionError, convert

from tests.support.loops import B, Net, T, assert_as_author, body, leaves
from tests.support.networks import awake
from tests.support.single_spike_loop import hold_to_one_spike

STEP = "spk, mem = self.lif1(self.fc1(x[t]), mem)"
APPEND = "out.append(spk)"
WIDE = "size = 2"
BODIES = {
    "time kept": (["spk, mem = self.lif1(self.fc1(x[t:t + 1]), mem)", "out.append(spk[0])"], {}),
    "time kept, batch first": (
        ["spk, mem = self.lif1(self.fc1(x[:, t:t + 1]), mem)", APPEND],
        {"loop": "for t in range(x.shape[1]):"},
    ),
    "a membrane that keeps time": (
        [
            "spk, mem = self.lif1(self.fc1(x[t:t + 1]), mem)",
            "out.append(mem)",
            "total = total + spk",
        ],
        {
            "before": "mem, total, out = torch.ones(1, x.shape[1], 12), 0, []",
            "after": ["  out.append(total)"],
        },
    ),
    "windows": (
        ["spk, mem = self.lif1(self.fc1(x[:, t * 2:(t + 1) * 2].mean(1)), mem)", APPEND],
        {"loop": "for t in range(3):"},
    ),
    "windows of the first dimension": (
        ["spk, mem = self.lif1(self.fc1(x[t:t + 3].sum(0)), mem)", APPEND],
        {"loop": "for t in range(0, 6, 3):"},
    ),
    "windows that overlap": (
        ["spk, mem = self.lif1(self.fc1(x[:, t:t + 3].amax(1)), mem)", APPEND],
        {"loop": "for t in range(x.shape[1] - 2):"},
    ),
    "narrow": (
        ["spk, mem = self.lif1(self.fc1(x.narrow(0, t, 1).squeeze(0)), mem)", APPEND],
        {},
    ),
    "index_select": (
        [
            "f = torch.index_select(x, 0, torch.tensor([t])).squeeze(0)",
            "spk, mem = self.lif1(self.fc1(f), mem)",
            APPEND,
        ],
        {},
    ),
    "index_select, time kept": (
        [
            "spk, mem = self.lif1(self.fc1(x.index_select(dim=-3, index=torch.tensor(t))), mem)",
            "out.append(spk[0])",
        ],
        {},
    ),
    "index_select of a part": (
        [
            "now = torch.LongTensor([t - 1]).to(x.device)",
            "f = x.index_select(1, now).squeeze(1) + x[:, torch.as_tensor(t)]",
            "k = 1",
            "spk, mem = self.lif1(self.fc1(f * torch.tensor([k])), mem)",
            APPEND,
        ],
        {"loop": "for t in range(1, x.shape[1]):"},
    ),
    "split": (
        ["spk, mem = self.lif1(self.fc1(f.squeeze(0)), mem)", APPEND],
        {"loop": "for f in torch.split(x, 1):"},
    ),
    "split, time kept": (
        ["spk, mem = self.lif1(self.fc1(f), mem)", "out.append(spk.squeeze(0))"],
        {"loop": "for f in x.split(1, dim=0):"},
    ),
    "chunk": (
        ["spk, mem = self.lif1(self.fc1(f.squeeze(1)), mem)", APPEND],
        {"loop": "for f in x.chunk(x.shape[1], dim=1):"},
    ),
    "del": (["cur = self.fc1(x[t])", "spk, mem = self.lif1(cur, mem)", APPEND, "del cur, spk"], {}),
    "print": (
        [STEP, APPEND, "print('step', t, f'{t:02d}', mem.shape)", "if t % 3 == 0:", " print(t)"],
        {},
    ),
    "a branch that does not run": (["if x.dim() > 3:", " x = x.flatten(2)", STEP, APPEND], {}),
    "a trace from its first value": (
        [STEP, "n = spk if n is None else 0.5 * n + spk", "out.append(n)"],
        {"before": "mem, n, out = None, None, []"},
    ),
    "sums by name": (
        [
            *(STEP, "parts = {}", "for name, s in (('a', spk), ('b', 2 * mem)):"),
            " sums[name] = sums.get(name, 0.0) + s.mean()",
            *(
                "parts['d'] = parts.get('d', 0) + 1",
                "sums['t'] = sums.get('t', spk[:, 0]) + mem[:, 1]",
            ),
        ],
        {
            "before": "mem, sums, out = None, {'b': 1.0, 't': 0.5}, []",
            "after": ["  out = [sums['a'], sums['b'], sums['t'].sum()]"],
        },
    ),
    "a maximum from its first value": (
        [STEP, "if best is None:", " best = mem", "else:", " best = torch.maximum(best, mem)"],
        {"before": "mem, best, out = None, None, []", "after": ["  out.append(best)"]},
    ),
    "a sum from the first step": (
        [STEP, "total = mem if t == 0 else total + mem"],
        {"after": ["  out.append(total)"]},
    ),
    "a trace from the first step": (
        [STEP, "if t > 0:", " last = mem - 0.1 * last", "else:", " last = mem", "out.append(last)"],
        {},
    ),
}
BATCH_FIRST = {
    *("time kept, batch first", "windows", "windows that overlap", "chunk"),
    "index_select of a part",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_gives_what_the_author_s_loop_gives(name):
    lines, options = BODIES[name]
    torch.manual_seed(1)
    net = awake(body(*lines, **options)())
    x = 2 * torch.rand(*((B, T) if name in BATCH_FIRST else (T, B)), 6)
    with redirect_stdout(io.StringIO()) as printed:
        assert_as_author(net, convert(net), x)
    if name == "print":
        assert f"[{', '.join(f'{t:02d}' for t in range(T))}]" in printed.getvalue()


def test_a_tensor_of_the_step_is_an_index_only():
    net = body("spk, mem = self.lif1(self.fc1(x[t]) + torch.tensor([t / 2]), mem)", APPEND)()
    with pytest.raises(ConversionError, match="the number of the time step for other things"):
        convert(net)(torch.rand(T, B, 6))


@pytest.mark.parametrize("name", ["chunk", "split", "time kept"])
def test_a_batch_of_one_sample(name):
    lines, options = BODIES[name]
    net = awake(body(*lines, **options)())
    shape = (1, 6) if name in BATCH_FIRST else (6, 1)
    assert_as_author(net, convert(net), 2 * torch.rand(*shape, 6))


def test_one_sample_may_be_windows_of_one_row():
    net = awake(body("spk, mem = self.lif1(self.fc1(x[t:t + 1]), mem)", APPEND)())
    assert_as_author(net, convert(net), 2 * torch.rand(T, 6))


class WithLoss(Net):
    def __init__(self):
        super().__init__()
        self.criterion = nn.MSELoss()

    def forward(self, x, target, labels):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        loss, entropy, each = torch.zeros(1), 0, []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            loss += self.criterion(mem2, target[t])
            entropy = entropy + F.cross_entropy(mem2, labels) / x.size(0)
            each.append(F.mse_loss(mem2, target[0], reduction="none").sum(1))
        return loss, entropy, torch.stack(each), spk2


def test_losses_of_every_step():
    torch.manual_seed(3)
    net = awake(WithLoss())
    given = 2 * torch.rand(T, B, 6), torch.rand(T, B, 4), torch.randint(0, 4, (B,))
    assert_as_author(net, convert(net), *given)


class TwoPlaces(nn.Module):
    """One neuron with two membranes of other shapes, as in a tutorial of snnTorch."""

    def __init__(self, width=3):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, width)
        self.lif1, self.lif2 = snn.Leaky(0.9), snn.Leaky(0.8, learn_beta=True)

    def forward(self, x):
        mem1, mem2, mem3 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif2))
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spk_rec.append(spk)
            spk, mem3 = self.lif2(self.fc3(spk), mem3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def test_one_neuron_at_two_places():
    torch.manual_seed(5)
    net, x = awake(TwoPlaces()), 2 * torch.rand(T, B, 6)
    assert_as_author(net, convert(net), x)
    with pytest.raises(ConversionError, match="a membrane of their own, and their shapes differ"):
        convert(awake(TwoPlaces(width=5)))(x)


HAZARDS = {
    "ragged windows": (
        ["spk, mem = self.lif1(self.fc1(x[:, t:t + 4].mean(1)), mem)", APPEND],
        "for t in range(0, x.shape[1], 4):",
        "windows of 3 and 4 entries",
    ),
    "a prefix": (
        ["spk, mem = self.lif1(self.fc1(x[:, :t + 1].sum(1)), mem)", APPEND],
        "for t in range(x.shape[1]):",
        "windows of 1 and 2 and 3",
    ),
    "an input that shrinks": (
        ["spk, mem = self.lif1(self.fc1(x[:, 0]), mem)", APPEND, "x = 0.9 * x"],
        "for t in range(5):",
        "uses 'x' of the step before",
    ),
    "a first value that a layer reads": (
        ["last = x[:, 0] if t == 0 else self.fc1(last)[:, :6]", "spk, mem = self.lif1(last, mem)"],
        "for t in range(5):",
        "of the step before",
    ),
}


@pytest.mark.parametrize("name", HAZARDS)
def test_bodies_whose_steps_depend_on_one_another_are_refused(name):
    lines, loop, message = HAZARDS[name]
    with pytest.raises(ConversionError, match=message):
        convert(awake(body(*lines, loop=loop)()))(2 * torch.rand(B, T, 6))


class FixedBatch(nn.Module):
    """One step, with the batch size of the script, and states that every call starts."""

    batch_size = B

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)
        self.lif1, self.lif2 = snn.Leaky(0.9), snn.Leaky(0.8)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk, mem1 = self.lif1(F.max_pool2d(self.conv(x), 2), mem1)
        spk, mem2 = self.lif2(self.fc(spk.view(self.batch_size, -1)), mem2)
        return torch.stack([spk]), mem2


class TakenOut(FixedBatch):
    def forward(self, x):
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spk, mem1 = self.lif1(F.max_pool2d(self.conv(step), 2), mem1)
            spk, mem2 = self.lif2(self.fc(spk.flatten(1)), mem2)
            out.append((spk[None], mem2))
        return [torch.stack(parts) for parts in zip(*out, strict=True)]


class FlatBatch(nn.Module):
    """Its layers have as many outputs as there are steps, and its weights T * B rows."""

    def __init__(self):
        super().__init__()
        self.fc, self.gain = nn.Linear(6, T), nn.Parameter(torch.rand(T * B, T))
        self.lif = snn.Leaky(0.9, threshold=0.5, init_hidden=True)

    def forward(self, x):
        gain = self.gain.view(3, -1, T).sum(0).mean(0)
        return self.lif(self.fc(x.view(3, -1)) * gain)


def test_a_fixed_batch_size_changes_no_reshape_of_weights_and_neurons():
    assert B == 3
    torch.manual_seed(2)
    net, x = FlatBatch(), 2 * torch.rand(T, B, 6)
    copied = copy.deepcopy(net)
    hold_to_one_spike(copied.lif)
    expected = torch.stack([copied(step) for step in x])
    assert expected.any()
    assert torch.equal(convert(net)(x), expected)


def test_a_step_with_a_fixed_batch_size_and_states_of_its_own():
    torch.manual_seed(2)
    net = awake(FixedBatch())
    with pytest.warns(
        UserWarning, match=r"starts its neurons anew in every call: self\.lif1\.init"
    ):
        fast = convert(net)
    x = 2 * torch.rand(T, B, 1, 6, 6)
    loop = TakenOut()
    loop.load_state_dict(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outs = leaves(convert(loop)(x))
    for mine, right in zip(leaves(fast(x)), outs, strict=True):
        assert mine.shape == right.shape
        assert torch.allclose(mine, right, atol=1e-5)


class ReadsStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(6, 6), snn.Leaky(0.9, init_hidden=True)),
            *(nn.Linear(6, 6), snn.Leaky(0.8, init_hidden=True)),
        )

    def forward(self, x):
        out = []
        for lif in (self.net[1], self.net[3]):
            lif.reset_mem()
        for t in range(x.size(0)):
            spk = self.net(x[t])
            mems = [layer.mem for layer in self.net if isinstance(layer, snn.Leaky)]
            out.append(torch.cat([spk, getattr(self.net[1], "mem"), *mems], 1))  # noqa: B009
        return torch.stack(out)


class ReadsOneStep(ReadsStates):
    def forward(self, x):
        return self.net(x), [layer.mem for layer in self.net if isinstance(layer, snn.Leaky)]


def test_membranes_that_a_forward_reads_from_its_layers():
    torch.manual_seed(6)
    x = 2 * torch.rand(T, B, 6)
    net = awake(ReadsStates())
    assert_as_author(net, convert(net), x)
    with pytest.raises(ConversionError, match=r"reads a state of a neuron.*output=True$"):
        convert(awake(ReadsOneStep()))(x)


class Kept(Net):
    """A model that keeps its membranes, and a BatchNorm of its own before the loop."""

    class Norm(nn.BatchNorm1d):
        def forward(self, x):
            if self.training:
                self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked + 1)
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x.flatten(0, 1), mean, var, None, None, self.training, factor).view(
                x.shape
            )

    def __init__(self):
        super().__init__()
        self.norm, self.mem = Kept.Norm(6), torch.zeros(B, 12)

    def forward(self, x):
        x, out = self.norm(x), []
        for t in range(x.size(0)):
            spk, mem = self.lif1(self.fc1(x[t]), self.mem)
            self.mem = mem
            out.append(spk)
        return torch.stack(out)


def test_states_outside_of_the_steps():
    torch.manual_seed(8)
    net = awake(Kept())
    x = 2 * torch.rand(T, B, 6)
    fast = convert(net)
    assert_as_author(net, fast, x)
    fast(x)


class InSeries(nn.Module):
    """Neurons that two loops call, one after the other."""

    def __init__(self, how="init", steps=(T, 4)):
        super().__init__()
        self.how, self.steps = how, steps
        self.fc, self.lif = nn.Linear(6, 8), snn.Leaky(0.9, learn_beta=True)
        self.out, self.last = nn.Linear(8, 3), snn.Synaptic(0.8, 0.9, reset_mechanism="zero")

    def init(self):
        return self.lif.init_leaky(), *self.last.init_synaptic()

    def forward(self, x):
        mem, syn, end = self.init()
        record, ends = [], []
        for t in range(self.steps[0]):
            spk, mem = self.lif(self.fc(x[t]), mem)
            spk, syn, end = self.last(self.out(spk), syn, end)
            record.append(spk)
        ends += [mem, end]
        if self.how == "init":
            mem, syn, end = self.init()
        elif self.how == "zeros":
            mem, syn, end = (torch.zeros_like(x) for x in (mem, syn, end))
        elif self.how == "scaled":
            mem = 0.5 * mem
        elif self.how == "none":
            mem = syn = end = None
        for t in range(self.steps[1]):
            spk, mem = self.lif(self.fc(x[t].flip(1)), mem)
            spk, syn, end = self.last(self.out(spk), syn, end)
            record.append(spk)
        return torch.stack(record), *ends, mem, end


class EachHeld(InSeries):
    """The author's loops. Every loop starts a sample, in which a neuron spikes once."""

    def init(self):
        for neuron in (self.lif, self.last):
            hold_to_one_spike(neuron)
        return super().init()


@pytest.mark.parametrize("steps", [(T, 4), (T, T)])
@pytest.mark.parametrize("how", ["init", "zeros"])
def test_loops_in_series_that_begin_from_zeros(how, steps):
    torch.manual_seed(2)
    net, reference = awake(InSeries(how, steps)), EachHeld("init", steps)
    reference.load_state_dict(net.state_dict())
    fast, x = convert(net), 3 * torch.rand(T, B, 6)
    for _ in range(2):
        found = []
        for model in (fast, reference):
            outs = model(x)
            loss = sum((out * torch.arange(out.numel()).view_as(out).cos()).sum() for out in outs)
            found.append([*outs, *torch.autograd.grad(loss, model.parameters())])
        for mine, right in zip(*found, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    assert found[0][0][:T].any()
    assert found[0][0][T:].any()


@pytest.mark.parametrize("how", ["continued", "scaled", "none"])
def test_loops_in_series_that_continue_are_refused(how):
    fast = convert(InSeries(how))
    with pytest.raises(ConversionError, match=r"mem = self\.lif\.init_leaky"):
        fast(3 * torch.rand(T, B, 6))
