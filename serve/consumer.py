"""The scan loop at work: as a Serve deployment beside the Verifier, or as a process with models of its own.

Flow:    serve.loop in a thread of [consumer]; health and drain are Serve's
Source:  ray.md, section 7 (the consumer is not a request handler); live.md, section 1 (rebalance)
Run:     python -m serve.consumer --name worker-0      # KAFKA_BOOTSTRAP and REDIS_URL say where; judges by itself
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import torch
from ray import serve

from serve.logs import log_json
from serve.loop import ScanLoop, Scorer
from serve.models import Models
from serve.scorers import HandleScorer, LocalScorer, NullScorer
from serve.settings import LiveSettings, kafka_from, redis_url_from

LOG = logging.getLogger(__name__)
STUCK_S = 30.0
"""A loop that has not turned for so long is ill."""
AGAIN_S, MOST_FAILURES = 1.0, 5
"""A loop that failed is begun again after twice as long each time; after so many failures somebody else must help."""


class Runner:
    """A scan loop in a thread, begun anew after a failure; one that goes on failing, or is stuck, is ill."""

    def __init__(self, settings: LiveSettings, scorer: Scorer, name: str, again_s: float = AGAIN_S) -> None:
        self.settings, self.scorer, self.name = settings, scorer, name
        self.loop: ScanLoop | None = None
        self.failure, self.failures = "", 0
        self._again_s = again_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scans", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.loop = ScanLoop(self.settings, self.scorer, self.name)
                self.loop.run(self._stop)
                return
            except Exception as error:  # whatever it is: what was not applied is read again
                self.failures += 1
                LOG.exception("the scan loop ended, time %d", self.failures)
                if self.failures >= MOST_FAILURES:
                    self.failure = f"{type(error).__name__}: {error}"
                    return
                self._stop.wait(self._again_s * 2**self.failures)

    def check(self) -> None:
        """Raises: RuntimeError when the loop has ended or is stuck."""
        if self.failure or not self._thread.is_alive():
            raise RuntimeError(f"the scan loop ended: {self.failure or 'without an error'}")
        if self.loop is not None and time.monotonic() - self.loop.turned_at > STUCK_S:
            raise RuntimeError(f"the scan loop has not turned for {STUCK_S:g} s")

    def stop(self, patience_s: float = 20.0) -> None:
        """Drain, commit, leave the group."""
        self._stop.set()
        self._thread.join(patience_s)


@serve.deployment(
    name="Consumer", graceful_shutdown_timeout_s=30, health_check_period_s=5, health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 0.5},
)  # fmt: skip
class ConsumerDeployment:
    """Serve's shell around a Runner; it answers no requests."""

    def __init__(self, settings: LiveSettings, verifier: Any) -> None:
        tag = serve.get_replica_context().replica_id.unique_id
        scorer = HandleScorer(verifier, settings.consumer.in_flight)
        self._runner = Runner(settings, scorer, f"consumer-{tag}")

    async def status(self) -> dict[str, Any]:
        """What the loop says of itself."""
        loop = self._runner.loop
        return {} if loop is None else loop.status()

    def check_health(self) -> None:
        """Raises what makes Serve replace the replica."""
        self._runner.check()

    def __del__(self) -> None:
        if (runner := getattr(self, "_runner", None)) is not None:
            runner.stop()


def main() -> int:
    """One consumer in this process until SIGTERM; 1 when its loop failed."""
    parser = argparse.ArgumentParser(prog="python -m serve.consumer", description=__doc__)
    parser.add_argument("--name", default=f"worker-{os.getpid()}")
    parser.add_argument("--static-member", default="", help="group.instance.id")
    parser.add_argument("--run", action="append", default=[], help="run folder whose champion judges")
    parser.add_argument("--budget", type=float, default=0.0, help="incidents a day and grid")
    parser.add_argument("--null", action="store_true", help="call everything normal: to time the rest")
    given = parser.parse_args()
    log_json()
    torch.set_num_threads(1)
    settings = LiveSettings(kafka=kafka_from(os.environ), redis_url=redis_url_from(os.environ), budget=given.budget)
    settings = replace(settings, consumer=replace(settings.consumer, static_member=given.static_member))
    scorer = NullScorer() if given.null else LocalScorer(Models.load(given.run, given.budget))
    runner = Runner(settings, scorer, given.name)
    ended = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
    while not ended.wait(0.5):
        try:
            runner.check()
        except RuntimeError as error:
            LOG.error("%s", error)
            return 1
    runner.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
