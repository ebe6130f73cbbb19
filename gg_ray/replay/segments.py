"""Payload: how it is held in memory (objects or columns) and how it is written (checked Arrow segments).

Flow:    executor, gates -> table -> [segments: ObjectStore | ColumnStore] -> table.sample -> learner
         table.state_dict -> [segments: encode_*] -> checkpoint -> [decode_*] -> table.load_state_dict
Source:  Arrow IPC file format; ADR 0005. File = 64-byte header (magic, schema version, kind, length, blake2b of all
         the rest) + Arrow IPC file. No pickle: arrays are raw bytes with shape and dtype beside them.
Shapes:  K items; ragged arrays keep their own shape per row
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gg_ray.records import Event, Experience, Labels, Program
from gg_ray.replay.sumtree import I64, Where

SCHEMA_VERSION = 2
"""Raise on any change of columns or meaning; other versions are refused, never guessed."""
_HEADER = struct.Struct("<8s I 4s Q 32s 8x")
_MAGIC = b"GGSEGMT\n"
_ARRAYS = ("node_TNF", "edge_TEF", "xhat_N2", "states_SN2", "meas_N2", "sigma_N2", "param_E3", "jac_NJ")
_LABEL_ARRAYS = ("node_N", "edge_E")
_SCALARS = {
    "case": pa.string(), "plan_id": pa.int64(), "pair": pa.int64(), "source": pa.string(), "d_eff": pa.float64(),
    "p_star": pa.float64(), "p_bar": pa.float64(), "learnability": pa.float64(), "version": pa.int64(),
}  # fmt: skip
_LABEL_SCALARS = {
    "implausible": pa.bool_(), "disturbance": pa.bool_(), "severity": pa.float64(), "type": pa.int64(),
    "onset": pa.int64(), "end": pa.int64(),
}  # fmt: skip

Compression = Literal["lz4", "zstd"]
Array = NDArray[Any]
ItemT = TypeVar("ItemT")
BatchT = TypeVar("BatchT")


class SegmentError(ValueError):
    """A segment cannot be written or read; the message names the file, the reason and the way out."""


class Store(Protocol[BatchT]):
    """Payload slots behind a ReplayTable: it owns what it holds and hands out copies or immutable references."""

    capacity: int

    def sizes(self, items: BatchT) -> I64:
        """Payload bytes of each item, [K]. Raises if the items do not fit the store."""

    def own(self, items: BatchT) -> BatchT:
        """The items with all memory owned by this process, ready for `put`."""

    def put(self, where: Where, items: BatchT) -> None:
        """Write owned items into K slots."""

    def get(self, slots: I64) -> BatchT:
        """Items of K slots, in that order."""

    def drop(self, slots: I64) -> None:
        """Release the memory of these slots."""

    def dump(self, slots: I64) -> bytes:
        """Items of these slots as one checked segment."""

    def parse(self, data: bytes, name: str) -> BatchT:
        """Inverse of `dump`; `name` is used in errors."""


# ------------------------------------------------------------------------------------------------ in memory


def own_array(array: Array) -> Array:
    """The array itself if it owns writable memory, else a copy.

    A view from `ray.get` is read-only and pins the whole object in the object store while it lives (ray #8227).
    """
    return array if array.flags.owndata and array.flags.writeable else np.array(array, order="C")


def own_experience(item: Experience) -> Experience:
    """The same experience with every array owned (see own_array); arrays inside `extra` included."""
    label_arrays: dict[str, Any] = {f: own_array(getattr(item.labels, f)) for f in _LABEL_ARRAYS}
    arrays: dict[str, Any] = {f: own_array(getattr(item, f)) for f in _ARRAYS}
    extra = {k: own_array(v) if isinstance(v, np.ndarray) else v for k, v in item.extra.items()}
    return dataclasses.replace(item, labels=dataclasses.replace(item.labels, **label_arrays), extra=extra, **arrays)


def _item_bytes(item: Any) -> int:
    return int(item.nbytes)


class ObjectStore(Generic[ItemT]):
    """Ragged items, one Python object per slot.

    Invariant: a held item has been through `copy_item` once, on the way in; readers share it and must not write to it.
    """

    def __init__(
        self,
        capacity: int,
        *,
        copy_item: Callable[[ItemT], ItemT],
        encode: Callable[[Sequence[ItemT]], bytes],
        decode: Callable[[bytes, str], list[ItemT]],
        item_bytes: Callable[[ItemT], int] = _item_bytes,
    ) -> None:
        self.capacity = capacity
        self._slots = np.full(capacity, None, dtype=object)
        self._copy_item = copy_item
        self._encode = encode
        self._decode = decode
        self._item_bytes = item_bytes

    def sizes(self, items: Sequence[ItemT]) -> I64:
        """Payload bytes of each item, [K]."""
        return np.fromiter(map(self._item_bytes, items), dtype=np.int64, count=len(items))

    def own(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """Items after `copy_item`."""
        return [self._copy_item(item) for item in items]

    def put(self, where: Where, items: Sequence[ItemT]) -> None:
        """Write K items; the boxes keep numpy from looking into items that are sequences themselves."""
        boxes = np.empty(len(items), dtype=object)
        for i, item in enumerate(items):
            boxes[i] = item
        self._slots[where] = boxes

    def get(self, slots: I64) -> Sequence[ItemT]:
        """Items of the slots, by reference."""
        return list(self._slots[slots])

    def drop(self, slots: I64) -> None:
        """Forget the items, so that their memory can go."""
        self._slots[slots] = None

    def dump(self, slots: I64) -> bytes:
        """Items as one segment."""
        return self._encode(self.get(slots))

    def parse(self, data: bytes, name: str) -> Sequence[ItemT]:
        """Items of a segment."""
        return self._decode(data, name)


def experience_store(capacity: int) -> ObjectStore[Experience]:
    """Store of `capacity` experiences: copied on insert, written as Arrow segments."""
    return ObjectStore(capacity, copy_item=own_experience, encode=encode_experiences, decode=decode_experiences)


class ColumnStore:
    """Items of one fixed shape in preallocated columns: a block of K items costs one copy per column.

    Args:    columns  name -> (shape of one item, dtype)
    Invariant: inserts and draws both copy; the store never aliases a caller's memory.
    """

    def __init__(self, capacity: int, columns: Mapping[str, tuple[tuple[int, ...], np.dtype[Any] | type]]) -> None:
        if not columns:
            raise ValueError("ColumnStore: name at least one column")
        self.capacity = capacity
        self._columns: dict[str, Array] = {
            name: np.empty((capacity, *shape), dtype=dtype) for name, (shape, dtype) in columns.items()
        }
        self.item_bytes = sum(c.itemsize * int(np.prod(c.shape[1:])) for c in self._columns.values())

    def sizes(self, items: Mapping[str, Array]) -> I64:
        """Payload bytes of each row, [K], after a check of names, shapes and dtypes.

        Raises:  ValueError naming the column that differs.
        """
        if items.keys() != self._columns.keys():
            raise ValueError(f"ColumnStore: columns {sorted(items)}, but the store has {sorted(self._columns)}")
        rows = len(next(iter(items.values())))
        for name, column in self._columns.items():
            got = items[name]
            if got.shape != (rows, *column.shape[1:]) or got.dtype != column.dtype:
                raise ValueError(
                    f"ColumnStore: column {name!r} is {got.dtype}{list(got.shape)}, "
                    f"the store takes {column.dtype}{[rows, *column.shape[1:]]}"
                )
        return np.full(rows, self.item_bytes, dtype=np.int64)

    def own(self, items: Mapping[str, Array]) -> Mapping[str, Array]:
        """The block itself: `put` is the copy."""
        return items

    def put(self, where: Where, items: Mapping[str, Array]) -> None:
        """Copy K rows in."""
        for name, column in self._columns.items():
            column[where] = items[name]

    def get(self, slots: I64) -> Mapping[str, Array]:
        """Copies of the rows of the slots, name -> [K, ...]."""
        return {name: column.take(slots, axis=0) for name, column in self._columns.items()}

    def drop(self, slots: I64) -> None:
        """Nothing to release: the columns are preallocated."""

    def dump(self, slots: I64) -> bytes:
        """Rows as one segment."""
        return encode_block(self.get(slots))

    def parse(self, data: bytes, name: str) -> Mapping[str, Array]:
        """Rows of a segment."""
        return decode_block(data, name)


# ------------------------------------------------------------------------------------------------ on disk


def encode_experiences(items: Sequence[Experience], compression: Compression = "lz4") -> bytes:
    """Experiences as one segment, one row each.

    Raises:  SegmentError if `extra` holds something that is neither JSON nor a plain array.
    """
    columns: dict[str, pa.Array] = {}
    for name, kind in _SCALARS.items():
        columns[name] = pa.array([getattr(i, name) for i in items], type=kind)
    for name, kind in _LABEL_SCALARS.items():
        columns[f"labels.{name}"] = pa.array([getattr(i.labels, name) for i in items], type=kind)
    for name in _ARRAYS:
        columns |= _array_columns(name, [getattr(i, name) for i in items])
    for name in _LABEL_ARRAYS:
        columns |= _array_columns(f"labels.{name}", [getattr(i.labels, name) for i in items])
    columns["program"] = pa.array([json.dumps(dataclasses.asdict(i.program)) for i in items], type=pa.string())
    columns["extra"] = pa.array([_extra_to_json(i.extra) for i in items], type=pa.string())
    return _pack("exps", pa.table(columns), compression)


def decode_experiences(data: bytes, name: str = "segment") -> list[Experience]:
    """Inverse of encode_experiences; every array owns its memory.

    Raises:  SegmentError naming `name` and the reason if the bytes are torn, altered, foreign or of another version.
    """
    table = _unpack("exps", data, name)
    try:
        scalars: dict[str, list[Any]] = {c: table[c].to_pylist() for c in _SCALARS}
        scalars |= {c: _arrays(table, c) for c in _ARRAYS}
        labels: dict[str, list[Any]] = {c: table[f"labels.{c}"].to_pylist() for c in _LABEL_SCALARS}
        labels |= {c: _arrays(table, f"labels.{c}") for c in _LABEL_ARRAYS}
        programs = [_program(text) for text in table["program"].to_pylist()]
        extras = [_extra_from_json(text) for text in table["extra"].to_pylist()]
    except (KeyError, TypeError, ValueError) as error:
        raise SegmentError(f"{name}: not a segment of experiences ({error}); restore an older checkpoint") from error
    return [
        Experience(
            labels=Labels(**{c: v[i] for c, v in labels.items()}),
            program=programs[i],
            extra=extras[i],
            **{c: v[i] for c, v in scalars.items()},
        )
        for i in range(table.num_rows)
    ]


def encode_block(block: Mapping[str, Array], compression: Compression = "lz4") -> bytes:
    """Columns of equal length as one segment: one row per column."""
    names = pa.array(list(block), type=pa.string())
    return _pack("blck", pa.table({"name": names, **_array_columns("column", list(block.values()))}), compression)


def decode_block(data: bytes, name: str = "segment") -> dict[str, Array]:
    """Inverse of encode_block. Raises SegmentError as decode_experiences does."""
    table = _unpack("blck", data, name)
    try:
        return dict(zip(table["name"].to_pylist(), _arrays(table, "column"), strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise SegmentError(f"{name}: not a segment of columns ({error}); restore an older checkpoint") from error


def write_segment(path: Path, items: Sequence[Experience], compression: Compression = "zstd") -> int:
    """Write experiences to `path` so that a crash leaves the old file or the new one; returns its size in bytes."""
    data = encode_experiences(items, compression)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return len(data)


def read_segment(path: Path) -> list[Experience]:
    """Experiences of a file written by write_segment. Raises SegmentError as decode_experiences does."""
    return decode_experiences(path.read_bytes(), str(path))


def _pack(kind: str, table: pa.Table, compression: Compression) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    body = memoryview(sink.getvalue())
    return _HEADER.pack(_MAGIC, SCHEMA_VERSION, kind.encode(), len(body), _digest(kind, body)) + body.tobytes()


def _digest(kind: str, body: memoryview) -> bytes:
    head = struct.pack("<I4sQ", SCHEMA_VERSION, kind.encode(), len(body))
    digest = hashlib.blake2b(head, digest_size=32)
    digest.update(body)
    return digest.digest()


def _unpack(kind: str, data: bytes, name: str) -> pa.Table:
    """Arrow table of a segment after checks of header, length, digest and every Arrow offset."""
    if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
        raise SegmentError(f"{name}: not a Grid Guardian segment ({len(data)} bytes, wrong header); check the path")
    _, version, got_kind, length, digest = _HEADER.unpack_from(data)
    if version != SCHEMA_VERSION:
        raise SegmentError(
            f"{name}: schema version {version}, this release reads {SCHEMA_VERSION}; use the release that wrote it"
        )
    if got_kind != kind.encode():
        raise SegmentError(f"{name}: holds {got_kind!r}, expected {kind!r}; it was written by another kind of store")
    body = memoryview(data)[_HEADER.size :]
    if len(body) != length:
        raise SegmentError(f"{name}: torn, {len(body)} of {length} bytes; restore an older checkpoint")
    if any(data[_HEADER.size - 8 : _HEADER.size]) or _digest(kind, body) != digest:
        raise SegmentError(f"{name}: checksum differs, at least one bit has changed; restore an older checkpoint")
    try:
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(body))).read_all()
        table.validate(full=True)
    except pa.ArrowException as error:
        raise SegmentError(f"{name}: not a valid Arrow file ({error}); restore an older checkpoint") from error
    return table


def _array_columns(name: str, arrays: Sequence[Array]) -> dict[str, pa.Array]:
    for array in arrays:
        if array.dtype.kind not in "biufc":
            raise SegmentError(f"{name}: dtype {array.dtype} cannot be stored; use numbers or booleans")
    return {
        name: pa.array([a.tobytes() for a in arrays], type=pa.large_binary()),
        f"{name}.shape": pa.array([list(a.shape) for a in arrays], type=pa.list_(pa.int64())),
        f"{name}.dtype": pa.array([a.dtype.str for a in arrays], type=pa.string()),
    }


def _arrays(table: pa.Table, name: str) -> list[Array]:
    shapes, dtypes = table[f"{name}.shape"].to_pylist(), table[f"{name}.dtype"].to_pylist()
    out = []
    for cell, shape, dtype_text in zip(table[name], shapes, dtypes, strict=True):
        dtype = np.dtype(dtype_text)
        buffer = cell.as_buffer()
        if dtype.kind not in "biufc" or min(shape, default=0) < 0:
            raise ValueError(f"column {name} has dtype {dtype_text}, shape {shape}")
        array: Array = np.empty(shape, dtype)
        if buffer.size != array.nbytes:
            raise ValueError(f"column {name} has {buffer.size} bytes for {dtype_text}{shape}")
        if array.size:
            array.reshape(-1)[:] = np.frombuffer(buffer, dtype=dtype)
        out.append(array)
    return out


def _program(text: str) -> Program:
    fields = json.loads(text)
    return Program(**{**fields, "events": tuple(Event(**event) for event in fields["events"])})


def _extra_to_json(extra: Mapping[str, Any]) -> str:
    try:
        return json.dumps(_tag(dict(extra)))
    except TypeError as error:
        raise SegmentError(
            f"extra of an experience: {error}; keep numbers, text, lists, dicts or arrays in it"
        ) from error


def _extra_from_json(text: str) -> dict[str, Any]:
    return dict(_untag(json.loads(text)))


def _tag(value: Any) -> Any:
    """JSON form: arrays, numpy scalars, tuples and dicts become {"kind": ...}, so that reading gives the same types."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"array of dtype {array.dtype}")
        raw = base64.b64encode(array.tobytes()).decode()
        scalar = isinstance(value, np.generic)
        return {"kind": "array", "dtype": array.dtype.str, "shape": array.shape, "data": raw, "scalar": scalar}
    if isinstance(value, tuple):
        return {"kind": "tuple", "items": [_tag(v) for v in value]}
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"dict with keys {list(value)}, keys must be text")
        return {"kind": "dict", "items": {k: _tag(v) for k, v in value.items()}}
    if isinstance(value, list):
        return [_tag(v) for v in value]
    return value


def _untag(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value["kind"] == "tuple":
        return tuple(_untag(v) for v in value["items"])
    if value["kind"] == "dict":
        return {k: _untag(v) for k, v in value["items"].items()}
    raw = np.frombuffer(base64.b64decode(value["data"]), dtype=np.dtype(value["dtype"]))
    array = raw.reshape(value["shape"]).copy()
    return array[()] if value["scalar"] else array
