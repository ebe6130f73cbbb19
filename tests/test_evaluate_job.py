"""gg_ray.evaluate.job: suites by name, paired intervals of the macro accuracy, thresholds that know no test window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.evaluate import metrics
from gg_ray.evaluate.job import SUITES, Evaluation, SuiteError, check_suite, comparisons, evaluate
from gg_ray.evaluate.results import MACRO, ORACLE, POOLED
from gg_ray.evaluate.scoring import FPR, Method, NetworkMethod, Output
from gg_ray.evaluate.suites import Group, WindowSuite
from gg_ray.learner import new_verifier
from gg_ray.records import F64, FAMILIES
from gg_ray.scenario.context import context_source, split_of
from gg_ray.verifier.features import Prepared

CONFIG = load(
    "smoke",
    {
        "scenario.cases": ["case14"],
        "verifier.hidden": 16,
        "evaluate": {"held_out_cases": [], "windows": 2, "days": 1, "validation_days": 1, "stride": 8},
    },
)


class Roughness:
    """Scores a window by how far its readings move from scan to scan: no weights, no fit, one line."""

    name = "rough"

    def prepare(self, fit: object, rng: np.random.Generator) -> None:
        """Nothing."""

    def output(self, prepared: Prepared) -> Output:
        return Output(np.nanmax(np.abs(np.diff(prepared.z_BTM, axis=1)), axis=(1, 2), initial=0.0))


def run(config: RunConfig, **kwargs: Any) -> Evaluation:
    methods: list[Method] = [NetworkMethod("verifier", new_verifier(config.verifier, 0)), Roughness()]
    return evaluate(config, context_source(None), methods, learner_steps=7, executor_calls=9, model="m", **kwargs)


@pytest.fixture(scope="module")
def both() -> Evaluation:
    """Both suites of a tiny evaluation."""
    return run(CONFIG, suite="quick")


def scores(evaluation: Evaluation, method: str, wanted: Callable[[str], bool], case: str = "case14") -> F64:
    """A method's scores of the test windows whose family is wanted."""
    found = [
        score
        for group, out in zip(evaluation.windows[case].test, evaluation.outputs[case][method], strict=True)
        for score, family in zip(out.score_B.tolist(), group.families, strict=True)
        if wanted(family)
    ]
    return np.array(found)


# ---------------------------------------------------------------- names of suites


@pytest.mark.parametrize("name", ["windoze", "", "Quick", "windows "])
def test_an_unknown_suite_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(SuiteError) as refused:
        check_suite(name)
    assert repr(name) in str(refused.value)
    for known in SUITES:
        assert known in str(refused.value)
        check_suite(known)


def test_an_unknown_suite_ends_before_any_work() -> None:
    notes: list[str] = []
    with pytest.raises(SuiteError, match="unknown suite 'all'"):
        run(CONFIG, suite="all", note=notes.append)
    assert notes == [], "the first note comes with the first suite"


# ---------------------------------------------------------------- the whole evaluation


def test_quick_gives_blocks_of_both_suites(both: Evaluation) -> None:
    windows, timelines = both.results.results
    assert (windows.suite, timelines.suite) == ("windows", "timelines")
    for block in (windows, timelines):
        assert (block.case, block.model, block.seed) == ("case14", "m", CONFIG.seed)
        assert (block.budget["learner_steps"], block.budget["executor_calls"]) == (7, 9)
    for name in ("verifier", "rough"):
        assert {row.family for row in windows.rows if row.method == name} == {*FAMILIES, MACRO}
        [family] = {row.family for row in timelines.rows if row.method == name} - {POOLED, MACRO}
        assert family in FAMILIES
    assert windows.row(ORACLE) is not None
    assert timelines.row(ORACLE) is None
    assert [(c.suite, c.case, c.figure, c.than) for c in both.comparisons] == [
        ("windows", "case14", "balanced_accuracy", "rough")
    ]


def test_the_same_evaluation_twice_is_equal(both: Evaluation) -> None:
    again = run(CONFIG, suite="quick")
    assert again.results.results == both.results.results
    assert again.comparisons == both.comparisons
    assert again.notes == both.notes
    np.testing.assert_array_equal(again.calibration, both.calibration)


@pytest.mark.parametrize("suite", ["windows", "timelines"])
def test_one_suite_alone_gives_the_block_it_gives_with_the_other(both: Evaluation, suite: str) -> None:
    found = run(CONFIG, suite=suite)
    assert found.results.results == tuple(b for b in both.results.results if b.suite == suite)
    assert found.comparisons == (both.comparisons if suite == "windows" else [])
    np.testing.assert_array_equal(found.calibration, both.calibration, "scoring needs it whatever the suite")


