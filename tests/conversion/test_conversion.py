"""Models of snnTorch's tutorials, converted and reverted."""

import copy
import importlib
import inspect
import io
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn
from torch.nn.utils import prune

from snn_single_spike import ConversionError, convert, revert
from snn_single_spike.modules._base import SingleSpikeNeuron

from tests.support.networks import MODELS, StateGiven, Tutorial5, awake, leaky, population, readme
from tests.support.processes import run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*MaxPool after a neuron")


def gate_once(neuron):
    """Gate a neuron to its first spikes, with a detached gate, as in the "masked" rule."""
    state = {}

    def hook(module, inputs, output):
        spk = output[0] if isinstance(output, tuple) else output
        fired = state.get("fired", torch.zeros_like(spk))
        once = (spk * (1 - fired)).to(inputs[0].dtype)  # snnTorch's spikes are always float32
        state["fired"] = torch.maximum(fired, (spk > 0).to(fired)).detach()
        return (once, *output[1:]) if isinstance(output, tuple) else once

    neuron.register_forward_hook(hook)


def loop(model, x):
    """Run the model step by step, with every neuron gated to its first spike."""
    model = copy.deepcopy(model)
    neurons = [m for m in model.modules() if isinstance(m, SpikingNeuron)]
    for neuron in neurons:
        gate_once(neuron)
    # Tutorial 5 zeroes its membranes inside forward: here only before the first step
    for neuron in neurons:
        neuron.init_leaky = lambda neuron=neuron: None
    outs = [model(step) for step in x]
    flat = [flatten(out) for out in outs]
    return model, [torch.stack(parts) for parts in zip(*flat, strict=True)]


def flatten(out):
    if isinstance(out, torch.Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out
    return [tensor for value in values for tensor in flatten(value)]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_original_step_by_step(name):
    make, shape = MODELS[name]
    # In float64: folding time into the batch changes the rounding of matrix products, and a
    # membrane near threshold magnifies that.
    model = awake(make()).eval().double()
    x = torch.rand(7, 3, *shape, dtype=torch.float64) * 3
    original, expected = loop(model, x)
    fast = convert(model)
    outs = flatten(fast(x))
    assert (expected[0] > 0).any()
    for mine, right in zip(outs, expected, strict=True):
        assert mine.shape == right.shape
    assert torch.equal(outs[0], expected[0])  # the first spikes of the output layer
    before = expected[0].cumsum(0) - expected[0] == 0
    assert torch.allclose(outs[1][before], expected[1][before], atol=1e-5)

    weight = torch.randn_like(expected[0])
    (expected[0] * weight).sum().backward()
    (outs[0] * weight).sum().backward()
    grads = dict(original.named_parameters())
    for key, parameter in fast.named_parameters():
        if grads[key].grad is not None:
            difference = (parameter.grad - grads[key].grad).norm()
            assert difference <= 1e-5 * grads[key].grad.norm(), key


@pytest.mark.parametrize("name", MODELS)
def test_static_input_equals_the_repeated_one_and_runs_the_front_once(name):
    make, shape = MODELS[name]
    model = make().eval()
    image = torch.rand(3, *shape) * 3
    calls = []
    static = convert(model, num_steps=6)
    first = next(m for m in static.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    first.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    once = flatten(static(image))
    repeated = flatten(convert(model)(image.expand(6, *image.shape)))
    assert calls == [3]
    for mine, right in zip(once, repeated, strict=True):
        assert torch.allclose(mine, right, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_and_the_way_back(name):
    make, shape = MODELS[name]
    model = make()
    fast = convert(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in model.named_parameters()]
    other = make()
    fast.load_state_dict(other.state_dict(), strict=True)
    back = revert(fast)
    assert type(back) is type(model)
    model.load_state_dict(fast.state_dict(), strict=True)
    x = torch.rand(3, *shape) * 3
    for net in (back, model):
        for neuron in net.modules():
            assert not isinstance(neuron, SingleSpikeNeuron)
    for mine, right in zip(flatten(back(x)), flatten(model(x)), strict=True):
        assert torch.equal(mine, right)


def test_the_old_model_is_untouched_and_parameters_are_copied_or_shared():
    model = readme()
    keys = {k: v.clone() for k, v in model.state_dict().items()}
    for share in (False, True):
        fast = convert(model, share_parameters=share)
        for (name, p), (_, q) in zip(
            fast.named_parameters(), model.named_parameters(), strict=True
        ):
            assert (p is q) == share, name
    assert all(torch.equal(keys[k], v) for k, v in model.state_dict().items())
    assert not any(isinstance(m, SingleSpikeNeuron) for m in model.modules())
    assert revert(convert(model, share_parameters=True), share_parameters=True)[0].weight is (
        model[0].weight
    )


def test_a_model_that_has_run_converts():
    """copy.deepcopy fails for snnTorch's neurons after a forward pass."""
    model = readme()
    model(torch.rand(2, 1, 28, 28))
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    assert convert(model)(torch.rand(5, 2, 1, 28, 28))[0].shape == (5, 2, 10)


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_converted_models_copy_and_save_after_a_forward(how):
    fast = convert(population())
    x = torch.rand(5, 3, 8, 8) * 3
    out = fast(x)[0]
    if how == "deepcopy":
        other = copy.deepcopy(fast)
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(x)[0], out)
    assert other[2].time is not fast[2].time
    assert other[2].time is other[4].time
    utils.reset(other)


def test_compile_and_export():
    fast = convert(population()).eval()
    x = torch.rand(5, 3, 8, 8) * 3
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], fast(x)[0])
    program = torch.export.export(fast, (x,))
    assert torch.equal(program.module()(x)[0], fast(x)[0])


