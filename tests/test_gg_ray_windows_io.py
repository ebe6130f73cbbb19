"""gg_ray.windows_io: three file forms carry the same windows, and every bad file is refused by name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gg_ray.config_io import load
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Program, Window
from gg_ray.scenario.context import context_source
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.grammar import Stratum
from gg_ray.windows_io import MAX_SCANS, WindowFileError, read_windows, write_windows


@pytest.fixture(scope="module")
def windows() -> list[tuple[Window, MeterPlan]]:
    executor = Executor(load_case("case14"), load("smoke").scenario, context_source(None))
    rng = np.random.default_rng(0)
    programs = [
        Program(
            case="case14", context_id=i, plan_id=0, scans=16, seed=i,
            events=executor.grammar.uniform(Stratum("hard", "", "case14"), 0, rng),
        )
        for i in range(6)
    ]  # fmt: skip
    return [(executor.realise(a, 0)[0], a.plan) for a in executor.run(programs) if a.main is not None]


@pytest.fixture(scope="module")
def rows(windows: list[tuple[Window, MeterPlan]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = write_windows(tmp_path_factory.mktemp("rows") / "w.json", windows)
    out: list[dict[str, Any]] = json.loads(path.read_text())
    return out


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".json"])
def test_round_trip(suffix: str, windows: list[tuple[Window, MeterPlan]], tmp_path: Path) -> None:
    back = read_windows(write_windows(tmp_path / f"w{suffix}", windows))
    assert len(back) == len(windows)
    for (one, plan), (two, plan_two) in zip(windows, back, strict=True):
        for name in ("z_TM", "age_TM", "status_TE", "tap_E", "x_scale_E"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        assert (one.case, one.t0_ns, one.step_s, one.moves) == (two.case, two.t0_ns, two.step_s, two.moves)
        np.testing.assert_array_equal(plan.channels, plan_two.channels)
        np.testing.assert_array_equal(plan.sigma, plan_two.sigma)
        np.testing.assert_array_equal(plan.index_of, plan_two.index_of)


def test_a_hand_made_window_needs_four_fields(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({name: rows[0][name] for name in ("case", "channels", "sigma", "z")}))
    [(window, plan)] = read_windows(path)
    assert window.step_s == 60.0
    assert (window.status_TE == 1).all()
    assert (window.x_scale_E == 1).all()
    np.testing.assert_array_equal(window.tap_E, load_case("case14").tap)
    np.testing.assert_array_equal(window.age_TM, np.where(np.isnan(window.z_TM), 255, 0))
    assert window.moves == ()
    assert plan.plan_id == window.plan_id


def scaled(first: int, last: int, factor: float, every: int = 1) -> Any:
    """Harm: readings of layout positions first..last (of every n-th meter among them) times a factor."""

    def harm(row: dict[str, Any]) -> None:
        channels = np.array(row["channels"])
        z = np.array([np.nan if v is None else v for v in row["z"]]).reshape(-1, channels.size)
        hit = np.flatnonzero((channels >= first) & (channels < last))[::every]
        z[:, hit] *= factor
        row["z"] = [None if np.isnan(v) else v for v in z.ravel()]

    return harm


def volts_in_kv(row: dict[str, Any]) -> None:
    channels = np.array(row["channels"])
    z = np.array([np.nan if v is None else v for v in row["z"]]).reshape(-1, channels.size)
    volts = channels < 14
    z[:, volts] *= load_case("case14").vn_kv[channels[volts]]
    row["z"] = [None if np.isnan(v) else v for v in z.ravel()]


def powers_in_mw(row: dict[str, Any]) -> None:
    scaled(14, 42, 100.0)(row)
    scaled(56, 10**6, 100.0)(row)


def put(name: str, value: Any) -> Any:
    return lambda row: row.__setitem__(name, value)


def at(name: str, index: int, value: Any) -> Any:
    return lambda row: row[name].__setitem__(index, value)


HARM: dict[str, tuple[Any, str]] = {
    "missing field": (lambda row: row.pop("sigma"), "field 'sigma' is missing"),
    "null field": (put("z", None), "field 'z' is missing"),
    "unknown grid": (put("case", "case15"), "did you mean"),
    "channels descend": (lambda row: row["channels"].reverse(), "channels must be whole numbers that ascend"),
    "channel outside": (at("channels", -1, 10**6), "channels must be whole numbers"),
    "channel between": (at("channels", 0, 0.5), "channels must be whole numbers"),
    "channel null": (at("channels", 0, None), "channels must be whole numbers"),
    "no channels": (put("channels", []), "channels must be whole numbers"),
    "sigma zero": (at("sigma", 0, 0.0), "positive numbers"),
    "sigma nan": (at("sigma", 0, None), "positive numbers"),
    "sigma short": (lambda row: row["sigma"].pop(), "positive numbers"),
    "z ragged": (lambda row: row["z"].pop(), "not a multiple"),
    "z empty": (put("z", []), "not a multiple"),
    "z infinite": (at("z", 0, float("inf")), "infinite value"),
    "z text": (at("z", 0, "much"), "not a list of numbers"),
    "z scalar": (put("z", 3.0), "not a list of numbers"),
    "volts in kV": (volts_in_kv, "divide by the nominal kV"),
    "volts in per cent": (scaled(0, 14, 100.0), "voltage meters read per cent where p.u. is expected; divide by 100"),
    "volts in an unknown unit": (scaled(0, 14, 7.7), "is not in p.u."),
    "powers in MW": (
        powers_in_mw,
        "P injection meters read MW where p.u. is expected; divide by the base MVA (100",
    ),
    "injections in kW": (scaled(14, 28, 1e5), "P injection meters read kW"),
    "half of the injections in MW": (scaled(14, 28, 100.0, every=2), "P injection meters read MW"),
    "Q in Mvar": (scaled(28, 42, 100.0), "Q injection meters read Mvar"),
    "flows in MW": (scaled(56, 10**6, 100.0), "P flow meters read MW"),
    "powers in an unknown unit": (lambda row: [scaled(a, b, 1e9)(row) for a, b in ((14, 42), (56, 999))], "exceeds"),
    "buses unknown": (
        put("buses", ["1", "2", "3a"]),
        "buses names 1 that case14 does not have, first '3a' (the",
    ),
    "buses few": (put("buses", ["1", "2"]), "buses must list all 14 buses of case14 in its order; 2 given"),
    "buses text": (put("buses", "1 2 3"), "buses must list all 14 buses"),
    "another topology": (put("topology", "0123456789abcdef"), "topology '0123456789abcdef' is not that of case14 here"),
    "age short": (put("age", [0.0]), "age needs"),
    "age negative": (at("age", 0, -1), "age holds -1"),
    "status two": (at("status", 0, 2), "status holds"),
    "status null": (at("status", 0, None), "status needs"),
    "tap zero": (at("tap", 0, 0.0), "tap holds 0"),
    "scale negative": (at("x_scale", 0, -1.0), "x_scale holds -1"),
    "moves broken": (put("moves", "[[1, 1.0"), "moves must list"),
    "moves short": (put("moves", [[1, 1.0]]), "moves must list"),
    "moves nowhere": (put("moves", [[999, 1.0, 3]]), "move of branch 999"),
    "step text": (put("step_s", "fast"), "step_s 'fast' is not a number"),
    "step zero": (put("step_s", -1.0), "step_s -1"),
    "time text": (put("t0_ns", "now"), "t0_ns 'now' is not a number"),
}


@pytest.mark.parametrize("name", HARM)
def test_a_bad_window_is_named_by_file_and_row(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    harm, message = HARM[name]
    damaged = copy.deepcopy(rows[:2])
    harm(damaged[1])
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(damaged))
    with pytest.raises(WindowFileError) as caught:
        read_windows(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad.json, window 1: ")


def test_a_giant_window_is_refused(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    row = copy.deepcopy(rows[0])
    row["z"] = [1.0] * (len(row["channels"]) * (MAX_SCANS + 1))
    path = tmp_path / "giant.json"
    path.write_text(json.dumps(row))
    with pytest.raises(WindowFileError, match="10001 scans; at most 10000"):
        read_windows(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".json"])
def test_a_torn_file_is_refused(suffix: str, windows: list[tuple[Window, MeterPlan]], tmp_path: Path) -> None:
    path = write_windows(tmp_path / f"torn{suffix}", windows)
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:size])
        with pytest.raises(WindowFileError, match=rf"^torn{suffix}: not readable"):
            read_windows(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "a,b", "unknown suffix '.csv'"), ("x.json", "[]", "no windows"), ("x.json", "3", "no windows"),
        ("x.json", "[3]", "window 0: a int"), ("x.json", "\x80", "not readable"),
    ],
)  # fmt: skip
def test_foreign_files_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(WindowFileError, match=message):
        read_windows(path)
    with pytest.raises(WindowFileError, match="no such file"):
        read_windows(tmp_path / "absent.json")
    with pytest.raises(WindowFileError, match="unknown suffix"):
        write_windows(tmp_path / "x.csv", [])


def test_angles_in_degrees_are_named(tmp_path: Path) -> None:
    case = load_case("gb29")
    n = case.n_bus
    channels = np.sort(np.r_[np.arange(n), 3 * n + np.arange(0, n, 2)])
    z = np.abs(np.r_[np.abs(case.v0), np.angle(case.v0 / case.v0[case.slack])[::2]]) * np.ones((16, 1))
    row = {"case": "gb29", "channels": channels.tolist(), "sigma": [0.01] * channels.size, "z": z.ravel().tolist()}
    path = tmp_path / "angles.json"
    path.write_text(json.dumps(row))
    assert read_windows(path)[0][0].z_TM.shape == z.shape
    z[:, n:] = np.degrees(z[:, n:])
    path.write_text(json.dumps(row | {"z": z.ravel().tolist()}))
    with pytest.raises(WindowFileError, match=r"angle meters read degrees where rad is expected; multiply by pi / 180"):
        read_windows(path)


def test_one_meter_that_reads_a_hundredfold_is_the_verifier_s_business(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    row = copy.deepcopy(rows[0])
    installed = row["channels"]
    row["z"][next(i for i, c in enumerate(installed) if 14 <= c < 28)] = 150.0
    row["z"][next(i for i, c in enumerate(installed) if c < 14)] = 135.0
    path = tmp_path / "one.json"
    path.write_text(json.dumps(row))
    assert len(read_windows(path)) == 1


def test_what_a_row_says_of_its_grid_is_compared(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    case = load_case("case14")
    assert rows[0]["topology"] == case.topology()
    path = tmp_path / "named.json"
    path.write_text(json.dumps(rows[0] | {"buses": list(case.bus_names)}))
    assert len(read_windows(path)) == 1
    assert replace(case, load_p=case.load_p * 2, v0=case.v0 * 1.1).topology() == case.topology()
    assert replace(case, x=case.x * 1.001).topology() != case.topology()
