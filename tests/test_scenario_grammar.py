"""The grammar keeps every program legal: masks, folds, error messages, hashes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.config import TRAINABLE_CASES, ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import FAMILIES, FOLDS, Event, Program
from gg_ray.scenario.grammar import (
    D_EDGES,
    FIRST_ONSET,
    HIDDEN_FAULT,
    PRIMITIVES,
    SIDES,
    TAIL_SCANS,
    Grammar,
    GrammarError,
    Stratum,
    first_family,
    program_hash,
    training_families,
)

CASES = ("case14", "case30")
GRAMMARS = {(name, fold): Grammar(load_case(name), ScenarioConfig(fold=fold)) for name in CASES for fold in range(4)}
STRATA = [(side, "") for side in SIDES] + [("anomalous", family) for family in FAMILIES]


def _program(grammar: Grammar, events: tuple[Event, ...], plan_id: int = 0, **more: object) -> Program:
    program = Program(case=grammar.case.name, context_id=1, plan_id=plan_id, events=events, scans=grammar.scans, seed=1)
    return replace(program, **more)  # type: ignore[arg-type]


@given(st.sampled_from(CASES), st.integers(0, 3), st.sampled_from(STRATA), st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_uniform_and_mutated_programs_are_legal_and_keep_to_the_fold(
    name: str, fold: int, stratum: tuple[str, str], plan_id: int, seed: int
) -> None:
    side, family = stratum
    grammar = GRAMMARS[name, fold]
    if family in FOLDS[fold]:
        family = ""
    rng = np.random.default_rng(seed)
    events = grammar.uniform(Stratum(side, family, name), plan_id, rng)  # type: ignore[arg-type]
    for _ in range(4):
        program = _program(grammar, events, plan_id)
        grammar.validate(program)
        sides = [PRIMITIVES[e.primitive].side for e in events]
        assert not {PRIMITIVES[e.primitive].family for e in events} & FOLDS[fold]
        assert sides.count("anomalous") == (side == "anomalous"), "a program keeps its side, also when it mutates"
        assert first_family(program) == family or (side == "anomalous" and not family)
        if side == "ordinary":
            assert set(sides) <= {"ordinary"}
        plan_id = (plan_id + 1) % 8  # a mutation may move the program to another plan
        events = grammar.mutate(events, plan_id, rng)


@pytest.mark.parametrize("fold", range(4))
def test_a_held_out_family_is_refused_in_its_fold_and_allowed_for_evaluation(fold: int) -> None:
    grammar = GRAMMARS["case14", fold]
    everything = Grammar(load_case("case14"), ScenarioConfig(fold=fold), all_families=True)
    assert grammar.families == training_families(fold)
    assert set(grammar.families) | FOLDS[fold] == set(FAMILIES)
    for family in FOLDS[fold]:
        event = everything.uniform(Stratum("anomalous", family, "case14"), 0, np.random.default_rng(fold))[0]
        everything.validate(_program(everything, (event,)))
        with pytest.raises(GrammarError, match=f"family {family} .* held out"):
            grammar.validate(_program(grammar, (event,)))


@pytest.mark.parametrize(("fold", "masked"), [
    (0, {"coordinated", "coordinated_trip"}), (1, {"coordinated_trip"}), (2, {"coordinated", "coordinated_trip"}),
    (3, set()),
])  # fmt: skip
def test_a_masked_fault_hides_only_what_the_fold_trains_on(fold: int, masked: set[str]) -> None:
    """Fold 1 holds out the outage (T2), so A4 hides a trip there; fold 3 holds out A4 itself and T4."""
    grammar = GRAMMARS["case14", fold]
    everything = Grammar(load_case("case14"), ScenarioConfig(fold=fold), all_families=True)
    assert set(grammar.primitives("anomalous")) & HIDDEN_FAULT.keys() == masked
    assert set(everything.primitives("anomalous", "A4")) == HIDDEN_FAULT.keys()
    for name in HIDDEN_FAULT.keys() - masked:
        event = everything.event(name, everything.plan(0), np.random.default_rng(fold))
        assert event is not None
        with pytest.raises(GrammarError, match=rf"family \w\d \({name}\) is held out"):
            grammar.validate(_program(grammar, (event,)))


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("name", TRAINABLE_CASES[:4])
def test_every_training_family_of_every_fold_has_programs_on_every_grid(name: str, fold: int) -> None:
    grammar = Grammar(load_case(name), ScenarioConfig(fold=fold))
    assert grammar.offered() == training_families(fold)
    for plan_id in range(ScenarioConfig().plans):
        for family in training_families(fold):
            body = grammar.uniform(Stratum("anomalous", family, name), plan_id, np.random.default_rng(plan_id))
            assert PRIMITIVES[body[0].primitive].family == family


def test_a_stratum_without_a_primitive_is_refused_and_not_played_as_benign() -> None:
    grammar = GRAMMARS["case14", 1]
    for family in FOLDS[1]:
        with pytest.raises(GrammarError, match=f"anomalous/{family}/case14: it has no primitive"):
            grammar.uniform(Stratum("anomalous", family, "case14"), 0, np.random.default_rng(0))


def test_a_mutated_theft_stays_a_theft_where_the_new_plan_meters_no_load() -> None:
    grammar = GRAMMARS["case14", 0]
    theft = grammar.event("theft", grammar.plan(0), np.random.default_rng(0))
    assert theft is not None
    plan = grammar.plan(1)
    blind = replace(plan, index_of=np.full_like(plan.index_of, -1))
    grammar.plan = lambda plan_id: blind  # type: ignore[method-assign]
    try:
        out = grammar.mutate((theft,), 1, np.random.default_rng(0))
    finally:
        del grammar.plan
    assert [PRIMITIVES[event.primitive].family for event in out] == ["T4"]
    assert out[0].primitive == "undeclared_gen_trip", "the only one of its family that needs no meter"


def test_an_unknown_primitive_gets_a_suggestion() -> None:
    grammar = GRAMMARS["case14", 0]
    with pytest.raises(GrammarError, match=r"event 0: unknown primitive 'bais'; did you mean 'bias'\?"):
        grammar.validate(_program(grammar, (Event("bais", 0, 4),)))


@pytest.mark.parametrize(
    ("slot", "value"), [("target", 10_000), ("onset", 0), ("magnitude", 0), ("duration", 3), ("support", 7)]
)
def test_the_wrong_slot_is_named(slot: str, value: int) -> None:
    grammar = GRAMMARS["case14", 0]
    legal = grammar.event("bias", grammar.plan(0), np.random.default_rng(0))
    assert legal is not None
    broken = replace(legal, **{slot: value})
    with pytest.raises(GrammarError, match=rf"event 0 \(bias\): {slot} {value} is not allowed; choose from"):
        grammar.validate(_program(grammar, (broken,)))


def test_the_wrong_grid_and_too_many_events_are_named() -> None:
    grammar = GRAMMARS["case14", 0]
    with pytest.raises(GrammarError, match=r"'case30'.*'case14'"):
        grammar.validate(_program(grammar, (), case="case30"))
    event = grammar.event("load_step", grammar.plan(0), np.random.default_rng(0))
    assert event is not None
    with pytest.raises(GrammarError, match="4 events; at most 3"):
        grammar.validate(_program(grammar, (event,) * 4))


def test_the_hash_counts_meanings_not_draws() -> None:
    grammar = GRAMMARS["case14", 0]
    event = Event("bias", 3, 4, 8, 2, 0)
    program = _program(grammar, (event,))
    assert program_hash(program) == program_hash(replace(program, seed=99, source="mutation", context_id=2))
    for change in ({"plan_id": 1}, {"case": "case30"}, {"events": (replace(event, support=1),)}, {"events": ()}):
        assert program_hash(program) != program_hash(replace(program, **change))  # type: ignore[arg-type]
    quiet = replace(program, events=())
    assert program_hash(quiet) == program_hash(replace(quiet, seed=99))
    assert program_hash(quiet) != program_hash(replace(quiet, context_id=2)), "without events the context is the news"


def test_onsets_of_a_day_reach_its_last_scans() -> None:
    grammar = Grammar(load_case("case14"), ScenarioConfig(), scans=1440)
    mask = grammar.onset_mask("bias")
    assert mask.size == 1440
    assert np.flatnonzero(mask)[[0, -1]].tolist() == [FIRST_ONSET, 1440 - TAIL_SCANS]
    assert np.flatnonzero(grammar.onset_mask("time_skew"))[0] == 6
    draws = [grammar.event("bias", grammar.plan(0), np.random.default_rng(seed)) for seed in range(40)]
    assert max(event.onset for event in draws if event is not None) > 1000


def test_magnitude_bins_follow_the_gates() -> None:
    case = load_case("case14")
    on, off = Grammar(case, ScenarioConfig()), Grammar(case, ScenarioConfig(gates="off"))
    d_max = Grammar(case, ScenarioConfig(d_max=8.0))
    assert (D_EDGES[1:][on.magnitude_mask("bias")] > 3.0).all()
    assert off.magnitude_mask("bias").all()
    assert (D_EDGES[:-1][d_max.magnitude_mask("bias")] < 8.0).all()
    assert on.magnitude_mask("sign_flip").sum() == 1
    assert on.magnitude_mask("load_step").all()
