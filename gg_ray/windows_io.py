"""Telemetry windows as files: Arrow or Parquet for machines, JSON for hands.

Flow:    executor, users -> [windows_io] -> score
Source:  physics.md, section 11; design.md decision 11 (no pickle is read)
Shapes:  T scans, M meters, E branches

One row (or JSON object) is one window. A file names its own meters, so it needs no metering plan of ours:
case, t0_ns, step_s, channels [M] (full-layout positions), sigma [M], z [T*M] row-major with nulls where nothing
arrived; optional: age [T*M] (fresh), status [T*E] (all in service), tap [E] and x_scale [E] (as published;
x_scale is the declared length: one factor on r, x, g and b), moves (none; JSON text or a list of [branch, new ratio,
first scan]), buses [N] (names in the order in which channels count them) and topology (fingerprint of the grid):
both are compared with the grid of this program.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gg_ray.files import write_atomic
from gg_ray.grid.cases import CaseError, GridCase, load_case
from gg_ray.grid.meters import EXTERNAL_PLAN, MeterPlan, external_plan, layout_of
from gg_ray.grid.units import wrong_unit
from gg_ray.records import F64, Window

MAX_SCANS = 10_000
_MAX_NAME = 120
"""Characters of a foreign name that an error repeats."""


class WindowFileError(ValueError):
    """A file or window that cannot be read; the message names the file, the row, the field and the way out."""


def write_windows(path: Path, windows: Sequence[tuple[Window, MeterPlan]]) -> Path:
    """Write windows with their meters; the suffix (.parquet, .arrow, .json) picks the form."""
    if path.suffix not in (".parquet", ".arrow", ".json"):
        raise WindowFileError(f"{path.name}: unknown suffix {path.suffix!r}; use .parquet, .arrow or .json")
    rows = [row_of(window, plan) for window, plan in windows]
    if path.suffix == ".json":
        return write_atomic(path, json.dumps(rows, allow_nan=False))
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    if path.suffix == ".parquet":
        pq.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return write_atomic(path, sink.getvalue())


def row_of(window: Window, plan: MeterPlan) -> dict[str, Any]:
    """A window as the row of a file, everything said."""
    return {
        "case": window.case, "topology": load_case(window.case).topology(),
        "t0_ns": int(window.t0_ns), "step_s": float(window.step_s),
        "channels": plan.channels.tolist(), "sigma": plan.sigma.tolist(),
        "z": [None if np.isnan(v) else float(v) for v in window.z_TM.ravel()],
        "age": window.age_TM.ravel().tolist(), "status": window.status_TE.ravel().tolist(),
        "tap": window.tap_E.tolist(), "x_scale": window.x_scale_E.tolist(),
        "moves": json.dumps([list(move) for move in window.moves]),
    }  # fmt: skip


def read_windows(path: Path) -> list[tuple[Window, MeterPlan]]:
    """Read and check a file of windows.

    Raises: WindowFileError for a missing, torn or foreign file, an unknown grid, a wrong shape, an impossible value.
    """
    if not path.is_file():
        raise WindowFileError(f"{path}: no such file")
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text())
        elif path.suffix == ".parquet":
            rows = rows_of(pq.read_table(path))
        elif path.suffix == ".arrow":
            with pa.OSFile(str(path), "rb") as source:
                table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)
            rows = rows_of(table)
        else:
            raise WindowFileError(f"{path.name}: unknown suffix {path.suffix!r}; use .parquet, .arrow or .json")
    except (json.JSONDecodeError, pa.ArrowException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise WindowFileError(f"{path.name}: not readable as {path.suffix[1:]} ({error})") from error
    return windows_of(rows, path.name)


def windows_of(rows: Any, source: str) -> list[tuple[Window, MeterPlan]]:
    """Check rows and make windows of them.

    Args:   rows    one mapping with the fields of a window, or a list of them;  source  where they are from, for errors
    Raises: WindowFileError as read_windows.
    """
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list) or not rows:
        raise WindowFileError(f"{source}: no windows in it")
    return [window_of(row, f"{source}, window {index}") for index, row in enumerate(rows)]


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of a table with numbers of a list as one array, nulls as NaN; a tenth of the time that Python lists take."""
    columns = {name: table.column(name) for name in table.column_names}
    return [{name: _value(column[i]) for name, column in columns.items()} for i in range(table.num_rows)]


