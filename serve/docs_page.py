"""GET /docs: the OpenAPI document as a page without a script: no foreign server, no exception in the CSP.

Flow:    OpenAPI -> [docs_page] -> HTML
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from html import escape
from typing import Any


def page(api: dict[str, Any], base: str) -> str:
    """HTML of an OpenAPI document; base is the address that the examples name."""
    body = "\n".join(
        _operation(path, method, op, base) for path, way in api["paths"].items() for method, op in way.items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(api['info']['title'])}</title>"
        '<meta name=viewport content="width=device-width">'
        f"<h1>{escape(api['info']['title'])}</h1><p>{escape(api['info']['description'])}</p>"
        f'<p><a href="/openapi.json">openapi.json</a></p>\n{body}</html>'
    )


def _operation(path: str, method: str, operation: dict[str, Any], base: str) -> str:
    parameters = "".join(
        f"<li><code>{escape(p['name'])}</code> in {p['in']}: <code>{escape(json.dumps(p['schema']))}</code></li>"
        for p in operation.get("parameters", ())
    )
    answers = "".join(
        f"<li>{status}: {escape(said.get('description', ''))}</li>" for status, said in operation["responses"].items()
    )
    example = " ".join(curl(path, method, operation, base))
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
        f"<ul>{parameters}</ul><p>Answers</p><ul>{answers}</ul><pre>{escape(example)}</pre>"
    )


def curl(path: str, method: str, operation: dict[str, Any], base: str) -> Iterator[str]:
    """Words of a command that asks a route; $KEY stands for a key, and may be empty where none are configured."""
    yield "curl -sS"
    if method != "get":
        yield f"-X {method.upper()}"
    if operation.get("security"):
        yield '-H "X-API-Key: $KEY"'
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in content:
        body = json.dumps(content["example"], separators=(",", ":"))
        yield f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    yield shlex.quote(base + path)
