"""Patches and statistics of every row in one pass over the windows, which are read from memory once.

Flow:    model.summarise -> [summary_kernel] -> PatchEncoder.activated, Summary
Source:  patch_kernel and evidence_kernel, whose results these are; together they are half of what a window costs
Shapes:  n rows, T scans, F >= 20 features, C = 4 channels of 5 features, P patches, W = PATCH_WIDTH
"""

from __future__ import annotations

import numba
import numpy as np

from gg_ray.records import F32
from gg_ray.verifier.evidence_kernel import CHANNELS, FEATURES, SIGMAS, STATISTICS, history, lanes
from gg_ray.verifier.patch_kernel import PATCH_WIDTH, embed, pool
from gg_ray.verifier.simd import WIDTH, either, load, splat, store

READ = CHANNELS * FEATURES
_F = np.float32


def summarised(x_nTF: F32, weight_KFW: F32, position_PW: F32, score_W: F32) -> tuple[F32, F32]:
    """patch_kernel.pooled [n, 3 * PATCH_WIDTH] and evidence_kernel.statistics [n, STATISTICS * CHANNELS]."""
    n, scans, features = x_nTF.shape
    assert features >= READ
    out, proof = np.empty((n, 3 * PATCH_WIDTH), np.float32), np.zeros((n, STATISTICS * CHANNELS), np.float32)
    _summarise(x_nTF, weight_KFW, position_PW, score_W, history(scans), out, proof)
    return out, proof


@numba.njit(cache=True, error_model="numpy")
def _summarise(x, weight, position, score, past, out, proof):  # type: ignore[no-untyped-def]  # pragma: no cover
    n, scans, features = x.shape
    flat, patches = x.ravel(), position.shape[0]
    patch = scans // patches
    order = np.arange(scans)
    first, last = np.empty(CHANNELS + 1, np.intp), np.empty(CHANNELS + 1, np.intp)
    embedded = np.empty((patches, PATCH_WIDTH), np.float32)
    sigmas = np.empty((scans, SIGMAS, WIDTH), np.float32)
    table = np.empty((STATISTICS, WIDTH), np.float32)
    room = WIDTH + CHANNELS - 1
    places, row, channel = np.zeros(room, np.intp), np.zeros(room, np.intp), np.zeros(room, np.intp)
    bits = np.empty(READ, np.float32)
    waiting, silent = 0, -1
    for i in range(n):
        start, held = i * scans * features, 0
        _bits(flat, start, scans, features, bits)
        for c in range(CHANNELS):
            if _any(bits, FEATURES * c):
                first[held], last[held] = FEATURES * c, FEATURES * (c + 1)
                held += 1
                places[waiting], row[waiting], channel[waiting] = start + FEATURES * c + 1, i, c
                waiting += 1
        # one place that calls lanes: it is inlined, and compiling it takes seconds
        while waiting >= WIDTH or (waiting and i == n - 1):
            full = min(waiting, WIDTH)
            lanes(flat, places, row, channel, full, features, sigmas, order, past, table, proof)
            waiting -= full
            for k in range(waiting):
                places[k], row[k], channel[k] = places[WIDTH + k], row[WIDTH + k], channel[WIDTH + k]
        if features > READ:
            first[held], last[held] = READ, features
            held += 1
        if not held and silent >= 0:
            for k in range(out.shape[1]):
                out[i, k] = out[silent, k]
            continue
        for p in range(0, patches, 3):
            p1, p2 = min(p + 1, patches - 1), min(p + 2, patches - 1)
            embed(flat, start, patch * features, p, p1, p2, first, last, held, patch, features, weight, embedded)
        pool(embedded, position, score, patches, out, i * 3 * PATCH_WIDTH)
        if not held:
            silent = i


@numba.njit(inline="always")
def _bits(x, start, scans, features, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Bits that the features of a row have in any scan."""
    a = b = c = splat(_F(0.0))
    for t in range(scans):
        place = start + t * features
        a, b = either(a, load(x, place)), either(b, load(x, place + WIDTH))
        c = either(c, load(x, place + READ - WIDTH))
    store(out, 0, a)
    store(out, WIDTH, b)
    store(out, READ - WIDTH, c)


@numba.njit(inline="always")
def _any(bits, place):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Whether a channel has any bit; -0 has none that counts."""
    found = False
    for k in range(FEATURES):
        found = found or bits[place + k] != _F(0.0)
    return found
