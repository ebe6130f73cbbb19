"""Registry: versions never change, aliases move in one step, and a damaged model is refused by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gg_ray import files, registry
from gg_ray.registry import ModelCard, PromotionRefused, Registry, RegistryError

ROWS = [
    {"method": "random", "family": "all", "auroc": 0.5},
    {"method": "untrained", "family": "all", "auroc": 0.5123456},
    {"method": "ours", "family": "all", "auroc": 0.93, "note": "a|b"},
]
CARD = ModelCard(
    summary="Tells normal, disturbance and implausible windows apart.",
    trained_on=("case14", "gb29, climatology"),
    held_out_families=("S1", "T1", "A1"),
    held_out_grids=("case39",),
    rows=ROWS,
    limits=("never seen a three-winding transformer",),
    attribution=("IEEE cases by way of pandapower (BSD-3)",),
)


def weights(mark: float = 1.0) -> dict[str, Any]:
    return {"net.w": torch.full((2, 3), mark), "net.steps": torch.tensor(7), "scale": np.float64([mark])}


def add(store: Registry, mark: float = 1.0, **changes: Any) -> registry.Version:
    fields: dict[str, Any] = {
        "architecture": {"hidden": 64, "encoder": "patch"},
        "feature_schema": 1,
        "metrics": {"auroc": 0.5 + mark / 10, "event_recall": None},
        "run": "laptop",
        "seed": 3,
        "commit": "abc123",
        "card": CARD,
    }
    return store.register(weights(mark), **(fields | changes))


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def test_register_keeps_weights_and_provenance(store: Registry, tmp_path: Path) -> None:
    first = add(store)
    second = add(store, 2.0, parent="v1", extra={"thresholds": [0.1, 0.2]})
    assert (first.id, second.id) == ("verifier/v1", "verifier/v2")
    assert second.path == tmp_path / "models" / "verifier" / "v0002"
    assert second.manifest["parent"] == "verifier/v1"
    assert second.manifest["extra"] == {"thresholds": [0.1, 0.2]}
    assert second.architecture == {"hidden": 64, "encoder": "patch"}
    assert second.metrics == {"auroc": 0.7, "event_recall": None}
    read = store.load_weights(second)
    assert set(read) == set(weights())
    assert read["net.steps"].shape == ()
    assert read["net.steps"].dtype == np.int64
    np.testing.assert_array_equal(read["net.w"], np.full((2, 3), 2.0, np.float32))
    assert [version.id for version in store.list()] == ["verifier/v1", "verifier/v2"]


def test_the_card_states_what_a_reader_needs(store: Registry) -> None:
    text = (add(store).path / "model_card.md").read_text(encoding="utf-8")
    for piece in ("verifier/v1", "gb29, climatology", "families: S1, T1, A1", "grids: case39", "three-winding"):
        assert piece in text
    for piece in ("seed 3", "commit abc123", "pandapower (BSD-3)", "| random | all | 0.5 |", "a\\|b"):
        assert piece in text
    assert "no floor" not in text
    bare = ModelCard(**{name: getattr(CARD, name) for name in CARD.__slots__} | {"rows": ROWS[2:]})
    text = (add(store, card=bare).path / "model_card.md").read_text(encoding="utf-8")
    assert "No row for random and untrained was given" in text


def test_resolve_knows_numbers_aliases_and_near_names(store: Registry) -> None:
    with pytest.raises(RegistryError, match="no verifier is registered"):
        store.resolve("champion")
    for mark in range(3):
        add(store, mark)
    store.promote("v2", "champion")
    for ref in ("v2", "v0002", "verifier/v2", "champion"):
        assert store.resolve(ref).number == 2
    assert store.resolve("latest").number == 3
    with pytest.raises(RegistryError, match="did you mean 'champion'"):
        store.resolve("champoin")
    with pytest.raises(RegistryError, match="known: champion, latest, v1, v2, v3"):
        store.resolve("v9")
    with pytest.raises(RegistryError, match="it is not set: use `gg-ray promote`"):
        store.resolve("challenger")
    with pytest.raises(RegistryError, match="did you mean 'challenger'"):
        store.promote("v1", "chalenger")


def test_the_gate_sees_both_and_can_refuse(store: Registry) -> None:
    seen: list[tuple[str, str | None]] = []

    def gate(candidate: registry.Version, current: registry.Version | None) -> list[str]:
        seen.append((candidate.id, current.id if current else None))
        worse = current is not None and candidate.metrics["auroc"] < current.metrics["auroc"]
        return ["auroc fell"] if worse else []

    add(store, 2.0)
    add(store, 1.0)
    store.promote("v1", "champion", gate=gate)
    with pytest.raises(PromotionRefused, match=r"verifier/v2 is not promoted to champion: auroc fell"):
        store.promote("v2", "champion", gate=gate)
    assert store.aliases() == {"champion": "verifier/v1"}
    assert seen == [("verifier/v1", None), ("verifier/v2", "verifier/v1")]


def test_rollback_goes_back_through_the_promotions(store: Registry) -> None:
    for mark in range(3):
        store.promote(add(store, mark), "champion")
    store.promote("v3", "champion")  # a repeat changes nothing
    assert store.rollback("champion").number == 2
    assert store.rollback("champion").number == 1
    with pytest.raises(RegistryError, match="no earlier version"):
        store.rollback("champion")
    steps = [(entry["action"], entry["version"]) for entry in store.history("champion")]
    assert steps == [("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2), ("rollback", 1)]
    assert store.history("challenger") == ()


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json", "model_card.md"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_tampered_model_is_refused_by_name(store: Registry, name: str, damage: str) -> None:
    version = add(store)
    file = version.path / name
    good = file.read_bytes()
    file.unlink()  # the file itself is read-only
    if damage == "flip":
        file.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    elif damage == "cut":
        file.write_bytes(good[:-5])
    for use in (lambda: store.load_weights(version), lambda: store.promote(version, "champion")):
        with pytest.raises(RegistryError, match=rf"verifier/v1 is refused: .*{name}"):
            use()
    assert store.aliases() == {}


def test_a_manifest_moved_from_another_model_is_refused(store: Registry) -> None:
    first, second = add(store), add(store, 2.0)
    (second.path / "manifest.json").unlink()
    (second.path / "manifest.json").write_bytes((first.path / "manifest.json").read_bytes())
    with pytest.raises(RegistryError, match="v2 is refused: its manifest is that of verifier/v1"):
        store.resolve("v2")


def test_a_foreign_schema_and_a_torn_alias_are_refused(store: Registry) -> None:
    version = add(store)
    store.promote(version, "champion")
    file = version.path / "manifest.json"
    payload = files.read_sealed(file)
    file.unlink()
    file.write_bytes(files.seal(payload | {"schema": 9}))
    with pytest.raises(RegistryError, match="manifest schema 9, this code reads 1"):
        store.load_weights("champion")
    alias = store.folder / "aliases" / "champion"
    alias.write_bytes(alias.read_bytes()[:-9])
    with pytest.raises(RegistryError, match=r"alias champion of verifier: .*damaged"):
        store.resolve("champion")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({}, "no weights"),
        ({"w": torch.tensor([1.0, float("nan")])}, "weight 'w' holds nan or inf"),
        ({"w": [1.0]}, "weight 'w'"),
        ({"w": torch.zeros(2, dtype=torch.bfloat16)}, "weight 'w'.*float32"),
        ({"w": np.array([object()])}, "weight 'w'.*object"),
    ],
)
def test_unusable_weights_are_refused(store: Registry, bad: Any, named: str) -> None:
    with pytest.raises(RegistryError, match=named):
        store.register(bad, architecture={}, feature_schema=1, metrics={}, run="r", seed=0, commit="c", card=CARD)
    assert store.list() == []


def test_versions_are_read_only_and_numbers_only_grow(store: Registry) -> None:
    version = add(store)
    assert all(file.stat().st_mode & 0o222 == 0 for file in version.path.iterdir())
    (store.folder / ".tmp-v0002").mkdir()  # left by a killed writer
    (store.folder / "v0007").mkdir()
    assert add(store).number == 8


def test_a_failed_write_adds_no_version_and_moves_no_alias(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    store.promote(add(store), "champion")
    add(store, 2.0)
    real, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for point in (1, 2, 3, 4):
        calls, fail_at = 0, point
        with pytest.raises(RegistryError, match=r"verifier/v3: not stored .*No space left"):
            add(store, 3.0)
    calls, fail_at = 0, 1
    with pytest.raises(RegistryError, match="alias champion of verifier: not changed"):
        store.promote("v2", "champion")
    monkeypatch.undo()
    assert store.aliases() == {"champion": "verifier/v1"}
    assert sorted(p.name for p in store.folder.iterdir() if p.name != ".lock") == ["aliases", "v0001", "v0002"]
    assert add(store).number == 3


def test_metrics_that_are_not_numbers_are_refused(store: Registry) -> None:
    with pytest.raises(RegistryError, match="not stored"):
        add(store, metrics={"auroc": float("nan")})
    assert store.list() == []


def test_writers_exclude_each_other(store: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that holds the lock is waited for, then named; the lock dies with its holder."""
    monkeypatch.setattr(registry, "_LOCK_TIMEOUT_S", 0.05)
    ready, hold = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with store._lock():
            os.write(ready[1], b"x")
            os.read(hold[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(RegistryError, match="locked by another process"):
        add(store)
    os.write(hold[1], b"x")
    os.waitpid(child, 0)
    assert add(store).number == 1


def test_model_names_stay_inside_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="use letters"):
        Registry(tmp_path, name="../elsewhere")
