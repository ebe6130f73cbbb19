"""The shipped statistics of GB half-hours: derived again, refused when damaged, and like the record."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elexon_rows import DATA, with_data
from scenario_sources import artificial, ns, real

from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.scenario import climatology as clim
from gg_ray.scenario.climatology import Climatology, ClimatologyError
from gg_ray.scenario.context import SPLITS, ContextSource


@with_data
def test_deriving_again_gives_the_shipped_file(tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    clim.main([str(DATA), "--out", str(out)])
    shipped_path = Path(clim.__file__).with_name(clim.FILE)
    again, shipped = (json.loads(p.read_text(encoding="utf-8")) for p in (out, shipped_path))
    assert shipped_path.stat().st_size < 300_000
    for name in ("format", "attribution", "command", "inputs_sha256", "half_hours"):
        assert again[name] == shipped[name]

    def same(a: object, b: object) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            assert a.keys() == b.keys()
            for key in a:
                same(a[key], b[key])
        else:
            # One unit of the last decimal: another BLAS may sum in another order.
            np.testing.assert_allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), atol=2e-6)

    for name in ("load", "wind", "shape", "extremes"):
        same(again[name], shipped[name])


def shipped() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(clim.__file__).with_name(clim.FILE).read_text(encoding="utf-8"))
    return record


def test_shipped_statistics_carry_their_attribution() -> None:
    record = shipped()
    assert record["attribution"] == (
        "Contains BMRS data © Elexon Limited copyright and database right 2019, 2021, 2023, 2024"
    )
    assert len(record["inputs_sha256"]) == 4
    assert all(len(str(v)) == 64 for v in record["inputs_sha256"].values())


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("load", "mean", [1.0]),
        ("load", "std", None),
        ("load", "own_lags", [0.9, 0.95, 0.5]),
        ("load", "own_lags", [float("nan"), 0.7, 0.5]),
        ("wind", "quantiles", [[0.9, *[0.5] * 8]] * 12),
        ("wind", "lag1", 1.5),
        ("shape", "std", "wide"),
    ],
)
def test_damaged_statistics_are_refused(part: str, name: str, value: object) -> None:
    record = shipped()
    record[part][name] = value
    with pytest.raises(ClimatologyError):
        Climatology.from_dict(record)


def test_foreign_or_partial_statistics_are_refused() -> None:
    with pytest.raises(ClimatologyError, match="format: 99"):
        Climatology.from_dict(shipped() | {"format": 99})
    with pytest.raises(ClimatologyError, match="wind: NoneType"):
        Climatology.from_dict({k: v for k, v in shipped().items() if k != "wind"})


def test_fitted_processes_have_the_correlations_they_were_given() -> None:
    share, slow, fast = clim.two_scale(0.99, 0.73, 0.64)
    assert share * slow + (1 - share) * fast == pytest.approx(0.99)
    assert share * slow**48 == pytest.approx(0.73)
    assert share * slow**96 == pytest.approx(0.64)
    a, b = clim.smooth_pair(0.9966, 0.4)
    rho = [1.0, a / (1 - b)]
    for _ in range(47):
        rho.append(a * rho[-1] + b * rho[-2])
    assert rho[1] == pytest.approx(0.9966, abs=1e-6)
    assert rho[48] == pytest.approx(0.4, abs=0.01)


def test_bank_holidays_and_day_types() -> None:
    assert date(2024, 3, 29) in clim.bank_holidays(2024)
    assert date(2024, 4, 1) in clim.bank_holidays(2024)
    assert {date(2021, 12, 27), date(2021, 12, 28)} <= clim.bank_holidays(2021)  # substitutes of a weekend Christmas
    assert date(2023, 1, 2) in clim.bank_holidays(2023)
    assert len(clim.bank_holidays(2019)) == 8
    week = [clim.day_type(date(2024, 6, 3) + timedelta(days=i)) for i in range(7)]
    assert week == [0, 0, 0, 0, 0, 1, 2]
    assert clim.day_type(date(2024, 5, 6)) == 2


def test_local_cells_follow_the_clock_on_change_days() -> None:
    def slots(start: str, half_hours: int) -> list[int]:
        t0 = ns(start) + np.arange(half_hours, dtype=np.int64) * HALF_HOUR_NS
        return [int(slot) for slot in clim.local_cells(t0)[2]]

    assert slots("2024-03-31T00:00", 46) == [0, 1, *range(4, 48)]
    assert slots("2024-10-26T23:00", 50) == [0, 1, 2, 3, 2, 3, *range(4, 48)]


def test_a_day_of_noise_depends_on_its_date_and_its_chain_only() -> None:
    model = Climatology.load()
    days = np.arange(12_000, 12_010, dtype=np.int64)
    restart = np.isin(np.arange(10), [0, 4])
    whole = model.generate(days, restart)
    part = model.generate(days[4:], restart[4:])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[4 * 48 :], b)


@with_data
def test_climatology_resembles_the_record() -> None:
    levels = (0.01, 0.1, 0.5, 0.9, 0.99)

    def sample(source: ContextSource, field: str) -> np.ndarray:
        return np.concatenate([getattr(source.day(i, 1_800.0, s), field) for s in SPLITS for i in range(250)])

    for field, tolerance in (("load_T", 0.06), ("wind_T", 0.08), ("shape_T", 0.08)):
        a, b = (np.quantile(sample(source, field), levels) for source in (real(), artificial()))
        np.testing.assert_allclose(a, b, atol=tolerance)
    for field in ("load_T", "wind_T"):  # half-hourly ramps: same spread within a quarter
        a, b = (
            np.std(np.diff([getattr(s.day(i, 1_800.0, "train"), field) for i in range(250)]))
            for s in (real(), artificial())
        )
        assert 0.75 < a / b < 1.34
