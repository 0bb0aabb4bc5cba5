"""Whether a data set fits a model: each input has its columns, their types suit the signature, and the first rows convert.

Checked at submit, and for each file again when its shards are planned. Every refusal names the file, the column, what was
expected and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import FIELD, INPUTS
from forebay.contract.references import shown
from forebay.contract.requests.batch import JSONL, MEDIA, NPY, OPENAI, BatchRequest, InputFile
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature
from forebay.datasets.columns import DEFAULT_INPUT, DEFAULT_OUTPUT, is_number, is_text, list_lengths, shape_may_be
from forebay.datasets.formats.arrays import COLUMN
from forebay.datasets.formats.isolated import Isolated
from forebay.datasets.formats.jsonl import INPUT, WHOLE
from forebay.datasets.formats.source import Chunk, Sample, Source, check_columns, get_source
from forebay.datasets.planning.schema import kept_columns
from forebay.datasets.reading.inputs import casts_safely, convert, holds_files
from forebay.datasets.reading.rows import columns_read

_DEFAULT_COLUMNS = MEDIA | {NPY: COLUMN, OPENAI: INPUT}
_KEPT_TYPES = {
    frozenset({int}): "int64",
    frozenset({float}): "double",
    frozenset({int, float}): "double",
    frozenset({bool}): "bool",
}
CHECKED_ROWS = 100

Named = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None


def name_columns(
    given: Named, signature: Signature, types: Mapping[str, Any], format: str
) -> dict[str, tuple[str, ...]]:
    """The columns of each input of the model; InvalidInput when neither `given` nor the file determines them."""
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
    if signature.inputs_json() == INPUTS and FIELD not in types:
        asked = (
            WHOLE
            if format in (JSONL, OPENAI)
            else next((name for name in ("messages", "prompt") if name in types), None)
        )
        if asked is not None:
            return {FIELD: (asked,)}
    if len(names) < 2:
        declared = names[0] if names and names[0] in types else None
        only = _DEFAULT_COLUMNS.get(format) or declared or (next(iter(types)) if len(types) == 1 else None)
        if only is None:
            raise InvalidInput(f"name the column that goes into the model; there are {', '.join(map(shown, types))}")
        return {names[0] if names else DEFAULT_INPUT: (only,)}
    return {name: (name,) for name in names}


def _listed(columns: list[str], names: list[str]) -> dict[str, tuple[str, ...]]:
    if not columns or not all(isinstance(column, str) for column in columns):
        raise InvalidInput(f"columns: expected column names, got {shown(columns)}")
    if len(names) == 1:
        return {names[0]: tuple(columns)}
    if not names:
        return {DEFAULT_INPUT: (columns[0],)} if len(columns) == 1 else {column: (column,) for column in columns}
    if len(columns) == len(names):
        return {name: (column,) for name, column in zip(names, columns, strict=True)}
    raise InvalidInput(
        f"columns: the model has {len(names)} inputs, {', '.join(map(shown, names))}; got {shown(columns)}"
    )


def check_file(request: BatchRequest, signature: Signature, file: InputFile) -> Sample:
    """The file's sample; InvalidInput when its columns do not fit the model. Reads only its footer or beginning."""
    sample = get_source(request.format).sample(file)
    if sample.empty:
        return sample
    if request.format != OPENAI:
        check_columns(file, sample, [name for name in columns_read(request) if name != WHOLE])
    for field in signature.inputs or ():
        columns = request.columns[field.name]
        found = misfit(field, [sample.types.get(column) for column in columns], request.format)
        if found is not None:
            named = " and ".join(map(shown, columns[:3])) + (" …" if len(columns) > 3 else "")
            raise InvalidInput(f"{shown(file.path)}: column {named}: expected {field}, found {found}")
    return sample


