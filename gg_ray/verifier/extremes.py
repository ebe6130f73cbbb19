"""Extremes of the fixed statistics: the loudest meter of each bus, and how surprising the loudest of a grid is.

Flow:    verifier.evidence (statistics per bus and branch) -> [extremes] -> verifier.model (bus head, graph head)
Source:  scan statistics (Naus 1965), Bonferroni's correction, Gaussian tail by Boerjesson and Sundberg 1979 (eq. 13,
         error below 0.3 %); chi-square per degree of freedom; docs/adr/0021-extremes.md
Shapes:  B graphs, Nt buses, Et branches, S = 14 statistics per channel

A maximum over 10,000 meters of noise is larger than one over 100, so a network that reads maxima learns the size of its
training grids. The chance of the maximum does not depend on it: -log(count * positions * 2 Q(z)) is the same verdict on
every grid, under every metering plan and for every window length.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from gg_ray.verifier.evidence import EVIDENCE, SPANS, unlevel
from gg_ray.verifier.gat import fused, plain, sum_by

STATISTICS = EVIDENCE // 4
"""Statistics per channel, in the order of verifier.evidence; the first len(SPANS) are the largest sums of each span."""
SURPRISE = 2 * len(SPANS) + 1 + 3
"""Columns of `surprise`: each span over buses and over branches, the largest of them, three chi-squares."""
BEST = 2 * len(SPANS)
"""Column of the largest surprise."""
_LAST_4, _LAST_8, _WHOLE = len(SPANS), len(SPANS) + 1, len(SPANS) - 1
_CALM, _KNEE, _UNIT = -4.0, 12.0, 3.0
"""Nats: surprise is not counted below, grows logarithmically from here on, and is divided by this for the network."""
_GROSS = 12.0
"""Sigmas of a sum that one meter may add to a chi-square: the loudest has columns of its own."""
_EXTREME = 30.0
"""Sigmas beyond which a chance is not told apart: their square would rule a float32 sum."""


def bus_extremes(node_proof: Tensor, edge_proof: Tensor, edge_index: Tensor) -> Tensor:
    """[Nt, S] largest size of each statistic over the meters that stand at a bus: its own and those of branch ends.

    Args: node_proof [Nt, EVIDENCE] channels v p q va;  edge_proof [Et, EVIDENCE] channels pf qf pt qt
          edge_index [2, Et]
    """
    if fused(node_proof, 0):
        own_NS = np.empty((node_proof.shape[0], STATISTICS), np.float32)
        _bus_extremes(plain(node_proof), plain(edge_proof), plain(edge_index), own_NS)
        return torch.from_numpy(own_NS)
    own = node_proof.abs().reshape(-1, STATISTICS, 4).amax(dim=2)
    ends = edge_proof.abs().reshape(-1, STATISTICS, 2, 2).amax(dim=3)
    at_ends = torch.cat((ends[:, :, 0], ends[:, :, 1]))
    place = edge_index.reshape(-1)[:, None].expand_as(at_ends)
    return own.scatter_reduce(0, place, at_ends, "amax", include_self=True)


def standing(extremes: Tensor, edge_index: Tensor, status: Tensor) -> Tensor:
    """[Nt, 2S] extremes of a bus, and how far they lie below the largest among it and its neighbours.

    A gross error smears into the residuals of its neighbourhood, where its own meter stays the largest (Schweppe 1970).

    Args: extremes [Nt, S];  edge_index [2, Et];  status [Et] 0 where a branch is out of service
    """
    if fused(extremes, 0):
        out_N2S = np.empty((extremes.shape[0], 2 * extremes.shape[1]), np.float32)
        _standing(plain(extremes), plain(edge_index), plain(status), out_N2S)
        return torch.from_numpy(out_N2S)
    start, stop = edge_index
    heard = torch.cat((extremes[stop], extremes[start])) * status.repeat(2)[:, None]
    place = torch.cat((start, stop))[:, None].expand_as(heard)
    around = extremes.scatter_reduce(0, place, heard, "amax", include_self=True)
    return torch.cat((extremes, extremes - around), dim=1)


def surprise(
    node_proof: Tensor, edge_proof: Tensor, node_top: Tensor, edge_top: Tensor, graph: Tensor, edge_graph: Tensor,
    scans: Tensor,
) -> Tensor:  # fmt: skip
    """[B, SURPRISE] how unlikely the loudest and the sum of all residuals are on clean data; about 0 there.

    Args: node_proof [Nt, EVIDENCE], edge_proof [Et, EVIDENCE];  node_top, edge_top [B, EVIDENCE] their maxima
          graph [Nt], edge_graph [Et];  scans [] window length
    """
    size = node_top.shape[0]
    width = torch.tensor(SPANS, dtype=node_top.dtype, device=node_top.device)
    places = (scans.to(node_top.dtype) / width).clamp(min=1.0)
    tails, energies, heard = [], [], []
    for proof, top, index in ((node_proof, node_top, graph), (edge_proof, edge_top, edge_graph)):
        by_channel = proof.reshape(-1, STATISTICS, 4)
        count = sum_by((by_channel[:, 0] > 0).to(proof.dtype).sum(dim=1, keepdim=True), index, size)
        loudest = unlevel(top.reshape(-1, STATISTICS, 4)[:, : len(SPANS)].amax(dim=2))
        tails.append(_log_chance(loudest) - torch.log(count.clamp(min=1.0)) - torch.log(places))
        sums = by_channel[:, [_WHOLE, _LAST_8, _LAST_4]].abs()
        energies.append(sum_by(unlevel(sums).clamp(max=_GROSS).square().sum(dim=2), index, size))
        heard.append(count)
    tail = torch.cat(tails, dim=1)
    tail = torch.cat((tail, tail.amax(dim=1, keepdim=True)), dim=1)
    tail = torch.where(tail < _KNEE, tail, _KNEE + torch.log((tail - _KNEE + 1.0).clamp(min=1.0)))
    meters = (heard[0] + heard[1]).clamp(min=1.0)
    chi = torch.asinh((energies[0] + energies[1] - meters) / (2.0 * meters).sqrt())
    return torch.cat((tail.clamp(min=_CALM) / _UNIT, chi), dim=1)


def _log_chance(z: Tensor) -> Tensor:
    """-log of the chance that a unit normal is at least as far from zero as z >= 0."""
    z = z.clamp(max=_EXTREME)
    return 0.5 * z.square() + torch.log(0.661 * z + 0.339 * (z.square() + 5.51).sqrt()) + 0.5 * math.log(math.pi / 2)


# --- inference on a CPU, as verifier.graph_kernel -----------------------------------------------------------------


@numba.njit(cache=True, error_model="numpy")
def _bus_extremes(node, edge, edge_index, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in range(out.shape[0]):
        for s in range(out.shape[1]):
            best = abs(node[i, 4 * s])
            for c in range(1, 4):
                best = max(best, abs(node[i, 4 * s + c]))
            out[i, s] = best
    for e in range(edge.shape[0]):
        start, stop = edge_index[0, e], edge_index[1, e]
        for s in range(out.shape[1]):
            out[start, s] = max(out[start, s], abs(edge[e, 4 * s]), abs(edge[e, 4 * s + 1]))
            out[stop, s] = max(out[stop, s], abs(edge[e, 4 * s + 2]), abs(edge[e, 4 * s + 3]))


@numba.njit(cache=True, error_model="numpy")
def _standing(extremes, edge_index, status, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n, d = extremes.shape
    for i in range(n):  # assigned one by one: numba compiles text of error messages for whole slices, for seconds
        for s in range(d):
            out[i, s] = out[i, d + s] = extremes[i, s]
    for e in range(edge_index.shape[1]):
        start, stop, alive = edge_index[0, e], edge_index[1, e], status[e]
        for s in range(d):
            out[start, d + s] = max(out[start, d + s], alive * extremes[stop, s])
            out[stop, d + s] = max(out[stop, d + s], alive * extremes[start, s])
    for i in range(n):
        for s in range(d):
            out[i, d + s] = extremes[i, s] - out[i, d + s]
