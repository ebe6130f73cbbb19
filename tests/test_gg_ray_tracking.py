"""Trackers: whole lines whatever happens, resume without doubled steps, and runs compared but for the clock."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.tracking import (
    JsonlTracker,
    MultiTracker,
    NullTracker,
    TensorBoardTracker,
    TrackingError,
    compare,
    is_timing,
    read_jsonl,
)


def test_lines_have_sorted_keys_and_are_down_before_close(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(3, {"loss": np.float32(0.5), "a": 2, "arm": "uniform"}, kind="evaluate")
    assert path.read_text() == '{"a": 2, "arm": "uniform", "kind": "evaluate", "loss": 0.5, "step": 3}\n'
    tracker.close()
    tracker.close()


def test_nonfinite_values_become_null_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss": math.nan, "up": math.inf, "ok": 1.0})
    tracker.log(2, {"loss": 1.0})
    tracker.log(3, {"loss": np.float64("-inf")})
    assert read_jsonl(path)[0] == {"step": 1, "kind": "train", "loss": None, "up": None, "ok": 1.0, "nonfinite": 2}
    assert tracker.nonfinite == 3
    tracker.truncate_after(2)
    assert tracker.nonfinite == 2
    tracker.close()
    assert JsonlTracker(path).nonfinite == 2


@pytest.mark.parametrize("bad", [{"step": 1}, {"kind": "x"}, {"nonfinite": 1}, {"loss": [1]}, {"loss": None}])
def test_bad_metrics_are_named_and_not_written(tmp_path: Path, bad: Any) -> None:
    tracker = JsonlTracker(tmp_path / "m.jsonl")
    with pytest.raises(TrackingError, match=f"metric {next(iter(bad))!r}"):
        tracker.log(1, {"ok": 1.0} | bad)
    assert read_jsonl(tmp_path / "m.jsonl") == []


@given(cut=st.integers(0, 12), steps=st.integers(1, 10))
@settings(max_examples=30, deadline=None)
def test_a_resumed_file_equals_an_unbroken_one(tmp_path_factory: pytest.TempPathFactory, cut: int, steps: int) -> None:
    folder = tmp_path_factory.mktemp("m")

    def run(tracker: JsonlTracker, first: int, last: int) -> None:
        for step in range(first, last + 1):
            tracker.log(step, {"loss": 1 / step})
            tracker.log(step, {"skill": step}, kind="evaluate")

    whole = JsonlTracker(folder / "whole.jsonl")
    run(whole, 1, steps)
    broken = JsonlTracker(folder / "broken.jsonl")
    run(broken, 1, steps)
    with open(folder / "broken.jsonl", "a") as file:
        file.write('{"kind": "train", "lo')  # killed in the middle of a line
    saved = min(cut, steps)
    resumed = JsonlTracker(folder / "broken.jsonl")
    assert resumed.truncate_after(saved) == 2 * (steps - saved)
    run(resumed, saved + 1, steps)
    assert (folder / "broken.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    for tracker in (whole, broken, resumed):
        tracker.close()


def test_a_bad_line_is_named_and_a_torn_last_one_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert read_jsonl(path) == [{"step": 1}]
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(TrackingError, match=r"m\.jsonl: line 2 is not JSON"):
        read_jsonl(path)
    path.write_text('{"step": 1}\n{"stop": 1}\n')
    with pytest.raises(TrackingError, match="line 2 is not an object with a whole-number step"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("name", "timing"),
    [
        ("steps_per_s", True),
        ("learner_wait_s", True),
        ("created_utc", True),
        ("time/policy_lag", True),
        ("loss", False),
        ("losses", False),
        ("timeline_recall", False),
        ("samples_per_insert", False),
    ],
)
def test_is_timing(name: str, timing: bool) -> None:
    assert is_timing(name) is timing


def test_compare_ignores_the_clock_and_nothing_else(tmp_path: Path) -> None:
    a = [{"step": 1, "kind": "train", "loss": 0.1, "time/wait": 1, "rate_per_s": 5.0}, {"step": 2, "kind": "train"}]
    b = [{"step": 1, "kind": "train", "loss": 0.1, "time/wait": 2}, {"step": 2, "kind": "train"}]
    assert compare(a, b) == []
    assert compare(a, [b[0] | {"loss": 0.1 + 1e-16}, b[1] | {"new": 1}]) == [
        f"line 1 (train, step 1): loss 0.1 != {0.1 + 1e-16}",
        "line 2 (train, step 2): new absent != 1",
    ]
    assert compare(a, b[:1]) == ["2 lines != 1 lines"]
    for name, rows in (("a.jsonl", a), ("b.jsonl", b)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl") == []


def test_multi_and_null(tmp_path: Path) -> None:
    one, two = JsonlTracker(tmp_path / "1.jsonl"), JsonlTracker(tmp_path / "2.jsonl")
    many = MultiTracker(one, NullTracker(), two)
    many.log(1, {"loss": 1.0})
    many.close()
    assert read_jsonl(one.path) == read_jsonl(two.path) == [{"step": 1, "kind": "train", "loss": 1.0}]


def test_tensorboard_gets_scalars_and_texts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = TensorBoardTracker(tmp_path)
    tracker.log(1, {"loss": 0.5, "arm": "uniform"})
    tracker.log(2, {"loss": 0.25})
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    assert "train/arm/text_summary" in events.Tags()["tensors"]


def test_tensorboard_is_imported_late() -> None:
    code = "import sys, gg_ray.tracking; sys.exit('torch' in sys.modules or 'tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
