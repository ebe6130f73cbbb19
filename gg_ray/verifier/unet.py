"""Fixed U-Net over the grid's own hierarchy: bus -> substation -> region and back.

Flow:    gat -> [unet] -> model
Source:  verifier.md 5.2-5.3: pooling by place, not by score (TopK pooling breaks a grid into thousands of islands)
Shapes:  N buses, S substations, R regions, D hidden, C coarse undirected edges

Two flat layers see two branches far; a message that climbs to the region and back crosses the whole grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gg_ray.verifier import graph_kernel
from gg_ray.verifier.gat import Dense, SageLayer, both_ways, fused, mean_by, plain, sum_by


def coarsen(edge_index: Tensor, status: Tensor, cluster: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Edges between clusters, each pair once; edges inside a cluster vanish.

    Args:    edge_index [2, E];  status [E] 1 in service;  cluster [N] in 0..size-1
    Returns: coarse edges [2, C] with lower index first, and their status [C]: 1 if any member is in service.
    """
    a, b = cluster[edge_index]
    key = torch.minimum(a, b) * size + torch.maximum(a, b)
    outside = a != b
    unique, member = torch.unique(key[outside], return_inverse=True)
    alive = sum_by(status[outside], member, unique.shape[0]).clamp(max=1.0)
    return torch.stack((unique // size, unique % size)), alive


def _lifted(h_MD: Tensor, up_GD: Tensor, index_M: Tensor) -> Tensor:
    """Rows plus what their group hands down."""
    if fused(h_MD, h_MD.shape[1]):
        return torch.from_numpy(graph_kernel.lifted(plain(h_MD), plain(up_GD), plain(index_M)))
    return h_MD + up_GD.index_select(0, index_M)


class Coarse(NamedTuple):
    """Edges between substations [2, C] and between regions [2, C'], each pair once, with their status [C], [C']."""

    edges_S: Tensor
    status_S: Tensor
    edges_R: Tensor
    status_R: Tensor


def hierarchy(edge_index: Tensor, status_E: Tensor, substation_N: Tensor, region_S: Tensor, n_regions: int) -> Coarse:
    """Both coarse levels. Their sizes depend on the data, so this stays outside compiled and exported graphs."""
    edges_S, status_S = coarsen(edge_index, status_E, substation_N, region_S.shape[0])
    return Coarse(edges_S, status_S, *coarsen(edges_S, status_S, region_S, n_regions))


class FixedUNet(nn.Module):
    """Mean pooling by place, one SAGE layer per level down and up, skip connections on the way up.

    Invariant: graphs of a batch do not mix, because no substation, region or branch is shared between them.
    """

    def __init__(self, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.substation_down = SageLayer(hidden, dropout)
        self.region = SageLayer(hidden, dropout)
        self.region_up = Dense(hidden, hidden)
        self.substation_up = SageLayer(hidden, dropout)
        self.bus_up = Dense(hidden, hidden)
        self.bus = SageLayer(hidden, dropout)

    def forward(
        self,
        h_ND: Tensor,
        edge_index: Tensor,
        status_E: Tensor,
        substation_N: Tensor,
        region_S: Tensor,
        n_regions: int,
        coarse: Coarse | None = None,
    ) -> Tensor:
        """Args: h_ND bus states and the hierarchy of GraphBatch; coarse  its levels where the caller has made them.

        Returns: [N, D] bus states with wide context.
        """
        n_substations = region_S.shape[0]
        if coarse is None:
            coarse = hierarchy(edge_index, status_E, substation_N, region_S, n_regions)
        ways_S, ways_R = both_ways(coarse.edges_S), both_ways(coarse.edges_R)
        alive_S, alive_R = coarse.status_S.repeat(2), coarse.status_R.repeat(2)

        h_SD = self.substation_down(mean_by(h_ND, substation_N, n_substations), *ways_S, alive_S)
        h_RD = self.region(mean_by(h_SD, region_S, n_regions), *ways_R, alive_R)
        h_SD = self.substation_up(_lifted(h_SD, self.region_up(h_RD), region_S), *ways_S, alive_S)
        lifted_ND = _lifted(h_ND, self.bus_up(h_SD), substation_N)
        out: Tensor = self.bus(lifted_ND, *both_ways(edge_index), status_E.repeat(2))
        return out
