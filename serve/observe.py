"""What the edge tells of itself: trace, one log line and metrics a request; and the answer to what nobody expected.

Flow:    request -> [Observe] -> serve.access -> ...;  registry, statuses of parts -> [exposition] -> GET /metrics
Source:  live.md, section 6 (rate, errors, duration by route)
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem, answer
from serve.trace import TRACEPARENT, traceparent

log = logging.getLogger(__name__)

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0)
UNMATCHED = "(none)"
"""Route of a request to an unknown address: the address itself would be a label without bound."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_QUIET = ("/healthz", "/readyz", "/metrics", "/static/{path:path}")
"""Routes whose successes are not worth a log line."""


class Metrics:
    """Metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("route", "method", "status")
        self.requests = Counter("gg_http_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "gg_http_request_seconds", "Time to the end of the answer", ("route",), buckets=BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self.running = Gauge("gg_http_requests_running", "Requests being answered", registry=self.registry)
        self.windows = Counter("gg_http_windows", "Windows judged over HTTP", ("verdict",), registry=self.registry)
        self.streams = Gauge("gg_stream_clients", "Connected pages", registry=self.registry)
        self.events = Counter("gg_stream_events", "Events sent to pages", registry=self.registry)


class Observe:
    """ASGI middleware, the outermost one: opens the trace, counts, logs, answers 500 with nothing but the trace id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = traceparent(Headers(scope=scope).get("traceparent"))
        token = TRACEPARENT.set(parent)
        begun, status = time.perf_counter(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["traceparent"] = parent
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, receive, told)
        except Exception:
            log.exception("unexpected error", extra={"fields": {"method": scope["method"]}})
            if status:
                raise  # half an answer is out: only the server can end the connection
            await answer(Problem(500, "an error that nobody expected; the log has it under this trace"))(
                scope, receive, told
            )
        finally:
            self._metrics.running.dec()
            self._tell(scope, status, time.perf_counter() - begun)
            TRACEPARENT.reset(token)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        if route != "/v1/stream":
            self._metrics.seconds.labels(route).observe(seconds)
        caller = scope.get("gg.caller")
        fields = {
            "route": route, "method": method, "status": status, "ms": round(1e3 * seconds, 2),
            "key": caller.principal.name if caller and caller.principal else None,
        }  # fmt: skip
        if status >= 400 or status == 0 or route not in _QUIET:
            log.info("request", extra={"fields": fields})


class _Statuses(Collector):
    """Numbers of the parts' own statuses as gauges gg_<kind>_<field>; a group of numbers gets a label `of`."""

    def __init__(self, statuses: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for kind, parts in self._statuses.items():
            for part in parts:
                for name, of, value in _numbers(part):
                    full = f"gg_{_word(kind)}_{_word(name)}"
                    told = GaugeMetricFamily(full, f"{name} as the {kind} itself says", labels=("name", "of"))
                    families.setdefault(full, told).add_metric([str(part.get("name", "")), of], value)
        yield from families.values()


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(field, "", value) of plain numbers, (field, name in the group, value) of groups; lists: length; trouble: 1."""
    for name, value in part.items():
        if name == "trouble":
            value = value != ""
        elif isinstance(value, list):
            value = len(value)
        group = value if isinstance(value, Mapping) else {"": value}
        yield from ((name, str(of), float(v)) for of, v in group.items() if isinstance(v, bool | int | float))


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", text.lower())


def exposition(metrics: Metrics, statuses: Mapping[str, Sequence[Mapping[str, Any]]], store_up: bool) -> bytes:
    """Text of GET /metrics: the edge's own metrics, then what consumers, verifiers and feeds say of themselves.

    Args: statuses  by kind (consumer, verifier, feed);  store_up  whether Redis answered: without it no part is heard
    """
    parts = CollectorRegistry()
    Gauge("gg_store_up", "1 where Redis answered this request", registry=parts).set(store_up)
    parts.register(_Statuses(statuses))
    return generate_latest(metrics.registry) + generate_latest(parts)
