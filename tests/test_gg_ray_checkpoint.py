"""Checkpoints: what goes in comes out, nothing torn is ever read, and no failure costs an older checkpoint."""

from __future__ import annotations

import errno
import math
import os
import random
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray import checkpoint, files, nested, provenance
from gg_ray.checkpoint import latest, load, save
from gg_ray.files import CheckpointError
from gg_ray.nested import Flat, flatten, unflatten

CONFIG = {"learner": {"lr": 2e-3, "betas": (0.9, 0.999)}, "scenario": {"d_max": math.inf}, "seed": 0}
HASH = checkpoint.config_hash(CONFIG)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, key order, dtype and shape; nan equals nan, -0.0 does not equal 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


KEYS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["!", "v", "__metadata__", "a/b", "0"]),
    st.integers(),
    st.booleans(),
    st.none(),
    st.tuples(st.integers(), st.text(max_size=2)),
)
DTYPES = [bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = draw(st.sampled_from([(), (0,), (3,), (2, 3), (2, 0, 4)]))
    data = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2, size=shape)
    array = np.asarray(data).astype(draw(st.sampled_from(DTYPES)))
    return array.T if draw(st.booleans()) else array


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**127, 2**128),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    arrays(),
    arrays().map(lambda a: torch.from_numpy(a.copy())),
    arrays().map(lambda a: torch.from_numpy(a.copy()).to(torch.bfloat16)),
    st.sampled_from([np.float32(0.1), np.int64(-3), np.bool_(True), np.float64("nan")]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=8,
)


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_flatten_round_trip_keeps_types_keys_and_order(value: Any) -> None:
    assert same(unflatten(flatten(value)), value)


@given(VALUES)
@settings(max_examples=25, deadline=None)
def test_save_load_is_identity(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = save(tmp_path_factory.mktemp("c"), 1, {"part": value}, config_hash=HASH, keep=1)
    assert same(load(path), {"part": value})


def test_int_and_str_keys_stay_apart() -> None:
    value = {0: [1, (2, [3])], "0": (1, [2, (3,)]), None: {}, (1, "a"): ()}
    assert unflatten(flatten({1: "int", "1": "str"})) == {1: "int", "1": "str"}
    assert same(unflatten(flatten(value)), value)
    assert unflatten(flatten(-(10**5000))) == -(10**5000)  # more digits than Python prints


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object"),
        ({"a": [1, {2}]}, r"\['a'\]\['1'\].*set"),
        (np.array(["text"]), "dtype <U4"),
        (np.zeros(2, complex), "complex128"),
        (np.ma.masked_array([1, 2], [0, 1]), "MaskedArray"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (Path("x"), "Path"),
    ],
)
def test_a_foreign_type_is_named_and_nothing_is_written(tmp_path: Path, value: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        save(tmp_path / "c", 1, {"part": value}, config_hash=HASH, keep=1)
    assert not (tmp_path / "c").exists()


def test_no_pickle_can_run_from_a_foreign_tree() -> None:
    with pytest.raises(CheckpointError, match="not readable"):
        unflatten(Flat({"!": "reduce", "v": ["os.system", "true"]}))
    source = "".join(Path(str(m.__file__)).read_text(encoding="utf-8") for m in (checkpoint, files, nested))
    assert "import pickle" not in source
    assert "torch.load" not in source
    assert "allow_pickle" not in source


def train(model: torch.nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimiser.step()


def build() -> tuple[torch.nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))
    groups = [{"params": list(model[0].parameters()), "lr": 1e-2}, {"params": list(model[2].parameters())}]
    return model, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)


