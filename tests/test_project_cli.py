"""gg_ray.cli: commands, options, exit codes and messages, without starting a run."""

from __future__ import annotations

import errno
import os
import sys
import types
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from actors.evaluation import EvaluationLost, spread
from actors.placement import ResourceError
from actors.replay import ReplayLost
from gg_ray import cli
from gg_ray.config import ConfigError, RunConfig
from gg_ray.config_io import from_dict, load, parse, setting_paths
from gg_ray.doctor import Check
from gg_ray.evaluate.job import serially
from gg_ray.files import CheckpointError, write_atomic
from gg_ray.grid.cases import CaseError
from gg_ray.options import options_of
from gg_ray.selfplay.loop import play as serial_play
from gg_ray.verifier.pyg_temporal import PygTemporalMissing


class Recorder:
    """Stands in for gg_ray.train: keeps what the command line made of its arguments."""

    config: RunConfig
    out: Path
    resume: str | None
    loop: tuple[object, object]

    def run(self, config: RunConfig, out: Path, resume: str | None, play: object, spread: object) -> int:
        self.config, self.out, self.resume, self.loop = config, out, resume, (play, spread)
        return 7


def no_ray(config: RunConfig) -> nullcontext[tuple[str, str]]:
    """Stands in for cli.loop_of."""
    return nullcontext((f"{config.mode} play", f"{config.mode} spread"))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder()
    module = types.ModuleType("gg_ray.train")
    module.run = recorder.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gg_ray.train", module)
    monkeypatch.setattr(cli, "loop_of", no_ray)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GG_DATA_DIR", raising=False)
    return recorder


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.main(args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gg-ray: error: ")
    assert said.err.count("\n") == 1, "one line, no traceback"
    return said.err


def test_train_without_options_is_the_laptop_run(recorder: Recorder) -> None:
    assert cli.main(["train"]) == 7, "the exit code is the run's"
    assert (recorder.config, recorder.out, recorder.resume) == (RunConfig(), Path("runs/laptop"), None)


def test_train_options_override_the_config(recorder: Recorder) -> None:
    args = ["train", "--config", "smoke", "--selfplay.reward", "azr", "--gates", "off", "--mode", "sync", "--seed=5"]
    args += ["--scenario.cases", "case14", "case57", "--scenario.d_max", "inf", "--evaluate.no-baselines"]
    args += ["--learner.loss.twin", "0", "--resume", "auto", "--name", "trial"]
    assert cli.main(args) == 7
    expected = load(
        "smoke",
        {
            "selfplay.reward": "azr",
            "scenario": {"gates": "off", "cases": ["case14", "case57"]},
            "mode": "sync",
            "seed": 5,
            "evaluate.baselines": False,
            "learner.loss.twin": 0,
            "name": "trial",
        },
    )
    assert recorder.config == expected
    assert (recorder.out, recorder.resume) == (Path("runs/trial"), "auto")
    assert recorder.loop == ("sync play", "sync spread"), "those of the mode, not of the packaged settings"


def test_train_reads_a_file_and_writes_where_it_is_told(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("learner: {batch: 32}\n")
    assert cli.main(["train", "--config=mine.yaml", "--out", "elsewhere"]) == 7
    assert (recorder.config.learner.batch, recorder.config.name, recorder.out) == (32, "mine", Path("elsewhere"))


def test_serial_mode_plays_and_evaluates_in_this_process() -> None:
    with cli.loop_of(load("smoke", {"mode": "serial"})) as loop:
        assert loop == (serial_play, serially)


@pytest.mark.parametrize(("args", "parallel"), [((), True), (("--no-parallel",), False)])
@pytest.mark.parametrize("cpus", [1, 2])
def test_evaluate_spreads_where_that_is_wanted_and_there_is_more_than_one_cpu(
    args: tuple[str, ...], parallel: bool, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr("gg_ray.commands.evaluate_model", lambda *values: given.append(values) or 7)
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert cli.main(["evaluate", "--cases", "case30", "--windows", "3", *args]) == 7
    [(model, suite, run, out, cases, windows, days, _, chosen)] = given
    assert (model, suite, run, out, cases, windows, days) == ("champion", "quick", None, None, ("case30",), 3, None)
    assert chosen is (spread if parallel and cpus > 1 else None)


def test_print_config_prints_what_would_run_and_stops(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "smoke", "--steps", "3", "--print-config"]) == 0
    assert from_dict(parse(capsys.readouterr().out)) == load("smoke", {"selfplay.steps": 3})
    assert not hasattr(recorder, "config")


def test_every_setting_is_an_option() -> None:
    options = set(options_of(cli.TrainOptions))
    assert {f"--{path.replace('_', '-')}" for path in setting_paths()} <= options


def test_options_of_agrees_with_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    words = set(capsys.readouterr().out.replace(",", " ").replace("│", " ").split())
    assert [option for option in options_of(cli.TrainOptions) if option not in words] == []


def test_aliases_stand_for_settings_and_are_in_the_help() -> None:
    options = set(options_of(cli.TrainOptions))
    assert set(cli.TRAIN_ALIASES.values()) <= options
    assert not set(cli.TRAIN_ALIASES) & options
    assert [alias for alias in cli.TRAIN_ALIASES if alias not in (cli.TrainOptions.__doc__ or "")] == []


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["tarin"], "did you mean train?"),
        (["xyzzy"], "choose from train, evaluate, score"),
        (["train", "--scenario.gatez", "off"], "did you mean --scenario.gates?"),
        (["train", "--gatez", "off"], "did you mean --gates?"),
        (["train", "--learner.hidden=3"], "--verifier.hidden"),
        (["train", "--config", "smok"], "did you mean smoke?"),
        (["train", "--scenario.scans", "17"], "scenario.scans: 17; choose one of (16, 24, 48)"),
        (["train", "--cases", "case39"], "'case39' cannot be trained on; choose from case14"),
        (["train", "--cases", "case41"], "'case41' cannot be trained on; did you mean case14? choose from"),
        (["train", "--evaluate.held-out-cases", "case41"], "unknown grid case 'case41'; did you mean"),
        (["train", "--evaluate.suite", "quik"], "unknown suite 'quik'; did you mean quick?"),
        (["doctor", "--fix"], "unknown option --fix"),
    ],
)
def test_misuse_is_one_line_with_the_way_out(
    recorder: Recorder, capsys: pytest.CaptureFixture[str], args: list[str], part: str
) -> None:
    assert part in refused(capsys, *args)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--learner.lr", "fast"], "--learner.lr: could not convert string to float: 'fast'"),
        (["--selfplay.steps", "1.5"], "--selfplay.steps"),
        (["--gates", "no"], "--scenario.gates: 'no'; choose from on, off"),
        (["--selfplay.arm", "unifor"], "--selfplay.arm: 'unifor'; did you mean uniform? choose from selfplay, uni"),
        (["--seed"], "Missing value for argument '--seed'"),
        (["stray"], "stray"),
    ],
)
def test_values_that_do_not_parse_are_misuse_in_one_line(
    recorder: Recorder, capsys: pytest.CaptureFixture[str], args: list[str], part: str
) -> None:
    assert part in refused(capsys, "train", *args)
    assert not hasattr(recorder, "config")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"gg-ray {name}" in capsys.readouterr().out


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert [name for name, command in cli.COMMANDS.items() if f"{name} " not in text or command.help not in text] == []
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gg-ray ")


