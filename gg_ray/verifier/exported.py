"""The Verifier as an ONNX file: written once, scored by ONNX Runtime on any CPU, without a compiler.

Flow:    registry -> [exported] -> FILE.onnx, FILE.onnx.json (sealed manifest) -> score
Source:  docs/adr/0016-export-and-streaming.md (why ONNX Runtime and not AOTInductor)
Shapes:  N buses, E branches, S substations, R regions, P patches, C coarse edges: all of them free in the file

The graph holds encoders, attention, U-Net and heads. Two things stay outside because their sizes or their order of
operations depend on the data: the fixed statistics (evidence_kernel) and the coarse edges (unet.hierarchy). Both come
with the core. A window of a size the tracer would take for a constant (none or one of something) is filled up with
what carries no weight: branches between clusters that are out of service, regions without buses.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gg_ray.files import CheckpointError, FileEntry, measure, read_sealed, seal, verify_file, write_atomic
from gg_ray.verifier.batch import F_EDGE, F_EDGE_STATIC, F_NODE, F_NODE_STATIC, GraphBatch
from gg_ray.verifier.evidence import EVIDENCE, Evidence
from gg_ray.verifier.features import SCHEMA
from gg_ray.verifier.model import Summary, Verifier, VerifierOutput
from gg_ray.verifier.temporal import PatchEncoder
from gg_ray.verifier.unet import Coarse, hierarchy

FORMAT = 2
"""Version of the inputs and of the manifest."""
OPSET = 20
BATCH_INPUTS = ("x", "e", "node_static", "edge_static", "xhat", "edge_phys", "edge_index", "substation", "region")
"""Fields of GraphBatch that Verifier.forward reads, for one graph."""
OUTPUTS = tuple(item.name for item in fields(VerifierOutput))
_WAY_OUT = "export it again with gg-ray export"


class ExportError(RuntimeError):
    """A model cannot be exported, or an exported file cannot be used; the message names it and the way out."""


class _Traced(nn.Module):
    """The network with plain tensors in and out."""

    def __init__(self, network: Verifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(BATCH_INPUTS, inputs, strict=False))
        node_proof, edge_proof, edges_S, status_S, edges_R, status_R, regions, scans = inputs[len(BATCH_INPUTS) :]
        unread = named["xhat"]  # readings and shunts serve the losses alone
        batch = GraphBatch(
            **named, meas=unread, sigma=unread, node_shunt=unread, jac=unread[:, :0],
            graph=torch.zeros_like(named["substation"]), edge_graph=torch.zeros_like(named["edge_index"][0]),
            region_graph=regions, n_graphs=1,
        )  # fmt: skip
        index, status = batch.edge_index, batch.edge_phys[:, 5]
        summary = Summary(
            node=self.network.node_encoder(batch.x, index, status),
            edge=self.network.edge_encoder(batch.e, index, status),
            node_proof=node_proof, edge_proof=edge_proof, scans=scans,
        )  # fmt: skip
        out = self.network.judge(batch, summary, Coarse(edges_S, status_S, edges_R, status_R))
        return tuple(getattr(out, name) for name in OUTPUTS)


def export(network: Verifier, path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write FILE (an ONNX graph with its weights) and FILE.json, its sealed manifest; replaces both.

    Args:    about  what the manifest says of the model beside format, schema and hash, such as id and calibration
    Returns: the manifest.
    Raises:  ExportError for an encoder that is not made of patches, for the Jacobian block, and without the packages of
             the extra `export`.
    """
    if not isinstance(network.node_encoder, PatchEncoder):
        raise ExportError(f"encoder {network.config.encoder!r}: only verifier.encoder patch can be exported")
    if network.config.jacobian:
        raise ExportError("a network with verifier.jacobian cannot be exported: score it as a registered model")
    try:
        import onnxscript  # noqa: F401 - what torch.onnx.export needs
    except ImportError as error:
        raise ExportError(f"export needs the package {error.name}: pip install 'gg-ray[export]'") from error
    dims = {name: torch.export.Dim(name, min=2, max=2**24) for name in ("N", "E", "S", "R", "C", "D")}
    patches = torch.export.Dim("P", min=2, max=8)
    window = {1: network.node_encoder.patch * patches}
    n, e = {0: dims["N"]}, {0: dims["E"]}
    shapes: tuple[dict[int, Any], ...] = (
        n | window, e | window, n, e, n, e, {1: dims["E"]}, n, {0: dims["S"]}, n, e,
        {1: dims["C"]}, {0: dims["C"]}, {1: dims["D"]}, {0: dims["D"]}, {0: dims["R"]}, {},
    )  # fmt: skip
    example = _inputs(_example(3 * network.node_encoder.patch))
    names = (
        *BATCH_INPUTS, "node_proof", "edge_proof", "edges_S", "status_S", "edges_R", "status_R", "regions", "scans",
    )  # fmt: skip
    with torch.no_grad(), _quietly():
        program = torch.export.export(_Traced(network.eval()), example, dynamic_shapes=(shapes,), strict=False)
        graph = torch.onnx.export(
            program, dynamo=True, input_names=names, output_names=OUTPUTS, opset_version=OPSET, verbose=False
        )
    assert graph is not None
    data = graph.model_proto.SerializeToString()
    manifest = {
        "format": FORMAT, "feature_schema": SCHEMA, "opset": OPSET, "patch": network.node_encoder.patch,
        "features": [F_NODE, F_EDGE, F_NODE_STATIC, F_EDGE_STATIC, EVIDENCE], **about,
    }  # fmt: skip
    write_atomic(path, data)
    entry = measure(path)
    manifest["file"] = {"name": path.name, "size": entry.size, "sha256": entry.sha256}
    write_atomic(manifest_of(path), seal(manifest))
    return manifest


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the tracer's remarks on packages that are not installed and on its own deprecated parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def manifest_of(path: Path) -> Path:
    """FILE.onnx -> FILE.onnx.json."""
    return path.with_name(path.name + ".json")


