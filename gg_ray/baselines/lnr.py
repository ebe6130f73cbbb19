"""The operator's bad-data test: power-grid-model's Newton state estimation with our normalised residuals on top.

Flow:    verifier.features (Prepared) -> [lnr] -> evaluate (row B2)
Source:  power-grid-model 1.12 (generic_branch, batch state estimation), which has no bad-data test of its own;
         r_i / sqrt(Omega_ii), Omega = R - H G^-1 H': Abur and Exposito 2004, ch. 5; docs/adr/0010-baselines.md
Shapes:  R rows (chosen scans of all windows), N buses, E branches, M installed meters, S power sensors

Facts that cost time: a node sensor of power-grid-model counts shunt appliances, so injections are measured at the one
generator (the source at the slack) of each bus; a voltage sensor has one sigma for magnitude and angle, so PMU angles
stay out of the estimate and are only tested against it; all nodes share one rated voltage, which makes every
impedance per unit and `k`, `theta` the off-nominal tap and shift of our pi model; a power sensor with one infinite
sigma loses both P and Q, so an absent reading gets a huge finite one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from power_grid_model import ComponentType, MeasuredTerminalType, PowerGridModel, initialize_array
from power_grid_model.errors import PowerGridError  # type: ignore[attr-defined]  # not in its __all__

from gg_ray.baselines.base import GroupDetector, bus_maximum, fresh_readings
from gg_ray.grid.cases import GridCase
from gg_ray.grid.estimation import Gain, jacobian, wide_prior
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.grid.ybus import branch_admittance
from gg_ray.records import F64, I64, Bool
from gg_ray.verifier.features import Prepared

C128 = NDArray[np.complex128]
_RATED_V = 1e5
"""Rated voltage of every node, volts; any value serves because it is the same everywhere."""
_ABSENT_SIGMA = 1e4
"""Sigma of a reading that did not arrive, p.u. Not infinite: power-grid-model drops P with Q if one of them is."""
_MAX_MODELS = 8
"""Grid models kept for declared taps or line lengths other than the published ones."""


def scada_plan(plan: MeterPlan) -> MeterPlan:
    """The plan without PMU angles: what a conventional estimator reads."""
    angle = (plan.channels >= 3 * plan.n_bus) & (plan.channels < 4 * plan.n_bus)
    keep = np.flatnonzero(~angle)
    channels = plan.channels[keep]
    index_of = np.full(plan.index_of.size, -1, dtype=np.int64)
    index_of[channels] = np.arange(channels.size)
    return replace(
        plan, channels=channels, index_of=index_of, sigma=plan.sigma[keep], period=plan.period[keep],
        phase=plan.phase[keep],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sensors:
    """Power sensors: PGM object and terminal, installed P and Q meter (-1: the sensor is a prior or has none)."""

    target: I64
    terminal: I64
    p: I64
    q: I64


class PgmEstimator:
    """Weighted-least-squares states from power-grid-model for one grid and metering plan.

    Minimises the same objective as grid.estimation.Estimator without PMU angles: meters, wide injection prior, |V|
    set-points; solved by other people's code. The prior makes every metering plan observable.
    Invariant: base sensors hold the prior; each row updates all readings, an absent one with a huge sigma.
    """

    def __init__(self, case: GridCase, plan: MeterPlan) -> None:
        self.case, self.plan = case, plan
        self.failed = 0
        """Rows without a solution so far."""
        self._base_va = case.base_mva * 1e6
        self._prior = wide_prior(case)
        self._home = measure(case, case.v0[None])[0]
        self._models: dict[bytes, PowerGridModel] = {}
        n, e = case.n_bus, case.n_branch
        self._first_generator = n + e
        self._first_power = n + e + 2 * n
        at = plan.index_of
        bus, branch = np.arange(n), np.arange(e)
        own = self._first_generator + bus
        terminal = np.where(bus == case.slack, MeasuredTerminalType.source.value, MeasuredTerminalType.generator.value)
        parts = [
            (own, terminal, np.full(n, -1), np.full(n, -1)),
            (own, terminal, at[n : 2 * n], at[2 * n : 3 * n]),
        ]
        for first, kind in ((0, MeasuredTerminalType.branch_from), (2, MeasuredTerminalType.branch_to)):
            start = 4 * n + first * e
            p, q = at[start : start + e], at[start + e : start + 2 * e]
            parts.append((n + branch, np.full(e, kind.value), p, q))
        target, kinds, p, q = (np.concatenate(column) for column in zip(*parts, strict=True))
        keep = (p >= 0) | (q >= 0) | (np.arange(p.size) < n)  # the first n are the prior
        self._power = _Sensors(target[keep], kinds[keep], p[keep], q[keep])
        self._volt_bus = np.concatenate([np.flatnonzero(np.isfinite(self._prior.v)), np.flatnonzero(at[:n] >= 0)])
        self._volt_prior = int(np.isfinite(self._prior.v).sum())
        demand = np.zeros(plan.layout.size, dtype=bool)
        demand[n : 2 * n] = case.load_p > 0.02
        demand[n + case.gen_bus] = False
        self._scaling = np.flatnonzero(demand[plan.channels])

    def estimate(
        self, z_RM: F64, status_RE: Bool | None = None, tap_E: F64 | None = None, x_scale_E: F64 | None = None
    ) -> C128:
        """States of the rows of one declared parameter set; a row that does not converge is NaN and counted.

        Args:    z_RM readings, NaN where absent; status_RE declared branch status; tap_E, x_scale_E declared parameters
        Returns: [R, N] complex voltage, p.u., slack angle zero
        """
        model = self._model(self.case.tap if tap_E is None else tap_E, x_scale_E)
        update = self._readings(z_RM, self._centre(z_RM))
        if status_RE is not None and not status_RE.all():
            lines = initialize_array("update", "generic_branch", status_RE.shape)
            lines["id"] = self.case.n_bus + np.arange(self.case.n_branch)
            lines["from_status"] = lines["to_status"] = status_RE
            update["generic_branch"] = lines
        v = self._run(model, update, z_RM.shape[0], "newton_raphson")
        lost = np.flatnonzero(~np.isfinite(v).all(axis=1))
        if lost.size:
            again = {name: array[lost] for name, array in update.items()}
            v[lost] = self._run(model, again, lost.size, "iterative_linear")
        self.failed += int((~np.isfinite(v).all(axis=1)).sum())
        return v

    def _run(self, model: PowerGridModel, update: Any, rows: int, method: str) -> C128:
        """[R, N] one batch; NaN rows where the calculation failed or a bus has no supply."""
        v = np.full((rows, self.case.n_bus), np.nan, dtype=np.complex128)
        try:
            result: Any = model.calculate_state_estimation(
                update_data=update, calculation_method=method, error_tolerance=1e-7, max_iterations=30,
                continue_on_batch_error=True, threading=-1, output_component_types=[ComponentType.node],
            )  # fmt: skip
        except PowerGridError:  # the whole batch was refused; every row counts as failed
            return v
        out = result[ComponentType.node]
        good = (out["energized"] == 1).all(axis=1)
        if model.batch_error is not None:
            good[model.batch_error.failed_scenarios] = False
        raw = out["u_pu"] * np.exp(1j * out["u_angle"])
        v[good] = raw[good] * np.exp(-1j * out["u_angle"][good][:, [self.case.slack]])
        return v

    def _centre(self, z_RM: F64) -> F64:
        """[R] demand level: median ratio of metered to nominal demand, 1 where none is read (as grid.estimation)."""
        if not self._scaling.size:
            return np.ones(z_RM.shape[0])
        ratio = z_RM[:, self._scaling] / self._home[self.plan.channels[self._scaling]]
        empty = ~np.isfinite(ratio).any(axis=1)
        ratio[empty] = 1.0
        return np.asarray(np.clip(np.nanmedian(ratio, axis=1), 0.3, 2.0))

    def _readings(self, z_RM: F64, level_R: F64) -> dict[str, Any]:
        """PGM update arrays [R, sensors] in SI units."""
        n, s_va, rows = self.case.n_bus, self._base_va, z_RM.shape[0]
        power = initialize_array("update", "sym_power_sensor", (rows, self._power.p.size))
        power["id"] = self._first_power + np.arange(self._power.p.size)
        for column, meters, home, prior in (
            ("p", self._power.p, self._home[n : 2 * n], self._prior.p),
            ("q", self._power.q, self._home[2 * n : 3 * n], self._prior.q),
        ):
            value, sigma = self._pick(z_RM, meters)
            value[:, :n], sigma[:, :n] = level_R[:, None] * home, prior
            power[f"{column}_measured"], power[f"{column}_sigma"] = value * s_va, sigma * s_va
        volts = initialize_array("update", "sym_voltage_sensor", (rows, self._volt_bus.size))
        volts["id"] = self._first_power + self._power.p.size + np.arange(self._volt_bus.size)
        value, sigma = self._pick(z_RM, self.plan.index_of[self._volt_bus])
        held = self._volt_bus[: self._volt_prior]
        value[:, : held.size], sigma[:, : held.size] = self._home[held], self._prior.v[held]
        volts["u_measured"], volts["u_sigma"] = value * _RATED_V, sigma * _RATED_V
        return {"sym_power_sensor": power, "sym_voltage_sensor": volts}

    def _pick(self, z_RM: F64, meters: I64) -> tuple[F64, F64]:
        value = z_RM[:, meters]
        got = np.isfinite(value) & (meters >= 0)
        return np.where(got, value, 1.0), np.where(got, self.plan.sigma[meters], _ABSENT_SIGMA)

    def _model(self, tap_E: F64, x_scale_E: F64 | None) -> PowerGridModel:
        scale = np.ones(self.case.n_branch) if x_scale_E is None else x_scale_E
        key = tap_E.tobytes() + scale.tobytes()
        if key not in self._models:
            if len(self._models) >= _MAX_MODELS:
                self._models.pop(next(iter(self._models)))
            self._models[key] = PowerGridModel(self._input(tap_E, scale))
        return self._models[key]

    def _input(self, tap_E: F64, x_scale_E: F64) -> dict[str, Any]:
        case, n, e = self.case, self.case.n_bus, self.case.n_branch
        z_ohm = _RATED_V**2 / self._base_va
        node = initialize_array("input", "node", n)
        node["id"], node["u_rated"] = np.arange(n), _RATED_V
        branch = initialize_array("input", "generic_branch", e)
        branch["id"], branch["from_node"], branch["to_node"] = n + np.arange(e), case.f_bus, case.t_bus
        branch["from_status"] = branch["to_status"] = 1
        branch["r1"], branch["x1"] = case.r * x_scale_E * z_ohm, case.x * x_scale_E * z_ohm
        branch["g1"], branch["b1"] = case.g * x_scale_E / z_ohm, case.b * x_scale_E / z_ohm
        branch["k"], branch["theta"] = tap_E, case.shift
        source = initialize_array("input", "source", 1)
        source["id"], source["node"] = self._first_generator + case.slack, case.slack
        source["status"], source["u_ref"] = 1, 1.0
        others = np.delete(np.arange(n), case.slack)
        generator = initialize_array("input", "sym_gen", n - 1)
        generator["id"], generator["node"], generator["status"] = self._first_generator + others, others, 1
        generator["type"] = 0
        shunt = initialize_array("input", "shunt", n)
        shunt["id"], shunt["node"], shunt["status"] = n + e + n + np.arange(n), np.arange(n), 1
        shunt["g1"], shunt["b1"] = case.gs / z_ohm, case.bs / z_ohm
        power = initialize_array("input", "sym_power_sensor", self._power.p.size)
        power["id"] = self._first_power + np.arange(power.size)
        power["measured_object"], power["measured_terminal_type"] = self._power.target, self._power.terminal
        volts = initialize_array("input", "sym_voltage_sensor", self._volt_bus.size)
        volts["id"] = self._first_power + power.size + np.arange(volts.size)
        volts["measured_object"] = self._volt_bus
        first = self._readings(np.full((1, self.plan.size), np.nan), np.ones(1))
        for array, name in ((power, "sym_power_sensor"), (volts, "sym_voltage_sensor")):
            for column in first[name].dtype.names or ():
                if column != "id":
                    array[column] = first[name][column][0]
        return {
            "node": node, "generic_branch": branch, "source": source, "sym_gen": generator, "shunt": shunt,
            "sym_power_sensor": power, "sym_voltage_sensor": volts,
        }  # fmt: skip


@dataclass(slots=True)
class _Bench:
    """Estimator of one group and the standard deviation of each meter's residual, [M]."""

    estimator: PgmEstimator
    spread_M: F64


