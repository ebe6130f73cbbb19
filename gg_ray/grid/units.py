"""Units of readings from outside: kV, MW or degrees where per unit and radians are expected, found and named.

Flow:    windows_io -> [units] -> refusal that says what to divide by
Source:  docs/calibration.md, data that is refused
Shapes:  T scans, M meters

One meter that reads a hundredfold is bad data, which is the Verifier's business. A quarter of all meters of a kind
that stand at their nominal value times a unit's factor is a mistake of the sender, and a verdict on it would be about
units.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np

from gg_ray.grid import balance
from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.meters import measure
from gg_ray.records import F64, I64, Bool

SHARE = 0.25
"""Share of the meters of a kind that must stand at a unit's factor before the unit is called wrong."""
LEAST = 3
"""Meters that must stand there, unless all of them do."""
_RELATIVE_KV = 0.15
_RELATIVE_POWER = 4.0
_SMALL_PU = 0.05
_SMALL_RAD = 0.02
_NOT_PU = 2.0
_WIDE = 10.0
"""Multiple of nominal that no unit's factor reaches (the least is 57.3 / 4, degrees)."""


@np.errstate(over="ignore")
def wrong_unit(case: GridCase, channels: I64, z_TM: F64) -> str | None:
    """What is wrong with the units of a window and the way out, None where nothing is.

    Args: channels  [M] layout positions of the meters;  z_TM  readings, NaN where nothing arrived
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a meter that never reported has no median
        typical_M = np.nanmedian(np.abs(z_TM), axis=0)
    kind = np.where(channels < 4 * case.n_bus, channels // case.n_bus, 4 + (channels - 4 * case.n_bus) // case.n_branch)
    found = _voltage(case, channels, kind, typical_M)
    if found is None and case.name != balance.NAME:
        nominal_M = np.abs(measure(case, case.v0[None], channels=channels)[0])
        found = _power(case, kind, typical_M, nominal_M) or _angle(kind, typical_M, nominal_M)
    return found or _far_too_large(case, kind, typical_M)


@functools.lru_cache(maxsize=256)
def usual_range(case: str, channels: bytes) -> tuple[F64, F64]:
    """[M] bounds within which readings of these meters cannot be in a wrong unit: what `wrong_unit` need not look at.

    Args: channels  bytes of the int64 positions, so that a stream of scans asks once
    """
    grid, at = load_case(case), np.frombuffer(channels, dtype=np.int64)
    kind = np.where(at < 4 * grid.n_bus, at // grid.n_bus, 4)
    nominal = np.abs(measure(grid, grid.v0[None], channels=at)[0])
    power = np.where(nominal > _SMALL_PU, _WIDE * nominal, np.inf)
    power = np.minimum(power, max(float(np.abs(grid.load_p).sum()), 1.0))
    angle = np.minimum(np.where(nominal > _SMALL_RAD, _WIDE * nominal, np.pi), np.pi)
    high = np.where(kind == 0, (1.0 - _RELATIVE_KV) * _NOT_PU, np.where(kind == 3, angle, power))
    return np.where(kind == 0, 1e-6, -high), high


def _voltage(case: GridCase, channels: I64, kind: I64, typical_M: F64) -> str | None:
    volts = np.flatnonzero((kind == 0) & np.isfinite(typical_M))
    kv = case.vn_kv[channels[volts]]
    for unit, factor, way_out in (
        ("kV", kv, "divide by the nominal kV of the bus"), ("V", 1e3 * kv, "divide by the nominal volts of the bus"),
        ("kV to earth", kv / np.sqrt(3), "multiply by sqrt(3) and divide by the nominal kV of the bus"),
        ("per cent", np.full(kv.shape, 100.0), "divide by 100"),
    ):  # fmt: skip
        near = (np.abs(typical_M[volts] / factor - 1.0) < _RELATIVE_KV) & (factor > _NOT_PU)
        if case.name != balance.NAME and _many(near):
            return _said("voltage", unit, "p.u.", near, way_out)
    middle = float(np.median(typical_M[volts])) if volts.size else 1.0
    if not 0.0 < middle < _NOT_PU:
        return f"median voltage {middle:.4g} is not in p.u.; divide by the nominal kV"
    return None


def _power(case: GridCase, kind: I64, typical_M: F64, nominal_M: F64) -> str | None:
    for what, kinds, units in (
        ("P injection", (1,), ("MW", "kW")), ("Q injection", (2,), ("Mvar", "kvar")),
        ("P flow", (4, 6), ("MW", "kW")), ("Q flow", (5, 7), ("Mvar", "kvar")),
    ):  # fmt: skip
        known = np.isin(kind, kinds) & (nominal_M > _SMALL_PU) & np.isfinite(typical_M)
        ratio = typical_M[known] / nominal_M[known]
        for unit, factor in zip(units, (case.base_mva, 1e3 * case.base_mva), strict=True):
            near = (ratio > factor / _RELATIVE_POWER) & (ratio < factor * _RELATIVE_POWER)
            if factor > _RELATIVE_POWER**2 and _many(near):
                return _said(what, unit, "p.u.", near, f"divide by the base MVA ({factor:g} {unit})")
    return None


def _angle(kind: I64, typical_M: F64, nominal_M: F64) -> str | None:
    angles = (kind == 3) & np.isfinite(typical_M)
    beyond = typical_M[angles] > np.pi
    if _many(beyond):
        return _said("angle", "degrees", "rad", beyond, "multiply by pi / 180")
    known = angles & (nominal_M > _SMALL_RAD)
    degrees = np.degrees(1.0)
    ratio = typical_M[known] / nominal_M[known]
    near = (ratio > degrees / _RELATIVE_POWER) & (ratio < degrees * _RELATIVE_POWER)
    if near.size >= LEAST and 2 * near.sum() > near.size:
        return _said("angle", "degrees", "rad", near, "multiply by pi / 180")
    return None


def _far_too_large(case: GridCase, kind: I64, typical_M: F64) -> str | None:
    """Powers in a unit that is not on the list."""
    power = typical_M[(kind != 0) & (kind != 3) & np.isfinite(typical_M)]
    whole = float(np.abs(case.load_p).sum())
    if power.size and float(np.median(power)) > max(whole, 1.0):
        middle = float(np.median(power))
        return f"median power {middle:.4g} exceeds the whole load of {whole:.4g} p.u.; divide by the base MVA"
    return None


def _many(near: Bool) -> bool:
    count = int(near.sum())
    return count > 0 and count > SHARE * near.size and (count >= LEAST or count == near.size)


def _said(what: str, unit: str, expected: str, near: Bool, way_out: str) -> str:
    return f"{int(near.sum())} of {near.size} {what} meters read {unit} where {expected} is expected; {way_out}"
