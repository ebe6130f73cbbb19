"""Timelines of the outside judge: operating points of a GB demand shape, attacks by the engine of fdia-graph.

Flow:    scenario.context or a CSV file -> [fdia_timeline] -> fdia_mapping, fdia_arms
Source:  fdia-graph 0.20.0 (MIT), `generate_states` and `generate_timeline`; its data releases are not needed
Shapes:  T frames (one-minute scans), N buses, L buses with a load or a generator, G generator buses
Units:   its own in Timeline: |V| p.u., P and Q MW and Mvar (consumption positive), angle degrees
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.evaluate.fdia_mapping import RELEASE, JudgeError, judge_case, package, reference_angle
from gg_ray.grid.cases import GridCase, pandapower_net
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import branch_admittance, branch_flows, injections
from gg_ray.records import F64
from gg_ray.scenario.context import ContextError, ContextSource

FRAMES_PER_DAY = 1_440
DAYS = 5
"""Days of a timeline: on 14 buses about half an hour of CPU, most of it its learned arms."""
COLUMN = "load_mw"
"""Column of a profile file, as the package's own `fetch_profile(out=...)` writes it."""
_FRAME_MS = {14: 4, 57: 8, 118: 10, 300: 60}
"""CPU time of the engine per frame, attacks included."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One attacked timeline on disk and the noise-free states behind it, float64 (the file keeps float32)."""

    system: int
    path: Path
    states_TN4: F64
    seed: int
    shape: str
    """Where the demand shape came from."""


def demand_shape(source: ContextSource, frames: int, seed: int) -> F64:
    """[frames] national demand at one-minute steps: an unbroken stretch of the test months.

    Raises: JudgeError where the source has no stretch of that length.
    """
    try:
        return source.window(seed, frames, 60.0, "test").load_T
    except ContextError as error:
        raise JudgeError(f"--days: no unbroken demand for {frames} minutes ({error})") from error


def profile_file(path: Path, frames: int) -> F64:
    """[frames] demand from a CSV file with a column load_mw, one row per scan; any unit, it is standardised.

    Raises: JudgeError for a file without that column, with too few rows or with values that are no numbers.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise JudgeError(f"--profile {path}: {error}") from error
    if COLUMN not in table:
        raise JudgeError(f"--profile {path}: columns {', '.join(map(str, table))}; one must be {COLUMN}")
    load = pd.to_numeric(table[COLUMN], errors="coerce").to_numpy(dtype=np.float64)
    if load.size < frames:
        raise JudgeError(f"--profile {path}: {load.size} rows, {frames} scans asked for; lower --days")
    bad = np.flatnonzero(~np.isfinite(load[:frames]))
    if bad.size:
        raise JudgeError(f"--profile {path}: row {int(bad[0]) + 1}: {COLUMN} is not a number")
    return load[:frames]


def make_timeline(
    system: int, load_T: F64, shape: str, seed: int, cache: Path, note: Callable[[str], None] = lambda _text: None
) -> Timeline:  # fmt: skip
    """The attacked timeline of a grid: made once per (release, grid, demand, seed), then read from the cache.

    Its defaults are kept: half of the frames attacked, seven families in equal shares, splits 60/20/20 in time.
    Raises: JudgeError where the package is missing, the demand does not vary, or operating points do not converge.
    """
    if not np.ptp(load_T) > 0:
        raise JudgeError(f"{shape}: demand does not vary over {load_T.size} scans")
    states = operating_points(system, load_T, seed)
    key = hashlib.blake2b(f"{RELEASE} {system} {seed} {load_T.tobytes().hex()}".encode(), digest_size=8)
    path = cache / f"ieee{system}-{load_T.size}-{key.hexdigest()}.h5"
    if path.is_file():
        note(f"ieee{system}: timeline read from {path}")
        return Timeline(system, path, states, seed, shape)
    cache.mkdir(parents=True, exist_ok=True)
    note(f"ieee{system}: the engine walks {len(states)} frames, about {_FRAME_MS[system] * len(states) / 6e4:.0f} min")
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        package("timeline").generate_timeline(system, states=states, seed=seed, out=str(part))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Timeline(system, path, states, seed, shape)


def operating_points(system: int, load_T: F64, seed: int) -> F64:
    """[T, N, 4] what its `generate_states(system, load_profile(load_T), seed=seed)` gives, by our batched power flow.

    The same factors per bus and scan, drawn by its own code; its solver takes 60 to 100 ms a scan, ours well below one
    (tested equal). Raises: JudgeError for a scan that does not converge.
    """
    profiles = package("profiles")
    net, case = pandapower_net(f"case{system}"), judge_case(system)
    factor_TL = profiles._ar1_scale(
        profiles.load_profile(load_T), len(profiles._case_buses(system)), profiles.K_DEFAULT, profiles.SIGMA_DEFAULT,
        profiles.CLIP_DEFAULT, profiles.JITTER_RHO, seed,
    )  # fmt: skip
    more_TN = np.zeros((load_T.size, case.n_bus))
    more_TN[:, profiles._case_buses(system)] = factor_TL - 1.0
    # static generators keep their output, so only what its tables of loads and machines hold is scaled
    load_p, load_q = _by_bus(net.load, "p_mw", case), _by_bus(net.load, "q_mvar", case)
    machines = _by_bus(net.gen, "p_mw", case)[case.gen_bus]
    solution = PowerFlow(case, tol_pu=1e-8, max_iter=50).solve(
        case.load_p + more_TN * load_p, case.load_q + more_TN * load_q,
        case.gen_p + more_TN[:, case.gen_bus] * machines, np.tile(case.gen_v, (load_T.size, 1)),
    )  # fmt: skip
    if not solution.converged_R.all():
        at = int(np.flatnonzero(~solution.converged_R)[0])
        raise JudgeError(f"ieee{system}: the operating point of scan {at} does not converge at this demand")
    v = solution.v_RN * np.exp(-1j * np.angle(solution.v_RN[:, [case.slack]]))
    s = injections(case, v, *branch_flows(case, v, branch_admittance(case))) * case.base_mva
    angle = np.rad2deg(np.angle(v) + reference_angle(case))
    return np.stack([np.abs(v), -s.real, -s.imag, angle], axis=-1)


def _by_bus(table: Any, column: str, case: GridCase) -> F64:
    """[N] a column of a pandapower table summed per bus, p.u."""
    out = np.zeros(case.n_bus)
    np.add.at(out, table["bus"].to_numpy(), table[column].to_numpy() / case.base_mva)
    return out
