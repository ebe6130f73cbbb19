"""gg_ray.core_runs: rank replay beside its self-play run, equal budgets, one untrained network per seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gg_ray import core_runs
from gg_ray.config import ConfigError, RunConfig, VerifierConfig
from gg_ray.core_runs import Run, loaded, unequal
from gg_ray.evaluate.core_plan import sizes_of
from gg_ray.learner import new_verifier

SMALL = replace(VerifierConfig(), hidden=16, heads=2)


def run(name: str, row: str, fold: int = 0, seed: int = 0, steps: int = 600, calls: int = 1_000) -> Run:
    about = {"fold": fold, "seed": seed, "model": name, "learner_steps": steps, "executor_calls": calls}
    config = RunConfig()
    arm = {"verifier": "selfplay"}.get(row, row)
    config = replace(config, selfplay=replace(config.selfplay, arm=arm))
    untrained = new_verifier(SMALL, seed + 1) if row == "verifier" else None
    return Run(key=name, config=config, about=about, networks={row: new_verifier(SMALL, 9)}, untrained=untrained)


def asked(monkeypatch: pytest.MonkeyPatch, *runs: Run) -> list[Run]:
    by_name = {one.key: one for one in runs}
    monkeypatch.setattr(core_runs, "_loaded", lambda name, *_: by_name[name])
    return loaded(list(by_name), "champion", lambda config: config, sizes_of("small"))


def test_rank_replay_stands_behind_the_run_of_its_fold_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, run("plr", "plr", 1, 2), run("own", "verifier", 1, 2), run("other", "verifier", 0, 2))
    assert [one.key for one in found] == ["own", "other", "plr"]


def test_rank_replay_without_its_run_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="run p: trained as arm plr of fold 1 with seed 2; name a self-play run"):
        asked(monkeypatch, run("p", "plr", 1, 2), run("own", "verifier", 1, 3))


def test_budgets_that_differ_are_said() -> None:
    own = run("own", "verifier")
    assert unequal([own, run("near", "plr", calls=1_090), run("elsewhere", "plr", seed=1, steps=5)]) == []
    lines = unequal([own, run("far", "plr", calls=1_200), run("short", "uniform", steps=599)])
    assert [line[:60] for line in lines] == [
        "unequal budget: executor_calls 1200 of far against 1000 of o",
        "unequal budget: learner_steps 599 of short against 600 of ow",
    ]


def test_untrained_networks_are_asked_once_per_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_runs, "detector_scorers", lambda *_: [SimpleNamespace(key="classical")])
    runs = [run(f"f{fold}s{seed}", "verifier", fold, seed) for fold in (0, 1, 2, 3) for seed in (0, 1)]
    scorers = core_runs._scorers([*runs, run("p", "plr")], sizes_of("small"))
    by_key = {scorer.key: scorer for scorer in scorers}
    assert len(by_key) == len(scorers) == 1 + 2 + 8 + 1
    beside = {one.key: by_key[one.key].beside for one in runs}
    assert len(set(beside.values())) == 2
    assert beside["f0s0"] == beside["f3s0"] != beside["f0s1"]
    assert by_key[beside["f0s0"][0]].methods[0].name == "untrained"
    assert by_key["p"].beside == ()


@pytest.mark.parametrize(
    ("model", "aliases", "asked_for", "said"),
    [
        ("champion", {"champion": "verifier/v1"}, "champion", ""),
        (
            "champion",
            {"control": "verifier/v1"},
            "latest",
            "run r: no champion, asked is its latest model, verifier/v2",
        ),
        ("challenger", {}, "challenger", ""),
    ],
)
def test_a_model_that_the_gate_held_back_is_asked_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, aliases: dict[str, str], asked_for: str, said: str
) -> None:
    version = SimpleNamespace(id="verifier/v2", manifest={"extra": {}}, metrics={})
    references: list[str] = []

    def load_network(registry: object, reference: str) -> tuple[object, object]:
        references.append(reference)
        return new_verifier(SMALL, 0), version

    registry = SimpleNamespace(root=tmp_path / "registry", aliases=lambda: aliases)
    monkeypatch.setattr(core_runs, "find_registry", lambda *_: registry)
    monkeypatch.setattr(core_runs, "load_network", load_network)
    monkeypatch.setattr(core_runs, "load", lambda path: RunConfig())
    found = core_runs._loaded("r", model, lambda config: config, sizes_of("small"))
    assert references == [asked_for]
    assert found.lacks == said
    assert set(found.networks) == {"verifier"}
