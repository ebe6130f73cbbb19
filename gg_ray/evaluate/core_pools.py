"""Windows and days of the core benchmark: one frozen pool per grid, from which every suite and fold takes its share.

Flow:    scenario.executor (gated programs of all families) -> [core_pools] -> core_score; facts -> core_tables
Source:  selfplay.md, sections 8 (gates) and 17; verifier.md, section 3
Shapes:  B windows of one metering plan, T scans, N buses, E branches, S looks at a day
Units:   p.u.

Benign twins are executed to measure how far an anomaly moves the estimated state; no method ever sees one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gg_ray.config import EvaluateConfig, ScenarioConfig
from gg_ray.evaluate.core_manifest import Digest
from gg_ray.evaluate.core_plan import HARD_D, CoreSizes
from gg_ray.evaluate.suites import (
    DAY_SCANS,
    NATURAL,
    NATURAL_EVENTS,
    Day,
    Group,
    SuiteMaker,
    run_day,
    slice_of,
)
from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import MeterPlan
from gg_ray.grid.ybus import branch_admittance, branch_flows
from gg_ray.records import F64, FAMILIES, Event, Labels, Program, Window
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.gates import Gates
from gg_ray.scenario.grammar import D_EDGES, FIRST_ONSET, PRIMITIVES, Grammar, Stratum, families_of, first_family
from gg_ray.verifier.features import Prepared

DANGER_FLOW, DANGER_VOLTS = 0.10, 0.01
"""An anomaly is dangerous when it moves an estimated flow by a tenth of its rating, or a |V| by 1 %."""
_TRIES = 60
_BATCH = 8
_BLOCK = 128
"""Most windows of a group: features of a large grid are not all held at once."""
_FOLLOW = 8
"""In a composed program on a timeline the hard event begins at most so many scans before the anomaly."""
_SPLIT = {"fit": "train", "validation": "validation", "negatives": "test"}
_PURPOSE = {"fit": 11, "validation": 12, "negatives": 13, "standard": 14, "hard": 15, "composed": 16, "gates": 17}
_DAY_PURPOSE = {"validation": 21, "standard": 22, "hard": 23, "composed": 24}

Write = Callable[[MeterPlan, np.random.Generator], tuple[Event, ...] | None]
Accept = Callable[[Attempt], bool]


@dataclass(frozen=True, slots=True)
class Fact:
    """What is true of one window, or of one episode of a timeline."""

    family: str
    """"" for a plausible one."""
    needs: tuple[str, ...]
    """Families that a model must have been trained on to know all of it: its own, and of a fault that it hides."""
    primitive: str
    d_eff: float
    hard: bool
    """A real disturbance was among the events."""
    moved: float
    """Change of the estimated state in units of DANGER_FLOW and DANGER_VOLTS, 0 for plausible windows."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class PoolPart:
    """Windows of one part in groups of one metering plan; facts in the order of the groups."""

    name: str
    groups: list[Group]
    facts: list[Fact]
    solves: int


class Change:
    """What happens to executed windows before anyone sees them: here nothing."""

    def window(self, attempt: Attempt, window: Window) -> Window:
        """A window (or twin) of an attempt as it arrives."""
        return window

    def d_eff(self, attempt: Attempt) -> float:
        """Detectability of the anomaly in what arrives."""
        return attempt.d_eff


@dataclass(slots=True)
class PoolDay:
    """One day, its episode, and the natural events [first, last + 1) in looks."""

    day: Day
    fact: Fact | None
    natural: list[tuple[int, int]]