def _value(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if scalar.is_valid and (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        inside = kind.value_type
        if pa.types.is_floating(inside) or pa.types.is_integer(inside):
            return scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


def window_of(row: Any, where: str) -> tuple[Window, MeterPlan]:
    """One window of plain values (the fields above), checked.

    Args:   where  how messages name it
    Raises: WindowFileError
    """
    if not isinstance(row, Mapping):
        raise WindowFileError(f"{where}: a {type(row).__name__}, not an object with the fields of a window")
    try:
        case = load_case(str(_field(row, "case", where)))
    except CaseError as error:
        raise WindowFileError(f"{where}: {error}") from error
    _same_grid(row, case, where)
    layout = layout_of(case)
    named = _array(row, "channels", where)
    inside = named.ndim == 1 and named.size > 0 and bool(((named >= 0) & (named < layout.size)).all())
    if not inside or np.any(np.diff(named) <= 0) or np.any(named != np.floor(named)):
        raise WindowFileError(f"{where}: channels must be whole numbers that ascend within 0..{layout.size - 1}")
    channels = named.astype(np.int64)
    sigma = _array(row, "sigma", where)
    if sigma.shape != channels.shape or not (np.isfinite(sigma) & (sigma > 0)).all():
        raise WindowFileError(f"{where}: sigma needs {channels.size} positive numbers")
    z = _array(row, "z", where)
    if z.size == 0 or z.size % channels.size:
        raise WindowFileError(f"{where}: z has {z.size} values, not a multiple of {channels.size} meters")
    z = z.reshape(-1, channels.size)
    scans = z.shape[0]
    if scans > MAX_SCANS:
        raise WindowFileError(f"{where}: {scans} scans; at most {MAX_SCANS}")
    if mistake := wrong_unit(case, channels, z):
        raise WindowFileError(f"{where}: {mistake}")
    age = _optional(row, "age", (scans, channels.size), np.zeros((scans, channels.size)), where, (0, 255))
    status = _optional(row, "status", (scans, case.n_branch), np.ones((scans, case.n_branch)), where, (0, 1))
    tap = _optional(row, "tap", (case.n_branch,), case.tap, where, (0.1, 10))
    x_scale = _optional(row, "x_scale", (case.n_branch,), np.ones(case.n_branch), where, (0.01, 100))
    moves = _moves(row.get("moves"), case.n_branch, where)
    step_s = _number(row, "step_s", 60.0, where)
    if not 0.0 < step_s <= 86_400.0:
        raise WindowFileError(f"{where}: step_s {step_s:g}; seconds between scans, more than 0, at most 86400")
    plan = external_plan(case, channels, sigma)
    window = Window(
        case=case.name, plan_id=EXTERNAL_PLAN, t0_ns=int(_number(row, "t0_ns", 0, where)), step_s=step_s, z_TM=z,
        age_TM=np.where(np.isnan(z) & (age == 0), 255, age).astype(np.uint8), status_TE=status.astype(np.uint8),
        tap_E=tap, x_scale_E=x_scale, moves=moves,
    )  # fmt: skip
    return window, plan


def _same_grid(row: Mapping[str, Any], case: GridCase, where: str) -> None:
    """What a row says of its grid, where it does, against ours: positions in another grid would be other places."""
    named = row.get("buses")
    if named is not None:
        given = [str(name) for name in named] if isinstance(named, Sequence) and not isinstance(named, str) else []
        known = set(case.bus_names)
        strange = [name[:_MAX_NAME] for name in given if name not in known]
        if strange:
            near = difflib.get_close_matches(strange[0], case.bus_names, n=1)
            hint = f" (the nearest is {near[0]!r})" if near else ""
            raise WindowFileError(
                f"{where}: buses names {len(strange)} that {case.name} does not have, first {strange[0]!r}{hint}"
            )
        if tuple(given) != case.bus_names:
            raise WindowFileError(
                f"{where}: buses must list all {case.n_bus} buses of {case.name} in its order; {len(given)} given"
            )
    declared = row.get("topology")
    if declared is not None and declared != case.topology():
        raise WindowFileError(
            f"{where}: topology {_quoted(declared)} is not that of {case.name} here ({case.topology()}): its buses,"
            " branches or parameters differ; export the window from this version of the grid"
        )


def _quoted(value: Any) -> str:
    return repr(value)[:_MAX_NAME]


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row or row[name] is None:
        raise WindowFileError(f"{where}: field {name!r} is missing")
    return row[name]


def _array(row: Mapping[str, Any], name: str, where: str) -> F64:
    values = _field(row, name, where)
    if not isinstance(values, np.ndarray):
        if isinstance(values, str | Mapping) or not isinstance(values, Sequence):
            raise WindowFileError(f"{where}: {name} is not a list of numbers")
        try:
            values = np.array([np.nan if v is None else v for v in values])
        except (ValueError, OverflowError) as error:  # lists of different lengths
            raise WindowFileError(f"{where}: {name} is not a list of numbers") from error
    if values.size and values.dtype.kind not in "fiub":
        raise WindowFileError(f"{where}: {name} is not a list of numbers")
    out: F64 = values.astype(np.float64)
    if np.isinf(out).any():
        raise WindowFileError(f"{where}: {name} holds an infinite value; use null for a reading that did not arrive")
    return out


def _optional(
    row: Mapping[str, Any], name: str, shape: tuple[int, ...], default: F64, where: str, bounds: tuple[float, float]
) -> F64:
    if row.get(name) is None:
        return default
    out = _array(row, name, where)
    if out.size != int(np.prod(shape)) or np.isnan(out).any():
        raise WindowFileError(f"{where}: {name} needs {int(np.prod(shape))} numbers, has {out.size}")
    if out.min() < bounds[0] or out.max() > bounds[1]:
        raise WindowFileError(
            f"{where}: {name} holds {out.min():g} to {out.max():g}; allowed are {bounds[0]:g} to {bounds[1]:g}"
        )
    return out.reshape(shape)


def _number(row: Mapping[str, Any], name: str, default: float, where: str) -> float:
    value = row.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63:
        raise WindowFileError(f"{where}: {name} {_quoted(value)} is not a number")
    return value


def _moves(given: Any, branches: int, where: str) -> tuple[tuple[int, float, int], ...]:
    try:
        listed = json.loads(given) if isinstance(given, str) and given else given or []
        moves = tuple((int(branch), float(ratio), int(first)) for branch, ratio, first in listed)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WindowFileError(
            f"{where}: moves must list [branch, new ratio, first scan], not {_quoted(given)}"
        ) from error
    for branch, ratio, first in moves:
        if abs(first) > MAX_SCANS:
            raise WindowFileError(f"{where}: move of branch {branch} from scan {first}; scans count from 0")
        if not 0 <= branch < branches or not 0.1 <= ratio <= 10:
            raise WindowFileError(
                f"{where}: move of branch {branch} to {ratio:g}; need 0..{branches - 1} and 0.1 to 10"
            )
    return moves