def test_the_calibration_is_that_of_the_model_on_benign_validation_windows(both: Evaluation) -> None:
    ours = NetworkMethod("again", new_verifier(CONFIG.verifier, 0))
    expected = np.sort(np.concatenate([ours.output(part).score_B for part in both.windows["case14"].validation]))
    np.testing.assert_array_equal(both.calibration, expected)


def test_grids_that_are_named_replace_those_of_the_run() -> None:
    notes: list[str] = []
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, windows=1, held_out_cases=("case39",)))
    found = run(config, suite="windows", cases=["case30"], note=notes.append)
    assert [block.case for block in found.results.results] == ["case30"]
    assert list(found.windows) == list(found.outputs) == ["case30"]
    assert [note.split(":")[0] for note in notes] == ["case30"]
    assert found.windows["case30"].digest in notes[0]


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize("method", ["verifier", "rough"])
def test_rows_are_read_at_the_threshold_of_the_validation_windows(both: Evaluation, method: str) -> None:
    """The figures follow from the outputs and from a threshold that is computed here from validation alone."""
    asked: Method = NetworkMethod("v", new_verifier(CONFIG.verifier, 0)) if method == "verifier" else Roughness()
    benign = np.concatenate([asked.output(part).score_B for part in both.windows["case14"].validation])
    threshold = np.sort(benign)[benign.size - int(FPR * benign.size) - 1]
    specificity = np.mean(scores(both, method, lambda f: f == "") <= threshold)
    block = both.results.results[0]
    for family in FAMILIES:
        row = block.row(method, family)
        assert row is not None
        recall = np.mean(scores(both, method, family.__eq__) > threshold)
        assert row.balanced_accuracy == pytest.approx(0.5 * (specificity + recall), abs=1e-12)


class Calendar(Roughness):
    """Scores benign training months 0, validation months 10, test windows 20 or 5: only 10 tells the last two apart."""

    name = "calendar"

    def output(self, prepared: Prepared) -> Output:
        months = [split_of(window.t0_ns) for window in prepared.windows]
        moved = np.where(super().output(prepared).score_B > 0.1, 20.0, 5.0)
        fixed = {"train": 0.0, "validation": 10.0}
        return Output(np.array([fixed.get(month, own) for month, own in zip(months, moved, strict=True)]))


def test_no_month_but_those_of_validation_sets_the_threshold(both: Evaluation) -> None:
    source = context_source(None)
    found = evaluate(CONFIG, source, [Calendar()], learner_steps=0, executor_calls=0, model="m", suite="windows")
    families = [f for group in both.windows["case14"].test for f in group.families]
    expected = macro(families, np.concatenate([o.score_B for o in both.outputs["case14"]["rough"]]) > 0.1)
    assert abs(expected - 0.5) > 0.01, "other thresholds would give one half"
    row = found.results.results[0].row("calendar")
    assert row is not None
    assert row.balanced_accuracy == pytest.approx(expected, abs=1e-12)


def test_thresholds_do_not_change_with_the_test_windows_and_days(
    both: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_budgets(config: RunConfig) -> tuple[Evaluation, list[float]]:
        seen: list[float] = []
        original = metrics.threshold_for_budget

        def spy(*args: Any, **kwargs: Any) -> float:
            seen.append(original(*args, **kwargs))
            return seen[-1]

        with monkeypatch.context() as patch:
            patch.setattr(metrics, "threshold_for_budget", spy)
            return run(config, suite="quick"), seen

    few, few_budgets = with_budgets(CONFIG)
    more, more_budgets = with_budgets(replace(CONFIG, evaluate=replace(CONFIG.evaluate, windows=4, days=2)))
    assert more.windows["case14"].digest != few.windows["case14"].digest, "other test windows"
    assert more.results.results[1].budget["days"] == 2.0
    assert len(few_budgets) == 2
    assert more_budgets == few_budgets
    np.testing.assert_array_equal(more.calibration, few.calibration)
    for now, before in zip(more.windows["case14"].validation, few.windows["case14"].validation, strict=True):
        np.testing.assert_array_equal(now.z_BTM, before.z_BTM)


# ---------------------------------------------------------------- comparisons


def suite_of(both: Evaluation, *families: list[str]) -> WindowSuite:
    """A suite whose groups have these families; comparisons read nothing else of the windows."""
    real = both.windows["case14"].test[0]
    groups = [Group(real.prepared, [], list(f), [0.0] * len(f), [False] * len(f)) for f in families]
    return replace(both.windows["case14"], test=groups)


def macro(families: list[str], flagged: np.ndarray[Any, Any]) -> float:
    """Macro balanced accuracy, by its definition and family by family."""
    names = np.array(families)
    specificity = np.mean(~flagged[names == ""])
    return float(np.mean([0.5 * (specificity + np.mean(flagged[names == f])) for f in sorted(set(families) - {""})]))


def test_a_method_against_itself_differs_by_exactly_nothing(both: Evaluation) -> None:
    suite, outputs = both.windows["case14"], both.outputs["case14"]
    twice = {"ours": outputs["rough"], "copy": outputs["rough"]}
    [found] = comparisons(suite, twice, {"ours": 0.3, "copy": 0.3}, "ours", 0)
    assert found.than == "copy"
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)


