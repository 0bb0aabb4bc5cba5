"""The client's half that looks at jobs and queues, and queues what has failed afresh; it submits nothing new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState, QueueInfo
from forebay.contract.references import ModelRef, check_job_id, shown
from forebay.producer.handles.job import Job
from forebay.producer.models import check_metadata
from forebay.producer.session import Connections


class Looking(Connections):
    """Finds jobs, counts what waits, retries. Thread-safe."""

    def job(self, id: str) -> Job:
        """The handle of an existing job; JobNotFound when there is none of this id."""
        known = self._watcher.find(check_job_id(id))
        if known is not None:
            return known
        self._store.get(id)
        [job] = self._watcher.adopt([Job(self, id)])
        self._watcher.read([id])
        return job

    def jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        kind: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[JobInfo]:
        """The newest jobs that meet every filter, newest first; the last one's id as `before` gives the next page.

        `model` is a name, `name/3` or `name@alias`; `metadata` matches the jobs that carry these values.
        """
        states = [state] if isinstance(state, str) or not isinstance(state, Iterable) else list(state)
        name, version = self._model_filter(model)
        if type(limit) is not int or not 1 <= limit <= 10_000:
            raise InvalidInput(f"limit {shown(limit)} is not a whole number from 1 to 10000")
        return self._store.find(
            state=[_word(JobState, s, "state") for s in states if s is not None],
            kind=_word(JobKind, kind, "kind") if kind is not None else None,
            model=name,
            version=version,
            metadata=check_metadata(metadata),
            limit=limit,
            before=check_job_id(before) if before is not None else None,
        )

    def retry_failed(self, model: str | None = None, *, dry_run: bool = False) -> int:
        """Queue every failed and expired job afresh, those of `model` only when it is given; how many.

        Like `Job.retry` for each: same ids, attempts start anew, deadlines are gone. Jobs that succeeded or were canceled are
        not touched. It goes through the ledger once, some thousands of jobs to a transaction; jobs that fail again meanwhile
        are left alone. With `dry_run` they are only counted. What Redis does not take is sent by a later sweep.
        """
        name, version = self._model_filter(model)
        if dry_run:
            return self._store.count_failed(model=name, version=version)
        count, redis_answers = 0, True
        after_id: str | None = ""
        while after_id is not None:
            routed_jobs, after_id = self._store.retry_failed(model=name, version=version, after_id=after_id)
            for known in (self._watcher.find(routed_job.id) for routed_job in routed_jobs):
                if known is not None:
                    known._forget_outcome()
            if redis_answers:
                redis_answers = self._send(routed_jobs)
            else:  # one wait for it is enough
                self._store.mark_unsent([routed_job.id for routed_job in routed_jobs])
            count += len(routed_jobs)
        return count

    def _model_filter(self, model: str | None) -> tuple[str | None, int | None]:
        """`name`, `name/3` or `name@alias` as the name and version to look for."""
        if model is None:
            return None, None
        ref = ModelRef.parse(model)
        return ref.name, self._registry.get(ref).version if ref.alias else ref.version

    def queues(self) -> list[QueueInfo]:
        """Every declared queue: how many jobs wait, may wait and run, the age of the oldest, its workers and capacity."""
        depths = self._store.depths()
        workers = self._workers.alive(3 * self.settings.heartbeat_s)
        return [
            QueueInfo(
                name,
                *depths.get(name, (0, None, 0)),
                tuple(w.name for w in workers if name in w.queues),
                spec.capacity.as_dict(),
                spec.max_queue_size,
            )
            for name, spec in self.settings.queues.items()
        ]

    def _why_late(self, id: str, timeout: float) -> str:
        try:
            info = self._store.get(id)
            served = any(info.queue in w.queues for w in self._workers.alive(3 * self.settings.heartbeat_s))
        except ForebayError as error:
            return f"job {id} has not ended after {timeout:g} s, and the ledger does not answer: {error}"
        hint = "" if served else f"; no worker serves queue {info.queue!r} now: start one with `forebay worker`"
        return f"job {id} is {info.state} after {timeout:g} s and goes on{hint}"


def _word(kind: Any, value: Any, what: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InvalidInput(f"no {what} is called {shown(value)}; there are {', '.join(kind)}") from None
