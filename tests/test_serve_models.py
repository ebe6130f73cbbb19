"""serve.models, serve.asks and serve.verifier.Replica with the shipped model: the same answers however they are asked
for, and whatever is pushed, models at work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scans import STEP, T0, scan

from gg_ray.config import ConfigError
from gg_ray.grid.cases import load_case
from gg_ray.records import CANNOT_TELL, Window, end_ns
from gg_ray.registry import Registry, RegistryError
from gg_ray.score import SHIPPED
from serve import models as at_work
from serve import verifier
from serve.asks import Ask, Scored
from serve.models import Challenger, Model, Models, load
from serve.records import dump
from serve.rings import Ring, plan_of_message
from serve.verifier import GOOD, Replica, Wanted
from serve.wire import ScanMessage

SCANS = 16
NETWORKS = SHIPPED / "registry"


@pytest.fixture(scope="module")
def champion() -> Model:
    return load(Registry(NETWORKS), "champion")


@pytest.fixture
def models(champion: Model) -> Models:
    return Models([champion])


def feed(count: int, spoil: int | None = None, **changes: Any) -> list[ScanMessage]:
    """Consecutive scans; from one on a power meter reads far too much."""
    out = []
    for k in range(count):
        m = scan(noise=k, time_ns=T0 + k * STEP, **changes)
        if spoil is not None and k >= spoil:
            meter = int(np.flatnonzero(m.channels >= 14)[0])
            m.z_M[meter] += 200 * m.sigma[meter]
        out.append(m)
    return out


def ask(messages: list[ScanMessage], grid: str = "north", shown: bool = True, peak: float = -np.inf) -> Ask:
    """As the loop asks: rows of a ring, one window for every scan from the 16th on."""
    ring = ring_of(messages)
    b, count = ring.block, len(messages) - SCANS + 1
    rows = slice(ring.rows - len(messages), ring.rows)
    return Ask(
        grid=grid, case=messages[0].case, plan=plan_of_message(messages[0]), scans=SCANS, step_s=60.0,
        end_ns=tuple(m.time_ns for m in messages[SCANS - 1 :]), z=b.z[rows], age=b.age[rows], status=b.status[rows],
        tap=b.tap[rows], x_scale=b.x_scale[rows], shown=(shown,) * count, peak=peak,
    )  # fmt: skip


def ring_of(messages: list[ScanMessage]) -> Ring:
    ring = Ring(SCANS)
    for k, message in enumerate(messages):
        assert ring.push(message, k, (1, k)) == "newest"
    return ring


def same(one: Scored, other: Scored) -> None:
    """Equal but for the last digits of float32 sums in another order."""
    assert (one.verdict is None) == (other.verdict is None)
    assert one.error == other.error
    if one.verdict is not None and other.verdict is not None:
        for name in ("case", "time_ns", "verdict", "type", "onset_scan", "model", "note", "p_class"):
            assert getattr(one.verdict, name) == getattr(other.verdict, name), name
    if one.score is not None and other.score is not None:
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert one.threshold == other.threshold
        assert one.places.keys() == other.places.keys()


# --- asks -------------------------------------------------------------------------------------------------------------


def test_windows_of_an_ask_are_those_of_a_ring() -> None:
    grid = load_case("case14")
    messages = feed(SCANS + 3)
    for k, factor in ((5, 1.01), (17, 0.98)):
        taps = grid.tap * factor
        messages[k:] = [dataclasses.replace(m, tap_E=taps) for m in messages[k:]]
    messages[9] = dataclasses.replace(messages[9], x_scale_E=np.full(grid.n_branch, 1.5))
    for k, window in enumerate(ask(messages).windows()):
        own = messages[k : k + SCANS]
        assert end_ns(window) == own[-1].time_ns
        for name, field in (("z_TM", "z_M"), ("age_TM", "age_M"), ("status_TE", "status_E")):
            np.testing.assert_array_equal(getattr(window, name), [getattr(m, field) for m in own])
        np.testing.assert_array_equal(window.x_scale_E, own[-1].x_scale_E)
        np.testing.assert_array_equal(taps_of(window), [m.tap_E for m in own])
        np.testing.assert_array_equal(window.last_tap_E, own[-1].tap_E)
        ring = ring_of(messages[: k + SCANS])
        np.testing.assert_array_equal(window.z_TM, ring.block.z[ring.rows - SCANS : ring.rows])


def taps_of(window: Window) -> np.ndarray[Any, Any]:
    out = np.tile(window.tap_E, (window.z_TM.shape[0], 1))
    for branch, ratio, first in window.moves:
        out[first:, branch] = ratio
    return out


# --- answers ----------------------------------------------------------------------------------------------------------


def test_together_is_as_one_by_one(models: Models) -> None:
    calm, spoiled = ask(feed(SCANS + 1)), ask(feed(SCANS, spoil=8), "south")
    other = ask(feed(SCANS, case="case30"), "east")
    silent = ask([dataclasses.replace(m, z_M=np.full_like(m.z_M, np.nan)) for m in feed(SCANS)], "west")
    asks = [calm, other, spoiled, silent, calm]
    together = models.answer(asks)
    for one, answers in zip(asks, together, strict=True):
        assert len(answers) == len(one.end_ns)
        for a, b in zip(answers, models.answer([one])[0], strict=True):
            same(a, b)
    told = [[a.verdict.verdict for a in answers if a.verdict] for answers in together]
    assert told[0] == ["normal", "normal"]
    assert (told[2], told[3]) == (["implausible"], [CANNOT_TELL])
    assert together[2][0].reasons
    assert together[2][0].places
    assert together[3][0].score is None
    assert [a.verdict.time_ns for a in together[0] if a.verdict] == list(calm.end_ns)
    dump([together[2][0].reasons, list(together[2][0].places.items())])


def test_maps_and_reasons_are_made_where_they_are_wanted(models: Models) -> None:
    [[plain]] = models.answer([ask(feed(SCANS, spoil=8), shown=False, peak=1e9)])
    assert (plain.shown, plain.reasons) == (None, None)
    [[shown]] = models.answer([ask(feed(SCANS, spoil=8))])
    assert shown.shown is not None
    assert (shown.shown.node_N.shape, shown.shown.edge_E.shape, shown.shown.p_E.shape) == ((14,), (20,), (20,))
    assert 0.9 < float(shown.shown.v_N.min()) < 1.2
    out = feed(SCANS)
    out = [dataclasses.replace(m, status_E=np.where(np.arange(20) == 4, 0, 1).astype(np.uint8)) for m in out]
    [[declared]] = models.answer([ask(out)])
    assert declared.shown is not None
    assert declared.shown.p_E[4] == 0.0, "nothing flows where it is declared open"


def test_a_window_that_cannot_be_judged_says_so_alone(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = at_work.judge
    bad = T0 + SCANS * STEP

    def breaks(network: Any, calibration: Any, windows: Any, *rest: Any) -> Any:
        if any(end_ns(window) == bad for window, _ in windows):
            raise ValueError("the matrix\nis singular")
        return judge(network, calibration, windows, *rest)

    monkeypatch.setattr(at_work, "judge", breaks)
    three, one = models.answer([ask(feed(SCANS + 2)), ask(feed(SCANS), "south")])
    assert [a.error for a in three] == ["", "the matrix is singular", ""]
    assert [a.verdict is None for a in three] == [False, True, False]
    assert one[0].verdict is not None


def test_a_grid_without_a_model_says_so_alone(models: Models) -> None:
    stray = dataclasses.replace(ask(feed(SCANS)), case="gb-balance")
    [[away], [here]] = models.answer([stray, ask(feed(SCANS))])
    assert away == Scored(verdict=None, error="no model judges gb-balance")
    assert here.verdict is not None
    with pytest.raises(RegistryError, match="no model to serve"):
        Models([])


# --- canary and shadow ------------------------------------------------------------------------------------------------


def rival(champion: Model, shift: float = 50.0, run: str = "other") -> Model:
    """The same network with another threshold: everything is normal to it."""
    limits = {"case14": champion.limit("case14") + shift}
    return dataclasses.replace(champion, run=run, limits=limits)


def test_a_canary_takes_grids_by_name_and_keeps_them(champion: Model) -> None:
    other = rival(champion)
    grids = [f"case14-{i:04d}" for i in range(2_000)]

    def taken(share: float) -> set[str]:
        models = Models([champion], Challenger(other, canary=share))
        return {grid for grid in grids if models.answers_for(grid, "case14") is other}

    assert taken(0.0) == set()
    assert taken(1.0) == set(grids)
    assert taken(0.1) == taken(0.1) < taken(0.3), "a larger share keeps those that it had"
    assert len(taken(0.1)) == pytest.approx(200, abs=60)


def test_each_answer_names_the_model_that_gave_it_even_of_two_runs_of_one_name(champion: Model) -> None:
    """Two folders can have the same name: their models were taken for one."""
    for run in ("other", champion.run):
        models = Models([champion], Challenger(rival(champion, run=run), canary=0.5))
        grids = [f"g{i}" for i in range(4)]
        answers = models.answer([ask(feed(SCANS, spoil=8), grid) for grid in grids])
        for grid, [answer] in zip(grids, answers, strict=True):
            own = models.answers_for(grid, "case14")
            assert answer.threshold == own.limit("case14")
            assert answer.verdict is not None
            assert answer.verdict.model == own.name
            assert answer.verdict.verdict == ("implausible" if own is champion else "normal")


def test_a_shadow_compares_and_changes_nothing(champion: Model) -> None:
    plain, shadowed = Models([champion]), Models([champion], Challenger(rival(champion), shadow=0.5))
    asks = [ask(feed(SCANS, spoil=8)), ask(feed(SCANS), "south")]
    for _ in range(4):
        for [a], [b] in zip(plain.answer(asks), shadowed.answer(asks), strict=True):
            same(a, b)
    told = shadowed.about()[-1]
    assert (told["role"], told["windows"], told["verdicts_differ"]) == ("challenger", 4, 2)
    assert told["mean_score_difference"] == 0.0


# --- the replica ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two versions of the shipped model; the champion is the first."""
    home = tmp_path / "mine"
    shutil.copytree(NETWORKS, home / "registry")
    registry = Registry(home / "registry")
    first = registry.resolve("champion")
    m = first.manifest
    registry.register(
        registry.load_weights(first), architecture=first.architecture, feature_schema=int(m["feature_schema"]),
        metrics=first.metrics, run="mine", seed=0, commit="0", card="x", extra=m["extra"],
    )  # fmt: skip
    return home


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Replica]:
    monkeypatch.setattr(at_work, "shipped", lambda: [])
    monkeypatch.setattr(verifier, "shipped", lambda: [])
    monkeypatch.setattr(verifier, "WATCH_S", 0.02)
    made = Replica(state_dir=str(tmp_path / "state"))
    yield made
    made.close()
    if made._thread.ident is not None:
        made._thread.join(20.0)


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def version(replica: Replica) -> str:
    return str(replica.about()["models"][0]["version"])


