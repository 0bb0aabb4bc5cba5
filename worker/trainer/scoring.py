"""Scores served outputs against what was true, by torchmetrics: the trainer's validation and `evaluate` share it.

Works from what a served model gives: labels with their probabilities, or numbers. Knows no model and no data set.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from forebay.contract.cells import label_text
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.training import METRICS
from forebay.worker.trainer.labels import LABEL, PROBABILITIES

_ALONE: Mapping[str, Any] = {"sync_on_compute": False}  # each process scores what it is given; nothing is gathered
_LEAST = 1e-12  # a probability of 0 would make the loss infinite
_ROUNDED = 1e-3  # by which a probability may lie outside of 0 to 1


class Scorer:
    """Counts batches of predictions, then tells the metrics of all of them.

    With `classes`, the labels in the order of the probabilities, it scores a classifier; without, numbers. `add` may be
    called any number of times, `metrics` and `confusion` at any time.
    """

    def __init__(self, classes: Sequence[str] = (), bins: int | None = None) -> None:
        """With `bins` the area under the curve is one over so many thresholds, and no probabilities are kept for it."""
        self.rows = 0
        self._scores: _Classes | _Numbers = _Classes(tuple(classes), bins) if classes else _Numbers()

    def add(self, predictions: Any, targets: Sequence[Any] | NDArray[Any]) -> None:
        """`predictions` for the rows whose truth is `targets`, in the same order.

        Of a classifier: `{"label": [...], "probabilities": (rows, classes)}`, or either by itself. Targets are labels (numbers
        are taken by `label_text`). Of a regressor: numbers `(rows,)`, and so are the targets. InvalidInput when they do not fit.
        """
        found = self._scores.add(predictions, targets)
        if found != len(targets):
            raise InvalidInput(f"{found} predictions for {len(targets)} targets")
        self.rows += found

    def metrics(self) -> dict[str, float]:
        """Classes: accuracy, and macro averages of precision, recall and f1; with probabilities also loss (cross-entropy)
        and auroc (one against the rest); all NaN where a probability was NaN, whose label means nothing. Numbers: loss (mean
        squared error), mae, rmse, and r2 from two rows on.
        """  # fmt: skip
        return self._scores.metrics() if self.rows else {}

    def confusion(self) -> list[list[int]] | None:
        """Rows by true class, then by predicted class; None for numbers."""
        return self._scores.confusion()


class _Classes:
    def __init__(self, classes: tuple[str, ...], bins: int | None) -> None:
        self._index = {label: i for i, label in enumerate(classes)}
        count = len(classes)
        self._counted = _in_double_precision(
            accuracy=MulticlassAccuracy(count, average="micro", **_ALONE),
            precision=MulticlassPrecision(count, average="macro", **_ALONE),
            recall=MulticlassRecall(count, average="macro", **_ALONE),
            f1=MulticlassF1Score(count, average="macro", **_ALONE),
        )
        self._confusion = MulticlassConfusionMatrix(count, **_ALONE).set_dtype(torch.float64)
        self._areas = MulticlassAUROC(count, average=None, thresholds=bins, **_ALONE).set_dtype(torch.float64)
        self._present = torch.zeros(count, dtype=torch.int64)
        self._surprise, self._scored, self._rows = 0.0, 0, 0

    def add(self, columns: Mapping[str, Any], targets: Sequence[Any] | NDArray[Any]) -> int:
        truth = self._indices(targets, "target")
        chances = self._chances(columns[PROBABILITIES]) if PROBABILITIES in columns else None
        labels = columns.get(LABEL, ())
        predicted = self._indices(labels, "predicted label") if chances is None or len(labels) else _largest(chances)
        if len(predicted) == len(truth) and len(truth) and (chances is None or len(chances) == len(truth)):
            self._counted.update(predicted, truth)
            self._confusion.update(predicted, truth)
            self._present += torch.bincount(truth, minlength=len(self._present))
            self._rows += len(truth)
            if chances is not None:
                self._areas.update(chances, truth)
                likely = chances[torch.arange(len(truth)), truth].double().clamp(min=_LEAST)
                self._surprise -= float(likely.log().sum())
                self._scored += len(truth)
        return len(predicted)

    def metrics(self) -> dict[str, float]:
        found = _computed(self._counted)
        if self._scored < self._rows:  # some rows came without probabilities
            return found
        if math.isnan(self._surprise):
            return dict.fromkeys(("loss", *found, "auroc"), math.nan)
        there = (self._present > 0) & (self._present < self._rows)  # an area needs rows of the class, and others
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns of the classes that are left out here
            areas = self._areas.compute()
        if bool(there.any()):
            found["auroc"] = float(areas[there].mean())
        return {"loss": self._surprise / self._scored} | found

    def confusion(self) -> list[list[int]]:
        if not self._rows:
            return [[0] * len(self._index) for _ in self._index]
        return [[int(count) for count in row] for row in self._confusion.compute()]

    def _indices(self, labels: Sequence[Any] | NDArray[Any], what: str) -> Tensor:
        try:
            return torch.tensor([self._index[label_text(label)] for label in labels], dtype=torch.int64)
        except KeyError as error:
            classes = ", ".join(self._index)
            raise InvalidInput(f"the {what} {shown(error.args[0])} is not one of the classes {classes:.300}") from error

    def _chances(self, given: Any) -> Tensor:
        array = np.asarray(given, np.float32)
        if array.ndim != 2 or array.shape[1] != len(self._index):
            raise InvalidInput(f"probabilities have shape {list(array.shape)}, expected [rows, {len(self._index)}]")
        low, high = array.min(initial=0), array.max(initial=1)
        if low < -_ROUNDED or high > 1 + _ROUNDED:
            raise InvalidInput(f"probabilities go from {low:g} to {high:g}; they must lie between 0 and 1")
        return torch.from_numpy(array.clip(0, 1))  # beyond 1, however little, torchmetrics takes them for logits


class _Numbers:
    def __init__(self) -> None:
        self._counted = _in_double_precision(
            loss=MeanSquaredError(**_ALONE),
            mae=MeanAbsoluteError(**_ALONE),
            rmse=MeanSquaredError(squared=False, **_ALONE),
        )
        self._rows, self._sums = 0, np.zeros(3)  # of squared errors, of targets and of their squares
        self._center = 0.0  # about which they are summed: squares have no digits left far from 0

    def add(self, numbers: Any, targets: Sequence[Any] | NDArray[Any]) -> int:
        predicted, truth = _doubles(numbers, "predictions"), _doubles(targets, "targets")
        if len(predicted) == len(truth) and len(truth):
            self._counted.update(predicted, truth)
            self._center = self._center if self._rows else float(truth.mean())
            about = truth - self._center
            self._sums += [float(((truth - predicted) ** 2).sum()), float(about.sum()), float((about**2).sum())]
            self._rows += len(truth)
        return len(predicted)

    def metrics(self) -> dict[str, float]:
        found = _computed(self._counted)
        return found | ({"r2": self._r2()} if self._rows > 1 else {})

    def _r2(self) -> float:
        """As scikit-learn has it. torchmetrics takes the spread of small numbers for none."""
        errors, total, squares = self._sums.tolist()
        spread = squares - total**2 / self._rows
        return 1 - errors / spread if spread > 0 else float(not errors)

    def confusion(self) -> None:
        return None


def text_metrics(surprise: float, tokens: float) -> dict[str, float]:
    """Of the summed negative log-likelihood of so many tokens."""
    loss = surprise / tokens
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}


def _largest(chances: Tensor) -> Tensor:
    """The first of equal ones, as labels are served; torch's argmax gives any."""
    return torch.from_numpy(chances.numpy().argmax(1))


def _in_double_precision(**metrics: Metric) -> MetricCollection:
    """Sums of many numbers, or of large ones, would lose their last digits."""
    return MetricCollection(dict(metrics)).set_dtype(torch.float64)


def _computed(metrics: MetricCollection) -> dict[str, float]:
    """The values by name, in the order of METRICS; a collection gives them in alphabetical order."""
    values = metrics.compute()
    return {name: float(values[name]) for name in METRICS if name in values}


def _doubles(values: Any, what: str) -> Tensor:
    try:
        return torch.from_numpy(np.asarray(values, np.float64).reshape(len(values)))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} must be numbers, one for each row: {error}") from error