def test_autocast():
    fast = convert(population())
    with torch.autocast("cpu", torch.bfloat16):
        spk, _ = fast(torch.rand(5, 3, 8, 8) * 3)
    assert spk.dtype == torch.bfloat16
    spk.float().sum().backward()
    assert fast[1].weight.grad.dtype == torch.float32


def test_probes_of_snntorch_record_the_folded_sequence():
    from snntorch.functional import probe

    fast = convert(population())
    monitor = probe.OutputMonitor(fast, instance=snn.Leaky)
    fast(torch.rand(5, 3, 8, 8) * 3)
    assert monitor.records[0].unflatten(0, (5, 3)).shape == (5, 3, 40)


DDP = """
import os, sys, torch, snntorch as snn
from torch import nn
from torch.nn.utils import prune
from torch.nn.parallel import DistributedDataParallel
from snn_single_spike import convert
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(0.9, init_hidden=True, learn_beta=True),
                    nn.Linear(8, 3), snn.Leaky(0.9, init_hidden=True, output=True))
fast = convert(net)
x = torch.rand(10, 4, 6) * 4
fast(x)[1].square().mean().backward()
whole = [p.grad.clone() for p in fast.parameters()]
fast.zero_grad()
parallel = DistributedDataParallel(fast)
parallel(x[:, 2 * rank : 2 * rank + 2])[1].square().mean().backward()
for p, grad in zip(fast.parameters(), whole):
    assert torch.allclose(p.grad, grad, atol=1e-6), (p.grad, grad)
for batch in (2, 2 - rank, 2):  # the last batch is smaller on one process
    parallel(x[:, :batch])[1].square().mean().backward()
    assert fast[1].mem.shape == (batch, 8)
torch.distributed.destroy_process_group()
print("rank", rank, "agrees")
"""


def test_two_processes_get_the_gradients_of_one(tmp_path):
    for rank, output in enumerate(run_in_two_processes(DDP, tmp_path)):
        assert f"rank {rank} agrees" in output, output


def test_hidden_state_of_users_does_not_clash():
    fast = convert(Tutorial5(), num_steps=4)
    assert fast.num_steps == 25
    assert fast(torch.rand(2, 20))[0].shape == (4, 2, 10)


def test_batch_norm_is_said_and_its_momentum_matched():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), leaky(output=True))
    with pytest.warns(UserWarning, match="'1': when training, BatchNorm"):
        fast = convert(model, num_steps=10)
    x = torch.rand(6, 4)
    fast(x)
    for _ in range(10):  # the same input ten times
        model(x)
    assert torch.allclose(fast[1].running_mean, model[1].running_mean, atol=1e-6)
    assert fast[1].momentum == 0.1


@pytest.mark.filterwarnings("ignore:.*BatchNorm takes its statistics")
def test_warnings_point_at_the_call_of_convert():
    model = nn.Sequential(nn.BatchNorm2d(1), leaky(), nn.MaxPool2d(2))
    model.computed = model[0].weight * 2
    with pytest.warns(UserWarning, match="'computed' of Sequential") as warned:
        revert(convert(model))
    assert len(warned) == 3
    assert {warning.filename for warning in warned} == {__file__}


