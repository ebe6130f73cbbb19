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
import torch
from tiny_runs import finished, work_in

from gg_ray import cli
from gg_ray.alarms import budget_threshold, incidents_of
from gg_ray.calibration.budget import Levels
from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.heard import Heard
from gg_ray.calibration.reasons import reasons
from gg_ray.config import VerifierConfig
from gg_ray.grid import balance, balance_estimation
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import MeterPlan
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import CANNOT_TELL, TYPES, VERDICTS, Window
from gg_ray.registry import ModelCard, Registry, RegistryError, Version
from gg_ray.score import Calibration, as_json, corrected_values, find_registry, judge, load_model, verdict_of, verdicts
from gg_ray.verifier.features import SCHEMA
from gg_ray.verifier.model import VerifierOutput
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


def silent(window: Window, heard: int, scans: int = 16) -> Window:
    """The window with the first `heard` meters reporting in its last `scans` scans, and nothing else."""
    z = np.full_like(window.z_TM, np.nan)
    z[-scans:, :heard] = np.where(np.isnan(window.z_TM), 1.0, window.z_TM)[-scans:, :heard]
    return replace(window, z_TM=z, age_TM=np.where(np.isnan(z), 255, 0).astype(np.uint8))


def test_too_little_heard_is_no_verdict_and_never_normal() -> None:
    network, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    window, plan = read_windows(Path(SAMPLE))[0]
    needed = math.ceil(0.25 * plan.size)
    for heard, told in ((0, True), (needed - 1, True), (needed, False), (plan.size, False)):
        [found] = verdicts(network, calibration, [(silent(window, heard), plan)], "m")
        assert (found.verdict == CANNOT_TELL) == told
        if told:
            assert (found.p_implausible, found.p_disturbance, found.p_value) == (None, None, None)
            assert (found.buses, found.branches, found.corrected, found.onset_scan) == ((), (), {}, -1)
            assert found.note == f"{heard} of {plan.size} meters heard in the last 4 scans; a verdict needs {needed}"
            assert json.loads(as_json(found))["p_value"] is None
    assert CANNOT_TELL not in VERDICTS, "the 3x3 matrix has no such row"
    early = silent(window, plan.size)
    early.z_TM[-4:] = np.nan
    assert verdicts(network, calibration, [(early, plan)], "m")[0].verdict == CANNOT_TELL, "heard, but long ago"
    asked = Heard(share=0.9, scans=16)
    assert verdicts(network, calibration, [(silent(window, plan.size // 2), plan)], "m", asked)[0].note
    for share, scans in ((0.0, 4), (1.1, 4), (0.5, 0)):
        with pytest.raises(CalibrationError, match="give a share above 0"):
            Heard(share=share, scans=scans)


def test_readings_the_network_has_no_number_for_are_no_verdict() -> None:
    network, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    items = read_windows(Path(SAMPLE))[:1]
    with torch.no_grad():
        network.graph_head.bias[0] = math.nan
    [found] = verdicts(network, calibration, items, "m")
    assert (found.verdict, found.p_value) == (CANNOT_TELL, None)
    assert "not finite" in found.note
    broken = replace(items[0][0], z_TM=np.full_like(items[0][0].z_TM, np.inf))
    with pytest.raises(WindowFileError, match="window 0: window 0: an infinite reading"):
        verdicts(network, calibration, [(broken, items[0][1])], "m", Heard(share=0.01))


def test_a_grid_that_is_not_the_one_of_the_calibration_is_refused() -> None:
    network, calibration, version = load_model(find_registry(Path("runs"), "tiny"), "latest")
    assert dict(calibration.topology) == {name: load_case(name).topology() for name in ("case14", "case30")}
    other = replace(calibration, topology={"case14": "0123456789abcdef"})
    items = [item for item in read_windows(Path(SAMPLE)) if item[0].case == "case14"][:1]
    with pytest.raises(WindowFileError, match=r"calibrated on another case14 \(topology 0123456789abcdef, here"):
        verdicts(network, other, items, version.id)
    assert len(verdicts(network, replace(calibration, topology={}), items, "m")) == 1


def test_p_values_say_among_which_windows_they_rank() -> None:
    network, calibration, version = load_model(find_registry(Path("runs"), "tiny"), "latest")
    found = verdicts(network, calibration, read_windows(Path(SAMPLE)), version.id)
    for verdict in found:
        assert verdict.p_class.split(", ")[0] in (verdict.case, "all grids")
        assert len(verdict.bus_p_values) == len(verdict.buses)
        assert all(0 < p <= 1 for p in verdict.bus_p_values)
    assert calibration.p_class("case39", 0) == "all grids"
    assert Calibration(calibration.scores, 0.0, 0.0).p_class("case14", 0) == "all grids"


def consecutive(count: int) -> list[tuple[Window, MeterPlan]]:
    """The first windows of one grid and plan, as if each had followed the one before by a minute."""
    items = [item for item in read_windows(Path(SAMPLE)) if item[0].case == "case14"][:count]
    return [(replace(window, t0_ns=i * 60 * 10**9), plan) for i, (window, plan) in enumerate(items)]


def test_flagged_windows_become_incidents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, calibration, version = load_model(find_registry(Path("runs"), "tiny"), "latest")
    items = consecutive(4)
    always = replace(calibration, implausible=-math.inf)
    judged = list(judge(network, always, items, version.id))
    found = incidents_of(network, reversed(judged))
    assert sum(incident.scans for incident in found) >= 4
    assert {incident.verdict for incident in found} == {"implausible"}
    top = max(found, key=lambda incident: incident.peak_score)
    assert top.peak_score == max(one.score for one in judged)
    assert top.onset_ns <= top.first_ns <= top.last_ns <= judged[-1].verdict.time_ns
    reason = top.reasons
    assert reason is not None
    assert set(reason["parts"]) == {"residual", "neighbour", "time"}
    assert reason["patch"][1] - reason["patch"][0] == 7
    never = replace(calibration, implausible=math.inf, disturbance=math.inf)
    assert incidents_of(network, judge(network, never, items, "m")) == []
    lost = [*items[:1], (silent(items[1][0], 0), items[1][1])]
    assert sum(i.scans for i in incidents_of(network, judge(network, always, lost, "m"))) >= 1
    with pytest.raises(WindowFileError, match="two windows end at"):
        incidents_of(network, [judged[0], judged[0]])
    path = write_windows(tmp_path / "w.json", lost)
    capsys.readouterr()
    assert cli.main(["score", str(path), "--model", "latest", "--incidents"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["id"].startswith("case14-") for row in said)


def test_reasons_name_the_meter_that_was_changed() -> None:
    """A P meter off by 40 sigmas in the last half: named first, with its scan; the flows around it disagree."""
    network, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    for window, plan in consecutive(6):
        meters = [m for m, c in enumerate(plan.channels) if plan.n_bus <= c < 2 * plan.n_bus]
        meter = next(m for m in meters if np.isfinite(window.z_TM[-1, m]) and window.age_TM[-1, m] == 0)
        z = window.z_TM.copy()
        z[8:, meter] += 40 * plan.sigma[meter]
        one = next(judge(network, calibration, [(replace(window, z_TM=z), plan)], "m"))
        assert one.prepared is not None
        assert one.features is not None
        bus = int(plan.channels[meter]) - plan.n_bus
        found = reasons(network, one.prepared, one.features, 0, [bus])
        name, size, scan = found["meters"][0]
        case = load_case("case14")
        assert name == f"p of {case.bus_names[bus]}"
        assert abs(size) > 5
        assert scan >= 8
        [(place, read, implied, apart)] = found["flows"]
        assert place == case.bus_names[bus]
        assert read == pytest.approx(100 * z[-1, meter], abs=0.01)
        assert apart > 3
        assert read > implied


def test_a_budget_needs_the_benign_days_of_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", SAMPLE, "--model", "latest", "--budget", "1"]) == 1
    assert "no benign days of case14 are kept with this model (days of: none)" in capsys.readouterr().err
    _, calibration, _ = load_model(find_registry(Path("runs"), "tiny"), "latest")
    days = Levels(by_day=(np.array([3.0, 2.0, 1.0]), np.array([2.5, 0.5])), days=2.0, scans_per_day=480.0)
    known = Calibration.from_json(json.loads(json.dumps(replace(calibration, levels={"case14": days}).as_json())))
    assert budget_threshold(known, "case14", 1.0).value == 2.5
    assert cli.main(["score", SAMPLE, "--model", "latest", "--min-heard", "2"]) == 1
    assert "share of meters heard 2 in 4 scans" in capsys.readouterr().err


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


def test_a_damaged_part_of_a_calibration_is_named(tmp_path: Path) -> None:
    register(tmp_path, extra={"calibration": CALIBRATION | {"windows": [{"class": []}]}})
    register(tmp_path, extra={"calibration": CALIBRATION | {"levels": {"case14": {"by_day": []}}}})
    for version, part in (("v1", "KeyError 'value'"), ("v2", "KeyError 'days'")):
        with pytest.raises(RegistryError, match=rf"verifier/{version}: stored .*{part}; register it again"):
            load_model(Registry(tmp_path / "registry"), version)


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


@pytest.mark.parametrize(
    ("hertz", "implausible", "said"),
    [(49.77, 0.0, "disturbance"), (50.23, 0.0, "disturbance"), (49.81, 0.0, "normal"), (50.0, 0.0, "normal"),
     (None, 0.0, "normal"), (49.0, 3.0, "implausible")],
)  # fmt: skip
def test_frequency_outside_its_limits_is_a_disturbance_whatever_the_network_says(
    hertz: float | None, implausible: float, said: str
) -> None:
    case, plan = balance.balance_case(), balance.balance_plan(1_003)
    z = np.full((24, plan.size), np.nan)
    z[:, balance.M_FREQUENCY] = 50.0 / balance.F0_HZ
    z[-1, balance.M_FREQUENCY] = np.nan if hertz is None else hertz / balance.F0_HZ
    _, r = balance_estimation.estimate(z[None], plan)
    n, e = case.n_bus, case.n_branch
    out = VerifierOutput(
        implausible=torch.tensor([implausible]), disturbance=torch.tensor([-5.0]), severity=torch.zeros(1),
        type=torch.zeros(1, len(TYPES)), node=torch.zeros(n), edge=torch.zeros(e), state_mu=torch.zeros(n, 2),
        state_logvar=torch.zeros(n, 2),
    )  # fmt: skip
    rule = Calibration(np.zeros(1), 1.0, 1.0)
    assert verdict_of(out, rule, case, plan, r[0], 0, "test").verdict == said
