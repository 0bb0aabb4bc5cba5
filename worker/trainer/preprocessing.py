"""Columns of a table to one vector for each row: numbers brought to mean 0 and deviation 1, categories one-hot, gaps filled.

What is needed for it is found in the training split only, is plain JSON, and goes with the model: serving applies the same.
Knows NumPy, no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract import cells
from forebay.contract.cells import label_among, label_text
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.datasets.columns import Values
from forebay.datasets.reading.table import Table

NUMBER, CATEGORY = "number", "category"
DROP, MEAN = "drop", "mean"
MAX_CATEGORIES = 1000
EXACT = 2**53  # up to which a float holds every whole number
_MOSTLY = 0.9  # text of which so much reads as numbers is a column of numbers with faults in it

Spec = dict[str, Any]


def is_missing(values: Values) -> NDArray[np.bool_]:
    """For each row whether it has no value here; a vector with a gap in it counts."""
    if isinstance(values, list):
        return np.array([cells.is_missing(value) for value in values], bool)
    if values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    return np.array(~np.isfinite(values).reshape(len(values), -1).all(axis=1), bool)


def fit_columns(table: Table, categorical: Sequence[str], missing: str, normalize: bool) -> list[Spec]:
    """For each column how it is encoded; InvalidInput names a column that cannot be."""
    unknown = [name for name in categorical if name not in table.columns]
    if unknown:
        there = ", ".join(map(shown, table.columns))
        raise InvalidInput(f"categorical: {shown(unknown[0])} is not a feature; there are {there:.300}")
    fitted = []
    for name, values in table.columns.items():
        if is_missing(values).all():
            raise InvalidInput(f"column {shown(name)} has no value in any row of the training split; leave it out")
        if isinstance(values, list) and name not in categorical:
            if all(value is None or isinstance(value, bool) for value in values):  # numbers, as they are without gaps
                values = np.asarray(values, np.float64)
            else:
                _refuse_faulty_numbers(name, [value for value in values if not cells.is_missing(value)])
        if name in categorical or isinstance(values, list):
            fitted.append(_fit_category(name, values, missing))
        else:
            fitted.append(_fit_number(name, values, missing, normalize))
    return fitted


def encode_columns(specs: Sequence[Spec], columns: Mapping[str, Values]) -> NDArray[np.float32]:
    """`(rows, width)`, in the order of the specs."""
    parts = [_encode(spec, columns[spec["name"]]) for spec in specs]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def width(specs: Sequence[Spec]) -> int:
    """The length of a row's vector."""
    return sum(
        len(spec["values"]) if spec["kind"] == CATEGORY else int(np.prod(spec["shape"], dtype=int)) for spec in specs
    )


def fields(specs: Sequence[Spec]) -> dict[str, Any]:
    """The inputs of a signature: one for each column, which takes what the column held when it was trained on."""
    return {spec["name"]: _field(spec) for spec in specs}


def _field(spec: Spec) -> dict[str, Any]:
    gaps = {} if "fill" in spec else {"nan": False}
    if spec["kind"] == CATEGORY:
        return {"dtype": "str", "cell": True} | gaps
    return {"dtype": "float32", "shape": list(spec["shape"])} | gaps | ({} if spec["shape"] else {"cell": True})


def fit_scale(values: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation over the rows, of each component; a constant one keeps its size."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    means, deviations, least = np.nanmean(flat, 0), np.nanstd(flat, 0), np.nanmin(flat, 0)
    # The deviation of equal numbers need not be 0: their sum is rounded.
    varies = (np.nanmax(flat, 0) > least) & (deviations > 0)
    return np.where(varies, means, least).tolist(), np.where(varies, deviations, 1.0).tolist()


def _fit_number(name: str, values: Values, missing: str, normalize: bool) -> Spec:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"column {shown(name)}: expected numbers or text, found {array.dtype}")
    with np.errstate(over="ignore"):  # told of when it is encoded
        served = array.astype(np.float32)
    means, deviations = fit_scale(np.where(np.isfinite(served), served, np.nan))
    how, _, constant = missing.partition(":")
    spec: Spec = {"name": name, "kind": NUMBER, "shape": list(array.shape[1:])}
    if how != DROP:
        spec["fill"] = means if how == MEAN else [_constant(name, constant)] * len(means)
    if normalize:
        spec |= {"mean": means, "deviation": deviations}
    return spec


