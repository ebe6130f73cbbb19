"""gg-ray feed into Kafka and of simulated scans, from the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from elexon_fakes import FakeClock, FakeSource
from elexon_rows import DATA, data_file
from live_servers import all_messages, servers
from redis import Redis

from gg_ray import cli, data_commands
from serve import feed_commands, keys, topics
from serve.embedded import Broker, RedisServer
from serve.settings import KafkaSettings
from serve.simulate import Twin
from serve.wire import ScanMessage, decode

SIMULATE = ["feed", "--source", "simulate", "--case", "case14", "--scans", "60", "--incidents", "1"]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Broker, RedisServer]]:
    with servers() as found:
        yield found


@pytest.fixture
def kafka(both: tuple[Broker, RedisServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> KafkaSettings:
    """An empty broker and store, in the environment."""
    broker, redis = both
    broker.kill()
    broker.restart()
    Redis.from_url(redis.url).flushall()
    monkeypatch.setenv("KAFKA_BOOTSTRAP", broker.bootstrap)
    monkeypatch.setenv("REDIS_URL", redis.url)
    monkeypatch.setenv("GG_STORE_DIR", str(tmp_path / "store"))
    return KafkaSettings(bootstrap=broker.bootstrap)


def arrived(kafka: KafkaSettings) -> list[ScanMessage]:
    return [decode(message.value() or b"") for message in all_messages(kafka, kafka.topics.readings)]


def test_simulated_scans_as_lines_are_messages_of_the_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    stop = next(iter(Twin("case14", incidents=1, scans=60)))[0].time_ns + 40 * 60 * 10**9
    until = datetime.fromtimestamp(stop / 1e9, tz=UTC).isoformat()
    assert cli.main([*SIMULATE, "--until", until]) == 0
    out, err = capsys.readouterr()
    found = [decode(line.encode()) for line in out.splitlines()]
    assert len(found) == 41
    assert found[-1].time_ns == stop
    told = [json.loads(line.removeprefix("injected: ")) for line in err.splitlines() if line.startswith("injected: ")]
    assert "implausible" in {one["kind"] for one in told}
    assert cli.main([*SIMULATE, "--once"]) == 0
    assert capsys.readouterr().out == out.splitlines(keepends=True)[0]


def test_simulated_scans_into_kafka_with_what_was_injected_in_the_status(
    kafka: KafkaSettings, both: tuple[Broker, RedisServer]
) -> None:
    until = next(iter(Twin("case14", incidents=1, scans=60)))[0].time_ns + 59 * 60 * 10**9
    moment = datetime.fromtimestamp(until / 1e9, tz=UTC).isoformat()
    assert cli.main([*SIMULATE, "--to", "kafka", "--name", "twin", "--speed", "1e6", "--until", moment]) == 0
    assert [(scan.epoch, scan.seq) for scan in arrived(kafka)] == [(1, i) for i in range(1, 61)]
    status = json.loads(Redis.from_url(both[1].url).get(keys.status("feed", "twin")) or "{}")
    assert (status["state"], status["source"], status["acknowledged"]) == ("stopped", "simulate", 60)
    assert "implausible" in {one["kind"] for one in status["injected"]}


def test_sigterm_ends_a_feed_in_order(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = feed_commands._announced

    def until_the_fifth(twin: Twin) -> Iterator[ScanMessage]:
        for number, message in enumerate(announced(twin)):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield message

    monkeypatch.setattr(feed_commands, "_announced", until_the_fifth)
    assert cli.main([*SIMULATE, "--to", "kafka", "--speed", "6000"]) == 0
    assert len(arrived(kafka)) == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_polled_feed_goes_into_kafka(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(datetime(2024, 6, 4, 12, tzinfo=UTC))
    monkeypatch.setattr(data_commands, "make_source", lambda *_, **__: FakeSource(clock, codes=("CCGT",)))
    monkeypatch.setattr(data_commands, "utc_now", clock.now)
    assert cli.main(["feed", "--once", "--streams", "FUELINST", "--to", "kafka"]) == 0
    scans = arrived(kafka)
    assert scans
    assert {(scan.grid, scan.case, scan.step_s, scan.origin) for scan in scans} == {
        ("gb-balance", "gb-balance", 300.0, "live")
    }
    assert {scan.streams["CCGT"] for scan in scans} == {"live"}


def test_the_ninth_of_august_goes_into_kafka_every_fifteen_seconds(kafka: KafkaSettings) -> None:
    trace = data_file("neso_frequency/neso-frequency-2019-08-09-event-window.csv")
    assert trace.is_relative_to(DATA)
    assert cli.main(["feed", str(trace), "--source", "replay", "--step", "15", "--to", "kafka", "--speed", "1e6"]) == 0
    hertz = [scan.values["FREQ"] for scan in arrived(kafka) if "FREQ" in scan.values]
    assert 30 < len(hertz) < 60
    assert min(hertz) < 49.0 < 49.9 < hertz[0]


def test_what_cannot_be_fed_is_said(
    kafka: KafkaSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["feed", "--source", "replay", "--incidents", "3"]) == 2
    assert "--incidents belongs to --source simulate, not to replay" in capsys.readouterr().err
    assert cli.main([*SIMULATE, "--step", "300"]) == 2
    assert "simulate takes --case and --scans" in capsys.readouterr().err
    assert cli.main(["feed", "--source", "simulate", "--case", "case14", "--incidents", "99"]) == 1
    assert "incidents 99: 0 to 59" in capsys.readouterr().err
    monkeypatch.setattr(topics, "DEADLINE_S", 0.2)
    monkeypatch.setattr(topics.ensure, "__defaults__", (0.2,))
    assert cli.main([*SIMULATE, "--to", "kafka", "--bootstrap", "127.0.0.1:1"]) == 1
    assert "no broker answers at 127.0.0.1:1" in capsys.readouterr().err
