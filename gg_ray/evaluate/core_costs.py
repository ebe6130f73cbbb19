"""What a change costs: average precision on an unknown grid, after an outage or without meters, against s0-known.

Flow:    core_tables (scores) -> [core_costs] -> core_report, console
Source:  verifier.md, section 9.1: D7 (AUPRC loss on an unseen grid), D8 (30 % of meters missing)
Shapes:  R training seeds of a fold, S replicates, B windows of a set

Loss is 1 - (AUPRC after the change) / (AUPRC on s0-known), both mean over families, grids, seeds and folds, classes
re-weighted to one half. Replicates draw networks once per fold and windows once per grid, part and kind; windows
without meters are those of s0-known, so there both sides are judged on the same draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gg_ray.evaluate import results
from gg_ray.evaluate.core_plan import CHANGES, SUITES, Suite
from gg_ray.evaluate.core_tables import Tables
from gg_ray.evaluate.metrics import oracle_auprc
from gg_ray.evaluate.ranking import average_precisions
from gg_ray.records import F64, FOLDS, I64

BEFORE = "s0-known"
GOALS = {"s4-grids": ("D7", 0.20, 0.08), "s9-meters": ("D8", 0.15, 0.05)}
"""Name of the goal, loss that is good, loss that is aimed at."""
REPLICATES = 500
_SAME_WINDOWS = {"meters": "standard", "meters-negatives": "negatives"}
_PREVALENCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One method after one change."""

    method: str
    suite: str
    before: float
    after: float
    loss: float
    """1 - after / before; negative where the change helped."""
    low: float | None
    high: float | None
    """95 % interval; None for the oracle, which is a closed form."""
    folds: int
    seeds: int
    """Fewest training seeds of a fold; 1 for methods without seeds."""


def costs(tables: Tables, seed: int) -> list[Cost]:
    """Every method after every change of core_plan.CHANGES, methods in the order of their scorers."""
    rng = np.random.default_rng(seed)
    draws = _Draws(rng)
    out: list[Cost] = []
    for method, whose in _scorers_by_method(tables).items():
        before = _by_fold(tables, method, whose, SUITES[BEFORE], draws)
        for name in CHANGES:
            after = _by_fold(tables, method, whose, SUITES[name], draws)
            if found := _cost(method, name, before, after, draws):
                out.append(found)
    return out + _oracle(tables)


def cost_line(found: Sequence[Cost]) -> str | None:
    """The Verifier's losses in one line, None where it has no row."""
    own = [cost for cost in found if cost.method == results.VERIFIER]
    if not own:
        return None
    parts = []
    for cost in own:
        name, good, aim = GOALS.get(cost.suite, ("", 0.0, 0.0))
        goal = f", goal {good:.0%}, aim {aim:.0%}" if name else ""
        low_high = "" if cost.low is None else f" [{cost.low:+.1%}, {cost.high:+.1%}]"
        parts.append(f"{name + ' ' if name else ''}{CHANGES[cost.suite]} {cost.loss:+.1%}{low_high}{goal}")
    return "AUPRC loss of the Verifier against s0-known: " + "; ".join(parts)


# --- figures ---------------------------------------------------------------------------------------------------------


Folds = Mapping[int, F64]
"""By fold: [R, 1 + S] mean over grids and families, the sample itself first and then the replicates."""


