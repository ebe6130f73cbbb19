"""Flagged scans and places into incidents: what an operator is told once, and what it holds.

Flow:    score (Sighting per flagged scan) -> [incidents] -> gg-ray score --incidents, live path
Source:  verifier.md, section 7 (connected flagged nodes, 15-minute de-duplication, top five places)
Shapes:  N buses, E branches

Two flags belong together when they lie at most `gap_ns` apart and are of one bus, or of two buses joined by a branch
that is in service at the later of the two scans; incidents are the connected parts. A flag without a place (the grid
as a whole) touches every bus. `Grouper` does this scan by scan, `group` for a whole record at once; both give the same
incidents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.records import I64, U8

DEDUP_NS = 15 * 60 * 10**9
"""Flags at most this far apart are one incident."""
TOP = 5
"""Places that an incident names."""
ANYWHERE = -1
"""Bus index of a flag without a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A flagged scan of one grid."""

    time_ns: int
    onset_ns: int
    """When it began, as far as the window shows: not after time_ns."""
    verdict: str
    type: str
    score: float
    p_value: float
    places: Mapping[int, float]
    """Flagged buses with their scores; empty where the model points nowhere."""
    reasons: Mapping[str, Any] | None = None
    corrected: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One incident; times are UTC nanoseconds."""

    id: str
    """Grid, time of the first flag and its lowest bus: the same record always gives the same id."""
    case: str
    onset_ns: int
    """Earliest onset that its scans name, at most the time of its first flag."""
    first_ns: int
    last_ns: int
    """First and last flagged scan."""
    scans: int
    verdict: str
    type: str
    """What most of its scans say; at a tie of verdicts the one that implies more, of types the first."""
    peak_score: float
    p_value: float
    """Smallest of its scans."""
    places: tuple[tuple[str, float], ...]
    """Up to five buses with their largest scores, highest first."""
    reasons: Mapping[str, Any] | None
    corrected: Mapping[str, float]
    """Both of the scan with the highest score."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


_Flag = tuple[int, int]
"""(time, bus) of a flag."""
_Runs = dict[tuple[str, str], list[list[int]]]
"""(verdict, type) -> [first, last] numbers of consecutive scans that said so: a standing incident stays small."""


@dataclass(slots=True)
class _Open:
    """An incident so far. What it holds grows with its buses and with changes of what is said, not with its length."""

    start: _Flag
    """Its first flag, which names it."""
    runs: _Runs
    first_ns: int
    end: int
    """Times of its first and last scan."""
    onset_ns: int
    peak: Sighting
    """Its highest scan, the first of equals."""
    p_value: float
    buses: dict[int, float]
    """Largest score of each bus."""
    last: dict[int, int]
    """Time of the last flag of each bus."""

    @classmethod
    def of(cls, sighting: Sighting, number: int, bus: int, score: float) -> _Open:
        """One flag of scan number so many."""
        now = sighting.time_ns
        return cls(
            start=(now, bus), runs={(sighting.verdict, sighting.type): [[number, number]]}, first_ns=now, end=now,
            onset_ns=sighting.onset_ns, peak=sighting, p_value=sighting.p_value, buses={bus: score}, last={bus: now},
        )  # fmt: skip

    def join(self, other: _Open) -> None:
        """Take in another incident; a scan that both hold counts once."""
        self.start = min(self.start, other.start)
        self.first_ns, self.end = min(self.first_ns, other.first_ns), max(self.end, other.end)
        self.onset_ns, self.p_value = min(self.onset_ns, other.onset_ns), min(self.p_value, other.p_value)
        self.peak = min(self.peak, other.peak, key=lambda sighting: (-sighting.score, sighting.time_ns))
        for said, runs in other.runs.items():
            self.runs[said] = _union(self.runs.get(said, []), runs)
        for bus, score in other.buses.items():
            self.buses[bus] = max(score, self.buses.get(bus, score))
        for bus, time_ns in other.last.items():
            self.last[bus] = max(time_ns, self.last.get(bus, time_ns))

    def as_state(self) -> dict[str, Any]:
        """Plain values, as `from_state` reads them."""
        return {
            "start": list(self.start), "runs": [[*said, runs] for said, runs in self.runs.items()],
            "first_ns": self.first_ns, "end": self.end, "onset_ns": self.onset_ns, "p_value": self.p_value,
            "peak": {**asdict(self.peak), "places": list(self.peak.places.items())},
            "buses": list(self.buses.items()), "last": list(self.last.items()),
        }  # fmt: skip

    @classmethod
    def from_state(cls, kept: Mapping[str, Any]) -> _Open:
        """What as_state gave, after a trip through JSON."""
        peak = {**kept["peak"], "places": {int(bus): float(score) for bus, score in kept["peak"]["places"]}}
        return cls(
            start=(int(kept["start"][0]), int(kept["start"][1])),
            runs={(verdict, kind): [list(run) for run in runs] for verdict, kind, runs in kept["runs"]},
            first_ns=int(kept["first_ns"]), end=int(kept["end"]), onset_ns=int(kept["onset_ns"]), peak=Sighting(**peak),
            p_value=float(kept["p_value"]), buses={int(bus): float(score) for bus, score in kept["buses"]},
            last={int(bus): int(time_ns) for bus, time_ns in kept["last"]},
        )  # fmt: skip


def _union(some: list[list[int]], others: list[list[int]]) -> list[list[int]]:
    """Runs of numbers in one or both of two sets of runs."""
    out: list[list[int]] = []
    for first, last in sorted([*some, *others]):
        if out and first <= out[-1][1] + 1:
            out[-1][1] = max(out[-1][1], last)
        else:
            out.append([first, last])
    return out


class Grouper:
    """Incidents of one grid, scan after scan.

    Invariant: `closed` and `open` together are what `group` makes of the same sightings, whatever the scans between.
    """

    def __init__(self, case: str, names: Sequence[str], edges: I64, gap_ns: int = DEDUP_NS) -> None:
        """Args: names  [N] buses;  edges  [2, E] branches;  gap_ns  at least the distance of two scans."""
        self.case, self.names, self.gap_ns = case, tuple(names), gap_ns
        self._edges = np.asarray(edges, dtype=np.int64)
        self._live: list[_Open] = []
        self._now: int | None = None
        self._scans = 0

    def update(self, time_ns: int, sighting: Sighting | None, status_E: U8 | None = None) -> list[Incident]:
        """Take in one scan.

        Args:   sighting  what was flagged, None for a quiet scan;  status_E  branches in service, all when not given
        Returns: incidents that this scan closed: no flag of theirs lies within the gap any more.
        Raises: CalibrationError for a scan that is not after the one before, or a sighting of another time.
        """
        if self._now is not None and time_ns <= self._now:
            raise CalibrationError(
                f"{self.case}: scan at {time_ns} after {self._now}; scans must come in order, once each"
            )
        if sighting is not None and sighting.time_ns != time_ns:
            raise CalibrationError(f"{self.case}: sighting of {sighting.time_ns} given for the scan at {time_ns}")
        self._now = time_ns
        self._scans += 1
        over = [live for live in self._live if time_ns - live.end > self.gap_ns]
        self._live = [live for live in self._live if time_ns - live.end <= self.gap_ns]
        if sighting is not None:
            for bus, score in (sighting.places or {ANYWHERE: sighting.score}).items():
                self._add(sighting, bus, score, self._near(bus, status_E))
        return [self._as_incident(live) for live in over]

    def _add(self, sighting: Sighting, bus: int, score: float, near: set[int] | None) -> None:
        now = sighting.time_ns
        fresh = _Open.of(sighting, self._scans, bus, score)
        rest = []
        for live in self._live:
            touched = any(
                now - time_ns <= self.gap_ns and (near is None or other == ANYWHERE or other in near)
                for other, time_ns in live.last.items()
            )
            if touched:
                fresh.join(live)
            else:
                rest.append(live)
        self._live = [*rest, fresh]

    def _near(self, bus: int, status_E: U8 | None) -> set[int] | None:
        """The bus and its neighbours over branches in service; None for a flag that touches everything."""
        if bus == ANYWHERE:
            return None
        at_from, at_to = self._edges[0] == bus, self._edges[1] == bus
        if status_E is not None:
            at_from, at_to = at_from & (status_E > 0), at_to & (status_E > 0)
        return {bus, *self._edges[1, at_from].tolist(), *self._edges[0, at_to].tolist()}

    @property
    def now(self) -> int | None:
        """Time of the last scan, None before the first."""
        return self._now

    @property
    def open(self) -> list[Incident]:
        """Incidents that a flag of the next scan could still join, oldest first."""
        return sorted((self._as_incident(live) for live in self._live), key=lambda incident: incident.first_ns)

    def _as_incident(self, live: _Open) -> Incident:
        return _incident(self.case, self.names, live)

    def as_state(self) -> dict[str, Any]:
        """Plain values from which `resume` goes on as if nothing had happened in between."""
        return {"now": self._now, "scans": self._scans, "live": [live.as_state() for live in self._live]}

    def resume(self, kept: Mapping[str, Any]) -> None:
        """Go on from a state.  Raises: CalibrationError for one that is none."""
        try:
            self._now = None if kept["now"] is None else int(kept["now"])
            self._scans = int(kept["scans"])
            self._live = [_Open.from_state(live) for live in kept["live"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CalibrationError(f"{self.case}: not the state of a grouper ({error!r})") from None


def group(
    case: str, names: Sequence[str], edges: I64, scans: Iterable[tuple[Sighting, U8 | None]], gap_ns: int = DEDUP_NS
) -> list[Incident]:
    """Incidents of a whole record, oldest first.

    Args: as Grouper;  scans  flagged scans in order of time, each with the branches in service (None: all)
    """
    given = list(scans)
    flags = [
        (sighting, bus, score, status)
        for sighting, status in given
        for bus, score in (sighting.places or {ANYWHERE: sighting.score}).items()
    ]
    if not flags:
        return []
    scan_of = {sighting.time_ns: number for number, (sighting, _) in enumerate(given)}
    time = np.array([flag[0].time_ns for flag in flags], dtype=np.int64)
    bus = np.array([flag[1] for flag in flags], dtype=np.int64)
    adjacency: dict[bytes, sparse.csr_array] = {}
    left, right = [], []
    for k, (_, own, _, status) in enumerate(flags):
        earlier = np.arange(int(np.searchsorted(time, time[k] - gap_ns)), k)
        if own != ANYWHERE:
            key = b"" if status is None else np.asarray(status).tobytes()
            if key not in adjacency:
                adjacency[key] = _adjacency(edges, status, len(names))
            near = adjacency[key][[own]].toarray()[0] > 0
            earlier = earlier[near[bus[earlier]] | (bus[earlier] == ANYWHERE)]
        left.append(np.full(earlier.size, k))
        right.append(earlier)
    i, j = np.concatenate(left), np.concatenate(right)
    _, part = connected_components(sparse.coo_array((np.ones(i.size), (i, j)), shape=(len(flags),) * 2), directed=False)
    out = []
    for number in np.unique(part):
        members = [flags[k] for k in np.flatnonzero(part == number)]
        whole, *rest = (
            _Open.of(sighting, scan_of[sighting.time_ns], own, score) for sighting, own, score, _ in members
        )
        for live in rest:
            whole.join(live)
        out.append(_incident(case, names, whole))
    return sorted(out, key=lambda incident: (incident.first_ns, incident.id))


def _adjacency(edges: I64, status_E: U8 | None, buses: int) -> sparse.csr_array:
    pairs = edges if status_E is None else edges[:, np.asarray(status_E) > 0]
    one_way = sparse.csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(buses, buses))
    return sparse.csr_array(one_way + one_way.T + sparse.eye_array(buses))


def _incident(case: str, names: Sequence[str], live: _Open) -> Incident:
    verdicts, types = Counter[str](), Counter[str]()
    for (verdict, kind), runs in live.runs.items():
        scans = sum(last - first + 1 for first, last in runs)
        verdicts[verdict] += scans
        types[kind] += scans if kind != "none" else 0
    types = +types
    ranked = sorted((item for item in live.buses.items() if item[0] != ANYWHERE), key=lambda item: (-item[1], item[0]))
    return Incident(
        id=f"{case}-{live.start[0]}-{live.start[1]}", case=case, onset_ns=live.onset_ns, first_ns=live.first_ns,
        last_ns=live.end, scans=verdicts.total(),
        verdict=max(verdicts, key=lambda name: (verdicts[name], name == "implausible")),
        type=max(sorted(types), key=lambda name: types[name]) if types else "none",
        peak_score=live.peak.score, p_value=live.p_value,
        places=tuple((names[bus], score) for bus, score in ranked[:TOP]), reasons=live.peak.reasons,
        corrected=live.peak.corrected,
    )  # fmt: skip
