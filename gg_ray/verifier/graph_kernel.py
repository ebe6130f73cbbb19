"""Message passing and read-out as compiled passes over nodes: no array per message is ever made.

Flow:    gat, unet, model -> [graph_kernel] -> the same, with dense products by oneDNN in between
Source:  gat.py, unet.py and model.py say what is computed and are the oracle of the tests (equal to 1e-5)
Shapes:  N nodes, M directed messages, E branches, D = widths that are multiples of WIDTH, H heads, G groups

Inference on a CPU alone (gat.fused). A node's messages come one after the other (counting sort by destination), so
what they add up to stays in cache and is normalised and activated before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from gg_ray.records import F32, I64
from gg_ray.verifier.simd import (
    WIDTH, choose, exp8, gelu8, highest, load, log8, lowest, root, size, splat, spread, store, total,
)  # fmt: skip

_F = np.float32
_TINY = _F(1e-12)
Norm = tuple[F32, F32, float]
"""Weight, bias and epsilon of a LayerNorm."""


@numba.njit(cache=True, error_model="numpy")
def by_destination(dst_M, n):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Messages in order of their destination: where each node's begin [n + 1], and which they are [M]."""
    first = np.zeros(n + 1, np.int64)
    for d in dst_M:
        first[d + 1] += 1
    for i in range(n):
        first[i + 1] += first[i]
    place, order = first[:-1].copy(), np.empty(dst_M.size, np.int64)
    for m in range(dst_M.size):
        d = dst_M[m]
        order[place[d]] = m
        place[d] += 1
    return first, order


def attended(
    source_ND: F32, query_ND: F32, edge_WED: Sequence[F32], attention_HD: F32, edge_index: I64, status_E: F32,
    limit: float,
) -> tuple[F32, F32]:  # fmt: skip
    """gelu of each node's attention mean over its branches [N, D], and 1 where it has one in service [N].

    Args:    edge_WED  attributes of branches projected for messages along and against them;  limit  of the logits
    """
    heads = attention_HD.shape[0]
    out, reached = np.empty_like(source_ND), np.empty(source_ND.shape[0], np.float32)
    _attend(
        source_ND, query_ND, *edge_WED, np.ascontiguousarray(attention_HD).ravel(), heads, edge_index, status_E,
        _F(limit), out, reached,
    )  # fmt: skip
    return out, reached


@numba.njit(cache=True, error_model="numpy")
def _attend(  # type: ignore[no-untyped-def]
    source, query, along, against, attention, heads, edge_index, status, limit, out, reached
):  # pragma: no cover - compiled
    n, d = source.shape
    branches, part = edge_index.shape[1], d // heads
    first, order = by_destination(np.concatenate((edge_index[1], edge_index[0])), n)
    acc, message, weight = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(heads, np.float32)
    none, top, slope = splat(_F(0.0)), splat(limit), splat(_F(0.2))
    for i in range(n):
        acc[:] = _F(0.0)
        weight[:] = _F(0.0)
        for k in range(first[i], first[i + 1]):
            forward = order[k] < branches
            e = order[k] if forward else order[k] - branches
            if status[e] == _F(0.0):
                continue
            s = (edge_index[0, e] if forward else edge_index[1, e]) * d
            for h in range(heads):
                logit = none
                for j in range(h * part, (h + 1) * part, WIDTH):
                    m = load(source, s + j) + (load(along, e * d + j) if forward else load(against, e * d + j))
                    store(message, j, m)
                    q = m + load(query, i * d + j)
                    logit = logit + choose(none, q, q, q * slope) * load(attention, j)
                alpha = exp8(lowest(highest(splat(total(logit)), none - top), top)) * splat(status[e])
                weight[h] += _first(alpha)
                for j in range(h * part, (h + 1) * part, WIDTH):
                    store(acc, j, load(acc, j) + load(message, j) * alpha)
        reached[i] = _F(1.0) if weight[0] > _F(0.0) else _F(0.0)
        for h in range(heads):
            share = splat(_F(1.0) / max(weight[h], _TINY))
            for j in range(h * part, (h + 1) * part, WIDTH):
                store(out, i * d + j, gelu8(load(acc, j) * share))


