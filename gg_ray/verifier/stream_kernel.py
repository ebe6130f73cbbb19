"""Zeta of every scan of a window whose mean has moved, and the statistics that go with it: the dense part of a tick.

Flow:    verifier.stream_rows -> [stream_kernel] -> encoder, verifier.model
Source:  verifier.features (zeta: asinh of the distance to the window's mean in sigmas, in half precision)
Shapes:  LANES of evidence_kernel; blocks [blocks, T, LANES] in ring order, `order` [T] the rows by time

Features are half precision, and a float32 asinh that falls on the other side of a rounding boundary than the float64
one would differ by a whole unit of it. So lanes are computed in float32 and those near a boundary again in float64
(Ziv's method; a few in a thousand): the same bits as verifier.features at the price of vector instructions.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from gg_ray.verifier.evidence_kernel import CHANNELS, LANES, ROWS, STATISTICS, decode_zeta, judge, log_lane

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


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def summarise(  # type: ignore[no-untyped-def]
    filled, unit, residual, moves, fresh, still, order, zeta_nT4, proof
):  # pragma: no cover - compiled
    """Zeta of n rows, oldest scan first, into zeta_nT4 and their statistics into proof [n, STATISTICS * CHANNELS].

    filled  f64 blocks, NaN where a channel has not been seen in the window;  unit  [blocks, LANES] sigma of a zeta
    """
    n, scans = zeta_nT4.shape[0], order.shape[0]
    mean, count = np.empty(LANES), np.empty(LANES)
    size, unsure = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    zeta, work = np.empty((scans, LANES), np.float32), np.empty((scans, LANES), np.float32)
    table = np.empty((STATISTICS, LANES), np.float32)
    for b in range(filled.shape[0]):
        mean[:] = 0.0
        count[:] = 0.0
        for t in range(scans):
            row = filled[b, order[t]]
            for j in range(LANES):
                seen = row[j] == row[j]
                mean[j] += row[j] if seen else 0.0
                count[j] += 1.0 if seen else 0.0
        for j in range(LANES):
            mean[j] /= count[j] if count[j] > 1.0 else 1.0
        rows = min(ROWS, n - b * ROWS)
        for t in range(scans):
            row, to = filled[b, order[t]], zeta[order[t]]
            doubts = _F(0.0)
            for j in range(LANES):
                a = _F(abs((row[j] - mean[j]) / unit[b, j]))
                a = a if a == a else _F(0.0)
                a = a if a < _GROSS else _GROSS
                w = a + a * a / (_F(1.0) + np.sqrt(_F(1.0) + a * a))
                y = _F(1.0) + w
                value = log_lane(y) + (w - (y - _F(1.0))) / y
                rest = abs(_I(_I(np.float32(value).view(np.int32) & _I(0x1FFF)) - _I(0x1000)))
                unsure[j] = _F(1.0) if (rest < 24 or value < _SUBNORMAL or a >= _GROSS) and a > _F(0.0) else _F(0.0)
                size[j] = _half(value)
            for j in range(LANES):
                doubts += unsure[j]
            if doubts > _F(0.0):
                for j in range(LANES):
                    if unsure[j] > _F(0.0):
                        size[j] = _exact(abs((row[j] - mean[j]) / unit[b, j]))
            for j in range(LANES):
                to[j] = size[j] if row[j] >= mean[j] else -size[j]
            for i in range(rows):
                for c in range(CHANNELS):
                    zeta_nT4[b * ROWS + i, t, c] = to[CHANNELS * i + c]
            decode_zeta(to)
        judge(zeta, residual[b], moves[b], fresh[b], still[b], order, work, table)
        for i in range(rows):
            for s in range(STATISTICS):
                for c in range(CHANNELS):
                    proof[b * ROWS + i, CHANNELS * s + c] = table[s, CHANNELS * i + c]
