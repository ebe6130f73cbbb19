"""Cells to rows: every suite, fold, grid and method of the core benchmark.

Flow:    core_cells -> [core_tables] -> CoreRow -> core_claims, core_report, results.json
Source:  selfplay.md, sections 17.2 and 17.5; verifier.md, section 3
Shapes:  B windows, S looks

Thresholds come from validation windows and days alone. Nothing is point-adjusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.core_cells import Cells
from gg_ray.evaluate.core_job import CLASSICAL, RIVALS, adaptive_part
from gg_ray.evaluate.core_plan import (
    ADAPTIVE,
    NATURAL,
    SUITES,
    CoreSizes,
    Suite,
    negatives_of,
)
from gg_ray.evaluate.core_score import Scorer, probabilities
from gg_ray.evaluate.core_timelines import PLACE, oracle_figures, places, timeline_figures
from gg_ray.evaluate.results import MACRO, ORACLE, POOLED, Row
from gg_ray.evaluate.scoring import FPR
from gg_ray.records import F64, FOLDS, I64, TYPES, Bool
from gg_ray.scenario.grammar import training_families

STEALTHY = "stealthy"
"""Family of the row over dangerous anomalies that pass both classical tests."""
STEALTH_TESTS = ("chi2", "lnr")
STEALTH_FPR = 0.01
PREVALENCES = {"auprc": 0.5, "auprc_1pct": 0.01}
D_BINS = (4.0, 6.0, 9.0, 14.0, 22.0)
"""Inner edges of d_eff bins; with the family they are the behaviour cells of cvar20."""
LEAST_IN_CELL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreRow:
    """A row of the contract with what it belongs to, and the figures that the contract does not name."""

    suite: str
    kind: str
    """windows or timelines."""
    case: str
    fold: int
    model: str
    seed: int
    row: Row
    more: Mapping[str, float | None]
    count: int
    """Windows or episodes behind the row."""

    def figure(self, name: str) -> float | None:
        """A figure of either part by name, None where it does not apply."""
        value: float | None = self.more[name] if name in self.more else getattr(self.row, name, None)
        return value


@dataclass(slots=True)
class Told:
    """One method on one part: columns of its record."""

    score_B: F64
    record: Mapping[str, Any]


class Tables:
    """Rows of one folder.

    Invariant: reads cells only; a suite whose cells are missing is left out and named by `absent`.
    """

    def __init__(self, cells: Cells, sizes: CoreSizes, scorers: Sequence[Scorer]) -> None:
        self.cells, self.sizes = cells, sizes
        self.runs = [s for s in scorers if s.about]
        self.detectors = [s.key for s in scorers if s.key in (CLASSICAL, RIVALS)]
        self._methods = {s.key: [m.name for m in s.methods] for s in scorers}
        self.absent: list[str] = []
        self._facts: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self._told: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        self._thresholds: dict[tuple[str, str, str, float], float] = {}

    # --- what is there ----------------------------------------------------------------------------------------------

    def facts(self, kind: str, case: str, part: str) -> list[dict[str, Any]]:
        key = (kind, case, part)
        if key not in self._facts:
            self._facts[key] = self.cells.facts(kind, case, part) or []  # type: ignore[arg-type]
        return self._facts[key]

    def records(self, kind: str, case: str, part: str, scorer: str) -> dict[str, Any]:
        """By method; empty for a cell that is not there."""
        key = (kind, case, part, scorer)
        if key not in self._told:
            self._told[key] = self.cells.records(kind, case, part, scorer) or {}  # type: ignore[arg-type]
        return self._told[key]

    def methods_of(self, scorer: str) -> list[str]:
        """Methods of a scorer by name; empty for one that this folder does not know."""
        return list(self._methods.get(scorer, ()))

    def threshold(self, case: str, scorer: str, method: str, fpr: float = FPR) -> float:
        """Window threshold of a method on a grid, from benign validation windows."""
        key = (case, scorer, method, fpr)
        if key not in self._thresholds:
            held = self.records("windows", case, "validation", scorer)[method]["score"]
            self._thresholds[key] = metrics.threshold_for_fpr(held, fpr)
        return self._thresholds[key]

    def members(self, suite: Suite, fold: int, case: str, kind: str = "windows") -> I64:
        """Positions in a part that belong to a suite of a fold.

        A masked fault whose fault the fold holds out belongs to no suite: it is neither known nor one of the families
        that the fold tests.
        """
        known = set(training_families(fold))
        facts = self.facts(kind, case, str(suite.part))
        if kind == "timelines":
            facts = [day["fact"] or {"family": "", "needs": ()} for day in facts]
        if suite.held_out:
            return np.array([i for i, f in enumerate(facts) if f["family"] in FOLDS[fold]], dtype=np.int64)
        return np.array(
            [i for i, f in enumerate(facts) if f["family"] in known and set(f["needs"]) <= known], dtype=np.int64
        )

    def stealthy(self, case: str, part: str) -> Bool:
        """[B] windows that move the estimate into danger and pass both classical tests at their 1 % threshold."""
        told = self.records("windows", case, part, CLASSICAL)
        moved = np.array([f["moved"] for f in self.facts("windows", case, part)])
        if any(name not in told for name in STEALTH_TESTS):
            return np.zeros(moved.size, dtype=bool)
        passes = [
            np.array(told[name]["score"]) <= self.threshold(case, CLASSICAL, name, STEALTH_FPR)
            for name in STEALTH_TESTS
        ]
        return np.asarray((moved >= 1.0) & np.logical_and.reduce(passes))

    # --- rows -------------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[CoreRow]:
        """All rows, suites in their order."""
        out: list[CoreRow] = []
        for suite in SUITES.values():
            for case in self.sizes.seen if suite.seen_grid else self.sizes.unseen:
                out += self._suite(suite, case)
        for case in self.sizes.unseen:
            out += self._suite(SUITES[NATURAL], case)
        return out

    def _suite(self, suite: Suite, case: str) -> list[CoreRow]:
        out: list[CoreRow] = []
        seen_folds: set[int] = set()
        for run in self.runs:
            fold = int(run.about["fold"])
            # rows of detectors and the ceiling depend on the fold alone: once each
            scorers = [run.key, *run.beside, *(() if fold in seen_folds else self.detectors)]
            seen_folds.add(fold)
            if suite.name == NATURAL:
                out += self._natural(case, run, scorers)
            elif suite.name == ADAPTIVE:
                if case == self.sizes.seen[0]:
                    out += self._adaptive(case, run)
            else:
                at = self.members(suite, fold, case)
                out += self._windows(suite.name, str(suite.part), case, run, scorers, at)
                if suite.timeline and suite.part in self.sizes.day_parts:
                    out += self._timelines(suite, case, run, scorers)
        return out

    def _windows(
        self, suite: str, part: str, case: str, run: Scorer, scorers: Sequence[str], at: I64
    ) -> list[CoreRow]:  # fmt: skip
        facts = self.facts("windows", case, part)
        if not at.size:
            self.absent.append(f"{suite} on {case}, fold {run.about['fold']}: no window")
            return []
        families = sorted({facts[i]["family"] for i in at}, key=results.family_order)
        calm = negatives_of(part)
        stealthy = at[self.stealthy(case, part)[at]]
        sets = {family: np.array([i for i in at if facts[i]["family"] == family]) for family in families}
        out: list[CoreRow] = []
        for scorer in scorers:
            told = self.records("windows", case, part, scorer)
            negative = self.records("windows", case, calm, scorer)
            for method in told:
                threshold = self.threshold(case, scorer, method)
                figures = {
                    name: self._figures(method, name, told[method], rows, facts, negative[method], threshold)
                    for name, rows in {**sets, POOLED: at, **({STEALTHY: stealthy} if stealthy.size else {})}.items()
                }
                macro = _macro(method, [figures[f] for f in families], figures[POOLED])
                cells = {"cvar20": self._cvar(told[method], at, facts, threshold)}
                out += [self._row(suite, "windows", case, run, *figures[f], len(sets[f])) for f in families]
                out.append(self._row(suite, "windows", case, run, macro[0], {**macro[1], **cells}, at.size))
                if stealthy.size:
                    out.append(self._row(suite, "windows", case, run, *figures[STEALTHY], stealthy.size))
        if CLASSICAL in scorers:
            ceiling = [results.oracle_row(f, _column(facts, "d_eff", sets[f]), fpr=FPR) for f in families]
            for oracle, count in zip(ceiling, map(len, sets.values()), strict=True):
                out.append(self._row(suite, "windows", case, run, oracle, {}, count))
            out.append(self._row(suite, "windows", case, run, results.macro_row(ORACLE, ceiling), {}, at.size))
        return out

    def _figures(
        self, method: str, family: str, told: Mapping[str, Any], at: I64, facts: Sequence[Mapping[str, Any]],
        negative: Mapping[str, Any], threshold: float,
    ) -> tuple[Row, dict[str, float | None]]:  # fmt: skip
        """Figures of one method on some windows against the plausible ones of the grid."""
        positive, calm = np.array(told["score"])[at], np.array(negative["score"])
        values: dict[str, float | None] = {
            "balanced_accuracy": metrics.balanced_accuracy(calm, positive, threshold),
            "auroc": metrics.auroc(calm, positive),
            "recall_at_fpr": metrics.recall_at_fpr(calm, positive, FPR),
            "ceiling": float(metrics.oracle_accuracy(_column(facts, "d_eff", at)).mean()),
        }
        more: dict[str, float | None] = {"recall": float((positive > threshold).mean())}
        for name, share in PREVALENCES.items():
            value = min(1.0, metrics.auprc(calm, positive, share))
            (values if name == "auprc" else more)[name] = value
        if family == POOLED and "type" in told:
            truth = np.array([TYPES.index(facts[i]["family"]) for i in at])
            values["type_f1"] = _finite(metrics.type_macro_f1(truth, np.array(told["type"])[at]))
        if family == POOLED and "prob" in told:
            prob = np.r_[probabilities(told)[at], probabilities(negative)]
            values["ece"] = metrics.ece(prob, np.r_[np.ones(at.size), np.zeros(calm.size)])
        values |= places([{name: told[name][i] for name in PLACE if name in told} for i in at], negative)
        return Row(method=method, family=family, **values), more

    def _cvar(self, told: Mapping[str, Any], at: I64, facts: Sequence[Mapping[str, Any]], threshold: float) -> float:
        hits = np.array(told["score"])[at] > threshold
        return cvar_over_cells(hits.astype(float), behaviour_cells([facts[i] for i in at]))

    def _timelines(self, suite: Suite, case: str, run: Scorer, scorers: Sequence[str]) -> list[CoreRow]:
        part = str(suite.part)
        at = self.members(suite, int(run.about["fold"]), case, "timelines")
        if not at.size:
            self.absent.append(f"{suite.name} on {case}, fold {run.about['fold']}: no day with an episode")
            return []
        facts = self.facts("timelines", case, part)
        days = [facts[i] for i in at]
        tests = self.records("timelines", case, part, CLASSICAL)
        benign_tests = self.records("timelines", case, "validation", CLASSICAL)
        quiet = quiet_days(days, [{n: tests[n][i] for n in STEALTH_TESTS if n in tests} for i in at], benign_tests)
        out = []
        for scorer in scorers:
            told = self.records("timelines", case, part, scorer)
            benign = self.records("timelines", case, "validation", scorer)
            for method in told:
                own = [told[method][i] for i in at]
                found = timeline_figures(method, days, own, benign[method], self.sizes.stride, quiet)
                for row, more, count in found:
                    out.append(self._row(suite.name, "timelines", case, run, row, more, count))
        if CLASSICAL in scorers:
            for row, more, count in oracle_figures(days, self.sizes.stride):
                out.append(self._row(suite.name, "timelines", case, run, row, more, count))
        return out

    def _natural(self, case: str, run: Scorer, scorers: Sequence[str]) -> list[CoreRow]:
        """Share of plausible windows that are flagged: hard ones, ordinary ones."""
        facts = self.facts("windows", case, "negatives")
        hard = np.array([f["hard"] for f in facts], dtype=bool)
        out = []
        for scorer in scorers:
            for method, told in self.records("windows", case, "negatives", scorer).items():
                flagged = np.array(told["score"]) > self.threshold(case, scorer, method)
                strict = np.array(told["score"]) > self.threshold(case, scorer, method, STEALTH_FPR)
                more = {
                    "natural_called": float(flagged[hard].mean()), "ordinary_called": float(flagged[~hard].mean()),
                    "natural_called_1pct": float(strict[hard].mean()),
                }  # fmt: skip
                out.append(
                    self._row(NATURAL, "windows", case, run, Row(method=method, family=POOLED), more, int(hard.sum()))
                )
        if CLASSICAL in scorers:  # a test at its threshold calls the share that the threshold allows, whatever happens
            more = {"natural_called": FPR, "ordinary_called": FPR, "natural_called_1pct": STEALTH_FPR}
            out.append(
                self._row(NATURAL, "windows", case, run, Row(method=ORACLE, family=POOLED), more, int(hard.sum()))
            )
        return out

    def _adaptive(self, case: str, run: Scorer) -> list[CoreRow]:
        """Each row that was attacked, on its own exploiter's windows, with the classical tests beside it."""
        out: list[CoreRow] = []
        for method in [m.name for m in run.methods]:
            part = adaptive_part(run.key, method)
            facts = self.facts("windows", case, part)
            if not facts:
                continue
            asked = [run.key, *run.beside, CLASSICAL]
            whole = self._windows(ADAPTIVE, part, case, run, asked, np.arange(len(facts)))
            out += [
                replace(r, row=replace(r.row, method=f"{r.row.method} (attack on {method})")) for r in whole
                if r.row.family == MACRO and (r.row.method == method or r.row.method not in ATTACKABLE)
            ]  # fmt: skip
        return out

    def _row(
        self, suite: str, kind: str, case: str, run: Scorer, row: Row, more: Mapping[str, float | None], count: int
    ) -> CoreRow:  # fmt: skip
        about = run.about
        return CoreRow(
            suite=suite, kind=kind, case=case, fold=int(about["fold"]), model=str(about["model"]),
            seed=int(about["seed"]), row=row, more=dict(more), count=int(count),
        )  # fmt: skip


