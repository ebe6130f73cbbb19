"""gg-ray data and gg-ray feed from the command line: what they print, store and refuse; the deployment examples."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from elexon_fakes import FakeClock, FakeQueue, FakeSource
from elexon_rows import DATA, batch, with_data
from rich.console import Console

from gg_ray import cli, data_commands
from gg_ray.bench import elexon as bench
from gg_ray.config import ConfigError
from gg_ray.data_commands import when
from gg_ray.data_options import DataOptions
from gg_ray.elexon import iris
from gg_ray.elexon.errors import Unavailable
from gg_ray.elexon.rows import DailyDemandRow
from gg_ray.elexon.sources import ALONE, Shared
from gg_ray.elexon.store import DayStore
from gg_ray.options import options_of, parse
from serve.rediscache import RedisCache
from serve.redislimits import RedisBucket

ROOT = Path(__file__).resolve().parent.parent
FUELINST = DATA / "elexon_fuelinst_5min"
NOW = datetime(2024, 6, 4, 12, tzinfo=UTC)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSource:
    """`insights` without a network, at noon of 4 June 2024; the store in a folder of the test."""
    clock = FakeClock(NOW)
    source = FakeSource(clock, codes=("CCGT",))
    monkeypatch.setattr(data_commands, "make_source", lambda *_, **__: source)
    monkeypatch.setattr(data_commands, "utc_now", clock.now)
    monkeypatch.setenv("GG_STORE_DIR", str(tmp_path / "store"))
    return source


def test_fetch_stores_shows_each_window_and_sums_up(
    service: FakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["data", "fetch", "--stream", "DEMAND", "FUELINST", "--from", "2024-06-01", "--to", "2024-06-02"]
    assert cli.main(asked) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "DEMAND: 96 rows new or changed; 1 windows for 2 days, 0 days already whole; no gap in 96 periods",
        "FUELINST: 576 rows new or changed; 2 windows for 2 days, 0 days already whole; no gap in 576 periods",
    ]
    assert err.splitlines() == [
        "DEMAND 1/1 to 2024-06-02 23:59Z: 96 rows", "FUELINST 1/2 to 2024-06-01 23:59Z: 288 rows",
        "FUELINST 2/2 to 2024-06-02 23:59Z: 288 rows",
    ]  # fmt: skip
    assert len(DayStore(tmp_path / "store").days("FUELINST")) == 2
    service.asked.clear()
    assert cli.main(asked) == 0
    assert service.asked == []
    assert "2 days already whole" in capsys.readouterr().out


def test_a_terminal_gets_a_bar(
    service: FakeSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        data_commands, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100, _environ={})
    )
    assert cli.main(["data", "fetch", "--stream", "FUELINST", "--from", "2024-06-01", "--to", "2024-06-02"]) == 0
    assert "2/2" in shown.getvalue()
    assert "2024-06-02" in shown.getvalue()
    assert capsys.readouterr().out.startswith("FUELINST: 576 rows")


def test_sync_brings_the_usual_streams_and_fails_aloud(
    service: FakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.fails = lambda stream, _start: Unavailable("503") if stream == "FUELHH" else None
    assert cli.main(["data", "sync", "--days-back", "1", "--store", str(tmp_path / "other")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(data_commands.SYNCED)
    assert lines[1].endswith("stopped: 2024-06-03 to 2024-06-04: 503")
    store = DayStore(tmp_path / "other")
    assert store.days("FREQ") == [datetime(2024, 6, day).date() for day in (3, 4)]


def test_sync_names_a_day_whose_energy_is_not_that_of_its_half_hours(
    service: FakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = date(2024, 6, 2)
    wrong = DailyDemandRow(settlement_date=day, demand_mwh=676_741, published=NOW)
    DayStore(tmp_path / "store").merge("INDOD", [wrong], NOW)
    asked = ["data", "sync", "--stream", "DEMAND", "INDOD", "--days-back"]
    assert cli.main([*asked, "3"]) == 0
    *streams, said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in streams] == ["DEMAND", "INDOD"]
    assert re.fullmatch(
        r"INDOD and INDO disagree: 2024-06-02: INDOD 676,741 MWh, half of its 48 INDO 49\d,\d{3}\.\d MWh", said
    )
    assert cli.main([*asked, "1"]) == 0
    assert "disagree" not in capsys.readouterr().out, "another day's"
    assert cli.main(["data", "check"]) == 0
    assert "days off their energy" in capsys.readouterr().out


def test_polling_once_says_what_is_new(service: FakeSource, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["feed", "--streams", "FUELINST", "--once"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["t0"] for line in lines] == [f"2024-06-04T11:{m}:00Z" for m in (25, 30, 35, 40, 45, 50)]
    assert {line["origin"] for line in lines} == {"live"}
    service.fails = lambda _stream, _start: Unavailable("503")
    assert cli.main(["feed", "--streams", "FUELINST", "--once"]) == 1
    assert capsys.readouterr().err == "FUELINST: 503\n"


def test_auto_falls_back_on_its_own_week_and_leaves_the_histories_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock(datetime.now(UTC))
    live = FakeSource(clock, codes=("CCGT",))
    monkeypatch.setattr("gg_ray.elexon.insights.InsightsSource", lambda *_, **__: live)
    monkeypatch.setenv("GG_STORE_DIR", str(tmp_path))
    monkeypatch.delenv("REDIS_URL", raising=False)
    DayStore(tmp_path).write("FUELINST", NOW.date(), [], NOW)
    args = ["feed", "--source", "auto", "--streams", "FUELINST", "--once"]
    assert cli.main(args) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    live.fails = lambda _stream, _start: Unavailable("503")
    assert cli.main(args) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["values"] for line in again] == [line["values"] for line in first]
    assert ({line["origin"] for line in first}, {line["origin"] for line in again}) == ({"live"}, {"cache"})
    assert DayStore(tmp_path).days("FUELINST") == [NOW.date()]
    assert DayStore(tmp_path / "week").days("FUELINST")[-1] >= (clock.t - timedelta(hours=1)).date()


def test_redis_is_shared_by_what_polls_where_it_is_named(
    service: FakeSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Shared] = []
    monkeypatch.setattr(data_commands, "make_source", lambda *_, **parts: given.append(parts["shared"]) or service)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    feed = ["feed", "--streams", "FUELINST", "--once", "--source"]
    bring = ["data", "fetch", "--stream", "FUELINST", "--from", "2024-06-04", "--source"]
    polls = [[*feed, "auto"], [*feed, "insights"], [*bring, "insights"], [*bring, "elexondataportal"]]
    assert [cli.main(args) for args in polls] == [0] * 4
    assert {type(held.cache) for held in given} == {RedisCache}
    assert {type(held.buckets.of("data.elexon.co.uk")) for held in given} == {RedisBucket}
    given.clear()
    assert cli.main([*feed, "replay"]) == 0
    monkeypatch.delenv("REDIS_URL")
    assert cli.main([*feed, "auto"]) == 0
    assert given == [ALONE, ALONE]
    monkeypatch.setenv("REDIS_URL", "127.0.0.1:1")
    assert [cli.main(args) for args in polls] == [2] * 4
    assert "REDIS_URL: Redis URL must specify" in capsys.readouterr().err


def test_iris_needs_an_account_and_the_extra_and_then_feeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("GG_IRIS_QUEUE", "GG_IRIS_CLIENT_ID", "GG_IRIS_SECRET")
    args = ["feed", "--source", "iris", "--once"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert cli.main(args) == 2
    assert f"source iris: set {', '.join(names)}" in capsys.readouterr().err
    for name in names:
        monkeypatch.setenv(name, name.lower())
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    assert cli.main(args) == 1
    assert "pip install 'gg-ray[iris]'" in capsys.readouterr().err

    clock, asked = FakeClock(NOW), []
    queue = FakeQueue(clock=clock)
    queue.push("FUELINST", batch(NOW), NOW + timedelta(minutes=5, seconds=20))

    @asynccontextmanager
    async def connected(*account: str) -> AsyncIterator[FakeQueue]:
        asked.append(account)
        yield queue

    monkeypatch.setattr(iris, "connected", connected)
    monkeypatch.setattr(data_commands, "utc_now", clock.now)
    assert cli.main(args) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["t0"], line["origin"], len(line["values"])) == ("2024-06-04T12:00:00Z", "live", 20)
    assert line["missing"] == ["FREQ"]
    assert (asked, queue.log) == ([tuple(name.lower() for name in names)], ["complete"])


@with_data
def test_replay_prints_one_json_line_per_scan(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["feed", str(FUELINST / "fuelinst_2024-06.parquet"), "--source", "replay", "--from", "2024-06-04T12:30Z"]
    assert cli.main([*args, "--until", "2024-06-04T12:45Z"]) == 0
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["values"]["CCGT"] > 0 for line in lines] == [True, False, False]
    assert cli.main([*args, "--until", "2024-06-04T12:45Z"]) == 0
    assert capsys.readouterr().out == out
    assert cli.main([*args, "--once"]) == 0
    assert capsys.readouterr().out == out.splitlines(keepends=True)[0]


def test_the_step_is_that_of_the_fuels_unless_it_is_given(
    service: FakeSource, capsys: pytest.CaptureFixture[str]
) -> None:
    for streams, more, step in (
        (["FUELHH", "DEMAND", "FREQ"], [], 1800), (["FUELHH"], ["--step", "300"], 300), (["FUELINST"], [], 300),
        (["FREQ"], [], 300),
    ):  # fmt: skip
        assert cli.main(["feed", "--once", "--streams", *streams, *more]) == 0
        assert {json.loads(line)["step_s"] for line in capsys.readouterr().out.splitlines()} == {step}


@with_data
def test_check_of_a_file_and_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(FUELINST / "fuelinst_2022-03.parquet")]) == 0
    out = capsys.readouterr().out
    assert "173" in out
    assert "missing slots" in out
    assert "2022-03-17T10:35" in out
    assert "INTIFA2 -1,638 MW on 1,000" in out, "broken in two"
    assert cli.main(["data", "check", str(FUELINST), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["name"]).name for line in found] == [
        "fuelinst_2022-03.parquet", "fuelinst_2024-06.parquet", "fuelinst_legacy_2019-07-01_03.csv",
    ]  # fmt: skip
    assert found[1]["counts"] == {"all_zero_slots": 7}
    assert cli.main(["data", "check", str(DATA / "events")]) == 0  # lists of events are passed over, and said
    assert capsys.readouterr().err.count(".csv: no history\n") == 2


def test_check_of_a_store_and_of_what_cannot_be_read(
    service: FakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "check"]) == 1
    assert "store: no such file or folder; gg-ray data fetch fills a store" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["data", "check", str(tmp_path / "empty")]) == 1
    assert "neither a store nor a folder with histories" in capsys.readouterr().err
    assert cli.main(["data", "check", str(tmp_path / "none.csv")]) == 1
    assert "none.csv: no such file" in capsys.readouterr().err
    cli.main(["data", "fetch", "--stream", "DEMAND", "--from", "2024-06-01", "--to", "2024-06-03"])
    store = DayStore(tmp_path / "store")
    capsys.readouterr()
    assert cli.main(["data", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3 * 48
    store.path("DEMAND", store.days("DEMAND")[1]).write_bytes(b"torn")
    assert cli.main(["data", "check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {
        "damaged_file": 1, "missing_slots": 48, "short_days": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("data checks", "did you mean check"),
        ("data fetch", "name a --stream and a first day --from"),
        ("data fetch --stream FUELINST --from 2024-06-02 --to 2024-06-01", "lies before"),
        ("data fetch --stream FUELINST --from 01/06/2024", "--from '01/06/2024': a UTC day such as"),
        ("data fetch --stream FUELINST --from 2024-06-01T12:00", "or a time such as"),
        ("data fetch --stream FUELINST --frm 2024-06-01", "did you mean --from"),
        ("data fetch --stream FUELINST --from 2024-06-01 --source insight", "did you mean insights"),
        (
            "data fetch --stream FUELINST --from 2024-06-01 --source auto",
            "auto brings no history; choose from",
        ),
        ("data sync --days-back 0", "--days-back 0: at least 1"),
        ("feed --source replai", "did you mean replay"),
        ("feed --to kafak", "did you mean kafka"),
        ("feed --to stdotu", "did you mean stdout"),
        ("feed --from 2024-06-01", "--from and files belong to --source replay"),
        ("feed --step 60", "choose from 1800, 300, 15"),
        ("feed --speed 0 --source replay", "more than 0"),
    ],
)
def test_misuse_is_exit_code_2_with_the_way_out(args: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(args)) == 2
    assert message in capsys.readouterr().err


def test_unknown_streams_and_empty_stores_are_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "fetch", "--stream", "FUELINS", "--from", "2024-06-01"]) == 1
    assert "did you mean FUELINST" in capsys.readouterr().err
    assert cli.main(["feed", "--source", "replay", "--store", str(tmp_path)]) == 1
    assert f"nothing is recorded in {tmp_path}; gg-ray data fetch fills a store" in capsys.readouterr().err
    assert cli.main(["feed", str(tmp_path), "--source", "replay"]) == 1
    assert f"{tmp_path}: a folder; name the files in it" in capsys.readouterr().err


def test_days_and_times() -> None:
    assert when("2024-06-01", "--from") == datetime(2024, 6, 1, tzinfo=UTC)
    assert when("2024-06-01", "--to", whole_day=True) == datetime(2024, 6, 2, tzinfo=UTC) - timedelta(microseconds=1)
    assert when("2024-06-01T13:00+01:00", "--to", whole_day=True) == datetime(2024, 6, 1, 12, tzinfo=UTC)
    with pytest.raises(ConfigError, match="--from ''"):
        when("", "--from")


# --- examples --------------------------------------------------------------------------------------------------------


def parses(words: list[str]) -> DataOptions:
    assert words[:2] == ["gg-ray", "data"]
    assert {word for word in words if word.startswith("--")} <= set(options_of(DataOptions))
    return parse(DataOptions, words[2:], prog="gg-ray data")


def test_the_cron_line_parses() -> None:
    lines = (ROOT / "deploy" / "elexon-sync.cron").read_text(encoding="utf-8").splitlines()
    jobs = [line for line in lines if line[:1].isdigit()]
    settings = dict(line.split("=", 1) for line in lines if "=" in line.split("#")[0].split(" ")[0])
    assert len(jobs) == 1
    minute, hour, *rest, user, command = jobs[0].split(maxsplit=6)
    assert (0 < int(minute) < 60, 4 <= int(hour) < 24, rest, user) == (True, True, ["*"] * 3, "grid-guardian")
    assert parses(shlex.split(command)) == DataOptions(action="sync", days_back=7)
    assert settings["CRON_TZ"] == "UTC"
    assert settings["GG_STORE_DIR"].startswith("/")


def test_the_kubernetes_cron_job_parses_and_never_overlaps() -> None:
    job = yaml.safe_load((ROOT / "deploy" / "elexon-sync.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"  # one writer per store
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert parses(container["command"]) == DataOptions(action="sync", days_back=7)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert container["env"] == [{"name": "GG_STORE_DIR", "value": mounts["store"]}]
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_benchmark_in_small() -> None:
    found = bench.run(days=1, week_polls=12)
    assert found["year_rows"] == 288 * 20
    assert found["week_messages"] >= 12
    assert found["rows_per_s"] > 1_000
