"""`sequence-classifier`: a GRU or LSTM on texts, with a vocabulary from the training split, or on lists of numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.recipes import CLASSES
from forebay.datasets.columns import Values
from forebay.datasets.reading.table import Table
from forebay.worker.trainer.preprocessing import DROP, fit_scale
from forebay.worker.trainer.recipes.images import only_column

TEXT, SEQUENCE = "text", "sequence"
_PADDING, _UNKNOWN, _FIRST = 0, 1, 2  # numbers of tokens
_WORD = re.compile(r"\w+|[^\w\s]")


class SequenceClassifier:
    """The class of a text or of a list of numbers (or of vectors of one length)."""

    task: ClassVar[str] = CLASSES

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        self._params = params
        self.state = dict(state or {})
        self._numbers = {token: i for i, token in enumerate(self.state.get("vocabulary", ()), start=_FIRST)}

    def fit(self, rows: Table, missing: str) -> None:
        """The vocabulary, most frequent first; or the mean and deviation of each number of a step."""
        if missing != DROP:
            raise InvalidInput(f"missing: {missing!r} does not work for sequences; use drop")
        values = only_column(rows, "sequence-classifier")
        if _is_text(values):
            counts = Counter(token for value in values for token in self._tokens(value))
            common = sorted(counts, key=lambda token: (-counts[token], token))[: self._params["vocabulary"]]
            self.state = {"input": TEXT, "vocabulary": common, "cut": isinstance(values[0], list)}
            self._numbers = {token: i for i, token in enumerate(common, start=_FIRST)}
            return
        steps = np.concatenate([_steps(value) for value in values])
        scale = fit_scale(steps) if self._params["normalize"] else ([0.0] * steps.shape[1], [1.0] * steps.shape[1])
        flat = np.ndim(values[0]) == 1
        self.state = {"input": SEQUENCE, "flat": flat, "mean": scale[0], "deviation": scale[1]}

    def encode(self, columns: Mapping[str, Values]) -> tuple[NDArray[Any], ...]:
        """Steps padded to the longest, `(rows, steps)` numbers of tokens or `(rows, steps, width)`; and lengths `(rows,)`."""
        given = columns.get(self.state["input"])
        values = next(iter(columns.values())) if given is None else given
        one = self._text if self.state["input"] == TEXT else self._scaled
        parts = [one(value)[: self._params["max_length"]] for value in values]
        lengths = np.array([max(1, len(part)) for part in parts], np.int64)
        padded = np.zeros((len(parts), int(lengths.max(initial=1)), *parts[0].shape[1:]), parts[0].dtype)
        for row, part in zip(padded, parts, strict=True):
            row[: len(part)] = part
        return padded, lengths

    def build(self, outputs: int) -> nn.Module:
        params = self._params
        tokens = len(self.state["vocabulary"]) + _FIRST if self.state["input"] == TEXT else 0
        width = params["embedding"] if tokens else len(self.state["mean"])
        return Recurrent(params["cell"], tokens, width, params["hidden"], params["layers"], outputs, params["dropout"])

    def attributed(self, numbers: NDArray[Any], columns: Mapping[str, Values], slopes: bool) -> dict[str, Any]:
        """Of numbers `(rows, steps, width)` those of each step, without what pads it; of a text [token, number]."""
        [name] = self.inputs()
        if self.state["input"] == TEXT:
            sums = numbers.sum(2)
            return {
                name: [
                    [[token, float(number)] for token, number in zip(self._tokens(text), row, strict=False)]
                    for text, row in zip(columns[name], sums, strict=True)
                ]
            }
        if slopes:
            numbers = numbers / np.asarray(self.state["deviation"])
        made = []
        for value, row in zip(columns[name], numbers.astype(np.float32), strict=True):
            full = np.zeros((len(value), numbers.shape[2]), np.float32)  # what is cut off counts for nothing
            full[: len(row)] = row[: len(value)]
            made.append(full[:, 0] if self.state["flat"] else full)
        return {name: made}

    def inputs(self) -> dict[str, Any]:
        """`text` (a list of tokens when trained on those), or `sequence` of any length."""
        if self.state["input"] == TEXT:
            return {TEXT: {"dtype": "json" if self.state["cut"] else "str"}}
        shape = [-1] if self.state["flat"] else [-1, len(self.state["mean"])]
        return {SEQUENCE: {"dtype": "float32", "shape": shape, "nan": False}}

    def _tokens(self, value: Any) -> Sequence[str]:
        if self.state.get("cut", isinstance(value, list)):
            if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
                raise InvalidInput(f"expected a list of texts, as the model was trained on, got {shown(value)}")
            return value
        if not isinstance(value, str):
            raise InvalidInput(f"expected a text, got {shown(value)}")
        return list(value) if self._params["tokens"] == "characters" else _WORD.findall(value.lower())

    def _text(self, value: Any) -> NDArray[np.int64]:
        return np.array([self._numbers.get(token, _UNKNOWN) for token in self._tokens(value)], np.int64)

    def _scaled(self, value: Any) -> NDArray[np.float32]:
        steps = _steps(value, len(self.state["mean"]))
        scaled: NDArray[np.float64] = (steps - np.asarray(self.state["mean"])) / np.asarray(self.state["deviation"])
        return scaled.astype(np.float32)


class Recurrent(nn.Module):
    """Steps `(rows, steps)` or `(rows, steps, width)` and lengths `(rows,)` to `(rows, outputs)`, by the state at the end.
    Without lengths no row is padded.
    """  # fmt: skip

    def __init__(
        self, cell: str, tokens: int, width: int, hidden: int, layers: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, padding_idx=_PADDING) if tokens else None
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.recurrent = kind(width, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, outputs))

    def forward(self, steps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits. The state is read where a row ends, so that padding changes nothing. Tokens may be embedded already."""
        if lengths is not None:
            steps = steps[:, : int(lengths.max())]
        if self.embedding is not None and not steps.is_floating_point():
            steps = self.embedding(steps)
        states, _ = self.recurrent(steps)  # (rows, steps, hidden)
        rows = torch.arange(len(states), device=states.device)
        last = states[:, -1] if lengths is None else states[rows, lengths - 1]
        logits: Tensor = self.head(last)
        return logits


def _is_text(values: Values) -> bool:
    if isinstance(values, np.ndarray):
        return False
    kinds = {type(value) for value in values}
    tokens = kinds == {list} and all(isinstance(token, str) for value in values for token in value)
    if kinds == {str} or tokens:
        return True
    odd = next((value for value in values if not isinstance(value, list)), None)
    if odd is not None:
        raise InvalidInput(f"a sequence is a text or a list; one row holds {shown(odd)}")
    return False


def _steps(value: Any, width: int | None = None) -> NDArray[np.float64]:
    """A sequence as `(steps, width)`."""
    try:
        steps = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a sequence holds numbers, or lists of equally many; one row is {shown(value)}") from error
    if not steps.size:
        return np.zeros((0, width or 1))
    steps = steps.reshape(len(steps), -1)
    if not np.isfinite(steps).all() or (width is not None and steps.shape[1] != width):
        raise InvalidInput(
            f"a sequence holds finite numbers, {width or steps.shape[1]} in each step; one row is {shown(value)}"
        )
    return steps
