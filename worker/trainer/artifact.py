"""What a run leaves: a folder with the recipe and all it found in the data as JSON, and the weights as safetensors.

The trainer writes it, the runtime `recipe` reads it. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forebay.contract.errors import ModelLoadFailed
from forebay.contract.requests.recipes import CLASSES
from forebay.worker.trainer.labels import LABEL, PROBABILITIES, Target
from forebay.worker.trainer.recipes import Recipe, get_recipe, loss_of, outputs_of

RUNTIME = "recipe"
RECIPE_FILE, WEIGHTS_FILE = "recipe.json", "weights.safetensors"
_FORM = 1


@dataclass(frozen=True, slots=True)
class Artifact:
    """A recipe that has been trained: its name, parameters and state, and the target."""

    recipe: str
    params: Mapping[str, Any]
    state: Mapping[str, Any]
    features: tuple[str, ...]
    target: Target

    def make(self, allowed: Sequence[str] = ()) -> tuple[Recipe, str]:
        """The recipe as it was trained, and its loss, which says what its outputs are."""
        kind = get_recipe(self.recipe, allowed)
        return kind(self.params, self.state), loss_of(kind, self.params)

    def network(self, recipe: Recipe) -> nn.Module:
        """The network, with weights as they come."""
        return recipe.build(outputs_of(type(recipe), self.target.classes, self.params))


def outputs(task: str, target: Target) -> dict[str, Any]:
    """The outputs of the signature."""
    if task == CLASSES:
        return {LABEL: {"dtype": "str"}, PROBABILITIES: {"dtype": "float32", "shape": [len(target.classes)]}}
    return {target.name: {"dtype": "float32", "shape": []}}


def write_artifact(folder: Path, artifact: Artifact, weights: Mapping[str, Tensor]) -> None:
    """Both files; a folder that is there is written over."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    (folder / RECIPE_FILE).write_text(json.dumps({"form": _FORM} | asdict(artifact), indent=1))


def read_artifact(folder: Path) -> tuple[Artifact, dict[str, Tensor]]:
    """What `write_artifact` wrote; ModelLoadFailed for a folder that is none."""
    try:
        kept = json.loads((folder / RECIPE_FILE).read_text())
        if kept.pop("form") != _FORM:
            raise ModelLoadFailed(f"{RECIPE_FILE} was written by a newer Forebay; update this worker")
        target = Target(**kept["target"] | {"classes": tuple(kept["target"]["classes"])})
        artifact = Artifact(**kept | {"features": tuple(kept["features"]), "target": target})
        return artifact, load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        what = f"a folder with {RECIPE_FILE} and {WEIGHTS_FILE}, as a training job makes it"
        raise ModelLoadFailed(f"the artifact is not {what}: {type(error).__name__}: {error}") from error
