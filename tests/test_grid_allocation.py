"""National figures on the map: shares add up, links land where the data folder says, nothing is called measured."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from gg_ray.elexon.rows import FUEL_TYPES
from gg_ray.grid.allocation import LANDING, PLACES, AllocationError, allocation
from gg_ray.grid.cases import load_case

DATA = Path(os.environ.get("GG_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (DATA / "topology").is_dir(), reason="needs the GB data folder (GG_DATA_DIR)")


@pytest.mark.parametrize("folder", ["", pytest.param(str(DATA), marks=needs_data)])
def test_nothing_is_lost_and_nothing_made(folder: str) -> None:
    shares = allocation(2024, folder)
    rng = np.random.default_rng(1)
    supply, demand = rng.uniform(-500, 5_000, len(FUEL_TYPES)), 28_000.0
    assert shares.injections(supply, demand).sum() == pytest.approx(supply.sum() - demand)
    np.testing.assert_allclose(shares.supply_CN.sum(axis=1), 1.0)
    assert shares.demand_N.min() >= 0
    assert shares.note.startswith("allocated, not measured")


def test_a_link_is_seen_at_its_landing_point_alone() -> None:
    supply = np.full(len(FUEL_TYPES), np.nan)
    supply[FUEL_TYPES.index("INTNSL")] = 1_400.0
    found = allocation(2024).injections(supply, 0.0)
    at = load_case("gb29").node_of_bus[PLACES.index("Stella West")]
    assert found[at] == pytest.approx(1_400.0)
    assert np.count_nonzero(found) == 1


@needs_data
def test_places_and_landings_are_those_of_the_data_folder() -> None:
    folder = DATA / "topology" / "reduced29"
    with (folder / "buses.csv").open(encoding="utf-8-sig", newline="") as file:
        assert tuple(row["name"] for row in csv.DictReader(file)) == PLACES
    codes = {
        "BritNed": "INTNED", "EastWest": "INTEW", "Moyle": "INTIRL", "Nemo": "INTNEM", "IFA": "INTFR",
        "IFA2": "INTIFA2", "NSL": "INTNSL", "ElecLink": "INTELEC", "Viking Link": "INTVKL", "Greenlink": "INTGRNL",
    }  # fmt: skip
    landing = {}
    for name in ("links.csv", "links_future.csv"):
        with (folder / name).open(encoding="utf-8-sig", newline="") as file:
            landing |= {codes[row["name"]]: row["bus1"] for row in csv.DictReader(file) if row["name"] in codes}
    assert landing == LANDING


@needs_data
def test_london_draws_more_than_the_highlands() -> None:
    shares, case = allocation(2024, str(DATA)), load_case("gb29")
    demand = {name: shares.demand_N[case.node_of_bus[i]] for i, name in enumerate(PLACES)}
    assert demand["London"] > 0.1 > 0.02 > demand["Beauly"] > 0.001


def test_a_year_or_bus_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "topology" / "reduced29"
    folder.mkdir(parents=True)
    (folder / "Demand_Distribution.csv").write_text("﻿Node,2020,\nBeauly,300,1%\n\n", encoding="utf-8")
    with pytest.raises(AllocationError, match="no column 2060"):
        allocation(2060, str(tmp_path))
    with pytest.raises(AllocationError, match="Peterhead"):
        allocation(2020, str(tmp_path))
