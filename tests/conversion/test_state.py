"""State that a model keeps from step to step: refused, except records and membranes."""

import collections
import copy
import functools
import itertools

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

from snn_single_spike import ConversionError, convert

STEPS, BATCH, FEATURES = 5, 3, 6
STORE: dict = {}
RECORD: list = []
TIMES = 0


class Helper:
    def __init__(self):
        self.value, self.seen = 0, []

    def update(self, x):
        self.value = 0.9 * self.value + x.mean().item()
        return self.value

    def log(self, x):
        self.seen.append(x)


class Net(nn.Module):
    """A network with something before its first layer that may keep a state."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, FEATURES), snn.Leaky(beta=0.9)
        self.trace, self.t, self.last, self.made, self.records = 0, 0, None, None, []
        self.recent, self.table = collections.deque([0.0] * 3), {}
        self.helper, self.numbers = Helper(), itertools.count()
        self.register_buffer("average", torch.zeros(1))

    def before(self, x):
        return x

    def forward(self, x):
        spk, mem = self.lif(self.fc(self.before(x)))
        return spk, mem


class Trace(Net):
    def before(self, x):
        self.trace = 0.9 * self.trace + x
        return self.trace


class Buffer(Net):
    def before(self, x):
        self.average.mul_(0.9).add_(x.mean())
        return x + self.average


class Aliased(Net):
    def before(self, x):
        average = self.average
        average += x.mean()
        return x + average


class Counter(Net):
    def before(self, x):
        self.t += 1
        if self.t < 5:
            return 2 * x
        return x


class Recent(Net):
    def before(self, x):
        self.recent.append(x.mean().item())
        return x + self.recent.popleft()


class Table(Net):
    def before(self, x):
        self.table["x"] = self.table.get("x", 0) + x
        return self.table["x"]


class Helped(Net):
    def before(self, x):
        return x + self.helper.update(x)


class HelperValue(Net):
    def before(self, x):
        self.helper.value = 0.9 * self.helper.value + x
        return self.helper.value


class First(Net):
    def before(self, x):
        if self.made is None:
            self.made = x
        return x + self.made


class ByName(Net):
    def before(self, x):
        setattr(self, "t", self.t + 1)  # noqa: B010
        return x * self.t


class Hidden(Net):
    def before(self, x):
        me = self
        me.t += 1
        return x * me.t


class Numbers(Net):
    def before(self, x):
        return x * next(self.numbers)


class Length(Net):
    def before(self, x):
        self.records.append(x)
        return x * len(self.records)


class Hebb(Net):
    def before(self, x):
        self.fc.weight.data += 0.1
        return x


class HebbByName(Net):
    @torch.no_grad()
    def before(self, x):
        weight = self.fc.weight
        weight += 0.1
        return x


class Adaptive(Net):
    def before(self, x):
        for neuron in (self.lif,):
            neuron.threshold += 0.1
        return x


def counted(function):
    count = 0

    @functools.wraps(function)
    def wrapper(self, x):
        nonlocal count
        count += 1
        return function(self, x * (count < 3))

    return wrapper


class Decorated(Net):
    @counted
    def before(self, x):
        return x


class Global(Net):
    def before(self, x):
        global TIMES
        TIMES += 1
        return x * (TIMES < 3)


class Stored(Net):
    def before(self, x):
        STORE["x"] = STORE.get("x", 0) + x.mean().item()
        return x + STORE["x"]


class OfTheClass(Net):
    def before(self, x):
        Net.calls += 1
        return x * Net.calls


class Default(Net):
    def before(self, x, seen=[]):  # noqa: B006
        seen.append(1)
        return x * len(seen)


def called(x):
    RECORD.append(x)
    return x * len(RECORD)


class InAFunction(Net):
    def before(self, x):
        return called(x)


def faded(x):
    faded.trace = 0.9 * getattr(faded, "trace", 0) + x.mean().item()
    return x + faded.trace


@functools.cache
def memory():
    return {"trace": 0}


@functools.lru_cache(2)
def limited(name):
    return {name: 0}


memory(), limited("trace")


class InACache(Net):
    def before(self, x):
        memory()["trace"] = 0.9 * memory()["trace"] + x.mean().item()
        return x + memory()["trace"]


class InALimitedCache(Net):
    def before(self, x):
        limited("trace")["trace"] += x.mean().item()
        return x + limited("trace")["trace"]


@functools.cache
def ones(size):
    return torch.ones(size)


class OfAFunction(Net):
    def before(self, x):
        return faded(x)


class OfTheNeuron(Net):
    def forward(self, x):
        self.lif(self.fc(x))
        return self.lif.mem


class Delay(Net):
    """A ring buffer, as in snnTorch's SynapticDelay."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ring", torch.zeros(3, 1))
        self.pointer = 0

    def before(self, x):
        self.ring[self.pointer] = x.mean().detach()
        self.pointer = (self.pointer + 1) % 3
        return x + self.ring[self.pointer]


class Detached(Net):
    def __init__(self):
        super().__init__()
        self.mem = self.lif.init_leaky()

    def forward(self, x):
        spk, mem = self.lif(self.fc(x), self.mem)
        self.mem = mem.detach()
        return spk


