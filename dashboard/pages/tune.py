"""One tune's page: its trials, the best so far, and what each parameter has to do with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.requests.recipes import default_metric
from forebay.contract.requests.request import decode
from forebay.contract.requests.tuning import TuneRequest
from forebay.dashboard.pages.base import CHARTS
from forebay.dashboard.pages.job import JobPageBase, read_details
from forebay.dashboard.pages.run import parameter_lists
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.dashboard.reads.trials import best_so_far, slices
from forebay.storage.jobs.views import JobDetails
from forebay.storage.tuning.records import Trial, best_trial


@dataclass(frozen=True, slots=True)
class TunePageData:
    """What the page shows of a tune; `request` is None while it lies in the blob store."""

    details: JobDetails
    request: TuneRequest | None
    trials: list[Trial]
    metric: str
    best: Trial | None


class TunePage(JobPageBase):
    """`/tuning/ID`."""

    tab, template, heading = "training", "tune", "Tune"
    scripts = CHARTS

    async def get(self, id: str) -> None:
        snapshot = await self.or_404(self.ledger.read(("tune", id), lambda queries: read_tune(queries, id)))
        data = snapshot.value
        request = data.request if data else None
        valued = data is not None and any(trial.value is not None for trial in data.trials)
        self.show_job(
            snapshot, id, charts=[best_so_far(data.trials, data.metric)] if data and request and valued else [],
            slices=slices(request.space, data.trials) if data and request else [],
            **parameter_lists(request.train.summary() if request else None),
        )  # fmt: skip


def read_tune(queries: LedgerQueries, id: str) -> TunePageData:
    """A tune with its trials; JobNotFound when there is no such tune."""
    details, trials, request = read_details(queries, id, JobKind.TUNE), queries.tunes.trials(id), None
    with suppress(InvalidInput):
        payload, _ = queries.tunes.request(id)
        request = decode(payload, TuneRequest) if payload else None
    if request is None:
        return TunePageData(details, None, trials, "value", None)
    metric = request.train.metric or default_metric(request.train.recipe, request.train.params)
    return TunePageData(details, request, trials, metric, best_trial(metric, trials))
