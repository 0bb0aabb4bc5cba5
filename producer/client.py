"""Client: the door for users. Checks what it is given, makes jobs durable, and hands out Job handles.

Everything a submit can refuse it refuses before anything is stored. Knows the ledger and the queue; loads no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.requests.training import Split
from forebay.datasets import require_pyarrow
from forebay.producer.handles.job import Job
from forebay.producer.options import Deadline
from forebay.producer.submitting import Submitting


class Client(Submitting):
    """Submits jobs and reads results. Thread-safe; a context manager; one per process is enough."""

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int = 5,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        batched: bool = False,
    ) -> Job:
        """Submit one job and return once it is durable.

        `model` is `name`, `name/3` or `name@alias`, resolved now. `inputs` is one sample (or a batch of them, with
        `batched`): a NumPy array or torch tensor, str, bytes, a number, or a dict or list of those. `priority` runs from 0
        (first) to 9, `deadline` is seconds from now, a timedelta or an aware datetime. The same `idempotency_key` and
        request give the existing job. Raises InvalidInput, PayloadTooLarge, ModelNotFound, NoQueueFits, QueueFull or
        LedgerUnavailable, and then nothing was stored.
        """
        terms = self._terms(model, priority, queue, deadline, max_attempts, idempotency_key, metadata, batched)
        return self._submit(terms, [self._packed(terms, inputs, "")])[0]

    def predict_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        priority: int = 5,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        batched: bool = False,
    ) -> list[Job]:
        """Submit one job per input, all or none, in one transaction; the handles come in the order of the inputs.

        Takes what `predict` takes; job i of an `idempotency_key` has the key `key:i`. Errors name the input's index.
        """
        terms = self._terms(model, priority, queue, deadline, max_attempts, idempotency_key, metadata, batched)
        packed = [self._packed(terms, value, f"inputs[{i}]: ") for i, value in enumerate(_several(inputs))]
        return self._submit(terms, packed) if packed else []

    def batch(
        self,
        model: str,
        input: str | Path | Sequence[str | Path],
        output: str | Path,
        *,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        keep: str | Sequence[str] | None = None,
        format: str | None = None,
        shard_rows: int | None = None,
        error_threshold: int | float | None = None,
        priority: int = 7,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 5,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Job:
        """Run a model over a data set and write another one; returns once the batch is durable, its shards run on workers.

        `input` is a path, glob, folder or URL, or several: Parquet, Arrow, .npy, CSV, JSON lines, images. `output` is a folder
        that is empty, or has the same request's unfinished batch, which then goes on. `columns` names what goes into the model:
        a column, several numeric ones that make a vector, or `{input: column}`. `keep` are columns copied to the output; without
        any it has each row's place. `error_threshold` fails the batch when more rows fail: a number of rows or a share.
        `result()` gives the manifest. Raises InvalidInput, naming file, column, expected and found, MissingExtra, and what
        `predict` raises; then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer.requests import batch as batches

        terms = self._terms(
            model, priority, queue, deadline, max_attempts, idempotency_key, metadata, False, JobKind.BATCH
        )
        request = batches.make_request(
            terms.model, input, output, columns=columns, keep=keep, format=format, shard_rows=shard_rows,
            error_threshold=error_threshold,
        )  # fmt: skip
        return batches.submit(self, terms, request)

    def train(
        self,
        model: str,
        *,
        recipe: str,
        dataset: str | Path | Sequence[str | Path],
        target: str | None = None,
        params: Mapping[str, Any] | None = None,
        features: str | Sequence[str] | None = None,
        missing: str = "drop",
        split: Split | Mapping[str, Any] | None = None,
        seed: int = 0,
        metric: str | None = None,
        alias: str | None = None,
        format: str | None = None,
        nproc: int = 1,
        nodes: int = 1,
        resources: Mapping[str, Any] | None = None,
        checkpoint_steps: int | None = None,
        checkpoint_minutes: float | None = 5.0,
        checkpoint_keep: int = 3,
        max_batch_size: int = 256,
        priority: int = 5,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 10,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Job:
        """Train the next version of `model` from a data set; returns once the job is durable. `result()` gives the version.

        `recipe` and `params` are those of `forebay recipes`, `dataset` is what `batch` takes, and .npz; a folder of images has
        the column `label`, the name of the folder each is in. `features` are the columns to learn from (all but the target),
        `missing` is `drop`, `mean` or `constant:VALUE`. `split` has shares, `{"validation": 0.1, "test": 0.2}`, and may name a
        `key` whose equal values stay together; or it names a `column` whose values are train, validation and test. `metric`
        judges; `alias` moves to the new version if that is better by it than the one it names. `nproc` processes run on each
        of `nodes` machines. The state is saved after every `checkpoint_steps` steps or `checkpoint_minutes` minutes, and a later
        attempt or `retry` goes on from there. `resources` are needed to train and to serve, `max_batch_size` and `metadata` go
        to the version. Raises InvalidInput, MissingExtra, and what `predict` raises; then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer.requests import training

        asked = training.Asked(
            recipe, dataset, target, format, params, features, missing, split, seed, metric, alias, nproc, nodes, resources,
            checkpoint_steps, checkpoint_minutes, checkpoint_keep, max_batch_size, metadata,
        )  # fmt: skip
        terms = self._terms_for(
            training.draft(model, asked), JobKind.TRAIN, priority, queue, deadline, max_attempts, idempotency_key, metadata
        )  # fmt: skip
        request = training.make_request(asked)
        return self._submit_request(terms, JobKind.TRAIN, request.dump(), request.fingerprint(model))

    def evaluate(
        self,
        model: str,
        dataset: str | Path | Sequence[str | Path],
        *,
        target: str,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        output: str | None = None,
        format: str | None = None,
        priority: int = 7,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Job:
        """Try a version of any runtime on a data set whose column `target` says what is true; `result()` gives an Evaluation.

        `columns` is what `batch` takes; left out, it is the columns that the version was trained on. `output` is the model's
        output that is held against the target: a label, a number, or scores of classes; left out, `label` and `probabilities`,
        or the only one. What comes out is stored with the version. Raises what `batch` raises; then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer.requests import evaluation

        terms = self._terms(
            model, priority, queue, deadline, max_attempts, idempotency_key, metadata, False, JobKind.EVALUATE
        )
        request = evaluation.make_request(
            terms.model, dataset, target=target, columns=columns, output=output, format=format,
            learnt_from=self._training.data_of(terms.model),
        )  # fmt: skip
        return self._submit_request(terms, JobKind.EVALUATE, request.dump(), request.fingerprint(terms.model.ref))


def _several(inputs: Any) -> Iterable[Any]:
    try:
        if not isinstance(inputs, str | bytes | Mapping):
            several: Iterable[Any] = iter(inputs)
            return several
    except TypeError:  # nothing to iterate over, or an array without a dimension
        pass
    raise InvalidInput(f"predict_many takes a sequence of inputs, got one {type(inputs).__name__}; use predict")
