"""gg_ray.train and `gg-ray train` as the user starts it: equal runs, resume after a kill, errors with their exit codes.

Golden:    python tests/test_gg_ray_train.py      # writes tests/golden/smoke_losses.json, one thread
Tolerance: 1e-3 relative, because a few steps of float32 training amplify the rounding of another processor a little
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_runs import finished, work_in

from gg_ray import checkpoint, cli
from gg_ray.config_io import load
from gg_ray.evaluate.results import Block, Results
from gg_ray.registry import Registry
from gg_ray.replay.segments import ColumnStore
from gg_ray.replay.selectors import Uniform
from gg_ray.replay.table import SEGMENT_ITEMS, ItemMeta, ReplayError, ReplayTable
from gg_ray.run_state import RunFolder
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import play, turns
from gg_ray.selfplay.players import ProposerPlayer, SolverPlayer
from gg_ray.tracking import compare, read_jsonl
from gg_ray.train import equal_price, table_fields, train_control, with_control_budget

GOLDEN = Path(__file__).parent / "golden" / "smoke_losses.json"
STEPS = 18
TINY = [
    "train", "--config", "smoke", "--cases", "case14", "--steps", str(STEPS), "--checkpoint.every-steps", "12",
    "--learner.publish-every", "6", "--evaluate.every-steps", "0", "--evaluate.held-out-cases", "case30",
    "--evaluate.windows", "1", "--evaluate.suite", "windows", "--evaluate.no-baselines",
]  # fmt: skip
"""The whole path in a few seconds: two checkpoints, window suites, report, registration."""


def smoke_losses() -> list[float]:
    """Losses of the first steps of the smoke run."""
    config = load("smoke")
    contexts = context_source(None)
    game, losses = Game(config), []
    players = ProposerPlayer(config, contexts), SolverPlayer(config, contexts)
    turns(6, game, Buffer(config), *players, lambda g, _b: losses.append(g.metrics()["loss/total"]))
    return losses


def test_first_losses_of_the_smoke_run_match_the_golden_file() -> None:
    assert smoke_losses() == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-3)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(autouse=True)
def in_workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in(workshop, monkeypatch)


@pytest.fixture(scope="module")
def whole(workshop: Path) -> Path:
    """A finished run."""
    return finished(workshop / "whole", TINY)


def resumable(whole: Path, to: Path) -> Path:
    """A copy of the run as if it had been killed after step 14: the last checkpoint is step 12."""
    shutil.copytree(whole, to)
    shutil.rmtree(to / "checkpoints" / f"step-{STEPS}")
    lines = (to / "metrics.jsonl").read_text().splitlines(keepends=True)
    (to / "metrics.jsonl").write_text("".join(lines[:14]) + lines[14][:20])
    return to


def test_a_run_writes_its_directory(whole: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints"):
        assert (whole / name).exists(), name
    for name in ("report.md", "results.json", "windows.parquet", "learning.png", "coverage.png"):
        assert (whole / "report" / name).exists(), name
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-12", "step-18"]
    assert load(str(whole / "config.yaml")).selfplay.steps == STEPS
    version = Registry(whole / "registry").resolve("latest")
    assert version.metrics["learner_steps"] == STEPS
    blocks = json.loads((whole / "report" / "results.json").read_text())["parts"]
    assert [block["case"] for block in blocks] == ["case14", "case30"]


def test_two_runs_log_the_same_but_for_times(whole: Path, workshop: Path) -> None:
    assert cli.main([*TINY, "--out", str(workshop / "again")]) == 0
    assert compare(whole / "metrics.jsonl", workshop / "again" / "metrics.jsonl") == []
    rows = read_jsonl(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all("nonfinite" not in row for row in rows)
    one, two = (Registry(workshop / name / "registry").resolve("latest") for name in ("whole", "again"))
    assert one.metrics == two.metrics


def test_a_resumed_run_logs_what_the_whole_one_did(whole: Path, workshop: Path) -> None:
    run = resumable(whole, workshop / "resumed")
    assert cli.main([*TINY, "--out", str(run), "--resume", "auto"]) == 0
    assert compare(whole / "metrics.jsonl", run / "metrics.jsonl") == []


def test_a_finished_run_has_its_last_step_and_trains_nothing_more(
    whole: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """STEPS is no multiple of the interval between checkpoints: the last one is written because it is the last."""
    config = load(str(whole / "config.yaml"))
    assert config.mode == "serial"
    assert STEPS % config.checkpoint.every_steps
    assert checkpoint.latest(whole / "checkpoints") == whole / "checkpoints" / f"step-{STEPS}"
    run = workshop / "finished"
    shutil.copytree(whole, run)
    before = snapshot(run)

    def learns(self: Game, draw: object) -> None:
        raise AssertionError("another step was trained")

    monkeypatch.setattr(Game, "learn", learns)
    capsys.readouterr()
    assert cli.main([*TINY, "--out", str(run), "--resume", "auto"]) == 0
    said = capsys.readouterr()
    assert f"resumed from step-{STEPS} at step {STEPS}" in said.out + said.err
    after = snapshot(run)
    assert after["metrics.jsonl"] == before["metrics.jsonl"]
    kept = [name for name in before if name.startswith("checkpoints/")]
    assert kept == [name for name in after if name.startswith("checkpoints/")]
    assert all(after[name] == before[name] for name in kept)
    first, second = Registry(run / "registry").list()
    assert second.metrics == first.metrics, "the weights of the checkpoint are those that were evaluated"


# ---------------------------------------------------------------- the replay in a checkpoint


class Counting(ColumnStore):
    """Remembers how many items each segment was made of."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, {"n": ((), np.int64)})
        self.dumped: list[int] = []

    def dump(self, slots: NDArray[np.int64]) -> bytes:
        self.dumped.append(slots.size)
        return super().dump(slots)


