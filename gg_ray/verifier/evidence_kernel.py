"""The statistics of verifier.evidence as one compiled pass: each row is read once, everything else stays in cache.

Flow:    verifier.evidence, verifier.stream -> [evidence_kernel] -> verifier.model
Source:  evidence.py says what is computed and is the oracle of the test; sinh by halves
Shapes:  n buses or branches, T scans, C = 4 channels; WIDTH = 8 channels side by side, buffers [T, WIDTH] time first

A channel without a meter is zero throughout and its statistics are zero: only the others are gathered, eight at a time
from whatever rows. Sums of 2, 4, 8 and 16 scans are each made of two of the ones before, as in evidence.py.
"""

from __future__ import annotations

import numba
import numpy as np

from gg_ray.records import F32
from gg_ray.verifier.simd import (
    WIDTH,
    bits,
    choose,
    columns,
    highest,
    load,
    log8,
    lowest,
    rounded,
    shifted,
    size,
    splat,
    store,
)  # fmt: skip

CHANNELS = 4
STATISTICS = 14
"""Per channel: nine levels, four logarithms and the share of still scans."""
FEATURES = 5
"""Per channel and scan: value, zeta, residual, delta, fresh (verifier.batch)."""
SIGMAS = 5
"""Rows of a decoded scan: zeta, residual and delta in sigmas, fresh, still."""
_F = np.float32
_LIMIT, _KNEE = _F(8.0), _F(12.0)
_FLOOR_BURST, _FLOOR_SPREAD = _F(0.1), _F(0.05)
_PAST = 8


def statistics(x_nTF: F32) -> F32:
    """[n, T, >= 20] features -> [n, STATISTICS * CHANNELS], as evidence.Evidence gives them."""
    out = np.zeros((x_nTF.shape[0], STATISTICS * CHANNELS), np.float32)
    _windows(np.ascontiguousarray(x_nTF), out)
    return out


def history(scans: int) -> F32:
    """Room for `judge`: sums of the scans so far, with as many scans of nothing before the first."""
    return np.zeros((7, scans + _PAST, WIDTH), np.float32)


