"""A model version's outputs compared with what is true, whatever its runtime: which output is meant, and whether it holds
labels, scores of classes or numbers.

The trainer's Scorer then counts. Only counts are kept of the rows; where there are few rows, their probabilities too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.cells import is_missing, label_among, label_text
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.worker.trainer.labels import LABEL, PROBABILITIES, label_order
from forebay.worker.trainer.scoring import Scorer

MAX_CLASSES = 10_000
EXACT_VALUES = 8_000_000  # probabilities that are kept for an exact area under the curve
BINS = 512  # thresholds for the area where there are more
AT_ONCE = 65_536  # counted pairs that are scored at once

Outputs = Mapping[str, NDArray[Any] | list[Any]] | list[Any]


class Comparison:
    """Takes a model's outputs chunk by chunk; then gives metrics and confusion of all. Rows that failed are only counted."""

    def __init__(self, output: str | None, classes: Sequence[str], about_rows: int, ref: str = "the model") -> None:
        """`classes` are the labels in the order of the scores, () when they are not known. `about_rows` are expected."""
        self.failed = 0
        self.first_error: Exception | None = None
        self._output = output
        self._known = tuple(classes)
        self._about_rows = about_rows
        self._ref = ref
        self._scorer: Scorer | None = None
        self._pairs: Counter[tuple[str, str]] = Counter()

    @property
    def rows(self) -> int:
        return self._scorer.rows if self._scorer is not None else sum(self._pairs.values())

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in the order of the confusion; () for numbers."""
        return self._known or tuple(sorted({label for pair in self._pairs for label in pair}, key=label_order))

    def add(self, outputs: Outputs, truth: Sequence[Any], errors: Mapping[int, Exception]) -> None:
        """`outputs` of the rows whose truth is `truth`, in the same order; `errors` of others. InvalidInput when they cannot
        be compared.
        """  # fmt: skip
        self._fail(len(errors), next(iter(errors.values()), None))
        there = np.array([not (isinstance(value, Exception) or is_missing(value)) for value in truth], bool)
        gone = int(len(there) - there.sum())
        self._fail(gone, InvalidInput("the target is missing") if gone else None)
        chosen = self._chosen(outputs) if there.any() else {}
        odd = there & _nan_scores(chosen, len(there))
        if odd.any():
            self._fail(int(odd.sum()), InvalidInput(f"a score of {self._ref} is NaN: none is the largest"))
            there &= ~odd
        if not there.any():
            return
        columns = {name: _picked(values, there) for name, values in chosen.items()}
        self._score(columns, [value for value, stays in zip(truth, there, strict=True) if stays])

    def metrics(self) -> dict[str, float]:
        return self._whole().metrics()

    def confusion(self) -> list[list[int]] | None:
        counts, classes = self._whole().confusion(), len(self.classes)
        return None if counts is None else [row[:classes] for row in counts[:classes]]

    def _fail(self, count: int, error: Exception | None) -> None:
        self.failed += count
        self.first_error = self.first_error or error

    def _chosen(self, outputs: Outputs) -> dict[str, Any]:
        """The outputs to compare, by name."""
        columns = _columns(outputs)
        if self._output is not None and columns.keys() != {""}:
            if self._output not in columns:
                raise InvalidInput(f"{self._ref} gives {_listed(columns)}, but not {shown(self._output)}")
            return {self._output: columns[self._output]}
        classifier = {name: columns[name] for name in (LABEL, PROBABILITIES) if name in columns}
        if classifier or len(columns) == 1:
            return classifier or columns
        raise InvalidInput(f"{self._ref} gives {_listed(columns)}; name the output to compare with the target")

    def _score(self, columns: dict[str, Any], truth: list[Any]) -> None:
        [first, *_] = columns.values()
        if LABEL in columns and (self._known or PROBABILITIES in columns):
            self._labels(columns, truth)
        elif LABEL not in columns and (scores := _matrix(first)) is not None:
            self._known = self._known or tuple(map(str, range(scores.shape[1])))
            if scores.shape[1] != len(self._known):
                raise InvalidInput(f"{self._ref} gives {scores.shape[1]} scores for {len(self._known)} classes")
            self._labels(_probabilities_or_labels(scores, self._known), truth)
        elif LABEL not in columns and not self._known and (numbers := _numbers(first)) is not None:
            self._scorer = self._scorer or Scorer()
            self._scorer.add(numbers, _floats(truth))
        elif self._known:
            self._labels({LABEL: first}, truth)
        else:
            self._count(first, truth)

    def _labels(self, columns: dict[str, Any], truth: list[Any]) -> None:
        if not self._known:
            raise InvalidInput(
                f"the classes of the probabilities of {self._ref} are not known; compare the output 'label'"
            )
        if self._scorer is None:
            exact = self._about_rows * len(self._known) <= EXACT_VALUES
            self._scorer = Scorer(self._known, bins=None if exact else BINS)
        known = set(self._known)
        self._scorer.add(columns, [label_among(known, value) for value in truth])

    def _count(self, labels: Sequence[Any], truth: list[Any]) -> None:
        """Which labels there are is not known: pairs are counted until all have been seen."""
        self._pairs.update(zip(map(label_text, truth), map(_label, labels), strict=True))
        if len(self._pairs) > MAX_CLASSES:
            raise InvalidInput(
                f"the outputs of {self._ref} or the targets have too many different values to be classes"
            )

    def _whole(self) -> Scorer:
        if self._scorer is None:
            # One class alone cannot be scored: torchmetrics wants two.
            self._scorer = Scorer(self.classes if len(self.classes) > 1 else (*self.classes, ""))
            for true, given in _repeated(self._pairs):
                self._scorer.add({LABEL: given}, true)
        return self._scorer


def _columns(outputs: Outputs) -> dict[str, Any]:
    """Outputs by name; '' is the name of one that has none."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs[0], Mapping):
        return {name: [row[name] for row in outputs] for name in outputs[0]}
    return {"": outputs}


