"""Sets off standing trainings whose version has drifted, and deletes old counts.

It lists the files of data sets, so it belongs to the sweep that may wait for a slow store.
"""

from __future__ import annotations

import msgspec
import structlog

from forebay.contract.errors import ForebayError, LedgerUnavailable, ModelNotFound
from forebay.contract.job import JobKind, new_ids
from forebay.contract.requests.request import encode
from forebay.contract.settings import Settings
from forebay.datasets.formats.files import find_files
from forebay.datasets.formats.source import SUFFIXES
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import NewJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.drift import DriftStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.standing import StandingTraining, StandingTrainings

log = structlog.get_logger()


class DriftSweep:
    """Looks after drift in one ledger. Several at once are safe."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._drift, self._models, self._standing = DriftStore(ledger), ModelRegistry(ledger), StandingTrainings(ledger)
        self._payloads = Payloads(BlobStore(settings.blobs), settings)

    def sweep(self) -> list[str]:
        """The ids of the training jobs that were set off."""
        self._drift.forget()
        return [id for standing in self._standing.all() if (id := self._check(standing)) is not None]

    def _check(self, standing: StandingTraining) -> str | None:
        try:
            version = self._models.get(standing.watched)
        except ModelNotFound:
            return None
        revision = self._drift.revision(version.name, version.version)
        done = {(trigger.version, trigger.revision) for trigger in standing.triggers}
        if revision is None or (version.version, revision) in done:
            return None
        drift = self._drift.drift((version.name, version.version))
        worst = drift.worst if drift is not None else None
        if worst is None or worst.psi is None or worst.psi < standing.threshold:
            return None
        reason = f"{version.ref} drifted: {worst.side} {worst.name} has a PSI of {worst.psi:.3f}"
        try:
            job = self._job(standing, reason)
        except LedgerUnavailable:
            raise
        except (ForebayError, OSError) as error:
            log.warning("standing_training_failed", standing=standing.id, reason=reason, error=str(error))
            self._standing.set_problem(standing.id, f"{reason}, but {error}")
            return None
        if not self._standing.trigger(standing, version.version, revision, reason, job):
            return None
        log.info("standing_training", standing=standing.id, job=job.id, reason=reason)
        return job.id

    def _job(self, standing: StandingTraining, reason: str) -> NewJob:
        asked = standing.asked
        files = find_files(list(asked.dataset), SUFFIXES[asked.request.format])
        inline, ref = self._payloads.store(encode(msgspec.structs.replace(asked.request, files=tuple(files))))
        [id] = new_ids(1)
        return NewJob(
            id=id, kind=JobKind.TRAIN, model=standing.model, version=0, queue=asked.queue, priority=asked.priority,
            max_attempts=asked.max_attempts, metadata={**asked.request.metadata, "drift": reason}, input=inline, input_ref=ref,
            submitted_by=asked.submitted_by,
        )  # fmt: skip
