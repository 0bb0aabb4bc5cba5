"""Rows that generate together, token by token: padded on the left, one forward pass for all. Who has ended leaves, others join.

Greedy rows get what transformers' `generate` gives them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from forebay.contract.errors import ForebayError, without_frames
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
    began: float | None = None

    @property
    def length(self) -> int:
        """Tokens, as far as it may come."""
        return len(self.prompt) + self.max_tokens

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


def keeps_all(cache: Any) -> bool:
    """Whether it keeps every token, in tensors `(rows, heads, width, size)`."""
    return {type(layer).__name__ for layer in cache.layers} == {"DynamicLayer"}


@dataclass(slots=True, eq=False)
class RunningBatch:
    """Rows that generate together: `tokens` and their `positions` `(rows, some)`, which the model has not seen yet, a `mask` of
    these and of what it has seen `(rows, width)`, and its `cache`. Padding is on the left.
    """  # fmt: skip

    rows: list[Generating]
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    cache: Any
    sampler: Sampler | None = None

    @torch.inference_mode()
    def let_go(self) -> None:
        """Go on without the rows that are over."""
        staying = [i for i, row in enumerate(self.rows) if not row.over]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in staying]
        if not staying:
            return
        kept = torch.tensor(staying, dtype=torch.long, device=self.tokens.device)
        self.cache.batch_select_indices(kept)
        self.sampler.keep(kept)  # type: ignore[union-attr]
        self.tokens, self.positions, self.mask = self.tokens[kept], self.positions[kept], self.mask[kept]
        self._trim()

    @torch.inference_mode()
    def join(self, other: RunningBatch) -> None:
        """Take the rows of another in. Both have caches that keep every token, and a token of each row to go on from."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        gap, gap_of_other = width - self.mask.shape[1], width - other.mask.shape[1]
        for layer, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys, layer.values = (
                torch.cat([pad(mine, (0, 0, gap, 0)), pad(its, (0, 0, gap_of_other, 0))])
                for mine, its in ((layer.keys, theirs.keys), (layer.values, theirs.values))
            )
        self.mask = torch.cat([pad(self.mask, (gap, 0)), pad(other.mask, (gap_of_other, 0))])
        self.tokens = torch.cat([self.tokens, other.tokens])
        self.positions = torch.cat([self.positions, other.positions])
        self.sampler.join(other.sampler)  # type: ignore[union-attr, arg-type]
        self.rows += other.rows

    def _trim(self) -> None:
        """Cut off what is padding of all rows."""
        gap = int(self.mask.argmax(1).min())
        if gap and keeps_all(self.cache):
            self.mask = self.mask[:, gap:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[..., gap:, :], layer.values[..., gap:, :]

    def close_gaps(self, shared: int) -> None:
        """Move the first `shared` columns of each row to where its others begin."""
        places = torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask)
        gaps = (self.mask[:, shared:].argmax(1))[:, None]
        moved = torch.where(places < gaps + shared, places - gaps, places)
        moved = torch.where(places < gaps, places + shared, moved)
        self.mask = self.mask.gather(1, moved)
        for layer in self.cache.layers:
            at = moved[:, None, : layer.keys.shape[-2], None]
            layer.keys = layer.keys.gather(2, at.expand_as(layer.keys))
            layer.values = layer.values.gather(2, at.expand_as(layer.values))


