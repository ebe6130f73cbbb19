"""Trivial-cue audit and the meaning of d_eff: nothing but the cause may tell a window from its twin.

Source: selfplay.md, sections 8 and 13; verifier.md, shortcut audits (nuisance-only model in .45-.55). With n windows a
side the AUROC of a useless probe has standard deviation 1 / sqrt(6 n): at n = 600 the band is three of them wide.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gg_ray.config import ScenarioConfig
from gg_ray.grid.cases import load_case
from gg_ray.grid.detectability import Detectability, Innovation
from gg_ray.grid.estimation import plausible_prior
from gg_ray.grid.meters import STALE_RATE, MeterPlan, draw_plan
from gg_ray.records import Program, Window
from gg_ray.scenario.anomalies_data import repeat_d2
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.scenario.gates import Gates
from gg_ray.scenario.grammar import PRIMITIVES, Stratum
from gg_ray.scenario.worlds import LOAD_NOISE, LOAD_RHO
from gg_ray.verifier.features import Featurizer

CONFIG = ScenarioConfig(recheck_share=0.0, plans=12)
CASE = load_case("case30")
SCANS = 16
PAIRS = 600
SOME = 150
"""Pairs whose evidence is estimated: that costs fifty times what a nuisance does."""
BAND = (0.45, 0.55)
HELD = ("freeze", "hv_fault_residue")
"""Primitives whose very cause are repeated readings."""
SOURCE = ClimatologySource()


# --- trivial cues ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _passed(side: str, families: tuple[str, ...], count: int) -> list[Attempt]:
    """Attempts of uniform programs that pass the gates, every primitive among them."""
    executor = Executor(CASE, CONFIG, SOURCE, all_families=True)
    gates, rng = Gates(executor, CONFIG), np.random.default_rng(7)
    kept: list[Attempt] = []
    while len(kept) < count:
        programs = []
        for index in range(64):
            plan_id = int(rng.integers(CONFIG.plans))
            stratum = Stratum(side, families[index % len(families)], CASE.name)  # type: ignore[arg-type]
            events = executor.grammar.uniform(stratum, plan_id, rng)
            programs.append(
                Program(
                    case=CASE.name, context_id=int(rng.integers(1 << 30)), plan_id=plan_id, events=events, scans=SCANS,
                    seed=int(rng.integers(1 << 30)),
                )
            )  # fmt: skip
        attempts = executor.run(programs)
        for attempt, verdict in zip(attempts, gates.check(attempts, rng), strict=True):
            if not verdict:
                kept.append(attempt)
    return kept[:count]


@functools.lru_cache(maxsize=1)
def _pairs() -> list[tuple[Attempt, Window, Window]]:
    executor = Executor(CASE, CONFIG, SOURCE, all_families=True)
    out = []
    for attempt in _passed("anomalous", executor.grammar.families, PAIRS):
        window, twin = executor.realise(attempt, 0)
        assert twin is not None
        out.append((attempt, window, twin))
    return out


def _nuisance(attempt: Attempt, window: Window) -> list[float]:
    """What must not carry the label: presence, ages, repeats, plan, context and benign companions."""
    z, age = window.z_TM, window.age_TM.astype(float)
    absent = np.isnan(z)
    repeats = np.diff(z, axis=0) == 0.0
    companions = sum(PRIMITIVES[e.primitive].side == "ordinary" for e in attempt.program.events)
    context = attempt.context
    return [
        absent.sum(), absent[-1].sum(), absent.any(axis=0).sum(), age.mean(), (age == 255).sum(), (age == 1).sum(),
        repeats.sum(), repeats.all(axis=0).sum(), attempt.plan.kappa, window.plan_id, companions, context.load_T.mean(),
        context.wind_T.mean(), float(np.ptp(context.load_T)), context.context_id % 97, attempt.program.seed % 97,
    ]  # fmt: skip


def _probes() -> list[object]:
    """A linear probe and one that finds thresholds and interactions."""
    return [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        HistGradientBoostingClassifier(max_iter=40, max_depth=3, min_samples_leaf=20, random_state=0),
    ]


def _auroc(x: np.ndarray, y: np.ndarray, groups: np.ndarray, probe: object | None = None) -> float:
    """Out-of-sample AUROC of a probe; a pair never has one half in training and one in test."""
    probe = _probes()[0] if probe is None else probe
    p = cross_val_predict(probe, x, y, groups=groups, cv=GroupKFold(5), method="predict_proba")[:, 1]
    return float(roc_auc_score(y, p))


REPEATS = [6, 7]
"""Columns of _nuisance that count repeated readings."""


@pytest.mark.parametrize("probe", [0, 1], ids=["logistic", "boosting"])
@pytest.mark.parametrize("held", [False, True], ids=["without held readings", "all primitives, repeats unseen"])
def test_nuisance_does_not_tell_a_window_from_its_twin(probe: int, held: bool) -> None:
    """Held readings are copies: where they take part, the counts of repeats are the evidence and not a nuisance."""
    pairs = [p for p in _pairs() if held or not any(e.primitive in HELD for e in p[0].program.events)]
    assert len(pairs) > 500
    x = np.array([_nuisance(a, w) for a, main, twin in pairs for w in (main, twin)])
    if held:
        x = np.delete(x, REPEATS, axis=1)
    y, groups = np.tile([1, 0], len(pairs)), np.repeat(np.arange(len(pairs)), 2)
    assert BAND[0] <= _auroc(x, y, groups, _probes()[probe]) <= BAND[1]


@pytest.mark.parametrize("probe", [0, 1], ids=["logistic", "boosting"])
def test_nuisance_does_not_tell_anomalous_from_hard_programs(probe: int) -> None:
    executor = Executor(CASE, CONFIG, SOURCE)
    hard = _passed("hard", ("",), PAIRS)
    x = np.array(
        [_nuisance(a, main) for a, main, _ in _pairs()] + [_nuisance(a, executor.realise(a, 0)[0]) for a in hard]
    )
    companions = 10  # drawn by the program, not by the window: a hard event may have hard followers
    x = np.delete(x, [*REPEATS, companions], axis=1)
    value = _auroc(x, np.repeat([1, 0], PAIRS), np.arange(2 * PAIRS), _probes()[probe])
    assert BAND[0] <= value <= BAND[1]


@pytest.mark.parametrize("probe", [0, 1], ids=["logistic", "boosting"])
def test_the_audit_finds_a_planted_cue(probe: int) -> None:
    """One anomalous window in four that lacks three more readings is enough to leave the band."""
    rng = np.random.default_rng(5)
    pairs = _pairs()
    x = np.array([_nuisance(a, w) for a, main, twin in pairs for w in (main, twin)])
    y, groups = np.tile([1, 0], len(pairs)), np.repeat(np.arange(len(pairs)), 2)
    x[:, 1] += 3 * (y == 1) * (rng.random(y.size) < 0.25)
    assert _auroc(x, y, groups, _probes()[probe]) > BAND[1]


def _evidence() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    featurizer, rows = Featurizer(), []
    for attempt, main, twin in _pairs()[:SOME]:
        r = featurizer.prepare([main, twin], attempt.plan).r_BTM
        rows += [[np.log1p(np.abs(part).max()), np.abs(part.sum(axis=0)).max() / 4] for part in r]
    return np.array(rows), np.tile([1, 0], SOME), np.repeat(np.arange(SOME), 2)


def test_shuffled_labels_teach_nothing_and_true_ones_do() -> None:
    x, y, groups = _evidence()
    assert _auroc(x, y, groups) > 0.65
    shuffled = np.random.default_rng(3).permutation(y)
    assert 0.4 <= _auroc(x, shuffled, groups) <= 0.6  # three standard errors at 150 pairs


def test_before_onset_a_data_anomaly_and_its_twin_are_one_window() -> None:
    early = 0
    for attempt, main, twin in _pairs():
        assert attempt.main is not None
        family = PRIMITIVES[attempt.program.events[0].primitive].family
        if family in ("S1", "S2", "S3", "S4", "A2", "A3"):
            onset = attempt.main.labels.onset
            assert np.array_equal(main.z_TM[:onset], twin.z_TM[:onset], equal_nan=True)
            early += onset
    assert early > 50


def test_noise_is_the_same_process_in_window_and_twin() -> None:
    scores: dict[str, list[np.ndarray]] = {"main": [], "twin": []}
    for attempt, main, twin in _pairs()[:SOME]:
        if any(e.primitive in ("noise_inflation", "noise_class_change") for e in attempt.program.events):
            continue
        for name, window, side in (("main", main, attempt.main), ("twin", twin, attempt.twin)):
            assert side is not None
            fresh = (window.age_TM == 0) & np.isfinite(window.z_TM)
            for meters, source in attempt.main.readings.holds:  # type: ignore[union-attr]
                fresh[np.ix_(source != np.arange(SCANS), meters)] = False  # another scan's reading
            score = (window.z_TM - side.mean_TM) / attempt.plan.sigma
            scores[name].append(score[fresh])
    main_n, twin_n = np.concatenate(scores["main"]), np.concatenate(scores["twin"])
    # 10^5 unit normals: 3 standard errors are 0.01 for the mean and 0.007 for the deviation.
    for n in (main_n, twin_n):
        assert n.size > 100_000
        assert abs(n.mean()) < 0.01
        assert n.std() == pytest.approx(1.0, abs=0.01)
    assert main_n.size == twin_n.size
    assert main_n.std() == pytest.approx(twin_n.std(), abs=1e-3)


# --- d_eff -----------------------------------------------------------------------------------------------------------

SMALL = load_case("case14")
PLAN = draw_plan(SMALL, 3, (0.4, 0.6), 0.0)


def _bias(plan: MeterPlan, channel: int, size: float, start: int = 4, stop: int = SCANS) -> Innovation:
    shape = np.zeros((SCANS, 1))
    shape[start:stop] = size
    none = np.zeros(0, dtype=np.int64)
    return Innovation(plan.index_of[[channel]], shape, none, np.zeros((SCANS, 0)))


def _exact(plan: MeterPlan, item: Innovation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense noise model of the stacked window. Returns: anomaly a [T M], factor of its covariance, Sigma^-1 a."""
    gain = Detectability(SMALL, plan, LOAD_NOISE, LOAD_RHO).gains[1]
    h_m, h_u = gain.h_m.toarray(), gain.h_u.toarray()
    prior = plausible_prior(SMALL, LOAD_NOISE)
    weight = np.concatenate([prior.p**-2.0, prior.q**-2.0, np.where(np.isinf(prior.v), 0.0, prior.v**-2.0)])
    precision = h_u.T @ (weight[:, None] * h_u)
    precision[SMALL.slack, SMALL.slack] += 1e8
    spread = h_m @ np.linalg.inv(precision) @ h_m.T
    lag = np.abs(np.subtract.outer(np.arange(SCANS), np.arange(SCANS)))
    sigma = np.kron(np.eye(SCANS), np.diag(plan.sigma**2)) + np.kron(LOAD_RHO**lag, spread)
    a = np.zeros((SCANS, plan.size))
    a[:, item.meters] = item.a_Tc
    flat = a.ravel()
    return flat, np.linalg.cholesky(sigma), np.linalg.solve(sigma, flat)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_d_eff_is_the_power_of_the_best_linear_test(kind: int) -> None:
    """Known-direction test on the Gaussian model: AUROC = Phi(d / sqrt 2)."""
    channel = int(PLAN.channels[np.flatnonzero(PLAN.channels // SMALL.n_bus == kind)[1]])
    detect = Detectability(SMALL, PLAN, LOAD_NOISE, LOAD_RHO)
    unit = float(np.sqrt(detect.squared([_bias(PLAN, channel, 1.0)], SCANS)[0]))
    item = _bias(PLAN, channel, 1.5 / unit)
    d = float(np.sqrt(detect.squared([item], SCANS)[0]))
    assert d == pytest.approx(1.5, rel=1e-6)
    a, factor, weights = _exact(PLAN, item)
    exact = float(np.sqrt(a @ weights))
    # Prior variances of the time modes are rounded up: d_eff may only be too small, and not by much.
    assert 0.9 * exact <= d <= exact * 1.001
    rng = np.random.default_rng(kind)
    draws = 4_000
    benign = weights @ (factor @ rng.standard_normal((a.size, draws)))
    altered = weights @ (factor @ rng.standard_normal((a.size, draws))) + weights @ a
    auroc = roc_auc_score(np.repeat([0, 1], draws), np.concatenate([benign, altered]))
    assert auroc == pytest.approx(norm.cdf(exact / np.sqrt(2)), abs=0.02)  # 3 standard errors at 4,000 draws
    assert norm.cdf(d / np.sqrt(2)) <= auroc + 0.02


@pytest.mark.parametrize(("repeats", "rate"), [(1, 0.3), (2, 0.3), (3, 0.5), (1, 0.05)])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_d_eff_of_copies_is_the_balanced_accuracy_of_the_best_test(repeats: int, rate: float, shift: float) -> None:
    """p* = Phi(d / 2) of the likelihood-ratio test between a copying meter and one that copies by chance.

    A held value also lies off by `shift` standard deviations: together they show no less than the stronger of the two.
    """
    rng = np.random.default_rng(repeats)
    draws = 200_000
    healthy_copies = rng.random((draws, repeats)) < rate
    off = rng.standard_normal((2, draws)) + shift * np.array([[0.0], [1.0]])
    gaussian = shift * off - shift**2 / 2
    # A scan that is no copy rules a copying meter out; each copy adds log(1 / rate).
    ratio = np.stack([
        np.where(healthy_copies.all(axis=1), gaussian[0] - repeats * np.log(rate), -np.inf),
        gaussian[1] - repeats * np.log(rate),
    ])  # fmt: skip
    best = 0.5 * ((ratio[0] < 0).mean() + (ratio[1] >= 0).mean())
    d = np.sqrt(max(repeat_d2(repeats, rate), shift**2))
    if shift == 0.0:
        assert norm.cdf(d / 2) == pytest.approx(best, abs=0.003)  # 3 standard errors
    assert norm.cdf(d / 2) <= best + 0.003


def test_d_eff_of_copies_grows_with_their_number_and_never_overflows() -> None:
    d = np.sqrt([repeat_d2(n) for n in range(0, 60)])
    assert d[0] == 0.0
    assert d[1:3] == pytest.approx([5.15, 7.78], abs=0.01)
    assert (np.diff(d) > 0).all()
    assert d[-1] ** 2 == pytest.approx(8 * 59 * np.log(1 / STALE_RATE), rel=0.03)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.1, 5.0), st.floats(1.0, 4.0))
def test_d_eff_grows_with_size_and_duration(seed: int, size: float, growth: float) -> None:
    rng = np.random.default_rng(seed)
    detect = Detectability(SMALL, PLAN, LOAD_NOISE, LOAD_RHO)
    channel = int(rng.choice(PLAN.channels))
    size *= float(PLAN.sigma[PLAN.index_of[channel]])
    start = int(rng.integers(0, 12))
    pair = [_bias(PLAN, channel, size * factor, start) for factor in (1.0, growth)]
    small, large = detect.squared(pair, SCANS)
    assert large == pytest.approx(small * growth**2, rel=1e-6)
    short = detect.squared([_bias(PLAN, channel, size, start, start + 2)], SCANS)[0]
    assert 0 <= short <= detect.squared([_bias(PLAN, channel, size, start, start + 4)], SCANS)[0] * 1.1


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.2, 0.9))
def test_more_meters_never_lower_d_eff(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    channel = int(rng.choice(PLAN.channels))
    keep = rng.random(PLAN.size) < share
    keep[PLAN.index_of[channel]] = True
    few = _subset(PLAN, np.flatnonzero(keep))
    size = float(PLAN.sigma[PLAN.index_of[channel]])
    d2 = [
        Detectability(SMALL, plan, LOAD_NOISE, LOAD_RHO).squared([_bias(plan, channel, size)], SCANS)[0]
        for plan in (few, PLAN)
    ]
    assert d2[0] <= d2[1] * (1 + 1e-6) + 1e-9


def _subset(plan: MeterPlan, kept: np.ndarray) -> MeterPlan:
    index_of = np.full(plan.layout.size, -1, dtype=np.int64)
    index_of[plan.channels[kept]] = np.arange(kept.size)
    return replace(
        plan, channels=plan.channels[kept], index_of=index_of, sigma=plan.sigma[kept], period=plan.period[kept],
        phase=plan.phase[kept],
    )  # fmt: skip
