"""gg_ray.doctor: what is wrong must be seen, and what is optional must not fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gg_ray import doctor
from gg_ray.doctor import Check, report, requirements, versions


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def checks(tmp_path: Path) -> dict[str, Check]:
    return by_name(report(cwd=tmp_path, env={"RAY_AUTH_MODE": "disabled"}))


def test_this_machine_passes_every_required_check(checks: dict[str, Check]) -> None:
    assert [check for check in checks.values() if check.required and not check.ok] == []


def test_the_report_covers_what_a_run_needs(checks: dict[str, Check]) -> None:
    named = {"python", "ray", "torch", "torch-geometric", "lightsim2grid", "pandapower", "numba", "lightsim2grid sweep"}
    named |= {"package actors", "gpu", "torch threads", "cpus", "memory", "disk", "write permission", "RAY_AUTH_MODE"}
    named |= {"torch-geometric-temporal", "extra grids", "extra dev"}
    assert named <= set(checks)
    assert all(check.detail for check in checks.values())
    assert checks["RAY_AUTH_MODE"].detail == "disabled"


def test_names_are_unique(tmp_path: Path) -> None:
    names = [check.name for check in report(cwd=tmp_path, env={})]
    assert len(names) == len(set(names))


def test_versions_outside_the_range_and_absent_packages_fail() -> None:
    needs = [Requirement("numpy<1"), Requirement("no-such-package-gg>=2"), Requirement("numpy>=1.0")]
    old, absent, good = versions(needs)
    assert not old.ok
    assert "outside <1" in old.detail
    assert (absent.ok, absent.required, absent.detail) == (False, True, "not installed (need >=2)")
    assert good.ok


def test_a_local_build_satisfies_a_plain_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.13.0+cpu")
    (check,) = versions([Requirement("torch>=2.10,<2.14")])
    assert check.ok
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.14.0+cu130")
    (check,) = versions([Requirement("torch>=2.10,<2.14")])
    assert not check.ok


def test_an_incomplete_extra_is_a_note_with_the_command() -> None:
    needs = [Requirement('no-such-package-gg>=2; extra == "bench"'), Requirement('numpy; extra == "bench"')]
    (check,) = versions(needs)
    assert (check.name, check.ok, check.required) == ("extra bench", False, False)
    assert "no-such-package-gg" in check.detail
    assert "numpy" not in check.detail
    assert "'.[bench]'" in check.detail


def test_requirements_fall_back_to_installed_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = ["numpy>=1", 'ruff; extra == "dev"']
    assert {"torch", "ray", "ruff"} <= {need.name for need in requirements()}
    monkeypatch.setattr(doctor, "_HERE", tmp_path / "gg_ray")
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert [str(need) for need in requirements()] == [str(Requirement(line)) for line in lines]


def test_neither_source_nor_metadata_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_HERE", tmp_path / "gg_ray")
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution-gg")
    (check,) = versions(requirements())
    assert not check.ok
    assert not check.required


def test_a_foreign_package_of_our_name_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another distribution called `actors` exists; imported instead of ours, every Ray worker would break."""
    foreign = tmp_path / "gg_foreign_actors"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "SHELLS", ("gg_foreign_actors", "gg_absent_actors"))
    found = by_name(report(cwd=tmp_path, env={}))
    foreign_check, absent = found["package gg_foreign_actors"], found["package gg_absent_actors"]
    assert not foreign_check.ok
    assert foreign_check.required
    assert str(foreign) in foreign_check.detail
    assert not absent.ok


def test_an_engine_without_the_sweep_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lightsim2grid.scenarioSweep", None)  # makes its import raise ImportError
    check = by_name(report(cwd=tmp_path, env={}))["lightsim2grid sweep"]
    assert not check.ok
    assert check.required


def test_a_folder_that_is_gone_fails(tmp_path: Path) -> None:
    found = by_name(report(cwd=tmp_path / "gone", env={}))
    assert not found["folder"].ok


def test_without_temporal_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = doctor.metadata.version

    def absent(name: str) -> str:
        if name == "torch-geometric-temporal":
            raise doctor.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    check = by_name(report(cwd=tmp_path, env={}))["torch-geometric-temporal"]
    assert not check.ok
    assert not check.required
    assert "--no-deps" in check.detail
