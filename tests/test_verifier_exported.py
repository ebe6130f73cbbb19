"""Export: the same verdicts from the file as from the registry, at every size, and refusals that say what to do."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch

from gg_ray import cli
from gg_ray.bench.verifier import synthetic_batch
from gg_ray.config import ScenarioConfig, VerifierConfig
from gg_ray.grid.cases import load_case
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import Program
from gg_ray.registry import ModelCard, Registry
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.verifier.exported import Exported, ExportError, export, manifest_of
from gg_ray.verifier.features import SCHEMA
from gg_ray.verifier.model import Verifier, VerifierOutput
from gg_ray.windows_io import write_windows

CONFIG = VerifierConfig(hidden=16)
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose registry holds one model, two windows of case14, and the model exported."""
    home = tmp_path_factory.mktemp("export")
    network = new_verifier(CONFIG, 0)
    Registry(home / "runs" / "tiny" / "registry").register(
        to_numpy(network.state_dict()), architecture=asdict(CONFIG), feature_schema=SCHEMA, metrics={}, run="tiny",
        seed=0, commit="c",
        card=ModelCard(
            summary="s", trained_on=(), held_out_families=(), held_out_grids=(), rows=(), limits=(), attribution=()
        ),
        extra={"calibration": {"scores": [-1.0, 0.0, 1.0], "implausible": -9.0, "disturbance": 0.25}},
    )  # fmt: skip
    executor = Executor(load_case("case14"), ScenarioConfig(), ClimatologySource())
    programs = [Program(case="case14", context_id=i, plan_id=0, events=(), scans=16, seed=i) for i in range(2)]
    windows = [(executor.realise(a, 0)[0], executor.grammar.plan(0)) for a in executor.run(programs)]
    write_windows(home / "windows.json", windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert cli.main(["export", "latest", "--out", "verifier.onnx"]) == 0
    return home


def test_the_command_gives_the_verdicts_of_the_registered_model(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    capsys.readouterr()
    assert cli.main(["score", "windows.json", "--model", "latest"]) == 0
    want = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert cli.main(["score", "windows.json", "--exported", "verifier.onnx"]) == 0
    got = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(got) == len(want) == 2
    for ours, theirs in zip(got, want, strict=True):
        for key, value in theirs.items():
            assert ours[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key


@pytest.mark.parametrize(("buses", "scans"), [(3, 16), (14, 24), (900, 48)])
def test_one_file_serves_every_size(home: Path, buses: int, scans: int) -> None:
    batch = synthetic_batch(buses, scans, np.random.default_rng(buses))
    with torch.inference_mode():
        want, got = new_verifier(CONFIG, 0).eval()(batch), Exported(home / "verifier.onnx")(batch)
    for item in fields(VerifierOutput):
        torch.testing.assert_close(getattr(got, item.name), getattr(want, item.name), atol=1e-5, rtol=1e-5)


def test_files_that_are_not_whole_are_refused(home: Path, tmp_path: Path) -> None:
    whole, copy = home / "verifier.onnx", tmp_path / "verifier.onnx"
    with pytest.raises(ExportError, match="missing"):
        Exported(copy)
    manifest_of(copy).write_bytes(manifest_of(whole).read_bytes())
    copy.write_bytes(whole.read_bytes()[:-1] + b"\0")
    with pytest.raises(ExportError, match=r"damaged.*export it again"):
        Exported(copy)
    with pytest.raises(ValueError, match="window of 12 scans: need a multiple of the patch 8"):
        Exported(whole)(synthetic_batch(14, 12, np.random.default_rng(0)))


def test_another_schema_or_encoder_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"only verifier\.encoder patch"):
        export(Verifier(VerifierConfig(hidden=16, encoder="tgcn")), tmp_path / "x.onnx", {})
    monkeypatch.setattr("gg_ray.verifier.exported.SCHEMA", 999)
    with pytest.raises(ExportError, match="this program has format 2 and schema 999"):
        Exported(home / "verifier.onnx")
