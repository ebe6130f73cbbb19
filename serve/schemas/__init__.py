"""The registry of message schemas: numbered files, read again when an unknown number comes.

Flow:    serve/schemas/registry.json -> [schemas] -> serve.wire
Source:  live.md, section 1 (schema): compatibility is checked in CI; an unknown id with the registry down is tried
         again, with it up is a dead letter

A schema file, once committed, is not changed. A new version of a name keeps every field with its type and adds
nullable ones only, so that old messages can be read as new ones (`incompatible`, run by the tests on all files).
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

ARROW, JSON = 1, 2
"""Ids of the schemas that this program writes."""
HOME = Path(__file__).parent
RETRY_S = 5.0
_TYPES = {
    "string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "list<int32>": pa.list_(pa.int32()),
    "list<uint8>": pa.list_(pa.uint8()), "list<float64>": pa.list_(pa.float64()),
    "map<string, float64>": pa.map_(pa.string(), pa.float64()),
    "map<string, string>": pa.map_(pa.string(), pa.string()),
}  # fmt: skip


class RegistryDown(RuntimeError):
    """The registry cannot be read, so an unknown schema id may be a new one: try the message again later."""


class SchemaRegistry:
    """Forms of the schemas by number."""

    def __init__(self, path: Path = HOME / "registry.json", clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._known: dict[int, str] = {}
        self._read_at = -RETRY_S

    @classmethod
    @functools.cache
    def packaged(cls) -> SchemaRegistry:
        """The one that comes with the package."""
        return cls()

    def form(self, number: int) -> str | None:
        """arrow or json (or what a newer registry knows); None for a number that the registry does not have.

        Raises: RegistryDown for an unknown number while the registry cannot be read.
        """
        if number not in self._known and self._clock() - self._read_at >= RETRY_S:
            try:
                entries = json.loads(self.path.read_text())
                self._known = {int(key): str(entry["form"]) for key, entry in entries.items()}
                self._read_at = self._clock()
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise RegistryDown(f"schema registry {self.path.name}: {error}") from None
        return self._known.get(number)


def schema(file: str) -> dict[str, Any]:
    """One schema file."""
    loaded: dict[str, Any] = json.loads((HOME / file).read_text())
    return loaded


@functools.cache
def arrow_schema() -> pa.Schema:
    """The Arrow schema of a scan."""
    return pa.schema([
        pa.field(field["name"], _TYPES[field["type"]], nullable=field["nullable"])
        for field in schema("scan-v1.json")["fields"]
    ])  # fmt: skip


def incompatible(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why messages of an old version cannot be read as the new one; empty where they can."""
    before = {field["name"]: field for field in old["fields"]}
    after = {field["name"]: field for field in new["fields"]}
    out = [f"{name} is gone" for name in before if name not in after]
    out += [
        f"{name} was {before[name]['type']}, is {after[name]['type']}"
        for name in before if name in after and before[name]["type"] != after[name]["type"]
    ]  # fmt: skip
    out += [
        f"{name} may not be null any more"
        for name in before if name in after and before[name]["nullable"] and not after[name]["nullable"]
    ]  # fmt: skip
    return out + [
        f"{name} is new and not nullable" for name in after if name not in before and not after[name]["nullable"]
    ]
