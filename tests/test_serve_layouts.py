"""serve.layouts: every bus has a place of its own inside the square, and GB stands upright."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gg_ray.grid.cases import CaseError, load_case
from gg_ray.records import F64
from serve.answers import Layout
from serve.layouts import layout_of

SMALL = ("case14", "case30", "case57", "gb29", "gb-balance", "case39", "case118", "case300", "illinois200")


def places(name: str) -> F64:
    return np.array([[bus["x"], bus["y"]] for bus in layout_of(name)["buses"]])


@pytest.mark.parametrize("name", [*SMALL, pytest.param("gb", marks=pytest.mark.slow)])
def test_every_bus_is_drawn_inside_the_square_in_the_order_of_the_case(name: str) -> None:
    case, told = load_case(name), layout_of(name)
    at = places(name)
    assert at.min() >= 0.0
    assert at.max() <= 1.0
    assert np.isclose(np.ptp(at, axis=0).max(), 1.0)
    assert [bus["name"] for bus in told["buses"]] == list(case.bus_names)
    assert [branch["name"] for branch in told["branches"]] == list(case.branch_names)
    assert [(b["from"], b["to"]) for b in told["branches"]] == list(zip(case.f_bus, case.t_bus, strict=True))
    Layout.model_validate({"grid": "north", **told})
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("name", SMALL)
def test_no_two_buses_of_a_small_grid_lie_on_one_point(name: str) -> None:
    at = places(name)
    apart = np.linalg.norm(at[:, None] - at[None], axis=2) + np.eye(len(at))
    assert apart.min() > 0.004


def test_both_sides_have_one_scale() -> None:
    case, at = load_case("gb29"), places("gb29")
    drawn, published = np.ptp(at, axis=0), np.ptp(case.layout, axis=0)
    assert drawn[0] / drawn[1] == pytest.approx(published[0] / published[1], abs=1e-4)
    assert at[:, 0].min() == pytest.approx(1.0 - at[:, 0].max(), abs=1e-4)


def test_gb29_has_the_north_above_the_south_and_the_east_to_the_right() -> None:
    """Numbers of the reduced network: 0 Beauly, 1 Peterhead, 19 Bramford, 26 Sellindge, 28 the south-west."""
    told = layout_of("gb29")
    x = {bus["name"]: bus["x"] for bus in told["buses"]}
    y = {bus["name"]: bus["y"] for bus in told["buses"]}
    assert told["geographic"]
    assert y["0"] < y["8"] < y["15"] < y["26"]
    assert x["0"] < x["1"]
    assert x["28"] < x["26"] < x["19"]
    assert not layout_of("gb")["geographic"]


def test_the_national_graph_is_a_hub_with_each_kind_in_one_arc() -> None:
    told = layout_of("gb-balance")
    hub, *others = told["buses"]
    assert hub["kind"] == "hub"
    ring = [bus for bus in others if bus["kind"] != "embedded"]
    reach = [np.hypot(bus["x"] - hub["x"], bus["y"] - hub["y"]) for bus in ring]
    assert np.ptp(reach) < 1e-4
    turn = sorted(ring, key=lambda bus: np.arctan2(bus["y"] - hub["y"], bus["x"] - hub["x"]))
    changes = sum(a["kind"] != b["kind"] for a, b in zip(turn, turn[1:] + turn[:1], strict=True))
    assert changes == 3
    assert {bus["kind"] for bus in told["buses"]} == {"hub", "fuel", "link", "demand", "embedded"}


def test_a_large_grid_without_positions_keeps_regions_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.layouts.SCALE_CASES", ("case300",))
    layout_of.cache_clear()
    at, case = places("case300"), load_case("case300")
    layout_of.cache_clear()
    region = case.region[case.substation]
    apart = np.linalg.norm(at[:, None] - at[None], axis=2) + np.eye(len(at))
    assert apart.min() > 1e-3
    nearest = apart.argmin(axis=1)
    assert np.mean(region[nearest] == region) > 0.9


def test_ratings_that_nobody_published_are_not_shown() -> None:
    derived = {name: load_case(name).derived_rating for name in ("case14", "gb29", "case39", "gb-balance")}
    assert set(derived.values()) == {True, False}
    for name, made in derived.items():
        assert all((branch["rate_mva"] is None) == made for branch in layout_of(name)["branches"])


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(CaseError, match="gb92"):
        layout_of("gb92")
