"""The HTTP edge as one ASGI app: routes, sessions, the page, and around them identity, limits and observation.

Flow:    settings, Redis, scorer -> [make_app] -> uvicorn, or Ray Serve (@serve.ingress with a function that calls it)
Source:  docs/live.md (contract), docs/adr/0023-http-edge.md

    observe → security headers → identify → limits → routes
"""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Annotated, Any

from fastapi import FastAPI, Request
from redis.asyncio import Redis
from starlette.responses import HTMLResponse, Response

from serve import answers
from serve.access import Caller, Identify, require
from serve.auth import SCOPES, KeyRing
from serve.docs_page import page
from serve.events import Hub
from serve.examples import WINDOW_SCHEMA, WINDOWS_SCHEMA
from serve.limits import Limits
from serve.observe import Metrics, Observe
from serve.operators import Operators
from serve.pages import Files, SecurityHeaders
from serve.problems import Problem, ProblemDetails, documented, handle_problems
from serve.records import dump
from serve.routes import Layout, Parts, add_routes, json_answer
from serve.scoring import Scorer
from serve.session import Session, Sessions, set_cookie
from serve.settings import LiveSettings
from serve.view import View


def make_app(settings: LiveSettings, redis: Redis, scorer: Scorer, layout: Layout | None = None) -> FastAPI:
    """The app. Its client of Redis and its scorer are opened and closed by the caller.

    `app.state.hub.end()` ends the pages' streams: whoever stops the server otherwise than by SIGTERM or SIGINT calls it
    first, since servers wait for open answers.
    Raises: ConfigError as LiveSettings.preflight.
    """
    settings.preflight()
    view, metrics, ring = View(redis), Metrics(), KeyRing(settings.http.keys_file)
    hub, sessions = Hub(view, metrics, settings.http.max_streams), Sessions(ring)

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        with _ended_by_signals(hub):
            yield
        await hub.close()

    app = FastAPI(
        title="Grid Guardian", version=_version(), lifespan=alive, docs_url=None, redoc_url=None, openapi_url=None,
        description="Verdicts on scans of electricity grids: normal, disturbance, implausible.",
    )  # fmt: skip
    app.state.hub = hub
    handle_problems(app)
    add_routes(app, Parts(
        settings=settings.http, view=view, operators=Operators(redis, view), scorer=scorer, hub=hub, metrics=metrics,
        ring=ring, layout=layout,
    ))  # fmt: skip
    _sessions(app, ring, sessions)
    _pages(app, ring.required)
    app.add_middleware(Limits, settings=settings.http)
    app.add_middleware(Identify, ring=ring, sessions=sessions)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Observe, metrics=metrics)
    return app


def _sessions(app: FastAPI, ring: KeyRing, sessions: Sessions) -> None:
    shape: dict[int | str, dict[str, Any]] = {200: {"model": answers.SessionAnswer}}

    @app.get("/v1/session", tags=["session"], responses={**shape, **documented(401, 429)})
    async def session(caller: Annotated[Caller, require(None)]) -> Response:
        """Who this page is for the server, and the token of its POSTs."""
        return json_answer(_told(ring, caller, caller.session))

    @app.post("/login", tags=["session"], responses={**shape, **documented(401, 403, 408, 409, 413, 422, 429, 503)})
    async def login(request: Request, caller: Annotated[Caller, require(None)], body: answers.Login) -> Response:
        """Open a session with a key; it ends with the key, at logout, or after twelve hours."""
        if not ring.required:
            raise Problem(409, "no keys are configured: there is nothing to sign in to")
        principal = await request.scope["gg.verify"](body.key, caller.address)
        value, opened = sessions.open(principal)
        answer = json_answer(_told(ring, Caller(principal, "session", caller.address), opened))
        answer.headers["Set-Cookie"] = set_cookie(value, _is_tls(request))
        return answer

    @app.post("/logout", tags=["session"], responses={**shape, **documented(401, 403, 408, 413, 429, 503)})
    async def logout(request: Request, caller: Annotated[Caller, require(None)]) -> Response:
        """End the page's session."""
        answer = json_answer(_told(ring, Caller(None, "nothing", caller.address), None))
        answer.headers["Set-Cookie"] = set_cookie("", _is_tls(request))
        return answer


def _told(ring: KeyRing, caller: Caller, session: Session | None) -> str:
    who = caller.principal
    scopes = [] if who is None else [scope for scope in SCOPES if who.may(scope)]
    return dump({
        "auth": ring.required, "name": who.name if who else "", "scopes": scopes,
        "csrf": session.csrf if session else "",
    })  # fmt: skip


def _is_tls(request: Request) -> bool:
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


def _pages(app: FastAPI, secured: bool) -> None:
    files = Files()

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    async def shell(request: Request) -> Response:
        return files.answer("index.html", request.headers)

    @app.get("/static/{path:path}", include_in_schema=False)
    @app.head("/static/{path:path}", include_in_schema=False)
    async def static(request: Request, path: str) -> Response:
        return files.answer(path, request.headers)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(
            dump(_openapi(app, secured)), media_type="application/json", headers={"Cache-Control": "no-cache"}
        )

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(page(_openapi(app, secured), str(request.base_url).rstrip("/")))


def _openapi(app: FastAPI, secured: bool) -> dict[str, Any]:
    """FastAPI's document with the shapes that it cannot know: bodies it does not parse, problems."""
    if app.openapi_schema is None:
        api = app.openapi()
        shapes = api["components"]["schemas"]
        problem = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        shapes |= {
            **problem.pop("$defs"),
            "ProblemDetails": problem,
            "Window": WINDOW_SCHEMA,
            "Windows": WINDOWS_SCHEMA,
        }
        for unused in ("HTTPValidationError", "ValidationError"):
            shapes.pop(unused, None)
        if not secured:  # nothing is asked for here, and a document that asks would be no truth
            api["components"].pop("securitySchemes", None)
            for way in api["paths"].values():
                for operation in way.values():
                    operation.pop("security", None)
    return dict(app.openapi())


@contextmanager
def _ended_by_signals(hub: Hub) -> Iterator[None]:
    """Close the hub as soon as a server is told to stop: uvicorn waits for open answers before it ends the app."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        hub.end()
        if callable(own := before[number]):
            own(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.getsignal(number)
        signal.signal(number, end)
    try:
        yield
    finally:
        for kept, own in before.items():
            signal.signal(kept, own)


def _version() -> str:
    try:
        return version("gg-ray")
    except PackageNotFoundError:
        return "0"
