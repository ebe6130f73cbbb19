"""Zeta of every scan of a window whose mean has moved, and the statistics that go with it: the dense part of a tick.

Flow:    verifier.stream_rows -> [stream_kernel] -> encoder, verifier.model
Source:  verifier.features (zeta: asinh of the distance to the window's mean in sigmas, in half precision)
Shapes:  LANES = 64 installed channels side by side, blocks [blocks, T, LANES] in ring order, `order` [T] the rows by
         time; decoded scans [8 blocks, T, SIGMAS, WIDTH] as evidence_kernel judges them

Features are half precision, and a float32 asinh that falls on the other side of a rounding boundary than the float64
one would differ by a whole unit of it. So lanes are computed in float32 and those near a boundary again in float64
(Ziv's method; a few in a thousand): the same bits as verifier.features at the price of vector instructions.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from gg_ray.verifier.evidence_kernel import (
    CHANNELS,
    FEATURES,
    SIGMAS,
    STATISTICS,
    decode,
    judge,
    sinh8,
)  # fmt: skip
from gg_ray.verifier.simd import WIDTH, columns, load, store

LANES = 64
VECTORS = LANES // WIDTH

_F, _I = np.float32, np.int32
_SUBNORMAL = _F(1.3e-4)
_GROSS = _F(1e15)
_MAGIC = _F(0.5)


@numba.njit(inline="always")
def _half(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A float32 >= 0 rounded to the nearest normal half precision number, ties to even."""
    bits = np.float32(x).view(np.int32)
    odd = _I(_I(bits >> _I(13)) & _I(1))
    return np.float32(_I(_I(bits + _I(0xFFF) + odd) & _I(-0x2000)).view(np.float32))


@numba.njit(cache=True, error_model="numpy")
def _exact(u):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """asinh in float64, then float32, then half precision, as verifier.features stores it."""
    value = _F(math.asinh(u))
    if value < _F(6.2e-5):  # half precision has a fixed step below its normal numbers: that of float32 from 0.5 on
        return _F(_F(value + _MAGIC) - _MAGIC)
    return _half(value)


@numba.njit(cache=True, error_model="numpy")
def write_scan(columns_L5, slot, sigmas):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Features of one scan of all lanes into the decoded rings."""
    scans = sigmas.shape[1]
    for v in range(sigmas.shape[0]):
        p, k = v * WIDTH * FEATURES + 1, FEATURES
        zeta, residual, delta, fresh = columns(
            columns_L5, p, p + k, p + 2 * k, p + 3 * k, p + 4 * k, p + 5 * k, p + 6 * k, p + 7 * k
        )
        decode(sigmas, v * scans + slot, zeta, residual, delta, fresh)


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def summarise(  # type: ignore[no-untyped-def]
    filled, unit, sigmas, past, order, row_L, channel_L, zeta_nT4, proof
):  # pragma: no cover - compiled
    """Zeta of every channel with a meter, oldest scan first, into zeta_nT4; statistics into proof [n, S * CHANNELS].

    Args:    filled  f64 blocks, NaN where a channel has not been seen in the window;  unit  [blocks, LANES] sigma of a
             zeta;  sigmas  decoded rings, whose zeta is written here;  past  evidence_kernel.history
             row_L, channel_L  whose lane it is
    """
    scans, count = order.shape[0], row_L.shape[0]
    mean, seen = np.empty(LANES), np.empty(LANES)
    value, unsure = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    table = np.empty((STATISTICS, WIDTH), np.float32)
    for b in range(filled.shape[0]):
        mean[:] = 0.0
        seen[:] = 0.0
        for t in range(scans):
            row = filled[b, order[t]]
            for j in range(LANES):
                there = row[j] == row[j]
                mean[j] += row[j] if there else 0.0
                seen[j] += 1.0 if there else 0.0
        for j in range(LANES):
            mean[j] /= seen[j] if seen[j] > 1.0 else 1.0
        lanes = min(LANES, count - b * LANES)
        for t in range(scans):
            row = filled[b, order[t]]
            _zeta(row, mean, unit[b], value, unsure)
            for j in range(lanes):
                zeta_nT4[row_L[b * LANES + j], t, channel_L[b * LANES + j]] = value[j]
            for v in range(VECTORS):
                place = ((b * VECTORS + v) * scans + order[t]) * SIGMAS * WIDTH
                store(sigmas, place, sinh8(load(value, v * WIDTH)))
        for v in range(-(-lanes // WIDTH)):
            judge(sigmas[b * VECTORS + v], order, past, table)
            for j in range(min(WIDTH, lanes - v * WIDTH)):
                lane = b * LANES + v * WIDTH + j
                for s in range(STATISTICS):
                    proof[row_L[lane], CHANNELS * s + channel_L[lane]] = table[s, j]


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _zeta(row, mean, unit, out, unsure):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Zeta of one scan of lanes, with the bits of half precision."""
    doubts = _F(0.0)
    for j in range(LANES):
        a = _F(abs((row[j] - mean[j]) / unit[j]))
        a = a if a == a else _F(0.0)
        a = a if a < _GROSS else _GROSS
        w = a + a * a / (_F(1.0) + np.sqrt(_F(1.0) + a * a))
        y = _F(1.0) + w
        value = _log(y) + (w - (y - _F(1.0))) / y
        rest = abs(_I(_I(np.float32(value).view(np.int32) & _I(0x1FFF)) - _I(0x1000)))
        unsure[j] = _F(1.0) if (rest < 24 or value < _SUBNORMAL or a >= _GROSS) and a > _F(0.0) else _F(0.0)
        out[j] = _half(value)
    for j in range(LANES):
        doubts += unsure[j]
    if doubts > _F(0.0):
        for j in range(LANES):
            if unsure[j] > _F(0.0):
                out[j] = _exact(abs((row[j] - mean[j]) / unit[j]))
    for j in range(LANES):
        out[j] = out[j] if row[j] >= mean[j] else -out[j]


@numba.njit(inline="always")
def _log(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Natural logarithm of a positive normal float32."""
    bits = np.float32(x).view(np.int32)
    e = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    f = np.int32(bits - np.int32(e << np.int32(23))).view(np.float32) - _F(1.0)
    z, k = f * f, _F(e)
    y = _F(7.0376836292e-2) * f + _F(-1.1514610310e-1)
    y = y * f + _F(1.1676998740e-1)
    y = y * f + _F(-1.2420140846e-1)
    y = y * f + _F(1.4249322787e-1)
    y = y * f + _F(-1.6668057665e-1)
    y = y * f + _F(2.0000714765e-1)
    y = y * f + _F(-2.4999993993e-1)
    y = (y * f + _F(3.3333331174e-1)) * f * z
    return f + (y + _F(-2.12194440e-4) * k - _F(0.5) * z) + _F(0.693359375) * k
