"""Reality at five minutes and at 15 seconds: dead and scrambled FUELINST publications, 9 August 2019, June 2026.

Flow:    evaluate.real_gb -> [real_fine] -> notes, rows, series for figures
Source:  docs/gb-data.md (real events in the files)
Shapes:  S scans, T scans of a window

Thresholds: FUELINST from 1-14 March 2022, FREQ from 22 June 2026, the most that no window of those days exceeds: too
short for a budget of one incident a month, so false incidents are counted and not promised.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gg_ray.calibration.budget import dedup_scans
from gg_ray.elexon.history import History, read_any, sample
from gg_ray.elexon.scans import from_columns
from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.evaluate import metrics
from gg_ray.evaluate.rolling import Series, roll
from gg_ray.evaluate.scoring import Method
from gg_ray.grid import balance as b
from gg_ray.records import F64, TYPES
from gg_ray.scenario.balance_record import BalanceRecord
from gg_ray.scenario.balance_windows import readings, streams_of

FIVE_MINUTE_PLAN, FREQUENCY_PLAN = 1_001, 1_003
FAULT_NS = int(np.datetime64("2019-08-09T15:52:33.490", "ns").astype(np.int64))
_DAY = 288
_EVENTS = (
    ("2022-03-17T10:35", "2022-03-17T11:50", "all fuels zero"),
    ("2022-03-30T09:20", "2022-03-30T09:25", "fuels scrambled, total kept"),
    ("2024-06-04T12:35", "2024-06-04T13:10", "everything zero"),
)
_LEAST_FREQUENCY = 2
"""Band in which the operator keeps frequency: within it, an alarm is false; outside, it is what an operator wants."""
_FREQ_GAP = 20
"""Samples between alarms of one incident: five minutes."""


def five_minutes(method: Method, folder: Path, record: BalanceRecord, scans: int) -> list[str]:
    """What a method makes of the two months of FUELINST.  Returns: lines of text; none where the files are missing."""
    paths = [folder / "elexon_fuelinst_5min" / f"fuelinst_{month}.parquet" for month in ("2022-03", "2024-06")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        return [f"FUELINST not scored: {', '.join(missing)} not in the data folder"]
    found = [_month(method, path, record, scans) for path in paths]
    march, june = found
    calm = march.score[(march.t0_ns < _ns("2022-03-15T00:00")) & np.isfinite(march.score)]
    if not calm.size:
        return ["FUELINST not scored: 1-14 March 2022 holds no window"]
    limit = float(calm.max())
    lines = [
        f"FUELINST threshold {limit:.2f}: the most of 1-14 March 2022, {calm.size} windows; demand is given in neither"
        " month (the folder has none of 2022), so both laws are silent and moves alone tell"
    ]
    for first, end, name in _EVENTS:
        series = march if first < "2023" else june
        rows = np.flatnonzero((series.t0_ns >= _ns(first)) & (series.t0_ns < _ns(end)))
        hit = rows[series.score[rows] > limit]
        if hit.size:
            kind = TYPES[series.kind[hit[0]]]
            lines.append(
                f"FUELINST {first}Z, {name}: found at slot {int(hit[0] - rows[0])} of {rows.size}, type {kind}"
            )
        else:
            top = float(np.nanmax(series.score[rows])) if rows.size else float("nan")
            lines.append(f"FUELINST {first}Z, {name}: MISSED, highest score {top:.2f}")
    gap = dedup_scans(_DAY, 60.0)
    reach = scans * 300 * 10**9
    for label, series in (("15-31 March 2022", march), ("June 2024", june)):
        keep = np.isfinite(series.score) & (series.t0_ns >= _ns("2022-03-15T00:00"))
        for first, end, _ in _EVENTS:
            keep &= ~((series.t0_ns >= _ns(first)) & (series.t0_ns < _ns(end) + reach))
        false = metrics.incidents(np.where(keep, np.nan_to_num(series.score, nan=-np.inf), -np.inf) > limit, gap)
        lines.append(f"FUELINST {label}: {len(false)} other incidents in {keep.sum() / _DAY:.0f} days")
    return lines


def _month(method: Method, path: Path, record: BalanceRecord, scans: int) -> Series:
    history = read_any(path)
    start, end = int(history.t0_ns[0]), int(history.t0_ns[-1]) + 300 * 10**9
    table = from_columns([history], 300, start, end)
    at = np.clip((table.t0_ns - int(record.t0_ns[0])) // HALF_HOUR_NS, 0, record.t0_ns.size - 1)
    z = readings(streams_of(table), record.usual_HU[at], 300.0)
    return roll(method, z, table.t0_ns, scans, FIVE_MINUTE_PLAN)


def frequency(method: Method, folder: Path, scans: int) -> tuple[list[str], dict[str, F64]]:
    """9 August 2019 and 22-23 June 2026 from one-second traces as the 15-s feed shows them.

    Returns: lines of text, and the series of the event for a figure (empty where the files are missing)
    """
    event = folder / "neso_frequency" / "neso-frequency-2019-08-09-event-window.csv"
    busy = folder / "neso_frequency" / "system_frequency_1s_2026-06-22_to_23.parquet"
    missing = [path.name for path in (event, busy) if not path.is_file()]
    if missing:
        return [f"FREQ not scored: {', '.join(missing)} not in the data folder"], {}
    trace = sample(read_any(busy, zone="UTC"))
    june = _trace(method, trace, scans)
    hertz = trace.value_HC[:, 0]
    out = np.convolve(np.abs(hertz - b.F0_HZ) > b.OPERATIONAL_HZ, np.ones(scans, dtype=int))[: hertz.size] > 0
    first = june.t0_ns < june.t0_ns[0] + 86_400 * 10**9
    limit = float(np.nanmax(june.score[first]))
    calm = float(np.nanquantile(june.disturbance[first & ~out], 0.999))
    flagged = np.nan_to_num(june.disturbance, nan=-np.inf) > calm
    wrong = metrics.incidents(~first & (np.nan_to_num(june.score, nan=-np.inf) > limit), _FREQ_GAP)
    alarms = metrics.incidents(~first & flagged, _FREQ_GAP)
    inside = sum(not out[a:z].any() for a, z in alarms)
    lines = [
        f"FREQ thresholds from 22 June 2026: implausible {limit:.2f} (its most), disturbance {calm:.2f} (exceeded by"
        f" 0.1 % of windows within {b.OPERATIONAL_HZ} Hz)",
        f"23 June 2026: {len(wrong)} incidents called implausible, {len(alarms)} disturbances, {inside} of them within"
        f" {b.OPERATIONAL_HZ} Hz; {int(out[~first].sum())} windows left that band",
    ]
    found: dict[str, F64] = {}
    for phase in (0, 5, 10):
        trace = sample(read_any(event), 15, phase)
        series, hertz = _trace(method, trace, scans), trace.value_HC[:, 0]
        after, before = np.flatnonzero(series.t0_ns > FAULT_NS), np.flatnonzero(series.t0_ns <= FAULT_NS)
        early = int((np.nan_to_num(series.disturbance[before], nan=-np.inf) > calm).sum())
        alarm = after[series.disturbance[after] > calm]
        beyond = after[np.abs(hertz[after] - b.F0_HZ) > b.OPERATIONAL_HZ]
        false = int((series.score[after] > limit).sum())
        said = "no disturbance seen: MISSED"
        if alarm.size:
            delay = (int(series.t0_ns[alarm[0]]) - FAULT_NS) / 1e9
            said = f"disturbance after {delay:.0f} s, sample {int(alarm[0] - after[0]) + 1}, {hertz[alarm[0]]:.3f} Hz"
        if beyond.size:
            said += f" (by the limit of {b.OPERATIONAL_HZ} Hz alone at sample {int(beyond[0] - after[0]) + 1})"
        lines.append(
            f"9 August 2019, samples at phase {phase} s: {said}; alarms before the fault: {early} of"
            f" {before.size}; called implausible at {false} of {after.size}"
        )
        if phase == 0:
            found = {
                "time_ns": series.t0_ns.astype(np.float64), "hertz": hertz, "implausible": series.score,
                "disturbance": series.disturbance,
            }  # fmt: skip
    return lines, found


def _trace(method: Method, trace: History, scans: int) -> Series:
    """Every sample of a 15-s trace; before its first one nothing is known."""
    start = int(trace.t0_ns[0]) // (15 * 10**9) * 15 * 10**9
    count = trace.t0_ns.size
    z = np.full((count + scans - 1, b.balance_plan(FREQUENCY_PLAN).size), np.nan)
    z[:, b.M_STATION_USUAL :] = b.readings_of(  # what is usual travels with every window
        np.full((1, len(b.CHANNELS)), np.nan), b.usual(600.0, 0.0, 40.0, 100.0)[None]
    )[:, b.M_STATION_USUAL :]
    z[scans - 1 :, b.M_FREQUENCY] = trace.value_HC[:, 0] / b.F0_HZ
    times = start + 15 * 10**9 * (np.arange(count + scans - 1) - scans + 1)
    whole = roll(method, z, times, scans, FREQUENCY_PLAN, least=_LEAST_FREQUENCY)
    return replace(whole[scans - 1 :], t0_ns=np.asarray(trace.t0_ns, dtype=np.int64))


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9
