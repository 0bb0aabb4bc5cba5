"""A version as a module of tensors only: its inputs by name, `(batch, *shape)` each, to its outputs by name."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.model import ModelVersion
from forebay.worker.runtimes.recipe import load_network
from forebay.worker.runtimes.safetensors import Safetensors
from forebay.worker.runtimes.tensors import named_outputs
from forebay.worker.trainer import recipes
from forebay.worker.trainer.artifact import read_artifact
from forebay.worker.trainer.labels import PROBABILITIES, served
from forebay.worker.trainer.recipes.images import ImageClassifier
from forebay.worker.trainer.recipes.sequences import SequenceClassifier
from forebay.worker.trainer.recipes.tabular import Regressor

Inputs = Mapping[str, Tensor]


class Graph(nn.Module):
    """Calls `run` with the inputs by name. `forward` takes them in their order: under these names where they are `plain`, as
    Python's must be, else under numbered ones.
    """  # fmt: skip

    def __init__(self, module: nn.Module, names: Sequence[str], run: Callable[[Inputs], Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.module = module
        self.plain = all(name.isidentifier() and not keyword.iskeyword(name) for name in names)
        parameters = names if self.plain else [f"input_{i}" for i in range(len(names))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

        def forward(*given: Tensor) -> Mapping[str, Tensor]:
            return run(dict(zip(names, given, strict=True)))

        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in parameters])  # type: ignore[attr-defined]
        self.forward = forward


def graph_of(spec: ModelVersion, path: Path | None, allowed: Sequence[str]) -> Graph:
    """The module of a version of runtime `safetensors` or `recipe`, on the CPU and in eval mode."""
    names = [field.name for field in spec.signature.inputs or ()]
    if spec.runtime == "recipe":
        return _trained(spec, path, allowed, names)
    module = Safetensors(allowed).module(path, spec)
    outputs = None if spec.signature.outputs is None else [field.name for field in spec.signature.outputs]

    def run(given: Inputs) -> Mapping[str, Tensor]:
        made = module(*given.values()) if len(given) == 1 else module(**given)
        return named_outputs(made, outputs)

    return Graph(module, names, run)


def _trained(spec: ModelVersion, path: Path | None, allowed: Sequence[str], names: Sequence[str]) -> Graph:
    """A recipe's network between what its `encode` and its outputs do, written in torch. A label, which is text, is left out."""
    if path is None:
        raise ModelLoadFailed(f"{spec.ref} has no artifact")
    artifact = read_artifact(path)
    made, loss = artifact.make(allowed)
    if recipes.is_fitted(made):
        raise InvalidInput(f"{spec.ref} was fitted, not trained: onnxruntime runs it already")
    recipe = cast(recipes.Recipe, made)
    module, encoded, target = load_network(artifact, recipe, path, spec), _encoder(recipe, spec), artifact.target

    def run(given: Inputs) -> Mapping[str, Tensor]:
        outputs = served(module(encoded(given)), loss)
        if target.classes:
            return {PROBABILITIES: outputs.float()}
        return {target.name: (outputs.double() * target.deviation + target.mean).float()}

    return Graph(module, names, run)


def _encoder(recipe: recipes.Recipe, spec: ModelVersion) -> Callable[[Inputs], Tensor]:
    state, parameters = recipe.state, getattr(recipe, "_params", {})
    if isinstance(recipe, Regressor):
        return lambda given: torch.cat(
            [_scaled(column, given[column["name"]]) for column in state["columns"]], 1
        ).float()
    if isinstance(recipe, SequenceClassifier):
        return lambda given: _steps(state, next(iter(given.values()))[:, : parameters["max_length"]])
    if isinstance(recipe, ImageClassifier):
        return lambda given: _planes(state, next(iter(given.values())))
    raise InvalidInput(
        f"{spec.ref} was trained by a recipe of your own, whose encode no graph holds; export its network yourself"
    )


def _scaled(column: Mapping[str, Any], values: Tensor) -> Tensor:
    """As trainer.preprocessing does it: in double, so that nothing is lost that it keeps."""
    flat = values.double().reshape(values.shape[0], -1)
    if "fill" in column:
        flat = torch.where(torch.isfinite(flat), flat, torch.tensor(column["fill"], dtype=torch.float64))
    return _standardized(flat, column["mean"], column["deviation"]) if "mean" in column else flat


def _steps(state: Mapping[str, Any], steps: Tensor) -> Tensor:
    steps = steps.double()
    return _standardized(steps[:, :, None] if state["flat"] else steps, state["mean"], state["deviation"]).float()


def _planes(state: Mapping[str, Any], images: Tensor) -> Tensor:
    if len(state["shape"]) == 2:
        images = images[:, None]
    elif state["last"]:
        images = images.movedim(-1, 1)
    mean, deviation = (torch.tensor(state[name], dtype=torch.float32)[:, None, None] for name in ("mean", "deviation"))
    return (images - mean) / deviation


def _standardized(values: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    return (values - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(deviation, dtype=torch.float64)


def folder_graph(model: Any, names: Sequence[str], output: str) -> Graph:
    """A model of transformers behind its tokenizer or processor: what that gives, `(batch, …)` each, to one of its outputs."""

    def run(given: Inputs) -> Mapping[str, Tensor]:
        return {output: getattr(model(**given), output).float()}

    return Graph(model, names, run)


def text_graph(encoder: Any, names: Sequence[str], output: str) -> Graph:
    """A text encoder of sentence-transformers behind its tokenizer: what that gives, `(batch, tokens)` each, to vectors."""

    def run(given: Inputs) -> Mapping[str, Tensor]:
        return {output: encoder(dict(given))["sentence_embedding"][:, : encoder.truncate_dim].float()}

    return Graph(encoder, names, run)
