"""Streaming: every tick equals the whole window, through silences, outages, tap moves, gaps, restores."""

from __future__ import annotations

import dataclasses
import functools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.config import ScenarioConfig, VerifierConfig
from gg_ray.grid.cases import load_case
from gg_ray.records import Program, Window
from gg_ray.scenario.context import ClimatologySource
from gg_ray.scenario.executor import Executor
from gg_ray.verifier.features import Featurizer, batch_of
from gg_ray.verifier.model import Verifier, VerifierOutput
from gg_ray.verifier.stream import Scan, Stream, StreamError, StreamState

STEP_S = 60.0
CASE = load_case("case30")
EXECUTOR = Executor(CASE, ScenarioConfig(scans=48), ClimatologySource())
PLAN = EXECUTOR.grammar.plan(0)
FEATURIZER = Featurizer()


@functools.cache
def network() -> Verifier:
    torch.manual_seed(0)
    model = Verifier(VerifierConfig(hidden=16)).eval()
    with torch.no_grad():
        model.state_head.weight.normal_(std=0.1)
    return model


@functools.cache
def record() -> tuple[Scan, ...]:
    """Executed windows one after the other: faults, ages, silences, and jumps where one ends and the next begins."""
    rng = np.random.default_rng(4)
    switch, tap, loss = (
        EXECUTOR.grammar.event(word, PLAN, rng) for word in ("line_switch", "tap_move", "meter_outage")
    )
    assert switch is not None
    assert loss is not None
    events = ((switch, loss), () if tap is None else (tap,), ())
    programs = [
        Program(case=CASE.name, context_id=i, plan_id=0, events=e, scans=48, seed=i) for i, e in enumerate(events)
    ]
    windows = [EXECUTOR.realise(a, 0)[0] for a in EXECUTOR.run(programs) if a.main is not None]
    scans = []
    for w in windows:
        for t in range(w.z_TM.shape[0]):
            tap = w.tap_E.copy()
            for branch, ratio, first in w.moves:
                tap[branch] = ratio if t >= first else tap[branch]
            scans.append(
                Scan(
                    time_ns=int(len(scans) * STEP_S * 1e9), z_M=w.z_TM[t].copy(), age_M=w.age_TM[t],
                    status_E=w.status_TE[t], tap_E=tap, x_scale_E=w.x_scale_E,
                )
            )  # fmt: skip
    return tuple(scans)


@torch.inference_mode()
def whole(scans: list[Scan] | tuple[Scan, ...]) -> VerifierOutput:
    """The network on a window of these scans, through the path of gg-ray score."""
    first = scans[0]
    moves = [
        (int(b), float(now.tap_E[b]), t + 1)
        for t, (before, now) in enumerate(pairwise(scans))
        for b in np.flatnonzero(before.tap_E != now.tap_E)
    ]
    window = Window(
        case=CASE.name, plan_id=0, t0_ns=first.time_ns, step_s=STEP_S, z_TM=np.stack([s.z_M for s in scans]),
        age_TM=np.stack([s.age_M for s in scans]), status_TE=np.stack([s.status_E for s in scans]),
        tap_E=first.tap_E, x_scale_E=first.x_scale_E, moves=tuple(moves),
    )  # fmt: skip
    return network()(batch_of(CASE.name, FEATURIZER.features(FEATURIZER.prepare([window], PLAN))))


def assert_same(got: VerifierOutput | None, want: VerifierOutput) -> None:
    assert got is not None
    for item in dataclasses.fields(VerifierOutput):
        torch.testing.assert_close(getattr(got, item.name), getattr(want, item.name), atol=1e-5, rtol=1e-5)


def later(scan: Scan, number: int, **changes: Any) -> Scan:
    return dataclasses.replace(scan, time_ns=int(number * STEP_S * 1e9), **changes)


