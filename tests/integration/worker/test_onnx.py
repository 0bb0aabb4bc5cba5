"""The runtime `onnx` with the real onnxruntime: its outputs, its limits, and files that are out for more than their own."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from forebay.contract.errors import ForebayError, InvalidInput, ModelLoadFailed, ModelRefused
from forebay.contract.onnx.judge import read_onnx
from forebay.contract.signature import Signature
from forebay.worker.execution.engine import forward
from forebay.worker.execution.warm_up import warm_up
from forebay.worker.runtimes import get_runtime
from forebay.worker.runtimes.onnx_session import CPU, CUDA, providers_for
from support.networks import rows, version
from support.onnx_files import HOSTILE, WEIGHT, graph, linear, save, value, with_data


def _load(path, **options):
    facts = read_onnx(path)
    return get_runtime("onnx").load(
        path, "cpu", version("onnx", Signature.parse(facts.inputs, facts.outputs), **options)
    )


@pytest.mark.parametrize("data", [False, True])
def test_it_gives_what_the_graph_computes_for_rows_and_for_columns(tmp_path, monkeypatch, data):
    path = with_data(tmp_path / "model").parent if data else save(linear(), tmp_path / "m.onnx")
    monkeypatch.chdir("/")  # data files are found by the model's folder
    model, given = _load(path), rows(5, 4)
    x = np.stack([row["x"] for row in given])
    np.testing.assert_allclose(np.stack(model.predict(given)), x @ WEIGHT, rtol=1e-5)
    np.testing.assert_allclose(model.predict_columns({"x": x})["y"], x @ WEIGHT, rtol=1e-5)


def test_texts_in_and_labels_out_are_one_for_each_row(tmp_path):
    nodes = [helper.make_node("Identity", ["t"], ["label"]), helper.make_node("MatMul", ["x", "w"], ["scores"])]
    model = graph(
        nodes, [value("t", ["n", 1], TensorProto.STRING), value("x", ["n", 4])],
        [value("label", ["n", 1], TensorProto.STRING), value("scores", ["n", 3])], [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    loaded = _load(save(model, tmp_path / "m.onnx"))
    made = loaded.predict([{"t": text, "x": np.ones(4, "f4")} for text in ("a", "ö")])
    assert [row["label"] for row in made] == ["a", "ö"]
    np.testing.assert_allclose(made[0]["scores"], WEIGHT.sum(0), rtol=1e-5)


def test_only_declared_outputs_are_computed(tmp_path):
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    path = save(graph(nodes, [value("x", ["n"])], [value("a", ["n"]), value("b", ["n"])]), tmp_path / "m.onnx")
    signature = Signature.parse({"x": {"dtype": "float32", "shape": []}}, {"b": {"dtype": "float32", "shape": []}})
    assert get_runtime("onnx").load(path, "cpu", version("onnx", signature)).predict([{"x": np.float32(2)}]) == [-2]
    other = Signature.parse({"x": {"dtype": "float32", "shape": []}}, {"c": {"dtype": "float32", "shape": []}})
    with pytest.raises(ModelLoadFailed, match="gives no c; it gives a, b"):
        get_runtime("onnx").load(path, "cpu", version("onnx", other))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_worker_refuses_a_file_that_would_read_elsewhere_or_run_other_code(tmp_path, name):
    (tmp_path / "elsewhere.data").write_bytes(bytes(4096))
    path = HOSTILE[name](tmp_path / "model")
    with pytest.raises(ModelRefused):
        get_runtime("onnx").load(path.parent, "cpu", version("onnx"))


def test_a_file_that_poses_as_one_of_onnxruntimes_own_format_is_read_as_what_was_judged(tmp_path):
    path = save(linear(producer_name="ORTM in the place of that format's mark"), tmp_path / "m.onnx")
    assert path.read_bytes()[4:8] == b"ORTM"
    np.testing.assert_allclose(_load(path).predict([{"x": np.ones(4, "f4")}])[0], WEIGHT.sum(0), rtol=1e-5)


def test_a_graph_that_onnxruntime_refuses_fails_the_load(tmp_path):
    node = helper.make_node("MatMul", ["x", "nowhere"], ["y"])
    path = save(graph([node], [value("x", ["n", 4])], [value("y", ["n", 3])]), tmp_path / "m.onnx")
    with pytest.raises(ModelLoadFailed, match=r"onnxruntime .* cannot load it"):
        _load(path)


def test_an_output_that_is_not_one_row_for_each_row_is_an_error(tmp_path):
    path = save(
        graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], [value("x", ["n"])], [value("y", [None])]),
        tmp_path / "m.onnx",
    )
    with pytest.raises(ForebayError, match="its first dimension must be 2"):
        _load(path).predict([{"x": np.float32(1)}] * 2)


def test_a_graph_that_wants_more_memory_than_there_is_counts_as_out_of_memory(tmp_path):
    """Rows of 2^60 bytes: each fails by itself, and the process lives."""
    huge = numpy_helper.from_array(np.array([1, 2**58]), "s")
    nodes = [helper.make_node("Unsqueeze", ["x", "axis"], ["u"]), helper.make_node("Expand", ["u", "s"], ["y"])]
    path = save(
        graph(
            nodes, [value("x", ["n"])], [value("y", ["n", "m"])],
            [huge, numpy_helper.from_array(np.array([1]), "axis")],
        ),
        tmp_path / "m.onnx",
    )  # fmt: skip
    made = forward(_load(path).predict, [{"x": np.float32(1)}])
    assert isinstance(made[0], MemoryError)


def test_a_model_with_free_dimensions_warms_up(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save(graph([node], [value("x", ["n", "m"])], [value("y", ["n", "m"])]), tmp_path / "m.onnx")
    facts = read_onnx(path)
    spec = version("onnx", Signature.parse(facts.inputs, facts.outputs))
    assert warm_up(get_runtime("onnx").load(path, "cpu", spec), spec)


def test_threads_are_those_of_the_child_or_fewer(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREBAY_TORCH_THREADS", "3")
    path = save(linear(), tmp_path / "m.onnx")
    asked = {}
    for threads in (1, 64, None):
        model = _load(path, **({} if threads is None else {"threads": threads}))
        asked[threads] = model._session.threads
    assert asked == {1: 1, 64: 3, None: 3}


def test_cuda_is_used_where_device_and_build_have_it():
    assert providers_for("cuda:1", [CUDA, CPU]) == [(CUDA, {"device_id": 1}), CPU]
    assert providers_for("cuda:0", ["AzureExecutionProvider", CPU]) == [CPU]
    assert providers_for("cpu", [CUDA, CPU]) == [CPU]


def test_texts_are_padded_as_the_tokenizer_beside_the_graph_says_and_cut_only_where_the_version_says_so(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["m"]),
        helper.make_node("Cast", ["m"], ["f"], to=1),
        helper.make_node("ReduceSum", ["f", "axis"], ["y"], keepdims=1),
    ]
    tokens = [value(name, ["n", "l"], TensorProto.INT64) for name in ("input_ids", "attention_mask")]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    save(graph(nodes, tokens, [value("y", ["n", 1])], [axis]), tmp_path / "m.onnx")
    spec = version("onnx", Signature.parse({"text": {"dtype": "str"}}), prompt="b ")
    model = get_runtime("onnx").load(tmp_path, "cpu", spec)
    given = [{"text": "a"}, {"text": "b b b b"}, {"text": ""}]
    first, refused, last = model.predict(given)
    assert (first.tolist(), last.tolist()) == ([3], [2])
    assert isinstance(refused, InvalidInput)
    assert "5 tokens; this model reads 3." in str(refused)
    assert all(isinstance(made, InvalidInput) for made in model.predict(given[1:2]))
    spec = version("onnx", Signature.parse({"text": {"dtype": "str"}}), prompt="b ", truncate=True)
    model = get_runtime("onnx").load(tmp_path, "cpu", spec)
    assert [row.tolist() for row in model.predict(given)] == [[3], [6], [2]]
    assert model.count_tokens(given) == 2 + 3 + 1
    assert warm_up(model, spec)
    with pytest.raises(
        ModelLoadFailed, match=r"the graph takes input_ids, attention_mask, .* and the version one text"
    ):
        get_runtime("onnx").load(tmp_path, "cpu", version("onnx"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadFailed, match=r"its tokenizer\.json cannot be read"):
        get_runtime("onnx").load(tmp_path, "cpu", spec)
