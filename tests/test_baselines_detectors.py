"""Every classical detector on executed windows: large errors are found, exact stealth attacks are not by residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from gg_ray.baselines.base import Detector, DetectorError, bus_maximum, group_key, meter_bus
from gg_ray.baselines.catalogue import detectors
from gg_ray.baselines.lnr import Lnr
from gg_ray.baselines.physics import ChiSquare, KclResidual, LnrOwn, LnrScan, RandomScore, balances
from gg_ray.baselines.statistical import Innovation, IsolationForest, MaxOf, Pca
from gg_ray.config import ScenarioConfig
from gg_ray.evaluate.metrics import auroc
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import measure
from gg_ray.records import Program, Window
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.verifier.features import Featurizer, Prepared

FIT, CHECK = 160, 80


@dataclass(frozen=True)
class Suite:
    """Benign windows of one grid: those to fit on, and attempts whose windows are scored."""

    executor: Executor
    featurizer: Featurizer
    fit: Prepared
    check: Prepared
    attempts: list[Attempt]

    def prepare(self, windows: list[Window]) -> Prepared:
        return self.featurizer.prepare(windows, self.fit.plan)

    def biased(self, meters: Callable[[np.random.Generator], np.ndarray]) -> Prepared:
        """The check windows with +-30 sigma on some meters from scan 6 on."""
        rng, plan, out = np.random.default_rng(5), self.fit.plan, []
        for window in self.check.windows:
            z, chosen = window.z_TM.copy(), meters(rng)
            z[6:, chosen] += 30 * plan.sigma[chosen] * rng.choice([-1.0, 1.0])
            out.append(replace(window, z_TM=z))
        return self.prepare(out)


def make_suite(
    case: str, source: ClimatologySource, plan_id: int = 0, kappa: tuple[float, float] = (0.35, 0.7)
) -> Suite:
    executor = Executor(load_case(case), ScenarioConfig(kappa=kappa), source)
    programs = [
        Program(case=case, context_id=i, plan_id=plan_id, events=(), scans=16, seed=i) for i in range(FIT + CHECK)
    ]  # fmt: skip
    attempts = executor.run(programs)
    assert all(attempt.converged for attempt in attempts)
    windows = [executor.realise(attempt, 0)[0] for attempt in attempts]
    featurizer = Featurizer()
    plan = attempts[0].plan
    fit, check = featurizer.prepare(windows[:FIT], plan), featurizer.prepare(windows[FIT:], plan)
    return Suite(executor, featurizer, fit, check, attempts[FIT:])


@pytest.fixture(scope="module")
def source() -> ClimatologySource:
    return ClimatologySource()


@pytest.fixture(scope="module", params=["case14", "case30"])
def suite(request: pytest.FixtureRequest, source: ClimatologySource) -> Suite:
    return make_suite(request.param, source)


@pytest.fixture(scope="module")
def small(source: ClimatologySource) -> Suite:
    return make_suite("case14", source)


@pytest.fixture(scope="module")
def dense(source: ClimatologySource) -> Suite:
    """Nearly every meter installed: most balances close."""
    return make_suite("case14", source, kappa=(0.95, 1.0))


def fitted(detector: Detector, suite: Suite) -> Detector:
    detector.fit([suite.fit], np.random.default_rng(1))
    return detector


ONE_METER = [ChiSquare, Lnr, LnrOwn, LnrScan, Innovation, Pca, lambda: MaxOf("both", [ChiSquare(), Innovation()])]


@pytest.mark.parametrize("make", ONE_METER)
def test_a_gross_error_of_one_meter_is_found(suite: Suite, make: Callable[[], Detector]) -> None:
    detector = fitted(make(), suite)
    bad = suite.biased(lambda rng: rng.integers(suite.fit.plan.size, size=1))
    assert auroc(detector.score(suite.check), detector.score(bad)) > 0.9


def test_a_slow_bias_is_found_by_sums_and_not_by_single_scans(suite: Suite) -> None:
    """1.2 sigma on one meter in every scan: five sigmas of its mean over 16."""
    rng = np.random.default_rng(3)
    shifted = suite.check.r_BTM.copy()
    shifted[np.arange(len(shifted)), :, rng.integers(suite.fit.plan.size, size=len(shifted))] += 1.2
    slow = replace(suite.check, r_BTM=shifted)
    scan, single = (fitted(make(), suite) for make in (LnrScan, LnrOwn))
    assert auroc(scan.score(suite.check), scan.score(slow)) > 0.8
    assert auroc(single.score(suite.check), single.score(slow)) < 0.7


def test_isolation_forest_needs_many_meters_to_be_wrong(suite: Suite) -> None:
    """One feature among hundreds is rarely split on: one meter stays hidden, a third of them does not."""
    detector = fitted(IsolationForest(), suite)
    size = suite.fit.plan.size
    many = suite.biased(lambda rng: rng.choice(size, size // 3, replace=False))
    one = suite.biased(lambda rng: rng.integers(size, size=1))
    benign = detector.score(suite.check)
    assert auroc(benign, detector.score(many)) > 0.9
    assert auroc(benign, detector.score(one)) < 0.8


def test_kirchhoff_finds_an_error_inside_a_closed_balance(dense: Suite) -> None:
    detector = fitted(KclResidual(), dense)
    inside = np.unique(balances(dense.fit.case, dense.fit.plan).uses_KM.indices)
    bad = dense.biased(lambda rng: rng.choice(inside, 1))
    assert auroc(detector.score(dense.check), detector.score(bad)) > 0.9


def test_kirchhoff_balances_of_a_true_state_close_to_rounding(dense: Suite) -> None:
    """Shunts (case14 has one), transformers and zero-injection buses included."""
    case, plan = dense.fit.case, dense.fit.plan
    h = measure(case, dense.attempts[0].main.state_TN)[:, plan.channels]  # type: ignore[union-attr]
    model = balances(case, plan)
    volts = h[:, model.volt_K]
    gap = (model.a_KM @ h.T).T - model.shunt_K * volts**2
    metered = model.volt_K >= 0
    assert metered.sum() >= 10
    assert np.abs(gap[:, metered]).max() < 1e-9
    assert np.any(case.bs[model.bus_K[metered]] != 0)


def test_kirchhoff_without_a_closed_balance_is_silent(small: Suite) -> None:
    plan = small.fit.plan
    bus_meters = np.flatnonzero(plan.channels < 4 * plan.n_bus)
    index_of = np.full_like(plan.index_of, -1)
    index_of[plan.channels[bus_meters]] = np.arange(bus_meters.size)
    bare = replace(
        plan, channels=plan.channels[bus_meters], index_of=index_of, sigma=plan.sigma[bus_meters],
        period=plan.period[bus_meters], phase=plan.phase[bus_meters],
    )  # fmt: skip
    windows = [replace(w, z_TM=w.z_TM[:, bus_meters], age_TM=w.age_TM[:, bus_meters]) for w in small.check.windows]
    detector = KclResidual()
    prepared = Featurizer().prepare(windows, bare)
    detector.fit([prepared], np.random.default_rng(0))
    assert not detector.score(prepared).any()


def test_chance_is_chance_and_does_not_depend_on_the_batch(suite: Suite) -> None:
    detector = RandomScore(3)
    bad = suite.biased(lambda rng: np.arange(suite.fit.plan.size))
    assert 0.35 < auroc(detector.score(suite.check), detector.score(bad)) < 0.65
    part = suite.prepare(list(suite.check.windows[10:20]))
    assert (detector.score(part) == detector.score(suite.check)[10:20]).all()
    assert (RandomScore(4).score(part) != detector.score(part)).all()


def test_residual_tests_are_blind_to_an_exact_stealth_attack(suite: Suite) -> None:
    """a = h(x') - h(x) on every meter, demand of an area seemingly 20 % higher: nothing left for a residual to see."""
    executor, case = suite.executor, suite.fit.case
    loads = np.flatnonzero(case.load_p > 0.01)
    areas = [area for bus in loads if (area := executor.attacker.area(int(bus), 0)) is not None]
    assert areas
    honest, attacked = [], []
    for index, attempt in enumerate(suite.attempts):
        side, area = attempt.main, areas[index % len(areas)]
        assert side is not None
        demand = np.tile(0.2 * case.load_p[area.interior], (16, 1)).astype(np.complex128)
        fake = executor.attacker.fake_state(side.state_TN, area, -demand)
        assert fake is not None
        shift = (measure(case, fake) - measure(case, side.state_TN))[:, suite.fit.plan.channels]
        forged = replace(attempt, main=replace(side, mean_TM=side.mean_TM + shift))
        honest.append(executor.realise(attempt, 1)[0])
        attacked.append(executor.realise(forged, 2)[0])
    benign, bad = suite.prepare(honest), suite.prepare(attacked)
    assert np.nanmax(np.abs(bad.z_BTM - benign.z_BTM) / suite.fit.plan.sigma) > 8
    for detector in (ChiSquare(), LnrOwn(), LnrScan(), Lnr()):
        fitted(detector, suite)
        assert 0.35 < auroc(detector.score(benign), detector.score(bad)) < 0.65, detector.name


def test_chi_square_is_standard_normal_on_clean_readings(dense: Suite) -> None:
    """Every reading fresh: noise is all there is. Twice the noise must be far outside."""
    plan, rng = dense.fit.plan, np.random.default_rng(7)
    detector = fitted(ChiSquare(), dense)

    def noisy(factor: float) -> np.ndarray:
        windows = []
        for window, attempt in zip(dense.check.windows, dense.attempts, strict=True):
            assert attempt.main is not None
            noise = rng.standard_normal(window.z_TM.shape) * plan.sigma * factor
            new = np.zeros_like(window.age_TM)
            windows.append(replace(window, z_TM=attempt.main.mean_TM + noise, age_TM=new))
        return detector.standardised(dense.prepare(windows))  # type: ignore[attr-defined]

    clean = noisy(1.0)
    assert -1.5 < clean.mean() < 0.5  # below zero: the prior is wider than our worlds
    assert 0.75 < clean.std() < 1.25
    assert noisy(2.0).mean() > 5


@pytest.mark.parametrize("detector", detectors(("quick",), 0), ids=lambda d: d.name)
def test_contract_of_every_detector(small: Suite, detector: Detector) -> None:
    """Finite scores of the right shape, refusal before fitting, same generator same numbers, sane nodes."""
    assert isinstance(detector, Detector)
    if not isinstance(detector, RandomScore):
        with pytest.raises(DetectorError, match=r"case14 plan 0.*call fit"):
            detector.score(small.check)
        with pytest.raises(DetectorError, match=detector.name):
            detector.node_scores(small.check)
        with pytest.raises(DetectorError, match="no benign windows"):
            detector.fit([], np.random.default_rng(0))
    first = fitted(detector, small).score(small.check)
    assert first.shape == (CHECK,)
    assert np.isfinite(first).all()
    twin = next(d for d in detectors(("quick",), 0) if d.name == detector.name)
    assert (fitted(twin, small).score(small.check) == first).all()
    nodes = detector.node_scores(small.check)
    if nodes is not None:
        assert nodes.shape == (CHECK, small.fit.case.n_bus)
        assert np.isfinite(nodes).all()
        assert nodes.min() >= 0


def test_a_silent_window_is_scored(small: Suite) -> None:
    """No reading at all must give finite scores, not NaN."""
    windows = [replace(w, z_TM=np.full_like(w.z_TM, np.nan)) for w in small.check.windows[:4]]
    silent = small.prepare(windows)
    for detector in detectors(("quick",), 0):
        assert np.isfinite(fitted(detector, small).score(silent)).all(), detector.name


def test_another_plan_is_another_group(small: Suite, source: ClimatologySource) -> None:
    other = make_suite("case14", source, plan_id=1)
    assert group_key(other.fit) != group_key(small.fit)
    detector = fitted(Pca(), small)
    with pytest.raises(DetectorError, match="plan 1"):
        detector.score(other.check)
    before = detector.score(small.check)
    fitted(detector, other)
    assert (detector.score(small.check) == before).all()


def test_too_few_windows_are_refused(small: Suite) -> None:
    few = small.prepare(list(small.check.windows[:5]))
    for detector in (Pca(), IsolationForest(), Innovation()):
        with pytest.raises(DetectorError, match="5 benign windows"):
            detector.fit([few], np.random.default_rng(0))


@pytest.mark.parametrize("make", [ChiSquare, LnrOwn, LnrScan, Lnr, Innovation, Pca])
def test_node_scores_point_at_the_bad_meters_bus(small: Suite, make: Callable[[], Detector]) -> None:
    plan, case = small.fit.plan, small.fit.case
    meter = int(plan.at(np.arange(case.n_bus, 2 * case.n_bus))[0])
    bad = small.biased(lambda _: np.array([meter]))
    nodes = fitted(make(), small).node_scores(bad)
    assert nodes is not None
    top3 = np.argsort(-nodes, axis=1)[:, :3]
    assert (top3 == meter_bus(case, plan)[meter]).any(axis=1).mean() > 0.8


def test_every_meter_belongs_to_the_bus_it_stands_at(dense: Suite) -> None:
    case, plan = dense.fit.case, dense.fit.plan
    one_hot = np.eye(plan.size)
    owner = bus_maximum(case, plan, one_hot).argmax(axis=1)
    assert (owner == meter_bus(case, plan)).all()
    start = 4 * case.n_bus
    for channel, ends in enumerate((case.f_bus, case.f_bus, case.t_bus, case.t_bus)):
        channels = start + channel * case.n_branch + np.arange(case.n_branch)
        there = plan.index_of[channels] >= 0
        assert (owner[plan.index_of[channels[there]]] == ends[there]).all()
