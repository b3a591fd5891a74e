"""Single-spike models as NIR graphs: through a file and back, and models without a NIR form."""

import copy
import functools
import importlib
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import snn_single_spike
from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SingleSpikeLinear, revert

nir = pytest.importorskip("nir", reason='pip install "snn-single-spike[nir]"')
pytest.importorskip("nirtorch", reason='pip install "snn-single-spike[nir]"')

from snntorch.export_nir import export_to_nir as snntorch_export  # noqa: E402
from snntorch.import_nir import import_from_nir as snntorch_import  # noqa: E402

from snn_single_spike.nir import export_to_nir  # noqa: E402
from snn_single_spike.nir import import_from_nir as read  # noqa: E402

# Plain torch, because a compilation of the loops would take longer than these tests.
convert = functools.partial(snn_single_spike.convert, backend="torch")
import_from_nir = functools.partial(read, backend="torch")

DT = 1e-4
STEPS, BATCH = 20, 3


def leaky(beta=0.9, **options):
    return snn.Leaky(beta, init_hidden=True, **options)


def between(low, high, *shape):
    return low + (high - low) * torch.rand(*shape)


def mlp(reset="subtract"):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(8, 12),
        leaky(between(0.5, 1, 12), threshold=between(0.5, 2, 12), reset_mechanism=reset),
        nn.Dropout(0.5),
        nn.Linear(12, 5, bias=False),
        leaky(0.8, threshold=0.7, output=True, reset_mechanism=reset),
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(1, 0), bias=False),
        leaky(between(0.5, 1, 4, 1, 1), threshold=between(0.5, 2, 4, 1, 1)),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, (3, 1), padding="same", dilation=2),
        nn.Identity(),
        leaky(between(0.5, 1, 6, 4, 2)),
        nn.Flatten(),
        nn.Linear(48, 5),
        leaky(output=True),
    )


class Block(nn.Module):
    def __init__(self, features, into):
        super().__init__()
        self.fc = nn.Linear(features, into)
        self.lif = snn.Leaky(0.9)

    def forward(self, x):
        return self.lif(self.fc(x), self.lif.reset_mem())[0]


class Nested(nn.Module):
    """Nested modules, membranes returned and passed, a layer with the name of a NIR node."""

    def __init__(self):
        super().__init__()
        self.block = Block(8, 10)
        self.more = nn.ModuleList([Block(10, 6)])
        self.fc = nn.Linear(6, 4)
        self.output = snn.Leaky(0.85)

    def forward(self, x):
        for block in (self.block, *self.more):
            x = block(x)
        spk, mem = self.output(self.fc(x))
        return {"spikes": spk, "rest": [mem]}


MODELS = {"mlp": (mlp, (2, 4)), "cnn": (cnn, (2, 8, 9)), "nested": (Nested, (8,))}


def awake(model):
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data *= 3
    return model


def through_a_file(graph, tmp_path):
    nir.write(tmp_path / "net.nir", graph)
    return nir.read(tmp_path / "net.nir")


def neurons(graph):
    return {k: n for k, n in graph.nodes.items() if isinstance(n, (nir.LIF, nir.CubaLIF))}


def flat(out):
    return [out["spikes"], *out["rest"]] if isinstance(out, dict) else list(out)


@pytest.mark.parametrize("name", MODELS)
def test_through_a_file_and_back(name, tmp_path):
    make, shape = MODELS[name]
    fast = convert(awake(make())).eval()
    data = torch.rand(STEPS, BATCH, *shape) * 4
    back = import_from_nir(through_a_file(export_to_nir(fast, data), tmp_path))
    expected = flat(fast(data))
    assert 0 < expected[0].sum(0).mean() < 1  # some neurons fire, some do not
    spk, mem = back(data)
    assert torch.equal(spk, expected[0])
    assert torch.allclose(mem, expected[1], atol=1e-5)  # a convolution with a bias of zeros


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_the_membrane_after_the_spike_comes_back(reset, tmp_path):
    fast = convert(awake(mlp(reset))).eval()
    data = torch.rand(STEPS, BATCH, 8) * 2
    graph = through_a_file(export_to_nir(fast, data), tmp_path)
    assert {n.metadata["reset_mechanism"] for n in neurons(graph).values()} == {reset}
    for mine, right in zip(import_from_nir(graph)(data), fast(data), strict=True):
        assert torch.equal(mine, right)


