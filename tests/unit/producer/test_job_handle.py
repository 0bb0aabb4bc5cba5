"""A job's handle, without a ledger."""

from types import SimpleNamespace
from typing import Any

import pytest

from forebay.contract.errors import BlobCorrupt, BlobMissing, ForebayError
from forebay.contract.job import JobKind, JobState
from forebay.producer.handles.job import Job
from forebay.storage.jobs.records import Outcome

ID = "a" * 32


@pytest.mark.parametrize("kind", [BlobCorrupt, BlobMissing])
def test_a_result_that_cannot_be_read_names_its_job(kind: type[ForebayError]) -> None:
    def load(*_: object) -> bytes:
        raise kind("blob sha256:0 is damaged")

    session: Any = SimpleNamespace(payloads=SimpleNamespace(load=load))
    job = Job(session, ID)
    job.set_outcome(Outcome(ID, JobState.SUCCEEDED, None, "sha256:0", None, "w", 1, JobKind.PREDICT))
    with pytest.raises(kind, match=f"the result of job {ID} cannot be read: blob sha256:0 is damaged; submit it again"):
        job.result()
