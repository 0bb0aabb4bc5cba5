"""Submitting tune jobs: what a training job is checked for, and the space against the parameters of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.requests.fields import check
from forebay.contract.requests.tuning import TuneRequest, check_space, combination, space_size
from forebay.producer.handles.kinds import TuningJob
from forebay.producer.requests import training
from forebay.producer.submit import Submitter


def submit(
    find: Callable[[str], ModelVersion], submitter: Submitter, model: Any, options: Mapping[str, Any]
) -> TuningJob:
    """A tune job with the options that Client.tune takes."""
    asked, submits = training.split_options(options)
    request = make_request(find, **asked)
    draft = training.draft(model, request.train)
    resolved = submitter.check(JobKind.TUNE, draft, submits)
    submitter.check(JobKind.TRAIN, draft, {**submits, "queue": resolved.queue})  # its trials go to the same queue
    return submitter.submit_request(TuningJob, resolved, request)


def make_request(find: Callable[[str], ModelVersion], *, space: Any, **options: Any) -> TuneRequest:
    """The request, checked; InvalidInput says what to change. `options` are those of Client.tune but those of a submit."""
    own = {name: options.pop(name) for name in ("trials", "sampler", "pruner", "parallel") if name in options}
    train = training.make_request(find, **options)
    if train.split.column is None and not train.split.validation:
        raise InvalidInput("split: trials are compared by their validation rows; give validation a share such as 0.1")
    checked = check_space(train.recipe, space, options.get("params") or {})
    request = check(own | {"train": msgspec.to_builtins(train), "space": msgspec.to_builtins(checked)}, TuneRequest)
    if space_size(request.space) is not None:
        request.trial(combination(request.space, 0))
    elif request.sampler == "grid":
        endless = next(name for name, one in request.space.items() if space_size({name: one}) is None)
        raise InvalidInput(f"space: {endless} has no end of values for a grid; give a list of them, or a step")
    return request
