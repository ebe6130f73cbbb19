"""gg_ray.provenance: versions that decide numbers, the commit of the checkout, a machine without its name."""

from __future__ import annotations

import json
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from gg_ray import provenance


def test_versions_name_what_decides_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance.library_versions()
    assert {"python", "gg-ray", "commit", "numpy", "scipy", "numba", "torch", "torch-geometric", "ray"} <= set(found)
    assert found["lightsim2grid"] == version("lightsim2grid")

    def gone(name: str) -> str:
        if name == "ray":
            raise provenance.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(provenance, "version", gone)
    assert "ray" not in provenance.library_versions(), "an absent package is left out"


def test_differences_name_both_versions_and_nothing_that_only_one_side_knows() -> None:
    then = {"numpy": "2.0", "torch": "2.10.0", "ray": "2.60.0", "commit": "unknown"}
    now = {"numpy": "2.0", "torch": "2.11.0", "scipy": "1.16", "commit": "abc1234"}
    assert provenance.version_differences(then, now) == ["torch 2.10.0 -> 2.11.0"]


def test_machine_info_names_no_host_and_no_path() -> None:
    info = provenance.machine_info()
    assert {"cpu", "cores", "memory_gib", "python", "torch"} <= set(info)
    text = json.dumps(info)
    assert str(Path.home()) not in text
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in text
    assert int(info["cores"]) >= 1


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert provenance.git_commit(tmp_path) == "unknown"

    def git(*args: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(("git", *who, *args), cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert provenance.git_commit(tmp_path) == "unknown"  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    clean = provenance.git_commit(tmp_path)
    assert 7 <= len(clean) <= 12
    (tmp_path / "a").write_text("2")
    assert provenance.git_commit(tmp_path) == f"{clean}+dirty"
    (tmp_path / "sub").mkdir()
    assert provenance.git_commit(tmp_path / "sub") == "unknown"
