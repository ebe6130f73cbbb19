"""Programs of the national balance graph: truth, publication, corruption, gates; record from packaged statistics."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gg_ray.config import ConfigError, RunConfig, ScenarioConfig
from gg_ray.config_io import load
from gg_ray.grid import balance as b
from gg_ray.grid.cases import load_case
from gg_ray.grid.jacobian import F_JAC
from gg_ray.records import TYPES, Event, Program
from gg_ray.scenario.balance_executor import BalanceExecutor
from gg_ray.scenario.balance_record import from_history, from_statistics, in_service, usual_of
from gg_ray.scenario.balance_worlds import averaged, publish
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.gates import Gates
from gg_ray.scenario.grammar import Grammar, GrammarError, Stratum
from gg_ray.verifier.features import Featurizer

CONFIG = ScenarioConfig(cases=("gb-balance",), scans=24, plans=4, realisations=1, recheck_share=0.0)
WIND = b.CHANNELS.index("WIND")


@pytest.fixture(scope="module")
def executor() -> BalanceExecutor:
    return BalanceExecutor(
        load_case("gb-balance"), CONFIG, ClimatologySource(), all_families=True, record=from_statistics()
    )  # fmt: skip


def program(*events: Event, plan_id: int = 0, context_id: int = 11, seed: int = 5) -> Program:
    return Program(
        case="gb-balance", context_id=context_id, plan_id=plan_id, events=events, scans=24, seed=seed
    )  # fmt: skip


def bus(name: str) -> int:
    return b.BUSES.index(name)


def test_the_record_obeys_its_laws() -> None:
    record = from_statistics()
    k, q = b.laws(record.stream_HC)
    good = record.trusted_H
    assert good.mean() > 0.1
    assert np.abs(k[good] - record.usual_HU[good, 0]).max() < 400
    assert 20 < np.median(np.abs(q[good] - record.usual_HU[good, 1])) < 120


def test_what_is_usual_comes_from_before_and_never_from_after() -> None:
    record = from_statistics()
    cut = 3_000
    stream = record.stream_HC[: cut + 500].copy()
    stream[cut:, b.ITSDO] += 5_000.0
    changed = usual_of(record.t0_ns[: cut + 500], stream)
    np.testing.assert_array_equal(changed[: cut + 1], record.usual_HU[: cut + 1])


def test_a_step_of_station_load_is_caught_up_with_in_a_day_whenever_it_comes() -> None:
    half = 1_800_000_000_000
    start = int(np.datetime64("2024-10-20T00:00", "ns").astype(np.int64))
    t0 = start + half * np.arange(48 * 30)
    stream = np.zeros((t0.size, len(b.CHANNELS)))
    change = int(np.datetime64("2024-11-09T00:00", "ns").astype(np.int64))  # as in 2024, not on the clock day
    stream[:, b.INDO] = 30_000.0
    stream[:, b.ITSDO] = 30_000.0 + np.where(t0 < change, 500.0, 600.0)
    usual = usual_of(t0, stream)
    at = int(np.searchsorted(t0, change))
    assert usual[at - 1, b.U_STATION] == 500.0
    assert usual[at + 50, b.U_STATION] == 600.0


def test_real_clock_changes_leave_station_load_where_it_is_usual() -> None:
    data = Path(os.environ.get("GG_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
    if not (data / "elexon_fuelhh_indo").is_dir():
        pytest.skip("needs the GB data folder (GG_DATA_DIR)")
    record = from_history(data, (2024,))
    k, _ = b.laws(record.stream_HC, in_service(record.stream_HC))
    far = np.abs(k - record.usual_HU[:, b.U_STATION]) > 80.0
    for first, last in (("2024-10-25", "2024-11-15"), ("2024-03-29", "2024-04-08")):
        inside = (record.t0_ns >= _ns(first)) & (record.t0_ns < _ns(last))
        assert far[inside].mean() < 0.2  # a day or two of each step; more than half with the median of a fortnight


def _ns(day: str) -> int:
    return int(np.datetime64(day, "ns").astype(np.int64))


def test_a_link_under_test_is_no_link_a_day_later_and_a_silent_one_leaves_the_law_unknown() -> None:
    stream = np.zeros((120, len(b.CHANNELS)))
    viking, ifa = b.CHANNELS.index("INTVKL"), b.CHANNELS.index("INTFR")
    stream[:, viking] = np.nan
    stream[10:20, viking] = 5.0  # a test, then nothing
    stream[100, ifa] = np.nan
    exists = in_service(stream)
    at = b.LINKS.tolist().index(viking)
    assert np.flatnonzero(exists[:, at]).tolist() == list(range(10, 20 + 48))
    _, q = b.laws(stream, exists)
    assert np.flatnonzero(np.isnan(q)).tolist() == [*range(20, 68), 100]


@pytest.mark.parametrize("plan_id", [0, 1, 3])
def test_two_runs_agree_bit_by_bit(executor: BalanceExecutor, plan_id: int) -> None:
    rng = np.random.default_rng(1)
    programs = []
    for side, family in (("ordinary", ""), ("hard", ""), ("anomalous", "S3"), ("anomalous", "S2")):
        stratum = Stratum(side, family, "gb-balance")  # type: ignore[arg-type]
        programs.append(program(*executor.grammar.uniform(stratum, plan_id, rng), plan_id=plan_id, seed=9))
    one, two = executor.run(programs), executor.run(programs)
    assert [a.digest() for a in one] == [a.digest() for a in two]


def test_every_family_on_offer_passes_the_gates_and_the_judge(executor: BalanceExecutor) -> None:
    gates, rng = Gates(executor, CONFIG), np.random.default_rng(2)
    offered = executor.grammar.offered()
    assert set(offered) == {"S1", "S2", "S3", "S4", "A1", "A2"}
    for family in offered:
        stratum = Stratum("anomalous", family, "gb-balance")
        attempts = executor.run([
            program(*executor.grammar.uniform(stratum, 0, rng), context_id=i, seed=i) for i in range(24)
        ])  # fmt: skip
        passed = [a for a, verdict in zip(attempts, gates.check(attempts, rng), strict=True) if not verdict]
        assert len(passed) >= 6, family
        for attempt in passed:
            assert attempt.d_eff >= CONFIG.d_min
            assert attempt.main is not None
            assert attempt.main.labels.type == TYPES.index(family)
            assert attempt.main.labels.node_N.any()
    assert gates.counters.stopped["G1"] == 0


def test_a_twin_differs_by_its_cause_alone(executor: BalanceExecutor) -> None:
    attempt = executor.run([program(Event("stream_bias", bus("WIND"), 12, magnitude=12, duration=2))])[0]
    main, twin = executor.realise(attempt, 0)
    assert twin is not None
    np.testing.assert_array_equal(main.age_TM, twin.age_TM)
    gap = np.nan_to_num(main.z_TM - twin.z_TM)
    touched = np.flatnonzero((gap != 0).any(axis=0))
    assert set(touched) <= {1 + WIND, b.M_UNREPORTED}  # the law is computed from the false reading
    assert not gap[:12].any()
    assert gap[12:, 1 + WIND].any()


def test_a_sized_corruption_gets_the_detectability_it_asks_for(executor: BalanceExecutor) -> None:
    event = Event("stream_bias", bus("CCGT"), 10, magnitude=11, duration=2)
    attempt = executor.run([program(event)])[0]
    assert attempt.d_eff == pytest.approx(attempt.d_target, rel=0.06)


def test_zeroed_publications_break_the_balance_and_trips_do_not(executor: BalanceExecutor) -> None:
    zeroed, trip = executor.run([
        program(Event("zeroed_publication", bus("CCGT"), 14, duration=1, support=1)),
        program(Event("plant_trip", bus("NUCLEAR"), 14, magnitude=8, duration=1)),
    ])  # fmt: skip
    worst = []
    for attempt in (zeroed, trip):
        assert attempt.main is not None
        mean = attempt.main.mean_TM
        away = (-mean[:, b.M_UNREPORTED] - mean[:, b.M_UNREPORTED_USUAL]) / mean[:, b.M_UNREPORTED_SIGMA]
        worst.append(float(np.nanmax(np.abs(away[14:17]))))
    assert worst[0] > 30
    assert worst[1] < 8
    assert zeroed.main is not None
    assert trip.main is not None
    assert trip.main.labels.disturbance
    assert not trip.main.labels.implausible
    assert zeroed.main.labels.node_N[bus("WIND")]


def test_a_link_reversal_moves_transmission_demand_and_not_station_load(executor: BalanceExecutor) -> None:
    attempt = executor.run([program(Event("link_reversal", bus("INTFR"), 10, magnitude=0, duration=2))])[0]
    quiet = executor.run([program()])[0]
    assert attempt.main is not None
    assert quiet.main is not None
    moved = attempt.main.mean_TM[:, b.M_STATION] - quiet.main.mean_TM[:, b.M_STATION]
    assert np.nanmax(np.abs(moved)) < 0.003  # rounding to whole megawatts
    link = 1 + b.CHANNELS.index("INTFR")
    assert np.nanmax(np.abs(attempt.main.mean_TM[:, link] - quiet.main.mean_TM[:, link])) > 0.3


@pytest.mark.parametrize("plan_id", [0, 1])
@pytest.mark.parametrize(
    "word", ["plant_trip", "link_reversal", "balance_wind_ramp", "demand_step", "clock_change", "frequency_excursion"]
)
def test_benign_events_keep_the_laws_and_the_limits_of_plant(
    executor: BalanceExecutor, word: str, plan_id: int
) -> None:
    """Gate G1 refuses what no country could do; events themselves must hardly ever ask for it."""
    if word == "frequency_excursion" and plan_id == 0:
        return
    rng, events = np.random.default_rng(3), []
    while len(events) < 30:
        event = executor.grammar.event(word, b.balance_plan(plan_id), rng)
        assert event is not None
        events.append(event)
    quiet = executor.run([program(plan_id=plan_id, context_id=i, seed=i) for i in range(30)])
    attempts = executor.run([program(e, plan_id=plan_id, context_id=i, seed=i) for i, e in enumerate(events)])
    good = [a for a, q in zip(attempts, quiet, strict=True) if q.in_bounds]
    assert len(good) > 20
    assert np.mean([a.in_bounds for a in good]) > 0.9
    for attempt in good:
        assert attempt.main is not None
        # frequency drifts out of the operational band by itself, for minutes, on busy days
        labels = attempt.main.labels
        assert labels.disturbance <= (word in ("plant_trip", "frequency_excursion") or labels.severity > 0)


@pytest.mark.parametrize(("plan_id", "fuels", "demand"), [(0, 24, 24), (1, 24, 4), (3, 1, 0)])
def test_slow_streams_are_masked_and_not_invented(
    executor: BalanceExecutor, plan_id: int, fuels: int, demand: int
) -> None:
    """24 scans hold 24 half-hours, or 2 h of FUELINST with 4 ends of half-hours, or 6 min with one FUELINST."""
    frame = executor.frame(3, plan_id, 24, "validation")
    frame.known[:] = True
    said = publish(frame)[frame.before :]
    assert abs(np.isfinite(said[:, WIND]).sum() - fuels) <= 1
    assert np.isfinite(said[:, b.INDO]).sum() == demand


def test_laws_at_five_minutes_use_means_over_the_half_hour(executor: BalanceExecutor) -> None:
    frame = executor.frame(3, 1, 24, "validation")
    frame.known[:] = True
    said = publish(frame)
    mean = averaged(said, frame)
    assert mean is not None
    k, q = b.laws(mean)
    ends = np.isfinite(q)
    assert ends.sum() == 4
    np.testing.assert_allclose(mean[ends, WIND], [said[frame.before + i - 5 : frame.before + i + 1, WIND].mean()
                                                   for i in np.flatnonzero(ends)])  # fmt: skip
    assert np.abs(q[ends] - frame.usual_TU[ends, 1]).max() < 10 * frame.usual_TU[ends, 3].max()
    assert np.abs(k[ends] - frame.usual_TU[ends, 0]).max() < 150


def test_what_arrives_does_not_depend_on_the_label(executor: BalanceExecutor) -> None:
    attempt = executor.run([program(Event("zeroed_publication", bus("WIND"), 14, duration=2, support=2))])[0]
    for seed in range(5):
        main, twin = executor.realise(attempt, seed)
        assert twin is not None
        np.testing.assert_array_equal(np.isnan(main.z_TM), np.isnan(twin.z_TM))


def test_derived_readings_go_with_the_streams_they_need(executor: BalanceExecutor) -> None:
    attempt = executor.run([program()])[0]
    gone = 0
    for seed in range(40):
        window, _ = executor.realise(attempt, seed)
        missing = np.isnan(window.z_TM[:, b.M_SUPPLY]).any(axis=1)
        assert np.isnan(window.z_TM[missing][:, b.M_UNREPORTED]).all()
        gone += int(missing.any())
    assert gone > 5


def test_features_are_finite_for_absurd_readings(executor: BalanceExecutor) -> None:
    attempt = executor.run([program()])[0]
    window, _ = executor.realise(attempt, 0)
    z = window.z_TM.copy()
    z[5, 1 + WIND] = 1e6
    featurizer = Featurizer(jacobian=True)
    prepared = featurizer.prepare([replace(window, z_TM=z)], b.balance_plan(0))
    features = featurizer.features(prepared)
    assert np.isfinite(prepared.r_BTM).all()
    assert np.isfinite(features.xhat_BN2).all()
    assert features.jac_BNJ.shape == (1, features.xhat_BN2.shape[1], F_JAC)
    assert not features.jac_BNJ.any(), "a copper plate has no Jacobian"


def test_primitives_of_networks_are_not_offered_here_nor_the_other_way_round(executor: BalanceExecutor) -> None:
    with pytest.raises(GrammarError):
        executor.run([program(Event("line_switch", 3, 5))])
    network = Grammar(load_case("case14"), ScenarioConfig())
    assert not {"plant_trip", "stream_outage", "clock_change"} & set(network.benign_followers("hard"))
    assert "zeroed_publication" not in network.primitives("anomalous")


def test_a_solver_on_this_grid_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"actors\.solvers 0"):
        RunConfig(scenario=CONFIG)
    assert load("gb-balance").actors.solvers == 0


def test_records_lacks_no_split() -> None:
    record = from_statistics()
    for years in ((2019, 2021), (2023,), (2024,)):
        assert record.runs(years, 24)
