"""Rows that generate together, token by token: padded on the left, one forward pass for all, and whoever has ended leaves.

Greedy rows get what transformers' `generate` gives them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from forebay.contract.errors import ForebayError
from forebay.contract.generation import Sampling, TokenLogprob
from forebay.worker.runtimes.generation.grammar import Matcher
from forebay.worker.runtimes.generation.sampling import Noise, Sampler
from forebay.worker.runtimes.generation.text import Text, TokenBytes

LEAST_SHARED = 16  # tokens of a prefix: a forward pass of their own must pay


@dataclass(slots=True, eq=False)
class Generating:
    """One text on its way: what it goes on from, its fields with all defaults filled in, and what there is of it."""

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    noise: Noise
    text: Text
    matcher: Matcher | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Add the token that was chosen."""
        self.tokens.append(token)
        if token in ends or (self.matcher is not None and self.matcher.take(token)):
            self.finish_reason = "stop"
        elif self.sampling.stop:
            self.text.read(self.tokens)
            self.finish_reason = "stop" if self.text.stopped else None
        if self.finish_reason is None and len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common; 0 where it is not worth while. Each keeps its last one for itself."""
    first, last = min(prompts, key=list), max(prompts, key=list)  # in their order, so what these two share all do
    most = min(map(len, prompts)) - 1
    length = next((i for i in range(most) if first[i] != last[i]), most)
    return length if len(prompts) > 1 and length >= LEAST_SHARED else 0


class Decoder:
    """Generates with one loaded model. `ends` are the tokens that end a text."""

    def __init__(self, model: Any, forward: Callable[..., Any], ends: frozenset[int], token_bytes: TokenBytes) -> None:
        self._model = model
        self._forward = forward
        self._ends = ends
        self._bytes = token_bytes
        self._repetition = float(model.generation_config.repetition_penalty or 1.0)
        self._shares = False

    @torch.inference_mode()
    def run(self, rows: Sequence[Generating], step: Callable[[], None]) -> None:
        """Generate until all rows are over. `step`, called after each token, may end some by giving them an error."""
        live = list(rows)
        if not live:
            return
        prompts = [row.prompt for row in live]
        shared = shared_length(prompts) if self._shares else 0
        tokens, mask, cache = self._begun(prompts, shared, max(row.max_tokens for row in live))
        width, positions = shared + tokens.shape[1], None
        sampler: Sampler | None = None
        while live:
            seen = mask[:, :width]
            positions = _positions(seen)[:, shared:] if positions is None else positions[:, -1:] + 1
            logits = self._forward(
                input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1].float()  # fmt: skip
            if sampler is None:
                sampler = Sampler(live, logits.shape[1], logits.device, self._repetition)
            chosen, best = sampler.choose(logits)
            self._take(live, logits, chosen, best)
            step()
            staying = [i for i, row in enumerate(live) if not row.over]
            if len(staying) < len(live):
                kept = torch.tensor(staying, dtype=torch.long, device=logits.device)
                live = [live[i] for i in staying]
                if not live:
                    return
                cache.batch_select_indices(kept)
                sampler.keep(kept)
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            tokens, width = chosen[:, None], width + 1

    @torch.inference_mode()
    def check_padding(self) -> bool:
        """Whether a prompt's logits are the same beside a longer one: else padding is not what the model takes it for."""
        some = [token for token in range(min(64, self._vocabulary())) if token not in self._ends][:12]
        alone, beside = (self._logits(prompts) for prompts in ([some[:6]], [some, some[:6]]))
        if not _close(alone, beside):
            return False
        # a model may look at where its keys lie, and not at the positions it is told: then no prefix is computed apart
        plain = {type(layer).__name__ for layer in self._new_cache().layers} == {"DynamicLayer"}  # it keeps every token
        self._shares = plain and _close(alone, self._logits([some, some[:6]], shared=4))
        return True

    def _logits(self, prompts: Sequence[Sequence[int]], shared: int = 0) -> Tensor:
        """Those behind the last prompt."""
        tokens, mask, cache = self._begun(prompts, shared, 0)
        made: Tensor = self._forward(
            input_ids=tokens, attention_mask=mask, position_ids=_positions(mask)[:, shared:], past_key_values=cache,
            use_cache=True,
        ).logits[-1, -1]  # fmt: skip
        return made.float()

    def _begun(self, prompts: Sequence[Sequence[int]], shared: int, room: int) -> tuple[Tensor, Tensor, Any]:
        """What is left to compute of the prompts, a mask of them and `room` further tokens, and a cache of their first `shared`
        tokens, which went through the model once for all. Padding stands between these and the rest.
        """  # fmt: skip
        tokens, mask = self._padded([prompt[shared:] for prompt in prompts], room)
        cache = self._new_cache()
        if shared:
            prefix = torch.tensor([list(prompts[0][:shared])], device=tokens.device)
            seen = torch.ones_like(prefix)
            self._forward(
                input_ids=prefix, attention_mask=seen, position_ids=_positions(seen), past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            cache.batch_repeat_interleave(len(prompts))
            mask = torch.cat([seen.expand(len(prompts), -1), mask], dim=1)
        return tokens, mask, cache

    def _vocabulary(self) -> int:
        return int(self._model.get_input_embeddings().num_embeddings)

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def _padded(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Tensor, Tensor]:
        """Tokens `(rows, longest)`, and which of them, and of `room` further ones, are not padding."""
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.ones(len(prompts), longest + room, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, : longest - len(prompt)] = 0
        return tokens.to(self._model.device), mask.to(self._model.device)

    def _take(self, live: Sequence[Generating], logits: Tensor, chosen: Tensor, best: Tensor) -> None:
        told = [i for i, row in enumerate(live) if row.sampling.logprobs is not None]
        if told:
            self._tell_logprobs([live[i] for i in told], logits[told].log_softmax(-1), chosen[told])
        for row, token, score in zip(live, chosen.tolist(), best.tolist(), strict=True):
            if isfinite(score):
                row.take(token, self._ends)
            else:
                row.error = ForebayError(f"the model's logits are not finite after {len(row.tokens)} tokens")

    def _tell_logprobs(self, rows: Sequence[Generating], shares: Tensor, chosen: Tensor) -> None:
        most = max(row.sampling.logprobs or 0 for row in rows)
        likeliest = shares.topk(max(1, most))
        of_chosen = shares.gather(1, chosen[:, None])[:, 0].tolist()
        for i, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            told, count = self._told(token, of_chosen[i]), row.sampling.logprobs or 0
            found = zip(likeliest.indices[i, :count].tolist(), likeliest.values[i, :count].tolist(), strict=True)
            told["top_logprobs"] = [self._told(*one) for one in found]
            row.logprobs.append(told)

    def _told(self, token: int, logprob: float) -> TokenLogprob:
        data = self._bytes.of(token)
        return TokenLogprob(token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))


def _positions(mask: Tensor) -> Tensor:
    """Of each token, not counting padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 0.02 * (float(one.abs().max()) + 1e-6))
