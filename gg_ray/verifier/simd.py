"""Eight float32 lanes as one value inside numba kernels, so that sums of a loop stay in registers.

Flow:    [simd] -> evidence_kernel, patch_kernel, graph_kernel
Source:  numba.extending; erf by the rational approximation of Eigen (Steiner, Tucker), exp and log after Cephes
         (Moshier, expf, logf)

numba makes vector instructions of plain loops, but what such a loop adds up must live in an array: the compiler cannot
keep it in registers. LLVM has the type <8 x float>; here it is a numba type with the operators that the kernels need.
Processors with narrower vectors split it, so results do not depend on the machine's width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as _intrinsic
from numba.extending import lower_builtin, models, register_model

WIDTH = 8
_F = np.float32
intrinsic: Any = _intrinsic
_FAST = ("contract", "nsz")
_LANES = ir.VectorType(ir.FloatType(), WIDTH)
_INTS = ir.VectorType(ir.IntType(32), WIDTH)
_QUAD = ir.VectorType(ir.FloatType(), 4)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__("float32x8")


lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _LANES)  # type: ignore[no-untyped-call]


def _operator(op: Any, name: str) -> None:
    @infer_global(op)
    class _Typed(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(lanes, lanes, lanes) if args == (lanes, lanes) else None

    @lower_builtin(op, lanes, lanes)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, name)(*args, flags=_FAST)


for _op, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _operator(_op, _name)


def _function(arity: int) -> Callable[[Callable[..., Any]], Any]:
    """A function of `arity` lanes to lanes from what emits it."""

    def made(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *args)

        sig = lanes(*(lanes,) * arity)
        bodies = {
            1: lambda typing, a: (sig, codegen),
            2: lambda typing, a, b: (sig, codegen),
            4: lambda typing, a, b, c, d: (sig, codegen),
        }
        return intrinsic(bodies[arity])

    return made


def _call(builder: Any, name: str, *args: Any) -> Any:
    kind = ir.FunctionType(_LANES, [_LANES] * len(args))
    made = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{WIDTH}f32")
    return builder.call(made, args)


highest = _function(2)(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
lowest = _function(2)(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
size = _function(1)(lambda b, x: _call(b, "llvm.fabs", x))
root = _function(1)(lambda b, x: _call(b, "llvm.sqrt", x))
choose = _function(4)(lambda b, x, limit, yes, no: b.select(b.fcmp_ordered("<=", x, limit), yes, no))
"""choose(x, limit, yes, no): yes where x <= limit, no elsewhere."""
either = _function(2)(lambda b, x, y: b.bitcast(b.or_(b.bitcast(x, _INTS), b.bitcast(y, _INTS)), _LANES))
"""Bits that one of two values has."""


def _of_bits(value: int) -> Any:
    return ir.Constant(_INTS, [value] * WIDTH)


@_function(1)
def exponent(b: Any, x: Any) -> Any:
    """k of x = m 2^k with m in [0.707, 1.414), as float32; x positive and normal."""
    bits = b.sub(b.bitcast(x, _INTS), _of_bits(0x3F3504F3))
    return b.sitofp(b.ashr(bits, _of_bits(23)), _LANES)


@_function(2)
def shifted(b: Any, x: Any, k: Any) -> Any:
    """x 2^k for whole k that keep it normal."""
    return b.bitcast(b.add(b.bitcast(x, _INTS), b.shl(b.fptosi(k, _INTS), _of_bits(23))), _LANES)


@_function(1)
def rounded(b: Any, x: Any) -> Any:
    """Nearest whole number."""
    return _call(b, "llvm.rint", x)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    base = context.make_array(array_type)(context, builder, array).data
    return builder.gep(base, [offset])


def _flat(array: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.layout == "C"


@intrinsic
def load(typing, array, offset):  # type: ignore[no-untyped-def]
    """Eight neighbours of a C-contiguous float32 array from a flat offset on; no bounds are checked."""
    if not _flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        place = builder.bitcast(_address(context, builder, sig.args[0], *args), _LANES.as_pointer())
        return builder.load(place, align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def bits(typing, array, offset):  # type: ignore[no-untyped-def]
    """Two neighbours of a C-contiguous float32 array as one whole number: 0 only where both are +0."""
    if not _flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        place = builder.bitcast(_address(context, builder, sig.args[0], *args), ir.IntType(64).as_pointer())
        return builder.load(place, align=4)

    return types.int64(array, types.intp), codegen


@intrinsic
def store(typing, array, offset, value):  # type: ignore[no-untyped-def]
    """Opposite of load."""
    if not _flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        place = builder.bitcast(_address(context, builder, sig.args[0], *args[:2]), _LANES.as_pointer())
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def spread(typing, array, offset):  # type: ignore[no-untyped-def]
    """One element of a C-contiguous float32 array in every lane."""
    if not _flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        value = builder.load(_address(context, builder, sig.args[0], *args), align=4)
        return _filled(builder, value)

    return lanes(array, types.intp), codegen


@intrinsic
def splat(typing, value):  # type: ignore[no-untyped-def]
    """A number in every lane."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        return _filled(builder, args[0])

    return lanes(types.float32), codegen


