"""Rows of models that another server runs, through the engine of a child, against a server with moods."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from forebay.contract.errors import EndpointError, EndpointUnavailable, InvalidInput, ModelLoadFailed, ModelRefused
from forebay.contract.model import ModelVersion
from forebay.contract.runtimes.endpoints import REMOTE
from forebay.contract.signature import Signature
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.runtimes import get_runtime
from forebay.worker.runtimes.remote import running
from support.endpoint import Endpoint, backwards, endpoint, tokens
from support.no_ceilings import NoCeilings
from support.waiting import wait_until

KEY = "sk-test-0123456789"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "FIRST_S", 0.01)


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as served:
        yield served


def load(of: Endpoint, monkeypatch: pytest.MonkeyPatch, *, allowed: str | None = None, **more: Any) -> LoadedModel:
    monkeypatch.setenv("FOREBAY_ALLOWED_ENDPOINTS", of.url if allowed is None else allowed)
    timeout_s = more.pop("timeout_s", None)
    options = {"base_url": of.url, "model": "m"} | more
    spec = ModelVersion("m", 1, REMOTE, "", "none", 0, Signature(), options=options, timeout_s=timeout_s)
    return LoadedModel(spec, get_runtime(REMOTE).load(None, "cpu", spec), 0, False)


def run(loaded: LoadedModel, texts: list[str], *, insist: bool = True, key: str = "request") -> tuple[list[Any], Any]:
    """The output or error of each row, and the metrics."""
    metrics = ChildMetrics()
    engine: Any = Engine(MemoryCeilings(NoCeilings()), metrics)  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    with closing(engine.run_rows(loaded, texts, lambda text: {key: text}, insist=insist)) as batches:
        for batch in batches:
            made |= zip(batch.items, batch.outputs, strict=True)
    return [made[text] for text in texts], metrics.take({}, 0)


def texts_of(made: list[Any]) -> list[str]:
    assert [one for one in made if isinstance(one, Exception)] == []
    return [one["text"] for one in made]


def total(metrics: Any, name: str) -> dict[str, float]:
    """A counter's values by the last of its labels."""
    return {labels[-1]: value for labels, value in metrics.counters.get(name, {}).items()}


