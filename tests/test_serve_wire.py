"""serve.wire: what goes in comes out, and whatever else comes in is Poison of the right kind, nothing else."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scans import meters, scan

from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import layout_of
from gg_ray.grid.units import usual_range, wrong_unit
from serve import wire
from serve.schemas import ARROW, HOME, JSON, RegistryDown, SchemaRegistry, arrow_schema, incompatible, schema
from serve.wire import MAX_BYTES, MAX_JSON, ORIGINS, Poison, ScanMessage, decode, encode, encode_json

GOOD = encode(scan())
FRAME = GOOD[:5]
NAME = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)


def same(one: ScanMessage, other: ScanMessage) -> bool:
    for item in dataclasses.fields(ScanMessage):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                return False
        elif a != b:
            return False
    return True


def row(**changes: Any) -> dict[str, Any]:
    """A scan as JSON by hand; None takes a field away."""
    m = scan()
    plain: dict[str, Any] = {
        "grid": "case14", "time": "2026-01-31T12:00:00Z", "channels": m.channels.tolist(), "sigma": m.sigma.tolist(),
        "z": m.z_M.tolist(), **changes,
    }  # fmt: skip
    return {name: value for name, value in plain.items() if value is not None}


def hand(**changes: Any) -> bytes:
    return json.dumps(row(**changes)).encode()


def arrow(rows: int = 1, **columns: pa.Array) -> bytes:
    """A record batch whose columns are exchanged, without what a writer of ours would check."""
    base = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(GOOD[5:])), arrow_schema())
    loose = pa.schema([pa.field(f.name, f.type) for f in arrow_schema()])
    arrays = [columns.get(f.name, base.column(i).take(pa.array([0] * rows, pa.int32()))) for i, f in enumerate(loose)]
    return FRAME + pa.RecordBatch.from_arrays(arrays, schema=loose).serialize().to_pybytes()


def refused(payload: bytes) -> Poison:
    with pytest.raises(Poison) as found:
        decode(payload)
    assert str(found.value)
    return found.value


# --- what goes in comes out -------------------------------------------------------------------------------------------


@st.composite
def messages(draw: st.DrawFn) -> ScanMessage:
    grid, (plan, z) = load_case("case14"), meters()
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    z = z + plan.sigma * rng.standard_normal(plan.size)
    z[rng.random(plan.size) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    age = rng.integers(0, draw(st.sampled_from([1, 4, 256])), plan.size).astype(np.uint8)
    age[np.isnan(z) & (age == 0)] = 255
    version = draw(st.none() | st.tuples(st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1)))
    number = st.floats(allow_nan=False, allow_infinity=False)
    return scan(
        grid=draw(NAME), time_ns=draw(st.integers(1, 2**62 - 1)), step_s=draw(st.sampled_from([0.02, 15.0, 60.0])),
        z_M=z, age_M=age, epoch=version and version[0], seq=version and version[1],
        status_E=(rng.random(grid.n_branch) < draw(st.sampled_from([0.8, 1.1]))).astype(np.uint8),
        tap_E=grid.tap * draw(st.sampled_from([1.0, 1.01])), origin=draw(st.sampled_from(ORIGINS)),
        x_scale_E=np.full(grid.n_branch, draw(st.sampled_from([1.0, 0.7]))),
        values=draw(st.dictionaries(NAME, number, max_size=3)),
        streams=draw(st.dictionaries(NAME, st.sampled_from(["live", "late"]), max_size=3)),
    )  # fmt: skip


@given(messages())
def test_a_scan_comes_out_as_it_went_in(message: ScanMessage) -> None:
    assert same(decode(encode(message)), message)


@given(messages())
def test_a_scan_by_hand_is_the_same_scan(message: ScanMessage) -> None:
    m = message
    plain = {
        "grid": m.grid, "case": m.case, "time_ns": m.time_ns, "step_s": m.step_s, "epoch": m.epoch, "seq": m.seq,
        "origin": m.origin, "channels": m.channels.tolist(), "sigma": m.sigma.tolist(), "age": m.age_M.tolist(),
        "z": [None if np.isnan(v) else v for v in m.z_M], "status": m.status_E.tolist(), "tap": m.tap_E.tolist(),
        "x_scale": m.x_scale_E.tolist(), "values": dict(m.values), "streams": dict(m.streams),
    }  # fmt: skip
    assert same(decode(encode_json(plain)), m)
    assert same(decode(json.dumps(plain).encode()), m)


def test_a_scan_by_hand_can_be_passed_on_as_arrow() -> None:
    """Dead letters of the Verifier are written anew, whatever form they came in."""
    by_hand = decode(hand(step_s=60, values={"FREQ": 50, "DEMAND": 2**53}))
    assert same(decode(encode(by_hand)), by_hand)


def test_null_is_as_absent_in_a_scan_by_hand() -> None:
    """As the schema says of every field that may be null."""
    nullable = [f["name"] for f in schema("scan-json-v1.json")["fields"] if f["nullable"] and f["name"] != "time"]
    assert same(decode(json.dumps({**row(), **dict.fromkeys(nullable)}).encode()), decode(hand()))


def test_what_did_not_arrive_is_not_fresh() -> None:
    z = scan().z_M.copy()
    z[:2] = np.nan
    age = np.zeros(z.size, np.uint8)
    age[1] = 7
    assert decode(encode(scan(z_M=z, age_M=age))).age_M[:3].tolist() == [255, 7, 0]


def test_time_by_hand_needs_a_zone_and_keeps_it() -> None:
    at = decode(hand(time="2026-01-31T13:00:00.25+01:00")).time_ns
    assert at == decode(hand()).time_ns + 250_000_000 == 1_769_860_800_250_000_000


# --- Poison -----------------------------------------------------------------------------------------------------------


def texts(*entries: tuple[str, Any]) -> pa.Array:
    return pa.array([list(entries)], pa.map_(pa.string(), pa.float64()))


def changed(**changes: Any) -> Callable[[], bytes]:
    return lambda: encode(scan(**changes))


def at(name: str, place: int, value: float) -> Callable[[], bytes]:
    """A scan with one number of one list exchanged."""

    def make() -> bytes:
        numbers = getattr(scan(), name).copy()
        numbers[place] = value
        return encode(scan(**{name: numbers}))

    return make


def compressed(codec: str) -> bytes:
    base = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(GOOD[5:])), arrow_schema())
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, arrow_schema(), options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(base)
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(sink.getvalue()))
    reader.read_next_message()
    return FRAME + reader.read_next_message().serialize().to_pybytes()


def scaled(kind: int, factor: float) -> Callable[[], bytes]:
    """Readings of bus meters of a kind (0 voltage, 1 P, 3 angle) in another unit."""

    def make() -> bytes:
        m = scan()
        return encode(scan(z_M=np.where(m.channels // 14 == kind, factor * m.z_M, m.z_M)))

    return make


CORPUS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "nothing": ("schema", lambda: b"", "zero byte"),
    "bad magic": ("schema", lambda: b"\x01" + GOOD[1:], "zero byte"),
    "only a magic byte": ("schema", lambda: b"\x00\x00", "zero byte"),
    "unknown schema": ("schema", lambda: b"\x00\x00\x00\x00\x63" + GOOD[5:], "id 99 is not in the registry"),
    "oversized": ("size", lambda: GOOD + bytes(MAX_BYTES), "at most"),
    "no body": ("encoding", lambda: FRAME, "not an Arrow record batch"),
    "end of a stream": ("encoding", lambda: FRAME + b"\xff\xff\xff\xff\x00\x00\x00\x00", "not an Arrow"),
    "a schema message": ("encoding", lambda: FRAME + arrow_schema().serialize().to_pybytes(), "an Arrow schema"),
    "zstd": ("encoding", lambda: compressed("zstd"), "compressed"),
    "lz4": ("encoding", lambda: compressed("lz4"), "compressed"),
    "two rows": ("shape", lambda: arrow(rows=2), "2 rows"),
    "no rows": ("shape", lambda: arrow(rows=0), "0 rows"),
    "null grid": ("shape", lambda: arrow(grid=pa.array([None], pa.string())), "grid may not be null"),
    "null time": ("shape", lambda: arrow(time_ns=pa.array([None], pa.int64())), "time_ns may not be null"),
    "null step": ("shape", lambda: arrow(step_s=pa.array([None], pa.float64())), "step_s may not be null"),
    "null channels": ("shape", lambda: arrow(channels=pa.array([None], pa.list_(pa.int32()))), "may not be null"),
    "null reading": ("value", lambda: arrow(z=pa.array([[None, *scan().z_M[1:]]])), "use NaN"),
    "null value": ("value", lambda: arrow(values=texts(("FREQ", None))), "finite numbers"),
    "infinite reading": ("value", at("z_M", 0, np.inf), "infinite"),
    "infinite shown value": ("value", changed(values={"FREQ": np.inf}), "finite numbers"),
    "NaN shown": ("value", changed(values={"FREQ": np.nan}), "finite numbers"),
    "long word": ("value", changed(streams={"FREQ": "x" * 121}), "short"),
    "201 values": ("value", changed(values={str(i): 1.0 for i in range(201)}), "at most 200"),
    "too few readings": ("shape", lambda: arrow(z=pa.array([scan().z_M[:-1]])), "readings for"),
    "too few ages": ("shape", changed(age_M=np.ones(3, np.uint8)), "age needs"),
    "too few branches": ("shape", changed(status_E=np.zeros(3, np.uint8)), "status needs 20 numbers, has 3"),
    "status of 2": ("value", at("status_E", 0, 2), "status holds"),
    "negative tap": ("value", at("tap_E", 0, -1.0), "tap holds"),
    "NaN tap": ("value", at("tap_E", 0, np.nan), "tap holds"),
    "no length": ("value", at("x_scale_E", 0, 0.0), "x_scale holds"),
    "unknown grid": ("grid", lambda: arrow(case=pa.array(["case15"])), "unknown grid case 'case15'"),
    "no meters": ("shape", changed(channels=np.zeros(0, np.int64), sigma=np.zeros(0), z_M=np.zeros(0)), "ascend"),
    "not ascending": ("shape", changed(channels=scan().channels[::-1].copy()), "ascend"),
    "twice": ("shape", at("channels", 1, scan().channels[0]), "ascend"),
    "beyond the layout": ("shape", at("channels", -1, 10_000), "ascend"),
    "negative channel": ("shape", at("channels", 0, -1), "ascend"),
    "negative sigma": ("value", at("sigma", 4, -0.01), "positive"),
    "no sigma": ("value", at("sigma", 4, 0.0), "positive"),
    "NaN sigma": ("value", at("sigma", 4, np.nan), "positive"),
    "too few sigmas": ("value", changed(sigma=scan().sigma[:-1]), "positive numbers"),
    "kV": ("unit", scaled(0, 135.0), "kV|divide"),
    "volts of nothing": ("unit", scaled(0, 0.0), "not in p.u."),
    "MW": ("unit", scaled(1, 100.0), "MW"),
    "kW": ("unit", scaled(1, 100_000.0), "kW"),
    "degrees": ("unit", scaled(3, 180 / np.pi), "degrees"),
    "no time": ("time", changed(time_ns=0), "no time"),
    "time beyond all": ("time", changed(time_ns=2**62), "no time"),
    "no step": ("time", changed(step_s=0.0), "step_s"),
    "NaN step": ("time", changed(step_s=float("nan")), "step_s"),
    "a week's step": ("time", changed(step_s=7 * 86_400.0), "step_s"),
    "strange origin": ("value", changed(origin="rumour"), "origin"),
    "epoch without seq": ("value", changed(epoch=1), "both or neither"),
    "negative seq": ("value", changed(epoch=1, seq=-1), "whole numbers"),
    "empty name": ("grid", changed(grid=""), "visible"),
    "blank in a name": ("grid", changed(grid="north east"), "visible"),
    "line in a name": ("grid", changed(grid="north\n"), "visible"),
    "braces in a name": ("grid", changed(grid="{north}"), "visible"),
    "long name": ("grid", changed(grid="x" * 121), "visible"),
    "not JSON": ("encoding", lambda: b"{grid: 1}", "not JSON"),
    "torn JSON": ("encoding", lambda: hand()[:-5], "not JSON"),
    "foreign bytes": ("encoding", lambda: b'{"grid": "\xff"}', "not JSON"),
    "long number": ("encoding", lambda: b'{"grid": "case14", "seq": ' + b"1" * 5_000 + b"}", "not JSON"),
    "deep": ("encoding", lambda: b'{"grid": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    "oversized JSON": ("size", lambda: hand(buses=["x" * MAX_JSON]), "larger scans go as Arrow"),
    "a JSON list": ("shape", lambda: FRAME[:4] + bytes([JSON]) + b"[1]", "an object"),
    "JSON without grid": ("shape", lambda: hand(grid=None), "field grid"),
    "grid as a number": ("shape", lambda: hand(grid=14), "field grid"),
    "JSON NaN": ("value", lambda: hand(z=[float("nan")]), "NaN is not JSON"),
    "JSON Infinity": ("value", lambda: hand(step_s=float("inf")), "Infinity is not JSON"),
    "1e400": ("value", lambda: hand(z=[0.0]).replace(b"[0.0]", b"[1e400]"), "infinite"),
    "duplicate key": ("value", lambda: hand()[:-1] + b', "grid": "case30"}', "'grid' is there twice"),
    "duplicate key inside": ("value", lambda: hand()[:-1] + b', "values": {"A": 1, "A": 2}}', "'A' is there twice"),
    "two scans by hand": ("shape", lambda: hand(z=[*scan().z_M, *scan().z_M]), "one scan"),
    "too few by hand": ("value", lambda: hand(z=[1.0]), "not a multiple"),
    "words as readings": ("value", lambda: hand(z=["1.0"]), "not a list of numbers"),
    "lists as readings": ("value", lambda: hand(z=[[1.0], [1.0, 2.0]]), "not a list of numbers"),
    "kV by hand": ("unit", lambda: hand(z=(scan().z_M * np.where(scan().channels < 14, 135, 1)).tolist()), "divide"),
    "other buses": ("value", lambda: hand(buses=["A", "B"]), "does not have"),
    "other topology": ("value", lambda: hand(topology="0" * 16), "topology"),
    "time without zone": ("time", lambda: hand(time="2026-01-31T12:00:00"), "zone"),
    "no time by hand": ("time", lambda: hand(time=None), "zone"),
    "time as a number": ("time", lambda: hand(time=1.0), "zone"),
    "time_ns as a float": ("time", lambda: hand(time_ns=1.5), "whole number"),
    "time_ns as true": ("time", lambda: hand(time_ns=True), "whole number"),
    "before Unix": ("time", lambda: hand(time="1969-01-01T00:00:00Z"), "no time"),
    "first year": ("value", lambda: hand(time="0001-01-01T00:00:00+23:59"), "t0_ns"),
    "seq by hand": ("value", lambda: hand(seq=4), "both or neither"),
    "seq as a float": ("value", lambda: hand(epoch=1, seq=4.0), "whole numbers"),
    "seq as true": ("value", lambda: hand(epoch=1, seq=True), "whole numbers"),
    "values as a list": ("value", lambda: hand(values=[1]), "values must be an object"),
    "huge value": ("value", lambda: hand(values={"FREQ": 10**400}), "finite numbers"),
    "true as a value": ("value", lambda: hand(values={"FREQ": True}), "finite numbers"),
    "half a pair as a name": ("value", lambda: hand(values={"\ud800": 1.0}), "short names"),
    "half a pair as a word": ("value", lambda: hand(streams={"FREQ": "\ud800"}), "short words"),
    "half a pair in a reason": ("value", lambda: hand(grid="\ud800", case="case14", z=[1.0]), "not a multiple"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_what_no_retry_makes_readable_is_poison(name: str) -> None:
    kind, make, said = CORPUS[name]
    found = refused(make())
    assert found.kind == kind
    assert any(part in str(found) for part in said.split("|")), str(found)
    str(found).encode()  # it goes into a header


def test_a_reason_stays_short_whatever_it_quotes() -> None:
    long = "x" * 900_000
    for changes in ({"grid": long}, {"case": long}, {"topology": long}, {"buses": [long]}, {"step_s": [long]}):
        assert len(str(refused(hand(**changes)))) <= wire.MAX_TEXT


def test_names_of_many_strange_buses_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of all names per name given made one poison message of 1 MiB hold a partition up for a minute."""
    made = 0

    class Names(tuple[str, ...]):
        def __iter__(self) -> Any:
            nonlocal made
            made += 1
            return super().__iter__()

    grid = load_case("case14")
    named = dataclasses.replace(grid, bus_names=Names(grid.bus_names))
    monkeypatch.setattr("gg_ray.windows_io.load_case", lambda name: named)
    refused(hand(buses=["a"] * 1_000))
    assert made < 10