def test_parameters_come_back_and_checkpoints_load(tmp_path):
    fast = convert(cnn())
    back = import_from_nir(through_a_file(export_to_nir(fast, torch.rand(1, 1, 2, 8, 9)), tmp_path))
    state, mine = fast.state_dict(), back.state_dict()
    assert not mine.pop("0.bias").any()  # NIR's convolutions have one
    assert list(mine) == list(state)
    for key, value in state.items():
        assert mine[key].shape == value.shape, key
        assert torch.equal(mine[key], value), key


def test_decay_rates_are_exact_from_a_half_on():
    beta = torch.cat(
        [torch.rand(5000) / 2, torch.linspace(0.5, 0.99999, 5001), between(0.5, 1, 5000)]
    )
    beta[0] = 0
    model = nn.Sequential(nn.Linear(1, len(beta)), SingleSpikeLeaky(beta))
    back = import_from_nir(export_to_nir(model, torch.rand(1, 1, 1)))[1].beta
    assert torch.equal(back[5000:], beta[5000:])
    assert (back - beta).abs().max() < 6e-8
    assert back[0] == 0


def test_nodes_have_a_value_for_each_neuron_and_the_mark(tmp_path):
    fast = convert(cnn())
    graph = through_a_file(export_to_nir(fast, torch.rand(4, 2, 2, 8, 9)), tmp_path)
    marked = neurons(graph)
    assert {k: n.v_threshold.shape for k, n in marked.items()} == {
        "1": (4, 8, 4),
        "5": (6, 4, 2),
        "8": (5,),
    }
    for node in marked.values():
        assert node.metadata == {"max_spikes": 1, "reset_mechanism": "subtract"}
        for name in ("tau", "r", "v_leak", "v_reset", "v_threshold"):
            assert getattr(node, name).shape == node.v_threshold.shape
            assert getattr(node, name).dtype == np.float32
        assert not node.v_leak.any()
        assert not node.v_reset.any()
        assert np.allclose(node.r * DT / node.tau, 1)
    assert np.allclose(1 - DT / marked["8"].tau, 0.9)
    assert graph.nodes["input"].input_type["input"].tolist() == [2, 8, 9]  # no time, no batch
    assert set(graph.nodes) == {"input", "0", "1", "2", "3", "5", "6", "7", "8", "output"}


def test_names():
    graph = export_to_nir(convert(Nested()), torch.rand(4, 2, 8))
    names = ["block.fc", "block.lif", "more.0.fc", "more.0.lif", "fc", "output_"]
    assert list(graph.nodes) == ["input", *names, "output"]
    chain = ["input", *names, "output"]
    assert graph.edges == sorted(itertools.pairwise(chain))
    assert [name for name, _ in import_from_nir(graph).named_children()] == [
        name.replace(".", "_") for name in names
    ]


