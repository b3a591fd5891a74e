"""LLVM vector types for loops that numba compiles.

A :class:`Vector` holds ``LANES`` neighboring neurons in registers: in one AVX-512 register for
float32, in several registers on a CPU with narrower ones. (LLVM splits the vector.) Operators
compute lane by lane and round like scalar operators. If one operand is a number, the number is
converted to the type of the vector and repeated in every lane. Arrays are C-contiguous, and indices
are not checked.

Numba has no half types, so arrays hold their bits: those of float16 as uint16, and those of
bfloat16 as int16. ``load`` widens them to float32 in registers, and a store rounds to the nearest
even number, as torch does.

The loops do not rely on automatic vectorization for three reasons. The compiler must prove that the
arrays of a loop do not overlap. The compiler does not keep the state of several time steps in
registers. The compiler emits no stores past the cache.
"""

from __future__ import annotations

import operator
import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

LANES = 16
WORD = 64  # entries that the bits of one number mark
LINE = 64  # bytes; at least the size of a cache line


_FLOAT16, _BFLOAT16 = types.uint16, types.int16


def has_float16() -> bool:
    """Whether the processor converts float16. LLVM would call a function that numba does not have.

    Integer instructions convert bfloat16, on every processor.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return "+f16c" in cpu_target.target_context.codegen()._tm_features
    return platform.machine().lower() in ("aarch64", "arm64")


class Vector(types.Type):
    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")

    def can_convert_from(self, context: Any, other: types.Type) -> Conversion | None:
        return Conversion.safe if isinstance(other, types.Number) else None


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        # A comparison yields one bit for each lane. A boolean of numba is a byte.
        is_mask = vector.dtype == types.boolean
        lane = ir.IntType(1) if is_mask else manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(lane, LANES))


_MASK = Vector(types.boolean)


@lower_cast(types.Number, Vector)
def _splat(context: Any, builder: Any, number: Any, vector: Any, value: Any) -> Any:
    kind, value = context.get_value_type(vector), context.cast(builder, value, number, vector.dtype)
    undefined, zero = ir.Constant(kind, ir.Undefined), ir.IntType(32)(0)
    one_lane = builder.insert_element(undefined, value, zero)
    every = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    return builder.shuffle_vector(one_lane, undefined, every)


def _operator(symbol: Any, floating: Any, integer: Any, compares: bool = False) -> None:
    @infer_global(symbol)
    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], keywords: object) -> Any:
            for vector in args:
                if isinstance(vector, Vector):
                    return signature(_MASK if compares else vector, *(vector for _ in args))
            return None

    @lower_builtin(symbol, Vector, Vector)
    def lower(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        kind = types_.args[0].dtype
        return (floating if isinstance(kind, types.Float) else integer)(builder, *values)


_operator(operator.add, ir.IRBuilder.fadd, ir.IRBuilder.add)
_operator(operator.sub, ir.IRBuilder.fsub, ir.IRBuilder.sub)
_operator(operator.mul, ir.IRBuilder.fmul, ir.IRBuilder.mul)
_operator(operator.truediv, ir.IRBuilder.fdiv, None)
_operator(operator.and_, None, ir.IRBuilder.and_)
for _symbol, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _operator(
        _symbol,
        lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b),
        lambda builder, a, b, sign=_sign: builder.icmp_signed(sign, a, b),
        compares=True,
    )


def _function(name: str) -> Any:
    """An LLVM intrinsic of one vector: ``llvm.<name>``."""

    @intrinsic
    def function(context: Any, x: Any) -> Any:
        def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
            kind = values[0].type
            suffix = {"float": "f32", "double": "f64"}[str(kind.element)]
            callee = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.v{LANES}{suffix}"
            )
            return builder.call(callee, values)

        return x(x), build

    return function


absolute = _function("fabs")
exp = _function("exp")  # LLVM computes one lane at a time


@intrinsic
def where(context: Any, mask: Any, chosen: Any, other: Any) -> Any:
    """``chosen`` in the lanes of the mask, ``other`` elsewhere. One of the two may be a number."""
    vector = chosen if isinstance(chosen, Vector) else other

    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        return builder.select(*values)

    return vector(mask, vector, vector), build


@intrinsic
def full_like(context: Any, vector: Any, number: Any) -> Any:
    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        return values[1]  # the cast to a vector has repeated the number

    return vector(vector, vector), build


@intrinsic
def full(context: Any, array: Any, number: Any) -> Any:
    """A vector of the number, in the type of the array."""

    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        return values[1]

    vector = Vector(array.dtype)
    return vector(array, vector), build


@intrinsic
def any_lane(context: Any, mask: Any) -> Any:
    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        bits = builder.bitcast(values[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(mask), build


def _address(context: Any, builder: Any, array: Any, value: Any, index: Any, at: Any) -> Any:
    """The address of the vector at ``index``, a number or a tuple with one number per dimension."""
    numbers = cgutils.unpack_tuple(builder, at) if isinstance(index, types.BaseTuple) else [at]
    kinds = index if isinstance(index, types.BaseTuple) else [index]
    numbers = [
        context.cast(builder, number, kind, types.intp)
        for number, kind in zip(numbers, kinds, strict=True)
    ]
    view = context.make_array(array)(context, builder, value)
    first = cgutils.get_item_pointer(context, builder, array, view, numbers, wraparound=False)
    lanes = ir.VectorType(context.get_value_type(array.dtype), LANES)
    return builder.bitcast(first, lanes.as_pointer())


def _of(array: Any) -> Vector:
    """The vectors of an array, in registers."""
    return Vector(types.float32 if array.dtype in (_FLOAT16, _BFLOAT16) else array.dtype)


def _lanes_of(kind: ir.Type) -> ir.Type:
    return ir.VectorType(kind, LANES)


def _repeated(kind: ir.Type, number: int) -> ir.Constant:
    return ir.Constant(_lanes_of(kind), [number] * LANES)


def _widened(builder: Any, dtype: Any, bits: Any) -> Any:
    """The float32 of a half type."""
    if dtype == _FLOAT16:
        return builder.fpext(
            builder.bitcast(bits, _lanes_of(ir.HalfType())), _lanes_of(ir.FloatType())
        )
    word = ir.IntType(32)  # bfloat16 is the upper half of a float32
    upper = builder.shl(builder.zext(bits, _lanes_of(word)), _repeated(word, 16))
    return builder.bitcast(upper, _lanes_of(ir.FloatType()))


def _narrowed(builder: Any, dtype: Any, value: Any) -> Any:
    """The bits of a half type, rounded to nearest even."""
    short, word = ir.IntType(16), ir.IntType(32)
    if dtype == _FLOAT16:
        return builder.bitcast(builder.fptrunc(value, _lanes_of(ir.HalfType())), _lanes_of(short))
    # The processor's own instruction for bfloat16 takes subnormal numbers for zero.
    bits = builder.bitcast(value, _lanes_of(word))
    shift, one = _repeated(word, 16), _repeated(word, 1)
    odd = builder.and_(builder.lshr(bits, shift), one)
    rounding = builder.add(odd, _repeated(word, 0x7FFF))
    rounded = builder.lshr(builder.add(bits, rounding), shift)
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(nan, _repeated(word, 0x7FC0), rounded), _lanes_of(short))


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        address = _address(context, builder, array, values[0], index, values[1])
        lanes = builder.load(address, align=array.dtype.bitwidth // 8)
        return lanes if _of(array).dtype == array.dtype else _widened(builder, array.dtype, lanes)

    return _of(array)(array, index), build


@intrinsic
def unequal_bits(context: Any, array: Any, index: Any, number: Any) -> Any:
    """A bit for each of the LANES numbers at ``index``: 1 where it is not ``number``, or is NaN."""

    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        address = _address(context, builder, array, values[0], index, values[1])
        lanes = builder.load(address, align=array.dtype.bitwidth // 8)
        other = _splat(context, builder, number, Vector(array.dtype), values[2])
        found = builder.fcmp_unordered("!=", lanes, other)
        return builder.zext(builder.bitcast(found, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(array, index, number), build


def _count(name: str, *options: Any) -> Any:
    @intrinsic
    def count(context: Any, bits: Any) -> Any:
        def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
            return getattr(builder, name)(values[0], *(ir.IntType(1)(x) for x in options))

        return types.int64(types.int64), build

    return count


count_bits = _count("ctpop")
lowest_bit = _count("cttz", 1)
"""The position of the lowest 1 of a number that is not 0."""


def _storing(past_the_cache: bool) -> Any:
    @intrinsic
    def store(context: Any, array: Any, index: Any, vector: Any) -> Any:
        def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
            address = _address(context, builder, array, values[0], index, values[1])
            size = array.dtype.bitwidth // 8
            align = min(LINE, LANES * size) if past_the_cache else size
            lanes = values[2]
            if _of(array).dtype != array.dtype:
                lanes = _narrowed(builder, array.dtype, lanes)
            written = builder.store(lanes, address, align=align)
            if past_the_cache:
                one = builder.module.add_metadata([ir.IntType(32)(1)])
                written.set_metadata("nontemporal", one)
            return context.get_dummy_value()

        return types.none(array, index, _of(array)), build

    return store


store = _storing(past_the_cache=False)
# A streaming store does not read the cache line first, and does not displace other lines. The
# address must be aligned to LINE bytes. fence() must follow before another thread reads the line.
stream = _storing(past_the_cache=True)


@intrinsic
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Load the cache line at ``index`` ahead of its use."""

    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        address = _address(context, builder, array, values[0], index, values[1])
        number = ir.IntType(32)
        address = builder.bitcast(address, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        callee = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(callee, [address, number(0), number(3), number(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.none(array, index), build


@intrinsic
def fence(context: Any) -> Any:
    """Complete all streaming stores before any later memory access."""

    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), build
