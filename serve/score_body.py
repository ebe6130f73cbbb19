"""Bodies of POST /v1/score into windows: strict JSON or Arrow, each bounded before anything is made from it.

Flow:    body -> [score_body] -> gg_ray.windows_io -> serve.scoring
Source:  live.md, section 5 (the standard parser takes NaN, repeated names and any depth); serve.arrow_body

A short body can ask for much: a large grid by its name, thousands of scans of one meter. So sizes are added up from
what a body says before arrays are made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gg_ray.grid.cases import CaseError, load_case
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Window
from gg_ray.windows_io import WindowFileError, windows_of
from serve.arrow_body import rows_of_arrow
from serve.limits import ARROW_TYPES
from serve.problems import Problem
from serve.settings import HttpSettings

SOURCE = "body"
MAX_MOVES = 256
"""Tap moves of a window: each may be a topology of its own to the estimator."""
_INFLATED = 4
"""Bytes that a compressed Arrow body may become, as a multiple of http.max_arrow_body."""
_TOKEN = re.compile(rb'[^"\[\]{}]*+("(?:[^"\\]|\\.)*+"?|[\[\]{}])', re.DOTALL)


def windows_from(body: bytes, content_type: str, limits: HttpSettings) -> list[tuple[Window, MeterPlan]]:
    """The windows of a body.

    Raises: Problem 415 for another content type, 422 beyond a limit; WindowFileError for what is no window.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ARROW_TYPES:
        rows: Any = rows_of_arrow(body, limits.max_windows, _INFLATED * limits.max_arrow_body)
    elif kind in ("application/json", ""):
        rows = strict_json(body, limits.max_depth)
    else:
        raise Problem(415, f"content type {kind}: send application/json, or {' or '.join(ARROW_TYPES)}")
    if isinstance(rows, Mapping):
        rows = [rows]
    _within(rows, limits)
    windows = windows_of(rows, SOURCE)
    for index, (window, _) in enumerate(windows):
        if len(window.moves) > MAX_MOVES:
            raise Problem(422, f"{SOURCE}, window {index}: {len(window.moves)} moves; at most {MAX_MOVES}")
    return windows


def strict_json(body: bytes, max_depth: int) -> Any:
    """JSON by the letter of RFC 8259, with every name once.

    Raises: Problem 400 for what is no JSON (NaN and Infinity are none), 422 for a repeated name or too deep nesting.
    """
    depth = 0
    for token in _TOKEN.finditer(body):  # before parsing: the parser recurses
        first = token.group(1)[:1]
        depth += first in b"[{"
        depth -= first in b"]}"
        if depth > max_depth:
            raise Problem(422, f"{SOURCE}: nested deeper than {max_depth}; a window is one object of plain lists")
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_names_once)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"{SOURCE}: not JSON ({error})") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; use null for a reading that did not arrive")


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise Problem(422, f"{SOURCE}: the name {twice!r} is given twice in one object")
    return out


def _within(rows: Any, limits: HttpSettings) -> None:
    """Raises: Problem 422 for more windows, buses, branches or cells than allowed."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        return  # windows_of says what it is instead
    if len(rows) > limits.max_windows:
        raise Problem(422, f"{SOURCE}: {len(rows)} windows; at most {limits.max_windows} in one request")
    cells = 0
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or "case" not in row:
            continue
        where = f"{SOURCE}, window {index}"
        try:
            case = load_case(str(row["case"]))
        except CaseError as error:
            raise WindowFileError(f"{where}: {error}") from None
        if case.n_bus > limits.max_buses or case.n_branch > limits.max_branches:
            raise Problem(
                422, f"{where}: {case.name} has {case.n_bus} buses and {case.n_branch} branches;"
                     f" at most {limits.max_buses} and {limits.max_branches}",
            )  # fmt: skip
        cells += -(-_length(row, "z") // max(_length(row, "channels"), 1)) * (case.n_bus + case.n_branch)
        if cells > limits.max_cells:
            raise Problem(
                422, f"{where}: scans times places (buses and branches) come to {cells} so far;"
                     f" at most {limits.max_cells} in one request",
            )  # fmt: skip


def _length(row: Mapping[str, Any], name: str) -> int:
    try:
        return len(row[name])
    except (KeyError, TypeError):
        return 0
