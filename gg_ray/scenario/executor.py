"""Program -> worlds -> solved trajectories -> attempts: the part that knows the truth.

Flow:    scenario.grammar (Program) -> [executor: worlds, power flow] -> scenario.sizing -> scenario.telemetry
         -> Attempt -> scenario.gates
Source:  selfplay.md, sections 4 and 5
Shapes:  P programs of one grid, T scans, N buses, E branches, M installed meters
Units:   p.u., rad

One power-flow sweep serves all programs of a call. Twins need no solve of their own except where the hidden cause
moved the physics (theft, masked faults). Everything random comes from (program.seed, noise seed): same in, same out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import GridCase
from gg_ray.grid.detectability import Detectability, LinearFlow
from gg_ray.grid.faults import FaultModel
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.grid.outages import without
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import branch_admittance
from gg_ray.records import F64, Context, Event, Program, Window
from gg_ray.scenario import sizing, telemetry
from gg_ray.scenario.alteration import C128, Scene, meters_of
from gg_ray.scenario.anomalies_hidden import hidden_load_unit
from gg_ray.scenario.attacks import Attacker
from gg_ray.scenario.attempt import Attempt, Job, Trajectory
from gg_ray.scenario.context import ContextError, ContextSource
from gg_ray.scenario.grammar import D_EDGES, PRIMITIVES, Grammar
from gg_ray.scenario.worlds import (
    LOAD_NOISE,
    LOAD_RHO,
    TYPICAL_DEMAND,
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

SOLVER_TOL_PU = 1e-7
"""Newton tolerance: two decades below the judge's limit; on `gb` the judge then sees at most 1e-9 p.u."""
_TAPPED_ENGINES = 32
_REPLAY_LEVEL = (0.02, 0.2)
"""How far the demand level of a replayed hour may lie from the present one."""


