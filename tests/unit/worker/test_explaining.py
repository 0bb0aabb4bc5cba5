"""Explanations are right: of a linear model its weights, and of a model of any runtime what is lost with a part of its input."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, IntegratedGradients
from PIL import Image
from torch import nn

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.requests.explain import ExplainRequest
from forebay.contract.signature import Signature
from forebay.datasets.decoding import decode_image
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.explaining.explainer import explaining
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.runtimes.safetensors import ModuleModel
from forebay.worker.shared_page import MAIN, SharedPage, TimeLimitedModel
from support.no_ceilings import NoCeilings

X = {"x": {"dtype": "float32", "shape": [4]}}


def loaded(model: Any, inputs: Any, outputs: Any) -> LoadedModel:
    spec = ModelVersion("m", 1, "safetensors", "", "none", 0, Signature.parse(inputs, outputs), max_batch_size=4)
    return LoadedModel(spec, model, 0, warm=True)


def of_module(module: nn.Module, inputs: Any = X, outputs: Any = None) -> LoadedModel:
    outputs = outputs or {"scores": {"dtype": "float32", "shape": [3], "classes": ["a", "b", "c"]}}
    version = loaded(None, inputs, outputs)
    names = [field.name for field in version.spec.signature.outputs or ()]
    model = ModuleModel(module.eval(), module, "cpu", version.spec.signature.inputs, names)
    return replace(version, model=model)


def explain(
    version: LoadedModel, rows: Sequence[Any], method: str, store: NoCeilings | None = None, **asked: Any
) -> Any:
    """The explanations as the engine gives them: each row's, or its error."""
    made: list[Any] = [None] * len(rows)
    ceilings = MemoryCeilings(store or NoCeilings(), times=64)  # type: ignore[arg-type]
    explainer = explaining(version, ExplainRequest(method, **asked), ceilings)  # type: ignore[arg-type]
    engine = Engine(MemoryCeilings(NoCeilings()), ChildMetrics())  # type: ignore[arg-type]
    for batch in engine.run_rows(explainer, range(len(rows)), rows.__getitem__):
        for i, output in zip(batch.items, batch.outputs, strict=True):
            made[i] = output if isinstance(output, Exception) else explainer.output(output)
    return made


def rows_of(numbers: np.ndarray[Any, Any], name: str = "x") -> list[Any]:
    return [{name: row} for row in numbers.astype(np.float32)]


def test_integrated_gradients_of_a_linear_model_are_its_weights_times_the_difference() -> None:
    torch.manual_seed(0)
    linear, numbers = nn.Linear(4, 3), np.random.default_rng(0).normal(size=(11, 4))
    held = [0.5, -1.0, 2.0, 0.0]
    made = explain(of_module(linear), rows_of(numbers), "integrated-gradients", baseline=held)
    weights = linear.weight.detach().numpy()
    for row, result in zip(numbers, made, strict=True):
        about = result["explanation"]
        expected = weights["abc".index(about["target"])] * (row - held)
        assert np.abs(result["x"] - expected).max() < 1e-5
        assert result["x"].dtype == np.float32
        assert about["converged"]
        assert abs(about["delta"]) < 1e-5
    scores = linear(torch.from_numpy(numbers.astype(np.float32))).argmax(1).tolist()
    assert [result["explanation"]["target"] for result in made] == ["abc"[i] for i in scores]


def test_they_are_those_of_a_bare_captum_loop_whatever_the_batches() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(9, 4)
    gradients = explain(of_module(net), rows_of(x.numpy()), "integrated-gradients", target=1)
    ablated = explain(of_module(net), rows_of(x.numpy()), "feature-ablation", target=1)
    expected = IntegratedGradients(net).attribute(x, target=1).numpy()
    assert np.abs(np.stack([row["x"] for row in gradients]) - expected).max() < 1e-5
    with torch.no_grad():
        lost = FeatureAblation(net).attribute(x, target=1).numpy()
    assert np.abs(np.stack([row["x"] for row in ablated]) - lost).max() < 1e-5