@pytest.mark.parametrize("length", [16, 48])
def test_sixty_ticks_equal_sixty_windows(length: int) -> None:
    scans = record()
    stream = Stream(network(), PLAN, STEP_S, length)
    assert any(not s.status_E.all() for s in scans[: length + 60]), "no declared outage in the record"
    for t in range(length + 60):
        out = stream.tick(scans[t])
        held = min(t + 1, length) // 8 * 8
        if held < 16:
            assert out is None
        elif t + 1 >= length or t % 8 == 0:
            assert_same(out, whole(scans[t + 1 - held : t + 1]))


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**16),
    start=st.integers(0, 60),
    gap=st.integers(18, 30),
    restored=st.integers(18, 30),
    silence=st.integers(1, 20),
)
def test_silences_gaps_and_restores_do_not_part_it_from_the_window(
    seed: int, start: int, gap: int, restored: int, silence: int
) -> None:
    """Meters that stop for up to longer than a patch and a window, one scan missed, one restart from a saved state."""
    rng = np.random.default_rng(seed)
    scans = list(record()[start : start + 60])
    for meter in rng.integers(0, PLAN.size, 12):
        first = int(rng.integers(0, 50))
        for t in range(first, min(first + silence, 60)):
            z, age = scans[t].z_M.copy(), scans[t].age_M.copy()
            z[meter], age[meter] = np.nan, 255
            scans[t] = dataclasses.replace(scans[t], z_M=z, age_M=age)
    stream, since = Stream(network(), PLAN, STEP_S, 16), 0
    for t, scan in enumerate(scans):
        if t == gap:
            since = t
        if t == restored:
            stream, old = Stream(network(), PLAN, STEP_S, 16), stream
            stream.restore(old.state)
        out = stream.tick(later(scan, t + 5 * (t >= gap)))
        if t - since < 15:
            assert out is None
        elif t % 3 == 0:
            assert_same(out, whole(scans[t - 15 : t + 1]))


def test_a_state_is_plain_arrays_and_can_be_saved(tmp_path: Any) -> None:
    stream = Stream(network(), PLAN, STEP_S, 16)
    with pytest.raises(StreamError, match="no scan has come yet"):
        _ = stream.state
    for scan in record()[:20]:
        stream.tick(scan)
    np.savez(tmp_path / "state.npz", **dataclasses.asdict(stream.state))
    with np.load(tmp_path / "state.npz") as saved:
        state = StreamState(**saved)
    assert state.scans == 16
    again = Stream(network(), PLAN, STEP_S, 16)
    again.restore(state)
    assert_same(again.tick(record()[20]), whole(record()[5:21]))
    assert_same(stream.tick(record()[20]), whole(record()[5:21]))


@pytest.mark.parametrize("change", ["late", "backwards", "longer"])
def test_what_starts_a_stream_anew(change: str) -> None:
    stream, scans = Stream(network(), PLAN, STEP_S, 16), record()
    for t in range(16):
        out = stream.tick(scans[t])
    assert out is not None
    number = {"late": 17, "backwards": 3}.get(change, 16)
    longer = scans[16].x_scale_E * (1.5 if change == "longer" else 1.0)
    assert stream.tick(later(scans[16], number, x_scale_E=longer)) is None
    assert stream.state.scans == 1


def test_refusals_name_the_field() -> None:
    stream, scan = Stream(network(), PLAN, STEP_S, 16), record()[0]
    hot = scan.z_M.copy()
    hot[3] = np.inf
    for bad, part in (
        (dataclasses.replace(scan, z_M=scan.z_M[:-1]), rf"scan.z_M: shape \({PLAN.size - 1},\)"),
        (dataclasses.replace(scan, status_E=scan.status_E[:-1]), "scan.status_E"),
        (dataclasses.replace(scan, z_M=hot), "infinite reading"),
    ):
        with pytest.raises(StreamError, match=part):
            stream.tick(bad)
    for t in range(3):
        stream.tick(record()[t])
    state = stream.state
    with pytest.raises(StreamError, match=r"state\.v_TN"):
        stream.restore(dataclasses.replace(state, v_TN=state.v_TN[:, :-1]))
    with pytest.raises(StreamError, match="scans 20: need whole patches of 8"):
        Stream(network(), PLAN, STEP_S, 20)
    with pytest.raises(StreamError, match=r"only verifier\.encoder patch"):
        Stream(Verifier(VerifierConfig(hidden=16, encoder="tgcn")), PLAN, STEP_S)
    with pytest.raises(StreamError, match="gb-balance"):
        Stream(network(), dataclasses.replace(PLAN, case="gb-balance"), STEP_S)
