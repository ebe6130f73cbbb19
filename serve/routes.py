"""Routes of the HTTP edge (docs/live.md); each asks one part and puts its answer into words.

Flow:    serve.limits -> [routes] -> serve.view, serve.operators, serve.scoring, serve.events
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Header, Path, Query, Request
from redis.exceptions import RedisError
from starlette.responses import Response

from gg_ray.grid.cases import CaseError, load_case
from gg_ray.records import Verdict
from serve import answers
from serve.access import Caller, require
from serve.auth import KeyRing
from serve.events import EventStream, Hub
from serve.examples import SCORE_EXAMPLE
from serve.limits import ARROW_TYPES
from serve.observe import Metrics, exposition
from serve.operators import Operators
from serve.problems import STORE_DOWN, Problem, documented
from serve.records import dump, iso_ms
from serve.score_body import windows_from
from serve.scoring import Scorer
from serve.settings import HttpSettings
from serve.view import KINDS, View

Layout = Callable[[str], dict[str, Any]]
"""Case -> layout of docs/live.md without its grid.  Raises: CaseError for an unknown case."""
_STREAM_ID = r"^\d{1,19}-\d{1,19}$"
_READ = documented(401, 403, 408, 422, 429, 503)
GridName = Annotated[str, Path(max_length=100)]
Incident = Annotated[str, Path(max_length=200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What routes stand on."""

    settings: HttpSettings
    view: View
    operators: Operators
    scorer: Scorer
    hub: Hub
    metrics: Metrics
    ring: KeyRing
    layout: Layout | None


def json_answer(text: str) -> Response:
    """A JSON text as an answer that nobody keeps."""
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})


