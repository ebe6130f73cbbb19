"""Why a window was flagged: parts of the score, the meters that contradict the model, what neighbouring flows say,
when.

Flow:    verifier.features (Prepared, Features), verifier.model -> [reasons] -> score, incidents
Source:  verifier.md, section 8: by construction first (exact and free), then occlusion; Zeiler and Fergus 2014
Shapes:  T scans, N buses, M installed meters, P patches of the encoder

Parts are what the logit loses when one kind of evidence is blanked and the window is scored again, all in one batch.
They do not add up to the score: evidence overlaps. Meters, flows and residuals are read from the estimation and cost
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gg_ray.grid import balance
from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.records import BRANCH_CHANNELS, BUS_CHANNELS, I64
from gg_ray.verifier.batch import from_arrays
from gg_ray.verifier.features import Features, Prepared, case_static
from gg_ray.verifier.model import Verifier

TOP_METERS = 5
_CHANNELS, _PER_CHANNEL = 4, 5
_ZETA, _RESIDUAL, _DELTA = 1, 2, 3


def reasons(
    network: Verifier, prepared: Prepared, features: Features, row: int, buses: Sequence[int]
) -> dict[str, Any]:
    """Reasons for the score of one window.

    Args:    row  which window;  buses  suspected ones, whose neighbouring flows are asked
    Returns: parts {residual, neighbour, time}: logits; patch [first, last] scans whose blanking costs most;
             meters [[name, largest normalised residual, scan]]; flows [[bus, MW read, MW by flows, sigmas apart]]
    """
    parts, patch = _occlusion(network, prepared.case.name, features, row)
    return {
        "parts": parts, "patch": patch, "meters": largest_residuals(prepared, row),
        "flows": [] if prepared.case.name == balance.NAME else neighbouring_flows(prepared, row, buses),
    }  # fmt: skip


@torch.inference_mode()
def _occlusion(network: Verifier, case: str, features: Features, row: int) -> tuple[dict[str, float], list[int]]:
    """What the logit loses without residuals, without what branches say, without each patch of scans."""
    node, edge = features.node_BTNF[row], features.edge_BTEF[row]
    scans, step = node.shape[0], network.config.patch
    starts = range(0, scans, step)
    copies = 3 + len(starts)
    nodes, edges = np.repeat(node[None], copies, axis=0), np.repeat(edge[None], copies, axis=0)
    columns = np.arange(_CHANNELS) * _PER_CHANNEL
    nodes[1][..., columns + _RESIDUAL] = edges[1][..., columns + _RESIDUAL] = 0.0
    edges[2][..., : _CHANNELS * _PER_CHANNEL] = 0.0
    moving = np.concatenate([columns + _ZETA, columns + _RESIDUAL, columns + _DELTA])
    for k, start in enumerate(starts, start=3):
        for array in (nodes, edges):
            array[k, start : start + step][..., moving] = 0.0
    same = {
        name: np.repeat(getattr(features, name)[row][None], copies, axis=0)
        for name in ("xhat_BN2", "meas_BN2", "sigma_BN2", "param_BE3", "jac_BNJ")
    }
    out = network(from_arrays(case_static(case), node_BTNF=nodes, edge_BTEF=edges, **same)).implausible.double().numpy()
    lost = out[0] - out[1:]
    worst = int(np.argmax(lost[2:]))
    parts = {"residual": lost[0], "neighbour": lost[1], "time": lost[2 + worst]}
    return {name: round(float(value), 3) for name, value in parts.items()}, [worst * step, (worst + 1) * step - 1]


def largest_residuals(prepared: Prepared, row: int) -> list[list[Any]]:
    """Up to five meters with the largest |normalised residual| of any scan: name, residual with its sign, scan."""
    r_TM = prepared.r_BTM[row]
    scan_M = np.abs(r_TM).argmax(axis=0)
    value_M = r_TM[scan_M, np.arange(r_TM.shape[1])]
    names = meter_names(prepared.case, prepared.plan)
    top = np.argsort(-np.abs(value_M), kind="stable")[:TOP_METERS]
    return [[names[m], round(float(value_M[m]), 2), int(scan_M[m])] for m in top if value_M[m] != 0.0]


def meter_names(case: GridCase, plan: MeterPlan) -> list[str]:
    """Names of the installed meters: 'v of BUS', 'pf of FROM-TO'."""
    named = [f"{channel} of {bus}" for channel in BUS_CHANNELS for bus in case.bus_names]
    named += [f"{channel} of {branch}" for channel in BRANCH_CHANNELS for branch in case.branch_names]
    return [named[i] for i in plan.channels.tolist()]


def neighbouring_flows(prepared: Prepared, row: int, buses: Sequence[int]) -> list[list[Any]]:
    """What the branches at each suspected bus say of its injection, where it has a P meter that reported.

    At the last scan with a reading: MW read, MW that metered flows (estimated ones where there is no meter) and the
    shunt add up to, and how many standard deviations of the readings lie between.
    """
    case, plan, n = prepared.case, prepared.plan, prepared.case.n_bus
    out: list[list[Any]] = []
    for bus in buses:
        meter = int(plan.index_of[n + bus])
        heard = (
            np.flatnonzero(np.isfinite(prepared.z_BTM[row, :, meter])) if meter >= 0 else np.zeros(0, dtype=np.int64)
        )
        if not heard.size:
            continue
        scan = int(heard[-1])
        state = measure(case, prepared.v_BTN[row, [scan]], status_RE=_status(prepared, row, scan))[0]
        channels = _ends(case, bus)
        index = plan.index_of[channels]
        read = np.where(index >= 0, prepared.z_BTM[row, scan, index], np.nan)
        flow = np.where(np.isfinite(read), read, state[channels])
        variance = float(plan.sigma[meter] ** 2 + (plan.sigma[index][np.isfinite(read)] ** 2).sum())
        own = float(prepared.z_BTM[row, scan, meter])
        implied = float(flow.sum() + case.gs[bus] * np.abs(prepared.v_BTN[row, scan, bus]) ** 2)
        mva = case.base_mva
        apart = (own - implied) / np.sqrt(variance)
        out.append([case.bus_names[bus], round(own * mva, 2), round(implied * mva, 2), round(float(apart), 2)])
    return out


def _status(prepared: Prepared, row: int, scan: int) -> Any:
    return prepared.windows[row].status_TE[[scan]].astype(bool)


def _ends(case: GridCase, bus: int) -> I64:
    """Layout positions of the P flows that leave a bus."""
    start = 4 * case.n_bus
    at_from, at_to = np.flatnonzero(case.f_bus == bus), np.flatnonzero(case.t_bus == bus)
    return np.concatenate([start + at_from, start + 2 * case.n_branch + at_to]).astype(np.int64)