def _nan_scores(columns: Mapping[str, Any], rows: int) -> NDArray[np.bool_]:
    """Which rows have NaN among their scores."""
    found = np.zeros(rows, bool)
    for name, values in columns.items():
        scores = None if name == LABEL else _matrix(values)
        if scores is not None:
            found |= np.isnan(scores).any(1)
    return found


def _picked(values: Any, there: NDArray[np.bool_]) -> Any:
    if there.all():
        return values
    if isinstance(values, np.ndarray):
        return values[there]
    return [value for value, stays in zip(values, there, strict=True) if stays]


def _matrix(values: Any) -> NDArray[Any] | None:
    """The values as scores `(rows, classes)`, or None."""
    array = _array(values)
    return array if array is not None and array.ndim == 2 and array.shape[1] > 1 else None


def _numbers(values: Any) -> NDArray[np.float64] | None:
    """The values as numbers `(rows,)`, or None: whole numbers are labels."""
    array = _array(values)
    if array is None or array.dtype.kind != "f" or array.size != len(array):
        return None
    return array.reshape(len(array)).astype(np.float64)


def _array(values: Any) -> NDArray[Any] | None:
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different shapes
        return None
    return array if array.dtype.kind in "biuf" else None


def _probabilities_or_labels(scores: NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """The scores when they are probabilities, else the labels of the largest."""
    sums = scores.sum(1, dtype=np.float64)
    if scores.dtype.kind == "f" and (scores >= 0).all() and np.allclose(sums, 1, atol=1e-3):
        return {PROBABILITIES: scores}
    return {LABEL: [classes[i] for i in scores.argmax(1)]}


def _floats(truth: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array([float(value) for value in truth])
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the model gives numbers, and a target is not a number: {error}") from error


def _label(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, Mapping | list | tuple | bytes | np.ndarray):
        raise InvalidInput(f"an output is {shown(value)}, which is neither a label nor a number")
    return label_text(value)


def _repeated(pairs: Mapping[tuple[str, str], int]) -> Iterator[tuple[list[str], list[str]]]:
    for (true, given), count in pairs.items():
        for start in range(0, count, AT_ONCE):
            some = min(AT_ONCE, count - start)
            yield [true] * some, [given] * some


def _listed(columns: Mapping[str, Any]) -> str:
    return ", ".join(map(shown, columns))