def test_an_interrupted_command_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("", interrupted))
    assert cli.main(["train"]) == 130
    assert "interrupted" in capsys.readouterr().err


def fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    def failing(args: object) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("", failing))
    return cli.main(["train"])


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("torn"), CaseError("no such bus"), ResourceError("need 3, have 2"),
        ReplayLost("gone"), EvaluationLost("gone"), PygTemporalMissing("install it"),
    ],
)  # fmt: skip
def test_errors_of_our_packages_are_one_line_whatever_they_derive_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    assert fails_with(monkeypatch, error) == 1
    assert capsys.readouterr().err == f"gg-ray: error: {error}\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EEXIST])
def test_a_refusal_of_the_file_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    assert fails_with(monkeypatch, OSError(code, os.strerror(code), "runs/a/report.md")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"gg-ray: error: runs/a/report.md: {os.strerror(code)}; ")
    assert said.count("\n") == 1
    assert "--out" in said


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), FileNotFoundError(errno.ENOENT, "x", "y")])
def test_an_error_that_is_nobodys_message_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error)):
        fails_with(monkeypatch, error)


def test_evaluate_onto_a_file_ends_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(
        "gg_ray.commands.evaluate_model", lambda *args: write_atomic(args[3] / "results.json", "{}") and 0
    )
    assert cli.main(["evaluate", "--no-parallel", "--out", str(tmp_path / "file")]) == 1
    assert f"{tmp_path}/file/results.json: File exists" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_reader_that_leaves_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.dup2", lambda *_: 0)
    assert fails_with(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe")) == 1


def test_an_encoder_whose_package_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gg_ray.verifier.pyg_temporal.installed", lambda: False)
    assert cli.main(["train", "--config", "smoke", "--cases", "case14", "--verifier.encoder", "pygt_tgcn"]) == 1
    said = capsys.readouterr().err
    assert "gg-ray: error: verifier.encoder 'pygt_tgcn' needs torch-geometric-temporal: pip install" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("required", "code"), [(True, 1), (False, 0)])
def test_doctor_fails_only_for_what_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: bool, code: int
) -> None:
    check = Check(name="widget", ok=False, detail="need '.[bench]'", required=required)
    monkeypatch.setattr("gg_ray.doctor.report", lambda **_: [check])
    assert cli.main(["doctor"]) == code
    text = capsys.readouterr().out
    assert "widget" in text
    assert "'.[bench]'" in text, "brackets are text here, not rich markup"


def test_data_dir_order_setting_environment_folder_nothing(tmp_path: Path) -> None:
    named, beside, absent = tmp_path / "named", tmp_path / "beside", tmp_path / "absent"
    named.mkdir()
    beside.mkdir()
    config, own = RunConfig(), load(None, {"scenario.data_dir": str(named)})

    def chosen(config: RunConfig, env: dict[str, str], beside: Path) -> str:
        return cli.with_data_dir(config, env, beside).scenario.data_dir

    assert chosen(own, {"GG_DATA_DIR": str(beside)}, beside) == str(named)
    assert chosen(config, {"GG_DATA_DIR": str(named)}, beside) == str(named)
    assert chosen(config, {}, beside) == str(beside)
    assert chosen(config, {}, absent) == ""
    assert chosen(config, {"GG_DATA_DIR": ""}, beside) == "", "set to nothing: the packaged climatology"
    with pytest.raises(ConfigError, match="GG_DATA_DIR"):
        chosen(config, {"GG_DATA_DIR": str(absent)}, beside)
