"""Incidents over consecutive windows, offline: the same grouping that the live path will use.

Flow:    windows_io, registry -> score (Judged) -> [alarms] -> Incident records
Source:  verifier.md, sections 7 and 8; calibration.incidents, calibration.reasons
Shapes:  B windows, N buses
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gg_ray.calibration.budget import Threshold, threshold_for
from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.incidents import DEDUP_NS, Grouper, Incident, Sighting
from gg_ray.calibration.reasons import reasons
from gg_ray.evaluate.verdicts import Calibration
from gg_ray.grid.cases import load_case
from gg_ray.records import CANNOT_TELL
from gg_ray.score import TOP, Judged
from gg_ray.verifier.model import Verifier
from gg_ray.windows_io import WindowFileError


def budget_threshold(calibration: Calibration, case: str, incidents_per_day: float) -> Threshold:
    """The threshold of implausible windows that keeps the benign days of a grid within a budget.

    Raises: CalibrationError for a grid whose benign days the model does not know, or a budget that they cannot tell.
    """
    levels = calibration.levels.get(case)
    if levels is None:
        known = ", ".join(sorted(calibration.levels)) or "none"
        raise CalibrationError(
            f"no benign days of {case} are kept with this model (days of: {known}), so no budget can be kept; leave"
            " --budget out, or train with timelines of this grid (evaluate.suite quick) and register it"
        )
    return threshold_for(levels, incidents_per_day)


def incidents_of(network: Verifier, judged: Iterable[Judged]) -> list[Incident]:
    """Incidents of judged windows, by grid and time. Windows without a verdict neither begin, extend nor end one.

    Raises: WindowFileError for two windows of a grid that end at the same time.
    """
    by_case: dict[str, list[Judged]] = {}
    for one in judged:
        by_case.setdefault(one.verdict.case, []).append(one)
    return [incident for case, own in by_case.items() for incident in _of_grid(network, case, own)]


def _of_grid(network: Verifier, case: str, judged: Sequence[Judged]) -> list[Incident]:
    grid = load_case(case)
    ordered = sorted(judged, key=lambda one: one.verdict.time_ns)
    times = np.array([one.verdict.time_ns for one in ordered], dtype=np.int64)
    twice = np.flatnonzero(np.diff(times) == 0)
    if twice.size:
        raise WindowFileError(
            f"{case}: two windows end at {times[twice[0]]} ns; incidents need one window per time, so score each record"
            " by itself"
        )
    gap_ns = max(DEDUP_NS, int(max(one.window.step_s for one in ordered) * 1e9))
    grouper = Grouper(case, grid.bus_names, np.stack([grid.f_bus, grid.t_bus]), gap_ns)
    out = []
    for one in ordered:
        if one.verdict.verdict != CANNOT_TELL:
            out += grouper.update(one.verdict.time_ns, _sighting(network, one), one.window.status_TE[-1])
    return sorted([*out, *grouper.open], key=lambda incident: (incident.first_ns, incident.id))


def _sighting(network: Verifier, one: Judged) -> Sighting | None:
    """What a flagged window adds, None for a normal one."""
    told = one.verdict
    if told.verdict == "normal" or one.prepared is None or one.features is None or told.p_value is None:
        return None
    suspect = np.flatnonzero(one.node_N > 0) if told.verdict == "implausible" else np.zeros(0, dtype=np.int64)
    top = suspect[np.argsort(-one.node_N[suspect], kind="stable")][:TOP].tolist()
    back_ns = 0 if told.onset_scan < 0 else (one.window.z_TM.shape[0] - 1 - told.onset_scan) * one.window.step_s * 1e9
    return Sighting(
        time_ns=told.time_ns, onset_ns=told.time_ns - int(back_ns), verdict=told.verdict, type=told.type,
        score=one.score, p_value=told.p_value, places={int(i): float(one.node_N[i]) for i in suspect},
        reasons=reasons(network, one.prepared, one.features, one.row, top), corrected=told.corrected,
    )  # fmt: skip
