"""Proposer actor: a ProposerPlayer in a process of its own.

Flow:    crew -> [propose] -> (summary to the driver, windows to actors.replay)
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
from gg_ray.selfplay.players import Order, Proposed, ProposerPlayer


class ProposerActor:
    """Stateless but for its weights: a restart costs the calls in flight, nothing else."""

    def __init__(self, config: RunConfig, grids: Sequence[GridCase] = ()) -> None:
        torch.set_num_threads(1)
        adopt(grids)
        self.player = ProposerPlayer(config, context_source(config.scenario.data_dir or None))
        self.weights = Wardrobe()

    def propose(self, order: Order, posted: Mapping[str, Posted]) -> tuple[Proposed, list[list[Experience]]]:
        """Execute one order under the posted weights. Two Ray objects: the second goes to replay by reference."""
        self.player.load(self.weights.fetch(posted))
        return self.player.propose(order)


def proposer_crew(config: RunConfig, game: Game, placement: Placement, grids: Sequence[GridCase]) -> Crew:
    """The proposers of a run; their calls carry Verifier and Proposer weights."""
    return Crew(
        config, ProposerActor, "propose", ("verifier", "proposer"), game.versions, config.actors.proposers,
        placement.options("proposer"), grids,
    )  # fmt: skip
