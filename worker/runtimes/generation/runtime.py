"""Runs causal language models from a Hugging Face folder of safetensors weights and a tokenizer: offline, without remote code."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from forebay.contract.errors import InvalidInput, MissingExtra, ModelLoadFailed, ModelRefused, TimedOut
from forebay.contract.generation import Choice, Sampling, completion
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests.fields import check
from forebay.contract.signature import Row
from forebay.datasets.examples import Example
from forebay.worker.runtimes import Between, Interrupted, Piece
from forebay.worker.runtimes.folders import go_offline, safe_folder
from forebay.worker.runtimes.generation.decoding import LEAST_SHARED, Decoder, Generating
from forebay.worker.runtimes.generation.grammar import Grammars
from forebay.worker.runtimes.generation.prompts import Prompt, PromptReader
from forebay.worker.runtimes.generation.sampling import Noise
from forebay.worker.runtimes.generation.text import Text, TokenBytes
from forebay.worker.runtimes.speed import tuned
from forebay.worker.runtimes.tensors import module_bytes
from forebay.worker.trainer.texts.losses import Loss, example_losses

BATCH_TOKENS = 16_384  # of prompts and texts that are kept at once, where the version does not say
STEP_S = 0.05  # between two looks at whether the rows are still wanted
_DEFAULTS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
}  # transformers' own, for what a model that samples leaves out
_CHANGES_TEXT = (
    "bad_words_ids", "begin_suppress_tokens", "dola_layers", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beams", "penalty_alpha", "sequence_bias", "stop_strings", "suppress_tokens", "top_h",
    "typical_p", "watermarking_config",
)  # fmt: skip
_ONE_IS_NONE = ("guidance_scale", "num_beams", "typical_p")


class TextGeneration:
    """Loads a folder that `save_pretrained` of a causal language model and of its tokenizer wrote."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        del allowed  # nothing but the library's own code runs

    def load(self, path: Path | None, device: str, spec: ModelVersion) -> TextGenerator:
        """The model on `device`; ModelRefused naming what is unsafe, ModelLoadFailed for what does not work."""
        folder = safe_folder(path, spec)
        if (folder / "adapter_config.json").exists():
            raise ModelRefused(f"{spec.ref}: adapter_config.json names another model to load")
        auto_model, auto_tokenizer = _library()
        wanted = (
            torch.float32 if device == "cpu" else "auto"
        )  # CPUs are slow in narrower ones unless they are made for it
        try:
            tokenizer = auto_tokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
            model = auto_model.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=wanted,
                attn_implementation="sdpa",  # its config may name code of a hub
            )  # fmt: skip
        except Exception as error:  # the library raises whatever its layers raise
            raise ModelLoadFailed(f"{spec.ref}: transformers cannot load it: {error}") from error
        return TextGenerator(model.to(device).eval(), tokenizer, spec, device)


