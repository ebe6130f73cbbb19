"""What a finished run leaves: each figure, the three-way matrix, the model and its control; the same rows again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import finished, work_in

from gg_ray import cli
from gg_ray.baselines.catalogue import SUPERVISED
from gg_ray.config_io import load
from gg_ray.publish import training_figures
from gg_ray.records import VERDICTS
from gg_ray.registry import CARD, Registry
from gg_ray.score import find_registry, load_model
from gg_ray.selfplay.game import Game

RUN = [
    "train", "--config", "smoke", "--cases", "case14", "--steps", "12", "--learner.publish-every", "3",
    "--checkpoint.every-steps", "12", "--evaluate.every-steps", "4", "--evaluate.held-out-cases", "case30",
    "--evaluate.windows", "1", "--evaluate.days", "1", "--evaluate.uniform-control",
    "--evaluate.supervised-baselines", "--name", "tiny",
]  # fmt: skip
"""Both suites, every baseline, the control and what learnt beside it, in seconds."""
FIGURES = {
    "learning curves": ["learning.png"],
    "d_eff against p-bar over time": ["frontier.png"],
    "family x method recall heat map": ["recall_case14.png", "recall_case30.png"],
    "coverage": ["coverage.png"],
    "gate rates": ["gates.png"],
    "reliability": ["reliability_case14.png", "reliability_case30.png"],
    "grid map with localisation": ["map_case14.png", "map_case30.png"],
}
"""What the report promises."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/tiny."""
    return finished(tmp_path_factory.mktemp("publish") / "runs" / "tiny", RUN).parents[1]


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(home, monkeypatch)


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("promised", FIGURES)
def test_the_report_has_every_figure(home: Path, promised: str) -> None:
    folder = home / "runs" / "tiny" / "report"
    text = (folder / "report.md").read_text()
    assert "Not drawn" not in text
    for name in FIGURES[promised]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text


def test_the_report_holds_nothing_else(home: Path) -> None:
    drawn = [name for names in FIGURES.values() for name in names]
    expected = sorted([*drawn, "report.md", "results.json", "windows.parquet"])
    assert sorted(path.name for path in (home / "runs" / "tiny" / "report").iterdir()) == expected


@pytest.mark.slow
def test_evaluate_prints_and_writes_the_rows_of_the_training_report(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["evaluate", "--model", "latest", "--suite", "quick", "--no-parallel", "--out", "again"]) == 0
    said = capsys.readouterr().out
    trained, again = results_of(home / "runs" / "tiny" / "report"), results_of(home / "again")
    assert again["rows"] == trained["rows"]
    assert again["verdicts"] == trained["verdicts"]
    for part in trained["parts"]:  # what the control was bought with is known to the run alone
        part["budget"] = {name: value for name, value in part["budget"].items() if not name.startswith("control_")}
    assert again["parts"] == trained["parts"]
    assert again["model"] == "verifier/v5"
    assert {"verifier", "uniform", "untrained", "random", "oracle", "chi2", "lnr", *SUPERVISED} <= {
        r["method"] for r in again["rows"]
    }
    for suite in ("windows", "timelines"):
        for case in ("case14", "case30"):
            assert f"\n{suite} on {case}\n" in said


def test_the_control_is_a_version_with_a_card_and_the_model_says_which(home: Path) -> None:
    store = Registry(home / "runs" / "tiny" / "registry")
    assert store.aliases()["control"] == "verifier/v1"
    assert store.resolve("latest").id == "verifier/v5"
    rivals = store.resolve("latest").manifest["extra"]["rivals"]
    assert rivals == dict(zip(SUPERVISED, ("verifier/v2", "verifier/v3", "verifier/v4"), strict=True))
    assert "the baseline per_bus_cnn" in (store.resolve(rivals["per_bus_cnn"]).path / CARD).read_text()
    assert store.resolve("latest").manifest["extra"]["control"] == "verifier/v1"
    card = (store.resolve("control").path / CARD).read_text()
    assert "Control of run tiny, not for service" in card
    assert "uniform scenarios" in card


def test_both_thresholds_are_the_model_s_own_and_the_matrix_was_made_with_them(home: Path) -> None:
    _, calibration, version = load_model(find_registry(Path("runs"), "tiny"), "latest")
    stored = version.manifest["extra"]["calibration"]
    assert (calibration.implausible, calibration.disturbance) == (stored["implausible"], stored["disturbance"])
    assert calibration.disturbance != 0.0
    allowed = int(0.01 * calibration.scores.size)
    assert (calibration.scores > calibration.implausible + 1e-5).sum() <= allowed  # stored to five decimals
    folder = home / "runs" / "tiny" / "report"
    found = results_of(folder)["verdicts"]
    assert [table["case"] for table in found] == ["case14", "case30"]
    text = (folder / "report.md").read_text()
    for table in found:
        assert list(table["confusion"]) == list(VERDICTS)
        natural = sum(table["confusion"]["disturbance"].values())
        assert natural == table["natural_events"] > 0
        share = table["confusion"]["disturbance"]["implausible"] / natural
        assert table["natural_called_implausible"] == share
        assert f"Natural events called implausible: {share:.1%} of {natural}." in text


def test_the_model_carries_classes_topology_and_levels_of_its_benign_days(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, calibration, version = load_model(find_registry(Path("runs"), "tiny"), "latest")
    assert set(calibration.topology) == set(calibration.levels) == {"case14", "case30"}
    assert calibration.windows is not None
    assert calibration.nodes is not None
    assert calibration.windows.tables[()].scores == calibration.scores.size
    assert calibration.nodes.tables[()].scores > 20 * calibration.scores.size, "one score per bus and window"
    assert {key[0] for key in calibration.windows.tables if key} == {"case14", "case30"}
    for levels in calibration.levels.values():
        assert 0.9 < levels.days <= 1.0
        assert levels.all.size > 0
    assert len(json.dumps(version.manifest["extra"])) < 2**20
    capsys.readouterr()
    sample = str(home / "runs" / "tiny" / "report" / "windows.parquet")
    most = min(levels.all.size / levels.days for levels in calibration.levels.values())
    assert cli.main(["score", sample, "--run", "tiny", "--model", "latest", "--budget", str(most / 2 - 1)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 10
    assert cli.main(["score", sample, "--run", "tiny", "--model", "latest", "--budget", "1e6"]) == 1
    assert "give a smaller one" in capsys.readouterr().err


def test_a_figure_without_data_is_its_reason_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        drawn = training_figures(tmp_path, Game(load("smoke")), tmp_path / "metrics.jsonl")
    assert all(isinstance(reason, str) for reason in drawn.values())
    assert "no finite record" in str(next(v for k, v in drawn.items() if k.startswith("Detectability")))
    assert len(caplog.records) == len(drawn)
    assert "'Learning curves' is not drawn" in caplog.text
    assert list(tmp_path.iterdir()) == []
