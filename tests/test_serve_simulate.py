"""The digital twin: the seed decides it, its truth is the executor's, and an incident moves nothing besides."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice, pairwise

import numpy as np
import pytest

from gg_ray.grid import balance
from gg_ray.grid.cases import CaseError
from gg_ray.scenario.attempt import Attempt
from gg_ray.scenario.worlds import LONGEST_WINDOW
from serve.sessions import LEAD_SCANS, Session, SessionMaker, SimulateError
from serve.simulate import WEEK_NS, Injected, Twin
from serve.wire import ScanMessage, decode, encode

STEP_NS = 60 * 10**9
ARRAYS = ("z_M", "age_M", "status_E", "tap_E", "x_scale_E")


def small(case: str = "case14", seed: int = 3, **other: int | None) -> Twin:
    settings: dict[str, int | None] = {"incidents": 3, "scans": 120}
    return Twin(case, seed=seed, **settings | other)  # type: ignore[arg-type]


def same(one: ScanMessage, two: ScanMessage) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(two, n), equal_nan=n == "z_M") for n in ARRAYS) and (
        one.grid, one.time_ns, one.values
    ) == (two.grid, two.time_ns, two.values)  # fmt: skip


def test_the_seed_decides_scans_and_truth() -> None:
    first, second = (list(islice(small(), 150)) for _ in range(2))
    assert all(same(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    assert [truth for _, truth in first] == [truth for _, truth in second]
    other = list(islice(small(seed=4), 150))
    assert not any(np.array_equal(a.z_M, b.z_M, equal_nan=True) for (a, _), (b, _) in zip(first, other, strict=True))
    maker = small().maker
    late = maker.session(1)
    np.testing.assert_array_equal(
        late.window.z_TM, np.stack([m.z_M for m, _ in first[120:]] + [*late.window.z_TM[30:]])
    )


class Recorded(SessionMaker):
    """Remembers every attempt that was put into a session, and the session before any was."""

    attempts: list[Attempt]
    quiet: Session

    def _splice(self, session: Session, attempt: Attempt, word: str) -> None:
        if not hasattr(self, "attempts"):
            self.attempts = []
            window = session.window
            copies = (window.z_TM.copy(), window.age_TM.copy(), window.status_TE.copy())
            self.before = (*copies, session.tap_TE.copy(), session.x_scale_TE.copy())
        self.attempts.append(attempt)
        super()._splice(session, attempt, word)


@pytest.mark.parametrize("case", ["case14", "gb29", balance.NAME])
@pytest.mark.parametrize("seed", [0, 1])
def test_truth_is_what_the_executor_labelled_and_nothing_else_moved(case: str, seed: int) -> None:
    maker = Recorded(case, incidents=4, disturbances=2, seed=seed, scans=144, plan_id=None, contexts=None, data_dir="")
    session = maker.session(0)
    incidents = [fact for fact in session.facts if fact.kind == "implausible"]
    labels = sorted((a.main.labels for a in maker.attempts if a.main is not None), key=lambda one: one.onset)
    assert len(incidents) == 4
    for fact, label in zip(incidents, labels, strict=True):
        assert (fact.first, fact.stop) == (label.onset, label.end)
        buses = {maker.case.bus_names[i] for i in np.flatnonzero(label.node_N)}
        branches = {maker.case.branch_names[i] for i in np.flatnonzero(label.edge_E)}
        assert set(fact.places) == buses | branches
        assert fact.first >= LEAD_SCANS
    assert all(one.stop <= two.first for one, two in pairwise(incidents))
    window = session.window
    now = (window.z_TM, window.age_TM, window.status_TE, session.tap_TE, session.x_scale_TE)
    touched = np.zeros(144, dtype=bool)
    for label in labels:
        touched[label.onset : label.end + 8] = True  # held values of the last scan are repeated for a while
        during = slice(label.onset, label.end)
        moved = [
            not np.array_equal(a[during], b[during], equal_nan=True) for a, b in zip(now, maker.before, strict=True)
        ]
        assert any(moved), "an incident that nobody could see is none"
    for after, before in zip(now, maker.before, strict=True):
        np.testing.assert_array_equal(after[~touched], before[~touched])


def test_messages_are_what_decoders_accept_and_sessions_are_apart() -> None:
    twin = small("gb29")
    stream = list(islice(twin, 130))
    for message, _ in stream:
        assert same(decode(encode(message)), message)
        assert message.origin == "simulated"
        assert message.values["DEMAND"] > 0
    times = np.array([message.time_ns for message, _ in stream])
    steps = np.diff(times)
    assert set(np.delete(steps, 119)) == {STEP_NS}
    assert steps[119] > LONGEST_WINDOW * STEP_NS
    seen = {one for _, truth in stream for one in truth}
    assert set(twin.injected) == seen
    for one in seen:
        inside = [m.time_ns for m, truth in stream if one in truth]
        assert (inside[0], inside[-1] < one.end_ns) == (one.start_ns, True)
    assert twin.status()["injected"][0].keys() == {
        "grid", "start", "end", "kind", "family", "primitive", "places", "d_eff",
    }  # fmt: skip


def test_sites_share_a_timeline_at_other_hours_of_it() -> None:
    twin, alone = small(sites=4), small()
    stream = list(islice(twin, 4 * 250))
    by_grid: dict[str, list[tuple[ScanMessage, tuple[Injected, ...]]]] = defaultdict(list)
    for message, truth in stream:
        by_grid[message.grid].append((message, truth))
    assert sorted(by_grid) == [f"case14-{number:04d}" for number in range(4)]
    session = [message for message, _ in islice(alone, 120)]
    for number, scans in enumerate(by_grid.values()):
        assert (np.diff([message.time_ns for message, _ in scans]) > 0).all()
        for tick in range(120):
            at = (30 * number + tick) % 120
            message, truth = scans[tick]
            np.testing.assert_array_equal(message.z_M, session[at].z_M)
            assert (message.time_ns - session[at].time_ns) in (0, WEEK_NS)
            assert all(one.start_ns <= message.time_ns < one.end_ns and one.grid == message.grid for one in truth)


def test_a_start_keeps_weekday_and_hour() -> None:
    own = next(iter(small()))[0].time_ns
    asked = 1_900_000_000 * 10**9
    moved = next(iter(Twin("case14", incidents=3, seed=3, scans=120, start_ns=asked)))[0].time_ns
    assert (moved - own) % WEEK_NS == 0
    assert 0 <= moved - asked < WEEK_NS


def test_national_scans_carry_what_was_published() -> None:
    message, _ = next(iter(small(balance.NAME, scans=None)))
    assert (message.step_s, message.case) == (300.0, balance.NAME)
    published = {"CCGT", "NUCLEAR", "WIND"} & message.values.keys()
    assert published
    for name in published:
        column = 1 + balance.CHANNELS.index(name)
        assert message.values[name] == pytest.approx(message.z_M[column] * balance.BASE_MVA, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"incidents": 5, "scans": 120}, "incidents 5: 0 to 4 in a session of 120 scans"),
        ({"scans": 48, "incidents": 0}, "scans 48: 49 to 1440"),
        ({"disturbances": 3}, "disturbances 3: 0 to 2"),
        ({"sites": 0}, "sites 0: 1 to 1440"),
    ],
)
def test_options_out_of_range_name_the_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SimulateError, match=message):
        Twin("case14", **settings)  # type: ignore[arg-type]


def test_an_unknown_grid_is_named() -> None:
    with pytest.raises(CaseError, match="did you mean"):
        Twin("case1")
