"""The next token of each row of a batch, from the batch's logits; each row by its own fields and its own random numbers.

What a row gets depends on its own logits alone, so that the same seed gives the same text whatever the row is batched with. A
token is drawn as the greatest of its logits plus Gumbel noise: rounding in the logits, which differs with the batch, then changes
a token only where two are as good as equal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from forebay.contract.generation import Sampling

_GREEDY_BELOW = 1e-5  # temperature
_LIKELIEST = 256  # tokens that top_p looks at first: sorting a whole vocabulary costs as much as a small model
_NOISE = 1 << 16  # numbers drawn at once
_LEAST_EXPONENTIAL = 2.0**-25  # float32 draws 0 once in 2**24 times, whose logarithm would win against any logit


class Row(Protocol):
    """What of a generating row is read here."""

    sampling: Sampling
    noise: Noise
    prompt: Sequence[int]
    tokens: list[int]
    matcher: Any


class Noise:
    """A row's random numbers: for each token that it draws one for each of the vocabulary, Exp(1); by seed and choice."""

    def __init__(self, seed: int | None, choice: int) -> None:
        entropy = os.urandom(8) if seed is None else hashlib.sha256(f"{seed}/{choice}".encode()).digest()[:8]
        self._generator = torch.Generator().manual_seed(int.from_bytes(entropy, "big") >> 1)
        self._drawn: Tensor = torch.empty(0, 0)
        self._first = 0

    def draw(self, vocabulary: int, token: int) -> Tensor:
        """Those `(vocabulary,)` of the row's token of this number: the next one, or the last one again."""
        if token == self._first + len(self._drawn):
            self._first = token
            self._drawn = torch.empty(max(1, _NOISE // vocabulary), vocabulary).exponential_(generator=self._generator)
        return self._drawn[token - self._first]


class Sampler:
    """Chooses the next token for rows that generate together; `keep` follows them as rows leave."""

    def __init__(
        self, rows: Sequence[Row], vocabulary: int, device: torch.device, repetition_penalty: float = 1.0
    ) -> None:
        self._rows = list(rows)
        self._vocabulary, self._device = vocabulary, device
        self._repetition = repetition_penalty
        fields = [row.sampling for row in rows]
        penalized = any(f.presence_penalty or f.frequency_penalty for f in fields)
        self._counts = torch.zeros(len(rows), vocabulary, device=device) if penalized else None
        self._seen = (
            torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=device) if repetition_penalty != 1 else None
        )
        for i, row in enumerate(rows):
            if self._seen is not None:
                self._seen[i, torch.tensor([*row.prompt, *row.tokens], device=device)] = True
            if self._counts is not None and row.tokens:
                self._counts[i] = torch.bincount(torch.tensor(row.tokens, device=device), minlength=vocabulary)
        self._numbers = torch.tensor(
            [
                [f.temperature or 0.0, f.top_k if f.top_k and f.top_k > 0 else vocabulary, 1.0 if f.top_p is None else f.top_p,
                 f.presence_penalty, f.frequency_penalty]
                for f in fields
            ],
            device=device,
        )  # fmt: skip
        self._split()

    def keep(self, indices: Tensor) -> None:
        """Go on with these rows only, in this order."""
        self._rows = [self._rows[i] for i in indices.tolist()]
        self._numbers = self._numbers[indices]
        self._counts = self._counts if self._counts is None else self._counts[indices]
        self._seen = self._seen if self._seen is None else self._seen[indices]
        self._split()

    def join(self, other: Sampler) -> None:
        """Take in the rows of another, behind the own."""
        rows = [*self._rows, *other._rows]
        if self._counts is not None or other._counts is not None:
            self._counts = torch.cat([self._counted(), other._counted()])
        if self._seen is not None and other._seen is not None:
            self._seen = torch.cat([self._seen, other._seen])
        self._rows, self._numbers = rows, torch.cat([self._numbers, other._numbers])
        self._split()

    def _counted(self) -> Tensor:
        """How often each row has generated each token; nothing where no row is penalized for it."""
        if self._counts is not None:
            return self._counts
        return torch.zeros(len(self._rows), self._vocabulary, device=self._device)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row, from the model's `(rows, vocabulary)` float32; and its greatest score."""
        scores = self._allowed(self._penalties(logits))
        best, tokens = scores.max(-1)
        if self._drawing is not None:
            tokens[self._drawing] = self._draw(scores[self._drawing])
        if self._counts is not None:
            self._counts.scatter_add_(1, tokens[:, None], torch.ones(len(tokens), 1, device=self._device))
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens, best

    def _split(self) -> None:
        drawing = [i for i, row in enumerate(self._rows) if (row.sampling.temperature or 0) >= _GREEDY_BELOW]
        self._drawing = torch.tensor(drawing, device=self._device) if drawing else None
        self._matched = [i for i, row in enumerate(self._rows) if row.matcher is not None]

    def _penalties(self, logits: Tensor) -> Tensor:
        if self._seen is not None:
            penalized = torch.where(logits < 0, logits * self._repetition, logits / self._repetition)
            logits = torch.where(self._seen, penalized, logits)
        if self._counts is None:
            return logits
        presence, frequency = self._numbers[:, 3:4], self._numbers[:, 4:5]
        return logits - frequency * self._counts - presence * (self._counts > 0)

    def _allowed(self, scores: Tensor) -> Tensor:
        """The scores with what a row's JSON schema does not allow at -inf."""
        if not self._matched:
            return scores
        scores = scores.clone()
        for i in self._matched:
            scores[i].masked_fill_(~self._rows[i].matcher.allowed().to(self._device), -torch.inf)
        return scores

    def _draw(self, scores: Tensor) -> Tensor:
        numbers = self._numbers[self._drawing]
        scores = _likeliest(scores / numbers[:, 0:1], numbers[:, 1].long(), numbers[:, 2:3])
        rows = [self._rows[i] for i in self._drawing.tolist()]  # type: ignore[union-attr]
        noise = torch.stack([row.noise.draw(scores.shape[1], len(row.tokens)) for row in rows]).to(self._device)
        return (scores - noise.clamp_min(_LEAST_EXPONENTIAL).log()).argmax(-1)


def _likeliest(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The scores with all but each row's `top_k` likeliest at -inf, and of these all but those that have the share `top_p`."""
    vocabulary = scores.shape[1]
    few = int(top_k.min()) < vocabulary
    if few:
        ordered = scores.topk(min(vocabulary, int(top_k[top_k < vocabulary].max()))).values
        last = ordered.gather(1, (top_k[:, None] - 1).clamp(max=ordered.shape[1] - 1))
        scores = scores.masked_fill((scores < last) & (top_k[:, None] < vocabulary), -torch.inf)
    if bool((top_p < 1).any()):
        scores = scores.masked_fill(
            (scores < _nucleus(scores, top_p, min(vocabulary, _LIKELIEST))) & (top_p < 1), -torch.inf
        )
    return scores


def _nucleus(scores: Tensor, top_p: Tensor, looked_at: int) -> Tensor:
    """For each row the least score among the likeliest that together have the share `top_p`, `(rows, 1)`."""
    ordered = scores.topk(looked_at).values
    shares = (ordered - scores.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    if looked_at < scores.shape[1] and bool((shares[:, -1:] < top_p.clamp(max=1 - 1e-6)).any()):
        return _nucleus(scores, top_p, scores.shape[1])
    taken = (
        (shares < top_p).sum(-1, keepdim=True).clamp(max=looked_at - 1)
    )  # the first that reaches the share is among them
    return ordered.gather(1, taken)
