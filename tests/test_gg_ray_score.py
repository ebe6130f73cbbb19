"""gg_ray.score and `gg-ray score`: three-way verdicts, conformal p-values, the same from every file form."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gg_ray import cli
from gg_ray.records import TYPES, VERDICTS
from gg_ray.registry import RegistryError
from gg_ray.score import Calibration, as_json, find_registry, load_model, verdicts
from gg_ray.windows_io import WindowFileError, read_windows, write_windows

RUN = [
    "train", "--config", "smoke", "--cases", "case14", "--steps", "2", "--learner.publish-every", "1",
    "--evaluate.every-steps", "0", "--evaluate.held-out-cases", "case30", "--evaluate.windows", "1",
    "--evaluate.suite", "windows", "--evaluate.no-baselines", "--name", "tiny",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/tiny."""
    home = tmp_path_factory.mktemp("score")
    os.environ["GG_DATA_DIR"] = ""
    assert cli.main([*RUN, "--out", str(home / "runs" / "tiny")]) == 0
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("GG_DATA_DIR", "")


SAMPLE = "runs/tiny/report/windows.parquet"


def test_verdicts_on_the_sample_windows() -> None:
    network, calibration, version = load_model(find_registry(Path("runs"), "tiny"), "latest")
    windows = read_windows(Path(SAMPLE))
    assert {window.case for window, _ in windows} == {"case14", "case30"}
    found = verdicts(network, calibration, windows, version.id)
    assert len(found) == len(windows)
    for verdict, (window, _) in zip(found, windows, strict=True):
        assert verdict.case == window.case
        assert verdict.verdict in VERDICTS
        assert 0 < verdict.p_value <= 1
        assert 0 <= verdict.p_implausible <= 1
        assert verdict.time_ns == window.t0_ns + 15 * 60 * 10**9
        assert (verdict.onset_scan >= 0) == (verdict.verdict == "implausible")
        assert verdict.type in (TYPES[1:] if verdict.verdict == "implausible" else ("none",))
        assert set(verdict.corrected) == {f"{bus}.v_pu" for bus in verdict.buses}
        assert json.loads(as_json(verdict))["model"] == version.id == "verifier/v1"


def test_the_three_way_rule_puts_implausible_first() -> None:
    network, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    windows = read_windows(Path(SAMPLE))[:2]
    never, always = math.inf, -math.inf
    for implausible, disturbance, expected in (
        (always, always, "implausible"), (always, never, "implausible"), (never, always, "disturbance"),
        (never, never, "normal"),
    ):  # fmt: skip
        rule = Calibration(calibration.scores, implausible, disturbance)
        assert {v.verdict for v in verdicts(network, rule, windows, "m")} == {expected}


def test_p_values_are_conformal() -> None:
    rule = Calibration(np.array([-1.0, 0.0, 0.0, 2.0]), 0.0, 0.0)
    assert rule.p_value(9.0) == 1 / 5
    assert rule.p_value(2.0) == 2 / 5
    assert rule.p_value(0.0) == 4 / 5, "ties count as at least as large"
    assert rule.p_value(-5.0) == 1.0
    rng = np.random.default_rng(0)
    rule = Calibration(np.sort(rng.normal(size=999)), 0.0, 0.0)
    p = np.array([rule.p_value(score) for score in rng.normal(size=4000)])
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 3 * math.sqrt(level / 999) + 3 * math.sqrt(level / 4000)


def test_every_file_form_gives_the_same_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    windows = read_windows(Path(SAMPLE))[:5]
    said = []
    for suffix in (".parquet", ".arrow", ".json"):
        path = write_windows(tmp_path / f"w{suffix}", windows)
        capsys.readouterr()
        assert cli.main(["score", str(path), "--model", "latest"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert len(said[0].splitlines()) == 5


def test_a_verdict_does_not_depend_on_the_others() -> None:
    network, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    windows = read_windows(Path(SAMPLE))
    together = verdicts(network, calibration, windows, "m")
    assert verdicts(network, calibration, windows[3:4], "m") == together[3:4]


def test_unknown_models_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for args, part in (
        (("--model", "v77"), "v77"), (("--model", "nonsense"), "nonsense"), (("--run", "gone"), "gg-ray train"),
    ):  # fmt: skip
        capsys.readouterr()
        assert cli.main(["score", SAMPLE, *args]) == 1
        said = capsys.readouterr().err
        assert part in said
        assert "Traceback" not in said
    with pytest.raises(RegistryError, match="start with gg-ray train"):
        find_registry(Path("nowhere"), None)


def test_a_window_of_a_length_the_network_cannot_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    window, plan = read_windows(Path(SAMPLE))[0]
    short = replace(window, z_TM=window.z_TM[:11], age_TM=window.age_TM[:11], status_TE=window.status_TE[:11], moves=())
    path = write_windows(tmp_path / "short.json", [(window, plan), (short, plan)])
    assert cli.main(["score", str(path), "--model", "latest"]) == 1
    said = capsys.readouterr().err
    assert "short.json, window 1: window of 11 scans: need a multiple" in said
    network, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    with pytest.raises(WindowFileError, match="window 0"):
        verdicts(network, calibration, [(short, plan)], "m")


def test_another_feature_schema_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gg_ray.score.SCHEMA", 999)
    with pytest.raises(RegistryError, match="feature schema"):
        load_model(find_registry(Path("runs"), "tiny"), "latest")


def test_models_promote_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert "verifier/v1" in capsys.readouterr().out
    assert cli.main(["promote", "v1", "--alias", "challenger", "--force"]) == 0
    assert "challenger -> verifier/v1" in capsys.readouterr().out
    assert cli.main(["score", SAMPLE, "--model", "challenger"]) == 0
    capsys.readouterr()
    assert cli.main(["status", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "step 2" in said
    assert "checkpoint step-2" in said
    assert cli.main(["status", "gone"]) == 1
