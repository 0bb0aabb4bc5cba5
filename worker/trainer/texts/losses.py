"""What a language model is judged by: the loss of the tokens that it would have to generate. Training and evaluating share it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from forebay.contract.errors import InvalidInput
from forebay.datasets.examples import Example
from forebay.worker.trainer.loading import Ragged
from forebay.worker.trainer.texts.tokens import Tokens, tokenized

PACKED = 512  # tokens of a sequence: what attention costs grows with their square
AT_ONCE = 16  # examples in a forward pass of `example_losses`: their logits are large


class Loss(NamedTuple):
    """The mean loss of an example's `tokens` that are to be generated; its last answer has `last` of them."""

    mean: float
    tokens: int
    last: int


def token_losses(model: nn.Module, ids: Tensor, learned: Tensor) -> Tensor:
    """The mean negative log-likelihood of the learned tokens of each row `(rows,)`, in nats.

    `ids` and `learned` `(rows, length)` are padded at their right, where it changes nothing: attention looks back only.
    """
    counted = learned[:, 1:]
    at = (
        counted.any(0).nonzero().squeeze(1)
    )  # the positions before those that some row learns: logits cost a lot of memory
    keep = {"logits_to_keep": at} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=ids, use_cache=False, **keep).logits
    logits = (logits if keep else logits[:, at]).float()
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:][:, at], reduction="none")
    weights = counted[:, at].float()
    return (losses * weights).sum(1) / weights.sum(1).clamp(min=1)


def packed_losses(model: nn.Module, ids: Tensor, learned: Tensor) -> Tensor:
    """What `token_losses` gives, of rows that follow one another in sequences of up to PACKED tokens: each begins at position 0
    and sees itself alone. Computed are their own tokens, and the logits of those that are learned.
    """  # fmt: skip
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    lengths = (learned * places).amax(1).clamp(min=1).tolist()  # what follows the last learned token changes nothing
    made: list[Tensor] = []
    first = 0
    while first < len(lengths):
        stop = first + 1
        while stop < len(lengths) and sum(lengths[first : stop + 1]) <= PACKED:
            stop += 1
        made.append(_packed(model, ids[first:stop], learned[first:stop], lengths[first:stop]))
        first = stop
    return torch.cat(made)


def _packed(model: nn.Module, ids: Tensor, learned: Tensor, lengths: list[int]) -> Tensor:
    rows = torch.repeat_interleave(
        torch.arange(len(lengths), device=ids.device), torch.tensor(lengths, device=ids.device)
    )
    places = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
    one, counted = ids[rows, places][None], learned[rows, places] & (places > 0)
    seen = (rows[:, None] == rows[None, :]).tril()[None, None]
    at = counted.nonzero().squeeze(1)
    logits = model(
        input_ids=one, position_ids=places[None], attention_mask=seen, use_cache=False, logits_to_keep=at - 1
    ).logits[0]
    losses = functional.cross_entropy(logits.float(), one[0, at], reduction="none")
    sums = torch.zeros(2, len(lengths), device=ids.device).index_add(
        1, rows[at], torch.stack([losses, torch.ones_like(losses)])
    )
    return sums[0] / sums[1].clamp(min=1)


@torch.inference_mode()
def check_packing(model: nn.Module, vocabulary: int) -> None:
    """InvalidInput where a model does not compute of examples in one sequence what it computes of each by itself."""
    ids = torch.arange(3 * 12).reshape(3, 12) * 7 % vocabulary
    learned = torch.arange(12)[None] < torch.tensor([[5], [12], [2]])
    ids, learned = ids.to(next(model.parameters()).device), learned.to(next(model.parameters()).device)
    plain = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} == {"DynamicLayer"}
    known = {"logits_to_keep", "position_ids", "attention_mask"} <= set(inspect.signature(model.forward).parameters)
    if not (
        plain and known and torch.allclose(token_losses(model, ids, learned), packed_losses(model, ids, learned), 1e-2)
    ):
        raise InvalidInput("packing: this base does not keep examples in one sequence apart; train without it")


@torch.inference_mode()
def example_losses(
    model: Any, tokenizer: Any, context: int | None, examples: Sequence[Example]
) -> list[Loss | InvalidInput]:
    """For each example its loss, or why it cannot be told."""
    read = [_read(tokenizer, context, example) for example in examples]
    told: list[Any] = list(read)
    good = [(i, one) for i, one in enumerate(read) if not isinstance(one, InvalidInput)]
    good.sort(key=lambda found: len(found[1].ids))
    for first in range(0, len(good), AT_ONCE):
        some = good[first : first + AT_ONCE]
        every = torch.arange(len(some))
        ids = Ragged([one.ids for _, one in some])[every].long()
        learned = Ragged([one.learned for _, one in some])[every]
        losses = token_losses(model, ids.to(model.device), learned.to(model.device)).tolist()
        for (i, one), loss in zip(some, losses, strict=True):
            told[i] = Loss(loss, int(one.learned.sum()), len(one.ids) - 1 - int((~one.learned).nonzero()[0][-1]))
    return told


def _read(tokenizer: Any, context: int | None, example: Example) -> Tokens | InvalidInput:
    try:
        tokens = tokenized(tokenizer, example)
    except InvalidInput as error:
        return error
    length = len(tokens.ids)
    if context is not None and length > context:
        return InvalidInput(f"the example has {length:,} tokens; this model looks at {context:,}")
    return tokens
