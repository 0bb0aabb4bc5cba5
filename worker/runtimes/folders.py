"""Model folders in Hugging Face's form: what may lie in one that a library is to load."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forebay.contract.errors import InvalidInput, ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Row

_PICKLED = {".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
_CODE = {".py", ".pyc", ".so", ".dll", ".dylib"}
_CHARACTERS_PER_TOKEN = 4
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(?:activation|linear)\.[A-Z]\w*\Z", re.ASCII)


def safe_folder(path: Path | None, spec: ModelVersion) -> Path:
    """The version's folder; ModelRefused for pickles, code, links, activations from outside torch, and trust_remote_code."""
    if spec.options.get("trust_remote_code"):
        raise ModelRefused(f"{spec.ref}: trust_remote_code is never allowed; use the 'python' runtime for own code")
    if path is None or not path.is_dir():
        raise ModelLoadFailed(
            f"{spec.ref} needs a folder as its artifact, as the library's own save function writes it"
        )
    for file in sorted(path.rglob("*")):
        suffix = file.suffix.lower()
        if suffix in _PICKLED | _CODE or file.is_symlink():
            what = "code" if suffix in _CODE else "pickled or opaque weights" if suffix in _PICKLED else "a link"
            raise ModelRefused(
                f"{file.relative_to(path)} is {what}; save the model with safe_serialization=True, keep only "
                "safetensors, json and text files, and register it again"
            )
        config = read_json(path, file, {}) if file.name == "config.json" else {}
        activation = config.get("activation_function") if isinstance(config, Mapping) else None
        if isinstance(activation, str) and "." in activation and not _ACTIVATION.match(activation):
            raise ModelRefused(
                f"{file.relative_to(path)} names the activation {activation!r:.120}; use one of torch.nn"
            )
    return path


def go_offline() -> None:
    """Before a library of Hugging Face's is imported: then it asks no hub, whatever a folder names."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


def only_text(row: Row) -> str:
    value = next(iter(row.values())) if isinstance(row, Mapping) and len(row) == 1 else row
    if not isinstance(value, str):
        raise InvalidInput(f"this model takes one str, got {type(value).__name__}")
    return value


def about_tokens(text: str, longest: int) -> int:
    """About how many tokens a text has, special ones included: rows of like cost pad little."""
    return min(longest, 2 + len(text) // _CHARACTERS_PER_TOKEN)


def too_long(tokens: int, longest: int) -> InvalidInput:
    return InvalidInput(
        f"the text has {tokens:,} tokens; this model reads {longest:,}. Send a shorter one, or register the version with "
        "options={'truncate': True} to have the rest left out"
    )


def read_json(folder: Path, file: Path, default: Any) -> Any:
    if not file.exists():
        return default
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ModelLoadFailed(f"{file.relative_to(folder)} is not JSON: {error}") from error
