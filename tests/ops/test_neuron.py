"""The operator against the sequential float64 reference, for every rule and reset."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from snntorch import surrogate

from snn_single_spike import SingleSpikeLeaky
from snn_single_spike.functional import first_spike_time, single_spike_leaky
from snn_single_spike.ops.surrogate import recognize
from snn_single_spike.ops.validation import GRADIENT_RULES, RESETS

from tests.support.devices import device_of
from tests.support.oracle import Run, assert_runs_close, operator_run, reference_run, relative_error
from tests.support.problems import problem

SURROGATES = {
    "atan": surrogate.atan(alpha=3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=10),
}
OF_USERS = {
    "custom": surrogate.custom_surrogate(lambda u, g, s: g / (1 + u.abs())),
    "user function": lambda u: (
        torch.sigmoid(4 * u) + ((u > 0).to(u) - torch.sigmoid(4 * u)).detach()
    ),
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def check(arguments, surrogate_, rule, reset, backend, recompute=False):
    dtype = arguments["current"].dtype
    expected = reference_run(**arguments, surrogate=surrogate_, rule=rule, reset=reset)
    moved = {name: value.to(device_of(backend)) for name, value in arguments.items()}
    actual = operator_run(
        **moved, surrogate=surrogate_, rule=rule, reset=reset, backend=backend, recompute=recompute
    )
    assert_runs_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_every_rule_and_reset(rule, reset, recompute, dtype, backend):
    check(problem((19, 2, 5), dtype), SURROGATES["fast_sigmoid"], rule, reset, backend, recompute)


@pytest.mark.parametrize("rule", [rule for rule in GRADIENT_RULES if rule != "spike_time"])
@pytest.mark.parametrize("name", OF_USERS)
def test_surrogates_of_users(name, rule, backend):
    # custom_surrogate returns float32, so its gradients are rounded to that
    dtype = torch.float32 if name == "custom" else torch.float64
    check(problem((9, 2, 4), dtype), OF_USERS[name], rule, "subtract", backend)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@given(
    num_steps=st.integers(1, 34),
    batch=st.integers(1, 3),
    features=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    reset=st.sampled_from(RESETS),
    per_neuron=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_on_the_cpu(rule, num_steps, batch, features, reset, per_neuron, seed):
    arguments = problem((num_steps, batch, *features), per_neuron=per_neuron, seed=seed)
    for backend in ("torch", "auto"):
        check(arguments, SURROGATES["atan"], rule, reset, backend)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (16, 1, 3), (17, 2, 2, 3), (33, 3, 7)])
def test_shapes_around_the_load_ahead(shape, backend):
    check(problem(shape), SURROGATES["atan"], "masked", "subtract", backend)


@pytest.mark.parametrize("lanes", [1023, 1024, 1025, 20_000])
def test_layers_wider_than_a_block(lanes, cpu_backend):
    arguments = problem((12, 1, lanes), torch.float32)
    wide = operator_run(
        **arguments, surrogate=SURROGATES["atan"], rule="masked", reset="zero", backend=cpu_backend
    )
    last = {
        name: value[..., -3:] if value.shape[-1:] == (lanes,) else value
        for name, value in arguments.items()
    }
    narrow = reference_run(**last, surrogate=SURROGATES["atan"], rule="masked", reset="zero")
    assert_runs_close(Run(*(value[..., -3:] for value in wide)), narrow, 1e-4)


def test_threads_change_nothing(cpu_backend):
    arguments = problem((100, 4, 8000), torch.float32)
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(
                operator_run(
                    **arguments,
                    surrogate=SURROGATES["atan"],
                    rule="masked",
                    reset="subtract",
                    backend=cpu_backend,
                )
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("only", ["current", "beta", "threshold", "factor", "mem_0"])
def test_a_gradient_alone_equals_the_same_among_all(only, rule, backend):
    arguments = {k: v.to(device_of(backend)) for k, v in problem((11, 2, 3)).items()}
    together = operator_run(
        **arguments, surrogate=SURROGATES["atan"], rule=rule, reset="subtract", backend=backend
    )
    leaf = arguments[only].clone().requires_grad_()
    values = arguments | {only: leaf}
    spikes, mem, times = single_spike_leaky(
        values["current"],
        values["beta"],
        values["threshold"],
        mem=values["mem_0"],
        graded_spikes_factor=values["factor"],
        gradient=rule,
        spike_grad=SURROGATES["atan"],
        reset_mechanism="subtract",
        backend=backend,
    )
    loss = (spikes * values["g"]).sum() + (mem * values["h"]).sum()
    if rule == "spike_time":
        loss = loss + (times * values["grad_times"]).sum()
    loss.backward()
    assert relative_error(leaf.grad, getattr(together, only)) < 1e-12


@pytest.mark.parametrize(
    ("rule", "loss_on"),
    [(rule, output) for rule in GRADIENT_RULES for output in ("spikes", "mem")]
    + [("spike_time", "times")],
)
def test_a_loss_on_one_output(rule, loss_on, backend):
    arguments = problem((11, 2, 3))
    for name, output in (("g", "spikes"), ("h", "mem"), ("grad_times", "times")):
        if output != loss_on:
            arguments[name] = torch.zeros_like(arguments[name])
    check(arguments, SURROGATES["atan"], rule, "zero", backend)


def test_gradient_that_is_the_same_at_every_step(backend):
    arguments = problem((11, 2, 3))
    arguments["g"] = arguments["g"][:1].expand(11, -1, -1)
    arguments["h"] = arguments["h"][:1].expand(11, -1, -1)
    check(arguments, SURROGATES["atan"], "pre_spike", "none", backend)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_non_contiguous_input_and_gradients(rule, backend):
    arguments = problem((11, 2, 3))
    for name in ("current", "g", "h"):
        arguments[name] = arguments[name].permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert not arguments[name].is_contiguous()
    check(arguments, SURROGATES["atan"], rule, "subtract", backend)


@pytest.mark.parametrize("beta", [-0.5, 0.0, 1.0, 1.5])
def test_beta_at_and_beyond_its_bounds(beta, backend):
    arguments = problem((11, 2, 3))
    arguments["beta"] = torch.tensor([beta, 0.5, beta], dtype=torch.float64)
    check(arguments, SURROGATES["atan"], "masked", "subtract", backend)


def test_parameters_broadcast_as_over_channels(backend):
    arguments = problem((7, 2, 3, 4))
    arguments["beta"] = torch.rand(3, 1, dtype=torch.float64)
    arguments["threshold"] = torch.rand(1, 1, 3, 4, dtype=torch.float64) + 0.5
    arguments["factor"] = torch.tensor(2.0, dtype=torch.float64)
    expected = reference_run(
        **(arguments | {"threshold": arguments["threshold"][0, 0]}),
        surrogate=SURROGATES["atan"],
        rule="masked",
        reset="none",
    )
    moved = {k: v.to(device_of(backend)) for k, v in arguments.items()}
    actual = operator_run(
        **moved, surrogate=SURROGATES["atan"], rule="masked", reset="none", backend=backend
    )
    assert actual.threshold.shape == (1, 1, 3, 4)
    assert_runs_close(actual._replace(threshold=actual.threshold[0, 0]), expected, 1e-10)


@pytest.mark.parametrize("reset", RESETS)
def test_an_infinite_threshold_is_a_membrane_that_never_resets(reset, backend):
    current = torch.ones(4, 1, 2, device=device_of(backend))
    _, mem, times = single_spike_leaky(
        current, 0.5, math.inf, reset_mechanism=reset, backend=backend
    )
    assert mem[:, 0, 0].tolist() == [1.0, 1.5, 1.75, 1.875]
    assert (times == -1).all()


@pytest.mark.parametrize("gradient", ["masked", "spike_time"])
@pytest.mark.parametrize("case", ["silent", "all at once", "last step"])
def test_silent_and_synchronous_layers(case, gradient, backend):
    arguments = problem((8, 2, 3))
    arguments["mem_0"].zero_()
    current = torch.full_like(arguments["current"], 0.01)
    if case == "all at once":
        current[0] = 100.0
    elif case == "last step":
        current[-1] = 100.0
    arguments["current"] = current
    check(arguments, SURROGATES["atan"], gradient, "subtract", backend)
    times = first_spike_time(
        current.to(device_of(backend)), 0.5, gradient=gradient, backend=backend
    )
    if case == "silent":
        assert (times == -1).all()
    elif gradient == "masked":
        assert (times == (0 if case == "all at once" else 7)).all()


def test_empty_batch(backend):
    current = torch.zeros(5, 0, 3, device=device_of(backend), requires_grad=True)
    beta = torch.full((3,), 0.9, device=device_of(backend), requires_grad=True)
    spikes, mem, times = single_spike_leaky(current, beta, backend=backend)
    assert spikes.shape == mem.shape == (5, 0, 3)
    assert times.shape == (0, 3)
    (spikes.sum() + mem.sum()).backward()
    assert current.grad.shape == (5, 0, 3)
    assert torch.equal(beta.grad, torch.zeros_like(beta))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_half_precision_input_with_float32_state(rule, recompute, dtype, backend):
    # Half steps make float16 and bfloat16 exact, so that only rounding of outputs is left.
    arguments = problem((20, 2, 3), torch.float32)
    arguments["current"] = (arguments["current"] * 8).round() / 8
    expected = reference_run(**arguments, surrogate=SURROGATES["atan"], rule=rule, reset="none")
    moved = {k: v.to(device_of(backend)) for k, v in arguments.items()}
    for name in ("current", "g", "h"):
        moved[name] = moved[name].to(dtype)
    actual = operator_run(
        **moved,
        surrogate=SURROGATES["atan"],
        rule=rule,
        reset="none",
        backend=backend,
        recompute=recompute,
    )
    assert actual.spikes.dtype == actual.mem.dtype == actual.current.dtype == dtype
    assert actual.beta.dtype == torch.float32
    assert_runs_close(actual, expected, 8 * torch.finfo(dtype).eps)


def test_interpolated_times(backend):
    device = device_of(backend)
    current = torch.tensor([[0.5, 2.0, 0.1], [0.75, 0.0, 0.1]], device=device)[:, None]
    times = first_spike_time(current, 1.0, 1.0, gradient="spike_time", backend=backend)
    # 0.5 -> 1.25 crosses 1 two thirds of the way; a spike at step 0 has time 0; silent is -1
    assert torch.allclose(times.cpu(), torch.tensor([[2 / 3, 0.0, -1.0]]))


def test_spike_time_rule_is_exact(cpu_backend):
    arguments = problem((12, 2, 3))

    def interpolated_times(current, beta, threshold, mem):
        return first_spike_time(
            current, beta, threshold, mem=mem, gradient="spike_time", backend=cpu_backend
        )

    leaves = [arguments[k].requires_grad_() for k in ("current", "beta", "threshold", "mem_0")]
    times = interpolated_times(*leaves)
    assert (times > 0).any()
    assert (times == -1).any()
    assert torch.autograd.gradcheck(interpolated_times, leaves, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("reset", RESETS)
def test_membrane_gradient_is_exact(reset, cpu_backend):
    arguments = problem((9, 2, 3))

    def mem(current, beta, threshold, mem_0):
        return single_spike_leaky(
            current,
            beta,
            threshold,
            mem=mem_0,
            reset_mechanism=reset,
            return_spikes=False,
            backend=cpu_backend,
        ).mem

    leaves = [arguments[k].requires_grad_() for k in ("current", "beta", "threshold", "mem_0")]
    assert torch.autograd.gradcheck(mem, leaves, eps=1e-7, atol=1e-6)


def test_learning_slope_surrogate_gets_its_gradient(cpu_backend):
    """A custom surrogate may have parameters."""
    slope = torch.tensor(3.0, requires_grad=True)

    def learned(u):
        soft = torch.sigmoid(slope * u)
        return soft + ((u > 0).to(u) - soft).detach()

    current = torch.randn(9, 2, 3, requires_grad=True)
    single_spike_leaky(
        current, 0.9, spike_grad=learned, backend=cpu_backend
    ).spikes.sum().backward()
    assert slope.grad is not None
    assert slope.grad != 0


def test_sigmoid_does_not_overflow(backend):
    """snnTorch's derivative is inf / inf far below the threshold. The limit is 0."""
    current = torch.full((2, 1, 1), -20.0, device=device_of(backend), requires_grad=True)
    spikes = single_spike_leaky(
        current, 0.9, spike_grad=surrogate.sigmoid(slope=25), backend=backend
    ).spikes
    spikes.sum().backward()
    assert torch.equal(current.grad.cpu(), torch.zeros(2, 1, 1))