def table_of(items: int, capacity: int = 2_000) -> tuple[ReplayTable[Any], Counting]:
    """A table with the items 0..items-1, inserted by tens."""
    store = Counting(capacity)
    table: ReplayTable[Any] = ReplayTable(store, limit_bytes=10**6, describe=lambda block: ItemMeta(strata="all"))
    for first in range(0, items, 10):
        table.insert({"n": np.arange(first, min(items, first + 10))}, step=first, batch_id=first)
    return table, store


def numbers(table: ReplayTable[Any]) -> list[int]:
    """Held items, the newest first."""
    found: list[int] = table._store.get(table.index.log.newest(len(table)))["n"].tolist() if len(table) else []
    return found


@pytest.mark.parametrize("tail", [0, 1, SEGMENT_ITEMS, SEGMENT_ITEMS + 1, 5_000])
def test_segments_are_made_one_at_a_time_and_load_together(tail: int) -> None:
    table, store = table_of(2 * SEGMENT_ITEMS + 20)
    books, segments = table.snapshot(tail)
    assert store.dumped == [], "none before the first is asked for"
    payload = []
    for count, segment in enumerate(segments, start=1):
        assert len(store.dumped) == count
        payload.append(segment)
    kept = tail if 0 < tail < len(table) else len(table)
    full, rest = divmod(kept, SEGMENT_ITEMS)
    assert store.dumped == [SEGMENT_ITEMS] * full + [rest] * (rest > 0)
    assert len(table) == 2 * SEGMENT_ITEMS + 20, "saving changes nothing"
    other, _ = table_of(0)
    other.load_state_dict({**books, "payload": payload})
    assert numbers(other) == numbers(table)[:kept], "the newest"
    assert other.inserted == len(other) + other.evicted
    assert other.used_bytes == 8 * kept
    together = table.state_dict(tail)
    assert [bytes(segment) for segment in together["payload"]] == [bytes(segment) for segment in payload]
    if kept == len(table):
        mix = [(Uniform(), 1.0)]
        one, two = (t.sample(50, np.random.default_rng(3), mix) for t in (table, other))
        np.testing.assert_array_equal(one.keys, two.keys)
        np.testing.assert_array_equal(one.items["n"], two.items["n"])


def test_an_empty_table_has_books_and_no_segment() -> None:
    books, segments = table_of(0)[0].snapshot()
    assert list(segments) == []
    other, _ = table_of(30)
    other.load_state_dict({**books, "payload": []})
    assert (len(other), other.used_bytes) == (0, 0)


