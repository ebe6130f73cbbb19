"""Replay through its actor: draws as in process, offers in order, one batch ahead, and a death that is named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.replay import RemoteBuffer, ReplayLost, pack, unpack
from gg_ray.config import RunConfig
from gg_ray.config_io import load
from gg_ray.records import Experience
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer, Draw
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.players import Proposed, ProposerPlayer

pytestmark = pytest.mark.ray

Calls = list[tuple[Proposed, list[list[Experience]]]]


@pytest.fixture(scope="module")
def config() -> RunConfig:
    smoke = load("smoke")
    return replace(smoke, actors=replace(smoke.actors, call_timeout_s=60.0))


@pytest.fixture(scope="module")
def calls(config: RunConfig) -> Calls:
    """Four proposer calls, made here."""
    torch.set_num_threads(1)
    game, player = Game(config), ProposerPlayer(config, context_source(None))
    return [player.propose(game.order()) for _ in range(4)]


@pytest.fixture
def remote(config: RunConfig, ray_cluster: None) -> Iterator[RemoteBuffer]:
    buffer = RemoteBuffer(config, {"num_cpus": 0.1})
    yield buffer
    buffer.close()


def everything(proposed: Proposed) -> list[int]:
    return list(range(len(proposed.summaries)))


def assert_same_draw(one: Draw, other: Draw) -> None:
    for field in fields(one.batch):
        a, b = getattr(one.batch, field.name), getattr(other.batch, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
    np.testing.assert_array_equal(one.keys, other.keys)
    np.testing.assert_array_equal(one.generations, other.generations)
    np.testing.assert_array_equal(one.p_star, other.p_star)


def test_the_actor_draws_what_the_buffer_here_draws(config: RunConfig, calls: Calls, remote: RemoteBuffer) -> None:
    """Inserts by reference, draws, priorities and a saved state: bit for bit, a repeated batch id included."""
    here = Buffer(config)
    for number, (proposed, windows) in enumerate(calls):
        keep = everything(proposed)[number % 2 :]
        ref = ray.put(windows)
        assert remote.may_insert() == here.may_insert()
        taken = here.insert_kept(windows, keep, step=number, batch_id=number)
        assert remote.insert_kept(ref, keep, step=number, batch_id=number) == taken > 0
        assert remote.insert_kept(ref, keep, step=number, batch_id=number) == 0
        here.insert_kept(windows, keep, step=number, batch_id=number)
    for _ in range(3):
        assert remote.may_draw()
        assert here.may_draw()
        one, other = here.draw(), remote.draw()
        assert_same_draw(one, other)
        priorities = np.linspace(0.1, 1.0, one.keys.size)
        here.reprioritise(one.keys, one.generations, priorities)
        remote.reprioritise(other.keys, other.generations, priorities)
    restored = Buffer(config)
    restored.load_state_dict(remote.state_dict(0))
    assert_same_draw(here.draw(), restored.draw())
    timeless = {name: value for name, value in here.stats().items() if not name.startswith("blocked")}
    assert timeless["inserted"] == restored.stats()["inserted"]


def test_a_packed_draw_is_the_draw_and_owns_its_memory(config: RunConfig, calls: Calls) -> None:
    here = Buffer(config)
    for number, (proposed, windows) in enumerate(calls):
        here.insert_kept(windows, everything(proposed), step=0, batch_id=number)
    draw = here.draw()
    packed = pack(draw)
    for value in packed["batch"][1].values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)  # as it comes out of the object store
    copy = unpack(packed)
    assert_same_draw(draw, copy)
    copy.batch.x.add_(1.0)
    assert not torch.equal(copy.batch.x, draw.batch.x)


def test_overlapping_offers_and_draws_neither_stall_nor_lose(
    config: RunConfig, calls: Calls, remote: RemoteBuffer
) -> None:
    """More offers than the limiter admits at once: each is inserted once, in order, as draws make room."""
    refs = [ray.put(windows) for _, windows in calls]
    sizes = [sum(len(own) for own in windows) for _, windows in calls]
    total = 12
    for number in range(total):
        remote.offer(refs[number % 4], everything(calls[number % 4][0]), number, number)
    draws, refused, deadline = 0, False, time.monotonic() + 60
    while remote.crowded and time.monotonic() < deadline:
        remote.flush()
        refused = refused or remote._full
        draws += remote.take(0.05) is not None
    assert not remote.crowded
    assert refused, "the limiter never refused: the test does not test"
    assert draws > 0
    stats = remote.stats()
    assert stats["inserted"] == sum(sizes[number % 4] for number in range(total))
    assert stats["duplicates"] == 0
    while not remote.dry and time.monotonic() < deadline:
        draws += remote.take(0.05) is not None
    assert remote.dry, "without new windows the limiter must refuse draws in the end"
    assert remote.stats()["sampled"] >= draws * config.learner.batch


def test_stats_do_not_queue_behind_inserts(config: RunConfig, calls: Calls, remote: RemoteBuffer) -> None:
    proposed, windows = calls[0]
    remote.insert_kept(windows, everything(proposed), 0, 0)
    slow: list[Any] = [remote.actor.call.remote("state_dict", 0) for _ in range(200)]
    stats = remote.stats()
    pending = len(ray.wait(slow, num_returns=len(slow), timeout=0)[1])
    assert stats["inserted"] > 0
    assert pending > 0, "stats came back only after the whole queue"


def test_a_dead_replay_actor_is_named_with_the_way_out(remote: RemoteBuffer) -> None:
    assert remote.may_insert()
    ray.kill(remote.actor, no_restart=True)
    end = time.monotonic() + 60.0

    def ask() -> None:  # a busy machine kills late: calls until then are answered
        while time.monotonic() < end:
            remote.may_insert()

    with pytest.raises(ReplayLost, match=r"replay actor.*--resume auto"):
        ask()
