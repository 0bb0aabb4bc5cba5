"""Explanations of what training jobs make: by the columns, pixels, steps and tokens that users give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.requests.explain import ExplainRequest, explained
from forebay.contract.requests.recipes import check_params
from forebay.contract.signature import Signature
from forebay.datasets.reading.table import Table
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.explaining.explainer import explaining
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.runtimes.recipe import Recipe as RecipeRuntime
from forebay.worker.trainer.artifact import Artifact, outputs, write_artifact
from forebay.worker.trainer.labels import Target
from forebay.worker.trainer.recipes import get_recipe
from support.no_ceilings import NoCeilings


def fitted(folder: Path, name: str, columns: Mapping[str, Any], target: Target, **params: Any) -> LoadedModel:
    """A version of this recipe as it is before its first epoch."""
    torch.manual_seed(0)
    kind = get_recipe(name)
    recipe = kind(check_params(name, params))
    rows = len(next(iter(columns.values())))
    recipe.fit(Table(dict(columns), rows), "mean" if name in ("regressor", "classifier") else "drop")
    artifact = Artifact(name, check_params(name, params), recipe.state, tuple(columns), target)
    write_artifact(folder, artifact, artifact.network(recipe).state_dict())
    made = outputs(kind.task, target)
    spec = ModelVersion("m", 1, "recipe", "", "folder", 0, Signature.parse(recipe.inputs(), made))
    return LoadedModel(spec, RecipeRuntime().load(folder, "cpu", spec), 0, warm=True)


def explain(version: LoadedModel, samples: list[Any], method: str, **asked: Any) -> list[Any]:
    ceilings = MemoryCeilings(NoCeilings(), times=64)  # type: ignore[arg-type]
    explainer = explaining(version, ExplainRequest(method, **asked), ceilings)  # type: ignore[arg-type]
    made = explainer.model.predict([version.spec.signature.row(sample) for sample in samples])
    return [explainer.output(row) for row in made]


def predict(version: LoadedModel, sample: Any) -> Any:
    [made] = version.model.predict([version.spec.signature.row(sample)])
    return version.output(made)


TABLE = {
    "age": np.array([20.0, 30, 40, 50]),
    "city": ["Bern", "Oslo", "Oslo", "Rom"],
    "pair": np.array([[1.0, 2], [3, 4], [5, 6], [7, 9]]),
}
ROW = {"age": 25.0, "city": "Rom", "pair": [2.0, 8.0]}


@pytest.mark.parametrize("normalize", [True, False])
def test_a_regression_is_explained_by_its_columns_in_the_unit_of_its_target(tmp_path: Path, normalize: bool) -> None:
    target = Target("price", mean=100.0, deviation=7.0)
    version = fitted(tmp_path, "regressor", TABLE, target, hidden=[], normalize=normalize)
    held = {"age": 40.0, "city": "Bern", "pair": [3.0, 4.0]}
    difference = predict(version, ROW) - predict(version, held)
    for method in ("integrated-gradients", "feature-ablation"):
        [made] = explain(version, [ROW], method, baseline=held)
        assert {name: np.shape(made[name]) for name in ROW} == {"age": (), "city": (), "pair": (2,)}
        assert abs(made["age"] + made["city"] + made["pair"].sum() - difference) < 1e-4
        for name in ("age", "city"):  # linear: what a column adds, the others being what they may
            assert abs(made[name] - (predict(version, ROW) - predict(version, ROW | {name: held[name]}))) < 1e-4
    assert explain(version, [ROW], "integrated-gradients", baseline=held)[0]["explanation"]["converged"]


def test_without_a_baseline_columns_are_held_against_their_means_and_no_category(tmp_path: Path) -> None:
    version = fitted(tmp_path, "regressor", TABLE, Target("price"), hidden=[])
    means = {"age": 35.0, "city": "nowhere", "pair": TABLE["pair"].mean(0)}
    [made] = explain(version, [ROW], "integrated-gradients")
    [same] = explain(version, [ROW], "integrated-gradients", baseline=means)
    assert abs(made["explanation"]["baseline_score"] - predict(version, means)) < 1e-5
    assert abs(made["age"] - same["age"]) < 1e-5


def test_the_slope_of_a_column_is_in_its_own_unit(tmp_path: Path) -> None:
    columns = {"age": TABLE["age"], "size": np.array([1.0, 2, 4, 9])}
    version = fitted(tmp_path, "regressor", columns, Target("price", deviation=3.0), hidden=[])
    [made] = explain(version, [{"age": 25.0, "size": 2.0}], "saliency")
    slope = predict(version, {"age": 26.0, "size": 2.0}) - predict(version, {"age": 25.0, "size": 2.0})
    assert abs(made["age"] - abs(slope)) < 1e-5


def test_a_class_is_explained_by_its_probability_and_named(tmp_path: Path) -> None:
    version = fitted(tmp_path, "classifier", TABLE, Target("kind", classes=("no", "yes")), hidden=[8])
    [made] = explain(version, [ROW], "integrated-gradients", steps=200)
    probabilities = predict(version, ROW)
    about = made["explanation"]
    assert about["target"] == probabilities["label"]
    assert about["output"] == "probabilities"
    assert abs(about["score"] - probabilities["probabilities"].max()) < 1e-6
    [other] = explain(
        version, [ROW], "integrated-gradients", steps=200, target=1 - ("no", "yes").index(about["target"])
    )
    assert abs(made["age"] + other["age"]) < 1e-4  # two chances make one


def test_an_image_is_explained_in_the_shape_it_was_given_in(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 8, 6, 3)).astype(np.float32)
    version = fitted(tmp_path, "image-classifier", {"pixels": images}, Target("kind", classes=("a", "b")), channels=[4])
    for method in ("integrated-gradients", "saliency", "occlusion", "feature-ablation"):
        [made] = explain(version, [images[0]], method)
        assert made["image"].shape == (8, 6, 3)
        assert made["image"].dtype == np.float32
    [made] = explain(version, [images[0]], "feature-ablation", baseline=images[0].tolist())
    assert np.abs(made["image"]).max() < 1e-6


def test_a_text_is_explained_by_its_tokens_whatever_is_beside_it_in_the_batch(tmp_path: Path) -> None:
    texts = ["the water is cold", "a dry bed", "water water everywhere"]
    version = fitted(tmp_path, "sequence-classifier", {"text": texts}, Target("kind", classes=("a", "b")), hidden=6)
    together = explain(version, texts, "integrated-gradients", target=0)
    for text, made in zip(texts, together, strict=True):
        assert [token for token, _ in made["text"]] == text.split()
        [alone] = explain(version, [text], "integrated-gradients", target=0)
        assert np.allclose([x for _, x in made["text"]], [x for _, x in alone["text"]], atol=1e-5)
        assert made["explanation"]["converged"]
    [without] = explain(version, ["water is"], "feature-ablation", target=0)
    whole, part = (predict(version, text)["probabilities"][0] for text in ("water is", "water "))
    assert abs(without["text"][1][1] - (whole - part)) < 1e-6


def test_steps_of_a_sequence_that_are_cut_off_count_for_nothing(tmp_path: Path) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 0.0]]
    version = fitted(
        tmp_path, "sequence-classifier", {"sequence": rows}, Target("kind", classes=("a", "b")), hidden=6, max_length=3
    )
    [made] = explain(version, [rows[0]], "integrated-gradients")
    assert made["sequence"].shape == (4,)
    assert made["sequence"][3] == 0
    assert made["sequence"][:3].all()


def test_each_input_has_an_output_of_its_name_beside_the_explanation() -> None:
    signature = Signature.parse(
        {"a": {"dtype": "float64", "shape": [2]}, "t": {"dtype": "str"}, "f": {"dtype": "bytes"}}
    )
    made = explained(signature).outputs_json()
    assert made == {
        "a": {"dtype": "float64", "shape": [2]}, "t": {"dtype": "json"}, "f": {"dtype": "float32", "shape": [-1, -1]},
        "explanation": {"dtype": "json"},
    }  # fmt: skip


def test_a_row_that_cannot_be_computed_gets_no_label(tmp_path: Path) -> None:
    version = fitted(tmp_path, "classifier", {"x": np.array([1.0, 1.001, 1.002])}, Target("y", ("a", "b")))
    with pytest.raises(InvalidInput, match=r"column 'x': 3e\+38 is too far"):
        predict(version, {"x": 3e38})
    for weights in version.model._module.parameters():  # type: ignore[attr-defined]
        weights.data *= 1e10
    assert predict(version, {"x": 1.001})["label"] in ("a", "b")
    with pytest.raises(InvalidInput, match="gives NaN"):
        predict(version, {"x": 1e30})


def test_a_text_is_not_cut_into_words_where_lists_of_tokens_were_trained_on(tmp_path: Path) -> None:
    tokens = {"t": [["a", "b"], ["b", "c"]]}
    version = fitted(tmp_path, "sequence-classifier", tokens, Target("y", ("x", "z")))
    for wrong in ("a b", ["a", 1], None):
        with pytest.raises(InvalidInput, match="list of texts"):
            version.model.predict([{"text": wrong}])