class Overwriting(nn.Module):
    """Begins with an operation in place, on a view of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 1:].relu_()
        return torch.stack([x.sum(1), x[:, 0], x[:, 1]], 1)


@pytest.mark.parametrize("method", ["integrated-gradients", "saliency", "feature-ablation", "occlusion"])
def test_a_network_that_writes_to_its_input_is_explained_like_another(method: str) -> None:
    class Cloning(Overwriting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.clone())

    numbers = np.random.default_rng(0).normal(size=(5, 4))
    made, right = (explain(of_module(m), rows_of(numbers), method, target=0) for m in (Overwriting(), Cloning()))
    np.testing.assert_array_equal([row["x"] for row in made], [row["x"] for row in right])


def test_columns_of_a_data_set_stay_as_they_are_when_a_network_writes_to_its_input() -> None:
    version = of_module(Overwriting())
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    x.flags.writeable = False  # as Arrow's are, and those of a file that is mapped into memory
    before = x.copy()
    for _ in range(2):
        made = version.model.predict_columns({"x": x})["scores"]
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(made[:, 1:], np.stack([before[:, 0], before[:, 1].clip(0)], 1))


def test_columns_stay_as_they_are_when_a_network_writes_to_some_inputs_only() -> None:
    class Clipping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.clamp_(max=1) if x.max() > 10 else x).clone()

    version = of_module(Clipping())
    for most in (1, 20, 1, 20):
        x = np.full((3, 3), most, np.float32)
        version.model.predict_columns({"x": x})
        np.testing.assert_array_equal(x, most)


def test_attributions_that_do_not_add_up_are_told_as_such_and_more_steps_mend_it() -> None:
    class Step(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(200 * (x.sum(1) - 0.9))

    version = of_module(Step(), outputs={"y": {"dtype": "float32", "shape": []}})
    row = rows_of(np.full((1, 4), 0.3))
    [few] = explain(version, row, "integrated-gradients", steps=3)
    [many] = explain(version, row, "integrated-gradients", steps=400)
    assert not few["explanation"]["converged"]
    assert "more steps than 3" in few["explanation"]["warning"]
    assert many["explanation"]["converged"]
    assert many["explanation"]["warning"] is None
    assert abs(many["x"].sum() - 1) < 0.05


def test_a_row_whose_output_is_not_finite_fails_alone() -> None:
    made = explain(
        of_module(nn.Linear(4, 3)), rows_of(np.array([[1, 2, 3, 4], [np.inf, 0, 0, 0], [1, 1, 1, 1]])), "saliency"
    )
    assert isinstance(made[1], InvalidInput)
    assert "not finite" in str(made[1])
    assert made[0]["x"].shape == made[2]["x"].shape == (4,)


class Full(nn.Module):
    """Has room for three rows at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError("no room")
        self.most = max(self.most, len(x))
        return x[:, :3] * 2


def test_what_does_not_fit_lowers_the_ceiling_of_explanations_and_costs_no_row() -> None:
    store, net = NoCeilings(), Full()
    made = explain(of_module(net), rows_of(np.ones((8, 4))), "integrated-gradients", store)
    assert np.allclose([row["x"] for row in made], [2, 0, 0, 0], atol=1e-6)
    assert store.lowered[-1] == net.most == 2


class Sums:
    """A model that is no torch module: the sum of its input, and of the lengths of words with an e."""

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        if "text" in rows[0]:
            return [float(sum(len(w) for w in row["text"].split() if "e" in w)) for row in rows]
        return [np.float32((row["x"] * [1, 2, 3, 4]).sum()) for row in rows]


NUMBER = {"y": {"dtype": "float32", "shape": []}}


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_of_any_runtime_it_is_told_what_is_lost_with_each_number(dtype: str) -> None:
    version = loaded(Sums(), {"x": {"dtype": dtype, "shape": [4]}}, NUMBER)
    rows = [{"x": np.array([1, 2, 0, 5], dtype)}]
    [made] = explain(version, rows, "feature-ablation", baseline=[0, 1, 1, 0])
    assert made["x"].tolist() == [1, 2, -3, 20]
    assert "target" not in made["explanation"]
    assert made["explanation"]["score"] == 25


def test_of_a_text_it_is_told_what_is_lost_with_each_word() -> None:
    version = loaded(Sums(), {"text": {"dtype": "str"}}, NUMBER)
    [made, none] = explain(version, [{"text": " the big  tree\n"}, {"text": ""}], "feature-ablation")
    assert made["text"] == [["the", 3.0], ["big", 0.0], ["tree", 4.0]]
    assert none["text"] == []


def test_a_window_covers_a_part_of_an_image_in_all_its_channels() -> None:
    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, :2, :2].sum((1, 2, 3))

    version = of_module(Corner(), {"x": {"dtype": "float32", "shape": [3, 4, 6]}}, NUMBER)
    [made] = explain(version, rows_of(np.ones((1, 3, 4, 6))), "occlusion", window=2)
    assert made["x"].shape == (3, 4, 6)
    assert (made["x"][:, :2, :2] == 12).all()
    assert made["x"].sum() == 12 * 12


def test_a_network_without_gradients_by_its_inputs_is_refused_and_not_told_to_be_flat() -> None:
    class Rounded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach()[:, :3]

    [made] = explain(of_module(Rounded()), rows_of(np.ones((1, 4))), "integrated-gradients")
    assert isinstance(made, InvalidInput)
    assert "no gradient" in str(made)


