"""What is read of ONNX files, and which are refused before anything runs them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from forebay.contract.errors import InvalidInput, ModelRefused
from forebay.contract.onnx.judge import read_onnx
from forebay.producer.artifacts import artifact_signature, check_options, runtime_of, storable
from support.onnx_files import HOSTILE, graph, linear, save, value, with_data


def _identity(given, made=None):
    return graph([helper.make_node("Identity", [given.name], ["y"])], [given], [made or value("y", ["n"])])


def test_inputs_and_outputs_are_read_without_the_batch_dimension_and_without_weights(tmp_path):
    model = linear()
    model.graph.input.append(value("w", [4, 3]))  # as files of old exporters have it
    facts = read_onnx(save(model, tmp_path / "m.onnx"))
    assert facts.inputs == {"x": {"dtype": "float32", "shape": [4]}}
    assert facts.outputs == {"y": {"dtype": "float32", "shape": [3]}}
    assert facts.data == ()


@pytest.mark.parametrize(
    ("dtype", "shape", "field"),
    [
        (TensorProto.INT64, ["n"], {"dtype": "int64", "shape": []}),
        (TensorProto.BOOL, [None, "length", 2], {"dtype": "bool", "shape": [-1, 2]}),
        (TensorProto.DOUBLE, ["n", 1], {"dtype": "float64", "shape": [1]}),
        (TensorProto.STRING, ["n", 1], {"dtype": "str"}),
        (TensorProto.STRING, ["n"], {"dtype": "str"}),
    ],
)
def test_dtypes_and_free_dimensions_are_mapped(tmp_path, dtype, shape, field):
    model = _identity(value("x", shape, dtype), value("y", shape, dtype))
    facts = read_onnx(save(model, tmp_path / "m.onnx"))
    assert facts.inputs == {"x": field}
    assert facts.outputs == {"y": field}


def test_outputs_of_unknown_shape_are_left_open(tmp_path):
    model = _identity(value("x", ["n"]), value("y", None))
    assert read_onnx(save(model, tmp_path / "m.onnx")).outputs is None


_SEQUENCE = helper.make_value_info("x", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["n"])))
_MAP = helper.make_value_info("x", helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])))
_OPTIONAL = helper.make_value_info("x", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, ["n"])))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (value("x", [1, 4]), "fixed first dimension of 1, and so no free batch dimension; export it with"),
        (value("x", []), "has no dimension, and so no free batch"),
        (value("x", None), "does not tell its shape"),
        (value("x", ["n"], TensorProto.BFLOAT16), "a dtype that a row cannot have"),
        (value("x", ["n", 3], TensorProto.STRING), "one text is taken"),
        (_SEQUENCE, "is a sequence, not a tensor; convert with options={'zipmap': False}"),
        (_MAP, "is a map, not a tensor"),
        (_OPTIONAL, "is optional, not a tensor"),
    ],
)
def test_inputs_that_are_no_batches_of_tensors_are_refused_with_what_to_do(tmp_path, given, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        read_onnx(save(_identity(given), tmp_path / "m.onnx"))


def test_an_output_without_a_batch_dimension_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="output 'y' has a fixed first dimension of 2"):
        read_onnx(save(_identity(value("x", ["n"]), value("y", [2])), tmp_path / "m.onnx"))


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x08", bytes(100), b"PK\x03\x04" + bytes(50)])
def test_what_is_no_onnx_file_is_refused(tmp_path, junk):
    (tmp_path / "m.onnx").write_bytes(junk)
    with pytest.raises(InvalidInput, match=r"m\.onnx"):
        read_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_would_read_elsewhere_or_run_other_code_is_refused(tmp_path, name):
    (tmp_path / "elsewhere.data").write_bytes(bytes(4096))
    path = HOSTILE[name](tmp_path / "model")
    with pytest.raises(ModelRefused, match=r"model\.onnx: "):
        read_onnx(path)
    with pytest.raises(ModelRefused), storable("onnx", path):
        pass


@pytest.mark.parametrize(("entries", "sentence"), [
    ({"location": "gone.data"}, "which is not there"),
    ({"offset": "4"}, "is cut off"),
    ({"length": "100000"}, "is cut off"),
])  # fmt: skip
def test_data_that_is_missing_or_cut_off_is_told(tmp_path, entries, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        read_onnx(with_data(tmp_path / "model", **entries))


def test_of_a_folder_only_the_model_and_the_data_files_it_names_are_stored(tmp_path):
    path = with_data(tmp_path / "model")
    (path.parent / "secret.txt").write_text("not to be uploaded")
    for given in (path, path.parent):
        assert runtime_of(given, None) == "onnx"
        with storable("onnx", given) as stored:
            assert sorted(file.name for file in stored.iterdir()) == ["model.data", "model.onnx"]
            np.testing.assert_array_equal(
                (stored / "model.data").read_bytes(), (path.parent / "model.data").read_bytes()
            )
    alone = save(linear(), tmp_path / "alone.onnx")
    with storable("onnx", alone) as stored:
        assert stored == alone


def test_a_folder_with_two_models_asks_which(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        onnx.save(linear(), tmp_path / name)
    with pytest.raises(InvalidInput, match=r"holds a\.onnx, b\.onnx; give the file itself"):
        artifact_signature("onnx", tmp_path, {}, None, None)


def test_threads_are_a_whole_number():
    check_options("onnx", {"threads": 2}, ())
    for threads in (0, "2", True, 1.5):
        with pytest.raises(InvalidInput, match="threads is a whole number"):
            check_options("onnx", {"threads": threads}, ())
