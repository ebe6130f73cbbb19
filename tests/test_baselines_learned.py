"""Learned rivals on executed case14 windows: planted errors are found and placed, theory's blind spots stay blind."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_baselines_detectors import Suite, make_suite

from gg_ray.baselines.autoencoder import AutoEncoder
from gg_ray.baselines.base import Detector, DetectorError, day_bins, meter_bus
from gg_ray.baselines.catalogue import CHOSEN, GROUPS, MAKERS, SUPERVISED, detectors
from gg_ray.baselines.deep import REGION, DeepDetector, Effort, pieces_of, regions_of_channels, smooth_maximum
from gg_ray.baselines.distances import Mahalanobis, SeasonalZ
from gg_ray.baselines.gdn import Gdn
from gg_ray.baselines.mtad_gat import MtadGat
from gg_ray.baselines.pyod import Cblof, Ocsvm
from gg_ray.baselines.series import channels, segment_means
from gg_ray.config import BASELINE_GROUPS
from gg_ray.evaluate.metrics import auroc
from gg_ray.grid.cases import load_case
from gg_ray.grid.meters import draw_plan
from gg_ray.scenario.context import ClimatologySource
from gg_ray.verifier.features import Prepared

SHORT = Effort(seconds=600.0, epochs=3, patience=3)
"""Ended by epochs and never by the clock: the same numbers on any machine."""
MAKE: Mapping[str, Callable[[], Detector]] = {
    "mahalanobis": lambda: Mahalanobis("both"),
    "seasonal_z": SeasonalZ,
    "cblof": lambda: Cblof("both"),
    "ocsvm": lambda: Ocsvm("both"),
    "autoencoder": lambda: AutoEncoder("both", effort=SHORT, lr=3e-3),
    "gdn": lambda: Gdn("both", effort=SHORT, dim=16),
    "mtad_gat": lambda: MtadGat("both", effort=SHORT, hidden=16, lr=3e-3),
}
PLACES = ("mahalanobis", "autoencoder", "gdn", "mtad_gat")


@pytest.fixture(scope="module")
def small() -> Suite:
    """Fewer windows than the tests of the classical detectors use: networks take longer."""
    suite = make_suite("case14", ClimatologySource())
    fit, check = (suite.prepare(list(part.windows[:count])) for part, count in ((suite.fit, 64), (suite.check, 40)))
    return replace(suite, fit=fit, check=check)


class Fitted(dict[str, Detector]):
    """One of each, fitted when first asked for."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite

    def __missing__(self, name: str) -> Detector:
        if name in ("cblof", "ocsvm"):
            pytest.importorskip("pyod")
        self[name] = MAKE[name]()
        self[name].fit([self.suite.fit], np.random.default_rng(1))
        return self[name]


@pytest.fixture(scope="module")
def fitted(small: Suite) -> Fitted:
    return Fitted(small)


@pytest.mark.parametrize("name", MAKE)
def test_a_gross_error_is_found(small: Suite, fitted: Fitted, name: str) -> None:
    bad = small.biased(lambda rng: rng.integers(small.fit.plan.size, size=1))
    assert auroc(fitted[name].score(small.check), fitted[name].score(bad)) > 0.9


@pytest.mark.parametrize("name", PLACES)
def test_places_point_at_the_planted_bus(small: Suite, fitted: Fitted, name: str) -> None:
    plan, case = small.fit.plan, small.fit.case
    meter = int(plan.at(np.arange(case.n_bus, 2 * case.n_bus))[0])
    nodes = fitted[name].node_scores(small.biased(lambda _: np.array([meter])))
    assert nodes is not None
    assert (nodes >= 0).all()
    top3 = np.argsort(-nodes, axis=1)[:, :3]
    assert (top3 == meter_bus(case, plan)[meter]).any(axis=1).mean() > 0.8


def spliced(small: Suite) -> Prepared:
    """The check windows, each continued from its ninth scan on by another: all readings usual, the step is not."""
    windows = small.check.windows
    out = []
    for window, other in zip(windows, [*windows[7:], *windows[:7]], strict=True):
        z = np.concatenate([window.z_TM[:8], other.z_TM[8:]])
        age = np.concatenate([window.age_TM[:8], other.age_TM[8:]])
        out.append(replace(window, z_TM=z, age_TM=age))
    return small.prepare(out)


