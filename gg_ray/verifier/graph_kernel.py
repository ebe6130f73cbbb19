"""Message passing and read-out as compiled passes over nodes: no array per message is ever made.

Flow:    gat, unet, model -> [graph_kernel] -> the same, with dense products by oneDNN in between
Source:  gat.py, unet.py and model.py say what is computed and are the oracle of the tests (equal to 1e-5)
Shapes:  N nodes, M directed messages, E branches, D = widths that are multiples of WIDTH, H heads, G groups

Inference on a CPU alone (gat.fused). A node's messages come one after the other (counting sort by destination), so
what they add up to stays in cache and is normalised and activated before it is written.
"""

from __future__ import annotations

import numba
import numpy as np

from gg_ray.records import F32, I64
from gg_ray.verifier.simd import (
    WIDTH,
    choose,
    exp8,
    gelu8,
    highest,
    load,
    log8,
    lowest,
    root,
    size,
    splat,
    spread,
    store,
    total,
)  # fmt: skip

_F = np.float32
_TINY = _F(1e-12)


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
    states_N2D: F32, edge_E2D: F32, attention_HD: F32, edge_index: I64, status_E: F32, limit: float
) -> tuple[F32, F32]:
    """gelu of each node's attention mean over its branches [N, D], and 1 where it has one in service [N].

    Args:    states_N2D  what a node gives as a source, then as a query;  edge_E2D  attributes of branches, projected
             for messages along, then against them;  limit  of the logits
    """
    n, d = states_N2D.shape[0], states_N2D.shape[1] // 2
    heads = attention_HD.shape[0]
    out, reached = np.empty((n, d), np.float32), np.empty(n, np.float32)
    first, order = by_destination(np.concatenate((edge_index[1], edge_index[0])), n)
    alpha = np.empty((order.size, -(-heads // WIDTH) * WIDTH), np.float32)
    _logits(states_N2D, edge_E2D, np.ascontiguousarray(attention_HD).ravel(), heads, edge_index, alpha)
    _attend(states_N2D, edge_E2D, heads, edge_index, status_E, _F(limit), first, order, alpha, out, reached)
    return out, reached


@numba.njit(cache=True, error_model="numpy")
def _logits(states, edges, attention, heads, edge_index, alpha):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Attention logits of every message before any is summed: nothing waits for an exponential."""
    d, branches, width = edges.shape[1] // 2, edge_index.shape[1], alpha.shape[1]
    part, slope, none = d // heads, splat(_F(0.2)), splat(_F(0.0))
    for e in range(branches):
        u, v = 2 * d * edge_index[0, e], 2 * d * edge_index[1, e]
        for h in range(heads):
            along = against = none
            for j in range(h * part, (h + 1) * part, WIDTH):
                a = load(attention, j)
                x = load(states, u + j) + load(edges, 2 * d * e + j) + load(states, v + d + j)
                y = load(states, v + j) + load(edges, 2 * d * e + d + j) + load(states, u + d + j)
                # a leaky step is the larger of both as its slope is below 1
                along, against = along + highest(x, x * slope) * a, against + highest(y, y * slope) * a
            alpha[e, h] = total(along)
            alpha[branches + e, h] = total(against)
        for h in range(heads, width):
            alpha[e, h] = alpha[branches + e, h] = _F(0.0)


@numba.njit(cache=True, error_model="numpy")
def _attend(  # type: ignore[no-untyped-def]
    states, edges, heads, edge_index, status, limit, first, order, alpha, out, reached
):  # pragma: no cover - compiled
    n, d = out.shape
    branches, part, width = edge_index.shape[1], d // heads, alpha.shape[1]
    acc, weight = np.empty(d, np.float32), np.empty(width, np.float32)
    none, top = splat(_F(0.0)), splat(limit)
    for m in range(alpha.shape[0]):
        alive = splat(status[m if m < branches else m - branches])
        for h in range(0, width, WIDTH):
            a = exp8(lowest(highest(load(alpha, m * width + h), none - top), top)) * alive
            store(alpha, m * width + h, a)
    for i in range(n):
        acc[:] = _F(0.0)
        weight[:] = _F(0.0)
        for k in range(first[i], first[i + 1]):
            m = order[k]
            if m < branches:
                source, edge = 2 * d * edge_index[0, m], 2 * d * m
            else:
                source, edge = 2 * d * edge_index[1, m - branches], 2 * d * (m - branches) + d
            for h in range(0, width, WIDTH):
                store(weight, h, load(weight, h) + load(alpha, m * width + h))
            for h in range(heads):
                a = spread(alpha, m * width + h)
                for j in range(h * part, (h + 1) * part, WIDTH):
                    store(acc, j, load(acc, j) + (load(states, source + j) + load(edges, edge + j)) * a)
        reached[i] = _F(1.0) if weight[0] > _F(0.0) else _F(0.0)
        for h in range(heads):
            share = splat(_F(1.0) / max(weight[h], _TINY))
            for j in range(h * part, (h + 1) * part, WIDTH):
                store(out, i * d + j, gelu8(load(acc, j) * share))


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


def lifted(h_MD: F32, up_GD: F32, index_M: I64) -> F32:
    """Rows plus what their group hands down [M, D]."""
    out = np.empty_like(h_MD)
    _lifted(h_MD, up_GD, index_M, out)
    return out


@numba.njit(cache=True, error_model="numpy")
def _lifted(h, up, index, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    d = h.shape[1]
    for i in range(h.shape[0]):
        for j in range(0, d, WIDTH):
            store(out, i * d + j, load(h, i * d + j) + load(up, index[i] * d + j))


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


def group_max(values_MD: F32, index_M: I64, groups: int) -> F32:
    """Column maxima of the rows of each group [G, D], 0 for an empty one."""
    out = np.full((groups, values_MD.shape[1]), -np.inf, np.float32)
    _group_max(values_MD, index_M, out)
    return out


@numba.njit(cache=True, error_model="numpy")
def _group_max(values, index, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    d = values.shape[1]
    met = np.zeros(out.shape[0], np.bool_)
    for i in range(values.shape[0]):
        g = index[i]
        met[g] = True
        for j in range(0, d, WIDTH):
            store(out, g * d + j, highest(load(out, g * d + j), load(values, i * d + j)))
    for g in range(out.shape[0]):
        if not met[g]:
            out[g] = _F(0.0)


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