def test_a_moved_alias_is_followed_and_a_damaged_model_keeps_the_old_one(run: Path, replica: Replica) -> None:
    replica.want({"registries": [str(run)]})
    first, before = version(replica), replica.models
    registry = Registry(run / "registry")
    registry.promote("latest", "champion")
    until(lambda: replica.about()["swaps"] == 2)
    second = version(replica)
    assert (first, second) != (second, first)
    assert replica.models is not before, "one reference is exchanged, the old set is not altered"
    assert before is not None
    assert before.models[0].id == first
    [[answer]] = replica.answer([ask(feed(SCANS))])
    assert answer.verdict is not None
    assert answer.verdict.model == f"mine/{second.rpartition('/')[2]}"

    weights = registry.resolve(first).path / "model.safetensors"
    weights.chmod(0o644)
    whole = weights.read_bytes()
    registry.rollback("champion")
    until(lambda: version(replica) == first)
    registry.promote("latest", "champion")
    until(lambda: version(replica) == second)
    spoiled = bytearray(whole)
    spoiled[len(spoiled) // 2] ^= 1
    weights.write_bytes(spoiled)
    replica.want({"registries": [str(run)], "version": first.rpartition("/")[2]})
    until(lambda: replica.about()["trouble"])
    assert "model.safetensors" in replica.about()["trouble"]
    assert version(replica) == second
    replica.check()
    replica.want({"registries": [str(run)]})
    until(lambda: not replica.about()["trouble"])


BAD = {
    "unknown name": ({"registry": []}, "registries"), "share": ({"canary": 2.0}, "shares 0 to 1"),
    "NaN": ({"shadow": float("nan")}, "shares 0 to 1"), "version as a number": ({"version": 3}, "version: 3"),
    "budget as a word": ({"budget": "one"}, "budget: 'one'"), "a folder by itself": ({"registries": "mine"}, "mine"),
    "a number as a folder": ({"registries": [5]}, "registries: [5]"), "no folders": ({"registries": None}, "None"),
    "challenger as a number": ({"challenger": 5}, "challenger: 5"), "follow as a word": ({"follow": "no"}, "follow"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_refused_by_name(name: str) -> None:
    given, said = BAD[name]
    with pytest.raises(ConfigError) as refused:
        Wanted.of(given)
    assert said in str(refused.value)


def test_a_bad_setting_at_the_first_time_is_told_and_models_work(
    champion: Model, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading what there was before cleared what was to be told."""
    monkeypatch.setattr(Wanted, "load", lambda self: Models([champion]))
    replica.want({"registries": [5]})
    assert "registries: [5]" in replica.about()["trouble"]
    assert replica.models is not None
    replica.want({})
    assert replica.about()["trouble"] == ""


def test_nothing_that_a_push_does_is_raised(
    champion: Model, replica: Replica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    good = Models([champion])
    monkeypatch.setattr(Wanted, "load", lambda self: good)
    replica.want({})
    assert replica.models is good, "a state folder that cannot be written is no trouble of the models"
    for error in (RuntimeError("shape"), AttributeError("x"), MemoryError(), OSError(5, "I/O"), ZeroDivisionError()):

        def fail(self: Wanted, error: BaseException = error) -> Models:
            raise error

        monkeypatch.setattr(Wanted, "load", fail)
        replica._exchange()
        assert replica.models is good
        assert replica.about()["trouble"]


def test_a_replica_begins_with_what_worked_last(
    champion: Model, replica: Replica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Wanted] = []

    def only_mine(self: Wanted) -> Models:
        seen.append(self)
        if self.registries != ("mine",):
            raise RegistryError("no registry there")
        return Models([champion])

    monkeypatch.setattr(Wanted, "load", only_mine)
    replica.want({"registries": ["mine"], "budget": 0.5})
    assert json.loads((tmp_path / "state" / GOOD).read_text()) == {
        "registries": ["mine"], "version": "champion", "budget": 0.5,
    }  # fmt: skip
    later = Replica(state_dir=str(tmp_path / "state"))
    later._wanted = Wanted(registries=("gone",))
    later._exchange()
    assert later.models is not None
    assert seen[-1] == Wanted(registries=("mine",), budget=0.5)
    assert "no registry there" in later.about()["trouble"]
    with pytest.raises(RegistryError, match="no models yet"):
        Replica().answer([])
