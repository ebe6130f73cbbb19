"""Scans on the wire: what a message of gg.readings.v1 holds, and what makes one poison.

Flow:    serve.feed -> [wire: encode] -> Kafka -> [wire: decode] -> serve.loop
Source:  live.md, section 1 (schema); Confluent wire format (zero byte, four bytes of schema id); Arrow IPC, record
         batch messages
Shapes:  M installed meters, E branches

An Arrow message is one record batch of one row without its schema, which both sides have as a file; so a scan of 118
buses is 15 kB and no schema travels with it. Whatever cannot be decoded, or contradicts the grid it names, is Poison:
it will not be better on the next attempt.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from gg_ray.grid import balance
from gg_ray.grid.cases import CaseError, GridCase, load_case
from gg_ray.grid.meters import layout_of
from gg_ray.grid.units import usual_range, wrong_unit
from gg_ray.records import F64, I64, U8
from gg_ray.windows_io import WindowFileError, window_of
from serve.schemas import ARROW, JSON, SchemaRegistry, arrow_schema

MAGIC = 0
MAX_BYTES = 8 * 2**20
"""Largest message that is decoded; a scan of 10,000 buses has 1.5 MB."""
MAX_JSON = 2**20
MAX_NAME = 120
MAX_TEXT = 400
"""Longest reason."""
ORIGINS = ("live", "cache", "replay", "simulated", "manual")
TRACEPARENT = "traceparent"
"""Kafka header with the W3C trace context."""
_ID = struct.Struct(">bI")
_NEVER = 255


class Poison(ValueError):
    """A message that no retry will make readable.

    kind  schema, encoding, shape, value, grid, unit, time or size: what dead letters are counted by
    """

    def __init__(self, kind: str, text: str) -> None:
        # the text may quote the message, which can be long or hold half a surrogate pair: it goes into logs and headers
        super().__init__(text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode())
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanMessage:
    """One scan of one grid, with the meaning of records.Window.

    channels  [M] ascending layout positions of the installed meters;  sigma  [M] their standard deviations
    z_M       readings, NaN where nothing arrived;  age_M  scans since each was refreshed
    values    what a page shows beside the verdict (FREQ Hz, DEMAND MW, fuels MW);  streams  live, late or missing
    epoch, seq  version of the message, both or neither
    """

    grid: str
    case: str
    time_ns: int
    step_s: float
    channels: I64
    sigma: F64
    z_M: F64
    age_M: U8
    status_E: U8
    tap_E: F64
    x_scale_E: F64
    epoch: int | None = None
    seq: int | None = None
    origin: str = "manual"
    values: Mapping[str, float] = field(default_factory=dict)
    streams: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        arrays = (self.channels, self.sigma, self.z_M, self.age_M, self.status_E, self.tap_E, self.x_scale_E)
        return sum(a.nbytes for a in arrays)


def encode(message: ScanMessage) -> bytes:
    """A message as Arrow in Confluent's frame."""
    m = message
    case = load_case(m.case)
    columns = [
        pa.array([m.grid]), pa.array([m.case]), pa.array([m.time_ns], pa.int64()), pa.array([m.step_s]),
        pa.array([m.epoch], pa.int64()), pa.array([m.seq], pa.int64()), pa.array([m.origin]),
        _listed(m.channels.astype(np.int32)), _listed(m.sigma), _listed(m.z_M),
        _listed(m.age_M if m.age_M.any() else None, pa.uint8()),
        _listed(None if (m.status_E == 1).all() else m.status_E, pa.uint8()),
        _listed(None if np.array_equal(m.tap_E, case.tap) else m.tap_E, pa.float64()),
        _listed(None if (m.x_scale_E == 1.0).all() else m.x_scale_E, pa.float64()),
        pa.array([list(m.values.items())], pa.map_(pa.string(), pa.float64())),
        pa.array([list(m.streams.items())], pa.map_(pa.string(), pa.string())),
    ]  # fmt: skip
    batch = pa.RecordBatch.from_arrays(columns, schema=arrow_schema())
    return _ID.pack(MAGIC, ARROW) + bytes(batch.serialize().to_pybytes())


