"""Experiences or bare arrays into one big graph for the network.

Flow:    replay, serve -> [batch] -> model, losses
Source:  disjoint union of graphs with offset indices, the usual batching of graph networks; selfplay.md section 10
Shapes:  B graphs, T scans, Nt buses and Et branches of all graphs, S substations, R regions, P twin pairs
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gg_ray.grid.jacobian import F_JAC
from gg_ray.records import Experience

F_NODE = 20
"""Per bus and scan: value, zeta, residual, delta and fresh mask of each of v, p, q, va."""
F_EDGE = 21
"""Per branch and scan: the same five features of pf, qf, pt, qt, then the declared status."""
F_NODE_STATIC = 8
F_EDGE_STATIC = 8


class BatchError(ValueError):
    """Windows that cannot share a batch; the message names the window, the value and the way out."""


@dataclass(kw_only=True)
class CaseStatic:
    """What never changes about a grid, per bus and branch; arrays are converted and checked once, here.

    Invariant: every index lies inside its range, so a batch can be assembled by adding offsets alone.
    """

    node_static: NDArray[np.floating[Any]]
    """[N, F_NODE_STATIC]"""
    edge_static: NDArray[np.floating[Any]]
    """[E, F_EDGE_STATIC]"""
    edge_index: NDArray[np.integer[Any]]
    """[2, E] from and to bus of each branch, each branch once"""
    substation: NDArray[np.integer[Any]]
    """[N] substation of each bus, 0..S-1"""
    region: NDArray[np.integer[Any]]
    """[S] region of each substation, 0..n_regions-1"""
    n_regions: int
    edge_phys_base: NDArray[np.floating[Any]]
    """[E, 6] published r, x, b, tap, shift, status (p.u., rad)"""
    node_shunt: NDArray[np.floating[Any]]
    """[N, 2] gs, bs (p.u. at 1 p.u. voltage)"""

    def __post_init__(self) -> None:
        for name in ("node_static", "edge_static", "edge_phys_base", "node_shunt"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float32))
        for name in ("edge_index", "substation", "region"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))
        n, e, s = self.node_static.shape[0], self.edge_static.shape[0], self.region.shape[0]
        want = {
            "node_static": (n, F_NODE_STATIC),
            "edge_static": (e, F_EDGE_STATIC),
            "edge_index": (2, e),
            "substation": (n,),
            "region": (s,),
            "edge_phys_base": (e, 6),
            "node_shunt": (n, 2),
        }
        for name, shape in want.items():
            have = getattr(self, name).shape
            if have != shape:
                raise BatchError(f"CaseStatic.{name}: shape {have}, need {shape} for {n} buses and {e} branches")
        for name, limit in (("edge_index", n), ("substation", s), ("region", self.n_regions)):
            index = getattr(self, name)
            if index.size and (index.min() < 0 or index.max() >= limit):
                raise BatchError(f"CaseStatic.{name}: values {index.min()}..{index.max()}, need 0..{limit - 1}")

    @property
    def n_buses(self) -> int:
        return int(self.node_static.shape[0])

    @property
    def n_branches(self) -> int:
        return int(self.edge_static.shape[0])


@dataclass(kw_only=True)
class GraphBatch:
    """Several windows as one disconnected graph; graph g is window g of the input.

    Invariant: no branch, substation or region crosses from one graph to another; T is the same for all.
    """

    x: Tensor
    """f32 [Nt, T, F_NODE]"""
    e: Tensor
    """f32 [Et, T, F_EDGE]"""
    node_static: Tensor
    edge_static: Tensor
    xhat: Tensor
    """f32 [Nt, 2] estimated |V| - 1 (p.u.) and angle (rad) at the last scan"""
    meas: Tensor
    """f32 [Nt, 2] P and Q injection readings of the last scan (p.u.)"""
    sigma: Tensor
    """f32 [Nt, 2] their standard deviation, inf where absent"""
    edge_phys: Tensor
    """f32 [Et, 6] r, x (declared), b, tap (declared), shift, status (declared); p.u. and rad"""
    node_shunt: Tensor
    """f32 [Nt, 2] gs, bs"""
    jac: Tensor
    """f32 [Nt, F_JAC] Jacobian block of the last scan (grid.jacobian.COLUMNS); [Nt, 0] for networks without it"""
    edge_index: Tensor
    """i64 [2, Et]"""
    graph: Tensor
    """i64 [Nt]"""
    edge_graph: Tensor
    """i64 [Et]"""
    substation: Tensor
    """i64 [Nt], 0..S-1 over the batch"""
    region: Tensor
    """i64 [S], 0..R-1 over the batch"""
    region_graph: Tensor
    """i64 [R]"""
    n_graphs: int
    y_impl: Tensor | None = None
    y_dist: Tensor | None = None
    severity: Tensor | None = None
    y_type: Tensor | None = None
    y_node: Tensor | None = None
    y_edge: Tensor | None = None
    state: Tensor | None = None
    """f32 [Nt, 2] true |V| - 1 and angle at the last scan"""
    pairs: Tensor | None = None
    """i64 [2, P] anomalous graph, its benign twin"""
    weight: Tensor | None = None
    """f32 [B] importance weights"""
    pair_d: Tensor | None = None
    """f32 [P] detectability d_eff of the anomaly of each pair"""

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch with every tensor on device (tensors already there are shared, not copied)."""
        moved: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            moved[item.name] = value.to(device) if isinstance(value, Tensor) else value
        return GraphBatch(**moved)


