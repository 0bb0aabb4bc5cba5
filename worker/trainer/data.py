"""A run's data: read, cleaned, split, its target encoded. Whatever a user can get wrong in it is refused here, before any epoch.

Each process of the run holds the whole data set in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from forebay.contract.cells import label_text
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import MEDIA
from forebay.contract.requests.recipes import CLASSES
from forebay.contract.requests.training import TRAIN, DataSummary, TrainRequest
from forebay.datasets.columns import Values
from forebay.datasets.formats.files import content_hash
from forebay.datasets.reading.table import FOLDER, Read, Table, column_names, read_table
from forebay.worker.trainer import splitting
from forebay.worker.trainer.labels import Target, label_order
from forebay.worker.trainer.preprocessing import DROP, fit_scale, is_missing
from forebay.worker.trainer.recipes import AnyRecipe

MAX_CLASSES = 1000


@dataclass(slots=True)
class SplitData:
    """The rows of one split: features as read, targets as numbers of classes (int64) or as numbers (float64)."""

    features: Table
    targets: NDArray[np.int64] | NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(slots=True)
class Data:
    """A data set that can be trained on."""

    parts: Mapping[str, SplitData]
    target: Target
    summary: DataSummary


def load_data(request: TrainRequest, recipe: AnyRecipe, normalize: bool, processes: int = 1) -> Data:
    """The request's data for a recipe; InvalidInput names a column or value that cannot be used.

    `processes` of this machine hold it at once.
    """
    target, features = _chosen(request, column_names(request.files, request.format))
    columns = dict.fromkeys([*features, target, *([request.split.by] if request.split.by else [])])
    limit = psutil.virtual_memory().available // 2 // processes
    read = read_table(request.files, request.format, list(columns), limit)
    learned = {name: read.table.columns[name] for name in (*features, target)}
    hashes = splitting.row_hashes(learned, len(read.table))
    read = _prepared(read, recipe, features, request)
    folders = request.format in MEDIA and target == FOLDER  # a folder may well be called NA
    kept = _kept(read, features, None if folders else target, request.missing)
    table = read.table.take(kept)
    targets, classes = _targets(table.columns[target], target, recipe.task)
    rows_of = splitting.split_rows(len(table), table.columns, request.split, request.seed)
    _check_training(targets[rows_of[TRAIN]], classes, target)
    parts = {
        name: SplitData(Table({n: table.columns[n] for n in features}, len(table)).take(rows), targets[rows])
        for name, rows in rows_of.items()
    }
    summary = DataSummary(
        rows={name: len(part) for name, part in parts.items()},
        sha256=content_hash(request.files, request.format),
        features=features,
        classes=classes,
        dropped=len(read.table) - len(kept),
        leaked=splitting.count_leaked([hashes[i] for i in kept], rows_of),
    )
    scaled = recipe.task != CLASSES and normalize
    return Data(parts, _target(target, classes, parts[TRAIN].targets if scaled else None), summary)


def _prepared(read: Read, recipe: AnyRecipe, features: Sequence[str], request: TrainRequest) -> Read:
    """The features as a recipe that has a `read` of its own holds them, without rows that it cannot use."""
    own = getattr(recipe, "read", None)
    if own is None:
        return read
    columns, bad = own({name: read.table.columns[name] for name in features})
    where = {i: f"{shown(request.files[i].path)}: " if request.format in MEDIA else "" for i in bad}
    bad = {i: where[i] + reason for i, reason in bad.items()}
    return Read(Table(read.table.columns | columns, len(read.table)), read.bad | bad)


def _chosen(request: TrainRequest, there: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The target and the features."""
    files = MEDIA.get(request.format)
    target = request.target or (FOLDER if files else None)
    if target is None:
        raise InvalidInput(f"target: which column is to be learned? There are {', '.join(map(shown, there)):.500}")
    request.check_columns(there)
    others = tuple(name for name in there if name not in (target, request.split.by))
    return target, request.features or ((files,) if files else others)


def _kept(read: Read, features: Sequence[str], target: str | None, missing: str) -> NDArray[np.int64]:
    """The rows that are used: those that could be read and have a target, and no gaps when those are dropped."""
    table = read.table
    gone = np.zeros(len(table), bool) if target is None else is_missing(table.columns[target])
    if gone.all():
        raise InvalidInput(f"the target {shown(target)} is missing in every row")
    if missing == DROP:
        for name in features:
            gaps = is_missing(table.columns[name])
            if gaps.all():
                raise InvalidInput(f"column {shown(name)} is missing in every row; leave it out of the features")
            gone |= gaps
    elif read.bad:
        row, reason = min(read.bad.items())
        raise InvalidInput(f"row {row} cannot be read: {reason}; correct it, or use missing=drop")
    gone[list(read.bad)] = True
    kept = np.flatnonzero(~gone)
    if not len(kept) and read.bad:
        row, reason = min(read.bad.items())
        raise InvalidInput(f"none of the {len(table)} rows can be used; row {row}: {reason}")
    if not len(kept):
        raise InvalidInput(f"every one of the {len(table)} rows misses a value; use missing=mean or constant:VALUE")
    return kept


def _targets(values: Values, name: str, task: str) -> tuple[NDArray[np.int64] | NDArray[np.float64], tuple[str, ...]]:
    if task == CLASSES:
        return _class_numbers(values, name)
    if isinstance(values, list) and values and all(type(value) is int for value in values):
        values = np.array(list(map(float, values)))
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf":
        return values.astype(np.float64), ()
    odd = next((v for v in values if isinstance(v, list | np.ndarray) or not _is_number(v)), None)
    raise InvalidInput(f"the target {shown(name)} holds {shown(odd)}; this recipe learns numbers, one for each row")


def _class_numbers(values: Values, name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    odd = next((value for value in values if isinstance(value, list | dict | bytes | np.ndarray)), None)
    if odd is not None:
        raise InvalidInput(f"the target {shown(name)} holds {shown(odd)}; a class is a text or a number")
    labels = [label_text(value) for value in values]
    classes = tuple(sorted(set(labels), key=label_order))
    if len(classes) > MAX_CLASSES or (len(classes) > 100 and len(classes) > len(labels) // 2):
        raise InvalidInput(
            f"the target {shown(name)} has {len(classes)} different values in {len(labels)} rows, such as "
            f"{shown(classes[0])}; those are not classes: use a regressor (of trees and svm, task=numbers), or another column"
        )
    numbers = {label: i for i, label in enumerate(classes)}
    return np.array([numbers[label] for label in labels], np.int64), classes


def _check_training(targets: NDArray[np.int64] | NDArray[np.float64], classes: Sequence[str], name: str) -> None:
    if classes and len(np.unique(targets)) < 2:
        only = classes[int(targets[0])]
        raise InvalidInput(
            f"the target {shown(name)} is {shown(only)} in all {len(targets)} training rows; nothing can be learned"
        )


def _target(name: str, classes: tuple[str, ...], training: NDArray[np.float64] | NDArray[np.int64] | None) -> Target:
    if training is None:
        return Target(name, classes)
    means, deviations = fit_scale(training)
    return Target(name, (), means[0], deviations[0])


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
