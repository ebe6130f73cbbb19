"""API keys: salted scrypt hashes in one file that only its owner reads; what a key may do is its scopes.

Flow:    gg-ray keys -> keys file -> [auth] -> serve.access (who asks), serve.session (a page's cookie)
Source:  live.md, section 5; RFC 7914 (scrypt)

A key reads gg_<id>_<secret>. The id finds the entry, so that one hash is computed whoever asks, and a dummy one where
there is no entry: an answer's time does not tell which ids exist. Only hashes are kept; a lost key is replaced.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gg_ray.config import ConfigError
from serve.settings import secret_file

log = logging.getLogger(__name__)

SCOPES = ("score", "read", "operate", "admin")
"""admin may do everything; the others are independent of each other."""
_KEY = re.compile(r"gg_([0-9a-f]{12})_([\w-]{20,100})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_COST = {"n": 2**14, "r": 8, "p": 1}
"""16 MiB and about 50 ms for each guess."""
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    name: str
    scopes: frozenset[str]
    key_id: str

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Principal("local", frozenset(SCOPES), "")
"""Everybody on this machine where no keys are configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """One line of the keys file."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: str
    salt: str = field(repr=False)
    hash: str = field(repr=False)
    n: int
    r: int
    p: int

    @property
    def principal(self) -> Principal:
        return Principal(self.name, frozenset(self.scopes), self.id)


def _hash(secret: str, salt: str, n: int, r: int, p: int) -> str:
    return hashlib.scrypt(secret.encode(), salt=bytes.fromhex(salt), n=n, r=r, p=p, maxmem=2**26, dklen=32).hex()


def read_keys(path: Path) -> tuple[list[KeyEntry], str]:
    """Entries of a keys file, and the secret that signs sessions.

    Raises: ConfigError for a file that is missing, readable by others or not a keys file.
    """
    text = secret_file(path)
    try:
        held = json.loads(text)
        entries = [KeyEntry(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in held["keys"]]
        return entries, str(held["session"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of gg-ray keys ({type(error).__name__}); make it with it") from None


def add_key(path: Path, name: str, scopes: Sequence[str], cost: dict[str, int] = _COST) -> str:
    """Make a key and keep its hash; the file is made with mode 0600 where there is none.

    Returns: the key, which nothing can show again.
    Raises:  ConfigError for a bad or taken name, or an unknown scope.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"key name {name!r}: letters, digits, and _ . - after the first, at most 63")
    strange = [scope for scope in scopes if scope not in SCOPES]
    if strange or not scopes:
        raise ConfigError(f"scope {strange[0]!r} is unknown" if strange else "a key needs a scope") from None
    with _exclusive(path):
        entries, session = read_keys(path) if path.exists() else ([], secrets.token_hex(32))
        if any(entry.name == name for entry in entries):
            raise ConfigError(f"a key named {name!r} exists; revoke it first, or take another name")
        secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
        made = KeyEntry(
            id=secrets.token_hex(6), name=name, scopes=tuple(dict.fromkeys(scopes)), salt=salt,
            created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", hash=_hash(secret, salt, **cost), **cost,
        )  # fmt: skip
        _write(path, [*entries, made], session)
    return f"gg_{made.id}_{secret}"


def revoke_key(path: Path, name: str) -> None:
    """Take a key out by its name; running servers refuse it, and its sessions, from then on.

    Raises: ConfigError for a name that is not there.
    """
    with _exclusive(path):
        entries, session = read_keys(path)
        left = [entry for entry in entries if entry.name != name]
        if len(left) == len(entries):
            raise ConfigError(f"no key named {name!r}; there are: {', '.join(e.name for e in entries) or 'none'}")
        _write(path, left, session)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, entries: Sequence[KeyEntry], session: str) -> None:
    names = KeyEntry.__dataclass_fields__
    body = {"session": session, "keys": [{name: getattr(entry, name) for name in names} for entry in entries]}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp gives mode 0600
    with os.fdopen(handle, "w") as file:
        json.dump(body, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class KeyRing:
    """The keys of a running server; read again when the file changes. A file that cannot be read admits nobody.

    A key that was found right is remembered by an HMAC under a secret of this process, so that one request in many
    pays for scrypt. At most two hashes are computed at once, whoever asks.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._entries: dict[str, KeyEntry] = {}
        self._session = secrets.token_hex(32)
        self._pepper = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, str] = OrderedDict()
        self._hashing = asyncio.Semaphore(2)
        self._nobody = KeyEntry(id="", name="", scopes=(), created="", salt=secrets.token_hex(16), hash="", **_COST)

    @property
    def required(self) -> bool:
        """Whether a key is needed at all."""
        return self.path is not None

    @property
    def session_secret(self) -> bytes:
        self._refresh()
        return self._session.encode()

    def by_id(self, key_id: str) -> Principal | None:
        """Whose key this is, None when it was revoked."""
        self._refresh()
        entry = self._entries.get(key_id)
        return None if entry is None else entry.principal

    def remembered(self, key: str) -> Principal | None:
        """Whose key this is, if it was found right before and stands."""
        self._refresh()
        key_id = self._right.get(self._mark(key))
        return None if key_id is None else self.by_id(key_id)

    async def verify(self, key: str) -> Principal | None:
        """Whose key this is, None for a wrong one. Costs one scrypt either way."""
        self._refresh()
        parts = _KEY.fullmatch(key)
        key_id, secret = parts.groups() if parts else ("", key[:200])
        entry = self._entries.get(key_id, self._nobody)
        async with self._hashing:
            found = await asyncio.to_thread(_hash, secret, entry.salt, entry.n, entry.r, entry.p)
        if not hmac.compare_digest(found, entry.hash.ljust(len(found))):
            return None
        self._right[self._mark(key)] = entry.id
        if len(self._right) > _REMEMBERED:
            self._right.popitem(last=False)
        return self.by_id(entry.id)

    def _mark(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.encode("utf-8", "surrogatepass"), "sha256")

    def _refresh(self) -> None:
        if self.path is None:
            return
        try:
            found: Any = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._right.clear()
        try:
            entries, self._session = read_keys(self.path)
        except ConfigError as error:
            log.error("nobody is admitted: %s", error)
            entries = []
        self._entries = {entry.id: entry for entry in entries}