def collate(
    items: Sequence[Experience],
    statics: Mapping[str, CaseStatic],
    *,
    weights: ArrayLike | None = None,
    labelled: bool = True,
) -> GraphBatch:
    """Experiences of any mix of grids as one batch; graph g is items[g].

    Args:    items    windows with the same number of scans;  statics  static arrays per case name
             weights  [B] importance weights, ones when absent;  labelled  False leaves every label None
    Returns: GraphBatch on the CPU, float32.
    Raises:  BatchError for no windows, different T, an unknown case, or arrays that do not fit the case.
    """
    cases = [_static(statics, item.case) for item in items]
    batch = _assemble(
        cases,
        [item.node_TNF for item in items],
        [item.edge_TEF for item in items],
        [item.xhat_N2 for item in items],
        [item.meas_N2 for item in items],
        [item.sigma_N2 for item in items],
        [item.param_E3 for item in items],
        [item.jac_NJ for item in items],
    )
    if not labelled:
        return batch
    labels = [item.labels for item in items]
    weight = np.ones(len(items), np.float32) if weights is None else np.asarray(weights, np.float32)
    if weight.shape != (len(items),):
        raise BatchError(f"weights: shape {weight.shape}, need ({len(items)},): one per window")
    batch.y_impl = _f32([label.implausible for label in labels])
    batch.y_dist = _f32([label.disturbance for label in labels])
    batch.severity = _f32([label.severity for label in labels])
    batch.y_type = torch.tensor([label.type for label in labels], dtype=torch.int64)
    concerned = [label.buses(np.asarray(case.edge_index)) for label, case in zip(labels, cases, strict=True)]
    batch.y_node = _f32(np.concatenate(concerned))
    batch.y_edge = _f32(np.concatenate([label.edge_E for label in labels]))
    batch.state = _f32(np.concatenate([item.state_N2 for item in items]))
    batch.pairs = _pairs(items)
    batch.pair_d = torch.tensor([items[i].d_eff for i in batch.pairs[0].tolist()], dtype=torch.float32)
    batch.weight = torch.from_numpy(weight.copy())
    return batch


def from_arrays(
    static: CaseStatic,
    *,
    node_BTNF: ArrayLike,
    edge_BTEF: ArrayLike,
    xhat_BN2: ArrayLike,
    meas_BN2: ArrayLike,
    sigma_BN2: ArrayLike,
    param_BE3: ArrayLike,
    jac_BNJ: ArrayLike | None = None,
) -> GraphBatch:
    """Unlabelled windows of one grid as a batch: the path of scoring and serving.

    Args:    as the Experience fields of the same names with a leading batch axis; any float type; jac_BNJ None: none
    Raises:  BatchError if an array does not fit the grid.
    """
    node, edge = np.asarray(node_BTNF), np.asarray(edge_BTEF)
    if jac_BNJ is None:
        jac_BNJ = np.zeros((len(node), static.n_buses, 0), np.float32)
    rest = [list(np.asarray(a)) for a in (xhat_BN2, meas_BN2, sigma_BN2, param_BE3, jac_BNJ)]
    return _assemble([static] * len(node), list(node), list(edge), *rest)


def _static(statics: Mapping[str, CaseStatic], case: str) -> CaseStatic:
    if case not in statics:
        raise BatchError(f"case {case!r} has no static arrays; known: {', '.join(sorted(statics)) or 'none'}")
    return statics[case]


