"""The request of a benchmark: what can be refused without running the model is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.requests.fields import check
from forebay.contract.requests.versions.benchmark import TUNABLE, BenchmarkRequest
from forebay.producer.requests.trial import trial_data
from forebay.producer.session import Session


def make_request(
    session: Session, model: ModelVersion, asked: Mapping[str, Any], dataset: Any, columns: Any, format: str | None
) -> BenchmarkRequest:
    """The request, checked; `dataset`, where there is one, against the model's signature."""
    request = check(asked, BenchmarkRequest)
    if model.remote:
        raise InvalidInput(f"{model.ref} is run by another server: it has no batches here whose size could be measured")
    if (request.threads or request.dtypes) and model.runtime not in TUNABLE:
        raise InvalidInput(
            f"threads and dtypes are for models that torch runs ({', '.join(sorted(TUNABLE))}), and {model.ref} has runtime "
            f"{model.runtime!r}: leave them out"
        )
    return replace(request, data=trial_data(session, model, dataset, columns, format))