def test_a_gap_is_taken_out_like_any_other_value() -> None:
    class Gaps:
        def predict(self, rows: Sequence[Any]) -> list[Any]:
            return [np.float32(np.isnan(row["x"]).sum() * 10 + np.nansum(row["x"])) for row in rows]

    rows = [{"x": np.array([np.nan, 2, 0, 1], np.float32)}, {"x": np.array([1, 2, 3, 4], np.float32)}]
    made = explain(loaded(Gaps(), X, NUMBER), rows, "feature-ablation")
    assert [row["x"].tolist() for row in made] == [[10, 2, 0, 1], [1, 2, 3, 4]]


def test_gradients_of_an_input_that_is_not_finite_are_refused() -> None:
    [made] = explain(of_module(nn.ReLU()), rows_of(np.array([[-np.inf, 1, 1, 1]])), "integrated-gradients")
    assert isinstance(made, InvalidInput)
    assert "not finite" in str(made)


def test_a_method_by_gradients_never_falls_back_to_another() -> None:
    version = loaded(Sums(), {"text": {"dtype": "str"}}, NUMBER)
    [made] = explain(version, [{"text": "the tree"}], "integrated-gradients")
    assert isinstance(made, InvalidInput)
    assert "gives no gradients; use feature-ablation" in str(made)


def test_of_an_image_file_it_is_told_what_is_lost_with_each_window() -> None:
    class Left:
        def predict(self, rows: Sequence[Any]) -> list[Any]:
            return [np.float32(decode_image(row["photo"])[:, :20].mean()) for row in rows]

    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:10, :20] = 240
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    version = loaded(Left(), {"photo": {"dtype": "bytes"}}, NUMBER)
    [made] = explain(version, [{"photo": file.getvalue()}], "occlusion", window=10)
    lost = 240 - 26  # the mean colour, which the window gets
    expected = np.zeros((3, 6))
    expected[0, :2], expected[1:, :2] = lost / 6, -26 / 6
    assert np.allclose(made["photo"], expected, atol=0.2)


@pytest.mark.parametrize("tag", range(1, 9))
def test_an_image_with_an_orientation_is_covered_where_it_is_seen_whether_the_model_turns_it_or_not(tag: int) -> None:
    class Bright:
        def __init__(self, oriented: bool) -> None:
            self.oriented = oriented

        def predict(self, rows: Sequence[Any]) -> list[Any]:
            """The mean of all pixels, those of the upper rows counting more."""
            images = [decode_image(row["photo"], oriented=self.oriented)[:, :, 0].astype(float) for row in rows]
            return [np.float32((image * np.linspace(2, 1, len(image))[:, None]).mean()) for image in images]

    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :10] = 240
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    seen = decode_image(file.getvalue())[::10, ::10, 0] > 0
    for oriented in (True, False):
        version = loaded(Bright(oriented), {"photo": {"dtype": "bytes"}}, NUMBER)
        [made] = explain(version, [{"photo": file.getvalue()}], "occlusion", window=10)
        np.testing.assert_array_equal(made["photo"] > 0, seen)  # the rest gets brighter


def test_of_mixed_inputs_each_part_is_taken_out_by_itself() -> None:
    class Mixed:
        def predict(self, rows: Sequence[Any]) -> list[Any]:
            return [{"a": "x", "y": np.float32(len(r["city"]) + r["n"].sum() + len(r["text"].split()))} for r in rows]

    inputs = {"city": {"dtype": "str", "cell": True}, "n": {"dtype": "float64", "shape": [2]}, "text": {"dtype": "str"}}
    version = loaded(Mixed(), inputs, {"a": {"dtype": "str"}} | NUMBER)
    row = {"city": "Rom", "n": np.array([1.0, 2.0]), "text": "two words"}
    [made] = explain(version, [row], "feature-ablation")
    assert made["city"] == 3
    assert made["n"].tolist() == [1, 2]
    assert made["text"] == [["two", 1.0], ["words", 1.0]]
    assert made["explanation"]["output"] == "y"


def test_each_step_of_gradients_keeps_to_the_time_limit_of_the_version() -> None:
    page, limits = SharedPage(), list[float | None]()

    class Watched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            limits.append(page._cells[MAIN + 1] if page._cells[MAIN] else None)
            return x[:, :3]

    version = of_module(Watched())
    limited = replace(version, model=TimeLimitedModel(version.model, page, 7.0))
    assert np.allclose(explain(limited, rows_of(np.ones((2, 4))), "integrated-gradients")[0]["x"], [1, 0, 0, 0])
    assert set(limits) == {7.0}


def test_whole_numbers_that_no_float_holds_are_refused() -> None:
    version = loaded(Sums(), {"x": {"dtype": "int64", "shape": [4]}}, NUMBER)
    [made, good] = explain(
        version, [{"x": np.array([2**60 + 1, 0, 0, 0])}, {"x": np.array([1, 0, 0, 2])}], "feature-ablation"
    )
    assert isinstance(made, InvalidInput)
    assert "beyond 2^53" in str(made)
    assert good["x"].tolist() == [1, 0, 0, 8]
