"""What a person sees while a run goes on: a live table on a terminal, stable text lines everywhere else.

Flow:    selfplay.loop, actors.selfplay -> [console] -> the stream that cli gave it
Source:  fields and healthy ranges: docs/metrics.md
Fields:  a snapshot is a plain mapping; every key is optional, and a key that is not listed here is shown under "other"
    step, steps                  learner step now, and of the whole run
    actors                       {kind: alive}, {kind: (alive, wanted)} or {kind: text}
    scenarios_per_s              executed scenarios per second
    gates                        {"pass": share that passed all, gate: share that it stopped}, 0-1
    families                     {family: {"solve": rate 0-1, "learnability": 0-1}}; None where none was seen
    replay_fill                  used share of the byte limit, 0-1;  samples_per_insert: mean draws per inserted window
    learner_wait_share           share of time the learner waited for data, 0-1
    policy_lag                   versions behind: a number, or {"p50": …, "p95": …}
    losses                       {name: value}; "total" is the one shown as loss
    evaluation                   {name: value} of the last held-out evaluation
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

Snapshot = Mapping[str, Any]
_KNOWN = frozenset(
    (
        *("step", "steps", "actors", "scenarios_per_s", "gates", "families", "replay_fill", "samples_per_insert"),
        *("learner_wait_share", "policy_lag", "losses", "evaluation"),
    )
)
PASS = "pass"
_SHARES = ("replay_fill", "learner_wait_share")


class Display(Protocol):
    """Shows the state of a run. Used as a context manager: the terminal is given back on the way out."""

    def update(self, snapshot: Snapshot) -> None:
        """Show the newest state."""

    def note(self, text: str) -> None:
        """Show one event that must stay readable (checkpoint saved, actor restarted)."""

    def close(self) -> None:
        """Give the terminal back; a second call does nothing."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...


def make_console(stream: TextIO) -> Display:
    """A live table when the stream is a terminal that can move its cursor, plain lines otherwise."""
    if stream.isatty():
        console = Console(file=stream)
        if not console.is_dumb_terminal:
            return LiveTable(console)
    return PlainLines(stream)


class PlainLines:
    """One `step=… loss=…` line per update, in a fixed order, for log files and grep."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, snapshot: Snapshot) -> None:
        self._write(" ".join(f"{name}={value}" for name, value in fields(snapshot)))

    def note(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        self._stream.flush()

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, text: str) -> None:
        self._stream.write(" ".join(text.splitlines()) + "\n")
        self._stream.flush()  # a log that lags behind a killed run hides its last words


class LiveTable:
    """A table redrawn in place on each update; notes scroll by above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # no refresh thread: the loop's own updates draw, so nothing runs behind a fork or a test
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def update(self, snapshot: Snapshot) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(render(snapshot), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(Text(text))  # Text: square brackets in a message are not markup

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fields(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """(name, text) pairs of a plain line, always in the same order; families are shown by their mean.

    Order: step, losses, then the groups of the module docstring, then unknown keys sorted.
    """
    if "step" in snapshot:
        step = _number(snapshot["step"])
        yield "step", f"{step}/{_number(snapshot['steps'])}" if "steps" in snapshot else step
    losses = snapshot.get("losses", {})
    for name in sorted(losses, key=lambda key: (key != "total", key)):
        yield ("loss" if name == "total" else f"loss.{name}"), _number(losses[name])
    for role, count in sorted(snapshot.get("actors", {}).items()):
        yield f"actors.{role}", _of(count)
    if "scenarios_per_s" in snapshot:
        yield "scenarios_per_s", _number(snapshot["scenarios_per_s"])
    for gate, rate in sorted(snapshot.get("gates", {}).items(), key=lambda item: (item[0] != PASS, item[0])):
        yield ("gates.passed" if gate == PASS else f"gates.stopped.{gate}"), _number(rate)
    for what in ("solve", "learnability"):
        values = [family[what] for family in snapshot.get("families", {}).values() if family.get(what) is not None]
        if values:
            yield what, _number(fmean(values))
    for name in ("replay_fill", "samples_per_insert", "learner_wait_share"):
        if name in snapshot:
            yield name, _number(snapshot[name])
    yield from _spread("policy_lag", snapshot)
    yield from _spread("evaluation", snapshot, prefix="eval")
    for name in sorted(snapshot.keys() - _KNOWN):
        yield from _spread(name, snapshot)


def render(snapshot: Snapshot) -> Group:
    """The live table: run figures on top, one row per anomaly family below."""
    run = Table.grid(padding=(0, 2))
    run.add_column(style="dim")
    run.add_column(overflow="fold")
    for label, names in _rows(snapshot):
        run.add_row(Text(label), Text("   ".join(names)))
    families: Mapping[str, Mapping[str, float]] = snapshot.get("families", {})
    if not families:
        return Group(run)
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for column in ("family", "solve rate", "learnability"):
        table.add_column(column, justify="left" if column == "family" else "right")
    for family, row in sorted(families.items()):
        table.add_row(Text(family), _percent(row.get("solve")), _percent(row.get("learnability")))
    return Group(run, Text(""), table)


def _rows(snapshot: Snapshot) -> Iterator[tuple[str, list[str]]]:
    """Rows of the upper table that have something to show."""
    named = dict(fields(snapshot))

    def pick(prefix: str) -> list[str]:
        return [f"{name.removeprefix(prefix)} {text}" for name, text in named.items() if name.startswith(prefix)]

    def single(name: str) -> list[str]:
        if name not in named:
            return []
        return [_percent(snapshot[name]) if name in _SHARES else named[name]]

    actors = [
        f"{kind} {count if isinstance(count, str) else _of(count)}"
        for kind, count in sorted(snapshot.get("actors", {}).items())
    ]  # fmt: skip
    gates: Mapping[str, float] = snapshot.get("gates", {})
    stopped = [f"{gate} {_percent(rate)}" for gate, rate in sorted(gates.items()) if gate != PASS]
    lag = snapshot.get("policy_lag")
    other = sorted(snapshot.keys() - _KNOWN)
    rows = [
        ("step", single("step")),
        ("loss", single("loss") + pick("loss.")),
        ("actors alive", actors),
        ("scenarios/s", single("scenarios_per_s")),
        ("gates passed", [_percent(gates[PASS])] if PASS in gates else []),
        ("stopped by gate", stopped),
        ("replay fill", single("replay_fill")),
        ("samples per insert", single("samples_per_insert")),
        ("learner wait", single("learner_wait_share")),
        ("policy lag", pick("policy_lag.") if isinstance(lag, Mapping) else single("policy_lag")),
        ("last evaluation", pick("eval.")),
        ("other", [f"{key} {text}" for name in other for key, text in _spread(name, snapshot)]),
    ]
    return ((label, cells) for label, cells in rows if cells)


def _spread(name: str, snapshot: Snapshot, prefix: str | None = None) -> Iterator[tuple[str, str]]:
    value = snapshot.get(name)
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield f"{prefix or name}.{key}", _number(value[key])
    elif value is not None:
        yield prefix or name, _number(value)


def _of(count: Any) -> str:
    return "/".join(_number(part) for part in count) if isinstance(count, tuple | list) else _number(count)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: Any) -> str:
    """Short and free of spaces: a line splits on them."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "_".join(str(value).split()) or "-"
