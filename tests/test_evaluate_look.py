"""gg_ray.evaluate.look: the look while training repeats, and touches no test month or held-out grid."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gg_ray.config_io import load
from gg_ray.evaluate import look as look_module
from gg_ray.evaluate.look import QuickLook
from gg_ray.evaluate.scoring import Output
from gg_ray.learner import new_verifier
from gg_ray.records import FOLDS
from gg_ray.scenario.context import ContextSource, context_source, split_of
from gg_ray.scenario.grammar import training_families
from gg_ray.verifier.model import Verifier

CONFIG = load("smoke", {"scenario.cases": ["case14"], "verifier.hidden": 16, "evaluate.windows": 2})


@pytest.fixture(scope="module")
def contexts() -> ContextSource:
    return context_source(None)


@pytest.fixture(scope="module")
def look(contexts: ContextSource) -> QuickLook:
    return QuickLook(CONFIG, contexts)


@pytest.fixture
def network() -> Verifier:
    return new_verifier(CONFIG.verifier, 0)


def scored(look: QuickLook, monkeypatch: pytest.MonkeyPatch, positive: float, negative: float) -> dict[str, float]:
    """Figures of a method that gives one probability to implausible windows and another to the rest."""
    truth = {
        id(group.prepared): np.where([bool(f) for f in group.families], positive, negative) for group in look.groups
    }

    def method(_name: str, _network: object) -> Any:
        def output(prepared: object) -> Output:
            return Output(truth[id(prepared)], truth[id(prepared)])

        return SimpleNamespace(output=output)

    with monkeypatch.context() as patch:
        patch.setattr(look_module, "NetworkMethod", method)
        return look.look(None)  # type: ignore[arg-type]


def test_the_same_network_gives_the_same_figures_twice(look: QuickLook, network: Verifier) -> None:
    first = look.look(network)
    assert look.look(network) == first
    torch.manual_seed(123)
    np.random.default_rng(5).random(9)
    assert look.look(new_verifier(CONFIG.verifier, 0)) == first
    assert look.look(new_verifier(CONFIG.verifier, 1)) != first


def test_another_look_of_the_same_settings_is_the_same_look(
    look: QuickLook, network: Verifier, contexts: ContextSource
) -> None:
    """Whatever was drawn from the contexts before, and whatever the reward, the gates or the sizes are."""
    contexts.window(99, 16, 60.0, "validation")
    other = replace(
        CONFIG,
        seed=9,
        scenario=replace(CONFIG.scenario, gates="off", magnitude="physical", d_max=9.0),
        evaluate=replace(CONFIG.evaluate, windows=5, days=3),
    )
    for config, source in ((CONFIG, contexts), (other, context_source(None))):
        again = QuickLook(config, source)
        for one, two in zip(look.groups, again.groups, strict=True):
            np.testing.assert_array_equal(one.prepared.z_BTM, two.prepared.z_BTM)
        assert again.look(network) == look.look(network)


def test_validation_months_only(look: QuickLook, monkeypatch: pytest.MonkeyPatch, contexts: ContextSource) -> None:
    times = [w.t0_ns for group in look.groups for w in group.prepared.windows]
    scan_ns = int(CONFIG.scenario.step_s * 1e9)
    ends = [t0 + (CONFIG.scenario.scans - 1) * scan_ns for t0 in times]
    assert {split_of(t) for t in times + ends} == {"validation"}
    asked: list[str] = []
    original = contexts.window

    def window(context_id: int, scans: int, step_s: float, split: str) -> Any:
        asked.append(split)
        return original(context_id, scans, step_s, split)

    monkeypatch.setattr(contexts, "window", window)
    monkeypatch.setattr(contexts, "day", lambda *_args: pytest.fail("whole days belong to the timeline suite"))
    QuickLook(CONFIG, contexts)
    assert set(asked) == {"validation"}, "not even to be thrown away"


def test_a_training_grid_and_training_families(look: QuickLook, contexts: ContextSource) -> None:
    assert {group.prepared.case.name for group in look.groups} == {"case14"}
    families = {f for group in look.groups for f in group.families if f}
    assert families == set(look.families) == set(training_families(CONFIG.scenario.fold))
    assert not families & set(FOLDS[CONFIG.scenario.fold])
    other = QuickLook(replace(CONFIG, scenario=replace(CONFIG.scenario, fold=1)), contexts)
    assert {f for group in other.groups for f in group.families if f} == set(training_families(1))
    wide = replace(CONFIG, scenario=replace(CONFIG.scenario, cases=("case14", "case30")))
    seen = {group.prepared.case.name for group in QuickLook(wide, contexts).groups}
    assert seen <= set(wide.scenario.cases)
    assert not seen & set(wide.evaluate.held_out_cases)


def test_metering_plans_are_not_those_of_training(look: QuickLook) -> None:
    plans = {group.prepared.plan.plan_id for group in look.groups}
    assert len(plans) == len(look.groups)
    assert min(plans) >= CONFIG.scenario.plans


def test_half_of_the_windows_are_plausible(look: QuickLook) -> None:
    families = [f for group in look.groups for f in group.families]
    assert abs(families.count("") - len(families) / 2) <= 1
    assert len({families.count(f) for f in look.families}) == 1
    labels = [label.implausible for group in look.groups for label in group.labels]
    assert labels == [bool(f) for f in families]


def test_every_figure_is_a_rate_and_each_family_has_one(look: QuickLook, network: Verifier) -> None:
    figures = look.look(network)
    assert set(figures) == {"eval/balanced_accuracy", "eval/auroc", *(f"eval/auroc_{f}" for f in look.families)}
    for name, value in figures.items():
        assert isinstance(value, float), name
        assert 0.0 <= value <= 1.0, name
    own = [value for name, value in figures.items() if name.startswith("eval/auroc_")]
    assert figures["eval/auroc"] == pytest.approx(np.mean(own)), "families of one size: the pooled is their mean"


@pytest.mark.parametrize(
    ("positive", "negative", "accuracy", "auroc"),
    [(0.51, 0.49, 1.0, 1.0), (0.1, 0.9, 0.0, 0.0), (0.49, 0.1, 0.5, 1.0), (0.9, 0.51, 0.5, 1.0), (0.5, 0.5, 0.5, 0.5)],
)
def test_figures_of_known_answers(
    look: QuickLook, monkeypatch: pytest.MonkeyPatch, positive: float, negative: float, accuracy: float, auroc: float
) -> None:
    """Accuracy is read at probability one half, not at a threshold that would have to be tuned."""
    figures = scored(look, monkeypatch, positive, negative)
    assert figures["eval/balanced_accuracy"] == accuracy
    assert {value for name, value in figures.items() if "auroc" in name} == {auroc}


def test_looking_leaves_the_weights_alone(look: QuickLook, network: Verifier) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    look.look(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in network.parameters())
