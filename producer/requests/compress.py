"""The request of a compression: what can be refused without running the model is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.references import check_alias
from forebay.contract.requests.fields import check
from forebay.contract.requests.versions.compress import CompressRequest, parse_method
from forebay.producer.session import Session


def make_request(session: Session, model: ModelVersion, asked: Mapping[str, Any], dataset: Any) -> CompressRequest:
    """The request, checked; `dataset`, where there is one, against the model's signature, to be read as an evaluation does."""
    read = {name: asked[name] for name in ("target", "columns", "format") if name in asked}
    request = check({name: value for name, value in asked.items() if name not in read}, CompressRequest)
    parse_method(request.method, model.ref, model.runtime)
    if model.base is not None:
        raise InvalidInput(f"{model.ref} is an adapter of {model.base}, and small already: compress that one")
    if request.alias is not None:
        check_alias(request.alias)
        request = replace(request, replaces=session.registry.alias_version(model.name, request.alias))
    if (dataset is None) != ("target" not in read):
        raise InvalidInput("give a dataset and its target, or neither: both versions are evaluated on it")
    if dataset is None:
        if "max_loss" in asked:
            raise InvalidInput("max_loss is of a metric: give a dataset and its target to measure it on")
        return request
    from forebay.datasets import require_pyarrow

    require_pyarrow()
    from forebay.producer.requests import evaluation

    learnt_from = session.training.data_of(model)
    return replace(request, evaluation=evaluation.make_request(model, dataset, learnt_from=learnt_from, **read))
