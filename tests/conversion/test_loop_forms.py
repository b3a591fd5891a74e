"""The forms in which people write a loop over time, each compared with the author's loop."""

import abc
import copy
import functools
import gc
import warnings
import weakref
from dataclasses import dataclass
from typing import Generic, TypeVar

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from snn_single_spike import ConversionError, convert, explain, revert

from tests.support.loops import B, Net, T, assert_as_author, author, body, leaves
from tests.support.networks import Tutorial5Loop, awake

Kind = TypeVar("Kind")
SEQUENCE = (T, B, 6)


def tqdm(iterable, **_):
    return iter(iterable)


def twice(method):
    @functools.wraps(method)
    def inner(self, *args):
        return 2 * method(self, *args)

    return inner


class Abstract(abc.ABC, Net):
    @abc.abstractmethod
    def name(self): ...


class OfKind(Abstract, Generic[Kind]):
    def name(self):
        return "kind"


class Called(Net):
    def __call__(self, x):
        mem, out = self.lif1.init_leaky(), []
        for t in tqdm(range(len(x)), desc="steps"):
            spk, mem = self.lif1(self.fc1(x[t]), mem)
            out.append(spk)
        return torch.stack(out)

    forward = nn.Module.forward


class Decorated(Net):
    @torch.no_grad()
    @twice
    def forward(self, x):
        mem, out, t = self.lif1.init_leaky(), [], -1
        t = 0
        while t < x.size(0):
            spk, mem = self.step(x[t], mem)
            out.append(spk)
            t += 1
        return torch.stack(out) + t

    @twice
    def current(self, x):
        return self.fc1(x)

    def step(self, x, mem):
        return self.lif1(self.current(x), mem)


class OverSuper(Net):
    def forward(self, x):
        spk, mem = super().forward(x)
        return spk.mean(0), mem[-1]


class OverBase(OverSuper):
    def forward(self, x):
        return Net.forward(self, x)[0].sum(0)


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 4), snn.Leaky(0.9, init_hidden=True)

    def step(self, x):
        return self.lif(self.fc(x))


class Comprehensions(Hidden):
    def forward(self, x):
        t = 1.0
        self.lif.reset_mem()
        return torch.stack([self.step(x[t]) for t in range(len(x))], 1) + t


class Generator(Hidden):
    def forward(self, x):
        utils.reset(self)
        return sum(self.step(frame) for frame in x)


class Layers(nn.Module):
    """Layers by index and by name, a local function, a batch size from before the loop."""

    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
        self.lifs = nn.ModuleList([snn.Leaky(0.9), snn.Leaky(0.8)])
        self.out2 = snn.Leaky(0.7)

    def forward(self, x):
        batch, records = x.size(1), [[] for _ in self.lifs]
        mems = {i: self.lifs[i].init_leaky() for i in range(2)}
        mem = None

        def last(spk, mem):
            return getattr(self, f"out{2}")(spk, mem)

        for t in range(x.size(0)):
            spk = x[t]
            for i in range(len(self.lifs)):
                spk, mems[i] = self.lifs[i](self.fcs[i](spk), mems[i])
                records[i].append(spk)
            spk, mem = last(spk.view(batch, 2, 4).sum(1), mem)
            records[-1] += [torch.cat([spk, spk], 1)]
        return [torch.stack(record) for record in records[:1]], torch.stack(records[-1][1::2])


@dataclass
class Out:
    spikes: torch.Tensor
    count: torch.Tensor


