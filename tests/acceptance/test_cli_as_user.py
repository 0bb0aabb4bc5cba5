"""Every command about models, jobs and queues, as a user types it, with its exit status, its output and its errors.

What each command does with what it is given is tests/integration/producer/test_cli.py's; here the whole of Forebay stands behind.
"""

import json
import os
import re
import signal

import numpy as np
import pytest

from support.digits import images
from support.user import User, refusal, running
from support.waiting import wait_until

ID = re.compile(r"[0-9a-f]{32}\n")
NO_JOB = "0" * 32
WRONG = {
    "nonsense": "No such command 'nonsense'; see `forebay --help`",
    "predict": "Missing argument 'MODEL'; see `forebay predict --help`",
    "predict digits 1 --prioritie 3": "No such option: --prioritie",
    "predict digits [1,2": "INPUT is not JSON",
    "predict digits [1,2]": "expected float32 of shape [64]",
    "predict nobody 1": "no model is called 'nobody'",
    "predict ../../x 1": "is not a valid model reference",
    "predict doubles 1 --queue nowhere": "there is no queue 'nowhere'",
    f"jobs show {NO_JOB}": f"no job has the id '{NO_JOB}'",
    "models register x missing.pt2": "there is no artifact at",
    "worker --queues nowhere": "no queue is called 'nowhere'",
    "up --concurrency 0": "'--concurrency'",
}


@pytest.fixture(scope="module", autouse=True)
def models(user: User) -> None:
    """`doubles` fails on negative numbers; `echoes` takes text and gives it back."""
    register = ("models", "register")
    made = user.together(
        (*register, "doubles", "--runtime", "python", "--option", "class=support.models:Doubler"),
        (*register, "echoes", "--runtime", "python", "--option", "class=support.models:Echo", "--metadata", "owner=text",
         "--inputs", '{"text": {"dtype": "str"}}', "--outputs", '{"text": {"dtype": "str"}}'),
    )  # fmt: skip
    assert [done.returncode for done in made] == [0, 0]


@pytest.fixture
def waiting(user: User):
    """The id of a job that nobody runs."""
    id = user.ok("predict", "doubles", "1", "--queue", "gpu", "--no-wait").strip()
    yield id
    user.run("jobs", "cancel", id)


def test_predict_takes_one_sample_as_json_or_text_and_prints_its_result(user, direct):
    row = images(1)
    asked = user.together(
        ("predict", "digits", json.dumps(row[0].tolist())),
        ("predict", "doubles", "21", "--timeout", "60"),
        ("predict", "doubles", "21", "--json"),
        ("predict", "echoes", "text without quotes: ä€"),
    )
    assert [done.returncode for done in asked] == [0] * 4
    np.testing.assert_allclose(json.loads(asked[0].stdout), direct(row)[0], atol=1e-5)
    assert asked[1].stdout == "42\n"
    assert json.loads(asked[2].stdout)["result"] == 42
    assert asked[3].stdout == "text without quotes: ä€\n"
    assert user.ok("predict", "echoes", "-", given="from stdin\n") == "from stdin\n"


def test_predict_takes_arrays_and_lines_from_files_and_saves_results(user, direct, tmp_path):
    rows = images(5)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row.tolist())}\n" for row in rows))
    each, batched, lines = user.together(
        ("predict", "digits", "--file", f"{tmp_path}/rows.npy", "--each", "-o", f"{tmp_path}/out.npy"),
        ("predict", "digits", "--file", f"{tmp_path}/rows.npy", "--batched", "--json"),
        ("predict", "digits", "-f", f"{tmp_path}/rows.jsonl"),
    )
    assert each.returncode == 0, each.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), direct(rows), atol=1e-5)
    np.testing.assert_allclose(json.loads(batched.stdout)["result"], direct(rows), atol=1e-5)
    outcomes = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [outcome["state"] for outcome in outcomes] == ["succeeded"] * 5
    np.testing.assert_allclose([outcome["result"] for outcome in outcomes], direct(rows), atol=1e-5)


def test_a_job_is_submitted_waited_for_shown_and_its_result_read_by_separate_commands(user):
    submitted = user.ok("predict", "doubles", "4", "--no-wait", "--metadata", "run=7", "--priority", "0")
    assert ID.fullmatch(submitted)
    id = submitted.strip()
    assert "succeeded" in user.ok("jobs", "wait", id, "--timeout", "1m")
    result, result_json, show, show_json, found, listed = user.together(
        ("jobs", "result", id), ("jobs", "result", id, "--json"), ("jobs", "show", id), ("jobs", "show", id, "--json"),
        ("jobs", "list", "--metadata", "run=7", "--json"), ("jobs", "list", "--state", "succeeded", "--model", "doubles"),
    )  # fmt: skip
    assert result.stdout == "8\n"
    assert json.loads(result_json.stdout) == {"id": id, "state": "succeeded", "result": 8}
    assert re.search(rf"id +{id}\n", show.stdout)
    shown = json.loads(show_json.stdout)
    assert (shown["state"], shown["metadata"], shown["priority"], shown["model"]) == (
        "succeeded",
        {"run": 7},
        0,
        "doubles",
    )
    assert [job["id"] for job in json.loads(found.stdout)] == [id]
    assert id in listed.stdout


