"""What a method says about the pools, condensed to what tables need, as plain JSON: the cells of the benchmark.

Flow:    core_pools (parts, days), scoring.Method -> [core_score] -> cells -> core_tables
Source:  verifier.md, section 3
Shapes:  B windows, N buses, S looks

A cell keeps every score, so thresholds, families, folds and intervals are decided when tables are made; of the N bus
scores of a window it keeps what they say about place, and of a day those near the top.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gg_ray.evaluate import metrics
from gg_ray.evaluate.core_pools import PoolDay, PoolPart
from gg_ray.evaluate.scoring import Method, Output, affected, thresholds_of
from gg_ray.grid.cases import load_case
from gg_ray.records import F64, I64, Bool

KEPT_NODES = 400
"""Highest bus scores of a day that are kept: the budget of core_plan.NODE_RATE asks for a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Methods that are asked together, and what stands behind them."""

    key: str
    """Part of the names of its cells."""
    identity: str
    """Changes when the methods would answer otherwise: cells of another identity are made again."""
    methods: tuple[Method, ...]
    about: Mapping[str, Any]
    """fold, model, seed, commit, learner_steps, executor_calls; empty for detectors without a fold."""


@functools.lru_cache(maxsize=8)
def hops_of(case: str) -> I64:
    """[N, N] distances in branches; a bus out of reach is N hops away."""
    grid = load_case(case)
    far = metrics.hops_from(np.stack([grid.f_bus, grid.t_bus]), grid.n_bus)
    return np.stack([far(bus) for bus in range(grid.n_bus)])


def validation_records(methods: Sequence[Method], part: PoolPart) -> dict[str, dict[str, Any]]:
    """By method: scores on benign validation windows, and the bus threshold that follows from them."""
    outputs = _outputs(methods, part)
    return {
        name: {"score": _plain(np.concatenate([o.score_B for o in found])), "node_threshold": thresholds_of(found).node}
        for name, found in outputs.items()
    }


def window_records(
    methods: Sequence[Method], part: PoolPart, node_threshold: Mapping[str, float | None]
) -> dict[str, dict[str, Any]]:
    """By method and per window, in the order of part.facts: score, probability, type, and what bus scores say of place.

    tp, fp and fn count buses at the threshold; hit1, hit5 and hops are null for a window without an affected bus.
    """
    records: dict[str, dict[str, Any]] = {}
    for name, outputs in _outputs(methods, part).items():
        record: dict[str, Any] = {"score": _plain(np.concatenate([o.score_B for o in outputs]))}
        prob, kind = [o.prob_B for o in outputs], [o.type_B for o in outputs]
        if prob[0] is not None:
            record["prob"] = _plain(np.concatenate([p for p in prob if p is not None]))
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


def _outputs(methods: Sequence[Method], part: PoolPart) -> dict[str, list[Output]]:
    """Answers by method, one per group; group by group, so that networks share the features of one."""
    out: dict[str, list[Output]] = {method.name: [] for method in methods}
    for group in part.groups:
        for method in methods:
            out[method.name].append(method.output(group.prepared))
    return out


def day_record(method: Method, found: PoolDay, node_threshold: float | None) -> dict[str, Any]:
    """Scores of every look of a day; the highest bus scores outside the episode; place and type at its last look."""
    day = found.day
    out = method.output(day.prepared)
    record: dict[str, Any] = {"score": _plain(out.score_B)}
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
        record["node_max"] = _plain(out.node_BN.max(axis=1))
        calm = out.node_BN[~inside].ravel()
        kept = np.sort(np.partition(calm, -min(KEPT_NODES, calm.size))[-KEPT_NODES:])[::-1]
        record |= {"node_top": _plain(kept), "node_count": int(calm.size)}
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


def _plain(values: F64) -> list[float]:
    """Six significant digits: thresholds are taken from the same digits."""
    return [float(f"{value:.6g}") for value in np.asarray(values, dtype=np.float64).tolist()]
