"""Every block of docs/guide.md and docs/spike-times.md, before and after, on the same weights."""

import warnings

import matplotlib
import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch.functional import probe
from torch import nn
from torch.nn.functional import cross_entropy

from snn_single_spike import MaterializationWarning, convert

from benchmarks.tutorials.edits import TUTORIALS
from tests.support.devices import ROOT, SHARED
from tests.support.pages import blocks_of, execute, sections_of
from tests.support.recordings import write_nmnist

GUIDE, TIMES = ((ROOT / "docs" / name).read_text() for name in ("guide.md", "spike-times.md"))
SECTIONS = {title: blocks_of(body) for title, body in sections_of(GUIDE).items()}
TIMES_SECTIONS = {title: blocks_of(body) for title, body in sections_of(TIMES).items()}
STEPS = 8
PLOTS = "Plots, probes and `utils.reset`"
TONIC = "An event dataset, from tonic to accuracy"
matplotlib.use("agg")


def run(code, page=GUIDE):
    """The names that a block defines. All blocks have the same weights and data."""
    if "spikeplot" in code:
        pytest.importorskip("pandas", reason="snntorch.spikeplot imports it")
    beginning, *_ = blocks_of(page)
    space = {}
    torch.manual_seed(0)
    execute(beginning, space)
    torch.manual_seed(1)
    execute(code, space)
    return space


def run_times(title, lower=""):
    """The blocks of a section of docs/spike-times.md."""
    codes = TIMES_SECTIONS[title]
    if lower:
        codes = [code.replace("beta=0.9", f"beta=0.9, threshold={lower}") for code in codes]
    return [run(code, TIMES) for code in codes]


def first(spikes):
    fired = spikes > 0
    return fired & (fired.cumsum(0) == 1)


@pytest.mark.parametrize(
    "title", [title for title, blocks in SECTIONS.items() if len(blocks) > 1 and title != PLOTS]
)
def test_after_does_what_before_did(title):
    before, *afters = (run(code) for code in SECTIONS[title])
    for after in afters:
        compared = [name for name in ("spk_rec", "mem_rec") if name in before and name in after]
        assert compared
        for name in compared:
            assert after[name].shape == before[name].shape
        # The first neuron receives the same input, so its first spikes are the same. Later layers
        # receive fewer spikes than before.
        if title.startswith("One layer"):
            assert torch.equal(after["spk_rec"] > 0, first(before["spk_rec"]))
        else:
            assert after["mem_rec"].isfinite().all()
        if "spk_rec" in after:
            assert (after["spk_rec"].sum(0) <= 1).all()


@pytest.mark.parametrize(
    "title", [title for title, blocks in SECTIONS.items() if len(blocks) == 1 and title != TONIC]
)
def test_other_blocks_run(title):
    run(SECTIONS[title][0])


