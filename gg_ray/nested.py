"""Nested state <-> JSON and flat named arrays, exactly: types, keys, order, dtypes and empty shapes come back.

Flow:    checkpoint, registry -> [nested: flatten, unflatten] -> PART.json, PART.safetensors, PART.I.bin
Source:  docs/adr/0006-checkpoint-format.md (structure). No pickle is written or read: any other type is refused.
Limits:  tensors come back on the CPU, detached; a dict subclass comes back as a dict.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gg_ray.files import CheckpointError

_TAG = "!"
_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)


@dataclass(slots=True)
class Flat:
    """A nested value taken apart: tree is JSON and refers to arrays by name, to blobs by position."""

    tree: Any
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    blobs: list[bytes] = field(default_factory=list)


def flatten(value: Any) -> Flat:
    """Take a nested value apart so that `unflatten` gives back the same types, keys and order.

    Args:    value  None, bool, int of any size, float (nan, inf too), str, bytes, list, tuple, dict (keys: plain
                    values, tuples), torch tensor, numpy array or scalar (bool, int, uint, f16/f32/f64; bf16 for torch).
                    A dict subclass becomes a dict.
    Raises:  CheckpointError naming the place of a value of any other type.
    """
    flat = Flat(None)
    flat.tree = _encode(value, flat, ())
    return flat


def unflatten(flat: Flat) -> Any:
    """The value that `flatten` took apart.

    Raises:  CheckpointError if the tree was not made by `flatten`.
    """
    try:
        return _decode(flat.tree, flat)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the structure of this part is not readable ({error!r}); use another checkpoint"
        ) from error


def _encode(value: Any, flat: Flat, at: tuple[str, ...]) -> Any:
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:  # other JSON readers lose digits above 2**53, and Python refuses to print above 4300 digits
        return value if abs(value) < 2**53 else {_TAG: "int", "v": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {_TAG: "float", "v": repr(value)}
    if type(value) is list:
        return [_encode(item, flat, (*at, str(i))) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {_TAG: "tuple", "v": [_encode(item, flat, (*at, str(i))) for i, item in enumerate(value)]}
    if isinstance(value, dict):
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: _encode(item, flat, (*at, key)) for key, item in value.items()}
        pairs = [[_encode(key, flat, at), _encode(item, flat, (*at, str(key)))] for key, item in value.items()]
        return {_TAG: "dict", "v": pairs}
    if isinstance(value, bytes):
        flat.blobs.append(value)
        return {_TAG: "bytes", "v": len(flat.blobs) - 1}
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(
                f"{_place(at)}: a sparse, meta or quantised tensor cannot be saved; make it dense first"
            )
        dense = value.detach().cpu().contiguous()
        if dense.dtype is torch.bfloat16:  # numpy has no bfloat16: the bits travel as uint16
            return {_TAG: "bf16", "v": _hold(dense.view(torch.uint16).numpy(), flat, at)}
        return {_TAG: "tensor", "v": _hold(dense.resolve_conj().resolve_neg().numpy(), flat, at)}
    if isinstance(value, np.generic):
        return {_TAG: "scalar", "v": _hold(np.asarray(value), flat, at)}
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return {_TAG: "array", "v": _hold(value, flat, at)}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise CheckpointError(f"{_place(at)}: a {kind} cannot be saved; give plain values, arrays or bytes")


def _hold(array: NDArray[Any], flat: Flat, at: tuple[str, ...]) -> str:
    """Keep the array under a readable name that no other array of the part has."""
    if array.dtype.name not in _DTYPES:
        known = ", ".join(sorted(_DTYPES))
        raise CheckpointError(f"{_place(at)}: dtype {array.dtype} cannot be saved; convert it to one of {known}")
    stem = re.sub(r"[^A-Za-z0-9_./-]", "_", "/".join(at)) or "value"
    name, copies = stem, 0
    while name in flat.arrays or name == "__metadata__":  # that key belongs to safetensors
        copies += 1
        name = f"{stem}~{copies}"
    # not ascontiguousarray: it turns 0-d into 1-d
    flat.arrays[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return name


def _place(at: tuple[str, ...]) -> str:
    return "state" + "".join(f"[{key!r}]" for key in at)


def _decode(tree: Any, flat: Flat) -> Any:
    if isinstance(tree, list):
        return [_decode(item, flat) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TAG not in tree:
        return {key: _decode(item, flat) for key, item in tree.items()}
    kind, v = tree[_TAG], tree["v"]
    if kind == "int":
        return int(v, 16)
    if kind == "float":
        return float(v)
    if kind == "tuple":
        return tuple(_decode(item, flat) for item in v)
    if kind == "dict":
        return {_decode(key, flat): _decode(item, flat) for key, item in v}
    if kind == "bytes":
        return flat.blobs[v]
    if kind == "scalar":
        return flat.arrays[v][()]
    if kind == "array":
        return flat.arrays[v]
    if kind == "tensor":
        return torch.from_numpy(flat.arrays[v].copy())  # copy: torch needs writable memory of its own
    if kind == "bf16":
        return torch.from_numpy(flat.arrays[v].copy()).view(torch.bfloat16)
    raise ValueError(f"unknown kind of value {kind!r}")
