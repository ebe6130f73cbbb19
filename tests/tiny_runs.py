"""Runs of seconds that test files make once and then look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from gg_ray import cli


def finished(out: Path, words: Sequence[str]) -> Path:
    """The run directory `out` of a training by these words, without real data. Called before any test's monkeypatch."""
    os.environ["GG_DATA_DIR"] = ""
    assert cli.main([*words, "--out", str(out)]) == 0
    return out


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the working directory of a test, without real data."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GG_DATA_DIR", "")
