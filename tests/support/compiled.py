"""Compiles the kernels without a GPU, for several targets, and counts registers and instructions.

`python -m tests.support.compiled sm_90` prints the facts of every variant for a target as JSON, or
of those whose names follow. Run it in a separate process, because a process that interprets kernels
cannot compile them. `--store` writes the figures of all targets that must not worsen to
benchmarks/baselines/kernels.json.

Source lines in the debug information change how ptxas breaks ties: code with the same instructions
may differ by a few registers. With TRITON_DISABLE_LINE_INFO=1 such differences vanish.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snn_single_spike.backends._types import Convolution
from snn_single_spike.backends.triton import _launch
from snn_single_spike.backends.triton import _tiles as triton_tiles
from snn_single_spike.backends.triton import conv as triton_conv
from snn_single_spike.backends.triton import linear as triton_linear
from snn_single_spike.kernels.triton import conv_backward, conv_forward, linear, neuron, readout

from tests.support import sass
from tests.support.devices import ROOT

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BASELINE = ROOT / "benchmarks" / "baselines" / "kernels.json"
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES |= {torch.float64: "fp64"}

ALWAYS = ("beta", "threshold", "graded_spikes_factor", "times")
STATE = ("crossing", "mem_0", "grad_at", "grad_before", "grad_beta", "grad_threshold")
STATE += ("grad_mem_0", "sensitivity", "alpha", "gain", "feedback", "syn_0", "inh_0")
STATE += ("grad_alpha", "grad_gain", "grad_feedback", "grad_syn_0", "grad_inh_0")


@dataclass(frozen=True)
class Variant:
    """One specialization of a kernel, with the arguments of a launch."""

    kernel: str
    tensors: tuple[str, ...]
    """Optional arguments that are present."""
    options: tuple[tuple[str, str], ...] = ()
    dtype: torch.dtype = torch.float32
    wide: bool = True
    scalar: bool = False
    """Parameters of one value: a size of 1 is compiled in."""


MASKED = (("RULE", "masked"), ("SURROGATE", "atan"), ("RESET", "subtract"))
RAMP = (("RULE", "straight_through"), ("SURROGATE", "fast_sigmoid"), ("RESET", "none"))
CLEAR = (("RULE", "masked"), ("SURROGATE", "atan"), ("RESET", "zero_after"))
LEARNED = ("grad_beta", "grad_threshold", "grad_mem_0", "mem_0")
VARIANTS = {
    "forward": Variant(
        "neuron_forward_kernel", ("current", "spikes", "mem", "final"), (("RESET", "subtract"),)
    ),
    "forward small": Variant(
        "neuron_forward_kernel",
        ("current", "spikes", "mem"),
        (("RESET", "zero_before"),),
        wide=False,
    ),
    "forward bf16": Variant(
        "neuron_forward_kernel",
        ("current", "spikes", "mem", "final"),
        (("RESET", "subtract"),),
        torch.bfloat16,
    ),
    "forward scalar": Variant(
        "neuron_forward_kernel", ("current", "spikes", "mem"), (("RESET", "none"),), scalar=True
    ),
    "backward scalar": Variant(
        "neuron_backward_kernel",
        ("mem", "grad_spikes", "grad_current", "grad_beta"),
        MASKED,
        scalar=True,
    ),
    "forward times": Variant("neuron_forward_kernel", ("current",), (("RESET", "none"),)),
    "forward crossing": Variant(
        "neuron_forward_kernel", ("current", "crossing", "when", "mem_0"), (("RESET", "none"),)
    ),
    "backward masked": Variant(
        "neuron_backward_kernel", ("mem", "grad_spikes", "grad_current"), MASKED
    ),
    "backward learned": Variant(
        "neuron_backward_kernel",
        ("mem", "grad_spikes", "grad_mem", "grad_current", *LEARNED),
        MASKED,
    ),
    "backward ramp": Variant(
        "neuron_backward_kernel", ("mem", "grad_spikes", "grad_current", "grad_beta"), RAMP
    ),
    "backward recompute": Variant(
        "neuron_backward_kernel",
        ("current", "grad_spikes", "grad_mem", "grad_current", *LEARNED),
        MASKED,
    ),
    "backward spike time": Variant(
        "neuron_backward_kernel",
        ("grad_at", "grad_before", "when", "grad_current"),
        (("RULE", "spike_time"), ("SURROGATE", "atan"), ("RESET", "none")),
    ),
    "backward bf16": Variant(
        "neuron_backward_kernel",
        ("mem", "grad_spikes", "grad_current", *LEARNED),
        MASKED,
        torch.bfloat16,
    ),
    "forward synaptic": Variant(
        "neuron_forward_kernel",
        ("current", "alpha", "spikes", "mem", "syn", "final"),
        (("RESET", "subtract"),),
    ),
    "forward alpha": Variant(
        "neuron_forward_kernel",
        ("current", "alpha", "gain", "spikes", "mem", "syn", "inh", "final"),
        (("RESET", "zero_after"),),
    ),
    "forward feedback": Variant(
        "neuron_forward_kernel",
        ("current", "feedback", "spikes", "mem", "final"),
        (("RESET", "subtract"),),
    ),
    "backward synaptic": Variant(
        "neuron_backward_kernel", ("mem", "alpha", "grad_spikes", "grad_current"), MASKED
    ),
    "backward synaptic learned": Variant(
        "neuron_backward_kernel",
        ("mem", "syn", "alpha", "grad_spikes", "grad_current", "grad_alpha", "grad_beta"),
        MASKED,
    ),
    "backward synaptic recompute": Variant(
        "neuron_backward_kernel", ("current", "alpha", "grad_spikes", "grad_current"), MASKED
    ),
    "backward alpha": Variant(
        "neuron_backward_kernel", ("mem", "alpha", "gain", "grad_spikes", "grad_current"), CLEAR
    ),
    "backward alpha learned": Variant(
        "neuron_backward_kernel",
        (
            *("mem", "syn", "inh", "alpha", "gain", "grad_spikes"),
            *("grad_current", "grad_alpha", "grad_beta", "grad_gain"),
        ),
        CLEAR,
    ),
    "backward feedback": Variant(
        "neuron_backward_kernel",
        ("mem", "feedback", "grad_spikes", "grad_current", "grad_feedback"),
        MASKED,
    ),
    # Every spike, and a refractory period.
    "forward every": Variant(
        "neuron_forward_kernel",
        ("current", "spikes", "mem", "final", "refractory"),
        (("RESET", "subtract"),),
    ),
    "forward refractory": Variant(
        "neuron_forward_kernel",
        ("current", "spikes", "mem", "final", "refractory", "last_0", "phase"),
        (("RESET", "zero_before"),),
    ),
    "backward every": Variant(
        "neuron_backward_kernel",
        ("mem", "grad_spikes", "grad_current", "refractory"),
        MASKED,
    ),
    "backward every recompute": Variant(
        "neuron_backward_kernel",
        ("current", "grad_spikes", "grad_current", "refractory"),
        MASKED,
    ),
    "backward refractory": Variant(
        "neuron_backward_kernel",
        ("mem", "grad_spikes", "grad_current", "refractory", "last_0", "phase", *LEARNED),
        MASKED,
    ),
    "readout sum": Variant(
        "readout_kernel", ("current", "value", "sensitivity"), (("REDUCTION", "sum"),)
    ),
    "readout max": Variant(
        "readout_kernel", ("current", "value", "sensitivity", "step"), (("REDUCTION", "max"),)
    ),
}


POINTERS = {"offsets": "*i64", "times": "*i32", "units": "*i32", "samples": "*i32"}
POINTERS |= {"spiked": "*i32", "first_spikes": "*i32", "peaks": "*i32"}
POINTERS |= {"when": "*i64", "taken": "*i64"}
EVENTS = ("offsets", "times", "units", "weight", "bias", "beta", "threshold")
READOUT = ("offsets", "times", "units", "weight", "bias", "beta", "value")
BY_UNIT = ("offsets", "times", "samples", "grad_weight")


@dataclass(frozen=True)
class Linear:
    """One specialization of a kernel of linear layers from spike times."""

    kernel: str
    tensors: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


LINEAR = {
    "linear first spikes": Linear(
        "linear_first_spikes_kernel", (*EVENTS, "first_spikes"), (("RESET", "none"),)
    ),
    "linear crossing": Linear(
        "linear_first_spikes_kernel",
        (*EVENTS, "values", "first_spikes", "crossing", "sensitivity", "peaks"),
        (("RESET", "none"),),
    ),
    "linear membrane": Linear(
        "linear_first_spikes_kernel", (*EVENTS, "spiked", "mem"), (("RESET", "subtract"),)
    ),
    "linear dot": Linear(
        "linear_first_spikes_dot_kernel",
        ("times", "weight", "bias", "beta", "threshold", "first_spikes"),
    ),
    "linear readout sum": Linear(
        "linear_readout_kernel", (*READOUT, "sensitivity"), (("REDUCTION", "sum"),)
    ),
    "linear readout max": Linear(
        "linear_readout_kernel", (*READOUT, "sensitivity", "taken"), (("REDUCTION", "max"),)
    ),
    "linear weight rows": Linear("linear_backward_weight_kernel", (*BY_UNIT, "lam")),
    "linear weight impulses": Linear(
        "linear_backward_weight_kernel",
        (*BY_UNIT, "values", "at", "before", "when", "log_decay"),
    ),
    "linear weight sum": Linear(
        "linear_backward_weight_kernel", (*BY_UNIT, "every", "log_decay", "geometric")
    ),
    "linear input impulses": Linear(
        "linear_backward_input_kernel",
        (
            *("times", "units", "samples", "weight", "at", "before", "when", "log_decay"),
            "grad_inputs",
        ),
    ),
}


# A convolution, and one whose neurons read the maximum of windows of 2 x 2.
PLAIN, POOLED = (
    Convolution(32, 12, 12, 8, 8, 1, 1, 0, 0, 1, 1, 1, *pool) for pool in ((1, 1), (2, 2))
)
OPTIONAL = ("values", "spiked", "first_spikes", "mem", "winner", "crossing", "sensitivity")
OPTIONAL += ("peaks", "lam", "at", "before", "when", "log_decay")
CONV_POINTERS = POINTERS | {"channels": "*i32", "rows": "*i32", "columns": "*i32"}
CONV_POINTERS |= {"when": "*i32", "peaks": "*i32", "winner": "*u8"}
TILED = ("offsets", "times", "channels", "rows", "columns")
WALK = (*TILED, "weight", "bias", "beta", "threshold")
BY_CHANNEL = ("offsets", "times", "samples", "rows", "columns", "grad_weight")
IMPULSES = ("at", "before", "when", "log_decay")
BY_SPIKE = (*TILED[1:], "samples", "units", "weight", "grad_inputs", *IMPULSES)


@dataclass(frozen=True)
class Conv:
    """One specialization of a kernel of convolutions from spike times, with 64 channels."""

    kernel: str
    tensors: tuple[str, ...]
    reset: str = "none"
    sizes: Convolution = PLAIN
    each: bool = False
    """Parameters for each neuron, not for each channel."""


_FORWARD, _WEIGHT = "conv_first_spikes_kernel", "conv_backward_weight_kernel"
_INPUT = "conv_backward_input_kernel"
AROUND = ("first_spikes", "crossing", "sensitivity", "peaks")
CONV = {
    "conv first spikes": Conv(_FORWARD, (*WALK, "first_spikes")),
    "conv crossing": Conv(_FORWARD, (*WALK, "values", *AROUND), each=True),
    "conv membrane": Conv(_FORWARD, (*WALK, "spiked", "mem"), reset="subtract"),
    "conv windows crossing": Conv(_FORWARD, (*WALK, *AROUND), sizes=POOLED),
    "conv windows membrane": Conv(
        _FORWARD, (*WALK, "spiked", "mem", "winner"), reset="zero_before", sizes=POOLED
    ),
    "conv weight rows": Conv(_WEIGHT, (*BY_CHANNEL, "lam")),
    "conv weight impulses": Conv(_WEIGHT, (*BY_CHANNEL, "values", *IMPULSES)),
    "conv weight windows": Conv(
        _WEIGHT, (*BY_CHANNEL, "winner", *IMPULSES), sizes=POOLED, each=True
    ),
    "conv input impulses": Conv(_INPUT, BY_SPIKE),
    "conv input windows": Conv(_INPUT, (*BY_SPIKE, "winner"), sizes=POOLED),
}


@dataclass
class Facts:
    """Figures of one compiled variant."""

    registers: int
    spilled: int
    """Bytes or registers in local memory."""
    instructions: dict[str, int]
    loops: list[dict[str, int]]
    """Instructions of each loop over time (NVIDIA only)."""
    round_trips: list[int]
    """Memory round trips of a turn of each loop that loads (NVIDIA only)."""
    misread_loads: int = 0
    """As :func:`sass.loads_not_waited_for`: 0 where the control bits are read as they are meant."""

    def count(self, pattern: str) -> int:
        """Instructions whose name matches."""
        return sum(n for name, n in self.instructions.items() if re.fullmatch(pattern, name))

    def shared_in_loops(self) -> set[str]:
        """Instructions of loops that exchange values between threads through shared memory."""
        names = {name for body in self.loops for name in body}
        return {name for name in names if re.match(r"BAR\.|LDS|STS|LDSM", name)}

    def summary(self) -> dict[str, int]:
        """Figures that must not grow from one version of the kernels to the next."""
        narrow = self.count(r"LDG\.E(?!\S*\.(64|128)).*")
        barriers = sum(n for body in self.loops for name, n in body.items() if "BAR." in name)
        return {
            "registers": self.registers,
            "spilled": self.spilled,
            "narrow loads": narrow,
            "barriers in loops": barriers,
            "round trips": max(self.round_trips, default=0),
        }


def ahead(variant: Variant, warp: int = 32) -> int:
    """Time steps of a turn, which the variant loads ahead."""
    if "backward" in variant.kernel:
        inhibitory = "gain" in variant.tensors
        return _launch.backward_steps(variant.wide, inhibitory, variant.dtype, warp)
    return _launch.forward_steps(
        variant.wide, bool({"alpha", "phase"} & set(variant.tensors)), warp
    )


def compile_linear(name: str, target_name: str) -> Facts:
    variant, target = LINEAR[name], TARGETS[target_name]
    kernel = getattr(linear, variant.kernel)
    constants = dict(variant.options) | {"STATE": tl.float32, "BLOCK": 128}
    constants["U"] = triton_linear.EVENTS
    options = dict(_launch.LAUNCH)
    if name == "linear dot":
        constants |= triton_linear.dot_tile(target.warp_size)
        options = dict(triton_linear.DOT_LAUNCH)
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in variant.tensors:
            signature[name] = POINTERS.get(name, "*fp32")
        elif name in constants:
            signature[name], values[name] = "constexpr", constants[name]
        elif name in ("T", "B", "N", "O", "n", "start"):
            signature[name] = "i32"
        else:
            signature[name], values[name] = "constexpr", None
        if signature[name][0] == "*" or name in ("N", "O"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return facts_of(triton.compile(source, target=target, options=options), target)


def compile_conv(name: str, target_name: str) -> Facts:
    variant, target = CONV[name], TARGETS[target_name]
    kernel = getattr(conv_forward, variant.kernel, None) or getattr(conv_backward, variant.kernel)
    sizes, options = variant.sizes, dict(_launch.LAUNCH)
    constants: dict[str, object] = {"POOL_Y": sizes.pool_y, "POOL_X": sizes.pool_x}
    constants |= {"EACH": variant.each, "RESET": variant.reset, "STATE": tl.float32}
    constants |= dict.fromkeys(("stride_y", "stride_x", "dilation_y", "dilation_x", "groups"), 1)
    if variant.kernel == _FORWARD:
        tile = triton_tiles.tile_of(sizes, 64, torch.float32, interpreted=False)
        constants |= {"PY": tile.y, "PX": tile.x, "CH": tile.channels}
        constants |= {"U": triton_conv.spikes_ahead(sizes)}
    else:
        constants |= triton_conv.patch_of(25, 64, interpreted=False)
        weighted = "values" in variant.tensors
        ahead = triton_conv.gathered_ahead(sizes, torch.float32, 64, weighted, target)
        constants |= {"U": ahead}
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in variant.tensors:
            signature[name] = CONV_POINTERS.get(name, "*fp32")
        elif name in constants:
            signature[name], values[name] = "constexpr", constants[name]
        elif name in OPTIONAL:
            signature[name], values[name] = "constexpr", None
        else:
            signature[name] = "i32"
        if signature[name][0] == "*" or name in ("O", "size", "per_sample"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return facts_of(triton.compile(source, target=target, options=options), target)


def facts_of(binary: object, target: GPUTarget) -> Facts:
    if target.backend == "hip":
        return _amd(binary)
    return _nvidia(binary)


def compile_any(name: str, target_name: str) -> Facts:
    compilers = ((VARIANTS, compile_variant), (LINEAR, compile_linear), (CONV, compile_conv))
    return next(function for table, function in compilers if name in table)(name, target_name)


def compile_variant(name: str, target_name: str) -> Facts:
    variant = VARIANTS[name]
    kernel = getattr(neuron, variant.kernel, None) or getattr(readout, variant.kernel)
    target = TARGETS[target_name]
    double = variant.dtype == torch.float64
    state = "*fp64" if double else "*fp32"
    constants = dict(variant.options) | {
        "CLAMP": True,
        "STATE": tl.float64 if double else tl.float32,
        "BLOCK": _launch.WIDE if variant.wide else target.warp_size,
        "U": ahead(variant, target.warp_size),
    }
    signature, values, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[name] = "constexpr", constants[name]
        elif name in ALWAYS:
            signature[name] = "*i64" if name == "times" else state
        elif name in ("step", "last_0", "when") and name in variant.tensors:
            signature[name] = "*i64"
        elif name == "phase" and name in variant.tensors:
            signature[name] = "*u8"
        elif name == "refractory" and name in variant.tensors:
            signature[name] = "i32"
        elif name in variant.tensors:
            signature[name] = state if name in STATE else "*" + TYPES[variant.dtype]
        elif name in ("a", "b", "a_rest", "b_rest"):
            signature[name] = "fp32"
        elif variant.scalar and name.startswith("P_"):
            signature[name], values[name] = "constexpr", 1
        elif name.isupper():
            signature[name] = "i32"
        else:
            signature[name], values[name] = "constexpr", None
        if signature[name][0] == "*" or name in (
            "M",
            "STEP_SPIKES",
            "STEP_MEM",
            "STEP_SYN",
            "STEP_INH",
        ):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return facts_of(triton.compile(source, target=target, options=dict(_launch.LAUNCH)), target)


def _nvidia(binary: object) -> Facts:
    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()

        def run(*command: str) -> str:
            path, *arguments = command
            return subprocess.run(
                [os.path.join(tools, path), *arguments, file.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        usage = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", run("cuobjdump", "-res-usage")))
        text = run("nvdisasm", "-c", "-hex")
    return Facts(
        registers=int(usage["REG"]),
        spilled=int(usage["STACK"]) + int(usage["LOCAL"]),
        instructions=_instructions(text),
        loops=[_instructions(body) for body in _loops(text)],
        round_trips=sass.round_trips(text),
        misread_loads=sass.loads_not_waited_for(text),
    )


def _instructions(text: str) -> dict[str, int]:
    pattern = r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
    return dict(Counter(re.findall(pattern, text, re.M)))


def _loops(text: str) -> list[str]:
    """Bodies of the backward branches of an NVIDIA disassembly."""
    lines = text.splitlines()
    labels = {
        match.group(1): number
        for number, line in enumerate(lines)
        if (match := re.match(r"(\.L_x_\d+):", line))
    }
    bodies = []
    for number, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        # The last instruction of a program is a branch to itself.
        if match and labels.get(match.group(1), number) < number - 2:
            bodies.append("\n".join(lines[labels[match.group(1)] : number]))
    return bodies


def _amd(binary: object) -> Facts:
    text = binary.asm["amdgcn"]
    facts = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text))
    private = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text).group(1))
    return Facts(
        registers=int(facts["vgpr_count"]),
        spilled=int(facts["vgpr_spill_count"]) + int(facts["sgpr_spill_count"]) + private,
        instructions=dict(Counter(re.findall(r"^\t([a-z]\w+)", text, re.M))),
        loops=[],
        round_trips=[],
    )


def compile_for(target: str, names: Iterable[str] = ()) -> dict[str, Facts]:
    """Facts of these or all variants for a target, from a process without the interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    output = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled", target, *names],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if output.returncode:
        raise RuntimeError(f"compiling the kernels failed:\n{output.stderr}")
    return {key: Facts(**facts) for key, facts in json.loads(output.stdout).items()}


def _compile(targets: Iterable[str], names: Sequence[str] = ()) -> dict[str, dict[str, Facts]]:
    """Facts by target and variant."""
    names = names or (*VARIANTS, *LINEAR, *CONV)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return {
            target: dict(
                zip(names, pool.map(compile_any, names, [target] * len(names)), strict=True)
            )
            for target in targets
        }


def store() -> None:
    facts = _compile(TARGETS)
    summaries = {
        f"{name} {target}": facts[target][name].summary()
        for name in (*VARIANTS, *LINEAR, *CONV)
        for target in TARGETS
    }
    contents = {"triton": triton.__version__, "facts": summaries}
    BASELINE.parent.mkdir(exist_ok=True)
    BASELINE.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    if "--store" in sys.argv:
        store()
    else:
        target, *names = sys.argv[1:]
        found = _compile([target], names)[target]
        print(json.dumps({name: asdict(facts) for name, facts in found.items()}))
