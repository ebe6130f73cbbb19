"""The nouns that flow through Grid Guardian: plain frozen records, no behaviour beyond checks.

Flow:    scenario.context -> Context -> scenario.grammar -> Program -> scenario.executor -> Attempt
         -> scenario.gates -> Experience -> replay -> verifier.batch -> GraphBatch -> learner
Shapes:  B graphs, N buses (all graphs of a batch together in GraphBatch), E branches, T scans, M meter channels
Units:   p.u. on the case's base, radians, UTC nanoseconds
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

BUS_CHANNELS = ("v", "p", "q", "va")
"""Meter channels of a bus: |V| (p.u.), net P and Q injection without shunts (p.u.), PMU angle (rad)."""
BRANCH_CHANNELS = ("pf", "qf", "pt", "qt")
"""Meter channels of a branch: P and Q entering it at the from end and at the to end (p.u.)."""

FAMILIES = (
    "S1", "S2", "S3", "S4",
    "T1", "T2", "T3", "T4",
    "A1", "A2", "A3", "A4",
)  # fmt: skip
"""The twelve anomaly families; type label 0 is "none", family i has label i + 1."""
TYPES = ("none", *FAMILIES)
FOLDS: tuple[frozenset[str], ...] = (
    frozenset({"S1", "T1", "A1"}),
    frozenset({"S2", "T2", "A2"}),
    frozenset({"S3", "T3", "A3"}),
    frozenset({"S4", "T4", "A4"}),
)
"""Families held out of training by fold 0-3."""
VERDICTS = ("normal", "disturbance", "implausible")
CANNOT_TELL = "cannot tell"
"""The answer where too little was heard to give one of VERDICTS: it is not a verdict and enters no matrix."""
SOURCES = ("proposer", "mutation", "uniform", "curated", "solver", "exploiter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the outside world does during one window or timeline; the Proposer cannot invent it.

    load_T    national demand relative to the corpus mean (about 0.55 to 1.55), one value per scan
    wind_T    wind capacity factor, 0 to 1
    shape_T   share of demand met by synchronous plant of the merit order, 0 to 1 (1 - wind - imports)
    """

    context_id: int
    t0_ns: int
    step_s: float
    load_T: F64
    wind_T: F64
    shape_T: F64
    split: str
    """train, validation or test: months never cross."""
    origin: str
    """history (real GB record) or climatology."""

    @property
    def scans(self) -> int:
        return int(self.load_T.shape[0])


@dataclass(frozen=True, slots=True)
class Event:
    """One primitive of a program; every slot is a categorical choice (selfplay.md, section 5).

    target is a bus index or a branch index (the primitive says which); onset a scan; magnitude, duration and
    support are bin numbers whose meaning the primitive defines.
    """

    primitive: str
    target: int
    onset: int
    magnitude: int = 0
    duration: int = 0
    support: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A scenario as written by a proposer: which grid, context, meters and up to three events."""

    case: str
    context_id: int
    plan_id: int
    """Metering plan: which channels exist, their class; drawn before and independently of the label."""
    events: tuple[Event, ...]
    scans: int
    seed: int
    """Physical randomness (bus load noise, allocation). The meter-noise seed is separate: twins share it."""
    source: str = "uniform"
    mode: str = "deduction"


@dataclass(slots=True, kw_only=True)
class Window:
    """One telemetry window as production sees it; no label, no truth.

    z_TM       readings, channels in MeterLayout order, NaN where nothing arrived
    age_TM     scans since the value was last refreshed (0 = fresh)
    status_TE  declared branch status, 1 in service
    tap_E      declared tap ratio;  x_scale_E declared length of each branch relative to the published
               model: one factor on its r, x, g and b
    """

    case: str
    plan_id: int
    t0_ns: int
    step_s: float
    z_TM: F64
    age_TM: U8
    status_TE: U8
    tap_E: F64
    x_scale_E: F64
    moves: tuple[tuple[int, float, int], ...] = ()
    """(branch, new ratio, first scan with it)"""

    @property
    def last_tap_E(self) -> F64:
        """Declared ratios at the last scan."""
        tap = self.tap_E.copy()
        for branch, ratio, _ in self.moves:
            tap[branch] = ratio
        return tap


def end_ns(window: Window) -> int:
    """UTC time of the newest scan."""
    return int(window.t0_ns + (window.z_TM.shape[0] - 1) * window.step_s * 1e9)


@dataclass(slots=True, kw_only=True)
class Labels:
    """Executor truth for one window."""

    implausible: bool
    disturbance: bool
    severity: float
    type: int
    node_N: Bool
    edge_E: Bool
    onset: int
    """First affected scan, -1 for none."""
    end: int
    """One past the last affected scan, -1 for none."""

    def buses(self, edge_index: I64) -> Bool:
        """[N] buses concerned: affected ones, and the ends [2, E] of affected branches: people get a list of buses."""
        out = self.node_N.copy()
        out[edge_index[:, self.edge_E]] = True
        return out


@dataclass(slots=True, kw_only=True)
class Experience:
    """One labelled window ready for the network; arrays own their memory (ray #8227).

    node_TNF, edge_TEF are float16 features (verifier.features), static parts come from the case at collate time.
    """

    case: str
    plan_id: int
    node_TNF: F16
    edge_TEF: F16
    xhat_N2: F32
    """Estimated |V| - 1 (p.u.) and angle relative to the slack (rad) at the last scan."""
    states_SN2: F32
    """True |V| - 1 and angle (slack zero) of the last S scans: the Solver's target; the last one is the Verifier's."""
    meas_N2: F32
    """Last reading of the P and Q injection (p.u.), 0 where absent."""
    sigma_N2: F32
    """Standard deviation of those readings, inf where absent."""
    param_E3: F32
    """Declared status at the last scan, declared tap ratio, declared length scale."""
    jac_NJ: F16
    """Jacobian block (grid.jacobian.COLUMNS), zeros on the balance graph; no columns where the run does without."""
    labels: Labels
    program: Program
    pair: int
    """Shared by an anomalous window and its benign twin; -1 for a window without one."""
    source: str
    d_eff: float
    p_star: float
    p_bar: float
    learnability: float
    version: int
    """Verifier version that scored it."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def state_N2(self) -> F32:
        """True state of the last scan: the target of the denoised-state head."""
        return np.asarray(self.states_SN2[-1])

    @property
    def nbytes(self) -> int:
        arrays = (
            self.node_TNF,
            self.edge_TEF,
            self.xhat_N2,
            self.states_SN2,
            self.meas_N2,
            self.sigma_N2,
            self.param_E3,
            self.jac_NJ,
        )
        return sum(a.nbytes for a in arrays) + self.labels.node_N.nbytes + self.labels.edge_E.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `gg-ray score` and the live path return for one window."""

    case: str
    time_ns: int
    verdict: str
    """One of VERDICTS, or CANNOT_TELL: then there are no probabilities and no places, and `note` says why."""
    p_implausible: float | None
    p_disturbance: float | None
    p_value: float | None
    type: str
    buses: tuple[str, ...]
    branches: tuple[str, ...]
    onset_scan: int
    corrected: dict[str, float]
    model: str
    bus_p_values: tuple[float, ...] = ()
    """Of each bus, among benign buses of its class; empty for a model that was registered without them."""
    p_class: str = ""
    """Benign windows that the p-value is a rank among: grid and hours of the week, or those of all grids."""
    note: str = ""
