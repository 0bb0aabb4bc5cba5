"""The producer's commands on a real SQLite ledger. Redis is away, which is legal: jobs wait, or the test runs them."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from forebay import Client
from forebay.contract import generation
from forebay.contract.job import JobError, JobKind, Transition
from forebay.contract.row_errors import ErrorKind, ErrorSample
from forebay.contract.wire import codec
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import JobMessage
from forebay.contract.wire.payload import join_rows, unpack_input
from forebay.producer.cli import jobs as jobs_module
from forebay.producer.cli import options as options_module
from forebay.producer.cli.models import registry as models_module
from forebay.producer.cli.views import results as results_module
from forebay.storage.jobs.records import ClaimedJob, Finished
from forebay.storage.jobs.views import JobViews
from support.batches import MadeBatch
from support.commands import PAIR, Shell, app

NO_JOB = "0190f3c2a1b47c3e9d5f60718293a4b5"


@pytest.fixture
def worker(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    """Call it with a function of one row: every job sent from then on is run by it at once."""

    def start(model: Callable[[Any], Any]) -> None:
        def send(_self: Dispatcher, batch: Sequence[JobMessage]) -> None:
            for job_message in batch:
                claimed = shell.store.claim(job_message.args.ids, "w@host", 30)
                shell.store.finish([finished(job, model) for job in claimed])

        monkeypatch.setattr(Dispatcher, "send", send)

    return start


def finished(job: ClaimedJob, model: Callable[[Any], Any]) -> Finished:
    batched, rows, *_ = unpack_input(job.input or b"")
    try:
        made = [model(row) for row in rows]
    except ValueError as error:
        return Finished(job.id, job.attempt, error=JobError("ValueError", str(error)))
    return Finished(job.id, job.attempt, codec.encode(join_rows(made) if batched else made[0]))


def double(row: Any) -> Any:
    if float(row["x"].sum()) < 0:
        raise ValueError("a negative sum")
    return row["x"] * 2


SCORES = '{"s": {"dtype": "float32", "shape": [2], "classes": ["cat", "dog"]}}'


def test_explain_prints_the_parts_that_count_most_first(
    shell: Shell, worker: Callable[[Callable[[Any], Any]], None]
) -> None:
    about = {"method": "feature-ablation", "output": "s", "target": "dog", "score": 0.75, "warning": None}
    shell.register("pets", PAIR, "--outputs", SCORES)
    worker(lambda row: {"x": row["x"] - 1, "t": [["big", -0.5]], "explanation": about})
    result = shell.run("explain", "pets", "[0.25, 3]", "--target", "dog", "--steps", "20", "--baseline", "0.5")
    assert result.stdout.splitlines() == ["+2\tx[1]", "-0.75\tx[0]", "-0.5\tbig"]
    assert "s of dog is 0.75; by feature-ablation" in result.stderr
    [job] = shell.store.queries.find(kind=JobKind.EXPLAIN)
    details = unpack_input(JobViews(shell.store.ledger).details(job.id, 9999).input or b"")
    assert (details.explain or {})["target"] == 1
    assert (details.explain or {})["baseline"] == 0.5
    assert "no gradients; use feature-ablation" in shell.error("explain", "pets", "[1, 2]", "--method", "saliency")
    assert "is not a class of output 's': its classes are cat, dog" in shell.error(
        "explain", "pets", "[1, 2]", "--target", "cow"
    )


def test_results_of_a_model_that_names_its_classes_are_printed_by_them(
    shell: Shell, worker: Callable[[Callable[[Any], Any]], None]
) -> None:
    shell.register("pets", PAIR, "--outputs", SCORES)
    assert shell.json("models", "show", "pets", "--json")["signature"]["outputs"]["s"]["classes"] == ["cat", "dog"]
    assert "cat, dog" in shell.out("models", "show", "pets")
    worker(lambda row: row["x"])
    named = {"cat": 0.25, "dog": 0.75}
    assert shell.json("predict", "pets", "[0.25, 0.75]") == named
    assert shell.json("predict", "pets", "[[0.25, 0.75]]", "--batched") == [named]
    told = shell.json("predict", "pets", "[0.25, 0.75]", "--json")
    assert told["result"] == named
    assert shell.json("jobs", "result", told["id"]) == named
    [line] = shell.lines("predict", "pets", "[[0.25, 0.75]]", "--each")
    assert line["result"] == named
    shell.run("jobs", "result", told["id"], "-o", "one.jsonl")
    assert json.loads((shell.home / "one.jsonl").read_text()) == named
    shell.run("predict", "pets", "[[0.25, 0.75]]", "--each", "-o", "all.npy")
    assert np.load(shell.home / "all.npy").tolist() == [[0.25, 0.75]]
    assert [m["ref"] for m in shell.json("models", "search", "--outputs", SCORES, "--json")] == ["pets/1"]
    plain = '{"s": {"dtype": "float32", "shape": [2]}}'
    assert [m["ref"] for m in shell.json("models", "search", "--outputs", plain, "--json")] == ["pets/1"]


# models


def test_a_model_is_registered_listed_shown_aliased_and_deleted(shell: Shell) -> None:
    shell.register("double", PAIR, "--alias", "champion", "--memory", "1GiB", "--metadata", "owner=me")
    shell.register()
    assert [m["ref"] for m in shell.json("models", "list", "double", "--json")] == ["double/1", "double/2"]
    table = shell.out("models", "list").splitlines()
    assert table[0].split() == ["MODEL", "ALIASES", "RUNTIME", "SIZE", "BATCH", "INPUTS", "AGE"]
    assert table[1].split()[:6] == ["double/1", "@champion", "python", "-", "32", "x:"]
    assert "1 GiB memory" in shell.out("models", "show", "double@champion")
    assert shell.out("models", "alias", "double", "champion", "2") == "double@champion is double/2\n"
    assert "move the alias first" in shell.error("models", "delete", "double/2", "--yes")
    assert shell.out("models", "alias", "double", "champion", "--delete") == "double@champion is removed\n"
    assert shell.out("models", "delete", "double/2", "--yes") == "double/2 is deleted\n"
    assert [m["version"] for m in shell.json("models", "list", "--json")] == [1]


def test_a_registered_version_as_json(shell: Shell) -> None:
    (shell.home / "inputs.json").write_text(PAIR)
    words = ("--runtime", "python", "--option", "class=a.b:C", "--option", "depth=3", "--gpu-memory", "2GiB", "--json")
    made = shell.json(
        "models",
        "register",
        "m",
        "--inputs",
        "@inputs.json",
        "--max-batch-size",
        "8",
        "--timeout",
        "2.5",
        "--dtype",
        "bfloat16",
        "--compile",
        "--max-batch-tokens",
        "64",
        *words,
    )
    assert made["ref"] == "m/1"
    assert made["signature"] == {"inputs": json.loads(PAIR), "outputs": None}
    assert made["options"] == {"class": "a.b:C", "depth": 3}
    assert (made["resources"]["gpu"], made["resources"]["gpu_memory"]) == (1, 2**31)
    assert [made[name] for name in ("max_batch_size", "max_batch_tokens", "dtype", "compile", "timeout_s")] == [
        8,
        64,
        "bfloat16",
        True,
        2.5,
    ]
    assert "time limit" in shell.out("models", "show", "m")


def test_an_example_is_read_as_predict_reads_inputs_and_held_against_the_signature(shell: Shell) -> None:
    np.save(shell.home / "row.npy", np.array([3.0, 4.0]))
    (shell.home / "rows.jsonl").write_text("[1, 2]\n[3, 4]\n")
    shell.register("a", PAIR, "--example", "[1, 2]")
    shell.register("a", PAIR, "--example", "@row.npy")
    shell.register("a", '{"t": {"dtype": "str"}}', "--example", "How warm?")
    shell.register("a", PAIR)
    with Client() as client:
        assert [client.models.example(f"a/{n}") for n in (3, 4)] == [{"t": "How warm?"}, None]
        assert client.models.example("a/1")["x"].tolist() == [1, 2]
        assert client.models.example("a/2")["x"].tolist() == [3, 4]
        assert client.models.example("a/2")["x"].dtype == np.float32
    for example, told in {
        "[1]": "example: input 'x': expected float32 of shape [2], got list of shape [1]",
        "[[1, 2]]": "got list of shape [1, 2]; give one sample",
        "oops": "--example is not JSON",
        "@rows.jsonl": "a file of many rows",
        "@no.npy": "cannot read",
    }.items():
        asked = ["register", "b", "--runtime", "python", "--option", "class=a.b:C", "--inputs", PAIR]
        assert told in shell.error("models", *asked, "--example", example), example
    listed = [(m["ref"], m["has_example"]) for m in shell.json("models", "list", "--json")]
    assert listed == [("a/1", True), ("a/2", True), ("a/3", True), ("a/4", False)]
    assert ["kept" in shell.out("models", "show", f"a/{n}") for n in (3, 4)] == [True, False]


def test_versions_are_found_by_what_they_take_and_carry(shell: Shell) -> None:
    shell.register("double", PAIR, "--metadata", "run=7")
    shell.register("other", None)
    for words in (["--inputs", PAIR], ["--metadata", "run=7"], ["--inputs", PAIR, "--resources", '{"cpu": 1}']):
        assert [m["ref"] for m in shell.json("models", "search", *words, "--json")] == ["double/1"]
    assert shell.run("models", "search", "--metadata", "run=8").stderr == "no version matches\n"


def test_an_empty_registry_says_what_to_do(shell: Shell) -> None:
    result = shell.run("models", "list")
    assert (result.stdout, "models register" in result.stderr) == ("", True)
    assert shell.json("models", "list", "--json") == []


def test_deleting_asks_on_a_terminal_and_refuses_without_one(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.register()
    assert "--yes" in shell.error("models", "delete", "double/1")
    for answer, status in ((False, 1), (True, 0)):
        monkeypatch.setattr(models_module, "confirm", lambda *_, answer=answer: answer)
        shell.run("models", "delete", "double/1", status=status)
    assert shell.json("models", "list", "--json") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["register", "m", "nowhere.pt2"], "there is no artifact"),
        (["register", "no name", "--runtime", "python"], "not a valid model name"),
        (["register", "m", "--runtime", "python"], "needs options"),
        (["register", "m", "--inputs", "{"], "--inputs is not JSON"),
        (["register", "m", "--inputs", "@nowhere.json"], "cannot read 'nowhere.json'"),
        (["register", "m", "--option", "class"], "is not KEY=VALUE"),
        (["register", "m", "--alias", "7up"], "not a valid alias"),
        (["register", "m", "--runtime", "python", "--option", "class=a:B", "--memory", "lots"], "'lots' is not a valid size"),
        (["register", "m", "--runtime", "python", "--option", "class=a:B", "--dtype", "int8"], "dtype"),
        (["register", "m", "--runtime", "python", "--option", "class=a:B", "--timeout", "0"], "timeout_s: expected a number"),
        (["list", "nothing"], "no model is called 'nothing'"),
        (["show", "nothing@all"], "no model is called 'nothing'"),
        (["show", "a/b/c"], "not a valid model reference"),
        (["alias", "nothing", "champion"], "give the VERSION"),
        (["alias", "nothing", "champion", "1", "--delete"], "not both"),
        (["alias", "nothing", "champion", "1"], "no model is called"),
        (["search", "--resources", '{"disk": 1}'], "unknown 'disk'"),
        (["delete", "nothing/1", "--yes"], "no model is called"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_models_is_one_line(shell: Shell, words: list[str], said: str) -> None:
    assert said in shell.error("models", *words)
    assert shell.json("models", "list", "--json") == []


# predict


def test_a_job_is_submitted_while_redis_is_away(shell: Shell) -> None:
    shell.register()
    result = shell.run(
        "predict", "double", "[1, 2]", "--no-wait", "--metadata", "run=7", "--priority", "0", "--deadline", "1h"
    )
    id = result.stdout.strip()
    assert "the sweeper sends them" in result.stderr
    job = shell.json("jobs", "show", id, "--json")
    assert (job["state"], job["priority"], job["metadata"]) == ("queued", 0, {"run": 7})
    assert job["deadline_at"] > job["created_at"]


def test_the_same_idempotency_key_gives_the_same_job(shell: Shell) -> None:
    shell.register()
    words = ("predict", "double", "[1, 2]", "--no-wait", "--json", "--idempotency-key", "k")
    assert shell.json(*words) == shell.json(*words)
    assert "different request" in shell.error("predict", "double", "[3, 4]", "--no-wait", "--idempotency-key", "k")


def test_a_result_is_printed_as_json_and_text_as_text(shell: Shell, worker: Any) -> None:
    shell.register()
    shell.register("shout", '{"text": {"dtype": "str"}}')
    worker(double)
    assert shell.json("predict", "double", "[1, 2]") == [2.0, 4.0]
    assert shell.json("predict", "double", "-", stdin='{"x": [1, 2]}') == [2.0, 4.0]
    assert shell.json("predict", "double", "[[1, 2], [3, 4]]", "--batched") == [[2.0, 4.0], [6.0, 8.0]]
    one = shell.json("predict", "double", "[1, 2]", "--json")
    assert (one["state"], one["result"]) == ("succeeded", [2.0, 4.0])
    worker(lambda row: row["text"].upper())
    assert shell.out("predict", "shout", "größer [1]") == "GRÖSSER [1]\n"
    assert shell.out("predict", "shout", "-", stdin="two\nlines\n") == "TWO\nLINES\n"


def test_many_results_come_as_one_line_each_in_order(shell: Shell, worker: Any) -> None:
    shell.register()
    worker(double)
    (shell.home / "rows.jsonl").write_text("[1, 2]\n[-5, 1]\n[3, 4]\n")
    done = shell.lines("predict", "double", "--file", "rows.jsonl", status=1)
    assert [one["state"] for one in done] == ["succeeded", "failed", "succeeded"]
    assert [one.get("result") for one in done] == [[2.0, 4.0], None, [6.0, 8.0]]
    assert done[1]["error"] == {"type": "ValueError", "message": "a negative sum"}
    assert shell.error("predict", "double", "--file", "rows.jsonl", status=1) == "error: 1 of 3 jobs did not succeed"


def test_a_failed_job_is_one_line_with_its_reason(shell: Shell, worker: Any) -> None:
    shell.register()
    worker(double)
    assert "ValueError: a negative sum" in shell.error("predict", "double", "--", "[-1, 0]", status=1)
    assert shell.lines("predict", "double", "--json", "--", "[-1, 0]", status=1)[0]["error"]["type"] == "ValueError"


def test_rows_of_an_array_go_in_and_come_out_as_an_array(shell: Shell, worker: Any) -> None:
    shell.register()
    worker(double)
    rows = np.arange(6, dtype="float32").reshape(3, 2)
    np.save(shell.home / "rows.npy", rows)
    np.savez(shell.home / "rows.npz", x=rows)
    for name in ("rows.npy", "rows.npz"):
        result = shell.run("predict", "double", "--file", name, "--each", "--output", "out.npy")
        assert (result.stdout, result.stderr) == ("", "wrote 3 results to out.npy\n")
        np.testing.assert_array_equal(np.load(shell.home / "out.npy"), rows * 2)
    assert shell.json("predict", "double", "-f", "rows.npy", "--batched", "-o", "b.npz", "--json")["output"] == "b.npz"
    np.testing.assert_array_equal(np.load(shell.home / "b.npz")["result"], rows * 2)


def test_json_lines_take_failures_and_arrays_do_not(shell: Shell, worker: Any) -> None:
    shell.register()
    worker(double)
    rows = ("--file", "-", "--output")
    assert (
        "did not succeed"
        in shell.run("predict", "double", *rows, "o.jsonl", stdin="[1, 2]\n[-5, 1]\n", status=1).stderr
    )
    saved = [json.loads(line) for line in (shell.home / "o.jsonl").read_text().splitlines()]
    assert [one["state"] for one in saved] == ["succeeded", "failed"]
    assert (
        "was not written" in shell.run("predict", "double", *rows, "o.npy", stdin="[1, 2]\n[-5, 1]\n", status=1).stderr
    )
    assert not (shell.home / "o.npy").exists()


def test_waiting_in_vain_says_that_the_job_goes_on(shell: Shell) -> None:
    shell.register()
    result = shell.run("predict", "double", "[1, 2]", "--timeout", "0", status=1)
    assert "note: no worker serves queue 'cpu' now" in result.stderr
    assert "is queued and goes on: forebay jobs wait" in result.stderr
    late = shell.lines("predict", "double", "--file", "-", "--timeout", "10ms", stdin="[1, 2]\n[3, 4]\n", status=1)
    assert [one["state"] for one in late] == ["queued", "queued"]


def test_ctrl_c_leaves_the_jobs_alone_and_says_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    shell.register()
    monkeypatch.setattr(results_module, "watch", interrupted)
    result = shell.run("predict", "double", "--file", "-", stdin="[1, 2]\n[3, 4]\n", status=130)
    assert "interrupted; the 2 jobs go on" in result.stderr
    assert len(shell.json("jobs", "list", "--state", "queued", "--json")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "1"], "no model is called 'nothing'"),
        (["double"], "give one INPUT"),
        (["double", "1", "--file", "a.json"], "not both"),
        (["double", "[1,"], "INPUT is not JSON"),
        (["double", "text"], "INPUT is not JSON"),
        (["double", "[1, 2, 3]"], "expected float32 of shape [2]"),
        (["double", "NaN"], "NaN is not a JSON number"), (["double", '[{"a": 1, "a": 2}]'], "the key 'a' is there twice"),
        (["double", "--file", "nowhere.npy"], "cannot read 'nowhere.npy'"),
        (["double", "--file", "."], "must end in"),
        (["double", "--file", "a.csv"], ".npy, .npz, .json"),
        (["double", "--file", "a.txt"], "models that take one str"),
        (["double", "--file", "empty.jsonl"], "holds no rows"),
        (["double", "7", "--each"], "--each needs"),
        (["double", "[]", "--each"], "holds no rows"),
        (["double", "[[1, 2]]", "--each", "--batched"], "one of them"),
        (["double", "[1, 2]", "--no-wait", "-o", "a.npy"], "one of them"),
        (["double", "[1, 2]", "-o", "a.csv"], "a result is saved as"),
        (["double", "[1, 2]", "-o", "nowhere/a.npy"], "there is no folder"),
        (["double", "[1, 2]", "-o", "folder.npy"], "is a folder"),
        (["double", "[1, 2]", "--timeout", "soon"], "--timeout: 'soon' is not a valid duration"),
        (["double", "[1, 2]", "--deadline", "soon"], "--deadline 'soon' is not"),
        (["double", "[1, 2]", "--deadline", "2020-01-01"], "in the past"),
        (["double", "[1, 2]", "--priority", "11"], "priority 11"),
        (["double", "[1, 2]", "--queue", "gpuu"], "no queue 'gpuu'"),
        (["double", "[1, 2]", "--metadata", "run"], "is not KEY=VALUE"),
        (["double", "[1, 2]", "--max-attempts", "0"], "max_attempts 0"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_predict_is_one_line_and_submits_nothing(shell: Shell, words: list[str], said: str) -> None:
    shell.register()
    (shell.home / "empty.jsonl").write_text("\n")
    (shell.home / "folder.npy").mkdir()
    assert said in shell.error("predict", *words)
    assert shell.json("jobs", "list", "--json") == []


# jobs and queues


def test_jobs_are_listed_newest_first_and_filtered(shell: Shell) -> None:
    shell.register()
    first, second = shell.submit(), shell.submit()
    shell.end(first, 1)
    assert [job["id"] for job in shell.json("jobs", "list", "--json")] == [second, first]
    assert [job["id"] for job in shell.json("jobs", "list", "--json", "--before", second)] == [first]
    assert [job["id"] for job in shell.json("jobs", "list", "--json", "--state", "queued", "--model", "double/1")] == [
        second
    ]
    table = shell.run("jobs", "list", "--limit", "1")
    assert table.stdout.splitlines()[0].split() == ["ID", "STATE", "KIND", "MODEL", "QUEUE", "TRY", "AGE", "TOOK"]
    assert table.stdout.splitlines()[1].split()[:6] == [second, "queued", "predict", "double/1", "cpu", "0/3"]
    assert f"--before {second}" in table.stderr
    assert shell.run("jobs", "list", "--kind", "batch").stderr == "no job matches these filters\n"


def test_jobs_are_found_by_queue_worker_and_time(shell: Shell) -> None:
    shell.register()
    first, second = shell.submit(), shell.submit()
    shell.end(first, 1)

    def found(*words: str) -> list[str]:
        return [job["id"] for job in shell.json("jobs", "list", "--json", *words)]

    assert found("--queue", "cpu", "--since", "1m") == [second, first]
    assert found("--worker", "w@host") == [first]
    assert found("--queue", "gpu") == found("--since", "2100-01-01") == found("--worker", "other") == []
    assert "there are cpu" in shell.error("jobs", "list", "--queue", "nope")
    assert "--since 'soon'" in shell.error("jobs", "list", "--since", "soon")


def test_a_job_is_named_by_how_its_id_begins(shell: Shell) -> None:
    shell.register()
    first, second = shell.submit(), shell.submit()
    differ = next(i for i in range(32) if first[i] != second[i])
    shared, unique = first[:differ], first[: differ + 1]
    assert shell.json("jobs", "show", unique, "--json")["id"] == first
    assert shell.json("jobs", "show", unique.upper(), "--json")["id"] == first
    said = shell.error("jobs", "show", shared)
    assert first in said
    assert second in said
    assert "no job's id begins with ffff" in shell.error("jobs", "cancel", first, "ffff")
    assert "not a valid job id" in shell.error("jobs", "show", "abc")
    assert {job["id"] for job in shell.json("jobs", "cancel", unique, first, "--json")} == {first}


def test_a_failed_job_is_shown_with_its_error(shell: Shell) -> None:
    shell.register()
    id = shell.submit()
    shell.end(id, error=JobError("ValueError", "two\nlines"))
    shown = shell.out("jobs", "show", id)
    assert "ValueError: two lines" in shown
    assert "double/1" in shown
    assert shell.json("jobs", "show", id, "--json")["error"] == {"type": "ValueError", "message": "two\nlines"}


def test_a_jobs_lines_tell_its_attempts(shell: Shell) -> None:
    shell.register()
    id = shell.submit()
    shell.end(id, error=JobError("ValueError", "two\nlines"))
    shell.out("jobs", "retry", id)
    table = [line.split()[1:] for line in shell.out("jobs", "show", id, "--logs").splitlines()]
    assert [row[0] for row in table] == ["EVENT", "queued", "claimed", "failed", "retried"]
    assert table[3][-3:] == ["ValueError:", "two", "lines"]
    events = shell.json("jobs", "show", id, "--logs", "--json")
    assert [event["event"] for event in events] == ["queued", "claimed", "failed", "retried"]
    assert events[2]["message"] == "ValueError: two\nlines"


def test_lists_tell_why_jobs_failed_in_one_line(shell: Shell) -> None:
    shell.register()
    bad, good = shell.submit(), shell.submit()
    shell.end(good, 1)
    assert "ERROR" not in shell.out("jobs", "list")
    shell.end(bad, error=JobError("WorkerLost", "attempt 3 of 3: signal 9; its last lines:\none\ntwo"))
    header, *rows = shell.out("jobs", "list").splitlines()
    assert header.endswith("ERROR")
    told = "WorkerLost: attempt 3 of 3: signal 9; its last lines:"
    assert [row.endswith(told) for row in rows] == [False, True]
    assert shell.out("jobs", "wait", bad, status=1).splitlines()[1].endswith(told)


def test_a_batch_is_shown_with_its_input_its_output_and_why_rows_failed_where(shell: Shell) -> None:
    batch = MadeBatch(shell.store.ledger, 2, output="out/here", queue="cpu")
    batch.finish([0], [ErrorKind("InvalidInput", 2, (ErrorSample("row 17 of in/b.csv", "no number"),))])
    shown = shell.out("jobs", "show", batch.id)
    for words in (
        "in/a.parquet",
        "out/here",
        "text=text",
        "  2 rows: InvalidInput",
        "    row 17 of in/b.csv: no number",
    ):
        assert words in shown
    told = shell.json("jobs", "show", batch.id, "--json")["batch"]
    assert told["request"]["output"] == "out/here"
    assert told["request"]["files"] == {"count": 1, "first": "in/a.parquet"}


def test_totals_and_time_left_of_a_batch_say_planning_while_they_are(shell: Shell) -> None:
    batch = MadeBatch(shell.store.ledger, 4, queue="cpu")
    batch.finish([0])
    batch.run([1], 500)
    with shell.store.ledger.write() as connection:
        connection.execute(text("UPDATE batches SET planned = false"))
    fields = dict(re.split(r"  +", line, maxsplit=1) for line in shell.out("jobs", "show", batch.id).splitlines())
    assert fields["rows"] == "1,500 completed, 0 failed, of 4,000 (planning)"
    assert fields["left"].endswith(" (planning)")
    with shell.store.ledger.write() as connection:
        connection.execute(text("UPDATE batches SET planned = true"))
    assert "planning" not in shell.out("jobs", "show", batch.id)


def test_a_dead_childs_last_lines_are_shown_as_lines(shell: Shell) -> None:
    shell.register()
    id = shell.submit()
    shell.end(id, error=JobError("WorkerLost", "signal 9 (SIGKILL); its last lines:\none\ntwo \x1b[2J\nthree"))
    shown = shell.out("jobs", "show", id).splitlines()
    assert shown[-3:] == ["  one", "  two \\x1b[2J", "  three"]
    assert any(line.endswith("WorkerLost: signal 9 (SIGKILL); its last lines:") for line in shown)


def test_waiting_for_jobs_says_how_each_ended(shell: Shell) -> None:
    shell.register()
    good, bad, late = shell.submit(), shell.submit(), shell.submit()
    shell.end(good, 1)
    shell.end(bad, error=JobError("ValueError", "no"))
    assert shell.out("jobs", "wait", good).split() == ["ID", "STATE", good, "succeeded"]
    result = shell.run("jobs", "wait", good, bad, good, status=1)
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [[good, "succeeded"], [bad, "failed"]]
    assert "ValueError: no" in result.stdout
    assert result.stderr == "error: 1 of 2 jobs did not succeed\n"
    assert "1 of 2 jobs have not ended in time" in shell.error(
        "jobs", "wait", good, late, "--timeout", "10ms", status=1
    )
    assert "is queued and goes on" in shell.error("jobs", "wait", late, "--timeout", "0", status=1)
    states = [job["state"] for job in shell.json("jobs", "wait", good, bad, "--json", status=1)]
    assert states == ["succeeded", "failed"]


def test_canceling_says_of_each_job_what_came_of_it(shell: Shell) -> None:
    shell.register()
    waiting, running, done = shell.submit(), shell.submit(), shell.submit()
    shell.end(done, 1)
    [claimed] = shell.store.claim([running], "w@host", 30)
    assert shell.out("jobs", "cancel", waiting).split()[2:] == [waiting, "canceled"]
    table = shell.out("jobs", "cancel", waiting, running).splitlines()
    assert [line.split(maxsplit=1) for line in table[1:]] == [[waiting, "canceled"], [running, "cancel requested"]]
    assert "it had succeeded" in shell.out("jobs", "cancel", running, done, status=1)
    assert shell.json("jobs", "cancel", waiting, running, "--json") == [
        {"id": waiting, "state": "canceled", "cancel_requested": False},
        {"id": running, "state": "running", "cancel_requested": True},
    ]
    assert "cancel requested" in shell.out("jobs", "list", "--state", "running").splitlines()[1]
    assert "cancel requested" in shell.out("jobs", "show", running)
    assert shell.json("jobs", "show", running, "--json")["cancel_requested_at"] is not None
    shell.store.finish([Finished(running, claimed.attempt, ending=Transition.CANCEL)])
    assert shell.out("jobs", "cancel", running, "--wait").split()[2:] == [running, "canceled"]


def test_a_failed_job_is_retried_and_a_waiting_one_is_not(shell: Shell) -> None:
    shell.register()
    bad, waiting = shell.submit(), shell.submit()
    shell.end(bad, error=JobError("ValueError", "no"))
    result = shell.run("jobs", "retry", waiting, bad, status=2)
    assert f"error: job {waiting}: cannot retry a job that is queued" in result.stderr
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [[waiting, "queued"], [bad, "queued"]]
    shell.end(bad, 1)
    assert "cannot retry a job that is succeeded" in shell.error("jobs", "retry", bad)


def failed_jobs(shell: Shell, count: int) -> list[str]:
    ids = [shell.submit() for _ in range(count)]
    for id in ids:
        shell.end(id, error=JobError("ValueError", "no"))
    return ids


def test_all_failed_jobs_are_retried_by_one_command(shell: Shell) -> None:
    shell.register()
    shell.register("other")
    failed, good, canceled = failed_jobs(shell, 3), shell.submit(), shell.submit()
    shell.end(good, 1)
    shell.run("jobs", "cancel", canceled)
    assert shell.out("jobs", "retry", "--failed", "--dry-run") == "would queue 3 failed or expired jobs again\n"
    assert (
        shell.out("jobs", "retry", "--failed", "--model", "other") == "queued 0 failed or expired jobs of other again\n"
    )
    result = shell.run("jobs", "retry", "--failed", "--model", "double/1")
    assert result.stdout == "queued 3 failed or expired jobs of double/1 again\n"
    assert "send failed" in result.stderr  # Redis is away; a sweep sends them
    assert shell.store.queries.queues_with_unsent(60) == ["cpu"]
    states = {job["id"]: (job["state"], job["attempt"]) for job in shell.json("jobs", "list", "--json")}
    assert states == dict.fromkeys(failed, ("queued", 0)) | {good: ("succeeded", 1), canceled: ("canceled", 0)}
    assert shell.json("jobs", "retry", "--failed", "--json") == {"jobs": 0, "model": None, "dry_run": False}


def test_retrying_very_many_asks_on_a_terminal_and_refuses_without_one(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.register()
    failed_jobs(shell, 2)
    monkeypatch.setattr(jobs_module, "MANY", 1)
    assert "add --yes" in shell.error("jobs", "retry", "--failed")
    monkeypatch.setattr(options_module, "sys", type("Sys", (), {"stdin": type("In", (), {"isatty": lambda _: True})()}))
    assert "nothing was queued" in shell.run("jobs", "retry", "--failed", stdin="n\n", status=1).stderr
    assert shell.out("jobs", "list", "--state", "failed").count("failed") == 2
    shell.run("jobs", "retry", "--failed", stdin="y\n")
    assert shell.store.queries.count_failed() == 0
    failed_jobs(shell, 2)
    assert "queued 2" in shell.out("jobs", "retry", "--failed", "--yes")


def test_a_full_queue_refuses_with_its_depth_and_an_estimate(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_QUEUES", json.dumps({"cpu": {"cpu": 8, "max_queue_size": 3}}))
    shell.register()
    first = shell.submit()
    [line] = [line for line in shell.out("queues").splitlines() if line.startswith("cpu")]
    assert line.split()[:3] == ["cpu", "1", "3"]
    rows = json.dumps([[1, 2]] * 3)
    (shell.home / "rows.json").write_text(rows)
    said = shell.error("predict", "double", "-f", "rows.json", "--each", "--no-wait", status=1)
    assert "queue 'cpu' takes at most 3 waiting jobs and holds 1: there is no room for 3 more" in said
    assert "is a worker there?" in said
    assert len(shell.json("jobs", "list", "--json")) == 1
    shell.end(first, 1)
    shell.out("predict", "double", "-f", "rows.json", "--each", "--no-wait")
    assert "try again in about" in shell.error("predict", "double", "[1, 2]", "--no-wait", status=1)


def test_a_result_can_be_had_later(shell: Shell) -> None:
    shell.register()
    id = shell.submit()
    assert "is queued and has no result yet" in shell.error("jobs", "result", id, status=1)
    shell.end(id, np.array([2.0, 4.0]))
    assert shell.json("jobs", "result", id) == [2.0, 4.0]
    shell.run("jobs", "result", id, "--timeout", "1", "-o", "r.npy")
    np.testing.assert_array_equal(np.load(shell.home / "r.npy"), [2.0, 4.0])


def test_a_canceled_job_has_no_result(shell: Shell) -> None:
    shell.register()
    id = shell.submit()
    shell.run("jobs", "cancel", id)
    assert shell.error("jobs", "result", id, status=1) == f"error: job {id} was canceled"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "abc"], "not a valid job id"),
        (["show", NO_JOB], "no job has the id"),
        (["wait", NO_JOB], "no job has the id"),
        (["cancel", NO_JOB], "no job has the id"),
        (["retry", NO_JOB], "no job has the id"),
        (["result", NO_JOB], "no job has the id"),
        (["list", "--state", "done"], "there are queued, running"),
        (["list", "--kind", "done"], "no kind is called"),
        (["list", "--limit", "0"], "limit 0"),
        (["list", "--before", "yesterday"], "not a valid job id"),
        (["list", "--metadata", "run"], "is not KEY=VALUE"),
        (["list", "--model", "a@b"], "no model is called"),
        (["wait", NO_JOB, "--timeout", "-1"], "is not a valid duration"),
        (["retry"], "give the ids of the jobs to retry, or --failed"),
        (["retry", NO_JOB, "--failed"], "give the ids of the jobs to retry, or --failed"),
        (["retry", NO_JOB, "--dry-run"], "go with --failed"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_jobs_is_one_line(shell: Shell, words: list[str], said: str) -> None:
    assert said in shell.error("jobs", *words)


def test_nothing_is_canceled_when_one_id_is_wrong(shell: Shell) -> None:
    shell.register()
    id = shell.submit()
    shell.error("jobs", "cancel", id, NO_JOB)
    assert shell.json("jobs", "show", id, "--json")["state"] == "queued"


def test_queues_show_what_waits_and_what_they_have(shell: Shell) -> None:
    shell.register()
    shell.submit()
    found = {queue["name"]: queue for queue in shell.json("queues", "--json")}
    assert (found["cpu"]["depth"], found["cpu"]["running"], found["cpu"]["workers"]) == (1, 0, [])
    assert found["cpu"]["oldest_age_s"] >= 0
    assert found["gpu"]["capacity"]["gpu"] == 1
    table = shell.out("queues").splitlines()
    assert table[0].split()[:8] == ["QUEUE", "WAITING", "AT", "MOST", "OLDEST", "RUNNING", "WORKERS", "CAPACITY"]
    assert "24 GiB gpu memory" in table[2]


def test_another_home_is_another_ledger(shell: Shell) -> None:
    assert "there is no ledger at" in shell.error("queues", "--home", str(shell.home / "other"), status=1)


def test_no_queue_configured_says_how_to_get_one(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_BROKER")
    assert "forebay up" in shell.error("jobs", "list", status=1)


@pytest.mark.parametrize(
    "words", [["jobs", "show"], ["predict"], ["models", "register", "m", "--gpu", "x"], ["queues", "x"]]
)
def test_what_typer_refuses_has_status_2_and_no_traceback(shell: Shell, words: list[str]) -> None:
    result = shell.run(*words, status=2)
    assert "Usage" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "words",
    [["predict"], ["queues"]]
    + [["models", name] for name in ("register", "list", "show", "alias", "search", "delete")]
    + [["jobs", name] for name in ("list", "show", "wait", "cancel", "retry", "result")],
)
def test_every_command_has_a_summary_and_an_example(words: list[str]) -> None:
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert "Examples:" in shown.output
    assert f"forebay {' '.join(words)}" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Why is the sky blue?", "Why is the sky blue?"),
        ('"quoted" and 5', '"quoted" and 5'),
        ('{"prompt": "a", "max_tokens": 5}', {"prompt": "a", "max_tokens": 5}),
        ('[{"role": "user", "content": "a"}]', [{"role": "user", "content": "a"}]),
    ],
)
def test_a_model_that_generates_text_takes_a_prompt_as_it_is_and_its_text_is_printed(
    shell: Shell, worker: Callable[[Callable[[Any], Any]], None], said: str, asked: Any
) -> None:
    shell.register("writer", json.dumps(generation.INPUTS), "--outputs", json.dumps(generation.OUTPUTS))
    got: list[Any] = []
    one = generation.Choice(text="a\nb", finish_reason="stop")
    made = [generation.completion([one], 1, 2), generation.completion([one, one], 1, 4)]

    def answer(row: Any) -> Any:
        got.append(row["request"])
        return made[(len(got) - 1) % 2]

    worker(answer)
    assert shell.out("predict", "writer", said) == "a\nb\n"
    assert shell.out("predict", "writer", said) == "[1] a\nb\n\n[2] a\nb\n"
    assert shell.json("predict", "writer", said, "--json")["result"] == made[0]
    (shell.home / "asked.txt").write_text(f"{said}\n")
    [line] = shell.lines("predict", "writer", "--file", "asked.txt")
    assert (line["result"], got) == (made[1], [asked, asked, asked, said])
