"""Errors of bad input name the argument, the value and the fix."""

import pytest
import torch

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SpikeDelay, SpikeTimes
from snn_single_spike.functional import (
    delay_spikes,
    first_spike_time,
    leaky_readout,
    single_spike_leaky,
    single_spike_linear,
)

CURRENT = torch.zeros(4, 2, 3)

CASES = {
    "batch and features only": (
        {"current": torch.zeros(2, 3)},
        ValueError,
        r"current has shape \(2, 3\).*Drop the loop over time.*convert\(net\)",
    ),
    "one dimension": ({"current": torch.zeros(3)}, ValueError, "current has shape"),
    "no tensor": ({"current": [0.0]}, TypeError, "current must be a torch.Tensor, not list"),
    "integers": (
        {"current": torch.zeros(4, 2, 3, dtype=torch.int64)},
        TypeError,
        r"current has dtype torch.int64.*current.float\(\)",
    ),
    "complex": (
        {"current": torch.zeros(4, 2, 3, dtype=torch.complex64)},
        TypeError,
        "current has dtype torch.complex64",
    ),
    "no neurons": ({"current": torch.zeros(4, 2, 0)}, ValueError, "no neurons"),
    "no time": ({"current": torch.zeros(0, 2, 3)}, ValueError, "T=0"),
    "beta of another width": (
        {"beta": torch.full((4,), 0.9)},
        ValueError,
        r"beta has shape \(4,\), which does not broadcast to the features \(3,\)",
    ),
    "threshold per sample": (
        {"threshold": torch.ones(2, 3)},
        ValueError,
        r"threshold has shape \(2, 3\).*one value per neuron",
    ),
    "factor of another width": (
        {"graded_spikes_factor": torch.ones(2)},
        ValueError,
        "graded_spikes_factor has shape",
    ),
    "beta NaN": ({"beta": float("nan")}, ValueError, "beta is NaN"),
    "beta NaN inside": ({"beta": torch.tensor([0.1, float("nan"), 0.2])}, ValueError, "beta.*NaN"),
    "threshold NaN": ({"threshold": torch.tensor(float("nan"))}, ValueError, "threshold.*NaN"),
    "beta a string": ({"beta": "high"}, TypeError, "beta must be a number or a tensor, not str"),
    "beta float64": (
        {"beta": torch.full((3,), 0.9, dtype=torch.float64)},
        TypeError,
        r"beta has dtype torch.float64, but the input has torch.float32.*beta.to\(",
    ),
    "beta integers": (
        {"beta": torch.ones(3, dtype=torch.int64)},
        TypeError,
        "beta has dtype torch.int64",
    ),
    "beta complex": (
        {"beta": torch.tensor(0.9 + 0.1j)},
        TypeError,
        r"beta is complex, but must be real: use beta.real",
    ),
    "beta elsewhere": (
        {"beta": torch.full((3,), 0.9, device="meta")},
        ValueError,
        r"beta is on meta, but the input is on cpu.*beta.to\('cpu'\)",
    ),
    "mem elsewhere": ({"mem": torch.zeros(2, 3, device="meta")}, ValueError, "mem is on meta"),
    "mem of the whole sequence": ({"mem": CURRENT}, ValueError, r"mem has shape.*pass mem\[-1\]"),
    "mem of another shape": ({"mem": torch.zeros(2, 4)}, ValueError, r"mem has shape \(2, 4\)"),
    "mem float64": ({"mem": torch.zeros(2, 3).double()}, TypeError, "mem has dtype torch.float64"),
    "mem a number": ({"mem": 0.0}, TypeError, "mem must be a torch.Tensor or None, not float"),
    "unknown rule": ({"gradient": "bptt"}, ValueError, "gradient='bptt' is not known.*'masked'"),
    "unknown reset": ({"reset_mechanism": "soft"}, ValueError, "reset_mechanism='soft'.*'zero'"),
    "unknown surrogate": (
        {"spike_grad": "fast_sigmoid"},
        TypeError,
        "spike_grad='fast_sigmoid' cannot be called.*snntorch.surrogate",
    ),
    "unknown backend": ({"backend": "cuda"}, ValueError, "backend='cuda' is not known.*triton"),
}


@pytest.mark.parametrize("case", CASES)
def test_single_spike_leaky(case):
    bad, error, message = CASES[case]
    with pytest.raises(error, match=message):
        single_spike_leaky(**{"current": CURRENT, "beta": 0.9} | bad)


@pytest.mark.parametrize("function", [first_spike_time, leaky_readout])
@pytest.mark.parametrize("case", ["batch and features only", "integers", "no time", "beta NaN"])
def test_the_other_functions_check_alike(function, case):
    bad, error, message = CASES[case]
    with pytest.raises(error, match=message):
        function(**{"current": CURRENT, "beta": 0.9} | bad)


COMPLEX = torch.full((3,), 1 + 1j)
SPIKES = SpikeTimes(torch.zeros(2, 3, dtype=torch.int64), num_steps=4)


@pytest.mark.parametrize(
    ("name", "function"),
    {
        "bias": lambda: single_spike_linear(SPIKES, torch.ones(3, 3), COMPLEX, 0.9),
        "height": lambda: SpikeTimes(SPIKES.times, num_steps=4, height=COMPLEX),
        "scale": lambda: LeakyReadout(0.9, scale=COMPLEX)(CURRENT),
        "delay": lambda: delay_spikes(SPIKES, COMPLEX),
        "delay of a module": lambda: SpikeDelay(3, 1 + 1j),
    }.items(),
)
def test_complex_numbers_are_refused(name, function):
    with pytest.raises(TypeError, match=f"{name.split()[0]} .*complex"):
        function()


def test_reduction():
    with pytest.raises(ValueError, match="reduction='mean' is not known.*'sum'"):
        leaky_readout(CURRENT, 0.9, reduction="mean")


@pytest.mark.parametrize(
    ("option", "value"),
    [("inhibition", True), ("state_quant", lambda x: x), ("reset_delay", False)],
)
def test_options_that_need_the_time_loop_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"{option}=.*pass {option}="):
        SingleSpikeLeaky(0.9, **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("gradient", "exact", "gradient='exact'"),
        ("backend", "gpu", "backend='gpu'"),
        ("reset_mechanism", "hard", "reset_mechanism"),
        ("beta", float("nan"), "beta contains NaN"),
        ("threshold", float("nan"), "threshold contains NaN"),
    ],
)
def test_module_checks_its_options_when_it_is_made(option, value, message):
    with pytest.raises(ValueError, match=message):
        SingleSpikeLeaky(**{"beta": 0.9, option: value})


def test_module_in_an_old_time_loop_says_what_to_change():
    with pytest.raises(ValueError, match="Drop the loop over time"):
        SingleSpikeLeaky(0.9)(torch.zeros(2, 3))


def test_mixed_precision_parameters_may_stay_float32():
    spikes, mem, _ = single_spike_leaky(CURRENT.half(), torch.full((3,), 0.9))
    assert spikes.dtype == mem.dtype == torch.float16
