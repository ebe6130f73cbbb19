"""Programs of the national balance graph: record -> truth -> publication -> corrupted publication -> attempts.

Flow:    scenario.grammar (Program), scenario.balance_record -> [balance_executor] -> Attempt -> scenario.gates
Source:  docs/adr/0014-balance-graph.md; selfplay.md, sections 4 and 8 (label rule, twins)
Shapes:  T scans, C streams, N buses, M meters
Units:   MW and Hz in streams, p.u. in readings and states

The same contract as scenario.executor.Executor: same in, same out, and a twin differs by its cause alone. Truth is a
stretch of the real record (or of one drawn from its statistics), so what is usual keeps its real shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gg_ray.config import ScenarioConfig
from gg_ray.grid import balance as b
from gg_ray.grid.balance_estimation import BalanceDetectability, scale
from gg_ray.grid.cases import GridCase
from gg_ray.grid.meters import Delivery, MeterPlan, deliver
from gg_ray.records import F64, TYPES, Bool, Context, Event, Labels, Program, Window
from gg_ray.scenario.attempt import Attempt, Side, Trajectory
from gg_ray.scenario.balance_anomalies import LIMITS, SIZED, Corruption, NoEffect, corrupt
from gg_ray.scenario.balance_record import SPLIT_YEARS, BalanceRecord, load_record
from gg_ray.scenario.balance_worlds import Frame, apply_benign, cut, half_hours_needed, publish, read, vary
from gg_ray.scenario.context import ContextError, ContextSource
from gg_ray.scenario.grammar import D_EDGES, PRIMITIVES, Grammar, channel_of
from gg_ray.scenario.worlds import Neighbourhood, Readings, World

_CARRIED = {1_800.0: (0.3, 0.9, 0.3), 300.0: (0.9, 0.9, 0.0), 15.0: (1.0, 0.0, 0.0)}
"""Chance that a feed carries FREQ, ITSDO and embedded plant, per cadence; drawn without knowing the label."""
_FUELINST_AT_15_S = 0.6
"""Chance that a 15-s window carries FUELINST beside FREQ."""
_SILENCE_RATE = 0.1
"""Chance that a publication is missed for one to three scans of a window."""


_DELIVERIES = 8
"""Band in which the operator keeps frequency: a window that leaves it is a disturbance."""
_LAW_SLACK_MW = 5.0


def _laws(frame: Frame) -> F64:
    """[2, A + T] k and q of the truth."""
    return np.stack(b.laws(frame.truth_TC, np.isfinite(frame.truth_TC[:, b.LINKS])))


def _possible(frame: Frame, quiet_2T: F64) -> bool:
    """Whether a country could do this: no plant below nothing, no link above its rating, laws as before the events.

    Args: quiet_2T  k and q before the events; only an operator's change of station load may move k
    """
    x = frame.truth_TC
    moved = np.nan_to_num(np.abs(_laws(frame) - quiet_2T)).max(axis=1)
    links, pumped = np.nan_to_num(np.abs(x[:, b.LINKS])), np.abs(x[:, b.PS])
    return bool(
        x[:, b.NOT_LINKS].min() >= -_LAW_SLACK_MW
        and (links <= 1.1 * b.RATING_MW[b.LINKS]).all() and (pumped <= 1.1 * b.RATING_MW[b.PS]).all()
        and moved[1] <= _LAW_SLACK_MW and (frame.station_step or moved[0] <= _LAW_SLACK_MW)
    )  # fmt: skip


class BalanceExecutor:
    """Runs programs of gb-balance.

    Invariant: as Executor. Raises: GrammarError for an illegal program, ContextError where no stretch of the record is
    long enough.
    """

    def __init__(
        self, case: GridCase, config: ScenarioConfig, contexts: ContextSource, *, all_families: bool = False,
        scans: int | None = None, record: BalanceRecord | None = None,
    ) -> None:  # fmt: skip
        self.case, self.config, self.contexts = case, config, contexts
        self.grammar = Grammar(case, config, all_families=all_families, scans=scans)
        self.near = Neighbourhood(case)
        self.record = load_record(config.data_dir) if record is None else record
        self.as_recorded = False
        """Carry what the half-hourly record carries and lose nothing on the way: for suites beside the real record."""
        self._detect = functools.cache(lambda plan_id: BalanceDetectability(self.grammar.plan(plan_id)))
        self._runs = functools.cache(self._places)

    def detectability(self, plan: MeterPlan) -> BalanceDetectability:
        """d_eff of one cadence."""
        return self._detect(plan.plan_id)

    def run(
        self, programs: Sequence[Program], split: str = "train", contexts: Sequence[Context] | None = None
    ) -> list[Attempt]:
        """Execute programs; contexts, where given, say which split each one is of."""
        out = []
        for index, program in enumerate(programs):
            self.grammar.validate(program)
            if program.scans != self.grammar.scans:
                raise ContextError(f"{program.scans} scans in a program; this executor runs {self.grammar.scans}")
            out.append(self._attempt(program, contexts[index].split if contexts is not None else split))
        return out

    def realise(self, attempt: Attempt, noise_seed: int) -> tuple[Window, Window | None]:
        """One delivery of an attempt and of its twin: publications are exact, so what differs is what arrives."""
        if attempt.main is None:
            raise ValueError("an attempt without telemetry")
        rng = np.random.default_rng([attempt.program.seed, 2, noise_seed])
        lost = self._lost(attempt.plan, attempt.context.scans, rng)
        if attempt.twin is not None:
            differs = np.nan_to_num(attempt.main.mean_TM) != np.nan_to_num(attempt.twin.mean_TM)
            for _ in range(_DELIVERIES):  # a lie that never arrives is no lie
                if (differs & ~lost).any():
                    break
                lost = self._lost(attempt.plan, attempt.context.scans, rng)
            else:
                lost = np.zeros_like(lost)
        windows = [
            None if side is None else self._window(attempt, side, lost) for side in (attempt.main, attempt.twin)
        ]  # fmt: skip
        assert windows[0] is not None
        return windows[0], windows[1]

    # --- from program to attempt --------------------------------------------------------------------------------------

    def _places(self, split: str, need: int) -> tuple[list[tuple[int, int]], F64]:
        runs = self.record.runs(SPLIT_YEARS[split], need)
        if not runs:
            raise ContextError(f"{self.record.origin}: no {need} unbroken trusted half-hours in the {split} years")
        return runs, np.cumsum([count - need + 1 for _, count in runs]).astype(np.float64)

    def frame(self, context_id: int, plan_id: int, scans: int, split: str) -> Frame:
        """The truth of a context: where in the record it lies, and what is random about it."""
        rng = np.random.default_rng([context_id & 0xFFFFFFFF, context_id >> 32, 0xBA1A])
        step = b.cadence_of(plan_id)
        need = half_hours_needed(scans, step)
        runs, upto = self._runs(split, need)
        pick = int(rng.integers(int(upto[-1])))
        at = int(np.searchsorted(upto, pick, side="right"))
        first = runs[at][0] + pick - int(upto[at - 1] if at else 0)
        frame = cut(self.record, first, int(rng.integers(int(1_800 / step))), scans, step, rng)
        for chance, channels in zip(
            _CARRIED[step], ((b.FREQ,), (b.ITSDO,), (b.EMBEDDED_WIND, b.EMBEDDED_SOLAR)), strict=True
        ):  # fmt: skip
            frame.known[list(channels)] = rng.random() < chance
        if step == 15.0:
            frame.known[: b.N_SUPPLY] = rng.random() < _FUELINST_AT_15_S
        if self.as_recorded:
            frame.known[[b.FREQ, b.EMBEDDED_WIND, b.EMBEDDED_SOLAR]] = False
            frame.known[[*range(b.N_SUPPLY), b.ITSDO]] = True
        if split == "train":
            vary(frame, rng)
        return frame

    def _attempt(self, program: Program, split: str) -> Attempt:
        rng = np.random.default_rng([program.seed, 1])
        plan = self.grammar.plan(program.plan_id)
        frame = self.frame(program.context_id, program.plan_id, program.scans, split)
        anomaly: Event | None = None
        quiet = _laws(frame)
        for event in program.events:
            if PRIMITIVES[event.primitive].side == "anomalous":
                anomaly = event
            else:
                apply_benign(frame, event, channel_of(event.target), rng)
        truth = frame.truth_TC[frame.before :]
        injection = b.injections_of(truth)
        frequency = truth[:, b.FREQ] / b.F0_HZ
        trajectory = self._trajectory(injection, frequency)
        context = Context(
            context_id=program.context_id, t0_ns=frame.t0_ns, step_s=frame.step_s,
            load_T=truth[:, b.INDO] / 33_000.0, wind_T=np.clip(truth[:, b.CHANNELS.index("WIND")] / 21_000.0, 0, 1),
            shape_T=np.clip(truth[:, :9].sum(axis=1) / np.maximum(truth[:, b.INDO], 1.0), 0, 1), split=split,
            origin=self.record.origin,
        )  # fmt: skip
        published = publish(frame)
        honest = read(frame, published)
        # what no feed of this window carries cannot be asked of its judge
        away = np.abs(truth[:, b.FREQ] - b.F0_HZ).max() if frame.known[b.FREQ] else 0.0
        severity = float(np.clip((away - b.OPERATIONAL_HZ) / 0.3, 0, 1))
        disturbed = frame.disturbed or severity > 0
        attempt = Attempt(
            program=program, context=context, plan=plan, main=None, twin=None, d_eff=0.0, d_target=0.0,
            converged=bool(np.isfinite(trajectory.v_TN).all()), split=False, in_bounds=_possible(frame, quiet),
            reachable=True, material=np.inf, solves=program.scans, trajectory=trajectory,
        )  # fmt: skip
        if anomaly is None:
            attempt.main = self._side(honest, trajectory, self._labels(disturbed, severity))
            return attempt
        attempt.d_target = float(np.exp(rng.uniform(*np.log(D_EDGES[anomaly.magnitude : anomaly.magnitude + 2]))))
        sign = 1.0 if rng.random() < 0.5 else -1.0
        try:
            found = corrupt(frame, published, anomaly, channel_of(anomaly.target), rng)
        except NoEffect as reason:
            attempt.reachable = False
            attempt.notes.append(str(reason))
            return attempt
        false, lying = self._sized(attempt, frame, published, honest, found, sign)
        labels = self._labels(disturbed, severity)
        labels.implausible, labels.type = True, TYPES.index(PRIMITIVES[anomaly.primitive].family)
        labels.node_N[[b.BUS_OF_CHANNEL[c] for c in found.channels]] = True
        # where readings differ, not where the feed began to lie: a mean over six scans, or one value in twenty
        differs = np.flatnonzero((np.nan_to_num(lying) != np.nan_to_num(honest)).any(axis=1))
        labels.onset, labels.end = (int(differs[0]), int(differs[-1]) + 1) if differs.size else (0, 1)
        attempt.main = self._side(lying, trajectory, labels)
        attempt.twin = self._side(honest, trajectory, self._labels(disturbed, severity))
        change = np.nan_to_num(np.abs(false - published))[frame.before :].max(axis=0)
        attempt.material = float((change / LIMITS).max())
        return attempt

    def _sized(
        self, attempt: Attempt, frame: Frame, published: F64, honest: F64, found: Corruption, sign: float
    ) -> tuple[F64, F64]:  # fmt: skip
        """The corrupted publication and its readings; sized families are scaled until d_eff is what was asked for."""
        assert attempt.program.events
        name = next(e.primitive for e in attempt.program.events if PRIMITIVES[e.primitive].side == "anomalous")
        detect = self.detectability(attempt.plan)
        unit = found.value_TC - published
        factor = sign if name in SIZED else 1.0
        sigma = scale(honest[None], attempt.plan)[0]
        false, lying = found.value_TC, honest
        for _ in range(4 if name in SIZED else 1):
            false = published + factor * unit
            false[:, : b.FREQ] = np.round(false[:, : b.FREQ])  # whole megawatts, as every publication
            lying = read(frame, false)
            there = np.isfinite(lying) & np.isfinite(honest)
            d = np.sqrt(detect.of(np.where(there, lying - honest, 0.0), there, sigma))
            attempt.d_eff = float(d)
            if name not in SIZED or d == 0 or abs(d / attempt.d_target - 1) < 0.05:
                break
            factor *= attempt.d_target / d
        return false, lying

    def _trajectory(self, injection: F64, frequency: F64) -> Trajectory:
        scans, n = injection.shape
        load, gen = np.zeros((scans, n)), injection.copy()
        load[:, [b.DEMAND, b.STATION]] = -injection[:, [b.DEMAND, b.STATION]]
        gen[:, [b.DEMAND, b.STATION]] = 0.0
        gen_v = np.ones((scans, n))
        gen_v[:, b.HUB] = frequency
        never = np.zeros((scans, n), dtype=bool)
        world = World(load, np.zeros((scans, n)), gen, gen_v, np.zeros((scans, self.case.n_branch), dtype=bool), never)
        v = b.state_of(injection, frequency)
        return Trajectory(
            world=world, v_TN=v, h_TM=np.zeros((scans, 0)), converged=True, split=False, status_TE=~world.out, moves=()
        )

    def _side(self, mean: F64, trajectory: Trajectory, labels: Labels) -> Side:
        return Side(
            mean, trajectory.status_TE, self.case.tap, np.ones(self.case.n_branch), (), Readings(), trajectory.v_TN,
            labels,
        )  # fmt: skip

    def _labels(self, disturbed: bool, severity: float) -> Labels:
        return Labels(
            implausible=False, disturbance=disturbed, severity=severity, type=0,
            node_N=np.zeros(self.case.n_bus, dtype=bool), edge_E=np.zeros(self.case.n_branch, dtype=bool), onset=-1,
            end=-1,
        )  # fmt: skip

    # --- delivery -----------------------------------------------------------------------------------------------------

    def _lost(self, plan: MeterPlan, scans: int, rng: np.random.Generator) -> Bool:
        """[T, M] readings that do not arrive: single streams, and whole publications for a while."""
        if self.as_recorded:
            return np.zeros((scans, plan.size), dtype=bool)
        lost: Bool = np.asarray(np.less(rng.random((scans, plan.size)), plan.missing_rate))
        lost[:, [*b.LAWS, *range(b.M_STATION_USUAL, plan.size)]] = False  # computed here, from what arrived
        for meters in (np.arange(b.M_SUPPLY.start, b.M_SUPPLY.stop), np.array([b.M_INDO]), np.array([b.M_FREQUENCY])):
            if rng.random() < _SILENCE_RATE:
                start = int(rng.integers(0, scans))
                lost[start : start + int(rng.integers(1, 4)), meters] = True
        needed: Bool = np.asarray(lost[:, [*range(b.M_SUPPLY.start, b.M_SUPPLY.stop), b.M_INDO]].any(axis=1))
        reach = 6 if b.cadence_of(plan.plan_id) == 300.0 else 1
        for back in range(reach):
            lost[back:, list(b.LAWS)] |= needed[: scans - back, None]
        return lost

    def _window(self, attempt: Attempt, side: Side, lost: Bool) -> Window:
        scans = lost.shape[0]
        absent = lost | ~np.isfinite(side.mean_TM)
        still = np.tile(np.arange(scans)[:, None], (1, lost.shape[1]))
        z, age = deliver(np.nan_to_num(side.mean_TM), Delivery(source_TM=still, absent_TM=absent))
        return Window(
            case=attempt.program.case, plan_id=attempt.plan.plan_id, t0_ns=attempt.context.t0_ns,
            step_s=attempt.context.step_s, z_TM=z, age_TM=age, status_TE=side.status_TE.astype(np.uint8),
            tap_E=side.tap_E, x_scale_E=side.x_scale_E,
        )  # fmt: skip