def test_resume_with_adamw_equals_an_unbroken_run_bit_for_bit(tmp_path: Path) -> None:
    model, optimiser = build()
    train(model, optimiser, 5)
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "random": checkpoint.random_states({})}
    path = save(tmp_path, 5, state, config_hash=HASH, keep=1)
    assert same(load(path)["optimiser"], optimiser.state_dict())
    train(model, optimiser, 5)

    again, optimiser2 = build()
    read = load(path, require=("model", "optimiser", "random"))
    again.load_state_dict(OrderedDict(read["model"]))
    optimiser2.load_state_dict(read["optimiser"])
    checkpoint.restore_random_states(read["random"], {})
    train(again, optimiser2, 5)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert same(optimiser.state_dict(), optimiser2.state_dict())


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_random_states_continue_every_stream(tmp_path: Path, kind: Any) -> None:
    def streams() -> dict[str, np.random.Generator]:
        return {"proposer": np.random.Generator(kind(np.random.SeedSequence(7, spawn_key=(1, 0))))}

    def draw(rng: np.random.Generator) -> list[Any]:
        child = rng.spawn(1)[0]
        numbers = [rng.standard_normal(), int(rng.integers(2**40)), child.random(), random.random()]
        return [*numbers, np.random.random(), torch.rand(1).item()]  # noqa: NPY002 - the global state is under test

    first = streams()
    draw(first["proposer"])
    first["proposer"].integers(2**31, dtype=np.uint32)  # leaves half a word inside PCG64
    path = save(tmp_path, 1, {"random": checkpoint.random_states(first)}, config_hash=HASH, keep=1)
    expected = draw(first["proposer"])
    second = streams()
    checkpoint.restore_random_states(load(path)["random"], second)
    assert draw(second["proposer"]) == expected


def test_random_states_refuse_other_generators() -> None:
    state = checkpoint.random_states({"solver": np.random.default_rng(0)})
    with pytest.raises(CheckpointError, match="proposer, solver"):
        checkpoint.restore_random_states(state, {"proposer": np.random.default_rng(0)})
    with pytest.raises(CheckpointError, match="'solver': saved from PCG64, is MT19937"):
        checkpoint.restore_random_states(state, {"solver": np.random.Generator(np.random.MT19937(0))})
    ahead = np.random.default_rng(0)
    ahead.spawn(2)
    with pytest.raises(CheckpointError, match="2 spawns ahead"):
        checkpoint.restore_random_states(state, {"solver": ahead})


def full_state(mark: int) -> dict[str, Any]:
    return {
        "learner": {"w": torch.full((3, 2), float(mark)), "step": mark},
        "replay": [b"segment" * mark, b"", np.arange(mark)],
    }


def test_blobs_have_files_of_their_own(tmp_path: Path) -> None:
    path = save(tmp_path, 3, full_state(3), config_hash=HASH, keep=1, config=CONFIG)
    blob, empty, array = load(path)["replay"]
    assert (blob, empty, array.tolist()) == (b"segment" * 3, b"", [0, 1, 2])
    manifest = checkpoint.read_manifest(path)
    on_disk = {p.name for p in path.iterdir()} - {"manifest.json"}
    assert set(manifest.files) == on_disk >= {"replay.0.bin", "replay.1.bin"}
    assert (manifest.step, manifest.config) == (3, CONFIG)
    assert manifest.versions == provenance.library_versions()


def test_other_versions_are_one_warning_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path, 1, full_state(1), config_hash=HASH, keep=1)
    load(path)
    assert caplog.records == []
    now = {**provenance.library_versions(), "torch": "99.1", "lightsim2grid": "0.0", "absent-then": "1"}
    monkeypatch.setattr(checkpoint, "library_versions", lambda: now)
    assert load(path)["learner"]["step"] == 1
    [said] = [record.getMessage() for record in caplog.records]
    assert f"torch {version('torch')} -> 99.1" in said
    assert f"lightsim2grid {version('lightsim2grid')} -> 0.0" in said
    assert "numpy" not in said
    assert "absent-then" not in said


@pytest.mark.parametrize("name", ["../x", "manifest", "", ".hidden", "a b"])
def test_bad_part_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="use letters"):
        save(tmp_path, 1, {name: 1}, config_hash=HASH, keep=1)


