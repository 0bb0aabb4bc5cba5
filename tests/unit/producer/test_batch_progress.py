"""What the bar of a batch says beside itself."""

from dataclasses import replace

from forebay.contract.job import JobState
from forebay.contract.requests.batch import BatchProgress
from forebay.producer.waiting.progress import summary

PROGRESS = BatchProgress(4000, 1500, 2, True, {JobState.SUCCEEDED: 1, JobState.RUNNING: 0}, 0.4, 500.0, 5.0)


def test_a_batch_says_planning_until_its_total_is_known() -> None:
    assert summary(PROGRESS) == "1,500 rows, 2 failed · shards: 1 succeeded · 500 rows/s · 5 s left"
    assert summary(replace(PROGRESS, planned=False)).endswith(" · 5 s left (planning)")
    assert summary(replace(PROGRESS, planned=False, eta_s=None)).endswith(" · planning")
    assert "left" not in summary(replace(PROGRESS, eta_s=None))
