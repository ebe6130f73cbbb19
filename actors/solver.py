"""Solver actor: a SolverPlayer in a process of its own.

Flow:    crew -> [answer] -> (summary and lessons to the driver, windows to actors.replay)
Source:  gg_ray/selfplay/players.py does the work; docs/adr/0011-distributed-loop.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from actors.board import Posted
from actors.crew import Crew, Wardrobe
from actors.placement import Placement
from gg_ray.config import RunConfig
from gg_ray.grid.cases import GridCase, adopt
from gg_ray.records import Experience
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.players import Answered, Question, SolverPlayer


class SolverActor:
    """Stateless but for its weights, as the proposer."""

    def __init__(self, config: RunConfig, grids: Sequence[GridCase] = ()) -> None:
        torch.set_num_threads(1)
        adopt(grids)
        self.player = SolverPlayer(config, context_source(config.scenario.data_dir or None))
        self.weights = Wardrobe()

    def answer(self, question: Question, posted: Mapping[str, Posted]) -> tuple[Answered, list[Experience]]:
        """Answer one question under the posted weights. The lessons are small and travel with the summary."""
        self.player.load(self.weights.fetch(posted))
        return self.player.answer(question)


def solver_crew(config: RunConfig, game: Game, placement: Placement, grids: Sequence[GridCase]) -> Crew:
    """The solvers of a run; none in an arm that asks no questions."""
    size = config.actors.solvers if game.plays_solver else 0
    return Crew(
        config, SolverActor, "answer", ("solver",), game.versions, size, placement.options("solver"), grids
    )  # fmt: skip
