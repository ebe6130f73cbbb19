"""gg_ray.evaluate.core_changes: standing outages and lost meters, and what of an anomaly they leave."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from core_fakes import SOURCE, TINY

from gg_ray.evaluate.core_changes import NEVER, LostMeters, make_part, topologies
from gg_ray.evaluate.core_manifest import Digest
from gg_ray.evaluate.core_plan import LOST_METERS, OUTAGES
from gg_ray.evaluate.core_pools import PoolMaker, PoolPart
from gg_ray.grid.meters import layout_of
from gg_ray.records import FAMILIES
from gg_ray.scenario.gates import JUDGE_LIMIT_PU, Gates

SIZES = dataclasses.replace(TINY, windows=3, negatives=24)


@pytest.fixture(scope="module")
def maker() -> PoolMaker:
    return PoolMaker("case14", SIZES, SOURCE)


def windows(part: PoolPart) -> list:
    return [window for group in part.groups for window in group.prepared.windows]


# --- outages ---------------------------------------------------------------------------------------------------------


def test_every_window_of_an_outage_begins_and_ends_with_it(maker: PoolMaker) -> None:
    known = {frozenset(outage) for outage in topologies(maker)}
    assert len(known) == OUTAGES
    for name in ("outages", "outages-negatives"):
        made = make_part(maker, name, Digest())
        seen = set()
        for window in windows(made):
            standing = frozenset(np.flatnonzero((window.status_TE == 0).all(axis=0)).tolist())
            [own] = [outage for outage in known if outage <= standing] or [frozenset()]
            assert own, "declared out in every scan, the first one too"
            seen.add(own)
        assert len(seen) >= 3
        assert {fact.family for fact in made.facts} == (set(FAMILIES) if name == "outages" else {""})


def test_a_standing_outage_is_real_and_no_disturbance(maker: PoolMaker) -> None:
    outage = topologies(maker)[1]
    own = PoolMaker("case14", SIZES, SOURCE, outage)
    attempts = own.draw_benign("test", 8, np.random.default_rng(0))
    residual = Gates(own.maker.executor, own.scenario)._judge(attempts)
    assert residual.max() < JUDGE_LIMIT_PU, "the judge agrees on the grid without these branches"
    layout = layout_of(maker.case)
    for attempt in attempts:
        meters = attempt.plan.at(np.concatenate([layout.branch_channels(branch) for branch in outage]))
        assert not attempt.main.mean_TM[:, meters].any(), "nothing flows where nothing is in service"
    ordinary = [a for a in attempts if not any(e.primitive == "line_switch" for e in a.program.events)]
    assert any(not a.main.labels.disturbance for a in ordinary)


def test_no_event_of_the_grammar_points_at_a_branch_that_is_out(maker: PoolMaker) -> None:
    outage = topologies(maker)[1]
    grammar = PoolMaker("case14", SIZES, SOURCE, outage).grammar
    plan = grammar.plan(1_000)
    for word in ("line_switch", "wrong_breaker_status", "undeclared_line_outage", "wrong_line_parameter", "coordinated",
                 "tap_move", "wrong_tap"):  # fmt: skip
        assert not grammar.target_mask(word, plan)[maker.case.n_bus + np.array(outage)].any(), word
        assert grammar.target_mask(word, plan).any()


# --- meters ----------------------------------------------------------------------------------------------------------


def test_lost_meters_are_the_only_difference_from_the_windows_of_s0(maker: PoolMaker) -> None:
    for whole, fewer in (("standard", "meters"), ("negatives", "meters-negatives")):
        before, after = make_part(maker, whole, Digest()), make_part(maker, fewer, Digest())
        assert [f.primitive for f in before.facts] == [f.primitive for f in after.facts]
        for a, b in zip(windows(before), windows(after), strict=True):
            lost = np.isnan(b.z_TM).all(axis=0) & (b.age_TM == NEVER).all(axis=0)
            assert lost.sum() >= round(LOST_METERS * lost.size)
            assert lost.mean() < LOST_METERS + 0.06, "a meter or two may have been silent anyway"
            np.testing.assert_array_equal(a.z_TM[:, ~lost], b.z_TM[:, ~lost])
            np.testing.assert_array_equal(a.age_TM[:, ~lost], b.age_TM[:, ~lost])


def test_which_meters_are_lost_follows_from_the_seed_and_not_from_the_anomaly(maker: PoolMaker) -> None:
    change = LostMeters(maker.case)
    [attempt] = maker.draw_positives("standard", 1, np.random.default_rng(3))[:1]
    benign = dataclasses.replace(attempt, alteration=None, main=attempt.twin, twin=None, d_eff=0.0)
    np.testing.assert_array_equal(change.kept(attempt), change.kept(benign))
    assert change.d_eff(benign) == 0.0
    other = dataclasses.replace(attempt, program=dataclasses.replace(attempt.program, seed=attempt.program.seed + 1))
    assert (change.kept(attempt) != change.kept(other)).any()


def test_an_anomaly_never_shows_more_with_fewer_meters_and_not_at_all_without_its_own(
    maker: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = LostMeters(maker.case)
    attempts = maker.draw_positives("standard", 3, np.random.default_rng(4))
    left = np.array([change.d_eff(a) for a in attempts])
    whole = np.array([a.d_eff for a in attempts])
    assert (left <= whole).all()
    assert (left < whole - 1e-6).mean() > 0.5
    [bias] = [a for a in attempts if a.program.events[0].primitive in ("bias", "drift", "scale")][:1]
    kept = np.ones(bias.plan.size, dtype=bool)
    monkeypatch.setattr(change, "kept", lambda _: kept)
    assert change.d_eff(bias) == pytest.approx(bias.d_eff, rel=0.05), "with all meters it shows as much as ever"
    kept = kept.copy()
    kept[bias.alteration.meters] = False
    monkeypatch.setattr(change, "kept", lambda _: kept)
    assert change.d_eff(bias) == 0.0
