"""Large grids in pieces: each group of regions is judged with a halo of neighbours, so memory stays that of a piece.

Flow:    GraphBatch of one window -> [regions] -> VerifierOutput of the whole; verifier.model judges each piece
Source:  design.md 4 (full batch to 10,000 buses); verifier.md 5.3 (no cluster loader: partition by region ourselves)
Shapes:  N buses, E branches, R regions

What the pieces change. A flat layer hears one branch further, so node and edge states after the flat layers equal those
of the full pass wherever the halo is at least as deep as there are layers, and so they do with graph `sage`, whose
layers are all flat. The U-Net does not have a bounded reach: its substations are whole (a halo takes whole
substations), but a region at the rim is pooled from the part of it in the piece, and the region level of a piece ends
at the piece. Far context therefore differs from the full pass; the test says by how much. Graph verdicts are those of
the piece that is most suspicious, since an attention pool cannot be put together from pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from gg_ray.records import I64, Bool
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.model import Summary, Verifier, VerifierOutput

FULL_BATCH = 10_000
"""Up to this many buses a window is judged in one pass."""
PIECE = 8_000
"""Buses of its own that a piece has at most; a region that is larger stays whole."""
HALO = 4
"""Branches that a piece reaches beyond its own buses: two flat layers, the bus layer of the U-Net, and one to spare."""
_NODE = ("x", "node_static", "xhat", "meas", "sigma", "jac", "node_shunt", "graph", "substation")
_EDGE = ("e", "edge_static", "edge_phys", "edge_graph")


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions in the whole batch; `own` and `own_edge` say which rows of the piece it answers for."""

    node: I64
    edge: I64
    own: Bool
    own_edge: Bool


def partition(batch: GraphBatch, piece: int = PIECE, halo: int = HALO) -> list[Piece]:
    """Pieces of neighbouring regions with their halo; every bus and branch is answered for by exactly one.

    Args:    batch  one window;  piece  buses a piece owns at most;  halo  branches it hears beyond them
    """
    substation, region = batch.substation.numpy(), batch.region.numpy()
    start, stop = batch.edge_index.numpy()
    region_of_bus = region[substation]
    group = _groups(
        np.bincount(region_of_bus, minlength=batch.region_graph.shape[0]), region_of_bus, start, stop, piece
    )
    owner = group[region_of_bus]
    out = []
    for number in range(int(group.max()) + 1):
        own = owner == number
        inside = own.copy()
        for _ in range(halo):
            touched = inside[start] | inside[stop]
            inside[start[touched]] = True
            inside[stop[touched]] = True
        # a substation is one site: pooled whole or not at all
        inside = np.isin(substation, np.unique(substation[inside]))
        node = np.flatnonzero(inside)
        edge = np.flatnonzero(inside[start] & inside[stop])
        out.append(Piece(node, edge, own[node], own[start[edge]]))
    return out


def cut(batch: GraphBatch, piece: Piece) -> GraphBatch:
    """The window of one piece, its buses, substations and regions numbered from zero; labels are left out."""
    node, edge = torch.from_numpy(piece.node), torch.from_numpy(piece.edge)
    place = torch.full((batch.x.shape[0],), -1)
    place[node] = torch.arange(node.shape[0])
    rows = {name: getattr(batch, name).index_select(0, node) for name in _NODE}
    ends = {name: getattr(batch, name).index_select(0, edge) for name in _EDGE}
    sites, rows["substation"] = torch.unique(rows["substation"], return_inverse=True)
    regions, region = torch.unique(batch.region[sites], return_inverse=True)
    return GraphBatch(
        **rows, **ends, edge_index=place[batch.edge_index[:, edge]], region=region,
        region_graph=batch.region_graph[regions], n_graphs=1,
    )  # fmt: skip


@torch.inference_mode()
def judge(
    network: Callable[[GraphBatch], VerifierOutput], batch: GraphBatch, full: int = FULL_BATCH, piece: int = PIECE,
    halo: int = HALO,
) -> VerifierOutput:  # fmt: skip
    """One window in one pass up to `full` buses, in pieces beyond.

    Raises: ValueError for more than one window that is too large for one pass.
    """
    n = batch.x.shape[0]
    if n <= full:
        return network(batch)
    if batch.n_graphs != 1:
        raise ValueError(f"{batch.n_graphs} windows of {n} buses together: above {full} give one window at a time")
    pieces = partition(batch, piece, halo)
    made = list(zip(pieces, _each(network, batch, pieces), strict=True))
    loudest = max((out for _, out in made), key=lambda out: float(out.implausible[0]))
    whole: dict[str, Tensor] = {}
    for item in fields(VerifierOutput):
        first: Tensor = getattr(loudest, item.name)
        if item.name in ("node", "state_mu", "state_logvar", "edge"):
            size = batch.e.shape[0] if item.name == "edge" else n
            whole[item.name] = first.new_empty((size, *first.shape[1:]))
            for part, out in made:
                rows, own = (part.edge, part.own_edge) if item.name == "edge" else (part.node, part.own)
                whole[item.name][torch.from_numpy(rows[own])] = getattr(out, item.name)[torch.from_numpy(own)]
        else:
            whole[item.name] = first
    whole["disturbance"] = torch.stack([out.disturbance for _, out in made]).amax(dim=0)
    return VerifierOutput(**whole)


def _each(
    network: Callable[[GraphBatch], VerifierOutput], batch: GraphBatch, pieces: list[Piece]
) -> Iterator[VerifierOutput]:
    """Outputs of the pieces. What the rows of a Verifier say by themselves is made once, and windows are not copied."""
    if not isinstance(network, Verifier):
        for part in pieces:
            yield network(cut(batch, part))
        return
    summary = network.summarise(batch)
    last = replace(batch, x=batch.x[:, -1:], e=batch.e[:, -1:])
    for part in pieces:
        node, edge = torch.from_numpy(part.node), torch.from_numpy(part.edge)
        own = Summary(
            node=summary.node[node], edge=summary.edge[edge], node_proof=summary.node_proof[node],
            edge_proof=summary.edge_proof[edge], scans=summary.scans,
        )  # fmt: skip
        yield network.judge(cut(last, part), own)


def _groups(size_R: I64, region_N: I64, start: I64, stop: I64, piece: int) -> I64:
    """Group of each region: regions are gathered breadth first, so that a piece is one area with a short rim."""
    regions = size_R.size
    a, b = region_N[start], region_N[stop]
    pairs = np.unique(
        np.stack([np.concatenate([a, b]), np.concatenate([b, a])])[:, np.concatenate([a != b] * 2)], axis=1
    )
    first = np.searchsorted(pairs[0], np.arange(regions + 1))
    group, number, filled = np.full(regions, -1), 0, 0
    queue: list[int] = []
    for seed in range(regions):
        queue.append(seed)
        while queue:
            region = queue.pop(0)
            if group[region] >= 0:
                continue
            if filled and filled + size_R[region] > piece:
                number, filled, queue = number + 1, 0, []
            group[region] = number
            filled += int(size_R[region])
            queue += pairs[1, first[region] : first[region + 1]].tolist()
    return group
