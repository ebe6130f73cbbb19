"""gg_ray.evaluate.suites: frozen, disjoint from training, half hard, rare attacks, no look into the future."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from gg_ray.config import ConfigError, EvaluateConfig, ScenarioConfig
from gg_ray.config_io import known_names, load
from gg_ray.evaluate.suites import EVAL_PLANS, Day, SuiteMaker, TimelineSuite, WindowSuite, slice_of
from gg_ray.records import FAMILIES
from gg_ray.scenario.context import context_source, split_of

SIZES = EvaluateConfig(windows=4, days=6, validation_days=1, stride=8)


@pytest.mark.parametrize(
    ("name", "wrong", "least", "said"),
    [
        ("windows", 0, 1, "at least 1"), ("windows", -3, 1, "at least 1"), ("days", 0, 1, "at least 1"),
        ("validation_days", 0, 1, "at least 1"), ("stride", 0, 1, "at least 1"), ("stride", -1, 1, "at least 1"),
        ("every_steps", -1, 0, "0 or more"), ("incidents_per_day", -0.5, 0.0, "0 or more"),
    ],
)  # fmt: skip
def test_sizes_that_ask_for_nothing_are_refused_by_name(name: str, wrong: float, least: float, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dataclasses.replace(SIZES, **{name: wrong})
    assert str(refused.value) == f"evaluate.{name}: {wrong}; {said}"
    with pytest.raises(ConfigError, match=rf"evaluate\.{name}: {wrong}; {said}"):
        load("smoke", {f"evaluate.{name}": wrong})
    assert getattr(dataclasses.replace(SIZES, **{name: least}), name) == least


def test_a_budget_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.incidents_per_day: nan; 0 or more"):
        dataclasses.replace(SIZES, incidents_per_day=float("nan"))


def maker(**changes: object) -> SuiteMaker:
    return SuiteMaker("case14", ScenarioConfig(), dataclasses.replace(SIZES, **changes), context_source(None))


@pytest.fixture(scope="module")
def windows() -> WindowSuite:
    return maker().windows()


@pytest.fixture(scope="module")
def timelines() -> TimelineSuite:
    return kept(maker().timelines())


def kept(made: TimelineSuite) -> TimelineSuite:
    """The suite with days that are made once."""
    return dataclasses.replace(made, validation=list(made.validation), test=list(made.test))


def test_two_builds_are_the_same_suite(windows: WindowSuite, timelines: TimelineSuite) -> None:
    assert maker().windows().digest == windows.digest
    for one, two in zip(maker(days=2).timelines().test, timelines.test, strict=False):
        np.testing.assert_array_equal(one.prepared.z_BTM, two.prepared.z_BTM, "day i depends on i alone")
    assert maker(windows=3).windows().digest != windows.digest


def test_the_training_setting_of_reward_or_gates_does_not_reach_the_suite(windows: WindowSuite) -> None:
    scenario = ScenarioConfig(gates="off", magnitude="physical", d_max=9.0, recheck_share=0.5)
    assert SuiteMaker("case14", scenario, SIZES, context_source(None)).windows().digest == windows.digest


def test_plans_months_and_families_are_not_those_of_training(windows: WindowSuite, timelines: TimelineSuite) -> None:
    for name in known_names():
        assert not set(EVAL_PLANS) & set(range(load(name).scenario.plans)), name
    for parts, split in (
        ([g.prepared for g in windows.test], "test"), (windows.validation, "validation"), (windows.fit, "train"),
        ([d.prepared for d in timelines.test], "test"), ([d.prepared for d in timelines.validation], "validation"),
    ):  # fmt: skip
        seen = {split_of(w.t0_ns) for part in parts for w in part.windows}
        assert seen == {split}, datetime.fromtimestamp(parts[0].windows[0].t0_ns / 1e9, UTC)
        assert {part.plan.plan_id for part in parts} <= set(EVAL_PLANS)
    assert {f for g in windows.test for f in g.families if f} == set(FAMILIES), "held-out ones too"


def test_half_is_implausible_and_half_of_the_rest_is_hard(windows: WindowSuite) -> None:
    families = [f for g in windows.test for f in g.families]
    hard = [h for g in windows.test for h in g.hard]
    labels = [x for g in windows.test for x in g.labels]
    assert all(families.count(f) == SIZES.windows for f in FAMILIES)
    plausible = [i for i, f in enumerate(families) if not f]
    assert len(plausible) == len(families) // 2
    assert sum(hard[i] for i in plausible) == len(plausible) // 2
    assert [bool(f) for f in families] == [x.implausible for x in labels]
    assert all(d >= 3.0 for g in windows.test for d, f in zip(g.d_eff, g.families, strict=True) if f)


def test_days_are_made_while_they_are_gone_through_and_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    original = SuiteMaker._day

    def note(self: SuiteMaker, long: object, split: str, family: str, index: int, *rest: object) -> Day | None:
        made.append((split, index))
        return original(self, long, split, family, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SuiteMaker, "_day", note)
    suite = maker(days=2, stride=48).timelines()
    assert made == [], "asking for the suite makes no day"
    days = iter(suite.test)
    first = next(days)
    assert made == [("test", 0)]
    again = next(iter(suite.test))
    assert made == [("test", 0)] * 2
    assert again is not first
    np.testing.assert_array_equal(again.prepared.z_BTM, first.prepared.z_BTM)
    assert len(list(days)) == 1
    assert len(list(suite.validation)) == SIZES.validation_days
    assert made[2:] == [("test", 1), ("validation", 0)]


def test_a_day_that_could_not_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SuiteMaker._day
    monkeypatch.setattr(
        SuiteMaker, "_day", lambda self, long, split, family, index, rng: (
            original(self, long, split, family, index, rng) if index == 1 else None
        ),
    )  # fmt: skip
    suite = maker(days=3, stride=48).timelines()
    assert len(list(suite.test)) == 1
    assert list(suite.validation) == []


def test_attacks_are_rare_and_each_day_has_one(timelines: TimelineSuite) -> None:
    looks = sum(len(day.labels) for day in timelines.test)
    assert 0 < sum(day.attacked for day in timelines.test) <= 0.01 * looks
    assert len(list(timelines.test)) == SIZES.days
    for day in timelines.test:
        assert len(day.events) == 1
        [event] = day.events
        assert 0 <= event.onset < event.end <= len(day.labels)
        inside = [label.implausible for label in day.labels[event.onset : event.end]]
        assert all(inside[:1])
        assert not any(label.implausible for label in day.labels[: event.onset])
        ends = 16 + SIZES.stride * np.arange(len(day.labels))
        assert day.attacked == sum(day.labels[0].onset < end <= day.labels[0].end for end in ends)
    assert all(not day.events and not day.attacked for day in timelines.validation)
    assert all(not label.implausible for day in timelines.validation for label in day.labels)


def test_a_look_sees_its_own_past_only(timelines: TimelineSuite) -> None:
    """Readings after some scan are replaced by nonsense: windows that ended before it do not change."""
    suite = maker(days=1)
    cuts: list[tuple[object, object]] = []
    original = suite.cut

    def keep(whole, truth, family, plan_id):  # type: ignore[no-untyped-def]
        cuts.append((whole, truth))
        return original(whole, truth, family, plan_id)

    suite.cut = keep  # type: ignore[method-assign]
    day = next(iter(suite.timelines().test))
    whole, truth = cuts[-1]
    cut = 700
    future = dataclasses.replace(  # type: ignore[type-var]
        whole, z_TM=whole.z_TM.copy(), age_TM=whole.age_TM.copy(), status_TE=whole.status_TE.copy()  # type: ignore[attr-defined]
    )  # fmt: skip
    future.z_TM[cut:] = 7.0
    future.age_TM[cut:] = 3
    future.status_TE[cut:] = 0
    for row, end in enumerate(range(16, 1441, SIZES.stride)):
        one = day.prepared.windows[row]
        two = slice_of(future, end - 16, end, suite.case.tap, truth)  # type: ignore[arg-type]
        same = all(
            np.array_equal(getattr(one, name), getattr(two, name), equal_nan=name == "z_TM")
            for name in ("z_TM", "age_TM", "status_TE", "tap_E", "x_scale_E")
        )
        assert same == (end <= cut), end
        known = one.age_TM != 255
        assert (one.age_TM <= np.arange(1, 17)[:, None])[known].all(), "nothing is older than the window"
        assert one.t0_ns == whole.t0_ns + (end - 16) * 60 * 10**9  # type: ignore[attr-defined]


def test_a_look_while_training_uses_validation_months_only() -> None:
    groups = maker().validation_groups(["S2", "A2"], 3)
    assert {split_of(w.t0_ns) for g in groups for w in g.prepared.windows} == {"validation"}
    families = [f for g in groups for f in g.families]
    assert (families.count("S2"), families.count("A2"), families.count("")) == (3, 3, 6)
    assert isinstance(groups[0].prepared.z_BTM, np.ndarray)
    assert Day.__slots__
