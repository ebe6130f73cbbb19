"""Corrupted half-hours of the test year: what each method finds of them, and of their honest twins.

Flow:    evaluate.real_gb (thresholds) -> [real_seeded] -> rows per family and method
Source:  docs/gb-data.md; the corruption is the grammar's, the truth is the real record of 2024
Shapes:  B pairs of windows

Windows carry what the record carries and lose nothing, so that thresholds of the record hold for them. Twins are scored
at the same thresholds: an alarm on them would be an alarm about the feed and not about the corruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gg_ray.config import BALANCE_CASE, ConfigError
from gg_ray.evaluate import results
from gg_ray.evaluate.results import Row
from gg_ray.evaluate.scoring import Method
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.grid import balance as b
from gg_ray.records import F64, FAMILIES, I64, Bool, Labels, Window
from gg_ray.scenario.balance_executor import BalanceExecutor
from gg_ray.scenario.gates import Gates
from gg_ray.scenario.grammar import Stratum
from gg_ray.verifier.features import Featurizer, Prepared

Limit = Callable[[str, I64], F64]
"""Threshold of a method for windows whose newest scans start at given times (ns)."""
_ROUNDS = 40


@dataclass(slots=True)
class _Pairs:
    """Corrupted windows, their twins, and the buses at which the corruption shows [B, N]."""

    false: Prepared
    honest: Prepared
    places: Bool
    d_eff: list[float]


def seeded_rows(
    maker: SuiteMaker, methods: Sequence[Method], limits: Mapping[str, Limit], windows: int, plan_id: int
) -> tuple[dict[str, list[Row]], float]:
    """Rows of every method on every family under each kind of threshold, and the median d_eff of what was asked.

    event_recall is the share of corrupted windows above the threshold, recall_at_fpr the same of their twins (false),
    balanced_accuracy the mean of the first and one minus the second, top1 how often the top bus lies.
    Raises: ConfigError for a grid of another kind, or a family of which no window passes the gates.
    """
    executor = maker.executor
    if not isinstance(executor, BalanceExecutor):
        raise ConfigError(f"seeded corruption of the record: needs {BALANCE_CASE}, not {maker.case.name}")
    rng = np.random.default_rng(20_261_125)
    rows: dict[str, dict[str, list[Row]]] = {kind: {m.name: [] for m in methods} for kind in limits}
    d_eff: list[float] = []
    executor.as_recorded = True
    try:
        for family in (f for f in FAMILIES if executor.grammar.primitives("anomalous", f)):
            pairs = _pairs(maker, executor, family, windows, plan_id, rng)
            d_eff += pairs.d_eff
            newest = np.array([w.t0_ns + int((len(w.z_TM) - 1) * w.step_s * 1e9) for w in pairs.false.windows])
            for method in methods:
                said, twin = method.output(pairs.false), method.output(pairs.honest)
                top = None
                if said.node_BN is not None:
                    top = float(pairs.places[np.arange(len(pairs.places)), said.node_BN.argmax(axis=1)].mean())
                for kind, limit in limits.items():
                    threshold = limit(method.name, newest)
                    found, wrong = float((said.score_B > threshold).mean()), float((twin.score_B > threshold).mean())
                    rows[kind][method.name].append(Row(
                        method=method.name, family=family, event_recall=found, recall_at_fpr=wrong,
                        balanced_accuracy=0.5 * (found + 1.0 - wrong), top1=top,
                    ))  # fmt: skip
    finally:
        executor.as_recorded = False
    flat = {
        kind: [row for own in by_method.values() for row in (*own, results.macro_row(own[0].method, own))]
        for kind, by_method in rows.items()
    }
    return flat, float(np.median(d_eff))


def _pairs(
    maker: SuiteMaker, executor: BalanceExecutor, family: str, count: int, plan_id: int, rng: np.random.Generator
) -> _Pairs:
    gates, stratum = Gates(executor, maker.scenario), Stratum("anomalous", family, BALANCE_CASE)
    kept: list[tuple[Window, Window, Labels, float]] = []
    for _ in range(_ROUNDS):
        attempts = executor.run(maker.programs(stratum, max(8, count - len(kept)), rng, (plan_id,)), "test")
        for attempt, verdict in zip(attempts, gates.check(attempts, rng), strict=True):
            if verdict or attempt.main is None:
                continue
            main, twin = executor.realise(attempt, 0)
            if twin is not None:
                kept.append((main, twin, attempt.main.labels, attempt.d_eff))
        if len(kept) >= count:
            break
    if not kept:
        raise ConfigError(f"seeded corruption of the record: no window of family {family} passes the gates")
    plan, featurizer, kept = b.balance_plan(plan_id), Featurizer(), kept[:count]
    return _Pairs(
        featurizer.prepare([item[0] for item in kept], plan), featurizer.prepare([item[1] for item in kept], plan),
        np.stack([item[2].node_N for item in kept]), [item[3] for item in kept],
    )  # fmt: skip