def test_LSO_has_the_derivative_it_documents(backend):
    """A call of LSO() of snnTorch 1.0 raises. The package uses the documented leaky slope."""
    current = torch.tensor([-1.0, 2.0], device=device_of(backend)).view(2, 1, 1).requires_grad_()
    spikes = single_spike_leaky(
        current, 0.0, spike_grad=surrogate.LSO(slope=0.25), backend=backend
    ).spikes
    spikes.sum().backward()
    assert current.grad.flatten().tolist() == [0.25, 1.0]


def test_nan_and_infinite_currents(backend):
    nan, inf = math.nan, math.inf
    columns = [
        # current over four steps, first spike, membrane after it
        ([0.5, nan, 5.0, 5.0], -1, [0.5, nan, nan, nan]),
        ([2.0, nan, 5.0, 5.0], 0, [2.0, nan, nan, nan]),
        ([0.5, inf, 0.0, 0.0], 1, [0.5, inf, inf, inf]),
        ([0.5, -inf, 5.0, 5.0], -1, [0.5, -inf, -inf, -inf]),
        ([0.5, 0.75, 0.0, 0.0], 1, [0.5, 1.25, 1.25, 1.25]),
    ]
    current = torch.tensor([column[0] for column in columns]).T[:, None]
    spikes, mem, times = single_spike_leaky(
        current.to(device_of(backend)), 1.0, 1.0, backend=backend
    )
    assert times.flatten().tolist() == [column[1] for column in columns]
    assert torch.equal(spikes.sum(0).flatten().cpu() > 0, times.flatten().cpu() >= 0)
    expected = torch.tensor([column[2] for column in columns]).T[:, None]
    assert torch.allclose(mem.cpu(), expected, equal_nan=True)