class Decoder:
    """Generates with one loaded model. `ends` are the tokens that end a text."""

    def __init__(self, model: Any, forward: Callable[..., Any], ends: frozenset[int], token_bytes: TokenBytes) -> None:
        self._model = model
        self._forward = forward
        self._ends = ends
        self._bytes = token_bytes
        self._repetition = float(model.generation_config.repetition_penalty or 1.0)
        self._shares = False
        self._prefix: tuple[Sequence[int], list[tuple[Tensor, Tensor]]] = ((), [])
        self.joins = keeps_all(self._new_cache())

    @torch.inference_mode()
    def begin(self, rows: Sequence[Generating]) -> RunningBatch:
        """Read what there is of these rows, in one forward pass, and choose a further token of each."""
        texts = [[*row.prompt, *row.tokens] for row in rows]
        shared, prefix = self._prefix_of(texts)
        tokens, mask, cache = self._begun(texts, shared, prefix)
        batch = RunningBatch(list(rows), tokens, _positions(mask)[:, shared:], mask, cache)
        self._advance(batch)
        if shared and batch.rows:
            batch.close_gaps(shared)
        return batch

    @torch.inference_mode()
    def step(self, batch: RunningBatch) -> None:
        """Choose a further token of each row, and let those go that are over then. After an error the batch is of no use."""
        self._advance(batch)

    def forget_prefix(self) -> None:
        """Free the memory of the beginning that the last prompts shared."""
        self._prefix = ((), [])

    def _advance(self, batch: RunningBatch) -> None:
        logits = self._forward(
            input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, past_key_values=batch.cache,
            use_cache=True, logits_to_keep=1,
        ).logits[:, -1].float()  # fmt: skip
        if batch.sampler is None:
            batch.sampler = Sampler(batch.rows, logits.shape[1], logits.device, self._repetition)
        chosen, best = batch.sampler.choose(logits)
        self._take(batch.rows, logits, chosen, best)
        batch.tokens, batch.positions = chosen[:, None], batch.positions[:, -1:] + 1
        batch.mask = pad(batch.mask, (0, 1), value=1)
        batch.let_go()

    def _prefix_of(self, texts: Sequence[Sequence[int]]) -> tuple[int, Sequence[int]]:
        """How many first tokens of these texts are computed once, and which: those of before where these will do."""
        if not self.joins or not self._shares:
            return 0, ()
        shared, known = shared_length(texts), self._prefix[0]
        if len(known) >= max(LEAST_SHARED, shared - LEAST_SHARED) and all(
            len(text) > len(known) and tuple(text[: len(known)]) == known for text in texts
        ):
            return len(known), known
        return shared, texts[0][:shared]

    @torch.inference_mode()
    def check_padding(self) -> bool:
        """Whether a prompt's logits are the same beside a longer one: else padding is not what the model takes it for."""
        some = [token for token in range(min(64, self._vocabulary())) if token not in self._ends][:12]
        alone, beside = (self._logits(prompts) for prompts in ([some[:6]], [some, some[:6]]))
        if not _close(alone, beside):
            return False
        # a model may look at where its keys lie, and not at the positions it is told: then no prefix is computed apart
        self._shares = self.joins and _close(alone, self._logits([some, some[:6]], shared=4))
        return True

    def _logits(self, prompts: Sequence[Sequence[int]], shared: int = 0) -> Tensor:
        """Those behind the last prompt."""
        tokens, mask, cache = self._begun(prompts, shared, prompts[0][:shared])
        made: Tensor = self._forward(
            input_ids=tokens, attention_mask=mask, position_ids=_positions(mask)[:, shared:], past_key_values=cache,
            use_cache=True,
        ).logits[-1, -1]  # fmt: skip
        return made.float()

    def _begun(
        self, prompts: Sequence[Sequence[int]], shared: int, prefix: Sequence[int]
    ) -> tuple[Tensor, Tensor, Any]:
        """What is left to compute of the prompts, a mask of them, and a cache of their `prefix`, the first `shared` tokens,
        which went through the model once for all. Padding stands between these and the rest.
        """  # fmt: skip
        tokens, mask = self._padded([prompt[shared:] for prompt in prompts])
        cache = self._new_cache()
        if shared:
            if self._prefix[0] != tuple(prefix):
                self._prefix = (tuple(prefix), self._computed(prefix))
            for i, (keys, values) in enumerate(self._prefix[1]):
                cache.update(keys.expand(len(prompts), -1, -1, -1), values.expand(len(prompts), -1, -1, -1), i)
            mask = pad(mask, (shared, 0), value=1)
        return tokens, mask, cache

    def _computed(self, prefix: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        tokens, seen = self._padded([prefix])
        cache = self._new_cache()
        self._forward(
            input_ids=tokens, attention_mask=seen, position_ids=_positions(seen), past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _vocabulary(self) -> int:
        return int(self._model.get_input_embeddings().num_embeddings)

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens `(rows, longest)`, and which of them are not padding."""
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        return tokens.to(self._model.device), mask.to(self._model.device)

    def _take(self, live: Sequence[Generating], logits: Tensor, chosen: Tensor, best: Tensor) -> None:
        told = [i for i, row in enumerate(live) if row.sampling.logprobs is not None]
        if told:
            self._tell_logprobs([live[i] for i in told], logits[told].log_softmax(-1), chosen[told])
        for row, token, score in zip(live, chosen.tolist(), best.tolist(), strict=True):
            if not isfinite(score):
                row.error = ForebayError(f"the model's logits are not finite after {len(row.tokens)} tokens")
                continue
            try:
                row.take(token, self._ends)
            except Exception as error:  # noqa: BLE001 - this row's own
                row.error = without_frames(error)

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
