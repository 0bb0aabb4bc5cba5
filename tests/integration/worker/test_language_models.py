"""A language model from a folder behind a real worker: predictions, data sets in OpenAI's form and others, schemas, kills."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay import JobFailed, as_completed
from forebay.contract.errors import InvalidInput
from forebay.worker.runtimes import get_runtime
from support.datasets import faults_of
from support.language_models import save_llama, version
from support.waiting import wait_until
from support.worker_stack import WorkerStack

GREEDY = {"temperature": 0, "max_tokens": 8}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["dam", "lock", "weir"]}, "maxItems": 3},
        "open": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "open"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker for all tests that do not harm it."""
    stack = open_stack(PRELOAD="torch")
    stack.worker()
    stack.client.models.register("llama", save_llama(stack.folder / "llama"))
    return stack


@pytest.fixture(scope="module")
def direct(stack: WorkerStack) -> Callable[[Any], Any]:
    """What the runtime itself gives for one request."""
    model = get_runtime("text-generation").load(stack.folder / "llama", "cpu", version())
    return lambda request: model.predict([model.preprocess(request)])[0]


def test_a_folder_answers_prompts_messages_and_bodies(stack: WorkerStack, direct: Callable[[Any], Any]) -> None:
    asked = [
        "Water",
        [{"role": "user", "content": "Why?"}],
        {"prompt": "Water", "n": 2, "seed": 3, "temperature": 1, "logprobs": 1, "max_tokens": 5},
    ]
    jobs = stack.client.predict_many("llama", asked)
    for request, job in zip(asked, jobs, strict=True):
        made, expected = job.result(120), direct(request)
        assert made["usage"] == expected["usage"]
        assert [c["text"] for c in made.get("choices", [made])] == [
            c["text"] for c in expected.get("choices", [expected])
        ]


def test_what_is_wrong_with_a_row_fails_it_alone_among_a_hundred(stack: WorkerStack) -> None:
    bad = {
        7: ({"prompt": [5] * 2000}, "the prompt has 2,000 tokens"),
        40: ({"prompt": [5, 9999]}, "9999 is not a token"),
        70: ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, "system comes first"),
    }  # fmt: skip
    asked = [bad[i][0] if i in bad else {"prompt": [5, 3 + i], **GREEDY} for i in range(100)]
    jobs = stack.client.predict_many("llama", asked)
    assert len(list(as_completed(jobs, 120))) == 100
    for i, job in enumerate(jobs):
        if i not in bad:
            assert job.result(0)["usage"]["prompt_tokens"] == 2
            continue
        with pytest.raises(JobFailed, match=bad[i][1]) as caught:
            job.result(0)
        assert caught.value.type == "InvalidInput"


def test_what_is_no_request_for_text_is_refused_at_submit(stack: WorkerStack) -> None:
    with pytest.raises(InvalidInput, match=r"llama/1: max_tokens: expected a whole number, from 1 .*, got 0"):
        stack.client.predict("llama", {"prompt": "x", "max_tokens": 0})
    with pytest.raises(InvalidInput, match=r"inputs\[1\]: .*'tools': this field is not supported"):
        stack.client.predict_many("llama", ["x", {"messages": [{"role": "user", "content": "x"}], "tools": []}])


def test_a_job_is_canceled_between_two_tokens(stack: WorkerStack) -> None:
    long = {"prompt": "Water", "n": 128, "max_tokens": 900, "temperature": 1}
    job = stack.client.predict("llama", long)
    wait_until(lambda: str(job.state) == "running", "it runs")
    job.cancel()
    assert job.wait(60)
    assert str(job.state) == "canceled"


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parts(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(out.glob("part-*.jsonl")) for line in file.read_text().splitlines()]


def test_lines_in_openais_form_come_out_in_its_form(
    stack: WorkerStack, direct: Callable[[Any], Any], tmp_path: Path
) -> None:
    chat = {"model": "gpt", "messages": [{"role": "user", "content": "Why?"}], "user": "me", **GREEDY}
    text = {"model": "gpt", "prompt": "Water", "logprobs": 1, **GREEDY}
    rows = [
        {"custom_id": f"line-{i}", "method": "POST", "url": url, "body": body}
        for i, (url, body) in enumerate([("/v1/chat/completions", chat), ("/v1/completions", text)] * 30)
    ]
    rows[5]["body"] = chat | {"best_of": 3}
    job = stack.client.batch("llama", lines(tmp_path / "in.jsonl", rows), tmp_path / "out")
    manifest = job.result(120)
    assert faults_of(job) == []
    found = parts(tmp_path / "out")
    assert [line["custom_id"] for line in found] == [f"line-{i}" for i in range(60) if i != 5]
    chat_body, text_body = found[0]["response"]["body"], found[1]["response"]["body"]
    expected = direct({"messages": chat["messages"], **GREEDY})
    assert chat_body["object"] == "chat.completion"
    assert chat_body["choices"][0]["message"]["content"] == expected["text"]
    assert chat_body["usage"] == expected["usage"]
    assert text_body["choices"][0]["text"] == direct({"prompt": "Water", **GREEDY})["text"]
    assert len(text_body["choices"][0]["logprobs"]["tokens"]) == text_body["usage"]["completion_tokens"]
    [error] = parts(tmp_path / "out/_errors")
    assert "'best_of': this field is not supported" in error["error"]["message"]
    assert manifest.usage["completion_tokens"] == sum(
        line["response"]["body"]["usage"]["completion_tokens"] for line in found
    )


