"""Detectors on suites: scores, thresholds from validation, rows of the tables.

Flow:    evaluate.suites, verifier, baselines -> [scoring] -> results.Block
Source:  verifier.md, section 3; thresholds never see test data, nothing is point-adjusted
Shapes:  B windows, N buses, S looks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from gg_ray.baselines.base import Detector
from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.results import POOLED, Block, Row, ScoredTimeline, ScoredWindows, TimelineEvent
from gg_ray.evaluate.suites import Day, Group, TimelineSuite, WindowSuite
from gg_ray.grid.cases import GridCase
from gg_ray.records import F64, I64, TYPES, Bool, Labels
from gg_ray.verifier.batch import GraphBatch
from gg_ray.verifier.features import Featurizer, Prepared, batch_of
from gg_ray.verifier.model import Verifier

FPR = 0.05
"""Window false-positive rate at which thresholds are set on validation windows."""
NODE_FPR = 0.01
"""Share of benign validation windows in which the node threshold lets any bus be flagged."""


@dataclass(slots=True)
class Output:
    """What a method says about B windows; only the score is required."""

    score_B: F64
    prob_B: F64 | None = None
    node_BN: F64 | None = None
    type_B: I64 | None = None
    disturbance_B: F64 | None = None
    """Score of the second question, whether a real disturbance is going on."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a method's figures are read at; from benign validation windows alone."""

    score: float
    node: float | None
    """None for a method that says nothing about buses."""


class Method(Protocol):
    """A row of the table."""

    name: str

    def prepare(self, fit: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Fit to benign windows of the grid where the method needs that."""
        ...

    def output(self, prepared: Prepared) -> Output: ...


class LastFeatures:
    """Network inputs of the windows asked about last: networks asked about the same windows in turn share them."""

    def __init__(self, jacobian: bool = False) -> None:
        self._featurizer = Featurizer(jacobian)
        self._last: tuple[Prepared, list[GraphBatch]] | None = None

    def batches(self, prepared: Prepared) -> list[GraphBatch]:
        """All windows in batches of about 60,000 bus-scans."""
        if self._last is None or self._last[0] is not prepared:
            self._last = None  # the old ones go first: a day of a large grid is not held twice
            features = self._featurizer.features(prepared)
            block = max(1, 60_000 // prepared.case.n_bus // 16)
            starts = range(0, len(features.xhat_BN2), block)
            cuts = (slice(start, start + block) for start in starts)
            self._last = prepared, [batch_of(prepared.case.name, features, cut) for cut in cuts]
        return self._last[1]


class NetworkMethod:
    """A Verifier, trained or not; never fitted to the grid it is asked about."""

    def __init__(self, name: str, network: Verifier, features: LastFeatures | None = None) -> None:
        self.name, self.network = name, network.eval()
        self._features = features or LastFeatures(network.config.jacobian)

    def prepare(self, fit: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Nothing: zero-shot."""

    @torch.inference_mode()
    def output(self, prepared: Prepared) -> Output:
        parts: list[tuple[F64, F64, F64, I64, F64]] = []
        for batch in self._features.batches(prepared):
            out = self.network(batch)
            family = out.type[:, 1:].argmax(dim=1) + 1
            logit = out.implausible.double()
            node = out.node.view(-1, prepared.case.n_bus).double()
            disturbed = out.disturbance.double().numpy()
            parts.append((logit.numpy(), torch.sigmoid(logit).numpy(), node.numpy(), family.numpy(), disturbed))
        return Output(*(np.concatenate(column) for column in zip(*parts, strict=True)))


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


@dataclass(slots=True)
class Scored:
    """What every method says about a window suite; outputs by method, one per group or validation part."""

    test: dict[str, list[Output]]
    validation: dict[str, list[Output]]
    thresholds: dict[str, Thresholds]


def window_block(suite: WindowSuite, methods: Sequence[Method], info: BlockInfo) -> tuple[Block, Scored]:
    """Rows of every method on every family of a window suite, with oracle and macro rows.

    Returns: the block, and what it was made of (for figures, intervals and the timelines)
    """
    grid = suite.test[0].prepared.case
    hops = metrics.hops_from(np.stack([grid.f_bus, grid.t_bus]), grid.n_bus)
    families = sorted({f for g in suite.test for f in g.families if f}, key=results.family_order)
    rows: list[Row] = []
    scored = Scored({}, {}, {})
    for method in methods:
        method.prepare(suite.fit, np.random.default_rng(info.seed))
        benign = [method.output(part) for part in suite.validation]
        limits = thresholds_of(benign)
        out = [method.output(group.prepared) for group in suite.test]
        scored.validation[method.name], scored.test[method.name] = benign, out
        scored.thresholds[method.name] = limits
        negative = _windows(suite.test, out, "", hops)
        own = []
        for family in families:
            positive = _windows(suite.test, out, family, hops)
            own.append(
                results.row_from_scores(
                    method.name, family, positive, negative, limits.score, fpr=FPR, node_threshold=limits.node
                )
            )
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
    ), scored  # fmt: skip


