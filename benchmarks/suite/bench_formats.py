"""The format of spikes that convert chooses, against both formats and the author's loop."""

import itertools

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from snn_single_spike import convert
from snn_single_spike.functional import SPIKE_FORMATS, spike_count

from benchmarks.harness.race import Contestant

SHALLOW, WIDE, DEEP = (784, 100, 10), (784, 1000, 10), (784, 500, 500, 10)
LARGEST = 12_000_000  # inputs of a step


def _cases():
    quick = {(WIDE, "sequence", 25), (DEEP, "static", 25), (SHALLOW, "static", 100)}
    for sizes, data in itertools.product((SHALLOW, WIDE, DEEP), ("static", "sequence")):
        for num_steps in (10, 25, 50, 100, 300, 1000):
            if data == "sequence" and num_steps * 32 * sizes[0] > LARGEST:
                continue
            rare = [] if (sizes, data, num_steps) in quick else [pytest.mark.full]
            name = f"{'-'.join(map(str, sizes))}-{data}-T{num_steps}"
            yield pytest.param(sizes, data, num_steps, id=name, marks=rare)


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        last = outputs == sizes[-1]
        layers += [nn.Linear(inputs, outputs), snn.Leaky(0.9, init_hidden=True, output=last)]
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(2)  # half of the neurons fire
    return nn.Sequential(*layers)


@pytest.mark.parametrize("peers", ["formats", "loop"])
@pytest.mark.parametrize(("sizes", "data", "num_steps"), _cases())
def bench_formats(sizes, data: str, num_steps: int, peers: str, compare, device: str) -> None:
    net = network(sizes).to(device)
    static = data == "static"
    x = torch.rand(32, sizes[0], device=device)
    if static:
        x = x * (torch.rand_like(x) < 0.3)
    else:
        x = (torch.rand(num_steps, *x.shape, device=device) < 0.03).float()

    def step(model: nn.Module) -> Contestant:
        def run(_: object) -> None:
            spikes, _ = model(x)
            spike_count(spikes, per="sample").sum().backward()
            model.zero_grad(set_to_none=True)

        run(None)
        return Contestant(run)

    def loop(_: object) -> None:
        utils.reset(net)
        record = [net(x if static else x[t])[0] for t in range(num_steps)]
        torch.stack(record).sum().backward()
        net.zero_grad(set_to_none=True)

    # Apart: a turn right after the loop finds its own data out of the cache.
    steps = num_steps if static else None
    others = {"snn.Leaky loop": Contestant(loop)}
    if peers == "formats":
        others = {
            name: step(convert(net, num_steps=steps, spike_format=name)) for name in SPIKE_FORMATS
        }
    compare(
        step(convert(net, num_steps=steps)),
        others,
        cell={"sizes": list(sizes), "data": data, "num_steps": num_steps},
    )