class Direct(nn.Module):
    """Written for whole sequences, without convert()."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Flatten(2), nn.Linear(8, 12))
        self.lif1 = SingleSpikeLeaky(0.9, backend="triton", learn_beta=True)
        self.head = nn.Sequential(nn.Linear(12, 5), SingleSpikeLeaky(0.8, init_hidden=True))

    def forward(self, x):
        spk, _ = self.lif1(self.front(x), self.lif1.reset_mem())
        return self.head(spk)


def test_models_made_of_single_spike_neurons(tmp_path):
    model = awake(Direct())
    data = torch.rand(STEPS, BATCH, 2, 4) * 2
    graph = through_a_file(export_to_nir(model, data), tmp_path)
    assert set(graph.nodes) == {
        *("input", "front.0", "front.1", "lif1", "head.0", "head.1", "output")
    }
    model.lif1.backend = "torch"  # the one above is not needed for an export
    spk = model(data)
    assert 0 < spk.sum(0).mean() < 1
    assert torch.equal(import_from_nir(graph)(data)[0], spk)


def test_a_linear_layer_with_its_neurons_is_two_nodes(tmp_path):
    model = nn.Sequential(
        SingleSpikeLinear(8, 12, 0.9, backend="torch", reset_mechanism="zero"),
        nn.Linear(12, 6, bias=False),
        SingleSpikeLeaky(0.8, init_hidden=True, spike_format="times", backend="torch"),
        SingleSpikeLinear(6, 4, 0.7, bias=False, threshold=0.5, backend="torch"),
    )
    for layer in model:
        if hasattr(layer, "weight"):
            layer.weight.data *= 4
    data = (torch.rand(STEPS, BATCH, 8) > 0.7).float()
    for part, names in ((model, ["0.linear", "0", "1", "2", "3.linear", "3"]), (model[:1], None)):
        graph = through_a_file(export_to_nir(part, data), tmp_path)
        if names:
            assert set(graph.nodes) == {"input", "output", *names}
            assert graph.nodes["0"].metadata["reset_mechanism"] == "zero"
        spikes = part(data).to_dense()
        assert 0 < spikes.sum(0).mean() < 1
        assert torch.equal(import_from_nir(graph)(data)[0], spikes)


def test_names_that_only_differ_in_a_dot():
    class Names(Block):
        def __init__(self):
            super().__init__(8, 8)
            self.a_fc, self.a = nn.Linear(8, 8), Block(8, 8)

        def forward(self, x):
            return super().forward(self.a(self.a_fc(x)))

    graph = export_to_nir(convert(Names()), torch.rand(3, 2, 8))
    assert {"a_fc", "a.fc"} < set(graph.nodes)
    assert [*dict(import_from_nir(graph).named_children())][:2] == ["a_fc", "a_fc_"]


def test_a_static_input():
    fast = convert(awake(mlp()), num_steps=9).eval()
    image = torch.rand(BATCH, 2, 4)
    graph = export_to_nir(fast, image)
    assert graph.nodes["input"].input_type["input"].tolist() == [2, 4]
    back = import_from_nir(graph, num_steps=9)
    assert back(image)[0].shape == (9, BATCH, 5)
    for mine, right in zip(back(image), fast(image), strict=True):
        assert torch.equal(mine, right)


def test_beta_as_it_acts():
    model = nn.Sequential(nn.Linear(8, 3), SingleSpikeLeaky(torch.tensor([-0.5, 0.0, 0.5])))
    beta = import_from_nir(export_to_nir(model, torch.rand(2, 1, 8)))[1].beta
    assert torch.allclose(beta, torch.tensor([0.0, 0.0, 0.5]), atol=6e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_written_in_float32(dtype):
    fast = convert(mlp()).to(dtype)
    graph = export_to_nir(fast, torch.rand(2, 1, 8, dtype=dtype))
    assert graph.nodes["1"].weight.dtype == np.float32
    assert torch.equal(torch.from_numpy(graph.nodes["1"].weight), fast[1].weight.float())


def test_models_and_graphs_are_untouched(tmp_path):
    fast = convert(mlp()).train()
    data = torch.rand(2, 1, 8)
    before = copy.deepcopy(fast.state_dict())
    graph = export_to_nir(fast, data)
    assert fast.training
    assert not any(module._forward_hooks for module in fast.modules())
    nodes, edges, weight = dict(graph.nodes), list(graph.edges), graph.nodes["1"].weight.copy()
    back = import_from_nir(graph)
    assert (graph.nodes, graph.edges) == (nodes, edges)
    for model in (fast, back):
        for parameter in model.parameters():
            parameter.data += 1
    assert np.array_equal(graph.nodes["1"].weight, weight)
    assert all(torch.equal(before[k] + 1, v) for k, v in fast.state_dict().items() if "weight" in k)


def test_imported_models_train_save_and_revert():
    data = torch.rand(STEPS, BATCH, 8) * 2
    back = import_from_nir(export_to_nir(convert(awake(mlp())), data), gradient="spike_time")
    assert back[1].gradient == "spike_time"
    spk, mem = back(data)
    (spk.sum() + mem.sum()).backward()
    assert back[0].weight.grad.abs().sum() > 0
    file = io.BytesIO()
    torch.save(back, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(data)[0], spk)
    assert type(revert(back)[1]) is snn.Leaky


def first(spikes):
    return (spikes > 0) & ((spikes > 0).cumsum(0) == 1)


def test_a_reader_that_does_not_know_the_mark_sees_lif_neurons(capsys):
    model = nn.Sequential(nn.Linear(8, 12), leaky(0.9), nn.Linear(12, 5), leaky(0.8))
    fast = convert(awake(model))
    data = torch.rand(STEPS, BATCH, 8) * 2
    theirs = snntorch_import(export_to_nir(fast, data))
    assert "warning" not in capsys.readouterr().out.lower()  # no gain that NIR cannot express
    assert [type(getattr(theirs, name)) for name in "0123"] == [
        *(nn.Linear, snn.Leaky, nn.Linear, snn.Leaky)
    ]
    hidden = []
    theirs.get_submodule("1").register_forward_hook(lambda *call: hidden.append(call[2]))
    for step in data:
        theirs(step)
    ours = []
    fast[1].register_forward_hook(lambda *call: ours.append(call[2]))
    fast(data)
    # The first neurons receive the same input. NIR's neurons fire again, and ours do not.
    assert torch.equal(first(torch.stack(hidden)), ours[0].unflatten(0, (STEPS, BATCH)) > 0)
    assert torch.stack(hidden).sum() > ours[0].sum()


@pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph:DeprecationWarning")
def test_graphs_of_snntorch_are_read_on_request():
    model = nn.Sequential(
        nn.Linear(8, 12),
        leaky(torch.full((12,), 0.9), threshold=torch.full((12,), 0.8), reset_mechanism="zero"),
        nn.Linear(12, 5),
        leaky(torch.full((5,), 0.7), threshold=torch.ones(5), reset_mechanism="zero"),
    )
    data = torch.rand(STEPS, BATCH, 8) * 4
    graph = snntorch_export(model, data[0], ignore_dims=[0])
    with pytest.raises(ValueError, match=r"neurons '1', '3'.*more than once.*single_spike=True"):
        import_from_nir(graph)
    graph.nodes["1"].metadata["max_spikes"] = 1
    with pytest.raises(ValueError, match="neurons '3' of"):
        import_from_nir(graph)
    model[3].output = True
    for mine, right in zip(
        import_from_nir(graph, single_spike=True)(data), convert(model)(data), strict=True
    ):
        assert torch.allclose(mine, right, atol=1e-5)


def lif_graph(n=4, **changes):
    """Input, Affine, LIF or CubaLIF, Output."""
    one = np.ones(n, np.float32)
    values = {"tau": 1e-3 * one, "r": 10 * one, "v_leak": 0 * one, "v_threshold": one}
    values = {k: v for k, v in (values | changes).items() if v is not None}
    kind = nir.CubaLIF if "tau_syn" in values else nir.LIF
    weight = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    return nir.NIRGraph.from_list(
        nir.Affine(weight=weight, bias=0 * one), kind(**values), type_check=False
    )


def test_a_gain_of_each_neuron_goes_into_its_threshold():
    gain = np.float32([0.5, 1.0, 2.0, 4.0])
    node = {"tau": np.float32([1e-3, 2e-3, 4e-3, 1e-3]), "v_threshold": np.float32([1, 2, 3, 4])}
    graph = lif_graph(**node, r=gain * node["tau"] / DT)
    data = torch.rand(STEPS, BATCH, 3) * 3
    spk, mem = (x.detach() for x in import_from_nir(graph, single_spike=True)(data))
    # The LIF node's own equation, one Euler step of snnTorch's dt a time step, up to the spike
    affine, lif = graph.nodes["affine"], graph.nodes["lif"]
    v, fired = np.zeros((BATCH, 4)), np.zeros((BATCH, 4), bool)
    for t, x in enumerate(data.numpy()):
        v = v + DT / lif.tau * (-v + lif.r * (x @ affine.weight.T))
        assert np.allclose(np.where(fired, 0, v), np.where(fired, 0, mem[t].numpy() * gain), 1e-4)
        now = (v > lif.v_threshold) & ~fired
        assert np.array_equal(now, spk[t].numpy() > 0)
        fired |= now
    assert 0 < fired.mean() < 1


class Between(nn.Module):
    """A forward that computes on tensors between the layers, or after them."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.fc1 = nn.Linear(8, 8)
        self.lif1 = snn.Leaky(0.9)
        self.fc2 = nn.Linear(8, 8)
        self.lif2 = snn.Leaky(0.9)

    def forward(self, x):
        cur = self.fc1(x.view_as(x) if self.what == "reshape" else x)
        spk, mem = self.lif1(cur)
        if self.what == "functional":
            cur2 = self.fc2(torch.relu(spk))
        elif self.what == "in place":
            cur2 = self.fc2(spk.mul_(2))
        elif self.what == "skip":
            cur2 = self.fc2(spk) + cur
        elif self.what == "membrane":
            cur2 = self.fc2(mem)
        elif self.what == "branch":
            cur2 = self.fc2(cur)
        else:
            cur2 = self.fc2(spk)
        if self.what == "state":
            return self.lif2(cur2, torch.ones_like(cur2))
        out, mem2 = self.lif2(cur2)
        return {
            "scaled": out * 2,
            "membrane only": mem2,
            "hidden": (out, spk),
            "nothing": None,
        }.get(self.what, (out, mem2))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("reshape", "layer 'fc1' .* not given the input of the model"),
        ("functional", "layer 'fc2' .Linear. .* not given what 'lif1' returned"),
        ("in place", "layer 'fc2' .* not given what"),
        ("skip", "layer 'lif2' .* skip connection"),
        ("membrane", "layer 'fc2' .* a membrane in place of spikes"),
        ("branch", "layer 'fc2' .* in a chain"),
        ("state", "layer 'lif2' .* start from zero"),
        ("scaled", "returns something other than what its last layer, 'lif2'"),
        ("membrane only", "returns something other .* Let forward return the spikes"),
        ("hidden", "returns something other"),
    ],
)
def test_what_happens_between_layers_is_not_lost(what, message):
    fast = convert(Between(what))
    if what != "state":
        fast(torch.rand(3, 2, 8))  # the model itself is fine
    with pytest.raises(ValueError, match=message):
        export_to_nir(fast, torch.rand(3, 2, 8))


