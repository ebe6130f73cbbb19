"""Scorers of the HTTP edge in a whole deployment: a handle that arrives late, models that are exchanged.

Flow:    serve.edge, serve.live -> [judges] (serve.scoring.Scorer) -> serve.verifier
"""

from __future__ import annotations

import asyncio
from typing import Any

from gg_ray.records import Verdict
from gg_ray.windows_io import WindowFileError
from serve.scoring import DeploymentScorer, Windows


class LateScorer(DeploymentScorer):
    """A DeploymentScorer for an app that is built before the replica around it gets its handle."""

    def __init__(self) -> None:
        super().__init__(None)

    def arrive(self, handle: Any) -> None:
        """Ask this handle from now on."""
        self._handle = handle

    async def ready(self) -> str | None:
        """As Scorer."""
        return "the Verifier is not there yet" if self._handle is None else await super().ready()


JUDGE = LateScorer()
"""Of the process of an edge replica."""


class ReplicaScorer:
    """Models in this process that are exchanged while they work (serve.verifier.Replica)."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    async def score(self, windows: Windows) -> list[Verdict]:
        """As Scorer."""
        answers = await asyncio.to_thread(self._replica.verdicts, windows)
        for index, answer in enumerate(answers):
            if isinstance(answer, str):
                raise WindowFileError(f"window {index}: {answer}")
        return list(answers)

    async def models(self) -> list[dict[str, Any]]:
        """As Scorer."""
        return list(self._replica.about()["models"])

    async def ready(self) -> str | None:
        """As Scorer."""
        return None if self._replica.models is not None else "no model is loaded"
