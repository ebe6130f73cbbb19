"""gg_ray.commands through the command line: what models, promote, status, score and evaluate do and refuse."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import work_in

from gg_ray import cli
from gg_ray.config_io import dump, load
from gg_ray.evaluate.suites import SuiteMaker
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import FAMILIES
from gg_ray.registry import WEIGHTS, ModelCard, Registry, Version
from gg_ray.scenario.context import context_source
from gg_ray.verifier.features import SCHEMA
from gg_ray.windows_io import write_windows

CONFIG = load(
    "smoke",
    {
        "scenario.cases": ["case14"],
        "evaluate": {"held_out_cases": ["case30"], "windows": 1, "days": 1},
        "verifier.hidden": 16,
        "name": "tiny",
    },
)
CARD = ModelCard(
    summary="Untrained.", trained_on=(), held_out_families=(), held_out_grids=(), rows=(), limits=(), attribution=()
)
ACCURACY = (0.7, 0.6, None)
"""Of versions 1 to 3; the untrained row stands at 0.65."""


CALIBRATION = {"scores": [-1.0, 0.0, 1.0], "implausible": 0.5, "disturbance": 0.0}


def register(store: Registry, number: int, *, accuracy: float | None, extra: dict[str, Any]) -> Version:
    """An untrained version whose weights depend on the number."""
    return store.register(
        to_numpy(new_verifier(CONFIG.verifier, CONFIG.seed + number).state_dict()),
        architecture=asdict(CONFIG.verifier),
        feature_schema=SCHEMA,
        metrics={"balanced_accuracy": accuracy, "untrained": 0.65, "learner_steps": 5, "power_flow_solves": 99},
        run="tiny",
        seed=0,
        commit="abc",
        card=CARD,
        extra=extra,
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny (three untrained versions, no alias) and a few windows in two files.

    Version 1 has the weights of the run's own `untrained` row, version 2 others.
    """
    home = tmp_path_factory.mktemp("commands")
    run = home / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(CONFIG))
    for number, accuracy in enumerate(ACCURACY, start=1):
        register(Registry(run / "registry"), number, accuracy=accuracy, extra={"calibration": CALIBRATION})
    made = SuiteMaker("case14", CONFIG.scenario, CONFIG.evaluate, context_source(None)).windows()
    for name, group in zip(("one.json", "two.parquet"), made.test, strict=True):
        write_windows(home / name, [(window, group.prepared.plan) for window in group.prepared.windows[:3]])
    return home


