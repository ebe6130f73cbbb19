"""Shortcuts that a benchmark may hide: time, single features, position, the place an answer came from.

tests/test_scenario_audit.py has the nuisance probe, shuffled labels, noise statistics and pairs before the onset;
tests/test_evaluate_core_job.py the days before it; tests/test_verifier_model.py the relabelling of buses.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from core_fakes import SOURCE, TINY
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gg_ray.config_io import load
from gg_ray.evaluate.core_manifest import Digest
from gg_ray.evaluate.core_pools import PoolMaker, PoolPart
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Experience, Program
from gg_ray.scenario.grammar import Stratum
from gg_ray.selfplay.blocks import draw_block
from gg_ray.selfplay.players import SolverPlayer

SIZES = dataclasses.replace(TINY, windows=16, negatives=192)
BAND = (0.4, 0.6)
"""Three standard errors of an AUROC at 2 x 192 windows are 0.09."""


@functools.lru_cache(maxsize=1)
def pools() -> tuple[PoolPart, PoolPart]:
    """Positives of all families and the plausible windows of the same months, as the benchmark asks about them."""
    maker = PoolMaker("case14", SIZES, SOURCE)
    return maker.positives("standard", Digest()), maker.benign("negatives", Digest())


def auroc(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> list[float]:
    """Out-of-sample AUROC of a linear probe and of one that finds thresholds."""
    groups = np.arange(len(y)) if groups is None else groups
    probes = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        HistGradientBoostingClassifier(max_iter=30, max_depth=3, min_samples_leaf=20, random_state=0),
    )
    return [
        float(
            roc_auc_score(y, cross_val_predict(p, x, y, groups=groups, cv=GroupKFold(4), method="predict_proba")[:, 1])
        )
        for p in probes
    ]


def table(columns: object) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both pools under a function of (prepared, row), shuffled so that folds do not follow the families."""
    x, y = [], []
    for label, part in zip((1, 0), pools(), strict=True):
        for group in part.groups:
            for row in range(len(group.labels)):
                x.append(columns(group.prepared, row))  # type: ignore[operator]
                y.append(label)
    order = np.random.default_rng(0).permutation(len(y))
    return np.array(x, dtype=float)[order], np.array(y)[order]


def test_the_clock_does_not_tell() -> None:
    """A model that sees the time of day, the day of the week and of the year, and the plan, is at chance."""

    def clock(prepared: object, row: int) -> list[float]:
        t = np.datetime64(int(prepared.windows[row].t0_ns), "ns")  # type: ignore[attr-defined]
        day = t.astype("datetime64[D]")
        minute = (t - day).astype("timedelta64[m]").astype(int)
        year = (day - day.astype("datetime64[Y]")).astype(int)
        angle = 2 * np.pi * np.array([minute / 1440, (int(day.astype(int)) + 3) % 7 / 7, year / 366])
        return [*np.sin(angle), *np.cos(angle), minute, year, prepared.plan.plan_id]  # type: ignore[attr-defined]

    x, y = table(clock)
    assert all(BAND[0] <= value <= BAND[1] for value in auroc(x, y))
    planted = x.copy()
    planted[y == 1, 6] = np.where(np.random.default_rng(1).random(int(y.sum())) < 0.3, 720, planted[y == 1, 6])
    assert auroc(planted, y)[1] > BAND[1], "three in ten attacks at noon would be found"


def test_no_single_raw_feature_gives_the_label_away() -> None:
    """Readings in meter sigmas, their steps and gaps, one statistic at a time: none above 0.9 either way."""

    def raw(prepared: object, row: int) -> list[float]:
        z = prepared.z_BTM[row] / prepared.plan.sigma  # type: ignore[attr-defined]
        step = np.abs(np.diff(z, axis=0))
        digits = np.abs(prepared.z_BTM[row][np.isfinite(prepared.z_BTM[row])] * 1e4 % 1)  # type: ignore[attr-defined]
        return [
            np.nanmax(z), np.nanmin(z), np.nanmean(z), np.nanstd(z), np.nanmax(step), np.nanmean(step),
            np.isnan(z).mean(), (step == 0).mean(), digits.mean(), digits.std(),
        ]  # fmt: skip

    x, y = table(raw)
    single = [roc_auc_score(y, column) for column in x.T]
    assert max(max(v, 1 - v) for v in single) < 0.9
    assert all(BAND[0] <= value <= BAND[1] for value in auroc(x[:, 6:7], y)), "gaps alone"
    assert all(BAND[0] <= value <= BAND[1] for value in auroc(x[:, 8:], y)), "last digits alone"


