"""The Redis user of deploy/: what the live path does is allowed, and nothing else, on a real server."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge import put_event
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ResponseError
from redis_process import redis_process
from test_serve_store import GROUP, TOPIC, alarm, nothing, write

from serve import keys
from serve.embedded import redis_binary
from serve.epochs import _EPOCH
from serve.operators import Operators
from serve.records import dump
from serve.rediscache import RedisCache
from serve.redislimits import RedisBucket
from serve.store import Store
from serve.view import View

FILE = Path(__file__).resolve().parent.parent / "deploy" / "redis-users.acl.example"
PASSWORD = "only-for-this-test"
RULES = FILE.read_text(encoding="utf-8").replace("PASSWORD_SHA256", hashlib.sha256(PASSWORD.encode()).hexdigest())


@pytest.fixture(scope="module")
def socket_file() -> Iterator[Path]:
    with redis_process() as (path, _):
        admin = Redis(unix_socket_path=str(path))
        for line in RULES.splitlines():
            _, name, *rules = line.split()
            if name != "default":  # off, we could not look into it any more
                admin.execute_command("ACL", "SETUSER", name, *rules)
        yield path


@pytest.fixture
def admin(socket_file: Path) -> Iterator[Redis]:
    """Afterwards: nothing that the test did was denied."""
    with Redis(unix_socket_path=str(socket_file)) as client:
        client.flushall()
        client.execute_command("ACL", "LOG", "RESET")
        yield client


@pytest.fixture
def gg(socket_file: Path, admin: Redis) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(socket_file), username="gg", password=PASSWORD) as client:
        yield client


def denied(admin: Redis) -> list[str]:
    return sorted({entry[b"object"].decode() for entry in map(_pairs, admin.execute_command("ACL", "LOG"))})


def _pairs(entry: object) -> dict[bytes, bytes]:
    if isinstance(entry, dict):
        return {k.encode() if isinstance(k, str) else k: v for k, v in entry.items()}
    flat = list(entry)  # type: ignore[call-overload]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_the_file_is_one_that_redis_reads(tmp_path: Path) -> None:
    """A server with a wrong line in it ends at once; one that reads it serves until it is told to end."""
    users = tmp_path / "users.acl"
    users.write_text(RULES)
    command = [
        redis_binary(),
        "--port",
        "0",
        "--unixsocket",
        str(tmp_path / "s"),
        "--save",
        "",
        "--aclfile",
        str(users),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        assert server.stdout is not None
        said: list[str] = []
        for line in server.stdout:
            said.append(line)
            if "accept connections" in line:
                break
        ready = "accept connections" in "".join(said[-1:])
        server.terminate()
    assert ready, "".join(said[-5:])


def test_the_scan_loop_may_do_what_it_does(gg: Redis, admin: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ALARM_CAP", 1)
    store = Store(gg, GROUP)
    assert store.begin(TOPIC, 0).position == -1
    answers = store.apply([write(0, opens=True), nothing(1), write(2, alarms=(alarm("a", 2), alarm("b", 3)))])
    assert answers == ["written", "moved", "written"]
    assert admin.zcard(keys.ALARMS) == 1, "the older incident left, with its hash"
    assert store.states(["north"]) == {"north": "state-2"}
    assert store.begin(TOPIC, 0).position == 3
    store.say("consumer", "c", {"name": "c"})
    assert gg.eval(_EPOCH, 1, keys.EPOCH, TOPIC, 4) == 5
    assert denied(admin) == []


def test_the_edge_and_the_feeds_may_do_what_they_do(socket_file: Path, gg: Redis, admin: Redis) -> None:
    Store(gg, GROUP).begin(TOPIC, 0)
    record = {"id": "north-1-4", "grid": "north", "state": "open", "last_ms": 5}
    admin.hset(keys.alarm("north-1-4"), mapping={"json": dump(record), "state": "open"})
    admin.zadd(keys.ALARMS, {"north-1-4": 5})
    admin.hset(keys.GRIDS, "north", dump({"case": "case14", "step_s": 60.0, "origin": "simulated"}))
    admin.set(keys.map_of("north"), "{}")
    admin.xadd(keys.verdicts("north"), {"json": "{}"})
    admin.set(keys.status("feed", "f"), dump({"name": "f"}))
    first = put_event(admin)

    async def whole() -> None:
        redis = AsyncRedis(unix_socket_path=str(socket_file), username="gg", password=PASSWORD)
        view = View(redis)
        assert await view.grids()
        assert await view.grid("north")
        assert await view.newest(["north"])
        assert await view.history("north", 5)
        assert await view.map("north") == "{}"
        assert (await view.statuses())["feed"]
        assert await view.position() == first
        assert await view.wait("0-0", 1)
        operators = Operators(redis, view)
        for action in ("ack", "unack", "shelve", "unshelve"):
            await operators.act(action, "north-1-4", "me")
        events, reset = await view.events(first, 10)
        assert (len(events), reset) == (4, False)
        assert [one["id"] for one in await view.alarms()] == ["north-1-4"]
        cache = RedisCache(redis, timeout_s=10)
        await cache.set("a", b"b")
        assert await cache.get("a") == b"b"
        assert await RedisBucket(redis, "data.elexon.co.uk", timeout_s=10).turn() == 0.0
        await redis.aclose()

    asyncio.run(whole())
    assert denied(admin) == []


FORBIDDEN = [
    *[("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SHUTDOWN",), ("MONITOR",)],
    *[("GET", "others"), ("SET", "others", "1"), ("SCRIPT", "FLUSH"), ("CLIENT", "LIST"), ("DEBUG", "SLEEP", "0")],
    *[("EVAL", "return redis.call('GET', 'others')", "0"), ("REPLICAOF", "127.0.0.1", "1"), ("SAVE",)],
    ("RENAME", "gg:a", "b"),
]  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
def test_nothing_else_is_allowed(gg: Redis, admin: Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(ResponseError, match=r"(?i)no permission|can't access|not allowed|ACL"):
        gg.execute_command(*command)
    assert admin.ping()


def test_without_a_password_nothing_is_said() -> None:
    assert RULES.splitlines()[0] == "user default off"
    assert "nopass" not in RULES
    assert "allkeys" not in RULES
    assert "~gg:*" in RULES.split()
