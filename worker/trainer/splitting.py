"""Which rows are for training, which for validation and which are held out; and which are in two of these splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.cells import label_text
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.training import TEST, TRAIN, VALIDATION, Split
from forebay.datasets.columns import Values

SPLITS = (TRAIN, VALIDATION, TEST)
RowIndices = Mapping[str, NDArray[np.int64]]


def split_rows(rows: int, columns: Mapping[str, Values], split: Split, seed: int) -> dict[str, NDArray[np.int64]]:
    """The rows of each split, in a fixed order; InvalidInput when one that was asked for gets none."""
    if split.column is not None:
        found, asked = _by_column(columns[split.column], split.column), {}
    else:
        found = _by_key(columns[split.key], split, seed) if split.key is not None else _by_ratio(rows, split, seed)
        asked = {VALIDATION: split.validation, TEST: split.test}
    for name in (TRAIN, *(name for name, share in asked.items() if share)):
        if not len(found[name]):
            raise InvalidInput(f"split: {rows} rows leave none for {name}; give more rows, or other shares")
    return found


def row_hashes(columns: Mapping[str, Values], rows: int) -> list[bytes]:
    arrays = [
        np.ascontiguousarray(values.reshape(rows, -1)) for values in columns.values() if isinstance(values, np.ndarray)
    ]
    lists = [values for values in columns.values() if isinstance(values, list)]
    numbers = np.concatenate([np.zeros((rows, 0), np.uint8), *(array.view(np.uint8) for array in arrays)], axis=1)
    hashes = []
    for i in range(rows):
        digest = hashlib.blake2b(numbers[i], digest_size=16)
        for values in lists:
            data = _as_bytes(values[i])
            digest.update(len(data).to_bytes(8, "little") + data)
        hashes.append(digest.digest())
    return hashes


def count_leaked(hashes: Sequence[bytes], rows_of: RowIndices) -> int:
    """How many rows of the other splits are in the training split too."""
    known = {hashes[i] for i in rows_of[TRAIN]}
    return sum(hashes[i] in known for name in (VALIDATION, TEST) for i in rows_of[name])


def _by_ratio(rows: int, split: Split, seed: int) -> dict[str, NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(rows)
    test, validation = _count(split.test, rows), _count(split.validation, rows)
    if test + validation >= rows:
        return {TRAIN: order[:0], VALIDATION: order[:0], TEST: order[:0]}
    cuts = (order[test + validation :], order[test : test + validation], order[:test])
    return {name: np.sort(cut) for name, cut in zip(SPLITS, cuts, strict=True)}


def _count(share: float, rows: int) -> int:
    return max(1, round(share * rows)) if share else 0


def _by_column(values: Values, name: str) -> dict[str, NDArray[np.int64]]:
    texts = np.array([label_text(value) for value in values], object)
    odd = next((text for text in texts if text not in SPLITS), None)
    if odd is not None:
        raise InvalidInput(f"split: column {shown(name)} holds train, validation and test; one row holds {shown(odd)}")
    return {split: np.flatnonzero(texts == split) for split in SPLITS}


def _by_key(values: Values, split: Split, seed: int) -> dict[str, NDArray[np.int64]]:
    texts = np.array([label_text(value) for value in values], object)
    keys, which, counts = np.unique(texts, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(keys))
    # A key with more rows than a held-out split is to have would leave none for the others: such keys come last, by size.
    large = counts[order] > max(split.test, split.validation) * len(texts)
    order = np.concatenate([order[~large], order[large][np.argsort(counts[order[large]], kind="stable")]])
    chosen = np.full(len(keys), TRAIN, object)
    for name, share, others in ((TEST, split.test, 1 + bool(split.validation)), (VALIDATION, split.validation, 1)):
        before = np.cumsum(counts[order]) - counts[order]  # rows of the keys that come first
        taken = (before < share * len(texts)) & (np.arange(len(order)) < len(order) - others)  # one for each is left
        chosen[order[taken]] = name
        order = order[~taken]
    return {name: np.flatnonzero(chosen[which] == name) for name in SPLITS}


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()