def test_nan_current_makes_gradients_nan_up_to_it_only(backend):
    current = torch.full((4, 1, 2), 0.1, device=device_of(backend))
    current[2, 0, 0] = math.nan
    current.requires_grad_()
    single_spike_leaky(current, 0.9, backend=backend).spikes.sum().backward()
    assert current.grad[:, 0, 0].isnan().all()
    assert not current.grad[:, 0, 1].isnan().any()


def test_parameters_and_membranes_of_any_stride(backend):
    """Views with one dimension that are not contiguous."""
    device = device_of(backend)
    current = torch.randn(6, 4, 3, device=device)
    wide = torch.rand(3, 2, device=device)
    start = torch.randn(4, 7, device=device)[:, ::3]
    for beta, mem in (
        (wide[:, 0], torch.tensor(0.5, device=device).expand(4, 3)),
        (torch.tensor(0.9, device=device).expand(3), start),
    ):
        views = single_spike_leaky(current, beta, mem=mem, backend=backend)
        copies = single_spike_leaky(
            current, beta.contiguous(), mem=mem.contiguous(), backend=backend
        )
        assert torch.equal(views.mem, copies.mem)
        assert torch.equal(views.times, copies.times)


def test_factor_gradient_does_not_overflow_half_precision(backend):
    current = torch.full((1, 1, 70_000), 2.0, dtype=torch.float16, device=device_of(backend))
    factor = torch.ones((), device=device_of(backend), requires_grad=True)
    out = single_spike_leaky(current, 0.9, graded_spikes_factor=factor, backend=backend)
    out.spikes.backward(torch.ones_like(out.spikes))
    assert factor.grad.item() == 70_000