def test_a_missing_segment_is_refused_and_changes_nothing() -> None:
    state = table_of(SEGMENT_ITEMS + 20)[0].state_dict()
    other, _ = table_of(30)
    before = numbers(other)
    for payload in (state["payload"][:1], state["payload"][::-1], []):
        with pytest.raises(ReplayError, match="step-9: payload and index differ in length"):
            other.load_state_dict({**state, "payload": payload}, "step-9")
        assert numbers(other) == before


def test_a_cleared_table_is_empty_and_goes_on_counting() -> None:
    table, _ = table_of(50, capacity=50)
    drawn = table.sample(5, np.random.default_rng(0), [(Uniform(), 1.0)])
    inserted, top = table.inserted, int(table.index.key.max())
    table.clear()
    assert (len(table), table.used_bytes, numbers(table)) == (0, 0, [])
    assert table.index.stratum_items.sum() == table.index.stratum_bytes.sum() == 0
    assert table.inserted == inserted
    with pytest.raises(ReplayError, match="empty"):
        table.sample(1, np.random.default_rng(0), [(Uniform(), 1.0)])
    assert table.update_priorities(drawn.keys, drawn.generations, np.ones(5)) == 0, "what was drawn before is stale"
    assert table.insert({"n": np.arange(10)}, step=60, batch_id=40) == [], "a retry of before is still known"
    keys = table.insert({"n": np.arange(100, 150)}, step=60)
    assert min(keys) > top, "keys are never given twice"
    assert numbers(table) == list(range(149, 99, -1)), "every slot is free again"
    assert table.inserted == inserted + 50
    table.clear()
    table.clear()
    assert len(table) == 0
    other, _ = table_of(0, capacity=50)
    other.load_state_dict(table.state_dict())
    assert other.insert({"n": np.arange(3)}, step=61) != []


def test_the_control_gets_the_same_budget_and_the_results_say_what_both_spent() -> None:
    """Its players are not asked for windows by number but for power flows: the rival's Solver spends some of those."""
    config = load("smoke", {"scenario.cases": ["case14"], "selfplay.steps": 60, "evaluate.every_steps": 0})
    rival = Game(config)
    play(config, context_source(None), rival, Buffer(config), lambda _game, _buffer: None)
    assert rival.solves_solver > 0
    control = train_control(config, play, rival)
    assert control.step == rival.step
    assert control.inserted > rival.inserted
    assert control.solves == pytest.approx(rival.solves, rel=0.15), "a call is a tenth of so small a budget"
    block = Block(suite="S1", fold=0, case="case14", model="m", seed=0, commit="c", budget={"fpr": 0.05}, rows=())
    before = Results(suite="S1", results=(block,), machine={}, command="x")
    found = with_control_budget(before, control).results[0].budget
    assert found == {
        "fpr": 0.05, "control_executor_calls": float(control.solves), "control_learner_steps": float(rival.step)
    }  # fmt: skip
    assert equal_price(config, Game(config)) == config.replay.samples_per_insert, "nothing is known of the price"


def logged(**more: float) -> dict[str, float]:
    fixed = {"time/scenarios_per_s": 9.0, "gate/pass": 0.6, "gate/G3": 0.4, "p_bar/S2": 0.7, "learnability/S2": 0.3}
    return fixed | more


def test_the_live_table_shows_what_was_logged() -> None:
    config = load("laptop", {"mode": "serial"})
    shown = table_fields(5, config, logged(**{"skill/S2": 0.9, "skill/A2": 0.0}), ("S2", "A2"))
    assert shown["gates"] == {"pass": 0.6, "G3": 0.4}
    assert shown["families"] == {
        "S2": {"solve": 0.7, "learnability": 0.3}, "A2": {"solve": None, "learnability": None}
    }  # fmt: skip
    assert shown["actors"] == {"players": "in process"}
    alive = logged(**{"actors/proposers": 1.0, "actors/solvers": 0.0})
    assert table_fields(5, load("laptop"), alive, ())["actors"] == {"proposers": (1, 1), "solvers": (0, 1)}
    assert table_fields(5, load("laptop"), logged(**{"actors/proposers": 1.0}), ())["actors"] == {"proposers": (1, 1)}


