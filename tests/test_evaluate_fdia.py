"""The outside judge: its grid in our terms, the observed past, thresholds, tables. Skips without the extra `judge`."""

import functools
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.cli import main
from gg_ray.config import VerifierConfig
from gg_ray.evaluate import fdia_arms, fdia_graph, fdia_mapping, fdia_report, fdia_timeline
from gg_ray.evaluate.fdia_mapping import JudgeError
from gg_ray.evaluate.scoring import BlockInfo
from gg_ray.learner import new_verifier
from gg_ray.scenario.context import ClimatologySource

try:
    import fdia_graph as package
except ImportError:
    package = None
needs_judge = pytest.mark.skipif(package is None, reason="extra `judge` is not installed")
FRAMES, SEED, WIDTH = 300, 2, 16
"""With this seed every split holds the families that a protocol needs of it."""
LOAD = 1.0 + 0.1 * np.sin(np.arange(FRAMES) / 30)


@pytest.fixture(scope="module")
def timeline(tmp_path_factory):
    return fdia_timeline.make_timeline(14, LOAD, "sine", SEED, tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def scans(timeline):
    return fdia_arms.read_scans(timeline)


@pytest.fixture(scope="module")
def network():
    return new_verifier(VerifierConfig(hidden=16), 0)


# --- without the package ---------------------------------------------------------------------------------------------


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fdia_graph", None)
    with pytest.raises(JudgeError, match=r"extra `judge`.*\.\[judge\]"):
        fdia_mapping.package()


def test_another_release_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "fdia_graph", type(sys)("fdia_graph"))
    monkeypatch.setattr(sys.modules["fdia_graph"], "__version__", "0.21.0", raising=False)
    with pytest.raises(JudgeError, match=r"pinned to fdia-graph 0\.20\.0, installed is 0\.21\.0"):
        fdia_mapping.package()


@pytest.mark.parametrize("system", [None, 0, 39])
def test_unknown_grid_names_the_known(system):
    with pytest.raises(JudgeError, match="14, 57, 118, 300"):
        fdia_mapping.check_system(system)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("demand\n1\n2\n", "columns demand; one must be load_mw"),
        ("load_mw\n1\n", "1 rows, 2 scans asked for"),
        ("load_mw\n1\nx\n", "row 2: load_mw is not a number"),
    ],
)
def test_bad_profile_is_named(tmp_path, text, message):
    path = tmp_path / "profile.csv"
    path.write_text(text)
    with pytest.raises(JudgeError, match=message):
        fdia_timeline.profile_file(path, 2)


def test_profile_is_read_up_to_the_days_asked_for(tmp_path):
    path = tmp_path / "profile.csv"
    path.write_text("timestamp,load_mw\n0,30000\n1,31000\n2,32000\n")
    np.testing.assert_array_equal(fdia_timeline.profile_file(path, 2), [30_000, 31_000])


def test_demand_comes_from_test_months_and_its_limit_is_said():
    source = ClimatologySource()
    assert np.ptp(fdia_timeline.demand_shape(source, 1_440, 0)) > 0.1
    with pytest.raises(JudgeError, match="--days"):
        fdia_timeline.demand_shape(source, 1_440 * 365, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "quick", "--grid", "14"], "belong to suite fdia-graph"),
        (["--suite", "fdia-graph", "--cases", "case14"], "leave --cases and --windows out"),
    ],
)
def test_options_of_one_suite_are_refused_by_another(arguments, message, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 3)), min_size=1, max_size=30))
def test_units_keep_episodes_whole_and_part_benign_runs(runs):
    episode = np.concatenate([np.full(length, name) for name, length in runs])
    frame = np.cumsum(np.ones(episode.size, dtype=np.int64))
    unit = fdia_graph.units_of(episode, frame)
    assert unit[0] == 0
    assert set(np.diff(unit)) <= {0, 1}
    for number in range(unit[-1] + 1):
        assert np.unique(episode[unit == number]).size == 1
    assert ((np.diff(episode) != 0) == (np.diff(unit) == 1)).all()