class FedBack(Net):
    def __init__(self):
        super().__init__()
        self.mem = self.lif.init_leaky()

    def forward(self, x):
        if self.mem.numel():
            x = x - self.mem
        spk, self.mem = self.lif(self.fc(x), self.mem)
        return spk


class ByAProperty(Net):
    @property
    def scale(self):
        self.t += 1
        return self.t

    def before(self, x):
        return x * self.scale


class Callable:
    __slots__ = ("t",)

    def __init__(self):
        self.t = 0

    def __call__(self, x):
        self.t += 1
        return x * self.t


class Called(Net):
    def __init__(self):
        super().__init__()
        self.fade = Callable()

    def before(self, x):
        return self.fade(x)


class BeforeTheLayer(Net):
    def __init__(self):
        super().__init__()
        self.inner = Last()
        self.inner.last = torch.zeros(1)

    def forward(self, x):
        return self.inner(x + self.inner.last.mean())


class Inside(Net):
    def __init__(self):
        super().__init__()
        self.inner = Trace()

    def before(self, x):
        return self.inner.before(x)

    def forward(self, x):
        return self.inner(x)


NAMED = {
    Trace: "'self.trace'", Buffer: "'self.average'", Aliased: "'self.average'",
    Counter: "'self.t'", Recent: "'self.recent'", Table: "'self.table'", Helped: "'self.helper'",
    HelperValue: "'self.helper.value'", First: "'self.made'", ByName: "'self.t'",
    Hidden: "'self.t'", Numbers: "'self.numbers'", Length: "'self.records'",
    Hebb: "'self.fc.weight.data'", HebbByName: r"layer 'fc' \(Linear\).*'self.weight'",
    Adaptive: r"layer 'lif' .*'self.threshold'", Decorated: "'count'",
     Global: "'TIMES'", Stored: "'STORE'", OfTheClass: "'calls'",
    Default: "'seen'", InAFunction: "'RECORD'", OfAFunction: "'faded.trace'",
    InACache: "'memory'", InALimitedCache: "'limited'",
    OfTheNeuron: "'self.lif.mem'.*output=True",
    Delay: "'self.(ring|pointer)'", Detached: "'self.mem'.*starts from zeros",
    ByAProperty: "'self.t'", Called: "'self.fade'",
    BeforeTheLayer: r"layer 'inner' \(Last\) keeps the state 'self.last'",
    FedBack: "'self.mem'", Inside: r"layer 'inner' \(Trace\) keeps the state 'self.trace'",
}  # fmt: skip


@pytest.mark.parametrize("num_steps", [None, STEPS])
@pytest.mark.parametrize("kind", NAMED, ids=lambda kind: kind.__name__)
def test_state_is_refused_in_the_first_call(kind, num_steps):
    x = torch.rand(BATCH, FEATURES) if num_steps else torch.rand(STEPS, BATCH, FEATURES)
    with pytest.raises(ConversionError, match=NAMED[kind]) as raised:
        convert(kind(), num_steps=num_steps)(x)
    if kind not in (Aliased, First, Hidden, Default, Called, HebbByName, Adaptive):
        assert "test_state.py:" in str(raised.value)


def test_the_trace_that_was_silently_wrong():
    """The loop fires at step 3, from a trace of 1.72."""

    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.trace = snn.Leaky(beta=0.0, threshold=1.5), 0.0

        def forward(self, x):
            self.trace = 0.9 * self.trace + x
            return self.lif(self.trace)[0]

    net = Traced()
    assert [net(torch.full((1, 1), 0.5)).item() for _ in range(4)] == [0, 0, 0, 1]
    with pytest.raises(ConversionError, match="keeps the state 'self.trace'.*forward reads it"):
        convert(net)


class Last(Net):
    def before(self, x):
        self.last = x
        return x


class Local(Net):
    def before(self, x):
        if self.training:
            self.last = 2 * x
        else:
            self.last = x
        return self.last


class Recorded(Net):
    def before(self, x):
        self.records.append(x)
        self.table["x"] = x
        self.t += 1
        self.helper.log(x)
        RECORD.append(x)
        logged(x)
        return x * ones(x.size(1))


def logged(x):
    logged.calls += 1
    logged.last = x


logged.calls = 0


class Metadata(Net):
    def before(self, x):
        if self.last is None or self.average.shape == (2,):
            self.average.to(x.device)
        self.last = x
        return x


class CachedLayer(Net):
    def before(self, x):
        if self.made is None:
            self.made = nn.Linear(x.size(1), x.size(1))
        return self.made(x)


class AuxiliaryLoss(Net):
    def __init__(self):
        super().__init__()
        self.inner = Last()

    def forward(self, x):
        spk, mem = self.inner(x)
        return spk, mem + 0 * self.inner.last.sum()


class Membrane(Net):
    def __init__(self):
        super().__init__()
        self.mem = self.lif.init_leaky()

    def forward(self, x):
        spk, self.mem = self.lif(self.fc(x), self.mem)
        return spk, self.mem


