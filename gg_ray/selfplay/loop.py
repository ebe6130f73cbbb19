"""The algorithm on a page: read this first.

Flow:    scheduler -> Proposer -> executor -> gates -> Solver -> replay -> learner -> new weights -> players
Source:  Absolute Zero 2505.03335, changed as selfplay.md says: hard gates, oracle-normalised learnability, twins
Run:     gg-ray train --config smoke --mode serial

One process, no Ray, bit-reproducible on a CPU. actors/selfplay.py runs the same `turns` with players that live
elsewhere (sync), and the same words with calls that overlap (async).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from gg_ray.config import RunConfig
from gg_ray.scenario.context import ContextSource
from gg_ray.selfplay.buffer import Buffer, Replay
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.players import Answered, Order, Proposed, ProposerPlayer, Question, SolverPlayer

OnStep = Callable[[Game, Replay], None]


class Proposes(Protocol):
    """A Proposer here or elsewhere; the second value is the windows or a reference to them."""

    def load(self, weights: Mapping[str, Mapping[str, NDArray[Any]]]) -> None: ...
    def propose(self, order: Order) -> tuple[Proposed, Any]: ...


class Answers(Protocol):
    """A Solver here or elsewhere."""

    def load(self, weights: Mapping[str, Mapping[str, NDArray[Any]]]) -> None: ...
    def answer(self, question: Question) -> tuple[Answered, Any]: ...


def play(config: RunConfig, contexts: ContextSource, game: Game, buffer: Buffer, on_step: OnStep) -> None:
    """Run (or continue) a game until its last step.

    Args:    on_step  called after every Verifier step, for logging, checkpoints and evaluation
    """
    proposer, solver = ProposerPlayer(config, contexts), SolverPlayer(config, contexts)
    turns(config.selfplay.steps, game, buffer, proposer, solver, on_step)


def turns(steps: int, game: Game, buffer: Replay, proposer: Proposes, solver: Answers, on_step: OnStep) -> None:
    """Propose, answer, learn, in turns, until the game has made `steps` Verifier steps.

    Invariant: inserts and draws alternate as the limiter says, so the order of events depends on counts alone. Draws
    come first: a run that stopped in the middle of its draws goes on with them.
    """
    proposer.load(game.all_weights())
    solver.load(game.all_weights())
    while game.step < steps:
        while buffer.may_draw() and game.step < steps:
            draw = buffer.draw()
            buffer.reprioritise(draw.keys, draw.generations, game.learn(draw))
            if game.publish_due():
                weights = game.publish()
                proposer.load(weights)
                solver.load(weights)
            on_step(game, buffer)
        if game.step < steps and buffer.may_insert():
            result, windows = proposer.propose(game.order())
            buffer.insert_kept(windows, game.settle(result), game.step, batch_id=2 * result.order.call_id)
            question = game.question() if game.plays_solver else None
            if question is not None:
                answer, made = solver.answer(question)
                game.settle_answer(answer)
                buffer.insert(made, game.step, batch_id=2 * question.call_id + 1)
