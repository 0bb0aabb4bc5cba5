"""From what a row asks to what can be generated: token ids, and fields with all defaults filled in. All is checked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import INPUTS, GenerationRequest, Message, Sampling, parse_generation
from forebay.contract.references import shown
from forebay.worker.runtimes.generation.grammar import Grammars, Matcher
from forebay.worker.trainer.texts.conversations import rendered, text_tokens

MAX_TOKENS = 256  # to generate, where neither the row nor the version says how many


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row, ready to run."""

    tokens: Sequence[int]
    sampling: Sampling
    max_tokens: int
    matcher: Matcher | None

    @property
    def cost(self) -> int:
        """Tokens, as far as it may come."""
        return self.sampling.n * (len(self.tokens) + self.max_tokens)


class PromptReader:
    """Reads rows for one model: its tokenizer, its vocabulary, how many tokens it can look at, and its defaults."""

    def __init__(
        self, tokenizer: Any, vocabulary: int, context: int | None, defaults: Sampling, grammars: Grammars
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._defaults = defaults
        self._grammars = grammars

    def read(self, row: Any) -> Prompt:
        """InvalidInput for what cannot be run, naming the field. A text by itself is what a user says, where the model has a chat
        template.
        """  # fmt: skip
        only = isinstance(row, Mapping) and [*row] == [*INPUTS]
        asked = next(iter(row.values())) if only else row
        if isinstance(asked, str) and self._tokenizer.chat_template:
            asked = [{"role": "user", "content": asked}]
        request = parse_generation(asked)
        tokens = self._tokens(request)
        sampling = self._completed(request.sampling)
        most = self._most(len(tokens), request.sampling.max_tokens)
        matcher = None if sampling.schema is None else self._grammars.matcher(sampling.schema)
        return Prompt(tokens, sampling, most, matcher)

    def _completed(self, asked: Sampling) -> Sampling:
        own = {name: getattr(asked, name) for name in ("temperature", "top_p", "top_k")}
        return replace(asked, **{k: getattr(self._defaults, k) if v is None else v for k, v in own.items()})

    def _most(self, prompt: int, asked: int | None) -> int:
        """How many tokens to generate at most."""
        wanted = asked or self._defaults.max_tokens or MAX_TOKENS
        if self._context is None:
            return wanted
        room = self._context - prompt
        if room < (asked or 1):
            beside = f", which leaves no room for max_tokens={asked:,}" if asked and room > 0 else ""
            raise InvalidInput(
                f"the prompt has {prompt:,} tokens{beside}; this model looks at {self._context:,}, new ones included"
            )
        return min(wanted, room)

    def _tokens(self, request: GenerationRequest) -> Sequence[int]:
        prompt = request.prompt
        if request.messages is not None:
            return self._of_messages(request.messages)
        if isinstance(prompt, str):
            found: Sequence[int] = self._tokenizer.encode(prompt)
            if not found:
                raise InvalidInput("prompt: it holds no token")
            return found
        beyond = next((token for token in prompt if token >= self._vocabulary), None)  # type: ignore[operator]
        if beyond is not None:
            raise InvalidInput(
                f"prompt: {shown(beyond)} is not a token; this model has {self._vocabulary:,}, from 0 on"
            )
        return prompt  # type: ignore[return-value]

    def _of_messages(self, messages: Sequence[Message]) -> Sequence[int]:
        if not self._tokenizer.chat_template:
            raise InvalidInput("messages: this model has no chat template; give a prompt")
        try:
            text = rendered(self._tokenizer, messages, add_generation_prompt=True)
        except Exception as error:  # a template raises whatever it likes
            raise InvalidInput(f"messages: the model's chat template refuses them: {error}") from error
        found = text_tokens(self._tokenizer, text)
        if not found:
            raise InvalidInput("messages: the model's chat template makes no token of them")
        return found
