"""The digital twin: scans of a grid without end, with incidents whose truth is known.

Flow:    serve.sessions -> [simulate: Twin] -> (ScanMessage, truth) -> serve.feed
Source:  docs/adr/0022-feed-and-twin.md
Units:   p.u. in readings, MW in values, UTC nanoseconds

Two sessions have nothing in common: between them the clock leaves a gap longer than any window, so that no window and
no verdict reaches over it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.grammar import PRIMITIVES
from gg_ray.scenario.worlds import LONGEST_WINDOW
from serve.records import iso_ms
from serve.sessions import Fact, Session, SessionMaker, SimulateError
from serve.wire import ScanMessage

GAP_SCANS = LONGEST_WINDOW + 1
WEEK_NS = 7 * 86_400 * 10**9
SHOWN = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """What the program did, and so what a verdict should say.

    start_ns, end_ns  time of the first scan concerned, and of the one after the last
    kind              implausible, or disturbance for a real event
    places            buses and branches concerned, by name
    """

    grid: str
    start_ns: int
    end_ns: int
    kind: str
    family: str
    primitive: str
    places: tuple[str, ...]
    d_eff: float | None

    def as_json(self) -> dict[str, Any]:
        return {
            "grid": self.grid, "start": iso_ms(self.start_ns), "end": iso_ms(self.end_ns), "kind": self.kind,
            "family": self.family, "primitive": self.primitive, "places": list(self.places), "d_eff": self.d_eff,
        }  # fmt: skip


class Twin:
    """Scans of one case; `sites` grids of it share what is executed, each at another hour of it.

    Invariant: the settings and the seed decide every scan. Not for two threads.
    injected  the last incidents and disturbances that have begun, oldest first
    """

    def __init__(
        self, case: str = "gb29", *, incidents: int = 5, disturbances: int = 2, seed: int = 0, sites: int = 1,
        scans: int | None = None, plan_id: int | None = None, start_ns: int | None = None,
        contexts: ContextSource | None = None, data_dir: str = "",
    ) -> None:  # fmt: skip
        """Args: incidents, disturbances  of a session;  scans  of a session, a day when not given
                start_ns  earliest first scan: days then keep their weekday and hour, and their own date when not given
                contexts, data_dir  where demand and wind come from; packaged statistics when not given

        Raises: SimulateError for an option out of range; CaseError for an unknown grid.
        """
        self.maker = SessionMaker(
            case, incidents=incidents, disturbances=disturbances, seed=seed, scans=scans, plan_id=plan_id,
            contexts=contexts, data_dir=data_dir,
        )  # fmt: skip
        self.scans, self.step_s = self.maker.scans, self.maker.step_s
        if not 1 <= sites <= self.scans:
            raise SimulateError(f"sites {sites}: 1 to {self.scans}, one for each scan of a session")
        self.grids = [case] if sites == 1 else [f"{case}-{number:04d}" for number in range(sites)]
        self.injected: deque[Injected] = deque(maxlen=SHOWN)
        self._earliest_ns = start_ns

    def __iter__(self) -> Iterator[tuple[ScanMessage, tuple[Injected, ...]]]:
        """Scan by scan, all sites in turn, with what is going on at that site.

        Raises: SimulateError where no program of a day passes the gates.
        """
        number = 0
        while True:
            yield from self._play(self.maker.session(number))
            number += 1

    def status(self) -> dict[str, Any]:
        """For the status of a feed, from any thread: what was injected."""
        return {"injected": [one.as_json() for one in tuple(self.injected)]}

    def _play(self, session: Session) -> Iterator[tuple[ScanMessage, tuple[Injected, ...]]]:
        step_ns, scans = int(self.step_s * 1e9), self.scans
        t0_ns = session.window.t0_ns
        if self._earliest_ns is not None:
            t0_ns += math.ceil((self._earliest_ns - t0_ns) / WEEK_NS) * WEEK_NS
        sites = len(self.grids)
        phases = [site * scans // sites for site in range(sites)]
        for tick in range(scans):
            for grid, phase in zip(self.grids, phases, strict=True):
                at = (phase + tick) % scans
                again = phase + tick >= scans  # the hours before a site's first one come a week later
                zero_ns = t0_ns + WEEK_NS * again
                part = (0, phase) if again else (phase, scans)
                truth = tuple(
                    self._told(grid, fact, zero_ns, part) for fact in session.facts if fact.first <= at < fact.stop
                )
                for one in truth:
                    if one.start_ns == zero_ns + at * step_ns:
                        self.injected.append(one)
                yield self._scan(session, grid, at, zero_ns + at * step_ns), truth
        self._earliest_ns = t0_ns + WEEK_NS * (sites > 1) + (scans + GAP_SCANS) * step_ns

    def _told(self, grid: str, fact: Fact, zero_ns: int, part: tuple[int, int]) -> Injected:
        step_ns = int(self.step_s * 1e9)
        return Injected(
            grid=grid, start_ns=zero_ns + max(fact.first, part[0]) * step_ns,
            end_ns=zero_ns + min(fact.stop, part[1]) * step_ns, kind=fact.kind, primitive=fact.primitive,
            family=PRIMITIVES[fact.primitive].family, places=fact.places, d_eff=fact.d_eff,
        )  # fmt: skip

    def _scan(self, session: Session, grid: str, at: int, time_ns: int) -> ScanMessage:
        window, plan = session.window, self.maker.plan
        return ScanMessage(
            grid=grid, case=plan.case, time_ns=time_ns, step_s=self.step_s, channels=plan.channels,
            sigma=plan.sigma, z_M=window.z_TM[at], age_M=window.age_TM[at], status_E=window.status_TE[at],
            tap_E=session.tap_TE[at], x_scale_E=session.x_scale_TE[at], origin="simulated",
            values=session.values[at], streams={"telemetry": "simulated"},
        )  # fmt: skip
