"""Forward pass of the Verifier at grid size, beside a loop of PyTorch Geometric Temporal's TGCN.

Flow:    synthetic grid -> GraphBatch -> verifier.model, pyg_temporal -> [bench.verifier] -> gg-ray bench verifier
Source:  verifier.md 5.1 (method: one thread, CPU time, minimum over repeats), random weights and inputs
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gg_ray.config import VerifierConfig
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC, CaseStatic, GraphBatch, from_arrays
from gg_ray.verifier.gat import both_ways
from gg_ray.verifier.model import Verifier
from gg_ray.verifier.pyg_temporal import installed, load_tgcn

BRANCHES_PER_BUS = 1.3
BUSES_PER_SUBSTATION = 4
SUBSTATIONS_PER_REGION = 100
_REPEATS = 7
_TGCN_REPEATS = 2


def run(buses: int = 10_000, scans: int = 48, seed: int = 0) -> dict[str, Any]:
    """Time one forward pass of one window.

    Args:    buses, scans  size of the window;  seed  of the synthetic grid and the weights
    Returns: cpu_ms and wall_ms of the Verifier; tgcn_loop_cpu_ms of `scans` TGCN steps on the same node features and
             ratio_to_tgcn, both None where PyTorch Geometric Temporal is not installed; parameters, buses, branches.
    """
    rng = np.random.default_rng(seed)
    batch = synthetic_batch(buses, scans, rng)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            model = Verifier(VerifierConfig()).eval()
            cpu_ms, wall_ms = _fastest(lambda: model(batch), _REPEATS)
            tgcn_ms = _tgcn_loop(batch) if installed() else None
    finally:
        torch.set_num_threads(threads)
    return {
        "cpu_ms": cpu_ms,
        "wall_ms": wall_ms,
        "tgcn_loop_cpu_ms": tgcn_ms,
        "ratio_to_tgcn": None if tgcn_ms is None else tgcn_ms / cpu_ms,
        "parameters": sum(p.numel() for p in model.parameters()),
        "buses": buses,
        "branches": int(batch.edge_index.shape[1]),
        "scans": scans,
    }


def synthetic_batch(buses: int, scans: int, rng: np.random.Generator) -> GraphBatch:
    """One random window on a random connected grid whose bus numbers are local to their neighbours."""
    branches = int(BRANCHES_PER_BUS * buses)
    child = np.arange(1, buses)
    tree = np.stack((child - rng.integers(1, np.minimum(child, 20) + 1), child))
    start = rng.integers(0, buses - 1, branches - buses + 1)
    chords = np.stack((start, np.minimum(start + rng.integers(1, 50, start.size), buses - 1)))
    edge_index = np.concatenate((tree, chords), axis=1)
    edge_index = edge_index[:, np.lexsort(edge_index)]
    substation = np.arange(buses) // BUSES_PER_SUBSTATION
    region = np.arange(substation[-1] + 1) // SUBSTATIONS_PER_REGION
    phys = np.tile(np.array([0.01, 0.1, 0.02, 1.0, 0.0, 1.0], np.float32), (branches, 1))
    static = CaseStatic(
        node_static=rng.standard_normal((buses, F_NODE_STATIC), np.float32),
        edge_static=rng.standard_normal((branches, F_EDGE_STATIC), np.float32),
        edge_index=edge_index,
        substation=substation,
        region=region,
        n_regions=int(region[-1]) + 1,
        edge_phys_base=phys,
        node_shunt=np.zeros((buses, 2), np.float32),
    )
    declared = np.ones((1, branches, 3), np.float32)
    return from_arrays(
        static,
        node_BTNF=_readings(rng, (1, scans, buses, F_NODE)),
        edge_BTEF=_readings(rng, (1, scans, branches, F_EDGE)),
        xhat_BN2=0.01 * rng.standard_normal((1, buses, 2), np.float32),
        meas_BN2=np.zeros((1, buses, 2), np.float32),
        sigma_BN2=np.ones((1, buses, 2), np.float32),
        param_BE3=declared,
    )


def _readings(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit normals; every fifth column is a fresh mask, 0 to 1, as verifier.batch defines it."""
    out = rng.standard_normal(shape, np.float32)
    masks = out[..., 4:20:5]
    masks[...] = rng.random(masks.shape, np.float32)
    return out


def _tgcn_loop(batch: GraphBatch) -> float:
    """CPU ms of one TGCN call per scan, hidden 64, state carried."""
    cell = load_tgcn()(F_NODE, VerifierConfig().hidden).eval()
    directed = torch.stack(both_ways(batch.edge_index))
    weight = batch.edge_phys[:, 5].repeat(2)
    scans_TNF = batch.x.transpose(0, 1).contiguous()

    def loop() -> Tensor | None:
        state: Tensor | None = None
        for x_NF in scans_TNF:
            state = cell(x_NF, directed, weight, state)
        return state

    return _fastest(loop, _TGCN_REPEATS)[0]


def _fastest(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Smallest CPU and wall time over repeats, ms, after one call to warm up."""
    call()
    cpu, wall = [], []
    for _ in range(repeats):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        call()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return 1e3 * min(cpu), 1e3 * min(wall)
