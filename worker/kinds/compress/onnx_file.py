"""An ONNX file with its weights in fewer bits, or fewer of them: by standard operators, which onnxruntime runs as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from forebay.contract.errors import InvalidInput
from forebay.worker.packed_weights import LEAST_VALUES

LEAST_OPSET = 13  # from which on DequantizeLinear takes a scale for each channel
MOST_BYTES = 2**31 - 2**20  # that an ONNX file may have without others beside it


def pack_onnx(source: Path, target: Path) -> None:
    """Matrices of weights as bytes, with a scale for each output channel; the graph makes numbers of them where it uses them."""
    model = onnx.load(source)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < LEAST_OPSET:
        raise InvalidInput(f"the file has opset {opset}, and int8-weights needs {LEAST_OPSET}: use int8-dynamic")
    nodes = []
    for tensor, weights, axis in _matrices(model):
        others = tuple(i for i in range(weights.ndim) if i != axis)
        scale = np.abs(weights).max(others).astype(np.float32) / np.float32(127)
        scale[scale == 0] = 1
        shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
        whole = np.clip(np.rint(weights / scale.reshape(shape)), -127, 127).astype(np.int8)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(whole, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    _save(model, target)


def rewrite_onnx(source: Path, target: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Matrices of weights with other values."""
    model = onnx.load(source)
    for tensor, weights, _ in _matrices(model):
        tensor.CopyFrom(numpy_helper.from_array(change(weights), tensor.name))
    _save(model, target)


def quantize_onnx(source: Path, target: Path) -> None:
    """Products of matrices in whole numbers, whose inputs are measured as they come: onnxruntime's dynamic quantization."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Of 7 bits, for a processor without VNNI adds two products in 16 bits, which are cut off above that.
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def _matrices(model: Any) -> Iterator[tuple[Any, NDArray[np.float32], int]]:
    """The weights of the graph that gain by it, and which of their dimensions is that of the output channels."""
    graph = model.graph
    given = {value.name for value in graph.input}
    by_column = {
        node.input[1]
        for node in graph.node
        if (node.op_type == "MatMul" or (node.op_type == "Gemm" and not _is_transposed(node))) and len(node.input) > 1
    }
    for tensor in list(graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or tensor.name in given:
            continue
        weights = numpy_helper.to_array(tensor)
        if weights.size >= LEAST_VALUES and np.isfinite(weights).all():
            yield tensor, weights, weights.ndim - 1 if tensor.name in by_column else 0


def _is_transposed(gemm: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in gemm.attribute)


def _save(model: Any, target: Path) -> None:
    if model.ByteSize() > MOST_BYTES:
        raise InvalidInput("what is left is more than an ONNX file may have; use int8-weights or int8-dynamic")
    onnx.save(model, target)
