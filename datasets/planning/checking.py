"""Whether a data set can go into a model: columns found for each input, types that can meet the signature, rows that convert.

Asked at submit, and of each file again when its shards are planned. Every refusal names the file, the column, what was
expected and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import IMAGES, NPY, OPENAI, TO_THE_END, BatchRequest, InputFile
from forebay.contract.signature import Signature
from forebay.datasets.formats.images import IMAGE
from forebay.datasets.formats.jsonl import INPUT
from forebay.datasets.formats.npy import COLUMN
from forebay.datasets.formats.source import Chunk, Sample, get_source
from forebay.datasets.reading.inputs import FREE, convert, misfit
from forebay.datasets.reading.rows import columns_read
from forebay.datasets.writing.outputs import LONE

_ONLY = {IMAGES: IMAGE, NPY: COLUMN, OPENAI: INPUT}  # the column that is meant when none is named
TRIED_ROWS = 100

Named = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None


def name_columns(
    given: Named, signature: Signature, types: Mapping[str, Any], format: str
) -> dict[str, tuple[str, ...]]:
    """For each input of the model its columns; InvalidInput when `given` and the file leave it open."""
    names = [field.name for field in signature.inputs or ()]
    if isinstance(given, Mapping):
        if names and set(given) != set(names):
            raise InvalidInput(
                f"columns: name one for each input, {', '.join(map(shown, names))}; got {shown(list(given))}"
            )
        return {str(name): (value,) if isinstance(value, str) else tuple(value) for name, value in given.items()}
    if isinstance(given, str):
        given = [given]
    if given is not None:
        return _listed(list(given), names)
    if len(names) < 2:
        only = _ONLY.get(format) or (names[0] if names and names[0] in types else None) or _single(types)
        if only is None:
            raise InvalidInput(f"which column goes into the model? Name it; there are {', '.join(map(shown, types))}")
        return {names[0] if names else FREE: (only,)}
    return {name: (name,) for name in names}


def _listed(columns: list[str], names: list[str]) -> dict[str, tuple[str, ...]]:
    if not columns or not all(isinstance(column, str) for column in columns):
        raise InvalidInput(f"columns: expected the names of columns, got {shown(columns)}")
    if len(names) == 1:
        return {names[0]: tuple(columns)}
    if not names:
        return {FREE: (columns[0],)} if len(columns) == 1 else {column: (column,) for column in columns}
    if len(columns) == len(names):
        return {name: (column,) for name, column in zip(names, columns, strict=True)}
    raise InvalidInput(
        f"columns: the model has {len(names)} inputs, {', '.join(map(shown, names))}; got {shown(columns)}"
    )


def _single(types: Mapping[str, Any]) -> str | None:
    return next(iter(types)) if len(types) == 1 else None


def check_file(request: BatchRequest, signature: Signature, file: InputFile) -> Sample:
    """The file's sample; InvalidInput when it cannot go into the model. Reads its footer or beginning only."""
    sample = get_source(request.format).sample(file)
    if sample.empty:
        return sample
    missing = [name for name in columns_read(request) if name not in sample.types]
    if missing and request.format != OPENAI:
        there = ", ".join(map(shown, sample.types))
        raise InvalidInput(f"{shown(file.path)}: there is no column {shown(missing[0])}; there are {there}")
    for field in signature.inputs or ():
        columns = request.columns[field.name]
        found = misfit(field, [sample.types.get(column) for column in columns], request.format)
        if found is not None:
            named = " and ".join(map(shown, columns[:3])) + (" …" if len(columns) > 3 else "")
            raise InvalidInput(f"{shown(file.path)}: column {named}: expected {field}, found {found}")
    return sample


def check_rows(request: BatchRequest, signature: Signature, file: InputFile) -> Chunk | None:
    """The first rows of a file; InvalidInput with the first one's error when none of them can go into the model."""
    source = get_source(request.format)
    blocks = source.layout(file, columns_read(request), request.row_bytes)
    if not blocks:
        return None
    last = blocks[0].last
    rows = TO_THE_END if last == TO_THE_END else last
    chunk = next(islice(source.read(file, 0, rows, columns_read(request)), 1), None)
    if chunk is None:
        return None
    tried = chunk.part(0, TRIED_ROWS)
    inputs = convert(tried, request.columns, signature, request.format)
    if len(tried) and not len(inputs.good):
        i, error = min(inputs.bad.items())
        where = f"{source.locator} {tried.where[i]}"
        named = " and ".join(shown(column) for columns in request.columns.values() for column in columns)
        raise InvalidInput(
            f"{shown(file.path)}: column {named}, {where}: {error}; none of the first {len(tried)} rows will do"
        )
    return tried


def check_outputs(request: BatchRequest, signature: Signature) -> None:
    """InvalidInput when a kept column would have the name of one of the model's outputs."""
    names = {field.name for field in signature.outputs or ()} or {LONE}
    clash = sorted(names & set(request.keep))
    if clash:
        raise InvalidInput(f"keep: {shown(clash[0])} is what an output of the model is called; rename the column")


def kept_types(chunk: Chunk | None, keep: Sequence[str]) -> dict[str, str]:
    """The types of kept columns that are Python's values, by those of the first rows; text where they are mixed."""
    found = {}
    for name in keep:
        column = chunk.columns[name] if chunk is not None else []
        if isinstance(column, list):
            kinds = {type(value) for value in column if value is not None and not isinstance(value, Exception)}
            found[name] = _NAMES.get(frozenset(kinds), "string")
        elif isinstance(column, pa.Array):
            found[name] = "string"
    return found


_NAMES = {
    frozenset({int}): "int64",
    frozenset({float}): "double",
    frozenset({int, float}): "double",
    frozenset({bool}): "bool",
}
