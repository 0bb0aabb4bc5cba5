"""One training run's page: its curves while it runs, parameters, data and checkpoints, and the version it became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.requests.recipes import parameters
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import TRAIN, TrainRequest
from forebay.dashboard.pages import formatting as fmt
from forebay.dashboard.pages.base import CHARTS
from forebay.dashboard.pages.job import JobPageBase, read_details
from forebay.dashboard.reads.curves import BestValue, best, last_and_best, run_charts
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.jobs.views import JobDetails
from forebay.storage.training.records import Checkpoint, Measured, Run

MAX_DEPTH = 4  # of nested parameters; what is nested deeper is shown as it is
RECENT_POINTS = 20  # whose times give the speed


@dataclass(frozen=True, slots=True)
class RunPageData:
    """What the page shows of a run; `run` is None until it has started, `request` while it lies in the blob store till then."""

    details: JobDetails
    run: Run | None
    request: Mapping[str, Any] | None
    curve: list[Measured]
    checkpoints: list[Checkpoint]
    best: BestValue | None


class RunPage(JobPageBase):
    """`/training/ID`."""

    tab, template, heading = "training", "run", "Training run"
    scripts = CHARTS

    async def get(self, id: str) -> None:
        snapshot = await self.or_404(self.ledger.read(("run", id), lambda queries: read_run(queries, id)))
        data = snapshot.value
        self.show_job(
            snapshot, id, charts=run_charts(data.curve) if data else [], points=last_and_best(data.curve) if data else [],
            **parameter_lists(data.request if data else None),
            eta_s=eta_s(data.run, data.curve) if data and data.run else None,
        )  # fmt: skip


def read_run(queries: LedgerQueries, id: str) -> RunPageData:
    """A training run; JobNotFound when there is no such training job."""
    details = read_details(queries, id, JobKind.TRAIN)
    training = queries.training
    run = training.runs_by_id([id]).get(id)
    if run is None:
        return RunPageData(details, None, _request(details.input), [], [], None)
    curve = training.sampled_curve(id)
    return RunPageData(details, run, run.request, curve, training.checkpoints(id), best(run, curve))


def _request(data: bytes | None) -> Mapping[str, Any] | None:
    try:
        request = decode(data, TrainRequest) if data else None
    except InvalidInput:
        return None
    return None if request is None else request.summary()


def parameter_lists(request: Mapping[str, Any] | None) -> dict[str, list[tuple[str, Any]]]:
    """What was asked for: `parameters` that were given, and `defaults`, those that are as they are by default."""
    if request is None:
        return {"parameters": [], "defaults": []}
    known = parameters(str(request.get("recipe")))
    by_default = TrainRequest("", (), "").summary() | {"params": {name: p.default for name, p in known.items()}}
    usual = {name: fmt.value(value) for name, value in flatten(by_default)}
    asked = list(flatten(request))
    return {
        "parameters": [(name, value) for name, value in asked if usual.get(name) != fmt.value(value)],
        "defaults": [(name, value) for name, value in asked if usual.get(name) == fmt.value(value)],
    }


def flatten(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters by dotted names, without those that were not given."""
    for name, item in value.items():
        if isinstance(item, Mapping) and above.count(".") < MAX_DEPTH:
            yield from flatten(item, f"{above}{name}.")
        elif item not in (None, "", [], ()):
            yield f"{above}{name}", item


def eta_s(run: Run, curve: Sequence[Measured]) -> float | None:
    """Seconds until the planned steps are done, at the speed of the last points; None when that is not known."""
    points = [point for point in curve if point.split == TRAIN][-RECENT_POINTS:]
    if run.state.final or run.steps is None or len(points) < 2:
        return None
    seconds, steps = (points[-1].at - points[0].at).total_seconds(), points[-1].step - points[0].step
    return (run.steps - points[-1].step) * seconds / steps if seconds > 0 and steps > 0 else None
