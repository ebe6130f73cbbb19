"""Segments: round trip is identity, every flipped bit is found; stores own what they hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.records import Event, Experience, Labels, Program
from gg_ray.replay import segments
from gg_ray.replay.segments import (
    ColumnStore,
    SegmentError,
    decode_block,
    decode_experiences,
    encode_block,
    encode_experiences,
    experience_store,
    own_experience,
    read_segment,
    write_segment,
)


def experience(seed: int, extra: dict[str, Any] | None = None, buses: int | None = None) -> Experience:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9)) if buses is None else buses
    e, t = n + 1, 16
    return Experience(
        case="case14",
        plan_id=seed % 8,
        node_TNF=rng.standard_normal((t, n, 5)).astype(np.float16),
        edge_TEF=rng.standard_normal((t, e, 3)).astype(np.float16),
        xhat_N2=rng.standard_normal((n, 2)).astype(np.float32),
        states_SN2=rng.standard_normal((4, n, 2)).astype(np.float32),
        meas_N2=np.full((n, 2), np.nan, dtype=np.float32),
        sigma_N2=np.full((n, 2), np.inf, dtype=np.float32),
        param_E3=rng.standard_normal((e, 3)).astype(np.float32),
        jac_NJ=rng.standard_normal((n, 12)).astype(np.float16),
        labels=Labels(
            implausible=bool(seed % 2), disturbance=False, severity=0.1 + seed, type=seed % 13,
            node_N=rng.random(n) < 0.5, edge_E=rng.random(e) < 0.5, onset=3, end=-1,
        ),
        program=Program(
            case="case14", context_id=1, plan_id=2, events=(Event("trip", 3, 4), Event("bias", 1, 2, 3, 4, 5)),
            scans=t, seed=2**63 - 1, source="mutation",
        ),
        pair=seed // 2,
        source="proposer",
        d_eff=float("inf") if seed == 0 else 3.3,
        p_star=0.95,
        p_bar=float("nan"),
        learnability=0.1 * seed,
        version=seed,
        extra={} if extra is None else extra,
    )  # fmt: skip


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b), (a, b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(np.float32(1.5))
    | st.just(np.arange(6, dtype=np.int16).reshape(2, 3))
)
EXTRA = st.dictionaries(
    st.text(max_size=6),
    st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(
        st.sampled_from(["kind", "items", "a"]), inner, max_size=3), max_leaves=6),
    max_size=3,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=4), EXTRA, st.sampled_from(["lz4", "zstd"]))
def test_round_trip_is_identity(seeds: list[int], extra: dict[str, Any], compression: segments.Compression) -> None:
    items = [experience(s, extra) for s in seeds]
    back = decode_experiences(encode_experiences(items, compression))
    assert_same(items, back)
    for item in back:
        assert item.node_TNF.flags.owndata
        assert item.node_TNF.flags.writeable


def test_empty_arrays_and_views_survive() -> None:
    item = experience(3, buses=4)
    item.edge_TEF = np.zeros((16, 0, 3), dtype=np.float16)
    item.node_TNF = item.node_TNF.transpose(2, 1, 0)[::-1]
    (back,) = decode_experiences(encode_experiences([item]))
    assert back.edge_TEF.shape == (16, 0, 3)
    np.testing.assert_array_equal(back.node_TNF, item.node_TNF)


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    size = write_segment(path, [experience(1), experience(2)])
    good = path.read_bytes()
    assert len(good) == size
    assert [p.name for p in tmp_path.iterdir()] == ["a.arrow"]
    rng = np.random.default_rng(0)
    for at in [
        *range(64),
        *rng.integers(64, size, 200).tolist(),
        size - 1,
    ]:  # the whole header, and a sample of the body
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.raises(SegmentError, match=r"a\.arrow"):
            read_segment(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d[: len(d) // 2], "torn"),
        (lambda d: b"", "not a Grid Guardian segment"),
        (lambda d: d + b"x", "torn"),
        (lambda d: b"ARROW1" + d, "not a Grid Guardian segment"),
        (lambda d: d[:8] + b"\x63" + d[9:], "schema version 99"),
        (lambda d: encode_block({"x": np.zeros(3)}), "another kind"),
    ],
)
def test_torn_and_foreign_files_are_refused_with_the_reason(tmp_path: Path, change: Any, reason: str) -> None:
    path = tmp_path / "b.arrow"
    write_segment(path, [experience(1)])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SegmentError, match=reason) as info:
        read_segment(path)
    assert "b.arrow" in str(info.value)


def test_well_formed_arrow_with_wrong_columns_is_refused() -> None:
    import pyarrow as pa

    data = segments._pack("exps", pa.table({"case": ["case14"]}), "lz4")
    with pytest.raises(SegmentError, match="not a segment of experiences"):
        decode_experiences(data, "c.arrow")


def test_extra_that_cannot_be_stored_is_refused_by_name() -> None:
    with pytest.raises(SegmentError, match="extra"):
        encode_experiences([experience(1, {"bad": object()})])


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.arrow"
    write_segment(path, [experience(1)])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_segment(path, [experience(2), experience(3)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.arrow"]


def test_read_only_views_are_copied_and_owned_arrays_are_not() -> None:
    item = experience(1, {"note": np.frombuffer(b"12345678", dtype=np.uint8)})
    shared = np.frombuffer(item.node_TNF.tobytes(), dtype=np.float16).reshape(item.node_TNF.shape)  # as from ray.get
    zero_copy = dataclasses.replace(item, node_TNF=shared)
    zero_copy.labels.node_N.flags.writeable = False
    owned = own_experience(zero_copy)
    assert owned.node_TNF.flags.writeable
    assert not np.shares_memory(owned.node_TNF, shared)
    assert owned.labels.node_N.flags.writeable
    assert owned.extra["note"].flags.owndata
    assert owned.edge_TEF is item.edge_TEF
    np.testing.assert_array_equal(owned.node_TNF, shared)


def test_column_store_copies_both_ways_and_names_a_wrong_column() -> None:
    store = ColumnStore(8, {"x": ((3,), np.float32), "y": ((), np.int64)})
    block = {"x": np.ones((2, 3), np.float32), "y": np.array([1, 2])}
    assert store.sizes(block).tolist() == [20, 20]
    store.put(slice(0, 2), block)
    block["x"][:] = 7
    got = store.get(np.array([1, 0]))
    assert got["x"].max() == 1
    assert got["y"].tolist() == [2, 1]
    got["x"][:] = 9
    assert store.get(np.array([0]))["x"].max() == 1
    with pytest.raises(ValueError, match="'x' is float64"):
        store.sizes({"x": np.ones((2, 3)), "y": block["y"]})
    with pytest.raises(ValueError, match="columns"):
        store.sizes({"x": block["x"]})
    back = decode_block(encode_block(store.get(np.array([0, 1]))))
    assert back["y"].tolist() == [1, 2]
    assert back["x"].dtype == np.float32


def test_object_store_forgets_what_is_dropped() -> None:
    store = experience_store(4)
    item = experience(1)
    store.put(np.array([2]), store.own([item]))
    assert store.get(np.array([2]))[0].pair == item.pair
    store.drop(np.array([2]))
    assert store.get(np.array([2])) == [None]
