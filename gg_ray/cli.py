"""The commands of `gg-ray`: the one place that reads the environment and may import the packages above the core.

Flow:    argv -> [cli] -> config_io.load -> config.RunConfig -> train, doctor, ...
Source:  design.md, section 6
Run:     gg-ray train --config smoke --selfplay.reward azr --gates off
         python -m gg_ray.cli doctor        # where only the source tree is there, such as a Ray worker

A command is a function from its arguments to an exit code, listed in COMMANDS. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from gg_ray.config import CORE_SUITE, OUTSIDE_SUITE, ConfigError, RunConfig, did_you_mean
from gg_ray.config_io import dump, load
from gg_ray.data_options import DataOptions, FeedOptions
from gg_ray.files import REFUSALS, refusal
from gg_ray.live_options import DeadLettersOptions, KeysOptions, LiveOptions, ServeOptions
from gg_ray.options import last_value, parse

DATA_DIR = Path("../shared/data")
"""Real GB data beside a checkout; taken when it exists and GG_DATA_DIR does not say otherwise."""
STORE_DIR = Path("data/elexon")
"""Where GB histories are kept, under the working directory, unless GG_STORE_DIR or --store says otherwise."""
TRAIN_ALIASES = {
    "--gates": "--scenario.gates",
    "--cases": "--scenario.cases",
    "--reward": "--selfplay.reward",
    "--arm": "--selfplay.arm",
    "--steps": "--selfplay.steps",
    "--device": "--learner.device",
}
"""Short forms of the settings that are changed most."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Self-play training; writes a run directory.

    Every setting of the run is an option. Short forms: --gates, --cases, --reward, --arm, --steps, --device.
    """

    config: str = "laptop"
    """Packaged settings (laptop, smoke, gpu) or a YAML file; options override what it says."""
    out: Path | None = None
    """Run directory; runs/NAME when not given."""
    resume: str | None = None
    """auto: the newest checkpoint of the run directory; or the path of a checkpoint."""
    print_config: bool = False
    """Print the resolved settings as YAML and stop."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def train(args: Sequence[str]) -> int:
    """`gg-ray train`: resolve the settings and start (or resume) a run."""
    config_name = last_value(args, "--config") or TrainOptions.config
    defaults = TrainOptions(config=config_name, run=load(config_name))
    options = parse(TrainOptions, args, prog="gg-ray train", default=defaults, aliases=TRAIN_ALIASES)
    config = with_data_dir(options.run, os.environ, DATA_DIR)
    if options.print_config:
        sys.stdout.write(dump(config))
        return 0
    from gg_ray.grid.cases import load_case  # torch and the grids load only when a run starts
    from gg_ray.train import run

    for case in config.evaluate.held_out_cases:  # a grid whose wheel is missing is named before Ray starts
        load_case(case)
    with loop_of(config) as (play, spread):
        return run(config, options.out or Path("runs") / config.name, options.resume, play, spread)


