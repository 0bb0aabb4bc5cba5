"""The files of a data set that a user names, and the one format they have. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import ARROW, JSONL, PARQUET, InputFile
from forebay.datasets.examples import example_columns, parse_example
from forebay.datasets.formats.files import find_files
from forebay.datasets.formats.source import SUFFIXES, Sample, check_format, get_source, guess_format
from forebay.datasets.reading.table import column_names, read_rows

DataSet = str | Path | Sequence[str | Path]

TEXT_FORMATS = (JSONL, PARQUET, ARROW)
CHECKED_ROWS = 10_000


def find_dataset(given: DataSet, format: str | None, one: str) -> tuple[list[InputFile], str]:
    """The files, and their format, by their endings unless given; InvalidInput when there are none, or of several formats,
    and then `one` says what to do.
    """  # fmt: skip
    check_format(format)
    suffixes = SUFFIXES[format] if format else tuple(s for several in SUFFIXES.values() for s in several)
    files = find_files(given, suffixes)
    if format is not None:
        return files, format
    guesses = {guess_format(file.path): file.path for file in files}
    if len(guesses) > 1:
        (first, a), (second, b) = list(guesses.items())[:2]
        raise InvalidInput(f"the input mixes formats: {shown(a)} is {first}, {shown(b)} is {second}; {one}")
    [guess] = guesses
    return files, guess


def check_examples(files: Sequence[InputFile], format: str) -> None:
    """InvalidInput naming the first row that is not an example of text; of many rows only the first are looked at."""
    if format not in TEXT_FORMATS:
        raise InvalidInput(f"examples of text are read from {', '.join(TEXT_FORMATS)}, not {format}")
    columns = example_columns(column_names(files, format))
    for place, row in islice(read_rows(files, format, columns), CHECKED_ROWS):
        try:
            parse_example(row)
        except InvalidInput as error:
            raise InvalidInput(f"{place}: {error}") from error


def first_with_rows(files: Sequence[InputFile], format: str) -> tuple[InputFile, Sample]:
    """The first file that is not empty, and what its first rows look like."""
    source = get_source(format)
    for file in files:
        sample = source.sample(file)
        if not sample.empty:
            return file, sample
    raise InvalidInput(f"the input holds no rows: {shown(files[0].path)} and {len(files) - 1} more files are empty")