def test_bare_bodies_keep_their_columns(stack: WorkerStack, direct: Callable[[Any], Any], tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": [5, 3 + i], **GREEDY} for i in range(20)]
    rows[3] = {"id": 3, "messages": [{"role": "user", "content": "Why?"}]}
    job = stack.client.batch(
        "llama", lines(tmp_path / "in.jsonl", rows), tmp_path / "out", keep=["id", "prompt"], output_format="jsonl"
    )  # fmt: skip
    job.result(120)
    found = parts(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(20))
    assert (
        json.loads(found[7]["completion"])["text"]
        == direct(rows[7]["prompt"] and {"prompt": [5, 10], **GREEDY})["text"]
    )


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_a_column_of_a_table_is_prompts_or_conversations(
    stack: WorkerStack, direct: Callable[[Any], Any], tmp_path: Path, column: str
) -> None:
    given = [f"Water {i}" if column == "prompt" else [{"role": "user", "content": f"Why {i}?"}] for i in range(12)]
    table = pa.table({"id": range(12), column: given, "max_tokens": [4 + i % 3 for i in range(12)]})
    pq.write_table(table, tmp_path / "in.parquet")
    columns = None if column == "messages" else ["prompt", "max_tokens"]
    job = stack.client.batch("llama", tmp_path / "in.parquet", tmp_path / "out", columns=columns, keep="id")
    job.result(120)
    [file] = (tmp_path / "out").glob("part-*.parquet")
    made = [json.loads(text) for text in pq.read_table(file)["completion"].to_pylist()]
    expected = given[5] if column == "messages" else {"prompt": given[5], "max_tokens": 6}
    assert made[5] == direct(expected)


def test_a_hundred_of_a_hundred_texts_follow_their_schema_at_temperature_1(stack: WorkerStack) -> None:
    model = get_runtime("text-generation").load(stack.folder / "llama", "cpu", version(max_batch_size=100))
    format_ = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    asked = {"prompt": "A person:", "temperature": 1, "max_tokens": 200, "response_format": format_}
    made = model.predict([model.preprocess(asked | {"seed": seed}) for seed in range(100)])
    assert {result["finish_reason"] for result in made} == {"stop"}
    validator = jsonschema_rs.validator_for(PERSON)
    for result in made:
        validator.validate(json.loads(result["text"]))
    assert len({result["text"] for result in made}) > 90


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_lines_come_out_once_though_their_child_is_killed_ten_times(tmp_path: Path, broker: str) -> None:
    chance = random.Random(5)
    rows = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions",
         "body": {"prompt": [chance.randrange(3, 600) for _ in range(chance.randint(1, 200))], "seed": i, "temperature": 1.0,
                  "max_tokens": 40}}
        for i in range(2000)
    ]  # fmt: skip
    with closing(WorkerStack(tmp_path, broker, PRELOAD="torch")) as stack:
        stack.client.models.register("llama", save_llama(tmp_path / "llama"))
        worker = stack.worker().ready()
        source = lines(tmp_path / "in.jsonl", rows)
        calm = stack.client.batch("llama", source, tmp_path / "calm", shard_rows=50)
        calm.result(600)
        job = stack.client.batch("llama", source, tmp_path / "out", shard_rows=50)
        for kill in range(10):
            done = job.progress.completed
            wait_until(lambda done=done: job.progress.completed > done or job.done(), "rows were finished", 300)
            threading.Event().wait(chance.uniform(0, 1))
            assert not job.done(), f"the batch ended before kill {kill}"
            os.kill(worker.children()[0], signal.SIGKILL)
        job.result(600)
        assert faults_of(job) == []
        shards = stack.store.queries.find(parent_id=job.id, limit=1000)
        attempts = sum(len(stack.store.queries.past_attempts(shard.id)) for shard in shards)
    found, expected = parts(tmp_path / "out"), parts(tmp_path / "calm")
    assert [line["custom_id"] for line in found] == [str(i) for i in range(2000)]
    texts = [[line["response"]["body"]["choices"][0]["text"] for line in made] for made in (found, expected)]
    assert texts[0] == texts[1]
    assert attempts <= 20  # at each kill the shard that ran, and the one read ahead