# --- with it ---------------------------------------------------------------------------------------------------------


@needs_judge
@pytest.mark.slow
@pytest.mark.parametrize("system", [14, 300])
def test_operating_points_are_those_of_its_own_solver(system):
    """Oracle: pandapower, called by the package itself; 300 has low impedances, phase shifts and static machines."""
    profiles = fdia_mapping.package("profiles")
    theirs = profiles.generate_states(system, profiles.load_profile(LOAD[:2]), seed=SEED)
    ours = fdia_timeline.operating_points(system, LOAD[:2], SEED)
    np.testing.assert_allclose(ours[..., [0, 3]], theirs[..., [0, 3]], atol=2e-4)
    np.testing.assert_allclose(ours[..., 1:3], theirs[..., 1:3], atol=1e-3)  # MW; the solver stops at 1e-6 MVA
    case = fdia_mapping.judge_case(system)
    v, s = fdia_mapping.complex_state(case, theirs)
    assert np.abs(fdia_mapping.Judge(case).residual(v, s)).max() < fdia_mapping.BALANCE_PU


@needs_judge
def test_mapping_holds_and_a_wrong_one_is_refused(timeline, scans):
    assert scans.off < 1e-6
    case, states = scans.case, timeline.states_TN4
    turned = states.copy()
    turned[..., 1] *= -1  # consumption for injection
    with pytest.raises(JudgeError, match="off by"):
        fdia_mapping.check_mapping(case, scans.data, turned)
    for field in ("tap", "b", "bs"):
        with pytest.raises(JudgeError, match="differs by"):
            fdia_mapping.check_mapping(replace(case, **{field: getattr(case, field) + 1e-3}), scans.data, states)
    with pytest.raises(JudgeError, match="not the published ones"):
        fdia_mapping.check_mapping(replace(case, f_bus=case.t_bus, t_bus=case.f_bus), scans.data, states)


@needs_judge
def test_meters_have_its_classes(scans):
    """Readings without attack scatter about the true values as its accuracy classes say, lasting bias included."""
    told = scans.data.export(["benign", "edge_benign", "clean", "edge_clean", "node_m"])
    given_z, true_z = (
        fdia_mapping.readings(scans.case, scans.plan, told[a].astype(float), told[b].astype(float))
        for a, b in (("benign", "edge_benign"), ("clean", "edge_clean"))
    )
    error = (given_z - true_z) / scans.plan.sigma
    assert 0.7 < np.sqrt((error**2).mean()) < 1.3
    assert np.std(error, axis=0).mean() < 0.35  # most of it never changes: JITTER of the class is drawn per scan
    assert scans.plan.size == int(told["node_m"][0].sum() + scans.data.export(["edge_m"])["edge_m"][0].sum())


@needs_judge
def test_scores_read_the_observed_past_only(scans, network):
    at = 200
    later = replace_after(scans, at)
    for score in (
        lambda s: fdia_arms.network_scores(network, s, WIDTH),
        lambda s: fdia_arms.physics_scores(s, np.arange(FRAMES) < 100),
    ):
        before, after = score(scans), score(later)
        np.testing.assert_array_equal(before[: at + 1], after[: at + 1])
        assert not np.array_equal(before[at + 1 :], after[at + 1 :])


def replace_after(scans, at):
    """The same timeline whose readings after frame `at` are others, estimated anew."""
    z = scans.z_TM.copy()
    z[at + 1 :] *= 1.1
    v, r = fdia_arms.Featurizer().estimator(scans.case, scans.plan).estimate(z)
    return replace(scans, z_TM=z, v_TN=v, r_TM=r)


@needs_judge
def test_thresholds_never_see_test_labels(timeline, scans, tmp_path):
    import h5py

    path = tmp_path / "other.h5"
    shutil.copy(timeline.path, path)
    with h5py.File(path, "r+") as file:
        test = file["data/split"][:] == 2
        y = file["data/y"][:]
        y[test] = 1 - y[test]
        file["data/y"][:] = y
    score = fdia_arms.physics_scores(scans, np.arange(FRAMES) < 100)
    for protocol in fdia_graph.PROTOCOLS:
        own = fdia_graph.our_arm(fdia_graph.FITTED, score, protocol, fdia_graph.views_of(timeline.path, protocol))
        other = fdia_graph.our_arm(fdia_graph.FITTED, score, protocol, fdia_graph.views_of(path, protocol))
        np.testing.assert_array_equal(own.threshold_N, other.threshold_N)
        assert np.isfinite(own.threshold_N).any()


