"""gg_ray.evaluate.job: suites by name, grids as jobs, thresholds without test windows, paired intervals, exhibits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gg_ray.config import SUITES, ConfigError, RunConfig, check_suite
from gg_ray.config_io import load
from gg_ray.evaluate import job as job_module
from gg_ray.evaluate import metrics
from gg_ray.evaluate.job import (
    Evaluation,
    GridJob,
    GridResult,
    Weights,
    evaluate,
    methods_of,
    run_grid,
    score_grid,
    serially,
)
from gg_ray.evaluate.results import MACRO, ORACLE, POOLED
from gg_ray.evaluate.scoring import FPR, BlockInfo, Method, NetworkMethod, Output, affected
from gg_ray.evaluate.suites import Day, SuiteMaker, WindowSuite
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.records import F64, FAMILIES
from gg_ray.scenario.context import context_source, split_of
from gg_ray.verifier.features import Prepared
from gg_ray.windows_io import read_windows, write_windows

CONFIG = load(
    "smoke",
    {
        "scenario.cases": ["case14"],
        "verifier.hidden": 16,
        "evaluate": {
            "held_out_cases": [], "windows": 2, "days": 1, "validation_days": 1, "stride": 8, "baselines": False
        },
    },
)  # fmt: skip
SHORT = replace(CONFIG, evaluate=replace(CONFIG.evaluate, windows=1))
"""For tests that only ask what was run."""


class Roughness:
    """Scores a window by how far its readings move from scan to scan: no weights, no fit, one line."""

    name = "rough"

    def prepare(self, fit: object, rng: np.random.Generator) -> None:
        """Nothing."""

    def output(self, prepared: Prepared) -> Output:
        return Output(np.nanmax(np.abs(np.diff(prepared.z_BTM, axis=1)), axis=(1, 2), initial=0.0))


def weights(seed: int) -> Weights:
    return to_numpy(new_verifier(CONFIG.verifier, seed).state_dict())


def ours() -> NetworkMethod:
    return NetworkMethod("verifier", new_verifier(CONFIG.verifier, 0))


def job_of(config: RunConfig, *, suite: str = "quick", case: str = "case14") -> GridJob:
    """The job that `run` makes of a grid."""
    info = BlockInfo(
        fold=config.scenario.fold, model="m", seed=config.seed, commit="c", learner_steps=7, executor_calls=9
    )  # fmt: skip
    return GridJob(
        config=config, case=case, suite=suite, info=info, verifier=config.verifier, networks={"verifier": weights(0)}
    )  # fmt: skip


def scored(config: RunConfig, *methods: Method, suite: str = "quick") -> GridResult:
    """case14 under the given methods; the untrained network and Roughness when none are."""
    return score_grid(job_of(config, suite=suite), context_source(None), methods or [ours(), Roughness()])


def run(config: RunConfig, **kwargs: Any) -> Evaluation:
    """The whole evaluation of an untrained network."""
    return evaluate(config, {"verifier": weights(0)}, learner_steps=7, executor_calls=9, model="m", **kwargs)


@dataclass
class Asked:
    """What was asked and answered, made here and not by the job: its results say nothing of single windows."""

    windows: WindowSuite
    outputs: dict[str, list[Output]]


def suite_from(config: RunConfig) -> WindowSuite:
    return SuiteMaker("case14", config.scenario, config.evaluate, context_source(None)).windows()


@pytest.fixture(scope="module")
def both() -> GridResult:
    """Both suites of a tiny evaluation."""
    return scored(CONFIG)


@pytest.fixture(scope="module")
def asked() -> Asked:
    """The windows behind `both`, and what its methods say about those of the test."""
    windows, methods = suite_from(CONFIG), (ours(), Roughness())
    return Asked(windows, {m.name: [m.output(group.prepared) for group in windows.test] for m in methods})


def scores(asked: Asked, method: str, wanted: Callable[[str], bool]) -> F64:
    """A method's scores of the test windows whose family is wanted."""
    found = [
        score
        for group, out in zip(asked.windows.test, asked.outputs[method], strict=True)
        for score, family in zip(out.score_B.tolist(), group.families, strict=True)
        if wanted(family)
    ]
    return np.array(found)


# ---------------------------------------------------------------- names of suites


@pytest.mark.parametrize("name", ["windoze", "", "Quick", "windows "])
def test_an_unknown_suite_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_suite(name)
    assert repr(name) in str(refused.value)
    for known in SUITES:
        assert known in str(refused.value)
        check_suite(known)


