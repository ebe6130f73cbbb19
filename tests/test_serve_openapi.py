"""The OpenAPI document tells the truth: schemathesis asks what it says, and its curl examples work as printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from edge import edge, fill
from redis import Redis
from redis_process import redis_process

from serve.docs_page import curl

schemathesis = pytest.importorskip("schemathesis")
positive_data_acceptance = pytest.importorskip("schemathesis.specs.openapi.checks").positive_data_acceptance
LAYOUT = {
    "case": "case14", "base_mva": 100.0, "f0_hz": 50.0, "geographic": False,
    "buses": [{"name": "1", "x": 0.5, "y": 0.5, "kv": 135.0, "kind": "gen", "region": "0"}],
    "branches": [{"name": "1-2", "from": 0, "to": 0, "transformer": False, "rate_mva": None}],
}  # fmt: skip
NAMED = {"grid": "north", "id": "north-1-4"}
"""Values of path parameters with which routes answer 200."""


@pytest.fixture(scope="module")
def socket_file() -> Iterator[Path]:
    with redis_process() as (path, _), Redis(unix_socket_path=str(path)) as client:
        fill(client)
        yield path


@pytest.fixture(scope="module")
def api(socket_file: Path) -> dict[str, Any]:
    async def story() -> Any:
        async with edge(socket_file) as (client, _):
            return (await client.get("/openapi.json")).json()

    return dict(asyncio.run(story()))


SERVER = """
import sys, uvicorn
sys.path.insert(0, sys.argv[3])
from edge import Judge
from redis.asyncio import Redis
from serve.app import make_app
from serve.settings import HttpSettings, LiveSettings
settings = LiveSettings(http=HttpSettings(rate_per_s=1e6, burst=10**6))
app = make_app(settings, Redis(unix_socket_path=sys.argv[1]), Judge(), lambda case: LAYOUT)
uvicorn.run(app, fd=int(sys.argv[2]), log_level="error")
""".replace("LAYOUT", repr(LAYOUT))


@pytest.fixture(scope="module")
def base(socket_file: Path) -> Iterator[str]:
    """Address of a uvicorn of the app: neither curl nor schemathesis asks an app in this process."""
    root = Path(__file__).resolve().parent.parent
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        command = [sys.executable, "-c", SERVER, str(socket_file), str(listener.fileno()), str(root / "tests")]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=root, env=environment)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:  # the listener is closed here: a server that ended refuses connections instead of leaving them to wait
        yield address
    finally:
        server.kill()
        server.wait()


def test_every_answer_is_one_that_the_document_names(base: str, api: dict[str, Any]) -> None:
    """A few examples of each operation, valid and not, through every check of schemathesis; the stream never ends."""
    schema = schemathesis.openapi.from_dict(api)
    settings = hypothesis.settings(
        max_examples=6, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    asked: dict[str, list[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/v1/stream":
            continue

        def ask(case: Any) -> None:
            answer = case.call(base_url=base, timeout=30)
            # a window may satisfy the schema and yet name no grid, or fewer readings than meters
            free = [positive_data_acceptance] if case.operation.path == "/v1/score" else []
            case.validate_response(answer, excluded_checks=free)
            asked.setdefault(case.operation.label, []).append(answer.status_code)

        settings(hypothesis.given(case=operation.as_strategy())(ask))()
    assert len(asked) >= 15
    assert {label for label, seen in asked.items() if 500 in seen} == set()


def test_answers_have_the_shapes_that_the_document_gives(socket_file: Path, api: dict[str, Any]) -> None:
    import jsonschema

    async def story() -> None:
        async with edge(socket_file, layout=lambda case: LAYOUT) as (client, _):
            for path, way in api["paths"].items():
                content = way.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
                if "application/json" not in content:
                    continue
                answer = await client.get(path.format(**NAMED))
                assert answer.status_code == 200, path
                shape = {**content["application/json"]["schema"], "components": api["components"]}
                jsonschema.validate(answer.json(), shape)

    asyncio.run(story())


EXAMPLES = (
    ("/healthz", "get"), ("/v1/score", "post"), ("/v1/alarms/{id}/{action}", "post"), ("/v1/grids", "get"),
    ("/v1/grids/{grid}/verdicts", "get"), ("/v1/session", "get"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "method"), EXAMPLES)
def test_examples_work_as_they_are_printed(path: str, method: str, base: str, api: dict[str, Any]) -> None:
    line = " ".join(curl(path, method, api["paths"][path][method], base))
    line = line.replace("{id}", "north-1-4").replace("{action}", "ack").replace("{grid}", "north")
    done = subprocess.run(["bash", "-c", f"{line} --fail --max-time 60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stderr)
    assert json.loads(done.stdout)


def test_the_lines_of_the_documentation_work_as_they_stand(base: str, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "live.md").read_text(encoding="utf-8")
    [block] = [found for found in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "curl" in found]
    assert block.count("curl -sS ") == 5
    script = block.replace("http://127.0.0.1:8000", base).replace("curl -sS", "curl -sS --fail --max-time 60")
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '{"verdicts":[{"case":"case14"' in done.stdout
