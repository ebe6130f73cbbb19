"""Realised against budgeted incidents on unseen simulated benign days of a held-out grid, for four kinds of threshold.

Run:     python benchmarks/calibration.py --case case39 --calibration-days 30 --test-days 30
Source:  verifier.md, sections 7 and 9 (goal D10: realised / budgeted within .8 to 1.25)
Shapes:  S scans of a day, N buses

Scores: the Verifier's logit of *implausible* (one per scan, of the window that ends there), the largest normalised
residual of each bus (one per bus and scan, incidents grouped over neighbouring buses) and chi-square (one per scan).
Days are whole days of one-minute scans with two natural events each; calibration days are from validation months, test
days from test months. A look of the first 15 scans of a day has no whole window: the Verifier is silent there.

iid       per-scan conformal p-value with tail below budget / (scans * places a day): what independent scans would need
block     threshold_for: incidents after grouping on whole days
at_most   conformal risk control with days as the unit
adaptive  starts at block, then follows the incidents of each test day
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gg_ray import provenance
from gg_ray.baselines.base import bus_maximum
from gg_ray.baselines.physics import ChiSquare
from gg_ray.calibration.adaptive import AdaptiveLevel
from gg_ray.calibration.budget import at_most, dedup_scans, incident_levels, incidents_at, threshold_for
from gg_ray.calibration.conformal import CalibrationError, Table, make_table
from gg_ray.config import ScenarioConfig
from gg_ray.evaluate.metrics import bootstrap_ci
from gg_ray.evaluate.scoring import NetworkMethod
from gg_ray.evaluate.suites import EVAL_PLANS, SUITE_SEED, slice_of
from gg_ray.grid.cases import load_case
from gg_ray.records import F64, I64, Labels, Program
from gg_ray.scenario.context import context_source
from gg_ray.scenario.executor import Executor
from gg_ray.score import find_registry, load_network
from gg_ray.verifier.features import Featurizer, Prepared
from gg_ray.verifier.model import Verifier

SCANS = 1_440
GAP = dedup_scans(SCANS)
BLOCK = 96
"""Looks whose features are made at a time."""
NATURAL = ("gen_trip", "line_switch", "load_step_large", "wind_ramp", "v_setpoint")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    score: str
    budget: float
    variant: str
    realised: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval of the ratio over test days (bootstrap of whole days); calibration is held fixed."""
    note: str = ""


def benign_days(case_name: str, split: str, count: int, data_dir: str | None) -> list[Prepared]:
    """Whole days of one metering plan, each with two natural events."""
    case, scenario = load_case(case_name), ScenarioConfig()
    contexts = context_source(data_dir)
    executor = Executor(case, scenario, contexts, all_families=True, scans=SCANS)
    plan, featurizer, out = executor.grammar.plan(EVAL_PLANS[0]), Featurizer(), list[Prepared]()
    for index in range(count):
        rng = np.random.default_rng([SUITE_SEED, 77, ("train", "validation", "test").index(split), index])
        context = contexts.day(index, scenario.step_s, split)
        while True:  # a day whose power flow fails is drawn anew
            drawn = [executor.grammar.event(str(name), plan, rng) for name in rng.choice(NATURAL, 2)]
            program = Program(
                case=case_name, context_id=context.context_id, plan_id=plan.plan_id, scans=SCANS,
                events=tuple(event for event in drawn if event is not None), seed=int(rng.integers(1 << 48)),
            )  # fmt: skip
            [attempt] = executor.run([program], contexts=[context])
            if attempt.main is not None:
                break
        window, _ = executor.realise(attempt, 0)
        out.append(featurizer.prepare([window], plan))
    return out


def chi_square(days: Sequence[Prepared]) -> list[F64]:
    """[S] of each day."""
    detector = ChiSquare()
    detector.fit(days[:1], np.random.default_rng(0))
    return [detector.standardised(day)[0] for day in days]


def bus_residuals(days: Sequence[Prepared]) -> list[F64]:
    """[S, N] of each day."""
    return [bus_maximum(day.case, day.plan, np.abs(day.r_BTM[0])) for day in days]


def verifier_logits(network: Verifier, days: Sequence[Prepared], scans: int) -> list[F64]:
    """[S] of each day: the logit of the window of `scans` scans that ends with each scan, lowest before the first."""
    method, out = NetworkMethod("verifier", network), []
    for day in days:
        ends = np.arange(scans, SCANS + 1)
        parts = [method.output(_looks(day, ends[i : i + BLOCK], scans)).score_B for i in range(0, ends.size, BLOCK)]
        logits = np.concatenate(parts)
        out.append(np.concatenate([np.full(scans - 1, logits.min()), logits]))
    return out


