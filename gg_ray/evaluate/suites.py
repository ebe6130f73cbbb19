"""Frozen suites: what every detector is asked, on grids, days, meters and families it was not trained on.

Flow:    scenario.executor (test months, all families) -> [suites] -> evaluate.scoring -> results, report
Source:  selfplay.md, section 17; verifier.md, section 3: thresholds from benign validation days, no point adjustment
Shapes:  B windows of one metering plan, T scans, S looks at a timeline

The root seed is fixed and shared with no training stream; metering plans, months and (in the held-out rows) families
and grids do not occur in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gg_ray.config import BALANCE_CASE, EvaluateConfig, ScenarioConfig
from gg_ray.evaluate.results import TimelineEvent
from gg_ray.grid import balance
from gg_ray.grid.cases import load_case
from gg_ray.records import FAMILIES, Bool, Context, Event, Labels, Program, Window
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.executors import executor_of
from gg_ray.scenario.gates import Gates
from gg_ray.scenario.grammar import PRIMITIVES, Stratum, first_family
from gg_ray.verifier.features import Featurizer, Prepared

SUITE_SEED = 20_261_122
"""Root of every suite; another one would be another benchmark."""
EVAL_PLANS = (1_000, 1_001)
"""Metering plans that training never draws."""
_TRIES = 40
DAY_SCANS = 1_440
NATURAL_EVENTS = 2
NATURAL = ("gen_trip", "line_switch", "load_step_large", "wind_ramp", "v_setpoint")
_LEAST_FIT, _LEAST_VALIDATION = 64, 128


@dataclass(slots=True)
class Group:
    """Windows of one metering plan with their truth."""

    prepared: Prepared
    labels: list[Labels]
    families: list[str]
    """Family of each window, "" for plausible ones."""
    d_eff: list[float]
    hard: list[bool]
    """Plausible-hard: a real disturbance is going on."""


@dataclass(slots=True)
class WindowSuite:
    """Gated windows: half implausible (equal numbers per family), half of the rest plausible-hard."""

    case: str
    fit: list[Prepared]
    """Benign training-month windows of the evaluation plans, for detectors that fit to a grid."""
    validation: list[Prepared]
    """Benign validation-month windows: thresholds come from these alone."""
    ordinary: list[Bool]
    """Which windows of each part of validation show no disturbance."""
    test: list[Group]
    solves: int
    digest: str


@dataclass(slots=True)
class Day:
    """One continuous record cut into windows that end at every stride-th scan."""

    prepared: Prepared
    events: tuple[TimelineEvent, ...]
    """In looks, not scans."""
    labels: list[Labels]
    attacked: int
    """Looks whose newest scan is attacked; an event takes in one look more, where an alarm may come."""


@dataclass(slots=True)
class TimelineSuite:
    """Continuous days. They are made while they are gone through and not kept: one takes tens of MiB."""

    case: str
    validation: Iterable[Day]
    test: Iterable[Day]
    looks_per_day: float


@dataclass(frozen=True, slots=True)
class _Days:
    """Days of one split, anew each time they are gone through; day i depends on i alone."""

    make: Callable[[int], Day | None]
    count: int

    def __iter__(self) -> Iterator[Day]:
        for index in range(self.count):
            day = self.make(index)
            if day is not None:
                yield day


def run_day(
    long: Executor, gates: Gates, context: Context, plan_id: int, events: Sequence[Event], rng: np.random.Generator
) -> Attempt | None:
    """A day of these events as executed; None where a gate stops it."""
    program = Program(
        case=long.case.name, context_id=context.context_id, plan_id=plan_id, events=tuple(events), scans=DAY_SCANS,
        seed=int(rng.integers(1 << 48)),
    )  # fmt: skip
    attempt = long.run([program], contexts=[context])[0]
    return None if gates.check([attempt], rng)[0] else attempt


class SuiteMaker:
    """Makes the suites of one grid.

    Invariant: depends on (case, scenario settings, sizes, context source) alone; the digest says which data came out.
    """

    def __init__(
        self, case: str, scenario: ScenarioConfig, sizes: EvaluateConfig, contexts: ContextSource,
        outages: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """outages: branches out of service throughout (see scenario.executor)."""
        self.case = load_case(case)
        self.sizes, self.contexts = sizes, contexts
        self.scenario = replace(scenario, gates="on", magnitude="d_eff", d_max=float("inf"), recheck_share=0.0)
        self.executor = executor_of(self.case, self.scenario, contexts, all_families=True, outages=outages)
        self.featurizer = Featurizer()
        self.plans = balance.CADENCE_PLANS if self.case.name == BALANCE_CASE else EVAL_PLANS

    def windows(self) -> WindowSuite:
        """The window suite."""
        families = [f for f in FAMILIES if self.executor.grammar.primitives("anomalous", f)]
        count = self.sizes.windows
        rng = self.rng(1)
        collected: list[tuple[Window, Labels, str, float, bool, int]] = []
        solves = 0
        for family in families:
            found, used = self._gated("test", Stratum("anomalous", family, self.case.name), count, rng)
            collected += found
            solves += used
        plausible = len(collected) // 2
        for side in ("hard", "ordinary"):
            found, used = self._gated("test", Stratum(side, "", self.case.name), plausible, rng)
            collected += found
            solves += used
        test = [self._group([item for item in collected if item[5] == plan]) for plan in self.plans]
        fit = self._benign("train", max(3 * count, _LEAST_FIT), self.rng(2))
        validation = self._benign("validation", max(4 * count, _LEAST_VALIDATION), self.rng(3))
        return WindowSuite(
            self.case.name, [g.prepared for g in fit], [g.prepared for g in validation],
            [np.array([not label.disturbance for label in g.labels]) for g in validation], test, solves,
            _digest([g.prepared for g in test]),
        )  # fmt: skip

    def validation_groups(self, families: Sequence[str], count: int) -> list[Group]:
        """A small set from validation months, for looks during training: some windows per family, as many plausible."""
        rng = self.rng(5)
        collected = []
        for family in families:
            if self.executor.grammar.primitives("anomalous", family):
                collected += self._gated("validation", Stratum("anomalous", family, self.case.name), count, rng)[0]
        for side in ("hard", "ordinary"):
            stratum = Stratum(side, "", self.case.name)
            collected += self._gated("validation", stratum, len(families) * count // 2, rng)[0]
        return [self._group([item for item in collected if item[5] == plan]) for plan in self.plans]

    def rng(self, *purpose: int) -> np.random.Generator:
        """The stream of a purpose on this grid: suites share none."""
        name = int.from_bytes(hashlib.blake2b(self.case.name.encode(), digest_size=4).digest(), "little")
        return np.random.default_rng([SUITE_SEED, purpose[0], name, *purpose[1:]])

    def programs(
        self, stratum: Stratum, count: int, rng: np.random.Generator, plans: Sequence[int]
    ) -> list[Program]:  # fmt: skip
        """Uniformly drawn programs of a stratum, plans in turn.  Raises: GrammarError where it has no primitive."""
        out = []
        for index in range(count):
            plan = plans[index % len(plans)]
            program = Program(
                case=self.case.name, context_id=int(rng.integers(1 << 48)), plan_id=plan,
                events=self.executor.grammar.uniform(stratum, plan, rng), scans=self.scenario.scans,
                seed=int(rng.integers(1 << 48)),
            )  # fmt: skip
            out.append(program)
        return out

    def _gated(
        self, split: str, stratum: Stratum, count: int, rng: np.random.Generator, plans: Sequence[int] = (),
    ) -> tuple[list[tuple[Window, Labels, str, float, bool, int]], int]:  # fmt: skip
        """Windows that pass the gates; fewer than count where a family hardly ever does. Twins are never used."""
        gates = Gates(self.executor, self.scenario)
        out: list[tuple[Window, Labels, str, float, bool, int]] = []
        solves = 0
        for _ in range(_TRIES):
            if len(out) >= count:
                break
            attempts = self.executor.run(
                self.programs(stratum, max(8, count - len(out)), rng, plans or self.plans), split
            )
            solves += sum(a.solves for a in attempts)
            for attempt, verdict in zip(attempts, gates.check(attempts, rng), strict=True):
                # A metering plan without a legal target turns an anomalous draw into a plausible one: not wanted here.
                if verdict or attempt.main is None or attempt.anomalous != (stratum.side == "anomalous"):
                    continue
                window, _ = self.executor.realise(attempt, 0)
                hard = any(PRIMITIVES[e.primitive].side == "hard" for e in attempt.program.events)
                family = first_family(attempt.program)
                out.append((window, attempt.main.labels, family, attempt.d_eff, hard, attempt.plan.plan_id))
        return out[:count], solves

    def _group(self, items: Sequence[tuple[Window, Labels, str, float, bool, int]]) -> Group:
        plan = self.executor.grammar.plan(items[0][5])
        prepared = self.featurizer.prepare([item[0] for item in items], plan)
        return Group(
            prepared, [i[1] for i in items], [i[2] for i in items], [i[3] for i in items], [i[4] for i in items]
        )  # fmt: skip

    def _benign(self, split: str, count: int, rng: np.random.Generator) -> list[Group]:
        """Plausible windows, half of them hard, one group per plan."""
        half = count // 2
        found = [
            item
            for side in ("hard", "ordinary")
            for item in self._gated(split, Stratum(side, "", self.case.name), half, rng)[0]
        ]
        return [self._group([item for item in found if item[5] == plan]) for plan in self.plans]

    # --- timelines --------------------------------------------------------------------------------------------------

    def timelines(self) -> TimelineSuite:
        """Whole days of one-minute scans: natural events, and in test days one attack episode of at most 12 scans."""
        long = Executor(self.case, self.scenario, self.contexts, all_families=True, scans=DAY_SCANS)
        families = [f for f in FAMILIES if self.executor.grammar.primitives("anomalous", f)]
        return TimelineSuite(
            self.case.name,
            _Days(lambda i: self._day(long, "validation", "", i, self.rng(4, i)), self.sizes.validation_days),
            _Days(lambda i: self._day(long, "test", families[i % len(families)], i, self.rng(6, i)), self.sizes.days),
            DAY_SCANS / self.sizes.stride,
        )  # fmt: skip

    def _day(self, long: Executor, split: str, family: str, index: int, rng: np.random.Generator) -> Day | None:
        """One day; None if no gated episode of the family was found."""
        plan_id = self.plans[index % len(self.plans)]
        context = self.contexts.day(index, self.scenario.step_s, split)
        gates = Gates(long, self.scenario)
        for _ in range(_TRIES):
            grammar = long.grammar
            plan = grammar.plan(plan_id)
            events = []
            if family:
                first = grammar.event(str(rng.choice(grammar.primitives("anomalous", family))), plan, rng)
                if first is None:
                    continue
                events.append(replace(first, onset=int(rng.integers(60, DAY_SCANS - 60))))
            for name in rng.choice(NATURAL, NATURAL_EVENTS):
                natural = grammar.event(str(name), plan, rng) if str(name) in grammar.benign_followers("hard") else None
                if natural is not None:
                    events.append(natural)
            attempt = run_day(long, gates, context, plan_id, events, rng)
            if attempt is None or attempt.main is None:
                continue
            whole, _ = long.realise(attempt, 0)
            return self.cut(whole, attempt.main.labels, family, plan_id)
        return None

    def cut(self, whole: Window, truth: Labels, family: str, plan_id: int) -> Day:
        """Windows ending at every stride-th scan; each sees its own past only."""
        scans, stride = self.scenario.scans, self.sizes.stride
        ends = np.arange(scans, whole.z_TM.shape[0] + 1, stride)
        windows, labels = [], []
        for end in ends:
            start = int(end) - scans
            attacked = truth.implausible and start < truth.end and end > truth.onset
            windows.append(slice_of(whole, start, int(end), self.case.tap, truth))
            labels.append(replace(truth, implausible=bool(attacked), type=truth.type if attacked else 0))
        prepared = self.featurizer.prepare(windows, self.executor.grammar.plan(plan_id))
        if not truth.implausible:
            return Day(prepared, (), labels, 0)
        hit = np.flatnonzero((ends > truth.onset) & (ends <= truth.end + stride))
        attacked = int(((ends > truth.onset) & (ends <= truth.end)).sum())
        return Day(prepared, (TimelineEvent(int(hit[0]), int(hit[-1]) + 1, family),), labels, attacked)


def slice_of(whole: Window, start: int, end: int, published_tap: np.ndarray, truth: Labels) -> Window:
    """One window of a day; ages restart at its first scan, wrongly declared models show during their episode only."""
    age = np.minimum(whole.age_TM[start:end], np.arange(end - start, dtype=np.uint8)[:, None] + 1)
    age = np.where(whole.age_TM[start:end] == 255, 255, np.where(whole.age_TM[start:end] == 0, 0, age)).astype(np.uint8)
    during = truth.implausible and truth.onset < end <= truth.end
    tap = published_tap.copy()
    if during:
        tap = whole.tap_E.copy()
    for branch, ratio, first in whole.moves:
        if first <= start:
            tap[branch] = ratio
    return Window(
        case=whole.case, plan_id=whole.plan_id, t0_ns=whole.t0_ns + int(start * whole.step_s * 1e9),
        step_s=whole.step_s, z_TM=whole.z_TM[start:end], age_TM=age, status_TE=whole.status_TE[start:end], tap_E=tap,
        x_scale_E=whole.x_scale_E if during else np.ones_like(whole.x_scale_E),
        moves=tuple((b, ratio, t - start) for b, ratio, t in whole.moves if start < t < end),
    )  # fmt: skip


def _digest(parts: Sequence[Prepared]) -> str:
    """Hash of the readings to six decimals: another process may differ in the last bit of a solve."""
    out = hashlib.blake2b(digest_size=8)
    for part in parts:
        out.update(np.ascontiguousarray(np.round(part.z_BTM, 6) + 0.0).tobytes())
    return out.hexdigest()
