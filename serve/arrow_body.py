"""Arrow IPC from strangers: what it would become is added up from its headers before a byte is decompressed.

Flow:    body -> [arrow_body] -> rows for gg_ray.windows_io
Source:  Arrow columnar format, IPC: encapsulated messages, Message.fbs (RecordBatch: buffers, BodyCompression);
         FlatBuffers binary layout

A file is a stream between two magic words: both are read as a stream, message by message, so that what was measured is
what is read. Column types are those of a window; dictionaries, run-end encoding, views and null lists, which let few
bytes stand for many values, are refused.
"""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from gg_ray.windows_io import WindowFileError, rows_of
from serve.problems import Problem

_FILE_MAGIC = b"ARROW1\0\0"
_WAY_OUT = "send a table as gg_ray.windows_io.write_windows makes it"


def rows_of_arrow(body: bytes, max_rows: int, max_bytes: int) -> list[dict[str, Any]]:
    """Rows of an Arrow IPC stream or file.

    Raises: Problem 422 for more rows or, uncompressed, bytes than allowed, or column types that no window has;
            WindowFileError for what is not Arrow or contradicts itself.
    """
    data = body[len(_FILE_MAGIC) :] if body.startswith(_FILE_MAGIC) else body
    try:
        rows = _measured(data, max_bytes)
        if rows > max_rows:
            raise Problem(422, f"body: {rows} windows; at most {max_rows} in one request")
        with ipc.open_stream(pa.py_buffer(data)) as reader:
            for column in reader.schema:
                if not _plain(column.type):
                    raise Problem(422, f"body: column {column.name!r} is of type {column.type}; {_WAY_OUT}")
            table = reader.read_all()
        table.validate(full=True)
        return rows_of(table)
    except (pa.ArrowException, struct.error, OSError, UnicodeDecodeError, EOFError) as error:
        raise WindowFileError(f"body: not readable as Arrow ({error}); {_WAY_OUT}") from None


def _measured(data: bytes, max_bytes: int) -> int:
    """Rows of all batches.  Raises: Problem 422 for more bytes than allowed once decompressed, or for a dictionary."""
    rows, total = 0, 0
    for message in ipc.MessageReader.open_stream(pa.py_buffer(data)):
        if message.type == "schema":
            continue
        if message.type != "record batch":
            raise Problem(422, f"body: Arrow messages of type {message.type} are not taken; {_WAY_OUT}")
        n, size = _batch(message.metadata.to_pybytes(), message.body.to_pybytes() if message.body else b"")
        rows, total = rows + n, total + size
        if total > max_bytes:
            raise Problem(422, f"body: more than {max_bytes} bytes once decompressed; send fewer windows at once")
    return rows


def _batch(metadata: bytes, body: bytes) -> tuple[int, int]:
    """Rows of a record batch, and bytes of its buffers once decompressed.

    A compressed buffer begins with its size after decompression (int64; -1: stored as it is), which Arrow allocates.
    """
    [root] = struct.unpack_from("<I", metadata, 0)
    header = _follow(metadata, _field(metadata, root, 2))
    at = _field(metadata, header, 0)
    rows = struct.unpack_from("<q", metadata, at)[0] if at else 0
    vector = _follow(metadata, _field(metadata, header, 2))
    compressed = _field(metadata, header, 3) != 0
    [count] = struct.unpack_from("<I", metadata, vector)
    total = 0
    for offset, length in struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * count]):
        size = length
        if compressed and length > 0:
            [told] = struct.unpack_from("<q", body, offset)
            size = length if told == -1 else told
        if size < 0 or offset < 0 or length < 0:
            raise struct.error("a buffer of negative size")
        total += size
    return rows, total


def _field(data: bytes, table: int, index: int) -> int:
    """Position of a table's field, 0 where it is absent."""
    [back] = struct.unpack_from("<i", data, table)
    [size] = struct.unpack_from("<H", data, table - back)
    if 4 + 2 * index >= size:
        return 0
    [offset] = struct.unpack_from("<H", data, table - back + 4 + 2 * index)
    return table + offset if offset else 0


def _follow(data: bytes, at: int) -> int:
    """What an offset stored at a position points to."""
    if at == 0:
        raise struct.error("a batch without its parts")
    return int(at + struct.unpack_from("<I", data, at)[0])


def _plain(kind: pa.DataType, inside: int = 0) -> bool:
    """Numbers, booleans and text, and lists of them of at most two levels; an absent column as well."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return inside < 2 and (not pa.types.is_fixed_size_list(kind) or kind.list_size > 0) and _plain(
            kind.value_type, inside + 1
        )  # fmt: skip
    if pa.types.is_null(kind):
        return inside == 0
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )  # fmt: skip
