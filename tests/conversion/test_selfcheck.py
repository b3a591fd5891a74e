"""The self-check: what the source of a model does not show, its first call finds."""

import array
import contextvars
import copy
import functools
import itertools
import warnings

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from torch import nn

from snn_single_spike import ConversionError, convert

from tests.support.networks import tutorial7

STEPS, BATCH, FEATURES = 5, 3, 6
RECORDS: list = []
NUMBERS = itertools.count(1)
ARRAY = array.array("d", [1.0])
CONTEXT: contextvars.ContextVar = contextvars.ContextVar("gain", default=1.0)


class Helper:
    value = 0.0

    def step(self, x):
        self.value = 0.9 * self.value + x.mean().item()
        return self.value


HELPER = Helper()


class Numbers(list):
    """A list of the user's own kind."""


LIST = Numbers([1.0])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, FEATURES), snn.Leaky(beta=0.9)
        self.parts = nn.ModuleList([nn.ReLU(), nn.ReLU()])
        self.trace, self.cache, self.records = torch.zeros(FEATURES), {}, []

    def before(self, x):
        return x

    def forward(self, x):
        return self.lif(self.fc(self.before(x)))


def net_with(before):
    """A network whose input is changed before the first layer, in a method."""
    return type("Made", (Net,), {"before": before})()


def data(net, x):
    trace = net.trace.data
    trace.mul_(0.9).add_(1)
    return x + trace


def by_numpy(net, x):
    net.trace.numpy()[:] += 1
    return x + net.trace


def loop_variable(net, x):
    for part in net.parts:
        part.seen = getattr(part, "seen", 0) + 1
        x = part(x) * part.seen
    return x


def in_an_array(net, x):
    ARRAY[0] += 1
    return x * ARRAY[0]


def in_a_list(net, x):
    LIST[0] += 1
    return x * LIST[0]


def in_the_context(net, x):
    CONTEXT.set(CONTEXT.get() + 1)
    return x * CONTEXT.get()


def own_generator(net, x):
    return x + torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


def seeded(net, x):
    torch.manual_seed(0)
    return x + torch.rand_like(x)


def forked(net, x):
    with torch.random.fork_rng():
        return x + torch.rand_like(x)


LOOP = "differs from that of the author's loop"
STATES = {
    "data": (data, r"state 'self.trace.data'.*test_selfcheck.py:\d+"),
    "numpy": (by_numpy, "layer 'fc'.*at step 1.*the loop changes self.trace"),
    "loop variable": (loop_variable, r"'parts.1' \(ReLU\).*step 1.*self.parts.0.seen"),
    "helper": (lambda net, x: x + HELPER.step(x), "state 'HELPER'"),
    "iterator": (lambda net, x: x * next(NUMBERS), "state 'NUMBERS'"),
    "array": (in_an_array, "state 'ARRAY'"),
    "list": (in_a_list, "state 'LIST'"),
    "context": (in_the_context, "state 'CONTEXT'"),
    "own generator": (own_generator, "torch.Generator that it has made"),
    "seeded": (seeded, r"test_selfcheck.py:\d+ seeds a random generator"),
    "forked": (forked, "sets the generator back"),
}
ROWS = {
    "mean of the batch": lambda net, x: x - x.mean(0),
    "neighbor": lambda net, x: x + x.roll(1, 0),
    "batch norm": lambda net, x: F.batch_norm(x, None, None, training=True),
    "largest": lambda net, x: x / x.max(),
}


@pytest.mark.parametrize("num_steps", [None, STEPS])
@pytest.mark.parametrize("name", STATES)
def test_state_that_the_source_hides(name, num_steps):
    before, message = STATES[name]
    x = torch.rand(STEPS, BATCH, FEATURES)
    with pytest.raises(ConversionError, match=message):
        convert(net_with(before), num_steps=num_steps)(x[0] if num_steps else x)


