"""Who judges for the scan loop: models in this process, the Verifier deployment, or nobody (to time the rest).

Flow:    serve.loop -> [scorers] -> serve.models or the deployment's handle
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from gg_ray.records import Verdict
from serve.asks import Ask, Scored

Answers = list[list[Scored]]


class Answering(Protocol):
    """Models, or a replica that exchanges them."""

    def answer(self, asks: Sequence[Ask]) -> Answers:
        """As serve.models.Models.answer."""
        ...


class LocalScorer:
    """Models in this process, one batch at a time in a thread of their own."""

    def __init__(self, models: Answering) -> None:
        self.models = models
        self._thread = ThreadPoolExecutor(1, "verifier", initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, asks: Sequence[Ask]) -> Future[Answers]:
        """Answers, later."""
        return self._thread.submit(self.models.answer, asks)

    def close(self) -> None:
        """Let the batch under way finish."""
        self._thread.shutdown(wait=True)


class HandleScorer:
    """The Verifier deployment through its handle; a call that is not answered in time fails and is tried again."""

    def __init__(self, handle: Any, in_flight: int, timeout_s: float = 30.0) -> None:
        self._handle, self._timeout_s = handle, timeout_s
        self._threads = ThreadPoolExecutor(in_flight, "handle")

    def submit(self, asks: Sequence[Ask]) -> Future[Answers]:
        """Answers, later."""
        return self._threads.submit(self._call, list(asks))

    def _call(self, asks: list[Ask]) -> Answers:
        answers: Answers = self._handle.answer.remote(asks).result(timeout_s=self._timeout_s)
        return answers

    def close(self) -> None:
        """Give up calls that have not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class NullScorer:
    """Everything is normal: what the loop, the broker and the store can do without a model."""

    def submit(self, asks: Sequence[Ask]) -> Future[Answers]:
        """Answers at once."""
        future: Future[Answers] = Future()
        future.set_result([[_normal(ask, end) for end in ask.end_ns] for ask in asks])
        return future

    def close(self) -> None:
        """Nothing to end."""


def _normal(ask: Ask, end_ns: int) -> Scored:
    told = Verdict(
        case=ask.case, time_ns=end_ns, verdict="normal", p_implausible=0.0, p_disturbance=0.0, p_value=1.0, type="none",
        buses=(), branches=(), onset_scan=-1, corrected={}, model="null",
    )  # fmt: skip
    return Scored(verdict=told, score=-10.0, threshold=0.0)