def _typical_state(case: GridCase) -> C128 | None:
    """[N] state at the demand that worlds have on average: nearer to every row than the base state is.

    None (the base state) where it does not converge.
    """
    solution = PowerFlow(case, tol_pu=SOLVER_TOL_PU).solve(
        case.load_p[None] * TYPICAL_DEMAND, case.load_q[None] * TYPICAL_DEMAND, case.gen_p[None] * TYPICAL_DEMAND,
        case.gen_v[None],
    )  # fmt: skip
    return solution.v_RN[0] if solution.converged_R[0] else None


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
        scans: int | None = None, outages: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """outages: branches out of service before, during and after every program, as everybody is told."""
        self.case, self.config, self.contexts = case, config, contexts
        self.outages = list(outages)
        self.known = without(case, self.outages)
        """The grid as operators, attackers and detectability know it."""
        self.grammar = Grammar(case, config, all_families=all_families, scans=scans, outages=outages)
        self.fleet = Fleet(case)
        self.near = self.fleet.near
        self.attacker = Attacker(self.known)
        self.linear = LinearFlow(self.known)
        self._admittance = branch_admittance(case)
        self.faults = FaultModel(self.known)
        self._flow = PowerFlow(case, tol_pu=SOLVER_TOL_PU, start_N=_typical_state(case))
        self._tapped: OrderedDict[Taps, PowerFlow] = OrderedDict()
        self._detect: dict[int, Detectability] = {}
        self._unit_d2: dict[tuple[int, int, int, int], float] = {}

    def detectability(self, plan: MeterPlan) -> Detectability:
        """d_eff of one metering plan, built once."""
        if plan.plan_id not in self._detect:
            self._detect[plan.plan_id] = Detectability(self.known, plan, LOAD_NOISE, LOAD_RHO)
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
        sizing.size(jobs, self._scene, self.detectability, physical=self.config.magnitude == "physical")
        return [telemetry.finish(self.case, job) for job in jobs]

    def realise(self, attempt: Attempt, noise_seed: int) -> tuple[Window, Window | None]:
        """One noise realisation of an attempt and of its twin (see `telemetry.realise`)."""
        return telemetry.realise(attempt, noise_seed)

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

    def _prepare(self, program: Program, context: Context) -> Job:
        rng = np.random.default_rng([program.seed, 1])
        plan = self.grammar.plan(program.plan_id)
        quiet = self.fleet.world(context, rng)
        quiet.out[:, self.outages] = True
        readings = Readings()
        anomaly: Event | None = None
        disturbed = False
        for event in program.events:
            primitive = PRIMITIVES[event.primitive]
            if primitive.side == "anomalous":
                anomaly = event
                continue
            meters = (
                meters_of(plan, event) if primitive.place == "meter" else np.zeros(0, dtype=np.int64)
            )  # fmt: skip
            apply_benign(self.fleet, quiet, event, meters, readings, rng)
            disturbed |= primitive.side == "hard"
        job = Job(program=program, context=context, plan=plan, anomaly=anomaly, readings=readings, disturbed=disturbed)
        job.sign = 1.0 if rng.random() < 0.5 else -1.0
        if anomaly is not None:
            low, high = D_EDGES[anomaly.magnitude], D_EDGES[anomaly.magnitude + 1]
            job.target = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        job.worlds = [quiet]
        if anomaly is not None:
            self._hidden_physics(job, quiet, anomaly, rng)
        return job

    def _hidden_physics(self, job: Job, quiet: World, event: Event, rng: np.random.Generator) -> None:
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
        elif name in ("undeclared_gen_trip", "coordinated_trip"):
            true = quiet.copy()
            job.lost = lose_unit(self.fleet, true, event.target, active_scans(event, scans), rng)
            job.worlds = [quiet, true] if name == "coordinated_trip" else [true]
        elif name in ("theft", "unmetered_injection"):
            size = self._hidden_load_size(job, event, scans)
            job.lost = -size if name == "theft" else size
            true = quiet.copy()
            when = active_scans(event, scans)
            true.load_p[when, event.target] -= job.lost
            job.worlds = [quiet, true]

    def _hidden_load_size(self, job: Job, event: Event, scans: int) -> float:
        """Hidden demand in p.u. whose d_eff is the target; the innovation is linear in it, so no search is needed."""
        if self.config.magnitude == "physical":
            return sizing.physical_size(event) * 0.01
        when = active_scans(event, scans)
        key = (job.plan.plan_id, event.target, when.start, when.stop)
        if key not in self._unit_d2:
            shape = np.zeros(scans)
            shape[when] = 1.0
            unit = hidden_load_unit(job.plan, self.case, event.target, shape)
            self._unit_d2[key] = float(self.detectability(job.plan).squared([unit], scans)[0])
        return float(job.target / np.sqrt(max(self._unit_d2[key], 1e-12)))

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
        for index, (world, plan) in enumerate(zip(worlds, plans, strict=True)):
            part = slice(index * scans, (index + 1) * scans)
            trajectory = Trajectory(
                world=world, v_TN=v[part], h_TM=self._readings(v[part], world, plan),
                converged=bool(converged[part].all()),
                split=bool(split[part].any()), status_TE=~world.out, moves=tuple(world.taps),
            )  # fmt: skip
            result.append(trajectory)
        return result

    def _readings(self, v_TN: C128, world: World, plan: MeterPlan) -> F64:
        """[T, M] noise-free values of a plan's meters; stretches with moved taps use their own admittances."""
        status = ~world.out if world.out.any() else None
        safe = np.where(np.isfinite(v_TN), v_TN, 1.0)
        h = np.empty((v_TN.shape[0], plan.size))
        for when, taps in tap_stretches(world.taps, v_TN.shape[0]):
            y = branch_admittance(with_taps(self.case, taps)) if taps else self._admittance
            h[when] = measure(self.case, safe[when], y, None if status is None else status[when], plan.channels)
        return h

    def _engine(self, taps: Taps) -> PowerFlow:
        if not taps:
            return self._flow
        if taps not in self._tapped:
            self._tapped[taps] = _TappedFlow(self._flow, taps)
            if len(self._tapped) > _TAPPED_ENGINES:
                self._tapped.popitem(last=False)
        return self._tapped[taps]

    def _scene(self, job: Job) -> Scene:
        true, quiet = job.solved[-1], job.solved[0]
        return Scene(
            case=self.known, plan=job.plan, fleet=self.fleet, attacker=self.attacker, linear=self.linear,
            faults=self.faults,
            v_TN=true.v_TN, h_TM=true.h_TM, quiet_h_TM=quiet.h_TM,
            load_p_TN=true.world.load_p, sign=job.sign, target_d=job.target, lost_p=job.lost,
        )  # fmt: skip
