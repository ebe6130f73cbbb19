"""Program -> solved trajectories -> telemetry -> labels: the part that knows the truth.

Flow:    scenario.grammar (Program) -> [executor] -> scenario.gates -> realise -> verifier.features -> replay
Source:  selfplay.md, sections 4-6, 8 and 9; label rule in README
Shapes:  P programs of one grid, T scans, N buses, E branches, F full layout, M installed meters
Units:   p.u., rad

One power-flow sweep serves all programs of a call. Twins need no solve of their own except where the hidden cause
moved the physics (theft, coordinated). Everything random comes from (program.seed, noise seed): same in, same out.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.estimation import Detectability, LinearFlow
from gg_ray.grid.meters import Delivery, MeterPlan, deliver, draw_delivery, measure
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import branch_admittance
from gg_ray.records import F64, TYPES, Bool, Context, Event, Labels, Program, Window
from gg_ray.scenario import anomalies
from gg_ray.scenario.anomalies import Alteration, Scene, Unreachable
from gg_ray.scenario.attacks import Attacker
from gg_ray.scenario.context import ContextError, ContextSource
from gg_ray.scenario.grammar import D_EDGES, PRIMITIVES, Grammar
from gg_ray.scenario.worlds import (
    LOAD_NOISE,
    LOAD_RHO,
    Fleet,
    Readings,
    Taps,
    World,
    active_scans,
    apply_benign,
    lose_unit,
    tap_stretches,
    with_taps,
)

C128 = NDArray[np.complex128]
_PHYSICAL_UNIT = 0.4
"""Magnitude mode "physical": bin b means this many meter sigmas times 1.3^b; most of it lies below the noise."""
SOLVER_TOL_PU = 1e-7
"""Newton tolerance: two decades below the judge's limit; on `gb` the judge then sees at most 1e-9 p.u."""
_TAPPED_ENGINES = 32
_MAX_SECANT = 4
"""The linear guess and at most three corrections towards the target d_eff."""
_REPLAY_LEVEL = (0.02, 0.2)
"""How far the demand level of a replayed hour may lie from the present one."""


@dataclass(slots=True)
class Trajectory:
    """A solved world: states [T, N], noise-free readings [T, M], declarations that describe it truthfully."""

    v_TN: C128
    h_TM: F64
    converged: bool
    split: bool
    status_TE: Bool
    moves: tuple[tuple[int, float, int], ...]
    """Declared tap moves: branch, ratio, first scan."""


@dataclass(slots=True)
class Side:
    """What one window of a pair tells the control room (before noise)."""

    mean_TM: F64
    status_TE: Bool
    tap_E: F64
    x_scale_E: F64
    moves: tuple[tuple[int, float, int], ...]
    readings: Readings
    state_TN: C128
    labels: Labels


@dataclass(slots=True, kw_only=True)
class Attempt:
    """An executed program: the window, its benign twin where there is an anomaly, and how detectable it is."""

    program: Program
    context: Context
    plan: MeterPlan
    main: Side | None
    twin: Side | None
    d_eff: float
    d_target: float
    converged: bool
    split: bool
    in_bounds: bool
    reachable: bool
    material: float
    """Largest effect in units of the materiality limits (gate G3 needs 1)."""
    solves: int
    trajectory: Trajectory | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def anomalous(self) -> bool:
        return bool(self.main is not None and self.main.labels.implausible)

    def digest(self) -> str:
        """Hash of every float64 array of the attempt: two executions with one seed must agree (gate G2)."""
        out = hashlib.blake2b(digest_size=16)
        for side in (self.main, self.twin):
            if side is not None:
                for array in (side.mean_TM, side.state_TN, side.tap_E, side.x_scale_E, side.status_TE):
                    out.update(np.ascontiguousarray(array).tobytes())
        out.update(repr((self.d_eff, self.converged, self.reachable)).encode())
        return out.hexdigest()


