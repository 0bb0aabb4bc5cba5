"""Fine-tuning as a job: killed, gone on, registered, promoted, served beside its base, and evaluated."""

from pathlib import Path
from typing import Any

import pytest

from forebay import InvalidInput, JobFailed
from forebay.contract.job import JobState
from support.conversations import conversations, write_lines
from support.language_models import save_llama
from support.training_stack import LONG_S, TrainingStack
from support.waiting import wait_until

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def tune(training: TrainingStack, data: Path, epochs: int, **more: Any) -> str:
    job = training.client.train(
        "tuned", recipe="finetune-text", dataset=data, alias="champion", checkpoint_steps=20,
        params={"base": "llama", "epochs": epochs, "lr": 0.01, "rank": 4, "schedule": "cosine"}, **more,
    )  # fmt: skip
    return job.id


def test_a_killed_fine_tuning_goes_on_and_its_adapter_is_served_beside_its_base(
    training: TrainingStack, tmp_path: Path
) -> None:
    client = training.client
    client.models.register("llama", save_llama(tmp_path / "llama"), max_batch_size=16)
    write_lines(tmp_path / "chat.jsonl", conversations())
    training.trainer().ready()
    calm, killed = (tune(training, tmp_path / "chat.jsonl", 25, metadata={"n": n}) for n in (1, 2))
    training.await_end(calm)
    training.await_step(killed, 25)
    wait_until(lambda: training.stored(killed), "a checkpoint is stored", LONG_S)
    for process in training.trainers():
        process.kill()
    training.await_end(killed)
    assert training.resumed()
    assert training.store.queries.get(killed).attempt == 2
    one, other = (training.result(id) for id in (calm, killed))
    assert other["metrics"] == pytest.approx(one["metrics"], rel=1e-3)
    assert (one["version"], one["promoted"]) == (1, True)
    assert one["metrics"]["perplexity"] < 3
    tuned = client.models.get("tuned@champion")
    assert (tuned.runtime, str(tuned.base), tuned.max_batch_size) == ("text-generation", "llama/1", 16)
    assert tuned.artifact_bytes < 200_000
    assert tuned.metadata["lineage"]["params"]["base"] == "llama/1"
    with pytest.raises(InvalidInput, match="would have no base without llama/1"):
        client.models.delete("llama/1")

    worker = training.worker("w1", "cpu").ready()
    rows = [row["messages"][:1] for row in conversations(28)]
    asked = [{"messages": row, "max_tokens": 12, "temperature": 0} for row in rows]
    answers, plain = ([job.result(LONG_S)["text"] for job in client.predict_many(m, asked)] for m in (tuned, "llama/1"))
    expected = [row["messages"][1]["content"] for row in conversations(28)]
    right = sum(answer == truth for answer, truth in zip(answers, expected, strict=True))
    assert right > 14 > 3 * sum(answer == truth for answer, truth in zip(plain, expected, strict=True))
    assert worker.process.poll() is None

    long = [{"role": "user", "content": "x " * 2000}, {"role": "assistant", "content": "y"}]
    write_lines(tmp_path / "held.jsonl", [*conversations(28), {"messages": long}])
    found = client.evaluate(tuned, tmp_path / "held.jsonl", target="messages").result(LONG_S)
    assert found.metrics["exact_match"] == pytest.approx(right / 28)
    assert (found.rows, found.failed) == (28, 1)
    assert 1 < found.metrics["perplexity"] < 3
    whole = client.evaluate("llama", tmp_path / "held.jsonl", target="messages").result(LONG_S)
    assert whole.metrics["perplexity"] > 50


def test_a_base_that_is_gone_fails_the_job_in_words(training: TrainingStack, tmp_path: Path) -> None:
    training.client.models.register("llama", save_llama(tmp_path / "llama"))
    write_lines(tmp_path / "chat.jsonl", conversations(40))
    id = tune(training, tmp_path / "chat.jsonl", 1)
    training.client.models.delete("llama/1")
    training.trainer().ready()
    training.await_end(id, JobState.FAILED)
    with pytest.raises(JobFailed, match="no model is called 'llama'"):
        training.client.job(id).result(0)


def test_two_processes_learn_what_one_does(training: TrainingStack, tmp_path: Path) -> None:
    training.client.models.register("llama", save_llama(tmp_path / "llama"))
    write_lines(tmp_path / "chat.jsonl", conversations(100))
    training.trainer().ready()
    ids = [tune(training, tmp_path / "chat.jsonl", 3, nproc=nproc) for nproc in (1, 2)]
    for id in ids:
        training.await_end(id)
    alone, together = (training.result(id)["metrics"] for id in ids)
    assert together == pytest.approx(alone, rel=1e-3)
