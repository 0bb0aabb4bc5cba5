"""The rows of a data set that a version is tried on, as a batch would read them. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import BatchRequest
from forebay.datasets.planning.checking import Named, check_file, check_rows, name_columns
from forebay.producer.requests.evaluation import default_columns
from forebay.producer.requests.files import DataSet, find_dataset, first_with_rows


def rows_of(
    model: ModelVersion, dataset: DataSet, columns: Named, format: str | None, features: Sequence[str] = ()
) -> BatchRequest:
    """What reads them, checked against the files and the model's signature. `features` are the columns that it was trained on."""
    files, format = find_dataset(dataset, format, "name one")
    file, sample = first_with_rows(files, format)
    named = name_columns(default_columns(columns, model, sample.types, features), model.signature, sample.types, format)
    request = BatchRequest(tuple(files), "", format, named, row_bytes=sample.row_bytes)
    check_file(request, model.signature, file)
    check_rows(request, model.signature, file)
    return request
