"""Complete training state on disk: written whole or not at all, checked byte by byte before it is read back.

Flow:    selfplay.loop, actors.selfplay -> [checkpoint] -> runs/NAME/checkpoints/step-N/ -> resume
Source:  write aside, fsync, rename, fsync the folder; docs/adr/0006-checkpoint-format.md. No pickle is written or read.
Layout:  manifest.json (sealed by its own hash, written last), PART.json (structure), PART.safetensors (arrays),
         PART.I.bin (bytes)
Limits:  one writer per folder. Tensors come back on the CPU, detached. Writing a part copies its arrays in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from gg_ray.files import (
    MANIFEST,
    CheckpointError,
    FileEntry,
    fsync_folder,
    read_sealed,
    seal,
    verify_file,
    write_synced,
)
from gg_ray.nested import Flat, flatten, unflatten
from gg_ray.provenance import library_versions, version_differences

SCHEMA = 2
"""Version of the layout above; a reader refuses any other."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_STEP = re.compile(r"step-(\d+)(\.old)?")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What manifest.json says.

    sequence counts the saves in a folder: a run resumed from an older step then still writes the newest checkpoint.
    """

    step: int
    sequence: int
    created_utc: str
    config_hash: str
    config: Any
    versions: dict[str, str]
    parts: tuple[str, ...]
    files: dict[str, FileEntry]


# ---------------------------------------------------------------- save


def save(
    root: Path,
    step: int,
    state: Mapping[str, Any],
    *,
    config_hash: str,
    keep: int,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write `root/step-N` completely or leave no trace, then prune.

    Args:    root         the checkpoints folder; made when absent
             state        part name -> nested value (see `flatten`); a name is letters, digits, _ and -
             config_hash  of `config_hash()`; config (plain values) lets a refused resume say what differs
             keep         newest checkpoints that stay (at least 1: this one)
    Returns: the folder. A checkpoint already there for this step stays loadable until the new one is in place.
    Raises:  CheckpointError (disk full, write error, value of a foreign type); older checkpoints are then untouched.
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"step {step}, keep {keep}: step must be at least 0 and keep at least 1")
    for name in state:
        if not _NAME.fullmatch(name) or name == "manifest":
            raise CheckpointError(f"part {name!r}: use letters, digits, _ and -, and not the name manifest")
    flats = {name: flatten({name: value}) for name, value in state.items()}  # before any write: a bad type costs none
    settings = flatten(dict(config or {}))
    if settings.arrays or settings.blobs:
        raise CheckpointError("config: give plain values only; arrays and bytes belong in a part of the state")
    target = root / f"step-{step}"
    temporary = root / f".tmp-step-{step}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".tmp-*"):  # left by a killed writer
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        files: dict[str, FileEntry] = {}
        for name, flat in flats.items():
            files |= _write_part(temporary, name, flat)
        payload = {
            "schema": SCHEMA,
            "step": step,
            "sequence": 1 + max((manifest.sequence for _, manifest in _held(root)), default=0),
            "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "config_hash": config_hash,
            "config": settings.tree,
            "versions": library_versions(),
            "parts": list(flats),
            "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in files.items()},
        }
        write_synced(temporary / MANIFEST, seal(payload))
        fsync_folder(temporary)
        _move_into_place(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        if error.errno in _FULL:
            free = f"{shutil.disk_usage(root).free / 2**20:.0f} MiB free" if root.exists() else "folder not made"
            raise CheckpointError(
                f"{target}: the disk is full ({free}); free space or lower checkpoint.keep or checkpoint.replay_tail. "
                "Older checkpoints are untouched"
            ) from error
        raise CheckpointError(f"{target}: not written ({error}); older checkpoints are untouched") from error
    _prune(root, target, keep)
    return target


def _write_part(folder: Path, name: str, flat: Flat) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    if flat.arrays:
        files[f"{name}.safetensors"] = write_synced(folder / f"{name}.safetensors", safetensors.numpy.save(flat.arrays))
    for i, blob in enumerate(flat.blobs):
        files[f"{name}.{i}.bin"] = write_synced(folder / f"{name}.{i}.bin", blob)
    text = json.dumps(flat.tree[name], allow_nan=False, separators=(",", ":"))
    files[f"{name}.json"] = write_synced(folder / f"{name}.json", text.encode())
    return files


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename; what held the name waits under `.old`, which `latest` also reads, until the new folder is durable."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    try:
        os.rename(temporary, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Remove sound checkpoints beyond the newest `keep`; the rest stays: it is evidence, or another version's."""
    held = list(_held(root))
    sound = []
    for path, manifest in held:
        try:
            _verify(path, manifest, hashed=False)
        except CheckpointError:
            continue
        sound.append(path)
    for path in sound[keep:]:
        if path != newest:
            doomed = root / f".tmp-{path.name}"
            try:
                os.rename(path, doomed)
            except OSError as error:  # the new checkpoint is safe: a full folder is a lesser evil than a dead run
                _log.warning("%s: not removed (%s)", path, error)
                continue
            shutil.rmtree(doomed, ignore_errors=True)


