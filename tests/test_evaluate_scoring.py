"""gg_ray.evaluate.scoring: thresholds from validation alone, zero-shot networks, stop-check lines."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from gg_ray.config import EvaluateConfig, ScenarioConfig, VerifierConfig
from gg_ray.evaluate import results
from gg_ray.evaluate.results import MACRO, Block, Row
from gg_ray.evaluate.scoring import BlockInfo, NetworkMethod, Output, stop_check, timeline_block, window_block
from gg_ray.evaluate.suites import SuiteMaker, TimelineSuite, WindowSuite
from gg_ray.learner import new_verifier
from gg_ray.scenario.context import context_source
from gg_ray.verifier.features import Prepared

INFO = BlockInfo(fold=0, model="m", seed=0, commit="c", learner_steps=1, executor_calls=2)


class Mean:
    """Scores a window by its mean reading; remembers what it was fitted to."""

    name = "mean"

    def prepare(self, fit: object, rng: np.random.Generator) -> None:
        self.fit = fit

    def output(self, prepared: Prepared) -> Output:
        return Output(np.nanmean(prepared.z_BTM, axis=(1, 2)))


@pytest.fixture(scope="module")
def maker() -> SuiteMaker:
    sizes = EvaluateConfig(windows=3, days=2, validation_days=1, stride=8)
    return SuiteMaker("case39", ScenarioConfig(), sizes, context_source(None))


@pytest.fixture(scope="module")
def windows(maker: SuiteMaker) -> WindowSuite:
    return maker.windows()


@pytest.fixture(scope="module")
def timelines(maker: SuiteMaker) -> TimelineSuite:
    return maker.timelines()


def test_a_network_scores_a_grid_it_never_saw(windows: WindowSuite) -> None:
    method = NetworkMethod("ours", new_verifier(VerifierConfig(hidden=32), 0))
    block, outputs, thresholds = window_block(windows, [method], INFO)
    assert set(outputs) == set(thresholds) == {"ours"}
    for group, out in zip(windows.test, outputs["ours"], strict=True):
        assert out.score_B.shape == (len(group.families),)
        assert out.node_BN is not None
        assert out.node_BN.shape == (len(group.families), 39)
        assert out.type_B is not None
        assert set(out.type_B.tolist()) <= set(range(1, 13))
        np.testing.assert_allclose(out.prob_B, 1 / (1 + np.exp(-out.score_B)), atol=1e-6)
    assert block.case == "case39"
    assert block.row(results.ORACLE) is not None
    families = {f for g in windows.test for f in g.families if f}
    assert {row.family for row in block.rows if row.method == "ours"} == families | {MACRO}


def test_thresholds_do_not_know_the_test_windows(windows: WindowSuite) -> None:
    method = Mean()
    first = window_block(windows, [method], INFO)[2]["mean"]
    assert method.fit is windows.fit
    other = dataclasses.replace(windows, test=copy.deepcopy(windows.test))
    for group in other.test:
        group.prepared.z_BTM += 100.0
    assert window_block(other, [Mean()], INFO)[2]["mean"] == first
    moved = dataclasses.replace(windows, validation=copy.deepcopy(windows.validation))
    for prepared in moved.validation:
        prepared.z_BTM += 1.0
    assert window_block(moved, [Mean()], INFO)[2]["mean"] == pytest.approx(first + 1.0)


def test_timeline_thresholds_do_not_know_the_test_days(
    timelines: TimelineSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gg_ray.evaluate import metrics

    seen: list[float] = []
    original = metrics.threshold_for_budget
    monkeypatch.setattr(metrics, "threshold_for_budget", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    block = timeline_block(timelines, [Mean()], INFO, 1.0)
    other = dataclasses.replace(timelines, test=copy.deepcopy(timelines.test))
    for day in other.test:
        day.prepared.z_BTM *= -3.0
    timeline_block(other, [Mean()], INFO, 1.0)
    assert seen[0] == seen[1]
    assert block.budget["prevalence"] == timelines.attacked_share
    assert block.suite == "timelines"


@pytest.mark.parametrize(
    ("classical", "oracle", "words"),
    [(0.7, 0.95, ("ok", "ok")), (0.9, 0.95, ("TOO EASY", "ok")), (0.7, 0.8, ("ok", "TOO HARD"))],
)
def test_stop_check_lines(classical: float, oracle: float, words: tuple[str, str], windows: WindowSuite) -> None:
    block: Block = window_block(windows, [Mean()], INFO)[0]

    def set_to(row: Row) -> Row:
        value = oracle if row.method == results.ORACLE else classical
        return dataclasses.replace(row, balanced_accuracy=value)

    lines = stop_check(dataclasses.replace(block, rows=tuple(map(set_to, block.rows))), ("mean", "absent"))
    assert len(lines) == 2
    assert f"best classical test mean {classical:.3f}" in lines[0]
    assert f"oracle ceiling {oracle:.3f}" in lines[1]
    for line, word in zip(lines, words, strict=True):
        assert line.startswith("case39: ")
        assert f": {word}" in line
    assert len(stop_check(block, ())) == 1