def _looks(day: Prepared, ends: I64, scans: int) -> Prepared:
    """Windows of a day that end before scans `ends`; the estimate of a scan is that of the day."""
    at = ends[:, None] + np.arange(-scans, 0)
    quiet = Labels(
        implausible=False, disturbance=False, severity=0.0, type=0, node_N=np.zeros(day.case.n_bus, dtype=bool),
        edge_E=np.zeros(day.case.n_branch, dtype=bool), onset=-1, end=-1,
    )  # fmt: skip
    windows = [slice_of(day.windows[0], int(end) - scans, int(end), day.case.tap, quiet) for end in ends]
    return Prepared(day.case, day.plan, windows, day.z_BTM[0][at], day.r_BTM[0][at], day.v_BTN[0][at])


def rows_of(
    name: str, calibration: list[F64], test: list[F64], edges: I64 | None, budgets: Sequence[float]
) -> list[Row]:
    """All variants at all budgets for one score."""
    levels = incident_levels(calibration, GAP, SCANS, edges)
    pooled = np.concatenate([day.ravel() for day in calibration])
    table = make_table(pooled, np.repeat(np.arange(len(calibration)), calibration[0].size))
    out = []
    for budget in budgets:
        variants: dict[str, Callable[[], list[int]]] = {
            "iid": lambda b=budget: _fixed(test, score_at(table, b / calibration[0].size), edges),
            "block": lambda b=budget: _fixed(test, threshold_for(levels, b).value, edges),
            "at_most": lambda b=budget: _fixed(test, at_most(levels, b), edges),
            "adaptive": lambda b=budget: _adaptive(test, threshold_for(levels, b).value, b, table, edges),
        }
        for variant, run in variants.items():
            try:
                counts = np.array(run(), dtype=np.float64) / budget
            except CalibrationError as error:
                out.append(Row(score=name, budget=budget, variant=variant, note=str(error)))
                continue
            found = bootstrap_ci(counts, np.random.default_rng(0))
            out.append(
                Row(score=name, budget=budget, variant=variant, realised=found.mean * budget, ratio=found.mean,
                    low=found.low, high=found.high)
            )  # fmt: skip
    return out


def score_at(table: Table, p: float) -> float:
    """Largest score whose p-value is still above p, by bisection: p falls as the score rises."""
    low, high = float(table.value_V[0]), float(table.value_V[-1])
    while table.p([high])[0] > p and high < 1e6:
        high = high + max(1.0, abs(high))
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if table.p([middle])[0] > p else (low, middle)
    return low


def _fixed(test: list[F64], threshold: float, edges: I64 | None) -> list[int]:
    return [incidents_at(day, threshold, GAP, edges) for day in test]


def _adaptive(test: list[F64], start: float, budget: float, table: Table, edges: I64 | None) -> list[int]:
    """The level moves in decades of the pooled p-value of a score; it is turned back into a score for each day."""
    level = float(-np.log10(table.p([start])[0]))
    state, counts = AdaptiveLevel(level=level, budget=budget, lower=max(0.5, level - 1.5), upper=level + 1.5), []
    for day in test:
        counts.append(incidents_at(day, score_at(table, 10.0**-state.level), GAP, edges))
        state = state.after(counts[-1], 1.0)
    return counts


def main() -> None:
    """Prints the table and, last, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="case39")
    parser.add_argument("--calibration-days", type=int, default=30)
    parser.add_argument("--test-days", type=int, default=30)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 1.0, 2.0, 5.0])
    parser.add_argument("--run", default=None, help="run whose champion is asked; the packaged model when not given")
    parser.add_argument("--data-dir", default=None, help="real GB record; the packaged climatology when not given")
    options = parser.parse_args()
    case = load_case(options.case)
    edges = np.stack([case.f_bus, case.t_bus])
    network, version = load_network(find_registry(Path("runs"), options.run or "shipped"), "champion")
    known = benign_days(options.case, "validation", options.calibration_days, options.data_dir)
    unseen = benign_days(options.case, "test", options.test_days, options.data_dir)
    looks = [verifier_logits(network, days, ScenarioConfig().scans) for days in (known, unseen)]
    rows = rows_of("verifier", looks[0], looks[1], None, options.budgets)
    rows += rows_of("bus residuals", bus_residuals(known), bus_residuals(unseen), edges, options.budgets)
    rows += rows_of("chi-square", chi_square(known), chi_square(unseen), None, options.budgets)
    print(f"{'score':<14} {'budget':>6} {'variant':<9} {'realised':>8} {'ratio':>6}  95 % interval")
    for row in rows:
        if row.ratio is None:
            print(f"{row.score:<14} {row.budget:>6g} {row.variant:<9} {row.note}")
        else:
            left = f"{row.score:<14} {row.budget:>6g} {row.variant:<9} {row.realised:>8.2f} {row.ratio:>6.2f}"
            print(f"{left}  {row.low:.2f} to {row.high:.2f}")
    print(json.dumps({
        "case": options.case, "calibration_days": options.calibration_days, "test_days": options.test_days,
        "seed": SUITE_SEED, "model": version.id, "commit": provenance.git_commit(),
        "machine": provenance.machine_info(), "rows": [asdict(row) for row in rows],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
