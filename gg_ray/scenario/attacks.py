"""False data injection that a residual cannot see, and its imperfect relatives.

Flow:    solved states -> [attacks] -> scenario.anomalies_hidden (telemetered means)
Source:  Liu, Ning and Reiter 2011 (a = Hc); AC form a = h(x') - h(x), docs/physics.md (stealth recipe)
Shapes:  T scans, N buses, K interior buses
Units:   p.u.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase
from gg_ray.grid.ybus import ybus
from gg_ray.records import F64, I64, Bool
from gg_ray.scenario.worlds import Neighbourhood

C128 = NDArray[np.complex128]
MAX_LOAD_SHARE = 0.2
"""Credibility bound: no bus's demand may appear changed by more than this share of its local size."""
_MAX_INTERIOR = 64
"""Dense Newton steps on twice as many states per scan; `gb` has passive stretches of dozens of buses."""


@dataclass(frozen=True, slots=True)
class Area:
    """Interior buses whose state the attacker rewrites, and the boundary that absorbs what no longer adds up."""

    interior: I64
    boundary: I64


class Attacker:
    """Solves for fake but power-flow-consistent states inside an area, boundary voltages held."""

    def __init__(self, case: GridCase) -> None:
        self.case = case
        self.y = ybus(case)
        self._near = Neighbourhood(case)
        self._passive = (case.load_p == 0) & (case.load_q == 0)
        self._passive[case.gen_bus] = False

    def area(self, bus: int, hops: int) -> Area | None:
        """The largest ball around a bus, of at most `hops`, that injections can enclose; None if there is none.

        Transmission grids have wide stretches without any injection, where a smaller ball is all that can be enclosed.
        """
        distance = self._near.hops(bus)
        for radius in range(hops, -1, -1):
            found = self._enclose(distance <= radius)
            if found is not None:
                return found
        return None

    def _enclose(self, inside: Bool) -> Area | None:
        """The ball grown until no boundary bus is a zero-injection bus; None if it swallows the slack or grows too far.

        A boundary bus absorbs the difference, so it must have an injection of its own to hide it in.
        """
        inside = inside.copy()
        while not inside[self.case.slack] and np.count_nonzero(inside) <= _MAX_INTERIOR:
            interior = np.flatnonzero(inside)
            touched = np.unique(self.y[interior].indices)
            boundary = touched[~inside[touched]]
            bad = boundary[self._passive[boundary]]
            if not bad.size:
                return Area(interior, boundary) if boundary.size else None
            inside[bad] = True
        return None

    def fake_state(self, v_TN: C128, area: Area, ds_TK: C128, y: object | None = None, steps: int = 4) -> C128 | None:
        """State x' whose interior injections differ by ds, exact to Newton tolerance; None if it does not converge.

        Args: v_TN true states; ds_TK change of injection at area.interior (p.u.); y another Ybus for a wrong model
        """
        matrix = self.y if y is None else y
        interior = area.interior
        rows = matrix[interior]  # type: ignore[index]
        cols = np.concatenate([interior, area.boundary])
        local = rows[:, cols].toarray()
        k = interior.size
        v = v_TN.copy()
        target = v[:, interior] * np.conj(v[:, cols] @ local.T) + ds_TK
        diag = np.arange(k)
        for _ in range(steps):
            vi = v[:, interior]
            current = v[:, cols] @ local.T
            mismatch = target - vi * np.conj(current)
            if np.abs(mismatch).max() < 1e-9:
                break
            own = local[:, :k]
            d_angle = -1j * vi[:, :, None] * np.conj(own[None] * vi[:, None, :])
            d_angle[:, diag, diag] += 1j * vi * np.conj(current)
            unit = vi / np.abs(vi)
            d_mag = vi[:, :, None] * np.conj(own[None] * unit[:, None, :])
            d_mag[:, diag, diag] += unit * np.conj(current)
            top = np.concatenate([d_angle.real, d_mag.real], axis=2)
            low = np.concatenate([d_angle.imag, d_mag.imag], axis=2)
            jac = np.concatenate([top, low], axis=1)
            rhs = np.concatenate([mismatch.real, mismatch.imag], axis=1)
            try:
                step = np.linalg.solve(jac, rhs[..., None])[..., 0]
            except np.linalg.LinAlgError:
                return None
            v[:, interior] = (np.abs(vi) + step[:, k:]) * np.exp(1j * (np.angle(vi) + step[:, :k]))
        final = v[:, interior] * np.conj(v[:, cols] @ local.T) - target
        return v if np.isfinite(final).all() and np.abs(final).max() < 1e-6 else None

    def credible(self, v_TN: C128, fake_TN: C128, area: Area) -> bool:
        """Whether every apparent change of injection stays within MAX_LOAD_SHARE of the local size."""
        buses = np.concatenate([area.interior, area.boundary])
        rows = self.y[buses]
        change = fake_TN[:, buses] * np.conj((rows @ fake_TN.T).T) - v_TN[:, buses] * np.conj((rows @ v_TN.T).T)
        size = np.abs(self.case.load_p + 1j * self.case.load_q)
        size[self.case.gen_bus] += np.abs(self.case.gen_p)
        return bool(np.all(np.abs(change.real) <= MAX_LOAD_SHARE * size[buses] + 1e-3))


def direction(case: GridCase, area: Area, bus: int) -> F64:
    """[K] unit pattern of apparent injection change: demand moves from the target to the other interior loads."""
    load = np.abs(case.load_p[area.interior])
    pattern = np.zeros(area.interior.size)
    here = int(np.flatnonzero(area.interior == bus)[0])
    pattern[here] = load[here]
    others = load.copy()
    others[here] = 0.0
    if others.sum() > 0:
        pattern -= others / others.sum() * load[here]
    return np.asarray(pattern / max(load[here], 1e-6))