@needs_judge
def test_a_timeline_without_attacked_validation_frames_is_refused(timeline):
    views = fdia_graph.views_of(timeline.path, fdia_graph.PROTOCOLS[0])
    views.val = fdia_mapping.package().FdiaGraph(str(timeline.path), split="val", families=[0])
    with pytest.raises(JudgeError, match="no attacked validation frame"):
        fdia_graph.our_arm(fdia_graph.PLAIN, np.zeros((FRAMES, 14)), fdia_graph.PROTOCOLS[0], views)


@needs_judge
def test_zero_shot_never_trains_on_unseen_families(timeline):
    views = fdia_graph.views_of(timeline.path, fdia_graph.PROTOCOLS[0])
    for view in (views.train, views.val):
        assert not np.isin(view.export(["family"])["family"], [3, 4, 5, 6, 7]).any()
    assert np.isin([3, 4], views.test.export(["family"])["family"]).all()


@needs_judge
def test_training_is_repeatable_and_leaves_the_model_alone(scans, network):
    frames = np.arange(64)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    first, second = (fdia_arms.trained(network, scans, frames, WIDTH, 0, epochs=1).state_dict() for _ in range(2))
    assert all((first[k] == second[k]).all() for k in first)
    assert all((before[k] == v).all() for k, v in network.state_dict().items())
    assert any((first[k] != before[k]).any() for k in first)


@needs_judge
def test_whole_suite_small(timeline, network, tmp_path, monkeypatch):
    monkeypatch.setattr(fdia_graph, "trained", functools.partial(fdia_arms.trained, epochs=1))
    peers = {"its SwingThreshold": fdia_graph.PEERS["its SwingThreshold"]}
    tables, scans = fdia_graph.evaluate_judge(timeline, network, WIDTH, 0, peers=peers)
    assert [table.protocol.name for table in tables] == ["zero-shot", "common"]
    for table in tables:
        assert {arm.name for arm in table.arms} == {*fdia_graph.OURS, *peers}
        view = fdia_graph.views_of(timeline.path, table.protocol).test
        for arm in table.arms:
            # golden against its own metric: the bootstrap of the sample itself is its figure
            truth = fdia_graph._truth(view)
            unit = np.zeros(len(truth), dtype=np.int64)
            flags, once = arm.score_KN > arm.threshold_N, np.ones((1, 1), dtype=np.int64)
            macro, micro = fdia_graph._drawn(flags, truth, unit, once)
            assert macro[0] == pytest.approx(arm.told["all"].macro_f1, abs=1e-6)
            assert micro[0] == pytest.approx(arm.told["all"].node_f1, abs=1e-6)
            assert arm.macro.low <= arm.macro.high
    # the plain threshold arm is what the package itself makes of it
    theirs = fdia_mapping.package("localization").SwingThreshold(fa_target=0.01)
    common = fdia_graph.views_of(timeline.path, fdia_graph.PROTOCOLS[1])
    assert theirs.fit(common.train).score(common.test)["all"].macro_f1 == tables[1].arms[0].told["all"].macro_f1
    info = BlockInfo(fold=0, model="v1", seed=0, commit="none", learner_steps=0, executor_calls=0)
    lines = fdia_report.write_judge_report(tmp_path, tables, timeline, scans.off, info, "tiny")
    assert sum("its SwingThreshold |" in line for line in lines) == 2
    written = json.loads((tmp_path / "results.json").read_text())
    assert {row["suite"] for row in written["rows"]} == {"fdia-graph/zero-shot", "fdia-graph/common"}
    assert "Macro F1" in (tmp_path / "report.md").read_text()
