"""The grid, meters and scans of fdia-graph in our terms, checked by power balance.

Flow:    [fdia_mapping] -> GridCase -> fdia_timeline -> its file -> [fdia_mapping] -> MeterPlan, readings -> fdia_arms
Source:  fdia-graph 0.20.0: `graph/` holds the pi model per unit, lines before transformers; meter error classes of
         `FdiaGenerator`; its power is consumption, ours injection
Shapes:  T frames, N buses, E branches, M installed meters
Units:   p.u., rad

Our own cases merge the low-impedance lines of case300 and turn the taps of case57 back (grid.cleaning). The judge does
neither, so its grids become cases of their own.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase, adopt, load_published, pandapower_net
from gg_ray.grid.cleaning import annotate
from gg_ray.grid.meters import MeterPlan, layout_of, measure
from gg_ray.grid.ybus import Judge, branch_admittance, branch_flows
from gg_ray.records import F64

C128 = NDArray[np.complex128]
RELEASE = "0.20.0"
SYSTEMS = (14, 57, 118, 300)
CLASSES = {"power": 0.017, "v": 0.0012, "va": 0.00168}
"""Its accuracy classes: power relative to the value, |V| in p.u., angle in rad. Three quarters of the variance and more
are a bias that a meter keeps for ever; a quarter of the class is drawn anew at every scan."""
JITTER = 0.25
POWER_FLOOR_PU = 1e-3
"""Smallest standard deviation of a power meter that our estimator is told. Theirs at a bus without injection is 1e-5:
a weight that the conditioning of the gain matrix does not bear."""
BALANCE_PU = 1e-4
"""Largest mismatch of its noise-free states and flows under our admittances; beyond it the mapping is wrong."""
PLAN_ID = 0
_PARAMETER = 1e-9


class JudgeError(ValueError):
    """The outside judge cannot be run as asked; the message names what is missing or wrong and the way out."""


def package(module: str = "") -> Any:
    """The package, or one of its modules.

    Raises: JudgeError where it is missing or of another release.
    """
    try:
        package = importlib.import_module("fdia_graph")
    except ImportError as error:
        raise JudgeError(
            f"suite fdia-graph needs the package fdia-graph {RELEASE} (extra `judge`, {error}): "
            "pip install -c constraints.txt -e '.[judge]'"
        ) from error
    if package.__version__ != RELEASE:
        raise JudgeError(
            f"suite fdia-graph is pinned to fdia-graph {RELEASE}, installed is {package.__version__}: figures of two"
            " releases do not compare; pip install -c constraints.txt -e '.[judge]'"
        )
    return importlib.import_module(f"fdia_graph.{module}") if module else package


def check_system(system: int | None) -> int:
    """Raises: JudgeError for a grid that the suite does not have."""
    if system not in SYSTEMS:
        raise JudgeError(f"--grid {system}: suite fdia-graph has {', '.join(map(str, SYSTEMS))}")
    return system


def case_name(system: int) -> str:
    return f"fdia-ieee{system}"


def judge_case(system: int) -> GridCase:
    """The grid as the judge takes it: as published, nothing merged or turned; from now on `load_case` knows it."""
    case = annotate(replace(load_published(f"case{check_system(system)}"), name=case_name(system)))
    adopt([case])
    return case


def check_mapping(case: GridCase, data: Any, states_TN4: F64) -> float:
    """Largest disagreement, p.u., between the judge and us: its pi model, its noise-free flows, our power balance.

    Args:   data  an `FdiaGraph` of the whole file; states_TN4 its noise-free states, float64
    Raises: JudgeError where buses, branches, taps or shunts differ, or anything is off by more than BALANCE_PU.
    """
    base, graph = case.base_mva, data._phys
    ends = np.asarray(data.edge_index_np)
    same = case.n_bus == data.N and ends.shape == (2, case.n_branch) and (graph["edge_status"] > 0).all()
    if not same or (ends != [case.f_bus, case.t_bus]).any():
        raise JudgeError(f"{case.name}: its {data.N} buses and {ends.shape[1]} branches are not the published ones")
    shift = np.rad2deg(case.shift)
    ours = {
        "edge_r": case.r, "edge_x": case.x, "edge_g": case.g, "edge_b": case.b, "edge_tap": case.tap,
        "edge_shift": shift, "bus_shunt_g": case.gs * base, "bus_shunt_b": case.bs * base,
    }  # fmt: skip
    for name, values in ours.items():
        off = float(np.abs(np.asarray(graph[name]) - values).max())
        if off > _PARAMETER:
            raise JudgeError(f"{case.name}: {name} differs by up to {off:.2e} from the published case")
    v, s = complex_state(case, states_TN4)
    flow_TE = branch_flows(case, v, branch_admittance(case))[0]
    metered = data.export(["edge_m", "edge_clean"])
    told_TE2 = np.asarray(metered["edge_clean"], dtype=np.float64) / base
    on = np.asarray(metered["edge_m"])[0, :, 0] > 0
    worst = max(
        float(np.abs(Judge(case).residual(v, s)).max()),
        float(np.abs(told_TE2[..., 0] + 1j * told_TE2[..., 1] - flow_TE)[:, on].max()),
    )
    if not worst <= BALANCE_PU:
        raise JudgeError(
            f"{case.name}: noise-free states and flows of the judge are off by {worst:.2e} p.u. under our admittances;"
            f" at most {BALANCE_PU:.0e} is rounding. Nothing was scored"
        )
    return worst


def complex_state(case: GridCase, states_TN4: F64) -> tuple[C128, C128]:
    """Voltage and net injection [T, N] of its states, p.u."""
    v = states_TN4[..., 0] * np.exp(1j * np.deg2rad(states_TN4[..., 3]))
    s = -(states_TN4[..., 1] + 1j * states_TN4[..., 2]) / case.base_mva
    return np.ascontiguousarray(v, dtype=np.complex128), np.ascontiguousarray(s, dtype=np.complex128)


def meter_plan(case: GridCase, data: Any) -> MeterPlan:
    """Its meters with its accuracy classes at the base state of the grid; the same in every frame of a file."""
    masks = data.export(["node_m", "edge_m"])
    node, edge = np.asarray(masks["node_m"]), np.asarray(masks["edge_m"])
    if (node != node[0]).any() or (edge != edge[0]).any():
        raise JudgeError(f"{case.name}: meters change within the file; one fixed plan is expected")
    layout = layout_of(case)
    installed = np.zeros(layout.size, dtype=bool)
    for channel, column in enumerate((0, 1, 2, 3)):
        installed[layout.bus(channel)] = node[0, :, column] > 0
    for channel in (0, 1):
        installed[layout.branch(channel)] = edge[0, :, channel] > 0
    sigma = np.maximum(CLASSES["power"] * np.abs(measure(case, case.v0[None])[0]), POWER_FLOOR_PU)
    sigma[layout.bus(0)], sigma[layout.bus(3)] = CLASSES["v"], CLASSES["va"]
    channels = np.flatnonzero(installed)
    index_of = np.full(layout.size, -1, dtype=np.int64)
    index_of[channels] = np.arange(channels.size)
    ones = np.ones(channels.size, dtype=np.int64)
    return MeterPlan(
        case=case.name, plan_id=PLAN_ID, kappa=float(edge[0, :, 0].mean()), channels=channels, index_of=index_of,
        sigma=sigma[channels], period=ones, phase=0 * ones, missing_rate=0.0, n_bus=case.n_bus, n_branch=case.n_branch,
    )  # fmt: skip


def readings(case: GridCase, plan: MeterPlan, node_TN4: F64, edge_TE2: F64) -> F64:
    """[T, M] its scans on our channels.

    Args: node_TN4 |V|, P, Q, angle and edge_TE2 P, Q from the first end, in its units
    """
    layout = plan.layout
    full = np.full((len(node_TN4), layout.size), np.nan)
    full[:, layout.bus(0)] = node_TN4[..., 0]
    full[:, layout.bus(1)] = -node_TN4[..., 1] / case.base_mva
    full[:, layout.bus(2)] = -node_TN4[..., 2] / case.base_mva
    full[:, layout.bus(3)] = np.deg2rad(node_TN4[..., 3]) - reference_angle(case)
    full[:, layout.branch(0)] = edge_TE2[..., 0] / case.base_mva
    full[:, layout.branch(1)] = edge_TE2[..., 1] / case.base_mva
    return np.asarray(full[:, plan.channels])


def reference_angle(case: GridCase) -> float:
    """Angle at which its slack stands, rad: a constant of the published case, by which our angles are less."""
    net = pandapower_net(case.name.replace("fdia-ieee", "case"))
    return float(np.deg2rad(net.ext_grid["va_degree"].iloc[0]))
