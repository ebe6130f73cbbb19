"""The typed grammar of scenarios: primitives, their slots, the masks that keep every program legal, and the folds.

Flow:    [grammar] -> selfplay.proposer (masks), scenario.executor (meaning), scenario.gates (novelty)
Source:  selfplay.md, section 5; twelve anomaly families, four folds
Shapes:  N buses, E branches; a "place" is a bus (0..N-1) or a branch (N..N+E-1)

Every slot is a categorical choice: primitive, target place, onset scan, magnitude bin, duration bin, support bin.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gg_ray.config import ScenarioConfig
from gg_ray.elexon.rows import FUEL_TYPES, INTERCONNECTOR_MW
from gg_ray.grid import balance
from gg_ray.grid.cases import PV, GridCase, load_case
from gg_ray.grid.meters import MeterPlan, draw_plan, layout_of
from gg_ray.grid.powerflow import bridges
from gg_ray.records import FAMILIES, FOLDS, Bool, Event, Program

Side = Literal["ordinary", "hard", "anomalous"]
SIDES: tuple[Side, ...] = ("ordinary", "hard", "anomalous")

MAGNITUDE_BINS = 16
D_EDGES = np.geomspace(0.5, 32.0, MAGNITUDE_BINS + 1)
"""Edges of the detectability bins: a magnitude bin of a sized anomaly is a target d_eff."""
DURATION_SCANS = (4, 8, 10_000)
"""Scans that an event lasts; the last bin means until the end of the window."""
SUPPORT_BINS = 3
"""Hop radius 0-2, channel choice or partner choice: the primitive says which."""
FIRST_ONSET = 2
TAIL_SCANS = 4
_METERED = ("meter", "load_metered")
_NATIONAL = ("stream", "power_stream", "supply", "record", "link", "fleet", "plant", "country", "sampled")
"""An event starts at least this many scans before the end of the window."""


class GrammarError(ValueError):
    """A program breaks the grammar; the message names the event, the slot and what is allowed."""


@dataclass(frozen=True, slots=True)
class Primitive:
    """One word of the grammar.

    place: where it may point (load, gen, unit, line, tap, bus, meter; on gb-balance stream, supply, link, ...);
    sized: the magnitude bin means something.
    """

    name: str
    side: Side
    family: str
    place: str
    sized: bool
    """Anomalies: the bin is a target d_eff. Benign events: a physical size in 16 steps."""
    durations: int = 3
    supports: int = 1

    @property
    def national(self) -> bool:
        """A word of the national balance graph; the others are of electrical networks."""
        return self.place in _NATIONAL


def _table() -> dict[str, Primitive]:
    rows = (
        # ordinary benign
        Primitive("load_step", "ordinary", "", "load", True),
        Primitive("load_ramp", "ordinary", "", "load", True, supports=3),
        Primitive("tap_move", "ordinary", "", "tap", False),
        Primitive("v_setpoint", "ordinary", "", "gen", True),
        Primitive("demand_transfer", "ordinary", "", "load", True, supports=3),
        Primitive("noise_class_change", "ordinary", "", "meter", False, supports=3),
        Primitive("meter_outage", "ordinary", "", "meter", False),
        Primitive("stale_meter", "ordinary", "", "meter", False, durations=1),
        # plausible-hard
        Primitive("gen_trip", "hard", "", "unit", False, durations=1),
        Primitive("line_switch", "hard", "", "line", False, durations=3),
        Primitive("wind_ramp", "hard", "", "gen", True, durations=1, supports=3),
        Primitive("load_step_large", "hard", "", "load", True),
        Primitive("demand_transfer_large", "hard", "", "load", True, supports=3),
        # sensor
        Primitive("sign_flip", "anomalous", "S1", "meter", False, supports=3),
        Primitive("unit_error", "anomalous", "S1", "meter", False, supports=3),
        Primitive("time_skew", "anomalous", "S1", "meter", True, supports=3),
        Primitive("bias", "anomalous", "S2", "meter", True, supports=3),
        Primitive("drift", "anomalous", "S2", "meter", True, durations=1, supports=3),
        Primitive("scale", "anomalous", "S3", "meter", True, supports=3),
        Primitive("meter_swap", "anomalous", "S3", "meter", False, supports=3),
        Primitive("freeze", "anomalous", "S4", "meter", False),
        Primitive("noise_inflation", "anomalous", "S4", "meter", True, supports=3),
        Primitive("spike", "anomalous", "S4", "meter", True, durations=1, supports=3),
        # topology
        Primitive("wrong_breaker_status", "anomalous", "T1", "line", False, durations=1),
        Primitive("wrong_tap", "anomalous", "T1", "tap", True, durations=1),
        Primitive("undeclared_line_outage", "anomalous", "T2", "line", False, durations=1),
        Primitive("hv_fault_residue", "anomalous", "T2", "meter", True, durations=2, supports=3),
        Primitive("wrong_line_parameter", "anomalous", "T3", "line", True, durations=1),
        # physical
        Primitive("theft", "anomalous", "T4", "load_metered", True),
        Primitive("unmetered_injection", "anomalous", "T4", "load_metered", True),
        Primitive("undeclared_gen_trip", "anomalous", "T4", "unit", False, durations=1),
        # attack
        Primitive("load_redistribution", "anomalous", "A1", "load", True, supports=3),
        Primitive("replay", "anomalous", "A1", "bus", False, supports=3),
        Primitive("stealth_fdia", "anomalous", "A2", "load", True, supports=3),
        Primitive("ramp_fdia", "anomalous", "A2", "load", True, durations=1, supports=3),
        Primitive("partial_fdia", "anomalous", "A3", "load", True, supports=3),
        Primitive("wrong_model_fdia", "anomalous", "A3", "load", True, supports=3),
        Primitive("coordinated", "anomalous", "A4", "line", False, durations=1, supports=3),
        Primitive("coordinated_trip", "anomalous", "A4", "unit", False, durations=1, supports=3),
        # national balance graph: ordinary, plausible-hard, bad publications
        Primitive("stream_outage", "ordinary", "", "stream", False),
        Primitive("demand_step", "ordinary", "", "country", True),
        Primitive("link_reversal", "hard", "", "link", True, durations=2),
        Primitive("plant_trip", "hard", "", "plant", True, durations=2),
        Primitive("balance_wind_ramp", "hard", "", "country", True, durations=1),
        Primitive("clock_change", "hard", "", "country", True, durations=1),
        Primitive("frequency_excursion", "hard", "", "sampled", True, durations=1),
        Primitive("stream_unit_error", "anomalous", "S1", "power_stream", False, supports=3),
        Primitive("stream_sign_flip", "anomalous", "S1", "power_stream", False),
        Primitive("shifted_period", "anomalous", "S1", "supply", False, supports=3),
        Primitive("stream_bias", "anomalous", "S2", "stream", True),
        Primitive("stream_drift", "anomalous", "S2", "stream", True, durations=2),
        Primitive("stream_scale", "anomalous", "S3", "power_stream", True),
        Primitive("zeroed_publication", "anomalous", "S3", "supply", False, supports=3),
        Primitive("dead_record", "anomalous", "S3", "record", False, supports=3),
        Primitive("stream_freeze", "anomalous", "S4", "stream", False, durations=2, supports=3),
        Primitive("stream_spike", "anomalous", "S4", "stream", True, durations=1),
        Primitive("stream_replay", "anomalous", "A1", "supply", False, supports=3),
        Primitive("code_swap", "anomalous", "A2", "fleet", False, supports=3),
    )
    return {row.name: row for row in rows}


PRIMITIVES: dict[str, Primitive] = _table()
COMPANIONS = ("gen_trip", "line_switch", "load_step_large")
"""Real disturbances that may go on beside an anomaly in training: without any, a network learns that one excludes the
other. The remaining ones stay out of such programs, so that s2-composed can ask about compositions never seen."""
HIDDEN_FAULT = {"coordinated": "undeclared_line_outage", "coordinated_trip": "undeclared_gen_trip"}
"""What a masked fault hides: it may be played only where that fault's family may (selfplay.md, folds, rule 1)."""
PRIMITIVE_NAMES: tuple[str, ...] = tuple(PRIMITIVES)
_ANOMALIES = {family: tuple(p.name for p in PRIMITIVES.values() if p.family == family) for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class Stratum:
    """What the scheduler decides before the policy speaks: side, family (anomalous side only), grid, Solver mode."""

    side: Side
    family: str
    case: str
    mode: str = "deduction"

    def key(self) -> str:
        return f"{self.side}/{self.family or '-'}/{self.case}"


def training_families(fold: int) -> tuple[str, ...]:
    """The nine families that training may use when `fold` is held out."""
    return tuple(f for f in FAMILIES if f not in FOLDS[fold])


@functools.lru_cache(maxsize=512)
def plan_of(case_name: str, plan_id: int, low: float, high: float, missing_rate: float) -> MeterPlan:
    """Cached metering plan of a case."""
    return draw_plan(load_case(case_name), plan_id, (low, high), missing_rate)


class Grammar:
    """Legal programs of one grid under one configuration.

    Invariant: every event from uniform() or mutate() passes validate(); held-out families never appear unless the
    grammar was built with all_families (evaluation only). A masked fault hides only a fault whose family is allowed.
    """

    def __init__(
        self, case: GridCase, config: ScenarioConfig, *, all_families: bool = False, scans: int | None = None,
        outages: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """scans: length of a timeline, scenario.scans for windows; outages: branches that no event may point at."""
        self.case, self.config, self.outages = case, config, tuple(outages)
        self.scans = config.scans if scans is None else scans
        self.families = FAMILIES if all_families else training_families(config.fold)
        n = case.n_bus
        self.places = n + case.n_branch
        self.national = case.name == balance.NAME
        self._static = self._streams() if self.national else self._network()
        below = D_EDGES[1:] <= config.d_min
        self._sized_mask = ~below if config.gates == "on" else np.ones(MAGNITUDE_BINS, dtype=bool)

    def _network(self) -> dict[str, Bool]:
        """Places of an electrical network by kind."""
        case = self.case
        units = np.zeros(case.n_bus, dtype=bool)
        # Losing a unit must leave a machine or a PQ bus behind; the slack's own unit is never tripped.
        units[case.gen_bus[case.unit_gen[case.unit_p > 0.02]]] = True
        units[case.slack] = False
        standing = np.zeros(case.n_branch, dtype=bool)
        standing[list(self.outages)] = True
        return {
            "load": self._bus_mask(case.load_p > 0.01),
            "gen": self._bus_mask(case.kind == PV),
            "unit": self._bus_mask(units),
            "bus": self._bus_mask(np.ones(case.n_bus, dtype=bool)),
            "line": self._branch_mask(~bridges(case, self.outages)),
            "tap": self._branch_mask(case.transformer & ~standing),
        }

    def _streams(self) -> dict[str, Bool]:
        """Places of the national balance graph by kind: the bus at which a stream shows."""
        names = np.array(balance.BUSES)
        supply, links = np.isin(names, FUEL_TYPES), np.isin(names, list(INTERCONNECTOR_MW))
        demand = np.isin(np.arange(names.size), [balance.DEMAND, balance.STATION])
        plants = np.isin(names, ("BIOMASS", "CCGT", "COAL", "NUCLEAR", "WIND"))
        hub = np.arange(names.size) == balance.HUB
        kinds = {
            "stream": supply | demand | hub, "power_stream": supply | demand, "supply": supply, "link": links,
            "fleet": supply & ~links & (names != "PS"), "plant": plants | links, "country": hub, "record": supply,
            "sampled": hub,
        }  # fmt: skip
        return {kind: self._bus_mask(mask) for kind, mask in kinds.items()}

    def plan(self, plan_id: int) -> MeterPlan:
        if self.national:
            return balance.balance_plan(plan_id)
        c = self.config
        return plan_of(self.case.name, plan_id, c.kappa[0], c.kappa[1], c.missing_rate)

    def _bus_mask(self, mask: Bool) -> Bool:
        return np.concatenate([mask, np.zeros(self.case.n_branch, dtype=bool)])

    def _branch_mask(self, mask: Bool) -> Bool:
        return np.concatenate([np.zeros(self.case.n_bus, dtype=bool), mask])

    def primitives(self, side: Side, family: str = "") -> tuple[str, ...]:
        """Names that may open a program of this stratum, or (for benign sides) any of its events; empty for none."""
        if side == "anomalous":
            names = tuple(n for f in ((family,) if family else self.families) for n in _ANOMALIES[f])
        else:
            names = tuple(p.name for p in PRIMITIVES.values() if p.side == side)
        return tuple(n for n in names if self._possible(n))

    def offered(self) -> tuple[str, ...]:
        """Allowed families that have a primitive on this grid."""
        return tuple(family for family in self.families if self.primitives("anomalous", family))

    def _possible(self, name: str) -> bool:
        place = PRIMITIVES[name].place
        if not set(families_of(name)) <= set(self.families):
            return False
        if place in _METERED:
            return not self.national
        return place in self._static and bool(self._static[place].any())

    def benign_followers(self, side: Side) -> tuple[str, ...]:
        """Primitives that may accompany the first event; beside an anomaly only COMPANIONS of the hard ones."""
        hard = () if side == "ordinary" else self.primitives("hard")
        return self.primitives("ordinary") + tuple(n for n in hard if side == "hard" or n in COMPANIONS)

    def unseen_beside(self) -> tuple[str, ...]:
        """Hard primitives that no program of training has together with an anomaly."""
        return tuple(n for n in self.primitives("hard") if n not in self.benign_followers("anomalous"))

    def target_mask(self, name: str, plan: MeterPlan) -> Bool:
        """[N + E] places a primitive may point at under a metering plan."""
        place = PRIMITIVES[name].place
        if place not in _METERED:
            mask = self._static.get(place, np.zeros(self.places, dtype=bool))
            return mask & self._published(place, plan) if self.national else mask
        if self.national:
            return np.zeros(self.places, dtype=bool)
        return _metered(self.case.name, plan)[0 if place == "meter" else 1]

    def _published(self, kind: str, plan: MeterPlan) -> Bool:
        """[N + E] places of a kind that make sense at this cadence.

        Demand has no 15-s publication, frequency hardly a half-hourly one (`stream`, `sampled`), and only a half-hour
        holds five-minute records that can be dead (`record`).
        """
        mask, step = np.ones(self.places, dtype=bool), balance.cadence_of(plan.plan_id)
        if step == 15.0:
            mask[[balance.DEMAND, balance.STATION]] = False
        if step == 1_800.0 and kind in ("stream", "sampled"):
            mask[balance.HUB] = False
        if step != 1_800.0 and kind == "record":
            mask[:] = False
        return mask

    def onset_mask(self, name: str) -> Bool:
        """[T] scans at which an event may start."""
        scans = np.arange(self.scans)
        if self.national:  # a publication is judged when it comes: the newest scan may be the first bad one
            return np.asarray(scans >= FIRST_ONSET)
        first = 6 if name == "time_skew" else FIRST_ONSET
        return np.asarray((scans >= first) & (scans <= self.scans - TAIL_SCANS))

    def magnitude_mask(self, name: str) -> Bool:
        """[16] allowed magnitude bins: for sized anomalies those whose d_eff can reach d_min, one bin otherwise."""
        primitive = PRIMITIVES[name]
        mask = np.zeros(MAGNITUDE_BINS, dtype=bool)
        if not primitive.sized:
            mask[0] = True  # its detectability follows from the target
        elif primitive.side == "anomalous":
            mask[:] = self._sized_mask
            if np.isfinite(self.config.d_max):
                mask &= D_EDGES[:-1] < self.config.d_max
        else:
            mask[:] = True
        return mask

    def duration_mask(self, name: str) -> Bool:
        mask = np.zeros(len(DURATION_SCANS), dtype=bool)
        count = PRIMITIVES[name].durations
        mask[len(DURATION_SCANS) - count :] = True  # one duration means "until the end"
        if name in ("stale_meter", "spike", "stream_spike"):
            mask[:] = [True, False, False]
        return mask

    def support_mask(self, name: str) -> Bool:
        mask = np.zeros(SUPPORT_BINS, dtype=bool)
        mask[: PRIMITIVES[name].supports] = True
        return mask

    def event(self, name: str, plan: MeterPlan, rng: np.random.Generator) -> Event | None:
        """A uniformly drawn event, None where the primitive has no legal target under this plan."""
        masks = self._masks(name, plan)
        if not all(mask.any() for mask in masks.values()):
            return None
        return Event(name, **{slot: int(rng.choice(np.flatnonzero(mask))) for slot, mask in masks.items()})

    def uniform(self, stratum: Stratum, plan_id: int, rng: np.random.Generator) -> tuple[Event, ...]:
        """A uniformly drawn legal program body: first event by side, then up to max_events - 1 followers.

        Raises: GrammarError if no primitive of the stratum has a legal place: an empty body would be another stratum's.
        """
        plan = self.plan(plan_id)
        events: list[Event] = []
        if stratum.side != "ordinary":
            names = self.primitives(stratum.side, stratum.family)
            first = self._draw(names, plan, rng)
            if first is None:
                why = f"none of {', '.join(names)} has a place under plan {plan_id}" if names else "it has no primitive"
                raise GrammarError(
                    f"stratum {stratum.key()}: {why}; this grammar offers families {', '.join(self.offered())}"
                )
            events.append(first)
        room = self.config.max_events - len(events)
        followers = self.benign_followers(stratum.side)
        for _ in range(int(rng.integers(0, room + 1))):
            extra = self._draw(followers, plan, rng)
            if extra is not None:
                events.append(extra)
        return tuple(events)

    def _draw(self, names: tuple[str, ...], plan: MeterPlan, rng: np.random.Generator) -> Event | None:
        for name in rng.permutation(np.array(names, dtype=object)) if names else ():
            event = self.event(str(name), plan, rng)
            if event is not None:
                return event
        return None

    def mutate(self, events: tuple[Event, ...], plan_id: int, rng: np.random.Generator) -> tuple[Event, ...]:
        """ACCEL-style edit: redraw one slot of one event; the result is legal under the plan.

        Source: ACCEL, arXiv 2203.01302.

        The new plan may not meter an old place: such slots are redrawn. An event without any legal place leaves; an
        anomaly is replaced by one of its family, or a mutant would change sides (GrammarError if there is none).
        """
        plan = self.plan(plan_id)
        chosen = int(rng.integers(len(events))) if events else -1
        out = []
        for index, event in enumerate(events):
            masks = self._masks(event.primitive, plan)
            slot = str(rng.choice(sorted(masks))) if index == chosen else ""
            slots = {name: getattr(event, name) for name in masks}
            if not all(mask.any() for mask in masks.values()):
                out += self._substitute(event, plan, rng)
                continue
            for name, mask in masks.items():
                value = slots[name]
                if name == slot or not (value < mask.size and mask[value]):
                    slots[name] = int(rng.choice(np.flatnonzero(mask)))
            out.append(Event(event.primitive, **slots))
        return tuple(out)

    def _substitute(self, event: Event, plan: MeterPlan, rng: np.random.Generator) -> list[Event]:
        """Another anomaly of the family in place of one that has lost its places; nothing for a benign event."""
        family = PRIMITIVES[event.primitive].family
        if not family:
            return []
        other = self._draw(self.primitives("anomalous", family), plan, rng)
        if other is None:
            raise GrammarError(f"family {family}: no primitive has a place under plan {plan.plan_id}")
        return [other]

    def _masks(self, name: str, plan: MeterPlan) -> dict[str, Bool]:
        """Legal values of every slot of a primitive, by slot name in the order of Event's fields."""
        return {
            "target": self.target_mask(name, plan), "onset": self.onset_mask(name),
            "magnitude": self.magnitude_mask(name), "duration": self.duration_mask(name), 
            "support": self.support_mask(name),
        }  # fmt: skip

    def validate(self, program: Program) -> None:
        """GrammarError unless the program is legal for this grid, plan and fold."""
        if program.case != self.case.name:
            raise GrammarError(f"program is for {program.case!r}, this grammar is for {self.case.name!r}")
        if len(program.events) > 3:
            raise GrammarError(f"{len(program.events)} events; at most 3")
        plan = self.plan(program.plan_id)
        for index, event in enumerate(program.events):
            self._validate_event(index, event, plan)

    def _validate_event(self, index: int, event: Event, plan: MeterPlan) -> None:
        primitive = PRIMITIVES.get(event.primitive)
        if primitive is None:
            near = difflib.get_close_matches(event.primitive, PRIMITIVE_NAMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise GrammarError(f"event {index}: unknown primitive {event.primitive!r}{hint}")
        for family in families_of(event.primitive):
            if family not in self.families:
                raise GrammarError(f"event {index}: family {family} ({event.primitive}) is held out in this fold")
        for slot, mask in self._masks(event.primitive, plan).items():
            value = getattr(event, slot)
            if not (0 <= value < mask.size and mask[value]):
                allowed = np.flatnonzero(mask)
                span = f"{allowed.min()}..{allowed.max()}" if allowed.size else "nothing"
                raise GrammarError(
                    f"event {index} ({event.primitive}): {slot} {value} is not allowed; choose from {span}"
                )


def channel_of(place: int) -> int:
    """Stream (index in balance.CHANNELS) that shows at a bus of the national balance graph; FREQ at the hub."""
    return int(np.flatnonzero(place == balance.BUS_OF_CHANNEL)[0])


def families_of(name: str) -> tuple[str, ...]:
    """Families that must be allowed for a primitive: its own, and that of the fault it hides."""
    own = PRIMITIVES[name].family
    hidden = HIDDEN_FAULT.get(name)
    return tuple(f for f in (own, PRIMITIVES[hidden].family if hidden else "") if f)


@functools.lru_cache(maxsize=512)
def _metered_cached(case_name: str, key: bytes) -> tuple[Bool, Bool]:
    case = load_case(case_name)
    installed = np.frombuffer(key, dtype=np.int64) >= 0
    layout = layout_of(case)
    bus = installed[layout.bus(1)]
    branch = installed[layout.branch(0)] | installed[layout.branch(2)]
    load = bus & (case.load_p > 0.01)
    off = np.zeros(case.n_branch, dtype=bool)
    return np.concatenate([bus, branch]), np.concatenate([load, off])


def _metered(case_name: str, plan: MeterPlan) -> tuple[Bool, Bool]:
    """[N + E] places with a power meter, and load buses among them."""
    return _metered_cached(case_name, plan.index_of.tobytes())


def program_hash(program: Program) -> int:
    """64-bit hash of what the program does; seeds and source are left out (gate G6 counts meanings, not draws).

    Of a program with events the context is left out too: it is drawn anew for each, so repeats would never be found.
    Without events the context is all there is.
    """
    news: object = program.events or program.context_id
    body = (program.case, program.plan_id, program.scans, news)
    return int.from_bytes(hashlib.blake2b(repr(body).encode(), digest_size=8).digest(), "little")


def first_family(program: Program) -> str:
    """Family of the program's anomaly, empty for a benign one."""
    for event in program.events:
        family = PRIMITIVES[event.primitive].family
        if family:
            return family
    return ""
