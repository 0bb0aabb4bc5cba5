"""What may be asked of an explanation, by what the version declares; all else is refused with what to do."""

from typing import Any

import numpy as np
import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.producer.explanations import make_request

VECTOR = {"x": {"dtype": "float32", "shape": [4]}}
SCORES = {"label": {"dtype": "str"}, "scores": {"dtype": "float32", "shape": [2], "classes": ["no", "yes"]}}
COLUMNS = {"age": {"dtype": "float32", "shape": [], "cell": True}, "city": {"dtype": "str", "cell": True}}
TEXT, FILE, IDS = {"text": {"dtype": "str"}}, {"photo": {"dtype": "bytes"}}, {"ids": {"dtype": "int64", "shape": [-1]}}
IMAGE = {"image": {"dtype": "float32", "shape": [3, 64, 64]}}


def version(runtime: str, inputs: Any, outputs: Any = SCORES) -> ModelVersion:
    return ModelVersion("m", 1, runtime, "", "file", 0, Signature.parse(inputs, outputs))


@pytest.mark.parametrize(
    ("runtime", "inputs", "method"),
    [
        ("torch-export", VECTOR, "integrated-gradients"),
        ("torch-export", IDS, "feature-ablation"),
        ("recipe", COLUMNS, "integrated-gradients"),
        ("recipe", TEXT, "integrated-gradients"),
        ("onnx", VECTOR, "feature-ablation"),
        ("transformers", TEXT, "feature-ablation"),
        ("transformers", FILE, "occlusion"),
        ("transformers", {"image": {"dtype": "uint8", "shape": [-1, -1, 3]}}, "occlusion"),
        ("onnx", IMAGE, "occlusion"),
        ("python", None, "feature-ablation"),
    ],
)
def test_the_method_is_the_best_that_the_version_can_do(runtime: str, inputs: Any, method: str) -> None:
    assert make_request(version(runtime, inputs), {}).method == method


def test_a_class_is_kept_by_its_number_and_a_baseline_as_plain_lists() -> None:
    request = make_request(version("torch-export", VECTOR), {"target": "yes", "baseline": np.arange(4.0)})
    assert (request.target, request.baseline) == (1, [0, 1, 2, 3])
    row = {"age": np.float32(3), "city": "Rom"}
    assert make_request(version("recipe", COLUMNS), {"baseline": row}).baseline == {"age": 3, "city": "Rom"}


@pytest.mark.parametrize(
    ("runtime", "inputs", "asked", "why"),
    [
        ("torch-export", VECTOR, {"method": "guess"}, "method: expected one of feature-ablation, integrated-gradients"),
        ("torch-export", VECTOR, {"method": 3}, "method: expected"),
        ("torch-export", VECTOR, {"target": 2}, "target 2: output 'scores' has 2 values, numbered from 0"),
        ("torch-export", VECTOR, {"target": "cat"}, "target 'cat' is not a class of output 'scores': its classes are no, yes"),
        ("torch-export", VECTOR, {"target": -1}, "target: expected a class or its number, got -1"),
        ("torch-export", VECTOR, {"target": True}, "target: expected a class or its number, got True"),
        ("torch-export", VECTOR, {"output": "label"}, "output 'label': name one of scores"),
        ("torch-export", VECTOR, {"baseline": [1.0, 2.0]}, "baseline: input 'x': expected float32 of shape"),
        ("torch-export", VECTOR, {"baseline": float("nan")}, "baseline: nan is not finite"),
        ("torch-export", VECTOR, {"baseline": [1, 2, 3, float("inf")]}, "baseline: 'x' holds a number that is not finite"),
        ("torch-export", VECTOR, {"steps": 1}, "steps: expected a whole number, from 2 to 1,000, got 1"),
        ("torch-export", IDS, {"method": "saliency"}, "'ids' is int64, and gradients are by floating-point numbers"),
        ("torch-export", IMAGE, {"method": "feature-ablation"}, "a row has 12,288; at most 4,096: use occlusion"),
        ("onnx", VECTOR, {"method": "integrated-gradients"}, "runtime onnx gives no gradients; use feature-ablation"),
        ("recipe", COLUMNS, {"method": "saliency"}, "saliency is the gradient by a number, and 'city' is none"),
        ("recipe", COLUMNS, {"method": "occlusion"}, "occlusion slides a window over arrays and images, and 'age' is none"),
        ("recipe", COLUMNS, {"baseline": {"age": 3}}, "baseline: inputs: missing .*city"),
        ("transformers", TEXT, {"baseline": "none"}, "baseline: 'text' is str, whose parts are left out"),
        ("transformers", FILE, {"method": "feature-ablation"}, "input 'photo' is an image file: use occlusion"),
        ("text-generation", None, {}, "runtime text-generation gives text"),
        ("openai", None, {}, "runtime openai gives text"),
        ("torch-export", {"explanation": {"dtype": "float32", "shape": [2]}}, {}, "rename the input of this name"),
    ],
)  # fmt: skip
def test_what_a_version_cannot_do_is_refused(runtime: str, inputs: Any, asked: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        make_request(version(runtime, inputs), asked)


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ({"text": {"dtype": "str"}}, "explain takes an output that is a number or a vector; there are"),
        ({"mask": {"dtype": "float32", "shape": [8, 8]}}, "explain takes an output that is a number or a vector"),
        ({"a": {"dtype": "float32", "shape": []}, "b": {"dtype": "float32", "shape": []}}, "name one of a, b"),
    ],
)
def test_an_output_that_is_no_number_or_could_be_another_is_refused(outputs: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        make_request(version("torch-export", VECTOR, outputs), {})