def test_a_compressed_body_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = compressed("zstd")
    monkeypatch.setattr(pa.ipc, "read_record_batch", lambda *_: pytest.fail("the body was read"))
    assert refused(payload).kind == "encoding"


def test_a_torn_or_flipped_message_is_read_or_poison_and_nothing_else() -> None:
    draw = random.Random(5)
    told = {"read": 0, "poison": 0}
    for _ in range(3_000):
        spoiled = bytearray(GOOD)
        for _ in range(draw.choice((1, 1, 2, 8))):
            # most of the frame of Arrow is at the beginning; behind it come readings, where a flip is another reading
            place = draw.randrange(len(spoiled)) if draw.random() < 0.3 else draw.randrange(1_200)
            spoiled[place] ^= 1 << draw.randrange(8)
        if draw.random() < 0.2:
            del spoiled[draw.randrange(len(spoiled)) :]
        try:
            decode(bytes(spoiled))
            told["read"] += 1
        except Poison:
            told["poison"] += 1
    assert min(told.values()) > 100, told


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_poison(body: bytes) -> None:
    for payload in (body, FRAME + body, FRAME[:4] + bytes([JSON]) + body):
        refused(payload)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6,
)  # fmt: skip


@given(st.sampled_from([f["name"] for f in schema("scan-json-v1.json")["fields"]]), _JSON)
def test_any_value_of_any_field_by_hand_is_read_or_poison(name: str, value: Any) -> None:
    payload = json.dumps({**row(), name: value}).encode()
    try:
        message = decode(payload)
    except Poison as error:
        str(error).encode()
    else:
        assert same(decode(encode(message)), message), "what is read can be passed on"


