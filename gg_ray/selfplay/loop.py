"""The algorithm on a page: read this first.

Flow:    scheduler -> Proposer -> executor -> gates -> Solver -> replay -> learner -> new weights -> players
Source:  Absolute Zero 2505.03335, changed as selfplay.md says: hard gates, oracle-normalised learnability, quotas, twins
Run:     gg-ray train --config smoke --mode serial

One process, no Ray, bit-reproducible on a CPU. actors/selfplay.py has the same words with calls that travel.
"""

from __future__ import annotations

from collections.abc import Callable

from gg_ray.config import RunConfig
from gg_ray.scenario.context import ContextSource
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.players import ProposerPlayer, SolverPlayer

OnStep = Callable[[Game, Buffer], None]


def play(config: RunConfig, contexts: ContextSource, game: Game, buffer: Buffer, on_step: OnStep) -> None:
    """Run (or continue) a game until its last step.

    Args:    on_step  called after every Verifier step, for logging, checkpoints and evaluation
    Invariant: inserts and draws alternate as the limiter says, so the order of events depends on counts alone.
    """
    proposer = ProposerPlayer(config, contexts)
    solver = SolverPlayer(config, contexts)
    proposer.load(game.all_weights())
    solver.load(game.all_weights())
    while game.step < config.selfplay.steps:
        if buffer.may_insert():
            result, windows = proposer.propose(game.order())
            buffer.insert(game.settle(result, windows), game.step, batch_id=2 * result.order.call_id)
            question = game.question() if game.plays_solver else None
            if question is not None:
                answer, (made, lessons) = solver.answer(question)
                buffer.insert(game.settle_answer(answer, made, lessons), game.step, batch_id=2 * question.call_id + 1)
        while buffer.may_draw() and game.step < config.selfplay.steps:
            draw = buffer.draw()
            buffer.reprioritise(draw.keys, draw.generations, game.learn(draw))
            if game.publish_due():
                weights = game.publish()
                proposer.load(weights)
                solver.load(weights)
            on_step(game, buffer)
