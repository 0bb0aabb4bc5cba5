"""Requests of the Open Inference Protocol as jobs, and results as its answers: held to what Triton's client sends and reads."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from forebay.api.errors import MalformedBody
from forebay.api.inference.requests import Asked, Wanted, job_input, parse
from forebay.api.inference.responses import answer, check_outputs
from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.contract.wire.payload import join_rows

DIGITS = Signature.parse(
    {"image": {"dtype": "float32", "shape": [2, 2]}}, {"scores": {"dtype": "float32", "shape": [3]}}
)
MIXED = Signature.parse(
    {
        "ids": {"dtype": "int64", "shape": [-1]}, "half": {"dtype": "float16", "shape": []}, "text": {"dtype": "str"},
        "raw": {"dtype": "bytes"}, "more": {"dtype": "json"},
    },
    {"total": {"dtype": "int64", "shape": []}, "text": {"dtype": "str"}, "half": {"dtype": "float16", "shape": [2]},
     "more": {"dtype": "json"}},
)  # fmt: skip
FREE = Signature()
IMAGE = {"name": "image", "shape": [1, 2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}


def sent(arrays: dict[str, np.ndarray], *outputs: InferRequestedOutput, binary: bool = True, **more: Any) -> Any:
    """What Triton's client makes of these inputs: a body and the length of its JSON."""
    inputs = []
    for name, array in arrays.items():
        one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(one.set_data_from_numpy(array, binary_data=binary))
    body, length = InferenceServerClient.generate_request_body(inputs, list(outputs), **more)
    return body, None if length is None else str(length)


def asked(arrays: dict[str, np.ndarray], *outputs: InferRequestedOutput, **more: Any) -> Asked:
    return parse(*sent(arrays, *outputs, **more))


def as_body(**request: Any) -> bytes:
    return json.dumps(request).encode()


def read(asked: Asked, signature: Signature, result: Any) -> Any:
    """What Triton's client reads out of the answer."""
    rows = len(next(iter(asked.tensors.values())).array)
    made = answer(asked.wanted, ModelVersion("m", 3, "python", "", "none", 0, signature), "0" * 32, result, rows)
    return InferenceServerClient.parse_response_body(made.body, header_length=made.header_length)


@pytest.mark.parametrize("binary", [True, False])
def test_a_request_becomes_one_batch_of_its_rows(binary: bool) -> None:
    images = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    made = asked({"image": images}, binary=binary, request_id="a-1", priority=3, timeout=1_500_000)
    assert (made.wanted.id, made.options) == ("a-1", {"batched": True, "priority": 3, "deadline": 1.5})
    rows = DIGITS.rows(job_input(made, DIGITS))
    assert np.array_equal([row["image"] for row in rows], images)


def test_every_kind_of_input_arrives_as_its_model_takes_it() -> None:
    arrays = {
        "ids": np.array([[1, 2, 3], [4, 5, 6]]), "half": np.array([0.5, 2], np.float16),
        "text": np.array(["zwölf", ""], object), "raw": np.array([b"\xff", b"\0"], object),
        "more": np.array(['{"a": [1]}', "null"], object),
    }  # fmt: skip
    first, second = MIXED.rows(job_input(asked(arrays), MIXED))
    assert (first["ids"].tolist(), first["half"], first["text"], first["raw"]) == ([1, 2, 3], 0.5, "zwölf", b"\xff")
    assert (first["more"], second["more"]) == ({"a": [1]}, None)


def test_a_model_that_declares_nothing_gets_its_rows_by_the_names_of_the_inputs() -> None:
    arrays = {"x": np.arange(4).reshape(2, 2), "word": np.array([b"a", b"b"], object)}
    first, second = FREE.rows(job_input(asked(arrays), FREE))
    assert (first["x"].tolist(), first["word"], second["word"]) == ([0, 1], b"a", b"b")


def test_unknown_keys_are_ignored_and_optional_ones_may_be_null() -> None:
    request = {"model_name": "digits", "id": None, "parameters": None, "outputs": None, "extra": {}}
    made = parse(as_body(**request, inputs=[IMAGE | {"parameters": None, "more": 1}]), None)
    assert made.wanted == ("", {}, False)


