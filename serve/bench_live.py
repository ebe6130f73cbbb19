"""From Kafka to Redis under open-loop load: how long a scan takes to become visible, how many are judged.

Flow:    embedded broker and Redis, one consumer process (`python -m serve.consumer`), a sender and a watcher here
         -> [bench_live.run] -> gg-ray bench live
Source:  live.md, section 4 (intended send times, one clock, warm-up cut, ratio to the bare model in the same run)
Limits:  consumer, broker, store, sender and watcher share the machine's cores, and the consumer judges by itself: the
         hand-over to Ray Serve is not in these figures

Visible is when the watcher, which follows the stream of events, has the verdict. Latency counts from the time at which
a scan was to be sent, so a stall is charged for all that it delays.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis
import torch
from confluent_kafka import Producer

from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan, measure
from serve import keys, topics
from serve.asks import Ask
from serve.embedded import Broker, RedisServer
from serve.models import Models
from serve.rings import Ring
from serve.settings import KafkaSettings
from serve.wire import ScanMessage, decode, encode

SITES, WINDOW = 8, 16
DEADLINE_S = 120.0
BURST = 1_600


def run(case: str = "case118", rate_per_s: float = 50.0, seconds: float = 20.0, seed: int = 0) -> dict[str, Any]:
    """Time the live path on a case.

    Args:    rate_per_s  scans of SITES grids together, Poisson arrivals;  seconds  of the measured run
    Returns: p50_ms, p99_ms, max_ms; saturation_per_s of BURST scans sent at once, bare_model_per_s of the same windows
             in batches of 32 in this process, saturation_ratio; null_model_per_s without a model; recovery_s from a
             kill -9 to the next verdict
    """
    out: dict[str, Any] = {"case": case, "rate_per_s": rate_per_s}
    made = _scans(case, seed, 2 * BURST + int(rate_per_s * seconds) + 64 * SITES)
    out["bare_model_per_s"] = _bare(case, made)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gg-bench-")))
        broker, store = stack.enter_context(Broker(home)), stack.enter_context(RedisServer(home))
        kafka = KafkaSettings(bootstrap=broker.bootstrap)
        topics.ensure(kafka)
        track = _Track(kafka, store.url)
        with _consumer(broker, store, "model"):
            track.send(made, WINDOW * SITES, 0.0)  # windows fill, kernels and caches load
            track.wait()
            waits = track.send(made, int(rate_per_s * seconds), rate_per_s, np.random.default_rng(seed))
            out |= {
                "p50_ms": float(np.quantile(waits, 0.5)), "p99_ms": float(np.quantile(waits, 0.99)),
                "max_ms": float(waits.max()), "bytes_per_scan": len(made[0]),
            }  # fmt: skip
            out["saturation_per_s"] = track.burst(made, BURST)
        out["saturation_ratio"] = out["saturation_per_s"] / out["bare_model_per_s"]
        with _consumer(broker, store, "null", "--null") as process:
            track.send(made, WINDOW * SITES, 0.0)
            track.wait()
            out["null_model_per_s"] = track.burst(made, BURST)
            began = time.monotonic()
            process.send_signal(signal.SIGKILL)
            with _consumer(broker, store, "again", "--null"):
                track.send(made, SITES, 0.0)
                track.wait()
                out["recovery_s"] = time.monotonic() - began
    return out


class _Track:
    """Sends scans and watches when their verdicts come."""

    def __init__(self, kafka: KafkaSettings, url: str) -> None:
        self._topic = kafka.topics.readings
        self._producer = Producer({**kafka.client(), "linger.ms": 0, "acks": "all"})
        self._redis = redis.Redis.from_url(url)
        self._sent = self._next = 0
        self._due: dict[tuple[str, int], float] = {}
        self._seq = dict.fromkeys(map(_site, range(SITES)), 0)
        self._wait_ms: list[float] = []
        self._seen = threading.Condition()
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()

    def _watch(self) -> None:
        last: Any = "0"
        client = self._redis
        while True:
            try:
                found = client.xread({keys.EVENTS: last}, count=1_000, block=1_000)
            except redis.exceptions.ConnectionError:  # the run is over
                return
            for _, entries in found or ():
                now = time.monotonic()
                with self._seen:
                    for entry, fields in entries:
                        last = entry
                        if fields[b"kind"] == b"verdict":
                            grid = fields[b"grid"].decode()
                            number = int(fields[b"json"].split(b'"version":"1.')[1].split(b'"')[0])
                            due = self._due.pop((grid, number), None)
                            if due is not None:
                                self._wait_ms.append(1e3 * (now - due))
                    self._seen.notify_all()

    def send(self, made: Sequence[bytes], count: int, rate: float, rng: np.random.Generator | None = None) -> Any:
        """Send scans at a rate (0: at once) and wait for their verdicts.  Returns: waits in ms."""
        gaps = np.zeros(count) if rng is None else rng.exponential(1.0 / rate, count)
        due = time.monotonic() + np.cumsum(gaps)
        self._wait_ms.clear()
        for at in due:
            time.sleep(max(0.0, at - time.monotonic()))
            grid = _site(self._next % SITES)
            self._seq[grid] += 1
            with self._seen:
                self._due[(grid, self._seq[grid])] = float(at)
            self._producer.produce(self._topic, made[self._next], key=grid)
            self._producer.poll(0)
            self._next += 1
        self._producer.flush(30)
        self.wait()
        return np.array(self._wait_ms)

    def burst(self, made: Sequence[bytes], count: int) -> float:
        """Scans a second when so many are sent at once."""
        began = time.monotonic()
        self.send(made, count, 0.0)
        return count / (time.monotonic() - began)

    def wait(self) -> None:
        """Until every scan has its verdict.  Raises: TimeoutError"""
        with self._seen:
            if not self._seen.wait_for(lambda: not self._due, DEADLINE_S):
                raise TimeoutError(f"{len(self._due)} scans without a verdict after {DEADLINE_S:g} s")


def _site(number: int) -> str:
    return f"site-{number}"


def _scans(case_name: str, seed: int, count: int) -> list[bytes]:
    """Quiet scans of the sites in turn, encoded."""
    case, plan = load_case(case_name), draw_plan(load_case(case_name), 1_000, (0.35, 0.7), 0.03)
    rng = np.random.default_rng(seed)
    quiet = measure(case, case.v0[None], channels=plan.channels)[0]
    seq = dict.fromkeys(range(SITES), 0)
    out = []
    for k in range(count):
        site = k % SITES
        seq[site] += 1
        out.append(encode(ScanMessage(
            grid=_site(site), case=case_name, time_ns=(1_700_000_000 + 60 * seq[site]) * 10**9, step_s=60.0,
            channels=plan.channels, sigma=plan.sigma, z_M=quiet + plan.sigma * rng.standard_normal(plan.size),
            age_M=np.zeros(plan.size, dtype=np.uint8), status_E=np.ones(case.n_branch, dtype=np.uint8),
            tap_E=case.tap, x_scale_E=np.ones(case.n_branch), epoch=1, seq=seq[site], origin="simulated",
        )))  # fmt: skip
    return out


def _bare(case: str, made: Sequence[bytes]) -> float:
    """Windows a second of the model alone: batches of 32, one thread, this process."""
    torch.set_num_threads(1)
    models, ring, asks = Models.load(()), Ring(WINDOW), []
    for offset, payload in enumerate(made[::SITES][: WINDOW + 31]):
        scan = decode(payload)
        ring.push(scan, offset, (1, offset + 1))
        if ring.filled == WINDOW:
            rows, b = slice(ring.rows - WINDOW, ring.rows), ring.block
            assert ring.plan is not None
            asks.append(Ask(
                grid=scan.grid, case=case, plan=ring.plan, scans=WINDOW, step_s=60.0, end_ns=(scan.time_ns,),
                z=b.z[rows], age=b.age[rows], status=b.status[rows], tap=b.tap[rows], x_scale=b.x_scale[rows],
                shown=(False,), peak=np.inf,
            ))  # fmt: skip
    models.answer(asks)
    began, rounds = time.monotonic(), 5
    for _ in range(rounds):
        models.answer(asks)
    return rounds * len(asks) / (time.monotonic() - began)


@contextmanager
def _consumer(broker: Broker, store: RedisServer, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "KAFKA_BOOTSTRAP": broker.bootstrap, "REDIS_URL": store.url, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "serve.consumer", "--name", name, "--static-member", "bench", *options]
    with (broker.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
