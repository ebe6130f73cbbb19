"""actors.evaluation: grids spread over processes give what one process gives; grids travel instead of being loaded."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from actors import evaluation
from actors.evaluation import EvaluationLost, spread
from actors.placement import ResourceError
from gg_ray.config_io import load
from gg_ray.evaluate.job import GridJob, GridResult, serially
from gg_ray.evaluate.scoring import BlockInfo
from gg_ray.grid import cases
from gg_ray.grid.cases import CaseError, adopt, load_case
from gg_ray.learner import new_verifier, to_numpy
from gg_ray.scenario.history import FOLDER, HistoryError

CONFIG = load(
    "smoke",
    {
        "scenario.cases": ["case14"],
        "verifier.hidden": 16,
        "evaluate": {
            "held_out_cases": ["case30"], "windows": 1, "days": 1, "validation_days": 1, "stride": 24,
            "baselines": False,
        },
    },
)  # fmt: skip


def job_of(case: str, **changes: Any) -> GridJob:
    """A tiny job of two untrained networks."""
    info = BlockInfo(fold=0, model="m", seed=0, commit="c", learner_steps=7, executor_calls=9)
    networks = {
        name: to_numpy(new_verifier(CONFIG.verifier, seed).state_dict())
        for seed, name in enumerate(("verifier", "untrained"))
    }
    job = GridJob(config=CONFIG, case=case, suite="quick", info=info, verifier=CONFIG.verifier, networks=networks)
    return replace(job, **changes)


def assert_same(one: GridResult, other: GridResult) -> None:
    assert one.case == other.case
    assert one.blocks == other.blocks
    assert one.comparisons == other.comparisons
    assert (one.notes, one.sizes) == (other.notes, other.sizes)
    np.testing.assert_array_equal(one.calibration, other.calibration)
    mine, theirs = one.exhibit, other.exhibit
    assert mine.digest == theirs.digest
    np.testing.assert_array_equal(mine.prob_B, theirs.prob_B)
    np.testing.assert_array_equal(mine.implausible_B, theirs.implausible_B)
    assert mine.place is not None
    assert theirs.place is not None
    for left, right in zip(mine.place, theirs.place, strict=True):
        np.testing.assert_array_equal(left, right)
    for (window, plan), (again, meters) in zip(mine.sample, theirs.sample, strict=True):
        np.testing.assert_array_equal(window.z_TM, again.z_TM)
        np.testing.assert_array_equal(plan.channels, meters.channels)


@pytest.mark.ray
def test_results_are_those_of_one_process(ray_cluster: None) -> None:
    jobs = [job_of("case30"), job_of("case14")]
    found = {result.case: result for result in spread(jobs)}
    expected = {result.case: result for result in serially(jobs)}
    assert found.keys() == expected.keys()
    for case, result in expected.items():
        assert [block.suite for block in result.blocks] == ["windows", "timelines"]
        assert_same(found[case], result)


def test_an_unknown_grid_ends_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_args: object) -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(evaluation.session, "start", started)
    with pytest.raises(CaseError, match="unknown grid case 'case41'; did you mean"):
        next(spread([job_of("case14"), job_of("case41")]))
    with pytest.raises(AssertionError, match="Ray was asked for"):
        next(spread([job_of("case14")]))


@pytest.mark.ray
def test_an_error_inside_a_job_surfaces_as_itself(ray_cluster: None, tmp_path: Path) -> None:
    """The command line knows errors by where their class is defined: one that Ray wraps ends in a traceback."""
    (tmp_path / FOLDER).mkdir()
    torn = replace(CONFIG, scenario=replace(CONFIG.scenario, data_dir=str(tmp_path)))
    with pytest.raises(HistoryError) as here:
        next(serially([job_of("case14", config=torn)]))
    with pytest.raises(HistoryError) as there:
        next(spread([job_of("case14", config=torn)]))
    assert type(there.value) is HistoryError
    assert str(there.value) == str(here.value)


# ---------------------------------------------------------------- grids that travel


@pytest.fixture
def nothing_adopted(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, object]:
    """An adoption of this test alone."""
    held: dict[str, Any] = {}
    monkeypatch.setattr(cases, "_ADOPTED", held)
    return held


def arrays(grid: cases.GridCase) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value for name, value in vars(grid).items() if isinstance(value, np.ndarray)}


def test_an_adopted_case_is_a_writable_copy(nothing_adopted: Mapping[str, object]) -> None:
    given = pickle.loads(pickle.dumps(load_case("case14")))  # arrays as Ray hands them out: read-only
    for array in arrays(given).values():
        array.flags.writeable = False
    adopt([given])
    held = load_case("case14")
    assert held is not given
    assert load_case("case14") is held, "once per process"
    assert held.sha256() == given.sha256()
    assert len(arrays(held)) > 20
    for name, array in arrays(held).items():
        np.testing.assert_array_equal(array, arrays(given)[name], err_msg=name)
        assert not np.shares_memory(array, arrays(given)[name]), name
        assert array.flags.writeable, name


def test_what_was_adopted_comes_before_what_was_loaded(nothing_adopted: Mapping[str, object]) -> None:
    loaded = load_case("case14")
    other = replace(load_case("case30"), layout=np.zeros((30, 2)))
    adopt([cases.with_tap(loaded, 0, 1.05), other])
    assert load_case("case14").tap[0] == 1.05
    assert loaded.tap[0] != 1.05
    assert not load_case("case30").layout.any()
    assert load_case("case39").name == "case39", "others are loaded as ever"


def test_an_adopted_case_needs_no_pandapower() -> None:
    """A fresh interpreter with a case from its parent; a case of its own, last, shows that the check can fail."""
    program = (
        "import pickle, sys\n"
        "from gg_ray.grid import cases\n"
        "given = pickle.load(sys.stdin.buffer)\n"
        "cases.adopt([given])\n"
        "held = cases.load_case('case14')\n"
        "assert held is not given and held.sha256() == given.sha256()\n"
        "assert 'pandapower' not in sys.modules, 'an adopted case was loaded'\n"
        "cases.load_case('case30')\n"
        "assert 'pandapower' in sys.modules, 'the check means nothing'\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(load_case("case14")), cwd=root, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def never(job: GridJob, grid: cases.GridCase) -> GridResult:
    raise AssertionError("it had no CPU to run on")


def impatient(timeout_s: float) -> GridJob:
    return job_of("case14", config=replace(CONFIG, actors=replace(CONFIG.actors, start_timeout_s=timeout_s)))


@pytest.mark.ray
def test_a_ray_whose_cpus_are_taken_ends_with_need_against_have(ray_cluster: None) -> None:
    taken = placement_group([{"CPU": 4}])
    assert taken.wait(30)
    said: list[str] = []
    try:
        with pytest.raises(ResourceError, match=r"need evaluation of a grid 1 CPU; have nodes with 4 CPU.*after 1 s"):
            list(spread([impatient(1.0)], never, poll_s=0.2, on_wait=said.append))
    finally:
        remove_placement_group(taken)
    assert said
    assert "only nothing free: other work holds the rest; waited 0 s of 1 s" in said[0]


@pytest.mark.ray
def test_a_ray_too_small_for_a_grid_is_told_apart(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "NEED", {"CPU": 64.0})
    with pytest.raises(ResourceError, match=r"the evaluation of a grid bundle \(64 CPU\) fits none of them after 1 s"):
        list(spread([impatient(1.0)], never, poll_s=0.2))


@pytest.mark.ray
def test_a_job_that_runs_may_take_longer_than_the_wait_for_a_cpu(ray_cluster: None) -> None:
    """One CPU for two jobs: the second waits for the first, and neither counts as a shortage."""

    def slow(job: GridJob, grid: cases.GridCase) -> str:
        if job.case == "case14":
            time.sleep(4.0)  # work, as far as the driver can tell
        return job.case

    taken = placement_group([{"CPU": 3}])
    assert taken.wait(30)
    try:
        jobs = [impatient(3.0), replace(impatient(3.0), case="case30")]
        found = list(spread(jobs, slow, poll_s=0.1))  # type: ignore[arg-type]
    finally:
        remove_placement_group(taken)
    assert sorted(found) == ["case14", "case30"]  # type: ignore[type-var]


@pytest.mark.ray
def test_a_process_that_dies_again_and_again_is_named(ray_cluster: None) -> None:
    def die(job: GridJob, grid: cases.GridCase) -> GridResult:
        os._exit(1)

    with pytest.raises(EvaluationLost, match=r"died twice \(WorkerCrashedError\).*--no-parallel"):
        list(spread([job_of("case14")], die))
