"""LLVM vector types for loops that numba compiles.

A :class:`Vector` holds ``LANES`` neighbouring neurons in registers: in one AVX-512 register for
float32, in several registers on a CPU with narrower ones. (LLVM splits the vector.) Operators
compute lane by lane and round like scalar operators. If one operand is a number, the number is
converted to the type of the vector and repeated in every lane. Arrays are C-contiguous, and indices
are not checked.

The loops do not rely on automatic vectorization for three reasons. The compiler must prove that the
arrays of a loop do not overlap. The compiler does not keep the state of several time steps in
registers. The compiler emits no stores past the cache.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

LANES = 16
LINE = 64  # bytes; at least the size of a cache line


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
    return builder.bitcast(first, context.get_value_type(Vector(array.dtype)).as_pointer())


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
        address = _address(context, builder, array, values[0], index, values[1])
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, index), build


def _storing(past_the_cache: bool) -> Any:
    @intrinsic
    def store(context: Any, array: Any, index: Any, vector: Any) -> Any:
        def build(context: Any, builder: Any, types_: Any, values: Any) -> Any:
            address = _address(context, builder, array, values[0], index, values[1])
            align = LINE if past_the_cache else array.dtype.bitwidth // 8
            written = builder.store(values[2], address, align=align)
            if past_the_cache:
                one = builder.module.add_metadata([ir.IntType(32)(1)])
                written.set_metadata("nontemporal", one)
            return context.get_dummy_value()

        return types.none(array, index, Vector(array.dtype)), build

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
