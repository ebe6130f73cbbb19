"""The best programs of each kind of behaviour: parents for mutation, examples for the Proposer, counts for novelty.

Flow:    gated programs with their learnability -> [archive] -> grammar.mutate (parents), proposer (exemplars),
         rewards.proposer_reward (novelty)
Source:  MAP-Elites 1504.04909; mutation of elites: ACCEL 2203.01302; novelty factor: selfplay.md, section 9
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from gg_ray.grid.cases import GridCase
from gg_ray.records import I64, Event, Program
from gg_ray.scenario.grammar import DURATION_SCANS, PRIMITIVES, first_family

AREAS = 8
D_BINS = (4.0, 6.0, 9.0, 14.0, 22.0)
"""Inner edges of the six detectability bins; the first begins at the gate (3) and also holds benign programs."""
SHAPES = ("none", "pulse", "block", "step", "ramp")
"""How the leading event develops: not at all (no event), 4 scans, 8 scans, to the end of the window, growing."""
RAMPS = frozenset({"load_ramp", "wind_ramp", "drift", "ramp_fdia"})
FADE = 0.98
"""Learnability of an elite shrinks by this with every later visit to its cell: the Verifier has moved on since."""
PARENT_POOL = 0.5
"""Parents come from this best share of the elites."""


class Cell(NamedTuple):
    """A kind of behaviour: where, what, how visible, and how it develops in time."""

    case: str
    kind: str
    """Family of the anomaly; hard or ordinary for a plausible program."""
    d_bin: int
    area: int
    shape: str


@dataclasses.dataclass(slots=True)
class _Elite:
    program: Program
    learnability: float


def electrical_areas(case: GridCase, count: int = AREAS) -> I64:
    """[N] area of each bus: the nearest, by series impedance, of `count` buses that lie farthest from each other.

    Deterministic; the slack is the first of them. A grid of fewer buses has an area for each.
    """
    n = case.n_bus
    length = np.abs(case.r + 1j * case.x)
    graph = coo_matrix((length, (case.f_bus, case.t_bus)), shape=(n, n)).tocsr()
    # tocsr adds parallel branches up, which only makes a doubled line look longer: harmless for a coarse partition
    nearest = np.asarray(dijkstra(graph, directed=False, indices=case.slack))
    area = np.zeros(n, dtype=np.int64)
    for number in range(1, min(count, n)):
        distance = np.asarray(dijkstra(graph, directed=False, indices=int(nearest.argmax())))
        closer = distance < nearest
        area[closer] = number
        nearest = np.minimum(nearest, distance)
    return area


class Elites:
    """The programs of highest learnability per behaviour cell, and how often each cell was visited.

    Invariant: at most `capacity` cells hold an elite, at most one each; visits() == number of record() calls, whether
    or not the program stayed. When full, the elite of lowest learnability leaves; visit counts never do.
    """

    def __init__(self, grids: Mapping[str, GridCase], capacity: int = 4_096) -> None:
        if capacity < 1:
            raise ValueError(f"archive: capacity {capacity}; at least 1")
        self.capacity = capacity
        self._grids = dict(grids)
        self._areas: dict[str, I64] = {}
        self._elites: dict[Cell, _Elite] = {}
        self._visits: dict[tuple[str, str], dict[Cell, int]] = {}
        """Per grid and kind: novelty compares within them only, and is asked for every program."""

    def __len__(self) -> int:
        return len(self._elites)

    def cell_of(self, program: Program, d_eff: float) -> Cell:
        """Behaviour cell of an executed program; the anomaly leads where there is one, else the first event.

        Args:   d_eff  its measured detectability, 0 for a plausible program
        Raises: KeyError with the known grids for a program of another grid.
        """
        if program.case not in self._grids:
            raise KeyError(f"archive: no grid {program.case!r}; known: {', '.join(sorted(self._grids))}")
        # the grammar puts the anomaly, or the hard event, first
        lead = program.events[0] if program.events else None
        return Cell(
            case=program.case,
            kind=_kind(program),
            d_bin=int(np.digitize(d_eff, D_BINS)),
            area=0 if lead is None else self._area(program.case, lead),
            shape=_shape(lead),
        )

    def _area(self, case_name: str, event: Event) -> int:
        case = self._grids[case_name]
        areas = self._areas.get(case_name)
        if areas is None:
            areas = self._areas[case_name] = electrical_areas(case)
        bus = event.target if event.target < case.n_bus else int(case.f_bus[event.target - case.n_bus])
        return int(areas[bus])

    def record(self, program: Program, d_eff: float, learnability: float) -> Cell:
        """Count a gated program and keep it if it is the best of its cell. Returns: its cell."""
        cell = self.cell_of(program, d_eff)
        of_kind = self._visits.setdefault(cell[:2], {})
        of_kind[cell] = of_kind.get(cell, 0) + 1
        held = self._elites.get(cell)
        if held is not None:
            held.learnability *= FADE
        if held is None or learnability >= held.learnability or program.events == held.program.events:
            self._elites[cell] = _Elite(program, learnability)
        if len(self._elites) > self.capacity:
            worst = min(self._elites, key=lambda c: (self._elites[c].learnability, c))
            del self._elites[worst]
        return cell

    def count(self, cell: Cell) -> int:
        return self._visits.get(cell[:2], {}).get(cell, 0)

    def visits(self) -> int:
        return sum(sum(of_kind.values()) for of_kind in self._visits.values())

    def novelty(self, cell: Cell) -> float:
        """sqrt(N_min + 1) / sqrt(N_cell + 1), 0 to 1: N_min is the least visited known cell of the same grid and kind.

        Cells of other kinds do not count: the scheduler, not the program, decides grid and kind.
        """
        fewest = min(self._visits.get(cell[:2], {}).values(), default=0)
        return min(1.0, float(np.sqrt((fewest + 1) / (self.count(cell) + 1))))

    def parents(self, count: int, rng: np.random.Generator, *, case: str = "", kind: str = "") -> list[Program]:
        """Programs to mutate, the more learnable the likelier (1 / rank within the best half), with replacement.

        Args:    case, kind  keep to a grid and to a family (or hard, ordinary); empty for any
        Returns: count programs, or none where the archive holds nothing suitable.
        """
        fitting = [c for c in self._elites if (not case or c.case == case) and (not kind or c.kind == kind)]
        if not fitting:
            return []
        fitting.sort(key=lambda c: (-self._elites[c].learnability, c))
        pool = fitting[: max(1, int(np.ceil(PARENT_POOL * len(fitting))))]
        weight = 1.0 / np.arange(1, len(pool) + 1)
        picks = rng.choice(len(pool), size=count, p=weight / weight.sum())
        return [self._elites[pool[pick]].program for pick in picks]

    def exemplars(self, count: int = 6, *, case: str = "") -> list[Program]:
        """Elites of the least visited cells of a grid: what the Proposer is shown as rare. At most count programs."""
        fitting = [c for c in self._elites if not case or c.case == case]
        fitting.sort(key=lambda c: (self.count(c), c))
        return [self._elites[c].program for c in fitting[:count]]

    def effective_cells(self, case: str = "") -> float:
        """exp of the entropy of visits: how many cells are in real use. 0 before the first visit."""
        counts = [n for key, of_kind in self._visits.items() if not case or key[0] == case for n in of_kind.values()]
        visits = np.array(counts, dtype=np.float64)
        if not visits.size:
            return 0.0
        share = visits / visits.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def state_dict(self) -> dict[str, Any]:
        """Visits and elites as plain JSON values."""
        return {
            "visits": [[list(cell), n] for of_kind in self._visits.values() for cell, n in of_kind.items()],
            "elites": [
                [list(cell), dataclasses.asdict(elite.program), elite.learnability]
                for cell, elite in self._elites.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._visits = {}
        for fields, count in state["visits"]:
            cell = Cell(*fields)
            self._visits.setdefault(cell[:2], {})[cell] = int(count)
        self._elites = {
            Cell(*cell): _Elite(_program(program), float(value)) for cell, program, value in state["elites"]
        }


def _program(fields: Mapping[str, Any]) -> Program:
    return Program(**{**fields, "events": tuple(Event(**event) for event in fields["events"])})


def _kind(program: Program) -> str:
    from_event = first_family(program)
    if from_event:
        return from_event
    hard = any(PRIMITIVES[event.primitive].side == "hard" for event in program.events)
    return "hard" if hard else "ordinary"


def _shape(event: Event | None) -> str:
    if event is None:
        return "none"
    if event.primitive in RAMPS:
        return "ramp"
    return ("pulse", "block", "step")[min(event.duration, len(DURATION_SCANS) - 1)]