def test_an_unknown_suite_ends_before_any_work() -> None:
    notes: list[str] = []
    spread: list[Sequence[GridJob]] = []
    with pytest.raises(ConfigError, match="unknown suite 'all'"):
        run(CONFIG, suite="all", note=notes.append, spread=spread.append)
    assert notes == [], "the first note comes with the first grid"
    assert spread == []


# ---------------------------------------------------------------- one grid


def test_quick_gives_blocks_of_both_suites(both: GridResult, asked: Asked) -> None:
    windows, timelines = both.blocks
    assert (windows.suite, timelines.suite) == ("windows", "timelines")
    for block in (windows, timelines):
        assert (block.case, block.model, block.seed) == ("case14", "m", CONFIG.seed)
        assert (block.budget["learner_steps"], block.budget["executor_calls"]) == (7, 9)
    for name in ("verifier", "rough"):
        assert {row.family for row in windows.rows if row.method == name} == {*FAMILIES, MACRO}
        [family] = {row.family for row in timelines.rows if row.method == name} - {POOLED, MACRO}
        assert family in FAMILIES
    assert windows.row(ORACLE) is not None
    assert timelines.row(ORACLE) is None
    assert [(c.suite, c.case, c.figure, c.than) for c in both.comparisons] == [
        ("windows", "case14", "balanced_accuracy", "rough")
    ]
    asked_for = sum(len(group.families) for group in asked.windows.test)
    assert both.sizes.startswith(f"case14: {asked_for} test windows, digest {asked.windows.digest}; 1 test days, ")


def test_the_same_grid_twice_is_equal(both: GridResult) -> None:
    again = scored(CONFIG)
    assert again.blocks == both.blocks
    assert again.comparisons == both.comparisons
    assert (again.notes, again.sizes) == (both.notes, both.sizes)
    np.testing.assert_array_equal(again.calibration, both.calibration)


@pytest.mark.parametrize("suite", ["windows", "timelines"])
def test_one_suite_alone_gives_the_block_it_gives_with_the_other(both: GridResult, suite: str) -> None:
    found = scored(CONFIG, suite=suite)
    assert found.blocks == [block for block in both.blocks if block.suite == suite]
    assert found.comparisons == (both.comparisons if suite == "windows" else [])
    np.testing.assert_array_equal(found.calibration, both.calibration, "scoring needs it whatever the suite")


def test_the_calibration_is_that_of_the_model_on_benign_validation_windows(both: GridResult, asked: Asked) -> None:
    expected = np.concatenate([ours().output(part).score_B for part in asked.windows.validation])
    np.testing.assert_array_equal(both.calibration, expected)


def test_timelines_without_a_test_day_are_left_out_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SuiteMaker._day

    def none_in_the_test(self: SuiteMaker, long: Any, split: str, *rest: Any) -> Day | None:
        return None if split == "test" else original(self, long, split, *rest)

    monkeypatch.setattr(SuiteMaker, "_day", none_in_the_test)
    found = scored(SHORT, Roughness())
    assert [block.suite for block in found.blocks] == ["windows"]
    assert "case14: no day of validation, or of the test, passes the gates; timelines left out" in found.notes
    assert "test days" not in found.sizes


def test_rows_are_the_networks_in_their_order_then_the_classical_tests_where_wanted() -> None:
    job = replace(job_of(CONFIG), networks={"verifier": weights(3), "untrained": weights(4)})
    alone = methods_of(job)
    assert [method.name for method in alone] == ["verifier", "untrained"]
    for method, given in zip(alone, job.networks.values(), strict=True):
        assert isinstance(method, NetworkMethod)
        held = to_numpy(method.network.state_dict())
        assert held.keys() == given.keys()
        assert all(np.array_equal(held[name], given[name]) for name in given)
    with_tests = methods_of(replace(job, config=replace(CONFIG, evaluate=replace(CONFIG.evaluate, baselines=True))))
    assert [method.name for method in with_tests[:2]] == ["verifier", "untrained"]
    assert {"random", "chi2", "lnr"} <= {method.name for method in with_tests[2:]}


# ---------------------------------------------------------------- grids as jobs


def test_grids_that_are_named_replace_those_of_the_run() -> None:
    notes: list[str] = []
    config = replace(SHORT, evaluate=replace(SHORT.evaluate, held_out_cases=("case39",)))
    found = run(config, suite="windows", cases=["case30"], note=notes.append)
    assert [block.case for block in found.results.results] == ["case30"]
    assert list(found.exhibits) == ["case30"]
    assert [note.split(":")[0] for note in notes] == ["case30"]
    assert found.exhibits["case30"].digest in notes[0]


