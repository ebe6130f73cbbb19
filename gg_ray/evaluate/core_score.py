"""What a method says about the pools, condensed to what tables need, as plain JSON: the cells of the benchmark.

Flow:    core_pools (parts, days), scoring.Method -> [core_score] -> cells -> core_tables
Source:  verifier.md, section 3
Shapes:  B windows, N buses, S looks

A cell keeps every score (to the bits of core_pack), so thresholds, families, folds and intervals are decided when
tables are made; of the N bus scores of a window it keeps what they say about place, and of a day those near the top.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from gg_ray.evaluate import metrics
from gg_ray.evaluate.core_pack import rounded, rounded_logits
from gg_ray.evaluate.core_pools import PoolDay, PoolPart
from gg_ray.evaluate.scoring import Method, Output, affected, thresholds_of
from gg_ray.grid.cases import load_case
from gg_ray.records import F64, I64, Bool

LOGISTIC = "logistic"
"""In place of probabilities that follow from the scores."""
KEPT_NODES = 24
"""Highest bus scores of a day that are kept: the budget of core_plan.NODE_RATE asks for a few, and a realised rate is
counted up to this many a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Methods that are asked together, and what stands behind them."""

    key: str
    """Part of the names of its cells."""
    identity: str
    """Changes when the methods would answer otherwise: cells of another identity are made again."""
    methods: tuple[Method, ...]
    about: Mapping[str, Any]
    """fold, model, seed, commit, learner_steps, executor_calls; empty for methods without a fold."""
    beside: tuple[str, ...] = ()
    """Scorers without a fold whose rows stand beside these: the untrained network of the seed."""


@functools.lru_cache(maxsize=8)
def hops_of(case: str) -> I64:
    """[N, N] distances in branches; a bus out of reach is N hops away."""
    grid = load_case(case)
    far = metrics.hops_from(np.stack([grid.f_bus, grid.t_bus]), grid.n_bus)
    return np.stack([far(bus) for bus in range(grid.n_bus)])


Answers = Mapping[str, Sequence[Output]]
"""By method of a scorer: answers, one per group of a part."""


def answers(scorers: Sequence[Scorer], part: PoolPart) -> dict[str, dict[str, list[Output]]]:
    """By scorer and method; group by group, so that all networks share the features of one."""
    out: dict[str, dict[str, list[Output]]] = {s.key: {m.name: [] for m in s.methods} for s in scorers}
    for group in part.groups:
        for scorer in scorers:
            for method in scorer.methods:
                out[scorer.key][method.name].append(method.output(group.prepared))
    return out


def validation_records(told: Answers) -> dict[str, dict[str, Any]]:
    """By method: scores on benign validation windows, and the bus threshold that follows from them."""
    return {
        name: {
            "score": _kept(np.concatenate([o.score_B for o in found]), _is_logit(found[0])),
            "node_threshold": thresholds_of(found).node,
        }
        for name, found in told.items()
    }


def window_records(
    told: Answers, part: PoolPart, node_threshold: Mapping[str, float | None]
) -> dict[str, dict[str, Any]]:
    """By method and per window, in the order of part.facts: score, probability, type, and what bus scores say of place.

    tp, fp and fn count buses at the threshold; hit1, hit5 and hops are null for a window without an affected bus.
    """
    records: dict[str, dict[str, Any]] = {}
    for name, outputs in told.items():
        logit, prob = _is_logit(outputs[0]), [o.prob_B for o in outputs]
        kind = [o.type_B for o in outputs]
        record: dict[str, Any] = {"score": _kept(np.concatenate([o.score_B for o in outputs]), logit)}
        if prob[0] is not None:
            record["prob"] = LOGISTIC if logit else _kept(np.concatenate([p for p in prob if p is not None]), False)
        if kind[0] is not None:
            record["type"] = np.concatenate([k for k in kind if k is not None]).tolist()
        places = [
            _place(node_N, affected(label, group.prepared.case) & label.implausible, node_threshold[name],
                   group.prepared.case.name)
            for group, o in zip(part.groups, outputs, strict=True)
            if o.node_BN is not None
            for node_N, label in zip(o.node_BN, group.labels, strict=True)
        ]  # fmt: skip
        records[name] = record | ({key: [row[key] for row in places] for key in places[0]} if places else {})
    return records


def day_record(method: Method, found: PoolDay, node_threshold: float | None) -> dict[str, Any]:
    """Scores of every look of a day; the highest bus scores outside the episode; place and type at its last look."""
    day = found.day
    out = method.output(day.prepared)
    logit = _is_logit(out)
    record: dict[str, Any] = {"score": _kept(out.score_B, logit)}
    inside = np.zeros(out.score_B.size, dtype=bool)
    for event in day.events:
        inside[event.onset : event.end] = True
        look = event.onset + max(0, day.attacked - 1)
        if out.type_B is not None:
            record["type"] = int(out.type_B[look])
        if out.node_BN is not None:
            truth = affected(day.labels[look], day.prepared.case)
            record |= _place(out.node_BN[look], truth, node_threshold, day.prepared.case.name)
    if out.node_BN is not None:
        highest = np.array([out.node_BN[e.onset : e.end].max() for e in day.events])
        record["node_event"] = _kept(highest, logit)
        calm = out.node_BN[~inside].ravel()
        kept = np.sort(np.partition(calm, -min(KEPT_NODES, calm.size))[-KEPT_NODES:])[::-1]
        record |= {"node_top": _kept(kept, logit), "node_count": int(calm.size)}
    return record


def day_facts(found: PoolDay) -> dict[str, Any]:
    """What is true of a day, in looks."""
    day = found.day
    return {
        "looks": len(day.labels), "attacked": day.attacked, "natural": found.natural,
        "event": [[e.onset, e.end, e.family] for e in day.events],
        "fact": None if found.fact is None else found.fact.as_json(), "t0_ns": int(day.prepared.windows[0].t0_ns),
    }  # fmt: skip


def _place(score_N: F64, true_N: Bool, threshold: float | None, case: str) -> dict[str, Any]:
    """What the bus scores of one window say."""
    out: dict[str, Any] = {"hit1": None, "hit5": None, "hops": None}
    if threshold is not None:
        flag = score_N > threshold
        out |= {"tp": int((flag & true_N).sum()), "fp": int((flag & ~true_N).sum()), "fn": int((~flag & true_N).sum())}
    if true_N.any():
        out |= {f"hit{k}": int(metrics.topk_hit(score_N, true_N, k)) for k in (1, 5)}
        out["hops"] = metrics.hop_distance(score_N, true_N, hops_of(case))
    return out


def probabilities(told: Mapping[str, Any]) -> F64:
    """[B] probabilities of a window record that has them."""
    return expit(np.array(told["score"])) if told["prob"] == LOGISTIC else np.array(told["prob"])


def _is_logit(out: Output) -> bool:
    """Whether the score is the logit of the probability beside it, and so has a scale of its own."""
    return out.prob_B is not None and bool(np.allclose(expit(out.score_B), out.prob_B, atol=1e-5))


def _kept(values: F64, logit: bool) -> list[float]:
    """Scores to the digits that a cell keeps: thresholds and figures are taken from these."""
    return [float(value) for value in (rounded_logits(values) if logit else rounded(values))]