class Numbers(Net):
    """Arithmetic with the step, in the other direction, at some of the steps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(T))

    def forward(self, x):
        mem, late, out, count, total = self.lif1.init_leaky(), [], [None] * T, 0, 0
        for t in reversed(range(T)):
            spk, mem = self.lif1(self.fc1(x[t - 1]), mem)
            out[t] = spk * self.weight[t] * (1 - t / T)
            count += spk.sum() / spk.numel() + mem.mean()
            if t < 3:
                late.append(mem.unsqueeze(0))
                total += spk
        return Out(torch.stack(out) + total, count + torch.cat(late).sum())


class Branches(Net):
    """What only the first step does, or the last one, or all but some; one row for all samples."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.rand(T, 1, 6))

    def forward(self, x):
        late, total = [], None
        for t in range(T):
            if t == 0:
                mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            spk, mem1 = self.lif1(self.fc1(x + self.offset[t]), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            total = mem1 if total is None else total + mem1
            if t == T - 1:
                last = mem2
        for t in range(T - 1):
            if t < 2:
                continue
            late.append(t)
        return last, total, late


class Skips(Net):
    def forward(self, x):
        mem, out = self.lif1.init_leaky(), []
        for t in range(T):
            spk, mem = self.lif1(self.fc1(x), mem)
            if t < 2:
                continue
            out.append(spk + mem)
        return torch.stack(out)


class Norms(Net):
    """A BatchNorm for every step, one for all steps, and one before the first neuron."""

    def __init__(self):
        super().__init__()
        self.each = snn.BatchNormTT1d(12, T)
        self.all, self.first = nn.BatchNorm1d(4), nn.BatchNorm1d(6)

    def forward(self, x):
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(T):
            spk, mem1 = self.lif1(self.each[t](self.fc1(self.first(x))), mem1)
            spk, mem2 = self.lif2(self.all(self.fc2(spk)), mem2)
            out.append(mem2)
        return torch.stack(out)


class Stacked(Net):
    """Stacks of records along several dimensions, and of lists that change after the loop."""

    def forward(self, x):
        mem1, spikes, membranes, started = self.lif1.init_leaky(), [], [], [torch.zeros(B, 12)]
        for t in range(T):
            spk, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spikes.append(spk)
            membranes.append(mem1)
            started.append(mem1)
        stacks = torch.stack(spikes), torch.stack(membranes, 1), torch.stack(membranes, dim=-1)
        stacks[1].mul_(2)  # the list keeps its values
        spikes[2] = spikes[2] * 3
        membranes.reverse()
        stacks += torch.stack(spikes), torch.stack(membranes, dim=0), torch.stack(started)
        membranes.pop()
        return *stacks, torch.stack(membranes), torch.stack(started, axis=1)


ENTRIES = []


class Watched(Net):
    def forward(self, x):
        mem, out = self.lif1.init_leaky(), []
        for step in x:
            spk, mem = self.lif1(self.fc1(step), mem)
            out.append(spk)
        ENTRIES.append(weakref.ref(out[0]))
        return torch.stack(out)


class Keeps(nn.Module):
    """A layer that keeps its own state."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.mem = nn.Linear(6, 6), snn.Leaky(0.9), None

    def forward(self, x):
        spk, self.mem = self.lif(self.fc(x), self.mem)
        return spk


class OfStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Keeps(), Keeps())

    def forward(self, x):
        self.layers[0].mem = self.layers[0].lif.init_leaky()
        self.layers[1].mem = torch.full(x.shape[1:], 0.3)
        out = []
        for frame in x:
            out = out + [self.layers(frame)]  # noqa: RUF005
        return torch.stack(out)


class Deferred(Net):
    """Values computed from the step before, which no neuron reads."""

    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(torch.rand(12))

    def forward(self, x):
        mem, scale = self.lif1.init_leaky(), torch.full((12,), 0.3)
        trace, slow, other, total, best = torch.zeros(x.size(1), 12), 0, 0.5, 0, -torch.ones(12)
        since, still, change, traces, found, fades = 9.0, 0.0, 0.0, [], [], []
        faded = torch.zeros(x.size(1), 12)
        for t in range(x.size(0)):
            before = mem
            spk, mem = self.lif1(self.fc1(x.select(0, t) + x[t : t + 1].squeeze(0)), before)
            trace = self.decay * trace + (1 - scale) * spk
            slow, other = other - slow * 0.5, 0.3 * other + trace / (t + 1)
            total += spk
            best = torch.maximum(best, total * 0.1 - mem)
            since = torch.where(spk > 0, 0.0, since * 1.1)
            change = (0.5 * change) + spk.mean()
            with torch.no_grad():
                still = 0.7 * still - mem
            faded *= 0.5  # in place: the record of the step before holds it, too
            faded += spk
            fades.append(faded)
            traces.append(trace)
            found.append(trace.clamp(max=0.2).unsqueeze(0))
        records = [torch.stack(traces), torch.stack(fades), torch.cat(found)]
        return [*records, slow, other, total, best, since, change, still]


class Joined(Net):
    """Records that grow by concatenation."""

    def forward(self, x):
        mem = self.lif1.init_leaky()
        spikes, mems = torch.empty(0, x.size(1), 12), torch.ones(x.size(1), 2, 12)
        for frame in x:
            spk, mem = self.lif1(self.fc1(frame), mem)
            spikes = torch.cat((spikes, spk.unsqueeze(0)))
            mems = torch.cat([mems, mem[:, None], mem.unsqueeze(1)], dim=1)
        return spikes, mems, mem


class ReadStates(Net):
    """Membranes and synaptic currents as attributes of neurons, before and after they run."""

    def __init__(self):
        super().__init__()
        self.lif1 = snn.Synaptic(0.9, 0.8, init_hidden=True)
        self.lif2 = snn.Leaky(0.8, init_hidden=True)

    def forward(self, x):
        utils.reset(self)
        self.lif2.mem = x.new_zeros(x.size(1), 4)
        records, change = [], 0.0
        for t in range(x.size(0)):
            lif, before = self.lif2, self.lif2.mem
            spk = lif(self.fc2(self.lif1(self.fc1(x[t])) + 0.1 * self.lif1.syn))
            records.append(torch.cat([spk, lif.mem, self.lif1.mem.clamp(max=1), self.lif1.syn], 1))
            change = 0.5 * change + (lif.mem - before).abs()
        return torch.stack(records), change, self.lif1.syn


class Halved(Hidden):
    def forward(self, x):
        utils.reset(self)
        out = []
        for frame in x:
            out.append(self.step(frame))
            self.lif.mem = self.lif.mem * 0.5
        return torch.stack(out)


def test_a_state_that_the_loop_writes_is_refused():
    with pytest.raises(ConversionError, match="'lif': its state 'mem' is not passed on"):
        convert(awake(Halved()))(torch.rand(SEQUENCE))


FORMS = {
    "abstract and generic": (lambda: OfKind[int](), [(B, 6)]),
    "__call__, a progress bar": (Called, [SEQUENCE]),
    "decorators, a counter": (Decorated, [SEQUENCE]),
    "super": (OverSuper, [(B, 6)]),
    "base": (OverBase, [(B, 6)]),
    "comprehension": (Comprehensions, [SEQUENCE]),
    "generator": (Generator, [SEQUENCE]),
    "layers": (Layers, [SEQUENCE]),
    "numbers": (Numbers, [SEQUENCE]),
    "branches": (Branches, [(B, 6)]),
    "continue": (Skips, [(B, 6)]),
    "BatchNorm": (Norms, [(B, 6)]),
    "stacks": (Stacked, [SEQUENCE]),
    "layers with states": (OfStates, [SEQUENCE]),
    "values of the step before": (Deferred, [SEQUENCE]),
    "concatenated records": (Joined, [SEQUENCE]),
    "states of neurons": (ReadStates, [SEQUENCE]),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_gives_what_the_author_s_loop_gives(name):
    make, shapes = FORMS[name]
    torch.manual_seed(4)
    net = awake(make())
    inputs = [2 * torch.rand(shape) for shape in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fast = convert(net)
        assert_as_author(net, fast, *inputs)
        again = convert(net).eval()
        assert torch.equal(leaves(again(*inputs))[0], leaves(again(*inputs))[0])
    assert type(revert(fast)) is type(net)


def test_a_stack_of_a_record_is_one_copy():
    torch.manual_seed(5)
    net = awake(Stacked())
    stacks = convert(net)(torch.rand(SEQUENCE))
    copies = [stack.grad_fn.name() == "CloneBackward0" for stack in (stacks[0], *stacks[2:])]
    assert copies == [True, True, False, False, False, False, False]


def test_a_stack_of_entries_that_have_other_shapes_since():
    after = "  for entry in out: entry.unsqueeze_(1)"
    made = body("spk, mem = self.lif1(self.fc1(x[t]), mem)", "out.append(mem)", after=[after])
    torch.manual_seed(5)
    net, x = awake(made()), torch.rand(SEQUENCE)
    with torch.no_grad():
        torch.testing.assert_close(convert(net)(x), author(net, x)[1][0])


def test_records_end_with_the_call():
    fast, x = convert(awake(Watched())), torch.rand(SEQUENCE)
    fast(x)
    gc.disable()  # as in the author's loop, no tensor is part of a cycle
    try:
        fast(x)
        assert ENTRIES.pop()() is None
    finally:
        gc.enable()


def test_records_of_spike_times_in_a_model_with_a_size_of_all_rows():
    torch.manual_seed(5)
    net = awake(Net())
    net.num_steps = 4
    assert len(net.fc1.weight) == net.num_steps * B
    x = 2 * torch.rand(B, 6)
    dense, times = (leaves(convert(net, spike_format=name)(x)) for name in ("dense", "times"))
    assert dense[0].any()
    for mine, right in zip(times, dense, strict=True):
        assert torch.allclose(mine, right, atol=1e-5)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_a_reset_at_the_step_of_the_spike(reset):
    torch.manual_seed(3)
    net, x = awake(Net()), 0.6 * torch.rand(B, 6)
    options = {"reset_delay": False, "reset_mechanism": reset, "learn_threshold": True}
    net.lif1 = snn.Leaky(0.9, graded_spikes_factor=0.7, **options)
    net.lif2 = snn.Leaky(torch.rand(4), learn_beta=True, **options)
    fast = convert(net)
    assert_as_author(net, fast, x)
    times = convert(net, spike_format="times").eval()(x)
    torch.testing.assert_close(times[1], fast.eval()(x)[1])
    if reset != "none":
        with pytest.raises(ConversionError, match="only gradient='masked'"):
            convert(net, gradient="spike_time")


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_membrane_after_the_reset_is_that_of_snntorch(reset):
    """A drive so weak that snnTorch's own neuron spikes once."""
    torch.manual_seed(0)
    lif, x = snn.Leaky(0.9, reset_delay=False, reset_mechanism=reset), 0.4 * torch.rand(12, 5, 30)
    x[8:] = 0
    mem, out = lif.init_leaky(), []
    for step in x:
        spk, mem = lif(step, mem)
        out.append((spk, mem))
    spikes, membranes = (torch.stack(values) for values in zip(*out, strict=True))
    once = spikes.sum(0) == 1
    assert once.float().mean() > 0.2
    mine, mem = convert(nn.Sequential(nn.Identity(), copy.deepcopy(lif)))(x)
    assert torch.equal(mine[:, once], spikes[:, once])
    assert torch.allclose(mem[:, once], membranes[:, once], atol=1e-6)


def test_a_state_that_a_layer_changes_is_refused():
    class Leaks(Keeps):
        def forward(self, x):
            spk, mem = self.lif(self.fc(x), self.mem)
            self.mem = 0.5 * mem
            return spk

    net = OfStates()
    net.layers[1] = Leaks()
    with pytest.raises(ConversionError, match=r"'layers.1.lif': its state 'mem' is not passed on"):
        convert(net)(torch.rand(SEQUENCE))


LOOPS = {
    "while": ("while out is not None:", "is a while loop. Write `for t in range"),
    "else": ("for t in range(3):", "has an else branch"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_other_loops_are_refused_with_their_line(name):
    loop, message = LOOPS[name]
    lines = ["spk, mem = self.lif1(self.fc1(x[0]), mem)", "out.append(spk)"]
    after = ["  else:", "   pass"] if name == "else" else []
    made = body(*lines, loop=loop, after=after)
    with pytest.raises(ConversionError, match=rf"<made.*>:4: the loop over time {message}"):
        convert(made())


class Unbatched(nn.Module):
    """A convolution of frames of one sample, without a batch dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.lif = nn.Conv2d(1, 2, 3), nn.Linear(8, 4), snn.Leaky(0.9)

    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for frame in x:
            spk, mem = self.lif(self.fc(self.conv(frame).flatten()), mem)
            out.append(spk)
        return torch.stack(out)


class Batched(Unbatched):
    def forward(self, x):
        mem, out, x = self.lif.init_leaky(), [], x.unsqueeze(1)
        for frame in x:
            spk, mem = self.lif(self.fc(self.conv(frame).flatten(1)), mem)
            out.append(spk)
        return torch.stack(out)


def test_a_sample_without_a_batch_is_refused_with_an_edit_that_works():
    x = torch.rand(T, 1, 4, 4)
    place = r"layer 'conv' \(Conv2d\), .*test_loop_forms\.py:\d+: "
    with pytest.raises(ConversionError, match=place + r".*write x = x\.unsqueeze\(1\)"):
        convert(Unbatched())(x)
    net = awake(Batched())
    assert convert(net)(x).shape == (T, 1, 4)  # and the check has passed


class MeanOfCalls(nn.Module):
    """A mean over calls, which the loop only reads."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 4), snn.Leaky(0.9)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for frame in x:
            spk, mem = self.lif(self.fc(frame) - self.mean, mem)
            out.append(spk)
        self.mean = 0.9 * self.mean + 0.1 * torch.stack(out).mean((0, 1)).detach()
        return torch.stack(out)


class MeanGiven(MeanOfCalls):
    def forward(self, x, mean):
        mem, out = self.lif.init_leaky(), []
        for frame in x:
            spk, mem = self.lif(self.fc(frame) - mean, mem)
            out.append(spk)
        return torch.stack(out), 0.9 * mean + 0.1 * torch.stack(out).mean((0, 1)).detach()


def test_state_outside_of_the_loop_is_refused_with_an_edit_that_works():
    state = r"'self\.mean' from one call to the next .*test_loop_forms\.py:\d+.* as an argument"
    with pytest.raises(ConversionError, match=state):
        convert(MeanOfCalls())
    fast, mean = convert(awake(MeanGiven())), torch.zeros(4)
    for _ in range(2):
        spikes, mean = fast(torch.rand(T, B, 6), mean)
    assert spikes.shape == (T, B, 4)
    assert mean.any()


def test_a_loop_that_ends_early_is_refused_with_an_edit_that_works():
    step = "spk, mem = self.lif1(self.fc1(x[t]), mem)"
    early = body(step, "out.append(spk)", "if spk.sum() > 3:", " break")
    with pytest.raises(ConversionError, match=r":\d+: .*leaves the loop early.*spk_rec\[:n\]"):
        convert(early())
    whole = body(step, "out.append(spk)", after=["  out = out[:3]"])
    assert len(convert(awake(whole()))(torch.rand(SEQUENCE))) == 3


def test_what_only_the_converted_model_raises_is_no_error_of_torch():
    step = "spk, mem = self.lif1(self.fc1(x[t]), mem)"
    net = body(step, "assert len(spk) <= 3, 'too many rows'", "out.append(spk)")()
    with pytest.raises(ConversionError, match="converted model raises AssertionError: too many"):
        convert(net)(torch.rand(SEQUENCE))
    with pytest.raises(AssertionError, match="too many rows"):
        convert(net)(torch.rand(T, B + 1, 6))


def test_neurons_are_checked_before_loops():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 4), snn.RSynaptic(0.9, 0.8, linear_features=4)

        def forward(self, x):
            out = []
            while len(out) < 3:
                out.append(self.lif(self.fc(x)))
            return out

    with pytest.raises(ConversionError, match=r"'lif' \(RSynaptic\).*strict=False"):
        convert(Recurrent())


def test_a_class_without_source_is_said():
    space = {"Net": Net}
    exec("class Unseen(Net):\n def forward(self, x):\n  return self.lif1(self.fc1(x))", space)
    with pytest.warns(UserWarning, match=r"source of Unseen.forward.*define the class in a file"):
        convert(space["Unseen"]())


def test_compile_and_export_of_a_model_with_its_loop():
    x = torch.rand(B, 20)
    net = awake(Tutorial5Loop()).eval()
    fast = convert(net)
    right = fast(x)
    program = torch.export.export(fast, (x,))
    assert torch.equal(program.module()(x)[1], right[1])
    with pytest.warns(UserWarning, match=r"torch.compile does not compile.*take the loop out"):
        assert torch.equal(torch.compile(fast, backend="eager")(x)[1], right[1])


class Traced(Hidden):
    """A loop that cannot fold, which only its first call shows."""

    def forward(self, x):
        utils.reset(self)
        trace, out = torch.zeros(x.size(1), 4), []
        for frame in x:
            trace = 0.9 * trace + self.step(frame + 0 * trace.sum())
            out.append(trace)
        return torch.stack(out)


class Counts(Hidden):
    """A loop that cannot fold, as its source shows."""

    def forward(self, x):
        utils.reset(self)
        out = []
        while len(out) < len(x):
            out.append(self.step(x[len(out)]))
        return torch.stack(out)


class TwoParts(nn.Module):
    def __init__(self, second):
        super().__init__()
        self.encoder = awake(Comprehensions())
        self.decoder = second

    def forward(self, x):
        return self.decoder(torch.cat([self.encoder(x), x[..., :2].transpose(0, 1)], -1))


@pytest.mark.parametrize("second", [Traced, Counts])
def test_what_does_not_convert_stays_the_author_s_loop(second):
    torch.manual_seed(0)
    net, x = TwoParts(awake(second())), 2 * torch.rand(SEQUENCE)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fast = convert(net, strict=False)
        mine = fast(x)
    said = "\n".join(str(warning.message) for warning in warned)
    assert "the model (TwoParts) does not convert as a whole" in said
    assert f"layer 'decoder' ({second.__name__}) keeps its author's loop over time" in said
    assert {warning.filename for warning in warned} == {__file__}
    assert type(fast.decoder) is type(net.decoder)
    assert type(fast.encoder) is not type(net.encoder)
    reference = TwoParts(net.decoder)
    reference.encoder = convert(net.encoder)
    assert torch.equal(mine, reference(x))
    assert type(revert(fast).encoder) is Comprehensions


def test_explain_says_what_convert_would_do():
    x = torch.rand(SEQUENCE)
    good = explain(Comprehensions(), x)
    assert (good.converts, good.called, good.loops[0].converts) == (True, True, True)
    assert "neuron 'lif' (Leaky): becomes SingleSpikeLeaky" in str(good)
    assert "ce_rate_loss" in str(good)  # convert cannot see the loss
    recurrent = snn.RSynaptic(0.9, 0.8, linear_features=4)
    bad = explain(nn.ModuleDict({"a": Traced(), "b": recurrent}))
    assert not bad.converts
    assert "ce_rate_loss" not in str(bad)
    assert "RSynaptic" in bad.reason
    assert [neuron.becomes for neuron in bad.neurons] == ["SingleSpikeLeaky", ""]
    assert bad.loops[0].layer == "a"
    assert "test_loop_forms.py" in bad.loops[0].place
    assert explain(Counts()).loops[0].reason.startswith("the loop over time is a while loop")


def test_explain_with_an_input_runs_a_copy():
    net, x = awake(Traced()), torch.rand(SEQUENCE)
    before = author(net, x)[1][0]
    assert explain(net).converts
    report = explain(net, x)
    assert not report.converts
    assert "'trace' of the step before" in str(report)
    assert torch.equal(author(net, x)[1][0], before)
