"""What a user asks of training: refused at submit, kept in the job, shown while it runs and after it. No trainer runs here:
what one would tell is written through TrainingStore.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from forebay import Client, Evaluation, InvalidInput, JobState, NoQueueFits
from forebay.contract.errors import IllegalTransition, ModelNotFound
from forebay.contract.job import JobError, JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import DataSummary, Point, Split, Trained, TrainRequest
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.storage.jobs.records import ClaimedJob, Finished
from forebay.storage.training.records import evaluation_value
from forebay.storage.training.store import TrainingStore
from support.commands import Shell

ASKED = {"recipe": "classifier", "target": "label"}


@pytest.fixture
def client(shell: Shell) -> Iterator[Client]:
    with Client() as client:
        yield client


@pytest.fixture
def runs(shell: Shell) -> TrainingStore:
    return TrainingStore(shell.store.ledger)


@pytest.fixture
def data(shell: Shell) -> str:
    rows = {"x": np.arange(10.0), "y": np.arange(10), "label": ["a", "b"] * 5, "fold": ["train"] * 8 + ["test"] * 2}
    pq.write_table(pa.table(rows), shell.home / "data.parquet")
    return "data.parquet"


def request_of(shell: Shell, id: str) -> TrainRequest:
    [job] = shell.store.claim([id], "w@host", 30)
    return decode(job.input or b"", TrainRequest)


def end(shell: Shell, runs: TrainingStore, job: ClaimedJob, accuracy: float = 0.9) -> None:
    """Everything that a run of two epochs tells, from its start to its end."""
    request = decode(job.input or b"", TrainRequest)
    runs.start(job, request)
    runs.set_data(job, DataSummary({"train": 7, "validation": 1, "test": 2}, "ab" * 32, ("x", "y"), ("a", "b"), 3, 1))
    for epoch in range(2):
        points = [
            Point(5 * epoch + 5, epoch, "train", {"loss": 1 / (epoch + 1)}, rows_per_s=100.0, steps=10),
            Point(5 * epoch + 5, epoch, "validation", {"loss": 0.5, "accuracy": 0.4 + 0.1 * epoch}),
        ]
        runs.add_metrics(job, points, f"epoch {epoch + 1}")
    runs.add_checkpoint(job, 5, 0, "sha256:" + "1" * 64, 2048, keep=3)
    metrics = {"accuracy": accuracy, "f1": accuracy}
    lineage = {
        "job": job.id, "recipe": request.recipe, "params": dict(request.params), "files": ["data.parquet"],
        "sha256": "ab" * 32, "rows": {"train": 7, "test": 2}, "seed": 0, "code": "0.1.0", "parent": None,
    }  # fmt: skip
    model = ModelVersion(
        job.model, 0, "recipe", "sha256:" + "0" * 64, "folder", 10, Signature.parse(None, None),
        metadata={"owner": "me", "metrics": metrics, "lineage": lineage},
    )  # fmt: skip
    runs.finish(
        job, request, model, Trained(metrics, "recipe", {}, {}, confusion=[[1, 0], [0, 1]]), "accuracy",
        lambda made, moved, why: codec.encode({"model": made.name, "version": made.version, "promoted": moved, "verdict": why}),
    )  # fmt: skip


def begun(shell: Shell, client: Client, data: str, **more: Any) -> ClaimedJob:
    job = client.train("digits", dataset=data, **(ASKED | more))
    [claimed] = shell.store.claim([job.id], "w@host", 30)
    return claimed


# What is asked


CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}


@pytest.fixture
def base(shell: Shell, client: Client) -> ModelVersion:
    """A language model that nobody loads here, with what its adapters are to have of it."""
    (shell.home / "small").mkdir()
    (shell.home / "small" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    made = client.models.register("small", "small", max_batch_size=16, resources={"cpu": 1, "memory": "1MiB"})
    client.models.set_alias("small", "champion", made.version)
    return made


def lines(shell: Shell, *rows: Any) -> str:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (shell.home / "chat.jsonl").write_text(text)
    return "chat.jsonl"


def test_a_fine_tuning_names_its_base_by_version_and_takes_what_it_needs_from_it(
    shell: Shell, client: Client, base: ModelVersion
) -> None:
    id = shell.out(
        "train", "tuned", "--recipe", "finetune-text", "--dataset", lines(shell, CHAT, CHAT), "--param", "base=small@champion",
        "--param", "rank=4", "--no-wait", "--metric", "loss",
    )  # fmt: skip
    request = request_of(shell, id.strip())
    assert (request.params["base"], request.params["rank"], request.params["epochs"]) == ("small/1", 4, 3)
    assert (request.max_batch_size, request.resources, request.metric) == (16, base.resources, "loss")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"params": {}}, "base: which language model is adapted?"),
        ({"params": {"base": "nobody@champion"}}, "no model is called 'nobody'"),
        ({"params": {"base": "tuned/1"}}, "tuned/1 is itself an adapter of small/1; name that one"),
        ({"params": {"base": "other/1"}}, "other/1 has runtime 'safetensors'; only 'text-generation' is adapted"),
        ({"target": "messages"}, "learns messages, or prompt and completion; leave target and features out"),
        ({"missing": "mean"}, "missing: finetune-text fills nothing in"),
        ({"metric": "accuracy"}, "cannot be judged by 'accuracy'; choose one of loss, perplexity"),
        ({"dataset": "data.parquet"}, "neither messages, nor prompt and completion; it has 'x', 'y'"),
        ({"dataset": "data.csv"}, "examples of text are read from jsonl, parquet, arrow, not csv"),
        ({"rows": [CHAT, "{"]}, "chat.jsonl', row 1: the line is not JSON"),
        ({"rows": [CHAT, {"prompt": "x"}]}, "chat.jsonl', row 1: messages: missing in this row"),
        ({"rows": [{"messages": [{"role": "bot", "content": "x"}]}]}, r"row 0: messages\[0\]: role: .* got 'bot'"),
        ({"rows": [{"prompt": "x", "completion": ""}]}, "row 0: completion: expected a text that is not empty"),
        ({"rows": [{"messages": CHAT["messages"][:1]}]}, "row 0: messages: the last one is what is learned"),
    ],
)
def test_a_fine_tuning_that_will_not_do_is_refused_at_submit(
    shell: Shell, client: Client, base: ModelVersion, data: str, more: dict[str, Any], words: str
) -> None:
    (shell.home / "adapter").mkdir()
    (shell.home / "adapter" / "adapter_config.json").write_text("{}")
    client.models.register("tuned", "adapter", options={"base": "small@champion"})
    save_file({"weight": np.zeros(1, np.float32)}, shell.home / "other.safetensors")
    client.models.register("other", "other.safetensors", options={"factory": "a:b"})
    (shell.home / "data.csv").write_text("prompt,completion\n1,2\n")
    asked = {"recipe": "finetune-text", "dataset": lines(shell, *more.pop("rows", [CHAT])), "params": {"base": "small"}}
    with pytest.raises((InvalidInput, ModelNotFound), match=words):
        client.train("new", **(asked | more))
    assert client.jobs() == []


def test_a_training_job_carries_what_was_asked_for_with_all_parameters(shell: Shell, client: Client, data: str) -> None:
    job = client.train(
        "digits", dataset=data, params={"epochs": "3", "hidden": [8]}, features=["x"], split={"key": "y", "test": 0.3},
        alias="champion", seed=7, checkpoint_steps=10, metadata={"owner": "me"}, missing="constant:0", **ASKED,
    )  # fmt: skip
    info = job.info()
    assert (info.kind, info.model, info.version, info.ref, info.queue) == (
        JobKind.TRAIN,
        "digits",
        0,
        "digits",
        "train",
    )
    assert (info.max_attempts, info.metadata) == (10, {"owner": "me"})
    request = request_of(shell, job.id)
    assert (request.params["epochs"], request.params["hidden"], request.params["lr"]) == (3, [8], 0.001)
    assert (request.metric, request.alias, request.seed) == ("accuracy", "champion", 7)
    assert (request.target, request.features, request.format) == ("label", ("x",), "parquet")
    assert request.split == Split(0.1, 0.3, key="y")
    assert (request.checkpoint_steps, request.checkpoint_minutes) == (10, 5.0)
    assert [Path(file.path).name for file in request.files] == ["data.parquet"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"recipe": "classifer"}, "there is no recipe 'classifer'; there are regressor, classifier"),
        ({"recipe": ""}, "not the name of a recipe"),
        ({"params": {"epoch": 3}}, "no parameter 'epoch'; there are epochs"),
        ({"params": {"epochs": 0}}, "epochs: expected a whole number, from 1"),
        ({"params": [1]}, "params must be a mapping"),
        ({"metric": "r2"}, "cannot be judged by 'r2'; choose one of loss, accuracy"),
        ({"recipe": "trees", "nproc": 2}, "recipe 'trees' is fitted by one process; leave nproc and nodes out"),
        ({"recipe": "svm", "checkpoint_steps": 5}, "recipe 'svm' has no checkpoints; leave checkpoint_steps out"),
        ({"target": "digit"}, "target: there is no column 'digit'; there are 'x', 'y', 'label', 'fold'"),
        ({"target": None}, "target: which column is to be learned? There are 'x'"),
        ({"features": ["x", "z"]}, "features: there is no column 'z'"),
        ({"features": ["x", "label"]}, "'label' is the target"),
        ({"features": ["x", "x"]}, "a column is named twice"),
        ({"dataset": "nothing.parquet"}, "there is no such file"),
        ({"dataset": []}, "names no file"),
        ({"dataset": "empty.parquet"}, "the data set is empty"),
        ({"dataset": "broken.parquet"}, "cannot be read as Parquet"),
        ({"dataset": ["data.parquet", "more.csv"]}, "mixes formats"),
        ({"missing": "guess"}, "missing: expected drop, mean or constant:VALUE, got 'guess'"),
        ({"split": {"test": 0.6, "validation": 0.4}}, "leave no row to train on"),
        ({"split": {"test": 0, "validation": 0}}, "held out"),
        ({"split": {"test": 1.5}}, "split.test: expected a number, from 0 to below 1, got 1.5"),
        ({"split": {"test": "much"}}, "split.test: expected a number"),
        ({"split": {"folds": 3}}, "unknown field `folds`"),
        ({"split": {"key": "user"}}, "split: there is no column 'user'"),
        ({"split": {"column": "fold", "test": 0.5}}, "leave validation and test out"),
        ({"split": {"column": "fold", "key": "y"}}, "not both"),
        ({"split": 0.2}, "split: expected a mapping"),
        ({"split": Split(test=-0.1)}, "split.test: expected a number, from 0 to below 1, got -0.1"),
        ({"seed": -1}, "seed: expected a whole number, from 0 to 2,147,483,647, got -1"),
        ({"nproc": 0}, "nproc: expected a whole number, from 1 to 64, got 0"),
        ({"nodes": 65}, "nodes: expected a whole number, from 1 to 64, got 65"),
        ({"alias": "the best"}, "not a valid alias"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: expected a whole number, from 1"),
        ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes: expected a number, above 0 to 1,000,000, got nan"),
        ({"checkpoint_keep": 0}, "checkpoint_keep: expected a whole number, from 1 to 100, got 0"),
        ({"max_batch_size": 0}, "max_batch_size: expected a whole number, from 1 to 65,536, got 0"),
        ({"resources": {"gpus": 1}}, "unknown 'gpus'"),
        ({"metadata": {"x": float("nan")}}, "finite numbers"),
        ({"max_attempts": 0}, "max_attempts 0"),
        ({"queue": "slow"}, "there is no queue 'slow'"),
    ],
)
def test_what_will_not_do_is_refused_before_anything_is_stored(
    shell: Shell, client: Client, data: str, more: dict[str, Any], words: str
) -> None:
    (shell.home / "broken.parquet").write_bytes(b"PAR1 but not really")
    (shell.home / "more.csv").write_text("x,label\n1,a\n")
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), shell.home / "empty.parquet")
    with pytest.raises(InvalidInput) as refusal:
        client.train("digits", **({"dataset": data} | ASKED | more))
    assert words in str(refusal.value)
    assert client.jobs() == []


def test_only_a_queue_that_takes_training_and_is_large_enough_will_do(client: Client, data: str) -> None:
    for more, words in (
        ({"queue": "cpu"}, "accepts no train jobs"),
        ({"nproc": 9}, "needs 9 cpu"),
        ({"nproc": 2, "resources": {"gpu": 1}}, "needs 2 gpu"),
        ({"resources": {"gpu_memory": "80GiB"}}, "needs 80 GiB gpu_memory"),
    ):
        with pytest.raises(NoQueueFits, match=words):
            client.train("digits", dataset=data, **ASKED, **more)
    assert client.train("digits", dataset=data, resources={"gpu": 1}, **ASKED).info().queue == "train-gpu"
    assert client.train("digits", dataset=data, queue="train-gpu", **ASKED).info().queue == "train-gpu"


@pytest.mark.parametrize("name", ["digits/3", "digits@champion", "", "../x"])
def test_what_is_trained_has_a_name_and_nothing_more(client: Client, data: str, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        client.train(name, dataset=data, **ASKED)


def test_the_same_key_and_request_give_the_same_job(client: Client, data: str) -> None:
    first = client.train("digits", dataset=data, idempotency_key="tonight", **ASKED)
    assert client.train("digits", dataset=data, idempotency_key="tonight", **ASKED) is first
    with pytest.raises(InvalidInput, match="a different request"):
        client.train("digits", dataset=data, idempotency_key="tonight", seed=1, **ASKED)


def test_image_folders_tell_the_label_by_the_folder_and_npz_has_columns(shell: Shell, client: Client) -> None:
    for name in ("cat", "dog"):
        (shell.home / "pets" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(shell.home / "pets" / name / "1.png")
    job = client.train("pets", recipe="image-classifier", dataset="pets")
    request = request_of(shell, job.id)
    assert (request.format, request.target, len(request.files)) == ("images", "label", 2)
    np.savez(shell.home / "d.npz", image=np.zeros((4, 8, 8)), label=np.arange(4))
    job = client.train("digits", recipe="image-classifier", dataset=shell.home / "d.npz", target="label")
    assert request_of(shell, job.id).format == "npz"


def test_an_import_path_is_the_workers_to_know_and_its_parameters_pass(shell: Shell, client: Client, data: str) -> None:
    job = client.train("digits", recipe="shop.recipes:Best", dataset=data, params={"depth": 3, "epochs": 2})
    request = request_of(shell, job.id)
    assert (request.params["depth"], request.params["epochs"], request.metric, request.target) == (3, 2, "loss", None)


# What comes back


def test_the_result_is_the_new_version_and_the_curve_is_a_table(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    job = client.train("digits", dataset=data, alias="champion", **ASKED)
    assert job.metrics() == []
    [claimed] = shell.store.claim([job.id], "w@host", 30)
    end(shell, runs, claimed)
    version = job.result(120)
    assert (version.ref, version.aliases, version.metadata["owner"]) == ("digits/1", ("champion",), "me")
    rows = job.metrics()
    assert [(row["step"], row["split"], row["loss"]) for row in rows] == [
        (5, "train", 1.0), (5, "validation", 0.5), (10, "train", 0.5), (10, "validation", 0.5),
    ]  # fmt: skip
    assert [row["step"] for row in job.metrics(after=5)] == [10, 10]
    assert shell.json("jobs", "result", job.id)["version"] == 1
    run = job.run
    assert (run.version, run.promoted, run.verdict) == (1, True, "@champion is new: accuracy 0.9")
    assert [c.step for c in job.checkpoints] == [5]
    assert client.jobs(kind="train")[0].ref == "digits"


def test_a_failed_run_goes_on_where_it_was_when_it_is_retried(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    claimed = begun(shell, client, data)
    runs.start(claimed, decode(claimed.input or b"", TrainRequest))
    runs.add_checkpoint(claimed, 5, 0, "sha256:" + "1" * 64, 2048, keep=3)
    shell.store.finish([Finished(claimed.id, claimed.attempt, error=JobError("OutOfMemory", "too large"))])
    assert "goes on from its last checkpoint" in " ".join(shell.out("jobs", "retry", "--help").split())
    assert [job["state"] for job in shell.json("jobs", "retry", claimed.id, "--json")] == ["queued"]
    [again] = shell.store.claim([claimed.id], "w@host", 30)
    assert [checkpoint.step for checkpoint in runs.queries.checkpoints(again.id)] == [5]
    with pytest.raises(IllegalTransition):
        client.job(claimed.id).retry()


# The commands


def test_train_submits_and_prints_the_id_when_it_is_detached(shell: Shell, data: str) -> None:
    done = shell.run(
        "train", "digits", "--recipe", "classifier", "--dataset", data, "--target", "label", "--epochs", "4",
        "--param", "hidden=16,8", "--param", "lr=0.1", "--alias", "champion", "--split-test", "0.3", "--gpu", "1", "--no-wait",
    )  # fmt: skip
    assert "no worker serves queue 'train-gpu' now; start one with `forebay worker --queues train-gpu`" in done.stderr
    request = request_of(shell, done.stdout.strip())
    assert (request.params["epochs"], request.params["hidden"], request.params["lr"]) == (4, [16, 8], 0.1)
    assert (request.split.test, request.alias, request.resources) == (0.3, "champion", {"gpu": 1.0})


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--epochs", "4", "--param", "epochs=5"], "--epochs and --param epochs=… are the same"),
        (["--param", "epochs"], "is not KEY=VALUE"),
        (["--target", "digit"], "there is no column 'digit'"),
        (["--deadline", "soon"], "--deadline"),
        (["--queue", "cpu"], "accepts no train jobs"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(shell: Shell, data: str, words: list[str], error: str) -> None:
    given = ["train", "digits", "--recipe", "classifier", "--dataset", data, "--target", "label", "--no-wait", *words]
    assert error in shell.error(*given)


def test_recipes_are_listed_with_their_parameters(shell: Shell) -> None:
    text = shell.out("recipes")
    for word in ("image-classifier", "accuracy", "channels", "epochs", "every recipe", "one of adam, adamw, gd, sgd"):
        assert word in text
    assert shell.out("train", "--list-recipes") == text
    only = shell.out("recipes", "regressor")
    assert "hidden" in only
    assert "channels" not in only
    listed = shell.json("recipes", "--json")
    assert {recipe["name"] for recipe in listed["recipes"]} >= {"regressor", "classifier", "sequence-classifier"}
    assert "there is no recipe 'x'" in shell.error("recipes", "x")


def test_a_run_is_shown_with_its_data_parameters_checkpoints_and_metrics(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    claimed = begun(shell, client, data, alias="champion")
    waiting = shell.out("jobs", "show", claimed.id)
    assert "digits/0" not in waiting
    end(shell, runs, claimed)
    text = shell.out("jobs", "show", claimed.id)
    for word in (
        "digits/1", "classifier", "data.parquet", "label", "epochs=20", "7 train, 1 validation, 2 test", "a, b", "x, y",
        "3 rows with missing values", "1 held-out rows are also in the training split", "CHECKPOINT", "2 KiB",
        "accuracy 0.9, f1 0.9", "@champion is new: accuracy 0.9",
    ):  # fmt: skip
        assert word in text
    told = shell.json("jobs", "show", claimed.id, "--json")
    assert (told["run"]["version"], told["run"]["data"]["classes"]) == (1, ["a", "b"])
    assert [checkpoint["step"] for checkpoint in told["checkpoints"]] == [5]
    listed = shell.out("jobs", "list")
    assert "digits/0" not in listed
    assert "digits " in listed


def test_the_curve_is_printed_as_table_json_and_csv(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    claimed = begun(shell, client, data)
    assert "nothing has been measured" in shell.run("jobs", "metrics", claimed.id).stderr
    end(shell, runs, claimed)
    table = shell.out("jobs", "metrics", claimed.id).splitlines()
    assert table[0].split() == ["STEP", "EPOCH", "SPLIT", "ROWS_PER_S", "LOSS", "ACCURACY"]
    assert table[2].split() == ["5", "0", "validation", "-", "0.5", "0.4"]
    rows = shell.json("jobs", "metrics", claimed.id, "--json")
    assert [row["loss"] for row in rows] == [1.0, 0.5, 0.5, 0.5]
    read = list(csv.DictReader(io.StringIO(shell.out("jobs", "metrics", claimed.id, "--csv"))))
    assert [row["accuracy"] for row in read] == ["", "0.4", "", "0.5"]
    assert "two forms" in shell.error("jobs", "metrics", claimed.id, "--csv", "--json")
    shell.register()
    assert "only training jobs have metrics" in shell.error("jobs", "metrics", shell.submit())


def test_a_trained_version_is_shown_with_metrics_lineage_and_evaluations(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    claimed = begun(shell, client, data, alias="champion")
    end(shell, runs, claimed)
    text = shell.out("models", "show", "digits@champion")
    for word in ("accuracy 0.9", "classifier", "epochs=20", "data.parquet", "ab" * 32, claimed.id, "owner=me"):
        assert word in text
    assert "lineage" not in text
    assert "EVALUATION" not in text
    evaluated(shell, runs, client.evaluate("digits", data, target="label", columns="x"))
    text = shell.out("models", "show", "digits@champion")
    assert "EVALUATION" in text
    assert "accuracy 0.5" in text
    assert shell.json("models", "show", "digits", "--json")["evaluations"][0]["metrics"] == {"accuracy": 0.5}
    assert [e.rows for e in client.models.evaluations("digits@champion")] == [4]


def test_metadata_that_only_looks_like_a_lineage_is_shown_as_it_is(shell: Shell) -> None:
    shell.register("double", None, "--metadata", "lineage=mine", "--metadata", 'metrics=["none"]')
    assert 'lineage=mine, metrics=["none"]' in shell.out("models", "show", "double")


def test_train_waits_and_tells_the_version_its_metrics_and_the_alias(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    job = client.train("digits", dataset=data, alias="champion", idempotency_key="k", **ASKED)
    [claimed] = shell.store.claim([job.id], "w@host", 30)
    end(shell, runs, claimed)
    given = [
        "train", "digits", "--recipe", "classifier", "--dataset", data, "--target", "label", "--alias", "champion",
        "--idempotency-key", "k",
    ]  # fmt: skip
    text = shell.out(*given)
    for word in ("digits/1", "accuracy 0.9", "@champion is new", job.id):
        assert word in text
    told = shell.json(*given, "--json")
    assert (told["model"], told["state"], told["promoted"]) == ("digits/1", "succeeded", True)
    assert told["metrics"] == {"accuracy": 0.9, "f1": 0.9}


def test_train_ends_with_status_1_when_the_job_fails_or_is_late_and_says_how_to_go_on(
    shell: Shell, client: Client, data: str
) -> None:
    given = [
        "train",
        "digits",
        "--recipe",
        "classifier",
        "--dataset",
        data,
        "--target",
        "label",
        "--idempotency-key",
        "k",
    ]
    late = shell.run(*given, "--timeout", "0", status=1)
    assert "is queued and goes on: forebay jobs wait" in late.stderr
    [info] = client.jobs()
    [claimed] = shell.store.claim([info.id], "w@host", 30)
    shell.store.finish([Finished(info.id, claimed.attempt, error=JobError("InvalidInput", "one class only"))])
    failed = shell.run(*given, status=1)
    assert "InvalidInput: one class only" in failed.stderr
    assert f"forebay jobs retry {info.id} begins anew: it has no checkpoint" in failed.stderr
    shell.store.retry(info.id)
    [again] = shell.store.claim([info.id], "w@host", 30)
    runs = TrainingStore(shell.store.ledger)
    runs.start(again, decode(again.input or b"", TrainRequest))
    runs.add_checkpoint(again, 1200, 3, "sha256:aa", 9, keep=2)
    shell.store.finish([Finished(info.id, again.attempt, error=JobError("WorkerLost", "signal 9"))])
    failed = shell.run(*given, status=1)
    assert f"forebay jobs retry {info.id} goes on from the checkpoint of step 1,200" in failed.stderr


# Evaluations


def evaluated(shell: Shell, runs: TrainingStore, job: Any) -> None:
    [claimed] = shell.store.claim([job.id], "w@host", 30)
    found = Evaluation(
        job.id, claimed.model, claimed.version, "data.parquet", "cd" * 32, 4, {"accuracy": 0.5}, [[1, 1], [1, 1]],
        ["a", "b"], 0.25,
    )  # fmt: skip
    runs.finish_evaluation(claimed, found, codec.encode(evaluation_value(found)))


def test_an_evaluation_is_asked_of_one_version_and_gives_a_record(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    shell.register("pair")
    job = client.evaluate("pair", data, target="label", columns=["x", "y"])
    info = job.info()
    assert (info.kind, info.ref, info.queue, info.priority) == (JobKind.EVALUATE, "pair/1", "cpu", 7)
    evaluated(shell, runs, job)
    found = job.result(120)
    assert isinstance(found, Evaluation)
    assert (found.metrics, found.rows, found.ms_per_row, found.classes) == ({"accuracy": 0.5}, 4, 0.25, ["a", "b"])
    assert shell.json("jobs", "result", job.id)["metrics"] == {"accuracy": 0.5}
    text = shell.out("jobs", "show", job.id)
    for word in ("accuracy 0.5", "0.25 ms per row", "TRUE  =a  =b"):
        assert word in text
    assert shell.json("jobs", "show", job.id, "--json")["evaluation"]["rows"] == 4


def test_what_an_evaluation_cannot_do_is_refused_at_submit(shell: Shell, client: Client, data: str) -> None:
    shell.register("pair")
    shell.register("two", None, "--outputs", '{"a": {"dtype": "str"}, "b": {"dtype": "str"}}')
    for ref, more, words in (
        ("pair", {"target": "digit"}, "target: there is no column 'digit'"),
        ("pair", {"columns": ["x", "z"]}, "there is no column 'z'"),
        ("pair", {"columns": "label"}, "expected"),
        ("pair", {"dataset": "none.csv"}, "no such file"),
        ("two", {"columns": "x"}, "which one is compared with the target? two/1 gives 'a', 'b'"),
        ("two", {"columns": "x", "output": "c"}, "two/1 gives 'a', 'b', not 'c'"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            client.evaluate(ref, **({"dataset": data, "target": "label"} | more))
        assert words in str(refusal.value)
    with pytest.raises(NoQueueFits, match="accepts no evaluate jobs"):
        client.evaluate("pair", data, target="label", columns=["x", "y"], queue="train")
    assert client.jobs() == []


def test_the_columns_that_are_meant_are_those_of_the_training(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    claimed = begun(shell, client, data)
    end(shell, runs, claimed)
    job = client.evaluate("digits", data, target="label")
    [asked] = shell.store.claim([job.id], "w@host", 30)
    assert json.loads(asked.input or b"")["columns"] == {"x": ["x"], "y": ["y"]}
    shell.register("pair", '{"v": {"dtype": "float32", "shape": [2]}}')
    pq.write_table(pq.read_table(shell.home / data).drop_columns(["fold"]), shell.home / "two.parquet")
    job = client.evaluate("pair", "two.parquet", target="label")
    [asked] = shell.store.claim([job.id], "w@host", 30)
    assert json.loads(asked.input or b"")["columns"] == {"v": ["x", "y"]}


def test_evaluate_prints_metrics_latency_and_the_confusion_matrix(
    shell: Shell, client: Client, runs: TrainingStore, data: str
) -> None:
    shell.register("pair")
    given = ["evaluate", "pair", data, "--target", "label", "--columns", "x,y", "--idempotency-key", "k"]
    assert "no worker serves queue 'cpu'" in shell.run(*given, "--no-wait").stderr
    [info] = client.jobs()
    evaluated(shell, runs, client.job(info.id))
    text = shell.out(*given)
    for word in ("pair/1", "accuracy 0.5", "0.25 ms per row", "TRUE  =a  =b"):
        assert word in text
    assert shell.json(*given, "--json")["confusion"] == [[1, 1], [1, 1]]
    assert client.job(info.id).state is JobState.SUCCEEDED
