"""Detectors on suites: scores, thresholds from validation, rows of the tables.

Flow:    evaluate.suites, verifier, baselines -> [scoring] -> results.Block
Source:  verifier.md, section 3; thresholds never see test data, nothing is point-adjusted
Shapes:  B windows, N buses, S looks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from gg_ray.baselines.base import Detector
from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.results import POOLED, Block, Row, ScoredTimeline, ScoredWindows, TimelineEvent
from gg_ray.evaluate.suites import Day, Group, TimelineSuite, WindowSuite
from gg_ray.records import F64, I64, TYPES
from gg_ray.verifier.features import Features, Featurizer, Prepared, batch_of, case_static
from gg_ray.verifier.model import Verifier

FPR = 0.05
"""Window false-positive rate at which thresholds are set on validation windows."""


@dataclass(slots=True)
class Output:
    """What a method says about B windows; only the score is required."""

    score_B: F64
    prob_B: F64 | None = None
    node_BN: F64 | None = None
    type_B: I64 | None = None


class Method(Protocol):
    """A row of the table."""

    name: str

    def prepare(self, fit: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Fit to benign windows of the grid where the method needs that."""
        ...

    def output(self, prepared: Prepared) -> Output: ...


class LastFeatures:
    """Features of the windows asked about last: networks asked about the same windows in turn share them."""

    def __init__(self) -> None:
        self._featurizer = Featurizer()
        self._last: tuple[Prepared, Features] | None = None

    def of(self, prepared: Prepared) -> Features:
        if self._last is None or self._last[0] is not prepared:
            self._last = None  # the old ones go first: a day of a large grid is not held twice
            self._last = prepared, self._featurizer.features(prepared)
        return self._last[1]