def test_what_a_hook_does_is_not_lost():
    fast = convert(mlp())
    fast[1].register_forward_hook(lambda module, args, out: out.relu())
    with pytest.raises(ValueError, match="layer '2' .* not given what '1' returned"):
        export_to_nir(fast, torch.rand(3, 2, 8))


def spiking(*layers, into=8):
    """A model for whole sequences that ends in a neuron."""
    return nn.Sequential(*layers, nn.Linear(into, 4), SingleSpikeLeaky(0.9))


def images(*layers, into):
    return convert(nn.Sequential(*layers, nn.Flatten(), nn.Linear(into, 4), leaky()))


class Scale(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


SHARED = nn.Linear(8, 8)
VECTOR, IMAGE = (8,), (2, 6, 6)
REFUSED = {
    "MaxPool": (lambda: images(nn.MaxPool2d(2), into=18), IMAGE, "'0' .MaxPool2d.* nn.AvgPool2d"),
    "Conv1d": (lambda: images(nn.Conv1d(8, 8, 1), into=8), (8, 1), "'0' .Conv1d.* Replace it"),
    "BatchNorm": (
        lambda: images(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), into=72),
        IMAGE,
        "'1' .BatchNorm2d.* fuse_conv_bn_eval",
    ),
    "ReLU": (lambda: spiking(nn.ReLU()), VECTOR, "'0' .ReLU.*Replace it"),
    "subclass": (lambda: spiking(Scale(8, 8)), VECTOR, "'0' .Scale.*nn.Linear"),
    "readout": (lambda: spiking(LeakyReadout(0.9, reduction=None)), VECTOR, "'0' .LeakyReadout"),
    "pool padding": (
        lambda: images(nn.AvgPool2d(2, padding=1), into=32),
        IMAGE,
        "'0' .AvgPool2d.* padding, ceil_mode and divisor_override. Make it without",
    ),
    "ceil_mode": (lambda: images(nn.AvgPool2d(4, ceil_mode=True), into=8), IMAGE, "'0'.*ceil"),
    "divisor": (
        lambda: images(nn.AvgPool2d(2, divisor_override=1), into=18),
        IMAGE,
        "'0'.*divisor",
    ),
    "groups": (lambda: images(nn.Conv2d(2, 2, 1, groups=2), into=72), IMAGE, "'0'.*groups=1"),
    "kernel": (lambda: images(nn.Conv2d(2, 2, (3, 1)), into=48), IMAGE, "'0'.*square kernel"),
    "padding_mode": (
        lambda: images(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), into=72),
        IMAGE,
        "'0'.*pads with zeros",
    ),
    "matrix": (lambda: spiking(nn.Linear(4, 8)), (3, 4), r"'0' .Linear.*\(3, 4\).*nn.Flatten"),
    "batch": (
        lambda: nn.Sequential(nn.Flatten(1), nn.Linear(16, 4), SingleSpikeLeaky(0.9)),
        (2, 4),
        "'0' .Flatten.* flattens the batch. Flatten from dimension 2",
    ),
    "twice": (lambda: spiking(SHARED, SHARED), VECTOR, "'0' .* called twice"),
    "no leak": (
        lambda: nn.Sequential(nn.Linear(8, 4), SingleSpikeLeaky(torch.tensor([0.5, 2, 0.5, 0]))),
        VECTOR,
        "'1' .SingleSpikeLeaky.* beta=1 nothing leaks.* Choose beta below 1",
    ),
    "graded": (
        lambda: spiking(nn.Linear(8, 8), SingleSpikeLeaky(0.9, graded_spikes_factor=2.0)),
        VECTOR,
        "'1' .* height graded_spikes_factor.* Multiply the weights",
    ),
    "snnTorch's": (lambda: spiking(leaky()), VECTOR, "'0' .Leaky.* convert.. the model"),
    "one layer": (lambda: SingleSpikeLeaky(0.9), VECTOR, "single layer"),
    "no neuron": (lambda: nn.Linear(8, 4), VECTOR, "no single-spike neuron"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:.*BatchNorm takes its statistics")
def test_what_nir_cannot_say(name):
    make, shape, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        export_to_nir(make(), torch.rand(3, 2, *shape))


def test_bad_calls():
    data = torch.rand(3, 2, 8)
    with pytest.raises(TypeError, match="torch.nn.Module, not list"):
        export_to_nir([], data)
    with pytest.raises(TypeError, match="torch.Tensor, not list"):
        export_to_nir(convert(mlp()), [])
    with pytest.raises(ValueError, match=r"\(2, 8\).*whole sequences"):
        export_to_nir(convert(mlp()), data[0])
    with pytest.raises(TypeError, match=r"nir.NIRGraph \(nir.read\), not str"):
        import_from_nir("net.nir")
    graph = export_to_nir(convert(mlp()), data)
    with pytest.raises(ValueError, match="gradient='none'"):
        import_from_nir(graph, gradient="none")


ONE = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_leak": ONE}, "'lif' .LIF.* something other than 0"),
        ({"v_reset": ONE}, "'lif' .LIF.* something other than 0"),
        ({"tau": 1e-5 * ONE}, "'lif' .* time constant"),
        ({"tau": np.inf * ONE}, "'lif' .* time constant"),
        ({"r": -ONE}, "'lif' .* r or w_in is not positive"),
        (
            {"tau": None, "tau_mem": 1e-3 * ONE, "tau_syn": 0 * ONE},
            "'cubalif' .CubaLIF.* time constant",
        ),
    ],
)
def test_neurons_that_cannot_be_read(changes, message):
    with pytest.raises(ValueError, match=message):
        import_from_nir(lif_graph(**changes), single_spike=True)


