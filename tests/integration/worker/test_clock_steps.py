"""The machine's clock is set while workers and a client are at work: no job is lost, run twice or held back."""

import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from forebay import as_completed
from support.waiting import wait_until
from support.worker_stack import WorkerStack

# Every Python process of the stack reads it when it starts.
SITECUSTOMIZE = """
import time
_true = time.time
def _set():
    try:
        with open({steps!r}) as file:
            return _true() + float(file.read() or 0)
    except FileNotFoundError:
        return _true()
time.time = _set
"""


STEPS = [86_400, -86_400, *(pytest.param(step_s, marks=pytest.mark.slow) for step_s in (600, -600))]


@pytest.mark.parametrize("step_s", STEPS)
def test_a_clock_that_is_set_costs_no_job_an_attempt(
    tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    steps, true = tmp_path / "step", time.time
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE.format(steps=str(steps)))
    monkeypatch.syspath_prepend(str(tmp_path))
    with closing(WorkerStack(tmp_path, broker)) as stack:
        worker = stack.worker().ready()
        model = stack.model("Recorder", max_batch_size=1)
        stack.hold()
        held = stack.client.predict(model, {"n": 0}, deadline=300)
        stack.wait_until_held()
        steps.write_text(str(step_s))
        monkeypatch.setattr(time, "time", lambda: true() + step_s)
        until = time.monotonic() + 1.5 * stack.settings.lease_s
        wait_until(lambda: time.monotonic() > until, "its lease would have lapsed")
        jobs = [held, *stack.client.predict_many(model, [{"n": n} for n in range(1, 10)], deadline=300)]
        stack.go_on()
        assert Counter(str(job.state) for job in as_completed(jobs, 120)) == {"succeeded": 10}
        assert {job.info().attempt for job in jobs} == {1}
        assert sorted(stack.runs()) == list(range(10))
        assert worker.alive
        assert "event=lease_lost" not in worker.said()
