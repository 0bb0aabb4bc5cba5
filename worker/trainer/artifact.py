"""What a run leaves: a folder with the recipe and all it found in the data as JSON, and the network's weights as safetensors, or
what a library has fitted as ONNX.

The trainer writes it, the runtime `recipe` reads it. Nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.requests.recipes import CLASSES
from forebay.contract.requests.request import decode, encode
from forebay.worker import packed_weights
from forebay.worker.trainer.labels import LABEL, PROBABILITIES, Target
from forebay.worker.trainer.recipes import AnyRecipe, Recipe, get_recipe, is_fitted, loss_of, outputs_of

RUNTIME = "recipe"
RECIPE_FILE, WEIGHTS_FILE, GRAPH_FILE = "recipe.json", "weights.safetensors", "model.onnx"
KEYS_FILE, KEPT_KEYS = "training_rows.npy", 65_536
FORM = 1  # of recipe.json


class Artifact(Struct, frozen=True):
    """A recipe that has been trained: its name, parameters and state, and the target."""

    recipe: str
    params: Mapping[str, Any]
    state: Mapping[str, Any]
    features: tuple[str, ...]
    target: Target
    form: int = FORM

    def make(self, allowed: Sequence[str] = ()) -> tuple[AnyRecipe, str]:
        """The recipe as it was trained, and its loss, which says what a network's outputs are."""
        kind = get_recipe(self.recipe, allowed)
        return kind(self.params, self.state), "" if is_fitted(kind) else loss_of(kind, self.params)

    def network(self, recipe: Recipe) -> nn.Module:
        return recipe.build(outputs_of(type(recipe), self.target.classes, self.params))


def outputs(task: str, target: Target) -> dict[str, Any]:
    if task == CLASSES:
        return {
            LABEL: {"dtype": "str"},
            PROBABILITIES: {"dtype": "float32", "shape": [len(target.classes)], "classes": list(target.classes)},
        }
    return {target.name: {"dtype": "float32", "shape": []}}


def row_keys(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """A key for each row of encoded inputs, equal for equal rows however far they are padded with zeros."""
    digests = (hashlib.blake2b(digest_size=8) for _ in arrays[0])
    keys = []
    for i, digest in enumerate(digests):
        for array in arrays:
            digest.update(array[i].tobytes().rstrip(b"\0") + b"\1")
        keys.append(digest.digest())
    return np.frombuffer(b"".join(keys), np.uint64)


def write_artifact(
    folder: Path, artifact: Artifact, weights: Mapping[str, Tensor] | bytes, trained_on: Sequence[Tensor] = ()
) -> None:
    """`weights` are those of a network, or an ONNX graph. `trained_on` are the encoded inputs of the training split; the smallest
    KEPT_KEYS keys of their rows are kept.
    """  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if trained_on:
        keys = np.unique(row_keys([tensor.numpy() for tensor in trained_on]))
        np.save(folder / KEYS_FILE, keys[:KEPT_KEYS], allow_pickle=False)
    if isinstance(weights, bytes):
        (folder / GRAPH_FILE).write_bytes(weights)
    else:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    (folder / RECIPE_FILE).write_bytes(msgspec.json.format(encode(artifact), indent=1))


def read_keys(folder: Path) -> NDArray[np.uint64]:
    """The sorted keys of rows that a version was trained on; none where none were kept."""
    try:
        return np.asarray(np.load(folder / KEYS_FILE, allow_pickle=False), np.uint64)
    except (OSError, ValueError):
        return np.zeros(0, np.uint64)


def read_artifact(folder: Path) -> Artifact:
    """What `write_artifact` wrote; ModelLoadFailed for another folder."""
    try:
        artifact = decode((folder / RECIPE_FILE).read_bytes(), Artifact)
    except (OSError, InvalidInput) as error:
        raise _foreign(error) from error
    if artifact.form != FORM:
        raise ModelLoadFailed(f"{RECIPE_FILE} was written by a newer Forebay; update this worker")
    return artifact


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Those of a network; ModelLoadFailed for another folder."""
    try:
        return packed_weights.read_weights(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise _foreign(error) from error


def _foreign(error: Exception) -> ModelLoadFailed:
    what = f"a folder with {RECIPE_FILE} and {WEIGHTS_FILE}, as a training job makes it"
    return ModelLoadFailed(f"the artifact is not {what}: {type(error).__name__}: {error}")