def graph_of(edges, **nodes):
    shape = np.array([4])
    nodes = {"input": nir.Input(shape), "output": nir.Output(shape)} | nodes
    return nir.NIRGraph(nodes, [tuple(e.split("-")) for e in edges.split()], type_check=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda lif, fc: graph_of("input-fc fc-lif input-lif lif-output", lif=lif, fc=fc),
            r"'input' .*\['fc', 'lif'\].* chain",
        ),
        (
            lambda lif, fc: graph_of("input-lif lif-output fc-output", lif=lif, fc=fc),
            "'lif' .*chain",
        ),
        (lambda lif, fc: graph_of("input-lif lif-output", lif=lif, fc=fc), r"\['fc'\] are not"),
        (lambda lif, fc: graph_of("input-lif", lif=lif), r"'lif' .*leads to \[\]"),
        (lambda lif, fc: graph_of("a-output", a=lif, more=nir.Input(np.array([4]))), "2 inputs"),
        (
            lambda lif, fc: graph_of("input-a a-output", a=nir.IF(r=ONE, v_threshold=ONE)),
            "'a' .IF.* large tau",
        ),
        (
            lambda lif, fc: graph_of("input-a a-lif lif-output", lif=lif, a=nir.Scale(ONE)),
            "'a' .Scale.* only Linear",
        ),
        (
            lambda lif, fc: graph_of("input-lif lif-fc fc-lif lif-output", lif=lif, fc=fc),
            "'lif' .LIF.* drive other neurons",
        ),
        (lambda lif, fc: graph_of("input-fc fc-output", fc=fc), "no snntorch neuron"),
    ],
)
def test_graphs_that_cannot_be_read(make, message):
    lif = lif_graph().nodes["lif"]
    with pytest.raises(ValueError, match=message):
        import_from_nir(make(lif, nir.Linear(weight=np.ones((4, 4)))), single_spike=True)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_synaptic(reset, tmp_path):
    model = nn.Sequential(
        nn.Linear(8, 12),
        snn.Synaptic(
            between(0.5, 1, 12),
            between(0.5, 1, 12),
            threshold=between(2, 8, 12),
            init_hidden=True,
            reset_mechanism=reset,
        ),
        nn.Linear(12, 5),
        snn.Synaptic(0.8, 0.9, init_hidden=True, output=True, reset_mechanism=reset),
    )
    fast = convert(awake(model))
    data = torch.rand(STEPS, BATCH, 8)
    graph = through_a_file(export_to_nir(fast, data), tmp_path)
    assert all(isinstance(node, nir.CubaLIF) for node in neurons(graph).values())
    assert {n.metadata["max_spikes"] for n in neurons(graph).values()} == {1}
    back = import_from_nir(graph)
    expected = fast(data)
    assert 0 < expected[0].sum(0).mean() < 1
    for mine, right in zip(back(data), expected, strict=True):
        assert torch.equal(mine, right)
    assert back.state_dict().keys() == fast.state_dict().keys()