def _filled(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_LANES, ir.Undefined), value, cgutils.int32_t(0))
    return builder.shuffle_vector(one, ir.Constant(_LANES, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))


@intrinsic
def total(typing, value):  # type: ignore[no-untyped-def]
    """Sum of the lanes, halves upon halves."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        (rest,) = args
        for half in (4, 2, 1):
            order = [(i + half) % WIDTH for i in range(WIDTH)]
            turned = builder.shuffle_vector(rest, rest, ir.Constant(_INTS, order))
            rest = builder.fadd(rest, turned, flags=_FAST)
        return builder.extract_element(rest, cgutils.int32_t(0))

    return types.float32(lanes), codegen


@intrinsic
def columns(typing, array, p0, p1, p2, p3, p4, p5, p6, p7):  # type: ignore[no-untyped-def]
    """Four lanes from four neighbours at each of eight places: array[p_i + k] is lane i of value k."""
    if not _flat(array):
        return None

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        rows = []
        for offset in args[1:]:
            place = builder.bitcast(_address(context, builder, sig.args[0], args[0], offset), _QUAD.as_pointer())
            rows.append(builder.load(place, align=4))

        def mixed(a: Any, b: Any, order: Any) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order)))

        # rows i and i + 4 side by side, then 4 x 4 transposed in both halves at once
        pairs = [mixed(rows[i], rows[i + 4], range(8)) for i in range(4)]
        low = [mixed(pairs[i], pairs[i + 1], (0, 8, 1, 9, 4, 12, 5, 13)) for i in (0, 2)]
        high = [mixed(pairs[i], pairs[i + 1], (2, 10, 3, 11, 6, 14, 7, 15)) for i in (0, 2)]
        out = []
        for part in (low, high):
            out.append(mixed(part[0], part[1], (0, 1, 8, 9, 4, 5, 12, 13)))
            out.append(mixed(part[0], part[1], (2, 3, 10, 11, 6, 7, 14, 15)))
        return context.make_tuple(builder, sig.return_type, out)

    return types.UniTuple(lanes, 4)(array, *(types.intp,) * WIDTH), codegen


@numba.njit(inline="always")
def exp8(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """exp of x clamped to [-87, 87]."""
    x = lowest(highest(x, splat(_F(-87.0))), splat(_F(87.0)))
    k = rounded(x * splat(_F(1.44269504)))
    x = x - k * splat(_F(0.693359375)) + k * splat(_F(2.12194440e-4))
    y = splat(_F(1.9875691500e-4)) * x + splat(_F(1.3981999507e-3))
    y = y * x + splat(_F(8.3334519073e-3))
    y = y * x + splat(_F(4.1665795894e-2))
    y = y * x + splat(_F(1.6666665459e-1))
    y = y * x + splat(_F(5.0000001201e-1))
    return shifted(y * (x * x) + x + splat(_F(1.0)), k)


@numba.njit(inline="always")
def log8(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Natural logarithm of positive normal x."""
    k = exponent(x)
    f = shifted(x, splat(_F(0.0)) - k) - splat(_F(1.0))
    z = f * f
    y = splat(_F(7.0376836292e-2)) * f + splat(_F(-1.1514610310e-1))
    y = y * f + splat(_F(1.1676998740e-1))
    y = y * f + splat(_F(-1.2420140846e-1))
    y = y * f + splat(_F(1.4249322787e-1))
    y = y * f + splat(_F(-1.6668057665e-1))
    y = y * f + splat(_F(2.0000714765e-1))
    y = y * f + splat(_F(-2.4999993993e-1))
    y = (y * f + splat(_F(3.3333331174e-1))) * f * z
    return f + (y + splat(_F(-2.12194440e-4)) * k - splat(_F(0.5)) * z) + splat(_F(0.693359375)) * k


@numba.njit(inline="always")
def gelu8(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """x Phi(x)."""
    u = lowest(highest(x * splat(_F(0.70710678)), splat(_F(-4.0))), splat(_F(4.0)))
    q = u * u
    p = splat(_F(-2.72614225801306e-10)) * q + splat(_F(2.77068142495902e-08))
    p = p * q + splat(_F(-2.10102402082508e-06))
    p = p * q + splat(_F(-5.69250639462346e-05))
    p = p * q + splat(_F(-7.34990630326855e-04))
    p = p * q + splat(_F(-2.95459980854025e-03))
    p = p * q + splat(_F(-1.60960333262415e-02))
    r = splat(_F(-1.45660718464996e-05)) * q + splat(_F(-2.13374055278905e-04))
    r = r * q + splat(_F(-1.68282697438203e-03))
    r = r * q + splat(_F(-7.37332916720468e-03))
    r = r * q + splat(_F(-1.42647390514189e-02))
    half = splat(_F(0.5)) * x
    return half + half * (u * p / r)
