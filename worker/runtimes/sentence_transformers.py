"""Runs text-embedding models of the sentence-transformers library from a folder: one text in, one vector out.

Offline, without remote code, and from safetensors only: a pickled weight file in the folder is refused, and so is a
module that modules.json names from outside the library, since the library would import it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forebay.contract.errors import InvalidInput, MissingExtra, ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Row
from forebay.worker.runtimes.speed import Forward, tuned
from forebay.worker.runtimes.tensors import module_bytes

_PICKLED = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
_CODE = {".py", ".pyc", ".so", ".dll", ".dylib"}
_MODULES = "Transformer|Pooling|Normalize|Dense|LayerNorm|Dropout|StaticEmbedding"
_SAFE_MODULE = re.compile(rf"sentence_transformers\.(?:[a-z_]+\.)*(?:{_MODULES})\Z")
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(?:activation|linear)\.[A-Z]\w*\Z", re.ASCII)
_CHARACTERS_PER_TOKEN = 4


class SentenceTransformers:
    """Loads a folder that `SentenceTransformer.save` wrote."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        del allowed  # nothing but the library's own code runs

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> TextEmbedder:
        """The model on `device`; ModelRefused naming the file or option that is unsafe."""
        if spec.options.get("trust_remote_code"):
            raise ModelRefused(f"{spec.ref}: trust_remote_code is never allowed; use the 'python' runtime for own code")
        if path is None or not path.is_dir():
            raise ModelLoadFailed(f"{spec.ref} needs a folder as its artifact, as SentenceTransformer.save writes it")
        refuse_unsafe_folder(path)
        try:
            model = _library()(
                str(path), device=device, trust_remote_code=False, local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )  # fmt: skip
        except MissingExtra:
            raise
        except Exception as error:  # the library raises whatever its layers raise
            raise ModelLoadFailed(f"{spec.ref}: sentence-transformers cannot load it: {error}") from error
        return TextEmbedder(model.eval(), tuned(model, spec, device))


class TextEmbedder:
    """One float32 vector `(dim,)` per text, in order."""

    def __init__(self, model: Any, forward: Forward) -> None:
        self._model = model
        self._forward = forward
        self._longest = int(getattr(model, "max_seq_length", None) or 512)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Any:
        """The rows' tokens, padded to the longest and on the device; what `encode` does before its forward pass."""
        return {
            key: value.to(self._model.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in self._tokens(rows).items()
        }

    @torch.inference_mode()
    def run(self, prepared: Any) -> list[Row]:
        """The forward pass, and what `encode` does after it."""
        vectors = self._forward(prepared)["sentence_embedding"][:, : self._model.truncate_dim]  # (batch, dim)
        return list(vectors.to("cpu", torch.float32).numpy())

    def cost(self, row: Row) -> int:
        """About how many tokens the text has, special ones included: rows of like cost pad little."""
        return min(self._longest, 2 + len(_text(row)) // _CHARACTERS_PER_TOKEN)

    def count_tokens(self, rows: Sequence[Row]) -> int | None:
        """How many tokens it reads of these texts, special ones and the model's prompt included, what it cuts off not."""
        mask = self._tokens(rows).get("attention_mask")
        return None if mask is None else int(mask.sum())

    def nbytes(self) -> int:
        return module_bytes(self._model)

    def _tokens(self, rows: Sequence[Row]) -> Any:
        name = self._model.default_prompt_name
        return self._model.preprocess([_text(row) for row in rows], prompt=self._model.prompts[name] if name else None)


def refuse_unsafe_folder(folder: Path) -> None:
    """ModelRefused for pickles, code, and modules or activations from outside the library."""
    for file in sorted(folder.rglob("*")):
        suffix = file.suffix.lower()
        if suffix in _PICKLED | _CODE or file.is_symlink():
            what = "code" if suffix in _CODE else "pickled or opaque weights" if suffix in _PICKLED else "a link"
            raise ModelRefused(
                f"{file.relative_to(folder)} is {what}; save the model with safe_serialization=True, keep only "
                "safetensors, json and text files, and register it again"
            )
    _check_modules(folder)


def _check_modules(folder: Path) -> None:
    for module in _json(folder, folder / "modules.json", []):
        if not isinstance(module, Mapping) or not _SAFE_MODULE.match(str(module.get("type"))):
            raise ModelRefused(
                f"modules.json names {str(module)[:120]}; allowed are {_MODULES} of sentence_transformers"
            )
    for file in folder.rglob("*.json"):
        config = _json(folder, file, {}) if file.name == "config.json" else {}
        activation = config.get("activation_function") if isinstance(config, Mapping) else None
        if isinstance(activation, str) and "." in activation and not _ACTIVATION.match(activation):
            raise ModelRefused(
                f"{file.relative_to(folder)} names the activation {activation!r:.120}; use one of torch.nn"
            )


def _json(folder: Path, file: Path, default: Any) -> Any:
    if not file.exists():
        return default
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ModelLoadFailed(f"{file.relative_to(folder)} is not JSON: {error}") from error


def _text(row: Row) -> str:
    value = next(iter(row.values())) if isinstance(row, Mapping) and len(row) == 1 else row
    if not isinstance(value, str):
        raise InvalidInput(f"this model takes one str, got {type(value).__name__}")
    return value


def _library() -> Any:
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"  # read when the library is imported
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtra("this runtime needs sentence-transformers", "text") from error
    return SentenceTransformer