@contextmanager
def loop_of(config: RunConfig) -> Iterator[tuple[Any, Any]]:
    """The loop of a mode and what spreads its evaluation; one Ray serves the run, its control and its evaluation."""
    if config.mode == "serial":
        from gg_ray.evaluate.job import serially
        from gg_ray.selfplay.loop import play as serial_play

        yield serial_play, serially
        return
    from actors.evaluation import spread
    from actors.selfplay import play
    from actors.session import start

    with start(config.actors):
        yield play, spread


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Versions, devices, imports and space of this machine; exit code 1 when something required is missing."""


def doctor(args: Sequence[str]) -> int:
    """`gg-ray doctor`: a table of checks."""
    parse(DoctorOptions, args, prog="gg-ray doctor")
    from rich.console import Console
    from rich.table import Table

    from gg_ray.doctor import report

    checks = report(cwd=Path.cwd(), env=os.environ)
    table = Table("check", "", "detail", box=None, pad_edge=False)
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]FAIL[/]" if check.required else "[yellow]note[/]"
        table.add_row(check.name, mark, check.detail.replace("[", r"\["))
    console = Console()
    console.print(table)
    failed = [check.name for check in checks if check.required and not check.ok]
    console.print(f"\n{len(failed)} failed: {', '.join(failed)}" if failed else "\nready")
    return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Suites and baselines on a registered model; writes results.json, tables and figures."""

    model: str = "champion"
    """champion, challenger, latest or a version such as v3."""
    suite: str = "quick"
    """quick (windows and timelines), windows or timelines; core: the whole benchmark, resumable (docs/benchmark.md);
    real-gb for a model of the national balance graph; fdia-graph, the outside judge (docs/fdia-graph.md)."""
    run: str | None = None
    """Run whose registry holds the model (name under runs/, or a path); the last trained one when not given. Suite core
    takes one run per fold: names separated by commas, or a pattern such as 'bench-*'."""
    preset: str = "small"
    """Sizes of suite core: small (minutes), desk (hours, two cores) or full."""
    workers: int = 1
    """Suite core: processes, each with one grid at a time."""
    out: Path | None = None
    """Where results.json, report.md and the figures go; RUN/evaluation when not given, for core runs/core-PRESET."""
    cases: tuple[str, ...] = ()
    """Grids; those of the run when not given."""
    windows: int | None = None
    """Gated windows per family."""
    days: int | None = None
    """Test days per grid."""
    parallel: bool = True
    """One process per grid, through Ray; --no-parallel scores them one after the other in this one."""
    grid: int | None = None
    """Suite fdia-graph: its IEEE grid, 14, 57, 118 or 300."""
    profile: Path | None = None
    """Suite fdia-graph: CSV file with a column load_mw, one row per one-minute scan; GB demand when not given."""


