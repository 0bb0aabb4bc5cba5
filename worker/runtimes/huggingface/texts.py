"""Texts through a folder's tokenizer and model: padded, so that texts of any lengths share a batch, and never cut unasked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.signature import Row
from forebay.worker.runtimes.folders import about_tokens, only_text, too_long
from forebay.worker.runtimes.huggingface.graph import GraphModel, model_bytes
from forebay.worker.runtimes.huggingface.heads import Entities, Features, Head, Read
from forebay.worker.runtimes.speed import Forward

_ANY_LENGTH = 1_000_000  # less than what tokenizers without a limit have for one
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # of the greatest value


class Prepared(NamedTuple):
    """Tensors of those texts that can be run, and the errors of the others by their number."""

    inputs: dict[str, torch.Tensor]
    read: Read
    errors: dict[int, InvalidInput]


class TextModel:
    """Takes one text a row."""

    def __init__(self, model: Any, forward: Forward, tokenizer: Any, head: Head, *, truncate: bool) -> None:
        self.module, self._forward, self._tokenizer, self.head = model, forward, tokenizer, head
        self._places, self._truncate = isinstance(head, Entities), truncate
        self.longest = _longest(model, tokenizer)
        if tokenizer.pad_token_id is None:
            raise ModelLoadFailed(
                "its tokenizer has no padding token, so that texts of different lengths cannot share a batch: set "
                "tokenizer.pad_token and model.config.pad_token_id, and save both again"
            )
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = (
            True  # texts that are too long are taken out first
        )
        if isinstance(head, Entities):
            head.attach(tokenizer)
        if not isinstance(
            model, GraphModel
        ):  # its conversion has compared it, and int8-dynamic scales by the whole batch
            self._check_padding()

    def predict(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(self.prepare(rows))

    def prepare(self, rows: Sequence[Row]) -> Prepared:
        """The rows' tokens, padded to the longest and on the device."""
        texts = [only_text(row) for row in rows]
        encoded = self._encoded(texts)
        errors = {i: error for i, ids in enumerate(encoded["input_ids"]) if (error := self._misfit(len(ids)))}
        good = [i for i in range(len(texts)) if i not in errors]
        if not good:
            return Prepared({}, Read(), errors)
        encoded = {key: [values[i] for i in good] for key, values in encoded.items()}
        taken = {key: encoded[key] for key in self._tokenizer.model_input_names if key in encoded}
        padded = self._tokenizer.pad(taken, return_tensors="pt", return_attention_mask=True)
        inputs = {key: value.to(self.module.device, non_blocking=True) for key, value in padded.items()}
        read = Read([texts[i] for i in good], encoded, inputs["attention_mask"])
        if "attention_mask" not in self._tokenizer.model_input_names:
            del inputs["attention_mask"]
        return Prepared(inputs, read, errors)

    @torch.inference_mode()
    def run(self, prepared: Prepared) -> list[Row]:
        """The rows; for a text that was refused, its error."""
        inputs, read, errors = prepared
        made = iter(self.head.rows(self._forward(**inputs), read) if inputs else [])
        return [errors[i] if i in errors else next(made) for i in range(len(read.texts) + len(errors))]

    def cost(self, row: Row) -> int:
        return about_tokens(only_text(row), self.longest)

    def count_tokens(self, rows: Sequence[Row]) -> int:
        """How many tokens it reads of these texts, special ones included."""
        return sum(map(len, self._encoded([only_text(row) for row in rows])["input_ids"]))

    def sample_row(self) -> Row:
        return {"text": "warm"}

    def nbytes(self) -> int:
        return model_bytes(self.module)

    def _encoded(self, texts: Sequence[str]) -> dict[str, Any]:
        cut: dict[str, Any] = {"truncation": True, "max_length": self.longest} if self._truncate else {}
        places = {"return_offsets_mapping": True, "return_special_tokens_mask": True} if self._places else {}
        return dict(self._tokenizer(list(texts), verbose=False, return_attention_mask=True, **places, **cut))

    def _misfit(self, tokens: int) -> InvalidInput | None:
        if tokens > self.longest:
            return too_long(tokens, self.longest)
        return None if tokens else InvalidInput("the text holds no token")

    @torch.inference_mode()
    def _check_padding(self) -> None:
        """ModelLoadFailed when a text gives something else beside a longer one: padding is then more than padding."""
        short, long = {"text": "a b c"}, {"text": "a b c d e f g h i j"}
        alone, beside = (self.prepare(rows) for rows in ([short], [short, long]))
        outputs = [self.module(**prepared.inputs) for prepared in (alone, beside)]
        if isinstance(self.head, Features):
            pooled = (
                self.head.rows(output, prepared.read) for output, prepared in zip(outputs, (alone, beside), strict=True)
            )
            one, two = (torch.from_numpy(rows[0]) for rows in pooled)
        else:
            one, two = (output.logits.float()[:1] for output in outputs)
        if one.ndim == 3:  # for each token
            one, two = (x[p.read.mask[:1].bool()] for x, p in ((one, alone), (two, beside)))  # type: ignore[index]
        scale = float(one.abs().max()) + 1e-6
        if one.shape != two.shape or float((one - two).abs().max()) > _TOLERANCE.get(self.module.dtype, 1e-4) * scale:
            raise ModelLoadFailed(
                "what it makes of a text changes when the text is padded on the "
                f"{self._tokenizer.padding_side}, so that it cannot run batches"
            )


def _longest(model: Any, tokenizer: Any) -> int:
    """How many tokens the model reads at most, by its tokenizer, its config and its table of positions."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe"):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts positions from there
            limits.append(module.num_embeddings - unused)
    return min(limit for limit in [*limits, _ANY_LENGTH] if isinstance(limit, int) and limit > 0)
