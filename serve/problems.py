"""Every error of the HTTP edge as problem JSON: what is wrong and the way out, nothing of the inside.

Flow:    routes, limits, access -> [problems] -> application/problem+json
Source:  RFC 9457
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gg_ray.windows_io import WindowFileError
from serve.trace import TRACEPARENT, trace_id
from serve.view import NotHere

MEDIA_TYPE = "application/problem+json"
LONGEST_DETAIL = 600
"""Characters; what was sent may be quoted in a message and be as long as a body."""
STORE_DOWN = "the store of verdicts does not answer"


class Problem(Exception):
    """An answer other than success.

    Args: detail  one line that names field, value and way out;  headers  such as Retry-After
          errors  for 422: {where, message} of each field that is wrong
    """

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.detail, self.headers, self.errors = status, detail, dict(headers or {}), errors


class FieldError(BaseModel):
    """One field that is wrong."""

    where: str
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    trace: str
    """Trace id to quote when asking for help: log lines carry it."""
    errors: list[FieldError] | None = None


def answer(problem: Problem) -> Response:
    """The response of a problem. A type of about:blank says that the title is the status' own phrase."""
    detail = problem.detail
    if len(detail) > LONGEST_DETAIL:
        detail = detail[: LONGEST_DETAIL - 1] + "…"
    body: dict[str, Any] = {
        "type": "about:blank", "title": HTTPStatus(problem.status).phrase, "status": problem.status,
        "detail": detail, "trace": trace_id(TRACEPARENT.get()),
    }  # fmt: skip
    if problem.errors is not None:
        body["errors"] = problem.errors
    # bytes that are no UTF-8 may be quoted; they must not end the answer
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(text, problem.status, {"Cache-Control": "no-store", **problem.headers}, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route for these statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def handle_problems(app: FastAPI) -> None:
    """Answer every exception that has a meaning for the caller; the others are serve.observe's (500)."""

    @app.exception_handler(Problem)
    async def ours(_: Request, error: Problem) -> Response:
        return answer(error)

    @app.exception_handler(WindowFileError)
    async def window(_: Request, error: WindowFileError) -> Response:
        return answer(Problem(422, str(error)))

    @app.exception_handler(NotHere)
    async def absent(_: Request, error: NotHere) -> Response:
        return answer(Problem(404, str(error)))

    @app.exception_handler(RedisError)
    async def store(_: Request, error: RedisError) -> Response:
        return answer(Problem(503, STORE_DOWN, headers={"Retry-After": "2"}))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return answer(Problem(error.status_code, _TEXTS.get(error.status_code, ""), headers=error.headers))

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> Response:
        found = [{"where": ".".join(map(str, e["loc"])), "message": str(e["msg"])[:200]} for e in error.errors()[:20]]
        first = found[0] if found else {"where": "request", "message": "not valid"}
        return answer(Problem(422, f"{first['where']}: {first['message']}", errors=found))


_TEXTS = {404: "no such address; GET /docs lists them", 405: "this address does not take that method"}
