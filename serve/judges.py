"""Who judges for the HTTP edge: the Verifier deployment, or models in this process.

Flow:    serve.app (serve.scoring.Scorer) -> [judges] -> serve.verifier
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from gg_ray.grid import balance
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window
from gg_ray.windows_io import WindowFileError
from serve.problems import Problem
from serve.scoring import ModelRecord

Given = Sequence[tuple[Window, MeterPlan]]


class HandleJudge:
    """The Verifier deployment as the HTTP edge asks it."""

    def __init__(self) -> None:
        self.handle: Any = None

    async def score(self, windows: Given) -> list[Verdict]:
        """Verdicts in order.  Raises: WindowFileError for the first window that cannot be judged."""
        if self.handle is None:
            raise Problem(503, "the Verifier is not there yet")
        answers = await asyncio.gather(*(self.handle.verdict.remote(window) for window in windows))
        return _all(answers)

    async def models(self) -> list[ModelRecord]:
        """Models of one replica; all have the same."""
        return models_of((await self.handle.about.remote())["models"])

    async def ready(self) -> str | None:
        """Why nothing can be judged yet."""
        if self.handle is None:
            return "the Verifier is not there yet"
        try:
            about = await asyncio.wait_for(asyncio.ensure_future(_said(self.handle)), 2.0)
        except TimeoutError:
            return "the Verifier does not answer"
        return None if about["models"] else "no model is loaded"


async def _said(handle: Any) -> Any:
    return await handle.about.remote()


JUDGE = HandleJudge()
"""Of the process of an edge replica."""


class ReplicaJudge:
    """Models in this process (serve.verifier.Replica)."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    async def score(self, windows: Given) -> list[Verdict]:
        """Verdicts in order.  Raises: WindowFileError for the first window that cannot be judged."""
        return _all(await asyncio.to_thread(self._replica.verdicts, windows))

    async def models(self) -> list[ModelRecord]:
        """Models at work."""
        return models_of(self._replica.about()["models"])

    async def ready(self) -> str | None:
        """Why nothing can be judged yet."""
        return None if self._replica.models is not None else "no model is loaded"


def _all(answers: Sequence[Verdict | str]) -> list[Verdict]:
    for index, answer in enumerate(answers):
        if isinstance(answer, str):
            raise WindowFileError(f"window {index}: {answer}")
    return [answer for answer in answers if not isinstance(answer, str)]


def models_of(about: Sequence[Mapping[str, Any]]) -> list[ModelRecord]:
    """What a replica says of its models, by the grids that they judge."""
    challenger = {one["grids"]: one["name"] for one in about if one["role"] == "challenger"}
    return [
        {
            "grid": balance.NAME if one["grids"] == balance.NAME else "*", "model": one["name"],
            "challenger": challenger.get(one["grids"]), "digest": one["digest"],
        }
        for one in about if one["role"] == "champion"
    ]  # fmt: skip
