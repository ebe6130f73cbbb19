"""Who judges the windows of POST /v1/score: the protocol that serve.judges fulfils.

Flow:    serve.score_body -> [Scorer] -> serve.judges -> serve.models, here or in the Verifier deployment
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window


class ModelRecord(TypedDict):
    """What judges a grid."""

    grid: str
    """`*` for all grids that no other entry names."""
    model: str
    challenger: str | None
    digest: str
    """First digits of the sha256 of the weights."""


class Scorer(Protocol):
    """Judges windows; any number of calls may be under way at once."""

    async def score(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict]:
        """One verdict per window, in order.

        Raises: WindowFileError for a window that no model takes.
        """
        ...

    async def models(self) -> list[ModelRecord]:
        """Models that would judge now."""
        ...

    async def ready(self) -> str | None:
        """None when windows are judged, else why not."""
        ...
