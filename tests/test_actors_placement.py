"""Placement and session: the shape fits the machine, and too little is an error in time, never a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.util.placement_group import placement_group_table

from actors import session
from actors.placement import Bundles, ResourceError, acquire, bundles, release, smallest_cpus
from gg_ray.config import ActorsConfig, LearnerConfig, RunConfig

_REPO = Path(__file__).parent.parent


def _config(proposers: int = 1, solvers: int = 1, device: str = "auto") -> RunConfig:
    return RunConfig(actors=ActorsConfig(proposers=proposers, solvers=solvers), learner=LearnerConfig(device=device))


def test_laptop_shape_fits_two_cpus_with_the_learner_in_the_driver() -> None:
    shape = bundles(_config(), cpus=2)
    assert shape.driver == {"CPU": 1.0}
    assert shape.proposer == shape.solver == {"CPU": 0.4}
    assert shape.total() == {"CPU": 2.0}
    assert [name for name, _ in shape.group()] == ["replay"]


def test_the_driver_trains_and_so_takes_the_gpu() -> None:
    assert bundles(_config(), cpus=8, gpus=1).driver == {"CPU": 1.0, "GPU": 1.0}
    cluster = bundles(_config(proposers=40, solvers=8))
    assert cluster.driver == cluster.proposer == {"CPU": 1.0}
    assert bundles(_config(device="cuda")).driver == {"CPU": 1.0, "GPU": 1.0}, "the GPU node may not be up yet"
    assert bundles(_config(device="cpu"), cpus=8, gpus=1).driver == {"CPU": 1.0}
    for shape in (cluster, bundles(_config(), cpus=8, gpus=1)):
        assert [name for name, _ in shape.group()] == ["replay"]
    with pytest.raises(ResourceError, match=r"learner\.device=cuda needs 1 GPU, have 0"):
        bundles(_config(device="cuda"), cpus=8)


@given(cpus=st.floats(0.1, 64), gpus=st.sampled_from([0, 1]), proposers=st.integers(1, 20), solvers=st.integers(0, 20))
def test_shape_never_exceeds_the_machine_and_is_refused_only_below_the_stated_need(
    cpus: float, gpus: int, proposers: int, solvers: int
) -> None:
    config = _config(proposers, solvers)
    if cpus < smallest_cpus(config.actors):
        with pytest.raises(ResourceError, match=f"need {smallest_cpus(config.actors):g} CPUs"):
            bundles(config, cpus=cpus, gpus=gpus)
        return
    shape = bundles(config, cpus=cpus, gpus=gpus)
    assert shape.total()["CPU"] <= cpus + 1e-3
    assert all(bundle["CPU"] >= 0.1 - 1e-9 for bundle in shape.trial())
    assert len(shape.trial()) == 3 + proposers + solvers


@ray.remote
class _Probe:
    def group_id(self) -> str:
        group = ray.util.get_current_placement_group()
        return "" if group is None else group.id.hex()


@pytest.mark.ray
def test_granted_group_holds_replay_but_not_the_proposers(ray_cluster: None) -> None:
    shape = bundles(_config(), cpus=2)
    placement = acquire(shape, 30.0)
    try:
        actors = {role: _Probe.options(**placement.options(role)).remote() for role in ("replay", "proposer")}
        groups = {role: ray.get(actor.group_id.remote(), timeout=30) for role, actor in actors.items()}
        assert placement.group is not None
        assert groups == {"replay": placement.group.id.hex(), "proposer": ""}
    finally:
        release(placement)
    release(placement)
    assert _group_states().get(placement.group.id.hex(), "REMOVED") == "REMOVED"


@pytest.mark.ray
def test_infeasible_bundle_is_named_in_time_and_its_group_removed(ray_cluster: None) -> None:
    shape = replace(bundles(_config(), cpus=2), replay={"CPU": 1.0, "GPU": 1.0})
    lines: list[str] = []
    before = set(_group_states())
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"the replay bundle \(1 CPU \+ 1 GPU\) fits none of them after 2 s"):
        acquire(shape, 2.0, poll_s=0.5, on_wait=lines.append)
    assert time.monotonic() - started < 10
    assert lines
    assert "have nodes with 4 CPU" in lines[0]
    assert {state for key, state in _group_states().items() if key not in before} == {"REMOVED"}


@pytest.mark.ray
def test_busy_cluster_is_told_apart_from_one_that_is_too_small(ray_cluster: None) -> None:
    shape = replace(bundles(_config(), cpus=2), replay={"CPU": 3.0})
    first = acquire(shape, 30.0)
    try:
        with pytest.raises(ResourceError, match="other work holds the rest"):
            acquire(shape, 1.0, poll_s=0.5)
    finally:
        release(first)


@pytest.mark.ray
def test_inside_a_trials_group_children_are_captured_not_regrouped(ray_cluster: None) -> None:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    shape = bundles(_config(), cpus=2)

    @ray.remote(num_cpus=1)
    def trial(shape: Bundles) -> tuple[bool, str, str]:
        placement = acquire(shape, 5.0)
        actor = _Probe.options(**placement.options("proposer")).remote()
        mine = ray.util.get_current_placement_group()
        assert mine is not None
        return placement.group is None, ray.get(actor.group_id.remote(), timeout=20), mine.id.hex()

    group = ray.util.placement_group(shape.trial())
    try:
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        regrouped, child, own = ray.get(trial.options(scheduling_strategy=strategy).remote(shape), timeout=40)
        assert regrouped
        assert child == own == group.id.hex()
    finally:
        ray.util.remove_placement_group(group)


def _group_states() -> dict[str, str]:
    return {key: str(entry["state"]) for key, entry in placement_group_table().items()}


# ---- session


@pytest.mark.ray
def test_session_uses_a_running_ray_and_leaves_it_running(ray_cluster: None) -> None:
    with session.start(ActorsConfig()) as running:
        assert running.local
        assert running.cpus == 4
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "mode"),
    [("10.0.0.7:6379", None), ("10.0.0.7:6379", "disabled"), ("ray://head:10001", ""), ("auto", None)],
)
def test_open_ray_beyond_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, mode: str | None
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    environ = {"RAY_ADDRESS": address} | ({} if mode is None else {"RAY_AUTH_MODE": mode})
    with (
        pytest.raises(session.SessionError, match="set RAY_AUTH_MODE=token"),
        session.start(ActorsConfig(), environ=environ),
    ):
        raise AssertionError("must not start")


def test_too_few_cpus_and_too_long_a_folder_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    environ: dict[str, str] = {}
    with (
        pytest.raises(ResourceError, match=r"need 4\.4 CPUs for 10 proposers and 10 solvers, have 2"),
        session.start(ActorsConfig(proposers=10, solvers=10), num_cpus=2, environ=environ),
    ):
        raise AssertionError("must not start")
    with (
        pytest.raises(session.SessionError, match="has 60 bytes, at most 40"),
        session.start(ActorsConfig(), num_cpus=2, temp_dir="/" + "x" * 59, environ=environ),
    ):
        raise AssertionError("must not start")
    assert environ == {}, "what was set for the run is unset again"


def test_ray_that_does_not_start_names_cause_and_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no free port")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(session.SessionError, match=r"RuntimeError: no free port; .*use mode=serial"),
        session.start(ActorsConfig(), num_cpus=2, environ={}),
    ):
        raise AssertionError("must not start")


@pytest.mark.ray
def test_session_starts_and_stops_its_own_ray_without_writing_a_token() -> None:
    code = (
        "import os, sys, ray\n"
        "from actors import session\n"
        "from gg_ray.config import ActorsConfig\n"
        "with session.start(ActorsConfig(), num_cpus=2, temp_dir=sys.argv[1], object_store_bytes=100 * 2**20) as s:\n"
        "    assert s.local and s.cpus == 2 and os.environ['RAY_AUTH_MODE'] == 'disabled'\n"
        "    assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7\n"
        "assert not ray.is_initialized() and 'RAY_AUTH_MODE' not in os.environ\n"
    )
    with tempfile.TemporaryDirectory(prefix="gg-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "h"
        home.mkdir()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(home)}
        environ["PYTHONPATH"] = str(_REPO)
        done = subprocess.run(
            [sys.executable, "-c", code, folder], env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert not (home / ".ray" / "auth_token").exists()