def test_every_damage_to_every_file_is_found_and_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1, full_state(1), config_hash=HASH, keep=1)
    rng = np.random.default_rng(0)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        good = file.read_bytes()
        cuts = [good[:-1], b"", good + b"\n"] if good else [b"x"]
        flips = []
        bits = (
            range(8 * len(good))
            if file.name.endswith(".json") and len(good) < 300
            else rng.integers(0, 8 * max(len(good), 1), 40)
        )
        for bit in bits if good else []:
            flipped = bytearray(good)
            flipped[int(bit) // 8] ^= 1 << (int(bit) % 8)
            flips.append(bytes(flipped))
        for bad in [*cuts, *flips]:
            file.write_bytes(bad)
            with pytest.raises(CheckpointError, match=file.name.replace(".", r"\.")):
                load(path)
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{file.name}: missing"):
            load(path)
        file.write_bytes(good)
    load(path)


def test_truncated_and_flipped_are_told_apart(tmp_path: Path) -> None:
    path = save(tmp_path, 1, full_state(1), config_hash=HASH, keep=1)
    file = path / "learner.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


def rewrite(path: Path, **changes: Any) -> None:
    payload = files.read_sealed(path / "manifest.json") | changes
    (path / "manifest.json").write_bytes(files.seal(payload))


def test_foreign_schema_missing_part_and_outside_names_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, full_state(1), config_hash=HASH, keep=1)
    with pytest.raises(CheckpointError, match=r"no part proposer .it holds learner, replay"):
        load(path, require=("learner", "proposer"))
    listed = files.read_sealed(path / "manifest.json")["files"]
    rewrite(path, files={name: entry for name, entry in listed.items() if name != "learner.json"})
    with pytest.raises(CheckpointError, match=r"'learner' has no file learner\.json"):
        load(path)
    rewrite(path, files=listed | {"../secret": {"size": 1, "sha256": ""}})
    with pytest.raises(CheckpointError, match="outside the folder"):
        load(path)
    rewrite(path, files=listed, schema=99)
    with pytest.raises(CheckpointError, match="schema version 99, this code reads 2"):
        load(path)
    assert latest(tmp_path) is None


def test_latest_skips_what_does_not_verify_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest(tmp_path / "absent") is None
    paths = [save(tmp_path, step, full_state(step), config_hash=HASH, keep=9) for step in (1, 2, 3, 10)]
    assert latest(tmp_path) == paths[3]
    (paths[3] / "manifest.json").unlink()
    (paths[2] / "replay.0.bin").write_bytes(b"segmenu" * 3)
    skipped: list[str] = []
    assert latest(tmp_path, skipped) == paths[1]
    assert len(skipped) == 2
    assert "step-10" in skipped[0]
    assert "replay.0.bin" in skipped[1]
    assert caplog.text.count("skipped") == 2