def test_functions_in_attributes_are_read():
    class Held(Net):
        def __init__(self):
            super().__init__()
            self.code = lambda x: x + HELPER.step(x)

        def forward(self, x):
            return self.lif(self.fc(self.code(x)))

    with pytest.raises(ConversionError, match="state 'HELPER'"):
        convert(Held())(torch.rand(STEPS, BATCH, FEATURES))


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_depend_on_one_another(name):
    fast = convert(net_with(ROWS[name]))
    for _ in range(2):  # a refused call is no first call
        with pytest.raises(ConversionError, match=rf"{LOOP}.*'fc' \(Linear\).*rows"):
            fast(torch.rand(STEPS, BATCH, FEATURES))
    fast = convert(net_with(ROWS[name]), num_steps=STEPS)
    fast(torch.rand(BATCH, FEATURES))  # computed once, for the batch of one step
    assert convert(net_with(ROWS[name]), check=False)(torch.rand(STEPS, BATCH, FEATURES))


class Swap(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(FEATURES, FEATURES), snn.Leaky(0.9), snn.Leaky(0.5)
        self.mem_a, self.mem_b = self.a.init_leaky(), self.b.init_leaky()

    def forward(self, x):
        one, mem_a = self.a(3 * self.fc(x), self.mem_a)
        two, mem_b = self.b(self.fc(x), self.mem_b)
        self.mem_a, self.mem_b = mem_b, mem_a
        return one, two


def test_two_neurons_that_swap_their_membranes():
    with pytest.raises(ConversionError, match="'a' .Leaky. differs first at step 1"):
        convert(Swap())(torch.rand(STEPS, BATCH, FEATURES))


@pytest.mark.parametrize(("steps", "batch", "side"), [(4, 2, 8), (2, 2, 4), (3, 1, 3)])
def test_noise_of_an_image_with_as_many_pixels_as_rows(steps, batch, side):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lif = nn.Conv2d(1, 2, 3, padding=1), snn.Leaky(0.9)

        def forward(self, x):
            y = self.conv(x)
            return self.lif(y + torch.rand(y.shape[2:]))

    with pytest.raises(ConversionError, match="one draw would serve several"):
        convert(Noisy())(torch.rand(steps, batch, 1, side, side))


class Drawn(nn.Module):
    """Draws of all kinds, before and behind a neuron, compared exactly."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.drop = nn.Linear(6, 6), snn.Leaky(0.9), nn.Dropout(0.3)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True)
        self.out, self.generator = snn.Synaptic(0.8, 0.9), torch.Generator()

    def forward(self, x):
        x = F.rrelu(x + 0.1 * torch.randn_like(x), training=True)
        x = x * torch.rand(len(x), 1, generator=self.generator)
        spk, _ = self.lif(2 * self.fc(self.drop(x)))
        token = torch.bernoulli(spk * 0.5)[:, None]
        mixed, _ = self.attention(token, token, token)
        return self.out(mixed[:, 0] + torch.empty_like(x).uniform_())


@pytest.mark.parametrize("num_steps", [None, STEPS])
def test_random_networks_are_compared_and_draw_as_without_the_check(num_steps):
    net, x = Drawn(), torch.rand(STEPS, BATCH, FEATURES)
    x = x[0] if num_steps else x
    outs = []
    for check in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast = convert(net, num_steps=num_steps, check=check)
            for mode in (True, False):
                fast.train(mode)
                torch.manual_seed(1)
                fast.generator.manual_seed(1)
                outs += [fast(x)[2], fast(x)[2]]
    assert all(map(torch.equal, outs[:4], outs[4:]))


def test_records_outside_of_the_model_are_those_of_the_call():
    def record(net, x):
        RECORDS.append(x)
        net.records.append(x)
        return x

    fast, seen, x = convert(net_with(record)), {}, torch.rand(STEPS, BATCH, FEATURES)
    fast.fc.register_forward_hook(lambda module, inputs, out: seen.update(fc=out))
    RECORDS.clear()
    fast(x)
    assert len(RECORDS) == len(fast.records) == 1
    assert RECORDS[0].shape == seen["fc"].shape == (STEPS * BATCH, FEATURES)
    assert seen["fc"].dtype == torch.float32


def test_the_check_is_made_for_code_of_the_user_and_on_request():
    x = torch.rand(2, 2, 2, 34, 34)
    for check, made in ((None, {}), (True, {True: 1})):
        fast = convert(tutorial7(), check=check)
        fast(x)
        assert fast._single_spike.comparisons == made
    fast = convert(Net())
    for _ in range(2):
        fast(x[:, :, 0, 0, :6])
    fast.eval()
    fast(x[:, :, 0, 0, :6])
    assert fast._single_spike.comparisons == {True: 1, False: 1}
    fast.cache["noise"] = 0.5  # a flag in a container
    fast(x[:, :, 0, 0, :6])
    assert fast._single_spike.comparisons == {True: 1, False: 2}


def test_a_model_that_does_not_run_on_copies_says_so():
    class Single(Net):
        def forward(self, x):
            assert x.dtype == torch.float32, "float32 only"
            return super().forward(x)

    with pytest.warns(UserWarning, match=r"was not compared.*\(AssertionError: float32 only"):
        convert(Single())(torch.rand(STEPS, BATCH, FEATURES))


def test_rates_of_dropout_and_flags_in_containers_make_a_first_call():
    class Switched(Net):
        def __init__(self):
            super().__init__()
            self.config, self.drop, self.late = {"noise": [False]}, nn.Dropout(), nn.Dropout(0.0)

        def forward(self, x):
            spk, mem = self.lif(self.fc(self.late(x)))
            return self.drop(spk), mem + torch.rand(1) if self.config["noise"][0] else mem

    fast, x = convert(Switched(), num_steps=STEPS), torch.ones(BATCH, FEATURES)
    _, mem = fast(x)
    assert torch.allclose(mem[1], 1.9 * mem[0], atol=1e-5)  # the same current at both steps
    fast.late.p = 0.5
    _, mem = fast(x)
    assert not torch.allclose(mem[1], 1.9 * mem[0], atol=1e-5)
    fast.config["noise"][0] = True
    with pytest.raises(ConversionError, match=r"of shape \(1,\)"):
        fast(x)


@pytest.mark.parametrize("name", ["array", "iterator", "mean of the batch"])
def test_compiled_models_are_compared_while_they_are_traced(name):
    before = STATES[name][0] if name in STATES else ROWS[name]
    x = torch.rand(STEPS, BATCH, FEATURES)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="ConversionError: "):
        torch.compile(convert(net_with(before)), backend="eager", fullgraph=True)(x)


def test_a_model_that_is_compiled_first_runs_its_front_once():
    fast, x = convert(Net(), num_steps=STEPS), torch.rand(BATCH, FEATURES)
    rows = []
    fast.lif.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    torch._dynamo.reset()
    state = torch.get_rng_state()
    out = torch.compile(fast, backend="eager")(x)
    assert torch.equal(state, torch.get_rng_state())
    assert set(rows) == {BATCH}
    assert torch.equal(out[1], fast(x)[1])


def test_checkpoints_around_a_model():
    from torch.utils.checkpoint import checkpoint

    x = torch.rand(STEPS, BATCH, FEATURES, requires_grad=True)
    fast = convert(Net())
    checkpoint(fast, x, use_reentrant=False)[1].sum().backward()  # its first call
    through, x.grad = x.grad, None
    fast(x)[1].sum().backward()
    assert torch.equal(x.grad, through)


# What must not be refused


class Hooked(Net):
    """Hooks that hold the model."""

    def __init__(self):
        super().__init__()
        self.fc.register_forward_hook(lambda module, inputs, out: self.records.append(out))
        self.fc.register_forward_hook(self.keep)

    def keep(self, module, inputs, out):
        self.cache["fc"] = out


class Layers(nn.Module):
    """Membranes in a list, under local names."""

    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList([nn.Linear(FEATURES, FEATURES) for _ in range(2)])
        self.lifs = nn.ModuleList([snn.Leaky(0.9), snn.Leaky(0.8)])
        self.mems = [None, None]

    def forward(self, x):
        for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
            mem = self.mems[i]
            x, mem = lif(2 * fc(x), mem)
            self.mems[i] = mem
        return x, mem


class Named(Layers):
    def forward(self, x):
        one, two = self.mems[0], self.mems[1]
        spk, one = self.lifs[0](2 * self.fcs[0](x), one)
        spk, two = self.lifs[1](2 * self.fcs[1](spk), two)
        self.mems[0], self.mems[1] = one, two
        return spk, two


class Table(Net):
    @functools.cached_property
    def table(self):
        return torch.linspace(0, 1, FEATURES)

    def forward(self, x):
        return self.lif(self.fc(x + self.table))


def cached(net, x):
    net.cache["h"] = 2 * x
    return net.cache["h"] + 1


def cached_locally(net, x):
    cache = net.cache
    cache["h"] = 2 * x
    return cache["h"] + 1


RIGHT = {
    "hooks": Hooked,
    "layers": Layers,
    "names": Named,
    "table": Table,
    "cache": lambda: net_with(cached),
    "local cache": lambda: net_with(cached_locally),
    "script": lambda: nn.Sequential(torch.jit.script(nn.Linear(FEATURES, 4)), snn.Leaky(0.9)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_these_are_no_state(name):
    fast, x = convert(RIGHT[name]()), torch.rand(STEPS, BATCH, FEATURES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = fast(x)
        assert torch.equal(fast(x)[1], first[1])
        copied = copy.deepcopy(fast)  # with the membranes and records of a call with gradients
    assert torch.equal(copied(x)[1], first[1])


def test_an_old_value_under_a_local_name_is_state():
    def delayed(net, x):
        old = net.trace
        net.trace = x.mean(0)
        return x + old

    class Delayed(Net):
        def forward(self, x):
            old = self.trace
            self.trace = x.detach()
            return self.lif(self.fc(x + old))

    with pytest.raises(ConversionError, match="state 'self.trace'"):
        convert(Delayed())
    with pytest.raises(ConversionError, match=r"state|differs"):
        convert(net_with(delayed))(torch.rand(STEPS, BATCH, FEATURES))


def test_time_dim_and_a_second_input_without_time():
    class Two(Net):
        def forward(self, x, gain):
            return self.lif(self.fc(x * gain))

    fast = convert(Two(), time_dim=1)
    with pytest.raises(ConversionError, match=r"an input has shape \(3,\), but every tensor"):
        fast(torch.rand(BATCH, STEPS, FEATURES), torch.rand(BATCH))


SIZES = {
    "batch first, in the second epoch": ([8, 8, 8, 3, 8], True),
    "batch first, at the end of a long epoch": ([8] * 11 + [3], True),
    "few batches": ([8, 3, 8, 3, 8], True),
    "one epoch": ([8, 8, 8, 8, 3], False),
    "sorted by length": ([9, 9, 9, 9, 8, 8, 8, 7, 9, 9, 9, 9, 8, 8], False),
    "other lengths": ([5, 7, 5, 6, 7, 5, 5, 6, 5, 7, 5], False),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_loaders_with_the_batch_first(name):
    sizes, expected = SIZES[name]
    fast = convert(nn.Sequential(nn.Linear(2, 2), snn.Leaky(0.9, init_hidden=True)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in sizes:
            fast(torch.rand(size, 4, 2))
    assert any("smaller last batch" in str(x.message) for x in caught) == expected
