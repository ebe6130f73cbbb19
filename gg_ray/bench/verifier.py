"""The Verifier at grid size as users run it: windows, exported, scan by scan; beside a loop of PyG-Temporal's TGCN.

Flow:    synthetic grid -> GraphBatch -> verifier.regions, exported, stream_rows -> [bench.verifier] -> gg-ray bench
         a case and simulated scans -> verifier.stream, score.verdict_of -> tick_p99_ms
Source:  verifier.md 5.1 (method: one thread, CPU time, minimum over repeats), random weights and inputs
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gg_ray.config import ScenarioConfig, VerifierConfig
from gg_ray.evaluate.verdicts import Calibration
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import PMU_SHARE, draw_plan, measure
from gg_ray.score import verdict_of
from gg_ray.verifier import regions
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC, CaseStatic, GraphBatch, from_arrays
from gg_ray.verifier.evidence_kernel import CHANNELS
from gg_ray.verifier.exported import Exported, ExportError, export
from gg_ray.verifier.gat import both_ways
from gg_ray.verifier.model import Summary, Verifier
from gg_ray.verifier.pyg_temporal import installed, load_tgcn
from gg_ray.verifier.stream import Scan, Stream
from gg_ray.verifier.stream_rows import Rows
from gg_ray.verifier.temporal import PatchEncoder
from gg_ray.verifier.unet import hierarchy

BRANCHES_PER_BUS = 1.3
BUSES_PER_SUBSTATION = 4
SUBSTATIONS_PER_REGION = 100
_REPEATS = 7
_TGCN_REPEATS = 2


HUNDRED_K = 100_000
STEP_S = 60.0
_TICKS = 40


def run(
    buses: int = 10_000, scans: int = 48, seed: int = 0, case: str | None = None, compiled: bool = True,
    hundred_k: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Time one window of a synthetic grid, whole and scan by scan, and on a named case the way from scan to verdict.

    Args:    buses, scans  size of the window;  seed  of the synthetic grid and the weights
             case  grid of tick_p50_ms and tick_p99_ms, and of jacobian_cpu_ms;  compiled  export and time that as well
             hundred_k  time 100,000 buses too (2 GiB)
    Returns: cpu_ms and wall_ms of the pass behind gg-ray score, with the mean metering of the default scenario.kappa;
             all_metered_cpu_ms with a meter at every channel; compiled_cpu_ms of the exported model;
             stream_tick_cpu_ms of a tick without estimation; tgcn_loop_cpu_ms of `scans` TGCN steps on the same
             node features and the ratios to it; None for what was not asked for or not installed.
    """
    rng = np.random.default_rng(seed)
    kappa = float(np.mean(ScenarioConfig().kappa))
    batch = synthetic_batch(buses, scans, rng, kappa)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Verifier(VerifierConfig()).eval()
        with torch.inference_mode():
            cpu_ms, wall_ms = _fastest(lambda: regions.judge(model, batch), _REPEATS)
            full = synthetic_batch(buses, scans, np.random.default_rng(seed))
            full_ms = _fastest(lambda: regions.judge(model, full), _REPEATS)[0]
            compiled_ms = _compiled(model, batch) if compiled else None
            tick_ms = _fastest(_stream_tick(model, batch), _REPEATS)[0]
            tgcn_ms = _tgcn_loop(batch) if installed() else None
            ticks = None if case is None else _ticks(model, case, seed)
            large = synthetic_batch(HUNDRED_K, scans, rng, kappa) if hundred_k else None
            large_ms = None if large is None else _fastest(lambda: regions.judge(model, large), 2)[0]
    finally:
        torch.set_num_threads(threads)
    return {
        "cpu_ms": cpu_ms,
        "wall_ms": wall_ms,
        "all_metered_cpu_ms": full_ms,
        "compiled_cpu_ms": compiled_ms,
        "stream_tick_cpu_ms": tick_ms,
        "tgcn_loop_cpu_ms": tgcn_ms,
        "ratio_to_tgcn": None if tgcn_ms is None else tgcn_ms / cpu_ms,
        "compiled_ratio_to_tgcn": None if tgcn_ms is None or compiled_ms is None else tgcn_ms / compiled_ms,
        "stream_ratio_to_tgcn": None if tgcn_ms is None else tgcn_ms / tick_ms,
        "hundred_k_cpu_ms": large_ms,
        "tick_p50_ms": None if ticks is None else float(np.median(ticks)),
        "tick_p99_ms": None if ticks is None else float(np.quantile(ticks, 0.99)),
        "jacobian_cpu_ms": _jacobian_ms(case),
        "parameters": sum(p.numel() for p in model.parameters()),
        "case": case,
        "buses": buses,
        "branches": int(batch.edge_index.shape[1]),
        "scans": scans,
        "kappa": kappa,
    }


def _jacobian_ms(case: str | None) -> float | None:
    """CPU ms of the Jacobian block, from its own benchmark where the program has one."""
    if case is None or importlib.util.find_spec("gg_ray.bench.jacobian") is None:
        return None
    return float(importlib.import_module("gg_ray.bench.jacobian").jacobian_cpu_ms(case=case))


