"""How a worker fills its batches: out of memory, texts of unlike length, a hold, a warm-up, two models in too small a cache."""

from collections import Counter
from contextlib import closing
from pathlib import Path

from forebay import as_completed
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from support.waiting import wait_until
from support.worker_stack import WorkerStack


def test_out_of_memory_halves_the_batch_and_a_second_worker_starts_at_the_remembered_ceiling(own: WorkerStack) -> None:
    model = own.model("Narrow", max_batch_size=128)
    jobs = own.client.predict_many(model, range(300))
    first = own.worker("w1").ready()
    assert Counter(str(job.state) for job in as_completed(jobs, 120)) == {"succeeded": 300}
    assert [job.result() for job in jobs] == [2 * i for i in range(300)]
    assert max(own.runs()) > 40
    ledger = Ledger(own.client.settings.database)
    try:
        ceiling = CeilingStore(ledger, "cpu").get(model.partition("/")[0], 1)
    finally:
        ledger.close()
    assert ceiling is not None
    assert 20 <= ceiling.rows <= 40
    first.terminate()
    seen = len(own.runs())
    own.worker("w2").ready()
    more = own.client.predict_many(model, range(300))
    assert Counter(str(job.state) for job in as_completed(more, 120)) == {"succeeded": 300}
    assert max(own.runs()[seen:]) <= ceiling.rows


def test_texts_of_like_length_share_a_batch_within_the_bound_of_tokens(own: WorkerStack) -> None:
    model = own.model("Lengths", max_batch_size=16, max_batch_tokens=64)
    texts = ["word " * n for n in (1, 30, 2, 31, 3, 32, 1, 2)]
    jobs = own.client.predict_many(model, texts)
    own.worker().ready()
    results = [job.result(120) for job in jobs]
    assert [tuple(result) for result in results] == [(4, 2), (2, 30), (4, 2), (2, 32), (2, 30), (2, 32), (4, 2), (4, 2)]
    assert all(size * longest <= 64 for size, longest in results)


def test_a_hold_gathers_separate_jobs_into_one_batch(own: WorkerStack) -> None:
    model = own.model("Lengths", max_batch_size=4, batch_wait_timeout_s=20.0)
    own.worker().ready()
    jobs = [own.client.predict(model, "one word more") for _ in range(4)]
    assert [job.result(120) for job in jobs] == [[4, 3]] * 4


def test_a_hold_ends_by_itself_when_nothing_more_comes(own: WorkerStack) -> None:
    model = own.model("Lengths", max_batch_size=4, batch_wait_timeout_s=0.2)
    own.worker().ready()
    assert own.client.predict(model, "alone").result(120) == [1, 1]


def test_a_version_can_be_loaded_before_its_first_job(own: WorkerStack) -> None:
    model = own.model("Doubler")
    assert own.client.models.warm(model) == []
    worker = own.worker().ready()
    assert len(own.client.models.warm(model)) == 1
    wait_until(lambda: "event=model_loaded" in worker.said(), "the worker has loaded the version")
    assert own.client.predict(model, 3).result(120) == 6


def test_two_models_that_do_not_fit_together_alternate(tmp_path: Path, broker: str) -> None:
    with closing(WorkerStack(tmp_path, broker, MODEL_CACHE_BYTES="1500")) as stack:
        models = [stack.model("Heavy", "one"), stack.model("Heavy", "two")]
        worker = stack.worker().ready()
        for i in range(3):
            assert [stack.client.predict(model, i).result(120) for model in models] == [2 * i, 2 * i]
        assert worker.said().count("event=model_loaded") == 6
        assert worker.said().count("event=model_evicted") == 5
