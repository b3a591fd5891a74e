"""The blocks of the README run."""

import re

import snntorch as snn
import torch
from torch import nn

from tests.support.devices import ROOT
from tests.support.pages import blocks_of, run_blocks

README = (ROOT / "README.md").read_text()
EQUIVALENT, EVERY_SPIKE, CONVERSION, TIMES = blocks_of(README)


def swap():
    """The network before and after, from the diff on the first screen."""
    lines = re.search(r"```diff\n(.*?)```", README, re.S).group(1).splitlines()
    header = "import torch\nfrom torch import nn\n"
    networks = []
    for sign in "-+":
        code = "\n".join(line[2:] for line in lines if line[:1] in (" ", sign))
        networks.append(run_blocks([header + code])["Net"]())
    return networks


def test_the_swap_runs_and_keeps_checkpoints():
    before, after = swap()
    x = (torch.rand(8, 2, 784) > 0.8).float()
    spk_before, mem_before = before(x)
    after.load_state_dict(before.state_dict(), strict=True)
    before.load_state_dict(after.state_dict(), strict=True)
    spk, mem = after(x)
    assert spk.shape == spk_before.shape == (8, 2, 10)
    assert mem.shape == mem_before.shape
    # The first layer's first spikes are the loop's: until then both outputs are the same.
    assert torch.equal(after.lif1(after.fc1(x))[0].sum(0) <= 1, torch.ones(2, 1000) > 0)
    spk.sum().backward()
    assert after.fc1.weight.grad is not None


def test_the_contract_holds():
    space = run_blocks([EQUIVALENT])  # with its own assertions
    fired = space["spk"].sum(0)
    assert 0 < fired.mean() < 1
    assert space["grad"].any()
    every = run_blocks([EVERY_SPIKE], torch=torch, current=space["current"])
    assert every["spk"].sum(0).max() > 1


def test_the_conversion_shown_runs():
    net = nn.Sequential(nn.Linear(5, 4), snn.Leaky(0.9, init_hidden=True, output=True))
    data = torch.rand(6, 2, 5)
    space = run_blocks([CONVERSION], net=net, data=data)
    assert torch.equal(space["same"](data)[0][:1], space["spk_rec"][:1])
    assert space["spk_rec"].shape == space["mem_rec"].shape == (6, 2, 4)
    assert isinstance(space["net"][1], snn.Leaky)


def test_the_spike_times_shown_run():
    times = torch.randint(-1, 100, (3, 784))
    assert run_blocks([TIMES], nn=nn, times=times)["scores"].shape == (3, 10)


def test_no_placeholder_is_left():
    assert not re.search(r"[A-Z]+_TABLE", README)
