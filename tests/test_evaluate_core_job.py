"""gg_ray.evaluate.core_job and core_manifest: frozen by hash, resumed cell by cell, never mixed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from core_fakes import SOURCE, classical, job, run_of
from core_fakes import TINY as TWO_DAYS

from gg_ray.config import ConfigError
from gg_ray.evaluate import core_job, core_manifest
from gg_ray.evaluate.core_changes import make_part
from gg_ray.evaluate.core_job import CoreRun
from gg_ray.evaluate.core_manifest import Digest, Manifest, SuiteChanged
from gg_ray.evaluate.core_plan import HARD_D, PRESETS, sizes_of
from gg_ray.evaluate.core_pools import PoolMaker
from gg_ray.records import FAMILIES
from gg_ray.scenario.context import split_of
from gg_ray.scenario.grammar import PRIMITIVES

TINY = dataclasses.replace(TWO_DAYS, days=1, stride=48, negatives=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every cell of one run and the classical tests."""
    folder = tmp_path_factory.mktemp("core")
    made, said = job(folder, [classical(), run_of(0)], TINY)
    made.classical_first()
    assert len(list((folder / "cells").glob("*.classical.json"))) == 4, "the parts that the stop-check reads"
    assert not list((folder / "cells").glob("*.f0s0.json")), "the stop-check needs no network"
    made.complete()
    assert said[-1].startswith("[26/26 cells] ")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def no_pool(*_: object) -> None:
    raise AssertionError("a pool was made again")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "cells").glob("*.json"))}


def finish(folder: Path, *scorers: object) -> list[str]:
    made, said = job(folder, list(scorers), TINY)  # type: ignore[arg-type]
    made.classical_first()
    made.complete()
    return said


def test_a_finished_benchmark_makes_nothing_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copy)
    monkeypatch.setattr(core_job, "PoolMaker", no_pool)
    assert finish(copy, classical(), run_of(0)) == []
    assert contents(copy) == before


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_lost_cell_is_made_again_and_is_the_same(copy: Path, damage: str) -> None:
    before = contents(copy)
    lost = copy / "cells" / "windows.case14.hard.f0s0.json"
    if damage == "gone":
        lost.unlink()
    else:
        lost.write_text(lost.read_text()[:-40])
    said = finish(copy, classical(), run_of(0))
    assert len(said) == 1
    assert "windows case14 hard" in said[0]
    assert contents(copy) == before


def test_other_weights_are_scored_anew_and_the_detectors_are_not(copy: Path) -> None:
    before = contents(copy)
    finish(copy, classical(), run_of(0, gain=2.0, identity="b"))
    after = contents(copy)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in before if name.endswith(".f0s0.json")}


