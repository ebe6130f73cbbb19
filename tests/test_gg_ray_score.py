"""gg_ray.score and `gg-ray score`: three-way verdicts, conformal p-values, the same from every file form."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import finished, work_in

from gg_ray import cli
from gg_ray.config import VerifierConfig
from gg_ray.grid import balance
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import TYPES, VERDICTS
from gg_ray.registry import ModelCard, Registry, RegistryError, Version
from gg_ray.score import Calibration, as_json, corrected_values, find_registry, load_model, verdicts
from gg_ray.verifier.features import SCHEMA
from gg_ray.windows_io import WindowFileError, read_windows, write_windows

RUN = [
    "train", "--config", "smoke", "--cases", "case14", "--steps", "2", "--learner.publish-every", "1",
    "--evaluate.every-steps", "0", "--evaluate.held-out-cases", "case30", "--evaluate.windows", "1",
    "--evaluate.suite", "windows", "--evaluate.no-baselines", "--name", "tiny",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/tiny."""
    return finished(tmp_path_factory.mktemp("score") / "runs" / "tiny", RUN).parents[1]


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(home, monkeypatch)


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


SMALL = VerifierConfig(hidden=16)
CALIBRATION = {"scores": [-1.0, 0.0, 1.0], "implausible": 0.5, "disturbance": 0.25}
NO_CARD = ModelCard(
    summary="Untrained.", trained_on=(), held_out_families=(), held_out_grids=(), rows=(), limits=(), attribution=()
)


def register(run: Path, architecture: dict[str, Any] | None = None, extra: dict[str, Any] | None = None) -> Version:
    """An untrained model in a run's registry, under the settings and with the extras given."""
    return Registry(run / "registry").register(
        to_numpy(new_verifier(SMALL, 0).state_dict()), architecture=architecture or asdict(SMALL),
        feature_schema=SCHEMA, metrics={}, run=run.name, seed=0, commit="c", card=NO_CARD,
        extra={"calibration": CALIBRATION} if extra is None else extra,
    )  # fmt: skip


