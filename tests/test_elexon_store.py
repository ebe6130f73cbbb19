"""The day store: whole days or none, the latest publication wins, damage is named and never stops a feed."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.elexon import store as store_module
from gg_ray.elexon.rows import (
    FUEL_TYPES,
    DailyDemandRow,
    DemandRow,
    FrequencyRow,
    FuelRow,
    OneDemandRow,
    Row,
    WarningRow,
)
from gg_ray.elexon.scans import from_columns, scans_from
from gg_ray.elexon.store import DAMAGED, DayStore, StoreError, latest_of

DAY = date(2024, 6, 4)
START = datetime(2024, 6, 4, tzinfo=UTC)
FETCHED = datetime(2024, 6, 5, 3, tzinfo=UTC)
MIN = timedelta(minutes=1)


def fuel(minute: int, code: str = "CCGT", mw: int | None = 9_000, delay: int | None = 5) -> FuelRow:
    start = START + minute * MIN
    published = None if delay is None else start + delay * MIN
    return FuelRow(
        start=start, fuel=code, generation_mw=mw, published=published, settlement_date=DAY, settlement_period=1
    )


def full_day(store: DayStore) -> list[Row]:
    rows: list[Row] = [fuel(5 * i, code, i) for i in range(288) for code in sorted(FUEL_TYPES)]
    store.write("FUELINST", DAY, rows, FETCHED)
    return rows


@pytest.mark.parametrize(
    ("stream", "row"),
    [
        ("FUELHH", fuel(30, "INTELE", None, None)),
        ("FREQ", FrequencyRow(time=START + timedelta(seconds=15), frequency_hz=49.987)),
        ("DEMAND", DemandRow(start=START, indo_mw=None, itsdo_mw=30_000, published=START + 40 * MIN)),
        ("INDO", OneDemandRow(start=START, demand_mw=28_000, published=None, settlement_date=DAY)),
        ("INDOD", DailyDemandRow(settlement_date=DAY, demand_mwh=676_741, published=START + timedelta(hours=23))),
        ("WARNINGS", WarningRow(published=START + timedelta(microseconds=7), kind="NORMAL", text="£ – ok")),
    ],
)
def test_every_row_comes_back_as_it_was(tmp_path: Path, stream: str, row: Row) -> None:
    store = DayStore(tmp_path)
    path = store.write(stream, DAY, [row], FETCHED)
    again = store.read(stream, START, START + timedelta(hours=24))
    assert again == [row]
    assert again[0].model_dump_json() == row.model_dump_json()
    before = path.read_bytes()
    store.write(stream, DAY, again, FETCHED)
    assert path.read_bytes() == before
    assert store.info(stream, DAY) == store_module.DayInfo(rows=1, slots=1, fetched=FETCHED)


def test_read_is_cut_to_its_window_and_oldest_first(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    assert store.merge("FUELINST", [fuel(24 * 60), fuel(10), fuel(0), fuel(5)], FETCHED) == 4
    assert store.days("FUELINST") == [DAY, DAY + timedelta(days=1)]
    starts = [
        row.start for row in store.read("FUELINST", START + 5 * MIN, START + 10 * MIN) if isinstance(row, FuelRow)
    ]
    assert starts == [START + 5 * MIN, START + 10 * MIN]
    assert store.read("FREQ", START, START + MIN) == []


def test_later_publication_wins_and_merging_again_changes_nothing(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    old, new = fuel(0, mw=1, delay=5), fuel(0, mw=2, delay=9)
    assert store.merge("FUELINST", [new, old], FETCHED) == 1
    assert store.merge("FUELINST", [old], FETCHED + MIN) == 0
    assert store.read("FUELINST", START, START) == [new]
    assert store.merge("FUELINST", [new, old], FETCHED + 2 * MIN) == 0
    info = store.info("FUELINST", DAY)
    assert info is not None
    assert info.fetched == FETCHED + 2 * MIN
    assert store.merge("FUELINST", [fuel(0, mw=3, delay=9)], FETCHED) == 1  # same publish time: what was fetched last
    assert store.merge("FUELINST", [fuel(0, mw=None, delay=9)], FETCHED) == 0  # a null says nothing new
    assert store.merge("FUELINST", [fuel(0, mw=None, delay=20)], FETCHED) == 1  # withdrawn


ROWS = st.lists(
    st.builds(
        fuel, st.integers(-300, 300).map(lambda i: 5 * i), st.sampled_from(["CCGT", "PS", "INTELE"]),
        st.one_of(st.none(), st.integers(-9, 9)), st.one_of(st.none(), st.integers(5, 8)),
    ),
    max_size=25,
)  # fmt: skip


@settings(max_examples=20)  # each writes some days to the disk
@given(ROWS, ROWS)
def test_merge_is_idempotent_and_counts_news(
    tmp_path_factory: pytest.TempPathFactory, a: list[Row], b: list[Row]
) -> None:
    store = DayStore(tmp_path_factory.mktemp("s"))
    assert store.merge("FUELINST", a, FETCHED) == len(latest_of(a))
    store.merge("FUELINST", b, FETCHED)
    span = (START - timedelta(days=2), START + timedelta(days=2))
    held = store.read("FUELINST", *span)
    assert len({(row.start, row.fuel) for row in held if isinstance(row, FuelRow)}) == len(held)
    assert store.merge("FUELINST", b, FETCHED) == 0
    assert store.merge("FUELINST", held, FETCHED) == 0
    assert store.read("FUELINST", *span) == held


def test_columns_and_rows_make_the_same_scans(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    full_day(store)
    store.merge("FUELINST", [fuel(5, "INTELE", 7), fuel(24 * 60, "WIND", 5)], FETCHED)
    store.merge("DEMAND", [DemandRow(start=START, indo_mw=30_000, itsdo_mw=None, published=START + 40 * MIN)], FETCHED)
    end = START + timedelta(days=1, hours=1)
    tables = [store.read_columns(stream, START, end) for stream in ("FUELINST", "DEMAND")]
    assert tables[0].counts == {"unknown_fuel:INTELE": 1}
    a = from_columns(tables, 300, START, end)
    b = scans_from({stream: store.read(stream, START, end) for stream in ("FUELINST", "DEMAND")}, 300, START, end)
    for name in ("t0_ns", "value_SC", "age_SC", "published_ns_SC"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.channel("INDO")[5] == 30_000
    with pytest.raises(StoreError, match="INDOD has no channel"):
        store.read_columns("INDOD", START, end)
    assert store.read_columns("FREQ", START, end).t0_ns.size == 0


def test_rows_of_another_day_or_kind_are_refused(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    with pytest.raises(StoreError, match="belongs elsewhere"):
        store.write("FUELINST", DAY, [fuel(24 * 60)], FETCHED)
    with pytest.raises(StoreError, match="belongs elsewhere"):
        store.write("FREQ", DAY, [fuel(0)], FETCHED)


def test_damage_is_set_aside_counted_and_the_day_can_be_written_again(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    path = store.write("FUELINST", DAY, [fuel(0)], FETCHED)
    whole = path.read_bytes()
    torn, flipped = whole[:-9], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    for count, data in enumerate((torn, flipped, b"", b"GIF89a"), start=1):
        path.write_bytes(data)
        with pytest.raises(StoreError, match=rf"{DAY}\.parquet: damaged, its {len(data)} bytes"):
            DayStore(tmp_path, strict=True).read("FUELINST", START, START)
        assert store.read("FUELINST", START, START) == []
        assert store.damaged["FUELINST"] == count
        assert path.with_name(path.name + DAMAGED).read_bytes() == data
        assert store.days("FUELINST") == []
        assert store.merge("FUELINST", [fuel(0)], FETCHED) == 1
        assert len(store.read("FUELINST", START, START)) == 1


def test_foreign_parquet_and_another_streams_file_are_refused(tmp_path: Path) -> None:
    store = DayStore(tmp_path, strict=True)
    path = store.path("FUELINST", DAY)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(StoreError, match="no readable sha256 beside it"):
        store.read("FUELINST", START, START)
    assert store.info("FUELINST", DAY) is None
    other = store.write("FUELHH", DAY, [fuel(0)], FETCHED)
    for suffix in (".parquet", ".sha256"):
        path.with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())
    with pytest.raises(StoreError, match="holds FUELHH, not FUELINST"):
        store.read("FUELINST", START, START)


def test_a_crash_between_hash_and_file_leaves_the_old_day_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DayStore(tmp_path, strict=True)
    store.write("FUELINST", DAY, [fuel(0, mw=1)], FETCHED)
    real = store_module.write_atomic

    def full_disk(path: Path, data: bytes | str) -> Path:
        if path.suffix == ".parquet":
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(store_module, "write_atomic", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.write("FUELINST", DAY, [fuel(0, mw=2)], FETCHED)
    assert store.read("FUELINST", START, START) == [fuel(0, mw=1)]
    monkeypatch.setattr(store_module, "write_atomic", real)
    store.write("FUELINST", DAY, [fuel(0, mw=3)], FETCHED)
    assert store.read("FUELINST", START, START) == [fuel(0, mw=3)]


def test_trim_keeps_the_last_days(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    for back in range(10):
        store.merge("FREQ", [FrequencyRow(time=START - timedelta(days=back), frequency_hz=50)], FETCHED)
    store.path("FREQ", DAY - timedelta(days=9)).rename(tmp_path / "FREQ" / f"2024-05-26.parquet{DAMAGED}")
    (tmp_path / "FREQ" / "notes.txt").write_text("mine")
    store.trim(7, START)
    assert store.days("FREQ") == [DAY - timedelta(days=back) for back in range(7, -1, -1)]
    assert sorted(path.name for path in (tmp_path / "FREQ").iterdir() if "05-2" in path.name) == [
        f"2024-05-{d}.{end}" for d in (28, 29) for end in ("parquet", "sha256")
    ]
    assert (tmp_path / "FREQ" / "notes.txt").exists()


def test_a_week_of_all_streams_is_small(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    full_day(store)
    assert store.path("FUELINST", DAY).stat().st_size < 100_000
