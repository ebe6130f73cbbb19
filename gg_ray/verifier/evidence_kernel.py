"""The statistics of verifier.evidence as one compiled pass: each row is read once, everything else stays in cache.

Flow:    verifier.evidence, verifier.stream -> [evidence_kernel] -> verifier.model
Source:  evidence.py says what is computed and is the oracle of the test; sinh by its doubling formula, log after
         Cephes (Moshier, logf)
Shapes:  n buses or branches, T scans, LANES = 16 rows of 4 channels side by side, [T, LANES] blocks time first

Loops run over lanes innermost, so the compiler makes them vector instructions; no sum is reordered, so the result does
not depend on the width of the vectors.
"""

from __future__ import annotations

import numba
import numpy as np

from gg_ray.records import F32

ROWS, CHANNELS = 16, 4
LANES = ROWS * CHANNELS
STATISTICS = 14
"""Per channel: nine levels, four logarithms and the share of still scans."""
_F = np.float32
_LIMIT, _KNEE = _F(8.0), _F(12.0)
_FLOOR_BURST, _FLOOR_SPREAD = _F(0.1), _F(0.05)


def statistics(x_nTF: F32) -> F32:
    """[n, T, >= 20] features of any strides -> [n, STATISTICS * CHANNELS], as evidence.Evidence gives them."""
    n, scans, _ = x_nTF.shape
    out = np.empty((n, STATISTICS * CHANNELS), np.float32)
    _windows(x_nTF, np.arange(scans), out)
    return out


