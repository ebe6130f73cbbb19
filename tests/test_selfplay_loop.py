"""gg_ray.selfplay.loop: two runs are one run, a resumed run is the run that never stopped, books balance.

Regression guarded: a checkpoint that forgets a stream, a counter or an optimiser moment lets resumed runs drift.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.run_state import RunFolder
from gg_ray.scenario.context import ContextSource, context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play, turns
from gg_ray.selfplay.players import Order, Proposed, ProposerPlayer, SolverPlayer

HALF = 12
"""Steps before the stop: a multiple of learner.publish_every below, and the end of a turn."""


def settings(**changes: Any) -> RunConfig:
    base = {
        "scenario.cases": ["case14"],
        "selfplay.steps": 2 * HALF,
        "learner.publish_every": 6,
        "checkpoint.every_steps": 12,
    }
    return load("smoke", base | changes)


@pytest.fixture(scope="module")
def contexts() -> ContextSource:
    return context_source(None)


def run_to(
    config: RunConfig, contexts: ContextSource, game: Game, buffer: Buffer, steps: int
) -> list[dict[str, float]]:
    """Plays on to a step. Returns: what was measured at each step on the way."""
    seen: list[dict[str, float]] = []
    players = ProposerPlayer(config, contexts), SolverPlayer(config, contexts)
    turns(steps, game, buffer, *players, lambda g, _b: seen.append(g.metrics()))
    return seen


def bits(value: Any) -> Any:
    """A nested state in a form that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


@pytest.fixture(scope="module")
def straight(contexts: ContextSource) -> tuple[Game, Buffer, list[dict[str, float]]]:
    config = settings()
    game, buffer = Game(config), Buffer(config)
    seen = run_to(config, contexts, game, buffer, 2 * HALF)
    return game, buffer, seen


def test_two_runs_are_the_same_run(
    contexts: ContextSource, straight: tuple[Game, Buffer, list[dict[str, float]]]
) -> None:
    config = settings()
    game, buffer = Game(config), Buffer(config)
    seen: list[dict[str, float]] = []
    play(config, contexts, game, buffer, lambda g, _b: seen.append(g.metrics()))
    assert seen == straight[2]
    assert bits(game.state_dict()) == bits(straight[0].state_dict())


def test_another_seed_is_another_run(
    contexts: ContextSource, straight: tuple[Game, Buffer, list[dict[str, float]]]
) -> None:
    config = settings(seed=1)
    seen = run_to(config, contexts, Game(config), Buffer(config), 1)
    assert seen[0]["loss/total"] != straight[2][0]["loss/total"]


@pytest.mark.parametrize("tail", [0, 100_000], ids=["whole buffer", "tail longer than the buffer"])
def test_stopped_and_resumed_equals_never_stopped(
    tail: int, contexts: ContextSource, straight: tuple[Game, Buffer, list[dict[str, float]]], tmp_path: Path
) -> None:
    config = settings(**{"checkpoint.replay_tail": tail})
    folder = RunFolder(tmp_path / "run", config)
    assert folder.open(None) is None
    game, buffer = Game(config), Buffer(config)
    first = run_to(config, contexts, game, buffer, HALF)
    folder.save(game, buffer, 3.5)

    found = folder.open("auto")
    assert found is not None
    torch.rand(7)  # a new process is elsewhere in the global stream
    resumed, held = Game(config), Buffer(config)
    assert folder.restore(found, resumed, held) == 3.5
    assert bits(resumed.state_dict()) == bits(game.state_dict())
    second = run_to(config, contexts, resumed, held, 2 * HALF)

    game, buffer, seen = straight
    one, two = game.state_dict(), resumed.state_dict()
    assert one.keys() == two.keys()
    for part in one:  # one by one: a failure names the part
        assert bits(two[part]) == bits(one[part]), part
    assert bits(held.table.state_dict()) == bits(buffer.table.state_dict())
    assert (held.draws, held.limiter.inserts, held.limiter.samples) == (
        buffer.draws, buffer.limiter.inserts, buffer.limiter.samples,
    )  # fmt: skip
    assert first == seen[:HALF]
    # figures of a loss that is not taken each step are shown again from its next time on
    for row, expected in zip(second, seen[HALF:], strict=True):
        assert row == {name: expected[name] for name in row}
    assert second[-1] == seen[-1]


def test_a_stop_within_a_turn_changes_nothing(contexts: ContextSource) -> None:
    """The limiter often allows both an insert and a draw: a resumed run must draw on, as the other one did."""
    config = settings(
        **{
            "learner.publish_every": 7, "checkpoint.every_steps": 14, "selfplay.steps": 16,
            "replay.samples_per_insert": 4.0,
        }
    )  # fmt: skip
    game, buffer = Game(config), Buffer(config)
    run_to(config, contexts, game, buffer, 16)
    stopped, held = Game(config), Buffer(config)
    run_to(config, contexts, stopped, held, 14)
    assert held.may_insert()
    assert held.may_draw()
    calls = stopped.calls
    run_to(config, contexts, stopped, held, 16)
    assert stopped.calls == game.calls == calls
    assert bits(stopped.learner.state_dict()) == bits(game.learner.state_dict())