def test_only_the_factor_learns(cpu_backend):
    current, factor = torch.randn(9, 2, 3), torch.ones(3, requires_grad=True)
    spikes = single_spike_leaky(
        current, 0.9, graded_spikes_factor=factor, backend=cpu_backend
    ).spikes
    spikes.sum().backward()
    assert torch.equal(factor.grad, spikes.detach().sum((0, 1)))


def test_own_surrogate_in_half_precision_does_not_overflow(cpu_backend):
    """The sums grow like T^2, beyond float16, before the slope reduces them."""
    current = torch.full((500, 1, 1), 0.001, dtype=torch.float16, requires_grad=True)

    def soft(u):
        path = 1e-4 * u
        return (u > 0).to(u) + (path - path.detach())

    single_spike_leaky(
        current, 0.5, spike_grad=soft, gradient="straight_through", backend=cpu_backend
    ).spikes.sum().backward()
    assert current.grad.isfinite().all()
    assert current.grad.abs().max() > 0


def test_times_may_be_edited_before_the_backward_pass(cpu_backend):
    current = torch.randn(9, 2, 3, requires_grad=True)
    spikes, _, times = single_spike_leaky(current, 0.9, backend=cpu_backend)
    times[times < 0] = 9
    spikes.sum().backward()
    assert current.grad.abs().sum() > 0


