"""gg_ray.run_state: how a run folder starts, what a checkpoint gives back, and what no failure may cost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gg_ray import checkpoint
from gg_ray.config import ConfigError, RunConfig
from gg_ray.config_io import load
from gg_ray.files import CheckpointError
from gg_ray.run_state import MAY_CHANGE, PARTS, RunFolder
from gg_ray.scenario.context import context_source
from gg_ray.selfplay.buffer import Buffer
from gg_ray.selfplay.game import Game
from gg_ray.selfplay.loop import turns
from gg_ray.selfplay.players import ProposerPlayer, SolverPlayer

CONFIG = load(
    "smoke",
    {
        "scenario.cases": ["case14"],
        "evaluate.held_out_cases": ["case30"],
        "selfplay.steps": 6,
        "learner.publish_every": 1,  # players hold published weights: a checkpoint is exact only then
        "replay.samples_per_insert": 0.5,  # scenarios are made between any two steps
        "checkpoint.keep": 3,
    },
)


def play_to(step: int, game: Game, buffer: Buffer) -> list[float]:
    """Go on to a step; returns the loss of every step made."""
    contexts, losses = context_source(None), []
    players = ProposerPlayer(CONFIG, contexts), SolverPlayer(CONFIG, contexts)
    turns(step, game, buffer, *players, lambda g, _b: losses.append(g.metrics()["loss/total"]))
    return losses


@pytest.fixture(scope="module")
def played() -> tuple[Game, Buffer]:
    """A game of two steps with what it has in replay."""
    game, buffer = Game(CONFIG), Buffer(CONFIG)
    play_to(2, game, buffer)
    return game, buffer


@pytest.fixture(scope="module")
def original(played: tuple[Game, Buffer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints step-1 and step-2 (the same state) and two lines of metrics."""
    game, buffer = played
    folder = RunFolder(tmp_path_factory.mktemp("original") / "run", CONFIG)
    assert folder.open(None) is None
    for step, elapsed_s in ((1, 10.0), (2, 20.0)):
        game.step, kept = step, game.step
        assert folder.save(game, buffer, elapsed_s).name == f"step-{step}"
        game.step = kept
    folder.metrics.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n')
    return folder.root


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may harm."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------- open


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_fresh_folder_holds_the_settings_and_nothing_else(tmp_path: Path, resume: str | None) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", CONFIG)
    assert folder.open(resume) is None
    assert [path.name for path in folder.root.iterdir()] == ["config.yaml"]
    assert load(str(folder.root / "config.yaml")) == CONFIG


def test_a_run_of_the_same_name_is_kept_aside_unchanged(run: Path) -> None:
    before = files(run)
    (run.parent / "run.1").mkdir()  # an even older one
    assert RunFolder(run, CONFIG).open(None) is None
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert files(run.parent / "run.2") == before
    assert not any((run.parent / "run.1").iterdir())


def test_an_empty_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert RunFolder(tmp_path / "run", CONFIG).open(None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_where_the_folder_should_be_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=r"run is a file.*--out"):
        RunFolder(tmp_path / "run", CONFIG).open(None)
    assert files(tmp_path) == {"run": b"mine"}