def test_max_pool_after_a_neuron_is_said():
    with pytest.warns(UserWarning, match="'1': MaxPool after a neuron"):
        convert(nn.Sequential(leaky(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2), leaky()))


def test_dropout_draws_at_every_step():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(50, 50), leaky(output=True))
    _, mem = convert(model, num_steps=3)(torch.ones(2, 50))
    currents = mem[1] - 0.5 * mem[0]
    assert not torch.allclose(currents, mem[0], atol=1e-3)
    _, mem = convert(model, num_steps=3).eval()(torch.ones(2, 50))
    assert torch.allclose((mem[1] - 0.5 * mem[0])[mem[0] <= 1], mem[0][mem[0] <= 1], atol=1e-5)


class OwnInit(snn.Leaky):
    def __init__(self):
        super().__init__(0.9, init_hidden=True)


def test_a_subclass_comes_back_as_itself():
    model = nn.Sequential(nn.Linear(3, 4), OwnInit())
    fast = convert(model)
    fast(torch.rand(5, 2, 3))
    assert type(revert(fast)[1]) is OwnInit


def test_states_by_name():
    class Named(StateGiven):
        def forward(self, x):
            return self.lif(x, mem=None)[0]

    assert convert(Named())(torch.rand(5, 2, 3)).shape == (5, 2, 3)


def test_a_model_that_keeps_a_graph_says_what_to_delete():
    model = nn.Sequential(nn.Linear(3, 4), leaky())
    model.kept = [model[0](torch.rand(2, 3))]
    with pytest.raises(ConversionError, match="cannot be copied.*Delete the tensors"):
        convert(model)


def test_a_model_that_holds_what_has_no_copy_says_so():
    model = nn.Sequential(nn.Linear(3, 4), leaky())
    model.numbers = (n for n in range(3))
    with pytest.raises(ConversionError, match="cannot be copied.*generator.*outside of the model"):
        convert(model)


def test_a_tensor_that_was_computed_keeps_its_value_and_is_told_of():
    class Scaled(StateGiven):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.rand(3))
            self.scale = self.raw.sigmoid()

        def forward(self, x):
            return self.lif(x * self.scale)[0]

    model, x = Scaled(), torch.rand(5, 2, 3) * 3
    with pytest.warns(UserWarning, match="'scale' of Scaled was computed.*not its gradient"):
        fast = convert(model)
    assert torch.equal(fast.scale, model.scale)
    assert not fast.scale.requires_grad
    assert fast(x).sum() > 0


def test_static_input_of_an_empty_batch():
    fast = convert(population(), num_steps=5)
    assert fast(torch.rand(0, 8, 8))[0].shape == (5, 0, 50)


def test_threads_run_one_model_at_once():
    fast = convert(population(), check=False).eval()  # the self-check would wait at the barrier
    inputs = [torch.rand(6, 4, 64) * 3, torch.rand(4, 6, 64) * 3]  # equal once time is folded
    expected = [fast(x)[0] for x in inputs]
    inside = threading.Barrier(2)
    fast[0].register_forward_pre_hook(lambda *_: (inside.wait(), None)[1])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda x: fast(x)[0], inputs))
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


def test_replicas_of_data_parallel():
    """Replicas, as DataParallel constructs and runs them. DataParallel itself requires GPUs."""
    fast = convert(population())
    x = torch.rand(6, 7, 64) * 3
    expected = fast(x)[0]
    modules = list(fast.modules())
    replicas = []
    for _ in range(2):
        copies = {module: module._replicate_for_data_parallel() for module in modules}
        for module, copied in copies.items():
            copied._parameters, copied._buffers = module._parameters, dict(module._buffers)
            copied._modules = {name: copies[child] for name, child in module._modules.items()}
        replicas.append(copies[fast])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda net, part: net(part)[0], replicas, x.chunk(2, dim=1)))
    assert torch.equal(torch.cat(found, 1), expected)


def test_converted_neurons_print_as_what_they_are():
    assert "SingleSpikeLeaky(reset_mechanism='subtract'" in repr(convert(readme()))


@pytest.mark.parametrize(("num_steps", "dim"), [(None, 0), (None, 1), (7, 0)])
def test_export_with_a_named_dimension(num_steps, dim):
    net = nn.Sequential(nn.Linear(6, 5), leaky(), nn.Linear(5, 4), leaky(output=True))
    fast = convert(net, num_steps=num_steps).eval()
    x, longer = torch.rand(7, 3, 6) * 3, torch.rand(9, 9, 6) * 3
    x = x[0] if num_steps else x
    longer = longer[0] if num_steps else longer.narrow(1 - dim, 0, x.shape[1 - dim])
    size = torch.export.Dim("size", min=2, max=100)
    program = torch.export.export(fast, (x,), dynamic_shapes={"input": {dim: size}})
    assert torch.equal(program.module()(longer)[0], fast(longer)[0])