def test_a_version_comes_with_the_calibration_it_was_registered_with(tmp_path: Path) -> None:
    register(tmp_path)
    network, calibration, version = load_model(Registry(tmp_path / "registry"), "latest")
    assert (network.config, version.id) == (SMALL, "verifier/v1")
    assert not network.training
    assert (calibration.scores.tolist(), calibration.implausible, calibration.disturbance) == ([-1, 0, 1], 0.5, 0.25)


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({}, "no 'calibration'"),
        ({"digest": {}}, "no 'calibration'"),
        ({"calibration": {"scores": [0.0], "implausible": 0.5}}, "no 'disturbance'"),
    ],
)
def test_a_version_without_calibration_is_refused(
    extra: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(tmp_path)
    register(tmp_path, extra=extra)
    load_model(Registry(tmp_path / "registry"), "v1")
    capsys.readouterr()
    assert cli.main(["score", SAMPLE, "--model", "v2", "--run", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"gg-ray: error: verifier/v2: registered without calibration ({part})")
    assert "another version (gg-ray models)" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"attention": "linear"}, "unexpected keyword argument 'attention'"),
        ({"hidden": 32}, "size mismatch"),
        ({"layers": 3}, "Missing key(s)"),
    ],
)
def test_an_architecture_of_another_program_version_is_refused(
    changes: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that is not known here, and weights that do not fit what the settings make here."""
    register(tmp_path)
    register(tmp_path, architecture=asdict(SMALL) | changes)
    load_model(Registry(tmp_path / "registry"), "v1")
    capsys.readouterr()
    assert cli.main(["score", SAMPLE, "--model", "v2", "--run", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gg-ray: error: verifier/v2: its architecture is not one of this program (")
    assert part in said.err
    assert "use the gg-ray that registered it, or another version (gg-ray models)" in said.err
    assert said.err.count("\n") == 1


NOW_S = 1_700_000_000


def aged(root: Path, seconds: int) -> None:
    """Everything below a registry, and itself, as if it had been written that long ago."""
    for path in (root, *root.rglob("*")):
        os.utime(path, (NOW_S - seconds, NOW_S - seconds))


def written(registry: Registry, write: Callable[[Registry], object]) -> set[Path]:
    """The files and folders that a change of a registry writes."""
    aged(registry.root, 9999)
    write(registry)
    return {path for path in registry.root.rglob("*") if path.stat().st_mtime != NOW_S - 9999}


@pytest.mark.parametrize(
    "write",
    [
        lambda registry: register(registry.root.parent),
        lambda registry: registry.promote("v1", "champion"),
        lambda registry: registry.promote("v1", "challenger"),
        lambda registry: registry.rollback("challenger"),
    ],
    ids=["register", "promote", "promote-again", "rollback"],
)
def test_the_run_that_registered_or_promoted_last_is_meant(write: Callable[[Registry], object], tmp_path: Path) -> None:
    """Three runs, and the folder of each is older than anything inside another: only what is written may count."""
    for name in ("a", "b", "c"):
        register(tmp_path / name)
    stores = {name: Registry(tmp_path / name / "registry") for name in ("a", "b", "c")}
    register(tmp_path / "b")
    stores["b"].promote("v1", "challenger")
    stores["b"].promote("v2", "challenger")
    touched = written(stores["b"], write)
    assert touched
    for name, seconds in (("a", 300), ("b", 500), ("c", 400)):
        aged(stores[name].root, seconds)
    assert find_registry(tmp_path, None).root == stores["a"].root
    for path in touched:
        os.utime(path, (NOW_S - 100, NOW_S - 100))
    os.utime(stores["b"].root, (NOW_S - 500, NOW_S - 500))
    assert find_registry(tmp_path, None).root == stores["b"].root
    os.utime(stores["c"].folder / "v0001" / "manifest.json", (NOW_S - 50, NOW_S - 50))
    assert find_registry(tmp_path, None).root == stores["c"].root


def test_reading_a_registry_does_not_make_it_the_last(tmp_path: Path) -> None:
    for name, seconds in (("a", 300), ("b", 200)):
        register(tmp_path / name)
        aged(tmp_path / name / "registry", seconds)
    store = Registry(tmp_path / "a" / "registry")
    load_model(store, "latest")
    assert (len(store.list()), store.aliases()) == (1, {})
    assert find_registry(tmp_path, None).root == tmp_path / "b" / "registry"
    assert find_registry(tmp_path, "a").root == store.root


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


def test_corrected_values_of_the_national_graph_are_megawatts_and_hertz() -> None:
    """A state that is known exactly reads as the streams it was made of."""
    x = np.zeros((1, len(balance.CHANNELS)))
    at = {name: i for i, name in enumerate(balance.CHANNELS)}
    x[0, [at["WIND"], at["CCGT"], at["INTFR"], at["INDO"], at["ITSDO"], at["FREQ"]]] = (
        8_000.0, 15_000.0, -500.0, 21_900.0, 22_950.0, 49.9,
    )  # fmt: skip
    v = balance.state_of(balance.injections_of(x), x[:, balance.FREQ] / balance.F0_HZ)[0]
    state = np.stack([np.abs(v) - 1.0, np.angle(v)], axis=1)
    names = ("HUB", "WIND", "INTFR", "DEMAND", "STATION_LOAD", "UNREPORTED")
    buses = [balance.BUSES.index(name) for name in names]
    found = corrected_values(balance.balance_case(), state, buses)
    assert found == pytest.approx({
        "HUB.hz": 49.9, "WIND.mw": 8_000.0, "INTFR.mw": -500.0, "DEMAND.mw": 21_900.0, "STATION_LOAD.mw": 550.0,
        "UNREPORTED.mw": 50.0,
    }, abs=0.06)  # fmt: skip
