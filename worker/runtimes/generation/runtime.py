"""Runs causal language models from a Hugging Face folder of safetensors weights and a tokenizer: offline, without remote code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from forebay.contract.errors import InvalidInput, MissingExtra, ModelLoadFailed, ModelRefused
from forebay.contract.generation import Sampling
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests.fields import check
from forebay.contract.signature import Row
from forebay.datasets.examples import Example
from forebay.worker.packed_weights import unpacked
from forebay.worker.runtimes.folders import go_offline, safe_folder
from forebay.worker.runtimes.generation.decoding import Decoder, Generating
from forebay.worker.runtimes.generation.grammar import Grammars
from forebay.worker.runtimes.generation.prompts import Prompt, PromptReader
from forebay.worker.runtimes.generation.running import RunningTexts
from forebay.worker.runtimes.generation.sampling import Noise
from forebay.worker.runtimes.generation.text import Text, TokenBytes
from forebay.worker.runtimes.speed import tuned
from forebay.worker.runtimes.tensors import module_bytes
from forebay.worker.trainer.texts.losses import Loss, example_losses

BATCH_TOKENS = 16_384  # of prompts and texts that are kept at once, where the version does not say
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
            with unpacked(folder) as whole:
                model = auto_model.from_pretrained(
                    str(whole), trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=wanted,
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
        """A row may be an error that it alone has."""
        made: dict[int, Row] = {}
        with closing(self.run_each(prompts)) as running:
            while len(made) < len(prompts):
                made |= running.wait(1.0).outputs
        return [made[i] for i in range(len(prompts))]

    def run_each(
        self, prompts: Sequence[Prompt], insist: bool = True, at_once: Callable[[], int] | None = None
    ) -> RunningTexts:
        del insist  # what fails here would fail again
        spec = self._spec
        return RunningTexts(
            self._decoder, prompts, self._texts, at_once or (lambda: spec.max_batch_size),
            spec.max_batch_tokens or BATCH_TOKENS, spec.timeout_s,
        )  # fmt: skip

    def _texts(self, prompt: Prompt) -> list[Generating]:
        fields = prompt.sampling
        return [
            Generating(
                prompt.tokens, fields, prompt.max_tokens, Noise(fields.seed, choice), Text(self._bytes, fields.stop),
                None if prompt.matcher is None else prompt.matcher.copy(),
            )
            for choice in range(fields.n)
        ]  # fmt: skip


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
