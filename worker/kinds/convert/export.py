"""A graph written as a .pt2 or an .onnx file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from forebay.contract.errors import InvalidInput
from forebay.worker.kinds.convert.graphs import Graph
from forebay.worker.trainer.labels import LABEL, PROBABILITIES

Free = Mapping[str, Sequence[int]]  # the free dimensions of each input, without the batch's

OPSET = 18
_REASON = 600


def exported(graph: Graph, sample: Mapping[str, Tensor], free: Free) -> ExportedProgram:
    """The program for any number of rows; InvalidInput, in torch's words, for a module of which none can be made."""
    shapes = tuple({0: Dim.DYNAMIC} | {i + 1: Dim.DYNAMIC for i in free[name]} for name in sample)
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(graph, tuple(sample.values()), dynamic_shapes=shapes)
        except Exception as error:  # torch.export raises whatever its layers raise
            raise InvalidInput(f"torch.export cannot make a program of it: {_brief(error)}") from error


def write_pt2(program: ExportedProgram, path: Path) -> None:
    with _quiet():
        torch.export.save(program, path)


def onnx_of(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The program as onnx.ModelProto, with these names for its inputs and outputs."""
    with _quiet():
        try:
            made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
        except Exception as error:  # the exporter raises whatever its layers raise
            raise InvalidInput(f"torch.onnx cannot write it: {_brief(error)}") from error
    assert made is not None  # noqa: S101 - it is, of a program
    graph = made.model.graph
    for i, node in enumerate(graph.all_nodes()):  # a value within may have the name of an input or output
        for j, value in enumerate(node.outputs):
            value.name = f"value_{i}_{j}"
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    return made.model_proto


def onnx_of_recurrent(graph: Graph, sample: Mapping[str, Tensor], free: Free, path: Path) -> Any:
    """The same of a module with GRU or LSTM layers, by tracing: torch.export unrolls them, for sequences of one length."""
    with torch.no_grad():
        outputs = list(graph(*sample.values()))
    axes = {name: {0: "batch"} | {i + 1: f"{name}_{i}" for i in free[name]} for name in sample}
    with _quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                _Tuple(graph), tuple(sample.values()), str(path), dynamo=False, input_names=list(sample),
                output_names=outputs, dynamic_axes=axes | {name: {0: "batch"} for name in outputs}, opset_version=OPSET,
            )  # fmt: skip
        except Exception as error:  # the exporter raises whatever its layers raise
            raise InvalidInput(f"torch.onnx cannot write it: {_brief(error)}") from error
    return onnx.load_model(path)


def recurrent(module: nn.Module) -> bool:
    return any(isinstance(part, nn.RNNBase) for part in module.modules())


def add_labels(model: Any, classes: Sequence[str]) -> None:
    """Adds the output `label`, a text, to a graph that gives probabilities."""
    model.graph.node.extend([
        helper.make_node("ArgMax", [PROBABILITIES], ["label_number"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["label_number"], [LABEL], domain="ai.onnx.ml", keys_int64s=range(len(classes)),
            values_strings=list(classes),
        ),
    ])  # fmt: skip
    model.graph.output.insert(0, helper.make_tensor_value_info(LABEL, TensorProto.STRING, ["batch"]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))


def write_onnx(model: Any, path: Path) -> None:
    try:
        path.write_bytes(model.SerializeToString())
    except ValueError as error:
        raise InvalidInput("the graph and its weights are larger than the 2 GB of an ONNX file") from error


class _Tuple(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.graph(*given).values())


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON]


def _quiet() -> warnings.catch_warnings[None]:
    """torch's exporters warn of what is theirs to change."""
    return warnings.catch_warnings(action="ignore")