def _listed(values: Any, kind: Any = None) -> pa.Array:
    if values is None:
        return pa.array([None], pa.list_(kind))
    return pa.ListArray.from_arrays(np.array([0, values.size], dtype=np.int32), pa.array(values))


def decode(payload: bytes, registry: SchemaRegistry | None = None) -> ScanMessage:
    """A message of the readings topic.

    Raises: Poison;  RegistryDown (serve.schemas) for an unknown schema id while the registry cannot be read
    """
    if len(payload) > MAX_BYTES:
        raise Poison("size", f"{len(payload):,} bytes; at most {MAX_BYTES:,}")
    if payload[:1] == b"{":
        return _from_json(payload)
    if len(payload) < _ID.size or payload[0] != MAGIC:
        raise Poison("schema", "neither a zero byte with a schema id nor a JSON object")
    number = _ID.unpack_from(payload)[1]
    form = (registry or SchemaRegistry.packaged()).form(number)
    if form not in ("arrow", "json"):
        raise Poison("schema", f"schema id {number} is {'not in the registry' if form is None else f'of form {form}'}")
    return _from_arrow(payload[_ID.size :]) if form == "arrow" else _from_json(payload[_ID.size :])


def encode_json(row: Mapping[str, Any]) -> bytes:
    """A hand-made scan in the frame of the JSON schema."""
    return _ID.pack(MAGIC, JSON) + json.dumps(row, allow_nan=False).encode()


# --- Arrow ------------------------------------------------------------------------------------------------------------


def _from_arrow(body: bytes) -> ScanMessage:
    try:
        message = pa.ipc.read_message(pa.py_buffer(body))
        if message.type != "record batch":
            raise Poison("encoding", f"an Arrow {message.type}; a scan is one record batch")
        if _compressed(message.metadata.to_pybytes()):
            raise Poison("encoding", "a compressed Arrow body; compress the Kafka batch, not the scan")
        batch = pa.ipc.read_record_batch(message, arrow_schema())
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, struct.error, IndexError) as error:
        raise Poison("encoding", f"not an Arrow record batch of schema gg.scan 1 ({_short(error)})") from None
    if batch.num_rows != 1:
        raise Poison("shape", f"{batch.num_rows} rows; a message is one scan")
    column = dict(zip(batch.schema.names, batch.columns, strict=True))
    if absent := [f.name for f in batch.schema if not f.nullable and column[f.name].null_count]:
        raise Poison("shape", f"{', '.join(absent)} may not be null")
    row: dict[str, Any] = {
        name: column[name][0].as_py() for name in ("grid", "case", "time_ns", "step_s", "epoch", "seq", "origin")
    }
    lists = {name: _numpy(column[name], name) for name in ("channels", "sigma", "z", "age", "status", "tap", "x_scale")}
    values, streams = (dict(column[name][0].as_py()) for name in ("values", "streams"))
    case = _case(row["case"])
    channels, sigma, z = (lists[name] for name in ("channels", "sigma", "z"))
    if z.shape != channels.shape:
        raise Poison("shape", f"z has {z.size} readings for {channels.size} meters")
    channels, sigma = _meters(case.name, channels.tobytes(), sigma.tobytes())
    if np.isinf(z).any():
        raise Poison("value", "z holds an infinite value; use NaN for a reading that did not arrive")
    if mistake := _unit(case, channels, z):
        raise Poison("unit", mistake)
    return _checked(ScanMessage(
        grid=row["grid"], case=case.name, time_ns=row["time_ns"], step_s=row["step_s"], channels=channels, sigma=sigma,
        z_M=z, age_M=_ages(_sized(lists["age"], channels.size, "age", 0, 255, np.uint8, 0), z),
        status_E=_sized(lists["status"], case.n_branch, "status", 0, 1, np.uint8, 1),
        tap_E=_sized(lists["tap"], case.n_branch, "tap", 0.1, 10, np.float64, case.tap),
        x_scale_E=_sized(lists["x_scale"], case.n_branch, "x_scale", 0.01, 100, np.float64, 1.0),
        epoch=row["epoch"], seq=row["seq"], origin=row["origin"], values=values, streams=streams,
    ))  # fmt: skip