def thresholds_of(benign: Sequence[Output]) -> Thresholds:
    """Window and node threshold of one method from its outputs on benign validation windows."""
    highest = [out.node_BN.max(axis=1) for out in benign if out.node_BN is not None]
    return Thresholds(
        metrics.threshold_for_fpr(np.concatenate([out.score_B for out in benign]), FPR),
        metrics.threshold_for_fpr(np.concatenate(highest), NODE_FPR) if highest else None,
    )


def _windows(groups: Sequence[Group], outputs: Sequence[Output], family: str, hops: metrics.HopsFrom) -> ScoredWindows:
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
                truth.append(affected(group.labels[row], group.prepared.case))
            if out.type_B is not None:
                kind.append(out.type_B[row])
                true_kind.append(TYPES.index(own) if own else 0)
            d_eff.append(group.d_eff[row])
    attacked = bool(family)
    return ScoredWindows(
        score_B=np.array(score), prob_B=np.array(prob) if prob else None,
        node_score=node or None, node_true=truth or None, hops=[hops] * len(node) if node and attacked else None,
        type_pred_B=np.array(kind) if kind and attacked else None,
        type_true_B=np.array(true_kind) if kind and attacked else None,
        d_eff_B=np.array(d_eff) if attacked else None,
    )  # fmt: skip


def affected(label: Labels, case: GridCase) -> Bool:
    """Buses that an anomaly concerns: what the bus head is trained on."""
    return label.buses(np.stack([case.f_bus, case.t_bus]))


def _d_eff(groups: Sequence[Group], family: str) -> F64:
    return np.array([d for g in groups for d, f in zip(g.d_eff, g.families, strict=True) if f == family])


@dataclass(slots=True)
class _Seen:
    """One day as scored: its events, and of each method the score of every look [S] and its newest word on events."""

    events: tuple[TimelineEvent, ...]
    attacked: int
    scores: dict[str, F64]
    last: dict[str, list[ScoredWindows]]
    """The last look of each event."""


def timeline_block(
    suite: TimelineSuite, methods: Sequence[Method], info: BlockInfo, incidents_per_day: float,
    thresholds: Mapping[str, Thresholds], quiet: list[F64] | None = None,
) -> Block | None:  # fmt: skip
    """Rows of every method on continuous days: thresholds from benign validation days at an incident budget.

    Methods must have been prepared, and thresholds (for the figures of place) been found, by window_block. The scores
    of the first method on each validation day are added to `quiet`.
    Returns: None where no validation day or no test day could be made
    """
    # day by day and not method by method: networks share the features of a day, and no day is kept
    benign = [_seen(day, methods) for day in suite.validation]
    days = [_seen(day, methods) for day in suite.test]
    if quiet is not None:
        quiet += [day.scores[methods[0].name] for day in benign]
    if not benign or not days:
        return None
    rows: list[Row] = []
    families = sorted({e.family for day in days for e in day.events}, key=results.family_order)
    for method in methods:
        name = method.name
        threshold = metrics.threshold_for_budget(
            [day.scores[name] for day in benign], incidents_per_day, scans_per_day=suite.looks_per_day
        )
        lines = [ScoredTimeline(score_S=day.scores[name], events=day.events) for day in days]
        own = []
        for family in [*families, POOLED]:
            last = [w for day in days for e, w in zip(day.events, day.last[name], strict=True) if _of(e, family)]
            own.append(
                results.row_from_timelines(
                    name, family, lines, threshold, scans_per_day=suite.looks_per_day,
                    windows=results.join_windows(last), node_threshold=thresholds[name].node,
                )
            )  # fmt: skip
        rows += [*own, results.macro_row(name, own)]
    budget = {
        "incidents_per_day": incidents_per_day, "days": float(len(days)),
        "prevalence": sum(day.attacked for day in days) / sum(next(iter(d.scores.values())).size for d in days),
        "learner_steps": float(info.learner_steps), "executor_calls": float(info.executor_calls),
    }  # fmt: skip
    return Block(
        suite="timelines", fold=info.fold, case=suite.case, model=info.model, seed=info.seed, commit=info.commit,
        budget=budget, rows=tuple(rows),
    )  # fmt: skip


def _of(event: TimelineEvent, family: str) -> bool:
    return family in (POOLED, event.family)


def _seen(day: Day, methods: Sequence[Method]) -> _Seen:
    """One day under every method."""
    case = day.prepared.case
    hops = metrics.hops_from(np.stack([case.f_bus, case.t_bus]), case.n_bus)
    # an attack that no scan of a look falls into is first seen, and last, by the look after it
    looks = [event.onset + max(0, day.attacked - 1) for event in day.events]
    seen = _Seen(day.events, day.attacked, {}, {})
    for method in methods:
        out = method.output(day.prepared)
        seen.scores[method.name] = out.score_B
        seen.last[method.name] = [
            ScoredWindows(
                score_B=out.score_B[[look]],
                node_score=None if out.node_BN is None else [out.node_BN[look]],
                node_true=None if out.node_BN is None else [affected(day.labels[look], case)],
                hops=None if out.node_BN is None else [hops],
                type_pred_B=None if out.type_B is None else out.type_B[[look]],
                type_true_B=None if out.type_B is None else np.array([TYPES.index(event.family)]),
            )
            for look, event in zip(looks, day.events, strict=True)
        ]
    return seen


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
