"""The suite on real data, on a small made-up record: what is found, what is a false incident, and who is told what."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gg_ray.config import ConfigError, RunConfig
from gg_ray.config_io import load
from gg_ray.evaluate import real_gb, real_report
from gg_ray.evaluate.scoring import BlockInfo, Output
from gg_ray.grid import balance as b
from gg_ray.records import TYPES
from gg_ray.scenario import balance_executor
from gg_ray.scenario.balance_record import BalanceRecord, from_statistics, record_of
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.history import FOLDER
from gg_ray.verifier.features import Prepared

INFO = BlockInfo(fold=0, model="v1", seed=0, commit="none", learner_steps=1, executor_calls=1)


class LawMethod:
    """Scores a window by the balance law of its newest scans alone: what it must find is known beforehand."""

    name = "verifier"

    def prepare(self, fit: object, rng: np.random.Generator) -> None:
        self.fitted = fit

    def output(self, prepared: Prepared) -> Output:
        z = np.abs(prepared.r_BTM[:, -1, b.M_UNREPORTED])
        node = np.zeros((len(z), len(b.BUSES)))
        node[:, b.BUSES.index("CCGT")] = z
        return Output(
            z, node_BN=node, type_B=np.full(len(z), TYPES.index("S3")), disturbance_B=np.zeros(len(z))
        )  # fmt: skip


def damaged(record: BalanceRecord) -> tuple[BalanceRecord, list[int]]:
    """A record with three dead half-hours in 2023 and 2024 each, an unlisted shortfall in 2024, and a silent one."""
    stream = record.stream_HC.copy()
    year = record.t0_ns.astype("datetime64[ns]").astype("datetime64[Y]").astype(int) + 1970
    bad = []
    for wanted in (2023, 2024):
        first = int(np.flatnonzero((year == wanted) & record.trusted_H)[400])
        stream[first : first + 3, :10] = 0.0
        bad += [first, first + 1, first + 2]
    shortfall = int(np.flatnonzero((year == 2024) & record.trusted_H)[600])
    stream[shortfall, b.CHANNELS.index("CCGT")] -= 5_000.0
    heard = np.isfinite(stream[:, 0])
    return record_of(record.t0_ns[heard], stream[heard], "history"), bad


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BalanceRecord]:
    record, bad = damaged(from_statistics(quarters=1))
    root = tmp_path_factory.mktemp("data")
    (root / FOLDER).mkdir()
    (root / "events").mkdir()
    with (root / "events" / "fuelhh_bad_publication_periods.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["period_start_utc", "net_supply_minus_INDO_mw", "all_fuels_zero"])
        rows.writerows(
            [[str(np.datetime64(int(record.t0_ns[i]), "ns").astype("datetime64[s]")) + "Z", -9_000, 1] for i in bad]
        )
    return root, record


@pytest.fixture
def config(folder: tuple[Path, BalanceRecord], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    root, record = folder
    monkeypatch.setattr(real_gb, "load_record", lambda _folder: record)
    monkeypatch.setattr(balance_executor, "load_record", lambda _folder: record)
    made = load("gb-balance")
    return replace(
        made, scenario=replace(made.scenario, data_dir=str(root)), evaluate=replace(made.evaluate, windows=3)
    )  # fmt: skip


def test_dead_publications_are_found_at_once_and_counted_apart(config: RunConfig, tmp_path: Path) -> None:
    method = LawMethod()
    found = real_gb.evaluate_real(config, [method], ClimatologySource(), INFO)
    rows = {
        (block.suite.rsplit("/", 1)[1], row.family): row
        for block in found.blocks
        for row in block.rows
        if row.method == "verifier"
    }
    for split in ("validation", "test"):
        row = rows[split, "zero_publication"]
        assert row.event_recall == 1.0
        assert row.delay_scans == 0
    assert rows["test", "dead_record"].event_recall == 1.0
    # the threshold was set at one incident a month on the same kind of days
    assert rows["validation", "zero_publication"].false_incidents_per_day <= 1.01 / real_gb.DAYS_PER_MONTH
    budget = {block.suite: block.budget for block in found.blocks}
    assert budget["real-gb/publications/test"]["listed_events"] == 1
    assert budget["real-gb/publications/test"]["unlisted_events"] == 1
    # the quarter of this record that precedes is too short for a moving year: no threshold is given, nothing is found
    assert rows["trailing_year", "zero_publication"].event_recall == 0.0
    assert np.isinf(found.trailing["verifier"]).all()
    twins = [row.recall_at_fpr for block in found.blocks if block.suite.endswith("seeded") for row in block.rows]
    assert max(value for value in twins if value is not None) < 0.5
    assert "seasonal_naive" in found.thresholds
    families = {row.family for block in found.blocks if block.suite.endswith("seeded") for row in block.rows}
    assert families >= {"S1", "S2", "S3", "S4", "A1", "A2"}
    assert len(method.fitted[0].windows) > 100  # type: ignore[index]
    written = real_report.write_real_report(tmp_path, found, "small")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["suite"] == "real-gb"
    text = written.read_text(encoding="utf-8")
    assert "BMRS data" in text
    assert (tmp_path / "test_year.png").is_file()
    assert "FUELINST not scored: fuelinst_2022-03.parquet" in text  # what the folder lacks is said
    assert "Not drawn: 9 August 2019" in text
    assert "validation, zero_publication: 1 of 1 found were called S3, the family of such defects" in text


def test_without_the_folder_the_way_out_is_named(config: RunConfig) -> None:
    bare = replace(config, scenario=replace(config.scenario, data_dir=""))
    with pytest.raises(ConfigError, match="GG_DATA_DIR"):
        real_gb.evaluate_real(bare, [LawMethod()], ClimatologySource(), INFO)