def test_keep_counts_sound_checkpoints_and_never_takes_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, full_state(step), config_hash=HASH, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-2", "step-3"]
    (tmp_path / "step-3" / "learner.json").write_bytes(b"")
    save(tmp_path, 4, full_state(4), config_hash=HASH, keep=2)
    # the torn step 3 does not count as one of two, and stays as evidence
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-2", "step-3", "step-4"]
    save(tmp_path, 5, full_state(5), config_hash=HASH, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-3", "step-5"]


def test_a_run_resumed_from_an_older_step_writes_the_newest(tmp_path: Path) -> None:
    for step in (200, 400, 600):
        save(tmp_path, step, full_state(1), config_hash=HASH, keep=3)
    resumed = save(tmp_path, 300, full_state(2), config_hash=HASH, keep=2)
    assert latest(tmp_path) == resumed
    replaced = save(tmp_path, 600, full_state(3), config_hash=HASH, keep=2)
    assert load(replaced)["learner"]["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-300", "step-600"]


def hook(monkeypatch: pytest.MonkeyPatch, fail_at: int, fail: Any) -> list[str]:
    """Count every open, write, fsync, rename and mkdir of a save; call fail() at number fail_at."""
    calls: list[str] = []

    def point(name: str) -> None:
        calls.append(name)
        if len(calls) == fail_at:
            fail()

    class File:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            point("write")  # half of the bytes are down
            return int(self.file.write(data[len(data) // 2 :]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def opened(path: Path, mode: str = "r") -> Any:
        if "r" in mode:
            return open(path, mode)
        point("open")
        return File(open(path, mode))

    def wrap(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            point(name)
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(files, "open", opened, raising=False)
    for name in ("fsync", "rename", "mkdir"):
        monkeypatch.setattr(os, name, wrap(name))
    return calls


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def io_error() -> None:
    raise OSError(errno.EIO, "Input/output error")


def points(root: Path, state: Any) -> int:
    """How many failure points one save has; counted, so that a new write is covered without a change here."""
    save(root, 1, state(1), config_hash=HASH, keep=1)
    with pytest.MonkeyPatch.context() as patch:
        calls = hook(patch, -1, None)
        save(root, 2, state(2), config_hash=HASH, keep=1)
    return len(calls)


@pytest.mark.parametrize("fail", [full_disk, io_error])
@pytest.mark.parametrize("same_step", [False, True])
def test_a_failure_at_every_point_leaves_the_older_checkpoint(tmp_path: Path, fail: Any, same_step: bool) -> None:
    count = points(tmp_path / "count", full_state)
    assert count > 20
    refused = 0
    for at in range(1, count + 1):
        root = tmp_path / str(at)
        save(root, 1, full_state(1), config_hash=HASH, keep=2)
        with pytest.MonkeyPatch.context() as patch:
            calls = hook(patch, at, fail)
            message = None
            try:
                save(root, 1 if same_step else 2, full_state(2), config_hash=HASH, keep=1)
            except CheckpointError as error:
                message = str(error)
        if message is not None:
            refused += 1
            assert "older checkpoints are untouched" in message.lower(), calls[-1]
            assert ("disk is full" in message) == (fail is full_disk)
            assert (root / "step-1").exists()  # under its own name, not only as .old
        assert not list(root.glob(".tmp-*")) or calls[at - 1] == "rename"
        found = latest(root)
        assert found is not None, calls[at - 1]
        assert load(found)["learner"]["step"] in (1, 2)
        save(root, 3, full_state(3), config_hash=HASH, keep=1)  # and the next save works and cleans up
        assert [p.name for p in root.iterdir()] == ["step-3"]
    assert refused >= count - 2  # only the renames of pruning may fail without a word: the new one is safe


def test_everything_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut cannot be tried here; the order of fsync and rename that survives one can."""
    events: list[int | str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: events.append(os.fstat(handle).st_ino) or fsync(handle))
    monkeypatch.setattr(os, "rename", lambda a, b: events.append("rename") or rename(a, b))
    path = save(tmp_path, 1, full_state(1), config_hash=HASH, keep=1)
    made = {item.stat().st_ino for item in [path, *path.rglob("*")]}
    at = events.index("rename")
    assert set(events[:at]) == made
    assert events[at - 2 : at] == [(path / "manifest.json").stat().st_ino, path.stat().st_ino]
    assert events[at + 1 :] == [tmp_path.stat().st_ino]


@pytest.mark.parametrize("same_step", [False, True])
def test_a_kill_at_every_point_leaves_a_checkpoint_that_loads(tmp_path: Path, same_step: bool) -> None:
    """The process dies (no clean-up runs) at each write, fsync and rename."""

    def small_state(mark: int) -> dict[str, Any]:
        return {"learner": {"w": torch.full((3, 2), float(mark)), "step": mark}}

    for at in range(1, points(tmp_path / "count", small_state) + 3):
        root = tmp_path / str(at)
        save(root, 1, small_state(1), config_hash=HASH, keep=2)
        child = os.fork()
        if child == 0:
            try:
                hook(pytest.MonkeyPatch(), at, lambda: os._exit(9))
                save(root, 1 if same_step else 2, small_state(2), config_hash=HASH, keep=1)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        found = latest(root)
        assert found is not None, at
        assert load(found)["learner"]["step"] in (1, 2)
        save(root, 3, small_state(3), config_hash=HASH, keep=1)
        assert [p.name for p in root.iterdir()] == ["step-3"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"a": 1}, config_hash=HASH, keep=1, config=CONFIG)
    checkpoint.require_config(path, HASH)
    now = {"learner": {"lr": 1e-3, "betas": [0.9, 0.999]}, "scenario": {"d_max": math.inf}, "seed": 0, "new": {}}
    diff = checkpoint.config_diff(checkpoint.read_manifest(path).config, now)
    assert diff == ["learner.lr: 0.002 in the checkpoint, 0.001 now", "new: 'absent' in the checkpoint, {} now"]
    with pytest.raises(CheckpointError, match=r"learner\.lr: 0\.002 in the checkpoint, 0\.001 now"):
        checkpoint.require_config(path, checkpoint.config_hash(now), diff)
    ignore = ("learner.lr", "new")
    assert checkpoint.config_hash(now, ignore) == checkpoint.config_hash(CONFIG, ignore)
    assert checkpoint.config_diff(CONFIG, now, ignore) == []


def test_settings_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="plain values only"):
        save(tmp_path, 1, {"a": 1}, config_hash=HASH, keep=1, config={"w": np.zeros(1)})