class Spread:
    """Answers jobs from one result that was made before, in an order of its own; keeps the jobs."""

    def __init__(self, made: GridResult, order: Callable[[list[GridResult]], Iterable[GridResult]]) -> None:
        self.made, self.order = made, order
        self.jobs: list[GridJob] = []

    def __call__(self, jobs: Sequence[GridJob]) -> Iterable[GridResult]:
        self.jobs += jobs
        return self.order([self.named(index, job.case) for index, job in enumerate(jobs)])

    def named(self, index: int, case: str) -> GridResult:
        """The result as if it were that of another grid."""
        made = self.made
        return GridResult(
            case, [replace(block, case=case) for block in made.blocks], replace(made.exhibit, digest=case),
            made.calibration + 100.0 * index, made.disturbance + index,
            [replace(row, case=case) for row in made.comparisons],
            [f"{case}: {text}" for text in ("one", "two")], f"{case}: sizes",
        )  # fmt: skip


GRIDS = ("case14", "case39", "case30", "case118")
ORDERS: dict[str, Callable[[list[GridResult]], Iterable[GridResult]]] = {
    "same": iter,
    "reversed": reversed,
    "turned": lambda made: iter(made[2:] + made[:2]),
}


@pytest.mark.parametrize("order", ORDERS)
def test_results_are_in_the_order_of_the_grids_whatever_order_they_come_in(both: GridResult, order: str) -> None:
    notes: list[str] = []
    spread = Spread(both, ORDERS[order])
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, held_out_cases=GRIDS[1:]))
    found = run(config, spread=spread, note=notes.append)
    assert [job.case for job in spread.jobs] == list(GRIDS)
    assert [(block.case, block.suite) for block in found.results.results] == [
        (case, suite) for case in GRIDS for suite in ("windows", "timelines")
    ]
    assert [row.case for row in found.comparisons] == list(GRIDS)
    assert found.notes == [f"{case}: {text}" for case in GRIDS for text in ("one", "two")]
    assert [(case, shown.digest) for case, shown in found.exhibits.items()] == [(case, case) for case in GRIDS]
    pooled = np.sort(np.concatenate([both.calibration + 100.0 * index for index in range(len(GRIDS))]))
    np.testing.assert_array_equal(found.calibration.scores, pooled)
    assert sorted(notes) == sorted(f"{case}: sizes" for case in GRIDS), "one note per grid"
    assert notes == [result.sizes for result in ORDERS[order]([spread.named(0, case) for case in GRIDS])], "at once"


def test_every_job_carries_what_the_evaluation_was_given(both: GridResult) -> None:
    spread = Spread(both, iter)
    networks = {"verifier": weights(0), "untrained": weights(1)}
    other = replace(CONFIG.verifier, hidden=32)
    evaluate(
        CONFIG, networks, learner_steps=7, executor_calls=9, model="m", suite="timelines", cases=["case30", "case14"],
        verifier=other, spread=spread,
    )  # fmt: skip
    assert [(job.case, job.suite) for job in spread.jobs] == [("case30", "timelines"), ("case14", "timelines")]
    for job in spread.jobs:
        assert (job.config, job.verifier) == (CONFIG, other)
        assert job.networks is networks
        info = job.info
        assert (info.model, info.seed, info.fold) == ("m", CONFIG.seed, CONFIG.scenario.fold)
        assert (info.learner_steps, info.executor_calls) == (7, 9)
    run(CONFIG, spread=spread)
    last = spread.jobs[-1]
    assert (last.case, last.suite, last.verifier) == ("case14", CONFIG.evaluate.suite, CONFIG.verifier)


