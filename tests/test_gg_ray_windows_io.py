"""gg_ray.windows_io: three file forms carry the same windows, and every bad file is refused by name."""

from __future__ import annotations

import copy
import json
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


def volts_in_kv(row: dict[str, Any]) -> None:
    channels = np.array(row["channels"])
    z = np.array([np.nan if v is None else v for v in row["z"]]).reshape(-1, channels.size)
    z[:, channels < 14] *= 132.0
    row["z"] = [None if np.isnan(v) else v for v in z.ravel()]


def powers_in_mw(row: dict[str, Any]) -> None:
    channels = np.array(row["channels"])
    z = np.array([np.nan if v is None else v for v in row["z"]]).reshape(-1, channels.size)
    z[:, (channels >= 14) & ~((channels >= 42) & (channels < 56))] *= 100.0
    row["z"] = [None if np.isnan(v) else v for v in z.ravel()]


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
    "powers in MW": (powers_in_mw, "divide by the base MVA"),
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