# ---------------------------------------------------------------- load


def read_manifest(path: Path) -> Manifest:
    """Manifest of one checkpoint folder.

    Raises:  CheckpointError if it is missing, damaged or of another schema version.
    """
    payload = read_sealed(path / MANIFEST)
    if payload.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path / MANIFEST}: schema version {payload.get('schema')!r}, this code reads {SCHEMA}; "
            "use the gg-ray that wrote it"
        )
    try:
        return Manifest(
            step=int(payload["step"]),
            sequence=int(payload["sequence"]),
            created_utc=str(payload["created_utc"]),
            config_hash=str(payload["config_hash"]),
            config=unflatten(Flat(payload["config"])),
            versions=dict(payload["versions"]),
            parts=tuple(payload["parts"]),
            files={name: FileEntry(int(e["size"]), str(e["sha256"])) for name, e in payload["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: not a checkpoint manifest ({error!r})") from error


def load(path: Path, *, require: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint back after verifying size and sha256 of every file.

    Args:    path     a `step-N` folder;  require  parts that must be there: one that is missing is an error
    Returns: the state given to `save`.
    Raises:  CheckpointError naming the file (missing, truncated, damaged, other schema version) or the missing part.
    Warns in the log, once, when it was written with other versions of what decides numbers.
    """
    manifest = read_manifest(path)
    absent = sorted(set(require) - set(manifest.parts))
    if absent:
        held = ", ".join(manifest.parts)
        raise CheckpointError(f"{path}: has no part {', '.join(absent)} (it holds {held}); use another checkpoint")
    _verify(path, manifest, hashed=True)
    if changed := version_differences(manifest.versions, library_versions()):
        _log.warning("%s: written with other versions (%s); numbers may differ from there on", path, ", ".join(changed))
    return {name: _read_part(path, name, manifest) for name in manifest.parts}


def _verify(path: Path, manifest: Manifest, *, hashed: bool) -> None:
    for part in manifest.parts:
        if f"{part}.json" not in manifest.files:
            raise CheckpointError(f"{path / MANIFEST}: part {part!r} has no file {part}.json")
    for name, entry in manifest.files.items():
        verify_file(path, name, entry, hashed=hashed)


def _read_part(path: Path, name: str, manifest: Manifest) -> Any:
    flat = Flat(json.loads((path / f"{name}.json").read_bytes()))
    if f"{name}.safetensors" in manifest.files:
        flat.arrays = safetensors.numpy.load((path / f"{name}.safetensors").read_bytes())
    blobs = (f"{name}.{i}.bin" for i in range(len(manifest.files)))
    flat.blobs = [(path / blob).read_bytes() for blob in blobs if blob in manifest.files]
    return unflatten(flat)


def latest(root: Path, skipped: list[str] | None = None) -> Path | None:
    """Newest checkpoint of the folder that verifies in full, or None.

    Args:    skipped  collects the reason for each folder that was passed over; each is logged as a warning too
    """
    reasons: list[str] = []
    newest = None
    for path, manifest in _held(root, reasons):
        try:
            _verify(path, manifest, hashed=True)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        newest = path
        break
    for reason in reasons:
        _log.warning("skipped: %s", reason)
    if skipped is not None:
        skipped.extend(reasons)
    return newest


def _held(root: Path, skipped: list[str] | None = None) -> Iterator[tuple[Path, Manifest]]:
    """Checkpoints with a readable manifest, the most recently saved first."""
    found: list[tuple[int, int, Path, Manifest]] = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if not (_STEP.fullmatch(path.name) and path.is_dir()):
            continue
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            if skipped is not None:
                skipped.append(str(error))
            continue
        found.append((manifest.sequence, manifest.step, path, manifest))
    for _, _, path, manifest in sorted(found, key=lambda row: row[:3], reverse=True):
        yield path, manifest


# ---------------------------------------------------------------- settings and random states


def config_hash(config: Mapping[str, Any], ignore: Collection[str] = ()) -> str:
    """sha256 (hex) of nested settings; ignore: dotted settings that may change on resume (checkpoint.keep)."""
    text = json.dumps({key: repr(value) for key, value in _dotted(config, ignore)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def config_diff(saved: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str] = ()) -> list[str]:
    """One line for each dotted setting that differs, for `require_config`."""
    before, after = dict(_dotted(saved, ignore)), dict(_dotted(now, ignore))
    return [
        f"{key}: {before.get(key, 'absent')!r} in the checkpoint, {after.get(key, 'absent')!r} now"
        for key in sorted(before.keys() | after.keys())
        if key not in before or key not in after or repr(before[key]) != repr(after[key])
    ]


def _dotted(config: Mapping[str, Any], ignore: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in ignore:
            continue
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, ignore, f"{name}.")
        else:
            yield name, list(value) if isinstance(value, tuple) else value


def require_config(path: Path, config_hash: str, diff: Sequence[str] = ()) -> None:
    """Refuse to resume with other settings than the checkpoint was made with.

    Args:    diff  lines of `config_diff(read_manifest(path).config, now)`: they tell the user what to change back
    Raises:  CheckpointError with those lines.
    """
    saved = read_manifest(path).config_hash
    if saved != config_hash:
        what = "; ".join(diff) or f"hash {saved[:12]} in the checkpoint, {config_hash[:12]} now"
        raise CheckpointError(f"{path}: made with other settings ({what}). Set them back, or start a new run")


def random_states(generators: Mapping[str, np.random.Generator]) -> dict[str, Any]:
    """All random states of the process: torch (CPU, each GPU), Python, numpy's global one, the given generators."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
        "python": random.getstate(),  # third-party code draws from this one and the next
        "numpy": tuple(np.random.get_state(legacy=True)),  # noqa: NPY002 - not ours, theirs
        "generators": {
            k: {"state": rng.bit_generator.state, "spawned": _spawned(rng)} for k, rng in generators.items()
        },
    }


def restore_random_states(state: Mapping[str, Any], generators: Mapping[str, np.random.Generator]) -> None:
    """Put back what `random_states` took; the generators change in place.

    Args:    generators  same names as saved, each made from the same seed: `spawn` continues where it was, too
    Raises:  CheckpointError if a name is missing on either side, or a generator is of another kind or has spawned more.
    """
    saved = state["generators"]
    if saved.keys() != generators.keys():
        odd = ", ".join(sorted(saved.keys() ^ generators.keys()))
        raise CheckpointError(f"random generators differ between checkpoint and run: {odd}; use the same components")
    for name, rng in generators.items():
        kind, have = saved[name]["state"]["bit_generator"], type(rng.bit_generator).__name__
        ahead = _spawned(rng) - saved[name]["spawned"]
        if kind != have or ahead > 0:
            raise CheckpointError(
                f"random generator {name!r}: saved from {kind}, is {have}, {max(ahead, 0)} spawns ahead; use a new one"
            )
    for name, rng in generators.items():
        rng.bit_generator.state = saved[name]["state"]
        # the state leaves out how many children were spawned: a resumed run would hand out old streams again
        if behind := saved[name]["spawned"] - _spawned(rng):
            rng.bit_generator.seed_seq.spawn(behind)  # type: ignore[attr-defined]
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 - see above


def _spawned(rng: np.random.Generator) -> int:
    return int(getattr(rng.bit_generator.seed_seq, "n_children_spawned", 0))