def test_a_run_of_the_same_name_is_moved_aside(whole: Path, workshop: Path) -> None:
    run = workshop / "twice"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    folder = RunFolder(run, load("smoke"))
    assert folder.open(None) is None
    assert (workshop / "twice.1" / "notes.txt").read_text() == "mine"
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_kill_minus_nine_then_resume(workshop: Path) -> None:
    args = [sys.executable, "-m", "gg_ray.cli", *TINY, "--steps", "40", "--out", str(workshop / "killed")]
    args[args.index("--steps") : args.index("--steps") + 2] = []
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    first = workshop / "killed" / "checkpoints" / "step-12" / "manifest.json"
    with subprocess.Popen(args, cwd=workshop, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 90
        while not first.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert first.exists(), process.stderr.read().decode() if process.poll() is not None else "no checkpoint in time"
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(
        [*args, "--resume", "auto"], cwd=workshop, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed from step-\d+", done.stdout + done.stderr)
    assert "registered verifier/v" in done.stdout
    assert [row["step"] for row in read_jsonl(workshop / "killed" / "metrics.jsonl")] == list(range(1, 41))
    assert not list((workshop / "killed" / "checkpoints").glob(".tmp-*"))


def snapshot(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    capsys.readouterr()
    assert cli.main([*TINY, *args]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_resume_with_other_settings_names_the_setting(
    whole: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resumable(whole, workshop / "other")
    before = snapshot(run)
    said = refused(capsys, 1, "--out", str(run), "--resume", "auto", "--learner.lr", "0.5")
    assert re.search(r"\(learner\.lr: [0-9.]+ in the checkpoint, 0\.5 now\)", said)
    assert snapshot(run) == before


def test_resume_from_nowhere(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, 2, "--out", str(workshop / "none"), "--resume", str(workshop / "nothing" / "step-3"))
    assert "no such checkpoint" in said
    assert not (workshop / "none").exists()


@pytest.mark.parametrize("harm", ["torn", "bit"])
def test_a_damaged_checkpoint_is_passed_over(
    harm: str, whole: Path, workshop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = workshop / f"damaged-{harm}"
    shutil.copytree(whole, run)
    victim = run / "checkpoints" / f"step-{STEPS}" / "game.safetensors"
    data = bytearray(victim.read_bytes())
    if harm == "torn":
        victim.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    found = RunFolder(run, load(str(run / "config.yaml"))).open("auto")
    assert found is not None
    assert found.name == "step-12"
    assert "game.safetensors" in caplog.text
    assert ("truncated" if harm == "torn" else "damaged") in caplog.text


def test_a_full_disk_ends_the_run_with_a_message(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_synced", full)
        said = refused(capsys, 1, "--out", str(workshop / "full"))
    assert "the disk is full" in said
    assert not list((workshop / "full" / "checkpoints").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("gg_ray.tracking.JsonlTracker.log", full)
        said = refused(capsys, 1, "--out", str(workshop / "full2"))
    assert "the disk is full" in said
    assert "--resume auto" in said


def test_a_checkpoint_of_another_run_starts_a_folder_of_its_own(whole: Path, workshop: Path) -> None:
    config = load(str(whole / "config.yaml"))
    busy = workshop / "busy"
    busy.mkdir()
    (busy / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    assert RunFolder(busy, config).open(str(whole / "checkpoints" / "step-12")) == whole / "checkpoints" / "step-12"
    assert not (busy / "metrics.jsonl").exists()
    assert (workshop / "busy.1" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--scenario.d-mni", "4"), ("unknown option --scenario.d-mni", "did you mean --scenario.d-min?")),
        (("--cases", "case41"), ("case41", "choose from case14")),
        (("--evaluate.held-out-cases", "case93"), ("case93", "did you mean")),
        (("--evaluate.suite", "windoze"), ("unknown suite 'windoze'", "timelines")),
        (("--learner.batch", "1"), ("learner.batch: 1",)),
    ],
)
def test_a_wrong_setting_ends_before_anything_is_made(
    args: tuple[str, ...], parts: tuple[str, ...], workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, 2, "--out", str(workshop / "wrong"), *args)
    for part in parts:
        assert part in said
    assert not (workshop / "wrong").exists()


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"torch": torch.__version__, "losses": smoke_losses()}, indent=1) + "\n")
