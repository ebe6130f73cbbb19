"""The national balance graph: its physics is that of any other grid, its laws those of the published streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.grid import balance as b
from gg_ray.grid.balance_estimation import BalanceDetectability, estimate
from gg_ray.grid.cases import CaseError, load_case, load_published
from gg_ray.grid.meters import measure
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import Asked, Judge


def truth(rng: np.random.Generator, scans: int = 6) -> np.ndarray:
    """Streams that might be true: positive plant, links both ways, demand that k and q fit."""
    x = np.full((scans, len(b.CHANNELS)), np.nan)
    x[:, : b.N_SUPPLY] = rng.uniform(0, 1, (scans, b.N_SUPPLY)) * b.RATING_MW * 0.5
    x[:, b.LINKS] = rng.uniform(-1, 1, (scans, b.LINKS.size)) * b.RATING_MW[b.LINKS]
    x[:, b.PS] = rng.uniform(-2_500, 2_500, scans)
    exports = np.maximum(-x[:, b.LINKS], 0).sum(axis=1) + np.maximum(-x[:, b.PS], 0)
    supply = x[:, : b.N_SUPPLY].sum(axis=1)
    x[:, b.INDO] = supply - 600.0 - rng.normal(0, 50, scans)
    x[:, b.ITSDO] = x[:, b.INDO] + 600.0 + exports
    x[:, b.FREQ] = rng.uniform(49.0, 50.5, scans)
    return x


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_state_obeys_kirchhoff_and_says_what_the_streams_say(seed: int) -> None:
    x = truth(np.random.default_rng(seed))
    case = b.balance_case()
    injection = b.injections_of(x)
    v = b.state_of(injection, x[:, b.FREQ] / b.F0_HZ)
    n = case.n_bus
    h = measure(case, v)
    np.testing.assert_allclose(h[:, n : 2 * n], injection, atol=1e-9)
    assert np.abs(h[:, n + b.HUB]).max() < 1e-9  # nothing is injected at the hub
    np.testing.assert_allclose(h[:, b.HUB], x[:, b.FREQ] / b.F0_HZ)
    k, q = b.laws(x)
    flow = h[:, 4 * n :]
    np.testing.assert_allclose(flow[:, b.TIE_DEMAND] * b.BASE_MVA, x[:, b.INDO], atol=1e-6)
    np.testing.assert_allclose(flow[:, b.TIE_STATION] * b.BASE_MVA, k, atol=1e-6)
    np.testing.assert_allclose(flow[:, b.TIE_UNREPORTED] * b.BASE_MVA, q, atol=1e-6)


def test_the_power_flow_engine_finds_the_same_state() -> None:
    """lightsim2grid knows nothing of closed forms."""
    x = truth(np.random.default_rng(3), scans=4)
    case = b.balance_case()
    injection = b.injections_of(x)
    load, gen = np.zeros_like(injection), injection.copy()
    load[:, [b.DEMAND, b.STATION]] = -injection[:, [b.DEMAND, b.STATION]]
    gen[:, [b.DEMAND, b.STATION]] = 0.0
    gen_v = np.ones_like(gen)
    gen_v[:, b.HUB] = x[:, b.FREQ] / b.F0_HZ
    solved = PowerFlow(case, tol_pu=1e-10).solve(load, np.zeros_like(load), gen, gen_v)
    assert solved.converged_R.all()
    ours = b.state_of(injection, x[:, b.FREQ] / b.F0_HZ)
    theirs = solved.v_RN * np.exp(-1j * np.angle(solved.v_RN[:, [case.slack]]))
    np.testing.assert_allclose(theirs, ours, atol=1e-7)


def test_the_judge_notices_a_balance_that_does_not_close() -> None:
    x = truth(np.random.default_rng(4), scans=2)
    case = b.balance_case()
    injection = b.injections_of(x)
    asked = Asked(
        load_p_RN=np.zeros_like(injection), load_q_RN=np.zeros_like(injection), gen_p_RG=injection,
        gen_v_RG=np.where(np.arange(case.n_bus) == b.HUB, (x[:, b.FREQ] / b.F0_HZ)[:, None], 1.0),
        gen_out_RG=np.zeros(injection.shape, dtype=bool), status_RE=np.ones((2, case.n_branch), dtype=bool),
    )  # fmt: skip
    v = b.state_of(injection, x[:, b.FREQ] / b.F0_HZ)
    assert Judge(case).worst(v, asked).max() < 1e-9
    wrong = injection.copy()
    wrong[1, b.SUPPLY_BUS[0]] += 0.1  # 100 MW that the state does not carry
    off = Judge(case).worst(v, Asked(
        load_p_RN=asked.load_p_RN, load_q_RN=asked.load_q_RN, gen_p_RG=wrong, gen_v_RG=asked.gen_v_RG,
        gen_out_RG=asked.gen_out_RG, status_RE=asked.status_RE,
    ))  # fmt: skip
    assert off[0] < 1e-9
    assert off[1] == pytest.approx(0.1, rel=1e-6)


def test_readings_and_laws_of_a_published_half_hour() -> None:
    """9 August 2019, period 35 as published, except that all links stand at nothing."""
    x = np.zeros((1, len(b.CHANNELS)))
    x[0, b.CHANNELS.index("WIND")], x[0, b.CHANNELS.index("CCGT")], x[0, b.PS] = 8_091.0, 13_000.0, -490.0
    x[0, b.INDO], x[0, b.ITSDO], x[0, b.FREQ] = 20_000.0, 20_990.0, 49.9
    k, q = b.laws(x)
    assert k[0] == 20_990 - 20_000 - 490
    assert q[0] == 8_091 + 13_000 - 20_990
    z = b.readings_of(x, b.usual(500.0, 80.0, 12.0, 60.0)[None])
    assert z[0, b.M_STATION] == pytest.approx(-0.5)
    assert z[0, b.M_UNREPORTED] == pytest.approx(-0.101)
    assert z[0, b.M_FREQUENCY] == pytest.approx(0.998)
    assert z[0, b.M_UNREPORTED_SIGMA] == pytest.approx(0.06)


def test_a_stream_that_does_not_come_leaves_its_law_unknown() -> None:
    x = truth(np.random.default_rng(5), scans=1)
    x[0, b.ITSDO] = np.nan
    z = b.readings_of(x, b.usual(500.0, 80.0, 12.0, 60.0)[None])
    assert np.isnan(z[0, [b.M_STATION, b.M_UNREPORTED]]).all()
    assert np.isfinite(z[0, b.M_SUPPLY]).all()


@pytest.mark.parametrize(
    ("plan_id", "step"), [(0, 1_800.0), (1, 300.0), (2, 1_800.0), (3, 15.0), (1_000, 1_800.0), (1_003, 15.0)]
)
def test_plans_take_turns_through_the_cadences(plan_id: int, step: float) -> None:
    assert b.cadence_of(plan_id) == step
    plan = b.balance_plan(plan_id)
    assert plan.size == b.N_METERS == 51
    assert (np.diff(plan.channels) > 0).all()
    assert (plan.sigma > 0).all()


def test_a_false_surplus_is_seen_where_it_is_and_a_true_move_is_not() -> None:
    rng = np.random.default_rng(7)
    plan, usual = b.balance_plan(0), np.tile(b.usual(600.0, 0.0, 12.0, 60.0), (8, 1))
    x = np.tile(truth(rng, scans=1), (8, 1))
    x[:, b.FREQ] = b.F0_HZ
    ccgt, wind = b.CHANNELS.index("CCGT"), b.CHANNELS.index("WIND")
    k, q = b.laws(x)
    usual[:, 0], usual[:, 1] = k, q
    false = x.copy()
    false[5, wind] += 2_000.0
    true = x.copy()
    true[5:, wind] += 2_000.0
    true[5:, ccgt] -= 2_000.0
    z = np.stack([b.readings_of(one, usual) for one in (false, true)])
    v, r = estimate(z, plan)
    at = 1 + wind
    assert r[0, 5, at] > 6.0
    assert abs(r[0, 5, b.M_UNREPORTED]) > 20.0
    assert np.abs(r[1]).max() < 1.0
    assert v.shape == (2, 8, 26)


@given(size=st.floats(0.1, 30.0), meter=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_detectability_grows_with_the_square_of_size(size: float, meter: int) -> None:
    plan = b.balance_plan(0)
    detect = BalanceDetectability(plan)
    shift = np.zeros((10, plan.size))
    shift[4:, meter] = 0.2
    there = np.ones_like(shift, dtype=bool)
    sigma = np.full((10, plan.size), 0.05)
    assert detect.of(size * shift, there, sigma) == pytest.approx(size**2 * detect.of(shift, there, sigma), rel=1e-9)
    there[:, meter] = False
    assert detect.of(shift, there, sigma) == 0.0


def test_nobody_has_published_it() -> None:
    assert load_case("gb-balance").n_bus == 26
    with pytest.raises(CaseError, match="no published case"):
        load_published("gb-balance")
