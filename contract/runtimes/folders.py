"""What a model folder of Hugging Face's transformers says of itself: its task, and what a version of it takes and gives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from forebay.contract.errors import InvalidInput, ModelRefused
from forebay.contract.references import shown
from forebay.contract.requests.fields import check

TEXT_GENERATION, TRANSFORMERS = "text-generation", "transformers"
CONFIG, WEIGHTS, GRAPH = "config.json", ".safetensors", ".onnx"
Task = Literal[
    "text-classification", "token-classification", "image-classification", "audio-classification", "feature-extraction"
]  # fmt: skip
_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
}
_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_CONFIGS = (CONFIG, _PREPROCESSOR, _PROCESSOR, "tokenizer_config.json")
_ATTENTION = (None, "eager", "sdpa")
_SAVE = "save it with save_pretrained, its tokenizer or image processor too"


class FolderOptions(Struct, frozen=True, kw_only=True):
    """The options of a version with the runtime `transformers`."""

    task: Annotated[Task | None, Meta(description="what the model does, where its config.json does not tell")] = None
    truncate: Annotated[bool, Meta(description="cuts a text or sound that is too long, which is refused otherwise")] = (
        False
    )
    pooling: Annotated[
        Literal["mean", "cls", "pooler", "none"] | None,
        Meta(
            description="how features become one vector: the mean of the tokens', the first one's, or the model's own "
            "pooler_output; none: a vector for each token"
        ),
    ] = None
    aggregation: Annotated[
        Literal["none", "simple", "first", "average", "max"],
        Meta(description="how tokens become entities, as in transformers' pipeline; none: an entity for each token"),
    ] = "none"
    orientation: Annotated[bool, Meta(description="turns image files as their orientation tags say")] = True


class ModelFolder:
    """A folder by its JSON files. InvalidInput for one that is not served, with what to do; ModelRefused for remote code.

    `weights` is how the names of its files with weights end.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], weights: str = WEIGHTS) -> None:
        self.weights = weights
        if options.get("trust_remote_code"):
            raise ModelRefused("trust_remote_code is never allowed; use the 'python' runtime for own code")
        try:
            self.options = check(options, FolderOptions)
        except InvalidInput as error:
            raise InvalidInput(f"options of runtime {TRANSFORMERS!r}: {error}") from error
        configs = {name: _read(path, name) for name in _CONFIGS}
        for name, found in configs.items():
            if found.get("auto_map"):
                raise ModelRefused(
                    f"{name} has an auto_map, which names code to run; code that comes with a model is never run: take the "
                    "auto_map out if the library knows the architecture itself"
                )
            if any(found.get(key) not in _ATTENTION for key in ("attn_implementation", "_attn_implementation")):
                raise ModelRefused(f"{name} names an attn_implementation, which may be code of a hub; leave it out")
        self.config, joined = configs[CONFIG], configs[_PROCESSOR]
        parts = configs[_PREPROCESSOR], joined.get("image_processor"), joined.get("feature_extractor")
        self._preprocessor: dict[str, Any] = next((part for part in parts if part and isinstance(part, dict)), {})
        if not self.config:
            raise InvalidInput(f"the folder {shown(path.name)} has no config.json: {_SAVE}")
        if not next(path.glob(f"*{weights}"), None):
            raise InvalidInput(f"the folder {shown(path.name)} has no {weights} file with weights: {_SAVE}")
        self.architectures = _architectures(self.config)
        self.task = self.options.task or _task(self.architectures)
        if self.task == "text-classification" and self.takes == "audio":  # a sequence of sound
            self.task = "audio-classification"
        if self.task is None:
            raise InvalidInput(
                f"config.json names the architectures {shown(self.architectures)}, which have none of the tasks "
                f"{', '.join(Task.__args__)}; to take features from its layers, give options={{'task': "  # type: ignore[attr-defined]
                "'feature-extraction', 'pooling': 'mean'}"
            )

        if self.task in ("text-classification", "token-classification") and self.takes != "text":
            raise InvalidInput(
                f"the folder has a processor of images or sound beside its tokenizer; {self.task} takes a text alone: serve it "
                "by a class of your own, with the runtime 'python'"
            )

    @property
    def takes(self) -> Literal["text", "image", "audio"]:
        if self.task == "audio-classification" or "sampling_rate" in self._preprocessor:
            return "audio"
        return "image" if self.task == "image-classification" or self._preprocessor else "text"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes in the order of their scores; one that several have is followed by its number."""
        names = self.config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(self.config.get("num_labels", 2))}
        try:
            named = [str(names[str(i)]) for i in range(len(names))]
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"config.json: id2label names the classes from 0 on, got {shown(names)}") from error
        often = Counter(named)
        return tuple(name if often[name] == 1 else f"{name} ({i})" for i, name in enumerate(named))

    @property
    def function(self) -> Literal["softmax", "sigmoid", "none"]:
        """What makes scores of logits: the same as in the library's pipelines."""
        problem = self.config.get("problem_type")
        if problem == "regression":
            return "none"
        return "sigmoid" if problem == "multi_label_classification" or len(self.labels) == 1 else "softmax"

    def inputs(self) -> dict[str, Any]:
        if self.takes == "audio":
            rate = self._preprocessor.get("sampling_rate")
            return {"audio": {"dtype": "float32", "shape": [-1], "sample_rate": rate}}
        return (
            {"image": {"dtype": "uint8", "shape": [-1, -1, 3]}} if self.takes == "image" else {"text": {"dtype": "str"}}
        )

    def outputs(self) -> dict[str, Any]:
        """Classes: `scores`, and the `label` of the greatest where one excludes the others; `entities`; or `features`."""
        if self.task == "token-classification":
            return {"entities": {"dtype": "json"}}
        if self.task == "feature-extraction":
            if self.options.pooling is None:
                raise InvalidInput(
                    "say how the vectors of a text's tokens, or of an image's patches, become one: options={'pooling': "
                    "'mean'}, or 'cls', 'pooler', or 'none' for all of them. Folders of sentence-transformers say it themselves"
                )
            shape = [-1, -1] if self.options.pooling == "none" else [-1]
            return {"features": {"dtype": "float32", "shape": shape}}
        scores = {"dtype": "float32", "shape": [len(self.labels)], "classes": list(self.labels)}
        return {"label": {"dtype": "str"}, "scores": scores} if self.function == "softmax" else {"scores": scores}


def folder_runtime(path: Path) -> str | None:
    """The runtime that a folder of Hugging Face's libraries is for; None for any other folder, or a file."""
    if (path / "modules.json").is_file() or (path / "config_sentence_transformers.json").is_file():
        return "sentence-transformers"
    if (path / "adapter_config.json").is_file():
        return TEXT_GENERATION
    config = _read(path, "config.json")
    named = _architectures(config)
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named):
        return TEXT_GENERATION
    return TRANSFORMERS if named or "model_type" in config else None


def _architectures(config: dict[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _task(named: Sequence[str]) -> Task | None:
    for end, task in _HEADS.items():
        if any(name.endswith(end) for name in named):
            return task
    return "feature-extraction" if named and all(name.endswith("Model") for name in named) else None


def _read(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the folder; {} for none."""
    try:
        found = json.loads((folder / name).read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        raise InvalidInput(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{name}: expected an object, got {shown(found)}")
    return found
