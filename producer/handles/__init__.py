"""The handles that a client gives out, one class for each kind of job that has more to tell than its result."""

from __future__ import annotations

from typing import cast

from forebay.contract.job import JobKind
from forebay.contract.references import check_job_id
from forebay.producer.handles.batch import BatchJob
from forebay.producer.handles.evaluation import EvaluationJob
from forebay.producer.handles.job import Job
from forebay.producer.handles.training import TrainingJob
from forebay.producer.session import Session

HANDLES: dict[JobKind, type[Job]] = {
    JobKind.BATCH: BatchJob,
    JobKind.TRAIN: TrainingJob,
    JobKind.EVALUATE: EvaluationJob,
}  # all others: Job


def open_handle(session: Session, id: str) -> Job:
    """The handle of an existing job, of its kind; JobNotFound when there is none of this id."""
    known = session.watcher.find(check_job_id(id))
    if known is not None:
        return cast(Job, known)
    kind = session.jobs.get(id).kind
    [job] = session.watcher.register([HANDLES.get(kind, Job)(session, id)])
    session.watcher.refresh([id])
    return job