@pytest.fixture
def home(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the present one."""
    shutil.copytree(original, tmp_path / "home")
    work_in(tmp_path / "home", monkeypatch)
    return tmp_path / "home"


class Screen:
    """Runs commands and gives back what they said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def says(self, *args: str) -> str:
        self.capsys.readouterr()
        assert cli.main(args) == 0, self.capsys.readouterr().err
        return self.capsys.readouterr().out

    def refuses(self, code: int, *args: str) -> str:
        """The one line of an error; nothing may be on standard output."""
        self.capsys.readouterr()
        assert cli.main(args) == code
        said = self.capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("gg-ray: error: ")
        assert said.err.count("\n") == 1
        return said.err


@pytest.fixture
def screen(home: Path, capsys: pytest.CaptureFixture[str]) -> Screen:
    return Screen(capsys)


def flip_a_bit(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------- models, promote


def test_models_lists_versions_with_figures_and_aliases(screen: Screen, home: Path) -> None:
    store = Registry(home / "runs" / "tiny" / "registry")
    store.promote("v1", "champion")
    store.promote("v1", "challenger")
    for args in (("models",), ("models", "--run", "tiny"), ("models", "--run", str(home / "runs" / "tiny"))):
        assert [line.split() for line in screen.says(*args).splitlines()] == [
            ["verifier/v1", "balanced", "accuracy", "0.700", "champion", "challenger"],
            ["verifier/v2", "balanced", "accuracy", "0.600"],
            ["verifier/v3", "balanced", "accuracy", "-"],
        ]


def test_models_of_an_empty_registry_says_so(screen: Screen, home: Path) -> None:
    (home / "runs" / "new" / "registry").mkdir(parents=True)
    assert "no model is registered in runs/new/registry; train one with gg-ray train" in screen.says(
        "models", "--run", "new"
    )


def test_models_of_no_run_at_all(screen: Screen, home: Path) -> None:
    assert "run 'gone' has no registry; train it first" in screen.refuses(1, "models", "--run", "gone")
    shutil.rmtree(home / "runs")
    assert "champion" in screen.says("models")  # the model that comes with the package


def test_models_names_a_damaged_version(screen: Screen, home: Path) -> None:
    flip_a_bit(home / "runs" / "tiny" / "registry" / "models" / "verifier" / "v0002" / "manifest.json")
    assert "verifier/v2 is refused" in screen.refuses(1, "models")


def test_promote_moves_the_alias_when_the_gate_finds_nothing(screen: Screen, home: Path) -> None:
    store = Registry(home / "runs" / "tiny" / "registry")
    assert screen.says("promote", "v1") == "champion -> verifier/v1\n"
    assert screen.says("promote", "latest", "--alias", "challenger", "--force") == "challenger -> verifier/v3\n"
    assert store.aliases() == {"champion": "verifier/v1", "challenger": "verifier/v3"}


def test_promote_refuses_with_every_reason_and_force_overrides(screen: Screen, home: Path) -> None:
    store = Registry(home / "runs" / "tiny" / "registry")
    screen.says("promote", "v1")
    said = screen.refuses(1, "promote", "v2", "--run", "tiny")
    assert "0.600 is not above the untrained row (0.650)" in said
    assert "0.600 is below the champion's 0.700" in said
    assert "no balanced accuracy was measured" in screen.refuses(1, "promote", "v3")
    assert store.aliases() == {"champion": "verifier/v1"}
    assert screen.says("promote", "v2", "--force") == "champion -> verifier/v2\n"
    assert store.rollback("champion").id == "verifier/v1", "the one before stays within reach"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("v9",), "no verifier 'v9'; did you mean"),
        (("champion",), "it is not set: use `gg-ray promote`"),
        (("v1", "--alias", "champoin"), "did you mean 'champion'?"),
        (("v1", "--run", "gone"), "run 'gone' has no registry"),
    ],
)
def test_promote_of_unknown_names_changes_nothing(screen: Screen, home: Path, args: tuple[str, ...], part: str) -> None:
    assert part in screen.refuses(1, "promote", *args)
    assert Registry(home / "runs" / "tiny" / "registry").aliases() == {}


def test_promote_of_damaged_weights_is_refused_even_by_force(screen: Screen, home: Path) -> None:
    store = Registry(home / "runs" / "tiny" / "registry")
    flip_a_bit(store.resolve("v1").path / WEIGHTS)
    assert WEIGHTS in screen.refuses(1, "promote", "v1", "--force")
    assert store.aliases() == {}


# ---------------------------------------------------------------- status


def log(home: Path, run: str, *rows: dict[str, object]) -> Path:
    path = home / "runs" / run / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_status_shows_the_last_line_and_the_checkpoints_in_order(screen: Screen, home: Path) -> None:
    rows = [
        {"kind": "train", "step": 9, "loss/total": 7.0},
        {"kind": "train", "step": 10, "loss/total": 1.23456, "eval/auroc": None, "gate/pass": 0.5, "loss/node": 3.0},
    ]
    path = log(home, "tiny", *rows)
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 11, "loss/')  # torn: its writer was killed
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    for step in (10, 9, 100):
        (home / "runs" / "tiny" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (home / "runs" / "tiny" / "checkpoints" / ".tmp-step-11-1").mkdir()
    for name in ("tiny", "runs/tiny", str(home / "runs" / "tiny")):
        head, *lines = screen.says("status", name).splitlines()
        assert (found := re.fullmatch(r"(.*): step 10, written (\d+) s ago", head))
        assert Path(found[1]).resolve() == home / "runs" / "tiny"
        assert 3600 <= int(found[2]) < 3700
        assert [line.split() for line in lines] == [
            ["loss/total", "1.235"],
            ["gate/pass", "0.5"],
            ["checkpoint", "step-9"],
            ["checkpoint", "step-10"],
            ["checkpoint", "step-100"],
        ]


def test_status_without_a_name_is_that_of_the_run_written_last(screen: Screen, home: Path) -> None:
    for age_s, name in ((50, "b"), (10, "a"), (90, "c")):
        path = log(home, name, {"kind": "train", "step": age_s})
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_s))
    assert screen.says("status").startswith("runs/a: step 10,")


