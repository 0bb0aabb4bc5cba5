"""Small ONNX files, good and hostile, written with onnx itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
FLOAT = TensorProto.FLOAT


def value(name: str, shape: list[Any] | None, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] = (), **more: Any) -> Any:  # type: ignore[assignment]
    made = helper.make_graph(nodes, "g", inputs, outputs, weights)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=domains, ir_version=8, **more)


def linear(**more: Any) -> Any:
    """`y` = `x` @ WEIGHT, for any number of rows."""
    return graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [value("x", ["n", 4])], [value("y", ["n", 3])],
        [numpy_helper.from_array(WEIGHT, "w")], **more,
    )  # fmt: skip


def save(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def with_data(folder: Path, **entries: str) -> Path:
    """`linear` with its weights in model.data beside it, and these entries in the place of onnx's own."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    if entries:
        model = onnx.load(path, load_external_data=False)
        tensor = model.graph.initializer[0]
        kept = {entry.key: entry.value for entry in tensor.external_data} | entries
        del tensor.external_data[:]
        for key, text in kept.items():
            tensor.external_data.add(key=key, value=text)
        save(model, path)
    return path


def _linked(folder: Path) -> Path:
    path = with_data(folder)
    (folder / "model.data").rename(folder.parent / "elsewhere.data")
    (folder / "model.data").symlink_to(folder.parent / "elsewhere.data")
    return path


def _linked_folder(folder: Path) -> Path:
    path = with_data(folder, location="sub/elsewhere.data")
    (folder / "model.data").rename(folder.parent / "elsewhere.data")
    (folder / "sub").symlink_to(folder.parent)
    return path


def _address(folder: Path) -> Path:
    """Where onnxruntime would read `offset` as an address in memory."""
    path = with_data(folder, location="*/_ORT_MEM_ADDR_/*", offset="4096")
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(bytes(8192))
    return path


def _twice(folder: Path) -> Path:
    path = with_data(folder)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="/etc/hostname")
    return save(model, path)


def _in_subgraph(folder: Path) -> Path:
    """The tensor is an attribute of a node, in a branch of a node."""
    folder.mkdir()
    outside = numpy_helper.from_array(WEIGHT, "w")
    onnx.external_data_helper.set_external_data(outside, "/etc/hostname")
    outside.ClearField("raw_data")
    branch = helper.make_graph([helper.make_node("Constant", [], ["w"], value=outside)], "b", [], [value("w", [4, 3])])
    inner = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return save(graph(inner, [value("x", ["n", 4])], [value("y", ["n", 3])]), folder / "model.onnx")


def _operator(domain: str, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        node = helper.make_node(name, ["x"], ["y"], domain=domain)
        return save(graph([node], [value("x", ["n", 4])], [value("y", ["n", 4])]), folder / "model.onnx")

    return write


def _operator_in_function(folder: Path) -> Path:
    folder.mkdir()
    node = helper.make_node("Evil", ["a"], ["b"], domain="com.acme")
    function = helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("com.acme", 1)])
    model = graph([helper.make_node("F", ["x"], ["y"], domain="own")], [value("x", ["n"])], [value("y", ["n"])])
    model.functions.append(function)
    return save(model, folder / "model.onnx")


def _placed(location: str, **entries: str) -> Callable[[Path], Path]:
    return lambda folder: with_data(folder, location=location, **entries)


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "an absolute path": _placed("/etc/hostname"),
    "a path upwards": _placed("../elsewhere.data"),
    "a path up and down": _placed("sub/../../elsewhere.data"),
    "a path with backslashes": _placed("..\\elsewhere.data"),
    "an empty path": _placed(""),
    "the folder itself": _placed("."),
    "a path with a null byte": _placed("model.data\0"),
    "a link": _linked,
    "a linked folder": _linked_folder,
    "an address in memory": _address,
    "two locations": _twice,
    "an unknown key": _placed("model.data", basepath="/etc"),
    "a negative offset": _placed("model.data", offset="-4"),
    "a path in a branch": _in_subgraph,
    "a custom operator": _operator("com.acme", "Evil"),
    "a custom operator in a function": _operator_in_function,
    "an operator that opens files": _operator("com.microsoft", "EPContext"),
}
