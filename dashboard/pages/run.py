"""One training run's page: its curves while it runs, parameters, data and checkpoints, and the version it became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tornado.web import HTTPError

from forebay.contract.errors import InvalidInput, JobNotFound
from forebay.contract.job import JobKind
from forebay.contract.requests.training import TRAIN, TrainRequest
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.job import PREVIEW_BYTES, SAID, may_cancel, may_retry
from forebay.dashboard.reads.curves import Best, best, latest, of_one
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.jobs.views import JobDetails
from forebay.storage.training.records import Checkpoint, Measured, Run

DEEPEST = 4  # of nested parameters; what is nested deeper is shown as it is
RECENT_POINTS = 20  # from whose times the pace is reckoned


@dataclass(frozen=True, slots=True)
class SeenRun:
    """What the page shows of a run; `run` is None until it has begun, `request` when it lies in the blob store till then."""

    details: JobDetails
    run: Run | None
    request: Mapping[str, Any] | None
    curve: list[Measured]
    checkpoints: list[Checkpoint]
    best: Best | None


class RunPage(Page):
    """`/training/ID`."""

    tab = "training"

    async def get(self, id: str) -> None:
        """The page, or the part that changes; 404 for a job that is not there or no training job."""
        try:
            answer = await self.ledger.ask(("run", id), lambda ears: look(ears, id))
        except JobNotFound as error:
            raise HTTPError(404, "%s", str(error)) from error
        seen = answer.value
        job = seen.details.info if seen else None
        self.show(
            "run", answer, id=id, seen=seen, job=job, now=self.now(), charts=of_one(seen.curve) if seen else [],
            figures=latest(seen.curve) if seen else [], parameters=list(flat(seen.request)) if seen and seen.request else [],
            left_s=seconds_left(seen.run, seen.curve) if seen and seen.run else None,
            can_cancel=job is not None and may_cancel(job), can_retry=job is not None and may_retry(job.state),
            said=SAID.get(self.get_query_argument("said", ""), ""),
        )  # fmt: skip


def look(ears: ConsumerHealth, id: str) -> SeenRun:
    """Read a run; JobNotFound when there is no such training job."""
    details = ears.views.details(id, PREVIEW_BYTES)
    if details.info.kind is not JobKind.TRAIN:
        raise JobNotFound(f"job {id} is a {details.info.kind} job and no training run: see its page among the jobs")
    training = ears.training
    run = training.about([id]).get(id)
    if run is None:
        return SeenRun(details, None, _request(details.input), [], [], None)
    curve = training.thinned(id)
    return SeenRun(details, run, run.request, curve, training.checkpoints(id), best(run, curve))


def _request(data: bytes | None) -> Mapping[str, Any] | None:
    try:
        request = TrainRequest.load(data) if data else None
    except InvalidInput:
        return None
    if request is None:
        return None
    first = request.files[0].path if request.files else None
    return asdict(request) | {"files": {"count": len(request.files), "first": first}}


def flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters as names with dots and their values; what was not given is left out."""
    for name, item in value.items():
        if isinstance(item, Mapping) and above.count(".") < DEEPEST:
            yield from flat(item, f"{above}{name}.")
        elif item not in (None, "", [], ()):
            yield f"{above}{name}", item


def seconds_left(run: Run, curve: Sequence[Measured]) -> float | None:
    """Until the planned steps are done, at the pace of the last points; None when none is known."""
    points = [point for point in curve if point.split == TRAIN][-RECENT_POINTS:]
    if run.state.final or run.steps is None or len(points) < 2:
        return None
    seconds, steps = (points[-1].at - points[0].at).total_seconds(), points[-1].step - points[0].step
    return (run.steps - points[-1].step) * seconds / steps if seconds > 0 and steps > 0 else None