def evaluate(args: Sequence[str]) -> int:
    """`gg-ray evaluate`: the frozen suites on a registered model."""
    options = parse(EvaluateOptions, args, prog="gg-ray evaluate")

    def with_data(config: RunConfig) -> RunConfig:
        return with_data_dir(config, os.environ, DATA_DIR)

    if options.suite == CORE_SUITE:
        from gg_ray.core_commands import evaluate_core

        if options.cases or options.windows is not None or options.days is not None:
            raise ConfigError(f"suite {CORE_SUITE} is frozen: leave --cases, --windows and --days out, use --preset")
        return evaluate_core(
            options.model, options.run, options.preset, options.out, options.workers, with_data
        )  # fmt: skip
    if options.workers != 1:
        raise ConfigError(f"--workers belongs to suite {CORE_SUITE}; other suites take --parallel or --no-parallel")
    if options.suite == OUTSIDE_SUITE:
        from gg_ray.benchmark_commands import evaluate_outside

        if options.cases or options.windows is not None:
            raise ConfigError(f"suite {OUTSIDE_SUITE} takes its grid from --grid: leave --cases and --windows out")
        return evaluate_outside(
            options.model, options.grid, options.profile, options.run, options.out, options.days, with_data
        )  # fmt: skip
    if options.grid is not None or options.profile is not None:
        raise ConfigError(f"--grid and --profile belong to suite {OUTSIDE_SUITE}; other suites take --cases")
    from gg_ray.commands import evaluate_model

    spread: Any = None
    if options.parallel and (os.cpu_count() or 1) > 1:
        from actors.evaluation import spread
    return evaluate_model(
        options.model, options.suite, options.run, options.out, options.cases, options.windows, options.days,
        with_data, spread,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Verdicts for windows in Parquet, Arrow or JSON files; one JSON object per window on standard output."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files of windows (gg_ray.windows_io says what a row holds)."""
    model: str = "champion"
    run: str | None = None
    """Run whose registry holds the model; the last trained one when not given."""
    incidents: bool = False
    """Merge flagged windows of one grid into incidents, and print those: windows that follow each other, any order."""
    budget: float | None = None
    """Incidents a day on benign days, in place of the threshold that the model was registered with."""
    min_heard: float = 0.25
    """Share of the meters that must have reported in the last scans; with fewer the answer is "cannot tell"."""
    heard_scans: int = 4
    """How many last scans."""
    exported: Path | None = None
    """A file of gg-ray export, which then judges instead of a registered model."""


def score(args: Sequence[str]) -> int:
    """`gg-ray score FILE…`: offline verdicts."""
    options = parse(ScoreOptions, args, prog="gg-ray score")
    from gg_ray.calibration.heard import Heard
    from gg_ray.commands import score_files

    heard = Heard(share=options.min_heard, scans=options.heard_scans)
    return score_files(
        options.files, options.model, options.run, heard, options.incidents, options.budget, options.exported
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """A registered model as an ONNX file, with its calibration in a manifest beside it: for gg-ray score --exported."""

    model: tyro.conf.Positional[str] = "champion"
    """champion, challenger, latest or a version such as v3."""
    out: Path = Path("verifier.onnx")
    """The file; its manifest has .json added to the name."""
    run: str | None = None
    """Run whose registry holds the model; the last trained one when not given."""


def export(args: Sequence[str]) -> int:
    """`gg-ray export MODEL --out FILE`: a model that any CPU scores with onnxruntime."""
    options = parse(ExportOptions, args, prog="gg-ray export")
    from gg_ray.commands import export_model

    return export_model(options.model, options.run, options.out)


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """Registered versions of a run, with aliases and headline figures."""

    run: str | None = None


def models(args: Sequence[str]) -> int:
    """`gg-ray models`: what is registered."""
    options = parse(ModelsOptions, args, prog="gg-ray models")
    from gg_ray.commands import list_models

    return list_models(options.run)


@dataclass(frozen=True, kw_only=True)
class PromoteOptions:
    """Point an alias at a version; refused where the promotion gate finds a reason against it."""

    version: tyro.conf.Positional[str]
    alias: str = "champion"
    run: str | None = None
    force: bool = False
    """Skip the gate."""


def promote(args: Sequence[str]) -> int:
    """`gg-ray promote VERSION`: move an alias."""
    options = parse(PromoteOptions, args, prog="gg-ray promote")
    from gg_ray.commands import promote_version

    return promote_version(options.version, options.alias, options.run, options.force)


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Benign days of more grids for a registered model, so that budgets of incidents a day can be kept on them."""

    case: tuple[str, ...]
    """Grids; any that gg-ray knows, the national balance graph excepted."""
    model: str = "champion"
    """champion, challenger, latest or a version such as v3."""
    run: str | None = None
    """Run whose registry holds it; the last trained one when not given."""
    days: int = 4
    """Benign days of each grid, from the validation months."""
    alias: str = "champion"
    """Moved to the new version, whose weights are the same."""


def calibrate(args: Sequence[str]) -> int:
    """`gg-ray calibrate`: thresholds for a budget on more grids."""
    options = parse(CalibrateOptions, args, prog="gg-ray calibrate")
    from gg_ray.commands import calibrate_version

    return calibrate_version(options.model, options.run, options.case, options.days, options.alias)


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """What a run did last: step, speed, losses, last evaluation, checkpoints."""

    run: tyro.conf.Positional[str] = ""
    """Run name or path; the most recent one when not given."""


def status(args: Sequence[str]) -> int:
    """`gg-ray status`: the state of a run from its files."""
    options = parse(StatusOptions, args, prog="gg-ray status")
    from gg_ray.commands import show_status

    return show_status(options.run)


def data(args: Sequence[str]) -> int:
    """`gg-ray data fetch|sync|check`: GB histories."""
    options = parse(DataOptions, args, prog="gg-ray data")
    from gg_ray.data_commands import data_command

    return data_command(options, Path(os.environ.get("GG_STORE_DIR") or STORE_DIR), _shared())


def feed(args: Sequence[str]) -> int:
    """`gg-ray feed`: scans of grid gb-balance, or simulated ones of any grid, as JSON lines or into Kafka."""
    options = parse(FeedOptions, args, prog="gg-ray feed")
    if options.source == "simulate":
        from serve.feed_commands import simulate

        return simulate(options, os.environ)
    from gg_ray.data_commands import feed_command

    def kafka(step: int, store: Any, begin: Any) -> AbstractContextManager[Any]:
        from serve.feed_commands import to_kafka

        return to_kafka(options, os.environ, step, store, begin)

    return feed_command(options, Path(os.environ.get("GG_STORE_DIR") or STORE_DIR), os.environ, _shared(), kafka)


def live(args: Sequence[str]) -> int:
    """`gg-ray live`: broker, store, feed, consumer, Verifier and page on this machine."""
    options = parse(LiveOptions, args, prog="gg-ray live")
    from serve.live import live_command

    return live_command(options, os.environ)


def serve(args: Sequence[str]) -> int:
    """`gg-ray serve`: consumer, Verifier and page against a broker and a Redis that run."""
    options = parse(ServeOptions, args, prog="gg-ray serve")
    from serve.live import serve_command

    return serve_command(options, os.environ)


def keys(args: Sequence[str]) -> int:
    """`gg-ray keys add|list|revoke`."""
    options = parse(KeysOptions, args, prog="gg-ray keys")
    from serve.keys_command import keys_command

    return keys_command(options.action, options.file, options.name, options.scope)


def dead_letters(args: Sequence[str]) -> int:
    """`gg-ray dead-letters list|replay`."""
    options = parse(DeadLettersOptions, args, prog="gg-ray dead-letters")
    from serve.dead_letters_command import dead_letters as command
    from serve.settings import kafka_from

    return command(options, kafka_from(os.environ, options.bootstrap))


def _shared() -> AbstractAsyncContextManager[Any]:
    """An elexon.sources.Shared: in the Redis of REDIS_URL where it is set, else nothing beyond this process."""
    if url := os.environ.get("REDIS_URL"):
        from serve.shared import opened

        return opened(url)
    from gg_ray.elexon.sources import ALONE

    return nullcontext(ALONE)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """A named performance benchmark; prints a table and, last, one JSON line."""

    name: tyro.conf.Positional[str]
    """scenarios, residual, replay, selfplay, verifier, elexon, baselines, live or http."""
    case: str | None = None
    """Grid, where the benchmark takes one."""
    buses: int = 10_000
    scans: int = 48
    seed: int = 0
    trials: int = 0
    """baselines: settings tried per learned baseline on validation windows; 0 measures the chosen ones."""
    windows: int = 40
    """baselines: gated windows per family of the suite."""
    steps: int = 150
    """baselines: steps of the uniform game that the supervised ones learn from."""
    fit_s: float = 30.0
    """baselines: CPU seconds that a fit of a deep one may take per grid and metering plan."""
    groups: tuple[str, ...] = ("classical", "statistical", "deep", "supervised")
    """baselines: which of them."""
    compiled: bool = True
    """verifier: export the model and time that as well (half a minute)."""
    hundred_k: bool = False
    """verifier: time 100,000 buses as well (2 GiB)."""


def bench(args: Sequence[str]) -> int:
    """`gg-ray bench NAME`: rates per second, milliseconds of CPU on one thread unless named wall_."""
    options = parse(BenchOptions, args, prog="gg-ray bench")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runners: dict[str, Callable[[], dict[str, Any]]] = {
        "scenarios": lambda: _bench("scenarios").run(case=options.case or "gb", seed=options.seed),
        "residual": lambda: _bench("residual").run(case=options.case or "activsg10k", seed=options.seed),
        "replay": lambda: _bench("replay").run(seed=options.seed) | _actor_bench().replay_actor(options.seed),
        "selfplay": lambda: _actor_bench().selfplay(options.seed),
        "verifier": lambda: _bench("verifier").run(
            buses=options.buses,
            scans=options.scans,
            seed=options.seed,
            case=options.case,
            compiled=options.compiled,
            hundred_k=options.hundred_k,
        ),
        "elexon": lambda: _bench("elexon").run(seed=options.seed),
        "live": lambda: _serve_bench("live").run(case=options.case or "case118", seed=options.seed),
        "http": lambda: _serve_bench("http").run(case=options.case or "case118", seed=options.seed),
        "baselines": lambda: _bench("baselines").run(
            case=options.case or "case30",
            seed=options.seed,
            windows=options.windows,
            steps=options.steps,
            trials=options.trials,
            groups=options.groups,
            fit_s=options.fit_s,
        ),
    }
    if options.name not in runners:
        raise ConfigError(f"unknown benchmark {options.name!r}{did_you_mean(options.name, runners) or ''}")
    import torch

    torch.set_num_threads(1)
    sys.stdout.write(_bench("report").text(options.name, runners[options.name](), options.seed))
    return 0


def _serve_bench(name: str) -> Any:
    import importlib

    return importlib.import_module(f"serve.bench_{name}")


def _bench(name: str) -> Any:
    import importlib

    return importlib.import_module(f"gg_ray.bench.{name}")


def _actor_bench() -> Any:
    from actors import bench as actor_bench

    return actor_bench


class Command(NamedTuple):
    """A line of `gg-ray --help` and what it runs."""

    help: str
    run: Callable[[Sequence[str]], int]


COMMANDS: dict[str, Command] = {
    "train": Command("self-play training; writes a run directory", train),
    "evaluate": Command("suites and baselines on a registered model", evaluate),
    "score": Command("verdicts for files of windows", score),
    "export": Command("a registered model as an ONNX file", export),
    "models": Command("registered versions of a run", models),
    "promote": Command("move an alias (champion, challenger) to a version", promote),
    "calibrate": Command("benign days of more grids for a registered model", calibrate),
    "status": Command("state of a run from its files", status),
    "data": Command("GB histories: fetch, sync, check", data),
    "feed": Command("scans as they come, from a record or simulated, as JSON lines or into Kafka", feed),
    "live": Command("the whole live path on this machine: broker, store, feed, Verifier, page", live),
    "serve": Command("consumer, Verifier and page against a broker and a Redis that run", serve),
    "keys": Command("API keys of the HTTP edge: add, list, revoke", keys),
    "dead-letters": Command("messages that could not be read: list, replay", dead_letters),
    "bench": Command("a named performance benchmark", bench),
    "doctor": Command("versions, devices, imports and space of this machine", doctor),
}
PACKAGES = ("gg_ray", "actors", "tune", "serve")
"""Ours. An exception class that one of them defines has a message for the user: no traceback, exit code 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"gg-ray {_version()}\n")
        return 0
    try:
        command = COMMANDS.get(args[0])
        if command is None:
            hint = did_you_mean(args[0], COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
            raise ConfigError(f"unknown command {args[0]!r}{hint}")
        return command.run(args[1:])
    except ConfigError as error:
        sys.stderr.write(f"gg-ray: error: {error}\n")
        return 2
    except SystemExit as stop:  # tyro ends --help with 0 and bad values with 2
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # `gg-ray train --help | head`: nobody reads on, and the flush at exit must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("gg-ray: interrupted\n")
        return 130
    except OSError as error:
        if error.errno not in REFUSALS and not _is_ours(error):
            raise
        sys.stderr.write(f"gg-ray: error: {refusal(error)}\n")
        return 1
    except Exception as error:
        if not _is_ours(error):
            raise
        sys.stderr.write(f"gg-ray: error: {error}\n")
        return 1


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in PACKAGES


def with_data_dir(config: RunConfig, env: Mapping[str, str], beside: Path) -> RunConfig:
    """Settings whose scenario.data_dir is filled from GG_DATA_DIR, else from the folder `beside` where that exists.

    A folder that the settings already name stays; GG_DATA_DIR set to nothing keeps the packaged climatology.
    Raises:  ConfigError when the folder that is named does not exist.
    """
    named = config.scenario.data_dir
    if named:
        place, source = named, "scenario.data_dir"
    elif "GG_DATA_DIR" in env:
        place, source = env["GG_DATA_DIR"], "GG_DATA_DIR"
    else:
        place, source = str(beside) if beside.is_dir() else "", "the folder beside this one"
    if place and not Path(place).is_dir():
        raise ConfigError(f"{source}: {place} is not a folder; leave it empty for the packaged climatology")
    if place == named:
        return config
    return dataclasses.replace(config, scenario=dataclasses.replace(config.scenario, data_dir=place))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: gg-ray COMMAND [options]", "", *lines, "", "gg-ray COMMAND --help lists its options", ""])


def _version() -> str:
    try:
        return metadata.version("gg-ray")
    except metadata.PackageNotFoundError:
        return "(source tree, not installed)"


if __name__ == "__main__":
    sys.exit(main())
