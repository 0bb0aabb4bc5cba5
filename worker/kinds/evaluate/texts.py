"""A language model on examples: how likely it holds the answers that are there, and how often it gives the same by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.training import EXACT_MATCH
from forebay.datasets.examples import Example, parse_example
from forebay.datasets.formats.source import Chunk
from forebay.datasets.reading.inputs import Inputs
from forebay.worker.execution.chunks import Ran, run_chunk
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.trainer.scoring import text_metrics

if TYPE_CHECKING:  # it imports torch, which a worker for remote models may lack
    from forebay.worker.trainer.texts.losses import Loss

WEIGHED_AT_ONCE = 64  # examples between two looks at whether to stop


class TextComparison:
    """Takes examples chunk by chunk. `rows` were answered; those that cannot be read or run are only counted, as `failed`."""

    classes: tuple[str, ...] = ()

    def __init__(self, engine: Engine, loaded: LoadedModel, ran: Ran, stopped: Callable[[], bool]) -> None:
        self.rows = self.failed = 0
        self.first_error: Exception | None = None
        self._engine, self._loaded, self._ran, self._stopped = engine, loaded, ran, stopped
        self._input = (loaded.spec.signature.inputs or ())[0].name
        self._matches = self._tokens = 0
        self._surprise = 0.0

    def add(self, chunk: Chunk) -> None:
        """Answer the examples of a chunk, greedily, and weigh the answers that are there."""
        examples = self._read(chunk)
        losses = self._losses(examples)
        good = [i for i, loss in enumerate(losses) if not isinstance(loss, InvalidInput)]
        self._fail([loss for loss in losses if isinstance(loss, InvalidInput)])
        asked = [_asked(examples[i], losses[i]) for i in good]
        made = run_chunk(
            self._engine, self._loaded, Inputs({self._input: asked}, np.arange(len(good))), self._ran, self._stopped
        )
        self._fail(list(made.errors.values()))
        for i, answer in zip(made.ok, made.outputs, strict=True):
            example, loss = examples[good[i]], losses[good[i]]
            self.rows += 1
            self._matches += answer["text"].strip() == example.answer.strip()
            if loss is not None:
                self._surprise, self._tokens = self._surprise + loss.mean * loss.tokens, self._tokens + loss.tokens

    def metrics(self) -> dict[str, float]:
        """Loss and perplexity of a token, where the model tells them, and the share of answers that are the same."""
        weighed = text_metrics(self._surprise, self._tokens) if self._tokens else {}
        return weighed | {EXACT_MATCH: self._matches / self.rows}

    def confusion(self) -> None:
        return None

    def _read(self, chunk: Chunk) -> list[Example]:
        columns = {
            name: column if isinstance(column, list) else column.to_pylist() for name, column in chunk.columns.items()
        }
        examples = []
        for i in range(len(chunk)):
            try:
                if i in chunk.bad:
                    raise chunk.bad[i]
                examples.append(parse_example({name: values[i] for name, values in columns.items()}))
            except InvalidInput as error:
                self._fail([error])
        return examples

    def _losses(self, examples: Sequence[Example]) -> list[Any]:
        """For each example its loss and tokens, None where the model does not tell, or why it cannot be weighed."""
        weigh = getattr(self._loaded.model, "losses", None)
        if weigh is None:
            return [None] * len(examples)
        found: list[Any] = []
        for first in range(0, len(examples), WEIGHED_AT_ONCE):
            started = time.perf_counter()
            found += weigh(examples[first : first + WEIGHED_AT_ONCE])
            self._ran(0, time.perf_counter() - started)
        return found

    def _fail(self, errors: Sequence[Exception]) -> None:
        self.failed += len(errors)
        self.first_error = self.first_error or next(iter(errors), None)


def _asked(example: Example, loss: Loss | None) -> dict[str, Any]:
    """What is asked for an answer: no longer than the one that is there, with its end."""
    before = example.asked
    prompt: dict[str, Any] = (
        {"prompt": before} if isinstance(before, str) else {"messages": [{"role": m.role, "content": m.content} for m in before]}
    )  # fmt: skip
    most = {} if loss is None else {"max_tokens": loss.last}
    return prompt | most | {"temperature": 0}
