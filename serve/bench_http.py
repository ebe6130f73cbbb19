"""The HTTP edge under open-loop load: how long one window takes, how many are judged, and what the bare model does.

Flow:    uvicorn of serve.app in a process of its own, Redis, a generator here -> [bench_http.run] -> gg-ray bench http
Source:  live.md, section 4 (load method: intended send times, latency from the intended time, one clock)
Limits:  generator and server share the machine's cores: on two of them the one takes time from the other

Three runs, one after the other: single windows as Arrow at a rate that leaves room (p50_ms, p99_ms), single windows as
JSON at the same rate, and batches as fast as answers come (batch_windows_per_s). The bare rate is taken before and
after in this process, alone, on one thread, with the same windows in the same batches; the ratio is to the higher one.
What the server computes for a window is told as CPU time as well: other work on the machine does not change that.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pyarrow as pa
import torch
from pyarrow import ipc

from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import MeterPlan, draw_plan, measure
from gg_ray.records import Window
from gg_ray.windows_io import row_of
from serve.limits import ARROW_TYPES
from serve.models import Models

T = TypeVar("T")
SCANS = 16
WARM = 5
"""Requests of each kind that are not counted: the first ones load the case and the compiled kernels."""


def run(
    case: str = "case118", rate_per_s: float = 20.0, seconds: float = 20.0, batch: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Time the edge on a case.

    Args:    rate_per_s  of single windows, Poisson arrivals;  seconds  of each run;  batch  windows of a large request
    Returns: p50_ms, p99_ms, max_ms of single windows as Arrow, json_p50_ms and json_p99_ms, requests_per_s that were
             answered of those, batch_windows_per_s, bare_model_per_s and ratio_to_bare (wall time, and wall time alone
             is of the machine as it was); CPU ms per window of the server in each run and of the bare model.
    """
    windows = _windows(case, max(batch, 8), seed)
    bodies = [_arrow([one]) for one in windows]
    whole = _arrow(windows[:batch])
    texts = [json.dumps(_row(one)).encode() for one in windows]
    models = Models.load(())
    models.verdicts(windows[:4])
    before = _bare(models, windows[:batch])
    with _server() as address:
        for body, kind in ((bodies[0], ARROW_TYPES[0]), (texts[0], "application/json"), (whole, ARROW_TYPES[0])):
            for _ in range(WARM):
                _post(address, body, kind)
        single, single_cpu = _measured(address, _open_loop(address, bodies, ARROW_TYPES[0], rate_per_s, seconds, seed))
        written, written_cpu = _measured(
            address, _open_loop(address, texts, "application/json", rate_per_s, seconds, seed)
        )  # fmt: skip
        done, batch_cpu = _measured(address, _closed_loop(address, whole, seconds))
    after = _bare(models, windows[:batch])
    bare_s, bare_cpu_s = min(before[0], after[0]), min(before[1], after[1])
    (times, answered), (json_times, _), (requests, lasted) = single, written, done
    return {
        "p50_ms": _quantile(times, 0.5), "p99_ms": _quantile(times, 0.99), "max_ms": 1e3 * max(times),
        "json_p50_ms": _quantile(json_times, 0.5), "json_p99_ms": _quantile(json_times, 0.99),
        "requests_per_s": answered, "batch_windows_per_s": requests * batch / lasted, "bare_model_per_s": 1.0 / bare_s,
        "ratio_to_bare": requests * batch / lasted * bare_s,
        "server_cpu_ms": 1e3 * single_cpu / len(times),
        "json_server_cpu_ms": 1e3 * written_cpu / len(json_times),
        "batch_server_cpu_ms": 1e3 * batch_cpu / (requests * batch), "bare_cpu_ms": 1e3 * bare_cpu_s,
        "cpu_ratio_to_bare": bare_cpu_s * requests * batch / batch_cpu,
        "case": case, "rate_per_s": rate_per_s, "batch": batch, "arrow_bytes": len(bodies[0]),
        "json_bytes": len(texts[0]),
    }  # fmt: skip


