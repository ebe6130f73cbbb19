"""gg_ray.evaluate.suites: frozen, disjoint from training, half hard, rare attacks, no look into the future."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from gg_ray.config import EvaluateConfig, ScenarioConfig
from gg_ray.config_io import known_names, load
from gg_ray.evaluate.suites import EVAL_PLANS, Day, SuiteMaker, TimelineSuite, WindowSuite, _slice
from gg_ray.records import FAMILIES
from gg_ray.scenario.context import context_source, split_of

SIZES = EvaluateConfig(windows=4, days=6, validation_days=1, stride=8)


def maker(**changes: object) -> SuiteMaker:
    return SuiteMaker("case14", ScenarioConfig(), dataclasses.replace(SIZES, **changes), context_source(None))


@pytest.fixture(scope="module")
def windows() -> WindowSuite:
    return maker().windows()


@pytest.fixture(scope="module")
def timelines() -> TimelineSuite:
    return maker().timelines()


def test_two_builds_are_the_same_suite(windows: WindowSuite, timelines: TimelineSuite) -> None:
    assert maker().windows().digest == windows.digest
    again = maker(days=2).timelines()
    assert maker(days=2).timelines().digest == again.digest
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


def test_attacks_are_rare_and_each_day_has_one(timelines: TimelineSuite) -> None:
    assert 0 < timelines.attacked_share <= 0.01
    assert len(timelines.test) == SIZES.days
    for day in timelines.test:
        assert len(day.events) == 1
        [event] = day.events
        assert 0 <= event.onset < event.end <= len(day.labels)
        inside = [label.implausible for label in day.labels[event.onset : event.end]]
        assert all(inside[:1])
        assert not any(label.implausible for label in day.labels[: event.onset])
    assert all(not day.events for day in timelines.validation)
    assert all(not label.implausible for day in timelines.validation for label in day.labels)


def test_a_look_sees_its_own_past_only(timelines: TimelineSuite) -> None:
    """Readings after some scan are replaced by nonsense: windows that ended before it do not change."""
    suite = maker(days=1)
    kept: list[tuple[object, object]] = []
    original = suite._cut

    def keep(whole, truth, family, plan_id):  # type: ignore[no-untyped-def]
        kept.append((whole, truth))
        return original(whole, truth, family, plan_id)

    suite._cut = keep  # type: ignore[method-assign]
    day = suite.timelines().test[0]
    whole, truth = kept[-1]
    cut = 700
    future = dataclasses.replace(  # type: ignore[type-var]
        whole, z_TM=whole.z_TM.copy(), age_TM=whole.age_TM.copy(), status_TE=whole.status_TE.copy()  # type: ignore[attr-defined]
    )  # fmt: skip
    future.z_TM[cut:] = 7.0
    future.age_TM[cut:] = 3
    future.status_TE[cut:] = 0
    for row, end in enumerate(range(16, 1441, SIZES.stride)):
        one = day.prepared.windows[row]
        two = _slice(future, end - 16, end, suite.case.tap, truth)  # type: ignore[arg-type]
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