class Lnr(GroupDetector[_Bench]):
    """B2: largest normalised residual of power-grid-model's estimate over meters and a few scans.

    Invariant: a window's score is finite whatever power-grid-model does: scans it cannot solve take the residuals of
    our own estimator, and `failed` counts them.
    """

    name = "lnr"

    def __init__(self, scans_used: int = 4) -> None:
        """Args: scans_used evenly spaced scans per window, the last always among them; estimation is the cost."""
        super().__init__()
        self.scans_used = scans_used
        self.failed = 0
        """Scans power-grid-model could not solve so far."""

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> _Bench:
        case, plan = members[0].case, members[0].plan
        return _Bench(PgmEstimator(case, plan), np.sqrt(residual_variance(case, plan)))

    def _score(self, model: _Bench, prepared: Prepared) -> F64:
        return np.asarray(self._residuals(model, prepared).max(axis=1))

    def _nodes(self, model: _Bench, prepared: Prepared) -> F64:
        return bus_maximum(prepared.case, prepared.plan, self._residuals(model, prepared))

    def _residuals(self, model: _Bench, prepared: Prepared) -> F64:
        """[B, M] largest |normalised residual| over the chosen scans."""
        case, plan = prepared.case, prepared.plan
        count, scans, m = prepared.z_BTM.shape
        chosen = np.unique(np.linspace(scans - 1, 0, min(self.scans_used, scans) + 1).round().astype(np.int64)[:-1])
        z = fresh_readings(prepared)[:, chosen].reshape(-1, m)
        own = prepared.r_BTM[:, chosen].reshape(-1, m)
        status = np.stack([w.status_TE for w in prepared.windows])[:, chosen].astype(bool).reshape(-1, case.n_branch)
        declared: dict[bytes, list[int]] = {}
        for index, window in enumerate(prepared.windows):
            declared.setdefault(window.tap_E.tobytes() + window.x_scale_E.tobytes(), []).append(index)
        out = np.empty_like(z)
        for members in declared.values():
            first = prepared.windows[members[0]]
            rows = (np.array(members)[:, None] * chosen.size + np.arange(chosen.size)).ravel()
            v = model.estimator.estimate(z[rows], status[rows], first.tap_E, first.x_scale_E)
            solved = np.asarray(np.isfinite(v).all(axis=1))
            y = branch_admittance(case, first.tap_E, first.x_scale_E)
            h = measure(case, np.where(solved[:, None], v, 1.0), y, status[rows], plan.channels)
            gap = np.nan_to_num(z[rows] - h, nan=0.0) / model.spread_M
            out[rows] = np.where(solved[:, None], gap, own[rows])
            self.failed += int((~solved).sum())
        return np.asarray(np.abs(out).reshape(count, chosen.size, m).max(axis=1))


def residual_variance(case: GridCase, plan: MeterPlan) -> F64:
    """[M] variance of z - h(x_hat) when PMU angles take no part in x_hat: R - H G^-1 H', for angles R + H G^-1 H'."""
    used = scada_plan(plan)
    gain = Gain(case, used, wide_prior(case))
    out = np.empty(plan.size)
    out[plan.index_of[used.channels]] = gain.omega
    angles = np.flatnonzero(used.index_of[plan.channels] < 0)
    if angles.size:
        rows = jacobian(case, case.v0)[plan.channels[angles]].toarray()
        out[angles] = plan.sigma[angles] ** 2 + np.einsum("mx,xm->m", rows, gain.solve(rows.T))
    return out
