"""Scenario benchmark: scans per second that one core turns from programs into gated telemetry, beside the bare solver.

Flow:    cli bench scenarios -> [bench.scenarios] -> one dict of numbers
Source:  selfplay.md, sections 4 and 20 (executor throughput); scenario.executor, scenario.gates, grid.powerflow
Units:   solved rows (scans of all worlds) per second of CPU time, one thread

Steady state is what is measured: metering plans, factorisations, compiled kernels and the executor's caches of the
programs' grid exist before the clock starts, as in an actor after its first minute. Programs are new in every round.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import GridCase, load_case, pandapower_net
from gg_ray.grid.powerflow import PowerFlow, Solution
from gg_ray.records import Program
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.gates import GateCounters, Gates
from gg_ray.scenario.grammar import Grammar, Stratum

REPEATS = 3
_RUNPP_SOLVES = 5
_RUNPP_SPREAD = 0.02


def draw_programs(grammar: Grammar, count: int, rng: np.random.Generator) -> list[Program]:
    """Uniform programs: every second one anomalous (training families in turn), of the others half plausible-hard."""
    families, out = grammar.families, []
    for index in range(count):
        side = "anomalous" if index % 2 else "hard" if index % 4 else "ordinary"
        family = families[index // 2 % len(families)] if index % 2 else ""
        plan_id = int(rng.integers(grammar.config.plans))
        events = grammar.uniform(Stratum(side, family, grammar.case.name), plan_id, rng)  # type: ignore[arg-type]
        program = Program(
            case=grammar.case.name, context_id=int(rng.integers(1 << 30)), plan_id=plan_id, events=events,
            scans=grammar.scans, seed=int(rng.integers(1 << 30)),
        )  # fmt: skip
        out.append(program)
    return out


def run(case: str = "gb", programs: int = 32, seed: int = 0) -> dict[str, Any]:
    """Rates of the whole scenario path and of its two yardsticks.

    Args:    case of load_case; programs per call; seed of programs, contexts and noise
    Returns: scenario_steps_per_s (execute, gate, one realisation of each passed window and its twin),
             raw_sweep_per_s (PowerFlow.solve alone on the rows of the same programs in the same run), runpp_per_s
             (pandapower's own Newton in a loop on the published net), runpp_lightsim_per_s (the same call where
             pandapower hands the solve to lightsim2grid), runpp_warm_per_s (that one started from the last result),
             their ratios, and what was measured.
    Raises:  CaseError for an unknown case.
    """
    grid = load_case(case)
    config = ScenarioConfig()
    executor = _TapedExecutor(grid, config, ClimatologySource())
    gates = Gates(executor, config)
    rng = np.random.default_rng(seed)
    for plan_id in range(config.plans):
        executor.detectability(executor.grammar.plan(plan_id)).modes(config.scans)
    _round(executor, gates, draw_programs(executor.grammar, programs, rng), rng)
    gates.counters = GateCounters()
    rows, windows = np.zeros(REPEATS), 0
    scenario_s, raw_s = np.empty(REPEATS), np.empty(REPEATS)
    for index in range(REPEATS):
        batch = draw_programs(executor.grammar, programs, rng)
        executor.calls.clear()
        started = time.process_time()
        rows[index], made = _round(executor, gates, batch, rng)
        scenario_s[index] = time.process_time() - started
        windows += made
        started = time.process_time()
        for engine, inputs in executor.calls:
            engine.solve(*inputs)
        raw_s[index] = time.process_time() - started
    scenario = float(rows.sum() / scenario_s.sum())
    raw = float(rows.sum() / raw_s.sum())
    runpp = _runpp(grid, rng, "auto", lightsim=False)
    fast, warm = _runpp(grid, rng, "auto", lightsim=True), _runpp(grid, rng, "results", lightsim=True)
    return {
        "scenario_steps_per_s": scenario,
        "raw_sweep_per_s": raw,
        "ratio_to_raw": scenario / raw,
        "runpp_per_s": runpp,
        "ratio_to_runpp": scenario / runpp,
        "runpp_lightsim_per_s": fast,
        "ratio_to_runpp_lightsim": scenario / fast,
        "runpp_warm_per_s": warm,
        "ratio_to_runpp_warm": scenario / warm,
        "scenario_steps_per_s_min": float((rows / scenario_s).min()),
        "scenario_steps_per_s_max": float((rows / scenario_s).max()),
        "windows_per_s": float(windows / scenario_s.sum()),
        "pass_rate": gates.counters.passed / max(gates.counters.seen, 1),
        "steps": int(rows.sum()),
        "windows": windows,
        "case": case,
        "buses": grid.n_bus,
        "scans": config.scans,
        "programs": programs,
        "repeats": REPEATS,
        "seed": seed,
    }


def _round(executor: Executor, gates: Gates, batch: list[Program], rng: np.random.Generator) -> tuple[int, int]:
    """Execute, gate and realise one call. Returns: solved rows, windows made."""
    attempts = executor.run(batch)
    verdicts = gates.check(attempts, rng)
    windows = 0
    for attempt, verdict in zip(attempts, verdicts, strict=True):
        if not verdict:
            _, twin = executor.realise(attempt, 0)
            windows += 1 if twin is None else 2
    return sum(attempt.solves for attempt in attempts), windows


def _runpp(grid: GridCase, rng: np.random.Generator, init: str, *, lightsim: bool) -> float:
    """Solves per CPU second of pandapower's runpp on the published net with slightly varied loads."""
    import pandapower as pp

    net = pandapower_net(grid.name)
    base = net.load["p_mw"].to_numpy().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pp.runpp(net, lightsim2grid=lightsim)
        started = time.process_time()
        for _ in range(_RUNPP_SOLVES):
            net.load["p_mw"] = base * (1 + _RUNPP_SPREAD * rng.standard_normal(base.size))
            pp.runpp(net, init=init, lightsim2grid=lightsim)
        return _RUNPP_SOLVES / (time.process_time() - started)


class _Tape:
    """A power-flow engine that remembers the inputs of its calls, so that they can be solved again alone."""

    def __init__(self, engine: PowerFlow, calls: list[tuple[PowerFlow, tuple[Any, ...]]]) -> None:
        self.engine, self.calls = engine, calls

    def solve(self, *inputs: Any) -> Solution:
        self.calls.append((self.engine, inputs))
        return self.engine.solve(*inputs)


class _TapedExecutor(Executor):
    """An executor whose solver calls are kept in `calls`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.calls: list[tuple[PowerFlow, tuple[Any, ...]]] = []

    def _engine(self, taps: tuple[tuple[int, float], ...]) -> PowerFlow:
        return _Tape(super()._engine(taps), self.calls)  # type: ignore[return-value]
