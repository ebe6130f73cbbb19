"""POST /v1/score: strict JSON, bounded Arrow, and a real verdict that is that of gg-ray score."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from edge import edge
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc

from gg_ray.grid.cases import load_case
from gg_ray.grid.estimation import Estimator
from gg_ray.registry import Registry
from gg_ray.score import SHIPPED
from gg_ray.verifier import features
from gg_ray.windows_io import WindowFileError, windows_of
from serve.examples import SCORE_EXAMPLE
from serve.judges import ReplicaJudge
from serve.limits import ARROW_TYPES
from serve.models import METERINGS, Models, load
from serve.problems import Problem
from serve.score_body import strict_json, windows_from
from serve.settings import HttpSettings
from serve.verifier import Replica

STREAM, FILE = ARROW_TYPES
LIMITS = HttpSettings()


def arrow(table: pa.Table, kind: str = STREAM, compression: str | None = None) -> bytes:
    sink, options = io.BytesIO(), ipc.IpcWriteOptions(compression=compression)
    make = ipc.new_stream if kind == STREAM else ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def refused(body: bytes, kind: str = "application/json", limits: HttpSettings = LIMITS) -> tuple[int, str]:
    with pytest.raises((Problem, WindowFileError)) as found:
        windows_from(body, kind, limits)
    error = found.value
    return (error.status if isinstance(error, Problem) else 422), str(error)


def example(**changes: Any) -> bytes:
    row = {**copy.deepcopy(SCORE_EXAMPLE), **changes}
    return json.dumps({name: value for name, value in row.items() if value is not ...}).encode()


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ('{"case": NaN}', 400, "NaN is no JSON number; use null"),
        ('{"z": [1, -Infinity]}', 400, "-Infinity is no JSON number"),
        ('{"case": "case14", "case": "case30"}', 422, "the name 'case' is given twice"),
        ('[{"case": {"a": 1, "a": 1}}]', 422, "given twice"),
        ("[" * 33 + "]" * 33, 422, "nested deeper than 32"),
        ("[" * 500_000, 422, "nested deeper than 32"),
        ('{"a":' * 40 + "1" + "}" * 40, 422, "nested deeper"),
        ('{"case": "case14", "channels": [0], "sigma": [1], "z": [1e999]}', 422, "z holds an infinite value"),
        ("{", 400, "not JSON"),
        ("", 400, "not JSON"),
        ('"\\ud800', 400, "not JSON"),
        ("[" + "9" * 5000 + "]", 400, "not JSON"),
        ("[]", 422, "no windows in it"),
        ("3", 422, "no windows in it"),
        ('"text"', 422, "no windows in it"),
        ("[3]", 422, "not an object"),
    ],
)
def test_json_by_the_letter(text: str, status: int, words: str) -> None:
    found, said = refused(text.encode())
    assert (found, words in said) == (status, True), said


def test_brackets_inside_text_are_no_depth() -> None:
    assert strict_json(json.dumps(["[" * 100, '\\"[[', "]"]).encode(), 1) == ["[" * 100, '\\"[[', "]"]
    assert refused(b"\xff\xfe")[0] == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_what_is_json_is_taken_as_it_is(value: Any) -> None:
    assert strict_json(json.dumps(value).encode(), 100) == value


@given(
    field=st.sampled_from([*SCORE_EXAMPLE, "age", "status", "tap", "x_scale", "moves", "buses", "topology"]),
    value=json_values,
)
def test_no_value_of_a_field_is_an_unexpected_error(field: str, value: Any) -> None:
    with contextlib.suppress(Problem, WindowFileError):
        windows_from(example(**{field: value}), "application/json", LIMITS)


# --- windows that are refused by name -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"case": "case15"}, "body, window 0: unknown grid case 'case15'"),
        ({"case": ...}, "field 'case' is missing"),
        ({"z": ...}, "field 'z' is missing"),
        ({"z": "1.0"}, "z is not a list of numbers"),
        ({"z": ["1.0"] * 14}, "z is not a list of numbers"),
        ({"z": [10**400] * 14}, "z is not a list of numbers"),
        ({"z": [132.0] * 14 * 16}, "kV"),
        ({"buses": ["Birmingham"]}, "buses names 1 that case14 does not have, first 'Birmingham'"),
        ({"topology": "0" * 16}, "is not that of case14 here"),
        ({"channels": [0, 10**6]}, "channels must be whole numbers"),
        ({"moves": [[0, 1.0, 0]] * 257}, "257 moves; at most 256"),
        ({"moves": "[" * 100_000}, "moves must list"),
        ({"moves": [[0, 1.0, 10**300]]}, "scans count from 0"),
        ({"step_s": -1}, "step_s"),
    ],
)
def test_a_bad_window_is_refused_by_field(changes: dict[str, Any], words: str) -> None:
    status, said = refused(example(**changes))
    assert (status, words in said) == (422, True), said


def test_short_bodies_that_ask_for_much_are_refused() -> None:
    many = json.dumps([{"case": "case14"}] * 257).encode()
    assert "257 windows; at most 256" in refused(many)[1]
    small = replace(LIMITS, max_buses=13)
    assert "case14 has 14 buses and 20 branches; at most 13 and" in refused(example(), limits=small)[1]
    assert "20 branches" in refused(example(), limits=replace(LIMITS, max_branches=19))[1]
    one_meter = example(channels=[0], sigma=[0.01], z=[1.0] * 9_000)
    cells = replace(LIMITS, max_cells=100_000)
    assert "come to 306000 so far; at most 100000" in refused(one_meter, limits=cells)[1]


def test_other_content_types_are_415() -> None:
    assert refused(b"case,z", "text/csv")[0] == 415


# --- Arrow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARROW_TYPES)
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_arrow_carries_what_json_carries(kind: str, compression: str | None) -> None:
    row = {**SCORE_EXAMPLE, "z": [None, *SCORE_EXAMPLE["z"][1:]], "moves": "[[1, 0.98, 3]]"}
    [(one, plan)] = windows_from(arrow(pa.Table.from_pylist([row]), kind, compression), kind, LIMITS)
    [(two, other)] = windows_of(row, "here")
    for name in ("z_TM", "age_TM", "status_TE", "tap_E", "x_scale_E"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.t0_ns, one.moves) == (two.t0_ns, two.moves)
    np.testing.assert_array_equal(plan.channels, other.channels)


def test_a_compressed_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = arrow(pa.table({"z": pa.array([np.zeros(4_000_000)])}), compression="zstd")
    assert len(bomb) < 20_000
    before = pa.total_allocated_bytes()
    monkeypatch.setattr(ipc, "open_stream", lambda *_: pytest.fail("it was opened"))
    status, said = refused(bomb, STREAM, replace(LIMITS, max_arrow_body=2**20))
    assert (status, "once decompressed" in said) == (422, True)
    assert pa.total_allocated_bytes() - before < 2**20


def test_arrow_types_that_let_few_bytes_be_many_are_refused() -> None:
    ends = pa.array([10**9], pa.int32())
    cases: list[tuple[pa.Table, Callable[[str], bool]]] = [
        (pa.table({"case": pa.array(["a", "a"]).dictionary_encode()}), lambda said: "dictionary" in said),
        (pa.table({"z": pa.RunEndEncodedArray.from_arrays(ends, pa.array([1.0]))}), lambda said: "windows" in said),
        (pa.table({"z": pa.array([[None]], pa.list_(pa.null()))}), lambda said: "column 'z' is of type" in said),
        (pa.table({"z": pa.array([{"a": 1}])}), lambda said: "column 'z' is of type" in said),
        (pa.table({"z": pa.array([[[[1.0]]]])}), lambda said: "column 'z' is of type" in said),
        (pa.table({"z": pa.nulls(10**9)}), lambda said: "1000000000 windows" in said),
    ]
    for table, says in cases:
        status, said = refused(arrow(table), STREAM)
        assert (status, says(said)) == (422, True), said


@given(data=st.data())
def test_damaged_arrow_is_refused_or_read_but_never_an_unexpected_error(data: st.DataObject) -> None:
    whole = bytearray(
        arrow(pa.Table.from_pylist([SCORE_EXAMPLE]), compression=data.draw(st.sampled_from([None, "zstd"])))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Problem, WindowFileError):
        windows_from(bytes(whole[: data.draw(st.integers(0, len(whole)))]), STREAM, LIMITS)


# --- the real model -------------------------------------------------------------------------------------------------


def test_a_metering_that_was_seen_is_not_factored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(Registry(SHIPPED / "registry"), "champion")
    made: list[int] = []
    monkeypatch.setattr(features, "Estimator", lambda *given: made.append(1) or Estimator(*given))
    other = {**SCORE_EXAMPLE, "sigma": [0.005] * 14}
    whole = Models([model]).verdicts([windows_of(row, "here")[0] for row in (SCORE_EXAMPLE, other, SCORE_EXAMPLE)])
    assert len(made) == 2
    alone = [Models([model]).verdicts(windows_of(row, "here"))[0] for row in (SCORE_EXAMPLE, other)]
    assert len(made) == 2
    assert [one.p_implausible for one in whole] == pytest.approx(
        [alone[0].p_implausible, alone[1].p_implausible, alone[0].p_implausible], abs=1e-6
    )
    assert whole[0].p_implausible != whole[1].p_implausible
    assert METERINGS <= 16, "factors of a large grid take hundreds of megabytes"


def test_answers_are_those_of_the_model_and_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.view.ANSWERS_S", 0.05)
    replica = Replica()
    replica.want({})
    silent = {**SCORE_EXAMPLE, "z": [None] * (14 * 16)}
    short = {**SCORE_EXAMPLE, "z": SCORE_EXAMPLE["z"][:14]}

    async def story() -> None:
        async with edge(tmp_path / "none.sock", ReplicaJudge(replica)) as (client, _):
            answer = await client.post("/v1/score", json=[SCORE_EXAMPLE, silent])
            assert answer.status_code == 200, answer.text
            first, second = answer.json()["verdicts"]
            [own] = replica.models.verdicts(windows_of(SCORE_EXAMPLE, "here"))
            assert (first["verdict"], first["p_implausible"]) == (own.verdict, own.p_implausible)
            assert first["model"] == second["model"]
            assert first["model"].startswith("shipped/v")
            assert first["time"] == "2023-11-14T22:28:20.000Z"
            assert second["verdict"] == "cannot tell"
            assert second["p_value"] is None
            assert second["note"]
            refused = await client.post("/v1/score", json=short)
            assert (refused.status_code, refused.json()["title"]) == (422, "Unprocessable Entity"), refused.text
            assert (await client.get("/readyz")).status_code == 503, "there is no Redis"
            models = (await client.get("/v1/models")).json()["models"]
            assert {model["grid"]: model["model"] for model in models}["*"] == first["model"]

    try:
        asyncio.run(story())
    finally:
        replica.close()
    assert load_case("case14").n_bus == 14
