"""What the benchmark froze: a digest per part, and a check that names what changed.

Flow:    core_pools (programs, labels, readings) -> [core_manifest] -> manifest.json of a run
         gg_ray/evaluate/frozen/core-PRESET-ORIGIN.json -> check
Source:  issue "Benchmark": frozen by seed and hash; selfplay.md, section 17.2

Three hashes per part tell a cause from another: programs (what was asked), labels (what is true of it), readings (what
physics, meters and noise made of it, to three decimals of a p.u.: another processor may differ in the last bits of a
solve, and a changed seed, law or noise moves a thousand values across a rounding edge, a last bit none).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray import provenance
from gg_ray.evaluate.core_plan import CoreSizes
from gg_ray.evaluate.suites import SUITE_SEED
from gg_ray.files import write_atomic
from gg_ray.records import F64, Labels, Program

SCHEMA = 1
KINDS = ("programs", "labels", "readings")


class SuiteChanged(RuntimeError):
    """A frozen suite is no longer what it was; the message names the part and what of it changed."""


class Digest:
    """Hashes of one part while it is made; the order of the windows counts."""

    def __init__(self) -> None:
        self._hash = {kind: hashlib.sha256() for kind in KINDS}
        self._count = 0
        self._families: dict[str, int] = {}

    def add(self, programs: Sequence[Program], labels: Sequence[Labels], z: F64) -> None:
        """Take note of windows (or of one day): readings z of any shape."""
        for program, label in zip(programs, labels, strict=True):
            self._hash["programs"].update(repr(program).encode())
            truth = (label.implausible, label.disturbance, label.type, label.onset, label.end)
            self._hash["labels"].update(repr(truth).encode())
            for mask in (label.node_N, label.edge_E):
                self._hash["labels"].update(np.packbits(mask).tobytes())
            name = str(label.type)
            self._families[name] = self._families.get(name, 0) + 1
        self._hash["readings"].update(np.ascontiguousarray(np.round(z, 3) + 0.0).tobytes())
        self._count += len(programs)

    def entry(self) -> dict[str, Any]:
        """What the manifest says of the part."""
        return {
            "count": self._count, "by_type": dict(sorted(self._families.items(), key=lambda kv: int(kv[0]))),
            **{kind: h.hexdigest() for kind, h in self._hash.items()},
        }  # fmt: skip


def header(sizes: CoreSizes, origin: str) -> dict[str, Any]:
    """Seed, sizes and versions that stand behind the parts.

    Args: origin  where contexts come from: history (the GB record) or climatology
    """
    return {
        "schema": SCHEMA, "seed": SUITE_SEED, "origin": origin, "sizes": json.loads(json.dumps(asdict(sizes))),
        "versions": provenance.library_versions(), "parts": {},
    }  # fmt: skip


def frozen_name(preset: str, origin: str) -> str:
    return f"core-{preset}-{origin}.json"


def frozen(preset: str, origin: str) -> dict[str, Any] | None:
    """The manifest that was committed for a preset and a context source, None where there is none."""
    file = resources.files("gg_ray.evaluate") / "frozen" / frozen_name(preset, origin)
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


class Manifest:
    """The manifest of a run directory, held against the committed one part by part.

    Invariant: a part that is in the file has the digest of the windows that its cells were scored on.
    """

    def __init__(self, path: Path, sizes: CoreSizes, origin: str) -> None:
        """Raises: SuiteChanged if the folder holds results of another seed, other sizes or another context source."""
        self.path, self.reference = path, frozen(sizes.name, origin)
        self.content = header(sizes, origin)
        if self.reference is not None:
            _same_head(self.reference, self.content, "the frozen manifest")
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            _same_head(held, self.content, f"{path.name} of this folder")
            self.content["parts"] = held["parts"]
            for key, entry in held["parts"].items():
                self._compare(key, entry)

    def take(self, key: str, digest: Digest) -> None:
        """Check a part against the frozen one and against what this folder held, then write it down.

        Raises: SuiteChanged naming the part, what of it changed and the library versions that differ.
        """
        entry = digest.entry()
        self._compare(key, entry)
        self.content["parts"][key] = entry
        write_atomic(self.path, json.dumps(self.content, indent=1) + "\n")

    def shard(self, name: str) -> None:
        """From now on write beside the folder's manifest: another process writes that, or one of another name."""
        self.path = _shard(self.path, name)

    def adopt(self, names: Iterable[str]) -> None:
        """Take over what processes wrote beside this manifest, and remove it.

        Raises: SuiteChanged as for a part of this process.
        """
        for path in (_shard(self.path, name) for name in names):
            if path.exists():
                held = json.loads(path.read_text(encoding="utf-8"))
                _same_head(held, self.content, path.name)
                for key, entry in held["parts"].items():
                    self._compare(key, entry)
                    self.content["parts"][key] = entry
                write_atomic(self.path, json.dumps(self.content, indent=1) + "\n")
                path.unlink()

    def _compare(self, key: str, entry: Mapping[str, Any]) -> None:
        held = {"this folder": self.content["parts"].get(key)}
        if self.reference is not None:
            held["the frozen manifest"] = self.reference["parts"].get(key)
        for where, old in held.items():
            if old is not None and old != entry:
                raise SuiteChanged(self._difference(key, where, old, entry))

    def missing(self) -> list[str]:
        """Parts of the frozen manifest that this run has not made."""
        return [] if self.reference is None else sorted(set(self.reference["parts"]) - set(self.content["parts"]))

    def _difference(self, key: str, where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
        names = [name for name in ("count", "by_type", *KINDS) if old.get(name) != new[name]]
        same = [name for name in KINDS if name not in names]
        versions = self.reference["versions"] if where == "the frozen manifest" and self.reference else {}
        moved = provenance.version_differences(versions, self.content["versions"])
        cause = {
            "readings": "physics, meters or noise", "labels": "the label rule",
            "programs": "the grammar, gates or seed",
        }  # fmt: skip
        first = next((kind for kind in KINDS if kind in names), "programs")
        return (
            f"suite part {key}: {', '.join(names)} differ from {where} ({', '.join(same) or 'nothing'} the same), so"
            f" {cause[first]} changed; versions that differ: {', '.join(moved) or 'none'}. If it is meant, this is"
            " another benchmark: use a new folder, and commit its manifest.json in place of the frozen one"
        )


def _shard(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}.json")


def _same_head(held: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    for name in ("schema", "seed", "origin", "sizes"):
        if held[name] != ours[name]:
            changed = _changed(held[name], ours[name])
            raise SuiteChanged(
                f"suite: {name} differs from {where} ({changed}); results of two benchmarks do not mix: use a new"
                " folder"
            )


def _changed(old: object, new: object) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys: Iterable[str] = (key for key in new if old.get(key) != new[key])
        return ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in keys)
    return f"{old} -> {new}"
