"""Who judges the windows of POST /v1/score: a protocol, models in this process, or the Verifier deployment.

Flow:    serve.score_body -> [Scorer] -> serve.models, or through a handle serve.verifier
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window
from gg_ray.registry import RegistryError
from gg_ray.windows_io import WindowFileError
from serve.models import Models

Windows = Sequence[tuple[Window, MeterPlan]]
ASKED_S = 2.0
"""How long an answer about the models is good for."""


class Scorer(Protocol):
    """Judges windows; any number of calls may be under way at once."""

    async def score(self, windows: Windows) -> list[Verdict]:
        """One verdict per window, in order.

        Raises: WindowFileError for a window that no model takes.
        """
        ...

    async def models(self) -> list[dict[str, Any]]:
        """Models that would judge now, as serve.models.Models.about gives them."""
        ...

    async def ready(self) -> str | None:
        """None when windows are judged, else why not."""
        ...


class ModelsScorer:
    """Models of this process on one thread: calls wait for each other, the event loop does not."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._thread = ThreadPoolExecutor(1, "verifier", initializer=torch.set_num_threads, initargs=(1,))

    async def score(self, windows: Windows) -> list[Verdict]:
        """As Scorer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.judge, windows)

    def judge(self, windows: Windows) -> list[Verdict]:
        """The same in the caller's thread."""
        try:
            return self._models.verdicts(windows)
        except RegistryError as error:  # no model of this grid
            raise WindowFileError(str(error)) from error

    async def models(self) -> list[dict[str, Any]]:
        """As Scorer."""
        return self._models.about()

    async def ready(self) -> str | None:
        """As Scorer: models are loaded and tried before they come here."""
        return None


class DeploymentScorer:
    """The Verifier deployment through its handle; Serve puts windows that come together into one batch."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._about: dict[str, Any] = {}
        self._asked_at = -ASKED_S

    async def score(self, windows: Windows) -> list[Verdict]:
        """As Scorer."""
        found = await asyncio.gather(*(self._handle.verdict.remote(one) for one in windows))
        for index, one in enumerate(found):
            if isinstance(one, str):
                raise WindowFileError(f"window {index}: {one}")
        return list(found)

    async def models(self) -> list[dict[str, Any]]:
        """As Scorer."""
        if time.monotonic() - self._asked_at >= ASKED_S:
            self._about = await self._handle.about.remote()
            self._asked_at = time.monotonic()
        return list(self._about["models"])

    async def ready(self) -> str | None:
        """As Scorer."""
        try:
            async with asyncio.timeout(ASKED_S):
                return None if await self.models() else "no models are loaded"
        except TimeoutError:
            return "the Verifier does not answer"
