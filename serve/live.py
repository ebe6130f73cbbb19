"""The whole live path on one machine: broker, store, feed, consumer, Verifier, page.

Flow:    gg-ray live -> [live] -> serve.embedded, serve.topics, serve.edge (or one process), serve.feed_commands
Source:  design.md, section 6; docs/live.md

Two engines run the same parts: `serve` on Ray Serve, as in production, and `plain` in this one process, which starts in
seconds and needs no cluster. Broker and Redis are embedded unless KAFKA_BOOTSTRAP and REDIS_URL name others.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gg_ray.config import ConfigError
from gg_ray.live_options import LiveOptions, ServeOptions
from serve import topics
from serve.embedded import Broker, redis_url
from serve.settings import HttpSettings, LiveSettings, kafka_from, redis_url_from

LOG = logging.getLogger(__name__)


class LiveError(RuntimeError):
    """A part of the live path that cannot go on."""


def live_command(options: LiveOptions, env: Mapping[str, str]) -> int:
    """`gg-ray live`.

    Raises: ConfigError, EmbeddedError (a program is missing), BrokerError, LiveError
    """
    ended = threading.Event()
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ExitStack() as stack:
            folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gg-live-")))
            settings = _servers(stack, options, env, folder)
            began = time.monotonic()
            feed = stack.enter_context(_feed(options, env, settings))  # its scans wait on the topic meanwhile
            check = stack.enter_context(_engine(options.engine)(settings, folder))
            url = f"http://{settings.http.host}:{settings.http.port}/"
            sys.stdout.write(f"page {url}  ({time.monotonic() - began:.0f} s; Ctrl-C ends)\n")
            sys.stdout.flush()
            if options.open:
                webbrowser.open(url)
            while not ended.wait(0.5):
                check()
                if feed is not None and feed.poll() is not None:
                    said = "the record is over" if feed.returncode == 0 else f"the feed failed ({feed.returncode})"
                    sys.stdout.write(f"{said}; the page stays until Ctrl-C\n")
                    sys.stdout.flush()
                    feed = None
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_command(options: ServeOptions, env: Mapping[str, str]) -> int:
    """`gg-ray serve`: the same against servers that run already.

    Raises: ConfigError as LiveSettings.preflight; BrokerError, LiveError
    """
    settings = LiveSettings(
        kafka=kafka_from(env, options.bootstrap), redis_url=redis_url_from(env), budget=options.budget,
        http=HttpSettings(host=options.host, port=options.port, keys_file=options.keys_file),
        registries=tuple(map(_run, options.run)),
    )  # fmt: skip
    settings.preflight()
    topics.ensure(settings.kafka)
    ended = threading.Event()
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="gg-serve-") as home,
            _engine(options.engine)(settings, Path(home)) as check,
        ):
            sys.stdout.write(f"serving on http://{options.host}:{options.port}/  (Ctrl-C ends)\n")
            sys.stdout.flush()
            while not ended.wait(0.5):
                check()
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _servers(stack: ExitStack, options: LiveOptions, env: Mapping[str, str], folder: Path) -> LiveSettings:
    kafka = kafka_from(env)
    if not env.get("KAFKA_BOOTSTRAP"):
        kafka = replace(kafka, bootstrap=stack.enter_context(Broker(folder)).bootstrap)
    url = stack.enter_context(redis_url(folder, env))
    topics.ensure(kafka)
    return LiveSettings(
        kafka=kafka, redis_url=url, http=HttpSettings(port=options.port), budget=options.budget,
        registries=tuple(map(_run, options.run)),
    )  # fmt: skip


def _run(name: str) -> str:
    return name if (Path(name) / "registry").is_dir() else str(Path("runs") / name)


def _engine(name: str) -> Callable[[LiveSettings, Path], Any]:
    return {"serve": on_serve, "plain": in_process}[name]


@contextmanager
def on_serve(settings: LiveSettings, folder: Path) -> Iterator[Callable[[], None]]:
    """The application on a Ray of its own, loopback only, until the end.  Gives: nothing to check, Serve does that."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only; a local start would write ~/.ray/auth_token
    import ray
    from ray import serve

    from serve.edge import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    home = tempfile.mkdtemp(prefix="gg-")  # short: paths of Unix sockets end at 107 bytes
    ray.init(
        address="local", num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=256 * 2**20, _temp_dir=home,
    )  # fmt: skip
    try:
        serve.start(http_options={"host": settings.http.host, "port": settings.http.port})
        serve.run(application(settings, str(folder / "models")), name="gg", route_prefix="/")
        yield lambda: None
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


@contextmanager
def in_process(settings: LiveSettings, _: Path) -> Iterator[Callable[[], None]]:
    """Consumer, Verifier and page in threads of this process, until the end.

    Gives: what raises LiveError when the scan loop is ill: there is no Serve here that would see it.
    """
    import uvicorn
    from redis.asyncio import Redis

    from serve.app import make_app
    from serve.consumer import Runner
    from serve.judges import ReplicaJudge
    from serve.layouts import layout_of
    from serve.scorers import LocalScorer
    from serve.verifier import Replica

    replica = Replica(redis_url=settings.redis_url)
    replica.want({"registries": settings.registries, "budget": settings.budget})
    scorer = LocalScorer(replica)
    runner = Runner(settings, scorer, "consumer-0")
    app = make_app(settings, Redis.from_url(settings.redis_url), ReplicaJudge(replica), layout_of)
    server = uvicorn.Server(uvicorn.Config(app, settings.http.host, settings.http.port, log_level="warning"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # this process has its own
    thread = threading.Thread(target=server.run, name="http", daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ConfigError(f"port {settings.http.port}: the page could not be opened there; give another --port")
        time.sleep(0.05)

    def check() -> None:
        try:
            runner.check()
        except RuntimeError as error:
            raise LiveError(f"{error}; start again, and what was not applied is read again") from None

    try:
        yield check
    finally:
        app.state.hub.end()  # the server waits for open answers, and pages' streams are such
        server.should_exit = True
        runner.stop()
        scorer.close()
        replica.close()
        thread.join(10)


@contextmanager
def _feed(options: LiveOptions, env: Mapping[str, str], settings: LiveSettings) -> Iterator[Any]:
    """`gg-ray feed` as a child process: it may fail, and be replaced, without the rest."""
    if options.source == "none":
        yield None
        return
    command = [sys.executable, "-m", "gg_ray.cli", "feed", "--to", "kafka", "--source", options.source]
    command += [str(path) for path in options.files]
    if options.source == "simulate":
        command += ["--case", options.case, "--incidents", str(options.incidents), "--seed", str(options.seed)]
        command += ["--disturbances", str(options.disturbances)]
    if options.source in ("simulate", "replay"):
        command += ["--speed", str(options.speed)]
    if options.from_ is not None:
        command += ["--from", options.from_]
    if options.step is not None:
        command += ["--step", str(options.step)]
    where = {"KAFKA_BOOTSTRAP": settings.kafka.bootstrap, "REDIS_URL": settings.redis_url}
    process = subprocess.Popen(command, env={**env, **where})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
