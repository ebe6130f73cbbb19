"""The national balance graph `gb-balance`: a copper plate whose nodes are fuels, links and demand around one hub.

Flow:    elexon.scans, scenario.balance_executor (streams) -> [balance] -> readings, states -> verifier, gates
Source:  docs/gb-data.md (laws across the streams); docs/adr/0014-balance-graph.md
Shapes:  T scans, N buses, E ties, C streams in CHANNELS order, M meters of the plan
Units:   MW and Hz in streams; p.u. on BASE_MVA in readings; the hub's |V| is frequency over F0

Kirchhoff's law at the hub is the balance of the country: the hub injects nothing, so supply, demand, station load and
what nobody reports add up to zero. Ties are equal and lossless, so an angle stands for a power and the same judge, the
same network and the same physics loss serve this grid as any other.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from gg_ray.elexon.rows import FUEL_TYPES, INTERCONNECTOR_MW
from gg_ray.grid.cases import PV, SLACK, GridCase
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, I64, Bool

C128 = NDArray[np.complex128]

NAME = "gb-balance"
BASE_MVA = 1_000.0
F0_HZ = 50.0
TIE_X_PU = 0.005
"""Reactance of every tie: 30 GW through one of them is an angle of 9 degrees."""

CHANNELS = (*FUEL_TYPES, "INDO", "ITSDO", "FREQ", "EMBEDDED_WIND", "EMBEDDED_SOLAR")
"""Streams: MW but FREQ in Hz. PS and links are positive into the country."""
N_SUPPLY = len(FUEL_TYPES)
INDO, ITSDO, FREQ, EMBEDDED_WIND, EMBEDDED_SOLAR = range(N_SUPPLY, N_SUPPLY + 5)
PS = FUEL_TYPES.index("PS")
LINKS = np.array([FUEL_TYPES.index(name) for name in sorted(INTERCONNECTOR_MW)])
NOT_LINKS = np.array([i for i in range(N_SUPPLY) if i not in set(LINKS.tolist()) and i != PS])

BUSES = ("HUB", *FUEL_TYPES, "DEMAND", "STATION_LOAD", "UNREPORTED", "EMBEDDED_WIND", "EMBEDDED_SOLAR")
HUB, DEMAND, STATION, UNREPORTED, WIND_BUS, SOLAR_BUS = (
    0, N_SUPPLY + 1, N_SUPPLY + 2, N_SUPPLY + 3, N_SUPPLY + 4, N_SUPPLY + 5,
)  # fmt: skip
SUPPLY_BUS = np.arange(1, N_SUPPLY + 1)
"""Bus of each supply stream, in FUEL_TYPES order."""
BUS_OF_CHANNEL = np.concatenate([SUPPLY_BUS, [DEMAND, STATION, HUB, WIND_BUS, SOLAR_BUS]])
"""Bus at which each stream of CHANNELS shows: ITSDO as station load, FREQ at the hub."""
TIE_DEMAND, TIE_STATION, TIE_UNREPORTED = N_SUPPLY, N_SUPPLY + 1, N_SUPPLY + 2
"""Branch numbers: the ties of supply come first, in bus order."""

_TYPICAL_MW = {
    "BIOMASS": 2_100, "CCGT": 13_000, "COAL": 500, "NPSHYD": 400, "NUCLEAR": 5_600, "OCGT": 50, "OIL": 50,
    "OTHER": 200, "PS": 300, "WIND": 6_500,
}  # fmt: skip
_CAPACITY_MW = {
    "BIOMASS": 4_000, "CCGT": 29_000, "COAL": 10_000, "NPSHYD": 1_200, "NUCLEAR": 9_300, "OCGT": 2_000, "OIL": 1_000,
    "OTHER": 3_500, "PS": 2_900, "WIND": 21_000,
}  # fmt: skip
_DEMAND_MW, _STATION_MW, _EMBEDDED_MW = 33_000.0, 560.0, (1_800.0, 1_300.0)
RATING_MW = np.array([float(_CAPACITY_MW.get(n, INTERCONNECTOR_MW.get(n, 0))) for n in FUEL_TYPES])
"""[20] largest output or transfer of each supply stream."""
STATION_SUMMER_MW, STATION_WINTER_MW = 500.0, 600.0
"""Station load that the operator assumes in summer time and in winter (docs/gb-data.md)."""

CADENCES_S = (1_800.0, 300.0, 1_800.0, 15.0)
"""Scan intervals of plans in turn: FUELHH and demand; FUELINST; FREQ. Half-hours carry most streams and come twice."""
_MOVE_MW = {
    "BIOMASS": 83, "CCGT": 745, "COAL": 116, "NPSHYD": 53, "NUCLEAR": 30, "OCGT": 24, "OIL": 5, "OTHER": 42,
    "PS": 247, "WIND": 217,
}  # fmt: skip
"""Standard deviation of the change from one half-hour to the next, 2019 and 2021 (`gg_ray.scenario.balance_record`)."""
_LINK_MOVE = 0.12
"""The same for a link, as a share of its capacity."""
_DEMAND_MOVE_MW = 950.0
MOVE_MW = np.array([
    *(max(float(_MOVE_MW.get(n, _LINK_MOVE * INTERCONNECTOR_MW.get(n, 0))), 12.0) for n in FUEL_TYPES), _DEMAND_MOVE_MW,
])  # fmt: skip
"""[21] usual half-hourly move of each supply stream and of INDO, MW: what stands in where no history is at hand."""
STEP_SHARE = {1_800.0: 1.0, 300.0: 0.22, 15.0: 0.22}
"""Moves within five minutes relative to moves within a half-hour, from the five-minute record of July 2019."""
OPERATIONAL_HZ = 0.2
"""Band about 50 Hz that operation keeps to; outside it frequency is a disturbance, whatever its cause."""
_FREQUENCY_MOVE_HZ = {1_800.0: 0.07, 300.0: 0.055, 15.0: 0.0135}
_LAW_SIGMA_MW = {"station": 40.0, "unreported": 55.0}
_EMBEDDED_MOVE_MW = 150.0
_MISSING = 0.004


@functools.cache
def balance_case() -> GridCase:
    """The graph as a GridCase: 26 buses, 25 lossless ties, hub without injection, `UNREPORTED` as slack."""
    n, typical = len(BUSES), np.zeros(len(BUSES))
    typical[SUPPLY_BUS] = [float(_TYPICAL_MW.get(name, 0.4 * INTERCONNECTOR_MW.get(name, 0))) for name in FUEL_TYPES]
    typical[[WIND_BUS, SOLAR_BUS]] = _EMBEDDED_MW
    load = np.zeros(n)
    load[[DEMAND, STATION]] = _DEMAND_MW, _STATION_MW
    rating = np.concatenate([1.1 * RATING_MW, [60_000.0, 1_000.0, 4_000.0, 6_500.0, 14_000.0]]) / BASE_MVA
    leaves = np.arange(1, WIND_BUS)
    f_bus = np.concatenate([np.full(leaves.size, HUB), [DEMAND, DEMAND]])
    t_bus = np.concatenate([leaves, [WIND_BUS, SOLAR_BUS]])
    e = f_bus.size
    injection = (typical - load) / BASE_MVA
    injection[UNREPORTED] = -injection.sum()
    kind = np.full(n, PV)
    kind[UNREPORTED] = SLACK
    thermal = ("BIOMASS", "CCGT", "COAL", "NUCLEAR", "OCGT", "OIL", "OTHER")
    group = dict.fromkeys(thermal, 1) | {"NPSHYD": 2, "PS": 2, "WIND": 3} | dict.fromkeys(INTERCONNECTOR_MW, 4)
    substation = np.array([0, *(group[name] for name in FUEL_TYPES), 5, 6, 6, 5, 5])
    angle = 2 * np.pi * np.arange(n) / (n - 1)
    layout = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    layout[HUB] = 0.0
    ones, zeros, at_hub = np.ones(e), np.zeros(e), np.arange(n) == HUB
    return GridCase(
        name=NAME, base_mva=BASE_MVA, f0_hz=F0_HZ, bus_names=BUSES, node_of_bus=np.arange(n), vn_kv=np.full(n, 400.0),
        kind=kind, load_p=load / BASE_MVA, load_q=np.zeros(n), gs=np.zeros(n), bs=np.zeros(n),
        v_min=np.where(at_hub, 1 - 0.2 / F0_HZ, 0.9), v_max=np.where(at_hub, 1 + 0.2 / F0_HZ, 1.1),
        f_bus=f_bus, t_bus=t_bus, r=zeros, x=TIE_X_PU * ones, g=zeros, b=zeros, tap=ones, shift=zeros, rate=rating,
        transformer=np.zeros(e, dtype=bool), gen_bus=np.arange(n), gen_p=injection + load / BASE_MVA, gen_v=np.ones(n),
        unit_gen=SUPPLY_BUS.copy(), unit_p=typical[SUPPLY_BUS] / BASE_MVA, unit_pmax=RATING_MW / BASE_MVA,
        v0=state_of(injection[None], np.ones(1))[0], substation=substation, region=np.array([0, 1, 1, 1, 2, 3, 3]),
        layout=layout, derived_rating=False,
    )  # fmt: skip


def state_of(injection_TN: F64, frequency_T: F64) -> C128:
    """[T, N] exact state: ties are lossless, so every angle follows from the power through its tie.

    Args: injection_TN net injection, p.u., where UNREPORTED is what balances the rest and the hub has none;
          frequency_T hub frequency over F0
    """
    at_hub = injection_TN.copy()
    at_hub[:, DEMAND] += at_hub[:, WIND_BUS] + at_hub[:, SOLAR_BUS]
    at_hub[:, [HUB, WIND_BUS, SOLAR_BUS]] = 0.0
    at_hub[:, UNREPORTED] -= at_hub.sum(axis=1)
    angle = np.arcsin(at_hub * TIE_X_PU / frequency_T[:, None])
    for bus in (WIND_BUS, SOLAR_BUS):
        angle[:, bus] = angle[:, DEMAND] + np.arcsin(injection_TN[:, bus] * TIE_X_PU)
    size = np.ones_like(injection_TN)
    size[:, HUB] = frequency_T
    return np.asarray(size * np.exp(1j * (angle - angle[:, [UNREPORTED]])))


def injections_of(stream_TC: F64) -> F64:
    """[T, N] net injections, p.u., that streams of the truth imply (no NaN but embedded plant and absent links)."""
    x = np.nan_to_num(stream_TC, nan=0.0) / BASE_MVA
    k, _ = laws(stream_TC)
    out = np.zeros((x.shape[0], len(BUSES)))
    out[:, SUPPLY_BUS] = x[:, :N_SUPPLY]
    out[:, WIND_BUS], out[:, SOLAR_BUS] = x[:, EMBEDDED_WIND], x[:, EMBEDDED_SOLAR]
    out[:, DEMAND] = -x[:, INDO] - out[:, WIND_BUS] - out[:, SOLAR_BUS]
    out[:, STATION] = -k / BASE_MVA
    out[:, UNREPORTED] = -out.sum(axis=1)
    return out


def laws(stream_TC: F64, exists_TL: Bool | None = None) -> tuple[F64, F64]:
    """Station load k = ITSDO - INDO - exports - pumping and gross residual q = supply + imports - ITSDO, MW, [T].

    Args:    exists_TL  links (LINKS order) that are in service; those heard anywhere in the streams when not given
    Returns: NaN where a stream that must be there is missing: a link that exists and is silent may carry anything, one
             that does not exist carries nothing.
    """
    links = stream_TC[:, LINKS]
    exists = np.isfinite(links).any(axis=0, keepdims=True) if exists_TL is None else exists_TL
    links = np.where(np.isnan(links) & ~exists, 0.0, links)
    pumped = stream_TC[:, PS]
    k = stream_TC[:, ITSDO] - stream_TC[:, INDO] - np.maximum(-links, 0).sum(axis=1) - np.maximum(-pumped, 0)
    q = (
        stream_TC[:, NOT_LINKS].sum(axis=1) + np.maximum(pumped, 0) + np.maximum(links, 0).sum(axis=1)
        - stream_TC[:, ITSDO]
    )  # fmt: skip
    return k, q


# --- meters ----------------------------------------------------------------------------------------------------------


def _channels() -> I64:
    n, e = len(BUSES), len(BUSES) - 1
    bus_v = np.array([HUB])
    bus_p = n + np.concatenate([SUPPLY_BUS, [STATION, UNREPORTED, WIND_BUS, SOLAR_BUS]])
    flow_p = 4 * n + np.array([TIE_DEMAND, TIE_STATION, TIE_UNREPORTED])
    flow_q = 4 * n + e + np.arange(TIE_UNREPORTED + 1)
    return np.concatenate([bus_v, bus_p, flow_p, flow_q]).astype(np.int64)


M_FREQUENCY, M_SUPPLY = 0, slice(1, 1 + N_SUPPLY)
M_STATION, M_UNREPORTED, M_WIND, M_SOLAR, M_INDO = range(1 + N_SUPPLY, 6 + N_SUPPLY)
M_STATION_USUAL, M_UNREPORTED_USUAL = 6 + N_SUPPLY, 7 + N_SUPPLY
M_SUPPLY_MOVE = slice(8 + N_SUPPLY, 8 + 2 * N_SUPPLY)
M_INDO_MOVE, M_STATION_SIGMA, M_UNREPORTED_SIGMA = range(8 + 2 * N_SUPPLY, 11 + 2 * N_SUPPLY)
N_METERS = 11 + 2 * N_SUPPLY
"""Meter positions. From M_STATION_USUAL on they are statistics of the past fortnight that travel with the telemetry,
as flow readings of ties: rolling medians of the laws; usual half-hourly moves of supply and demand; rolling spreads."""
LAWS = (M_STATION, M_UNREPORTED)
"""Meters that are computed from other streams: nobody can complete or corrupt them by themselves."""
U_STATION, U_UNREPORTED, U_STATION_SIGMA, U_UNREPORTED_SIGMA = range(4)
U_SUPPLY_MOVE, U_INDO_MOVE, N_USUAL = slice(4, 4 + N_SUPPLY), 4 + N_SUPPLY, 5 + N_SUPPLY
"""Columns of what is usual, MW: medians of k and q, their sigmas, moves of each supply stream and of INDO."""


CADENCE_PLANS = (1_000, 1_001, 1_003)
"""Metering plans that training never draws: half-hours, five minutes, 15 seconds; what is evaluated and served."""


def cadence_of(plan_id: int) -> float:
    """Scan interval, seconds, of a metering plan: plans take turns through CADENCES_S."""
    return CADENCES_S[plan_id % len(CADENCES_S)]


@functools.lru_cache(maxsize=1_024)
def balance_plan(plan_id: int) -> MeterPlan:
    """Metering plan of a cadence: always the same meters; sigma is the usual move from one scan to the next.

    A national stream has no instrument error worth the name, so what makes a reading remarkable is how far it moved.
    """
    step = cadence_of(plan_id)
    share = STEP_SHARE[step]
    channels = _channels()
    laws_mw = [_LAW_SIGMA_MW["station"], _LAW_SIGMA_MW["unreported"]]
    sigma = np.concatenate([
        [_FREQUENCY_MOVE_HZ[step] / F0_HZ * BASE_MVA], MOVE_MW[:-1] * share, laws_mw, [_EMBEDDED_MOVE_MW * share] * 2,
        MOVE_MW[-1:], laws_mw, MOVE_MW, laws_mw,
    ]) / BASE_MVA  # fmt: skip
    order = np.argsort(channels)
    if not np.array_equal(order, np.arange(channels.size)):
        raise AssertionError("meters of gb-balance are not in layout order")
    n, e = len(BUSES), len(BUSES) - 1
    index_of = np.full(4 * (n + e), -1, dtype=np.int64)
    index_of[channels] = np.arange(channels.size)
    return MeterPlan(
        case=NAME, plan_id=plan_id, kappa=1.0, channels=channels, index_of=index_of, sigma=sigma,
        period=np.ones(channels.size, dtype=np.int64), phase=np.zeros(channels.size, dtype=np.int64),
        missing_rate=_MISSING, n_bus=n, n_branch=e,
    )  # fmt: skip


def readings_of(
    stream_TC: F64, usual_TU: F64, averaged_TC: F64 | None = None, exists_TL: Bool | None = None
) -> F64:  # fmt: skip
    """[T, M] readings, p.u., NaN where a stream is silent.

    Args: stream_TC   published streams, NaN where nothing came
          usual_TU    statistics of the fortnight before, MW (U_ columns)
          averaged_TC streams as means over the demand's half-hour, for the laws at finer cadences
          exists_TL   links in service, as `laws`
    """
    k, q = laws(stream_TC if averaged_TC is None else averaged_TC, exists_TL)
    out = np.empty((stream_TC.shape[0], N_METERS))
    out[:, M_FREQUENCY] = stream_TC[:, FREQ] / F0_HZ * BASE_MVA
    out[:, M_SUPPLY] = stream_TC[:, :N_SUPPLY]
    out[:, M_STATION], out[:, M_UNREPORTED] = -k, -q
    out[:, M_WIND], out[:, M_SOLAR] = stream_TC[:, EMBEDDED_WIND], stream_TC[:, EMBEDDED_SOLAR]
    out[:, M_INDO] = stream_TC[:, INDO]
    out[:, M_STATION_USUAL : M_UNREPORTED_USUAL + 1] = usual_TU[:, :2]
    out[:, M_SUPPLY_MOVE], out[:, M_INDO_MOVE] = usual_TU[:, U_SUPPLY_MOVE], usual_TU[:, U_INDO_MOVE]
    out[:, M_STATION_SIGMA : M_UNREPORTED_SIGMA + 1] = usual_TU[:, 2:4]
    return out / BASE_MVA


def usual(k_mw: float, q_mw: float, k_sigma_mw: float, q_sigma_mw: float) -> F64:
    """[U] what is usual where the moves of streams are those of 2019 and 2021."""
    return np.concatenate([[k_mw, q_mw, k_sigma_mw, q_sigma_mw], MOVE_MW])
