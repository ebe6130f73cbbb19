"""Console: a table for people at a terminal, stable lines for everything else."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gg_ray.console import LiveTable, PlainLines, make_console, render
from gg_ray.records import Event, Program
from gg_ray.scenario.gates import GateCounters


def counted() -> GateCounters:
    """Twenty programs: eleven pass, two stop at G3, seven at G4; of four completions G5 drops three."""
    counters = GateCounters()
    program = Program(case="case14", context_id=0, plan_id=0, scans=16, seed=0, events=(Event("bias", 3, 4),))
    for verdict in [""] * 11 + ["G3"] * 2 + ["G4"] * 7:
        counters.count(program, verdict)
    counters.count_completions(passed=1, dropped=3)
    return counters


SNAPSHOT: dict[str, Any] = {
    "evaluation": {"auroc": 0.91, "step": 200},
    "losses": {"node": 0.5, "total": 1.23456},
    "step": 250,
    "steps": 600,
    "actors": {"solvers": (1, 2), "proposers": 1},
    "scenarios_per_s": 512.34,
    "gates": counted().rates(),
    "families": {
        "T1": {"solve": 0.25, "learnability": 0.6},
        "S1": {"solve": 0.75, "learnability": 0.0},
        "A2": {"solve": None, "learnability": None},
    },
    "replay_fill": 0.125,
    "samples_per_insert": 7.9,
    "learner_wait_share": 0.04,
    "policy_lag": {"p50": 1, "p95": 2},
    "zeta": "two words",
    "best": 3,
}
LINE = (
    "step=250/600 loss=1.235 loss.node=0.5 actors.proposers=1 actors.solvers=1/2 scenarios_per_s=512.3 "
    "gates.passed=0.55 gates.stopped.G1=0 gates.stopped.G2=0 gates.stopped.G3=0.1 gates.stopped.G4=0.35 "
    "gates.stopped.G5=0.75 gates.stopped.G6=0 solve=0.5 learnability=0.3 replay_fill=0.125 samples_per_insert=7.9 "
    "learner_wait_share=0.04 policy_lag.p50=1 policy_lag.p95=2 eval.auroc=0.91 eval.step=200 best=3 zeta=two_words\n"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_line_is_stable_whatever_the_order_of_keys() -> None:
    for snapshot in (SNAPSHOT, dict(reversed(SNAPSHOT.items()))):
        stream = io.StringIO()
        PlainLines(stream).update(snapshot)
        assert stream.getvalue() == LINE


def test_plain_line_splits_into_name_and_value() -> None:
    for word in LINE.split():
        assert word.count("=") == 1


def test_plain_lines_take_any_part_of_a_snapshot() -> None:
    for key, value in SNAPSHOT.items():
        stream = io.StringIO()
        PlainLines(stream).update({key: value})
        assert stream.getvalue().count("\n") == 1
        render({key: value})
    with PlainLines(stream := io.StringIO()) as display:
        display.note("checkpoint saved\nstep-200")
        display.update({"step": 3, "losses": {"total": float("nan")}})
    assert stream.getvalue() == "checkpoint saved step-200\nstep=3 loss=nan\n"


def test_choice_by_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_console(io.StringIO()), PlainLines)
    assert isinstance(make_console(Terminal()), LiveTable)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_console(Terminal()), PlainLines)


def test_render_shows_every_group() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render(SNAPSHOT))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split("  ")[0]: line for line in text.splitlines() if line.strip()}
    for label, shown in {
        "step": "250/600",
        "loss": "1.235   node 0.5",
        "actors alive": "proposers 1   solvers 1/2",
        "scenarios/s": "512.3",
        "gates passed": "55.0 %",
        "stopped by gate": "G1 0.0 %   G2 0.0 %   G3 10.0 %   G4 35.0 %   G5 75.0 %   G6 0.0 %",
        "replay fill": "12.5 %",
        "samples per insert": "7.9",
        "learner wait": "4.0 %",
        "policy lag": "p50 1   p95 2",
        "last evaluation": "auroc 0.91   step 200",
        "other": "best 3   zeta two_words",
    }.items():
        assert shown in rows[label], label
    shares = {label: rows[label].split()[1:] for label in ("T1", "S1", "A2")}
    assert shares == {"T1": ["25.0", "%", "60.0", "%"], "S1": ["75.0", "%", "0.0", "%"], "A2": ["-", "-"]}


def test_players_of_a_serial_run_are_in_process() -> None:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render({"actors": {"players": "in process"}}))
    assert "players in process" in console.file.getvalue()  # type: ignore[attr-defined]


def test_live_table_redraws_and_keeps_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False)
    with LiveTable(console) as display:
        display.update({"step": 1})
        display.note("actor [solver 0] restarted")
        display.update({"step": 2, "losses": {"total": 0.5}})
    display.close()
    text = stream.getvalue()
    assert "actor [solver 0] restarted" in text  # brackets are not markup
    assert text.index("step  1") < text.index("step  2")
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_nothing_is_drawn_without_an_update() -> None:
    stream = io.StringIO()
    with LiveTable(Console(file=stream, force_terminal=True)):
        pass
    assert stream.getvalue() == ""
