"""gg_ray.calibration.conformal and classes: ranks by hand, valid p-values, tails that are refused, pooling, storage."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gg_ray.calibration import conformal
from gg_ray.calibration.classes import LEVELS, METERING, hour_bin, metering_classes, voltage_levels
from gg_ray.calibration.conformal import CalibrationError, Conformal, calibrate, fit_excesses, fit_tail, make_table
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan

finite = st.floats(-1e6, 1e6, allow_nan=False)


def test_the_rank_by_hand() -> None:
    table = make_table([-1.0, 0.0, 0.0, 2.0], ["a", "a", "b", "b"])
    assert table.p([9.0, 2.0, 1.0, 0.0, -0.5, -5.0]).tolist() == [1 / 5, 2 / 5, 2 / 5, 4 / 5, 4 / 5, 1.0]
    # two days: of day a half the scores reach 0, of day b all; of day b half reach 2
    assert table.block_p([9.0, 2.0, 0.0, -5.0]).tolist() == [1 / 3, 1.5 / 3, 2.5 / 3, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=1, max_size=400), st.lists(finite, min_size=1, max_size=20))
def test_p_values_fall_as_scores_rise_and_thinning_only_raises_them(known: list[float], asked: list[float]) -> None:
    table = make_table(known, np.arange(len(known)))
    scores = np.sort(asked)
    exact = np.array([(1 + sum(k >= s for k in known)) / (len(known) + 1) for s in scores])
    p = table.p(scores)
    assert (np.diff(p) <= 0).all()
    assert (p >= exact - 1e-12).all()
    np.testing.assert_allclose(table.block_p(scores), p, atol=1e-12, err_msg="every score is a day of its own")
    if len(set(known)) <= 190:
        np.testing.assert_allclose(p, exact, atol=1e-12)


def test_thinning_costs_a_tenth_at_most_and_nothing_at_the_top() -> None:
    scores = np.random.default_rng(0).normal(size=50_000)
    table = make_table(scores, np.arange(scores.size) // 1000)
    assert table.value_V.size < 200
    asked = np.linspace(-3, 3, 200)
    exact = (1 + (scores >= asked[:, None]).sum(axis=1)) / (scores.size + 1)
    inside = asked <= (table.tail.start if table.tail else np.inf)
    assert (table.p(asked)[inside] <= 1.11 * exact[inside]).all()


def test_pooled_p_values_are_valid_for_exchangeable_scores() -> None:
    rng = np.random.default_rng(1)
    levels = np.array([0.01, 0.05, 0.2])
    hits = np.zeros(3)
    for _ in range(40):
        table = make_table(rng.normal(size=999), np.arange(999))
        hits += (table.p(rng.normal(size=500))[:, None] <= levels).mean(axis=0)
    assert (hits / 40 <= levels * 1.1).all()


def test_days_that_differ_break_the_pooled_p_value_but_not_that_of_days() -> None:
    """Each day has a level of its own; with eight days the pooled rank is too sure of itself at 5 %."""
    rng = np.random.default_rng(2)
    pooled, blocks = [], []
    for _ in range(400):
        levels = rng.normal(size=9)
        table = make_table((levels[:8, None] + 0.1 * rng.normal(size=(8, 50))).ravel(), np.repeat(np.arange(8), 50))
        new = levels[8] + 0.1 * rng.normal(size=50)
        pooled.append((table.p(new) <= 0.05).mean())
        blocks.append((table.block_p(new) <= 1 / 9).mean())
    assert np.mean(pooled) > 0.08, "about one day in nine lies beyond all eight"
    assert np.mean(blocks) <= 1 / 9 + 3 * np.std(blocks) / 20


@pytest.mark.parametrize("law", [stats.norm(), stats.expon(), stats.t(8)], ids=["normal", "exponential", "heavy"])
def test_the_tail_reaches_beyond_the_sample(law: stats.rv_continuous) -> None:
    """100,000 scores: a rank ends at 1e-5; at 2e-6 the fit is within three times on average in logs, ten at worst."""
    asked, logs = law.isf(2e-6), []
    for seed in range(6):
        table = make_table(law.rvs(size=100_000, random_state=seed), np.arange(100_000))
        assert table.tail is not None
        logs.append(np.log10(table.p([asked])[0] / 2e-6))
    assert abs(np.mean(logs)) < np.log10(3)
    assert np.max(np.abs(logs)) < 1.0


def test_a_tail_is_continuous_monotone_and_has_a_floor() -> None:
    scores = np.random.default_rng(3).normal(size=120_000)
    table = make_table(scores, np.arange(scores.size))
    assert table.tail is not None
    assert table.tail.start == np.quantile(scores, 0.999, method="lower"), "120 excesses at 99.9 %"
    assert table.p([table.tail.start + 1e-9])[0] == pytest.approx(table.p([table.tail.start])[0], rel=0.02)
    assert (np.diff(table.p(np.linspace(2.0, 50.0, 500))) <= 0).all()
    assert table.p([1e9])[0] == 1 / (10 * scores.size)


def test_a_tail_that_is_not_sane_is_refused_and_the_rank_stands() -> None:
    rng = np.random.default_rng(4)
    assert fit_excesses(rng.exponential(size=99)) is None, "too few"
    assert fit_excesses(np.zeros(200)) is None, "no spread"
    assert fit_excesses(np.repeat([1.0, 2.0], 100)) is None, "two values"
    assert fit_excesses(rng.pareto(1.0, size=2_000)) is None, "no finite mean"
    two = np.r_[rng.normal(1.0, 0.01, 500), rng.normal(5.0, 0.01, 500)]
    assert fit_excesses(two) is None, "two humps are no Pareto law"
    assert fit_excesses(rng.random(2_000)) is None, "an end point at the last score"
    shape, scale = fit_excesses(stats.genpareto(0.1, scale=3.0).rvs(size=5_000, random_state=0)) or (9.0, 9.0)
    assert shape == pytest.approx(0.1, abs=0.05)
    assert scale == pytest.approx(3.0, rel=0.1)
    assert fit_tail(np.sort(rng.normal(size=4_000))) is None, "80 excesses at 98 %"
    table = make_table(rng.normal(size=2_000), np.arange(2_000))
    assert table.p([99.0])[0] == 1 / 2_001


def test_classes_pool_upward_when_they_are_small() -> None:
    rng = np.random.default_rng(5)
    level = np.repeat(["low", "high"], [3_000, 180])
    hour = np.r_[np.tile(["day", "night"], 1_500), np.tile(["day", "night"], 90)]
    scores = rng.normal(size=3_180) + np.where(level == "high", 5.0, 0.0) + np.where(hour == "day", 1.0, 0.0)
    found = calibrate(scores, [level, hour], np.arange(3_180) % 10)
    assert set(found.tables) == {(), ("low",), ("high",), ("low", "day"), ("low", "night")}
    assert found.key_of(("high", "night")) == ("high",)
    assert found.key_of(("none", "day")) == ()
    assert found.p([5.0], [["high"], ["day"]])[0] > 0.3
    assert found.p([5.0], [["low"], ["day"]])[0] < 0.001
    one_day = calibrate(scores, [level, hour], np.where(level == "high", 0, np.arange(3_180) % 10))
    assert ("high",) not in one_day.tables, "180 scores of one day say nothing about other days"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_calibration_survives_storage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = np.array(["a", "b"])[rng.integers(0, 2, 3_000)]
    found = calibrate(rng.normal(size=3_000), [kind], rng.integers(0, 7, 3_000))
    back = Conformal.from_json(json.loads(json.dumps(found.as_json())))
    asked, names = rng.normal(size=50) * 3, [np.array(["a", "b", "c"])[rng.integers(0, 3, 50)]]
    for how in ("p", "block_p"):
        kept, own = getattr(back, how)(asked, names), getattr(found, how)(asked, names)
        assert (kept >= own - 1e-9).all()
        np.testing.assert_allclose(kept, own, atol=2e-3, err_msg="a score within 1e-5 of a stored one may move a rank")


@pytest.mark.parametrize("harm", ["class", "value", "tail"])
def test_a_damaged_calibration_is_named(harm: str) -> None:
    stored = calibrate(np.arange(10.0), [], np.arange(10)).as_json()
    del stored[0][harm]
    with pytest.raises(CalibrationError, match=harm):
        Conformal.from_json(stored)
    with pytest.raises(CalibrationError, match="pooled class is missing"):
        Conformal.from_json([])


def test_scores_that_cannot_be_calibrated_on_are_refused() -> None:
    with pytest.raises(CalibrationError, match="0 scores"):
        calibrate([], [], [])
    with pytest.raises(CalibrationError, match="1 scores are not finite"):
        calibrate([1.0, np.nan], [], [0, 1])


def test_groups_name_every_row_once() -> None:
    columns = [["b", "a", "b"], [1, 1, 2]]
    found = {key: rows.tolist() for key, rows in conformal.groups(columns, 3)}
    assert found == {("a", "1"): [1], ("b", "1"): [0], ("b", "2"): [2]}
    assert {key: rows.tolist() for key, rows in conformal.groups([], 2)} == {(): [0, 1]}


def test_node_classes_of_a_grid() -> None:
    case = load_case("case57")
    plan = draw_plan(case, 0, (0.3, 0.5), 0.02)
    levels = voltage_levels(case)
    assert set(levels[case.vn_kv == 138.0]) == {LEVELS[1]}
    assert set(levels[case.vn_kv == 345.0]) == {LEVELS[2]}
    metering = metering_classes(plan, case)
    assert set(metering) == set(METERING)
    n, e = case.n_bus, case.n_branch
    for bus in range(n):
        ends = [
            4 * n + k * e + b for b in range(e) for k in range(4) if (case.f_bus if k < 2 else case.t_bus)[b] == bus
        ]
        own = (plan.index_of[[n + bus, 2 * n + bus]] >= 0).any()
        expected = "injection" if own else "flows" if (plan.index_of[ends] >= 0).any() else "none"
        assert metering[bus] == expected


def test_hours_of_the_week() -> None:
    def at(*when: int) -> str:
        return hour_bin(int(datetime(*when, tzinfo=UTC).timestamp()) * 10**9)  # type: ignore[misc,arg-type]

    assert at(2024, 3, 1, 5, 59) == "working day night"
    assert at(2024, 3, 1, 6) == "working day morning"
    assert at(2024, 3, 2, 23, 59) == "weekend evening"
    assert at(2024, 3, 4) == "working day night"
