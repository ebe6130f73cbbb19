"""Figures of continuous days: events found at alarm budgets, delay, volume, place, natural events, bus operation.

Flow:    cells (day records) -> [core_timelines] -> core_tables
Source:  selfplay.md, section 17.1; verifier.md, section 3.4
Shapes:  S looks of a day, K days with one episode each
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gg_ray.calibration.budget import FLAG_SHARE, dedup_scans
from gg_ray.evaluate import metrics, results
from gg_ray.evaluate.core_plan import ALARM_RATES, NODE_RATE
from gg_ray.evaluate.results import POOLED, Row, ScoredTimeline, TimelineEvent
from gg_ray.evaluate.suites import DAY_SCANS
from gg_ray.records import TYPES, Bool

STEALTHY_EVENTS = "stealthy_event_recall"
BUFFER = 16
"""Largest buffer of vus_pr, in looks."""
PLACE = ("tp", "fp", "fn", "hit1", "hit5", "hops")
"""What bus scores say of a window or look (core_score)."""

Figures = tuple[Row, dict[str, float | None], int]
"""A row, the figures beside it, and how many episodes it counts."""


def timeline_figures(
    method: str, days: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]],
    benign: Sequence[Mapping[str, Any]], stride: int, quiet: Bool,
) -> list[Figures]:  # fmt: skip
    """Rows of one method: all episodes together, then recall and delay of each family.

    Args: days, told  facts and records of the same days;  benign  records of validation days;  quiet  [K] dangerous
          episodes that classical tests do not see
    """
    per_day = DAY_SCANS / stride
    calm = [np.array(day["score"]) for day in benign]
    limits = [metrics.threshold_for_budget(calm, rate, scans_per_day=per_day) for rate in ALARM_RATES]
    threshold = limits[0]
    scores = [np.array(day["score"]) for day in told]
    families = sorted({day["event"][0][2] for day in days}, key=results.family_order)
    out: list[Figures] = []
    for family in (POOLED, *families):
        mine = [k for k, day in enumerate(days) if family in (POOLED, day["event"][0][2])]
        lines = [ScoredTimeline(score_S=scores[k], events=(_event(days[k]),)) for k in mine]
        delays = np.concatenate([_outcome(line, threshold).delay_K for line in lines])
        if family == POOLED:
            row = results.row_from_timelines(
                method, POOLED, lines, threshold, scans_per_day=per_day, max_buffer=BUFFER
            )  # fmt: skip
        else:
            found = float(_found(lines, threshold).mean())
            row = Row(method=method, family=family, event_recall=found, delay_scans=float(np.median(delays)))
        more: dict[str, float | None] = {}
        for rate, limit in zip(ALARM_RATES[1:], limits[1:], strict=True):
            more[f"event_recall_{rate:g}"] = float(_found(lines, limit).mean())
        more["delay_p90"] = float(np.quantile(delays, 0.9, method="higher"))
        if family == POOLED:
            realised = row.false_incidents_per_day
            more["realised_over_budget"] = None if realised is None else realised / ALARM_RATES[0]
            more["natural_called"] = natural_called(days, scores, threshold, per_day)
            more |= _buses(told, benign)
            if quiet.any():
                more[STEALTHY_EVENTS] = float(_found(lines, threshold)[quiet].mean())
        out.append((_placed(row, family, [days[k] for k in mine], [told[k] for k in mine]), more, len(mine)))
    return out


def oracle_figures(days: Sequence[Mapping[str, Any]], stride: int) -> list[Figures]:
    """Ceiling rows: event recall of a test that knows the deviation and sees the whole episode in one look.

    Phi(d_eff - z), z the Gaussian quantile at which the allowed share of looks is flagged: rate / looks a day, at most
    FLAG_SHARE.  Looks of a day overlap, so fewer than its looks are independent and the bound is a little low.
    """
    families = sorted({day["event"][0][2] for day in days}, key=results.family_order)
    out: list[Figures] = []
    for family in (POOLED, *families):
        d = [day["fact"]["d_eff"] for day in days if family in (POOLED, day["event"][0][2])]
        recall = [
            float(metrics.oracle_recall(d, min(rate * stride / DAY_SCANS, FLAG_SHARE)).mean()) for rate in ALARM_RATES
        ]
        row = Row(method=results.ORACLE, family=family, event_recall=recall[0])
        more: dict[str, float | None] = {
            f"event_recall_{rate:g}": value for rate, value in zip(ALARM_RATES[1:], recall[1:], strict=True)
        }
        out.append((row, more, len(d)))
    return out


def natural_called(
    days: Sequence[Mapping[str, Any]], scores: Sequence[np.ndarray], threshold: float, per_day: float
) -> float | None:
    """Share of natural events during which an incident begins; those that touch an episode are left out."""
    gap = dedup_scans(per_day)
    called = []
    for day, score in zip(days, scores, strict=True):
        starts = [first for first, _ in metrics.incidents(score > threshold, gap)]
        for first, last in day["natural"]:
            if not any(first < end + gap and onset < last for onset, end, _ in day["event"]):
                called.append(any(first <= start < last for start in starts))
    return float(np.mean(called)) if called else None


def _buses(told: Sequence[Mapping[str, Any]], benign: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Operation by bus: threshold at NODE_RATE of benign bus-looks, episodes with any flagged bus, realised rate.

    Where benign days hold fewer than 1 / NODE_RATE bus-looks the threshold is their largest score.
    """
    if not benign or "node_top" not in benign[0]:
        return {}
    top = np.sort(np.concatenate([day["node_top"] for day in benign]))[::-1]
    allowed = math.floor(NODE_RATE * sum(day["node_count"] for day in benign) + 1e-9)
    limit = top[min(allowed, top.size - 1)]
    hits = [highest > limit for record in told for highest in record["node_event"]]
    flags = sum(int((np.array(record["node_top"]) > limit).sum()) for record in told)
    return {
        "node_event_recall": float(np.mean(hits)),
        "node_fpr": flags / sum(record["node_count"] for record in told),
    }