class _Draws:
    """How often each replicate draws each window of a set: made once per set, shared by all methods."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._kept: dict[tuple[str, int], F64] = {}

    def weights(self, name: str, size: int) -> F64:
        """[1 + S, B] weights: ones for the sample itself, then counts of draws with replacement."""
        key = (name, size)
        if key not in self._kept:
            counts = self._rng.multinomial(size, np.full(size, 1.0 / size), size=REPLICATES)
            self._kept[key] = np.concatenate([np.ones((1, size)), counts])
        return self._kept[key]

    def networks(self, fold: int, seeds: int) -> F64:
        """[1 + S, R] share of each network of a fold."""
        return self.weights(f"networks of fold {fold}", seeds) / seeds


def _scorers_by_method(tables: Tables) -> dict[str, list[tuple[int, str]]]:
    """By method: (fold, scorer) of every network; detectors stand in every fold that has a run."""
    out: dict[str, list[tuple[int, str]]] = {}
    folds = sorted({int(run.about["fold"]) for run in tables.runs})
    for run in tables.runs:
        for key in (run.key, *run.beside):
            for method in tables.methods_of(key):
                out.setdefault(method, []).append((int(run.about["fold"]), key))
    for key in tables.detectors:
        for method in tables.methods_of(key):
            out[method] = [(fold, key) for fold in folds]
    return out


def _by_fold(
    tables: Tables, method: str, whose: Sequence[tuple[int, str]], suite: Suite, draws: _Draws
) -> dict[int, F64]:  # fmt: skip
    rows: dict[int, list[F64]] = {}
    for fold, scorer in whose:
        cases = tables.sizes.seen if suite.seen_grid else tables.sizes.unseen
        values = [
            value for case in cases
            if (value := _precision(tables, case, scorer, method, suite, fold, draws)) is not None
        ]  # fmt: skip
        if values:
            rows.setdefault(fold, []).append(np.mean(values, axis=0))
    return {fold: np.stack(own) for fold, own in rows.items()}


def _precision(
    tables: Tables, case: str, scorer: str, method: str, suite: Suite, fold: int, draws: _Draws
) -> F64 | None:  # fmt: skip
    """[1 + S] average precision of a grid, mean over families."""
    part = str(suite.part)
    told = tables.records("windows", case, part, scorer).get(method)
    calm = tables.records("windows", case, suite.negatives, scorer).get(method)
    at = tables.members(suite, fold, case)
    if told is None or calm is None or not at.size:
        return None
    facts = tables.facts("windows", case, part)
    score, negative = np.array(told["score"]), np.array(calm["score"])
    calm_name = _SAME_WINDOWS.get(suite.negatives, suite.negatives)
    negative_weight = draws.weights(f"{case} {calm_name}", negative.size)
    values = []
    for family in sorted({facts[i]["family"] for i in at}):
        own = np.array([i for i in at if facts[i]["family"] == family])
        kinds = np.array(["+".join(facts[i]["needs"]) for i in own])
        own, names = own[np.argsort(kinds, kind="stable")], np.unique(kinds)
        where = f"{case} {_SAME_WINDOWS.get(part, part)}"
        weight = np.concatenate(
            [draws.weights(f"{where} {kind}", int((kinds == kind).sum())) for kind in names], axis=1
        )
        values.append(average_precisions(score[own], weight, negative, negative_weight, _PREVALENCE))
    return np.asarray(np.mean(values, axis=0))


def _cost(method: str, suite: str, before: Folds, after: Folds, draws: _Draws) -> Cost | None:
    folds = sorted(set(before) & set(after))
    if not folds:
        return None
    first, second = (np.mean([_mixed(side[fold], fold, draws) for fold in folds], axis=0) for side in (before, after))
    loss = 1.0 - second / first
    low, high = np.quantile(loss[1:], [0.025, 0.975])
    return Cost(
        method=method, suite=suite, before=float(first[0]), after=float(second[0]), loss=float(loss[0]), low=float(low),
        high=float(high), folds=len(folds), seeds=min(before[fold].shape[0] for fold in folds),
    )  # fmt: skip


def _mixed(values_RS: F64, fold: int, draws: _Draws) -> F64:
    """[1 + S] mean over the networks that each replicate draws."""
    return np.asarray((values_RS * draws.networks(fold, values_RS.shape[0]).T).sum(axis=0))


def _oracle(tables: Tables) -> list[Cost]:
    """What a test that knows the deviation would lose: the part of a loss that no method can avoid."""
    folds = [fold for fold in range(len(FOLDS)) if fold in {int(run.about["fold"]) for run in tables.runs}]
    value: dict[str, list[float]] = {}
    for name in (BEFORE, *CHANGES):
        suite = SUITES[name]
        for fold in folds:
            for case in tables.sizes.seen if suite.seen_grid else tables.sizes.unseen:
                facts, at = tables.facts("windows", case, str(suite.part)), tables.members(suite, fold, case)
                if at.size:
                    value.setdefault(name, []).append(_mean_oracle(facts, at))
    mean = {name: float(np.mean(own)) for name, own in value.items()}
    return [
        Cost(
            method=results.ORACLE, suite=name, before=mean[BEFORE], after=mean[name],
            loss=1.0 - mean[name] / mean[BEFORE], low=None, high=None, folds=len(folds), seeds=1,
        )
        for name in CHANGES if name in mean and BEFORE in mean
    ]  # fmt: skip


def _mean_oracle(facts: Sequence[Mapping[str, Any]], at: I64) -> float:
    families: dict[str, list[float]] = {}
    for i in at:
        families.setdefault(facts[i]["family"], []).append(facts[i]["d_eff"])
    return float(np.mean([oracle_auprc(d, _PREVALENCE) for d in families.values()]))
