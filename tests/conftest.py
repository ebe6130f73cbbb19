"""Shared by all tests: one local Ray cluster per run, one thread, one deterministic hypothesis profile."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before numpy, torch or ray are imported: BLAS pools size themselves at import, Ray reads its mode at start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only; unset, a local start would write ~/.ray/auth_token
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "5"  # noqa: SIM112 - Ray spells it so
os.environ.pop("RAY_ADDRESS", None)

import hypothesis
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish(session: pytest.Session) -> None:
    """One torch thread, but only when a collected module has imported torch: the import alone costs two seconds."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of 4 CPUs, started by the first test that asks for it and shared by all others.

    address="local" because a bare init would join a cluster that it finds; the folder is short because Unix socket
    paths end at 107 bytes. Ends with ray.shutdown, which stops only this Ray.
    """
    import ray

    temp_dir = tempfile.mkdtemp(prefix="gg-")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=temp_dir,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def socket_file() -> Iterator[Path]:
    """Socket of a Redis that the tests of one module share."""
    from redis_process import redis_process

    with redis_process() as (path, _):
        yield path