def test_the_order_of_the_windows_tells_nothing_about_the_episode() -> None:
    """Within a family, onset, plan and d_eff do not follow the index: a half of the suite is like the other."""
    positives, _ = pools()
    d = np.array([fact.d_eff for fact in positives.facts])
    plan = np.concatenate([[g.prepared.plan.plan_id] * len(g.labels) for g in positives.groups])
    onset = np.array([label.onset for g in positives.groups for label in g.labels])
    for value in (np.log(d), onset):
        halves = [value[plan == p] for p in np.unique(plan)]
        spread = np.sqrt(sum(h.var() / h.size for h in halves))
        assert abs(halves[0].mean() - halves[1].mean()) < 3.5 * spread


# --- where a window came from -----------------------------------------------------------------------------------------

PROGRAMS = 140
STEPS = 5
"""Column of telemetry_features: mean step between scans of node readings, in sigmas."""
RUN = load("smoke", {"scenario.cases": ["case14"], "scenario.plans": 2, "solver.hidden": 16})


def telemetry_features(item: Experience) -> list[float]:
    """What a network sees of a window, condensed: values, residuals, steps, freshness, repeats."""
    out: list[float] = []
    for block in (item.node_TNF[..., :20], item.edge_TEF[..., :20]):
        columns = block.astype(np.float64).reshape(block.shape[0], -1, 4, 5)[-4:]
        for column in range(1, 5):
            values = np.abs(columns[..., column])
            out += [values.max(), values.mean()]
        out.append(float((np.abs(columns[..., 3]) < 1e-4).mean()))
    return out


@functools.lru_cache(maxsize=1)
def spliced() -> tuple[list[Experience], list[Experience], list[int]]:
    """Plausible windows as the executor made them, and the same with a right completion put back by the Solver's path.

    The completion lies within one sigma of the truth: gate G5 labels it plausible, as that of a good Solver.
    """
    player = SolverPlayer(RUN, SOURCE)
    executor = player.rollout.executor("case14")
    rng = np.random.default_rng(0)
    programs = [
        Program(
            case="case14", context_id=int(rng.integers(1 << 30)), plan_id=int(i % 2), scans=16,
            events=executor.grammar.uniform(Stratum("hard", "", "case14"), i % 2, rng), seed=int(rng.integers(1 << 30)),
        )
        for i in range(PROGRAMS)
    ]  # fmt: skip
    own, made, groups = [], [], []
    for index, attempt in enumerate(executor.run(programs)):
        if attempt.main is None:
            continue
        window, _ = executor.realise(attempt, 0)
        plan: MeterPlan = attempt.plan
        block = draw_block(window, executor.case, plan, executor.near.hops(int(rng.integers(14))), 8, 4, rng)
        if not block.meters.size:
            continue
        error = rng.uniform(-1, 1, (block.span, block.meters.size))
        experience = player._splice(attempt, attempt.main, window, block, error * plan.sigma[block.meters])
        if experience is not None:
            assert not experience.labels.implausible
            own.append(player._experience(attempt, attempt.main, window))
            made.append(experience)
            groups.append(index)
    return own, made, groups


@pytest.mark.parametrize("probe", [0, 1], ids=["logistic", "boosting"])
def test_a_plausible_window_does_not_say_who_made_it(probe: int) -> None:
    own, made, groups = spliced()
    assert len(made) > 100
    x = np.array([telemetry_features(item) for item in (*own, *made)])
    y = np.repeat([0, 1], len(own))
    assert auroc(x, y, np.array(groups * 2))[probe] <= 0.6


def test_the_source_probe_finds_completions_without_noise() -> None:
    """The planted fault: a Solver whose completions carry no meter noise leaves smoother steps."""
    own, made, groups = spliced()
    x = np.array([telemetry_features(item) for item in (*own, *made)])
    y = np.repeat([0, 1], len(own))
    x[y == 1, STEPS] *= 0.5
    assert max(auroc(x, y, np.array(groups * 2))) > 0.6