@numba.njit(inline="always")
def _first(lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Any of eight equal lanes."""
    return total(lanes) * _F(1 / WIDTH)


def neighbour_mean(h_ND: F32, src_M: I64, dst_M: I64, weight_M: F32) -> F32:
    """Weighted mean [N, D] of the neighbours of each node, 0 without one."""
    out = np.empty_like(h_ND)
    _neighbour_mean(h_ND, src_M, dst_M, weight_M, out)
    return out


@numba.njit(cache=True, error_model="numpy")
def _neighbour_mean(h, src, dst, weight, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n, d = h.shape
    first, order = by_destination(dst, n)
    acc = np.empty(d, np.float32)
    for i in range(n):
        acc[:] = _F(0.0)
        sum_ = _F(0.0)
        for k in range(first[i], first[i + 1]):
            w, s = weight[order[k]], src[order[k]] * d
            sum_ += w
            for j in range(0, d, WIDTH):
                store(acc, j, load(acc, j) + load(h, s + j) * splat(w))
        share = splat(_F(1.0) / max(sum_, _TINY))
        for j in range(0, d, WIDTH):
            store(out, i * d + j, load(acc, j) * share)


def group_mean(values_MD: F32, index_M: I64, groups: int, weight_M: F32 | None = None) -> F32:
    """Mean of the rows of each group [G, D], with weights > 0 where given; 0 for an empty one."""
    out = np.zeros((groups, values_MD.shape[1]), np.float32)
    _group_mean(values_MD, index_M, np.ones(index_M.size, np.float32) if weight_M is None else weight_M, out)
    return out


@numba.njit(cache=True, error_model="numpy")
def _group_mean(values, index, weight, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    d = values.shape[1]
    sums = np.zeros(out.shape[0], np.float32)
    for i in range(values.shape[0]):
        g, w = index[i], splat(weight[i])
        sums[g] += weight[i]
        for j in range(0, d, WIDTH):
            store(out, g * d + j, load(out, g * d + j) + load(values, i * d + j) * w)
    for g in range(out.shape[0]):
        share = splat(_F(1.0) / max(sums[g], _TINY))
        for j in range(0, d, WIDTH):
            store(out, g * d + j, load(out, g * d + j) * share)


def settled(h_ND: F32 | None, change_ND: F32, other_ND: F32 | None, scale_N: F32 | None, norm: Norm) -> F32:
    """LayerNorm of a state and its change [N, D].

    h_ND None: gelu of change alone.  other_ND: gelu of change and other together.  scale_N: change times scale.
    """
    out = np.empty_like(change_ND)
    gamma, beta, eps = norm
    none, one = np.empty((0, 0), np.float32), np.empty(0, np.float32)
    _settle(
        none if h_ND is None else h_ND, change_ND, none if other_ND is None else other_ND,
        one if scale_N is None else scale_N, gamma, beta, _F(eps), out,
    )  # fmt: skip
    return out


@numba.njit(cache=True, error_model="numpy")
def _settle(h, change, other, scale, gamma, beta, eps, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    n, d = change.shape
    row, none = np.empty(d, np.float32), splat(_F(0.0))
    part = _F(1.0 / d)
    for i in range(n):
        place, sums = i * d, none
        for j in range(0, d, WIDTH):
            v = load(change, place + j)
            if other.size:
                v = v + load(other, place + j)
            v = v * spread(scale, i) if scale.size else gelu8(v)
            if h.size:
                v = v + load(h, place + j)
            store(row, j, v)
            sums = sums + v
        mean, squares = splat(total(sums) * part), none
        for j in range(0, d, WIDTH):
            v = load(row, j) - mean
            store(row, j, v)
            squares = squares + v * v
        norm = splat(_F(1.0) / np.sqrt(total(squares) * part + eps))
        for j in range(0, d, WIDTH):
            store(out, place + j, load(row, j) * norm * load(gamma, j) + load(beta, j))


def branch_states(own_ED: F32, ends_ND2: F32, edge_index: I64, head_D: F32, bias: float) -> tuple[F32, F32]:
    """gelu of a branch's own part and those of its two ends [E, D], and their product with the head [E].

    ends_ND2  [N, 2 D]: what a bus gives as the from end, then as the to end
    """
    out, logit = np.empty_like(own_ED), np.empty(own_ED.shape[0], np.float32)
    _branch_states(own_ED, ends_ND2, edge_index, np.ascontiguousarray(head_D), _F(bias), out, logit)
    return out, logit


@numba.njit(cache=True, error_model="numpy")
def _branch_states(own, ends, edge_index, head, bias, out, logit):  # type: ignore[no-untyped-def]  # pragma: no cover
    d = own.shape[1]
    for e in range(own.shape[0]):
        start, stop = 2 * d * edge_index[0, e], 2 * d * edge_index[1, e] + d
        sums = splat(_F(0.0))
        for j in range(0, d, WIDTH):
            v = gelu8(load(own, e * d + j) + load(ends, start + j) + load(ends, stop + j))
            store(out, e * d + j, v)
            sums = sums + v * load(head, j)
        logit[e] = total(sums) + bias


def branch_physics(phys_E6: F32, xhat_N2: F32, edge_index: I64) -> F32:
    """Declared model of each branch and the drop of its estimated state [E, 8], as model.Verifier joins them."""
    out = np.empty((phys_E6.shape[0], WIDTH), np.float32)
    _branch_physics(phys_E6, xhat_N2, edge_index, out)
    return out


@numba.njit(cache=True, error_model="numpy")
def _branch_physics(phys, xhat, edge_index, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    raw = np.zeros(WIDTH, np.float32)
    for e in range(phys.shape[0]):
        start, stop = edge_index[0, e], edge_index[1, e]
        raw[0], raw[1], raw[2] = _F(20.0) * phys[e, 0], _F(20.0) * phys[e, 1], phys[e, 2]
        raw[6] = _F(10.0) * (xhat[start, 0] - xhat[stop, 0])
        raw[7] = _F(10.0) * (xhat[start, 1] - xhat[stop, 1])
        store(out, e * WIDTH, _asinh(load(raw, 0)))
        out[e, 3] = _F(10.0) * (phys[e, 3] - _F(1.0))
        out[e, 4], out[e, 5] = phys[e, 4], phys[e, 5]


@numba.njit(inline="always")
def _asinh(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Inverse hyperbolic sine; log(1 + w) with the rounding of 1 + w put right, so that small values stay exact."""
    one, a = splat(_F(1.0)), size(x)
    w = a + a * a / (one + root(one + a * a))
    y = one + w
    value = log8(y) + (w - (y - one)) / y
    return choose(splat(_F(0.0)), x, value, splat(_F(0.0)) - value)
