"""Runs of the papers' own code (float64) must be reproduced."""

import numpy as np
import pytest
import torch
from snntorch import surrogate

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike.functional import single_spike_leaky

from tests.support.devices import ROOT, device_of
from tests.support.oracle import relative_error

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.npz"))
RULES = ("straight_through", "pre_spike")



def run(path, backend, dtype, call):
    data = np.load(path)
    to = {"dtype": dtype, "device": device_of(backend)}
    current = torch.tensor(data["current"], **to, requires_grad=True)
    beta = torch.tensor(data["beta"], **to, requires_grad=True)
    rule = next(rule for rule in RULES if path.name.startswith(rule))
    spikes, mem = call(current, beta, rule, surrogate.fast_sigmoid(int(data["scale"])))
    g, h = (torch.tensor(data[name], **to) for name in ("grad_spikes", "grad_mem"))
    ((spikes * g).sum() + (mem * h).sum()).backward()
    errors = {
        "mem": relative_error(mem, torch.tensor(data["mem"])),
        "current": relative_error(current.grad, torch.tensor(data["grad_current"])),
    }
    if "grad_beta" in data.files:
        errors["beta"] = relative_error(beta.grad, torch.tensor(data["grad_beta"]))
    assert torch.equal(spikes.detach().double().cpu(), torch.tensor(data["spikes"]))
    return errors


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_operator_reproduces_the_authors_runs(path, dtype, tolerance, recompute, backend):
    def call(current, beta, rule, spike_grad):
        return single_spike_leaky(
            current,
            beta,
            spike_grad=spike_grad,
            gradient=rule,
            backend=backend,
            recompute=recompute,
        )[:2]

    errors = run(path, backend, dtype, call)
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_module_reproduces_the_authors_runs(path, cpu_backend):
    def call(current, beta, rule, spike_grad):
        lif = SingleSpikeLeaky(
            beta.detach(),
            spike_grad=spike_grad,
            learn_beta=True,
            reset_mechanism="none",
            gradient=rule,
            backend=cpu_backend,
        ).double()
        spikes, mem = lif(current)
        beta.register_hook(lambda grad: grad)
        lif.beta.register_hook(lambda grad: beta.grad.copy_(grad))
        beta.grad = torch.zeros_like(beta)
        return spikes, mem

    errors = run(path, cpu_backend, torch.float64, call)
    assert max(errors.values()) < 1e-10, errors