def blocks_of(n: int) -> int:
    """Blocks of ROWS that hold n rows."""
    return -(-n // ROWS)


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _windows(x, order, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n, scans, _ = x.shape
    sigmas = np.zeros((3, scans, LANES), np.float32)
    fresh = np.zeros((scans, LANES), np.float32)
    still = np.zeros((scans, LANES), np.float32)
    work = np.empty((scans, LANES), np.float32)
    table = np.empty((STATISTICS, LANES), np.float32)
    for start in range(0, n, ROWS):
        rows = min(ROWS, n - start)
        for i in range(rows):
            for t in range(scans):
                for c in range(CHANNELS):
                    for k in range(3):
                        sigmas[k, t, CHANNELS * i + c] = x[start + i, t, 5 * c + 1 + k]
                    fresh[t, CHANNELS * i + c] = x[start + i, t, 5 * c + 4]
        for t in range(scans):
            decode(sigmas[0, t], sigmas[1, t], sigmas[2, t], fresh[t], still[t])
        judge(sigmas[0], sigmas[1], sigmas[2], fresh, still, order, work, table)
        for i in range(rows):
            for s in range(STATISTICS):
                for c in range(CHANNELS):
                    out[start + i, CHANNELS * s + c] = table[s, CHANNELS * i + c]


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def decode(zeta, residual, delta, fresh, still):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """One scan of lanes: values in sigmas from their inverse hyperbolic sine, in place; which of them stand still."""
    for j in range(zeta.shape[0]):
        still[j] = _F(1.0) if abs(delta[j]) < _F(1e-4) and fresh[j] > _F(0.1) else _F(0.0)
    for j in range(zeta.shape[0]):
        zeta[j] = _sinh(zeta[j])
        residual[j] = _sinh(residual[j])
        delta[j] = _sinh(delta[j])


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def decode_zeta(zeta):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Values of one scan of lanes in sigmas from their inverse hyperbolic sine, in place."""
    for j in range(zeta.shape[0]):
        zeta[j] = _sinh(zeta[j])


@numba.njit(inline="always")
def _sinh(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """sinh of x clamped to 8: series of x / 16, doubled four times, without cancellation anywhere."""
    x = min(max(x, -_LIMIT), _LIMIT) * _F(1 / 16)
    q = x * x
    s = x * (_F(1.0) + q * (_F(1 / 6) + q * (_F(1 / 120) + q * _F(1 / 5040))))
    c = _F(1.0) + q * (_F(0.5) + q * (_F(1 / 24) + q * (_F(1 / 720) + q * _F(1 / 40320))))
    s, c = _F(2.0) * s * c, _F(1.0) + _F(2.0) * s * s
    s, c = _F(2.0) * s * c, _F(1.0) + _F(2.0) * s * s
    s, c = _F(2.0) * s * c, _F(1.0) + _F(2.0) * s * s
    return _F(2.0) * s * c


@numba.njit(inline="always")
def log_lane(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
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


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _double(work, length, width, best):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Sums of `width` neighbours to sums of twice as many, in place, and the largest size of each lane into best.

    Returns: how many sums there are; 0 where the window is too short, and nothing is changed.
    """
    if length <= width:
        return 0
    best[:] = _F(0.0)
    for t in range(length - width):
        # indexed, not as two row views: the compiler must see that rows apart do not overlap
        for j in range(work.shape[1]):
            value = work[t, j] + work[t + width, j]
            work[t, j] = value
            size = abs(value)
            best[j] = size if size > best[j] else best[j]
    return length - width


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def judge(  # type: ignore[no-untyped-def]
    zeta, residual, moves, fresh, still, order, work, out
):  # pragma: no cover - compiled
    """Statistics [STATISTICS, LANES] of decoded blocks [T, LANES] whose scans in order of time are the rows `order`."""
    scans, lanes = order.shape[0], out.shape[1]
    half = scans // 2
    total = np.zeros(lanes, np.float32)
    spread = np.zeros(lanes, np.float32)
    seen = np.zeros(lanes, np.float32)
    best = np.zeros(lanes, np.float32)

    # residual: largest sums of 1, 2, 4, 8, 16 scans (rows 0-4), last sums of 4 and 8 (5, 6)
    for t in range(scans):
        row, to = residual[order[t]], work[t]
        for j in range(lanes):
            value = row[j]
            to[j] = value
            total[j] += value
            size = abs(value)
            best[j] = size if size > best[j] else best[j]
    length = scans
    for span in range(5):
        if span and length:  # where the window is too short, the sum over all of it
            length = _double(work, length, 1 << (span - 1), best)
        scale = _F(1.0) / _F(np.sqrt(min(1 << span, scans)))
        for j in range(lanes):
            out[span, j] = (best[j] if length else abs(total[j])) * scale
        if span == 2 or span == 3:
            last = work[length - 1] if length else total
            for j in range(lanes):
                out[3 + span, j] = last[j] * scale

    # squares: burst over 4 (row 7), mean (13)
    total[:] = _F(0.0)
    for t in range(scans):
        row, to = residual[order[t]], work[t]
        for j in range(lanes):
            to[j] = row[j] * row[j]
            total[j] += to[j]
    _burst(work, scans, 4, total, best)
    for j in range(lanes):
        out[7, j] = best[j]
        out[13, j] = total[j] / _F(scans)

    # moves: largest (12), spread of fresh ones (8), swing over 4 (9)
    total[:] = _F(0.0)
    best[:] = _F(0.0)
    for t in range(scans):
        row, weight, to = moves[order[t]], fresh[order[t]], work[t]
        for j in range(lanes):
            energy = row[j] * row[j]
            to[j] = energy
            total[j] += energy
            spread[j] += energy * weight[j]
            seen[j] += weight[j]
            size = abs(row[j])
            best[j] = size if size > best[j] else best[j]
    for j in range(lanes):
        out[12, j] = best[j]
        out[8, j] = spread[j] / max(seen[j], _F(1e-3))
    _burst(work, scans, 4, total, best)
    for j in range(lanes):
        out[9, j] = best[j]

    # shift between the halves (11)
    total[:] = _F(0.0)
    best[:] = _F(0.0)
    for t in range(half):
        row = zeta[order[t]]
        for j in range(lanes):
            total[j] += row[j]
    for t in range(half, scans):
        row = zeta[order[t]]
        for j in range(lanes):
            best[j] += row[j]
    first, second, scale = _F(max(half, 1)), _F(scans - half), _F(np.sqrt(half / 2))
    for j in range(lanes):
        out[11, j] = abs(best[j] / second - total[j] / first) * scale

    # share of still scans, the most of any 8 (10)
    total[:] = _F(0.0)
    for t in range(scans):
        row, to = still[order[t]], work[t]
        for j in range(lanes):
            to[j] = row[j]
            total[j] += row[j]
    _burst(work, scans, 8, total, best)
    for j in range(lanes):
        out[10, j] = best[j]

    _scale(out, seen)


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _burst(work, scans, span, total, best):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Largest mean of `span` scans of values >= 0 in `work`, which is overwritten; a shorter window counts whole."""
    length, width = scans, 1
    while width < span and length:
        length = _double(work, length, width, best)
        width *= 2
    for j in range(best.shape[0]):
        best[j] = (best[j] if length else total[j]) / _F(span)


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _scale(out, weight):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Levels of sizes (evidence.level), logarithms of powers where a channel is read at all; in place."""
    lanes = out.shape[1]
    for s in (0, 1, 2, 3, 4, 5, 6, 11, 12):
        row = out[s]
        for j in range(lanes):
            size = abs(row[j])
            beyond = _KNEE * _F(1 / 3) + log_lane(max(size, _KNEE) * _F(1 / 12))
            value = size * _F(1 / 3) if size <= _KNEE else beyond
            row[j] = value if row[j] >= _F(0.0) else -value
    for s, floor in ((7, _FLOOR_BURST), (8, _FLOOR_SPREAD), (9, _FLOOR_BURST), (13, _FLOOR_SPREAD)):
        row = out[s]
        for j in range(lanes):
            value = log_lane(row[j] + floor)
            row[j] = value if weight[j] > _F(0.0) else _F(0.0)
