"""Frequency after a loss: against closed forms and against 9 August 2019."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from gg_ray.scenario.swing import System, swing

DATA = Path(os.environ.get("GG_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")


def test_the_first_second_falls_as_inertia_says() -> None:
    """df/dt = f0 dP / 2E before anything answers."""
    system = System(demand_mw=30_000.0, damping=0.0, response_mw_per_hz=0.0, recovery_s=1e9)
    f = swing(np.full(3, 1_000.0), system)
    assert f[0] == pytest.approx(-50.0 * 1_000.0 / (2 * 210_000.0), rel=0.02)
    assert f[2] == pytest.approx(3 * f[0], rel=0.02)


def test_load_damping_alone_settles_where_it_must() -> None:
    system = System(demand_mw=30_000.0, damping=0.02, response_mw_per_hz=0.0, recovery_s=1e9)
    f = swing(np.full(600, 300.0), system)
    assert f[-1] == pytest.approx(-300.0 / (0.02 * 30_000.0), rel=0.01)


def test_surplus_mirrors_loss_and_nothing_stays_nothing() -> None:
    system = System(demand_mw=30_000.0)
    down, up = swing(np.full(120, 400.0), system), swing(np.full(120, -400.0), system)
    np.testing.assert_allclose(up, -down, atol=1e-12)
    assert not swing(np.zeros(60), system).any()


def test_demand_is_shed_once_below_the_first_stage() -> None:
    system = System(demand_mw=25_000.0, response_mw=0.0, damping=0.0, recovery_s=1e9)
    f = swing(np.full(30, 1_600.0), system)
    assert f.min() < -1.2
    slope = np.diff(f)
    assert slope[-1] == pytest.approx(-50.0 * (1_600.0 - 0.037 * 25_000.0) / (2 * 210_000.0), rel=0.02)


def test_the_ninth_of_august_reaches_its_nadir() -> None:
    """Losses, inertia and damping as cited; response as delivered. The record's nadir is 48.787 Hz after 76 s."""
    path = DATA / "events" / "gb-2019-08-09.toml"
    if not path.is_file():
        pytest.skip("needs the GB data folder (GG_DATA_DIR)")
    event = tomllib.loads(path.read_text(encoding="utf-8"))
    seconds = np.arange(100)
    deficit = np.zeros(100)
    for loss in event["losses"]:
        deficit += np.where(seconds >= loss["at_s"], loss["mw"], 0.0)
    system = System(
        demand_mw=1_000.0 * event["demand_gw"], inertia_mvas=1_000.0 * event["inertia_gva_s"],
        damping=event["load_damping_percent_per_hz"] / 100.0, response_mw=1_022.0, response_mw_per_hz=2_044.0,
        recovery_s=1e9,
    )  # fmt: skip
    f = 50.0 + swing(deficit, system)
    assert f[:30].min() == pytest.approx(49.1, abs=0.15)  # first dip: 49.083 Hz at 26 s
    assert 48.6 < f.min() < 48.95
    assert 55 < f.argmin() < 95