def _constant(name: str, value: str) -> float:
    if not _is_number(value) or not abs(float(value)) <= float(np.finfo(np.float32).max):
        raise InvalidInput(
            f"missing: constant {shown(value)} is not a number of float32, but column {shown(name)} holds numbers"
        )
    return float(value)


def _fit_category(name: str, values: Values, missing: str) -> Spec:
    there = [value for value, gap in zip(values, is_missing(values), strict=True) if not gap]
    odd = next((value for value in there if isinstance(value, list | dict | bytes)), None)
    if odd is not None:
        raise InvalidInput(f"column {shown(name)}: expected numbers or text, found {shown(odd)}")
    counts = Counter(label_text(value) for value in there)
    if len(counts) > MAX_CATEGORIES:
        raise InvalidInput(
            f"column {shown(name)} has {len(counts)} different texts, too many for categories (at most {MAX_CATEGORIES}); "
            "leave it out of the features, or train a sequence-classifier on it"
        )
    how, _, constant = missing.partition(":")
    spec: Spec = {"name": name, "kind": CATEGORY, "values": sorted(counts)}
    if how != DROP:
        spec["fill"] = min(counts, key=lambda text: (-counts[text], text)) if how == MEAN else constant
    return spec


def _refuse_faulty_numbers(name: str, texts: Sequence[Any]) -> None:
    whole = [value for value in texts if type(value) is int or (isinstance(value, str) and value.strip().isdecimal())]
    if len(whole) == len(texts) and any(abs(int(value)) > EXACT for value in whole):
        raise InvalidInput(
            f"column {shown(name)} has gaps and whole numbers beyond 2^53, such as {max(whole, key=int)}, which no float holds "
            f"exactly; leave it out of the features, or make it a category: categorical={name}"
        )
    faulty = [text for text in texts if isinstance(text, str) and not _is_number(text)]
    if faulty and len(faulty) <= (1 - _MOSTLY) * len(texts):
        raise InvalidInput(
            f"column {shown(name)}: {shown(faulty[0])} is not a number, but nearly all its other values are; correct or empty "
            f"it, or make the column a category: categorical={name}"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _encode(spec: Spec, values: Values) -> NDArray[Any]:
    return _one_hot(spec, values) if spec["kind"] == CATEGORY else _scaled(spec, values)


def _one_hot(spec: Spec, values: Values) -> NDArray[np.float32]:
    """A category that the training split did not have is all zeros."""
    places = {text: i for i, text in enumerate(spec["values"])}
    made = np.zeros((len(values), len(places)), np.float32)
    for row, (value, gap) in enumerate(zip(values, is_missing(values), strict=True)):
        if gap and "fill" not in spec:
            raise InvalidInput(
                f"column {shown(spec['name'])}: the value is missing, and the model was trained without gaps"
            )
        place = places.get(str(spec["fill"]) if gap else label_among(places, value))
        if place is not None:
            made[row, place] = 1
    return made


def _scaled(spec: Spec, values: Values) -> NDArray[Any]:
    """In training too from float32 values, which are all that a served row can have."""
    given = np.asarray(values, np.float64).reshape(len(values), -1)
    with np.errstate(over="ignore"):
        flat = given.astype(np.float32).astype(np.float64)
    beyond = given[np.isinf(flat) & np.isfinite(given)]
    if len(beyond):
        raise InvalidInput(
            f"column {shown(spec['name'])}: {beyond[0]:g} is beyond what float32 holds; scale the column"
        )
    if "fill" in spec:
        flat = np.where(np.isfinite(flat), flat, np.asarray(spec["fill"]))
    if "mean" in spec:
        flat = (flat - np.asarray(spec["mean"])) / np.asarray(spec["deviation"])
        far = np.abs(flat) > float(np.finfo(np.float32).max)
        if far.any():
            raise InvalidInput(
                f"column {shown(spec['name'])}: {given[far][0]:g} is too far from the numbers that were trained on"
            )
    return flat