def test_status_before_the_first_step(screen: Screen, home: Path) -> None:
    log(home, "young")
    assert screen.says("status", "young") == "runs/young: started, no step finished yet\n"


def test_status_of_a_run_is_not_hidden_by_a_folder_of_its_name(screen: Screen, home: Path) -> None:
    log(home, "docs", {"kind": "train", "step": 3})
    (home / "docs").mkdir()
    assert screen.says("status", "docs").startswith("runs/docs: step 3,")


def test_status_of_no_run_and_of_a_file_that_is_not_metrics(screen: Screen, home: Path) -> None:
    assert "no run at gone or runs/gone; start one with gg-ray train" in screen.refuses(1, "status", "gone")
    assert "start one with gg-ray train" in screen.refuses(1, "status"), "runs/tiny never logged"
    path = log(home, "odd", {"kind": "train", "step": 1})
    path.write_text(path.read_text() + "step two\n")
    assert "runs/odd/metrics.jsonl: line 2 is not JSON" in screen.refuses(1, "status", "odd")


# ---------------------------------------------------------------- score


def test_score_gives_one_verdict_per_window_in_the_order_of_the_files(screen: Screen) -> None:
    screen.says("promote", "v1")
    one, two = screen.says("score", "one.json"), screen.says("score", "two.parquet", "--model", "v1")
    both = screen.says("score", "one.json", "two.parquet", "--run", "tiny")
    assert both == one + two
    verdicts = [json.loads(line) for line in both.splitlines()]
    assert len(verdicts) == 6
    for verdict in verdicts:
        assert verdict["model"] == "verifier/v1"
        assert verdict["p_value"] in (0.25, 0.5, 0.75, 1.0), "conformal over three benign scores"
        implausible = verdict["p_implausible"] >= 1 / (1 + math.exp(-0.5))
        assert (verdict["verdict"] == "implausible") == implausible, "the threshold that was registered"
    assert screen.says("score", "one.json", "--model", "v2") != one


@pytest.mark.parametrize(
    ("code", "args", "part"),
    [
        (2, ("--model", "v1"), "name at least one file"),
        (1, ("one.json",), "it is not set: use `gg-ray promote`"),
        (1, ("one.json", "--model", "v7"), "no verifier 'v7'"),
        (1, ("one.json", "gone.json", "--model", "v1"), "gone.json: no such file"),
        (1, ("one.json", "runs/tiny/config.yaml", "--model", "v1"), "config.yaml: unknown suffix '.yaml'"),
        (1, ("one.json", "--model", "v1", "--run", "gone"), "run 'gone' has no registry"),
    ],
)
def test_score_refuses_before_the_first_verdict(screen: Screen, code: int, args: tuple[str, ...], part: str) -> None:
    assert part in screen.refuses(code, "score", *args)


def test_score_names_file_and_window_of_one_that_does_not_fit(screen: Screen, home: Path) -> None:
    rows = json.loads((home / "one.json").read_text())
    meters = len(rows[1]["channels"])
    rows[1] |= {"z": rows[1]["z"][: 11 * meters], "age": None, "status": None}
    (home / "short.json").write_text(json.dumps(rows))
    assert "short.json, window 1: window of 11 scans" in screen.refuses(1, "score", "short.json", "--model", "v1")


