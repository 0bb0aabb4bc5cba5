"""The rows of a data set that a version is tried on, as a batch would read them."""

from __future__ import annotations

from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import BatchRequest
from forebay.datasets import require_pyarrow
from forebay.producer.session import Session


def trial_data(
    session: Session, model: ModelVersion, dataset: Any, columns: Any, format: str | None
) -> BatchRequest | None:
    """What reads them, checked against the files and the model's signature; None without a data set. The columns are by default
    those that the model was trained on.
    """  # fmt: skip
    if dataset is None:
        if columns is not None or format is not None:
            raise InvalidInput("columns and format are those of a data set: name one, or leave them out")
        return None
    require_pyarrow()
    from forebay.datasets.planning.checking import check_file, check_rows, name_columns
    from forebay.producer.requests.evaluation import default_columns
    from forebay.producer.requests.files import find_dataset, first_with_rows

    learnt_from = session.training.data_of(model)
    files, format = find_dataset(dataset, format, "name one")
    file, sample = first_with_rows(files, format)
    given = default_columns(columns, model, sample.types, learnt_from.features if learnt_from else ())
    named = name_columns(given, model.signature, sample.types, format)
    request = BatchRequest(tuple(files), "", format, named, row_bytes=sample.row_bytes)
    check_file(request, model.signature, file)
    check_rows(request, model.signature, file)
    return request
