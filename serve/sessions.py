"""Sessions of the digital twin: one day of a grid under real disturbances, with incidents whose truth is known.

Flow:    scenario.executors (programs of whole days) -> [sessions: SessionMaker] -> Session -> serve.simulate
Source:  docs/adr/0022-feed-and-twin.md
Shapes:  T scans of a session, M installed meters, E branches, N buses
Units:   p.u. in readings, MW in values, UTC nanoseconds

A session is one day of the calendar (or a part of it) under one set of real disturbances. Each incident is a program of
that same day, same seed, same disturbances and one anomaly more; programs of one seed share their world and their meter
noise, so they agree bit by bit outside the anomaly, and a session is put together from them without a seam.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gg_ray.config import ScenarioConfig
from gg_ray.grid import balance
from gg_ray.grid.cases import load_case
from gg_ray.records import F64, FAMILIES, Bool, Context, Event, Program, Window
from gg_ray.scenario import balance_worlds, worlds
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.executors import executor_of
from gg_ray.scenario.gates import Gates

SPLIT = "test"
"""Months that training never sees."""
LEAD_SCANS = 24
"""Scans at the beginning of a session without an incident: a window must fill first."""
SLOT_SCANS = worlds.EPISODE_SCANS + 12
"""Least distance from one incident to the next."""
DAY_S = 86_400.0
FIVE_MINUTE_PLAN, NETWORK_PLAN = 1_001, 1_000
"""Metering plans of evaluation, which training never draws."""
_TRIES = 24
Run = Callable[[Sequence[Event]], Attempt | None]
"""Executes one more set of events on the day in hand; None where a gate stops it."""


class SimulateError(ValueError):
    """A twin that cannot be made; the message names the option and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What the program did, in scans of its session: [first, stop).

    kind    implausible, or disturbance for a real event
    places  buses and branches concerned, by name
    """

    first: int
    stop: int
    kind: str
    primitive: str
    places: tuple[str, ...]
    d_eff: float | None = None


@dataclass(slots=True)
class Session:
    """One day as the control room receives it: window.z_TM, age_TM and status_TE, with tap and length scan by scan."""

    window: Window
    tap_TE: F64
    x_scale_TE: F64
    values: list[dict[str, float]]
    facts: list[Fact]


class SessionMaker:
    """Makes sessions of one case by number.

    Invariant: settings, seed and number decide a session, whatever was made before.
    """

    def __init__(
        self, case: str, *, incidents: int, disturbances: int, seed: int, scans: int | None, plan_id: int | None,
        contexts: ContextSource | None, data_dir: str,
    ) -> None:  # fmt: skip
        """Args and errors as serve.simulate.Twin."""
        national = case == balance.NAME
        self.plan_id = plan_id if plan_id is not None else FIVE_MINUTE_PLAN if national else NETWORK_PLAN
        config = ScenarioConfig(gates="on", recheck_share=0.0, data_dir=data_dir)
        self.step_s = balance.cadence_of(self.plan_id) if national else config.step_s
        day = int(DAY_S // self.step_s)
        self.scans = day if scans is None else scans
        if not worlds.LONGEST_WINDOW < self.scans <= day:
            raise SimulateError(f"scans {self.scans}: {worlds.LONGEST_WINDOW + 1} to {day}, a day of {case}")
        room = (self.scans - LEAD_SCANS) // SLOT_SCANS
        if not 0 <= incidents <= room:
            raise SimulateError(f"incidents {incidents}: 0 to {room} in a session of {self.scans} scans")
        if not 0 <= disturbances < config.max_events:
            raise SimulateError(f"disturbances {disturbances}: 0 to {config.max_events - 1} in a session")
        self.incidents, self.disturbances, self.seed = incidents, disturbances, seed
        self.case = load_case(case)
        self.contexts = contexts or context_source(data_dir or None)
        self.executor = executor_of(self.case, config, self.contexts, all_families=True, scans=self.scans)
        self.gates = Gates(self.executor, config)
        self.plan = self.executor.grammar.plan(self.plan_id)
        self.families = [f for f in FAMILIES if self.executor.grammar.primitives("anomalous", f)]

    def session(self, number: int) -> Session:
        """Session number, from its own stream.  Raises: SimulateError where no program of the day passes the gates."""
        rng = np.random.default_rng([self.seed, number, zlib.crc32(self.case.name.encode())])
        context = self._context(number, rng)
        seed, context_id = int(rng.integers(1 << 48)), int(rng.integers(1 << 48))

        def run(events: Sequence[Event]) -> Attempt | None:
            program = Program(
                case=self.case.name, context_id=context_id, plan_id=self.plan_id, events=tuple(events),
                scans=self.scans, seed=seed,
            )  # fmt: skip
            given = [context] if isinstance(self.executor, Executor) else None
            attempt = self.executor.run([program], SPLIT, contexts=given)[0]
            stopped = self.gates.check([attempt], rng)[0]
            return None if stopped or attempt.main is None else attempt

        natural, base = self._quiet(run, rng)
        window, _ = self.executor.realise(base, 0)
        session = Session(
            window=replace(
                window, z_TM=window.z_TM.copy(), age_TM=window.age_TM.copy(), status_TE=window.status_TE.copy()
            ),
            tap_TE=_taps(window), x_scale_TE=np.tile(window.x_scale_E, (self.scans, 1)),
            values=self._values(base, window),
            facts=[self._natural(event) for event in natural],
        )  # fmt: skip
        order = [
            str(f)
            for _ in range(1 + self.incidents // max(len(self.families), 1))
            for f in rng.permutation(self.families)
        ]
        slot = (self.scans - LEAD_SCANS) / max(self.incidents, 1)
        for index in range(self.incidents):
            first = LEAD_SCANS + int(index * slot)
            last = LEAD_SCANS + int((index + 1) * slot) - SLOT_SCANS
            families = [order[index], *(f for f in self.families if f != order[index])]
            self._inject(session, run, natural, families, (first, last), rng)
        session.facts.sort(key=lambda fact: fact.first)
        return session

    def _context(self, number: int, rng: np.random.Generator) -> Context:
        """A day of the test months, or the part of it that a shorter session takes."""
        index = int(rng.integers(self.contexts.days(SPLIT))) if number else self.seed % self.contexts.days(SPLIT)
        day = self.contexts.day(index, 60.0 if self.case.name == balance.NAME else self.step_s, SPLIT)
        spare = day.scans - self.scans
        at = int(rng.integers(spare // 30 + 1)) * 30 if spare > 0 else 0
        part = slice(at, at + self.scans)
        return replace(
            day, t0_ns=day.t0_ns + int(at * self.step_s * 1e9), load_T=day.load_T[part], wind_T=day.wind_T[part],
            shape_T=day.shape_T[part],
        )  # fmt: skip

    def _quiet(self, run: Run, rng: np.random.Generator) -> tuple[list[Event], Attempt]:
        """A day without incidents: its real disturbances, and what came of them."""
        grammar = self.executor.grammar
        words = grammar.primitives("hard")
        for _ in range(_TRIES):
            drawn = [grammar.event(str(word), self.plan, rng) for word in rng.choice(words, self.disturbances)]
            events = [event for event in drawn if event is not None]
            if (base := run(events)) is not None:
                return events, base
        raise SimulateError(
            f"{self.case.name}: no day with {self.disturbances} disturbances passes the gates; take fewer"
        )

    def _inject(
        self, session: Session, run: Run, natural: Sequence[Event], families: Sequence[str], slot: tuple[int, int],
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        """Put one incident into a slot: of the first family of which a program passes the gates."""
        grammar = self.executor.grammar
        for family in families:
            words = grammar.primitives("anomalous", family)
            for _ in range(_TRIES):
                word = str(rng.choice(words))
                event = grammar.event(word, self.plan, rng)
                if event is None:
                    continue
                lasting = np.flatnonzero(grammar.duration_mask(word)[:-1])  # the last bin means until the end
                event = replace(
                    event, onset=int(rng.integers(slot[0], max(slot[1], slot[0]) + 1)),
                    duration=int(lasting[-1]) if lasting.size else event.duration,
                )  # fmt: skip
                attempt = run([*natural, event])
                if attempt is not None and attempt.anomalous:
                    self._splice(session, attempt, word)
                    return
        raise SimulateError(f"{self.case.name}: no incident passes the gates; take another seed")

    def _splice(self, session: Session, attempt: Attempt, word: str) -> None:
        """Take the scans of an incident from its own program, and readings that are held from them."""
        assert attempt.main is not None
        labels = attempt.main.labels
        window, whole = self.executor.realise(attempt, 0)[0], session.window
        rows = slice(labels.onset, labels.end)
        for name in ("z_TM", "age_TM", "status_TE"):
            getattr(whole, name)[rows] = getattr(window, name)[rows]
        session.tap_TE[rows] = _taps(window)[rows]
        session.x_scale_TE[rows] = window.x_scale_E
        after = np.arange(labels.end, min(labels.end + 8, self.scans))
        held = after[:, None] - whole.age_TM[after].astype(np.int64) < labels.end
        whole.z_TM[after] = np.where(held, window.z_TM[after], whole.z_TM[after])
        session.facts.append(Fact(
            first=labels.onset, stop=labels.end, kind="implausible", primitive=word,
            places=self._names(labels.node_N, labels.edge_E), d_eff=round(float(attempt.d_eff), 2),
        ))  # fmt: skip

    def _natural(self, event: Event) -> Fact:
        active = balance_worlds.active if self.case.name == balance.NAME else worlds.active_scans
        when = active(event, self.scans)
        n, chosen = self.case.n_bus, np.zeros(self.case.n_bus + self.case.n_branch, dtype=bool)
        chosen[event.target] = True
        return Fact(
            first=when.start, stop=when.stop, kind="disturbance", primitive=event.primitive,
            places=self._names(chosen[:n], chosen[n:]),
        )  # fmt: skip

    def _names(self, node_N: Bool, edge_E: Bool) -> tuple[str, ...]:
        buses, branches = self.case.bus_names, self.case.branch_names
        return (*(buses[i] for i in np.flatnonzero(node_N)), *(branches[i] for i in np.flatnonzero(edge_E)))

    def _values(self, base: Attempt, window: Window) -> list[dict[str, float]]:
        """What a page shows: true load and wind output of a network, MW; what was published of the national graph."""
        if not isinstance(self.executor, Executor):
            return [_published(row) for row in window.z_TM]
        assert base.trajectory is not None
        world, mva = base.trajectory.world, self.case.base_mva
        demand, wind = world.load_p.sum(axis=1) * mva, world.gen_p[:, self.executor.fleet.wind].sum(axis=1) * mva
        out = [{"DEMAND": round(float(mw), 1)} for mw in demand]
        if self.executor.fleet.wind.any():
            for row, mw in zip(out, wind.tolist(), strict=True):
                row["WIND"] = round(mw, 1)
        return out


def _taps(window: Window) -> F64:
    """[T, E] declared ratio in force at each scan."""
    out = np.tile(window.tap_E, (window.z_TM.shape[0], 1))
    for branch, ratio, first in window.moves:
        out[max(first, 0) :, branch] = ratio
    return out


def _published(z_M: F64) -> dict[str, float]:
    """Streams that stand in the readings of a national scan, MW and Hz."""
    mw = z_M * balance.BASE_MVA
    named = {name: mw[1 + i] for i, name in enumerate(balance.CHANNELS[: balance.N_SUPPLY])}
    named |= {"INDO": mw[balance.M_INDO], "FREQ": z_M[balance.M_FREQUENCY] * balance.F0_HZ}
    return {name: round(float(value), 3) for name, value in named.items() if np.isfinite(value)}