def test_weights_make_the_mean_the_macro_accuracy(both: Evaluation) -> None:
    """Families of unequal size over two groups, random scores: the difference is that of the macro figures."""
    rng = np.random.default_rng(3)
    one = ["S1"] * 7 + [""] * 9 + ["A2"] * 2 + ["T3"]
    two = [""] * 4 + ["A2"] * 3 + ["S1"] * 1
    suite, families = suite_of(both, one, two), one + two
    for _ in range(20):
        thresholds = {"ours": 0.2, "theirs": -0.4}
        made = {name: [rng.normal(size=len(one)), rng.normal(size=len(two))] for name in thresholds}
        outputs = {name: [Output(part) for part in parts] for name, parts in made.items()}
        expected = {n: macro(families, np.concatenate(parts) > thresholds[n]) for n, parts in made.items()}
        [found] = comparisons(suite, outputs, thresholds, "ours", 0)
        assert found.difference.mean == pytest.approx(expected["ours"] - expected["theirs"], abs=1e-12)
        assert found.difference.low <= found.difference.mean <= found.difference.high


def test_the_difference_is_that_of_the_macro_rows(both: Evaluation) -> None:
    block = both.results.results[0]
    ours, theirs = block.row("verifier"), block.row("rough")
    assert ours is not None
    assert theirs is not None
    assert ours.balanced_accuracy is not None
    assert theirs.balanced_accuracy is not None
    [found] = both.comparisons
    expected = ours.balanced_accuracy - theirs.balanced_accuracy
    assert expected != 0.0
    assert found.difference.mean == pytest.approx(expected, abs=1e-12)


def test_a_strictly_better_method_has_a_positive_interval_and_the_worse_its_mirror(both: Evaluation) -> None:
    """Right wherever the other is, and on half of its errors besides."""
    families = [f for f in ("S1", "T2", "A3") for _ in range(20)] + [""] * 60
    truth = np.array([bool(f) for f in families])
    good, poor = truth.astype(float), truth.astype(float)
    poor[::2] = 1.0 - poor[::2]
    good[::4] = 1.0 - good[::4]
    suite, outputs = suite_of(both, families), {"good": [Output(good)], "poor": [Output(poor)]}
    thresholds = {"good": 0.5, "poor": 0.5}
    [better] = comparisons(suite, outputs, thresholds, "good", 0)
    assert 0.0 < better.difference.low < better.difference.mean < better.difference.high < 1.0
    assert better.difference.mean == pytest.approx(0.25)
    [worse] = comparisons(suite, outputs, thresholds, "poor", 0)
    assert worse.difference.mean == pytest.approx(-0.25)
    assert worse.difference.high < 0.0


def test_a_score_on_the_threshold_is_no_alarm(both: Evaluation) -> None:
    families = ["S1"] * 4 + [""] * 4
    outputs = {"on": [Output(np.full(8, 0.5))], "below": [Output(np.full(8, 0.4))]}
    [found] = comparisons(suite_of(both, families), outputs, {"on": 0.5, "below": 0.5}, "on", 0)
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)


def test_intervals_repeat_with_the_seed(both: Evaluation) -> None:
    suite, outputs = both.windows["case14"], both.outputs["case14"]
    thresholds = {"verifier": 0.0, "rough": 0.05}

    def interval(seed: int) -> tuple[float, float]:
        [found] = comparisons(suite, outputs, thresholds, "verifier", seed)
        return found.difference.low, found.difference.high

    assert interval(0) == interval(0)
