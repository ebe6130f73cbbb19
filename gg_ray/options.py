"""Command-line options as dataclasses: one parser and one style of error for every command.

Flow:    argv -> [options] -> cli, commands
Source:  tyro; unknown options are refused before tyro sees them, with the nearest known one
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

import tyro

from gg_ray.config import ConfigError, did_you_mean

T = TypeVar("T")
_CHOICE = re.compile(
    r"invalid choice '(?P<value>.*)' for argument '(?P<option>[^']*)'\. Expected one of \((?P<known>.*)\)\."
)
"""How tyro refuses a word that is none of an option's."""


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
    Returns: an instance of cls. Raises: ConfigError for an unknown option (with the nearest one) and for a value that
             does not parse or is refused; SystemExit from tyro for --help.
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
        if stop.code and (text := _in_a_line(said.getvalue())):
            raise ConfigError(text) from None
        sys.stderr.write(said.getvalue())
        raise


def _in_a_line(box: str) -> str:
    """What tyro says in a box (of hyphens on a terminal without line drawing), up to the rule that ends the message."""
    words: list[str] = []
    for line in box.splitlines()[1:]:  # the first is the title
        text = line.strip(" │")
        if text.strip("─-╰╯"):
            words += text.split()
        elif words:
            break
    said = " ".join(words)
    choice = _CHOICE.fullmatch(said)
    if choice is None:
        return said
    known = [word.strip(" '") for word in choice["known"].split(",") if word.strip(" '")]
    hint = did_you_mean(choice["value"], known) or ";"
    return f"{choice['option']}: {choice['value']!r}{hint} choose from {', '.join(known)}"


def options_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Long options that tyro makes of a dataclass, such as `--scenario.d-min` and `--evaluate.no-baselines`."""
    hints = get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        hint: Any = hints[item.name]
        named = next(
            (part.name for part in getattr(hint, "__metadata__", ()) if getattr(part, "name", None)), item.name
        )
        hidden = any(getattr(part, "name", None) == "" for part in getattr(hint, "__metadata__", ()))
        inner = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
        name = named.replace("_", "-")
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from options_of(inner, prefix if hidden else f"{prefix}{name}.")
        else:
            yield f"--{prefix}{name}"
            if inner is bool:
                yield f"--{prefix}no-{name}"


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


def last_value(args: Sequence[str], option: str) -> str | None:
    """Value of an option that is needed before the others can be parsed (`--config X` or `--config=X`)."""
    found = None
    for i, arg in enumerate(args):
        if arg == option and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{option}="):
            found = arg.partition("=")[2]
    return found