def test_forward_keeps_its_signature():
    class Documented(StateGiven):
        def forward(self, x, *, scale: float = 1.0):
            """One step."""
            return self.lif(scale * x)[0]

    fast = convert(Documented())
    assert inspect.signature(fast.forward) == inspect.signature(Documented().forward)
    assert fast.forward.__doc__ == "One step."
    assert fast(torch.rand(5, 2, 3), scale=0.0).sum() == 0


def test_batch_first():
    net = population()
    x = torch.rand(5, 3, 8, 8) * 3
    spk, mem = convert(net)(x)
    fast = convert(net, time_dim=1)
    spk_first, mem_first = fast(x.transpose(0, 1))
    assert torch.equal(spk_first, spk.transpose(0, 1))
    assert torch.equal(mem_first, mem.transpose(0, 1))
    assert torch.equal(copy.deepcopy(fast)(x.transpose(0, 1))[0], spk_first)
    assert convert(net, num_steps=5, time_dim=1)(x[0])[0].shape == (3, 5, 50)
    with pytest.raises(ValueError, match="time_dim=2 must be 0, for .time, batch"):
        convert(net, time_dim=2)


def test_signs_of_batch_first_are_said_once():
    fast = convert(population())
    for batch in (32, 32, 32, 17):
        fast(torch.rand(batch, 10, 64))
    match = r"32 in 3 calls, 17 in one, and is 32 again.*time_dim=1"
    with pytest.warns(UserWarning, match=match) as warned:  # in the second epoch
        fast(torch.rand(32, 10, 64))
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (32, 32, 32, 17):
            fast(torch.rand(batch, 10, 64))
    named = population()
    named.num_steps = 10
    fast = convert(named)
    fast(torch.rand(10, 4, 64))
    with pytest.warns(UserWarning, match=r"the model has num_steps=10, the size of the second"):
        fast(torch.rand(4, 10, 64))


def test_sequences_of_varying_length_are_no_sign():
    fast = convert(population())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps, batch in ((9, 4), (7, 4), (8, 4), (8, 4), (8, 2), (5, 4), (5, 4), (5, 4)):
            fast(torch.rand(steps, batch, 64))


@pytest.mark.parametrize("how", ["pruning", "weight_norm", "spectral_norm", "parametrization"])
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_weights_that_torch_computes_before_each_forward(how):
    net = nn.Sequential(nn.Linear(6, 5), leaky(output=True))
    if how == "pruning":
        prune.l1_unstructured(net[0], "weight", 0.5)
    elif how == "parametrization":
        nn.utils.parametrizations.weight_norm(net[0])
    else:
        getattr(nn.utils, how)(net[0])
    net(torch.rand(2, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = convert(net)
    fast(torch.rand(5, 3, 6) * 3)[1].sum().backward()
    assert all(parameter.grad.any() for parameter in fast.parameters())
    assert not any(parameter.grad is not None for parameter in net.parameters())


def test_sparse_inputs_and_token_ids():
    fast = convert(nn.Sequential(nn.Linear(6, 5), leaky(output=True)))
    x = (torch.rand(5, 3, 6) > 0.5).float() * 3
    assert torch.equal(fast(x.to_sparse())[0], fast(x)[0])
    for front in (nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(6, 5), nn.Dropout())):
        static = convert(nn.Sequential(front, leaky(output=True)), num_steps=5)
        assert static(x[0].to_sparse())[0].shape == (5, 3, 5)
    tokens = convert(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), leaky(output=True)))
    assert tokens(torch.randint(9, (5, 3)))[0].shape == (5, 3, 5)


def test_a_module_that_is_reloaded(tmp_path, monkeypatch):
    source = "from tests.support.networks import StateGiven\nclass Net(StateGiven):\n    pass\n"
    (tmp_path / "users_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    users_net = importlib.import_module("users_net")
    old = users_net.Net()
    fast, x = convert(old), torch.rand(5, 2, 3)
    users_net = importlib.reload(users_net)
    assert torch.equal(convert(old)(x), fast(x))
    assert isinstance(convert(users_net.Net()), users_net.Net)
    assert not isinstance(fast, users_net.Net)
