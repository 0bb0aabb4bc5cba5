"""From what a model's forward pass gives to rows: scores of classes, entities of a text, or features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from forebay.contract.errors import ModelLoadFailed
from forebay.contract.runtimes.folders import ModelFolder
from forebay.contract.signature import Row


@dataclass(frozen=True, slots=True)
class Read:
    """What a batch was read as: of texts, with what their tokenizer gave, and a mask `(batch, tokens)` of what is no padding."""

    texts: Sequence[str] = ()
    encoded: Any = None
    mask: Tensor | None = None


class Head(Protocol):
    """Makes rows of a batch's output, of which it reads the one called `output`."""

    output: str

    def rows(self, output: Any, read: Read) -> list[Row]: ...


class Classes:
    """Scores as the library's pipelines give them, and the label of the greatest where one class excludes the others."""

    output = "logits"

    def __init__(self, folder: ModelFolder) -> None:
        self._labels, self._function = folder.labels, folder.function

    def rows(self, output: Any, read: Read) -> list[Row]:
        del read
        logits = output.logits.float()
        if self._function == "sigmoid":
            return list(logits.sigmoid().cpu().numpy())
        if self._function == "none":
            return list(logits.cpu().numpy())
        scores = logits.softmax(-1).cpu().numpy()  # (batch, classes)
        best = scores.argmax(-1)
        return [{"label": self._labels[best[i]], "scores": scores[i]} for i in range(len(scores))]


class Entities:
    """What the library's pipeline makes of each token's logits: by token, or joined to entities."""

    output = "logits"

    def __init__(self, folder: ModelFolder, model: Any) -> None:
        self._aggregation, self._model = folder.options.aggregation, model
        self._pipeline: Any = None

    def attach(self, tokenizer: Any) -> None:
        from transformers import TokenClassificationPipeline
        from transformers.pipelines.token_classification import AggregationStrategy

        if not tokenizer.is_fast:
            raise ModelLoadFailed("its tokenizer does not tell where in the text a token is; save a fast one")
        self._pipeline = TokenClassificationPipeline(model=self._model, tokenizer=tokenizer, device=self._model.device)
        self._strategy = AggregationStrategy(self._aggregation)

    def rows(self, output: Any, read: Read) -> list[Row]:
        logits, made = output.logits.float().cpu(), []
        for i, text in enumerate(read.texts):
            own = {key: torch.tensor(read.encoded[key][i])[None] for key in ("input_ids", "special_tokens_mask")}
            where = torch.tensor(read.encoded["offset_mapping"][i])[None]
            there = logits[i][read.mask[i].bool().cpu()][None]  # type: ignore[index]
            told = own | {"logits": there, "offset_mapping": where, "sentence": text}
            made.append(self._pipeline.postprocess([told], aggregation_strategy=self._strategy))
        return made


class Features:
    """One vector `(width,)` for a row, or, not pooled, one for each of its tokens or patches, `(tokens, width)`."""

    def __init__(self, folder: ModelFolder) -> None:
        self._pooling = folder.options.pooling
        self.output = "pooler_output" if self._pooling == "pooler" else "last_hidden_state"

    def rows(self, output: Any, read: Read) -> list[Row]:
        if self._pooling == "pooler":
            return list(_pooler(output).float().flatten(1).cpu().numpy())
        hidden = (
            output.last_hidden_state.float()
        )  # (batch, tokens, width), or (batch, width, height, width of the image)
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
            if self._pooling == "cls":
                raise ModelLoadFailed("pooling: its images have no first token; use mean")
        mask = torch.ones(hidden.shape[:2]) if read.mask is None else read.mask
        mask = mask.to(hidden.device)
        if self._pooling == "cls":
            return list(hidden[:, 0].cpu().numpy())
        if self._pooling == "none":
            return [np.ascontiguousarray(hidden[i][mask[i].bool()].cpu().numpy()) for i in range(len(hidden))]
        weights = mask[..., None].to(hidden.dtype)
        return list(((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy())


def _pooler(output: Any) -> Tensor:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is None:
        raise ModelLoadFailed("pooling: the model gives no pooler_output; use mean or cls")
    return pooled


def head_of(folder: ModelFolder, model: Any) -> Head:
    if folder.task == "token-classification":
        return Entities(folder, model)
    return Features(folder) if folder.task == "feature-extraction" else Classes(folder)