def test_a_body_without_json_is_the_data_of_the_only_input() -> None:
    images = np.arange(8, dtype=np.float32)
    made = parse(images.tobytes(), "0")
    assert made.wanted.binary
    assert [row["image"].tolist() for row in DIGITS.rows(job_input(made, DIGITS))] == images.reshape(2, 2, 2).tolist()
    text = Signature.parse({"text": {"dtype": "str"}})
    assert job_input(parse("zwölf".encode(), "0"), text) == {"text": ["zwölf"]}
    with pytest.raises(InvalidInput, match="has 16 bytes, got 17"):
        job_input(parse(bytes(17), "0"), DIGITS)
    for signature in (MIXED, FREE, Signature.parse({"x": {"dtype": "int8", "shape": [-1]}})):
        with pytest.raises(InvalidInput, match="only a model with one declared input of fixed shape"):
            job_input(parse(bytes(16), "0"), signature)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": None}, r"Expected `array`, got `null` - at `\$.inputs\[0\].shape`"),
        ({"shape": [1.5, 2]}, "Expected `int`, got `float`"),
        ({"shape": [-1, 2, 2]}, "a shape is a list"),
        ({"name": 1}, "Expected `str`"),
        ({"datatype": "FP8"}, "the datatype is one of"),
        ({"data": None}, "input 'image': give its values in data, or as binary data"),
        ({"data": [1, 2, 3]}, r"its shape is \[1, 2, 2\], but its data is of shape \[3\]"),
        ({"data": "text"}, "Expected `array | null`, got `str`"),
        ({"data": {"a": 1}}, "Expected `array | null`, got `object`"),
        ({"parameters": {"binary_data_size": 16}}, "input 'image': give its values in data, or as binary data"),
        ({"parameters": {"binary_data_size": -1}}, "Expected `int` >= 0"),
        ({"parameters": {"binary_data_size": True}}, "Expected `int"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not supported"),
        ({"datatype": "FP64"}, "input 'image': its datatype is FP32, got FP64"),
        ({"shape": [2, 2]}, r"'image': expected float32 of shape \[-1, 2, 2\], got .*\[2, 2\]"),
        ({"shape": [0, 2, 2], "data": []}, "at least 1"),
        ({"name": "picture"}, "missing"),
    ],
)
def test_an_input_that_is_not_right_is_refused_with_what_is_wrong(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        DIGITS.rows(job_input(parse(as_body(inputs=[IMAGE | change]), None), DIGITS))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": [NaN]}', "malformed"),
        (b'{"inputs": [\xff]}', "malformed|utf-8"),
        (b'{"inputs": ' + b"[" * 100_000, "Expected `object`|nested too deeply"),
        (b'{"extra": ' + b"[" * 100_000, "nested too deeply"),
        (as_body(inputs=[IMAGE, IMAGE]), "input 'image': it is there twice"),
        (as_body(inputs=[IMAGE], outputs=[{"name": "a"}, {"name": "a"}]), "asked for twice"),
        (as_body(inputs=[IMAGE], parameters={"priority": 10}), "<= 9"),
        (as_body(inputs=[IMAGE], parameters={"timeout": -1}), ">= 0"),
        (as_body(inputs=[IMAGE], parameters={"sequence_id": 7}), "keep no state"),
        (as_body(inputs=[IMAGE], outputs=[{"name": "a", "parameters": {"classification": 2}}]), "classification"),
    ],
)
def test_a_request_that_is_not_right_is_refused_with_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises((InvalidInput, MalformedBody), match=reason):
        parse(body, None)


@pytest.mark.parametrize("length", ["-1", "1e1", " 5", "", "9" * 40, "١", "1000000", "0x0"])
def test_a_header_length_that_is_no_length_of_the_body_is_refused(length: str) -> None:
    with pytest.raises(InvalidInput, match=r"Inference-Header-Content-Length .* is not a length within the body's"):
        parse(as_body(inputs=[IMAGE]), length)


@given(st.integers(0, 400), st.binary(max_size=30), st.integers(-1, 400))
def test_a_cut_or_stretched_body_is_never_read_as_something_else(keep: int, tail: bytes, length: int) -> None:
    body, header = sent({"image": np.ones((1, 2, 2), np.float32), "x": np.array([b"a", b"bc"], object)})
    changed, header = body[:keep] + tail, header if length < 0 else str(length)
    if (changed, header) == sent({"image": np.ones((1, 2, 2), np.float32), "x": np.array([b"a", b"bc"], object)}):
        return
    try:
        made = parse(changed, header)
    except (InvalidInput, MalformedBody):
        return
    if made.raw is not None:
        assert header is not None
        assert int(header) == 0
        return
    assert made.tensors["x"].array.shape == (2,)  # other values, whole
    assert made.tensors["image"].array.shape == (1, 2, 2)


def test_binary_data_that_belongs_to_no_input_is_refused() -> None:
    body, header = sent({"image": np.ones((1, 2, 2), np.float32)})
    with pytest.raises(InvalidInput, match="1 bytes of binary data belong to no input"):
        parse(body + b"x", header)
    with pytest.raises(InvalidInput, match="binary_data_size is 16, 15 bytes are left behind the JSON"):
        parse(body[:-1], header)


