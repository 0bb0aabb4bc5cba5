"""Explain jobs: run as predictions are, by a model whose outputs are explanations; equal requests share its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.requests.explain import ExplainRequest
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.explaining.explainer import explaining
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.kinds.predict import PredictHandler
from forebay.worker.kinds.row_jobs import PredictJob


class ExplainHandler:
    """Runs the explain jobs of one child."""

    def __init__(self, context: ChildContext) -> None:
        self._ceilings = context.explain_ceilings
        self._rows = PredictHandler(context, context.explain_engine, self._by_request)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Run these jobs."""
        self._rows.run(claimed, attempts)

    def _by_request(
        self, loaded: LoadedModel, jobs: list[PredictJob]
    ) -> Iterator[tuple[LoadedModel, list[PredictJob]]]:
        alike: dict[bytes, list[PredictJob]] = {}
        for job in jobs:
            alike.setdefault(msgspec.json.encode(job.explain, order="sorted"), []).append(job)
        for some in alike.values():
            model = loaded
            try:
                if some[0].explain is None:  # else these have their errors already
                    raise InvalidInput("the job does not say how it is to be explained")
                model = explaining(loaded, msgspec.convert(some[0].explain, ExplainRequest), self._ceilings)
            except (ForebayError, msgspec.ValidationError) as error:
                for job in some:
                    job.error, job.unfinished = job.error or error, 0
            yield model, some
