"""The commands of `gg-ray`: the one place that reads the environment and may import the packages above the core.

Flow:    argv -> [cli] -> config_io.load -> config.RunConfig -> train, doctor, ...
Source:  design.md, section 6
Run:     gg-ray train --config smoke --selfplay.reward azr --gates off
         python -m gg_ray.cli doctor        # where only the source tree is there, such as a Ray worker

A command is a function from its arguments to an exit code, listed in COMMANDS. Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

import tyro

from gg_ray.config import ConfigError, RunConfig
from gg_ray.config_io import did_you_mean, dump, load

DATA_DIR = Path("../shared/data")
"""Real GB data beside a checkout; taken when it exists and GG_DATA_DIR does not say otherwise."""
TRAIN_ALIASES = {
    "--gates": "--scenario.gates",
    "--cases": "--scenario.cases",
    "--reward": "--selfplay.reward",
    "--arm": "--selfplay.arm",
    "--steps": "--selfplay.steps",
    "--device": "--learner.device",
}
"""Short forms of the settings that are changed most."""

T = TypeVar("T")


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
    config_name = _last_value(args, "--config") or TrainOptions.config
    defaults = TrainOptions(config=config_name, run=load(config_name))
    options = parse(TrainOptions, args, prog="gg-ray train", default=defaults, aliases=TRAIN_ALIASES)
    config = with_data_dir(options.run, os.environ, DATA_DIR)
    if options.print_config:
        sys.stdout.write(dump(config))
        return 0
    from gg_ray.train import run  # torch and the grids load only when a run starts

    out = options.out or Path("runs") / config.name
    if config.mode == "serial":
        return run(config, out=out, resume=options.resume)
    from actors.selfplay import play

    return run(config, out=out, resume=options.resume, play=play)


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


class Command(NamedTuple):
    """A line of `gg-ray --help` and what it runs."""

    help: str
    run: Callable[[Sequence[str]], int]


COMMANDS: dict[str, Command] = {
    "train": Command("self-play training; writes a run directory", train),
    "doctor": Command("versions, devices, imports and space of this machine", doctor),
}


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


def parse(
    cls: type[T],
    args: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    aliases: Mapping[str, str] | None = None,
) -> T:
    """Options dataclass from arguments, with one style of error for every command.

    Args:    cls  a dataclass;  default  an instance whose values stand where no option is given;
             aliases  short option -> full option
    Returns: an instance of cls. Raises: ConfigError for an unknown option (with the nearest one) or a refused value;
             SystemExit from tyro for --help and for values that do not parse, already explained on stderr.
    """
    full = _expand(args, set(options_of(cls)), aliases or {})
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, args=full, prog=prog, default=tyro.MISSING_NONPROP if default is None else default)
    except SystemExit as stop:
        # a settings dataclass refused a value: tyro holds the reason in its chain of exceptions, inside a box of text
        cause: BaseException | None = stop
        while cause is not None:
            if isinstance(cause, ConfigError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        sys.stderr.write(said.getvalue())
        raise


def options_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Long options that tyro makes of a dataclass, such as `--scenario.d-min` and `--evaluate.no-baselines`."""
    hints = get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        hint: Any = hints[item.name]
        hidden = any(getattr(part, "name", None) == "" for part in getattr(hint, "__metadata__", ()))
        inner = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
        name = item.name.replace("_", "-")
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from options_of(inner, prefix if hidden else f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}"
            if inner is bool:
                yield f"--{prefix}no-{name}"


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


def _expand(args: Sequence[str], known: set[str], aliases: Mapping[str, str]) -> list[str]:
    """Arguments with aliases written out; an option that does not exist is refused here, with the nearest one."""
    full: list[str] = []
    for arg in args:
        if not arg.startswith("--") or arg == "--":
            full.append(arg)
            continue
        option, equals, value = arg.partition("=")
        option = option.replace("_", "-")
        option = option if option in known else aliases.get(option, option)
        if option not in known and option != "--help":
            raise ConfigError(f"unknown option {option}{did_you_mean(option, sorted({*known, *aliases}))}")
        full.append(f"{option}{equals}{value}")
    return full


def _last_value(args: Sequence[str], option: str) -> str | None:
    """Value of an option that is needed before the others can be parsed (`--config X` or `--config=X`)."""
    found = None
    for i, arg in enumerate(args):
        if arg == option and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{option}="):
            found = arg.partition("=")[2]
    return found


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