class _TappedFlow(PowerFlow):
    """The same grid with other tap ratios: a copied model solves to the same bits as a new one, 40 times sooner."""

    def __init__(self, base: PowerFlow, taps: Taps) -> None:
        self.__dict__.update(base.__dict__)
        self.case = with_taps(base.case, taps)
        self._model = base._model.copy()
        for branch, ratio in taps:
            self._model.change_ratio_trafo(int(np.searchsorted(base._trafos, branch)), ratio)
        self._sweep = self._shape = None


class Executor:
    """Runs programs of one grid.

    Invariant: labels follow from what the program did; a benign twin differs from its scenario only by the cause.
    Raises:    GrammarError for an illegal program, ContextError or CaseError for unusable inputs.
    """

    def __init__(
        self, case: GridCase, config: ScenarioConfig, contexts: ContextSource, *, all_families: bool = False,
        scans: int | None = None,
    ) -> None:  # fmt: skip
        self.case, self.config, self.contexts = case, config, contexts
        self.grammar = Grammar(case, config, all_families=all_families, scans=scans)
        self.fleet = Fleet(case)
        self.attacker = Attacker(case)
        self.linear = LinearFlow(case)
        self._flow = PowerFlow(case, tol_pu=SOLVER_TOL_PU)
        self._tapped: OrderedDict[Taps, PowerFlow] = OrderedDict()
        self._detect: dict[int, Detectability] = {}
        self._unit_d2: dict[tuple[int, int, int, int], float] = {}

    def detectability(self, plan: MeterPlan) -> Detectability:
        """d_eff of one metering plan, built once."""
        if plan.plan_id not in self._detect:
            self._detect[plan.plan_id] = Detectability(self.case, plan, LOAD_NOISE, LOAD_RHO)
        return self._detect[plan.plan_id]

    # --- public -----------------------------------------------------------------------------------------------------

    def run(
        self, programs: Sequence[Program], split: str = "train", contexts: Sequence[Context] | None = None
    ) -> list[Attempt]:
        """Execute programs of this grid in one sweep.

        Args: split  which months the contexts come from; contexts  overrides them (timelines)
        """
        jobs = []
        for index, program in enumerate(programs):
            self.grammar.validate(program)
            context = contexts[index] if contexts is not None else self.contexts.window(
                program.context_id, program.scans, self.config.step_s, split
            )  # fmt: skip
            self._check_context(program, context)
            jobs.append(self._prepare(program, context))
        worlds = [world for job in jobs for world in job.worlds]
        solved = self._solve(worlds, [job.plan for job in jobs for _ in job.worlds])
        cursor = 0
        for job in jobs:
            job.solved = solved[cursor : cursor + len(job.worlds)]
            cursor += len(job.worlds)
        self._size(jobs)
        return [self._finish(job) for job in jobs]

    def _check_context(self, program: Program, context: Context) -> None:
        for name, series in (("load_T", context.load_T), ("wind_T", context.wind_T)):
            bad = np.flatnonzero(~np.isfinite(series))
            if bad.size:
                raise ContextError(
                    f"context {context.context_id}: {name} is {series[bad[0]]} at scan {bad[0]}; leave the gap out"
                )
        if not program.scans == context.scans == self.grammar.scans:
            raise ContextError(
                f"context {context.context_id}: {context.scans} scans for a program of {program.scans}; "
                f"this executor runs {self.grammar.scans}"
            )

    # --- worlds -----------------------------------------------------------------------------------------------------

    def _prepare(self, program: Program, context: Context) -> _Job:
        rng = np.random.default_rng([program.seed, 1])
        plan = self.grammar.plan(program.plan_id)
        quiet = self.fleet.world(context, rng)
        readings = Readings()
        anomaly: Event | None = None
        disturbed = False
        for event in program.events:
            primitive = PRIMITIVES[event.primitive]
            if primitive.side == "anomalous":
                anomaly = event
                continue
            meters = (
                anomalies.meters_of(plan, event) if primitive.place == "meter" else np.zeros(0, dtype=np.int64)
            )  # fmt: skip
            apply_benign(self.fleet, quiet, event, meters, readings, rng)
            disturbed |= primitive.side == "hard"
        job = _Job(program=program, context=context, plan=plan, anomaly=anomaly, readings=readings, disturbed=disturbed)
        job.sign = 1.0 if rng.random() < 0.5 else -1.0
        if anomaly is not None:
            low, high = D_EDGES[anomaly.magnitude], D_EDGES[anomaly.magnitude + 1]
            job.target = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        job.worlds = [quiet]
        if anomaly is not None:
            self._hidden_physics(job, quiet, anomaly, rng)
        return job

    def _hidden_physics(self, job: _Job, quiet: World, event: Event, rng: np.random.Generator) -> None:
        """Worlds in which something happens that telemetry or declarations hide: the true one goes last."""
        name, scans = event.primitive, quiet.load_p.shape[0]
        if name in ("undeclared_line_outage", "coordinated"):
            true = quiet.copy()
            true.out[active_scans(event, scans), event.target - self.case.n_bus] = True
            job.worlds = [quiet, true] if name == "coordinated" else [true]
        elif name == "replay":
            # The recording is of another hour: same grid and meters, demand and dispatch at another level.
            recorded = quiet.copy()
            level = 1.0 + job.sign * rng.uniform(*_REPLAY_LEVEL)
            recorded.load_p *= level
            recorded.load_q *= level
            recorded.gen_p *= level
            job.worlds = [recorded, quiet]
        elif name == "undeclared_gen_trip":
            job.lost = lose_unit(self.fleet, quiet, event.target, active_scans(event, scans), rng)
        elif name in ("theft", "unmetered_injection"):
            size = self._hidden_load_size(job, event, scans)
            job.lost = -size if name == "theft" else size
            true = quiet.copy()
            when = active_scans(event, scans)
            true.load_p[when, event.target] -= job.lost
            job.worlds = [quiet, true]

    def _hidden_load_size(self, job: _Job, event: Event, scans: int) -> float:
        """Hidden demand in p.u. whose d_eff is the target; the innovation is linear in it, so no search is needed."""
        if self.config.magnitude == "physical":
            return self._raw_size(event) * 0.01
        when = active_scans(event, scans)
        key = (job.plan.plan_id, event.target, when.start, when.stop)
        if key not in self._unit_d2:
            shape = np.zeros(scans)
            shape[when] = 1.0
            unit = anomalies.hidden_load_unit(job.plan, self.case, event.target, shape, 1.0)
            self._unit_d2[key] = float(self.detectability(job.plan).squared([unit], scans)[0])
        return float(job.target / np.sqrt(max(self._unit_d2[key], 1e-12)))

    @staticmethod
    def _raw_size(event: Event) -> float:
        return float(_PHYSICAL_UNIT * 1.3**event.magnitude * 0.25)

    def _solve(self, worlds: list[World], plans: list[MeterPlan]) -> list[Trajectory]:
        """Power flow of all rows, base taps in one sweep, moved taps in one sweep per declared ratio."""
        case = self.case
        scans = worlds[0].load_p.shape[0]
        count = len(worlds)
        load_p = np.concatenate([w.load_p for w in worlds])
        load_q = np.concatenate([w.load_q for w in worlds])
        gen_p = np.concatenate([w.gen_p for w in worlds])
        gen_v = np.concatenate([w.gen_v for w in worlds])
        out = np.concatenate([w.out for w in worlds])
        gen_out = np.concatenate([w.gen_out for w in worlds])
        v = np.full((count * scans, case.n_bus), np.nan, dtype=np.complex128)
        converged, split = np.zeros(count * scans, dtype=bool), np.zeros(count * scans, dtype=bool)
        groups: dict[Taps, list[NDArray[np.int64]]] = {}
        for index, world in enumerate(worlds):
            at = np.arange(index * scans, (index + 1) * scans)
            for when, taps in tap_stretches(world.taps, scans):
                groups.setdefault(taps, []).append(at[when])
        for taps, parts in groups.items():
            rows = np.concatenate(parts)
            flow = self._engine(taps)
            branch_out = out[rows] if out[rows].any() else None
            machine_out = gen_out[rows] if gen_out[rows].any() else None
            solution = flow.solve(load_p[rows], load_q[rows], gen_p[rows], gen_v[rows], branch_out, machine_out)
            v[rows], converged[rows], split[rows] = solution.v_RN, solution.converged_R, solution.split_R
        result = []
        h_all = self._readings(v, out, worlds, scans)
        for index, (world, plan) in enumerate(zip(worlds, plans, strict=True)):
            part = slice(index * scans, (index + 1) * scans)
            trajectory = Trajectory(
                v_TN=v[part], h_TM=h_all[part][:, plan.channels], converged=bool(converged[part].all()),
                split=bool(split[part].any()), status_TE=~world.out, moves=tuple(world.taps),
            )  # fmt: skip
            result.append(trajectory)
        return result

    def _readings(self, v: C128, out: Bool, worlds: list[World], scans: int) -> F64:
        """Noise-free values of every channel; windows with moved taps are measured with their own admittances."""
        status = ~out if out.any() else None
        safe = np.where(np.isfinite(v), v, 1.0)
        h = measure(self.case, safe, status_RE=status)
        for index, world in enumerate(worlds):
            for when, taps in tap_stretches(world.taps, scans):
                if not taps:
                    continue
                rows = slice(index * scans + when.start, index * scans + when.stop)
                y = branch_admittance(with_taps(self.case, taps))
                h[rows] = measure(self.case, safe[rows], y, None if status is None else status[rows])
        return h

    def _engine(self, taps: Taps) -> PowerFlow:
        if not taps:
            return self._flow
        if taps not in self._tapped:
            self._tapped[taps] = _TappedFlow(self._flow, taps)
            if len(self._tapped) > _TAPPED_ENGINES:
                self._tapped.popitem(last=False)
        return self._tapped[taps]

    # --- sizes ------------------------------------------------------------------------------------------------------

    def _size(self, jobs: list[_Job]) -> None:
        """Give every sized anomaly the magnitude whose d_eff is its target, and every anomaly its exact d_eff."""
        live = [job for job in jobs if job.anomaly is not None and job.solved[-1].converged and job.solved[0].converged]
        for job in live:
            assert job.anomaly is not None
            try:
                _check_clear(job)
                job.scene = self._scene(job)
                job.alteration = anomalies.build(job.scene, job.anomaly)
            except Unreachable as reason:
                job.notes.append(str(reason))
        by_plan: dict[int, list[_Job]] = {}
        for job in live:
            if job.alteration is not None:
                by_plan.setdefault(job.plan.plan_id, []).append(job)
        for members in by_plan.values():
            detect = self.detectability(members[0].plan)
            scans = members[0].context.scans
            self._measure_d(detect, members, scans)
            for _ in range(_MAX_SECANT):
                again = [job for job in members if self._rescale(job)]
                if not again:
                    break
                exact = [job for job in again if not job.linear_size]
                if exact:
                    self._measure_d(detect, exact, scans)

    def _measure_d(self, detect: Detectability, jobs: list[_Job], scans: int) -> None:
        seen = [_delivered(job.alteration, job.readings) for job in jobs if job.alteration is not None]
        squared = detect.squared([change.innovation() for change in seen], scans)
        for job, change, value in zip(jobs, seen, squared, strict=True):
            job.mean_d2 = float(value)
            job.d_eff = float(np.sqrt(value + change.extra_d2))

    def _rescale(self, job: _Job) -> bool:
        """Move a sized alteration towards its target; True if it changed. Linear families are exact at once."""
        unit, event = job.alteration, job.anomaly
        if unit is None or event is None or job.scene is None or not unit.sized or job.done:
            return False
        if not unit.in_bounds and job.d_eff <= job.target:
            return False  # only a smaller size can come back inside its bounds
        if self.config.magnitude == "physical":
            job.factor, job.done = self._raw_size(event), True
        else:
            if job.mean_d2 <= 1e-12:
                job.done = True
                job.notes.append("no meter sees it")
                job.d_eff = 0.0
                return False
            if job.factor != 0.0 and abs(job.d_eff / job.target - 1) < 0.1:
                return False
            base = job.factor if job.factor != 0.0 else 1.0
            job.factor = base * job.target / job.d_eff
        nonlinear = event.primitive in _NONLINEAR
        if nonlinear:
            job.alteration = anomalies.resize(job.scene, event, _start(job), job.factor)
        else:
            job.alteration = anomalies.resize(job.scene, event, unit, job.factor)
            job.d_eff = float(np.sqrt(job.mean_d2) * abs(job.factor))
            job.mean_d2 = job.d_eff**2
            job.done = job.linear_size = True
        return True

    def _scene(self, job: _Job) -> Scene:
        true, quiet = job.solved[-1], job.solved[0]
        return Scene(
            case=self.case, plan=job.plan, fleet=self.fleet, attacker=self.attacker, linear=self.linear,
            v_TN=true.v_TN, h_TM=true.h_TM, quiet_h_TM=quiet.h_TM, sign=job.sign, target_d=job.target, lost_p=job.lost,
        )  # fmt: skip

    # --- results ----------------------------------------------------------------------------------------------------

    def _finish(self, job: _Job) -> Attempt:
        true, quiet = job.solved[-1], job.solved[0]
        converged = true.converged and quiet.converged
        attempt = Attempt(
            program=job.program, context=job.context, plan=job.plan, main=None, twin=None, d_eff=0.0,
            d_target=job.target, converged=converged, split=true.split or quiet.split, in_bounds=True, reachable=True,
            material=np.inf, solves=sum(t.v_TN.shape[0] for t in job.solved), notes=job.notes, trajectory=true,
        )  # fmt: skip
        if not converged:
            return attempt
        severity = self._severity(true)
        ones = np.ones(self.case.n_branch)
        if job.anomaly is None:
            attempt.main = Side(
                true.h_TM, true.status_TE, self.case.tap, ones, true.moves, job.readings, true.v_TN,
                self._plain(job, severity),
            )  # fmt: skip
            return attempt
        alteration = job.alteration
        if alteration is None:
            attempt.reachable = False
            return attempt
        attempt.d_eff, attempt.in_bounds = job.d_eff, alteration.in_bounds
        attempt.main = self._altered(job, alteration, true, severity)
        attempt.twin = self._twin(job, true, quiet, severity)
        attempt.material = self._material(job, alteration, attempt.main)
        return attempt

    def _altered(self, job: _Job, change: Alteration, true: Trajectory, severity: float) -> Side:
        mean = true.h_TM.copy()
        shift = np.where(_held(change), 0.0, change.shift_Tc)
        for column, meter in enumerate(change.meters.tolist()):  # a meter may be listed twice (coordinated)
            mean[:, meter] += shift[:, column]
        status, tap, x_scale = true.status_TE.copy(), self.case.tap.copy(), np.ones(self.case.n_branch)
        assert job.anomaly is not None
        if job.anomaly.primitive in ("undeclared_line_outage", "coordinated"):
            status[:, job.anomaly.target - self.case.n_bus] = True
        if change.open_branch is not None:
            status[change.start : change.stop, change.open_branch] = False
        if change.tap is not None:
            tap[change.tap[0]] = change.tap[1]
        if change.x_scale is not None:
            x_scale[change.x_scale[0]] = change.x_scale[1]
        readings = Readings(
            holds=job.readings.holds + change.readings.holds, noise=job.readings.noise + change.readings.noise,
            absent=job.readings.absent,
        )  # fmt: skip
        labels = self._plain(job, severity)
        labels.implausible = True
        labels.type = TYPES.index(PRIMITIVES[job.anomaly.primitive].family)
        labels.node_N[list(change.buses)] = True
        labels.edge_E[list(change.branches)] = True
        labels.onset, labels.end = change.start, change.stop
        labels.disturbance |= job.anomaly.primitive in _PHYSICAL_CAUSES
        return Side(mean, status, tap, x_scale, true.moves, readings, true.v_TN, labels)

    def _twin(self, job: _Job, true: Trajectory, quiet: Trajectory, severity: float) -> Side:
        """The same window without the cause (data, attack, theft) or with a true declaration (topology, trip)."""
        assert job.anomaly is not None
        truthful = job.anomaly.primitive in _DECLARED_TWIN
        base = true if truthful or job.anomaly.primitive == "replay" else quiet
        labels = self._plain(job, severity)
        labels.disturbance |= truthful and job.anomaly.primitive in _PHYSICAL_CAUSES
        return Side(
            base.h_TM, base.status_TE, self.case.tap, np.ones(self.case.n_branch), base.moves, job.readings, base.v_TN,
            labels,
        )  # fmt: skip

    def _plain(self, job: _Job, severity: float) -> Labels:
        return Labels(
            implausible=False, disturbance=job.disturbed or severity > 0, severity=severity, type=0,
            node_N=np.zeros(self.case.n_bus, dtype=bool), edge_E=np.zeros(self.case.n_branch, dtype=bool),
            onset=-1, end=-1,
        )  # fmt: skip

    def _severity(self, true: Trajectory) -> float:
        """How far the true state leaves its limits: 0 inside, 1 at 10 % voltage or 50 % loading beyond them."""
        case = self.case
        vm = np.abs(true.v_TN)
        volts = np.maximum(case.v_min - vm, vm - case.v_max).max()
        return float(np.clip(volts / 0.1, 0.0, 1.0)) if volts > 1e-3 else 0.0

    def _material(self, job: _Job, change: Alteration, side: Side) -> float:
        """Largest effect in units of the limits: flow 2 % of rating, |V| 0.5 %, P injection 2 % of the bus's peak."""
        case, plan = self.case, job.plan
        scale = materiality_scale(case.name)
        effect = np.abs(change.shift_Tc + change.model_Tc).max(axis=0, initial=0.0)
        spread = 0.0
        for meters, factor in change.readings.noise:
            spread = max(spread, float((plan.sigma[meters] * factor.max() / scale[plan.channels[meters]]).max()))
        if any(meters.size for meters, _ in change.readings.holds):
            spread = max(spread, 1.0 if change.stop - change.start >= 4 else 0.0)
        seen = float((effect / scale[plan.channels[change.meters]]).max()) if change.meters.size else 0.0
        n = case.n_bus
        hidden = np.abs(change.u_Tk).max(axis=0, initial=0.0)
        pseudo_channel = np.where(change.pseudo < n, n + change.pseudo, 2 * n + change.pseudo - n)
        unseen = float((hidden / scale[pseudo_channel]).max()) if change.pseudo.size else 0.0
        return max(seen, unseen, spread)

    # --- telemetry --------------------------------------------------------------------------------------------------

    def realise(self, attempt: Attempt, noise_seed: int) -> tuple[Window, Window | None]:
        """One noise realisation of an attempt and of its twin: same noise, same delivery, only the cause differs."""
        if attempt.main is None:
            raise ValueError("an attempt that did not converge has no telemetry")
        plan, scans = attempt.plan, attempt.context.scans
        rng = np.random.default_rng([attempt.program.seed, 2, noise_seed])
        noise = rng.standard_normal((scans, plan.size), dtype=np.float32) * plan.sigma
        delivery = draw_delivery(plan, scans, rng)
        windows = [
            self._telemetry(attempt, side, noise, delivery) if side is not None else None
            for side in (attempt.main, attempt.twin)
        ]  # fmt: skip
        assert windows[0] is not None
        return windows[0], windows[1]

    def _telemetry(self, attempt: Attempt, side: Side, noise: F64, delivery: Delivery) -> Window:
        scaled = noise
        if side.readings.noise:
            scaled = noise.copy()
            for meters, factor in side.readings.noise:
                scaled[:, meters] *= factor[:, None]
        reading = side.mean_TM + scaled
        for meters, source in side.readings.holds:
            reading[:, meters] = reading[source][:, meters]
        absent = delivery.absent_TM
        if side.readings.absent:
            absent = absent.copy()
            for meters, gone in side.readings.absent:
                absent[:, meters] |= gone[:, None]
        z, age = deliver(reading, Delivery(source_TM=delivery.source_TM, absent_TM=absent))
        return Window(
            case=self.case.name, plan_id=attempt.plan.plan_id, t0_ns=attempt.context.t0_ns,
            step_s=attempt.context.step_s, z_TM=z, age_TM=age, status_TE=side.status_TE.astype(np.uint8),
            tap_E=side.tap_E, x_scale_E=side.x_scale_E, moves=side.moves,
        )  # fmt: skip