def test_auto_takes_the_newest_checkpoint_and_touches_nothing_else(run: Path) -> None:
    before = files(run)
    assert RunFolder(run, CONFIG).open("auto") == run / "checkpoints" / "step-2"
    assert files(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["game.safetensors", "replay.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["torn", "bit", "gone"])
def test_auto_skips_a_torn_checkpoint_with_a_note(
    run: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    victim = run / "checkpoints" / "step-2" / name
    if harm == "torn":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif harm == "bit":
        flip_a_bit(victim)
    else:
        victim.unlink()
    assert RunFolder(run, CONFIG).open("auto") == run / "checkpoints" / "step-1"
    [note] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert note.startswith("skipped: ")
    assert str(victim) in note


def test_auto_without_a_whole_checkpoint_starts_afresh_and_keeps_the_evidence(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in ("step-1", "step-2"):
        flip_a_bit(run / "checkpoints" / step / "game.safetensors")
    before = files(run)
    assert RunFolder(run, CONFIG).open("auto") is None
    assert files(run.parent / "run.1") == before
    assert sum(record.getMessage().startswith("skipped: ") for record in caplog.records) == 2


def test_an_older_checkpoint_of_the_run_itself_continues_in_place(run: Path) -> None:
    step = run / "checkpoints" / "step-1"
    assert RunFolder(run, CONFIG).open(str(step)) == step
    assert step.is_dir()
    assert (run / "metrics.jsonl").exists()


def test_a_checkpoint_kept_elsewhere_in_the_run_does_not_move_away_under_its_own_resume(run: Path) -> None:
    kept = Path(shutil.copytree(run / "checkpoints" / "step-1", run / "kept" / "step-1"))
    found = RunFolder(run, CONFIG).open(str(kept))
    assert found == kept
    assert set(checkpoint.load(found, require=PARTS)) == set(PARTS)


def test_a_checkpoint_of_another_run_moves_the_run_of_this_name_aside(original: Path, run: Path) -> None:
    before = files(run)
    other = original / "checkpoints" / "step-2"
    assert RunFolder(run, CONFIG).open(str(other)) == other
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert files(run.parent / "run.1") == before


def test_a_resume_that_names_nothing_is_refused_before_anything_moves(run: Path) -> None:
    before = files(run.parent)
    with pytest.raises(ConfigError, match=r"--resume step-99: no such checkpoint; use auto or one of .*step-\*"):
        RunFolder(run, CONFIG).open("step-99")
    (run.parent / "hollow").mkdir()
    with pytest.raises(CheckpointError, match=r"hollow.manifest\.json: missing"):
        RunFolder(run, CONFIG).open(str(run.parent / "hollow"))
    assert files(run.parent) == before


def test_a_damaged_checkpoint_of_another_run_is_named_before_anything_moves(run: Path, tmp_path: Path) -> None:
    """Else a second try with auto would find an empty folder in the place of the run."""
    foreign = Path(shutil.copytree(run / "checkpoints" / "step-2", tmp_path / "foreign" / "step-2"))
    flip_a_bit(foreign / "replay.json")
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"replay\.json: damaged"):
        RunFolder(run, CONFIG).open(str(foreign))
    assert files(tmp_path) == before


def test_other_settings_are_refused_with_every_differing_key(run: Path) -> None:
    before = files(run.parent)
    changed = replace(
        CONFIG, seed=5, learner=replace(CONFIG.learner, lr=0.5), scenario=replace(CONFIG.scenario, kappa=(0.4, 0.7))
    )
    with pytest.raises(CheckpointError) as refused:
        RunFolder(run, changed).open("auto")
    said = str(refused.value)
    assert "seed: 0 in the checkpoint, 5 now" in said
    assert f"learner.lr: {CONFIG.learner.lr} in the checkpoint, 0.5 now" in said
    assert "scenario.kappa: [0.35, 0.7] in the checkpoint, [0.4, 0.7] now" in said
    assert said.count(" in the checkpoint, ") == 3, "settings that agree are not listed"
    assert files(run.parent) == before


def test_settings_that_may_change_do_not_stop_a_resume_and_are_written_down(run: Path) -> None:
    changed = replace(
        CONFIG,
        name="renamed",
        selfplay=replace(CONFIG.selfplay, steps=99),
        checkpoint=replace(CONFIG.checkpoint, keep=7, replay_tail=5),
        evaluate=replace(CONFIG.evaluate, windows=3),
        actors=replace(CONFIG.actors, proposers=3, call_timeout_s=1.0),
    )
    assert RunFolder(run, changed).open("auto") == run / "checkpoints" / "step-2"
    assert load(str(run / "config.yaml")) == changed


def test_the_settings_that_may_change_exist() -> None:
    for path in MAY_CHANGE:
        place: Any = RunConfig()
        for part in path.split("."):
            place = getattr(place, part)


# ---------------------------------------------------------------- save and restore


def test_a_restored_game_goes_on_exactly_like_the_one_that_was_saved(run: Path) -> None:
    """Networks, optimisers, replay, streams and clocks: the next losses are equal to the last bit."""
    folder = RunFolder(run, CONFIG)
    found = folder.open("auto")
    assert found is not None
    unbroken, kept = Game(CONFIG), Buffer(CONFIG)
    whole = play_to(6, unbroken, kept)
    game, buffer = Game(CONFIG), Buffer(CONFIG)
    assert folder.restore(found, game, buffer) == 20.0
    calls = game.calls
    assert game.step == 2
    assert play_to(6, game, buffer) == whole[2:]
    assert game.calls > calls, "new scenarios were made on the way"
    for name, value in unbroken.learner.average.state_dict().items():
        assert torch.equal(game.learner.average.state_dict()[name], value), name
    assert game.metrics() == unbroken.metrics()


def test_restore_puts_back_the_process_streams(played: tuple[Game, Buffer], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG)
    folder.open(None)
    path = folder.save(*played, 0.0)

    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002 - third parties draw so

    expected = drawn()
    assert drawn() != expected
    folder.restore(path, Game(CONFIG), Buffer(CONFIG))
    assert drawn() == expected


def test_the_replay_tail_bounds_what_is_saved(played: tuple[Game, Buffer], tmp_path: Path) -> None:
    game, buffer = played
    assert len(buffer.table) > 8
    sizes = []
    for tail in (8, 0):
        config = replace(CONFIG, checkpoint=replace(CONFIG.checkpoint, replay_tail=tail))
        folder = RunFolder(tmp_path / f"tail-{tail}", config)
        folder.open(None)
        fresh = Buffer(config)
        folder.restore(folder.save(game, buffer, 0.0), Game(config), fresh)
        sizes.append(len(fresh.table))
    assert 8 <= sizes[0] < sizes[1], "twins may come along with the newest windows"
    assert sizes[1] == len(buffer.table), "0 saves all"


def test_save_keeps_the_newest_few(played: tuple[Game, Buffer], tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint=replace(CONFIG.checkpoint, keep=1))
    game, buffer = played
    folder = RunFolder(tmp_path / "run", config)
    folder.open(None)
    for step in (7, 8):
        game.step, kept = step, game.step
        folder.save(game, buffer, 0.0)
        game.step = kept
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-8"]


def test_every_part_with_a_flipped_bit_is_refused_by_name_and_nothing_is_loaded(run: Path) -> None:
    found = run / "checkpoints" / "step-2"
    names = sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file())
    assert {"game.safetensors", "game.json", "replay.json", "random.json", "elapsed.json"} <= set(names)
    folder = RunFolder(run, CONFIG)
    game, buffer = Game(CONFIG), Buffer(CONFIG)
    for name in names:
        good = (found / name).read_bytes()
        flip_a_bit(found / name)
        with pytest.raises(CheckpointError) as refused:
            folder.restore(found, game, buffer)
        assert str(found / name) in str(refused.value)
        assert "damaged" in str(refused.value)
        (found / name).write_bytes(good)
    assert (game.step, len(buffer.table)) == (0, 0)
    folder.restore(found, game, buffer)
    assert game.step == 2


def test_a_checkpoint_without_a_part_is_refused(run: Path) -> None:
    found = run / "checkpoints" / "step-2"
    state = checkpoint.load(found)
    del state["replay"]
    poor = checkpoint.save(run / "poor", 3, state, config_hash="h", keep=1)
    with pytest.raises(CheckpointError, match="has no part replay"):
        RunFolder(run, CONFIG).restore(poor, Game(CONFIG), Buffer(CONFIG))


class FullDisk:
    """The n-th file that is made durable from here on is cut short and reported as what did not fit any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.fsync = after, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            self.left -= 1
            if self.left < 0:
                os.ftruncate(handle, 7)
                raise OSError(errno.ENOSPC, "No space left on device")
        self.fsync(handle)


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_a_full_disk_leaves_no_half_checkpoint_and_says_so(
    run: Path, played: tuple[Game, Buffer], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(run, CONFIG)
    game, buffer = played
    before = files(run)
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, after)
        with pytest.raises(CheckpointError, match=r"step-2: the disk is full \(\d+ MiB free\).*checkpoint\.keep"):
            folder.save(game, buffer, 30.0)
        assert disk.left == -1
    assert files(run) == before, "older checkpoints, the one of the same step among them"
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-1", "step-2"]
    assert folder.open("auto") == folder.checkpoints / "step-2"
    folder.save(game, buffer, 30.0)
    assert folder.restore(folder.checkpoints / "step-2", Game(CONFIG), Buffer(CONFIG)) == 30.0
