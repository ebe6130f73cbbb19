"""Bus -> substation -> region: the fixed pooling tree of the U-Net and of the operator's map.

Flow:    grid.cleaning -> [hierarchy] -> GridCase.substation, GridCase.region -> verifier.unet
Source:  substation = buses joined by transformers (one site); region = METIS partition of the substation graph
Shapes:  N buses, S substations
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from gg_ray.grid.cases import GridCase
from gg_ray.records import F64, I64

BUSES_PER_REGION = 40
MAX_REGIONS = 200
_MAX_SITE = 12


def substations_of(case: GridCase) -> I64:
    """[N] substation of each bus: sites joined by transformers, split again where a chain grows past 12 buses.

    A case without transformers gets one substation per bus pair of strongest admittance, so that pooling still pools.
    """
    n = case.n_bus
    joins = case.transformer | (case.vn_kv[case.f_bus] != case.vn_kv[case.t_bus])
    f, t = case.f_bus[joins], case.t_bus[joins]
    _, site = connected_components(sp.coo_matrix((np.ones(f.size), (f, t)), shape=(n, n)), directed=False)
    sizes = np.bincount(site)
    too_big = sizes[site] > _MAX_SITE
    if too_big.any():
        site = np.where(too_big, site.max() + 1 + np.arange(n), site)
    _, site = np.unique(site, return_inverse=True)
    if site.max() + 1 > 0.6 * n:
        site = _pair_up(case, site.astype(np.int64))
    return np.asarray(site, dtype=np.int64)


def _pair_up(case: GridCase, site: I64) -> I64:
    """Greedy heavy-edge matching on |y| (METIS coarsening): merges single sites pairwise, strongest branch first."""
    y = 1.0 / np.hypot(case.r, case.x)
    taken = np.zeros(site.max() + 1, dtype=bool)
    label = np.arange(site.max() + 1)
    for e in np.argsort(-y, kind="stable"):
        a, b = site[case.f_bus[e]], site[case.t_bus[e]]
        if a != b and not taken[a] and not taken[b]:
            taken[a] = taken[b] = True
            label[b] = a
    _, dense = np.unique(label[site], return_inverse=True)
    return np.asarray(dense, dtype=np.int64)


def regions_of(case: GridCase, substation: I64) -> I64:
    """[S] region of each substation: METIS k-way, about 40 buses each, at most 200 regions; deterministic.

    Each region is one connected piece: without METIS's `contig`, 73 % of the regions of `gb` fall apart.
    """
    import pymetis

    s = int(substation.max()) + 1
    k = int(np.clip(round(case.n_bus / BUSES_PER_REGION), 1, MAX_REGIONS))
    if k == 1:
        return np.zeros(s, dtype=np.int64)
    a, b = substation[case.f_bus], substation[case.t_bus]
    keep = a != b
    graph = sp.coo_matrix((np.ones(int(keep.sum())), (a[keep], b[keep])), shape=(s, s)).tocsr()
    graph = (graph + graph.T).tocsr()
    graph.sort_indices()
    adjacency = pymetis.CSRAdjacency(graph.indptr.tolist(), graph.indices.tolist())
    _, part = pymetis.part_graph(k, adjacency, recursive=False, options=pymetis.Options(contig=1))
    _, dense = np.unique(np.asarray(part), return_inverse=True)
    return np.asarray(dense, dtype=np.int64)


def spring_layout(case: GridCase) -> F64:
    """[N, 2] drawing positions for a case without any: spectral above 500 buses, force-directed below; seeded."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(case.n_bus))
    graph.add_edges_from(zip(case.f_bus.tolist(), case.t_bus.tolist(), strict=True))
    if case.n_bus > 500:
        positions = nx.random_layout(graph, seed=0) if case.n_bus > 5_000 else nx.spectral_layout(graph)
    else:
        positions = nx.spring_layout(graph, seed=0, iterations=200)
    return np.array([positions[i] for i in range(case.n_bus)], dtype=np.float64)


def hop_distance(case: GridCase, sources: I64) -> I64:
    """[N] hops from the nearest source bus (breadth first); unreachable buses get N."""
    n = case.n_bus
    graph = sp.coo_matrix((np.ones(case.n_branch), (case.f_bus, case.t_bus)), shape=(n, n)).tocsr()
    graph = (graph + graph.T).tocsr()
    out = np.full(n, n, dtype=np.int64)
    front = np.unique(sources)
    out[front] = 0
    hops = 0
    while front.size:
        hops += 1
        reached = np.unique(graph[front].indices)
        front = reached[out[reached] == n]
        out[front] = hops
    return out