def scored(verdict: Verdict) -> dict[str, Any]:
    """A verdict as POST /v1/score gives it. A number that is not finite becomes null."""
    told = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in asdict(verdict).items()}
    return {**told, "time": iso_ms(verdict.time_ns), "time_ms": verdict.time_ns // 10**6}


def add_routes(app: FastAPI, parts: Parts) -> None:
    """All routes but sessions, pages and documents."""
    view = parts.view

    @app.post(
        "/v1/score", dependencies=[require("score")], tags=["score"],
        responses={200: {"model": answers.Scores}, **documented(400, 401, 403, 408, 413, 415, 422, 429, 503)},
        openapi_extra={"requestBody": {"required": True, "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Windows"}, "example": SCORE_EXAMPLE},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARROW_TYPES},
        }}},
    )  # fmt: skip
    async def score(request: Request) -> Response:
        """Verdicts of one window (an object) or several (a list, or the rows of an Arrow table), in order."""
        body, kind = await request.body(), request.headers.get("content-type", "")
        windows = await asyncio.to_thread(windows_from, body, kind, parts.settings)
        found = await parts.scorer.score(windows)
        for one in found:
            parts.metrics.windows.labels(one.verdict).inc()
        return json_answer(dump({"verdicts": [scored(one) for one in found]}))

    @app.get("/v1/grids", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.Grids}, **_READ})  # fmt: skip
    async def grids() -> Response:
        """Grids that have reported, with the newest verdict of each."""
        held = await view.grids()
        newest, alarms = await view.newest(list(held)), await view.alarms("open")
        count = Counter(alarm["grid"] for alarm in alarms)
        sizes = await asyncio.to_thread(lambda: [_size(about["case"]) for about in held.values()])
        return json_answer(dump({"grids": [
            {"grid": grid, **about, "buses": size[0], "branches": size[1],
             "verdict": None if verdict is None else json.loads(verdict), "open_alarms": count[grid]}
            for (grid, about), verdict, size in zip(held.items(), newest, sizes, strict=True)
        ]}))  # fmt: skip

    @app.get("/v1/grids/{grid}", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.Layout}, **documented(404), **_READ})  # fmt: skip
    async def layout(grid: GridName) -> Response:
        """Where to draw the buses and branches of a grid."""
        case = str((await view.grid(grid))["case"])
        if parts.layout is None:
            raise Problem(404, "this server draws no grids")
        try:
            drawn = await asyncio.to_thread(parts.layout, case)
        except CaseError as error:
            raise Problem(404, f"{grid}: {error}") from None
        return json_answer(dump({"grid": grid, **drawn}))

    @app.get("/v1/grids/{grid}/map", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.MapModel}, **documented(404), **_READ})  # fmt: skip
    async def map_of(grid: GridName) -> Response:
        """Newest scores, voltages and flows, in the order of the layout."""
        return json_answer(await view.map(grid))

    @app.get("/v1/grids/{grid}/verdicts", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.History}, **documented(404), **_READ})  # fmt: skip
    async def history(
        grid: GridName,
        limit: Annotated[int, Query(ge=1, le=1000)] = 240,
        before: Annotated[str | None, Query(pattern=_STREAM_ID)] = None,
    ) -> Response:
        """Verdicts of a grid, oldest first: the newest ones, or those before a stream id."""
        found = await view.history(grid, limit, before)
        ids = dump([entry for entry, _ in found])
        return json_answer(f'{{"verdicts":[{",".join(text for _, text in found)}],"ids":{ids}}}')

    @app.get("/v1/alarms", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.Alarms}, **_READ})  # fmt: skip
    async def alarms(
        state: Literal["open", "closed", "all"] = "all",
        grid: Annotated[str, Query(max_length=100)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> Response:
        """Incidents with the operators' marks, newest first."""
        return json_answer(dump({"alarms": await view.alarms(state, grid, limit)}))

    @app.get("/v1/alarms/{id}", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.AlarmModel}, **documented(404), **_READ})  # fmt: skip
    async def alarm(id: Incident) -> Response:
        """One incident."""
        return json_answer(dump(await view.alarm(id)))

    @app.post("/v1/alarms/{id}/{action}", tags=["operate"],
                 responses={200: {"model": answers.AlarmModel}, **documented(404, 413), **_READ})  # fmt: skip
    async def act(
        id: Incident,
        action: Literal["ack", "unack", "shelve", "unshelve"],
        caller: Annotated[Caller, require("operate")],
        body: Annotated[answers.Act, Body()] = answers.Act(note="", minutes=60),  # noqa: B008 - what is sent for an empty body
    ) -> Response:
        """Acknowledge or shelve an incident, or take that back. The same request twice does it once."""
        assert caller.principal is not None
        return json_answer(dump(await parts.operators.act(action, id, caller.principal.name, body.note, body.minutes)))

    @app.get("/v1/stream", dependencies=[require("read")], tags=["read"], response_class=Response,
                responses={200: {"description": "Server-sent events", "content": {"text/event-stream": {
                    "schema": {"type": "string"}}}}, **_READ})  # fmt: skip
    async def stream(
        grid: Annotated[str, Query(max_length=100)] = "",
        last: Annotated[str | None, Query(pattern=_STREAM_ID)] = None,
        last_event_id: Annotated[str | None, Header(pattern=_STREAM_ID)] = None,
    ) -> Response:
        """Events as they come in, or from the one after an id (Last-Event-ID, or `last` without headers)."""
        return EventStream(parts.hub, parts.metrics, last_event_id or last, grid)

    @app.get("/v1/status", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.Status}, **_READ})  # fmt: skip
    async def status() -> Response:
        """What consumers, verifiers and feeds said of themselves in the last half minute."""
        told, alive = await _statuses(view)
        return json_answer(dump({**{KINDS[kind]: of for kind, of in told.items()}, "redis": alive}))

    @app.get("/v1/models", dependencies=[require("read")], tags=["read"],
                responses={200: {"model": answers.Models}, **_READ})  # fmt: skip
    async def models() -> Response:
        """What judges which grid."""
        return json_answer(dump({"models": await parts.scorer.models()}))

    @app.get("/metrics", dependencies=[require("read")], tags=["operations"], response_class=Response,
                responses={200: {"description": "Prometheus text", "content": {"text/plain": {
                    "schema": {"type": "string"}}}}, **_READ})  # fmt: skip
    async def metrics() -> Response:
        """Metrics of this server, and the numbers that the other parts publish."""
        told, alive = await _statuses(view)
        return Response(exposition(parts.metrics, told, alive), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz", tags=["operations"], responses={200: {"model": answers.Health}})
    async def healthz() -> Response:
        """This process answers."""
        return json_answer('{"ok":true}')

    @app.get("/readyz", tags=["operations"], responses={200: {"model": answers.Health}, **documented(503)})
    async def readyz() -> Response:
        """Windows are judged and the store answers."""
        if parts.hub.closed:
            raise Problem(503, "this server is stopping", headers={"Retry-After": "5"})
        try:
            async with asyncio.timeout(2.0):
                await view.position()
        except TimeoutError:
            raise Problem(503, STORE_DOWN, headers={"Retry-After": "2"}) from None
        reason = await parts.scorer.ready()
        if reason is not None:
            raise Problem(503, f"no windows are judged: {reason}", headers={"Retry-After": "2"})
        return json_answer('{"ok":true}')


async def _statuses(view: View) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    try:
        return await view.statuses(), True
    except (RedisError, OSError):
        return {kind: [] for kind in KINDS}, False


def _size(name: str) -> tuple[int | None, int | None]:
    try:
        case = load_case(name)
    except CaseError:  # judged by another version of the program, or a grid of an extra that is not here
        return None, None
    return case.n_bus, case.n_branch