def _numpy(column: pa.Array, name: str) -> Any:
    """Values of a list column of one row, None where the row has none."""
    if column.null_count:
        return None
    values = column.flatten()
    if values.null_count:
        raise Poison("value", f"{name} holds nulls; use NaN for a reading that did not arrive")
    return values.to_numpy(zero_copy_only=False)


def _sized(given: Any, size: int, name: str, low: float, high: float, kind: Any, default: Any) -> Any:
    if given is None:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(default, dtype=kind), (size,)))
    if given.size != size:
        raise Poison("shape", f"{name} needs {size} numbers, has {given.size}")
    if size and not (given.min() >= low and given.max() <= high):
        raise Poison("value", f"{name} holds {given.min():g} to {given.max():g}; allowed are {low:g} to {high:g}")
    return given.astype(kind)


def _ages(age_M: U8, z_M: F64) -> U8:
    """What did not arrive is not fresh."""
    return np.where(np.isnan(z_M) & (age_M == 0), _NEVER, age_M).astype(np.uint8)


@functools.lru_cache(maxsize=1_024)
def _meters(case: str, channels: bytes, sigma: bytes) -> tuple[I64, F64]:
    """Meters of a grid, checked once: senders repeat them with every scan.  Raises: Poison."""
    size = layout_of(load_case(case)).size
    at, spread = np.frombuffer(channels, dtype=np.int32).astype(np.int64), np.frombuffer(sigma)
    if at.size == 0 or at.min() < 0 or at.max() >= size or (np.diff(at) <= 0).any():
        raise Poison("shape", f"channels must be whole numbers that ascend within 0..{size - 1}")
    if spread.shape != at.shape or not (np.isfinite(spread) & (spread > 0)).all():
        raise Poison("value", f"sigma needs {at.size} positive numbers")
    return at, spread


def _compressed(metadata: bytes) -> bool:
    """Whether a record batch message declares a body compression, read from its flatbuffer before anything is inflated.

    Message {version, header_type, header, bodyLength}, RecordBatch {length, nodes, buffers, compression} (Arrow,
    Message.fbs).  Raises: struct.error for a torn buffer.
    """

    def slot(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        return int(struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0])

    message = struct.unpack_from("<I", metadata, 0)[0]
    header = message + slot(message, 2)
    return slot(header + struct.unpack_from("<I", metadata, header)[0], 3) != 0


# --- JSON -------------------------------------------------------------------------------------------------------------


def _from_json(body: bytes) -> ScanMessage:
    if len(body) > MAX_JSON:
        raise Poison("size", f"{len(body):,} bytes of JSON; at most {MAX_JSON:,}, larger scans go as Arrow")
    try:
        row = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except Poison:
        raise
    except (ValueError, RecursionError) as error:  # ValueError itself: a number of more digits than Python reads
        raise Poison("encoding", f"not JSON ({_short(error)})") from None
    if not isinstance(row, dict) or not isinstance(row.get("grid"), str):
        raise Poison("shape", "a JSON scan is an object with a field grid")
    given = {name: value for name, value in row.items() if value is not None}
    row = {"case": row["grid"], "step_s": 60.0, "origin": "manual", "values": {}, "streams": {}, **given}
    _case(row["case"])
    try:
        window, plan = window_of({**row, "t0_ns": _time(row), "moves": None}, f"scan of {row['grid'][:MAX_NAME]}")
    except WindowFileError as error:
        raise Poison("unit" if "divide" in str(error) else "value", str(error)) from None
    if window.z_TM.shape[0] != 1:
        raise Poison("shape", f"z has {window.z_TM.size} readings for {plan.size} meters; a message is one scan")
    for name in ("values", "streams"):
        if not isinstance(row[name], dict):
            raise Poison("value", f"{name} must be an object")
    return _checked(ScanMessage(
        grid=row["grid"], case=window.case, time_ns=window.t0_ns, step_s=float(window.step_s), channels=plan.channels,
        sigma=plan.sigma, z_M=window.z_TM[0], age_M=window.age_TM[0], status_E=window.status_TE[0], tap_E=window.tap_E,
        x_scale_E=window.x_scale_E, epoch=row.get("epoch"), seq=row.get("seq"), origin=row["origin"],
        values=row["values"], streams=row["streams"],
    ))  # fmt: skip