@pytest.mark.parametrize("name", ["seasonal_z", "gdn"])
def test_a_break_in_time_alone_is_seen_by_a_forecast_and_not_by_a_profile(small: Suite, name: str) -> None:
    """A mean does not know what came before a scan; what forecasts it from the last ones does, even without physics."""
    detector: Detector = SeasonalZ(prior=1e9)
    if name == "gdn":
        detector = Gdn("readings", effort=replace(SHORT, epochs=10), dim=16, lr=1e-2)
    detector.fit([small.fit], np.random.default_rng(1))
    area = auroc(detector.score(small.check), detector.score(spliced(small)))
    assert area > 0.75 if name == "gdn" else area < 0.6


@pytest.mark.parametrize("name", MAKE)
def test_a_window_is_scored_on_its_own(small: Suite, fitted: Fitted, name: str) -> None:
    whole = fitted[name].score(small.check)
    part = fitted[name].score(small.prepare(list(small.check.windows[10:13])))
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(part, whole[10:13], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_same_generator_same_numbers_and_silence_is_scored(small: Suite, fitted: Fitted, name: str) -> None:
    again = MAKE[name]()
    if isinstance(again, DeepDetector):  # one epoch tells as much as three
        again.effort = replace(SHORT, epochs=1)
        twin = MAKE[name]()
        assert isinstance(twin, DeepDetector)
        twin.effort = again.effort
        twin.fit([small.fit], np.random.default_rng(1))
    else:
        twin = fitted[name]
    with pytest.raises(DetectorError, match=r"case14 plan 0.*call fit"):
        again.score(small.check)
    again.fit([small.fit], np.random.default_rng(1))
    assert (again.score(small.check) == twin.score(small.check)).all()
    silent = small.prepare([replace(w, z_TM=np.full_like(w.z_TM, np.nan)) for w in small.check.windows[:3]])
    assert np.isfinite(again.score(silent)).all()


@pytest.mark.parametrize("name", MAKE)
def test_too_few_windows_are_refused(small: Suite, name: str) -> None:
    few = small.prepare(list(small.check.windows[:5]))
    with pytest.raises(DetectorError, match=f"{name}: 5 benign windows"):
        MAKE[name]().fit([few], np.random.default_rng(0))


def test_mahalanobis_is_the_distance_of_the_dense_shrunk_covariance(small: Suite, fitted: Fitted) -> None:
    """Low rank plus diagonal against scikit-learn's dense Ledoit-Wolf inverse; fewer windows than features."""
    from sklearn.covariance import LedoitWolf

    known = channels([small.fit], "both")
    x, y = (segment_means(known.of(part), 4) for part in (small.fit, small.check))
    assert x.shape[1] > len(x)
    dense = LedoitWolf().fit(x)
    np.testing.assert_allclose(fitted["mahalanobis"].score(small.check), np.sqrt(dense.mahalanobis(y)), rtol=1e-6)
    pull = (y - dense.location_) @ dense.precision_ / np.sqrt(np.diag(dense.precision_))
    expected = known.nodes(small.check, np.abs(pull).reshape(len(y), 4, -1).max(axis=1))
    nodes = fitted["mahalanobis"].node_scores(small.check)
    assert nodes is not None
    np.testing.assert_allclose(nodes, expected, rtol=1e-6)


def test_seasonal_z_knows_the_hour(small: Suite) -> None:
    """Moved to another hour, the same readings are less usual where demand has a daily shape."""
    detector = SeasonalZ(prior=0.5)
    detector.fit([small.fit], np.random.default_rng(0))
    everything = small.prepare([*small.fit.windows, *small.check.windows])
    hours = day_bins(everything, 24)[:, 0]
    night = [w for w, hour in zip(everything.windows, hours, strict=True) if 1 <= hour <= 4]
    assert len(night) >= 5
    moved = [replace(w, t0_ns=w.t0_ns + 14 * 3_600_000_000_000) for w in night]
    assert np.median(detector.score(small.prepare(moved))) > np.median(detector.score(small.prepare(night)))


def test_seasonal_z_with_a_huge_prior_is_a_plain_z(small: Suite) -> None:
    detector = SeasonalZ(prior=1e9)
    detector.fit([small.fit], np.random.default_rng(0))
    known = channels([small.fit], "readings")
    fresh = np.stack([w.age_TM for w in small.check.windows]) == 0
    z = np.where(fresh & np.isfinite(small.check.z_BTM), np.abs(known.of(small.check)), 0.0)
    np.testing.assert_allclose(detector.score(small.check), z.max(axis=(1, 2)), rtol=1e-4)


def test_without_pyod_the_extra_is_named(small: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyod"):
            raise ImportError("No module named 'pyod'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    for detector in (Cblof(), Ocsvm()):
        with pytest.raises(DetectorError, match=rf"{detector.name} needs PyOD.*\[baselines\]"):
            detector.fit([small.fit], np.random.default_rng(0))


def test_an_unknown_view_is_refused(small: Suite) -> None:
    with pytest.raises(DetectorError, match="'raw': choose readings, residuals or both"):
        Mahalanobis("raw").fit([small.fit], np.random.default_rng(0))  # type: ignore[arg-type]


def test_pieces_end_at_every_scan_but_the_first() -> None:
    x = np.arange(12.0).reshape(1, 6, 2)
    pieces = pieces_of(x, 4)
    assert pieces.shape == (1, 5, 4, 2)
    assert pieces[0, 0, :, 0].tolist() == [0, 0, 0, 2]
    assert pieces[0, 4, :, 1].tolist() == [5, 7, 9, 11]


@pytest.mark.parametrize("copies", [1, 2])
def test_regions_are_small_and_whole(copies: int) -> None:
    """At most 128 channels, every channel once, both channels of a meter together, buses of a region side by side."""
    case = load_case("case118")
    plan = draw_plan(case, 0, (0.7, 0.7), 0.01)
    parts = regions_of_channels(case, plan, np.tile(np.arange(plan.size), copies))
    assert len(parts) > 1
    assert max(map(len, parts)) <= REGION
    assert sorted(np.concatenate(parts).tolist()) == list(range(copies * plan.size))
    for part in parts:
        assert (np.bincount(part % plan.size)[np.unique(part % plan.size)] == copies).all()
    region = case.region[case.substation[meter_bus(case, plan)]]
    order = np.concatenate([np.unique(region[np.unique(part % plan.size)]) for part in parts])
    assert (np.diff(order) >= 0).all()


def test_smooth_maximum_prefers_what_lasts() -> None:
    short, lasting = [0.0, 3, 0, 0, 0, 0], [0.0, 0, 2, 2, 2, 0]
    assert smooth_maximum(np.array([short, lasting]), 3).tolist() == [1.0, 2.0]


def test_training_by_epochs_is_not_timed_out_and_a_tiny_budget_is(small: Suite, fitted: Fitted) -> None:
    def parts(detector: Detector) -> list[Any]:
        assert isinstance(detector, DeepDetector)
        return [part for model in detector._models.values() for part in model.parts]

    assert not any(part.timed_out for part in parts(fitted["gdn"]))
    hurried = Gdn(effort=Effort(seconds=1e-3))
    hurried.fit([small.fit], np.random.default_rng(0))
    assert all(part.timed_out and part.epochs == 1 for part in parts(hurried))
    assert np.isfinite(hurried.score(small.check)).all()


def test_catalogue_groups_are_complete_and_new_each_time() -> None:
    assert set(GROUPS) == {*BASELINE_GROUPS, "supervised"}
    names = [d.name for d in detectors(("classical", "statistical", "deep", "supervised"), 3)]
    assert len(names) == len(set(names))
    assert set(names) == {name for group in BASELINE_GROUPS for name in GROUPS[group]}
    assert set(GROUPS["supervised"]) == set(SUPERVISED)
    assert set(CHOSEN) <= set(MAKERS)
    one, two = detectors(("deep",), 0), detectors(("deep",), 0)
    assert not {id(d) for d in one} & {id(d) for d in two}
    with pytest.raises(DetectorError, match="'depe'; choose from quick"):
        detectors(("depe",), 0)


def test_training_leaves_the_global_generator_alone(small: Suite) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    AutoEncoder(effort=replace(SHORT, epochs=1)).fit([small.fit], np.random.default_rng(0))
    assert (torch.random.get_rng_state() == before).all()
