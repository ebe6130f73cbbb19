"""A grid of which some branches are out of service: what its control room works with, and which outages it survives.

Flow:    grid.cases -> [outages] -> scenario.executor (standing outages), evaluate.core_changes (suite s8-outages)
Source:  verifier.md, section 3.2 (held-out axis topology, N-1)
Units:   p.u.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gg_ray.grid.cases import CaseError, GridCase
from gg_ray.grid.powerflow import PowerFlow, bridges
from gg_ray.records import Bool

OPEN_X_PU = 1e9
"""Series reactance of an open branch: it carries less than 1e-8 p.u., and every array keeps its length."""


def without(case: GridCase, branches: Sequence[int]) -> GridCase:
    """The case with branches out of service and its base state solved anew; the case itself without branches.

    Raises: CaseError where the outage splits the grid or leaves it without a base state.
    """
    if not branches:
        return case
    out = _mask(case, branches)
    solution = PowerFlow(case).solve(
        case.load_p[None], case.load_q[None], case.gen_p[None], case.gen_v[None], out[None]
    )  # fmt: skip
    if solution.split_R[0] or not solution.converged_R[0]:
        why = "splits the grid" if solution.split_R[0] else "leaves no base state"
        raise CaseError(f"{case.name}: outage of {', '.join(case.branch_names[b] for b in branches)} {why}")
    v = solution.v_RN[0]
    return replace(
        case, x=np.where(out, OPEN_X_PU, case.x), r=np.where(out, 0.0, case.r), g=np.where(out, 0.0, case.g),
        b=np.where(out, 0.0, case.b), v0=v * np.exp(1j * (np.angle(case.v0[case.slack]) - np.angle(v[case.slack]))),
    )  # fmt: skip


def standing_outages(case: GridCase, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Different outages of one and of two branches in turn that leave the grid whole and within voltage limits."""
    given: set[tuple[int, ...]] = set()
    size, tries = 1, 0
    while tries < 40 * case.n_branch:
        tries += 1
        chosen: list[int] = []
        for _ in range(size):
            free = np.flatnonzero(~bridges(case, chosen))
            if free.size:
                chosen.append(int(rng.choice(free)))
        outage = tuple(sorted(chosen))
        if len(outage) == size and outage not in given and _sound(case, outage):
            given.add(outage)
            yield outage
            size = 3 - size


def _sound(case: GridCase, outage: tuple[int, ...]) -> bool:
    try:
        vm = np.abs(without(case, outage).v0)
    except CaseError:
        return False
    return bool(np.all(vm >= np.minimum(case.v_min, np.abs(case.v0)) - 0.02) and vm.max() <= 1.2)


def _mask(case: GridCase, branches: Sequence[int]) -> Bool:
    out = np.zeros(case.n_branch, dtype=bool)
    out[list(branches)] = True
    return out
