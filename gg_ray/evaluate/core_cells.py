"""The folder of a core run: one JSON file per cell, written whole, so that a killed run goes on where it was.

Flow:    core_job (records, facts) -> [core_cells] -> core_tables, core_claims
File:    cells/KIND.CASE.PART.SCORER.json {schema, identity, digest, about, records}; cells/KIND.CASE.PART.facts.json;
         long lists of numbers are packed (core_pack)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gg_ray.evaluate.core_pack import pack, unpack
from gg_ray.evaluate.core_score import Scorer
from gg_ray.files import write_atomic

SCHEMA = 2
Kind = Literal["windows", "timelines"]


class Cells:
    """Cells and facts by name.

    Invariant: a cell counts as done only for the scorer (identity) and the windows (digest) that it was made of.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, kind: str, case: str, part: str, owner: str) -> Path:
        return self.folder / f"{kind}.{case}.{part}.{owner}.json"

    def has(self, kind: Kind, case: str, part: str, scorer: Scorer, digest: str | None) -> bool:
        """Whether a cell is there, of this scorer and of these windows; a damaged file counts as absent."""
        found = self._read(self._path(kind, case, part, scorer.key))
        return (
            found is not None
            and digest is not None
            and (found["schema"], found["identity"], found["digest"]) == (SCHEMA, scorer.identity, digest)
        )

    def write(
        self, kind: Kind, case: str, part: str, scorer: Scorer, digest: str, records: Mapping[str, Any]
    ) -> None:  # fmt: skip
        """Write one cell."""
        content = {
            "schema": SCHEMA, "identity": scorer.identity, "digest": digest, "about": dict(scorer.about),
            "records": pack(dict(records)),
        }  # fmt: skip
        write_atomic(self._path(kind, case, part, scorer.key), json.dumps(content, allow_nan=False))

    def records(self, kind: Kind, case: str, part: str, scorer: str) -> dict[str, Any] | None:
        """Records by method, None for a cell that is not there."""
        found = self._read(self._path(kind, case, part, scorer))
        return None if found is None else dict(unpack(found["records"]))

    def write_facts(self, kind: Kind, case: str, part: str, digest: str, facts: Sequence[Mapping[str, Any]]) -> None:
        """Write what is true of a part."""
        content = {"schema": SCHEMA, "digest": digest, "facts": pack([dict(fact) for fact in facts])}
        write_atomic(self._path(kind, case, part, "facts"), json.dumps(content, allow_nan=False))

    def facts(self, kind: Kind, case: str, part: str) -> list[dict[str, Any]] | None:
        """Facts of a part, None where it was not made."""
        found = self._read(self._path(kind, case, part, "facts"))
        return None if found is None else list(unpack(found["facts"]))

    def facts_digest(self, kind: Kind, case: str, part: str) -> str | None:
        """Digest of the windows that the facts belong to."""
        found = self._read(self._path(kind, case, part, "facts"))
        return None if found is None else str(found["digest"])

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return found
