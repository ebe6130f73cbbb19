"""Metrics of a run: one JSON line per log call, TensorBoard, or nothing; and the comparison of two runs.

Flow:    selfplay.loop, actors.selfplay, evaluate -> [tracking] -> runs/NAME/metrics.jsonl, runs/NAME/tensorboard/
Source:  resume truncates what the lost part of a run had logged (docs/metrics.md explains every name)
Names:   a metric that depends on the clock ends in _s, _per_s or _utc, or starts with time/; all others must repeat
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Metrics = Mapping[str, float | int | str]
_RESERVED = ("step", "kind", "nonfinite")


class TrackingError(ValueError):
    """A metric or a metrics file is not usable; the message names it."""


class Tracker(Protocol):
    """Where numbers go. The loop calls it and never asks which one it is."""

    def log(self, step: int, metrics: Metrics, kind: str = "train") -> None:
        """Record metrics of one step; kind says which part of the run they describe (train, evaluate, system)."""

    def close(self) -> None:
        """Flush and release the file; a second call does nothing."""


class NullTracker:
    """Forgets everything: no `if tracker is not None` in the loop."""

    def log(self, step: int, metrics: Metrics, kind: str = "train") -> None:
        return None

    def close(self) -> None:
        return None


class MultiTracker:
    """Passes every call to several trackers, in order."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def log(self, step: int, metrics: Metrics, kind: str = "train") -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics, kind)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


class JsonlTracker:
    """Appends `{"kind", "step", metrics…}` lines with sorted keys.

    Invariant: the file is whole lines; each reaches the operating system before `log` returns, so that a killed run
    keeps them. nan and inf become null, are counted in the line's `nonfinite` and summed in `self.nonfinite`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nonfinite = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._rewrite(read_jsonl(path))  # drops the torn last line of a killed writer
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()

    def log(self, step: int, metrics: Metrics, kind: str = "train") -> None:
        """Write one line.  Raises: TrackingError for a reserved name or a value that is not a number or text."""
        row: dict[str, Any] = {"step": int(step), "kind": kind}
        nonfinite = 0
        for name, value in metrics.items():
            if name in _RESERVED:
                raise TrackingError(f"metric {name!r}: the name is taken by the line itself ({', '.join(_RESERVED)})")
            plain = value.item() if isinstance(value, np.generic) else value
            if not isinstance(plain, float | int | str):
                raise TrackingError(f"metric {name!r}: {type(value).__name__} is not a number or text; use float(...)")
            if isinstance(plain, float) and not math.isfinite(plain):
                plain, nonfinite = None, nonfinite + 1
            row[name] = plain
        if nonfinite:
            row["nonfinite"] = nonfinite
            self.nonfinite += nonfinite
        self._file.write(_line(row))
        self._file.flush()

    def truncate_after(self, step: int) -> int:
        """Drop the lines of later steps: a resumed run logs them again.  Returns: how many were dropped."""
        self._file.close()
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row["step"] <= step]
        self._rewrite(kept)
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
        return len(rows) - len(kept)

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self.nonfinite = sum(row.get("nonfinite", 0) for row in rows)


class TensorBoardTracker:
    """Scalars and texts for TensorBoard, tagged `kind/name`; imported only when one is made."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """purge_step hides what an earlier, lost part of the run had logged from that step on."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, step: int, metrics: Metrics, kind: str = "train") -> None:
        for name, value in metrics.items():
            if isinstance(value, str):
                self._writer.add_text(f"{kind}/{name}", value, step)
            else:
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def is_timing(name: str) -> bool:
    """Whether a metric depends on the clock, so that two equal runs may differ in it."""
    return name.startswith("time/") or name.endswith(("_s", "_utc"))  # _s covers _per_s


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file. A last line without its line feed is dropped: its writer was killed.

    Raises:  TrackingError naming the file and the number of a line that is not a row.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TrackingError(f"{path}: line {number} is not JSON ({error}); remove that line") from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise TrackingError(f"{path}: line {number} is not an object with a whole-number step; remove that line")
        rows.append(row)
    return rows


def compare(a: Path | Sequence[Mapping[str, Any]], b: Path | Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences between two runs, exactly, timings left out; empty means that they are the same run.

    Args:    a, b  metrics files, or rows of `read_jsonl`
    Returns: one line each, for example `line 3 (train, step 20): loss 0.5 != 0.25`.
    """
    rows_a = read_jsonl(a) if isinstance(a, Path) else a
    rows_b = read_jsonl(b) if isinstance(b, Path) else b
    out = [f"{len(rows_a)} lines != {len(rows_b)} lines"] if len(rows_a) != len(rows_b) else []
    for number, (left, right) in enumerate(zip(rows_a, rows_b, strict=False), start=1):
        where = f"line {number} ({left.get('kind')}, step {left.get('step')})"
        for name in sorted(left.keys() | right.keys()):
            one, other = left.get(name, "absent"), right.get(name, "absent")
            if not is_timing(name) and one != other:
                out.append(f"{where}: {name} {one} != {other}")
    return out
