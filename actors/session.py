"""Start Ray for one run, or join a cluster, with safe settings and clear errors; stop only what was started.

Flow:    cli.train -> [start] -> placement.acquire -> pools
Source:  token authentication since Ray 2.59 (PR #64755): an unset RAY_AUTH_MODE writes ~/.ray/auth_token and makes the
         next head demand it; docs/adr/0008-pull-driven-actors.md
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from actors.placement import ResourceError, smallest_cpus
from gg_ray.config import ActorsConfig, RunConfig

logger = logging.getLogger(__name__)

ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}}
"""Runtime environment of every actor: numbers equal the serial loop's, and shares of a CPU stay shares.

Ray runs methods on several threads; with a malloc arena for each, freed memory piles up in all of them."""
OBJECT_STORE_BYTES = 200 * 2**20
"""Enough for three weight versions and the batches in flight of a laptop run."""
MAX_TEMP_DIR_BYTES = 40
"""Unix socket paths end at 107 bytes and Ray adds /session_<time>_<pid>/sockets/plasma_store, about 67."""


class SessionError(RuntimeError):
    """Ray cannot be started or joined safely; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Session:
    """A running Ray. local: one machine of a fixed size, so placement may share out its CPUs."""

    address: str
    local: bool
    cpus: float
    gpus: float


def absolute(config: RunConfig) -> RunConfig:
    """Settings whose data folder is an absolute path: an actor's working folder is another one."""
    folder = config.scenario.data_dir
    return replace(config, scenario=replace(config.scenario, data_dir=str(Path(folder).resolve()) if folder else ""))


@contextmanager
def start(
    config: ActorsConfig,
    *,
    num_cpus: int | None = None,
    temp_dir: str | Path | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    log_to_driver: bool = False,
    environ: MutableMapping[str, str] = os.environ,
) -> Iterator[Session]:
    """Ray for the time of a run.

    Joins the cluster that RAY_ADDRESS names, else starts one on this machine (loopback, no dashboard). Uses a Ray
    that is already initialised, and then leaves it running.
    Args:    num_cpus       CPUs to offer on this machine; None: all of them
             temp_dir       Ray's folder, a short path; None: Ray's default
             log_to_driver  show the actors' output; off by default, as it tears the live table
             environ        read: RAY_ADDRESS, RAY_AUTH_MODE; set for the time of the run when unset: RAY_AUTH_MODE,
                            RAY_USAGE_STATS_ENABLED
    Raises:  ResourceError when this machine cannot hold the actors (before Ray starts); SessionError otherwise.
    """
    if ray.is_initialized():
        yield _session(ray.get_runtime_context().gcs_address, local=_single_node())
        return
    address = environ.get("RAY_ADDRESS", "").strip() or "local"
    local = address == "local"
    set_here = _settle_environment(address, environ)
    try:
        if local:
            have, need = num_cpus or os.cpu_count() or 1, smallest_cpus(config)
            if have < need:
                raise ResourceError(
                    f"need {need:g} CPUs for {config.proposers} proposers and {config.solvers} solvers, have {have};"
                    " lower actors.proposers and actors.solvers, or use mode=serial"
                )
        _init(address, num_cpus if local else None, temp_dir, object_store_bytes, log_to_driver)
        try:
            yield _session(address, local=local)
        finally:
            ray.shutdown()
    finally:
        for name in set_here:
            environ.pop(name, None)


def _settle_environment(address: str, environ: MutableMapping[str, str]) -> list[str]:
    """Make the authentication mode explicit; returns the names that were set here.

    Raises:  SessionError for an address beyond this machine without RAY_AUTH_MODE=token: whoever reaches an open
             Ray port can run code on every node.
    """
    mode = environ.get("RAY_AUTH_MODE", "").strip().lower()
    if not _is_loopback(address) and mode != "token":
        raise SessionError(
            f"RAY_ADDRESS={address} is not this machine and RAY_AUTH_MODE is {mode or 'unset'}; set RAY_AUTH_MODE=token"
            " and RAY_AUTH_TOKEN_PATH on both sides (docs/troubleshooting.md), or unset RAY_ADDRESS to run locally"
        )
    set_here = []
    # Ray's niceness of 15 starves actors beside a busy learner: the wait share was 0.40 instead of 0.07. At 0 the
    # learner is preempted 27 times a step instead of 20 and a step takes 4 % more CPU.
    ours = (("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_worker_niceness", "5"))
    for name, value in ours:
        if not environ.get(name, "").strip():
            environ[name] = value
            set_here.append(name)
    return set_here


def _is_loopback(address: str) -> bool:
    """True for "local" and loopback hosts. "auto" is False: it joins whatever cluster this machine belongs to."""
    if address == "local":
        return True
    host = address.removeprefix("ray://")
    host = host[1:].split("]")[0] if host.startswith("[") else host.rsplit(":", 1)[0]
    return host in ("localhost", "::1") or host.startswith("127.")


def _init(
    address: str, num_cpus: int | None, temp_dir: str | Path | None, object_store_bytes: int, log_to_driver: bool
) -> None:
    if temp_dir is not None and len(os.fsencode(str(temp_dir))) > MAX_TEMP_DIR_BYTES:
        raise SessionError(
            f"temp_dir {temp_dir} has {len(os.fsencode(str(temp_dir)))} bytes, at most {MAX_TEMP_DIR_BYTES}: Ray puts"
            " sockets there and their paths end at 107; choose a shorter folder"
        )
    local = address == "local"
    private: dict[str, Any] = {"_temp_dir": str(temp_dir)} if local and temp_dir is not None else {}
    try:
        ray.init(
            address=address,
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes if local else None,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            log_to_driver=log_to_driver,
            **private,
        )
    except (RuntimeError, ConnectionError, OSError, ValueError, TimeoutError) as error:
        way_out = (
            "free memory in /dev/shm or lower the object store, check that ports on 127.0.0.1 can be opened and that"
            " temp_dir is writable, or use mode=serial, which needs no Ray"
            if local
            else "check that the head runs, that its Ray and Python versions equal these (gg-ray doctor) and that the"
            " token is the head's; unset RAY_ADDRESS to run locally"
        )
        raise SessionError(
            f"Ray did not start (address {address}): {type(error).__name__}: {error}; {way_out}"
        ) from error


def _single_node() -> bool:
    return len(ray.nodes()) == 1  # type: ignore[no-untyped-call]


def _session(address: str, *, local: bool) -> Session:
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    session = Session(address, local, float(have.get("CPU", 0.0)), float(have.get("GPU", 0.0)))
    logger.info("Ray at %s: %g CPUs, %g GPUs", session.address, session.cpus, session.gpus)
    return session
