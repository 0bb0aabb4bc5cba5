"""Coordinating a tune: adding its next trials, sending them, and ending it when the last one has ended.

Any child that trains may do it at any time, and several at once: each step is a compare-and-swap in the ledger. It is done after
each trial, and when the tune's own job is claimed: at its start, after a retry, and when a sweep finds nobody looking.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from forebay.contract.errors import BrokerUnavailable, ForebayError, InvalidInput
from forebay.contract.job import JobError, JobState
from forebay.contract.model import ModelVersion
from forebay.contract.requests.recipes import default_metric
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.tuning import TuneRequest
from forebay.contract.wire import codec
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import ClaimedJob, LeaseLost
from forebay.storage.tuning.records import PRUNED, Trial, Tune, best_trial, counts_text
from forebay.storage.tuning.store import TuneStore
from forebay.worker.execution.backoff import may_pass
from forebay.worker.execution.context import ChildContext

log = structlog.get_logger()

MOST_FAILED = 5  # trials, when none has told a value: no more are begun


class TuneCoordinator:
    """Looks after the tunes whose trials this child runs."""

    def __init__(self, context: ChildContext, store: TuneStore) -> None:
        self._context, self._store = context, store
        self._known: tuple[str, TuneRequest] | None = None

    def request(self, tune: str) -> TuneRequest:
        if self._known is None or self._known[0] != tune:
            payload = self._context.payloads.load(*self._store.queries.request(tune))
            self._known = tune, decode(payload, TuneRequest)
        return self._known[1]

    def start(self, job: ClaimedJob) -> bool:
        """Start or resume a tune whose job was claimed: add its first trials, and give up its lease. Whether it goes on.

        Raises errors that may pass; the lease is then still held.
        """
        try:
            self.request(job.id)
            self._send(self._store.start(job))
        except LeaseLost:
            return False
        except InvalidInput as error:
            self._fail(job.id, job.attempt, JobError(type(error).__name__, str(error)), 0, 1)
            return False
        self.advance(job.id)
        self._store.parents.hand_off(job)
        return True

    def advance(self, id: str) -> None:
        """Do whatever is due for a tune: add trials, send them, end it."""
        queries = self._store.queries
        tune, request = queries.get(id), self.request(id)
        if tune.state is not JobState.RUNNING:
            if tune.state.final:
                self._store.parents.cancel_children(id)
            return
        trials = queries.trials(id)
        while self._wants_more(tune, request, trials):
            if not self._add(tune, request, trials):
                return  # another worker does it
            trials = queries.trials(id)
        if any(trial.open for trial in trials):
            self._show(tune, request, trials)
        else:
            self._end(tune, request, trials)

    def _wants_more(self, tune: Tune, request: TuneRequest, trials: Sequence[Trial]) -> bool:
        states = [trial.state for trial in trials]
        if len(trials) >= request.planned or sum(trial.open for trial in trials) >= request.parallel:
            return False
        # A trial that has expired tells of the deadline when the tune has been taken up again.
        late = tune.deadline_at is not None and tune.deadline_at <= self._context.ledger.now()
        if late or JobState.EXPIRED in states:
            return False
        return states.count(JobState.FAILED) < MOST_FAILED or not {JobState.SUCCEEDED, PRUNED}.isdisjoint(states)

    def _add(self, tune: Tune, request: TuneRequest, trials: Sequence[Trial]) -> bool:
        from forebay.worker.kinds.tune.proposing import propose  # needs Optuna

        params = propose(request, trials)
        try:
            trial = request.trial(params)
        except InvalidInput as error:  # values that do not go together, of which each would do
            words = f"trial {len(trials)} with {params}: {error}"
            self._fail(tune.id, tune.attempt, JobError("InvalidInput", words), len(trials), request.planned)
            return False
        payload = self._context.payloads.store(encode(trial))
        routed = self._store.add_trial(tune, len(trials), params, payload)
        if routed is None:
            return False
        self._send([routed])
        log.info("trial_added", tune=tune.id, trial=len(trials), job=routed.id, params=params)
        return True

    def _show(self, tune: Tune, request: TuneRequest, trials: Sequence[Trial]) -> None:
        best, metric = best_trial(_metric(request), trials), _metric(request)
        message = f", best {metric} {best.value:.6g} by trial {best.number}" if best is not None else ""
        ended = sum(not trial.open for trial in trials)
        self._store.parents.set_progress(tune.id, ended, request.planned, f"{counts_text(trials)}{message}")

    def _end(self, tune: Tune, request: TuneRequest, trials: Sequence[Trial]) -> None:
        metric = _metric(request)
        best = best_trial(metric, trials)
        if best is None:
            self._fail(tune.id, tune.attempt, _reason(trials), len(trials), request.planned)
            return

        def result(version: ModelVersion, promoted: bool, verdict: str) -> bytes:
            told = {
                "model": version.name, "version": version.version, "metrics": dict(version.metadata["metrics"]),
                "promoted": promoted, "verdict": verdict, "trial": best.number, "trials": counts_text(trials),
            }  # fmt: skip
            return codec.encode(told)

        try:
            made = self._store.complete(tune, request.train.alias, metric, len(trials), result)
        except ForebayError as error:
            if may_pass(error):
                raise
            words = f"trial {best.number} cannot be registered: {error}"
            self._fail(tune.id, tune.attempt, JobError(type(error).__name__, words), len(trials), request.planned)
            return
        if made is not None:
            version, ended = made
            self._context.announcer.announce(ended)
            log.info(
                "tune_succeeded", tune=tune.id, model=version.ref, trial=best.number, metric=metric, value=best.value
            )

    def _fail(self, id: str, attempt: int, error: JobError, done: int, total: int) -> None:
        ended = self._store.parents.fail(id, attempt, error, done, total)
        self._context.announcer.announce(ended)
        for _ in ended:
            log.error("tune_failed", tune=id, error=error.type, reason=error.message)

    def _send(self, trials: list[RoutedJob]) -> None:
        """Send trials that wait; a sweep does it when Redis is away."""
        try:
            self._context.dispatcher.send_jobs(trials)
        except BrokerUnavailable as error:
            log.warning("send_failed", jobs=len(trials), error=str(error))


def _metric(request: TuneRequest) -> str:
    return request.train.metric or default_metric(request.train.recipe, request.train.params)


def _reason(trials: Sequence[Trial]) -> JobError:
    """Why a tune has no version: what its first trial that failed says."""
    failed = next((trial for trial in trials if trial.error is not None), None)
    about = f"no trial has succeeded ({counts_text(trials) or 'none was begun before the deadline'})"
    if failed is None or failed.error is None:
        return JobError("NoTrialSucceeded", about)
    return JobError(failed.error.type, f"{about}; trial {failed.number}: {failed.error.message}")