class Exported:
    """An exported Verifier: called with a batch of one window, it answers as Verifier does."""

    def __init__(self, path: Path) -> None:
        """Raises: ExportError for a missing, altered or foreign file, other features, or a missing onnxruntime."""
        try:
            self.manifest = read_sealed(manifest_of(path))
            entry = self.manifest["file"]
            verify_file(path.parent, path.name, FileEntry(entry["size"], entry["sha256"]))
            found = {name: int(self.manifest[name]) for name in ("format", "feature_schema")}
            self._patch = int(self.manifest["patch"])
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            raise ExportError(f"{path} is refused: {error}; {_WAY_OUT}") from error
        if found != {"format": FORMAT, "feature_schema": SCHEMA}:
            raise ExportError(f"{path}: {found}, this program has format {FORMAT} and schema {SCHEMA}; {_WAY_OUT}")
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError("exported models need onnxruntime: pip install 'gg-ray[export]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [item.name for item in self._session.get_inputs()]

    def __call__(self, batch: GraphBatch) -> VerifierOutput:
        """Judge one window.   Raises: ValueError for more than one, or another length than 2 to 8 whole patches."""
        scans = batch.x.shape[1]
        if batch.n_graphs != 1:
            raise ValueError(f"{batch.n_graphs} windows: an exported model takes one at a time")
        if scans % self._patch or not 2 <= scans // self._patch <= 8:
            raise ValueError(
                f"window of {scans} scans: need a multiple of the patch {self._patch}, {2 * self._patch} to"
                f" {8 * self._patch}"
            )
        feed = dict(zip(self._names, (tensor.numpy() for tensor in _inputs(batch)), strict=True))
        found = (torch.from_numpy(array) for array in self._session.run(None, feed))
        return VerifierOutput(**dict(zip(OUTPUTS, found, strict=True)))


def _inputs(batch: GraphBatch) -> tuple[Tensor, ...]:
    """What the graph is fed with: fields of the batch, statistics, coarse edges."""
    evidence = Evidence()
    status, regions = batch.edge_phys[:, 5], batch.region_graph.shape[0]
    coarse = hierarchy(batch.edge_index, status, batch.substation, batch.region, regions)
    edges_S, status_S, edges_R, status_R = coarse
    fed = {name: getattr(batch, name) for name in BATCH_INPUTS}
    region_graph = batch.region_graph
    if (
        batch.region.shape[0] < 2
    ):  # a second substation, in a region of its own: in the first it would weigh in its mean
        fed["region"] = torch.cat((batch.region, batch.region.new_tensor([regions])))
        region_graph = torch.cat((region_graph, region_graph.new_zeros(1)))
    return (
        *fed.values(), evidence(batch.x), evidence(batch.e), _filled(edges_S), _filled(status_S), _filled(edges_R),
        _filled(status_R), _filled(region_graph), torch.tensor(float(batch.x.shape[1])),
    )  # fmt: skip


def _filled(values: Tensor) -> Tensor:
    """At least two along the last axis, the rest zeros."""
    missing = max(0, 2 - values.shape[-1])
    return torch.cat((values, values.new_zeros(*values.shape[:-1], missing)), dim=-1) if missing else values


def _example(scans: int) -> GraphBatch:
    """A small ring of buses: sizes that differ from each other, so that none is mistaken for another."""
    n, e = 20, 27
    start = torch.arange(e) % n
    ones = torch.ones(e, 1)
    return GraphBatch(
        x=torch.zeros(n, scans, F_NODE), e=torch.zeros(e, scans, F_EDGE), node_static=torch.zeros(n, F_NODE_STATIC),
        edge_static=torch.zeros(e, F_EDGE_STATIC), xhat=torch.zeros(n, 2), meas=torch.zeros(n, 2),
        sigma=torch.zeros(n, 2), jac=torch.zeros(n, 0), edge_phys=ones * torch.tensor([0.01, 0.1, 0.02, 1.0, 0.0, 1.0]),
        node_shunt=torch.zeros(n, 2), edge_index=torch.stack((start, (start + 1 + torch.arange(e) // n) % n)),
        graph=torch.zeros(n, dtype=torch.int64), edge_graph=torch.zeros(e, dtype=torch.int64),
        substation=torch.arange(n) // 2, region=torch.arange(n // 2) // 3,
        region_graph=torch.zeros(4, dtype=torch.int64), n_graphs=1,
    )  # fmt: skip
