"""Players of one kind that live elsewhere: a pool of their actors and the weights each call carries.

Flow:    game.order -> [crew] -> pool -> actors.proposer, actors.solver -> [crew] -> game.settle, replay
Source:  docs/adr/0008-pull-driven-actors.md, docs/adr/0011-distributed-loop.md
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import ray
from numpy.typing import NDArray

from actors.board import Posted, WeightBoard, fetch
from actors.pool import ActorPool, Done, Lost
from actors.session import ONE_THREAD
from gg_ray.config import RunConfig
from gg_ray.grid.cases import GridCase
from gg_ray.selfplay.players import Answered, Order, Proposed, Question

CALL_ATTEMPTS = 5
"""Times one call is sent in lock-step before it must be the call, not the actor."""

AllWeights: TypeAlias = Mapping[str, Mapping[str, NDArray[Any]]]


class CrewError(RuntimeError):
    """A call that no actor could answer; the message holds what the last one said."""


class Crew:
    """What `selfplay.loop.turns` takes for a player, and `ask`/`collect` for calls that overlap.

    Invariant: a call carries the newest posted weights, so an actor that was replaced needs nothing else; its answer
    depends on the call's id and those weights, so it does not matter who gives it.
    """

    def __init__(
        self, config: RunConfig, actor: type, method: str, kinds: Sequence[str], versions: Mapping[str, int], size: int,
        options: Mapping[str, Any], grids: Sequence[GridCase],
    ) -> None:  # fmt: skip
        """
        Args:    actor  class constructed with config and grids, its `method(work, posted)` answers (summary, windows)
                 kinds  weights its calls carry;  versions  the game's, read at each publication
                 size   actors, 0 for a crew that is never asked;  options  resources of one actor
                 grids  the training grids, for `adopt`: an actor need not load them itself
        """
        self.method, self.kinds, self._versions = method, tuple(kinds), versions
        self._timeout_s = config.actors.call_timeout_s
        self._board = WeightBoard()
        remote: Any = ray.remote(actor).options(max_restarts=-1, max_task_retries=0, runtime_env=ONE_THREAD, **options)
        self.pool: ActorPool | None = None
        if size:
            self.pool = ActorPool(
                lambda index: remote.remote(config, grids), size=size, in_flight=config.actors.in_flight, returns=2,
                min_healthy=min(size, config.actors.min_healthy), call_timeout_s=self._timeout_s,
                name=f"{method} actors", rng=np.random.default_rng(config.seed),
            )  # fmt: skip

    def load(self, weights: AllWeights) -> None:
        """Post new weights for the calls to come, once per version."""
        for kind in self.kinds:
            if kind in weights and self.pool is not None:
                self._board.publish(kind, self._versions[kind], weights[kind])

    def ask(self, work: Callable[[], Order | Question]) -> bool:
        """Send one call; False, without making the work, when no actor has room."""
        if self.pool is None:
            return False
        return self.pool.ask(1, self.method, lambda _: (work(), self._posted())) == 0

    def collect(self, timeout_s: float) -> Iterator[Done | Lost]:
        """Finished calls; Done.value is (summary, reference to the windows). The summary owns its memory."""
        if self.pool is not None:
            for result in self.pool.collect(timeout_s):
                yield own_summary(result)

    def propose(self, order: Order) -> tuple[Proposed, Any]:
        """One call in lock-step."""
        answer: tuple[Proposed, Any] = self._one(order)
        return answer

    def answer(self, question: Question) -> tuple[Answered, Any]:
        """One call in lock-step."""
        answer: tuple[Answered, Any] = self._one(question)
        return answer

    def close(self) -> None:
        """End the actors. Safe to call twice."""
        if self.pool is not None:
            self.pool.close()

    def _posted(self) -> dict[str, Posted]:
        return {kind: self._board.ref(kind) for kind in self.kinds}

    def _one(self, work: Order | Question) -> Any:
        """A lost call is sent again: whoever answers gives the same, so the run stays equal to the serial one."""
        assert self.pool is not None
        error = ""
        for _ in range(CALL_ATTEMPTS):
            while not self.ask(lambda: work):  # every actor backs off: collect waits for the first of them
                list(self.pool.collect(self._timeout_s))
            for result in self.pool.collect_all(2 * self._timeout_s):
                if isinstance(result, Done):
                    return own_summary(result).value
                error = result.error
        raise CrewError(f"{self.method} call {work.call_id}: lost {CALL_ATTEMPTS} times; last error: {error}")


def own_summary(result: Done | Lost) -> Any:
    """The result with a summary of its own: arrays from Ray are views that pin the object store (ray #8227)."""
    if isinstance(result, Lost):
        return result
    summary, windows_ref = result.value
    return Done(result.actor_index, result.call_id, result.tag, (copy.deepcopy(summary), windows_ref))


class Wardrobe:
    """In an actor: fetches posted weights when they are newer than those it has, and hands them to a player."""

    def __init__(self) -> None:
        self._have: dict[str, int] = {}

    def fetch(self, posted: Mapping[str, Posted]) -> AllWeights:
        """Weights that are new here, {} when none is."""
        new: dict[str, Mapping[str, NDArray[Any]]] = {}
        for kind, item in posted.items():
            fetched = fetch(item, self._have.get(kind))
            if fetched is not None:
                self._have[kind], new[kind] = fetched
        return new