def _measured(address: str, load: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What a load found, and the CPU seconds that the server took for it."""
    begun = _server_cpu_s(address)
    found = asyncio.run(load)
    return found, _server_cpu_s(address) - begun


def _post(address: str, body: bytes, kind: str) -> None:
    answer = httpx.post(f"{address}/v1/score", content=body, headers={"Content-Type": kind}, timeout=120.0)
    answer.raise_for_status()


def _server_cpu_s(address: str) -> float:
    told = httpx.get(f"{address}/metrics", timeout=60.0).text
    [line] = [line for line in told.splitlines() if line.startswith("process_cpu_seconds_total ")]
    return float(line.split()[1])


def _windows(name: str, count: int, seed: int) -> list[tuple[Window, MeterPlan]]:
    """Windows of meter noise about the base state, each of its own noise."""
    case, rng = load_case(name), np.random.default_rng(seed)
    plan = draw_plan(case, seed, (0.6, 0.9), 0.01)
    truth = measure(case, case.v0[None])[0][plan.channels]
    return [
        (
            Window(
                case=name, plan_id=plan.plan_id, t0_ns=1_700_000_000_000_000_000, step_s=60.0, tap_E=case.tap,
                z_TM=truth + plan.sigma * rng.standard_normal((SCANS, plan.size)),
                age_TM=np.zeros((SCANS, plan.size), np.uint8), x_scale_E=np.ones(case.n_branch),
                status_TE=np.ones((SCANS, case.n_branch), np.uint8),
            ),
            plan,
        )
        for _ in range(count)
    ]  # fmt: skip


def _row(one: tuple[Window, MeterPlan]) -> dict[str, Any]:
    """A window as a user sends it: what is fresh, in service and as published is left out."""
    row = row_of(*one)
    return {name: row[name] for name in ("case", "t0_ns", "step_s", "channels", "sigma", "z")}


def _arrow(windows: Sequence[tuple[Window, MeterPlan]]) -> bytes:
    table, sink = pa.Table.from_pylist([_row(one) for one in windows]), io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _bare(models: Models, windows: Sequence[tuple[Window, MeterPlan]]) -> tuple[float, float]:
    """Wall and CPU seconds per window of the models alone on one thread: the best of three passes over a batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wall, cpu = [], []
        for _ in range(3):
            begun, spent = time.perf_counter(), time.process_time()
            models.verdicts(windows)
            wall.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - spent)
    finally:
        torch.set_num_threads(threads)
    return min(wall) / len(windows), min(cpu) / len(windows)


async def _open_loop(
    address: str, bodies: Sequence[bytes], kind: str, rate_per_s: float, seconds: float, seed: int
) -> tuple[list[float], float]:
    """Seconds from each request's intended time to the end of its answer, and answers per second.

    A late answer holds no request back.
    """
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1.0 / rate_per_s, math.ceil(rate_per_s * seconds)))
    out: list[float] = []
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=60.0, limits=limits) as client:

        async def ask(i: int, intended: float) -> None:
            answer = await client.post("/v1/score", content=bodies[i % len(bodies)], headers={"Content-Type": kind})
            answer.raise_for_status()
            out.append(time.monotonic() - intended)

        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for i, offset in enumerate(due.tolist()):
                await asyncio.sleep(max(0.0, start + offset - time.monotonic()))
                group.create_task(ask(i, start + offset))
        return out, len(out) / (time.monotonic() - start)


async def _closed_loop(address: str, body: bytes, seconds: float) -> tuple[int, float]:
    """Requests answered and seconds taken, with two under way at any time, which keeps the one model busy."""
    done, begun = 0, time.monotonic()
    async with httpx.AsyncClient(base_url=address, timeout=60.0) as client:

        async def keep_asking() -> None:
            nonlocal done
            while time.monotonic() - begun < seconds:
                answer = await client.post("/v1/score", content=body, headers={"Content-Type": ARROW_TYPES[0]})
                answer.raise_for_status()
                done += 1

        await asyncio.gather(keep_asking(), keep_asking())
    return done, time.monotonic() - begun


def _quantile(seconds: Sequence[float], share: float) -> float:
    return float(1e3 * np.quantile(seconds, share))


_SERVER = """
import sys, uvicorn
from redis.asyncio import Redis
from serve.app import make_app
from serve.judges import ReplicaJudge
from serve.settings import HttpSettings, LiveSettings
from serve.verifier import Replica
http = HttpSettings(rate_per_s=1e6, burst=10**6, timeout_s=60.0)
replica = Replica()
replica.want({"follow": False})
app = make_app(LiveSettings(http=http), Redis(), ReplicaJudge(replica))
uvicorn.run(app, fd=int(sys.argv[1]), log_level="error", access_log=False)
"""
"""The edge without a rate limit. Scoring asks no Redis, so there need not be one."""


@contextmanager
def _server() -> Iterator[str]:
    """A uvicorn of the app on a free port of loopback, ready when given and ended afterwards."""
    root = str(Path(__file__).resolve().parents[1])
    with socket.socket() as listener, tempfile.TemporaryFile() as said:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", _SERVER, str(listener.fileno())]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment, stderr=said)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()  # a server that ended must refuse connections, not leave them to wait
        try:
            httpx.get(f"{address}/healthz", timeout=120.0).raise_for_status()
            yield address
        except httpx.TransportError as error:
            said.seek(0)
            raise RuntimeError(f"the server ended: {said.read()[-500:].decode(errors='replace')}") from error
        finally:
            server.terminate()
            server.wait(30)
