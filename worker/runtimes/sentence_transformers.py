"""Runs text-embedding models of the sentence-transformers library from a folder: one text in, one vector out.

Offline, without remote code, and from safetensors only: a pickled weight file in the folder is refused, and so is a
module that modules.json names from outside the library, since the library would import it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forebay.contract.errors import InvalidInput, MissingExtra, ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Row
from forebay.worker.packed_weights import unpacked
from forebay.worker.runtimes.folders import about_tokens, go_offline, only_text, read_json, safe_folder, too_long
from forebay.worker.runtimes.speed import Forward, tuned
from forebay.worker.runtimes.tensors import module_bytes

_MODULES = "Transformer|Pooling|Normalize|Dense|LayerNorm|Dropout|StaticEmbedding"
_SAFE_MODULE = re.compile(rf"sentence_transformers\.(?:[a-z_]+\.)*(?:{_MODULES})\Z")


class SentenceTransformers:
    """Loads a folder that `SentenceTransformer.save` wrote."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        del allowed  # nothing but the library's own code runs

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> TextEmbedder:
        """The model on `device`; ModelRefused naming the file or option that is unsafe."""
        model = self.encoder(path, device, spec)
        return TextEmbedder(model, tuned(model, spec, device), truncate=bool(spec.options.get("truncate")))

    def encoder(self, path: Path | None, device: str, spec: ModelVersion) -> Any:
        """The library's own model, in eval mode."""
        folder = safe_folder(path, spec)
        _check_modules(folder)
        try:
            library = _library()
            with unpacked(folder) as whole:
                model = library(
                    str(whole), device=device, trust_remote_code=False, local_files_only=True,
                    model_kwargs={"use_safetensors": True},
                )  # fmt: skip
        except MissingExtra:
            raise
        except Exception as error:  # the library raises whatever its layers raise
            raise ModelLoadFailed(f"{spec.ref}: sentence-transformers cannot load it: {error}") from error
        return model.eval()


class TextEmbedder:
    """One float32 vector `(dim,)` per text, in order; texts that are too long are cut only if that is asked for."""

    def __init__(self, model: Any, forward: Forward, *, truncate: bool = False) -> None:
        self._model, self._forward, self._truncate = model, forward, truncate
        self._longest = int(getattr(model, "max_seq_length", None) or 512)

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Any:
        """What `encode` does before its forward pass: the tokens of those texts that are not too long, padded and on the device.
        With them the errors of the others by their number, and how many texts there are.
        """  # fmt: skip
        tokens = self._tokens(rows)
        errors = self._too_long(rows, tokens.get("attention_mask"))
        if errors:
            good = [row for i, row in enumerate(rows) if i not in errors]
            tokens = self._tokens(good) if good else {}
        inputs = {
            key: value.to(self._model.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in tokens.items()
        }
        return inputs, errors, len(rows)

    @torch.inference_mode()
    def run(self, prepared: Any) -> list[Row]:
        """The forward pass, and what `encode` does after it; for a text that was refused, its error."""
        inputs, errors, count = prepared
        made = iter(())
        if inputs:
            vectors = self._forward(inputs)["sentence_embedding"][:, : self._model.truncate_dim]  # (batch, dim)
            made = iter(vectors.to("cpu", torch.float32).numpy())
        return [errors[i] if i in errors else next(made) for i in range(count)]

    def cost(self, row: Row) -> int:
        return about_tokens(only_text(row), self._longest)

    def count_tokens(self, rows: Sequence[Row]) -> int | None:
        """How many tokens it reads of these texts, special ones and the model's prompt included, what it cuts off not."""
        mask = self._tokens(rows).get("attention_mask")
        return None if mask is None else int(mask.sum())

    def nbytes(self) -> int:
        return module_bytes(self._model)

    def _tokens(self, rows: Sequence[Row]) -> Any:
        return self._model.preprocess([only_text(row) for row in rows], prompt=self._prompt or None)

    @property
    def _prompt(self) -> str:
        name = self._model.default_prompt_name
        return self._model.prompts[name] if name else ""

    def _too_long(self, rows: Sequence[Row], mask: Any) -> dict[int, InvalidInput]:
        """Of what was cut exactly as many tokens are left as the model reads."""
        if self._truncate or mask is None:
            return {}
        full = (mask.sum(1) >= self._longest).nonzero()[:, 0].tolist()
        whole = (
            (i, self._model.tokenizer(self._prompt + only_text(rows[i]), truncation=False, verbose=False)) for i in full
        )
        counts = ((i, len(tokens["input_ids"])) for i, tokens in whole)
        return {i: too_long(count, self._longest) for i, count in counts if count > self._longest}


def _check_modules(folder: Path) -> None:
    """ModelRefused for a module from outside the library, since the library would import it."""
    for module in read_json(folder, folder / "modules.json", []):
        if not isinstance(module, Mapping) or not _SAFE_MODULE.match(str(module.get("type"))):
            raise ModelRefused(
                f"modules.json names {str(module)[:120]}; allowed are {_MODULES} of sentence_transformers"
            )


def _library() -> Any:
    go_offline()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtra("this runtime needs sentence-transformers", "text") from error
    return SentenceTransformer
