"""Patches of a window embedded and pooled as one compiled pass: a row's 48 scans stay in cache, its sums in registers.

Flow:    verifier.temporal, verifier.stream_rows -> [patch_kernel] -> PatchEncoder.out
Source:  temporal.PatchEncoder says what is computed and is the oracle of the test
Shapes:  n rows, T scans in P patches of K, F features in groups of 5 (a channel), W = 32 = PATCH_WIDTH

Products skip channels that are zero throughout the row: without a meter they add nothing. In plans of the default
`scenario.kappa` that is half of them. Three patches share each weight that is loaded, with four times eight sums each:
twelve of sixteen registers.
"""

from __future__ import annotations

import numba
import numpy as np

from gg_ray.records import F32, I64
from gg_ray.verifier.dense_kernel import put4
from gg_ray.verifier.simd import WIDTH, bits, exp8, gelu8, highest, load, splat, spread, store, total

PATCH_WIDTH = 32
_F = np.float32


def pooled(
    x_nTF: F32, weight_KFW: F32, position_PW: F32, score_W: F32, group: int = 5, held_TnW: F32 | None = None,
    ends_P: I64 | None = None,
) -> F32:  # fmt: skip
    """Weighted mean, mean and last of the embedded patches [n, 3 * PATCH_WIDTH].

    Args:    weight_KFW  K * F rows of PATCH_WIDTH, the transposed weight of the embedding
             position_PW  of each patch, oldest first;  group  features that belong to one channel
             held_TnW, ends_P  what is added to the products of patch p: held_TnW[ends_P[p]] (verifier.stream_rows)
    """
    n, scans, features = x_nTF.shape
    patches = position_PW.shape[0]
    assert PATCH_WIDTH == 4 * WIDTH
    assert weight_KFW.shape == (scans // patches * features, PATCH_WIDTH)
    out = np.empty((n, 3 * PATCH_WIDTH), np.float32)
    _windows(
        np.ascontiguousarray(x_nTF), np.ascontiguousarray(weight_KFW), np.ascontiguousarray(position_PW),
        np.ascontiguousarray(score_W), group, np.empty((0, 0, 0), np.float32) if held_TnW is None else held_TnW,
        np.empty(0, np.int64) if ends_P is None else ends_P, out,
    )  # fmt: skip
    return out


@numba.njit(cache=True, error_model="numpy")
def _windows(  # type: ignore[no-untyped-def]
    x, weight, position, score, group, carried, ends, out
):  # pragma: no cover - compiled
    n, scans, features = x.shape
    flat = x.ravel()
    patches = position.shape[0]
    patch = scans // patches
    groups = -(-features // group)
    first, last = np.empty(groups, np.intp), np.empty(groups, np.intp)
    embedded = np.empty((patches, PATCH_WIDTH), np.float32)
    for i in range(n):
        row, held = i * scans * features, 0
        for g in range(groups):
            start, stop = group * g, min(group * (g + 1), features)
            if _read(flat, row + start, stop - start, scans, features):
                first[held], last[held] = start, stop
                held += 1
        for p in range(0, patches, 3):
            # patches beyond the last are computed again: sums of their own would be a second loop
            p1, p2 = min(p + 1, patches - 1), min(p + 2, patches - 1)
            embed(flat, row, patch * features, p, p1, p2, first, last, held, patch, features, weight, embedded)
        if carried.size:
            for p in range(patches):
                for j in range(0, PATCH_WIDTH, WIDTH):
                    place = p * PATCH_WIDTH + j
                    more = load(carried, (ends[p] * n + i) * PATCH_WIDTH + j)
                    store(embedded, place, load(embedded, place) + more)
        pool(embedded, position, score, patches, out, i * 3 * PATCH_WIDTH)


@numba.njit(inline="always")
def _read(x, first, count, scans, features):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Whether a channel (or the single features behind them) is other than zero in any scan."""
    for t in range(scans):
        place = first + t * features
        if count == 5:
            if bits(x, place) | bits(x, place + 2) | bits(x, place + 3):
                return True
        else:
            for k in range(count):
                if x[place + k] != _F(0.0):
                    return True
    return False


@numba.njit(inline="always")
def embed(  # type: ignore[no-untyped-def]
    x, row, stride, p0, p1, p2, first, last, held, patch, features, weight, embedded
):  # pragma: no cover - compiled
    """Products of three patches of a row with the weights of the channels held."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = splat(_F(0.0))
    a, b, c = row + p0 * stride, row + p1 * stride, row + p2 * stride
    for h in range(held):
        for s in range(patch):
            for k in range(s * features + first[h], s * features + last[h]):
                xa, xb, xc = spread(x, a + k), spread(x, b + k), spread(x, c + k)
                place = k * PATCH_WIDTH
                w = load(weight, place)
                a0, b0, c0 = a0 + xa * w, b0 + xb * w, c0 + xc * w
                w = load(weight, place + WIDTH)
                a1, b1, c1 = a1 + xa * w, b1 + xb * w, c1 + xc * w
                w = load(weight, place + 2 * WIDTH)
                a2, b2, c2 = a2 + xa * w, b2 + xb * w, c2 + xc * w
                w = load(weight, place + 3 * WIDTH)
                a3, b3, c3 = a3 + xa * w, b3 + xb * w, c3 + xc * w
    put4(embedded, p0 * PATCH_WIDTH, a0, a1, a2, a3)
    put4(embedded, p1 * PATCH_WIDTH, b0, b1, b2, b3)
    put4(embedded, p2 * PATCH_WIDTH, c0, c1, c2, c3)


@numba.njit(inline="always")
def pool(embedded, position, score, patches, out, to):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Embedded patches [P, PATCH_WIDTH], oldest first -> three pools at a flat place of out."""
    s0, s1, s2, s3 = load(score, 0), load(score, WIDTH), load(score, 2 * WIDTH), load(score, 3 * WIDTH)
    none = splat(_F(0.0))
    weight = m0 = m1 = m2 = m3 = w0 = w1 = w2 = w3 = h0 = h1 = h2 = h3 = none
    top = splat(_F(-np.inf))
    for p in range(patches):
        place = p * PATCH_WIDTH
        h0 = gelu8(load(embedded, place) + load(position, place))
        h1 = gelu8(load(embedded, place + WIDTH) + load(position, place + WIDTH))
        h2 = gelu8(load(embedded, place + 2 * WIDTH) + load(position, place + 2 * WIDTH))
        h3 = gelu8(load(embedded, place + 3 * WIDTH) + load(position, place + 3 * WIDTH))
        logit = splat(total(h0 * s0 + h1 * s1 + h2 * s2 + h3 * s3))
        # the largest logit so far is the scale; what came before is rescaled when it grows
        above = highest(top, logit)
        fade, share = exp8(top - above), exp8(logit - above)
        top = above
        weight = weight * fade + share
        w0, w1 = w0 * fade + h0 * share, w1 * fade + h1 * share
        w2, w3 = w2 * fade + h2 * share, w3 * fade + h3 * share
        m0, m1, m2, m3 = m0 + h0, m1 + h1, m2 + h2, m3 + h3
    norm, part = splat(_F(1.0)) / weight, splat(_F(1.0 / patches))
    put4(out, to, w0 * norm, w1 * norm, w2 * norm, w3 * norm)
    put4(out, to + PATCH_WIDTH, m0 * part, m1 * part, m2 * part, m3 * part)
    put4(out, to + 2 * PATCH_WIDTH, h0, h1, h2, h3)
