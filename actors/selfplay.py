"""The distributed loop: the words of gg_ray/selfplay/loop.py, with players, buffer and looks in other processes.

Flow:    scheduler -> Proposer -> executor -> gates -> Solver -> replay -> learner -> new weights -> players
Source:  docs/adr/0011-distributed-loop.md; gg_ray/selfplay/loop.py is the algorithm
Run:     gg-ray train --config laptop --mode async

sync runs the serial loop itself over remote players, bit for bit; async lets calls, draws and looks overlap.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import ExitStack

import numpy as np
import torch

from actors import placement, session
from actors.crew import Crew
from actors.evaluator import Looks
from actors.pool import Lost
from actors.proposer import proposer_crew
from actors.replay import RemoteBuffer
from actors.solver import solver_crew
from gg_ray.config import RunConfig
from gg_ray.grid.cases import load_case
from gg_ray.replay.limiter import StalenessManager
from gg_ray.scenario.context import ContextSource
from gg_ray.selfplay.buffer import Buffer, Replay
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import OnStep, turns

POLL_S = 0.1
"""Longest wait for one side before the other is looked at."""
LAGS = 512
"""Newest proposer calls whose policy lag is reported."""


def play(config: RunConfig, contexts: ContextSource, game: Game, buffer: Buffer, on_step: OnStep) -> None:
    """Run (or continue) a game until its last step, on the Ray that runs or on one of its own.

    Args:    contexts  not used here: each actor reads its own source, from scenario.data_dir
             buffer    start state, handed over and left empty; the run's windows are to be had from the RemoteBuffer
             on_step   gets a RemoteBuffer in its place; in async mode it must not look (evaluate.look) by itself
    Raises:  ResourceError, SessionError, PoolError, CrewError, ReplayLost: what is missing and the way out.
    """
    config = session.absolute(config)
    with ExitStack() as stack:
        here = stack.enter_context(session.start(config.actors))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # the driver's share is one CPU; another number of threads gives other sums
        shape = placement.bundles(config, cpus=here.cpus if here.local else None, gpus=here.gpus)
        granted = placement.acquire(shape, config.actors.start_timeout_s)
        stack.callback(placement.release, granted)
        overlap = config.mode == "async"
        grids = [load_case(name) for name in config.scenario.cases]
        replay = RemoteBuffer(config, granted.options("replay"), grids, stats_age_s=1.0 if overlap else 0.0)
        stack.callback(replay.close)
        proposers, solvers = proposer_crew(config, game, granted, grids), solver_crew(config, game, granted, grids)
        stack.callback(proposers.close)
        stack.callback(solvers.close)
        inserts = buffer.limiter.inserts
        replay.load_state_dict(buffer.state_dict(0))
        buffer.clear()
        game.forget_running()
        if overlap:
            looks = Looks(config, granted.options("evaluator"), grids)
            stack.callback(looks.close)
            FreeRun(config, game, replay, proposers, solvers, looks, inserts).run(on_step)
        else:

            def step(game: Game, replay: Replay) -> None:
                game.note(alive(proposers, solvers))
                on_step(game, replay)

            turns(config.selfplay.steps, game, replay, proposers, solvers, step)
        game.forget_running()


def alive(proposers: Crew, solvers: Crew) -> dict[str, float]:
    """Healthy actors by kind; a kind that the run does not use is left out."""
    crews = {"actors/proposers": proposers, "actors/solvers": solvers}
    return {name: float(crew.pool.stats().healthy) for name, crew in crews.items() if crew.pool is not None}


class FreeRun:
    """One asynchronous run: the learner trains whenever a batch is there, whatever the players do meanwhile.

    Invariant: submitted == running + accepted + filtered + lost, in windows; a call is submitted as the most windows
    it can make (Buffer.insert_block). A version consumes `publish_every * batch / samples_per_insert` new windows, and
    no call is sent that would take the windows made or under way beyond max_lag versions ahead of the learner, one
    call and the first filling apart: without that one call a version smaller than a call could never be made.
    """

    def __init__(
        self, config: RunConfig, game: Game, replay: RemoteBuffer, proposers: Crew, solvers: Crew, looks: Looks,
        inserts: int,
    ) -> None:  # fmt: skip
        """
        Args:    inserts  windows ever inserted, from the buffer that the run starts with
        """
        play, learner, actors = config.selfplay, config.learner, config.actors
        self.config, self.game, self.replay = config, game, replay
        self.proposers, self.solvers, self.looks = proposers, solvers, looks
        self.block = 2 * config.scenario.realisations * play.programs
        per_version = math.ceil(learner.publish_every * learner.batch / config.replay.samples_per_insert)
        self.staleness = StalenessManager(
            batch=per_version, max_running=actors.in_flight * actors.proposers * self.block, max_lag=actors.max_lag
        )
        filling = max(0, config.replay.min_size - inserts)
        self._ahead = math.ceil((filling + self.block) / per_version) - game.versions["verifier"]
        self.lags: deque[int] = deque(maxlen=LAGS)
        self._first_batch = self._idle_from = float("nan")
        self._idle_s = 0.0

    def run(self, on_step: OnStep) -> None:
        """Ask, collect, learn, until the game has made its last step."""
        game, replay = self.game, self.replay
        self._load(game.all_weights())
        while game.step < self.config.selfplay.steps:
            self._ask()
            self._collect(POLL_S if replay.dry else 0.0)
            replay.flush()
            draw = replay.take(0.0 if replay.dry else POLL_S)
            if draw is None:
                continue
            self._batch_is_here()
            replay.reprioritise(draw.keys, draw.generations, game.learn(draw))
            if game.publish_due():
                self._load(game.publish())
            if self.looks.due(game.step):
                self.looks.ask(game.learner.weights(), game.step)
            game.note(self.measurements() | self.looks.arrived())
            on_step(game, replay)
            self._idle_from = time.monotonic()

    def _load(self, weights: dict[str, dict[str, np.ndarray]]) -> None:
        self.proposers.load(weights)
        self.solvers.load(weights)

    def _ask(self) -> None:
        """Only as much work as can still be used in time; one question per settled order, as in the serial loop."""
        game = self.game
        while not self.replay.crowded and self.staleness.capacity(self._version) >= self.block:
            if not self.proposers.ask(game.order):
                break
            self.staleness.submit(self.block, self._version)
        while game.plays_solver and game.recent and game.questions < game.settled:
            if not self.solvers.ask(game.next_question):
                break

    @property
    def _version(self) -> int:
        return self.game.versions["verifier"] + self._ahead

    def _collect(self, timeout_s: float) -> None:
        """The one place that waits for players. Windows go from actor to actor; a lost call gives its place back."""
        game, replay = self.game, self.replay
        for result in self.proposers.collect(timeout_s):
            if isinstance(result, Lost):
                game.settle_lost()
                self.staleness.settle(lost=self.block)
                continue
            proposed, windows_ref = result.value
            keep = game.settle(proposed)
            kept = sum(proposed.summaries[index].windows for index in keep)
            self.staleness.settle(accepted=kept, filtered=self.block - kept)
            self.lags.append(game.versions["verifier"] - proposed.order.verifier_version)
            if kept:
                replay.offer(windows_ref, keep, game.step, 2 * proposed.order.call_id)
        for result in self.solvers.collect(0.0):
            if isinstance(result, Lost):
                game.settle_lost()
                continue
            answered, windows_ref = result.value
            game.settle_answer(answered)
            if answered.made:
                replay.offer(windows_ref, None, game.step, 2 * answered.question.call_id + 1)

    def _batch_is_here(self) -> None:
        now = time.monotonic()
        if math.isnan(self._first_batch):
            self._first_batch = now
        else:
            self._idle_s += now - self._idle_from

    def measurements(self) -> dict[str, float]:
        """time/..., actors/...: see docs/metrics.md. The learner waits whenever no batch is in its hands and on_step
        does not run, bookkeeping of the driver included; counted from the first batch on.
        """
        now = time.monotonic()
        pools = [crew.pool.stats() for crew in (self.proposers, self.solvers) if crew.pool is not None]
        out = {
            "time/learner_wait_share": self._idle_s / max(1e-9, now - self._first_batch),
            "time/policy_lag_p95": float(np.percentile(self.lags, 95)) if self.lags else 0.0,
            "actors/lost_calls": float(self.game.lost),
            "actors/recreated": float(sum(pool.recreated for pool in pools)),
            "actors/dropped_blocks": float(self.replay.dropped),
            "actors/failed_looks": float(self.looks.failures),
        }
        out |= alive(self.proposers, self.solvers)
        return out | {f"actors/windows_{name}": float(n) for name, n in self.staleness.state_dict().items()}
