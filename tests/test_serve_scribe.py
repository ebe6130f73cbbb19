"""serve.scribe: incidents opened once, followed and closed, the same over a restart; records that any page can read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import STEP, T0, meters, scan

from gg_ray.grid.cases import load_case
from gg_ray.records import CANNOT_TELL, Verdict
from serve.asks import Scored, Shown
from serve.records import AlarmRecord, MapRecord, VerdictRecord, dump, iso_ms
from serve.rings import plan_of_message
from serve.scribe import Heard, Page, Scribe

CASE = load_case("case14")
FAR, NEAR = (0, 11), (0, 1)
"""Pairs of buses: without a branch between them, and with one."""


def heard(minute: float, **changes: Any) -> Heard:
    """A scan as the loop takes it in; what is of the message goes there."""
    own = {name: changes.pop(name) for name in ("grid", "values", "streams", "z_M", "origin") if name in changes}
    message = scan(time_ns=T0 + int(minute * STEP), **own)
    given: dict[str, Any] = {
        "message": message, "plan": plan_of_message(message), "version": (1, int(minute)), "kind": "feed", "gap": 0,
        "filled": 16, "scans": 16, "restarted": False, "ts_ms": 0, "trace": "00-1-2-01", **changes,
    }  # fmt: skip
    return Heard(**given)


def scored(minute: float, verdict: str = "normal", score: float = 3.0, places: Mapping[int, float] | None = None,
           onset: int = -1, model: str = "m/v1", **changes: Any) -> Scored:  # fmt: skip
    told = Verdict(
        case="case14", time_ns=T0 + int(minute * STEP), verdict=verdict, p_implausible=0.5, p_disturbance=0.1,
        p_value=0.01, type="none" if verdict == "normal" else "replay", buses=(), branches=(), onset_scan=onset,
        corrected={"1.v_pu": 1.01}, model=model,
    )  # fmt: skip
    where = {3: score} if places is None else places
    return Scored(verdict=told, score=score, threshold=1.0, places=where, **changes)


def story(steps: Iterable[tuple[float, str, Mapping[int, float]]]) -> list[tuple[Heard, Scored]]:
    return [(heard(t), scored(t, verdict, places=places)) for t, verdict, places in steps]


def told(pages: Sequence[Page]) -> list[tuple[str, str, int]]:
    """What was said of incidents: (id, state, flagged scans), in order."""
    return [(a["id"], a["state"], a["scans"]) for page in pages for a in page.alarms]


def name(minute: int, bus: int) -> str:
    return f"north-{T0 + minute * STEP}-{bus}"


def pages(scribe: Scribe, scans: Iterable[tuple[Heard, Scored]]) -> list[Page]:
    return [scribe.page(one, answer) for one, answer in scans]


def test_an_incident_is_opened_once_followed_and_closed() -> None:
    scribe = Scribe()
    flags = {2: {3: 2.0}, 3: {3: 4.0}, 5: {3: 3.0}}
    steps = [(t, "implausible" if t in flags else "normal", flags.get(t, {})) for t in range(25)]
    made = pages(scribe, [(heard(t), scored(t, v, max([0.0, *p.values()]), p)) for t, v, p in steps])
    own = name(2, 3)
    assert told(made) == [(own, "open", 1), (own, "open", 2), (own, "open", 3), (own, "closed", 3)]
    [closed] = made[21].alarms
    assert (closed["first"], closed["last"]) == (iso_ms(T0 + 2 * STEP), iso_ms(T0 + 5 * STEP))
    assert (closed["peak_score"], closed["places"]) == (4.0, [(CASE.bus_names[3], 4.0)])
    assert [page.verdict["alarms"] for page in made[:7]] == [[], [], [own], [own], [], [own], []]


def test_two_places_are_two_incidents_until_a_flag_joins_them() -> None:
    apart = pages(Scribe(), story([(0, "implausible", {FAR[0]: 2.0}), (1, "implausible", {FAR[1]: 2.0})]))
    assert told(apart) == [(name(0, FAR[0]), "open", 1), (name(1, FAR[1]), "open", 1)]
    scribe = Scribe()
    met = pages(scribe, story([
        (0, "implausible", {FAR[0]: 2.0}), (1, "implausible", {FAR[1]: 2.0}), (2, "disturbance", {}), (3, "normal", {}),
    ]))  # fmt: skip
    assert told(met[2:]) == [(name(1, FAR[1]), "closed", 1), (name(0, FAR[0]), "open", 3)]
    together = pages(Scribe(), story([(0, "implausible", {NEAR[0]: 2.0}), (1, "implausible", {NEAR[1]: 2.0})]))
    assert told(together) == [(name(0, NEAR[0]), "open", 1), (name(0, NEAR[0]), "open", 2)]


def test_a_scan_said_again_is_no_second_flag() -> None:
    scribe = Scribe()
    made = pages(scribe, story([(0, "implausible", {3: 2.0}), (0, "implausible", {3: 5.0}), (1, "normal", {})]))
    assert told(made) == [(name(0, 3), "open", 1)]
    assert made[1].verdict["alarms"] == [name(0, 3)]


def test_a_scan_that_nothing_is_told_of_neither_extends_nor_ends() -> None:
    scribe = Scribe()
    pages(scribe, story([(0, "implausible", {3: 2.0})]))
    silent = pages(scribe, [(heard(t), scored(t, CANNOT_TELL, places={})) for t in range(1, 30)])
    assert told(silent) == []
    assert told(pages(scribe, story([(30, "normal", {})]))) == [(name(0, 3), "closed", 1)]


def test_time_that_runs_back_closes_what_is_open_and_begins_anew() -> None:
    scribe = Scribe()
    pages(scribe, story([(100, "implausible", {3: 2.0})]))
    back = [(heard(t, restarted=t == 0, version=(2, t)), scored(t, "implausible", places={4: 2.0})) for t in range(2)]
    assert told(pages(scribe, back)) == [
        (name(100, 3), "closed", 1), (name(0, 4), "open", 1), (name(0, 4), "open", 2),
    ]  # fmt: skip
    assert scribe.peak("north") == 3.0


def test_another_grid_model_under_the_same_name_begins_a_new_book() -> None:
    """Its incidents would be of buses that the other one does not have."""
    scribe = Scribe()
    pages(scribe, story([(0, "implausible", {13: 2.0})]))
    other = scan("case30", time_ns=T0 + STEP, step_s=60.0)
    one = heard(1, message=other, plan=plan_of_message(other), restarted=True)
    answer = scored(1, "implausible", places={29: 2.0})
    page = scribe.page(one, answer)
    assert told([page]) == [(name(0, 13), "closed", 1), (name(1, 29), "open", 1)]
    assert page.alarms[1]["places"] == [(load_case("case30").bus_names[29], 2.0)]


def test_grids_keep_books_of_their_own_and_are_forgotten_by_name() -> None:
    scribe = Scribe()
    for grid in ("north", "south"):
        scribe.page(heard(0, grid=grid), scored(0, "implausible", 5.0))
    scribe.forget(["south", "nobody"])
    assert (scribe.peak("north"), scribe.peak("south"), scribe.peak("nobody")) == (5.0, -np.inf, -np.inf)
    page = scribe.page(heard(1, grid="south"), scored(1, "implausible"))
    assert [a["id"] for a in page.alarms] == [f"south-{T0 + STEP}-3"]


VERDICTS = st.sampled_from(["normal", "normal", "implausible", "disturbance", CANNOT_TELL])
PLACES = st.dictionaries(st.integers(0, 13), st.floats(0.5, 9.0), max_size=3)
SCANS = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 8, 20]), VERDICTS, PLACES), min_size=1, max_size=25)


@settings(max_examples=40)
@given(SCANS, st.integers(0, 24))
def test_a_restart_leaves_no_trace(steps: list[tuple[int, str, dict[int, float]]], at: int) -> None:
    minutes = np.cumsum([step for step, _, _ in steps])
    scans = [
        (heard(t), scored(t, verdict, max([0.5, *places.values()]), {} if verdict == CANNOT_TELL else places))
        for t, (_, verdict, places) in zip(minutes.tolist(), steps, strict=True)
    ]
    whole = Scribe()
    expected = pages(whole, scans)
    scribe, state, seen = Scribe(), "", []
    for k, (one, answer) in enumerate(scans):
        if k == at:
            scribe = Scribe()
            scribe.resume({"north": state} if state else {})
            assert scribe.peak("north") == (max((a["peak_score"] for a in open_of(seen)), default=-np.inf))
        page = scribe.page(one, answer)
        state = page.state or state
        seen.append(page)
    assert [(page.verdict, page.alarms) for page in seen] == [(page.verdict, page.alarms) for page in expected]
    assert state == next((page.state for page in reversed(expected) if page.state), "")


def open_of(seen: Sequence[Page]) -> list[AlarmRecord]:
    last = {alarm["id"]: alarm for page in seen for alarm in page.alarms}
    return [alarm for alarm in last.values() if alarm["state"] == "open"]


def test_state_and_about_are_told_when_they_change() -> None:
    scribe = Scribe()
    made = pages(scribe, story([(t, "normal", {}) for t in range(3)]))
    assert [page.state for page in made] == ["", "", ""]
    assert [page.about != "" for page in made] == [True, False, False]
    assert json.loads(made[0].about) == {"case": "case14", "step_s": 60.0, "origin": "manual", "since": iso_ms(T0)}
    flagged = pages(scribe, story([(3, "implausible", {3: 2.0}), (4, "normal", {})]))
    assert all(page.state for page in flagged), "the time of the newest scan goes along"
    over = pages(scribe, story([(40, "normal", {}), (41, "normal", {})]))
    assert [page.state for page in over] == ["{}", ""]
    assert scribe.page(heard(42, origin="replay"), scored(42)).about


def test_the_record_of_a_verdict_is_of_the_contract() -> None:
    z = meters()[1].copy()
    z[: z.size // 2] = np.nan
    one = heard(20, z_M=z, values={"FREQ": 50.0}, streams={"FREQ": "live"}, gap=2)
    record = Scribe().page(one, scored(20, "implausible", onset=11)).verdict
    assert set(record) == set(get_type_hints(VerdictRecord))
    assert record["version"] == "1.20"
    assert record["time_ms"] == (T0 + 20 * STEP) // 10**6
    assert record["onset"] == iso_ms(T0 + 16 * STEP), "scan 11 of 0 to 15 is four before the newest"
    assert record["quality"] == {
        "meters": z.size, "heard": round(1 - z.size // 2 / z.size, 4), "streams": {"FREQ": "live"}, "gap_scans": 2,
    }  # fmt: skip
    assert record["latency_ms"] is None, "no broker time, no latency"
    assert record["alarms"] == [name(20, 3)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, None])
def test_what_is_no_number_is_told_as_null(value: float | None) -> None:
    answer = Scored(verdict=scored(0).verdict, score=value, threshold=value)
    page = Scribe().page(heard(0), answer)
    assert page.verdict["score"] is page.verdict["threshold"] is None
    dump(page.verdict)


def test_records_of_incidents_and_maps_are_of_the_contract_and_plain_json() -> None:
    z = np.full(meters()[1].size, np.nan)
    z[:2] = 1.0
    shown = Shown(
        node_N=np.linspace(0, 1, 14, dtype=np.float32), edge_E=np.zeros(20, np.float32),
        v_N=np.ones(14, np.float32), p_E=np.full(20, -12.34, np.float32),
    )  # fmt: skip
    page = Scribe().page(heard(0, z_M=z), scored(0, "implausible", shown=shown, reasons={"parts": []}))
    [alarm] = page.alarms
    assert set(alarm) == set(get_type_hints(AlarmRecord))
    assert json.loads(dump(alarm))["reasons"] == {"parts": []}
    drawn = json.loads(page.map)
    assert set(drawn) == set(get_type_hints(MapRecord))
    assert (len(drawn["node"]), len(drawn["v_pu"]), len(drawn["edge"])) == (14, 14, 20)
    assert drawn["p_mw"][0] == -12.3
    buses = {int(c) % 14 for c in meters()[0].channels[:2]}
    assert [i for i, one in enumerate(drawn["heard"]) if one] == sorted(buses)
    assert Scribe().page(heard(0), scored(0)).map == ""


def test_a_new_log_that_begins_earlier_closes_what_the_old_one_left_open() -> None:
    """After a lost log states are resumed and windows are not: the first scan of a ring may be older than the flags."""
    scribe = Scribe()
    first = scribe.page(heard(50), scored(50, "implausible", places={4: 2.0}))
    [alarm] = first.alarms
    again = Scribe()
    again.resume({"north": first.state})
    page = again.page(heard(3, filled=1), scored(3, "normal"))
    assert [(a["id"], a["state"]) for a in page.alarms] == [(alarm["id"], "closed")]
    later = again.page(heard(4, filled=2), scored(4, "implausible", places={4: 2.0}))
    assert [a["state"] for a in later.alarms] == ["open"]
