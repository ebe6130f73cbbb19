"""A dense layer on columns that stand in several arrays, with what follows it: gelu, residual, LayerNorm.

Flow:    gat, temporal, model -> [dense_kernel]
Source:  register blocking of Goto and van de Geijn (2008): three rows times 32 columns fill twelve of sixteen registers
Shapes:  n rows, K columns of all parts, D outputs

Products of some 64 columns are so small that a library spends as much on joining the columns before, and on reading and
writing the results again after, as on the product. Here a block of rows is joined, multiplied, activated and normalised
before the next one is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from gg_ray.records import F32
from gg_ray.verifier.simd import WIDTH, gelu8, load, splat, spread, store, total

PANEL = 4 * WIDTH
"""Columns that are made at a time."""
BLOCK = 24
"""Rows whose inputs, with a panel of weights, fit into the first cache."""
_F = np.float32
_NONE_2, _NONE_1 = np.empty((0, 0), np.float32), np.empty(0, np.float32)


def dense(
    parts: Sequence[F32], weight_DK: F32, bias_D: F32 | None = None, *, gelu: bool = False, scale_n: F32 | None = None,
    onto_nD: F32 | None = None, norm: tuple[F32, F32, float] | None = None,
) -> F32:  # fmt: skip
    """[n, D] = norm(onto + scale * gelu(parts side by side times weight + bias)); what is not given is left out.

    Args:    norm  weight, bias and epsilon of a LayerNorm;  D must be a multiple of WIDTH
    """
    n, width = parts[0].shape[0], weight_DK.shape[0]
    assert width % WIDTH == 0
    assert sum(part.shape[1] for part in parts) == weight_DK.shape[1]
    out = np.empty((n, width), np.float32)
    gamma, beta, eps = (_NONE_1, _NONE_1, 0.0) if norm is None else norm
    _dense(
        tuple(parts), weight_DK, _NONE_1 if bias_D is None else bias_D, gelu, _NONE_1 if scale_n is None else scale_n,
        _NONE_2 if onto_nD is None else onto_nD, gamma, beta, _F(eps), out,
    )  # fmt: skip
    return out


@numba.njit(cache=True, error_model="numpy")
def _dense(  # type: ignore[no-untyped-def]
    parts, weight, bias, gelu, scale, onto, gamma, beta, eps, out
):  # pragma: no cover - compiled
    n, (width, depth) = out.shape[0], weight.shape
    panels = -(-width // PANEL)
    stride = panels * PANEL
    packed, first = np.zeros(depth * stride, np.float32), np.zeros(stride, np.float32)
    for j in range(width):
        for k in range(depth):
            packed[(j // PANEL * depth + k) * PANEL + j % PANEL] = weight[j, k]
    for j in range(bias.size):
        first[j] = bias[j]
    x, y = np.zeros(BLOCK * depth, np.float32), np.empty(BLOCK * stride, np.float32)
    for start in range(0, n, BLOCK):
        rows, column = min(BLOCK, n - start), 0
        for p in range(len(parts)):
            part = parts[p]
            for i in range(rows):
                to = i * depth + column
                for c in range(part.shape[1]):
                    x[to + c] = part[start + i, c]
            column += part.shape[1]
        for panel in range(panels):
            for i in range(0, rows, 3):  # rows beyond the last hold what was there before and are not read
                _tile(
                    x, i * depth, depth, packed, panel * depth * PANEL, first, panel * PANEL, y,
                    i * stride + panel * PANEL, stride,
                )  # fmt: skip
        for i in range(rows):
            _finish(y, i * stride, width, start + i, gelu, scale, onto, gamma, beta, eps, out)


@numba.njit(inline="always")
def _tile(  # type: ignore[no-untyped-def]
    x, row, depth, weight, panel, first, bias, y, to, stride
):  # pragma: no cover - compiled
    """Three rows times one panel."""
    a0 = b0 = c0 = load(first, bias)
    a1 = b1 = c1 = load(first, bias + WIDTH)
    a2 = b2 = c2 = load(first, bias + 2 * WIDTH)
    a3 = b3 = c3 = load(first, bias + 3 * WIDTH)
    for k in range(depth):
        xa, xb, xc = spread(x, row + k), spread(x, row + depth + k), spread(x, row + 2 * depth + k)
        place = panel + k * PANEL
        w = load(weight, place)
        a0, b0, c0 = a0 + xa * w, b0 + xb * w, c0 + xc * w
        w = load(weight, place + WIDTH)
        a1, b1, c1 = a1 + xa * w, b1 + xb * w, c1 + xc * w
        w = load(weight, place + 2 * WIDTH)
        a2, b2, c2 = a2 + xa * w, b2 + xb * w, c2 + xc * w
        w = load(weight, place + 3 * WIDTH)
        a3, b3, c3 = a3 + xa * w, b3 + xb * w, c3 + xc * w
    put4(y, to, a0, a1, a2, a3)
    put4(y, to + stride, b0, b1, b2, b3)
    put4(y, to + 2 * stride, c0, c1, c2, c3)


@numba.njit(inline="always")
def put4(to, place, v0, v1, v2, v3):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Four neighbouring vectors."""
    store(to, place, v0)
    store(to, place + WIDTH, v1)
    store(to, place + 2 * WIDTH, v2)
    store(to, place + 3 * WIDTH, v3)


@numba.njit(inline="always")
def _finish(  # type: ignore[no-untyped-def]
    y, place, width, row, gelu, scale, onto, gamma, beta, eps, out
):  # pragma: no cover - compiled
    """What follows the product, for one row."""
    none, part, to = splat(_F(0.0)), _F(1.0 / width), row * width
    sums = none
    for j in range(0, width, WIDTH):
        v = load(y, place + j)
        if gelu:
            v = gelu8(v)
        if scale.size:
            v = v * spread(scale, row)
        if onto.size:
            v = v + load(onto, to + j)
        if gamma.size:
            store(y, place + j, v)
            sums = sums + v
        else:
            store(out, to + j, v)
    if gamma.size:
        mean, squares = splat(total(sums) * part), none
        for j in range(0, width, WIDTH):
            v = load(y, place + j) - mean
            store(y, place + j, v)
            squares = squares + v * v
        norm = splat(_F(1.0) / np.sqrt(total(squares) * part + eps))
        for j in range(0, width, WIDTH):
            store(out, to + j, load(y, place + j) * norm * load(gamma, j) + load(beta, j))
