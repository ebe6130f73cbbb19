"""Who judges the windows of POST /v1/score: a protocol, and a judge in this process.

Flow:    serve.score_body -> [Scorer] -> verdicts; on Ray Serve a handle of the Verifier deployment stands here
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypedDict

import torch

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window
from gg_ray.registry import Registry
from gg_ray.score import load_model, verdicts
from gg_ray.windows_io import windows_of
from serve.examples import SCORE_EXAMPLE


class ModelRecord(TypedDict):
    """What judges a grid."""

    grid: str
    """`*` for all grids that no other entry names."""
    model: str
    challenger: str | None
    digest: str
    """sha256 of the weights."""


class Scorer(Protocol):
    """Judges windows; any number of calls may be under way at once."""

    async def score(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict]:
        """One verdict per window, in order.

        Raises: WindowFileError for a window that the model does not take.
        """
        ...

    async def models(self) -> list[ModelRecord]:
        """Models that would judge now."""
        ...

    async def ready(self) -> str | None:
        """None when windows are judged, else why not."""
        ...


class LocalScorer:
    """A registered Verifier in this process, on one thread: calls wait for each other, the event loop does not.

    Raises: RegistryError as gg_ray.score.load_model.
    """

    def __init__(self, registry: Registry, reference: str = "champion") -> None:
        self._network, self._calibration, version = load_model(registry, reference)
        self._model = version.id
        [weights] = [entry for name, entry in version.manifest["files"].items() if name.endswith(".safetensors")]
        self._digest = str(weights["sha256"])
        self._thread = ThreadPoolExecutor(1, "verifier", initializer=torch.set_num_threads, initargs=(1,))
        self._warm = self._thread.submit(self.judge, windows_of(SCORE_EXAMPLE, "example"))

    async def score(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.judge, windows)

    def judge(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict]:
        """The same in the caller's thread."""
        return verdicts(self._network, self._calibration, windows, self._model)

    async def models(self) -> list[ModelRecord]:
        return [{"grid": "*", "model": self._model, "challenger": None, "digest": self._digest}]

    async def ready(self) -> str | None:
        if not self._warm.done():
            return "kernels are being compiled for the first window"
        error = self._warm.exception()
        return None if error is None else f"the first window failed ({type(error).__name__})"
