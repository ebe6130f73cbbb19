"""Answers that could not be read, kept as they came beside the reason, under a bound.

Flow:    elexon.insights, elexon.iris -> [failed] -> a folder that a person looks at
Files:   <stream>-<UTC time>-<sha256, 12 hex>.raw and .txt; the oldest go first when the bound is reached
"""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path

from gg_ray.files import write_atomic

log = logging.getLogger(__name__)


class FailedFolder:
    """Invariant: at most `files` answers and `largest_bytes` in the folder after each keep()."""

    def __init__(self, root: Path, *, files: int = 100, largest_bytes: int = 50 * 2**20) -> None:
        self.root, self.files, self.largest_bytes = root, files, largest_bytes

    def keep(self, stream: str, body: bytes, reason: str, when: datetime) -> Path | None:
        """Writes body and reason; None when the disk refuses, which is logged: it must not hide the first failure."""
        digest = hashlib.sha256(body).hexdigest()[:12]  # one bad answer that comes every minute fills one name a second
        name = f"{stream}-{when.astimezone(UTC):%Y%m%dT%H%M%SZ}-{digest}"
        path = self.root / f"{name}.raw"
        try:
            write_atomic(path, body[: self.largest_bytes // 2])
            write_atomic(self.root / f"{name}.txt", f"{reason}\n{len(body)} bytes\n")
            self._trim()
        except OSError as error:
            log.error("%s: could not be kept: %s", path, error)
            return None
        return path

    def _trim(self) -> None:
        held = sorted(self.root.glob("*.raw"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        total = sum(path.stat().st_size for path in held)
        for count, path in enumerate(held):
            if len(held) - count <= self.files and total <= self.largest_bytes:
                break
            total -= path.stat().st_size
            path.unlink()
            path.with_suffix(".txt").unlink(missing_ok=True)
