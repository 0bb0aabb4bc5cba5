"""Jobs and batches of a model that another server runs, by real workers: against a server with moods, and a second Forebay."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay import ForebayError, JobFailed
from forebay.contract.generation import INPUTS, OUTPUTS
from forebay.contract.job import JobState
from support.api import running_api
from support.endpoint import Endpoint, backwards, endpoint, tokens
from support.waiting import wait_until
from support.worker_stack import WorkerStack


@pytest.fixture(scope="module")
def served() -> Iterator[Endpoint]:
    with endpoint(seconds=0.002) as served:
        yield served


@pytest.fixture(scope="module")
def stack(served: Endpoint, open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    stack = open_stack(ALLOWED_ENDPOINTS=f"{served.url} NO_SUCH_KEY", SHUTDOWN_GRACE_S="20")
    stack.worker("r1", "remote").ready()
    options = {"base_url": served.url, "model": "m", "endpoint": "completions"}
    stack.client.models.register("qwen", runtime="openai", options=options, timeout_s=20)
    return stack


@pytest.fixture(autouse=True)
def _in_good_mood(served: Endpoint) -> Iterator[None]:
    yield
    served.gate.set()
    served.moods.clear()
    served.asked.clear()
    served.answered.clear()
    served.cut_off = 0


def prompts_of(folder: Path, count: int) -> tuple[Path, list[str]]:
    prompts = [f"line {i}" for i in range(count)]
    pq.write_table(pa.table({"id": range(count), "prompt": prompts}), folder / "in.parquet")
    return folder / "in.parquet", prompts


def rows_of(folder: Path) -> list[tuple[int, str]]:
    """The ids and texts of a batch's parts, in the order of their names."""
    parts = [pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))]
    return [(row["id"], msgspec.json.decode(row["completion"])["text"]) for part in parts for row in part.to_pylist()]


def usage_of(prompts: list[str]) -> dict[str, int]:
    prompt, completion = (sum(counts) for counts in zip(*map(tokens, prompts), strict=True))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def test_a_job_s_result_has_the_text_and_what_it_cost(stack: WorkerStack) -> None:
    made = stack.client.predict("qwen", {"prompt": "one two", "max_tokens": 5}).result(60)
    assert made == {"text": "owt eno", "finish_reason": "length", "usage": usage_of(["one two"])}


def test_a_job_whose_request_fails_is_tried_again_later_and_one_that_is_refused_fails_in_the_server_s_words(
    stack: WorkerStack, served: Endpoint
) -> None:
    served.moods = {"unlucky": [500], "bad": [422]}
    jobs = stack.client.predict_many("qwen", ["unlucky", "bad", "fine"])
    assert [jobs[0].result(60)["text"], jobs[2].result(60)["text"]] == ["ykculnu", "enif"]
    assert jobs[0].info().attempt == 2
    with pytest.raises(JobFailed, match=r"EndpointError.*422: no 'bad' today"):
        jobs[1].result(60)
    assert served.asked == {"unlucky": 2, "bad": 1, "fine": 1}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"options": {"base_url": "http://elsewhere/v1", "model": "m"}}, "http://elsewhere/v1 is not allowed"),
        ({"options": {"model": "m"}}, "missing required field `base_url`"),
        ({"artifact": __file__}, "has no artifact"),
        ({"inputs": {"x": {"dtype": "str"}}}, "its endpoint tells its inputs"),
        ({"dtype": "float16"}, "are for the server that runs the model"),
        ({"resources": {"gpu": 1}}, "needs 1 gpu, the largest queue 'remote' has 0"),
    ],
)
def test_what_will_not_do_is_refused_before_anything_runs(
    stack: WorkerStack, served: Endpoint, given: dict[str, Any], words: str
) -> None:
    about = {"options": {"base_url": served.url, "model": "m"}} | given
    with pytest.raises(ForebayError, match=re.escape(words)):
        stack.client.predict(stack.client.models.register("wrong", runtime="openai", **about), "hello")


def test_a_cancel_cuts_a_request_off(stack: WorkerStack, served: Endpoint) -> None:
    served.moods = {"for ever": ["slow"]}
    job = stack.client.predict("qwen", "for ever")
    wait_until(lambda: served.asked["for ever"], "it is asked")
    job.cancel()
    wait_until(lambda: job.info().state is JobState.CANCELED, "it is canceled", 60)
    wait_until(lambda: served.cut_off == 1, "the server has noticed")


def test_a_job_past_its_deadline_is_cut_off(stack: WorkerStack, served: Endpoint) -> None:
    served.moods = {"for ever": ["slow"]}
    job = stack.client.predict("qwen", "for ever", deadline=2)
    wait_until(lambda: job.info().state is JobState.EXPIRED, "it is expired", 60)
    wait_until(lambda: served.cut_off == 1 or not served.asked, "the server has noticed")


