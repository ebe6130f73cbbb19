"""The replay buffer as the game uses it: table, limiter, batch mix and random stream in one place.

Flow:    selfplay.game -> [buffer: insert / draw] -> learner;  the Ray loop wraps this same object in an actor
Source:  selfplay.md, section 14 (limiter, batch mix); Reverb 2102.04736
Shapes:  B windows
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import RunConfig
from gg_ray.records import Experience
from gg_ray.replay.limiter import SampleToInsertLimiter
from gg_ray.replay.segments import experience_store
from gg_ray.replay.selectors import Rank, Selector, Stratified, Uniform
from gg_ray.replay.table import ReplayTable, describe_experiences
from gg_ray.verifier.batch import GraphBatch, collate
from gg_ray.verifier.features import case_static

ROLE_REPLAY = 3
"""First word of the buffer's random streams (SeedSequence spawn keys; see selfplay.players)."""


@dataclass(slots=True)
class Draw:
    """One batch for the learner and what is needed to write new priorities back."""

    batch: GraphBatch
    keys: NDArray[np.uint64]
    generations: NDArray[np.uint32]
    p_star: NDArray[np.float64]
    implausible: NDArray[np.bool_]
    solver_share: float


class Replay(Protocol):
    """What a loop and its callers use of a buffer: `Buffer` itself, or one in another process.

    `windows` is what a player returned as its second value: the windows, or a reference to them.
    """

    def may_insert(self) -> bool: ...
    def may_draw(self) -> bool: ...
    def insert(self, items: Any, step: int, batch_id: int) -> int: ...
    def insert_kept(self, windows: Any, keep: Sequence[int], step: int, batch_id: int) -> int: ...
    def draw(self) -> Draw: ...
    def reprioritise(
        self, draw_keys: NDArray[np.uint64], generations: NDArray[np.uint32], priorities: NDArray[np.float64]
    ) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def state_dict(self, tail: int) -> dict[str, Any]: ...


class Buffer:
    """Replay table with its rate limiter.

    Invariant: the n-th draw uses the stream (seed, ROLE_REPLAY, n), so the batches depend on what was inserted and on n
    alone; a block of inserts is never larger than one proposer call can produce.
    """

    def __init__(self, config: RunConfig) -> None:
        replay, play = config.replay, config.selfplay
        self.config = config
        self.draws = 0
        self.table: ReplayTable[Sequence[Experience]] = ReplayTable(
            experience_store(replay.max_items), limit_bytes=replay.limit_bytes, describe=describe_experiences
        )
        self.insert_block = 2 * config.scenario.realisations * play.programs
        self.limiter = SampleToInsertLimiter.with_share(
            samples_per_insert=replay.samples_per_insert, min_size=replay.min_size, share=replay.error_buffer,
            clock=time.monotonic, insert_block=self.insert_block, sample_block=config.learner.batch,
        )  # fmt: skip
        self._mix = self._batch_mix()

    def _batch_mix(self) -> list[tuple[Selector, float]]:
        """Rank share only for arms that replay by rank; solver-made windows only where a Solver plays."""
        replay, arm = self.config.replay, self.config.selfplay.arm
        rank = replay.rank_share if arm in ("selfplay", "plr") else 0.0
        made = self.config.solver.share if arm == "selfplay" and self.config.actors.solvers else 0.0
        mix: list[tuple[Selector, float]] = [(Uniform(), 1.0 - rank - made)]
        if rank:
            mix.append((Rank(replay.rank_temperature, replay.staleness_coef, replay.beta), rank))
        if made:
            mix.append((Stratified("solver/"), made))
        return mix

    def may_insert(self) -> bool:
        return self.limiter.may_insert(self.insert_block)

    def may_draw(self) -> bool:
        return self.limiter.may_sample(self.config.learner.batch)

    def insert(self, items: Sequence[Experience], step: int, batch_id: int) -> int:
        """Take windows in; a retried batch id changes nothing. Returns: how many were inserted."""
        if not items:
            return 0
        taken = len(self.table.insert(list(items), step=step, batch_id=batch_id))
        if taken:
            self.limiter.inserted(taken)
        return taken

    def insert_kept(
        self, windows: Sequence[Sequence[Experience]], keep: Sequence[int], step: int, batch_id: int
    ) -> int:
        """Insert the windows of the programs that the game keeps (Game.settle). Returns: how many were inserted."""
        return self.insert([item for index in keep for item in windows[index]], step, batch_id)

    def draw(self) -> Draw:
        """The next batch: twins come along with their windows."""
        rng = np.random.default_rng(
            np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_REPLAY, self.draws))
        )  # fmt: skip
        size = self.config.learner.batch
        sample = self.table.sample(size, rng, self._mix, with_twins=True)
        self.draws += 1
        self.limiter.sampled(size)
        batch = collate(sample.items, {i.case: case_static(i.case) for i in sample.items}, weights=sample.weights)
        return Draw(
            batch, sample.keys, sample.generations, np.array([i.p_star for i in sample.items]),
            np.array([i.labels.implausible for i in sample.items]),
            float(np.mean([i.source == "solver" for i in sample.items])),
        )  # fmt: skip

    def reprioritise(
        self, draw_keys: NDArray[np.uint64], generations: NDArray[np.uint32], priorities: NDArray[np.float64]
    ) -> None:
        """Overwrite priorities after use; updates for evicted items are skipped and counted by the table."""
        self.table.update_priorities(draw_keys, generations, priorities)

    def stats(self) -> dict[str, Any]:
        return self.table.stats() | {
            "fill_bytes_share": self.table.used_bytes / self.table.limit_bytes,
            "blocked_insert_s": self.limiter.blocked_s("insert"),
            "blocked_sample_s": self.limiter.blocked_s("sample"),
        }

    def state_dict(self, tail: int) -> dict[str, Any]:
        """Table (or its newest tail), limiter and draw counter."""
        state, segments = self.snapshot(tail)
        return {**state, "table": {**state["table"], "payload": list(segments)}}

    def snapshot(self, tail: int) -> tuple[dict[str, Any], Iterator[bytes]]:
        """The state without its payload, and the payload segment by segment (ReplayTable.snapshot)."""
        books, segments = self.table.snapshot(tail)
        return {"table": books, "limiter": self.limiter.state_dict(), "draws": self.draws}, segments

    def clear(self) -> None:
        """Let go of every window: another process has them now."""
        self.table.clear()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.table.load_state_dict(state["table"])
        self.limiter.load_state_dict(state["limiter"])
        self.draws = int(state["draws"])


def priorities_after(p: NDArray[np.float32], draw: Draw, d_min_star: float) -> NDArray[np.float64]:
    """[B] 1 - skill of each drawn window under the live weights (one window each, so coarser than a program's)."""
    right = np.where(draw.implausible, p, 1.0 - p).astype(np.float64)
    best = np.where(draw.implausible & (draw.p_star > 0.5), draw.p_star, d_min_star)
    return 1.0 - np.clip((right - 0.5) / np.maximum(best - 0.5, 1e-3), 0.0, 1.0)
