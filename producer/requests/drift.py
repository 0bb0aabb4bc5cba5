"""The request of a reference job: which rows of a data set a version is to be held against."""

from __future__ import annotations

from forebay.contract.errors import InvalidInput
from forebay.contract.model import GENERATES_TEXT, ModelVersion
from forebay.contract.requests.batch import OPENAI
from forebay.contract.requests.training import DataSummary
from forebay.contract.requests.versions.reference import ReferenceRequest
from forebay.datasets.planning.checking import Named, check_file, check_rows, name_columns
from forebay.producer.requests.evaluation import dataset_name, default_columns
from forebay.producer.requests.files import DataSet, find_dataset, first_with_rows


def make_request(
    model: ModelVersion, dataset: DataSet, *, columns: Named, format: str | None, learnt_from: DataSummary | None
) -> ReferenceRequest:
    """The request, checked against the files and the model's signature. `learnt_from` is what the version was
    trained on, as far as that is known.
    """  # fmt: skip
    signature = model.signature
    if model.runtime in GENERATES_TEXT or not (signature.inputs or signature.outputs):
        why = "it generates text" if model.runtime in GENERATES_TEXT else "it declares neither inputs nor outputs"
        raise InvalidInput(f"{model.ref} cannot be watched for drift: {why}")
    files, format = find_dataset(dataset, format, "give one of them")
    if format == OPENAI:
        raise InvalidInput("a file in OpenAI's form holds requests for text, of which drift is not watched")
    file, sample = first_with_rows(files, format)
    named = default_columns(columns, model, sample.types, learnt_from.features if learnt_from else ())
    request = ReferenceRequest(
        tuple(files), format, name_columns(named, signature, sample.types, format), sample.row_bytes, dataset_name(dataset)
    )  # fmt: skip
    for one in {file.path: file, files[-1].path: files[-1]}.values():
        check_file(request.reading, signature, one)
    check_rows(request.reading, signature, file)
    return request