def test_score_refuses_weights_that_were_changed(screen: Screen, home: Path) -> None:
    flip_a_bit(Registry(home / "runs" / "tiny" / "registry").resolve("v1").path / WEIGHTS)
    said = screen.refuses(1, "score", "one.json", "--model", "v1")
    assert "verifier/v1 is refused" in said
    assert WEIGHTS in said


# ---------------------------------------------------------------- evaluate


def rows_by_method(data: dict[str, Any], case: str = "case14") -> dict[str, list[dict[str, object]]]:
    """Rows of one grid as they stand, by method."""
    found: dict[str, list[dict[str, object]]] = {}
    for row in data["rows"]:
        if row["case"] == case:
            own = {name: value for name, value in row.items() if name != "method"}
            found.setdefault(row["method"], []).append(own)
    return found


def test_evaluate_measures_the_registered_weights_and_writes_the_report(screen: Screen, home: Path) -> None:
    grid = ("--cases", "case14", "--windows", "2", "--no-parallel")
    said = screen.says("evaluate", "--model", "v1", "--suite", "windows", *grid)
    folder = home / "runs" / "tiny" / "evaluation"
    data = json.loads((folder / "results.json").read_text())
    assert (data["suite"], data["case"], data["model"]) == ("windows", "case14", "verifier/v1")
    assert (data["budget"]["learner_steps"], data["budget"]["executor_calls"]) == (5, 99)
    assert data["budget"]["windows"] == 2 * 2 * len(FAMILIES), "two of each, and as many plausible ones"
    rows = rows_by_method(data)
    assert {"verifier", "untrained", "oracle", "random", "chi2", "lnr"} <= set(rows)
    assert "uniform" not in rows
    assert "no uniform control registered beside it" in said
    assert rows["verifier"] == rows["untrained"], "version 1 has those weights"
    assert {row["family"] for row in rows["verifier"]} == {*FAMILIES, "macro"}
    for method, own in rows.items():
        assert all(row[name] is not None for row in own for name in ("balanced_accuracy", "auroc", "recall_at_fpr"))
        assert method == "oracle" or all(row["ceiling"] is not None for row in own)
    assert "windows on case14" in said
    assert re.search(r"^case14: oracle ceiling ", said, re.MULTILINE)
    assert "wrote runs/tiny/evaluation/results.json" in said
    text = (folder / "report.md").read_text()
    assert "tiny, verifier/v1" in text
    drawn = ["map_case14.png", "recall_case14.png", "reliability_case14.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*drawn, "report.md", "results.json"])
    assert [name for name in drawn if f"]({name})" not in text] == []
    [verdicts] = data["verdicts"]
    assert sum(sum(counts.values()) for counts in verdicts["confusion"].values()) == data["budget"]["windows"]


def test_evaluate_runs_the_grids_and_sizes_of_the_run_where_none_are_named(screen: Screen, home: Path) -> None:
    screen.says("evaluate", "--model", "v2", "--suite", "windows", "--out", "elsewhere", "--no-parallel")
    data = json.loads((home / "elsewhere" / "results.json").read_text())
    assert data["case"] == "case14, case30"
    assert [(part["case"], part["budget"]["windows"]) for part in data["parts"]] == [
        ("case14", 2 * len(FAMILIES)), ("case30", 2 * len(FAMILIES)),
    ]  # fmt: skip
    assert not (home / "runs" / "tiny" / "evaluation").exists()
    macro = {row["method"]: row for row in data["rows"] if (row["case"], row["family"]) == ("case14", "macro")}
    assert macro["verifier"]["auroc"] != macro["untrained"]["auroc"]


@pytest.mark.slow
def test_evaluate_has_a_row_of_the_control_that_was_trained_beside_the_model(screen: Screen, home: Path) -> None:
    """Version 4 names version 2 as its control; the alias may have moved on to that of another model."""
    store = Registry(home / "runs" / "tiny" / "registry")
    made = register(store, 4, accuracy=0.8, extra={"calibration": CALIBRATION, "control": "verifier/v2"})
    assert made.id == "verifier/v4"
    store.promote("v3", "control")
    common = ("--suite", "windows", "--cases", "case14", "--no-parallel")
    screen.says("evaluate", "--model", "v4", "--out", "four", *common)
    screen.says("evaluate", "--model", "v2", "--out", "two", *common)
    four, two = (rows_by_method(json.loads((home / name / "results.json").read_text())) for name in ("four", "two"))
    assert four["uniform"] == two["verifier"] != four["verifier"]
    assert list(four)[:3] == ["verifier", "uniform", "untrained"], "the order of a training report"


def test_a_control_can_be_evaluated_but_neither_score_nor_be_champion(screen: Screen, home: Path) -> None:
    store = Registry(home / "runs" / "tiny" / "registry")
    register(store, 4, accuracy=0.9, extra={})
    assert screen.says("promote", "v4", "--alias", "control", "--force") == "control -> verifier/v4\n"
    assert "registered without calibration" in screen.refuses(1, "promote", "v4")
    assert "registered without calibration" in screen.refuses(1, "score", "one.json", "--model", "control")
    common = ("--suite", "windows", "--cases", "case14", "--no-parallel", "--out", "control")
    screen.says("evaluate", "--model", "control", *common)
    assert json.loads((home / "control" / "results.json").read_text())["model"] == "verifier/v4"


@pytest.mark.ray
@pytest.mark.slow
def test_evaluate_in_parallel_gives_the_rows_of_one_process(screen: Screen, home: Path, ray_cluster: None) -> None:
    written = []
    for folder, args in (("one", ("--no-parallel",)), ("several", ())):
        screen.says("evaluate", "--model", "v2", "--suite", "windows", "--out", folder, *args)
        written.append(json.loads((home / folder / "results.json").read_text()))
    assert written[0]["case"] == "case14, case30"
    for name in ("rows", "parts", "verdicts"):
        assert written[1][name] == written[0][name]


@pytest.mark.parametrize(
    ("code", "args", "part"),
    [
        (2, ("--suite", "windoze"), "unknown suite 'windoze'; did you mean windows? choose from quick, windows"),
        (2, ("--cases", "case93"), "--cases: unknown grid case 'case93'; did you mean case39"),
        (2, ("--windows", "0"), "evaluate.windows: 0; at least 1"),
        (2, ("--windows", "-1"), "evaluate.windows: -1; at least 1"),
        (2, ("--days", "0"), "evaluate.days: 0; at least 1"),
        (2, ("--suite", "real-gb"), "suite real-gb: verifier/v1 was trained on case14; train one with"),
        (2, ("--suite", "real-gb", "--days", "3"), "suite real-gb has one grid and days of its own"),
        (1, ("--model", "v9"), "no verifier 'v9'"),
        (1, ("--model", "champion"), "it is not set: use `gg-ray promote`"),
        (1, ("--run", "gone"), "run 'gone' has no registry"),
    ],
)
def test_evaluate_refuses_without_writing(
    screen: Screen, home: Path, code: int, args: tuple[str, ...], part: str
) -> None:
    assert part in screen.refuses(code, "evaluate", *(() if "--model" in args else ("--model", "v1")), *args)
    assert not (home / "runs" / "tiny" / "evaluation").exists()


def test_evaluate_needs_the_settings_and_the_data_of_the_run(
    screen: Screen, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GG_DATA_DIR", "nowhere")
    assert "GG_DATA_DIR: nowhere is not a folder" in screen.refuses(2, "evaluate", "--model", "v1")
    (home / "runs" / "tiny" / "config.yaml").unlink()
    assert "runs/tiny/config.yaml: No such file" in screen.refuses(2, "evaluate", "--model", "v1")
