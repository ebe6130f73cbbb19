"""Typed records of results.json, and the functions that turn scores into rows.

Flow:    scores + evaluate.metrics -> [Row -> Block -> Results] -> results.json -> evaluate.figures, evaluate.report
Source:  design.md, section 6 (Results); figures that do not apply are null, NaN and infinity are never written
File:    {schema, suite, fold, case, model, seed, commit, budget, rows, parts, verdicts, machine, command}; each row
         says its suite and case too, parts holds the budget of each suite on each case, verdicts the confusion
         matrix of the three-way verdict on each case
Shapes:  B windows, N buses of one window, S scans of one timeline
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.calibration.budget import dedup_scans
from gg_ray.evaluate import metrics
from gg_ray.evaluate.verdicts import Confusion
from gg_ray.files import write_atomic
from gg_ray.records import F64, FAMILIES, I64, Bool

SCHEMA = 2
VERIFIER = "verifier"
UNIFORM = "uniform"
"""The same Verifier trained on uniform scenarios at equal budget: the control for self-play."""
PLR = "plr"
"""The uniform control with rank replay."""
RANDOM, UNTRAINED, ORACLE = "random", "untrained", "oracle"
CONTROLS = (UNIFORM, PLR)
REFERENCES = (RANDOM, UNTRAINED, ORACLE)
"""Rows that frame a table: every other method that is neither ours nor a control is a baseline."""
MACRO, POOLED = "macro", "all"
"""Family of a row that averages the family rows, and of one computed on all anomalies together."""
_SHARED = ("fold", "model", "seed", "commit")
_UNBOUNDED = ("false_incidents_per_day", "delay_scans", "hops")
"""Figures that are not rates in [0, 1]."""


class ResultsError(ValueError):
    """A results record or file is malformed; the message names the field, the value and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method on one family. Rates lie in [0, 1]; None where a figure does not apply."""

    method: str
    family: str
    balanced_accuracy: float | None = None
    auroc: float | None = None
    auprc: float | None = None
    vus_pr: float | None = None
    recall_at_fpr: float | None = None
    event_recall: float | None = None
    false_incidents_per_day: float | None = None
    delay_scans: float | None = None
    """Median over events, misses counted as the full length."""
    node_f1: float | None = None
    top1: float | None = None
    top5: float | None = None
    hops: float | None = None
    """Mean distance, in branches, from the top bus to the nearest affected one."""
    type_f1: float | None = None
    ece: float | None = None
    ceiling: float | None = None
    """Mean Phi(d_eff / 2): the best balanced accuracy that these anomalies allow."""

    def __post_init__(self) -> None:
        for name, value in (("method", self.method), ("family", self.family)):
            if not isinstance(value, str) or not value:
                raise ResultsError(f"row: {name} is {value!r}; give a name")
        for name in FIGURES:
            value = getattr(self, name)
            if value is None:
                continue
            where = f"row {self.method}/{self.family}: {name} is {value!r}"
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ResultsError(f"{where}; give a number or null")
            if not math.isfinite(value):
                raise ResultsError(f"{where}; use null where a figure does not apply")
            if value < 0 or (name not in _UNBOUNDED and value > 1 + 1e-9):
                raise ResultsError(f"{where}; outside {'[0, inf)' if name in _UNBOUNDED else '[0, 1]'}")


FIGURES = tuple(f.name for f in fields(Row) if f.name not in ("method", "family"))
"""Names of the figures of a row, in the order of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """All rows of one suite on one case."""

    suite: str
    fold: int
    case: str
    model: str
    """Name or version of the model behind the verifier rows."""
    seed: int
    commit: str
    budget: Mapping[str, float]
    """What the figures were bought with: executor_calls, learner_steps, fpr, incidents_per_day, prevalence, ..."""
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        seen: set[tuple[str, str]] = set()
        for row in self.rows:
            if (row.method, row.family) in seen:
                raise ResultsError(f"{self.suite}/{self.case}: two rows for {row.method}/{row.family}; keep one")
            seen.add((row.method, row.family))
        for name, value in self.budget.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ResultsError(f"{self.suite}/{self.case}: budget.{name} is {value!r}; give a finite number")

    def row(self, method: str, family: str = MACRO) -> Row | None:
        """The row of a method and family, None when it was not run."""
        return next((r for r in self.rows if r.method == method and r.family == family), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that one evaluation found: results.json.

    Invariant: one model, fold, seed and commit stand behind all blocks.
    """

    suite: str
    """What was asked for: quick, windows or timelines."""
    results: tuple[Block, ...]
    machine: Mapping[str, str | int | float]
    command: str
    verdicts: tuple[Confusion, ...] = ()

    def __post_init__(self) -> None:
        for name in _SHARED:
            if len(found := {getattr(block, name) for block in self.results}) > 1:
                raise ResultsError(f"results: blocks of {name} {', '.join(map(str, sorted(found)))}; write one each")

    def as_json(self) -> dict[str, Any]:
        """The document, as the module says."""
        blocks = self.results
        shared = {name: getattr(blocks[0], name) if blocks else None for name in _SHARED}
        amounts: dict[str, set[float]] = {}
        for block in blocks:
            for name, value in block.budget.items():
                amounts.setdefault(name, set()).add(value)
        return {
            "schema": SCHEMA, "suite": self.suite, "fold": shared["fold"],
            "case": ", ".join(dict.fromkeys(block.case for block in blocks)), "model": shared["model"],
            "seed": shared["seed"], "commit": shared["commit"],
            # what differs between parts has no common value: it stands with them
            "budget": {name: values.pop() for name, values in amounts.items() if len(values) == 1},
            "rows": [{"suite": b.suite, "case": b.case, **asdict(row)} for b in blocks for row in b.rows],
            "parts": [{"suite": b.suite, "case": b.case, "budget": dict(b.budget)} for b in blocks],
            "verdicts": [confusion.as_json() for confusion in self.verdicts],
            "machine": dict(self.machine), "command": self.command,
        }  # fmt: skip


# Scores to rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredWindows:
    """One method's output on windows of one label; only the scores are required.

    Invariant: every given field has one entry per window.
    """

    score_B: F64
    """Higher when less believable; any finite scale."""
    prob_B: F64 | None = None
    """Calibrated probability of implausible, for ece."""
    node_score: Sequence[F64] | None = None
    node_true: Sequence[Bool] | None = None
    """Affected buses; all false (or node_true None) for believable windows."""
    hops: Sequence[I64 | metrics.HopsFrom] | None = None
    """Distance matrix or function per window (metrics.hops_from)."""
    type_pred_B: I64 | None = None
    type_true_B: I64 | None = None
    d_eff_B: F64 | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and len(value) != len(self.score_B):
                raise ResultsError(f"ScoredWindows.{f.name}: {len(value)} entries for {len(self.score_B)} scores")


def join_windows(parts: Sequence[ScoredWindows]) -> ScoredWindows | None:
    """All windows of several; None for none. A field that one part lacks is left out."""
    if not parts:
        return None
    joined: dict[str, Any] = {}
    for f in fields(ScoredWindows):
        values = [getattr(part, f.name) for part in parts]
        if any(value is None for value in values):
            continue
        lists = isinstance(values[0], list)
        joined[f.name] = [item for value in values for item in value] if lists else np.concatenate(values)
    return ScoredWindows(**joined)


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """One attack episode [onset, end) in scans."""

    onset: int
    end: int
    family: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTimeline:
    """One method's score at every scan of a continuous record; the first scans without a full window are left off."""

    score_S: F64
    events: tuple[TimelineEvent, ...] = ()


def row_from_scores(
    method: str,
    family: str,
    pos: ScoredWindows,
    neg: ScoredWindows,
    threshold: float,
    *,
    fpr: float = 0.05,
    prevalence: float | None = 0.5,
    node_threshold: float | None = None,
) -> Row:
    """One row of a window suite.

    threshold (and node_threshold) come from benign validation data; fpr is the operating point of recall_at_fpr;
    prevalence re-weights auprc (None: the sample's own). Timeline figures stay null.
    """
    return Row(
        method=method,
        family=family,
        balanced_accuracy=metrics.balanced_accuracy(neg.score_B, pos.score_B, threshold),
        auroc=metrics.auroc(neg.score_B, pos.score_B),
        auprc=_rate(metrics.auprc(neg.score_B, pos.score_B, prevalence)),
        recall_at_fpr=metrics.recall_at_fpr(neg.score_B, pos.score_B, fpr),
        type_f1=_type_f1(pos, neg),
        ece=_ece(pos, neg),
        ceiling=None if pos.d_eff_B is None else float(metrics.oracle_accuracy(pos.d_eff_B).mean()),
        **_places(pos, neg, node_threshold),
    )


def row_from_timelines(
    method: str,
    family: str,
    timelines: Sequence[ScoredTimeline],
    threshold: float,
    *,
    scans_per_day: float,
    dedup_minutes: float = 15.0,
    fpr: float = 0.01,
    max_buffer: int = 16,
    windows: ScoredWindows | None = None,
    node_threshold: float | None = None,
) -> Row:
    """One row of a timeline suite; the threshold comes from benign validation days (metrics.threshold_for_budget).

    Takes the events of one family (POOLED: all). Scans of other families' events, and the de-duplication time after
    every event, are left out of the scan figures; auprc keeps the timeline's own prevalence. False incidents do not
    depend on the family. windows, when given, are the last windows of the same events, for the figures of place and
    type.
    """
    gap = dedup_scans(scans_per_day, dedup_minutes)
    scores, keeps, attacked, own = [], [], [], []
    detected, delays, offset = [], [], 0
    for line in timelines:
        keep_S, hit_S = np.ones(line.score_S.size, bool), np.zeros(line.score_S.size, bool)
        for e in line.events:
            keep_S[e.onset : e.end + gap] = False
        mine = [(e.onset, e.end) for e in line.events if family in (POOLED, e.family)]
        for onset, end in mine:
            keep_S[onset:end] = hit_S[onset:end] = True
        outcome = metrics.event_recall(line.score_S, mine, threshold)
        detected.append(outcome.detected_K)
        delays.append(outcome.delay_K)
        # A pad of unkept scans between timelines stops the buffers of vus_pr from reaching into the next one.
        own += [(offset + a, offset + b) for a, b in mine]
        scores += [line.score_S, np.full(max_buffer, line.score_S.min())]
        keeps += [keep_S, np.zeros(max_buffer, bool)]
        attacked += [hit_S, np.zeros(max_buffer, bool)]
        offset += line.score_S.size + max_buffer
    if not own:
        raise ResultsError(f"timeline row {method}/{family}: no event of this family; leave the row out")
    score_A, keep_A, hit_A = np.concatenate(scores), np.concatenate(keeps), np.concatenate(attacked)
    neg_B, pos_B = score_A[keep_A & ~hit_A], score_A[keep_A & hit_A]
    outcome = metrics.EventOutcome(np.concatenate(detected), np.concatenate(delays))
    return Row(
        method=method,
        family=family,
        balanced_accuracy=metrics.balanced_accuracy(neg_B, pos_B, threshold),
        auroc=metrics.auroc(neg_B, pos_B),
        auprc=_rate(metrics.auprc(neg_B, pos_B)),
        vus_pr=_rate(metrics.vus_pr(score_A, own, max_buffer, keep_A)),
        recall_at_fpr=metrics.recall_at_fpr(neg_B, pos_B, fpr),
        event_recall=outcome.recall,
        false_incidents_per_day=metrics.false_incidents_per_day(
            [line.score_S for line in timelines],
            threshold,
            scans_per_day=scans_per_day,
            dedup_minutes=dedup_minutes,
            events=[[(e.onset, e.end) for e in line.events] for line in timelines],
        ),
        delay_scans=outcome.median_delay,
        **({} if windows is None else {"type_f1": _type_f1(windows), **_places(windows, None, node_threshold)}),
    )


def oracle_row(family: str, d_eff_B: F64, *, fpr: float = 0.05) -> Row:
    """The ceiling row: closed forms of the Gaussian known-direction test for these deviations."""
    p_star = float(metrics.oracle_accuracy(d_eff_B).mean())
    return Row(
        method=ORACLE,
        family=family,
        balanced_accuracy=p_star,
        auroc=float(metrics.oracle_accuracy(np.sqrt(2.0) * d_eff_B).mean()),
        recall_at_fpr=float(metrics.oracle_recall(d_eff_B, fpr).mean()),
        ceiling=p_star,
    )


def macro_row(method: str, rows: Sequence[Row]) -> Row:
    """Plain mean over a method's family rows, figure by figure, over the rows that have it."""
    mine = [r for r in rows if r.method == method and r.family not in (MACRO, POOLED)]
    if not mine:
        raise ResultsError(f"macro row: {method} has no family rows")
    means: dict[str, float | None] = {}
    for name in FIGURES:
        values = [v for r in mine if (v := getattr(r, name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    return Row(method=method, family=MACRO, **means)


def family_order(family: str) -> tuple[int, str]:
    """Sort key: the known families in their usual order, then others by name, pooled and macro last."""
    last = {POOLED: len(FAMILIES) + 1, MACRO: len(FAMILIES) + 2}
    return FAMILIES.index(family) if family in FAMILIES else last.get(family, len(FAMILIES)), family


def _rate(value: float) -> float:
    return min(1.0, max(0.0, value))  # weighted sums end a few 1e-16 outside


def _type_f1(pos: ScoredWindows, neg: ScoredWindows | None = None) -> float | None:
    both = [w for w in (pos, neg) if w is not None and w.type_pred_B is not None and w.type_true_B is not None]
    if pos not in both:
        return None
    return _finite(metrics.type_macro_f1(_join([w.type_true_B for w in both]), _join([w.type_pred_B for w in both])))


def _ece(pos: ScoredWindows, neg: ScoredWindows) -> float | None:
    if pos.prob_B is None or neg.prob_B is None:
        return None
    label_B = np.r_[np.ones(pos.prob_B.size), np.zeros(neg.prob_B.size)]
    return metrics.ece(np.r_[pos.prob_B, neg.prob_B], label_B)


def _places(pos: ScoredWindows, neg: ScoredWindows | None, node_threshold: float | None) -> dict[str, float | None]:
    if pos.node_score is None or pos.node_true is None:
        return {}
    out: dict[str, float | None] = {}
    if node_threshold is not None:
        scores, truth = list(pos.node_score), list(pos.node_true)
        if neg is not None and neg.node_score is not None:
            scores += list(neg.node_score)
            truth += (
                list(neg.node_true) if neg.node_true is not None else [np.zeros(len(s), bool) for s in neg.node_score]
            )
        out["node_f1"] = _finite(metrics.node_f1(scores, truth, node_threshold))
    placed = [i for i, t in enumerate(pos.node_true) if np.any(t)]
    if placed:
        for name, k in (("top1", 1), ("top5", 5)):
            out[name] = float(np.mean([metrics.topk_hit(pos.node_score[i], pos.node_true[i], k) for i in placed]))
        if pos.hops is not None:
            hops = [metrics.hop_distance(pos.node_score[i], pos.node_true[i], pos.hops[i]) for i in placed]
            out["hops"] = float(np.mean(hops))
    return out


def _join(parts: Sequence[I64 | None]) -> I64:
    return np.concatenate([p for p in parts if p is not None])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# File ---------------------------------------------------------------------------------------------------------------


def write_results(path: Path, results: Results) -> Path:
    """Writes results.json: a reader sees the old file or the new one, never half of one."""
    return write_atomic(path, json.dumps(results.as_json(), indent=1, allow_nan=False) + "\n")
