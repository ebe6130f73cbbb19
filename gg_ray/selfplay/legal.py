"""What the policy sees of a grid and what it may say about it: static features and the grammar's masks as tensors.

Flow:    grid.cases, scenario.grammar -> [legal] -> proposer
Source:  selfplay.md, section 10; action masking 2006.14171
Shapes:  N buses, E branches (places = N + E), K primitives; masks are bool, True for legal

An event is six choices in a fixed order (HEADS): primitive (or STOP), target, onset, magnitude, duration, support.
Masks are made once per grammar, and once per metering plan: a call then only gathers rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gg_ray.grid.cases import PQ, PV, SLACK, GridCase
from gg_ray.grid.ybus import branch_admittance, branch_flows
from gg_ray.records import I64, Event
from gg_ray.scenario.grammar import PRIMITIVE_NAMES, PRIMITIVES, Grammar, Stratum

HEADS = ("primitive", "target", "onset", "magnitude", "duration", "support")
STOP = len(PRIMITIVE_NAMES)
F_BUS, F_BRANCH, F_PLAN = 9, 5, 2
_KINDS = tuple(sorted({p.place for p in PRIMITIVES.values()}))
KIND_OF = torch.tensor([_KINDS.index(PRIMITIVES[name].place) for name in PRIMITIVE_NAMES])
"""[K] kind of place a primitive points at: the row of PlanMasks.places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseEncoding:
    """Static tensors of one grid; does not depend on weights, so it is made once per grid."""

    case: str
    bus: Tensor
    """f32 [N, 9]"""
    branch: Tensor
    """f32 [E, 5]"""
    edge_index: Tensor
    """i64 [2, E]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMasks:
    """What a metering plan allows and shows."""

    places: Tensor
    """bool [kinds, N + E] legal targets per kind of place."""
    possible: Tensor
    """bool [K] primitives with a legal choice in every slot."""
    features: Tensor
    """f32 [N + E, 2] whether the place has a power meter, and the metered share of its surroundings."""


class Masks:
    """A grammar's rules as tensors.

    slots: bool [K, choices] for onset, magnitude, duration and support, which do not depend on meters.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        rules = (grammar.onset_mask, grammar.magnitude_mask, grammar.duration_mask, grammar.support_mask)
        self.slots = tuple(torch.from_numpy(np.stack([rule(name) for name in PRIMITIVE_NAMES])) for rule in rules)
        self._plans: dict[int, PlanMasks] = {}
        self._openers: dict[tuple[str, str], Tensor] = {}
        self._followers: dict[str, Tensor] = {}

    def plan(self, plan_id: int) -> PlanMasks:
        """Masks of a metering plan of the grammar's grid."""
        if plan_id not in self._plans:
            self._plans[plan_id] = self._plan(plan_id)
        return self._plans[plan_id]

    def _plan(self, plan_id: int) -> PlanMasks:
        case, plan = self._grammar.case, self._grammar.plan(plan_id)
        example = {p.place: p.name for p in PRIMITIVES.values()}
        places = np.stack([self._grammar.target_mask(example[kind], plan) for kind in _KINDS])
        possible = torch.from_numpy(places.any(axis=1))[KIND_OF]
        for slot in self.slots:
            possible = possible & slot.any(dim=1)
        metered = places[_KINDS.index("meter")].astype(np.float64)
        n = case.n_bus
        near, degree = np.zeros(n), np.zeros(n)
        for end, other in ((case.f_bus, case.t_bus), (case.t_bus, case.f_bus)):
            np.add.at(near, end, metered[n:] + metered[other])
            np.add.at(degree, end, 2.0)
        share = near / np.maximum(degree, 1.0)
        around = np.concatenate([share, 0.5 * (share[case.f_bus] + share[case.t_bus])])
        features = torch.from_numpy(np.stack([metered, around], axis=1).astype(np.float32))
        return PlanMasks(places=torch.from_numpy(places), possible=possible, features=features)

    def openers(self, stratum: Stratum) -> Tensor:
        """bool [K + 1]: an ordinary program may be empty, the others must open with an event of their stratum."""
        if stratum.side == "ordinary":
            return self.followers(stratum)
        key = (stratum.side, stratum.family)
        if key not in self._openers:
            self._openers[key] = _words(self._grammar.primitives(stratum.side, stratum.family), stop=False)
        return self._openers[key]

    def followers(self, stratum: Stratum) -> Tensor:
        """bool [K + 1]: what may follow an event of this stratum, STOP included."""
        if stratum.side not in self._followers:
            self._followers[stratum.side] = _words(self._grammar.benign_followers(stratum.side), stop=True)
        return self._followers[stratum.side]


@functools.lru_cache(maxsize=32)
def masks_of(grammar: Grammar) -> Masks:
    """Cached masks; grammars are told apart by identity, one per grid and curriculum level in use."""
    return Masks(grammar)


def _words(names: Sequence[str], *, stop: bool) -> Tensor:
    mask = torch.zeros(STOP + 1, dtype=torch.bool)
    mask[[PRIMITIVE_NAMES.index(name) for name in names]] = True
    mask[STOP] = stop
    return mask


def encode_case(case: GridCase) -> CaseEncoding:
    """Static features of a grid for the place embeddings; per unit only, never scaled per grid."""
    n = case.n_bus
    f, t = case.f_bus, case.t_bus
    y = branch_admittance(case)
    flow = np.abs(branch_flows(case, case.v0[None], y)[0][0])
    log_y = -np.log(np.abs(case.r + 1j * case.x)) / 5.0
    generation, y_sum = np.zeros(n), np.zeros(n)
    np.add.at(generation, case.gen_bus, case.gen_p)
    for end in (f, t):
        np.add.at(y_sum, end, 1.0 / np.abs(case.r + 1j * case.x))
    degree = np.bincount(f, minlength=n) + np.bincount(t, minlength=n)
    bus = np.stack(
        [
            np.arcsinh(5.0 * case.load_p),
            np.arcsinh(5.0 * case.load_q),
            np.arcsinh(generation),
            *(case.kind == kind for kind in (PQ, PV, SLACK)),
            np.log1p(degree),
            np.log1p(y_sum) / 5.0,
            np.log(np.maximum(case.vn_kv, 1e-3)) / 5.0,
        ],
        axis=1,
    )
    branch = np.stack(
        [
            log_y,
            case.transformer.astype(np.float64),
            np.minimum(flow / np.maximum(case.rate, 1e-6), 2.0),
            np.arcsinh(flow),
            10.0 * (case.tap - 1.0),
        ],
        axis=1,
    )
    return CaseEncoding(
        case=case.name,
        bus=torch.from_numpy(bus.astype(np.float32)),
        branch=torch.from_numpy(branch.astype(np.float32)),
        edge_index=torch.from_numpy(np.stack([f, t]).astype(np.int64)),
    )


def encode(event: Event) -> list[int]:
    """The six tokens of an event. Raises: ValueError for a primitive that the grammar does not know."""
    word = PRIMITIVE_NAMES.index(event.primitive)
    return [word, event.target, event.onset, event.magnitude, event.duration, event.support]


def decode(tokens_J6: I64) -> tuple[Event, ...]:
    """Events of a program's tokens; rows from STOP on are no events."""
    return tuple(Event(PRIMITIVE_NAMES[row[0]], *row[1:]) for row in tokens_J6.tolist() if 0 <= row[0] < STOP)