def _f32(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _assemble(
    cases: Sequence[CaseStatic],
    node: Sequence[NDArray[Any]],
    edge: Sequence[NDArray[Any]],
    xhat: Sequence[NDArray[Any]],
    meas: Sequence[NDArray[Any]],
    sigma: Sequence[NDArray[Any]],
    param: Sequence[NDArray[Any]],
    jac: Sequence[NDArray[Any]],
) -> GraphBatch:
    if not cases:
        raise BatchError("a batch needs at least one window")
    lengths = sorted({int(a.shape[0]) for a in node} | {int(a.shape[0]) for a in edge})
    if len(lengths) != 1:
        raise BatchError(f"windows of {lengths} scans cannot share a batch; group windows by length first")
    scans = lengths[0]
    columns = F_JAC if jac[0].shape[-1] else 0
    for i, case in enumerate(cases):
        n, e = case.n_buses, case.n_branches
        for name, array, shape in (
            ("node features", node[i], (scans, n, F_NODE)),
            ("edge features", edge[i], (scans, e, F_EDGE)),
            ("xhat", xhat[i], (n, 2)),
            ("meas", meas[i], (n, 2)),
            ("sigma", sigma[i], (n, 2)),
            ("param", param[i], (e, 3)),
            ("Jacobian block", jac[i], (n, columns)),
        ):
            if array.shape != shape:
                raise BatchError(f"window {i}: {name} of shape {array.shape}, need {shape} for its grid")
    n_B = np.array([c.n_buses for c in cases])
    e_B = np.array([c.n_branches for c in cases])
    s_B = np.array([c.region.shape[0] for c in cases])
    r_B = np.array([c.n_regions for c in cases])
    graphs = np.arange(len(cases))
    offset_n, offset_s, offset_r = (np.cumsum(a) - a for a in (n_B, s_B, r_B))
    param_E3 = np.concatenate(param).astype(np.float32)
    phys_E6 = np.concatenate([c.edge_phys_base for c in cases])
    phys_E6[:, :3] *= param_E3[:, 2:]  # a declared length: r, x and b together
    phys_E6[:, 3] = param_E3[:, 1]
    phys_E6[:, 5] = param_E3[:, 0]
    edge_index = np.concatenate([c.edge_index for c in cases], axis=1) + np.repeat(offset_n, e_B)
    return GraphBatch(
        x=_bus_major(node, n_B, scans, F_NODE),
        e=_bus_major(edge, e_B, scans, F_EDGE),
        node_static=_f32(np.concatenate([c.node_static for c in cases])),
        edge_static=_f32(np.concatenate([c.edge_static for c in cases])),
        xhat=_f32(np.concatenate(xhat)),
        meas=_f32(np.concatenate(meas)),
        sigma=_f32(np.concatenate(sigma)),
        edge_phys=torch.from_numpy(phys_E6),
        node_shunt=_f32(np.concatenate([c.node_shunt for c in cases])),
        jac=_f32(np.concatenate(jac)),
        edge_index=torch.from_numpy(edge_index),
        graph=torch.from_numpy(np.repeat(graphs, n_B)),
        edge_graph=torch.from_numpy(np.repeat(graphs, e_B)),
        substation=torch.from_numpy(np.concatenate([c.substation for c in cases]) + np.repeat(offset_s, n_B)),
        region=torch.from_numpy(np.concatenate([c.region for c in cases]) + np.repeat(offset_r, s_B)),
        region_graph=torch.from_numpy(np.repeat(graphs, r_B)),
        n_graphs=len(cases),
    )


def _bus_major(windows: Sequence[NDArray[Any]], counts: NDArray[np.int64], scans: int, features: int) -> Tensor:
    """[T, n, F] windows of any float type into one float32 [sum n, T, F].

    Transposed as they are and cast by torch in one piece: numpy casts half precision element by element.
    """
    out = np.empty((int(counts.sum()), scans, features), np.result_type(*{window.dtype for window in windows}))
    stop = 0
    for window, count in zip(windows, counts, strict=True):
        start, stop = stop, stop + int(count)
        out[start:stop] = window.transpose(1, 0, 2)
    return torch.from_numpy(out).float()


def _pairs(items: Sequence[Experience]) -> Tensor:
    """[2, P] anomalous window and its twin; a pair drawn twice gives two columns, half a pair none."""
    sides: defaultdict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for graph, item in enumerate(items):
        if item.pair >= 0:
            sides[item.pair][0 if item.labels.implausible else 1].append(graph)
    columns = [column for anomalous, twins in sides.values() for column in zip(anomalous, twins, strict=False)]
    return torch.tensor(columns, dtype=torch.int64).reshape(-1, 2).T.contiguous()
