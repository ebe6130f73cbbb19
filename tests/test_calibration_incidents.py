"""gg_ray.calibration.incidents: scan after scan gives the same incidents as the whole record at once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.incidents import Grouper, Incident, Sighting, group
from gg_ray.records import U8

NAMES = ("a", "b", "c", "d", "e")
EDGES = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])
"""A line a-b-c-d-e."""


def sighting(time: int, places: dict[int, float], **changes: object) -> Sighting:
    base = Sighting(
        time_ns=time, onset_ns=time - 1, verdict="implausible", type="S1", score=max(places.values(), default=1.0),
        p_value=0.01, places=places, reasons={"at": time}, corrected={"a.v_pu": 1.0 + time},
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def stepwise(
    scans: list[tuple[int, Sighting | None, U8 | None]], gap: int, restarts: frozenset[int] = frozenset()
) -> list[Incident]:
    """Scan after scan; before some of them a new grouper goes on from what the old one left behind."""
    grouper, closed = Grouper("g", NAMES, EDGES, gap), []
    for number, (time, seen, status) in enumerate(scans):
        if number in restarts:
            left = json.loads(json.dumps(grouper.as_state()))
            grouper = Grouper("g", NAMES, EDGES, gap)
            grouper.resume(left)
        closed += grouper.update(time, seen, status)
    return sorted([*closed, *grouper.open], key=lambda incident: (incident.first_ns, incident.id))


scan = st.one_of(
    st.none(),
    st.tuples(
        st.dictionaries(st.integers(0, 4), st.integers(1, 9).map(float), max_size=4),
        st.sampled_from(["implausible", "disturbance"]), st.sampled_from(["none", "S1", "A2"]),
        st.lists(st.sampled_from([0, 1]), min_size=4, max_size=4),
    ),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), scan), min_size=1, max_size=25), st.integers(1, 6),
    st.frozensets(st.integers(1, 24), max_size=4),
)  # fmt: skip
def test_all_ways_agree(record: list[tuple[int, object]], gap: int, restarts: frozenset[int]) -> None:
    """At once, scan by scan, with restarts: irregular scans, switched branches, flags without place, late meetings."""
    time, scans = 0, []
    for step, drawn in record:
        time += step
        if drawn is None:
            scans.append((time, None, None))
            continue
        places, verdict, kind, status = drawn  # type: ignore[misc]
        scans.append((time, sighting(time, places, verdict=verdict, type=kind), np.array(status, dtype=np.uint8)))
    whole = group("g", NAMES, EDGES, [(seen, status) for _, seen, status in scans if seen is not None], gap)
    assert stepwise(scans, gap) == whole
    assert stepwise(scans, gap, restarts) == whole
    assert len({incident.id for incident in whole}) == len(whole)
    flagged = [seen for _, seen, _ in scans if seen is not None]
    assert {incident.first_ns for incident in whole} <= {seen.time_ns for seen in flagged}
    assert (whole == []) == (flagged == [])
    assert max((i.peak_score for i in whole), default=0.0) == max((s.score for s in flagged), default=0.0)


def test_neighbours_merge_and_strangers_do_not() -> None:
    scans = [(sighting(10, {0: 1.0, 1: 2.0, 4: 3.0}), None)]
    near, far = group("g", NAMES, EDGES, scans, 5)
    assert [near.places, far.places] == [(("b", 2.0), ("a", 1.0)), (("e", 3.0),)]
    assert [near.id, far.id] == ["g-10-0", "g-10-4"]
    cut = np.array([0, 1, 1, 1], dtype=np.uint8)
    assert len(group("g", NAMES, EDGES, [(scans[0][0], cut)], 5)) == 3, "the branch a-b is out of service"


def test_fifteen_minutes_are_one_incident_and_more_are_two() -> None:
    minute = 60 * 10**9
    for apart, count in ((1, 1), (15, 1), (16, 2)):
        scans = [(sighting(minute * t, {2: 1.0}), None) for t in (1, 1 + apart)]
        assert len(group("g", NAMES, EDGES, scans)) == count


def test_what_an_incident_holds() -> None:
    first = sighting(10, {2: 1.0, 3: 1.0}, type="S1", verdict="disturbance", p_value=0.02)
    second = sighting(12, {2: 7.0, 1: 5.0}, type="A2", p_value=0.001, onset_ns=4)
    third = sighting(13, {2: 2.0}, type="A2")
    [found] = group("g", NAMES, EDGES, [(first, None), (second, None), (third, None)], 5)
    assert (found.onset_ns, found.first_ns, found.last_ns, found.scans) == (4, 10, 13, 3)
    assert (found.verdict, found.type) == ("implausible", "A2")
    assert (found.peak_score, found.p_value) == (7.0, 0.001)
    assert found.places == (("c", 7.0), ("b", 5.0), ("d", 1.0))
    assert (found.reasons, found.corrected) == ({"at": 12}, {"a.v_pu": 13.0})
    assert json.loads(json.dumps(found.as_json()))["id"] == "g-10-2"
    [tie] = group("g", NAMES, EDGES, [(first, None), (replace(second, verdict="implausible"), None)], 5)
    assert tie.verdict == "implausible", "at a tie the verdict that implies more"
    many = sighting(10, {i: float(i) for i in range(5)})
    everywhere = group("g", [*NAMES, "f", "h"], EDGES, [(replace(many, places={**many.places, 5: 9.0}), None)], 5)
    assert [len(incident.places) for incident in everywhere] == [5, 1]


def test_two_incidents_that_meet_keep_the_older_name() -> None:
    grouper = Grouper("g", NAMES, EDGES, 5)
    grouper.update(1, sighting(1, {0: 1.0}))
    grouper.update(2, sighting(2, {2: 1.0}))
    assert [incident.id for incident in grouper.open] == ["g-1-0", "g-2-2"]
    assert grouper.update(3, sighting(3, {1: 1.0})) == []
    assert [incident.id for incident in grouper.open] == ["g-1-0"]
    assert grouper.update(8, None) == []
    [closed] = grouper.update(9, None)
    assert (closed.id, closed.scans) == ("g-1-0", 3)
    assert grouper.open == []


def test_scans_out_of_order_are_refused() -> None:
    grouper = Grouper("g", NAMES, EDGES, 5)
    grouper.update(5, None)
    for time in (5, 4):
        with pytest.raises(CalibrationError, match="in order, once each"):
            grouper.update(time, None)
    with pytest.raises(CalibrationError, match="sighting of 7 given for the scan at 8"):
        grouper.update(8, sighting(7, {0: 1.0}))


def test_a_standing_incident_stays_small() -> None:
    grouper = Grouper("g", NAMES, EDGES, 5)
    sizes = []
    for time in range(1, 400):
        grouper.update(time, sighting(time, {1: 2.0, 2: 1.0}))
        sizes.append(len(json.dumps(grouper.as_state())))
    assert grouper.open[0].scans == 399
    assert sizes[-1] < sizes[20] + 50


@pytest.mark.parametrize(
    "kept", [{}, {"now": 1, "scans": 1, "live": [{"start": [1]}]}, {"now": "x", "scans": 1, "live": []}]
)
def test_a_state_that_is_none_is_refused(kept: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match="not the state of a grouper"):
        Grouper("g", NAMES, EDGES, 5).resume(kept)