@pytest.mark.parametrize("v", [0.7, torch.linspace(-1, 1, 12)])
def test_one_to_one_rleaky(v, tmp_path):
    model = nn.Sequential(
        nn.Linear(8, 12),
        snn.RLeaky(between(0.5, 1, 12), V=v, all_to_all=False, init_hidden=True),
        nn.Linear(12, 5),
        leaky(output=True),
    )
    fast = convert(awake(model))
    data = torch.rand(STEPS, BATCH, 8) * 2
    graph = through_a_file(export_to_nir(fast, data), tmp_path)
    assert np.allclose(graph.nodes["1.w_rec"].weight, np.diag(np.broadcast_to(v, 12)))
    back = import_from_nir(graph)
    for mine, right in zip(back(data), fast(data), strict=True):
        assert torch.equal(mine, right)
    assert back.state_dict().keys() == fast.state_dict().keys()


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        (lambda: snn.Alpha(0.9, 0.8, init_hidden=True), "'1' .Alpha.* NIR has no primitive"),
        (lambda: snn.Lapicque(0.9, init_hidden=True), "'1' .Lapicque.* snntorch.Leaky with beta"),
    ],
)
def test_neurons_without_a_node(neuron, message):
    with pytest.raises(ValueError, match=message):
        export_to_nir(convert(nn.Sequential(nn.Linear(8, 4), neuron())), torch.rand(3, 2, 8))