def test_a_failed_job_exits_1_wherever_it_is_asked_for(user, tmp_path):
    (tmp_path / "some.jsonl").write_text("1\n-2\n3\n")
    alone, among = user.together(
        ("predict", "doubles", "--json", "--", "-1"), ("predict", "doubles", "--file", f"{tmp_path}/some.jsonl")
    )
    assert (alone.returncode, among.returncode) == (1, 1)
    assert re.fullmatch(r"error: job \w+ failed \(attempt 1 on cpu.*\): ValueError: cannot double -1\n", alone.stderr)
    failed = json.loads(alone.stdout)
    assert failed["error"] == {"type": "ValueError", "message": "cannot double -1"}
    lines = [json.loads(line) for line in among.stdout.splitlines()]
    assert among.stderr == "error: 1 of 3 jobs did not succeed\n"
    assert [line["state"] for line in lines] == ["succeeded", "failed", "succeeded"]
    assert [line.get("result") for line in lines] == [2, None, 6]

    waited, result, shown = user.together(*(("jobs", command, failed["id"]) for command in ("wait", "result", "show")))
    assert [done.returncode for done in (waited, result, shown)] == [1, 1, 0]
    assert all("cannot double -1" in done.stdout + done.stderr for done in (waited, result, shown))


def test_a_waiting_job_is_noted_canceled_and_retried(user, waiting):
    late = user.run("jobs", "wait", waiting, "--timeout", "0.1")
    assert late.returncode == 1
    assert "no worker serves queue 'gpu'" in late.stderr
    assert user.json("jobs", "cancel", waiting) == [{"id": waiting, "state": "canceled", "cancel_requested": False}]
    assert user.run("jobs", "result", waiting).returncode == 1
    assert user.json("jobs", "retry", waiting) == [{"id": waiting, "state": "queued"}]


def test_queues_and_the_ledgers_revision_are_shown(user, waiting):
    queues, table, current, upgrade, sweep = user.together(
        ("queues", "--json"), ("queues",), ("db", "current", "--json"), ("db", "upgrade"), ("sweep", "--json")
    )
    found = {queue["name"]: queue for queue in json.loads(queues.stdout)}
    assert set(found) == {"cpu", "gpu", "remote", "train", "train-gpu"}
    assert (found["gpu"]["depth"], len(found["cpu"]["workers"])) == (1, 1)
    assert "WAITING" in table.stdout
    assert json.loads(current.stdout)["revision"] in upgrade.stdout
    assert set(json.loads(sweep.stdout)) >= {"freed", "failed", "expired", "resent", "deleted"}


def test_models_are_registered_shown_aliased_and_deleted(user, digits_pt2):
    made = user.json("models", "register", "numbers", str(digits_pt2), "--alias", "champion", "--memory", "1GiB")
    assert (made["ref"], made["runtime"], made["aliases"]) == ("numbers/1", "torch-export", ["champion"])
    assert made["signature"]["inputs"] == {"input": {"dtype": "float32", "shape": [64]}}
    user.ok("models", "register", "numbers", str(digits_pt2))
    listed, table, alias, shown, found = user.together(
        ("models", "list", "numbers", "--json"), ("models", "list"), ("models", "show", "numbers@champion", "--json"),
        ("models", "show", "numbers"), ("models", "search", "--metadata", "owner=text", "--json"),
    )  # fmt: skip
    assert [model["ref"] for model in json.loads(listed.stdout)] == ["numbers/1", "numbers/2"]
    assert "numbers/2" in table.stdout
    assert json.loads(alias.stdout)["version"] == 1
    assert "float32[64]" in shown.stdout
    assert [model["ref"] for model in json.loads(found.stdout)] == ["echoes/1"]
    assert "move the alias first" in user.refused("models", "delete", "numbers/1", "--yes")
    assert user.json("models", "alias", "numbers", "champion", "2")["version"] == 2
    assert "numbers/1 is deleted" in user.ok("models", "delete", "numbers/1", "--yes")


def test_what_was_typed_wrongly_exits_2_with_one_line_that_says_what(user):
    answers = zip(WRONG.items(), user.together(*(typed.split() for typed in WRONG)), strict=True)
    assert {typed: refusal(done) for (typed, told), done in answers if told not in refusal(done)} == {}


def test_names_that_are_no_utf_8_are_refused_printably(user):
    model, value = user.together(("predict", b"dig\xfeits", "1"), ("predict", "echoes", b"\xed\xa0\x80"))
    assert "is not a valid model reference" in refusal(model)
    assert "is not UTF-8 text" in refusal(value)


def test_settings_that_will_not_do_name_themselves_and_where_they_came_from(user):
    told = User(user.folder, {"FOREBAY_BROKER": "http://:secret@host"}).refused("queues")
    assert "setting broker (from FOREBAY_BROKER)" in told
    assert "secret" not in told


def test_every_group_explains_itself(user):
    bare, jobs, asked = user.together((), ("jobs",), ("models", "--help"))
    assert [done.returncode for done in (bare, jobs, asked)] == [2, 2, 0]
    assert all("Usage: forebay" in done.stdout + done.stderr for done in (bare, jobs, asked))


def test_a_gpu_worker_on_a_machine_without_a_gpu_stops_at_once_and_says_what_it_looked_for(user):
    told = User(user.folder, {"CUDA_VISIBLE_DEVICES": ""}).refused("worker", "--queues", "gpu")
    assert "queue 'gpu' needs 1 GPU; torch.cuda sees 0 on this machine" in told
    assert "looked with torch.cuda.is_available()" in told


def test_interrupting_a_command_that_waits_leaves_the_job(user, waiting):
    with running(user, "jobs", "wait", waiting) as process:
        wait_until(lambda: "no worker serves" in user.said("jobs"), "it waits")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    assert f"the job goes on: forebay jobs wait {waiting}" in user.said("jobs")
    assert "Traceback" not in user.said("jobs")
    assert user.json("jobs", "show", waiting)["state"] == "queued"