ATTACKABLE = (results.VERIFIER, results.UNIFORM, results.PLR)


def behaviour_cells(facts: Sequence[Mapping[str, Any]]) -> I64:
    """[B] number of the cell of each window: family and d_eff bin."""
    names = [(f["family"], int(np.digitize(f["d_eff"], D_BINS))) for f in facts]
    order = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([order[name] for name in names], dtype=np.int64)


def cvar_over_cells(hit_B: F64, cell_B: I64) -> float:
    """Mean recall of the worst fifth of the cells with at least LEAST_IN_CELL windows (all cells if none has)."""
    count = np.bincount(cell_B)
    recall = np.bincount(cell_B, hit_B) / np.maximum(count, 1)
    kept = count >= LEAST_IN_CELL
    return metrics.cvar(recall[kept if kept.any() else count > 0])


def quiet_days(
    days: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]],
    benign: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Bool:  # fmt: skip
    """[K] days whose episode is dangerous and passes both classical tests in every look, at 1 % of benign looks."""
    out = np.zeros(len(days), dtype=bool)
    if any(name not in benign for name in STEALTH_TESTS):
        return out
    limit = {
        name: metrics.threshold_for_fpr(np.concatenate([day["score"] for day in benign[name]]), STEALTH_FPR)
        for name in STEALTH_TESTS
    }
    for index, (day, told) in enumerate(zip(days, tests, strict=True)):
        [[onset, end, _]] = day["event"]
        seen = any(max(told[name]["score"][onset:end]) > limit[name] for name in STEALTH_TESTS)
        out[index] = day["fact"]["moved"] >= 1.0 and not seen
    return out


def _macro(
    method: str, parts: Sequence[tuple[Row, Mapping[str, float | None]]], pooled: tuple[Row, Mapping[str, float | None]]
) -> tuple[Row, dict[str, float | None]]:  # fmt: skip
    """Means over families; type F1 and calibration error are of all windows, since they have no sense per family."""
    row = results.macro_row(method, [row for row, _ in parts])
    names = dict.fromkeys(name for _, more in parts for name in more)
    mean: dict[str, float | None] = {}
    for name in names:
        values = [value for _, more in parts if (value := more.get(name)) is not None]
        mean[name] = float(np.mean(values)) if values else None
    return replace(row, type_f1=pooled[0].type_f1, ece=pooled[0].ece), mean


def _column(facts: Sequence[Mapping[str, Any]], name: str, at: I64) -> F64:
    return np.array([facts[i][name] for i in at], dtype=np.float64)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
