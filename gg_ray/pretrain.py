"""Masked reconstruction before the game: the state head learns benign states from what is left of the readings.

Flow:    benign programs -> executor -> gates -> windows with hidden meters -> [pretrain] -> learner's first weights
Source:  verifier.md, section 6 (second output); masked autoencoding (He et al. 2111.06377); docs/adr/0020
Shapes:  B windows, T scans, M installed meters, N buses

Nothing but the encoders, the graph part and the state head is trained; verdict, place and type heads keep their start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import RunConfig
from gg_ray.learner import Learner, new_verifier
from gg_ray.records import Experience, Program, Window
from gg_ray.scenario.attempt import Attempt, Side
from gg_ray.scenario.context import ContextSource
from gg_ray.scenario.grammar import Stratum
from gg_ray.selfplay.blocks import Block, hide
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.rollout import Rollout, build_experiences, plan_ids
from gg_ray.verifier.batch import collate
from gg_ray.verifier.features import case_static
from gg_ray.verifier.losses import reconstruction_loss

ROLE_PRETRAIN = 7
HIDDEN_SHARE = 0.5
"""Largest share of meters that are silent for a whole window, and of those silent in its last scans; drawn for each
window, so that windows with every reading occur too."""
NOTES = 5
"""Lines of progress."""
_EMPTY_CALLS = 50
_SEED_SPACE = 1 << 48


class PretrainError(RuntimeError):
    """No benign window passes the gates; the message says on which grid."""


@dataclass(slots=True)
class Pretrained:
    """Averaged weights, what they cost, and their figures (`pretrain/...` of docs/metrics.md)."""

    weights: dict[str, NDArray[Any]]
    solves: int
    metrics: dict[str, float]


def warm_start(config: RunConfig, contexts: ContextSource, game: Game, note: Callable[[str], None]) -> None:
    """Give a game that has not begun pre-trained weights, as `learner.pretrain_steps` asks; 0 changes nothing.

    Args:    note  takes lines of progress
    """
    if config.learner.pretrain_steps:
        found = pretrain(config, contexts, note)
        game.learner.start_from(found.weights)
        game.solves += found.solves
        game.solves_pretrain += found.solves
        game.note(found.metrics)


def pretrain(config: RunConfig, contexts: ContextSource, note: Callable[[str], None]) -> Pretrained:
    """Train a new network on `learner.pretrain_steps` batches of masked benign windows; the seed decides everything.

    Raises:  PretrainError
    """
    steps = config.learner.pretrain_steps
    learner = Learner(new_verifier(config.verifier, config.seed), config.learner, steps, reconstruction_loss)
    source = _Source(config, contexts)
    statics = {case: case_static(case) for case in config.scenario.cases}
    recent: deque[dict[str, float]] = deque(maxlen=max(1, steps // NOTES))
    metrics: dict[str, float] = {}
    for step, windows in enumerate(source.batches(steps), start=1):
        recent.append(learner.step(collate(windows, statics))[0])
        if step % max(1, steps // NOTES) == 0 or step == steps:
            metrics = {
                f"pretrain/{name}": float(np.mean([row[f"loss/{name}"] for row in recent]))
                for name in ("total", "state_error", "estimator_error")
            }
            error, given = metrics["pretrain/state_error"], metrics["pretrain/estimator_error"]
            note(f"pre-training {step}/{steps}: state error {error:.2f}, of the estimate {given:.2f}")
    return Pretrained(learner.weights(), source.solves, metrics)


class _Source:
    """Masked windows of ordinary and hard programs on the training grids in turn.

    Invariant: call i depends on (seed, ROLE_PRETRAIN, i) alone; a window is drawn `replay.samples_per_insert` times on
    average, as in the game.
    """

    def __init__(self, config: RunConfig, contexts: ContextSource) -> None:
        self.config = config
        self.rollout = Rollout(config, contexts)
        self.solves = self._calls = 0
        self._held: deque[Experience] = deque()
        self._bytes = self._made = 0

    def batches(self, count: int) -> Iterator[list[Experience]]:
        """So many batches of `learner.batch` windows."""
        size, per_window = self.config.learner.batch, self.config.replay.samples_per_insert
        rng = np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=(ROLE_PRETRAIN, 1 << 20)))
        for index in range(count):
            while len(self._held) < size or (index + 1) * size > per_window * self._made:
                self._fill()
            yield [self._held[i] for i in rng.integers(len(self._held), size=size)]

    def _fill(self) -> None:
        for _ in range(_EMPTY_CALLS):
            case = self.config.scenario.cases[self._calls % len(self.config.scenario.cases)]
            made = self._call(case)
            if made:
                break
        else:
            raise PretrainError(
                f"{case}: no benign program of {_EMPTY_CALLS} calls passed the gates; set learner.pretrain_steps 0"
            )
        self._held.extend(made)
        self._made += len(made)
        self._bytes += sum(item.nbytes for item in made)
        while self._bytes > self.config.replay.limit_bytes and len(self._held) > self.config.learner.batch:
            self._bytes -= self._held.popleft().nbytes

    def _call(self, case: str) -> list[Experience]:
        """Windows of one call's programs that pass the gates, each with hidden meters of its own."""
        config = self.config
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(ROLE_PRETRAIN, self._calls)))
        self._calls += 1
        executor = self.rollout.executor(case)
        programs = []
        for plan_id in plan_ids(config, config.selfplay.programs, rng):
            side: Stratum = Stratum("hard" if rng.random() < config.selfplay.hard_share else "ordinary", "", case)
            programs.append(
                Program(
                    case=case, context_id=int(rng.integers(_SEED_SPACE)), plan_id=plan_id,
                    events=executor.grammar.uniform(side, plan_id, rng), scans=config.scenario.scans,
                    seed=int(rng.integers(_SEED_SPACE)),
                )
            )  # fmt: skip
        attempts = executor.run(programs)
        self.solves += sum(attempt.solves for attempt in attempts)
        verdicts = self.rollout.gates(case).check(attempts, rng)
        by_plan: dict[int, list[Attempt]] = {}
        for attempt, verdict in zip(attempts, verdicts, strict=True):
            if not verdict:
                by_plan.setdefault(attempt.plan.plan_id, []).append(attempt)
        return [item for members in by_plan.values() for item in self._windows(members, rng)]

    def _windows(self, attempts: list[Attempt], rng: np.random.Generator) -> list[Experience]:
        """Inputs without the hidden meters; the readings that the state must agree with are all of them."""
        executor, featurizer = self.rollout.executor(attempts[0].program.case), self.rollout.featurizer
        whole = [executor.realise(attempt, 0)[0] for attempt in attempts]
        prepared = featurizer.prepare([masked(window, rng) for window in whole], attempts[0].plan)
        features = featurizer.features(prepared)
        told = featurizer.features(replace(prepared, z_BTM=np.stack([window.z_TM for window in whole])))
        features.meas_BN2, features.sigma_BN2 = told.meas_BN2, told.sigma_BN2
        owners: list[tuple[int, int, Side]] = []
        for index, attempt in enumerate(attempts):
            assert attempt.main is not None  # passed gate G1
            owners.append((index, 0, attempt.main))
        return build_experiences(owners, attempts, features, 0)


def masked(window: Window, rng: np.random.Generator) -> Window:
    """The window with some meters silent throughout, and others in its last scans (a quarter of it at most)."""
    scans, meters = window.z_TM.shape
    span = int(rng.integers(1, max(1, scans // 4) + 1))
    for length in (scans, span):
        gone = np.flatnonzero(rng.random(meters) < rng.uniform(0.0, HIDDEN_SHARE))
        window = hide(window, Block(gone, length))
    return window
