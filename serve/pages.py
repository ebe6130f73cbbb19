"""The page and its files: fixed headers that let a browser run nothing but them, and answers by ETag.

Flow:    serve/dashboard -> [pages] -> GET /, GET /static/…
Source:  live.md, section 5 (CSP, no CDN)
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import Problem

DASHBOARD = Path(__file__).parent / "dashboard"
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
    " object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png",
    ".ico": "image/x-icon", ".woff2": "font/woff2", ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}  # fmt: skip
"""Files that are given out, by suffix; others of the folder are not."""


class SecurityHeaders:
    """ASGI middleware: SECURITY on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, guarded if scope["type"] == "http" else send)


class Files:
    """Files of a folder, read once and again when they change."""

    def __init__(self, folder: Path = DASHBOARD) -> None:
        self._folder = folder.resolve()
        self._held: dict[Path, tuple[int, bytes, str]] = {}

    def answer(self, name: str, headers: Headers) -> Response:
        """A file, or 304 for who has it.  Raises: Problem 404 for what is not there or not given out."""
        path = (self._folder / name).resolve() if len(name) < 200 and "\0" not in name else self._folder
        kind = _TYPES.get(path.suffix)
        if kind is None or not path.is_relative_to(self._folder) or not path.is_file():
            raise Problem(404, "no such file")
        written = path.stat().st_mtime_ns
        if self._held.get(path, (None,))[0] != written:
            data = path.read_bytes()
            self._held[path] = (written, data, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
        _, data, tag = self._held[path]
        told = {"ETag": tag, "Cache-Control": "no-cache"}
        if tag in [one.strip().removeprefix("W/") for one in headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=told)
        return Response(data, media_type=kind, headers=told)