_NONLINEAR = ("wrong_tap", "wrong_line_parameter", "stealth_fdia", "ramp_fdia", "partial_fdia", "wrong_model_fdia")
_DECLARED_TWIN = ("wrong_breaker_status", "undeclared_line_outage", "wrong_tap", "wrong_line_parameter",
                  "undeclared_gen_trip", "coordinated")  # fmt: skip
_PHYSICAL_CAUSES = ("undeclared_line_outage", "undeclared_gen_trip", "coordinated")
"""Hidden events that are real: the disturbance flag stays visible beside the implausible one."""


@dataclass(slots=True, kw_only=True)
class _Job:
    program: Program
    context: Context
    plan: MeterPlan
    anomaly: Event | None
    readings: Readings
    disturbed: bool
    sign: float = 1.0
    target: float = 0.0
    lost: float = 0.0
    worlds: list[World] = field(default_factory=list)
    solved: list[Trajectory] = field(default_factory=list)
    scene: Scene | None = None
    alteration: Alteration | None = None
    mean_d2: float = 0.0
    d_eff: float = 0.0
    factor: float = 0.0
    done: bool = False
    linear_size: bool = False
    notes: list[str] = field(default_factory=list)


def _start(job: _Job) -> Alteration:
    assert job.alteration is not None
    return job.alteration


