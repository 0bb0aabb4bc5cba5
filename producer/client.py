"""Client: the door for users. Checks what it is given, makes jobs durable, and hands out their handles.

Everything a submit can refuse it refuses before anything is stored. Knows the ledger and the queue; loads no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState, QueueInfo
from forebay.contract.model import Model, parse_model
from forebay.contract.references import check_job_id, shown
from forebay.contract.settings import Settings
from forebay.datasets import require_pyarrow
from forebay.producer.handles.job import Job
from forebay.producer.handles.kinds import BatchJob, EvaluationJob, TrainingJob, TuningJob, open_handle
from forebay.producer.models import Models
from forebay.producer.options import (
    ExplainOptions,
    PredictOptions,
    Since,
    SubmitOptions,
    TrainOptions,
    TuneOptions,
    check_metadata,
    since_at,
)
from forebay.producer.retraining import Retraining
from forebay.producer.session import Session
from forebay.producer.submit import Submitter
from forebay.storage.jobs.queries import JobFilters


class Client:
    """Submits jobs and reads results. Thread-safe; a context manager; one per process is enough.

    The options of a submit: `priority` runs from 0 (first) to 9. `queue` is chosen by what the model needs unless given.
    `deadline` is seconds from now, a timedelta or an aware datetime; a job that has not started by then expires.
    `max_attempts` caps its executions. The same `idempotency_key` and request give the existing job. `metadata` is a JSON
    object to find jobs by. With `batched`, an input of `predict` has a leading batch dimension, and so has its result. With
    `usage` the result is `{"output": the value, "usage": {"tokens": how many the model read}}`, None where they are not counted.
    With `stream` this client hears of the text that a model generates, where its runtime tells it, while the job runs.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        home: str | Path | None = None,
        broker: str | None = None,
        database: str | None = None,
    ) -> None:
        """Open the ledger and the queue that `settings` name; without any, those that are configured.

        `home`, `broker` and `database` take the place of what the environment and forebay.toml say of them.
        LedgerUnavailable or BrokerUnavailable when none is configured or there is no ledger. A Redis that is down is no error.
        """
        if settings is not None and any((home, broker, database)):
            raise InvalidInput("give settings, or home, broker and database; not both")
        self.session = Session(settings or Settings.load(home=home, broker=broker, database=database))
        self.models = Models(self.session)
        self.retraining = Retraining(self.session)
        self._submitter = Submitter(self.session)

    @property
    def settings(self) -> Settings:
        """The settings that it was opened with."""
        return self.session.settings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def submitting_for(self, submitted_by: str) -> Client:
        """This client, noting in each job who submitted it."""
        other = copy(self)
        other._submitter = Submitter(self.session, submitted_by)
        other.models = Models(self.session, submitted_by)
        other.retraining = Retraining(self.session, submitted_by)
        return other

    def close(self) -> None:
        """Close every connection once everything submitted has been sent; jobs go on."""
        self.session.close()

    def predict(self, model: Model, inputs: Any, **options: Unpack[PredictOptions]) -> Job:
        """Submit one job and return once it is durable.

        `model` is `name`, `name/3`, `name@alias` or a ModelVersion, resolved now. `inputs` is one sample: a NumPy array or
        torch tensor, a PIL image, str, bytes, a number, a dict or list of those, or a row of a table as a pandas Series.
        Raises InvalidInput, PayloadTooLarge, ModelNotFound, NoQueueFits, QueueFull or LedgerUnavailable, and then nothing was
        stored.
        """
        return self._submitter.submit(self._submitter.prepare_one(model, inputs, options))[0]

    def predict_many(self, model: Model, inputs: Iterable[Any], **options: Unpack[PredictOptions]) -> list[Job]:
        """Submit one job per input, all or none, in one transaction; the handles come in the order of the inputs.

        Takes what `predict` takes; an array (n, …) is n inputs, and so is a table of n rows (pandas, polars, Arrow). Job i
        of an `idempotency_key` has the key `key:i`. Errors name the input's index.
        """
        return self._submitter.submit(self._submitter.prepare_many(model, inputs, options))

    def batch(
        self,
        model: Model,
        input: str | Path | Sequence[str | Path],
        output: str | Path,
        *,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        keep: str | Sequence[str] | None = None,
        format: str | None = None,
        output_format: str | None = None,
        shard_rows: int | None = None,
        max_errors: int | None = None,
        max_error_share: float | None = None,
        explain: str | Mapping[str, Any] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> BatchJob:
        """Run a model over a data set and write another one; returns once the batch is durable, its shards run on workers.

        `input` is a path, glob, folder or URL, or several: Parquet, Arrow, .npy, CSV, JSON lines, images. `output` is a folder
        that is empty, or has the same request's unfinished batch, which then goes on. `columns` names what goes into the model:
        a column, several numeric ones that make a vector, or `{input: column}`. `keep` are columns copied to the output; without
        any it has each row's place. `output_format` is parquet, jsonl or csv. The batch fails when more than `max_errors` rows
        fail, or more than `max_error_share` of them (0 to 1); with neither, when all do. With `explain`, a method or a mapping of
        what `Client.explain` takes, it writes explanations.
        `result()` gives the manifest. Raises InvalidInput, naming file, column, expected and found, MissingExtra, and what
        `predict` raises; then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer.requests import batch as batches

        resolved = self._submitter.resolve(JobKind.BATCH, model, options)
        request = batches.make_request(
            resolved.model, input, output, columns=columns, keep=keep, format=format, output_format=output_format,
            shard_rows=shard_rows, max_errors=max_errors, max_error_share=max_error_share, explain=explain,
        )  # fmt: skip
        return batches.submit(self.session, self._submitter, resolved, request)

    def train(self, model: str, **options: Unpack[TrainOptions]) -> TrainingJob:
        """Train the next version of `model` from a data set; returns once the job is durable. `result()` gives the version.

        `recipe` and `params` are those of `forebay recipes`, `dataset` is what `batch` takes, and .npz; a folder of images has
        the column `label`, the name of the folder each is in. `features` are the columns to learn from (all but the target).
        `split` has shares, `{"validation": 0.1, "test": 0.2}`, and may name a `key` whose equal values stay together; or it names
        a `column` whose values are train, validation and test. `metric` judges; `alias` moves to the new version if that is
        better by it than the one it names. The state is saved after every `checkpoint_steps` steps or `checkpoint_minutes`
        minutes, and a later attempt or `retry` goes on from there. `resources`, `max_batch_size` and `metadata` go to the
        version too. docs/how-to/train.md has all options. Raises InvalidInput, MissingExtra, and what `predict` raises;
        then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer.requests import training

        return training.submit(self.models.get, self._submitter, model, options)

    def tune(self, model: str, **options: Unpack[TuneOptions]) -> TuningJob:
        """Search the parameters with which the next version of `model` is trained best, by `trials` training jobs, `parallel`
        at a time. `result()` gives the version that the best one made.

        `space` has a list of values, or a range `{"low": 1e-4, "high": 1e-1, "log": True}`, for each parameter that is searched;
        all others are those of `params`. `sampler` is tpe, random or grid. `pruner`, median or halving, ends trials early that
        fall behind. Trials are compared by `metric` on the validation split; `alias` moves if the best one's version is better on
        the rows that are held out than the one it names. All else is as `train` has it. Raises what `train` raises.
        """  # fmt: skip
        require_pyarrow()
        from forebay.producer.requests import tuning

        return tuning.submit(self.models.get, self._submitter, model, options)

    def evaluate(
        self,
        model: Model,
        dataset: str | Path | Sequence[str | Path],
        *,
        target: str,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        output: str | None = None,
        format: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> EvaluationJob:
        """Try a version of any runtime on a data set whose column `target` says what is true; `result()` gives an Evaluation.

        `columns` is what `batch` takes; left out, it is the columns that the version was trained on. `output` is the model's
        output that is held against the target: a label, a number, or scores of classes; left out, `label` and `probabilities`,
        or the only one. What comes out is stored with the version. Raises what `batch` raises; then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer.requests import evaluation

        resolved = self._submitter.resolve(JobKind.EVALUATE, model, options)
        request = evaluation.make_request(
            resolved.model, dataset, target=target, columns=columns, output=output, format=format,
            learnt_from=self.session.training.data_of(resolved.model),
        )  # fmt: skip
        return self._submitter.submit_request(EvaluationJob, resolved, request)

    def explain(self, model: Model, inputs: Any, **options: Unpack[ExplainOptions]) -> Job:
        """Explain a prediction: `result()` is `{input: attributions of its shape, "explanation": what was explained}`.

        `method` is integrated-gradients, saliency, occlusion or feature-ablation, by default the first if the version can, else
        the last. `target` is the class that is explained, or its number; None: each row's most probable one. `baseline` is what
        the input is held against, a number or a sample. docs/how-to/explain-predictions.md has the further
        options; errors are those of `predict`.
        """
        return self._submitter.explain(model, inputs, options)

    def job(self, id: str) -> Job:
        """The handle of an existing job, of its kind; JobNotFound when there is none of this id."""
        return open_handle(self.session, id)

    def jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        kind: str | None = None,
        model: Model | None = None,
        queue: str | None = None,
        worker: str | None = None,
        since: Since | None = None,
        metadata: Mapping[str, Any] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[JobInfo]:
        """The newest jobs that meet every filter, newest first; the last one's id as `before` gives the next page.

        `model` is a name, `name/3`, `name@alias` or a ModelVersion; `worker` is the one that ran them last. `since` is when they
        were submitted at the earliest: seconds ago, a timedelta or an aware datetime. `metadata` matches the jobs that carry
        these values.
        """
        states = [state] if isinstance(state, str) or not isinstance(state, Iterable) else list(state)
        name, version = self._model_filter(model)
        if type(limit) is not int or not 1 <= limit <= 10_000:
            raise InvalidInput(f"limit {shown(limit)} is not a whole number from 1 to 10000")
        filters: JobFilters = {
            "state": [_member(JobState, s, "state") for s in states if s is not None],
            "kind": _member(JobKind, kind, "kind") if kind is not None else None,
            "model": name,
            "version": version,
            "queue": self.settings.queue(queue).name if queue is not None else None,
            "worker": worker,
            "since": since_at(since, self.session.ledger.now()) if since is not None else None,
            "metadata": check_metadata(metadata),
        }
        page_end = check_job_id(before) if before is not None else None
        return self.session.jobs.queries.find(limit=limit, before=page_end, **filters)

    def retry_failed(self, model: Model | None = None, *, dry_run: bool = False) -> int:
        """Queue every failed and expired job again, those of `model` only when it is given; how many.

        Like `Job.retry` for each: same ids, attempts start anew, deadlines are gone. Jobs that succeeded or were canceled are
        not touched. It goes through the ledger once, some thousands of jobs to a transaction; jobs that fail again meanwhile
        are left alone. With `dry_run` they are only counted. What Redis does not take is sent by a later sweep.
        """
        session = self.session
        name, version = self._model_filter(model)
        if dry_run:
            return session.jobs.queries.count_failed(model=name, version=version)
        count, redis_answers = 0, True
        after_id: str | None = ""
        while after_id is not None:
            routed_jobs, after_id = session.jobs.retry_failed(model=name, version=version, after_id=after_id)
            ids = [job.id for job in routed_jobs]
            session.watcher.forget_outcomes(ids)
            if redis_answers:
                redis_answers = session.send(routed_jobs)
            else:  # one wait for it is enough
                session.sender.mark_unsent(ids, "Redis did not answer before")
            count += len(routed_jobs)
        return count

    def queues(self) -> list[QueueInfo]:
        """Every declared queue: how many jobs wait, may wait and run, the age of the oldest, its workers and capacity."""
        depths = self.session.jobs.queries.depths()
        workers = self.session.live_workers()
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

    def _model_filter(self, model: Model | None) -> tuple[str | None, int | None]:
        """`name`, `name/3` or `name@alias` as the name and version to look for."""
        if model is None:
            return None, None
        ref = parse_model(model)
        return ref.name, self.session.registry.get(ref).version if ref.alias else ref.version


def _member(enum: Any, value: Any, what: str) -> Any:
    try:
        return enum(value)
    except ValueError:
        raise InvalidInput(f"no {what} is called {shown(value)}; there are {', '.join(enum)}") from None
