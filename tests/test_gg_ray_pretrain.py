"""gg_ray.pretrain: what is hidden, that states are learned, that the seed decides, that a game starts from it once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gg_ray import pretrain, train
from gg_ray.config import ConfigError, LearnerConfig, LossConfig, RunConfig
from gg_ray.config_io import load
from gg_ray.learner import load_numpy, new_verifier, to_numpy
from gg_ray.records import Experience
from gg_ray.run_state import RunFolder
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play
from gg_ray.tracking import compare, read_jsonl
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import case_static
from gg_ray.verifier.losses import reconstruction_loss
from gg_ray.verifier.model import Verifier

TINY = {
    "scenario.cases": ["case14"], "evaluate.held_out_cases": ["case30"], "verifier.hidden": 16,
    "learner.pretrain_steps": 30, "selfplay.steps": 6,
}  # fmt: skip


def quiet(_line: str) -> None: ...


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load("smoke", TINY)


@pytest.fixture(scope="module")
def found(config: RunConfig) -> pretrain.Pretrained:
    return pretrain.pretrain(config, context_source(None), quiet)


@pytest.fixture(scope="module")
def windows(config: RunConfig) -> list[Experience]:
    """Masked benign windows of another seed."""
    other = replace(config, seed=9, learner=replace(config.learner, batch=24))
    return next(pretrain._Source(other, context_source(None)).batches(1))


def judged(network: Verifier, windows: list[Experience]) -> dict[str, float]:
    batch = collate(windows, {"case14": case_static("case14")})
    with torch.inference_mode():
        _, terms = reconstruction_loss(network.eval()(batch), batch, LossConfig(), 0)
    return {name: float(value) for name, value in terms.items()}


def test_hidden_meters_are_silent_and_age(config: RunConfig) -> None:
    rollout_config = replace(config, seed=3)
    source = pretrain._Source(rollout_config, context_source(None))
    executor = source.rollout.executor("case14")
    plan = executor.grammar.plan(0)
    program = pretrain.Program(case="case14", context_id=1, plan_id=0, events=(), scans=16, seed=1)
    whole, _ = executor.realise(executor.run([program])[0], 0)
    seen = []
    for seed in range(20):
        left = pretrain.masked(whole, np.random.default_rng(seed))
        kept = np.isfinite(left.z_TM)
        assert np.array_equal(left.z_TM[kept], whole.z_TM[kept]), "what is left is what was read"
        silent = ~kept.any(axis=0)
        assert (left.age_TM[:, silent] == 255).all()
        lost = ~kept & np.isfinite(whole.z_TM)
        assert (left.age_TM[lost] > 0).all()
        assert not lost[:12, ~silent].any(), "others only in the last quarter"
        seen.append(float(lost.mean()))
    assert plan.size == whole.z_TM.shape[1]
    assert min(seen) < 0.15 < 0.3 < max(seen), "from nearly all readings to about half of them"
    assert np.isfinite(whole.z_TM).mean() > 0.9, "the window itself is as it was"


def test_the_readings_of_the_loss_are_all_of_them(windows: list[Experience]) -> None:
    """Channels p and q of the features lack hidden meters; the readings that the state has to agree with do not."""
    hidden = [np.isfinite(item.sigma_N2) & (item.node_TNF[-1].reshape(-1, 4, 5)[:, 1:3, 4] == 0.0) for item in windows]
    assert np.mean([flags.any() for flags in hidden]) > 0.5
    assert not any(item.labels.implausible for item in windows)
    assert {item.labels.disturbance for item in windows} == {True, False}, "ordinary and hard ones"


def test_states_are_learned(
    config: RunConfig, found: pretrain.Pretrained, windows: list[Experience]
) -> None:  # fmt: skip
    network = new_verifier(config.verifier, config.seed)
    before = judged(network, windows)
    assert before["state_error"] == before["estimator_error"], "an untrained network believes the estimate"
    load_numpy(network, found.weights)
    after = judged(network, windows)
    assert after["state"] < before["state"] - 0.1
    assert after["state_error"] < 1.2 * before["state_error"]
    assert set(found.metrics) == {f"pretrain/{name}" for name in ("total", "state_error", "estimator_error")}
    assert found.solves > 0


def test_the_loss_needs_true_states(config: RunConfig, windows: list[Experience]) -> None:
    batch = collate(windows[:2], {"case14": case_static("case14")}, labelled=False)
    with torch.inference_mode(), pytest.raises(ValueError, match="labelled=True"):
        reconstruction_loss(new_verifier(config.verifier, 0)(batch), batch, LossConfig(), 0)


def test_the_seed_decides_and_other_heads_keep_their_start(config: RunConfig, found: pretrain.Pretrained) -> None:
    again = pretrain.pretrain(config, context_source(None), quiet)
    assert again.metrics == found.metrics
    assert all(np.array_equal(again.weights[name], value) for name, value in found.weights.items())
    start = to_numpy(new_verifier(config.verifier, config.seed).state_dict())
    kept = {name for name, value in found.weights.items() if np.array_equal(value, start[name])}
    assert {"graph_head.weight", "node_head.weight", "edge_head.weight", "gate.weight"} <= kept
    assert not kept & {"state_head.weight", "node_hidden.weight", "node_encoder.embed.weight"}


def test_a_game_starts_from_it(config: RunConfig, found: pretrain.Pretrained) -> None:
    game, notes = Game(config), list[str]()
    pretrain.warm_start(config, context_source(None), game, notes.append)
    assert len(notes) == pretrain.NOTES
    assert "30/30" in notes[-1]
    for name, value in game.all_weights()["verifier"].items():
        assert np.array_equal(value, found.weights[name]), "players score with them from the first call"
    live = to_numpy(game.learner.network.state_dict())
    assert all(np.array_equal(live[name], value) for name, value in found.weights.items())
    assert game.solves == game.solves_pretrain == found.solves
    assert game.learner.step_count == game.step == 0
    assert found.metrics.items() <= game.metrics().items()
    game.learner.step_count = 1
    with pytest.raises(ValueError, match="throw away"):
        game.learner.start_from(found.weights)


def test_without_steps_nothing_happens(config: RunConfig) -> None:
    off = replace(config, learner=replace(config.learner, pretrain_steps=0))
    game, plain = Game(off), Game(off)
    pretrain.warm_start(off, context_source(None), game, quiet)
    one, two = game.all_weights()["verifier"], plain.all_weights()["verifier"]
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert game.metrics() == plain.metrics()
    with pytest.raises(ConfigError, match=r"learner\.pretrain_steps"):
        LearnerConfig(pretrain_steps=-1)


@pytest.mark.slow
def test_the_control_is_pretrained_too_and_its_budget_holds(config: RunConfig, found: pretrain.Pretrained) -> None:
    rival = Game(config)
    pretrain.warm_start(config, context_source(None), rival, quiet)
    play(config, context_source(None), rival, Buffer(config), lambda _game, _buffer: None)
    control = train.train_control(config, play, rival)
    assert control.solves_pretrain == rival.solves_pretrain == found.solves
    plain = Game(config)
    plain.solves, plain.inserted = rival.solves - found.solves, rival.inserted
    plain.uniform_solves, plain.uniform_windows = rival.uniform_solves, rival.uniform_windows
    assert train.equal_price(config, rival) == train.equal_price(config, plain), "its price is that of the game alone"


def test_a_resumed_run_is_not_pretrained_again(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    config = replace(
        config, learner=replace(config.learner, pretrain_steps=4, publish_every=3),
        checkpoint=replace(config.checkpoint, every_steps=3), evaluate=replace(config.evaluate, every_steps=0),
    )  # fmt: skip
    notes: list[str] = []
    display: Any = SimpleNamespace(update=lambda _: None, note=notes.append)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    game, _ = train._trained(config, RunFolder(whole, config), None, play, display)
    assert "pre-training 4/4" in " ".join(notes)
    rows = read_jsonl(whole / "metrics.jsonl")
    assert len(rows) == game.step == 6
    assert all(row["pretrain/state_error"] == rows[0]["pretrain/state_error"] > 0 for row in rows)
    assert all(row["selfplay/solves_pretrain"] == game.solves_pretrain > 0 for row in rows)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-6")

    def refuse(*_: object) -> None:
        raise AssertionError("pre-trained a second time")

    monkeypatch.setattr(train, "warm_start", refuse)
    again, _ = train._trained(config, RunFolder(cut, config), "auto", play, display)
    assert compare(whole / "metrics.jsonl", cut / "metrics.jsonl") == []
    assert again.solves_pretrain == game.solves_pretrain
    one, two = game.learner.weights(), again.learner.weights()
    assert all(np.array_equal(one[name], two[name]) for name in one)
