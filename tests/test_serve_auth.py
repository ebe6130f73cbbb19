"""serve.auth and its command: hashes in a file of the owner's, keys that work until they are revoked."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest
from edge import CHEAP, keys_file

from gg_ray.config import ConfigError
from serve.auth import KeyRing, add_key, read_keys, revoke_key
from serve.keys_command import keys_command
from serve.session import LASTS_S, Sessions
from serve.settings import HttpSettings, LiveSettings


def test_the_file_holds_hashes_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, ann=["read"], bob=["score", "operate"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    entries, session = read_keys(path)
    for key in made.values():
        secret = key.split("_", 2)[2]
        assert secret not in text
        assert secret not in repr(entries)
    assert entries[0].hash not in repr(entries[0])
    assert entries[0].salt != entries[1].salt
    assert [entry.scopes for entry in entries] == [("read",), ("score", "operate")]
    add_key(path, "eve", ["admin"], CHEAP)
    assert read_keys(path)[1] == session, "sessions outlive a new key"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(path)
    with pytest.raises(ConfigError, match="chmod 600"):
        LiveSettings(http=HttpSettings(keys_file=path)).preflight()


def test_a_key_is_found_right_or_wrong_and_revoked_at_once(tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, ann=["read"], bob=["admin"])

    async def story() -> None:
        ring = KeyRing(path)
        found = await ring.verify(made["ann"])
        assert found is not None
        assert (found.name, found.may("read"), found.may("score")) == ("ann", True, False)
        bob = await ring.verify(made["bob"])
        assert bob is not None
        assert bob.may("score")
        for wrong in (
            made["ann"] + "x",
            made["ann"].replace("gg_", "gg-"),
            "",
            "gg_" + "0" * 12 + "_" + "a" * 43,
            "é" * 300,
        ):
            assert await ring.verify(wrong) is None
            assert ring.remembered(wrong) is None
        mixed = made["ann"][:16] + made["bob"][16:]
        assert await ring.verify(mixed) is None
        assert ring.remembered(made["ann"]) == found
        revoke_key(path, "ann")
        assert ring.remembered(made["ann"]) is None
        assert await ring.verify(made["ann"]) is None
        assert await ring.verify(made["bob"]) == bob

    asyncio.run(story())


def test_a_file_that_cannot_be_read_admits_nobody(tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, ann=["read"])

    async def story() -> None:
        ring = KeyRing(path)
        assert await ring.verify(made["ann"]) is not None
        path.write_text("{torn")
        assert ring.remembered(made["ann"]) is None
        assert await ring.verify(made["ann"]) is None
        path.unlink()
        assert await ring.verify(made["ann"]) is None
        assert ring.required

    asyncio.run(story())


def test_a_session_ends_by_time_with_its_key_and_when_altered(tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, ann=["read"])
    now = [1000.0]

    async def story() -> None:
        ring = KeyRing(path)
        principal = await ring.verify(made["ann"])
        assert principal is not None
        sessions = Sessions(ring, lambda: now[0])
        cookie, opened = sessions.open(principal)
        assert sessions.read(cookie) == opened
        assert Sessions(KeyRing(path), lambda: now[0]).read(cookie) == opened, "another replica takes it"
        payload, _, signature = cookie.partition(".")
        for altered in (
            "",
            ".",
            "x",
            payload,
            f"{payload}.",
            f"{payload}x.{signature}",
            f"{payload}.{opened.csrf}",
            "é.é",
        ):
            assert sessions.read(altered) is None
        now[0] += LASTS_S + 1
        assert sessions.read(cookie) is None
        now[0] -= LASTS_S
        revoke_key(path, "ann")
        assert sessions.read(cookie) is None

    asyncio.run(story())


def test_the_command_makes_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "keys.json"
    assert keys_command("add", path, "page", ["read", "operate"]) == 0
    key = capsys.readouterr().out.strip()
    assert asyncio.run(KeyRing(path).verify(key)) is not None
    assert keys_command("list", path) == 0
    shown = capsys.readouterr().out
    assert "page  read,operate" in shown
    assert key.split("_", 2)[2] not in shown
    refused: list[tuple[str, str | None, list[str], str]] = [
        ("add", "page", ["read"], "exists"), ("add", "b", ["root"], "'root' is unknown"),
        ("add", "b", [], "needs a scope"), ("add", "a b", ["read"], "letters"),
        ("add", None, ["read"], "give the name"),
        ("revoke", "x", [], "no key named"), ("show", None, [], "choose from"),
    ]  # fmt: skip
    for action, name, scopes, words in refused:
        with pytest.raises(ConfigError, match=words):
            keys_command(action, path, name, scopes)
    assert keys_command("revoke", path, "page") == 0
    assert json.loads(path.read_text())["keys"] == []