# --- the registry of schemas ------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_unknown_schema_waits_while_the_registry_is_down_and_is_poison_while_it_is_up(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "registry.json"
    registry = SchemaRegistry(file, clock)
    with pytest.raises(RegistryDown, match=r"registry\.json"):
        decode(GOOD, registry)
    file.write_text('{"1": {"form": "arrow"}}')
    assert decode(GOOD, registry).grid == "north", "asked again at once"
    unknown = b"\x00\x00\x00\x00\x07" + GOOD[5:]
    with pytest.raises(Poison, match="id 7 is not in the registry"):
        decode(unknown, registry)
    file.unlink()
    clock.now += 60
    with pytest.raises(RegistryDown):
        decode(unknown, registry)
    assert decode(GOOD, registry).grid == "north", "what is known needs no registry"
    file.write_text('{"1": {"form": "arrow"}, "7": {"form": "arrow"}}')
    assert decode(unknown, registry).grid == "north", "a new one is learned without a restart"


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"1": 2}', '{"x": {"form": "arrow"}}', '{"1": {}}'])
def test_a_registry_that_cannot_be_read_is_down(tmp_path: Path, text: str) -> None:
    file = tmp_path / "registry.json"
    file.write_text(text)
    with pytest.raises(RegistryDown):
        decode(GOOD, SchemaRegistry(file, Clock()))