@numba.njit(cache=True, error_model="numpy")
def _windows(x, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n, scans, features = x.shape
    order = np.arange(scans)
    sigmas = np.empty((scans, SIGMAS, WIDTH), np.float32)
    past = np.zeros((7, scans + _PAST, WIDTH), np.float32)
    table = np.empty((STATISTICS, WIDTH), np.float32)
    places = np.zeros(WIDTH, np.intp)
    row, channel = np.zeros(WIDTH, np.intp), np.zeros(WIDTH, np.intp)
    held = 0
    for lane in range(n * CHANNELS + 1):
        if lane < n * CHANNELS:
            i, c = lane // CHANNELS, lane % CHANNELS
            first = i * scans * features + FEATURES * c + 1
            if not _read(x, first, scans, features):
                continue
            places[held], row[held], channel[held] = first, i, c
            held += 1
        if held == WIDTH or (lane == n * CHANNELS and held):
            lanes(x, places, row, channel, held, features, sigmas, order, past, table, out)
            held = 0


@numba.njit(inline="always")
def lanes(  # type: ignore[no-untyped-def]
    x, places, row, channel, held, features, sigmas, order, past, table, out
):  # pragma: no cover - compiled
    """Statistics of the channels gathered, of which `held` are new, to where they belong."""
    p0, p1, p2, p3, p4, p5, p6, p7 = (
        places[0], places[1], places[2], places[3], places[4], places[5], places[6], places[7]
    )  # fmt: skip
    for t in range(order.shape[0]):
        k = t * features
        zeta, residual, delta, fresh = columns(
            x, p0 + k, p1 + k, p2 + k, p3 + k, p4 + k, p5 + k, p6 + k, p7 + k
        )  # fmt: skip
        decode(sigmas, t, zeta, residual, delta, fresh)
    judge(sigmas, order, past, table)
    for k in range(held):
        for s in range(STATISTICS):
            out[row[k], CHANNELS * s + channel[k]] = table[s, k]


@numba.njit(inline="always")
def _read(x, first, scans, features):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Whether zeta, residual, delta or fresh of a channel is other than zero in any scan."""
    for t in range(scans):
        place = first + t * features
        if bits(x, place) | bits(x, place + 2):
            return True
    return False


@numba.njit(inline="always")
def decode(sigmas, t, zeta, residual, delta, fresh):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """One scan of lanes into the buffer: sigmas from their inverse hyperbolic sine, and which of them stand still."""
    first = t * SIGMAS * WIDTH
    one, none = splat(_F(1.0)), splat(_F(0.0))
    store(sigmas, first, sinh8(zeta))
    store(sigmas, first + WIDTH, sinh8(residual))
    store(sigmas, first + 2 * WIDTH, sinh8(delta))
    store(sigmas, first + 3 * WIDTH, fresh)
    quiet = choose(splat(_F(1e-4)), size(delta), none, one)
    store(sigmas, first + 4 * WIDTH, choose(fresh, splat(_F(0.1)), none, quiet))


@numba.njit(inline="always")
def sinh8(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """sinh of x clamped to 8: x = (n + f) log 2 gives sinh(n log 2) cosh(f log 2) + cosh(n log 2) sinh(f log 2)."""
    y = lowest(highest(x, splat(-_LIMIT)), splat(_LIMIT)) * splat(_F(1.44269504))
    n = rounded(y)
    f = y - n
    q = f * f
    even = splat(_F(1.0)) + q * (splat(_F(0.240226507)) + q * (splat(_F(9.61812911e-3)) + q * splat(_F(1.54035304e-4))))
    odd = f * (splat(_F(0.693147181)) + q * (splat(_F(5.55041087e-2)) + q * splat(_F(1.33335581e-3))))
    up, down = shifted(splat(_F(0.5)), n), shifted(splat(_F(0.5)), splat(_F(0.0)) - n)
    return (up - down) * even + (up + down) * odd


@numba.njit(cache=True, error_model="numpy")
def judge(sigmas, order, past, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Statistics [STATISTICS, WIDTH] of decoded scans [T, SIGMAS, WIDTH] whose rows by time are `order`."""
    scans = order.shape[0]
    half = scans // 2
    # a window shorter than a span counts whole, which is what its last sum holds
    to2, to4, to8, to16 = min(2, scans) - 1, min(4, scans) - 1, min(8, scans) - 1, min(16, scans) - 1
    none = splat(_F(0.0))
    best1 = best2 = best4 = best8 = best16 = none
    r4 = r8 = before = none
    burst = square = q4 = none
    jump = spread = seen = swing = e4 = none
    still = still4 = still8 = none
    early = late = none
    squared, moved, stood = none, none, none
    lane = (scans + _PAST) * WIDTH
    for t in range(scans):
        first, now = order[t] * SIGMAS * WIDTH, (t + _PAST) * WIDTH
        zeta, r = load(sigmas, first), load(sigmas, first + WIDTH)
        delta, fresh = load(sigmas, first + 2 * WIDTH), load(sigmas, first + 3 * WIDTH)
        stands = load(sigmas, first + 4 * WIDTH)
        if t < half:
            early = early + zeta
        else:
            late = late + zeta

        r2 = r + before
        before = r
        r4 = r2 + load(past, now - 2 * WIDTH)
        r8 = r4 + load(past, lane + now - 4 * WIDTH)
        r16 = r8 + load(past, 2 * lane + now - 8 * WIDTH)
        store(past, now, r2)
        store(past, lane + now, r4)
        store(past, 2 * lane + now, r8)
        best1 = highest(best1, size(r))

        q = r * r
        square = square + q
        q2 = q + squared
        squared = q
        q4 = q2 + load(past, 3 * lane + now - 2 * WIDTH)
        store(past, 3 * lane + now, q2)

        e = delta * delta
        e2 = e + moved
        moved = e
        jump = highest(jump, size(delta))
        spread = spread + e * fresh
        seen = seen + fresh
        e4 = e2 + load(past, 4 * lane + now - 2 * WIDTH)
        store(past, 4 * lane + now, e2)

        still2 = stands + stood
        stood = stands
        still4 = still2 + load(past, 5 * lane + now - 2 * WIDTH)
        still8 = still4 + load(past, 6 * lane + now - 4 * WIDTH)
        store(past, 5 * lane + now, still2)
        store(past, 6 * lane + now, still4)
        if t >= to2:
            best2 = highest(best2, size(r2))
        if t >= to4:
            best4 = highest(best4, size(r4))
            burst = highest(burst, q4)
            swing = highest(swing, e4)
        if t >= to8:
            best8 = highest(best8, size(r8))
            still = highest(still, still8)
        if t >= to16:
            best16 = highest(best16, size(r16))
    root4, root8 = splat(_F(1 / np.sqrt(min(4, scans)))), splat(_F(1 / np.sqrt(min(8, scans))))
    store(out, 0, _level(best1))
    store(out, WIDTH, _level(best2 * splat(_F(1 / np.sqrt(min(2, scans))))))
    store(out, 2 * WIDTH, _level(best4 * root4))
    store(out, 3 * WIDTH, _level(best8 * root8))
    store(out, 4 * WIDTH, _level(best16 * splat(_F(1 / np.sqrt(min(16, scans))))))
    store(out, 5 * WIDTH, _level(r4 * root4))
    store(out, 6 * WIDTH, _level(r8 * root8))
    quarter = splat(_F(0.25))
    store(out, 7 * WIDTH, _power(burst * quarter, _FLOOR_BURST, seen))
    store(out, 8 * WIDTH, _power(spread / highest(seen, splat(_F(1e-3))), _FLOOR_SPREAD, seen))
    store(out, 9 * WIDTH, _power(swing * quarter, _FLOOR_BURST, seen))
    store(out, 10 * WIDTH, still * splat(_F(0.125)))
    # quotients, since a product would be fused with the difference and equal halves would not cancel
    shift = late / splat(_F(scans - half)) - early / splat(_F(max(half, 1)))
    store(out, 11 * WIDTH, _level(size(shift) * splat(_F(np.sqrt(half / 2)))))
    store(out, 12 * WIDTH, _level(jump))
    store(out, 13 * WIDTH, _power(square * splat(_F(1 / scans)), _FLOOR_SPREAD, seen))


@numba.njit(inline="always")
def _level(value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """evidence.level."""
    none, knee, third = splat(_F(0.0)), splat(_KNEE), splat(_F(1 / 3))
    far = size(value)
    beyond = knee * third + log8(highest(far, knee) * splat(_F(1 / 12)))
    level = choose(far, knee, far * third, beyond)
    return choose(none, value, level, none - level)


@numba.njit(inline="always")
def _power(value, floor, seen):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Logarithm where a channel is read at all."""
    none = splat(_F(0.0))
    return choose(seen, none, none, log8(value + splat(floor)))
