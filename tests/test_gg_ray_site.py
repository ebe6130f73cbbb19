"""gg-ray calibrate: the same weights with benign days of one more grid, as a new version; the package is left alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gg_ray import cli, site
from gg_ray.alarms import budget_threshold
from gg_ray.config import BALANCE_CASE, ConfigError
from gg_ray.config_io import load
from gg_ray.evaluate.suites import SuiteMaker, TimelineSuite
from gg_ray.grid.cases import load_case
from gg_ray.registry import Registry, RegistryError, Version
from gg_ray.scenario.context import context_source
from gg_ray.score import SHIPPED, load_model
from gg_ray.site import calibrate

CONFIG = load("smoke")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the shipped model."""
    home = tmp_path / "runs" / "mine"
    shutil.copytree(SHIPPED, home)
    for path in home.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return home


def without(registry: Registry, case: str) -> Version:
    """The champion as a version that does not know a grid's days."""
    extra = json.loads(json.dumps(registry.resolve("champion").manifest["extra"]))
    for part in ("levels", "topology"):
        extra["calibration"][part].pop(case, None)
    return again(registry, extra)


def again(registry: Registry, extra: Mapping[str, Any] | None = None) -> Version:
    """The champion registered once more."""
    old = registry.resolve("champion")
    return registry.register(
        registry.load_weights(old), architecture=old.architecture, feature_schema=int(old.manifest["feature_schema"]),
        metrics=old.metrics, run="mine", seed=0, commit="0", card="x", extra=extra or old.manifest["extra"],
    )  # fmt: skip


def test_a_new_version_has_the_same_weights_and_one_grid_more(run: Path) -> None:
    registry, said = Registry(run / "registry"), list[str]()
    old = without(registry, "case30")
    _, before, _ = load_model(registry, old.id)
    served = registry.resolve("champion").id
    sizes = dataclasses.replace(CONFIG.evaluate, stride=48)
    config = dataclasses.replace(CONFIG, evaluate=sizes)
    made = calibrate(registry, old.id, ["case30"], 1, config, context_source(None), said.append)
    assert made.number == old.number + 1
    assert registry.resolve("champion").id == served, "whoever calls decides what is served"
    weights, again = registry.load_weights(old), registry.load_weights(made)
    assert weights.keys() == again.keys()
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    _, after, _ = load_model(registry, made.id)
    assert "case30" not in before.levels
    assert after.levels.keys() == before.levels.keys() | {"case30"}
    assert all(after.levels[case].as_json() == before.levels[case].as_json() for case in before.levels)
    assert after.topology["case30"] == load_case("case30").topology()
    assert (after.implausible, after.disturbance) == (before.implausible, before.disturbance)
    assert np.array_equal(after.scores, before.scores)
    assert np.isfinite(budget_threshold(after, "case30", 1.0).value)
    assert made.manifest["parent"] == old.id
    assert "case30" in registry.card(made)
    assert registry.card(made).startswith(registry.card(old))
    assert len(said) == 1
    assert "case30: 1 benign days" in said[0]


def test_a_grid_without_a_benign_day_is_refused_and_nothing_is_registered(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = TimelineSuite(**{
        **{f.name: None for f in dataclasses.fields(TimelineSuite)}, "validation": [], "test": [],
    })  # fmt: skip
    monkeypatch.setattr(SuiteMaker, "timelines", lambda self: empty)
    registry = Registry(run / "registry")
    count = len(registry.list())
    with pytest.raises(RegistryError, match="case30: no benign day"):
        calibrate(registry, "champion", ["case30"], 1, CONFIG, context_source(None), lambda text: None)
    assert len(registry.list()) == count


def test_the_national_graph_and_an_unknown_version_are_refused(run: Path) -> None:
    registry = Registry(run / "registry")
    with pytest.raises(ConfigError, match="real record"):
        calibrate(registry, "champion", [BALANCE_CASE], 1, CONFIG, context_source(None), lambda text: None)
    with pytest.raises(RegistryError, match="v99"):
        calibrate(registry, "v99", ["case30"], 1, CONFIG, context_source(None), lambda text: None)


def test_the_alias_moves_to_the_new_version(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent.parent)
    registry = Registry(run / "registry")
    old = registry.resolve("champion")

    def stub(where: Registry, reference: str, cases: Sequence[str], days: int, *rest: object) -> Version:
        assert (reference, tuple(cases), days) == ("champion", ("case30", "case39"), 2)
        return again(where)

    monkeypatch.setattr(site, "calibrate", stub)
    assert cli.main(["calibrate", "--run", "mine", "--case", "case30", "case39", "--days", "2"]) == 0
    assert registry.resolve("champion").number == old.number + 1
    assert f"champion -> verifier/v{old.number + 1}" in capsys.readouterr().out


def test_the_model_of_the_package_is_not_calibrated_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in SHIPPED.rglob("*"))
    assert cli.main(["calibrate", "--run", "shipped", "--case", "case30"]) != 0
    assert "name a run" in capsys.readouterr().err
    assert sorted(path.name for path in SHIPPED.rglob("*")) == before
