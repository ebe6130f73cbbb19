"""Verdicts into what is kept of them: records, incidents with their life, maps.

Flow:    serve.loop (scans and answers, in order) -> [scribe] -> serve.store (Write)
Source:  verifier.md, section 7; live.md, section 1 (alarms: ids from grid, time and place; a repeated record updates an
         episode and never opens a second one)

One book per grid. What a book carries over a restart is in `state`, written with each verdict, so that an incident goes
on over a crash as if there had been none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.incidents import DEDUP_NS, Grouper, Incident, Sighting
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import CANNOT_TELL, U8
from serve.asks import Scored, Shown
from serve.records import AlarmRecord, MapRecord, VerdictRecord, dump, iso_ms
from serve.wire import ScanMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A scan as the loop took it in: what a record needs beside the answer."""

    message: ScanMessage
    plan: MeterPlan
    version: tuple[int, int]
    kind: str
    gap: int
    filled: int
    """Scans of the window so far."""
    scans: int
    """Scans that a window has."""
    restarted: bool
    """The grid began anew with this scan."""
    ts_ms: int
    trace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is kept of one scan."""

    verdict: VerdictRecord
    alarms: Sequence[AlarmRecord]
    state: str
    """To carry over a restart; empty when it is as before."""
    map: str
    about: str


@dataclass(slots=True)
class _Book:
    grouper: Grouper
    told: dict[str, AlarmRecord] = field(default_factory=dict)
    """Open incidents as last told."""
    about: str = ""
    since: str = ""
    """Time of the first scan since this consumer has the grid."""
    kept: str = ""


class Scribe:
    """Books of all grids of a consumer."""

    def __init__(self) -> None:
        self._books: dict[str, _Book] = {}

    def forget(self, grids: Sequence[str]) -> None:
        """Drop the books of grids that another consumer has now."""
        for grid in grids:
            self._books.pop(grid, None)

    def resume(self, states: dict[str, str]) -> None:
        """Go on where states were left."""
        for grid, text in states.items():
            kept = json.loads(text)
            if kept:
                book = self._book(grid, kept["case"], kept["step_s"])
                book.grouper.resume(kept["grouper"])
                book.told = {i.id: _alarm(i, grid, kept["case"], kept["model"], "open") for i in book.grouper.open}
                book.kept = text

    def peak(self, grid: str) -> float:
        """Highest score of the incidents of a grid that are open, -inf without any."""
        book = self._books.get(grid)
        return max((alarm["peak_score"] for alarm in book.told.values()), default=-np.inf) if book else -np.inf

    def page(self, heard: Heard, scored: Scored) -> Page:
        """What is kept of a scan; to be called in the order of the scans."""
        m, told = heard.message, scored.verdict
        assert told is not None
        book = self._book(m.grid, m.case, m.step_s)
        alarms: list[AlarmRecord] = []
        now_ns = book.grouper.now  # of the log before, where that was lost and the new one begins earlier
        earlier = heard.filled == 1 and now_ns is not None and m.time_ns <= now_ns
        if heard.restarted or earlier:
            alarms += self._close_all(book)
            book.grouper = _grouper(m.grid, m.case, m.step_s)
        now: list[Incident] = []
        if told.verdict != CANNOT_TELL:
            alarms += self._group(book, heard, scored)
            now = [i for i in book.grouper.open if i.last_ns == m.time_ns]
        live = book.grouper.as_state() if book.told else {}
        kept = {"case": m.case, "step_s": m.step_s, "model": told.model, "grouper": live} if live else {}
        state = dump(kept)
        changed, book.kept = state != (book.kept or "{}"), state
        book.since = book.since or iso_ms(m.time_ns)
        about = dump({"case": m.case, "step_s": m.step_s, "origin": m.origin, "since": book.since})
        fresh, book.about = about != book.about, about
        return Page(
            verdict=_record(heard, scored, [i.id for i in now]), alarms=alarms, state=state if changed else "",
            map="" if scored.shown is None else dump(_map(heard, scored.shown)), about=about if fresh else "",
        )  # fmt: skip

    def _group(self, book: _Book, heard: Heard, scored: Scored) -> list[AlarmRecord]:
        m, told = heard.message, scored.verdict
        assert told is not None
        sighting = _sighting(heard, scored)
        try:
            closed = book.grouper.update(m.time_ns, sighting, m.status_E)
        except CalibrationError:  # the newest scan said again with more in it: the next one carries it into incidents
            return []
        out = [_alarm(i, m.grid, m.case, told.model, "closed") for i in closed]
        now_open = {i.id: i for i in book.grouper.open}
        gone = {i.id for i in closed}
        for name in [name for name in book.told if name not in now_open]:
            last = book.told.pop(name)
            if name not in gone:  # it met another one, which goes on under its own, earlier name
                out.append({**last, "state": "closed"})
        for name, incident in now_open.items():
            if incident.last_ns == m.time_ns:
                book.told[name] = _alarm(incident, m.grid, m.case, told.model, "open")
                out.append(book.told[name])
        return out

    def _close_all(self, book: _Book) -> list[AlarmRecord]:
        out: list[AlarmRecord] = [{**alarm, "state": "closed"} for alarm in book.told.values()]
        book.told.clear()
        return out

    def _book(self, grid: str, case: str, step_s: float) -> _Book:
        if grid not in self._books:
            self._books[grid] = _Book(_grouper(grid, case, step_s))
        return self._books[grid]


def _grouper(grid: str, case: str, step_s: float) -> Grouper:
    network = load_case(case)
    return Grouper(grid, network.bus_names, np.stack([network.f_bus, network.t_bus]), max(DEDUP_NS, int(step_s * 1e9)))


def _sighting(heard: Heard, scored: Scored) -> Sighting | None:
    told, m = scored.verdict, heard.message
    if told is None or told.verdict in ("normal", CANNOT_TELL) or told.p_value is None or scored.score is None:
        return None
    return Sighting(
        time_ns=m.time_ns, onset_ns=_onset_ns(heard, told.onset_scan), verdict=told.verdict, type=told.type,
        score=scored.score, p_value=told.p_value, places=scored.places, reasons=scored.reasons,
        corrected=told.corrected,
    )  # fmt: skip


def _onset_ns(heard: Heard, scan: int) -> int:
    back = 0.0 if scan < 0 else (heard.scans - 1 - scan) * heard.message.step_s
    return heard.message.time_ns - int(back * 1e9)


def _record(heard: Heard, scored: Scored, alarms: list[str]) -> VerdictRecord:
    told, m = scored.verdict, heard.message
    assert told is not None
    fresh = np.isfinite(m.z_M) & (m.age_M == 0)
    return {
        "grid": m.grid, "case": m.case, "time": iso_ms(m.time_ns), "time_ms": m.time_ns // 10**6, "step_s": m.step_s,
        "version": f"{heard.version[0]}.{heard.version[1]}", "kind": heard.kind, "verdict": told.verdict,
        "p_value": told.p_value, "p_class": told.p_class, "p_implausible": told.p_implausible,
        "p_disturbance": told.p_disturbance, "score": _rounded(scored.score), "threshold": _rounded(scored.threshold),
        "type": told.type, "buses": list(told.buses), "branches": list(told.branches),
        "bus_p_values": list(told.bus_p_values),
        "onset": iso_ms(_onset_ns(heard, told.onset_scan)) if told.onset_scan >= 0 else None,
        "corrected": told.corrected, "note": told.note, "model": told.model, "origin": m.origin,
        "values": dict(m.values),
        "quality": {
            "meters": int(m.z_M.size), "heard": round(float(fresh.mean()), 4), "streams": dict(m.streams),
            "gap_scans": heard.gap,
        },
        "alarms": alarms, "trace": heard.trace,
        "latency_ms": round(time.time() * 1e3 - heard.ts_ms, 1) if heard.ts_ms > 0 else None,
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)


def _alarm(incident: Incident, grid: str, case: str, model: str, state: str) -> AlarmRecord:
    return {
        "id": incident.id, "grid": grid, "case": case, "state": state, "verdict": incident.verdict,
        "type": incident.type, "onset": iso_ms(incident.onset_ns), "first": iso_ms(incident.first_ns),
        "last": iso_ms(incident.last_ns), "first_ms": incident.first_ns // 10**6, "last_ms": incident.last_ns // 10**6,
        "scans": incident.scans, "peak_score": round(incident.peak_score, 4), "p_value": incident.p_value,
        "places": [(name, round(score, 3)) for name, score in incident.places],
        "reasons": None if incident.reasons is None else dict(incident.reasons), "corrected": dict(incident.corrected),
        "model": model,
    }  # fmt: skip


def _map(heard: Heard, shown: Shown) -> MapRecord:
    m, plan = heard.message, heard.plan
    return {
        "grid": m.grid, "time": iso_ms(m.time_ns), "time_ms": m.time_ns // 10**6,
        "node": _listed(shown.node_N, 3), "edge": _listed(shown.edge_E, 3), "v_pu": _listed(shown.v_N, 4),
        "p_mw": _listed(shown.p_E, 1), "status": m.status_E.astype(int).tolist(), "heard": _heard(plan, m).tolist(),
    }  # fmt: skip


def _heard(plan: MeterPlan, m: ScanMessage) -> U8:
    """[N] 1 where a meter of the bus reported."""
    out = np.zeros(plan.n_bus, dtype=np.uint8)
    reported = plan.channels[np.isfinite(m.z_M) & (m.age_M == 0)]
    out[reported[reported < 4 * plan.n_bus] % plan.n_bus] = 1
    return out


def _listed(values: Any, digits: int) -> list[float]:
    return [float(v) for v in np.round(np.asarray(values, dtype=np.float64), digits)]