class TextGenerator:
    """For each row what `contract.generation.completion` makes: its text or texts, and its usage."""

    def __init__(
        self, model: Any, tokenizer: Any, spec: ModelVersion, device: str, base: TextGenerator | None = None
    ) -> None:
        """An adapter shares the tensors of its `base`."""
        self._model, self._tokenizer, self._spec, self._device = model, tokenizer, spec, device
        self._nbytes = module_bytes(model) - (module_bytes(base._model) if base is not None else 0)
        ends = _ends(self._model, tokenizer)
        self._bytes = TokenBytes(tokenizer)
        self._decoder = Decoder(model, tuned(model, spec, device), ends, self._bytes)
        vocabulary = self._model.get_input_embeddings().num_embeddings
        head = self._model.get_output_embeddings()
        grammars = Grammars(tokenizer, vocabulary if head is None else head.weight.shape[0], sorted(ends))
        self._context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._reader = PromptReader(tokenizer, vocabulary, self._context, _defaults(self._model, spec), grammars)
        if not self._decoder.check_padding():
            raise ModelLoadFailed(f"{spec.ref}: its logits change when a prompt is padded, so it cannot run batches")

    def preprocess(self, row: Row) -> Prompt:
        return self._reader.read(row)

    def cost(self, prompt: Prompt) -> int:
        """Tokens of prompt and text, at most."""
        return prompt.cost

    def count_tokens(self, prompts: Sequence[Prompt]) -> int:
        return sum(len(prompt.tokens) for prompt in prompts)

    def nbytes(self) -> int:
        return self._nbytes

    def adapted(self, path: Path, spec: ModelVersion) -> TextGenerator:
        """This model with the adapter in that folder, in the tensors of this one; ModelLoadFailed, ModelRefused."""
        from forebay.worker.trainer.texts.adapter import adapted

        return TextGenerator(adapted(self._model, safe_folder(path, spec)), self._tokenizer, spec, self._device, self)

    def losses(self, examples: Sequence[Example]) -> list[Loss | InvalidInput]:
        """For each example how likely the model holds what is to be generated, or why that cannot be told."""
        return example_losses(self._model, self._tokenizer, self._context, examples)

    def sample_row(self) -> Row:
        return {"prompt": [0, 0], "max_tokens": 2}

    def predict(self, prompts: Sequence[Prompt]) -> list[Row]:
        return self.generate(prompts, lambda _: ())

    def generate(self, prompts: Sequence[Prompt], between: Between) -> list[Row]:
        """`predict` that may be followed: see `Model`. A row may be an error that it alone has."""
        rows = [self._rows(prompt) for prompt in prompts]
        following = _Following(rows, between)
        for batch in self._batches([row for choices in rows for row in choices]):
            started = time.monotonic()

            def step(batch: Sequence[Generating] = batch, started: float = started) -> None:
                following.look()
                if self._spec.timeout_s is not None and time.monotonic() - started > self._spec.timeout_s:
                    _end(batch, self._spec.timeout_s)

            self._decoder.run([row for row in batch if not row.over], step)
        following.look(final=True)
        return [self._result(prompt, choices) for prompt, choices in zip(prompts, rows, strict=True)]

    def _rows(self, prompt: Prompt) -> list[Generating]:
        fields = prompt.sampling
        return [
            Generating(
                prompt.tokens, fields, prompt.max_tokens, Noise(fields.seed, choice), Text(self._bytes, fields.stop),
                None if prompt.matcher is None else prompt.matcher.copy(),
            )
            for choice in range(fields.n)
        ]  # fmt: skip

    def _batches(self, rows: list[Generating]) -> list[list[Generating]]:
        """Rows of like length together, and such with the same beginning where there are enough of them.

        A row with many choices may be more than a batch by itself.
        """
        rows.sort(key=lambda row: -(len(row.prompt) + row.max_tokens))
        alike: dict[Sequence[int], list[Generating]] = {}
        for row in rows:
            alike.setdefault(tuple(row.prompt[:LEAST_SHARED]), []).append(row)
        batches: list[list[Generating]] = []
        left: list[Generating] = []
        for group in alike.values():
            while group and len(group) >= (size := self._fitting(group)):
                batches.append(group[:size])
                del group[:size]
            left += group
        left.sort(key=lambda row: -(len(row.prompt) + row.max_tokens))
        while left:
            size = self._fitting(left)
            batches.append(left[:size])
            del left[:size]
        return batches

    def _fitting(self, rows: Sequence[Generating]) -> int:
        """How many of these fit into a batch, the longest of which comes first."""
        longest = len(rows[0].prompt) + rows[0].max_tokens
        return max(1, min(self._spec.max_batch_size, (self._spec.max_batch_tokens or BATCH_TOKENS) // longest))

    def _result(self, prompt: Prompt, choices: Sequence[Generating]) -> Row:
        error = next((row.error for row in choices if row.error is not None), None)
        if error is not None:
            return error
        told = [_choice(row) for row in choices]
        return completion(told, len(prompt.tokens), sum(len(row.tokens) for row in choices))


class _Following:
    """Tells whoever follows rows of their text, and ends those that are not wanted any more."""

    def __init__(self, rows: Sequence[Sequence[Generating]], between: Between) -> None:
        self._rows = rows
        self._between = between
        self._looked_at = time.monotonic()

    def look(self, final: bool = False) -> None:
        if not final and time.monotonic() - self._looked_at < STEP_S:
            return
        self._looked_at = time.monotonic()
        pieces = [
            Piece(i, j, *told)
            for i, choices in enumerate(self._rows)
            for j, row in enumerate(choices)
            if (told := self._untold(row))[1]
        ]
        unwanted: Collection[int] = self._between(pieces)
        for i in unwanted:
            for row in self._rows[i]:
                if not row.over:
                    row.error = Interrupted()

    def _untold(self, row: Generating) -> tuple[int, str]:
        row.text.read(row.tokens, final=row.over)
        return row.text.untold(final=row.over)


def _choice(row: Generating) -> Choice:
    row.text.read(row.tokens, final=True)
    told = Choice(text=row.text.text, finish_reason=row.finish_reason or "length")
    if row.sampling.logprobs is not None:
        told["logprobs"] = row.logprobs
    return told


def _end(rows: Sequence[Generating], timeout_s: float) -> None:
    for row in rows:
        if not row.over:
            row.error = TimedOut(
                f"not finished within timeout_s={timeout_s:g}: {len(row.tokens)} of up to {row.max_tokens} tokens; ask for "
                "fewer, or register the version with more time"
            )


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    return frozenset(() if found is None else found if isinstance(found, list) else [found])


def _defaults(model: Any, spec: ModelVersion) -> Sampling:
    """What rows that do not say otherwise get: the model's own fields if it samples by default, else always the likeliest."""
    config = model.generation_config
    for name in _CHANGES_TEXT:
        value = getattr(config, name, None)
        if value and not (value == 1 and name in _ONE_IS_NONE):
            raise ModelLoadFailed(
                f"{spec.ref}: generation_config.json sets {name} to {shown(value)}, which is not followed here; leave it out"
            )
    set_ = {name: value for name in _DEFAULTS if (value := getattr(config, name)) is not None}
    own = _DEFAULTS | set_ if config.do_sample else {"temperature": 0.0}
    try:
        return check(own | {"max_tokens": spec.options.get("max_tokens")}, Sampling)
    except InvalidInput as error:
        raise ModelLoadFailed(f"{spec.ref}: {error}") from error


def _library() -> tuple[Any, Any]:
    go_offline()
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingExtra("this runtime needs transformers", "generation") from error
    disable_progress_bar()
    return AutoModelForCausalLM, AutoTokenizer
