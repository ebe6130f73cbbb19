"""Benchmarks of the distributed parts: the async loop beside the serial one, and replay through one actor.

Flow:    cli bench selfplay, bench replay -> [bench] -> one dict of numbers
Source:  docs/adr/0011-distributed-loop.md (definitions); targets: learner wait < 10 %, overhead < 15 %, 30,000 inserts
         and 20,000 draws per second of 1 KiB items in blocks of 256
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors import session
from actors.selfplay import play
from actors.session import ONE_THREAD
from gg_ray.config import RunConfig
from gg_ray.replay.segments import ColumnStore
from gg_ray.replay.selectors import Prioritized
from gg_ray.replay.table import ItemMeta, ReplayTable
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer, Replay
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import turns
from gg_ray.selfplay.players import ProposerPlayer, SolverPlayer

BLOCK, CAPACITY, CALLS = 256, 65_536, 200
_COLUMNS: dict[str, tuple[tuple[int, ...], type]] = {"x": ((240,), np.float32), "y": ((16,), np.float32)}
"""1 KiB an item."""
Block = dict[str, NDArray[np.float32]]


def selfplay(seed: int = 0, steps: int = 200, config: RunConfig | None = None) -> dict[str, float]:
    """The async loop on this machine, and before and after it a serial loop on each core with the same settings.

    Returns: scenario_steps_per_s (exact AC solves, i.e. scans, executed per second), learner_wait_share, policy_lag_p95
             (versions), overhead_vs_serial and the figures it is made of, over the second half of the steps: in the
             first each process compiles kernels and factorises its grids.
             overhead_vs_serial = CPU seconds of all processes (Ray's own too) / CPU seconds that serial loops
             need for the same calls, answers and learner steps - 1; core_use = the latter / (wall x cores)
    """
    config = config or RunConfig()
    config = replace(
        config, seed=seed, mode="async", selfplay=replace(config.selfplay, steps=steps),
        evaluate=replace(config.evaluate, every_steps=0),
    )  # fmt: skip
    before = _apart(config)
    game, marks = Game(config), []

    def on_step(game: Game, buffer: Replay) -> None:
        if game.step in (steps // 2, steps):
            marks.append((time.perf_counter(), _cpu_s(), game.settled, game.answered, game.step, game.solves))

    with session.start(config.actors):
        play(config, context_source(config.scenario.data_dir or None), game, Buffer(config), on_step)
    after = _apart(config)  # a machine that grows slower or faster meanwhile would count as overhead
    cost = {name: 0.5 * (before[name] + after[name]) for name in before}
    wall_s, cpu_s, calls, answers, done, solves = (b - a for a, b in zip(*marks, strict=True))
    useful_s = calls * cost["propose"] + answers * cost["answer"] + done * cost["learn"]
    metrics = game.metrics()
    return {
        "scenario_steps_per_s": solves / wall_s, "learner_wait_share": metrics["time/learner_wait_share"],
        "overhead_vs_serial": cpu_s / useful_s - 1.0, "policy_lag_p95": metrics["time/policy_lag_p95"],
        "core_use": useful_s / (wall_s * (os.cpu_count() or 1)), "steps_per_s": done / wall_s,
        "serial_scenario_steps_per_s": cost["solves_per_s"], "serial_steps_per_s": cost["steps_per_s"],
        "serial_propose_cpu_ms": 1e3 * cost["propose"], "serial_answer_cpu_ms": 1e3 * cost["answer"],
        "serial_learn_cpu_ms": 1e3 * cost["learn"], "wall_s": wall_s, "cpu_s": cpu_s, "steps": float(steps),
    }  # fmt: skip


def _apart(config: RunConfig) -> dict[str, float]:
    """_serial_costs per core: one serial loop on each core at a time, as actors and driver share caches and memory too.

    In processes of their own: what a loop leaves in memory would slow the driver of the async loop.
    """
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        costs = list(pool.map(_serial_costs, [config] * cores))
    return {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}


def _serial_costs(config: RunConfig) -> dict[str, float]:
    """Mean CPU seconds of one call, answer and learner step (its draw and priorities included), first half left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    contexts = context_source(config.scenario.data_dir or None)
    game, buffer = Game(config), Buffer(config)
    proposer, solver = ProposerPlayer(config, contexts), SolverPlayer(config, contexts)
    spent: dict[str, list[float]] = {}
    marks: list[tuple[float, int]] = []

    def timed(owner: Any, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                spent.setdefault(name, []).append(time.process_time() - start)

        setattr(owner, method, outer)

    for owner, method, name in (
        (proposer, "propose", "propose"), (solver, "answer", "answer"), (buffer, "insert", "insert"),
        (buffer, "draw", "draw"), (buffer, "reprioritise", "reprioritise"), (game, "learn", "learn"),
        (game, "settle", "settle"),
    ):  # fmt: skip
        timed(owner, method, name)

    def on_step(game: Game, buffer: Replay) -> None:
        marks.append((time.perf_counter(), game.solves))

    turns(config.selfplay.steps, game, buffer, proposer, solver, on_step)
    torch.set_num_threads(threads)
    mean = {name: float(np.mean(values[len(values) // 2 :])) for name, values in spent.items()}
    half = len(marks) // 2
    wall_s = marks[-1][0] - marks[half][0]
    return {
        "propose": mean["propose"] + mean["insert"] + mean["settle"],
        "answer": mean.get("answer", 0.0) + mean["insert"],
        "learn": mean["learn"] + mean["draw"] + mean["reprioritise"],
        "solves_per_s": (marks[-1][1] - marks[half][1]) / wall_s,
        "steps_per_s": (len(marks) - 1 - half) / wall_s,
    }


def _cpu_s() -> float:
    """CPU seconds of this process and all below it so far: Ray starts its daemons and actors as our children."""
    tick = os.sysconf("SC_CLK_TCK")
    parent_of: dict[int, int] = {}
    used: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        pid = int(folder.name)
        parent_of[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15])) / tick
    mine, total = os.getpid(), 0.0
    for pid in used:
        above: int | None = pid
        while above and above != mine:
            above = parent_of.get(above)
        total += used[pid] if above == mine else 0.0
    return total


class TableActor:
    """A replay table of 1 KiB items behind one actor, as actors.replay, without the game around it."""

    def __init__(self, seed: int) -> None:
        store = ColumnStore(CAPACITY, _COLUMNS)
        self.table = ReplayTable(store, limit_bytes=CAPACITY * store.item_bytes, describe=_describe)
        self.rng, self.mix = np.random.default_rng(seed), [(Prioritized(), 1.0)]

    def insert(self, block: Block, step: int) -> int:
        return len(self.table.insert(block, step=step))

    def sample(self) -> Mapping[str, Any]:
        items: Mapping[str, Any] = self.table.sample(BLOCK, self.rng, self.mix).items
        return items


def _describe(block: Mapping[str, NDArray[Any]]) -> ItemMeta:
    return ItemMeta(strata="bench", priorities=np.abs(block["x"][:, 0]).astype(np.float64))


def replay_actor(seed: int = 0) -> dict[str, float]:
    """actor_insert_per_s and actor_sample_per_s, both at once through one actor (wall time), blocks of 256 x 1 KiB."""
    with session.start(RunConfig().actors):
        actor: Any = ray.remote(TableActor).options(num_cpus=0.1, runtime_env=ONE_THREAD).remote(seed)
        rng = np.random.default_rng(seed)
        block: Block = {n: rng.standard_normal((BLOCK, *shape)).astype(kind) for n, (shape, kind) in _COLUMNS.items()}
        ray.get([actor.insert.remote(block, 0) for _ in range(16)], timeout=120)
        start = time.perf_counter()
        refs: list[Any] = []
        for step in range(CALLS):
            refs += [actor.insert.remote(block, step), actor.sample.remote()]
            if len(refs) >= 16:  # a bounded number under way, as the loop has
                ray.get(refs[:8], timeout=120)
                del refs[:8]
        ray.get(refs, timeout=120)
        rate = CALLS * BLOCK / (time.perf_counter() - start)
        ray.kill(actor)
    return {"actor_insert_per_s": rate, "actor_sample_per_s": rate}
