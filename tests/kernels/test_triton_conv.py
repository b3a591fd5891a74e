"""The Triton kernels of convolutions: results in the interpreter, or on a GPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snn_single_spike import SingleSpikeLeaky, SpikeTimes
from snn_single_spike.functional import single_spike_conv2d, single_spike_leaky

from tests.support.conv_problems import Case, check, layer_of, on, run, spikes_of
from tests.support.devices import device_of, runnable
from tests.support.oracle import relative_error

pytest.importorskip("triton", reason="triton is not installed: the kernels cannot be compiled")

from snn_single_spike.backends._events import collect_events
from snn_single_spike.backends._types import Convolution
from snn_single_spike.backends.triton import conv as triton_conv
from snn_single_spike.backends.triton._tiles import Tile, by_tile, places_of, tile_of, windows
from snn_single_spike.kernels.triton import conv_backward, conv_forward

from tests.support.launches import a_few_of_each, compile_launches, recorded

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.every_case]

STEPS = 5
CASES = {
    "strided, each neuron": (
        Case((1, 5, 4), 3, (3, 2), {"padding": (1, 0), "stride": (2, 1)}, each_neuron=True),
        *("times", "spike_time", "zero"),
    ),
    "dilated groups": (
        Case((4, 5, 4), 6, (2, 2), {"dilation": (3, 2), "groups": 2}),
        *("events", "masked", "subtract"),
    ),
    "depthwise": (
        Case((2, 4, 4), 4, (3, 3), {"padding": 1, "groups": 2}, bias=False),
        *("times", "pre_spike", "zero"),
    ),
    "rows not read": (
        Case((1, 6, 6), 2, (2, 2), {"stride": 3}),
        *("times", "straight_through", "none"),
    ),
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and programs as on a GPU, several parts of the spikes, and pieces of one sample."""
    monkeypatch.setattr(triton_conv, "warp_size", lambda: 32)
    monkeypatch.setattr(triton_conv, "tile_of", lambda *_: Tile(1, 2, 2))
    monkeypatch.setattr(triton_conv, "_PROGRAMS", 8)
    monkeypatch.setattr(triton_conv, "_PIECE_BYTES", 1)


def run_case(case, kind, rule, reset, backend, dtype, tolerance):
    device = device_of(backend)
    layer = on(device, layer_of(case, dtype=dtype))
    dense = spikes_of(case, STEPS, 2, kind, dtype=dtype).to(device)
    check(case, layer, dense, kind, rule, reset, backend, tolerance)


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize("name", CASES)
def test_all_sizes(name, backend):
    run_case(*CASES[name], backend, torch.float64, 1e-10)


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_float32_and_small_tiles(rule, backend, small_tiles):
    case = Case((2, 3, 3), 3, (2, 2), {"padding": (0, 1)})
    run_case(case, "times", rule, "subtract", backend, torch.float32, 1e-4)


def network(backend, rule):
    torch.manual_seed(0)
    how = {"init_hidden": True, "learn_beta": True, "learn_threshold": True}
    how |= {"spike_format": "times", "gradient": rule, "backend": backend}
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.MaxPool2d((1, 2)),
        SingleSpikeLeaky(0.9, threshold=0.4, **how),
        nn.Conv2d(2, 3, 2),
        nn.MaxPool2d((2, 1)),
        SingleSpikeLeaky(torch.rand(3, 1, 1) / 2 + 0.5, threshold=0.2, **how),
    ).double()
    for conv in (net[0], net[3]):
        conv.weight.data.mul_(3)
    return net.to(device_of(backend))


# With these times every parameter has a gradient.
TIMES = torch.randint(-1, STEPS, (2, 1, 3, 6), generator=torch.Generator().manual_seed(3))


