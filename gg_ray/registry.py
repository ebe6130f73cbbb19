"""Trained models as immutable versions, with aliases that say which one is served.

Flow:    selfplay.loop, cli promote -> [registry] -> serve.app (alias "champion"), evaluate
Source:  gated promotion and hot swap: docs/operations.md; files and sealed manifest: docs/adr/0006-checkpoint-format.md
Layout:  ROOT/models/NAME/vNNNN/{model.safetensors, model_card.md, manifest.json}
         ROOT/models/NAME/aliases/{champion, challenger, control}
"""

from __future__ import annotations

import difflib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from torch import Tensor

from gg_ray.files import (
    MANIFEST,
    CheckpointError,
    FileEntry,
    fsync_folder,
    read_sealed,
    seal,
    verify_file,
    write_atomic,
    write_synced,
)
from gg_ray.nested import flatten
from gg_ray.provenance import library_versions

SCHEMA = 1
ALIASES = ("champion", "challenger", "control")
"""champion answers in production; challenger is scored beside it; control is the last uniform control of the run."""
WEIGHTS = "model.safetensors"
CARD = "model_card.md"
_VERSION = re.compile(r"v0*(\d+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LOCK_TIMEOUT_S = 30.0


class RegistryError(RuntimeError):
    """A model is unknown, damaged or cannot be stored; the message names it and the way out."""


class PromotionRefused(RegistryError):
    """The gate found reasons against a promotion; the alias still points where it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a reader of the model must know; the registry writes it as model_card.md."""

    summary: str
    trained_on: Sequence[str]
    """Grids and data, one line each."""
    held_out_families: Sequence[str]
    held_out_grids: Sequence[str]
    rows: Sequence[Mapping[str, float | int | str | None]]
    """Result rows with a `method` column; pass the random-score and untrained rows too: they are the floor."""
    limits: Sequence[str]
    attribution: Sequence[str]
    """Sources of grids and data, with their licences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable model of the registry."""

    name: str
    number: int
    path: Path
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        """What verdicts carry, for example `verifier/v3`."""
        return f"{self.name}/v{self.number}"

    @property
    def architecture(self) -> dict[str, Any]:
        """Settings that rebuild the network."""
        return dict(self.manifest["architecture"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Held-out figures at registration."""
        return dict(self.manifest["metrics"])


Gate = Callable[[Version, Version | None], Sequence[str]]
"""(candidate, current holder of the alias or None) -> reasons against the promotion; empty means go."""


class Registry:
    """Versions of one model name under a folder.

    Invariant: a version folder is complete and never changes after it appears; an alias file always names a version
    that verified when it was written. Writers take a file lock; readers need none.
    """

    def __init__(self, root: Path, name: str = "verifier") -> None:
        if not _NAME.fullmatch(name):
            raise RegistryError(f"model name {name!r}: use letters, digits, _ and -")
        self.name = name
        self.root = root
        self.folder = root / "models" / name

    # ------------------------------------------------------------ write

    def register(
        self,
        weights: Mapping[str, Tensor | NDArray[Any]],
        *,
        architecture: Mapping[str, Any],
        feature_schema: int,
        metrics: Mapping[str, float | int | str | None],
        run: str,
        seed: int,
        commit: str,
        card: ModelCard | str,
        parent: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Version:
        """Store a model as the next version.

        Args:    weights         state_dict of the network; finite, no bfloat16
                 card            what the card says, or its whole text
                 architecture    plain settings that rebuild it;  feature_schema  version of the input features
                 run, seed, commit, parent  where it came from (parent: id or alias of the version it was tuned from)
                 extra           plain values the server needs beside the weights (calibration, thresholds)
        Returns: the version. Nothing is left behind when it fails.
        Raises:  RegistryError naming the weight that is not finite or of a foreign type, or the disk's complaint.
        """
        flat = _arrays(weights)

        def text(version_id: str, payload: Mapping[str, Any]) -> str:
            return card if isinstance(card, str) else _render(card, version_id, payload, flat)

        with self._lock():
            origin = self.resolve(parent).id if parent else None
            number = 1 + max((version.number for version in self._folders()), default=0)
            version_id = f"{self.name}/v{number}"
            payload: dict[str, Any] = {
                "schema": SCHEMA,
                "name": self.name,
                "version": number,
                "architecture": dict(architecture),
                "feature_schema": feature_schema,
                "metrics": dict(metrics),
                "run": run,
                "seed": seed,
                "commit": commit,
                "parent": origin,
                "extra": dict(extra or {}),
                "created_utc": _now(),
                "versions": library_versions(),
            }
            temporary = self.folder / f".tmp-v{number:04d}"
            try:
                shutil.rmtree(temporary, ignore_errors=True)  # we hold the lock: only a killed writer can have left it
                temporary.mkdir(parents=True)
                files = {
                    WEIGHTS: write_synced(temporary / WEIGHTS, safetensors.numpy.save(flat)),
                    CARD: write_synced(temporary / CARD, text(version_id, payload).encode()),
                }
                payload["files"] = {key: {"size": entry.size, "sha256": entry.sha256} for key, entry in files.items()}
                write_synced(temporary / MANIFEST, seal(payload))
                for file in temporary.iterdir():
                    file.chmod(0o444)  # against slips; the manifest is what finds a change
                fsync_folder(temporary)
                target = self.folder / f"v{number:04d}"
                os.rename(temporary, target)
                fsync_folder(self.folder)
            except (OSError, ValueError, TypeError) as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise RegistryError(f"{version_id}: not stored ({error}); no version was added") from error
        return self._open(target)

    def promote(self, version: Version | str, alias: str, *, gate: Gate | None = None) -> Version:
        """Point an alias at a version, after verifying its files and asking the gate.

        Returns: the version now behind the alias. The one before goes on the alias' stack for `rollback`.
        Raises:  PromotionRefused with the gate's reasons; RegistryError if the model is damaged or the alias unknown.
        """
        self._check_alias(alias)
        with self._lock():
            candidate = self.resolve(version) if isinstance(version, str) else version
            self.verify(candidate)
            state = self._alias(alias)
            current = self._numbered(state["version"]) if state else None
            if reasons := list(gate(candidate, current)) if gate else []:
                raise PromotionRefused(f"{candidate.id} is not promoted to {alias}: {'; '.join(reasons)}")
            if current is None or current.number != candidate.number:
                stack = [*state["previous"], current.number] if state and current else []
                self._write_alias(alias, candidate.number, stack, "promote", state)
        return candidate

    def rollback(self, alias: str) -> Version:
        """Point an alias back at the version it had before the last promotion.

        Raises:  RegistryError if there is none, or it no longer verifies (the alias then stays).
        """
        self._check_alias(alias)
        with self._lock():
            state = self._alias(alias)
            if not state or not state["previous"]:
                raise RegistryError(f"{self.name}: {alias} has no earlier version to go back to; promote one by name")
            version = self._numbered(state["previous"][-1])
            self.verify(version)
            self._write_alias(alias, version.number, state["previous"][:-1], "rollback", state)
        return version

    # ------------------------------------------------------------ read

    def list(self) -> Sequence[Version]:
        """All versions, oldest first.  Raises: RegistryError naming one whose manifest is damaged."""
        return [self._open(version.path) for version in self._folders()]

    def aliases(self) -> dict[str, str]:
        """Alias -> version id, for those that are set."""
        states = {alias: self._alias(alias) for alias in ALIASES}
        return {alias: f"{self.name}/v{state['version']}" for alias, state in states.items() if state}

    def history(self, alias: str) -> Sequence[Mapping[str, Any]]:
        """Changes of an alias, oldest first: version, action (promote, rollback), at_utc."""
        self._check_alias(alias)
        state = self._alias(alias)
        return tuple(state["history"]) if state else ()

    def resolve(self, ref: str) -> Version:
        """The version behind `champion`, `challenger`, `control`, `latest`, `v3` or `NAME/v3`.

        Raises:  RegistryError with the nearest known name.
        """
        bare = ref.removeprefix(f"{self.name}/")
        folders = self._folders()
        if bare == "latest" and folders:
            return self._open(folders[-1].path)
        if bare in ALIASES and (state := self._alias(bare)):
            return self._numbered(state["version"])
        if match := _VERSION.fullmatch(bare):
            for version in folders:
                if version.number == int(match[1]):
                    return self._open(version.path)
        if not folders:
            raise RegistryError(
                f"{ref!r}: no {self.name} is registered in {self.folder}; train one with `gg-ray train`"
            )
        known = [*self.aliases(), "latest", *(f"v{version.number}" for version in folders)]
        near = difflib.get_close_matches(bare, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if bare in ALIASES:
            hint = "; it is not set: use `gg-ray promote`"
        raise RegistryError(f"no {self.name} {ref!r}{hint} (known: {', '.join(known)})")

    def load_weights(self, version: Version | str) -> dict[str, NDArray[Any]]:
        """Arrays of a model, by name, after its files were verified.  Raises: RegistryError naming a damaged file."""
        found = self.resolve(version) if isinstance(version, str) else version
        self.verify(found)
        return dict(safetensors.numpy.load((found.path / WEIGHTS).read_bytes()))

    def card(self, version: Version) -> str:
        """Text of the model card.  Raises: RegistryError as verify."""
        self.verify(version)
        return (version.path / CARD).read_text(encoding="utf-8")

    def verify(self, version: Version) -> None:
        """Check manifest, weights and card of a version.  Raises: RegistryError naming model and file."""
        fresh = self._open(version.path)
        try:
            for name in (WEIGHTS, CARD):
                entry = fresh.manifest["files"][name]
                verify_file(version.path, name, FileEntry(entry["size"], entry["sha256"]))
        except (CheckpointError, KeyError, TypeError) as error:
            raise RegistryError(
                f"{version.id} is refused: {error}. Use another version, or register it again"
            ) from error

    # ------------------------------------------------------------ files

    def _folders(self) -> Sequence[Version]:
        """Version folders by number, manifests unread."""
        found = [
            Version(name=self.name, number=int(match[1]), path=path, manifest={})
            for path in (self.folder.iterdir() if self.folder.is_dir() else ())
            if path.is_dir() and (match := _VERSION.fullmatch(path.name))
        ]
        return sorted(found, key=lambda version: version.number)

    def _numbered(self, number: int) -> Version:
        return self._open(self.folder / f"v{number:04d}")

    def _open(self, path: Path) -> Version:
        number = int(path.name[1:])
        model = f"{self.name}/v{number}"
        try:
            manifest = read_sealed(path / MANIFEST)
        except (CheckpointError, OSError) as error:
            raise RegistryError(f"{model} is refused: {error}. Use another version, or register it again") from error
        if manifest.get("schema") != SCHEMA:
            raise RegistryError(f"{model}: manifest schema {manifest.get('schema')!r}, this code reads {SCHEMA}")
        if (manifest.get("name"), manifest.get("version")) != (self.name, number):
            raise RegistryError(
                f"{model} is refused: its manifest is that of {manifest.get('name')}/v{manifest.get('version')}"
            )
        return Version(name=self.name, number=number, path=path, manifest=manifest)

    def _check_alias(self, alias: str) -> None:
        if alias not in ALIASES:
            near = difflib.get_close_matches(alias, ALIASES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RegistryError(f"alias {alias!r} does not exist{hint} (choose from {', '.join(ALIASES)})")

    def _alias(self, alias: str) -> dict[str, Any] | None:
        path = self.folder / "aliases" / alias
        if not path.exists():
            return None
        try:
            return read_sealed(path)
        except CheckpointError as error:
            raise RegistryError(f"alias {alias} of {self.name}: {error}. Remove the file and promote again") from error

    def _write_alias(
        self, alias: str, number: int, stack: Sequence[int], action: str, old: Mapping[str, Any] | None
    ) -> None:
        """One small file holds pointer, stack and history, so that a single rename changes all three."""
        path = self.folder / "aliases" / alias
        history = [*(old["history"] if old else ()), {"version": number, "action": action, "at_utc": _now()}]
        payload = {"alias": alias, "version": number, "previous": list(stack), "history": history}
        try:
            write_atomic(path, seal(payload))
        except OSError as error:
            raise RegistryError(f"alias {alias} of {self.name}: not changed ({error})") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Exclusive among processes; the kernel frees it when its holder dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        with open(self.folder / ".lock", "a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RegistryError(
                            f"{self.folder}: locked by another process for {_LOCK_TIMEOUT_S:.0f} s; find and end it"
                        ) from error
                    time.sleep(0.02)
            yield


def _arrays(weights: Mapping[str, Tensor | NDArray[Any]]) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = {}
    for name, value in weights.items():
        try:
            flat = flatten(value)
        except CheckpointError as error:
            raise RegistryError(f"weight {name!r}: {error}") from error
        if len(flat.arrays) != 1 or flat.tree["!"] == "bf16" or name == "__metadata__":
            raise RegistryError(f"weight {name!r}: give a tensor or array; a bfloat16 one as float32")
        (array,) = flat.arrays.values()
        if not np.isfinite(array).all():
            raise RegistryError(f"weight {name!r} holds nan or inf; this model would never give a verdict")
        out[name] = array
    if not out:
        raise RegistryError("no weights given; pass the network's state_dict")
    return out


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _render(card: ModelCard, version_id: str, payload: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """The model card as Markdown; without random and untrained rows it says that the figures have no floor."""
    parameters = sum(array.size for array in arrays.values())

    def bullets(items: Sequence[str]) -> list[str]:
        return [f"- {item}" for item in items] or ["- none stated"]

    lines = [
        f"# Model card: {version_id}",
        "",
        card.summary,
        "",
        f"- {parameters:,} parameters and buffers, feature schema {payload['feature_schema']}",
        f"- run {payload['run']}, seed {payload['seed']}, commit {payload['commit']}",
        f"- parent {payload['parent'] or 'none'}",
        f"- registered {payload['created_utc']}",
        *("", "## Trained on", "", *bullets(card.trained_on)),
        *("", "## Held out of training", ""),
        f"- families: {', '.join(card.held_out_families) or 'none'}",
        f"- grids: {', '.join(card.held_out_grids) or 'none'}",
        *("", "## Results", "", *_table(card.rows)),
    ]
    methods = {str(row.get("method")) for row in card.rows}
    if missing := [floor for floor in ("random", "untrained") if floor not in methods]:
        lines += ["", f"No row for {' and '.join(missing)} was given: these figures have no floor to be compared with."]
    lines += ["", "## Limits", "", *bullets(card.limits), "", "## Attribution", "", *bullets(card.attribution), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, float | int | str | None]]) -> Sequence[str]:
    if not rows:
        return ["No results were given."]
    columns = list(dict.fromkeys(["method", *(key for row in rows for key in row)]))

    def cell(value: float | int | str | None) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    body = ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *body]