def _check_clear(job: _Job) -> None:
    """Unreachable where a declared event moves the very branch whose declaration the anomaly falsifies.

    A declared opening or tap move of that branch would overwrite the false declaration, or be overwritten by it.
    """
    assert job.anomaly is not None
    if PRIMITIVES[job.anomaly.primitive].place not in ("line", "tap"):
        return
    for event in job.program.events:
        if event.primitive in ("line_switch", "tap_move") and event.target == job.anomaly.target:
            raise Unreachable(f"{job.anomaly.primitive}: {event.primitive} declares the same branch")


def _delivered(change: Alteration, readings: Readings) -> Alteration:
    """What is left of an alteration where a declared meter outage hides some of its readings."""
    gone = np.zeros_like(change.shift_Tc, dtype=bool)
    for meters, absent in readings.absent:
        gone |= np.isin(change.meters, meters) & absent[:, None]
    if not gone.any():
        return change
    share = 1.0 - float(gone[change.start : change.stop].mean())
    return replace(
        change, shift_Tc=np.where(gone, 0.0, change.shift_Tc), model_Tc=np.where(gone, 0.0, change.model_Tc),
        extra_d2=change.extra_d2 * share,
    )  # fmt: skip


def _held(change: Alteration) -> Bool:
    """[c] meters whose shift comes from held readings: it must not be added to the mean a second time."""
    held = np.zeros(change.meters.size, dtype=bool)
    for meters, _ in change.readings.holds:
        held |= np.isin(change.meters, meters)
    return held


@functools.lru_cache(maxsize=16)
def materiality_scale(case_name: str) -> F64:
    """[F] materiality limit of each channel, p.u."""
    case = load_case(case_name)
    n = case.n_bus
    base = measure(case, case.v0[None])[0]
    typical = float(np.median(case.load_p[case.load_p > 0.01])) if (case.load_p > 0.01).any() else 0.1
    peak = np.maximum(np.maximum(np.abs(case.load_p), np.abs(base[n : 2 * n])), 0.5 * typical)
    flow = 0.02 * np.maximum(case.rate, 0.05)
    angle = np.full(n, np.deg2rad(0.25))
    return np.concatenate([np.full(n, 0.005), 0.02 * peak, 0.02 * peak, angle, flow, flow, flow, flow])