class TwoLines(Membrane):
    def forward(self, x):
        spk, mem = self.lif(self.fc(x), mem=self.mem)
        self.mem = mem
        return spk, mem


class InAList(Net):
    def __init__(self):
        super().__init__()
        self.lifs = nn.ModuleList([snn.Leaky(beta=0.9), snn.Leaky(beta=0.8)])
        self.mems = [None, None]

    def forward(self, x):
        for i, lif in enumerate(self.lifs):
            x, self.mems[i] = lif(self.fc(x) * 2, self.mems[i])
        return x, x + 1


class Restarted(Net):
    def forward(self, x):
        mem = self.lif.init_leaky()
        return self.lif(self.fc(x), mem)


class Synaptic(Net):
    def __init__(self):
        super().__init__()
        self.lif = snn.Synaptic(alpha=0.8, beta=0.9)
        self.syn = None
        self.mem = None

    def forward(self, x):
        if self.syn is None:
            self.syn, self.mem = self.lif.reset_mem()
        spk, self.syn, self.mem = self.lif(self.fc(x), self.syn, self.mem)
        return spk, self.mem


RIGHT = [
    *(Last, Local, Recorded, Metadata, CachedLayer, AuxiliaryLoss),
    *(Membrane, TwoLines, InAList, Synaptic),
]


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_records_and_membranes_are_right_in_every_call(kind):
    net = kind()
    fast, x = convert(net), 3 * torch.rand(STEPS, BATCH, FEATURES)
    fast(x.flip(0))
    fast(x[:, :2])  # a smaller batch
    spk, mem = fast(x)
    if kind is not CachedLayer:  # has made other weights
        spikes = torch.stack([net(step)[0] for step in x])
        first = spikes * (spikes.cumsum(0) == 1)
        if kind is not InAList:  # its second neuron receives several spikes in the loop
            assert torch.equal(spk, first)
    assert torch.equal(fast(x)[1], mem)


def test_a_membrane_that_forward_makes_is_zeros_in_every_call():
    fast, x = convert(Restarted()), 3 * torch.rand(STEPS, BATCH, FEATURES)
    first = fast(x)
    fast.lif.init_leaky()
    for one, two in zip(first, fast(x), strict=True):
        assert torch.equal(one, two)


def test_a_membrane_of_before_the_conversion_and_copies():
    net = Membrane()
    net(torch.rand(BATCH, FEATURES))
    fast, x = convert(net), torch.rand(STEPS, BATCH, FEATURES)
    with torch.no_grad():
        _, mem = fast(x)
    other = copy.deepcopy(fast)
    assert torch.equal(other(x)[1], mem)


def test_a_membrane_behind_spike_times():
    class Hidden(Membrane):
        def __init__(self):
            super().__init__()
            self.fc2, self.lif2 = nn.Linear(FEATURES, 4), snn.Leaky(beta=0.9)
            self.mem2 = self.lif2.init_leaky()

        def forward(self, x):
            spk, self.mem = self.lif(self.fc(x), self.mem)
            _, self.mem2 = self.lif2(self.fc2(spk), self.mem2)
            return self.mem2

    fast, x = convert(Hidden(), spike_format="times"), torch.rand(STEPS, BATCH, FEATURES)
    assert torch.equal(fast(x).to_dense(), fast(x).to_dense())


class Monitor:
    def __init__(self):
        self.seen, self.t = [], 0

    def record(self, module, inputs, output):
        self.seen.append(output)

    def fade(self, module, inputs, output):
        self.t += 1
        return output / self.t


def test_state_of_hooks():
    x, seen, store, state = torch.rand(STEPS, BATCH, FEATURES), [], {}, {"t": 0}
    monitor = Monitor()

    def keep(module, inputs, output):
        store["fc"] = output.detach()
        module.output = output

    def fade(module, inputs, output):
        state["t"] += 1
        return output / state["t"]

    def carry(module, inputs, output):
        module.sum = getattr(module, "sum", 0) + output
        return module.sum

    fast = convert(Net())
    fast.fc.register_forward_hook(keep)
    fast.fc.register_forward_hook(lambda module, inputs, output: seen.append(output))
    fast.fc.register_forward_hook(monitor.record)
    for calls in (1, 2):
        fast(x)
        assert len(seen) == len(monitor.seen) == calls
    for hook, name in ((fade, "'state'"), (carry, "'self.sum'"), (monitor.fade, "'t'")):
        fast = convert(Net())
        fast.fc.register_forward_hook(hook)
        with pytest.raises(ConversionError, match=f"keeps the state {name}"):
            fast(x)


class Norm(nn.BatchNorm1d):
    """A subclass whose statistics are torch's."""

    def forward(self, x):
        return F.relu(super().forward(x))


@pytest.mark.filterwarnings("ignore:.*BatchNorm takes its statistics")
def test_statistics_of_torch_are_no_state():
    fast = convert(nn.Sequential(Norm(FEATURES), snn.Leaky(0.9, init_hidden=True)))
    for _ in range(2):
        fast(torch.rand(STEPS, BATCH, FEATURES))
    assert fast[0].num_batches_tracked == 2