def _compiled(model: Verifier, batch: GraphBatch) -> float | None:
    """CPU ms of the exported model, None without the packages of the extra `export`."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        try:
            export(model, Path(folder) / "verifier.onnx", {})
            exported = Exported(Path(folder) / "verifier.onnx")
        except ExportError:
            return None
    with torch.inference_mode():
        return _fastest(lambda: exported(batch), _REPEATS)[0]


def _stream_tick(model: Verifier, batch: GraphBatch) -> Callable[[], object]:
    """A tick of verifier.stream on the arrays of a window, its estimation and features left out."""
    rng = np.random.default_rng(0)
    rows = []
    for encoder, x_nTF in ((model.node_encoder, batch.x), (model.edge_encoder, batch.e)):
        assert isinstance(encoder, PatchEncoder)
        raw = x_nTF.numpy().transpose(1, 0, 2).astype(np.float16)
        filled = rng.standard_normal((*raw.shape[:2], CHANNELS))
        meters = np.asarray(raw[..., : 5 * CHANNELS].reshape(*raw.shape[:2], CHANNELS, 5).any(axis=(0, 3)))
        filled[:, ~meters] = np.nan
        held = Rows(encoder, raw, filled, rng.random(filled.shape) > 0.01, np.ones(filled.shape[1:]), meters)
        rows.append((held, raw, filled))
    coarse = hierarchy(
        batch.edge_index, batch.edge_phys[:, 5], batch.substation, batch.region, batch.region_graph.shape[0]
    )  # fmt: skip
    present = [rng.random(filled.shape) > 0.01 for _, _, filled in rows]
    ticks = iter(range(1 << 30))

    def tick() -> object:
        t = next(ticks) % batch.x.shape[1]
        made = []
        for (held, raw, filled), own in zip(rows, present, strict=True):
            held.push(raw[t], filled[t], own[t])
            made.append(held.summary())
        (node, node_proof, _), (edge, edge_proof, _) = made
        scans = torch.tensor(float(batch.x.shape[1]))
        summary = Summary(node=node, edge=edge, node_proof=node_proof, edge_proof=edge_proof, scans=scans)
        return model.judge(batch, summary, coarse)

    return tick


def _ticks(model: Verifier, name: str, seed: int) -> list[float]:
    """CPU ms of each of _TICKS ticks on a case: a scan in, its places and verdict out. Noise about the base state."""
    case, rng = load_case(name), np.random.default_rng(seed)
    plan = draw_plan(case, 0, (0.6, 0.9), 0.01)
    truth = measure(case, case.v0[None])[0][plan.channels]
    stream, out = Stream(model, plan, STEP_S, 16), []
    calibration = Calibration(np.zeros(1), -np.inf, np.inf)
    for t in range(17 + _TICKS):
        z = truth + plan.sigma * rng.standard_normal(plan.size)
        z[rng.random(plan.size) < plan.missing_rate] = np.nan
        scan = Scan(
            time_ns=int(t * STEP_S * 1e9), z_M=z, age_M=np.zeros(plan.size, np.uint8),
            status_E=np.ones(case.n_branch, np.uint8), tap_E=case.tap, x_scale_E=np.ones(case.n_branch),
        )  # fmt: skip
        start = time.process_time()
        judged = stream.tick(scan)
        if judged is not None:  # the thresholds make it an incident: places, onset and corrected values are found
            verdict_of(judged, calibration, case, plan, stream.residuals, scan.time_ns, "bench")
        out.append(1e3 * (time.process_time() - start))
    return out[17:]


def synthetic_batch(buses: int, scans: int, rng: np.random.Generator, kappa: float | None = None) -> GraphBatch:
    """One random window on a random connected grid whose bus numbers are local to their neighbours.

    Args:    kappa  metered share of buses and branch ends, drawn as grid.meters.draw_plan does; None: every channel
    """
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
        node_BTNF=_readings(rng, (1, scans, buses, F_NODE), kappa, ((3, 1.0), (1, PMU_SHARE))),
        edge_BTEF=_readings(rng, (1, scans, branches, F_EDGE), kappa, ((2, 1.0), (2, 1.0))),
        xhat_BN2=0.01 * rng.standard_normal((1, buses, 2), np.float32),
        meas_BN2=np.zeros((1, buses, 2), np.float32),
        sigma_BN2=np.ones((1, buses, 2), np.float32),
        param_BE3=declared,
    )


def _readings(
    rng: np.random.Generator, shape: tuple[int, ...], kappa: float | None, meters: Sequence[tuple[int, float]]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit normals; every fifth column is a fresh mask, 0 to 1, as verifier.batch defines it.

    Args:    meters  channels that one meter reads, in order, and how many of the metered places have it
    """
    out = rng.standard_normal(shape, np.float32)
    masks = out[..., 4:20:5]
    masks[...] = rng.random(masks.shape, np.float32)
    first = 0
    for channels, share in meters if kappa is not None else ():
        bare = np.flatnonzero(rng.random(shape[2]) >= share * (kappa or 0.0))
        out[:, :, bare, 5 * first : 5 * (first + channels)] = 0.0
        first += channels
    if shape[-1] == F_EDGE:
        out[..., -1] = 1.0  # declared in service
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