def test_every_call_is_booked_once_and_figures_are_finite(
    straight: tuple[Game, Buffer, list[dict[str, float]]],
) -> None:
    game, buffer, seen = straight
    assert game.step == 2 * HALF == len(seen)
    assert game.calls == game.settled
    assert game.questions == game.answered
    assert game.lost == 0
    assert game.inserted == buffer.limiter.inserts == buffer.table.inserted
    assert game.programs == game.counters.seen == game.calls * game.config.selfplay.programs
    assert game.counters.passed + sum(game.counters.stopped.values()) == game.counters.seen
    for column, total in enumerate((game.counters.seen, game.counters.passed)):
        assert sum(counts[column] for counts in game.counters.by_family.values()) == total
    stats = game.solver_stats
    assert game.counters.completions == stats["made"] + stats["dropped"] > 0
    assert game.counters.completions_passed == stats["made"]
    assert game.versions["verifier"] == 2 * HALF // game.config.learner.publish_every
    for row in seen:
        assert all(math.isfinite(value) for value in row.values()), row


def size_of(network: torch.nn.Module) -> float:
    return float(sum(p.detach().double().abs().sum() for p in network.parameters()))


class Listener(ProposerPlayer):
    """Remembers with which weights and versions it was asked."""

    def __init__(self, config: RunConfig, contexts: ContextSource) -> None:
        super().__init__(config, contexts)
        self.heard: list[tuple[int, float]] = []

    def propose(self, order: Order) -> tuple[Proposed, Any]:
        total = size_of(self.verifier)
        self.heard.append((order.verifier_version, total))
        return super().propose(order)


def test_players_score_with_the_version_that_the_order_names(contexts: ContextSource) -> None:
    config = settings()
    game, buffer, player = Game(config), Buffer(config), Listener(config, contexts)
    published = {0: size_of(game.learner.average)}

    def note(game: Game, _buffer: Any) -> None:
        if game.publish_due():
            published[game.versions["verifier"]] = size_of(game.learner.average)

    turns(2 * HALF, game, buffer, player, SolverPlayer(config, contexts), note)
    assert len({version for version, _ in player.heard}) > 1
    for version, total in player.heard:
        assert total == published[version]


def test_the_serial_loop_needs_no_ray() -> None:
    """Imported in a fresh interpreter: this one may have Ray loaded already."""
    code = "import sys, gg_ray.selfplay.loop; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


class Watched(ProposerPlayer):
    """Keeps the detectability of every valid program that the policy wrote, call by call."""

    def __init__(self, config: RunConfig, contexts: ContextSource) -> None:
        super().__init__(config, contexts)
        self.d_eff: list[list[float]] = []

    def propose(self, order: Order) -> tuple[Proposed, Any]:
        proposed, windows = super().propose(order)
        rows = [s for s in proposed.summaries if s.program.source == "proposer" and s.gate not in ("G1", "G2")]
        self.d_eff.append([s.d_eff for s in rows])
        return proposed, windows


def drift(contexts: ContextSource, changes: dict[str, Any]) -> tuple[float, float]:
    """Median detectability of policy-written anomalies in the first and in the last sixth of the azr configuration."""
    config = load("azr", changes)
    player = Watched(config, contexts)
    turns(config.selfplay.steps, Game(config), Buffer(config), player, SolverPlayer(config, contexts), lambda *_: None)
    part = len(player.d_eff) // 6
    first, last = (float(np.median(np.concatenate(rows))) for rows in (player.d_eff[:part], player.d_eff[-part:]))
    return first, last


@pytest.mark.slow
def test_absolute_zero_verbatim_falls_into_noise(contexts: ContextSource) -> None:
    """No gates, raw sizes, the policy picks the family, reward 1 - solve rate: what cannot be seen pays best."""
    first, last = drift(contexts, {"selfplay.steps": 200})
    assert last < 0.5 * first
    assert last < 1.0, "a third of d_min: nobody can see it"


@pytest.mark.slow
def test_our_reward_and_gates_stay_above_the_noise_in_the_same_game(contexts: ContextSource) -> None:
    ours = {"selfplay.reward": "ours", "scenario.gates": "on", "scenario.magnitude": "d_eff",
            "selfplay.family_choice": "scheduler", "selfplay.steps": 140}  # fmt: skip
    _, kept = drift(contexts, ours)
    assert kept > 3.0