def test_the_default_is_one_grid_after_the_other_in_this_process(
    both: GridResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = Spread(both, iter)
    monkeypatch.setattr(job_module, "serially", spread)
    run(CONFIG, cases=["case30", "case14"])
    assert [job.case for job in spread.jobs] == ["case30", "case14"]


def test_serially_runs_each_job_when_its_turn_comes(both: GridResult, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, ran = [job_of(CONFIG, case=case) for case in ("case30", "case14")], list[str]()

    def keep(job: GridJob, contexts: object) -> GridResult:
        ran.append(job.case)
        return Spread(both, iter).named(0, job.case)

    monkeypatch.setattr(job_module, "run_grid", keep)
    results = serially(jobs)
    assert ran == []
    for count, result in enumerate(results, start=1):
        assert ran == [job.case for job in jobs[:count]]
        assert result.case == jobs[count - 1].case
    assert len(ran) == 2


def test_a_job_of_its_own_gives_the_blocks_of_the_whole_evaluation() -> None:
    whole = run(SHORT, suite="windows")
    alone = run_grid(replace(job_of(SHORT, suite="windows")), context_source(None))
    commit = whole.results.results[0].commit
    assert tuple(replace(block, commit=commit) for block in alone.blocks) == whole.results.results
    np.testing.assert_array_equal(np.sort(alone.calibration), whole.calibration.scores)
    assert alone.exhibit.digest == whole.exhibits["case14"].digest


# ---------------------------------------------------------------- exhibits


def test_an_exhibit_has_probability_and_truth_of_every_test_window(both: GridResult, asked: Asked) -> None:
    expected = [out.prob_B for out in asked.outputs["verifier"] if out.prob_B is not None]
    np.testing.assert_array_equal(both.exhibit.prob_B, np.concatenate(expected))
    families = [family for group in asked.windows.test for family in group.families]
    assert both.exhibit.implausible_B.tolist() == [family != "" for family in families]
    assert both.exhibit.prob_B.size == len(families) == 2 * 2 * len(FAMILIES)
    assert both.exhibit.digest == asked.windows.digest


def test_the_sample_of_an_exhibit_can_be_written_and_read(both: GridResult, asked: Asked, tmp_path: Path) -> None:
    sample = both.exhibit.sample
    known = [window for group in asked.windows.test for window in group.prepared.windows]
    for plan in {plan.plan_id for _, plan in sample}:
        picked = [window for window, own in sample if own.plan_id == plan]
        assert len(picked) == 6
        assert {window.plan_id for window in picked} == {plan}
        places = [next(i for i, k in enumerate(known) if np.array_equal(k.z_TM, w.z_TM, True)) for w in picked]
        assert places == sorted(places)
        assert len(set(places)) == 6, "six different ones"
    assert len(sample) == 6 * len(asked.windows.test)
    read = read_windows(write_windows(tmp_path / "sample.parquet", sample))
    for (window, plan), (again, meters) in zip(sample, read, strict=True):
        np.testing.assert_array_equal(again.z_TM, window.z_TM)
        np.testing.assert_array_equal(again.age_TM, window.age_TM)
        np.testing.assert_array_equal(meters.channels, plan.channels)
        assert (again.case, again.t0_ns) == ("case14", window.t0_ns)


def highest(asked: Asked, outputs: Sequence[Output]) -> tuple[F64, np.ndarray[Any, Any]]:
    """Bus scores and truth of the implausible window of the highest score, found by sorting them all."""
    found = [
        (out.score_B[row], out.node_BN[row], affected(group.labels[row], group.prepared.case))
        for group, out in zip(asked.windows.test, outputs, strict=True)
        for row, family in enumerate(group.families)
        if family and out.node_BN is not None
    ]
    return sorted(found, key=lambda item: item[0])[-1][1:]


def test_the_place_is_that_of_the_implausible_window_ranked_highest(both: GridResult, asked: Asked) -> None:
    scores_N, truth_N = highest(asked, asked.outputs["verifier"])
    assert both.exhibit.place is not None
    np.testing.assert_array_equal(both.exhibit.place[0], scores_N)
    np.testing.assert_array_equal(both.exhibit.place[1], truth_N)
    assert scores_N.shape == truth_N.shape == (14,)


@pytest.mark.parametrize("group", [0, 1])
def test_no_plausible_window_lends_its_place(group: int, asked: Asked) -> None:
    """Plausible windows have the highest scores of all, and the best implausible one is in either group."""
    rng = np.random.default_rng(group)
    outputs = []
    for number, part in enumerate(asked.windows.test):
        score = np.array([rng.random() + number * (1 if group else -1) if f else 50.0 for f in part.families])
        outputs.append(Output(score, node_BN=rng.normal(size=(score.size, 14))))
    place = job_module._exhibit(asked.windows, outputs).place
    scores_N, truth_N = highest(asked, outputs)
    assert any(np.array_equal(scores_N, row) for row in outputs[group].node_BN)  # type: ignore[union-attr]
    assert place is not None
    np.testing.assert_array_equal(place[0], scores_N)
    np.testing.assert_array_equal(place[1], truth_N)


def test_a_model_without_probabilities_and_places_shows_its_scores(asked: Asked) -> None:
    shown = job_module._exhibit(asked.windows, asked.outputs["rough"])
    np.testing.assert_array_equal(shown.prob_B, np.concatenate([out.score_B for out in asked.outputs["rough"]]))
    assert shown.place is None


# ---------------------------------------------------------------- comparisons, thresholds


def test_the_difference_is_that_of_the_macro_rows(both: GridResult) -> None:
    block = both.blocks[0]
    ours, theirs = block.row("verifier"), block.row("rough")
    assert ours is not None
    assert theirs is not None
    assert ours.balanced_accuracy is not None
    assert theirs.balanced_accuracy is not None
    [found] = both.comparisons
    expected = ours.balanced_accuracy - theirs.balanced_accuracy
    assert expected != 0.0
    assert found.difference.mean == pytest.approx(expected, abs=1e-12)


def macro(families: list[str], flagged: np.ndarray[Any, Any]) -> float:
    """Macro balanced accuracy, by its definition and family by family."""
    names = np.array(families)
    specificity = np.mean(~flagged[names == ""])
    return float(np.mean([0.5 * (specificity + np.mean(flagged[names == f])) for f in sorted(set(families) - {""})]))


@pytest.mark.parametrize("method", ["verifier", "rough"])
def test_rows_are_read_at_the_threshold_of_the_validation_windows(both: GridResult, asked: Asked, method: str) -> None:
    """The figures follow from the outputs and from a threshold that is computed here from validation alone."""
    own: Method = ours() if method == "verifier" else Roughness()
    benign = np.concatenate([own.output(part).score_B for part in asked.windows.validation])
    threshold = np.sort(benign)[benign.size - int(FPR * benign.size) - 1]
    specificity = np.mean(scores(asked, method, lambda f: f == "") <= threshold)
    block = both.blocks[0]
    for family in FAMILIES:
        row = block.row(method, family)
        assert row is not None
        recall = np.mean(scores(asked, method, family.__eq__) > threshold)
        assert row.balanced_accuracy == pytest.approx(0.5 * (specificity + recall), abs=1e-12)


class Calendar(Roughness):
    """Scores benign training months 0, validation months 10, test windows 20 or 5: only 10 tells the last two apart."""

    name = "calendar"

    def output(self, prepared: Prepared) -> Output:
        months = [split_of(window.t0_ns) for window in prepared.windows]
        moved = np.where(super().output(prepared).score_B > 0.1, 20.0, 5.0)
        fixed = {"train": 0.0, "validation": 10.0}
        return Output(np.array([fixed.get(month, own) for month, own in zip(months, moved, strict=True)]))


def test_no_month_but_those_of_validation_sets_the_threshold() -> None:
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, windows=3))
    found, windows = scored(config, Calendar(), suite="windows"), suite_from(config)
    families = [f for group in windows.test for f in group.families]
    expected = macro(families, np.concatenate([Roughness().output(g.prepared).score_B for g in windows.test]) > 0.1)
    assert abs(expected - 0.5) > 0.01, "other thresholds would give one half"
    row = found.blocks[0].row("calendar")
    assert row is not None
    assert row.balanced_accuracy == pytest.approx(expected, abs=1e-12)


def test_thresholds_do_not_change_with_the_test_windows_and_days(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_budgets(config: RunConfig) -> tuple[GridResult, list[float]]:
        seen: list[float] = []
        original = metrics.threshold_for_budget

        def spy(*args: Any, **kwargs: Any) -> float:
            seen.append(original(*args, **kwargs))
            return seen[-1]

        with monkeypatch.context() as patch:
            patch.setattr(metrics, "threshold_for_budget", spy)
            return scored(config), seen

    few, few_budgets = with_budgets(CONFIG)
    larger = replace(CONFIG, evaluate=replace(CONFIG.evaluate, windows=4, days=2))
    more, more_budgets = with_budgets(larger)
    assert more.exhibit.digest != few.exhibit.digest, "other test windows"
    assert more.blocks[1].budget["days"] == 2.0
    assert len(few_budgets) == 2
    assert more_budgets == few_budgets
    np.testing.assert_array_equal(more.calibration, few.calibration)
    for now, before in zip(suite_from(larger).validation, asked.windows.validation, strict=True):
        np.testing.assert_array_equal(now.z_BTM, before.z_BTM)
