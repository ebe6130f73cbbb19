"""Adapter to PyTorch Geometric Temporal, an optional package.

Flow:    torch_geometric_temporal -> [pyg_temporal] -> temporal (encoder pygt_tgcn), bench.verifier
Source:  PyTorch Geometric Temporal (Rozemberczki et al. 2104.07788), release 0.56.2

The package imports torch_sparse in one unrelated module. Where that is absent a stand-in is placed in sys.modules for
the time of the import only, so nothing else ever takes it for the real one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

_PACKAGE = "torch_geometric_temporal"
_STAND_IN = "torch_sparse"


class PygTemporalMissing(ImportError):
    """PyTorch Geometric Temporal cannot be imported; the message says how to install it."""


def installed() -> bool:
    """True if the package is present (it is not imported)."""
    return importlib.util.find_spec(_PACKAGE) is not None


def load_tgcn() -> type[Any]:
    """The class TGCN(in_channels, out_channels) of PyTorch Geometric Temporal.

    Raises:  PygTemporalMissing if the package is absent or does not import.
    """
    if not installed():
        raise PygTemporalMissing(
            "verifier.encoder 'pygt_tgcn' needs torch-geometric-temporal: "
            "pip install --no-deps torch-geometric-temporal==0.56.2, or use the encoder 'tgcn' (the same cell)"
        )
    # before the stand-in exists: torch_geometric looks for torch_sparse once, at its own import
    importlib.import_module("torch_geometric.nn")
    stand_in = _STAND_IN not in sys.modules and importlib.util.find_spec(_STAND_IN) is None
    if stand_in:
        module = types.ModuleType(_STAND_IN)
        module.__dict__["SparseTensor"] = type("SparseTensor", (), {})
        sys.modules[_STAND_IN] = module
    try:
        recurrent = importlib.import_module(f"{_PACKAGE}.nn.recurrent")
    except ImportError as error:
        raise PygTemporalMissing(f"torch-geometric-temporal is installed but does not import: {error}") from error
    finally:
        if stand_in:
            del sys.modules[_STAND_IN]
    cell: type[Any] = recurrent.TGCN
    return cell
