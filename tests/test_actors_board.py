"""WeightBoard: one put per version, few versions alive, read-only numpy in the actors."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import ray

from actors.board import WeightBoard, fetch

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote(num_cpus=0.1)
class _Reader:
    """Takes posted weights as a real actor would and reports what it saw."""

    def __init__(self) -> None:
        self.have: int | None = None

    def take(self, posted: tuple[int, list[Any]]) -> dict[str, Any]:
        got = fetch(posted, self.have)
        report: dict[str, Any] = {"is_ref": isinstance(posted[1][0], ray.ObjectRef), "fetched": got is not None}
        if got is not None:
            self.have, weights = got
            report |= {
                "types": {type(value).__name__ for value in weights.values()},
                "writeable": any(value.flags.writeable for value in weights.values()),
                "sum": {name: float(value.sum()) for name, value in weights.items()},
            }
        return report | {"have": self.have}


def _weights(value: float) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.full((300, 300), value, np.float32), "b": np.full(3, value, np.float32)}


@pytest.mark.ray
def test_actor_gets_a_ref_and_fetches_each_version_once_read_only(ray_cluster: None) -> None:
    board, reader = WeightBoard(), _Reader.remote()
    board.publish("verifier", 1, _weights(1.0))
    first = ray.get(reader.take.remote(board.ref("verifier")), timeout=30)
    assert first == {
        "is_ref": True,
        "fetched": True,
        "types": {"ndarray"},
        "writeable": False,
        "sum": {"w": 90_000.0, "b": 3.0},
        "have": 1,
    }
    again = ray.get(reader.take.remote(board.ref("verifier")), timeout=30)
    assert again == {"is_ref": True, "fetched": False, "have": 1}
    board.publish("verifier", 2, _weights(2.0))
    assert ray.get(reader.take.remote(board.ref("verifier")), timeout=30)["sum"]["b"] == 6.0
    ray.kill(reader)


@pytest.mark.ray
def test_call_in_flight_keeps_a_version_that_the_board_has_dropped(ray_cluster: None) -> None:
    board, reader = WeightBoard(keep=1), _Reader.remote()
    board.publish("verifier", 1, _weights(1.0))
    answer_ref = reader.take.remote(board.ref("verifier"))
    board.publish("verifier", 2, _weights(2.0))
    assert board.ref("verifier")[0] == 2
    assert ray.get(answer_ref, timeout=30)["sum"]["b"] == 3.0
    ray.kill(reader)


def test_board_keeps_three_versions_of_each_kind_and_puts_each_once() -> None:
    puts: list[Any] = []

    def put(value: Any) -> int:
        puts.append(value)
        return len(puts)

    board = WeightBoard(put=put)
    for version in range(5):
        board.publish("verifier", version, _weights(float(version)))
    board.publish("proposer", 0, _weights(0.0))
    assert board.ref("verifier") == (4, [5])
    assert board.ref("proposer") == (0, [6])
    assert len(puts) == 6
    assert list(board._posted["verifier"]) == [2, 3, 4]


def test_versions_rise() -> None:
    board = WeightBoard(put=lambda value: object())
    for version in (10, 20, 30):
        board.publish("verifier", version, _weights(0.0))
    with pytest.raises(ValueError, match="version 20 is not newer than 30"):
        board.publish("verifier", 20, _weights(0.0))
    assert board.ref("verifier")[0] == 30


def test_tensors_and_early_reads_are_refused_with_the_way_out() -> None:
    board = WeightBoard(put=lambda value: object())
    with pytest.raises(TypeError, match=r"weights verifier\['w'\] is a list; convert it with .cpu\(\).numpy\(\)"):
        board.publish("verifier", 0, {"w": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(KeyError, match="nothing published yet"):
        board.ref("verifier")