def _time(row: Mapping[str, Any]) -> int:
    if row.get("time_ns") is not None:
        if isinstance(row["time_ns"], bool) or not isinstance(row["time_ns"], int):
            raise Poison("time", "time_ns must be a whole number of nanoseconds")
        return int(row["time_ns"])
    try:
        moment = datetime.fromisoformat(row["time"])
        if moment.tzinfo is None:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise Poison("time", "time must be ISO 8601 with a zone, such as 2026-01-31T12:00:00Z") from None
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1_000


def _no_constant(name: str) -> Any:
    raise Poison("value", f"{name} is not JSON; use null for a reading that did not arrive")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise Poison("value", f"field {twice[:MAX_NAME]!r} is there twice")
    return out


# --- both -------------------------------------------------------------------------------------------------------------


def _case(name: Any) -> GridCase:
    try:
        return load_case(str(name)[:MAX_NAME])
    except CaseError as error:
        raise Poison("grid", str(error)) from None


def _checked(message: ScanMessage) -> ScanMessage:
    m = message
    if not 0 < len(m.grid) <= MAX_NAME or not m.grid.isprintable() or any(c.isspace() or c in "{}" for c in m.grid):
        raise Poison(
            "grid", f"grid {m.grid[:MAX_NAME]!r}: 1 to {MAX_NAME} visible characters, without blanks or braces"
        )
    if not 0 < m.time_ns < 2**62:
        raise Poison("time", f"time_ns {m.time_ns} is no time between 1970 and 2116")
    if not (math.isfinite(m.step_s) and 0.0 < m.step_s <= 86_400.0):
        raise Poison("time", f"step_s {m.step_s:g}: seconds between scans, more than 0, at most 86400")
    if m.origin not in ORIGINS:
        raise Poison("value", f"origin {str(m.origin)[:MAX_NAME]!r}: one of {', '.join(ORIGINS)}")
    versions = (m.epoch, m.seq)
    if not all(v is None for v in versions) and not all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**53 for v in versions
    ):
        raise Poison("value", f"epoch {m.epoch} and seq {m.seq}: whole numbers from 0, both or neither")
    _entries(m.values, _is_number, "values")
    _entries(m.streams, _is_word, "streams")
    return m


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 2**53 if isinstance(value, int) else math.isfinite(value)


def _is_word(value: Any) -> bool:
    """Half a surrogate pair, which JSON can spell, is no character and cannot be written anywhere."""
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


def _entries(given: Mapping[str, Any], good: Callable[[Any], bool], name: str) -> None:
    if len(given) > 200 or any(not _is_word(k) or not good(v) for k, v in given.items()):
        raise Poison("value", f"{name}: at most 200 entries with short names and finite numbers or short words")


def _unit(case: GridCase, channels: I64, z_M: F64) -> str | None:
    """What is wrong with the units of a scan; readings near nominal, as nearly all are, are not looked at twice."""
    if case.name != balance.NAME:
        low, high = usual_range(case.name, channels.tobytes())
        if not ((z_M < low) | (z_M > high)).any():
            return None
    return wrong_unit(case, channels, z_M[None])


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