def _placed(row: Row, family: str, days: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]) -> Row:
    """The row with its family, and with the figures of place and type at the last look of each episode."""
    values: dict[str, Any] = {name: getattr(row, name) for name in results.FIGURES} | places(told)
    if told and "type" in told[0]:
        truth = np.array([TYPES.index(day["event"][0][2]) for day in days])
        values["type_f1"] = metrics.type_macro_f1(truth, np.array([record["type"] for record in told]))
    return Row(method=row.method, family=family, **values)


def _event(day: Mapping[str, Any]) -> TimelineEvent:
    onset, end, family = day["event"][0]
    return TimelineEvent(int(onset), int(end), str(family))


def _outcome(line: ScoredTimeline, threshold: float) -> metrics.EventOutcome:
    return metrics.event_recall(line.score_S, [(e.onset, e.end) for e in line.events], threshold)


def _found(lines: Sequence[ScoredTimeline], threshold: float) -> Bool:
    return np.concatenate([_outcome(line, threshold).detected_K for line in lines])


def places(rows: Sequence[Mapping[str, Any]], negative: Mapping[str, Any] | None = None) -> dict[str, float | None]:
    """node_f1, top1, top5 and hops of windows (one mapping each), false flags on plausible ones counted."""
    out: dict[str, float | None] = {}
    if rows and "tp" in rows[0]:
        tp, fp, fn = (sum(row[name] for row in rows) for name in ("tp", "fp", "fn"))
        fp += sum(negative["fp"]) if negative is not None and "fp" in negative else 0
        out["node_f1"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None
    placed = [row for row in rows if row.get("hit1") is not None]
    if placed:
        for name, key in (("top1", "hit1"), ("top5", "hit5"), ("hops", "hops")):
            out[name] = float(np.mean([row[key] for row in placed]))
    return out