class NetworkMethod:
    """A Verifier, trained or not; never fitted to the grid it is asked about."""

    def __init__(self, name: str, network: Verifier, features: LastFeatures | None = None) -> None:
        self.name, self.network = name, network.eval()
        self._features = features or LastFeatures()

    def prepare(self, fit: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Nothing: zero-shot."""

    @torch.inference_mode()
    def output(self, prepared: Prepared) -> Output:
        static = case_static(prepared.case.name)
        features = self._features.of(prepared)
        block = max(1, 60_000 // static.n_buses // 16)
        parts: list[tuple[F64, F64, F64, I64]] = []
        for start in range(0, len(features.xhat_BN2), block):
            cut = slice(start, start + block)
            batch = batch_of(prepared.case.name, features, cut)
            out = self.network(batch)
            family = out.type[:, 1:].argmax(dim=1) + 1
            logit = out.implausible.double()
            node = out.node.view(-1, static.n_buses).double()
            parts.append((logit.numpy(), torch.sigmoid(logit).numpy(), node.numpy(), family.numpy()))
        score, prob, place, kind = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Output(score, prob, place, kind)


class DetectorMethod:
    """A classical detector behind the same door."""

    def __init__(self, detector: Detector) -> None:
        self.name, self.detector = detector.name, detector

    def prepare(self, fit: Sequence[Prepared], rng: np.random.Generator) -> None:
        self.detector.fit(fit, rng)

    def output(self, prepared: Prepared) -> Output:
        return Output(self.detector.score(prepared), node_BN=self.detector.node_scores(prepared))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInfo:
    """Provenance written on every block."""

    fold: int
    model: str
    seed: int
    commit: str
    learner_steps: int
    executor_calls: int


def window_block(
    suite: WindowSuite, methods: Sequence[Method], info: BlockInfo
) -> tuple[Block, dict[str, list[Output]], dict[str, float]]:
    """Rows of every method on every family of a window suite, with oracle and macro rows.

    Returns: the block, each method's outputs per group (for figures and intervals), and its threshold
    """
    grid = suite.test[0].prepared.case
    hops = metrics.hops_from(np.stack([grid.f_bus, grid.t_bus]), grid.n_bus)
    families = sorted({f for g in suite.test for f in g.families if f}, key=results.family_order)
    rows: list[Row] = []
    outputs: dict[str, list[Output]] = {}
    thresholds: dict[str, float] = {}
    for method in methods:
        method.prepare(suite.fit, np.random.default_rng(info.seed))
        threshold = metrics.threshold_for_fpr(np.concatenate([method.output(p).score_B for p in suite.validation]), FPR)
        out = [method.output(group.prepared) for group in suite.test]
        outputs[method.name], thresholds[method.name] = out, threshold
        negative = _windows(suite.test, out, "", hops)
        own = []
        for family in families:
            positive = _windows(suite.test, out, family, hops)
            own.append(results.row_from_scores(method.name, family, positive, negative, threshold, fpr=FPR))
        rows += [*own, results.macro_row(method.name, own)]
    own = [results.oracle_row(family, _d_eff(suite.test, family), fpr=FPR) for family in families]
    rows += [*own, results.macro_row(results.ORACLE, own)]
    budget = {
        "fpr": FPR, "learner_steps": float(info.learner_steps), "executor_calls": float(info.executor_calls),
        "windows": float(sum(len(g.families) for g in suite.test)),
    }  # fmt: skip
    return Block(
        suite="windows", fold=info.fold, case=suite.case, model=info.model, seed=info.seed, commit=info.commit,
        budget=budget, rows=tuple(rows),
    ), outputs, thresholds  # fmt: skip


def _windows(groups: Sequence[Group], outputs: Sequence[Output], family: str, hops: object) -> ScoredWindows:
    """All windows of a family ("" for the plausible ones) over the groups."""
    score, prob, node, truth, kind, true_kind, d_eff = [], [], [], [], [], [], []
    for group, out in zip(groups, outputs, strict=True):
        for row, own in enumerate(group.families):
            if own != family:
                continue
            score.append(out.score_B[row])
            if out.prob_B is not None:
                prob.append(out.prob_B[row])
            if out.node_BN is not None:
                node.append(out.node_BN[row])
                truth.append(_places(group, row))
            if out.type_B is not None:
                kind.append(out.type_B[row])
                true_kind.append(TYPES.index(own) if own else 0)
            d_eff.append(group.d_eff[row])
    attacked = bool(family)
    return ScoredWindows(
        score_B=np.array(score), prob_B=np.array(prob) if prob else None,
        node_score=node if node and attacked else None, node_true=truth if node and attacked else None,
        hops=[hops] * len(node) if node and attacked else None,  # type: ignore[list-item]
        type_pred_B=np.array(kind) if kind and attacked else None,
        type_true_B=np.array(true_kind) if kind and attacked else None,
        d_eff_B=np.array(d_eff) if attacked else None,
    )  # fmt: skip


def _places(group: Group, row: int) -> np.ndarray:
    """Affected buses; the ends of affected branches count, since a bus list is what an operator gets."""
    label, case = group.labels[row], group.prepared.case
    out = label.node_N.copy()
    branches = np.flatnonzero(label.edge_E)
    out[case.f_bus[branches]] = out[case.t_bus[branches]] = True
    return out


def _d_eff(groups: Sequence[Group], family: str) -> F64:
    return np.array([d for g in groups for d, f in zip(g.d_eff, g.families, strict=True) if f == family])


def timeline_block(
    suite: TimelineSuite, methods: Sequence[Method], info: BlockInfo, incidents_per_day: float
) -> Block | None:
    """Rows of every method on continuous days: thresholds from benign validation days at an incident budget.

    Methods must have been prepared (window_block does that).
    Returns: None where no validation day or no test day could be made
    """
    benign, quiet = _scores(suite.validation, methods)
    scores, days = _scores(suite.test, methods)
    if not quiet or not days:
        return None
    rows: list[Row] = []
    families = sorted({e.family for events, _, _ in days for e in events}, key=results.family_order)
    for method in methods:
        name = method.name
        threshold = metrics.threshold_for_budget(benign[name], incidents_per_day, scans_per_day=suite.looks_per_day)
        lines = [
            ScoredTimeline(score_S=score, events=events)
            for score, (events, _, _) in zip(scores[name], days, strict=True)
        ]  # fmt: skip
        own = [
            results.row_from_timelines(name, family, lines, threshold, scans_per_day=suite.looks_per_day)
            for family in families
        ]  # fmt: skip
        pooled = results.row_from_timelines(name, POOLED, lines, threshold, scans_per_day=suite.looks_per_day)
        rows += [*own, pooled, results.macro_row(name, own)]
    budget = {
        "incidents_per_day": incidents_per_day, "days": float(len(days)),
        "prevalence": sum(attacked for _, attacked, _ in days) / sum(looks for _, _, looks in days),
        "learner_steps": float(info.learner_steps), "executor_calls": float(info.executor_calls),
    }  # fmt: skip
    return Block(
        suite="timelines", fold=info.fold, case=suite.case, model=info.model, seed=info.seed, commit=info.commit,
        budget=budget, rows=tuple(rows),
    )  # fmt: skip


def _scores(
    days: Iterable[Day], methods: Sequence[Method]
) -> tuple[dict[str, list[F64]], list[tuple[tuple[TimelineEvent, ...], int, int]]]:
    """Scores [S] of each method on each day, and of each day its events, attacked looks and looks.

    Day by day and not method by method: networks share the features of a day, and no day is kept.
    """
    out: dict[str, list[F64]] = {method.name: [] for method in methods}
    seen = []
    for day in days:
        for method in methods:
            out[method.name].append(method.output(day.prepared).score_B)
        seen.append((day.events, day.attacked, len(day.labels)))
    return out, seen


def stop_check(block: Block, classical: Sequence[str]) -> list[str]:
    """The benchmark must be neither trivial nor hopeless: classical tests below 80 %, oracle above 90 %.

    Source: selfplay.md, section 19, stage 2. Returns: one line per finding, for the log and the report.
    """
    oracle = block.row(results.ORACLE)
    lines = []
    reached: list[tuple[float, str]] = []
    for name in classical:
        row = block.row(name)
        if row is not None and row.balanced_accuracy is not None:
            reached.append((row.balanced_accuracy, name))
    if reached:
        best = max(reached)
        verdict = "ok" if best[0] < 0.8 else "TOO EASY: raise noise or lower meters"
        lines.append(f"{block.case}: best classical test {best[1]} {best[0]:.3f} balanced accuracy (< 0.8): {verdict}")
    if oracle is not None and oracle.balanced_accuracy is not None:
        verdict = "ok" if oracle.balanced_accuracy > 0.9 else "TOO HARD: raise d_min"
        lines.append(f"{block.case}: oracle ceiling {oracle.balanced_accuracy:.3f} (> 0.9): {verdict}")
    return lines
