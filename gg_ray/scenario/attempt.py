"""A program while it runs and what comes of it: trajectories, the two sides of a pair, the attempt.

Flow:    scenario.executor -> [attempt: Job -> Attempt] -> scenario.gates, scenario.telemetry, selfplay
Source:  selfplay.md, sections 4 and 8
Shapes:  T scans, N buses, E branches, M installed meters
Units:   p.u., rad
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, Bool, Context, Event, Labels, Program
from gg_ray.scenario.alteration import C128, Alteration, Scene
from gg_ray.scenario.worlds import Readings, World


@dataclass(slots=True)
class Trajectory:
    """A solved world: states [T, N], noise-free readings [T, M], declarations that describe it truthfully."""

    world: World
    """What was asked of the power flow: the judge compares the state with it (gate G1)."""
    v_TN: C128
    h_TM: F64
    converged: bool
    split: bool
    status_TE: Bool
    moves: tuple[tuple[int, float, int], ...]
    """Declared tap moves: branch, ratio, first scan."""


@dataclass(slots=True)
class Side:
    """What one window of a pair tells the control room (before noise)."""

    mean_TM: F64
    status_TE: Bool
    tap_E: F64
    x_scale_E: F64
    moves: tuple[tuple[int, float, int], ...]
    readings: Readings
    state_TN: C128
    labels: Labels


@dataclass(slots=True, kw_only=True)
class Attempt:
    """An executed program: the window, its benign twin where there is an anomaly, and how detectable it is."""

    program: Program
    context: Context
    plan: MeterPlan
    main: Side | None
    twin: Side | None
    d_eff: float
    d_target: float
    converged: bool
    split: bool
    in_bounds: bool
    reachable: bool
    material: float
    """Largest effect in units of the materiality limits (gate G3 needs 1)."""
    solves: int
    trajectory: Trajectory | None = None
    unhidden: Trajectory | None = None
    """The other solved world where there is one: without the hidden event, or the recorded hour of a replay."""
    notes: list[str] = field(default_factory=list)
    alteration: Alteration | None = None
    """What the anomaly changed: asked again where meters are lost afterwards."""

    @property
    def anomalous(self) -> bool:
        return bool(self.main is not None and self.main.labels.implausible)

    def digest(self) -> str:
        """Hash of every float64 array of the attempt: two executions with one seed must agree (gate G2)."""
        out = hashlib.blake2b(digest_size=16)
        for side in (self.main, self.twin):
            if side is not None:
                for array in (side.mean_TM, side.state_TN, side.tap_E, side.x_scale_E, side.status_TE):
                    out.update(np.ascontiguousarray(array).tobytes())
        out.update(repr((self.d_eff, self.converged, self.reachable)).encode())
        return out.hexdigest()


@dataclass(slots=True, kw_only=True)
class Job:
    """A program on its way to an Attempt: its worlds, then their solutions, then the alteration and its size.

    worlds, solved   what telemetry or declarations hide goes last: solved[-1] is the true trajectory
    sign, target     +1 or -1 and the d_eff that is asked for, both seeded by the program
    lost             hidden change of net injection, p.u.
    """

    program: Program
    context: Context
    plan: MeterPlan
    anomaly: Event | None
    readings: Readings
    disturbed: bool
    sign: float = 1.0
    target: float = 0.0
    lost: float = 0.0
    worlds: list[World] = field(default_factory=list)
    solved: list[Trajectory] = field(default_factory=list)
    scene: Scene | None = None
    alteration: Alteration | None = None
    mean_d2: float = 0.0
    d_eff: float = 0.0
    factor: float = 0.0
    done: bool = False
    linear_size: bool = False
    notes: list[str] = field(default_factory=list)
