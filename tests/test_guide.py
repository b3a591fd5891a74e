"""Every block of docs/guide.md, before and after, on the same weights."""

import re
from pathlib import Path

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, convert, revert

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text()
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", body, re.S)
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
}
STEPS = 8


def run(code):
    """The names a block leaves behind; weights and data are those of every other block."""
    torch.manual_seed(0)
    space = {
        "torch": torch,
        "nn": nn,
        "snn": snn,
        "utils": utils,
        "SingleSpikeLeaky": SingleSpikeLeaky,
        "LeakyReadout": LeakyReadout,
        "convert": convert,
        "revert": revert,
        "num_steps": STEPS,
        "current": torch.rand(STEPS, 3, 64),
        "image": torch.rand(3, 1, 8, 8) * 2,
        "frames": (torch.rand(STEPS, 3, 2, 8, 8) > 0.5).float(),
    }
    torch.manual_seed(1)
    exec(code, space)
    return space


def first(spikes):
    fired = spikes > 0
    return fired & (fired.cumsum(0) == 1)


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if len(blocks) > 1])
def test_after_does_what_before_did(title):
    before, *afters = (run(code) for code in SECTIONS[title])
    for after in afters:
        compared = [name for name in ("spk_rec", "mem_rec") if name in before and name in after]
        assert compared
        for name in compared:
            assert after[name].shape == before[name].shape
        # What enters the first neuron is the same, so what it fires first is, too; later
        # layers see fewer spikes than before.
        if title.startswith("One layer"):
            assert torch.equal(after["spk_rec"] > 0, first(before["spk_rec"]))
        else:
            assert after["mem_rec"].isfinite().all()
        if "spk_rec" in after:
            assert (after["spk_rec"].sum(0) <= 1).all()


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if len(blocks) == 1])
def test_other_blocks_run(title):
    run(SECTIONS[title][0])


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


def test_the_loop_in_forward_is_refused_as_the_page_says():
    code = next(blocks[0] for title, blocks in SECTIONS.items() if "(tutorial 5)" in title)
    with pytest.raises(ValueError, match="take the loop out of forward"):
        run(code.replace("net = Net()", "net = convert(Net(), num_steps=num_steps)"))


def test_the_page_has_every_idiom():
    text = " ".join(SECTIONS)
    for word in (
        "tutorial 3",
        "tutorial 5",
        "tutorial 6",
        "tutorial 7",
        "Population",
        "Regression",
    ):
        assert word in text