def test_every_row_ends_whatever_the_server_does_and_what_it_cost_is_counted_once(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"line {i}" for i in range(200)]
    moods = [["late"], [500], ["cut"], ["wrong"], [503], [500, "cut"], [408]]
    served.moods = {prompts[i]: list(moods[i // 25]) for i in range(0, 175, 25)}
    served.capacity = 12
    made, metrics = run(load(served, monkeypatch, endpoint="completions"), prompts)
    assert texts_of(made) == [backwards(p) for p in prompts]
    assert served.answered == dict.fromkeys(prompts, 1)
    assert total(metrics, "prompt_tokens_total") == {"1": sum(tokens(p)[0] for p in prompts)}
    assert total(metrics, "completion_tokens_total") == {"1": sum(tokens(p)[1] for p in prompts)}
    outcomes = total(metrics, "endpoint_requests_total")
    assert outcomes["answered"] == 200
    assert outcomes["failed"] == 5
    assert outcomes["wrong"] == 1
    assert outcomes["refused"] == served.refused + 2


def test_the_number_of_requests_at_once_settles_at_what_the_server_takes(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.capacity, served.seconds = 4, 0.002
    loaded = load(served, monkeypatch, endpoint="completions")
    prompts = [f"line {i}" for i in range(300)]
    made, _ = run(loaded, prompts)
    assert texts_of(made) == [backwards(p) for p in prompts]
    assert served.refused < 60  # one attempt in six or fewer, though it always tries one more
    assert served.answered == dict.fromkeys(prompts, 1)
    assert loaded.model._route.endpoint.window.limit <= 6  # type: ignore[attr-defined]


def test_more_requests_run_at_once_as_long_as_all_goes_well_up_to_what_the_version_allows(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.seconds = 0.01
    run(load(served, monkeypatch, concurrency=13), [f"line {i}" for i in range(200)])
    assert served.peak == 13


def test_nothing_is_asked_before_the_time_that_the_server_names(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.moods = {"only": ["late"]}
    started = time.monotonic()
    made, _ = run(load(served, monkeypatch), ["only"])
    assert time.monotonic() - started >= 1.0
    assert texts_of(made) == ["ylno"]
    assert served.asked == {"only": 2}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 307])
def test_a_request_that_is_refused_for_good_is_not_asked_again_and_its_row_alone_fails_in_the_server_s_words(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    served.moods = {"bad": [status]}
    made, _ = run(load(served, monkeypatch), ["good", "bad", "fine"])
    assert [made[0]["text"], made[2]["text"]] == ["doog", "enif"]
    assert isinstance(made[1], EndpointError)
    assert str(made[1]) == f"{served.url}/chat/completions: {status}: no 'bad' today"
    assert served.asked["bad"] == 1


def test_an_answer_that_is_wrong_twice_fails_its_row(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    served.moods = {"odd": ["wrong", "wrong", None]}
    made, _ = run(load(served, monkeypatch), ["odd", "even"])
    assert isinstance(made[0], EndpointError)
    assert str(made[0]).endswith(
        "Object missing required field `index` - at `$.choices[0]`: {'choices':[{'text':1}]}".replace("'", '"')
    )
    assert served.asked == {"odd": 2, "even": 1}


@pytest.mark.parametrize("rows", [6, 300])  # the others have ended long before, or go on
def test_a_row_that_fails_again_and_again_while_others_are_answered_is_to_blame_itself(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    served.moods = {"line 3": [500] * 9}
    made, _ = run(load(served, monkeypatch, concurrency=2), [f"line {i}" for i in range(rows)])
    assert [i for i, one in enumerate(made) if isinstance(one, Exception)] == [3]
    assert isinstance(made[3], EndpointError)
    assert "500: no 'line 3' today (the last of 5 tries)" in str(made[3])


def test_an_endpoint_that_fails_all_rows_is_to_blame_itself(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["a", "b", "c"]
    served.moods = {p: [500] * 9 for p in prompts}
    made, _ = run(load(served, monkeypatch), prompts)
    assert [(type(one), one.counted) for one in made] == [(EndpointUnavailable, True)] * 3


def test_a_job_s_row_is_asked_once_and_its_error_may_pass(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    served.moods = {"a": [500], "b": ["cut"]}
    made, _ = run(load(served, monkeypatch), ["a", "b", "c"], insist=False)
    assert [type(one) for one in made] == [EndpointUnavailable, EndpointUnavailable, dict]
    assert served.asked == {"a": 1, "b": 1, "c": 1}


def test_an_endpoint_that_is_not_there_costs_a_job_no_attempt(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SHORT_WAIT_S", 0.2)
    nobody = "http://127.0.0.1:9/v1"
    loaded = load(served, monkeypatch, base_url=nobody, allowed=nobody)
    made, _ = run(loaded, ["a", "b"], insist=False)
    assert [(type(one), one.counted) for one in made] == [(EndpointUnavailable, False)] * 2
    assert "cannot be reached" in str(made[0])


def test_a_server_that_is_away_for_longer_than_a_job_waits_here_is_told_as_the_wait(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SHORT_WAIT_S", 0.5)
    served.moods = {"a": ["late"]}
    [made], _ = run(load(served, monkeypatch), ["a"], insist=False)
    assert isinstance(made, EndpointUnavailable)
    assert not made.counted
    assert 0.5 < made.wait_s <= 1.0


def test_an_endpoint_that_is_at_work_is_not_away_however_long_it_takes_nothing_more(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second pause for which nothing is sent is at most 0.5 s: that by itself must not count as away.
    monkeypatch.setattr(running, "SHORT_WAIT_S", 0.6)
    monkeypatch.setattr(running, "TAKEN_S", 0.1)
    served.capacity, served.seconds = 1, 1.5
    made, _ = run(load(served, monkeypatch), ["a", "b"], insist=False)
    assert texts_of(made) == ["a", "b"]


def test_a_fault_of_ours_is_the_error_of_its_row_and_holds_up_nobody(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.moods = {"a": [500]}
    monkeypatch.setattr(running.RunningRows, "_failed", lambda *_: 1 / 0)
    made, _ = run(load(served, monkeypatch), ["a", "b"])
    assert [type(one) for one in made] == [ZeroDivisionError, dict]


def test_a_request_that_takes_longer_than_timeout_s_is_cut_off(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.moods = {"long": ["slow"]}
    made, _ = run(load(served, monkeypatch, timeout_s=0.3), ["long", "short"], insist=False)
    assert isinstance(made[0], EndpointUnavailable)
    assert "no answer within 0.3 s" in str(made[0])
    assert made[1]["text"] == "trohs"
    wait_until(lambda: served.cut_off == 1, "the server has noticed")


def test_rows_that_are_to_stop_are_cut_off_and_the_others_end(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.moods = {"stop": ["slow"]}
    engine: Any = Engine(MemoryCeilings(NoCeilings()), ChildMetrics())  # type: ignore[arg-type]
    loaded, made = load(served, monkeypatch), []
    stopping = False

    def recut() -> bool:
        nonlocal stopping
        stopping = served.asked["stop"] == 1
        return stopping

    batches = engine.run_rows(
        loaded, ["a", "stop", "b"], lambda text: {"request": text}, recut=recut, skip=lambda t: stopping and t == "stop"
    )
    with closing(batches):
        for batch in batches:
            made += batch.items
    assert sorted(made) == ["a", "b"]
    wait_until(lambda: served.cut_off == 1, "the server has noticed")


def test_who_stops_listening_cuts_off_what_runs(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    served.moods = {"a": ["slow"], "b": ["slow"]}
    engine: Any = Engine(MemoryCeilings(NoCeilings()), ChildMetrics())  # type: ignore[arg-type]
    with closing(engine.run_rows(load(served, monkeypatch), ["a", "b"], lambda text: {"request": text})) as batches:
        assert next(batches).items == []  # nothing yet: whoever runs it can look whether to go on
        wait_until(lambda: served.running == 2, "both are asked")
    wait_until(lambda: served.cut_off == 2, "the server has noticed")


def test_texts_are_embedded_several_to_a_request_and_a_refused_one_is_found_among_them(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {i}" + "!" * i for i in range(40)]
    served.moods = {"text 7!!!!!!!": [400] * 9}
    made, metrics = run(load(served, monkeypatch, endpoint="embeddings"), texts, key="text")
    assert isinstance(made[7], EndpointError)
    assert [one.tolist() for i, one in enumerate(made) if i != 7] == [
        [len(t), 0.5] for i, t in enumerate(texts) if i != 7
    ]
    assert served.asked.total() < 40 + 32 * 2
    assert total(metrics, "prompt_tokens_total") == {"1": 2 * 39}


def test_a_chat_gets_messages_a_prompt_becomes_one_and_the_fields_are_passed_on(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(served, monkeypatch, endpoint="chat")
    engine: Any = Engine(MemoryCeilings(NoCeilings()), ChildMetrics())  # type: ignore[arg-type]
    asked = {"messages": [{"role": "user", "content": "hi"}], "n": 2, "temperature": 0.5, "max_completion_tokens": 9}
    [made] = [out for batch in engine.run_rows(loaded, [asked], lambda row: {"request": row}) for out in batch.outputs]
    assert [choice["text"] for choice in made["choices"]] == ["ih", "ih"]
    assert served.bodies == [{"model": "m"} | asked]
    run(loaded, ["hello"])
    assert served.bodies[-1] == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_a_row_that_the_endpoint_does_not_take_is_not_sent(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(served, monkeypatch, endpoint="completions")
    engine: Any = Engine(MemoryCeilings(NoCeilings()), ChildMetrics())  # type: ignore[arg-type]
    rows = [{"prompt": "x", "tools": []}, [{"role": "user", "content": "hi"}], "fine"]
    made = {}
    for batch in engine.run_rows(loaded, [0, 1, 2], lambda i: {"request": rows[i]}):
        made |= zip(batch.items, batch.outputs, strict=True)
    assert [type(made[i]) for i in range(3)] == [InvalidInput, InvalidInput, dict]
    assert "'tools': this field is not supported" in str(made[0])
    assert "endpoint=chat" in str(made[1])
    assert served.asked == {"fine": 1}


def test_the_key_comes_from_the_worker_s_environment_and_goes_where_the_operator_says_and_into_no_error(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.key = KEY
    monkeypatch.setenv("THE_KEY", KEY + "\n")
    allowed = f"{served.url} THE_KEY"
    assert texts_of(run(load(served, monkeypatch, allowed=allowed, api_key_env="THE_KEY"), ["abc"])[0]) == ["cba"]
    served.key = "another"
    [made], _ = run(load(served, monkeypatch, allowed=allowed, api_key_env="THE_KEY"), ["abc"])
    assert isinstance(made, EndpointError)
    assert "401: wrong key Bearer ***" in str(made)
    with pytest.raises(ModelRefused, match="the key 'PATH' may not be sent to http"):
        load(served, monkeypatch, allowed=allowed, api_key_env="PATH")
    with pytest.raises(ModelRefused, match="is not allowed: the operator lists"):
        load(served, monkeypatch, allowed=",", api_key_env="THE_KEY")
    monkeypatch.setenv("THE_KEY", "two\nlines")
    with pytest.raises(ModelLoadFailed, match="THE_KEY of this worker holds no key") as error:
        load(served, monkeypatch, allowed=allowed, api_key_env="THE_KEY")
    assert "two" not in str(error.value)
