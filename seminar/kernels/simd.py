"""Which instructions this processor has, and the few LLVM building blocks that numba intrinsics are made of.

Kernels come in three paths that give the same integers: `avx512` (vpdpbusd, vpermb), `avx2`, and `portable` (plain loops, any
processor). A path the processor lacks must never be compiled: LLVM ends the process. SEMINAR_SIMD forces one.
"""

import os
from functools import lru_cache

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from seminar.errors import ConfigError, explain

PATHS = ("avx512", "avx2", "portable")
"""Fastest first."""
NEEDS = {"avx512": ("avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi"), "avx2": ("avx2",), "portable": ()}

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
I8x32, I8x64 = ir.VectorType(I8, 32), ir.VectorType(I8, 64)
I16x16, I16x32 = ir.VectorType(I16, 16), ir.VectorType(I16, 32)
I32x8, I32x16 = ir.VectorType(I32, 8), ir.VectorType(I32, 16)


TAGS = {"avx512": (0, 0), "avx2": (0,), "portable": ()}
"""What a kernel is called with to choose a path: tuples of different length are different types to numba, so that each path is
compiled (and cached) by itself, and only when it is called."""


@lru_cache(maxsize=1)
def available() -> tuple[str, ...]:
    """Paths this processor can run, fastest first."""
    # vpdpbusd takes <64 x i8> from LLVM 22 on and <16 x i32> before: one form is written here.
    features = llvm.get_host_cpu_features() if llvm.llvm_version_info[0] >= 22 else {}
    return tuple(path for path in PATHS if all(features.get(name) for name in NEEDS[path]))


def path() -> str:
    """The path in use: the fastest, or the one that SEMINAR_SIMD names; ConfigError if it is not available."""
    forced = os.environ.get("SEMINAR_SIMD")
    if forced is None:
        return available()[0]
    if forced not in available():
        raise ConfigError(explain("SEMINAR_SIMD", got=repr(forced), expected=f"one of {available()}", fix="unset it"))
    return forced


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of zeros that begins at a cache line: a load of 64 bytes then never touches two."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 63, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type, align: int = 1) -> ir.Value:
    """Value of type `kind` at an integer address."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int = 1) -> None:
    """Write a value at an integer address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def offset(builder: ir.IRBuilder, address: ir.Value, count: int) -> ir.Value:
    """address + count bytes."""
    return builder.add(address, ir.Constant(I64, count)) if count else address


def splat(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector of one value."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def constant(kind: ir.VectorType, values: list[int] | int) -> ir.Constant:
    """A constant vector; one integer fills it."""
    return ir.Constant(kind, [values] * kind.count if isinstance(values, int) else values)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def dot_bytes(builder: ir.IRBuilder, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """vpdpbusd: total[i] += sum of four products of unsigned and signed bytes, in 32 bits, without saturation."""
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", I32x16, [total, unsigned, signed])


def look_up_bytes(builder: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """vpermb: table[index & 63] for 64 bytes."""
    return call(builder, "llvm.x86.avx512.permvar.qi.512", I8x64, [table, index])
