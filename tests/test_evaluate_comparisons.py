"""gg_ray.evaluate.job.comparisons: the paired difference is that of the macro figures; intervals repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gg_ray.evaluate.job import comparisons
from gg_ray.evaluate.scoring import Output, Thresholds
from gg_ray.evaluate.suites import Group, WindowSuite


def suite_of(*families: list[str]) -> WindowSuite:
    """A suite whose groups have these families; comparisons read nothing else of the windows."""
    nothing: Any = None
    groups = [Group(nothing, [], list(f), [0.0] * len(f), [False] * len(f)) for f in families]
    return WindowSuite("case14", [], [], [], groups, 0, "")


def drawn(seed: int, *families: list[str]) -> list[Output]:
    """Random scores for such a suite."""
    rng = np.random.default_rng(seed)
    return [Output(rng.normal(size=len(part))) for part in families]


def limits(**scores: float) -> dict[str, Thresholds]:
    return {name: Thresholds(score, None) for name, score in scores.items()}


def macro(families: list[str], flagged: np.ndarray[Any, Any]) -> float:
    """Macro balanced accuracy, by its definition and family by family."""
    names = np.array(families)
    specificity = np.mean(~flagged[names == ""])
    return float(np.mean([0.5 * (specificity + np.mean(flagged[names == f])) for f in sorted(set(families) - {""})]))


def test_a_method_against_itself_differs_by_exactly_nothing() -> None:
    families = ["S1"] * 5 + [""] * 5
    same = drawn(0, families)
    [found] = comparisons(suite_of(families), {"ours": same, "copy": same}, limits(ours=0.3, copy=0.3), "ours", 0)
    assert found.than == "copy"
    assert (found.difference.mean, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)


def test_weights_make_the_mean_the_macro_accuracy() -> None:
    """Families of unequal size over two groups, random scores: the difference is that of the macro figures."""
    rng = np.random.default_rng(3)
    one = ["S1"] * 7 + [""] * 9 + ["A2"] * 2 + ["T3"]
    two = [""] * 4 + ["A2"] * 3 + ["S1"] * 1
    suite, families = suite_of(one, two), one + two
    for _ in range(20):
        thresholds = limits(ours=0.2, theirs=-0.4)
        made = {name: [rng.normal(size=len(one)), rng.normal(size=len(two))] for name in thresholds}
        outputs = {name: [Output(part) for part in parts] for name, parts in made.items()}
        expected = {n: macro(families, np.concatenate(parts) > thresholds[n].score) for n, parts in made.items()}
        [found] = comparisons(suite, outputs, thresholds, "ours", 0)
        assert found.difference.mean == pytest.approx(expected["ours"] - expected["theirs"], abs=1e-12)
        assert found.difference.low <= found.difference.mean <= found.difference.high


def test_a_strictly_better_method_has_a_positive_interval_and_the_worse_its_mirror() -> None:
    """Right wherever the other is, and on half of its errors besides."""
    families = [f for f in ("S1", "T2", "A3") for _ in range(20)] + [""] * 60
    truth = np.array([bool(f) for f in families])
    good, poor = truth.astype(float), truth.astype(float)
    poor[::2] = 1.0 - poor[::2]
    good[::4] = 1.0 - good[::4]
    suite, outputs = suite_of(families), {"good": [Output(good)], "poor": [Output(poor)]}
    thresholds = limits(good=0.5, poor=0.5)
    [better] = comparisons(suite, outputs, thresholds, "good", 0)
    assert 0.0 < better.difference.low < better.difference.mean < better.difference.high < 1.0
    assert better.difference.mean == pytest.approx(0.25)
    [worse] = comparisons(suite, outputs, thresholds, "poor", 0)
    assert worse.difference.mean == pytest.approx(-0.25)
    assert worse.difference.high < 0.0


def test_a_score_on_the_threshold_is_no_alarm() -> None:
    families = ["S1"] * 4 + [""] * 4
    outputs = {"on": [Output(np.full(8, 0.5))], "below": [Output(np.full(8, 0.4))]}
    [found] = comparisons(suite_of(families), outputs, limits(on=0.5, below=0.5), "on", 0)
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)


def test_intervals_repeat_with_the_seed() -> None:
    families = ["S1"] * 20 + [""] * 20
    suite, outputs = suite_of(families), {"verifier": drawn(0, families), "rough": drawn(1, families)}
    thresholds = limits(verifier=0.0, rough=0.05)

    def interval(seed: int) -> tuple[float, float]:
        [found] = comparisons(suite, outputs, thresholds, "verifier", seed)
        return found.difference.low, found.difference.high

    assert interval(0) == interval(0)