def test_a_killed_run_goes_on_where_it_was(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes in the middle of a part: its cells are not there, those before it are whole."""
    original = PoolMaker.positives

    def stop(self: PoolMaker, part: str, digest: Digest) -> object:
        if part == "composed":
            raise KeyboardInterrupt
        return original(self, part, digest)

    monkeypatch.setattr(PoolMaker, "positives", stop)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path, classical(), run_of(0))
    monkeypatch.undo()
    assert len(contents(tmp_path)) == 12, "four parts: facts, the detectors' cell and the run's"
    monkeypatch.setattr(CoreRun, "_days", no_pool)
    with pytest.raises(AssertionError, match="pool"):
        finish(tmp_path, classical(), run_of(0))
    whole = contents(finished)
    assert all(whole[name] == text for name, text in contents(tmp_path).items())
    assert (
        json.loads((tmp_path / "manifest.json").read_text())["parts"].items()
        <= json.loads((finished / "manifest.json").read_text())["parts"].items()
    )


# --- frozen ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_other_sizes_is_refused_by_name(copy: Path) -> None:
    other = dataclasses.replace(TINY, windows=3)
    with pytest.raises(SuiteChanged, match=r"sizes differs from manifest.json of this folder \(windows 2 -> 3\)"):
        job(copy, [classical()], other)


@pytest.mark.parametrize(
    ("change", "named", "cause"),
    [
        ({"readings": "0" * 64}, "readings differ", "physics, meters or noise changed"),
        ({"labels": "0" * 64, "readings": "0" * 64}, "labels, readings differ", "the label rule changed"),
        (
            {"programs": "0" * 64, "readings": "0" * 64, "count": 3},
            "count, programs, readings differ",
            "the grammar, gates or seed changed",
        ),
    ],
)
def test_a_changed_digest_names_the_part_and_what_of_it_changed(
    copy: Path, change: dict[str, object], named: str, cause: str
) -> None:
    path = copy / "manifest.json"
    held = json.loads(path.read_text())
    held["parts"]["windows/case14/hard"] |= change
    path.write_text(json.dumps(held))
    with pytest.raises(SuiteChanged) as refused:
        finish(copy, classical(), run_of(0))
    text = str(refused.value)
    for words in ("suite part windows/case14/hard: ", named, cause, "this folder"):
        assert words in text


def test_readings_that_differ_in_their_last_bits_are_the_same() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 16, 50))
    marks = []
    for noise in (0.0, 1e-12, 1e-5):
        digest = Digest()
        digest.add([], [], z + noise * rng.normal(size=z.shape))
        marks.append(digest.entry()["readings"])
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_ask_only_grids_of_their_kind(preset: str) -> None:
    from gg_ray.config import HELD_OUT_CASES, TRAINABLE_CASES

    sizes = sizes_of(preset)
    assert set(sizes.seen) <= set(TRAINABLE_CASES)
    assert set(sizes.unseen) <= set(HELD_OUT_CASES)
    assert sizes.days >= len(FAMILIES), "every family has a day"


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'ssmall'; did you mean small"):
        sizes_of("ssmall")


def test_the_small_suite_is_the_frozen_one() -> None:
    """Five parts of the packaged manifest, made anew: whoever moves a seed, a law or a meter hears of it here."""
    sizes = sizes_of("small")
    reference = core_manifest.frozen("small", SOURCE.origin)
    assert reference is not None
    assert json.loads(json.dumps(dataclasses.asdict(sizes))) == reference["sizes"]
    maker = PoolMaker("case14", sizes, SOURCE)
    for part in ("negatives", "standard", "composed", "outages-negatives", "meters"):
        digest = Digest()
        make_part(maker, part, digest)
        assert digest.entry() == reference["parts"][f"windows/case14/{part}"], part


def test_a_run_is_held_against_the_frozen_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = core_manifest.header(TINY, "climatology")
    held["parts"]["windows/case14/validation"] = {"count": 1}
    monkeypatch.setattr(core_manifest, "frozen", lambda preset, origin: held)
    made, _ = job(tmp_path, [classical()], TINY)
    with pytest.raises(SuiteChanged, match="windows/case14/validation: count, by_type, programs"):
        made.classical_first()
    monkeypatch.setattr(core_manifest, "frozen", lambda preset, origin: {**held, "seed": 1})
    with pytest.raises(SuiteChanged, match="seed differs from the frozen manifest"):
        Manifest(tmp_path / "manifest.json", TINY, "climatology")


def test_a_grid_of_its_own_process_leaves_the_same_folder(finished: Path, tmp_path: Path) -> None:
    """What a process writes beside the manifest is taken over by the next one, and the file goes."""
    made, _ = job(tmp_path, [classical(), run_of(0)], TINY)
    made.manifest.shard("case14")
    made.grid("case14")
    assert not (tmp_path / "manifest.json").exists()
    after, said = job(tmp_path, [classical(), run_of(0)], TINY)
    after.manifest.adopt(TINY.cases)
    after.complete()
    assert said == [], "nothing is missing"
    assert contents(tmp_path) == contents(finished)
    assert (tmp_path / "manifest.json").read_text() == (finished / "manifest.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "manifest.json"]


def test_only_the_lowest_seeds_of_a_fold_are_attacked(tmp_path: Path) -> None:
    sizes = dataclasses.replace(TINY, attacked_seeds=1)
    scorers = [
        classical(),
        *(run_of(fold, seed=seed) for fold in (0, 2) for seed in (4, 3)),
        run_of(0, seed=3, arm="plr"),
    ]
    made, _ = job(tmp_path, scorers, sizes, exploit=lambda *_: [])
    assert [(scorer.key, method) for scorer, method in made.attacks()] == [
        ("f0s3", "verifier"), ("f0s3", "uniform"), ("f2s3", "verifier"), ("f2s3", "uniform"), ("f0s3plr", "plr"),
    ]  # fmt: skip


# --- what the pools hold ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker() -> PoolMaker:
    return PoolMaker("case14", TINY, SOURCE)


def test_parts_hold_what_they_promise(maker: PoolMaker) -> None:
    hard, composed = (maker.positives(part, Digest()) for part in ("hard", "composed"))
    assert all(HARD_D[0] <= fact.d_eff <= HARD_D[1] for fact in hard.facts)
    assert {fact.family for fact in composed.facts} == set(FAMILIES)
    assert all(fact.hard and fact.moved > 0 for fact in composed.facts)
    for part in (hard, composed):
        assert [f.family for f in part.facts] == [f for group in part.groups for f in group.families]
        assert all(split_of(w.t0_ns) == "test" for group in part.groups for w in group.prepared.windows)
        assert all(set(fact.needs) >= {fact.family} for fact in part.facts)
        assert all(PRIMITIVES[fact.primitive].family == fact.family for fact in part.facts)


def test_training_never_composes_as_the_suite_does(maker: PoolMaker) -> None:
    """What makes s2-composed unseen: grammar and policy put other hard events beside an anomaly."""
    from gg_ray.scenario.grammar import COMPANIONS, Stratum
    from gg_ray.selfplay.legal import PRIMITIVE_NAMES, masks_of

    unseen = {"wind_ramp", "demand_transfer_large"}
    composed = [a.program.events for a in maker.draw_positives("composed", 2, np.random.default_rng(1))]
    assert {e.primitive for events in composed for e in events if PRIMITIVES[e.primitive].side == "hard"} == unseen
    stratum = Stratum("anomalous", "S2", "case14")
    rng = np.random.default_rng(0)
    drawn = [maker.grammar.uniform(stratum, 0, rng) for _ in range(120)]
    beside = {e.primitive for events in drawn for e in events[1:] if PRIMITIVES[e.primitive].side == "hard"}
    assert beside == set(COMPANIONS)
    allowed = masks_of(maker.grammar).followers(stratum)[: len(PRIMITIVE_NAMES)].numpy()
    hard = {n for n, ok in zip(PRIMITIVE_NAMES, allowed, strict=True) if ok and PRIMITIVES[n].side == "hard"}
    assert hard == set(COMPANIONS)


def test_days_before_their_episode_are_those_of_the_benign_twin(
    maker: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look that ends before the onset knows what is coming: readings, ages and declarations equal the twin's."""
    from gg_ray.evaluate.suites import SuiteMaker, slice_of
    from gg_ray.scenario.executor import Executor

    pairs = []
    original = Executor.realise
    monkeypatch.setattr(
        Executor, "realise", lambda self, a, seed: pairs.append((a, *original(self, a, seed))) or pairs[-1][1:]
    )
    monkeypatch.setattr(SuiteMaker, "cut", lambda *_: None)
    for part in ("standard", "composed"):
        maker._day(part, 0)
    assert len(pairs) == 2
    for attempt, whole, twin in pairs:
        onset = attempt.main.labels.onset
        assert onset >= 60
        for end in range(16, onset + 1, 40):
            ours = slice_of(whole, end - 16, end, maker.case.tap, attempt.main.labels)
            theirs = slice_of(twin, end - 16, end, maker.case.tap, attempt.twin.labels)
            for name in ("z_TM", "age_TM", "status_TE", "tap_E", "x_scale_E"):
                a, b = getattr(ours, name), getattr(theirs, name)
                np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
