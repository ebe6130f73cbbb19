"""The distributed loop: lock-step equals serial bit for bit, async survives killed actors and counts every window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors import crew as crew_module
from actors import selfplay
from actors.evaluator import EvaluatorActor
from actors.replay import RemoteBuffer, ReplayLost
from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play as serial_play

pytestmark = pytest.mark.ray


def small(mode: str, *, steps: int = 30, proposers: int = 1, **evaluate: Any) -> RunConfig:
    """The smoke run; many more draws than inserts would hide a wrong insert, so the ratio is low."""
    smoke = load("smoke")
    return replace(
        smoke, mode=mode, actors=replace(smoke.actors, proposers=proposers, call_timeout_s=60.0),
        selfplay=replace(smoke.selfplay, steps=steps), replay=replace(smoke.replay, samples_per_insert=2.0),
        evaluate=replace(smoke.evaluate, **{"every_steps": 0, **evaluate}),
    )  # fmt: skip


APART = ("time/", "actors/")
"""Depends on the clock or on who is alive, not on the numbers."""


class Log:
    """Metrics of every step, and something to do at a step; `state` is the buffer's after the last."""

    def __init__(self, at: Mapping[int, Callable[[Game, Any], None]] | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.at = dict(at or {})
        self.state: dict[str, Any] = {}

    def __call__(self, game: Game, buffer: Any) -> None:
        stats = {f"replay/{k}": v for k, v in buffer.stats().items() if isinstance(v, int | float)}
        self.rows.append(game.metrics() | stats)
        self.at.get(game.step, lambda game, buffer: None)(game, buffer)
        if game.step == game.config.selfplay.steps:
            self.state = buffer.state_dict(0)

    def timeless(self) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if "blocked" not in k and not k.startswith(APART)} for row in self.rows]


@pytest.fixture(scope="module")
def serial() -> tuple[Log, Game, Buffer]:
    torch.set_num_threads(1)
    config, log = small("serial"), Log()
    game, buffer = Game(config), Buffer(config)
    serial_play(config, context_source(None), game, buffer, log)
    return log, game, buffer


def assert_same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for network, weights in one.items():
        for name, value in weights.items():
            np.testing.assert_array_equal(value, other[network][name], err_msg=f"{network} {name}")


@pytest.mark.parametrize("proposers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_lock_step_equals_serial_bit_for_bit(
    proposers: int, serial: tuple[Log, Game, Buffer], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two proposers the first is killed on the way: the second and a replacement must give the same numbers."""
    crews: list[crew_module.Crew] = []
    make = selfplay.proposer_crew

    def remember(*args: Any) -> crew_module.Crew:
        crews.append(make(*args))
        return crews[-1]

    def kill_first(game: Game, buffer: Any) -> None:
        assert crews[0].pool is not None
        ray.kill(crews[0].pool._slots[0].actor, no_restart=True)

    monkeypatch.setattr(selfplay, "proposer_crew", remember)
    log = Log({10: kill_first} if proposers == 2 else None)
    config = small("sync", proposers=proposers)
    game, buffer = Game(config), Buffer(config)
    selfplay.play(config, context_source(None), game, buffer, log)
    their_log, theirs, _ = serial
    assert game.calls == theirs.calls > 4
    assert game.questions == theirs.questions > 0
    assert log.timeless() == their_log.timeless()
    assert_same_weights(theirs.all_weights(), game.all_weights())
    assert log.state["draws"] == their_log.state["draws"]
    mine, expected = log.state["table"], their_log.state["table"]
    for name in ("index.key", "index.priority", "payload"):
        np.testing.assert_array_equal(mine[name], expected[name], err_msg=name)
    if proposers == 2:
        assert crews[0].pool is not None
        assert crews[0].pool.stats().lost >= 1


def test_async_goes_on_when_players_are_killed(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposer and a solver die with calls in flight: both are replaced, their calls and windows counted."""
    crews: dict[str, crew_module.Crew] = {}
    makers = {name: getattr(selfplay, name) for name in ("proposer_crew", "solver_crew")}
    for name, make in makers.items():

        def remember(*args: Any, name: str = name, make: Callable[..., crew_module.Crew] = make) -> crew_module.Crew:
            crews[name] = make(*args)
            return crews[name]

        monkeypatch.setattr(selfplay, name, remember)

    def kill(game: Game, buffer: Any) -> None:
        for crew in crews.values():
            assert crew.pool is not None
            ray.kill(crew.pool._slots[0].actor, no_restart=True)

    config = small("async", steps=60, every_steps=20)
    monkeypatch.setattr("actors.selfplay.Looks.due", lambda looks, step: False)
    log = Log({15: kill})
    game, buffer = Game(config), Buffer(config)
    selfplay.play(config, context_source(None), game, buffer, log)
    assert game.step == 60
    last = log.rows[-1]
    assert last["actors/lost_calls"] >= 1
    assert last["actors/recreated"] >= 1
    for row in log.rows:
        parts = sum(row[f"actors/windows_{name}"] for name in ("running", "accepted", "filtered", "lost"))
        assert row["actors/windows_submitted"] == parts
        assert 0.0 <= row["time/learner_wait_share"] <= 1.0
    assert last["actors/windows_lost"] >= 32
    assert game.calls + game.questions == game.settled + game.answered + game.lost
    assert 0 < log.state["table"]["held"].size <= game.inserted, "the run's windows can be had for a checkpoint"


def test_async_resumes_and_ends_with_a_clear_error_when_replay_dies(
    serial: tuple[Log, Game, Buffer], ray_cluster: None
) -> None:
    """A run that goes on from another's state has its windows at once; without its replay it stops by name."""
    config = small("async", steps=60)
    game, buffer = Game(config), Buffer(config)
    game.load_state_dict(serial[1].state_dict())
    buffer.load_state_dict(serial[2].state_dict(0))
    held = len(buffer.table)
    seen: list[int] = []

    def kill(game: Game, remote: RemoteBuffer) -> None:
        seen.append(remote.stats()["items"])
        ray.kill(remote.actor, no_restart=True)

    with pytest.raises(ReplayLost, match=r"--resume auto"):
        selfplay.play(config, context_source(None), game, buffer, Log({32: kill}))
    assert seen[0] >= held > 0
    assert game.step >= 32
    assert len(buffer.table) == 0, "the driver does not hold windows a second time"


def test_the_evaluator_looks_at_the_weights_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """In process: the actor class is plain, so no Ray is needed to see what it reports."""
    seen: list[float] = []

    class Quick:
        def __init__(self, config: RunConfig, contexts: object) -> None: ...

        def look(self, network: torch.nn.Module) -> dict[str, float]:
            seen.append(float(sum(p.detach().abs().sum() for p in network.parameters())))
            return {"eval/auroc": 0.5}

    monkeypatch.setattr("actors.evaluator.QuickLook", Quick)
    monkeypatch.setattr("actors.evaluator.os.nice", lambda by: 0)
    config = small("async")
    weights = Game(config).learner.weights()
    doubled = {name: value * 2 for name, value in weights.items()}
    evaluator = EvaluatorActor(config)
    assert evaluator.look(weights, 15) == {"eval/auroc": 0.5, "eval/step": 15.0}
    evaluator.look(doubled, 30)
    assert seen[1] == pytest.approx(2 * seen[0], rel=1e-4)
