"""gg-ray evaluate --suite core: which runs are meant, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from gg_ray import cli
from gg_ray.config import ConfigError
from gg_ray.core_runs import run_names


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("bench-f1", "bench-f0", "other"):
        (tmp_path / name / "registry").mkdir(parents=True)
    (tmp_path / "bench-empty").mkdir()
    return tmp_path


def test_runs_by_pattern_and_by_name(runs: Path) -> None:
    assert run_names("bench-*", runs) == ["bench-f0", "bench-f1"]
    assert run_names("other, bench-f?,other", runs) == ["other", "bench-f0", "bench-f1"]


def test_a_pattern_that_fits_no_run_is_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"--run 'fold-\*': no run of such a name"):
        run_names("fold-*", runs)
    with pytest.raises(ConfigError, match="name the runs, one per fold"):
        run_names(None, runs)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--windows", "3"], "suite core is frozen: leave --cases, --windows and --days out"),
        (["--preset", "big", "--run", "x"], "unknown preset 'big'; choose from small, desk, full"),
        ([], "name the runs, one per fold"),
        (["--run", "x", "--workers", "0"], "--workers 0: at least 1"),
        (["--run", "absent"], "run 'absent' has no registry"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--suite", "core", *args]) != 0
    assert said in capsys.readouterr().err
