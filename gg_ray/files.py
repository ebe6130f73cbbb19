"""Files that are on disk or are not: synced, measured, sealed by their own hash; and refusals in one line.

Flow:    checkpoint, registry -> [files] -> manifest.json and what it lists; report, figures, windows -> [files]
Source:  docs/adr/0006-checkpoint-format.md (manifest, writing, reading)
Limits:  a hash finds accidents, not an attacker who rewrites the manifest too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_SEAL = "manifest_sha256"
REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE,
)  # fmt: skip
"""What a file system says when it will not: the user can do something about it, unlike any other OSError."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or trusted; the message names the file, what is wrong and the way out."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and sha256 (hex) that a file must have."""

    size: int
    sha256: str


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: a rename is only safe after this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> FileEntry:
    """Write and fsync one new file; returns the size and hash that were meant: a bad disk is noticed on reading."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


def write_atomic(path: Path, data: bytes | str) -> Path:
    """Replace a file as a whole: after a crash or on a full disk it is the old one or the new one, never a part.

    The folder is made when absent. Text is written as UTF-8.
    Raises:  OSError of the kind that the system gave, naming the file; nothing is left beside it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # of a killed process that had this number
        write_synced(part, data.encode() if isinstance(data, str) else data)
        os.replace(part, path)
        fsync_folder(path.parent)
    except OSError as error:  # a failed write carries no name, and the temporary one would mislead
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def measure(path: Path) -> FileEntry:
    """Size and sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
        return FileEntry(file.tell(), digest.hexdigest())


def seal(payload: Mapping[str, Any]) -> bytes:
    """Canonical JSON of payload and of its own sha256: a changed bit anywhere in the text is found by `read_sealed`."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    whole = {**payload, _SEAL: hashlib.sha256(text.encode()).hexdigest()}
    return (json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def read_sealed(path: Path) -> dict[str, Any]:
    """Payload of a sealed JSON file.  Raises: CheckpointError if it is missing, torn or altered."""
    try:
        data = path.read_bytes()
        payload = json.loads(data)
        payload.pop(_SEAL)
        intact = seal(payload) == data
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; the folder was not written completely") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged (not a sealed JSON file)") from error
    if not intact:
        raise CheckpointError(f"{path}: damaged (its text does not match its own sha256)")
    return dict(payload)


def verify_file(folder: Path, name: str, entry: FileEntry, *, hashed: bool = True) -> None:
    """Compare one file with its manifest entry; hashed=False compares the size only.

    Raises:  CheckpointError naming the file: missing, truncated, too long, damaged, or outside the folder.
    """
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise CheckpointError(f"{folder / MANIFEST}: names {name!r}, which lies outside the folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, but the manifest lists it")
    size = path.stat().st_size
    if size != entry.size:
        what = "truncated" if size < entry.size else "too long"
        raise CheckpointError(f"{path}: {what}, {size} bytes instead of {entry.size}")
    if hashed and measure(path).sha256 != entry.sha256:
        raise CheckpointError(f"{path}: damaged, its {size} bytes do not match the sha256 of the manifest")


def refusal(error: OSError) -> str:
    """One line for the user: which file, what the system said, what helps."""
    if error.errno not in REFUSALS:
        return str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "free space there, or write elsewhere (--out)" if full else "choose a place you may write to (--out)"
    return f"{error.filename or 'a file'}: {error.strerror}; {way_out}"