def test_a_form_that_this_program_does_not_know_is_poison(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    file.write_text('{"1": {"form": "avro"}}')
    with pytest.raises(Poison, match="of form avro"):
        decode(GOOD, SchemaRegistry(file, Clock()))


def test_every_schema_file_is_registered_and_every_version_can_be_read_as_the_next() -> None:
    entries = json.loads((HOME / "registry.json").read_text())
    assert {e["file"] for e in entries.values()} == {p.name for p in HOME.glob("*.json")} - {"registry.json"}
    assert (entries[str(ARROW)]["form"], entries[str(JSON)]["form"]) == ("arrow", "json")
    files: dict[str, list[dict[str, Any]]] = {}
    for entry in entries.values():
        found = schema(entry["file"])
        assert (found["name"], found["version"]) == (entry["name"], entry["version"])
        files.setdefault(entry["name"], []).append(found)
    for versions in files.values():
        ordered = sorted(versions, key=lambda one: one["version"])
        assert [one["version"] for one in ordered] == list(range(1, len(ordered) + 1))
        for old, new in itertools.pairwise(ordered):
            assert incompatible(old, new) == []


def test_what_breaks_old_readers_is_named() -> None:
    old = schema("scan-v1.json")

    def changed_by(change: Callable[[list[dict[str, Any]]], Any]) -> list[str]:
        new = json.loads(json.dumps(old))
        change(new["fields"])
        return incompatible(old, new)

    assert changed_by(lambda fields: None) == []
    assert changed_by(lambda fields: fields.append({"name": "zone", "type": "string", "nullable": True})) == []
    assert changed_by(lambda fields: fields.append({"name": "zone", "type": "string", "nullable": False})) == [
        "zone is new and not nullable"
    ]
    assert changed_by(lambda fields: fields.pop(0)) == ["grid is gone"]
    assert changed_by(lambda fields: fields[2].update(type="float64")) == ["time_ns was int64, is float64"]
    assert changed_by(lambda fields: fields[4].update(nullable=False)) == ["epoch may not be null any more"]


# --- units ------------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["case14", "case57"]), st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_what_lies_in_the_usual_range_is_in_no_wrong_unit(case: str, seed: int, edge: float) -> None:
    grid, rng = load_case(case), np.random.default_rng(seed)
    size = layout_of(grid).size
    channels = np.sort(rng.choice(size, rng.integers(1, size), replace=False)).astype(np.int64)
    low, high = usual_range(case, channels.tobytes())
    z = np.where(rng.random(channels.size) < edge, np.where(rng.random(channels.size) < 0.5, low, high), 0.0)
    z = np.where(z == 0.0, low + (high - low) * rng.random(channels.size), z)
    z[rng.random(channels.size) < 0.1] = np.nan
    assert wrong_unit(grid, channels, z[None]) is None


def test_readings_beyond_the_usual_range_are_looked_at_and_one_bad_meter_is_no_unit() -> None:
    m = scan()
    z = m.z_M.copy()
    z[0] = 130.0
    assert decode(encode(scan(z_M=z))).z_M[0] == 130.0
