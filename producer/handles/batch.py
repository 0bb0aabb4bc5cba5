"""BatchJob: the handle on a batch."""

from __future__ import annotations

import msgspec

from forebay.contract.requests.batch import BatchProgress
from forebay.contract.requests.manifest import Manifest
from forebay.producer.handles.job import Job
from forebay.storage.batches.views import BatchErrors, BatchViews


class BatchJob(Job):
    """A submitted batch."""

    __slots__ = ()

    @property
    def progress(self) -> BatchProgress:
        """How far it is: rows, shards, rows/s, the time that is left."""
        return self._session.batches.progress(self.id)

    @property
    def errors(self) -> BatchErrors:
        """Why rows of finished shards failed, and whole shards: kinds of errors, each with a few samples."""
        return BatchViews(self._session.ledger).errors(self.id)

    def result(self, timeout: float | None = None) -> Manifest:
        """The manifest of the output, with the counts of its rows; waits and raises like `Job.result`."""
        return msgspec.convert(self._value(timeout), Manifest)

    def _wait_with_progress(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.progress import watch_batch

        return watch_batch(self, timeout)
