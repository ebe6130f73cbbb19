"""gg_ray.evaluate.scoring: thresholds from validation alone, zero-shot networks, stop-check lines."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from gg_ray.config import EvaluateConfig, ScenarioConfig, VerifierConfig
from gg_ray.evaluate import results
from gg_ray.evaluate.results import MACRO, Block, Row
from gg_ray.evaluate.scoring import (
    BlockInfo,
    LastFeatures,
    NetworkMethod,
    Output,
    Thresholds,
    stop_check,
    thresholds_of,
    timeline_block,
    window_block,
)
from gg_ray.evaluate.suites import SuiteMaker, TimelineSuite, WindowSuite
from gg_ray.learner import new_verifier
from gg_ray.records import Labels
from gg_ray.scenario.context import context_source
from gg_ray.verifier.features import Features, Featurizer, Prepared

SCORE_ONLY = {"mean": Thresholds(0.0, None)}
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
    made = maker.timelines()
    return dataclasses.replace(made, validation=list(made.validation), test=list(made.test))


def test_a_network_scores_a_grid_it_never_saw(windows: WindowSuite) -> None:
    method = NetworkMethod("ours", new_verifier(VerifierConfig(hidden=32), 0))
    block, scored = window_block(windows, [method], INFO)
    assert set(scored.test) == set(scored.validation) == set(scored.thresholds) == {"ours"}
    for group, out in zip(windows.test, scored.test["ours"], strict=True):
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


def test_networks_asked_about_the_same_windows_share_their_features(
    windows: WindowSuite, timelines: TimelineSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (group.prepared for group in windows.test)
    settings = VerifierConfig(hidden=16)
    alone = [NetworkMethod("alone", new_verifier(settings, seed)).output(one) for seed in range(3)]
    made: list[Prepared] = []
    original = Featurizer.features

    def note(self: Featurizer, prepared: Prepared) -> Features:
        made.append(prepared)
        return original(self, prepared)

    monkeypatch.setattr(Featurizer, "features", note)
    shared = LastFeatures()
    networks = [NetworkMethod(f"n{seed}", new_verifier(settings, seed), shared) for seed in range(3)]
    for network, expected in zip(networks, alone, strict=True):
        np.testing.assert_array_equal(network.output(one).score_B, expected.score_B)
    assert len(made) == 1, "once for all networks"
    for network in networks:
        network.output(two)
    assert len(made) == 2, "anew for other windows"
    np.testing.assert_array_equal(networks[0].output(one).score_B, alone[0].score_B)
    assert len(made) == 3, "only the last ones are kept"
    networks[1].output(copy.copy(one))
    assert len(made) == 4, "windows that merely look the same may have been changed"
    NetworkMethod("own", new_verifier(settings, 0)).output(one)
    assert len(made) == 5, "a network that shares with none"
    made.clear()
    timeline_block(timelines, networks, INFO, 1.0, {network.name: Thresholds(0.0, 0.0) for network in networks})
    days = [day.prepared for day in (*timelines.validation, *timelines.test)]
    assert [id(prepared) for prepared in made] == [id(prepared) for prepared in days], "day by day, each once"


def test_one_benign_window_in_a_hundred_may_flag_a_bus() -> None:
    node_BN = np.zeros((300, 5))
    node_BN[np.arange(300), np.arange(300) % 5] = np.arange(300)
    limits = thresholds_of([Output(np.zeros(100), node_BN=node_BN[:100]), Output(np.zeros(200), node_BN=node_BN[100:])])
    assert limits.node is not None
    assert (node_BN > limits.node).any(axis=1).sum() == 3
    assert thresholds_of([Output(np.zeros(9))]).node is None


def told(prepared: Prepared, label: Labels) -> np.ndarray:
    """Affected buses, ends of affected branches among them; none in a look without an attack."""
    ends = np.stack([prepared.case.f_bus, prepared.case.t_bus])[:, label.edge_E].ravel()
    buses = label.node_N | np.isin(np.arange(prepared.case.n_bus), ends)
    return buses & label.implausible


class Insider:
    """Knows the affected buses of the windows it was told about."""

    name = "insider"

    def __init__(self, suite: WindowSuite, days: TimelineSuite) -> None:
        parts = [(part.prepared, part.labels) for part in (*suite.test, *days.test)]
        self.known = {id(prepared): [told(prepared, label) for label in labels] for prepared, labels in parts}

    def prepare(self, fit: object, rng: np.random.Generator) -> None:
        """Nothing."""

    def output(self, prepared: Prepared) -> Output:
        none = np.zeros((len(prepared.windows), prepared.case.n_bus))
        node_BN = np.array(self.known.get(id(prepared), none), dtype=float)
        return Output(node_BN.max(axis=1), node_BN=node_BN, type_B=np.ones(len(node_BN), dtype=np.int64))


def test_every_figure_that_applies_is_filled(windows: WindowSuite, timelines: TimelineSuite) -> None:
    """Of a network both suites give figures of place and type; a method that knows the buses has all of them."""
    insider, network = Insider(windows, timelines), NetworkMethod("ours", new_verifier(VerifierConfig(hidden=16), 0))
    block, scored = window_block(windows, [network, insider, Mean()], INFO)
    days = timeline_block(timelines, [network, insider, Mean()], INFO, 1.0, scored.thresholds)
    assert days is not None
    window_only, day_only = {"ece", "ceiling"}, {"vus_pr", "event_recall", "false_incidents_per_day", "delay_scans"}
    for found, absent in ((block, day_only), (days, window_only)):
        row = found.row("ours")
        assert row is not None
        assert {name for name in results.FIGURES if getattr(row, name) is None} == absent
        best = found.row("insider")
        assert best is not None
        assert (best.node_f1, best.top1, best.top5, best.hops) == (1.0, 1.0, 1.0, 0.0)
        blind = found.row("mean")
        assert blind is not None
        assert blind.node_f1 is blind.top1 is blind.hops is blind.type_f1 is None


def test_thresholds_do_not_know_the_test_windows(windows: WindowSuite) -> None:
    method = Mean()
    first = window_block(windows, [method], INFO)[1].thresholds["mean"].score
    assert method.fit is windows.fit
    other = dataclasses.replace(windows, test=copy.deepcopy(windows.test))
    for group in other.test:
        group.prepared.z_BTM += 100.0
    assert window_block(other, [Mean()], INFO)[1].thresholds["mean"].score == first
    moved = dataclasses.replace(windows, validation=copy.deepcopy(windows.validation))
    for prepared in moved.validation:
        prepared.z_BTM += 1.0
    assert window_block(moved, [Mean()], INFO)[1].thresholds["mean"].score == pytest.approx(first + 1.0)


def test_timeline_thresholds_do_not_know_the_test_days(
    timelines: TimelineSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gg_ray.evaluate import metrics

    seen: list[float] = []
    original = metrics.threshold_for_budget
    monkeypatch.setattr(metrics, "threshold_for_budget", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    block = timeline_block(timelines, [Mean()], INFO, 1.0, SCORE_ONLY)
    other = dataclasses.replace(timelines, test=copy.deepcopy(timelines.test))
    for day in other.test:
        day.prepared.z_BTM *= -3.0
    timeline_block(other, [Mean()], INFO, 1.0, SCORE_ONLY)
    assert seen[0] == seen[1]
    assert block is not None
    looks, attacked = sum(len(day.labels) for day in timelines.test), sum(day.attacked for day in timelines.test)
    assert block.budget["prevalence"] == attacked / looks > 0
    assert block.suite == "timelines"


def test_without_a_test_day_there_is_no_timeline_block(timelines: TimelineSuite) -> None:
    assert timeline_block(dataclasses.replace(timelines, test=[]), [Mean()], INFO, 1.0, SCORE_ONLY) is None


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