def test_a_batch_that_is_canceled_cuts_its_requests_off(stack: WorkerStack, served: Endpoint, tmp_path: Path) -> None:
    file, _ = prompts_of(tmp_path, 50)
    served.gate.clear()
    job = stack.client.batch("qwen", file, output=tmp_path / "out", columns={"request": "prompt"})
    running = wait_until(lambda: served.running, "requests are on their way")
    job.cancel()
    wait_until(lambda: served.cut_off >= running, "the server has noticed")
    wait_until(lambda: job.info().state is JobState.CANCELED, "it is canceled")


def test_a_batch_has_every_row_in_order_its_bad_one_apart_and_sums_what_it_cost(
    stack: WorkerStack, served: Endpoint, tmp_path: Path
) -> None:
    file, prompts = prompts_of(tmp_path, 400)
    served.moods = {"line 7": [400], "line 90": ["late"], "line 91": [500], "line 92": ["cut"], "line 93": ["wrong"]}
    job = stack.client.batch("qwen", file, output=tmp_path / "out", columns={"request": "prompt"}, keep=["id"])
    manifest = job.result(120)
    good = [p for p in prompts if p != "line 7"]
    assert rows_of(tmp_path / "out") == [(i, backwards(p)) for i, p in enumerate(prompts) if i != 7]
    assert manifest.counts.failed == 1
    assert manifest.usage == usage_of(good)
    errors = [row for f in (tmp_path / "out" / "_errors").glob("*.parquet") for row in pq.read_table(f).to_pylist()]
    assert [(row["row"], row["error"]) for row in errors] == [(7, "EndpointError")]
    assert served.answered == dict.fromkeys(good, 1)


def test_a_child_that_is_killed_amid_a_batch_costs_few_lines_and_no_line_is_written_twice(
    stack: WorkerStack, served: Endpoint, tmp_path: Path
) -> None:
    file, prompts = prompts_of(tmp_path, 400)
    worker = stack.workers[0]
    job = stack.client.batch("qwen", file, output=tmp_path / "out", columns={"request": "prompt"}, keep=["id"])
    for share in (100, 250):
        wait_until(lambda share=share: served.answered.total() > share, "a part is done")
        served.gate.clear()
        wait_until(lambda: served.running, "some are on their way")
        [child] = worker.children()
        os.kill(child, signal.SIGKILL)
        served.gate.set()
    manifest = job.result(120)
    assert rows_of(tmp_path / "out") == [(i, backwards(p)) for i, p in enumerate(prompts)]
    assert manifest.usage == usage_of(prompts)
    assert served.answered.total() - len(prompts) < 2 * 64
    assert max(served.asked.values()) <= 3


def test_a_worker_that_is_to_stop_waits_for_no_answer(stack: WorkerStack, served: Endpoint) -> None:
    served.gate.clear()
    worker = stack.worker("r2", "remote").ready()
    jobs = stack.client.predict_many("qwen", [f"held {i}" for i in range(200)])
    wait_until(lambda: served.running > 10, "both workers wait for answers")
    assert worker.terminate() == 0
    served.gate.set()
    assert [job.result(60)["text"] for job in jobs] == [backwards(f"held {i}") for i in range(200)]


@pytest.fixture(scope="module")
def front(open_stack: Callable[..., WorkerStack]) -> Iterator[WorkerStack]:
    """A Forebay whose models a second one runs."""
    second = open_stack()
    second.worker()
    second.model("Writer", inputs=INPUTS, outputs=OUTPUTS)
    vector = {"v": {"dtype": "float32", "shape": [2]}}
    second.model("Measure", inputs={"text": {"dtype": "str"}}, outputs=vector)
    with running_api(second.settings) as api:
        url = f"http://127.0.0.1:{api.port}/v1"
        front = open_stack(ALLOWED_ENDPOINTS=url)
        front.worker("front", "remote")
        for name, about in {"chat": {"model": "writer"}, "embeddings": {"model": "measure"}}.items():
            front.client.models.register(name, runtime="openai", options={"base_url": url, "endpoint": name} | about)
        yield front


def test_a_second_forebay_answers_jobs_and_batches_and_says_what_is_wrong(front: WorkerStack, tmp_path: Path) -> None:
    texts = [f"word {i} x" + "x" * (i % 7) for i in range(150)]
    jobs = front.client.predict_many("chat", [{"prompt": text, "n": 2} for text in texts])
    made = [job.result(120) for job in jobs]
    assert [[one["text"] for one in each["choices"]] for each in made] == [[text, text.upper()] for text in texts]
    words = [len(text.split()) for text in texts]
    assert [each["usage"]["completion_tokens"] for each in made] == [2 * n for n in words]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    front.client.batch("embeddings", tmp_path / "in.parquet", output=tmp_path / "out", keep=["text"]).result(120)
    parts = [pq.read_table(part).to_pylist() for part in sorted((tmp_path / "out").glob("part-*.parquet"))]
    assert [(row["text"], row["embedding"]) for part in parts for row in part] == [(t, [len(t), 1]) for t in texts]
    wrong = {"base_url": front.client.models.get("chat").options["base_url"], "model": "no-such"}
    front.client.models.register("wrong", runtime="openai", options=wrong)
    with pytest.raises(JobFailed, match="404: no model is called 'no-such'"):
        front.client.predict("wrong", "hello").result(60)