def trained(backend, rule, times):
    """Spike times of the network, and the gradients of its parameters."""
    net = network(backend, rule)
    made = net(SpikeTimes(times, STEPS, dtype=torch.float64).to(device_of(backend)))
    ramp = torch.arange(STEPS, dtype=torch.float64).sqrt().view(-1, 1, 1, 1, 1)
    (made.to_dense() * ramp.to(made.device)).sum().backward()
    return made.times.cpu(), [p.grad.cpu() for p in net.parameters()]


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_hidden_layers_behind_maxima_of_windows(rule, backend, small_tiles, monkeypatch):
    monkeypatch.setattr(triton_conv, "tile_of", lambda *_: Tile(2, 2, 4))
    (right_times, right), (times, grads) = (trained(x, rule, TIMES) for x in ("torch", backend))
    assert torch.equal(times, right_times)
    for mine, expected in zip(grads, right, strict=True):
        assert expected.any()
        assert relative_error(mine, expected) < 1e-10


@pytest.mark.parametrize("backend", runnable("triton"))
def test_ties_silent_maps_and_one_sample(backend):
    """Sums of halves are exact. A membrane that only reaches the threshold does not fire."""
    make = torch.Generator().manual_seed(2)
    weight = torch.randint(-2, 4, (5, 1, 3, 3), generator=make).double() / 2
    weight[4] = 0.0
    times = torch.randint(-1, 4, (1, 1, 5, 5), generator=make)
    spikes = SpikeTimes(times, 4, dtype=torch.float64)
    current = F.conv2d(spikes.to_dense().flatten(0, 1), weight).unflatten(0, (4, 1))
    expected = single_spike_leaky(current, 0.5, 1.5, backend="torch")
    device = device_of(backend)
    given = spikes.to(device), weight.to(device), None, 0.5, 1.5
    made = single_spike_conv2d(*given, backend=backend).times.cpu().long()
    assert torch.equal(made, expected.times)
    assert (expected.mem == 1.5).any()
    assert (made[:, 4] < 0).all()
    none = SpikeTimes(torch.full_like(times, -1), 4, dtype=torch.float64).to(device)
    assert (single_spike_conv2d(none, *given[1:], backend=backend).times < 0).all()


