"""A consumer process for tests of faults: the real loop, broker and store, and a judge that needs no model."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import measure
from gg_ray.records import Verdict, end_ns
from serve import failpoints
from serve.asks import Ask, Scored
from serve.loop import ScanLoop
from serve.settings import KafkaSettings, LiveSettings, Topics

LIMIT = 6.0
measure(load_case("case14"), load_case("case14").v0[None])  # children are forked: what is loaded here they have


class Judge:
    """Implausible where a reading of the newest scan is six sigma off the base state; the answer takes a moment."""

    def __init__(self, delay_s: float = 0.002) -> None:
        self._delay_s = delay_s
        self._threads = ThreadPoolExecutor(2)

    def submit(self, asks: Sequence[Ask]) -> Future[list[list[Scored]]]:
        return self._threads.submit(self._answers, list(asks))

    def _answers(self, asks: list[Ask]) -> list[list[Scored]]:
        time.sleep(self._delay_s)
        return [[judged(ask, k) for k in range(len(ask.end_ns))] for ask in asks]


def judged(ask: Ask, k: int) -> Scored:
    """One window of an ask."""
    case, window = load_case(ask.case), ask.windows()[k]
    base = measure(case, case.v0[None], channels=ask.plan.channels)[0]
    off = np.nan_to_num(np.abs(window.z_TM - base) / ask.plan.sigma)
    score = float(off[-1].max()) - LIMIT + 1e-3 * float(off.mean())  # the mean: it depends on the whole window
    bus = int(ask.plan.channels[off[-1].argmax()] % case.n_bus)
    bad = score > 0
    told = Verdict(
        case=ask.case, time_ns=end_ns(window), verdict="implausible" if bad else "normal", p_implausible=0.5,
        p_disturbance=0.1, p_value=float(np.exp(-score)) if bad else 1.0, type="S1" if bad else "none",
        buses=(case.bus_names[bus],) if bad else (), branches=(), onset_scan=-1, corrected={}, model="judge",
    )  # fmt: skip
    return Scored(
        verdict=told, score=score, threshold=0.0, places={bus: score} if bad else {},
        reasons={"peak": round(score, 6)} if bad and score > ask.peak else None,
    )  # fmt: skip


def settings_of(bootstrap: str, redis_url: str, topic: str, group: str, member: str = "") -> LiveSettings:
    """Settings of a test's own topics and group."""
    topics = Topics(readings=topic, verdicts=f"{topic}.v", alarms=f"{topic}.a", dead_letters=f"{topic}.d")
    kafka = KafkaSettings(bootstrap=bootstrap, group=group, partitions=2, topics=topics, session_timeout_ms=6_000)
    live = LiveSettings(kafka=kafka, redis_url=redis_url)
    return replace(live, consumer=replace(live.consumer, commit_every_s=0.1, max_batch=8, static_member=member))


def work(settings: LiveSettings, name: str, failpoint: str, delay_s: float) -> None:
    """A consumer until SIGTERM or the failpoint; the body of a child process."""
    failpoints.arm(failpoint)
    loop, stop = ScanLoop(settings, Judge(delay_s), name), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    loop.run(stop)
