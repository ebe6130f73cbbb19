"""Who asks, and whether they may: keys, page sessions, and this machine's own user where no keys are configured.

Flow:    request -> [Identify] -> scope["gg.caller"] -> serve.limits (whose bucket), [require] (scope, CSRF) -> route
Source:  live.md, section 5
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.auth import LOCAL, KeyRing, Principal
from serve.buckets import Buckets
from serve.problems import Problem, answer
from serve.session import COOKIE, CSRF_HEADER, Session, Sessions
from serve.settings import LOOPBACK

FAILURES_PER_S, FAILURES_AT_ONCE = 0.1, 5
"""Wrong keys that one address may show."""
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="grid-guardian"'}
_NEEDS_KEY = "this address needs a key: send Authorization: Bearer KEY or X-API-Key: KEY, or sign in on the page"
_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks and how they showed it: key, session, open (no keys configured) or nothing."""

    principal: Principal | None
    via: str
    address: str
    session: Session | None = None

    @property
    def bucket(self) -> str:
        """Whose token bucket a request is charged to."""
        return f"key {self.principal.key_id}" if self.principal and self.via != "open" else f"address {self.address}"


class Identify:
    """ASGI middleware: finds the caller; answers 401 to a wrong key and 429 to a run of them."""

    def __init__(
        self, app: ASGIApp, ring: KeyRing, sessions: Sessions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._ring, self._sessions = app, ring, sessions
        self._failures = Buckets(FAILURES_PER_S, FAILURES_AT_ONCE, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["gg.verify"] = self.verify
            try:
                scope["gg.caller"] = await self._caller(scope)
            except Problem as problem:
                await answer(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def verify(self, key: str, address: str) -> Principal:
        """Whose key this is.  Raises: Problem 401 for a wrong one, 429 after too many of them from an address."""
        found = self._ring.remembered(key)
        if found is not None:
            return found
        wait_s = self._failures.wait_s(address)
        if wait_s > 0:
            raise Problem(
                429, "too many wrong keys from this address; wait and check the key",
                headers={"Retry-After": str(int(wait_s) + 1)},
            )  # fmt: skip
        self._failures.take(address)  # before the hash is computed: attempts at the same time count too
        found = await self._ring.verify(key)
        if found is None:
            raise Problem(401, "this key is not known here (gg-ray keys list)", headers=_CHALLENGE)
        self._failures.give_back(address)
        return found

    async def _caller(self, scope: Scope) -> Caller:
        headers, client = Headers(scope=scope), scope.get("client")
        address = client[0] if client else "local"
        if not self._ring.required:
            if address == "local" or _is_loopback(address):
                return Caller(LOCAL if _names_loopback(headers.get("host", "")) else None, "open", address)
            return Caller(None, "nothing", address)
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (bearer.strip() if kind.lower() == "bearer" else "")
        if key:
            return Caller(await self.verify(key, address), "key", address)
        session = self._sessions.read(_cookie(headers))
        if session is not None:
            return Caller(session.principal, "session", address, session)
        return Caller(None, "nothing", address)


def require(scope: str | None) -> Any:
    """Dependency that admits callers with a scope (None: anybody) and checks that a POST comes from our own page.

    The security schemes are declared for OpenAPI only; Identify has read the headers before.
    """

    async def check(request: Request) -> Caller:
        caller: Caller = request.scope["gg.caller"]
        if scope is not None and caller.principal is None:
            raise Problem(401, _NEEDS_KEY, headers=_CHALLENGE)
        if scope is not None and caller.principal is not None and not caller.principal.may(scope):
            raise Problem(403, f"the key {caller.principal.name} lacks the scope {scope}; it has"
                               f" {', '.join(sorted(caller.principal.scopes))}")  # fmt: skip
        if request.method not in _SAFE and caller.via != "key":
            from_our_page(request, caller)
        return caller

    if scope is None:
        return Depends(check)

    async def documented(
        request: Request,
        _bearer: Annotated[Any, Depends(HTTPBearer(auto_error=False, scheme_name="bearer"))] = None,
        _header: Annotated[Any, Depends(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="header"))] = None,
        _cookie: Annotated[Any, Depends(APIKeyCookie(name=COOKIE, auto_error=False, scheme_name="session"))] = None,
    ) -> Caller:
        return await check(request)

    return Depends(documented)


def from_our_page(request: Request, caller: Caller) -> None:
    """Refuse a POST that a foreign page made a browser send.

    Raises: Problem 403.
    """
    origin = request.headers.get("origin")
    foreign = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    if foreign or (origin is not None and urlsplit(origin).netloc != request.headers.get("host")):
        raise Problem(403, "a page of another site may not send this")
    if caller.session is not None:
        shown = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(shown.encode(), caller.session.csrf.encode()):
            raise Problem(403, f"the header {CSRF_HEADER} must hold the csrf of GET /v1/session")


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _names_loopback(host: str) -> bool:
    """Whether a Host header means this machine: a foreign name that resolves here is DNS rebinding."""
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        return False


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
