"""The model that comes with the package: whole, small, trained on training grids, used where nothing was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gg_ray import cli
from gg_ray.config import HELD_OUT_CASES
from gg_ray.config_io import load
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan, measure
from gg_ray.records import Window
from gg_ray.registry import Registry, RegistryError
from gg_ray.score import SHIPPED, find_registry, load_model, outputs_of, verdicts
from gg_ray.windows_io import write_windows

LIMIT_BYTES = 8 * 2**20


def calm_window(case_name: str) -> tuple[Window, object]:
    """Sixteen scans of the base state with meter noise."""
    case = load_case(case_name)
    plan = draw_plan(case, 3, (0.6, 0.7), 0.0)
    rng = np.random.default_rng(5)
    truth = measure(case, case.v0[None])[0][plan.channels]
    z = truth + plan.sigma * rng.standard_normal((16, plan.size))
    window = Window(
        case=case_name, plan_id=plan.plan_id, t0_ns=1_700_000_000_000_000_000, step_s=60.0, z_TM=z,
        age_TM=np.zeros(z.shape, dtype=np.uint8), status_TE=np.ones((16, case.n_branch), dtype=np.uint8),
        tap_E=case.tap, x_scale_E=np.ones(case.n_branch),
    )  # fmt: skip
    return window, plan


def test_it_is_whole_and_small_and_names_no_place_of_the_machine_that_made_it() -> None:
    network, calibration, version = load_model(Registry(SHIPPED / "registry"), "champion")
    weights = version.path / "model.safetensors"
    assert weights.stat().st_size <= LIMIT_BYTES
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= LIMIT_BYTES
    assert sum(p.numel() for p in network.parameters()) > 50_000
    assert np.isfinite([calibration.implausible, calibration.disturbance]).all()
    config = load(str(SHIPPED / "config.yaml"))
    assert not set(config.scenario.cases) & set(HELD_OUT_CASES)
    assert config.scenario.data_dir == ""
    for path in (SHIPPED / "config.yaml", version.path / "manifest.json", version.path / "model_card.md"):
        assert not any(place in path.read_text(encoding="utf-8") for place in ("/work", "/home", "/tmp", "/root"))
    card = (version.path / "model_card.md").read_text(encoding="utf-8")
    for word in ("case39", "case118", "S1", "random", "BMRS data"):
        assert word in card


def test_a_calm_base_state_of_a_grid_it_never_saw_is_normal() -> None:
    network, calibration, version = load_model(Registry(SHIPPED / "registry"), "champion")
    window, plan = calm_window("case39")
    [told] = verdicts(network, calibration, [(window, plan)], version.id)
    assert told.verdict == "normal"
    assert told.p_value is not None
    assert told.p_value > 0.01


def test_score_uses_it_where_nothing_was_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    window, plan = calm_window("case14")
    spoiled = Window(**{name: getattr(window, name) for name in window.__dataclass_fields__})
    spoiled.z_TM = window.z_TM.copy()
    power = np.flatnonzero((plan.channels >= 14) & (plan.channels < 28))[0]
    spoiled.z_TM[8:, power] += 200 * plan.sigma[power]
    path = write_windows(tmp_path / "windows.json", [(window, plan), (spoiled, plan)])
    assert cli.main(["score", str(path)]) == 0
    calm, gross = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (calm["verdict"], gross["verdict"]) == ("normal", "implausible")
    assert gross["p_value"] < calm["p_value"]
    assert "comes with the package" in caplog.text


def test_its_aliases_stay_and_nothing_is_written_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["promote", "champion", "--run", "shipped", "--alias", "challenger"]) != 0
    assert "keeps its aliases" in capsys.readouterr().err
    registry = find_registry(Path("runs"), "shipped")
    assert registry.root.parent == SHIPPED
    assert outputs_of(registry, Path("runs")) == Path("runs/shipped")
    assert outputs_of(Registry(Path("runs/own/registry")), Path("runs")) == Path("runs/own")


def test_a_run_of_ones_own_called_shipped_comes_first(tmp_path: Path) -> None:
    (tmp_path / "shipped" / "registry").mkdir(parents=True)
    assert find_registry(tmp_path, "shipped").root == tmp_path / "shipped" / "registry"
    with pytest.raises(RegistryError, match="no registry"):
        find_registry(tmp_path, "absent")