def test_zero_dimensional_parameters_take_the_type_of_the_input(backend):
    """beta=np.exp(-1/10) is float64 for numpy and torch; snnTorch accepts it."""
    import numpy as np

    for dtype in (torch.float32, torch.float64):
        current = torch.randn(5, 2, 3, dtype=dtype, device=device_of(backend))
        mem = single_spike_leaky(
            current, torch.as_tensor(np.exp(-0.1)).to(current.device), backend=backend
        ).mem
        assert mem.dtype == dtype


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_a_height_learns_without_a_surrogate(rule, backend):
    x = torch.rand(12, 4, 5).to(device_of(backend)).requires_grad_()
    lif = SingleSpikeLeaky(
        0.9,
        surrogate_disable=True,
        learn_graded_spikes_factor=True,
        init_hidden=True,
        gradient=rule,
        backend=backend,
    ).to(x.device)
    spikes = lif(x)
    spikes.sum().backward()
    assert lif.graded_spikes_factor.grad == (spikes != 0).sum()
    assert x.grad is None or not x.grad.any()


def test_a_threshold_of_minus_infinity(backend):
    x = torch.randn(6, 2, 3).to(device_of(backend))
    threshold = torch.tensor([-torch.inf, torch.inf, 0.5], device=x.device)
    _, mem, times = single_spike_leaky(
        x, 0.9, threshold, reset_mechanism="subtract", backend=backend
    )
    assert (times[:, 0] == 0).all()
    assert (times[:, 1] == -1).all()
    assert torch.isposinf(mem[1:, :, 0]).all()
    assert mem[:, :, 1:].isfinite().all()


def test_slopes_of_surrogates_in_float64(backend):
    """float64 neurons do not round their parameters to float32."""
    device, x = device_of(backend), torch.tensor([[[0.25, 0.75]]], dtype=torch.float64)
    for make in (surrogate.LSO(0.1), surrogate.triangular(0.3), surrogate.atan(0.7)):
        leaf = x.to(device, copy=True).requires_grad_()
        spikes, *_ = single_spike_leaky(leaf, 0.9, 0.5, spike_grad=make, backend=backend)
        spikes.sum().backward()
        known = recognize(make)
        u = (x - 0.5).requires_grad_()
        slopes = {
            "LSO": torch.where(u > 0, u.new_tensor(1.0), u.new_tensor(known.a)),
            "triangular": torch.where(u < 0, u.new_tensor(known.a), u.new_tensor(-known.a)),
            "atan": known.a / 2 / (1 + (math.pi / 2 * known.a * u) ** 2),
        }
        torch.testing.assert_close(leaf.grad.cpu(), slopes[known.name], rtol=1e-14, atol=0)
