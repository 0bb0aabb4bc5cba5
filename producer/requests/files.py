"""Which files a data set consists of that a user names, and the one format they have. Reads no rows. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.files import find_files
from forebay.datasets.formats.source import SUFFIXES, check_format, guess_format

DataSet = str | Path | Sequence[str | Path]


def find_dataset(given: DataSet, format: str | None, one: str) -> tuple[list[InputFile], str]:
    """The files, and their format, by their endings when it is not given; InvalidInput when there is none, or there are
    several: `one` says for what there may be one only.
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