class PoolMaker:
    """Makes the parts of one grid.

    Invariant: a part depends on (grid, sizes, context source) and on its own stream, not on what else is made.
    """

    def __init__(
        self, case: str, sizes: CoreSizes, contexts: ContextSource, outages: Sequence[int] = ()
    ) -> None:  # fmt: skip
        """outages: branches out of service in all windows (days are of the intact grid)."""
        self.sizes, self.contexts = sizes, contexts
        settings = EvaluateConfig(stride=sizes.stride, days=sizes.days, validation_days=sizes.validation_days)
        self.maker = SuiteMaker(case, ScenarioConfig(), settings, contexts, outages)
        self.case, self.scenario = self.maker.case, self.maker.scenario
        self.grammar: Grammar = self.maker.executor.grammar
        self.families = [f for f in FAMILIES if self.grammar.primitives("anomalous", f)]
        self._long: Executor | None = None

    # --- windows ----------------------------------------------------------------------------------------------------

    def benign(self, name: str, digest: Digest) -> PoolPart:
        """Parts fit, validation and negatives: half ordinary, half plausible-hard."""
        return self.part(name, self.drawn(name), digest)

    def positives(self, part: str, digest: Digest) -> PoolPart:
        """Windows of every family; fewer than asked for where a family hardly ever passes the gates."""
        return self.part(part, self.drawn(part), digest)

    def drawn(self, name: str) -> list[Attempt]:
        """Executed programs of a part: the same ones whenever it is asked for."""
        sizes, rng = self.sizes, self.maker.rng(_PURPOSE[name])
        counts = {"fit": sizes.validation // 2, "validation": sizes.validation, "negatives": sizes.negatives}
        if name in counts:
            return self.draw_benign(_SPLIT[name], counts[name], rng)
        return self.draw_positives(name, sizes.windows, rng)

    def draw_benign(self, split: str, count: int, rng: np.random.Generator) -> list[Attempt]:
        """Plausible programs, half of them hard."""
        attempts: list[Attempt] = []
        for side in ("hard", "ordinary"):
            stratum = Stratum(side, "", self.case.name)
            attempts += self._gated(split, self._uniform(stratum), count // 2, rng, lambda a: not a.anomalous)
        return attempts

    def draw_positives(self, part: str, per_family: int, rng: np.random.Generator) -> list[Attempt]:
        """Anomalous programs of every family, as a part writes them."""
        attempts: list[Attempt] = []
        for family in self.families:
            write, accept = self._kind(part, family)
            attempts += self._gated("test", write, per_family, rng, accept)
        return attempts

    def written(self, programs: Sequence[Program], name: str, per_family: int, digest: Digest) -> PoolPart:
        """Windows of given programs that pass the gates (suite s7-adaptive), at most so many per family."""
        rng = self.maker.rng(_PURPOSE["gates"])
        kept: list[Attempt] = []
        counts: dict[str, int] = {}
        for start in range(0, len(programs), 32):
            for attempt in self._passed(programs[start : start + 32], "test", rng):
                family = first_family(attempt.program)
                if attempt.anomalous and counts.get(family, 0) < per_family:
                    counts[family] = counts.get(family, 0) + 1
                    kept.append(attempt)
        return self.part(name, kept, digest)

    def _kind(self, part: str, family: str) -> tuple[Write, Accept]:
        """How programs of a part are written, and which of them count."""
        stratum = Stratum("anomalous", family, self.case.name)
        plain = self._uniform(stratum)
        if part == "standard":
            return plain, lambda a: a.anomalous
        if part == "hard":
            return self._hardened(plain), lambda a: a.anomalous and HARD_D[0] <= a.d_eff < HARD_D[1]
        return self._composed(family), lambda a: a.anomalous

    def _uniform(self, stratum: Stratum) -> Write:
        return lambda plan, rng: self.grammar.uniform(stratum, plan.plan_id, rng)

    def _hardened(self, write: Write) -> Write:
        """The same programs, sized anomalies asked for in the hard bins."""
        bins = np.flatnonzero((D_EDGES[:-1] < HARD_D[1]) & (D_EDGES[1:] > HARD_D[0]))

        def small(plan: MeterPlan, rng: np.random.Generator) -> tuple[Event, ...] | None:
            events = write(plan, rng)
            if not events or not PRIMITIVES[events[0].primitive].sized:
                return events
            return (replace(events[0], magnitude=int(rng.choice(bins))), *events[1:])

        return small

    def _composed(self, family: str) -> Write:
        """An anomaly and a hard event of a kind that no program of training has beside one (grammar.uniform,
        legal.followers): other hard events may be there, so it is the composition that is new."""
        words = self.grammar.primitives("anomalous", family)

        def pair(plan: MeterPlan, rng: np.random.Generator) -> tuple[Event, ...] | None:
            first = self._draw(words, plan, rng)
            second = self._draw(self.grammar.unseen_beside(), plan, rng)
            return None if first is None or second is None else (first, second)

        return pair

    def _draw(self, words: Sequence[str], plan: MeterPlan, rng: np.random.Generator) -> Event | None:
        """A uniform event of one of the words, None where the word has no place under the plan."""
        return self.grammar.event(str(rng.choice(np.array(words))), plan, rng) if words else None

    def _gated(self, split: str, write: Write, count: int, rng: np.random.Generator, accept: Accept) -> list[Attempt]:
        out: list[Attempt] = []
        for _ in range(_TRIES):
            if len(out) >= count:
                break
            programs: list[Program] = []
            for index in range(max(_BATCH, count - len(out))):
                plan_id = self.maker.plans[index % len(self.maker.plans)]
                events = write(self.grammar.plan(plan_id), rng)
                if events is not None:
                    programs.append(self._program(events, plan_id, rng))
            out += [a for a in self._passed(programs, split, rng) if accept(a)]
        return out[:count]

    def _program(self, events: tuple[Event, ...], plan_id: int, rng: np.random.Generator) -> Program:
        return Program(
            case=self.case.name, context_id=int(rng.integers(1 << 48)), plan_id=plan_id, events=events,
            scans=self.scenario.scans, seed=int(rng.integers(1 << 48)),
        )  # fmt: skip

    def _passed(self, programs: Sequence[Program], split: str, rng: np.random.Generator) -> list[Attempt]:
        if not programs:
            return []
        attempts = self.maker.executor.run(programs, split)
        verdicts = Gates(self.maker.executor, self.scenario).check(attempts, rng)
        return [a for a, verdict in zip(attempts, verdicts, strict=True) if not verdict and a.main is not None]

    def part(
        self, name: str, attempts: Sequence[Attempt], digest: Digest, change: Change | None = None
    ) -> PoolPart:  # fmt: skip
        """Windows by plan, with what is true of them; the digest takes note of all."""
        change = change or Change()
        groups, facts = list[Group](), list[Fact]()
        blocks = list[Sequence[Attempt]]()
        for plan_id in self.maker.plans:
            of_plan = [a for a in attempts if a.plan.plan_id == plan_id]
            blocks += [of_plan[start : start + _BLOCK] for start in range(0, len(of_plan), _BLOCK)]
        for own in blocks:
            pairs = [self.maker.executor.realise(a, 0) for a in own]
            windows = [change.window(a, window) for a, (window, _) in zip(own, pairs, strict=True)]
            twins = [twin and change.window(a, twin) for a, (_, twin) in zip(own, pairs, strict=True)]
            labels = [a.main.labels for a in own if a.main is not None]
            prepared = self.maker.featurizer.prepare(windows, own[0].plan)
            moved = self._moved(prepared, twins)
            found = [_fact(a, m, change.d_eff(a)) for a, m in zip(own, moved, strict=True)]
            facts += found
            groups.append(
                Group(prepared, labels, [f.family for f in found], [f.d_eff for f in found], [f.hard for f in found])
            )
            digest.add([a.program for a in own], labels, prepared.z_BTM)
        return PoolPart(name, groups, facts, sum(a.solves for a in attempts))

    def _moved(self, prepared: Prepared, twins: Sequence[Window | None]) -> F64:
        """[B] how far the estimate moves from a twin's, 0 where there is none."""
        out = np.zeros(len(twins))
        with_twin = [i for i, twin in enumerate(twins) if twin is not None]
        if with_twin:
            benign = self.maker.featurizer.prepare([w for w in twins if w is not None], prepared.plan)
            status = np.stack([prepared.windows[i].status_TE for i in with_twin])
            out[with_twin] = moved(self.case, prepared.v_BTN[with_twin], benign.v_BTN, status)
        return out

    # --- timelines --------------------------------------------------------------------------------------------------

    def days(self, part: str, digest: Digest) -> Iterator[PoolDay]:
        """Days of a part one after the other (they are large); those without a gated episode are left out."""
        count = self.sizes.validation_days if part == "validation" else self.sizes.days
        for index in range(count):
            found = self._day(part, index)
            if found is not None:
                pool_day, program, truth = found
                digest.add([program], [truth], pool_day.day.prepared.z_BTM)
                yield pool_day

    def _day(self, part: str, index: int) -> tuple[PoolDay, Program, Labels] | None:
        """Day number index of a part, from its own stream and its own calendar day."""
        if self._long is None:
            self._long = Executor(self.case, self.scenario, self.contexts, all_families=True, scans=DAY_SCANS)
        long, rng = self._long, self.maker.rng(_DAY_PURPOSE[part], index)
        plan_id = self.maker.plans[index % len(self.maker.plans)]
        plan = long.grammar.plan(plan_id)
        benign = part == "validation"
        split = "validation" if benign else "test"
        place = index if benign else index + self.sizes.days * ("standard", "hard", "composed").index(part)
        context = self.contexts.day(place % self.contexts.days(split), self.scenario.step_s, split)
        gates, family = Gates(long, self.scenario), self.families[index % len(self.families)]
        for _ in range(_TRIES):
            events: list[Event] = []
            if not benign:
                episode = self._episode(part, family, plan, rng)
                if episode is None:
                    continue
                events += episode
            for word in rng.choice(NATURAL, NATURAL_EVENTS):
                natural = long.grammar.event(str(word), plan, rng)
                if natural is not None and len(events) < self.scenario.max_events:
                    events.append(natural)
            attempt = run_day(long, gates, context, plan_id, events, rng)
            if attempt is None or attempt.main is None:
                continue
            if part == "hard" and not HARD_D[0] <= attempt.d_eff < HARD_D[1]:
                continue
            return self._cut(attempt, long), attempt.program, attempt.main.labels
        return None

    def _episode(self, part: str, family: str, plan: MeterPlan, rng: np.random.Generator) -> list[Event] | None:
        """The anomaly of a day, and in the composed part a hard event with it."""
        assert self._long is not None
        grammar = self._long.grammar
        words = grammar.primitives("anomalous", family)

        def any_event(_plan: MeterPlan, own: np.random.Generator) -> tuple[Event, ...] | None:
            event = grammar.event(str(own.choice(np.array(words))), _plan, own)
            return None if event is None else (event,)

        drawn = (self._hardened(any_event) if part == "hard" else any_event)(plan, rng)
        if drawn is None:
            return None
        onset = int(rng.integers(60, DAY_SCANS - 60))
        out = [replace(drawn[0], onset=onset)]
        if part == "composed":
            hard = grammar.event(str(rng.choice(np.array(grammar.unseen_beside()))), plan, rng)
            if hard is None:
                return None
            out.append(replace(hard, onset=max(FIRST_ONSET, onset - int(rng.integers(0, _FOLLOW + 1)))))
        return out

    def _cut(self, attempt: Attempt, long: Executor) -> PoolDay:
        """The looks of a day; how far its episode moves the estimate is measured at the last attacked look."""
        assert attempt.main is not None
        whole, twin = long.realise(attempt, 0)
        truth, scans = attempt.main.labels, self.scenario.scans
        family = first_family(attempt.program)
        day = self.maker.cut(whole, truth, family, attempt.plan.plan_id)
        ends = np.arange(scans, DAY_SCANS + 1, self.sizes.stride)
        natural = []
        for event in attempt.program.events:
            if PRIMITIVES[event.primitive].side != "anomalous":
                during = np.flatnonzero((ends > event.onset) & (ends <= event.onset + scans))
                if during.size:
                    natural.append((int(during[0]), int(during[-1]) + 1))
        if twin is None or attempt.twin is None:
            return PoolDay(day, None, natural)
        end = max(truth.end, scans)
        pair = [
            slice_of(w, end - scans, end, self.case.tap, t) for w, t in ((whole, truth), (twin, attempt.twin.labels))
        ]
        prepared = self.maker.featurizer.prepare(pair, attempt.plan)
        change = moved(self.case, prepared.v_BTN[:1], prepared.v_BTN[1:], prepared.windows[0].status_TE[None])
        return PoolDay(day, _fact(attempt, float(change[0]), attempt.d_eff), natural)


def moved(case: GridCase, v_BTN: np.ndarray, twin_BTN: np.ndarray, status_BTE: np.ndarray) -> F64:
    """[B] largest change between two estimates over scans: flows in DANGER_FLOW of rating, |V| in DANGER_VOLTS.

    Flows of both are those of the published model on the branches that are declared in service, so what is compared is
    the state that an operator would believe.
    """
    count, scans, n = v_BTN.shape
    y = branch_admittance(case)
    flows = [branch_flows(case, v.reshape(-1, n), y)[0] for v in (v_BTN, twin_BTN)]
    limit = np.where(case.rate > 1e-6, DANGER_FLOW * case.rate, np.inf)
    change = (np.abs(flows[0] - flows[1]) / limit).reshape(count, scans, -1)
    flow = np.where(status_BTE.astype(bool), change, 0.0).max(axis=(1, 2), initial=0.0)
    volts = np.abs(np.abs(v_BTN) - np.abs(twin_BTN)).max(axis=(1, 2)) / DANGER_VOLTS
    return np.asarray(np.maximum(flow, volts))


def _fact(attempt: Attempt, change: float, d_eff: float) -> Fact:
    events = attempt.program.events
    lead = next((e.primitive for e in events if PRIMITIVES[e.primitive].side == "anomalous"), "")
    return Fact(
        family=first_family(attempt.program), needs=families_of(lead) if lead else (), primitive=lead,
        d_eff=round(float(d_eff), 4), hard=any(PRIMITIVES[e.primitive].side == "hard" for e in events),
        moved=round(change, 4),
    )  # fmt: skip
