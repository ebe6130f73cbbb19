"""serve.consumer.Runner: a loop that fails is begun anew, one that goes on failing or is stuck is ill."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fault_rig import until

from serve import consumer
from serve.consumer import MOST_FAILURES, STUCK_S, Runner
from serve.settings import LiveSettings


class Loop:
    """Fails so often, then turns until it is stopped."""

    fails = 0
    made = 0

    def __init__(self, *_: Any) -> None:
        type(self).made += 1
        self.turned_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        if type(self).made <= type(self).fails:
            raise ConnectionError("no broker of that name")
        stop.wait(60)


def runner(monkeypatch: pytest.MonkeyPatch, fails: int) -> Runner:
    loop = type("Failing", (Loop,), {"fails": fails, "made": 0})
    monkeypatch.setattr(consumer, "ScanLoop", loop)
    return Runner(LiveSettings(), scorer=None, name="r", again_s=0.001)  # type: ignore[arg-type]


def test_a_loop_that_fails_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(monkeypatch, fails=2)
    until(lambda: made.failures == 2 and made.loop is not None and type(made.loop).made == 3, "a third loop")
    made.check()
    made.stop()


def test_one_that_goes_on_failing_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(monkeypatch, fails=MOST_FAILURES)
    until(lambda: made.failure, "giving up")
    with pytest.raises(RuntimeError, match="no broker of that name"):
        made.check()


def test_a_stuck_one_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    made = runner(monkeypatch, fails=0)
    until(lambda: made.loop is not None, "a loop")
    made.check()
    assert made.loop is not None
    made.loop.turned_at -= STUCK_S + 1
    with pytest.raises(RuntimeError, match="has not turned"):
        made.check()
    made.stop()