@pytest.mark.parametrize("binary", [True, False])
def test_a_result_is_read_as_it_was(binary: bool) -> None:
    scores = np.array([[0.1, -2, 3e30], [0, 1, 2]], np.float32)
    outputs = [] if binary else [InferRequestedOutput("scores", binary_data=False)]
    back = read(asked({"image": np.ones((2, 2, 2), np.float32)}, *outputs, request_id="b"), DIGITS, scores)
    assert back.as_numpy("scores").dtype == np.float32
    assert np.array_equal(back.as_numpy("scores"), scores)
    head = back.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "3", "b")
    assert head["parameters"] == {"job_id": "0" * 32}


def test_outputs_come_as_they_are_asked_for_one_by_one() -> None:
    rows = [
        {"total": np.int64(2**62), "text": "zwölf", "half": np.ones(2, np.float16), "more": {"a": 1}},
        {"total": np.int64(-1), "text": "", "half": np.zeros(2, np.float16), "more": {"a": None}},
    ]
    wanted = [InferRequestedOutput("half"), InferRequestedOutput("total", binary_data=False)]
    wanted += [InferRequestedOutput("text", binary_data=False), InferRequestedOutput("more")]
    back = read(asked({"ids": np.zeros((2, 1))}, *wanted), MIXED, join_rows(rows))
    assert back.as_numpy("total").tolist() == [2**62, -1]
    assert back.as_numpy("half").tolist() == [[1, 1], [0, 0]]
    assert back.as_numpy("text").tolist() == ["zwölf", ""]
    assert [json.loads(text) for text in back.as_numpy("more")] == [{"a": 1}, {"a": None}]
    assert [one["name"] for one in back.get_response()["outputs"]] == ["half", "total", "text", "more"]


@pytest.mark.parametrize(
    ("rows", "datatype", "read_back"),
    [
        ([1, 2], "INT64", [1, 2]),
        ([0.5, math.inf], "FP64", [0.5, math.inf]),
        ([True, False], "BOOL", [True, False]),
        (["a", "ü"], "BYTES", [b"a", "ü".encode()]),
        ([b"a", b"\xff"], "BYTES", [b"a", b"\xff"]),
        ([np.uint8(1), np.uint8(2)], "UINT8", [1, 2]),
        ([np.array(["a", "b"]), np.array(["c", "d"])], "BYTES", [[b"a", b"b"], [b"c", b"d"]]),
        ([1, 0.5], "BYTES", [b"1", b"0.5"]),
        ([2**64 - 1, -1], "BYTES", [str(2**64 - 1).encode(), b"-1"]),
        ([None, {"a": 1}], "BYTES", [b"null", b'{"a": 1}']),
        ([[1], [2, 3]], "BYTES", [b"[1]", b"[2, 3]"]),
    ],
)
def test_what_an_undeclared_model_gives_has_the_type_of_its_rows(rows: Any, datatype: str, read_back: Any) -> None:
    back = read(asked({"x": np.zeros(2)}), FREE, join_rows(rows))
    assert back.get_output("output")["datatype"] == datatype
    assert back.as_numpy("output").tolist() == read_back


def test_a_dict_that_is_one_declared_value_comes_back_whole() -> None:
    signature = Signature.parse({"x": {"dtype": "float64", "shape": []}}, {"y": {"dtype": "json"}})
    for rows in ([{"a": {"b": 1}}, {"a": {"b": 2}}], [{}, {}], [{"a": 1}, {"b": 1}], ["a", "b"]):
        back = read(asked({"x": np.zeros(2)}), signature, join_rows(rows))
        assert [json.loads(text) for text in back.as_numpy("y")] == rows


@pytest.mark.parametrize(
    ("result", "binary", "reason"),
    [
        ([np.zeros(1), np.zeros(2)], True, "output 'output': its rows differ in shape"),
        ({"a": np.array([math.nan])}, False, "output 'a': it holds NaN or infinity"),
        ([[math.nan], [0.0]], True, "output 'output': .*JSON"),
        ([{"a": b"x"}, {"b": b"y"}], True, "output 'output': bytes is not JSON data"),
    ],
)
def test_a_result_that_no_answer_can_hold_is_refused_with_its_job(result: Any, binary: bool, reason: str) -> None:
    made = asked({"x": np.zeros(2)})
    made = made._replace(wanted=made.wanted._replace(binary=binary))
    with pytest.raises(InvalidInput, match=rf"{reason}.*; job 0{{32}} has the result"):
        read(made, FREE, result)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"nope": True}, "there is no output 'nope'; there are 'total', 'text', 'half', 'more'"),
        ({"half": False}, "output 'half': JSON cannot carry FP16"),
        ({}, "output 'half': JSON cannot carry FP16"),
    ],
)
def test_outputs_that_cannot_come_are_refused_beforehand(outputs: dict[str, bool], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_outputs(Wanted("", outputs, False), MIXED)
    check_outputs(Wanted("", {"half": True, "total": False}, False), MIXED)
    check_outputs(Wanted("", outputs, False), FREE)