def test_events_from_tonic_train(tmp_path, monkeypatch):
    """On a part of N-MNIST, without the archive that tonic would fetch again."""
    tonic = pytest.importorskip("tonic", reason="tonic is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tonic.datasets.NMNIST, "_check_exists", lambda self: True)
    real = SHARED / "data" / "NMNIST"
    for part, digits in ((part, "0123456789") for part in ("Train", "Test")):
        for digit in digits if real.is_dir() else "":
            folder = tmp_path / "data" / "NMNIST" / part / digit
            folder.mkdir(parents=True)
            for path in sorted((real / part / digit).iterdir())[:25]:
                (folder / path.name).symlink_to(path)
    if not real.is_dir():
        write_nmnist(tmp_path / "data" / "NMNIST")
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        code = SECTIONS[TONIC][0].replace("epochs, samples = 10", "epochs, samples = 4")
        found = run(code.replace("lr=1e-3", "lr=2e-3"))
    assert found["loss"].isfinite()
    assert found["accuracy"] > (0.3 if real.is_dir() else -1)  # chance is 0.1


def test_losses_of_the_training_step_are_those_of_the_tutorials():
    """The page names the same replacements that the table of the tutorials was measured with."""
    before, after = SECTIONS["The training step: losses on rates change"]
    for number, name in ((6, "SF.ce_rate_loss"), (7, "SF.mse_count_loss")):
        tutorial = TUTORIALS[f"tutorial_{number}"]
        assert name in tutorial.source("loop")
        assert name not in tutorial.source("single spike")
        assert f"`{name}`" in GUIDE
    space = run(after)
    mem = space["mem_rec"].sum(0)
    assert space["loss"].item() == pytest.approx(cross_entropy(mem, space["targets"]).item())
    right = (mem.argmax(1) == space["targets"]).float().mean().item()
    assert space["accuracy"] == pytest.approx(right)
    assert "ce_rate_loss" in before


def test_first_neurons_fire_as_before():
    """The claim of the page on what is the same: the first layer's first spikes."""
    for title, blocks in SECTIONS.items():
        if not title.startswith("`nn.Sequential`"):
            continue
        spikes = []
        for code in blocks:
            net = run(code)["net"]
            recorded = []
            neuron = next(m for m in net.modules() if isinstance(m, snn.Leaky))
            neuron.register_forward_hook(lambda m, i, out, into=recorded: into.append(out))
            image = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 6
            if len(spikes):
                net(image)
                spikes.append(recorded[0].unflatten(0, (STEPS, 3)) > 0)
            else:
                utils.reset(net)
                for _ in range(STEPS):
                    net(image)
                spikes.append(first(torch.stack(recorded)))
        assert spikes[0].any()
        assert torch.equal(*spikes)


def test_a_regression_network_converts_and_swaps_to_the_same():
    blocks = next(b for title, b in SECTIONS.items() if "regression tutorial, part 1" in title)
    _, converted, swapped = (run(code)["mem_rec"] for code in blocks)
    assert torch.equal(converted, swapped)


def test_a_readout_that_does_not_reset_keeps_its_membrane_as_the_page_says():
    torch.manual_seed(0)
    current = torch.randn(STEPS, 3, 10)
    readout = snn.Leaky(beta=0.9, reset_mechanism="none", init_hidden=True, output=True)
    spikes, mem = zip(*(readout(step) for step in current), strict=True)
    assert torch.stack(spikes).sum(0).max() > 1
    _, converted = convert(nn.Sequential(nn.Identity(), readout))(current)
    assert torch.equal(converted, torch.stack(mem))


def test_recurrent_neurons_are_refused_as_the_page_says():
    net = nn.Sequential(nn.Linear(64, 30), snn.RLeaky(beta=0.9, linear_features=30))
    with pytest.raises(ValueError, match="all_to_all=True"):
        convert(net)
    with pytest.raises(ValueError, match="cannot be converted"):
        convert(nn.Sequential(snn.RSynaptic(alpha=0.8, beta=0.9, all_to_all=False)))


def test_feedback_of_a_neuron_to_itself_reaches_no_spike_as_the_page_says():
    torch.manual_seed(0)
    current = torch.rand(STEPS, 3, 64)
    recurrent = snn.RLeaky(beta=0.9, V=3.0, all_to_all=False, init_hidden=True, output=True)
    plain = snn.Leaky(beta=0.9, init_hidden=True, output=True)
    (spikes, mem), (expected, other) = (
        convert(nn.Sequential(nn.Identity(), neuron))(current) for neuron in (recurrent, plain)
    )
    assert spikes.any()
    assert torch.equal(spikes, expected)
    assert not torch.equal(mem, other)


def test_spike_times_of_the_page_are_its_dense_spikes():
    dense, times = run_times("Two layers", lower="0.2")  # low, so that all fire
    assert dense["spk_rec"].any()
    assert torch.equal(times["spikes"].to_dense(), dense["spikes"])
    assert torch.equal(times["spk_rec"].to_dense(), dense["spk_rec"])
    assert torch.allclose(times["mem_rec"].to_dense(), dense["mem_rec"], atol=1e-5)


def test_functions_of_the_page_pass_spike_times():
    (space,) = run_times("Functions")
    assert (space["hidden"].times >= 0).any()
    assert space["scores"].shape == (3, 10)


def test_a_whole_model_of_the_page_keeps_spike_times():
    loop, converted = run_times("A whole model", lower="0.2")
    for name in ("spk_rec", "mem_rec"):
        assert converted[name].shape == loop[name].shape
    assert converted["net"][1].spike_format == "times"
    assert list(converted["net"].state_dict()) == list(loop["net"].state_dict())
    assert converted["mem_rec"].max(0).values.shape == (3, 10)


def test_what_becomes_dense_warns_as_the_page_says():
    run_times("What stays spike times, and what becomes dense")  # with its own assertion


def test_recordings_of_the_page_are_their_events():
    (space,) = run_times("Event recordings")
    assert space["spikes"].to_dense().sum((0, 2, 3, 4)).tolist() == [40, 0, 25]
    assert space["spk_rec"].shape == space["mem_rec"].shape == (STEPS, 3, 10)


def test_a_loader_of_tonic_s_recordings_gives_events():
    pytest.importorskip("tonic")
    (network,), (loader,) = (TIMES_SECTIONS[t] for t in ("Event recordings", "Datasets of tonic"))
    space = run(f"{network}\n{loader}", TIMES)
    assert space["spikes"].shape == (STEPS, 1, 2, 8, 8)  # the last batch of three samples
    assert space["spk_rec"].shape == (STEPS, 1, 10)


def test_a_cost_of_spikes_has_a_gradient():
    (space,) = run_times("A cost of spikes", lower="0.2")
    free = cross_entropy(space["scores"], torch.tensor([3, 1, 4]))
    cost = space["loss"] - free
    spikes = (space["hidden"].times >= 0).flatten(1).sum(1).float().mean().item()
    assert cost.item() == pytest.approx(1e-3 * spikes, abs=1e-5)
    assert cost > 0
    (grad,) = torch.autograd.grad(cost, space["layer"].weight)
    assert grad.any()


def test_delays_of_the_page_have_gradients():
    (space,) = run_times("Delays", lower="0.2")
    space["scores"].square().sum().backward()
    assert space["hidden"].delay.grad.any()
    assert space["delay"].delay.grad.any()
    space["optimizer"].step()


def test_every_block_on_spike_times_is_tested():
    tested = {
        *("Two layers", "Functions", "A whole model", "Event recordings", "Datasets of tonic"),
        *("A cost of spikes", "Delays"),
        "What stays spike times, and what becomes dense",
    }
    assert {title for title, blocks in TIMES_SECTIONS.items() if blocks} == tested


def blocks_of_their_own():
    plots, probes, reset = SECTIONS[PLOTS]
    return {"plots": plots, "probes": probes, "reset": reset}


def test_plots_show_the_spikes():
    space = run(blocks_of_their_own()["plots"])
    (points,) = space["ax"].collections
    assert len(points.get_offsets()) == space["spk_rec"][:, 0].sum() > 0
    assert len(space["plt"].gcf().axes) == 9
    space["plt"].close("all")


def test_probes_see_what_the_model_returns():
    space = run(blocks_of_their_own()["probes"])
    assert torch.equal(space["spk_out"], space["spk_rec"])
    assert torch.equal(space["mem_out"], space["mem_rec"])
    assert space["hidden"].shape == (STEPS, 3, 30)
    assert torch.equal(space["hidden"].sum(0) > 0, space["hidden"].bool().any(0))
    assert space["monitor"].monitored_layers == ["1", "3"]


def test_probes_of_a_static_input_see_the_first_layer_once():
    net = convert(
        nn.Sequential(nn.Linear(64, 10), snn.Leaky(beta=0.9, init_hidden=True)), num_steps=STEPS
    )
    linear = probe.OutputMonitor(net, instance=nn.Linear)
    mem = probe.AttributeMonitor("mem", False, net, instance=snn.Leaky)
    net(torch.rand(3, 64))
    assert linear["0"][0].shape == (3, 10)
    assert mem["1"][0].shape == (3, 10)


def test_reset_changes_nothing():
    space = run(blocks_of_their_own()["reset"])
    assert torch.equal(space["spk_rec"], space["spk_again"])
    assert torch.equal(space["mem_rec"], space["mem_again"])


def test_the_page_has_every_idiom():
    text = " ".join(SECTIONS)
    for word in (
        "tutorial 3",
        "tutorial 5",
        "tutorial 6",
        "tutorial 7",
        "Population",
        "Regression",
        "regression tutorial, part 1",
        "regression tutorial, part 2",
        "probes",
    ):
        assert word in text