def check_rows(request: BatchRequest, signature: Signature, file: InputFile) -> Chunk | None:
    """The first rows of a file; InvalidInput, with the first row's error, when none of them converts."""
    source = get_source(request.format)
    blocks = source.layout(file, columns_read(request), request.row_bytes)
    if not blocks:
        return None
    head = _head(source, file, blocks[0].last, columns_read(request))
    if head is None:
        return None
    inputs = convert(head, request.columns, signature, request.format)
    if len(head) and not len(inputs.good):
        i, error = min(inputs.bad.items())
        where = f"{source.locator} {head.where[i]}"
        named = " and ".join(shown(column) for columns in request.columns.values() for column in columns)
        raise InvalidInput(
            f"{shown(file.path)}: column {named}, {where}: {error}; none of the first {len(head)} rows can be used"
        )
    return head


def _head(source: Source, file: InputFile, last: int, columns: Sequence[str]) -> Chunk | None:
    if isinstance(source, Isolated):
        return source.head(file, last, columns, CHECKED_ROWS)
    chunk = next(source.read(file, 0, last, columns), None)
    return None if chunk is None else chunk.part(0, CHECKED_ROWS)


def check_outputs(request: BatchRequest, signature: Signature) -> None:
    """InvalidInput when a kept column has the name of one of the model's outputs."""
    names = {field.name for field in signature.outputs or ()} or {DEFAULT_OUTPUT}
    clash = sorted(names & set(request.keep))
    if clash:
        raise InvalidInput(f"keep: {shown(clash[0])} is also an output of the model; rename the column")
    if not request.keep and request.format != OPENAI and names & set(kept_columns(request)):
        raise InvalidInput(
            f"the model's output {shown(min(names & set(kept_columns(request))))} has the name of the column that tells each "
            "row's place; name columns to keep instead"
        )


def kept_types(chunk: Chunk | None, keep: Sequence[str]) -> dict[str, str]:
    """The types of kept columns that the format does not tell, by the values of the first rows; text where they are mixed."""
    found = {}
    for name in keep:
        column = chunk.columns[name] if chunk is not None else []
        if isinstance(column, list):
            kinds = {type(value) for value in column if value is not None and not isinstance(value, Exception)}
            found[name] = _KEPT_TYPES.get(frozenset(kinds), "string")
        elif isinstance(column, pa.Array):
            found[name] = "string"
    return found


def misfit(declared: Field, types: Sequence[pa.DataType | None], format: str) -> str | None:
    """What was found instead of the declared input, if columns of these types can never make it; None when they may."""
    if any(kind is None for kind in types) or (declared.dtype == "json" and format not in MEDIA):
        return None
    if len(types) > 1:
        wrong = [str(kind) for kind in types if not is_number(kind)]
        if declared.dtype not in ARRAY_DTYPES or len(declared.shape) != 1:
            return f"{len(types)} columns"
        short = declared.shape[0] not in (-1, len(types))
        return f"a column of {wrong[0]}" if wrong else f"{len(types)} columns" if short else None
    kind = types[0]
    if format in MEDIA:
        return None if declared.dtype == "bytes" or declared.media == MEDIA[format] else f"{MEDIA[format]} files"
    return None if _may_be(declared, kind) else str(kind)


def _may_be(declared: Field, kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if declared.cell:
        return _may_be_cell(declared, kind)
    if declared.dtype == "json" or pa.types.is_null(kind):
        return declared.dtype == "json"
    if declared.dtype == "str":
        return is_text(kind)
    if declared.dtype == "bytes":
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
    if declared.media and holds_files(kind):
        return True
    lengths, leaf = list_lengths(kind)
    if not is_number(leaf) or not casts_safely(leaf, declared):
        return False
    return shape_may_be(declared.shape, lengths) or (declared.shape == (1,) and not lengths)


def _may_be_cell(declared: Field, kind: Any) -> bool:
    if declared.dtype != "str":
        number = is_number(kind) or pa.types.is_decimal(kind)
        return bool(number or is_text(kind) or pa.types.is_null(kind))
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
