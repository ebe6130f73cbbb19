"""Archive: cells, elites, novelty, parents and exemplars."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import Event, Program
from gg_ray.scenario.grammar import Grammar, Stratum
from gg_ray.selfplay.archive import AREAS, Cell, Elites, electrical_areas

GRIDS = {name: load_case(name) for name in ("case14", "case30")}


def program(*events: Event, case: str = "case30", seed: int = 0) -> Program:
    return Program(case=case, context_id=0, plan_id=0, events=events, scans=16, seed=seed)


def bias(target: int = 3, onset: int = 4, duration: int = 2, magnitude: int = 8) -> Event:
    return Event("bias", target, onset, magnitude, duration, 0)


def test_areas_are_connected_neighbourhoods_that_cover_the_grid() -> None:
    case = load_case("case118")
    area = electrical_areas(case)
    assert set(area) == set(range(AREAS))
    for number in range(AREAS):
        members = np.flatnonzero(area == number)
        reached, frontier = {members[0]}, [members[0]]
        while frontier:
            bus = frontier.pop()
            near = np.concatenate([case.t_bus[case.f_bus == bus], case.f_bus[case.t_bus == bus]])
            for other in near:
                if area[other] == number and other not in reached:
                    reached.add(other)
                    frontier.append(other)
        assert len(reached) == len(members)
    np.testing.assert_array_equal(area, electrical_areas(case))


def test_cells_tell_behaviours_apart() -> None:
    elites = Elites(GRIDS)
    base = elites.cell_of(program(bias()), 3.5)
    assert base[:3] == ("case30", "S2", 0)
    assert base.shape == "step"
    assert elites.cell_of(program(bias()), 7.0).d_bin == 2
    assert elites.cell_of(program(bias()), 100.0).d_bin == 5
    assert elites.cell_of(program(bias(duration=0)), 3.5).shape == "pulse"
    assert elites.cell_of(program(Event("drift", 3, 4, 8, 2, 0)), 3.5).shape == "ramp"
    assert elites.cell_of(program(Event("line_switch", 31, 4, 0, 2, 0)), 0.0).kind == "hard"
    assert elites.cell_of(program(), 0.0) == Cell("case30", "ordinary", 0, 0, "none")
    far = int(np.flatnonzero(electrical_areas(GRIDS["case30"]) != base.area)[0])
    assert elites.cell_of(program(bias(target=far)), 3.5).area != base.area
    branch = GRIDS["case30"].n_bus + 5
    assert elites.cell_of(program(bias(target=branch)), 3.5).area in range(AREAS)
    with pytest.raises(KeyError, match="case118"):
        elites.cell_of(program(bias(), case="case118"), 3.5)


def test_the_best_program_holds_the_cell_until_it_fades() -> None:
    elites = Elites(GRIDS)
    good, poor, new = (program(bias(onset=onset)) for onset in (4, 5, 6))
    cell = elites.record(good, 3.5, 0.8)
    assert elites.record(poor, 3.5, 0.3) == cell
    assert elites.exemplars() == [good]
    for _ in range(60):  # 0.8 x 0.98^60 = 0.24
        elites.record(poor, 3.5, 0.0)
    elites.record(new, 3.5, 0.3)
    assert elites.exemplars() == [new]
    assert elites.count(cell) == elites.visits() == 63
    # the same program seen again brings its new value, even a lower one
    elites.record(new, 3.5, 0.1)
    elites.record(poor, 3.5, 0.15)
    assert elites.exemplars() == [poor]


def test_novelty_falls_with_visits_within_grid_and_kind_only() -> None:
    elites = Elites(GRIDS)
    crowded = {elites.record(program(bias()), 3.5, 0.5) for _ in range(24)}.pop()
    rare = elites.record(program(bias()), 7.0, 0.5)
    assert elites.novelty(crowded) == pytest.approx(np.sqrt(2 / 25))
    assert elites.novelty(rare) == 1.0
    assert elites.novelty(rare._replace(d_bin=5)) == 1.0
    # one visit to another kind changes nothing here
    elites.record(program(Event("line_switch", 31, 4, 0, 2, 0)), 0.0, 0.5)
    assert elites.novelty(crowded) == pytest.approx(np.sqrt(2 / 25))


def filled(capacity: int = 4096, count: int = 400, seed: int = 0) -> Elites:
    rng = np.random.default_rng(seed)
    elites = Elites(GRIDS, capacity)
    grammars = {name: Grammar(case, ScenarioConfig(cases=(name,))) for name, case in GRIDS.items()}
    for i in range(count):
        name = ("case14", "case30")[i % 2]
        grammar = grammars[name]
        family = grammar.families[int(rng.integers(9))]
        events = grammar.uniform(Stratum("anomalous", family, name), 0, rng)
        elites.record(program(*events, case=name, seed=i), float(rng.uniform(3, 25)), float(rng.random()))
    return elites


@given(st.integers(1, 40), st.integers(0, 1000))
def test_capacity_bounds_the_elites_but_not_the_counts(capacity: int, seed: int) -> None:
    elites = filled(capacity, 60, seed)
    assert len(elites) <= capacity
    assert elites.visits() == 60


def test_parents_come_from_the_best_half_and_respect_the_filters() -> None:
    elites = filled()
    rng = np.random.default_rng(1)
    parents = elites.parents(200, rng, case="case14", kind="A2")
    assert len(parents) == 200
    assert {p.case for p in parents} == {"case14"}
    state = elites.state_dict()["elites"]
    values = {entry[1]["seed"]: entry[2] for entry in state if entry[0][:2] == ["case14", "A2"]}
    assert min(values[p.seed] for p in parents) >= np.median(list(values.values()))
    best = max(values, key=values.__getitem__)
    picked = [p.seed for p in parents]
    assert picked.count(best) == max(picked.count(seed) for seed in set(picked))
    assert elites.parents(3, rng, case="case118") == []


def test_exemplars_are_from_the_least_visited_cells() -> None:
    elites = filled()
    shown = elites.exemplars(6, case="case30")
    assert len(shown) == 6
    assert {p.case for p in shown} == {"case30"}
    counts = sorted(elites.count(Cell(*entry[0])) for entry in elites.state_dict()["elites"] if entry[0][0] == "case30")
    cell_of_seed = {entry[1]["seed"]: Cell(*entry[0]) for entry in elites.state_dict()["elites"]}
    assert [elites.count(cell_of_seed[p.seed]) for p in shown] == counts[:6]


def test_effective_cells_count_what_is_in_use() -> None:
    elites = Elites(GRIDS)
    assert elites.effective_cells() == 0.0
    for d in (3.5, 5.0, 7.0, 10.0):
        elites.record(program(bias()), d, 0.5)
    assert elites.effective_cells() == pytest.approx(4.0)
    for _ in range(1000):
        elites.record(program(bias()), 3.5, 0.5)
    assert elites.effective_cells("case30") < 1.1


def test_state_round_trip_through_json() -> None:
    elites = filled()
    copy = Elites(GRIDS)
    copy.load_state_dict(json.loads(json.dumps(elites.state_dict())))
    assert copy.state_dict() == elites.state_dict()
    assert copy.exemplars(20) == elites.exemplars(20)
    one, two = (e.parents(20, np.random.default_rng(3)) for e in (elites, copy))
    assert one == two