def test_an_rsynaptic_is_not_converted():
    cuba = lif_graph(tau=None, tau_mem=1e-3 * ONE, tau_syn=1e-3 * ONE).nodes["cubalif"]
    diagonal = nir.Linear(weight=np.diag(ONE))
    graph = graph_of("input-a a-w w-a a-output", a=cuba, w=diagonal)
    with pytest.raises(ValueError, match="'a' .CubaLIF.* recurrence"):
        import_from_nir(graph, single_spike=True)


def test_the_package_does_not_import_nir():
    code = "import sys, snn_single_spike; assert not {'nir', 'nirtorch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["nir", "nirtorch"])
def test_without_the_packages(package, monkeypatch):
    for name in ("snn_single_spike.nir", "snntorch.export_nir", "snntorch.import_nir"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "snn-single-spike\[nir\]"'):
        importlib.import_module("snn_single_spike.nir")


class Doubled(SingleSpikeLeaky):
    def forward(self, input_, mem=None):
        return super().forward(2 * input_, mem)


def test_what_a_subclass_does_is_not_lost():
    net = nn.Sequential(nn.Linear(8, 4), Doubled(0.9, backend="torch"))
    with pytest.raises(
        ValueError, match=r"'1' \(Doubled\).*overrides forward of SingleSpikeLeaky. Use"
    ):
        export_to_nir(net, torch.rand(STEPS, BATCH, 8))


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("refractory", [0, 3])
def test_a_refractory_period_comes_back(refractory, reset, tmp_path):
    torch.manual_seed(2)
    layers = (nn.Linear(8, 16), snn.Leaky(0.9, init_hidden=True, reset_mechanism=reset))
    last = snn.Synaptic(0.8, 0.7, init_hidden=True, output=True, reset_mechanism=reset)
    net = nn.Sequential(*layers, nn.Linear(16, 4), last)
    nn.init.uniform_(net[2].weight, 0, 0.5)
    fast = convert(net, refractory=refractory)
    x = 3 * torch.rand(STEPS, BATCH, 8)
    nir.write(tmp_path / "net.nir", export_to_nir(fast, x))
    graph = nir.read(tmp_path / "net.nir")
    again = import_from_nir(graph)
    assert {m.refractory for m in again.modules() if hasattr(m, "refractory")} == {refractory}
    expected = fast(x)[0]
    assert (expected.sum(0) > 1).any()  # some neurons spike again
    assert torch.equal(again(x)[0], expected)


def test_marks_that_differ_are_refused_unless_one_is_given():
    def layers():
        return nn.Linear(4, 4), snn.Leaky(0.9, init_hidden=True)

    x = torch.rand(STEPS, BATCH, 4)
    graph = export_to_nir(convert(nn.Sequential(*layers(), *layers())), x)
    again = export_to_nir(convert(nn.Sequential(*layers(), *layers()), refractory=2), x)
    graph.nodes["1"].metadata = again.nodes["1"].metadata
    with pytest.raises(ValueError, match="neurons '1', '3' of the graph have several marks"):
        import_from_nir(graph)
    for given, refractory in (({"refractory": 0}, 0), ({"single_spike": True}, None)):
        neurons = [x for x in import_from_nir(graph, **given).modules() if isinstance(x, snn.Leaky)]
        assert [neuron.refractory for neuron in neurons] == [refractory, refractory]


class OneNeuron(nn.Module):
    def __init__(self, name="lif", change=False, named=False):
        super().__init__()
        self.fc, self.name, self.change, self.named = nn.Linear(8, 4), name, change, named
        self.add_module(name, snn.Leaky(0.9))

    def forward(self, x):
        lif = getattr(self, self.name)
        given = {"mem": lif.reset_mem(), "input_": self.fc(x)}
        spk, mem = lif(**given) if self.named else lif(given["input_"])
        return spk, mem.mul_(2) if self.change else mem


def test_a_membrane_that_is_changed_in_place_is_not_lost():
    with pytest.raises(ValueError, match="returns something other than what its last layer"):
        export_to_nir(convert(OneNeuron(change=True)), torch.rand(STEPS, BATCH, 8))


@pytest.mark.parametrize("name", ["pop", "train", "training", "forward"])
def test_nodes_with_the_names_of_what_a_module_has(name):
    graph = export_to_nir(convert(OneNeuron(named=True)), torch.rand(STEPS, BATCH, 8))
    graph.nodes[name] = graph.nodes.pop("lif")
    graph.edges = [tuple(name if x == "lif" else x for x in edge) for edge in graph.edges]
    net = import_from_nir(graph)
    assert [*dict(net.named_children())] == ["fc", f"{name}_"]
    assert net(torch.rand(STEPS, BATCH, 8))[0].shape == (STEPS, BATCH, 4)


def test_a_layer_by_itself_has_a_name(tmp_path):
    layer = SingleSpikeLinear(8, 4, 0.9, backend="torch")
    data = (torch.rand(STEPS, BATCH, 8) > 0.5).float()
    graph = through_a_file(export_to_nir(layer, data), tmp_path)
    assert set(graph.nodes) == {"input", "neuron.linear", "neuron", "output"}
    assert torch.equal(import_from_nir(graph)(data)[0], layer(data).to_dense())


def test_parameters_with_leading_ones():
    for beta in (torch.full((1, 4), 0.9), torch.full((1, 1), 0.9)):
        net = convert(nn.Sequential(nn.Linear(8, 4), leaky(beta)))
        graph = export_to_nir(net, torch.rand(STEPS, BATCH, 8))
        assert graph.nodes["1"].tau.shape == (4,)


def test_a_convolution_of_groups_is_named():
    one = np.ones((4, 4, 4), np.float32)
    conv = nir.Conv2d(
        input_shape=(6, 6),
        weight=np.ones((4, 1, 3, 3), np.float32),
        stride=1,
        padding=0,
        dilation=1,
        groups=4,
        bias=np.zeros(4, np.float32),
    )
    graph = nir.NIRGraph(
        {
            "input": nir.Input(np.array([4, 6, 6])),
            "conv": conv,
            "lif": nir.LIF(tau=one * 1e-3, r=one * 10, v_leak=one * 0, v_threshold=one),
            "output": nir.Output(np.array([4, 4, 4])),
        },
        [("input", "conv"), ("conv", "lif"), ("lif", "output")],
        type_check=False,
    )
    with pytest.raises(ValueError, match=r"node 'conv' \(Conv2d\).*groups=4"):
        import_from_nir(graph, single_spike=True)