SIZES = {
    "plain": Convolution(2, 6, 5, 4, 3, 1, 1, 0, 0, 1, 1, 1),
    "padded": Convolution(1, 5, 7, 6, 8, 1, 1, 2, 1, 1, 1, 1),
    "strided groups": Convolution(4, 9, 8, 4, 2, 2, 3, 0, 0, 1, 1, 2),
    "dilated windows": Convolution(1, 12, 11, 6, 7, 1, 1, 0, 0, 3, 2, 1, 2, 3),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_spike_is_in_the_tiles_that_it_reaches(name):
    """The tile of a neuron has all of its spikes, in order: counted by a convolution of ones."""
    conv, kernel, tile = SIZES[name], (3, 3), Tile(2, 1, 1)
    dense = (torch.rand(STEPS, 3, conv.units) < 0.3).float()
    spikes = places_of(collect_events(dense), conv, torch.float32)
    tiled = by_tile(spikes, conv, kernel, tile)
    tiles, (windows_y, windows_x) = tile.counts(conv), windows(conv)
    counts = torch.zeros(3, conv.groups, conv.out_height, conv.out_width)
    times, rows, columns, offsets = (tiled[x] for x in ("times", "rows", "columns", "offsets"))
    for part in range(len(offsets) - 1):
        map_, at = divmod(part, tiles[0] * tiles[1])
        tile_y, tile_x = divmod(at, tiles[1])
        low, high = offsets[part], offsets[part + 1]
        assert (times[low:high].diff() >= 0).all()
        y = torch.arange(tile_y * tile.y * conv.pool_y, (tile_y + 1) * tile.y * conv.pool_y)
        x = torch.arange(tile_x * tile.x * conv.pool_x, (tile_x + 1) * tile.x * conv.pool_x)
        y, x = y[y < windows_y * conv.pool_y], x[x < windows_x * conv.pool_x]
        away_y = rows[low:high, None] - y * conv.stride_y
        away_x = columns[low:high, None] - x * conv.stride_x
        hit_y, hit_x = (
            (away >= 0) & (away % dilation == 0) & (away <= 2 * dilation)
            for away, dilation in ((away_y, conv.dilation_y), (away_x, conv.dilation_x))
        )
        sample, group = divmod(map_, conv.groups)
        counts[sample, group, y[:, None], x] = hit_y.float().T @ hit_x.float()
    maps = dense.sum(0).view(3, conv.channels, conv.height, conv.width)
    ones = torch.ones(conv.groups, conv.channels // conv.groups, 3, 3)
    bottom = (conv.out_height - 1) * conv.stride_y + 2 * conv.dilation_y + 1
    right = (conv.out_width - 1) * conv.stride_x + 2 * conv.dilation_x + 1
    pad = (conv.left, right - conv.left - conv.width, conv.top, bottom - conv.top - conv.height)
    options = {"stride": (conv.stride_y, conv.stride_x), "groups": conv.groups}
    options |= {"dilation": (conv.dilation_y, conv.dilation_x)}
    expected = F.conv2d(F.pad(maps, pad), ones, **options)
    inside = (..., slice(windows_y * conv.pool_y), slice(windows_x * conv.pool_x))
    assert torch.equal(counts[inside], expected[inside])


@pytest.mark.parametrize(
    ("conv", "channels", "tile"),
    [
        (Convolution(32, 12, 12, 8, 8, 1, 1, 0, 0, 1, 1, 1), 64, (2, 4, 32)),
        (Convolution(1, 28, 28, 24, 24, 1, 1, 0, 0, 1, 1, 1, 2, 2), 12, (2, 2, 16)),
        (Convolution(8, 1, 100, 1, 98, 1, 1, 0, 0, 1, 1, 1), 16, (1, 16, 16)),
        (Convolution(8, 28, 28, 28, 28, 1, 1, 1, 1, 1, 1, 8), 1, (8, 8, 1)),
        (Convolution(8, 3, 3, 1, 1, 1, 1, 0, 0, 1, 1, 1), 10, (1, 1, 16)),
    ],
)
def test_tiles(conv, channels, tile):
    assert tile_of(conv, channels, torch.float32, interpreted=False) == tile


def test_too_large_windows_are_refused():
    conv = Convolution(1, 20, 20, 18, 18, 1, 1, 0, 0, 1, 1, 1, 9, 9)
    with pytest.raises(RuntimeError, match="windows of 9 x 9.*backend='torch'"):
        triton_conv.spikes_ahead(conv)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the launches themselves are it")
def test_launches_compile(small_tiles, request):
    """The arguments that the launchers pass: sizes of 1, absent tensors, every option."""
    sizes = Case((1, 1, 1), 1, (1, 1), {}), Case((2, 2, 3), 4, (2, 2), {"groups": 2}, True)
    with recorded() as launches:
        for case, kind, rule, dtype in (
            (sizes[0], "times", "spike_time", torch.float32),
            (sizes[1], "times", "spike_time", torch.float32),
            (sizes[1], "events", "masked", torch.float64),
        ):
            layer, dense = layer_of(case, dtype=dtype), spikes_of(case, 3, 1, kind, dtype=dtype)
            run("times", case, layer, dense, kind, rule, "subtract", "triton")
        for rule in ("spike_time", "masked"):
            trained("triton", rule, TIMES[:1])
    modules = conv_forward, conv_backward
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    of_convolutions = [launch for launch in launches.values() if launch.kernel in kernels]
    assert {launch.kernel for launch in of_convolutions} == kernels
    if not request.config.getoption("--exhaustive"):
        of_convolutions = a_few_of_each(of_convolutions)
    for launch, facts in zip(of_convolutions, compile_launches(of_convolutions), strict=True):
        assert not facts.shared_in_loops(), launch
        assert not facts.spilled, launch
        assert max(facts.round_trips, default=0) <= 2, launch
