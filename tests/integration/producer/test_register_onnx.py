"""An ONNX file is registered only if what it makes of a row is the same alone and beside others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.support.onnx_files import graph, linear, save, value

from forebay import Client, InvalidInput, Settings
from forebay.contract.onnx.judge import read_onnx
from forebay.contract.signature import Signature
from forebay.export.graphs import check_rows
from forebay.storage.ledger.connection import Ledger

ROW = np.array([0.5, -1, 2, 3], np.float32)
X, Y = [value("x", ["n", 4])], [value("y", ["n", 4])]


def constant(name: str, content: Any) -> Any:
    return numpy_helper.from_array(np.array(content), name)


def one(operator: str, *weights: Any, **attributes: Any) -> Any:
    """`y` as one operator makes it of `x` and of constants."""
    names = ["x", *(weight.name for weight in weights)]
    return graph([helper.make_node(operator, names, ["y"], **attributes)], X, Y, [*weights])


KNOW_EACH_OTHER = {
    "a running sum along the batch": one("CumSum", constant("axis", np.int64(0))),
    "a softmax along the batch": one("Softmax", axis=0),
    "the mean of the batch": graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        X, Y,
    ),
}  # fmt: skip
OTHERS = {
    "dropout in training mode": (one("Dropout", constant("ratio", np.float32(0.5)), constant("mode", True)), "at random"),
    "a random number": (one("RandomNormalLike"), "at random"),
    "a batch of one": (one("Reshape", constant("shape", [1, 4])), "takes one row, and fails on 3"),
    "a batch of three": (one("Reshape", constant("shape", [3, 4])), "takes 3 rows, and fails on one"),
    "one sum for all rows": (
        graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)], X, [value("y", ["k", "l"])]),
        r"output 'y' is \(1, 1\) for 3 rows",
    ),
}  # fmt: skip
GOOD = {
    "a softmax of each row": one("Softmax", axis=1),
    "indices": graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])], [value("x", ["n", "t"], TensorProto.INT64)],
        [value("y", ["n", "t", 2])], [constant("table", np.ones((9, 2), np.float32))],
    ),
    "texts": graph(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", ["n"], TensorProto.STRING)],
        [value("y", ["n"], TensorProto.STRING)],
    ),
    "quantized by the batch": graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        X, Y,
    ),
}  # fmt: skip


def checked(model: Any, folder: Path, example: Any = None, outputs: Any = None) -> None:
    facts = read_onnx(save(model, folder / "net.onnx"))
    signature = Signature.parse(facts.inputs, facts.outputs if outputs is None else outputs)
    check_rows(facts, signature, None if example is None else signature.row(example))


@pytest.fixture
def client(sqlite_ledger: Ledger, tmp_path: Path) -> Iterator[Client]:
    given = {"HOME": str(tmp_path / "home"), "DATABASE": sqlite_ledger.url, "BROKER": "redis://127.0.0.1:1/0"}
    with Client(Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})) as client:
        yield client


def test_a_file_whose_rows_know_each_other_is_not_registered_and_one_of_rows_by_themselves_is(
    client: Client, tmp_path: Path
) -> None:
    summed = save(KNOW_EACH_OTHER["a running sum along the batch"], tmp_path / "sum.onnx")
    with pytest.raises(InvalidInput, match=r"sum\.onnx: output 'y' for one row depends on the other rows of its batch"):
        client.models.register("net", summed, example=ROW)
    assert client.models.list() == []
    assert client.models.register("net", save(linear(), tmp_path / "net.onnx"), example=ROW).version == 1


@pytest.mark.parametrize("example", [None, ROW], ids=["made rows", "example"])
@pytest.mark.parametrize("name", KNOW_EACH_OTHER)
def test_what_depends_on_the_other_rows_of_a_batch_is_refused(tmp_path: Path, name: str, example: Any) -> None:
    with pytest.raises(InvalidInput, match="depends on the other rows of its batch"):
        checked(KNOW_EACH_OTHER[name], tmp_path, example)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_drawn_or_does_not_come_for_any_number_of_rows_is_refused(tmp_path: Path, name: str) -> None:
    model, sentence = OTHERS[name]
    with pytest.raises(InvalidInput, match=sentence):
        checked(model, tmp_path, ROW)


@pytest.mark.parametrize("name", GOOD)
def test_rows_by_themselves_are_taken_whatever_their_type(tmp_path: Path, name: str) -> None:
    checked(GOOD[name], tmp_path)


def test_an_example_that_the_graph_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"example: net\.onnx fails on it"):
        checked(GOOD["indices"], tmp_path, np.array([12]))


def test_outputs_that_nobody_asked_for_may_be_anything(tmp_path: Path) -> None:
    model = one("Softmax", axis=1)
    model.graph.node.append(helper.make_node("Softmax", ["x"], ["all"], axis=0))
    model.graph.output.append(value("all", ["n", 4]))
    with pytest.raises(InvalidInput, match="output 'all'"):
        checked(model, tmp_path, ROW)
    checked(model, tmp_path, ROW, outputs={"y": {"dtype": "float32", "shape": [4]}})
