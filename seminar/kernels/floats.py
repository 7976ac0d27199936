"""Sixteen float32 numbers as one value of a numba kernel: what a loop vectoriser cannot be trusted with is written as vectors.

Nothing here names an instruction set: LLVM splits a vector of 16 into what the processor has. Lanes stand for a block of 4 rows x
4 queries, lane 4 * row + query; addresses are bytes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, register_model

from seminar.kernels.simd import I8, I32, I64, I32x16, call, constant, load, splat, store

F32 = ir.FloatType()
F32x4, F32x16 = ir.VectorType(F32, 4), ir.VectorType(F32, 16)
WIDTH = 16
"""Numbers a vector."""
SIDE = 4
"""Rows, and queries, of a block."""


class Lanes(types.Type):
    """Numba's type of a vector of sixteen float32."""

    def __init__(self) -> None:
        super().__init__("float32x16")


LANES = Lanes()


@register_model(Lanes)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, F32x16)


Emit = Callable[..., ir.Value]


def _one(emit: Emit, result: Any, a: Any) -> Any:
    @intrinsic
    def operation(typing_context: Any, x: Any) -> Any:
        return result(a), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return operation


def _two(emit: Emit, result: Any, a: Any, b: Any) -> Any:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any) -> Any:
        return result(a, b), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return operation


def _three(emit: Emit, result: Any, a: Any, b: Any, c: Any) -> Any:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
        return result(a, b, c), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return operation


def _four(emit: Emit, result: Any, kind: Any) -> Any:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any, z: Any, w: Any) -> Any:
        return result(kind, kind, kind, kind), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return operation


def number(value: float) -> ir.Constant:
    return ir.Constant(F32x16, [value] * WIDTH)


def emit_fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return call(builder, "llvm.fmuladd.v16f32", F32x16, [a, b, c])


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _over(combine: Emit, steps: tuple[int, ...]) -> Emit:
    """Combine lanes whose numbers differ in these bits; every lane gets the result."""

    def emit(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
        for step in steps:
            x = combine(builder, x, shuffle(builder, x, x, [lane ^ step for lane in range(WIDTH)]))
        return x

    return emit


def _add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.fadd(a, b)


def _exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x for x <= 0, zero below -87; relative error below 3e-7. e^x = 2^n e^f, f in [-ln2/2, ln2/2] by a degree-6 polynomial."""
    # Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    shifter = number(12582912.0)
    shifted = emit_fma(builder, x, number(1.4426950408889634), shifter)
    n = builder.fsub(shifted, shifter)
    f = emit_fma(builder, n, number(-0.693145751953125), x)
    f = emit_fma(builder, n, number(-1.428606765330187e-06), f)
    p = number(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = emit_fma(builder, p, f, number(factor))
    exponent = builder.shl(builder.bitcast(shifted, I32x16), constant(I32x16, 23))
    power = builder.bitcast(builder.add(builder.bitcast(p, I32x16), exponent), F32x16)
    # A comparison that NaN fails: NaN stays.
    return builder.select(builder.fcmp_ordered("<", x, number(-87.0)), number(0.0), power)


def _first(builder: ir.IRBuilder, x: ir.Value, count: ir.Value, fill: ir.Value) -> ir.Value:
    lane = constant(I32x16, list(range(WIDTH)))
    kept = builder.icmp_signed("<", lane, splat(builder, builder.trunc(count, I32), I32x16))
    return builder.select(kept, x, splat(builder, fill, F32x16))


def _join(builder: ir.IRBuilder, rows: list[ir.Value]) -> ir.Value:
    upper, lower = (shuffle(builder, rows[i], rows[i + 1], list(range(8))) for i in (0, 2))
    return shuffle(builder, upper, lower, list(range(WIDTH)))


def _rows(builder: ir.IRBuilder, *addresses: ir.Value) -> ir.Value:
    return _join(builder, [load(builder, address, F32x4, 4) for address in addresses])


def _flags(builder: ir.IRBuilder, *words: ir.Value) -> ir.Value:
    packed = ir.Constant(ir.VectorType(I32, SIDE), ir.Undefined)
    for row, word in enumerate(words):
        packed = builder.insert_element(packed, word, ir.Constant(I32, row))
    flag = builder.bitcast(packed, ir.VectorType(I8, WIDTH))
    return builder.uitofp(builder.icmp_unsigned("!=", flag, constant(flag.type, 0)), F32x16)


def _truncate(builder: ir.IRBuilder, x: ir.Value, address: ir.Value) -> ir.Value:
    store(builder, builder.fptosi(x, I32x16), address, 4)
    return ir.Constant(I8.as_pointer(), None)


def _store(builder: ir.IRBuilder, x: ir.Value, address: ir.Value) -> ir.Value:
    store(builder, x, address, 4)
    return ir.Constant(I8.as_pointer(), None)


load_lanes = _one(lambda builder, address: load(builder, address, F32x16, 4), LANES, types.uintp)
repeat_row = _one(lambda builder, address: _rows(builder, *[address] * SIDE), LANES, types.uintp)
"""The 4 numbers at an address, for each of 4 rows."""
fill_lanes = _one(lambda builder, x: splat(builder, x, F32x16), LANES, types.float32)
exp = _one(_exp, LANES, LANES)
sum_over_rows = _one(_over(_add, (4, 8)), LANES, LANES)
max_over_rows = _one(_over(_larger, (4, 8)), LANES, LANES)
sum_over_queries = _one(_over(_add, (1, 2)), LANES, LANES)
exponent = _one(
    lambda builder, x: builder.sext(
        builder.sub(builder.lshr(builder.bitcast(x, I32), ir.Constant(I32, 23)), ir.Constant(I32, 127)), I64
    ),
    types.intp,
    types.float32,
)
"""floor(log2 x) of a normal positive number."""
add = _two(_add, LANES, LANES, LANES)
subtract = _two(lambda builder, a, b: builder.fsub(a, b), LANES, LANES, LANES)
multiply = _two(lambda builder, a, b: builder.fmul(a, b), LANES, LANES, LANES)
divide = _two(lambda builder, a, b: builder.fdiv(a, b), LANES, LANES, LANES)
larger = _two(_larger, LANES, LANES, LANES)
smaller = _two(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), LANES, LANES, LANES)
store_lanes = _two(_store, types.void, LANES, types.uintp)
store_truncated = _two(_truncate, types.void, LANES, types.uintp)
"""Write sixteen int32, rounded towards zero."""
fma = _three(emit_fma, LANES, LANES, LANES, LANES)
first_lanes = _three(_first, LANES, LANES, types.intp, types.float32)
"""The first `count` lanes; `fill` in the others."""
where = _three(
    lambda builder, flag, a, b: builder.select(builder.fcmp_unordered("!=", flag, number(0.0)), a, b), LANES, LANES, LANES, LANES
)
rows_of = _four(_rows, LANES, types.uintp)
"""4 numbers at each of 4 addresses."""
flags = _four(_flags, LANES, types.int32)
"""1.0 for every nonzero byte of 4 words, else 0.0."""
