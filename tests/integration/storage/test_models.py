"""The model registry on SQLite and PostgreSQL: numbers count up, aliases move, and nothing in use is deleted."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.job import JobKind, at, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.models.registry import ModelRegistry
from support.ledgers import in_processes, register
from support.waiting import FakeClock

IMAGE = {"x": {"dtype": "float32", "shape": [64]}}
SCORES = {"scores": {"dtype": "float32", "shape": [10]}}


def model(name: str = "digits", **fields: Any) -> ModelVersion:
    given = {
        "version": 0, "runtime": "torch-export", "artifact": "sha256:" + "a" * 64, "artifact_form": "file",
        "artifact_bytes": 2**40, "signature": Signature.parse(IMAGE, SCORES),
    }  # fmt: skip
    return ModelVersion(name, **(given | fields))


def job(store: JobStore, name: str = "digits", version: int = 1) -> str:
    return store.add([NewJob(new_ids(1)[0], JobKind.PREDICT, name, version, "cpu")])[0]


def test_a_version_is_read_back_as_it_was_registered(registry: ModelRegistry, clock: FakeClock) -> None:
    given = model(
        max_batch_size=256, batch_wait_timeout_s=0.25, timeout_s=1.5, resources={"gpu": 1.0, "gpu_memory": 2**31},
        options={"class": "a.b:C", "deep": [1, None]}, metadata={"team": "ä"},
    )  # fmt: skip
    registered = registry.register(given)
    assert registered == replace(given, version=1, created_at=at(clock()))
    assert registry.get("digits/1") == registered
    assert registry.get("digits/1").ref == "digits/1"


def test_a_model_without_a_signature_stays_without(registry: ModelRegistry) -> None:
    registry.register(model(signature=Signature()))
    assert registry.get("digits").signature == Signature(None, None)


def test_versions_count_up_by_name(registry: ModelRegistry) -> None:
    numbers = [(v.name, v.version) for v in (registry.register(model(name)) for name in ("a", "b", "a", "a", "b"))]
    assert numbers == [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]


def test_versions_count_up_in_threads_without_gap_or_double(registry: ModelRegistry) -> None:
    barrier = threading.Barrier(8)

    def work(_: int) -> list[int]:
        barrier.wait(120)
        return [registry.register(model()).version for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(work, range(8)))
    assert all(numbers == sorted(numbers) for numbers in got)
    assert sorted(v for numbers in got for v in numbers) == list(range(1, 41))
    assert [v.version for v in registry.versions("digits")] == list(range(1, 41))


def test_versions_count_up_in_processes_without_gap_or_double(registry: ModelRegistry, database: str) -> None:
    got = in_processes(3, register, database, "digits", 10)
    assert sorted(v for numbers in got for v in numbers) == list(range(1, 31))


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "../a", "ä", "a" * 101])
def test_a_name_that_cannot_be_referred_to_is_not_registered(registry: ModelRegistry, name: str) -> None:
    with pytest.raises(InvalidInput, match="model name"):
        registry.register(model(name))
    assert registry.versions() == []


def test_a_bare_name_means_the_newest_version(registry: ModelRegistry) -> None:
    for _ in range(3):
        registry.register(model())
    assert registry.get("digits").version == 3
    registry.delete("digits/3")
    assert registry.get("digits").version == 2


# aliases


def test_an_alias_names_a_version_and_moves(registry: ModelRegistry) -> None:
    for _ in range(2):
        registry.register(model())
    assert registry.set_alias("digits", "champion", 1).aliases == ("champion",)
    assert registry.get("digits@champion").version == 1
    assert registry.set_alias("digits", "champion", 2).version == 2
    assert registry.get("digits@champion").version == 2
    assert registry.get("digits/1").aliases == ()


def test_a_version_may_have_several_aliases_and_a_name_its_own(registry: ModelRegistry) -> None:
    for name in ("digits", "digits", "other"):
        registry.register(model(name))
    for name, alias, version in [("digits", "b", 1), ("digits", "a", 1), ("digits", "c", 2), ("other", "a", 1)]:
        registry.set_alias(name, alias, version)
    assert [(v.ref, v.aliases) for v in registry.versions()] == [
        ("digits/1", ("a", "b")), ("digits/2", ("c",)), ("other/1", ("a",)),
    ]  # fmt: skip
    assert registry.get("digits").aliases == ("c",)


def test_a_dropped_alias_is_gone_and_its_version_stays(registry: ModelRegistry) -> None:
    registry.register(model())
    registry.set_alias("digits", "champion", 1)
    registry.drop_alias("digits", "champion")
    with pytest.raises(ModelNotFound, match="has no alias 'champion'; it has: none"):
        registry.drop_alias("digits", "champion")
    assert registry.get("digits/1").aliases == ()


@pytest.mark.parametrize("alias", ["", "1", "a b", "a/b", "a" * 65])
def test_an_alias_that_could_be_mistaken_is_refused(registry: ModelRegistry, alias: str) -> None:
    registry.register(model())
    with pytest.raises(InvalidInput, match="alias"):
        registry.set_alias("digits", alias, 1)


def test_an_alias_for_a_version_that_is_not_there_is_refused(registry: ModelRegistry) -> None:
    registry.register(model())
    with pytest.raises(ModelNotFound, match="'digits' has no version 2; it has: 1"):
        registry.set_alias("digits", "champion", 2)


def test_an_alias_for_a_version_deleted_just_now_is_refused(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = registry.register(model())
    registry.register(model())
    registry.delete("digits/1")
    look = registry.get
    answers = iter([gone])
    monkeypatch.setattr(registry, "get", lambda ref: next(answers, None) or look(ref))  # it was there when looked at
    with pytest.raises(ModelNotFound, match="'digits' has no version 1; it has: 2"):
        registry.set_alias("digits", "champion", 1)


def test_an_alias_moved_by_many_at_once_points_at_one_of_theirs(registry: ModelRegistry) -> None:
    for _ in range(8):
        registry.register(model())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda v: registry.set_alias("digits", "champion", v), range(1, 9)))
    assert sum("champion" in v.aliases for v in registry.versions("digits")) == 1


# deleting


def test_a_deleted_version_is_gone_and_its_number_is_never_used_again(registry: ModelRegistry) -> None:
    for _ in range(2):
        registry.register(model())
    assert registry.delete("digits/2").version == 2
    with pytest.raises(ModelNotFound, match="'digits' has no version 2; it has: 1"):
        registry.get("digits/2")
    assert registry.register(model()).version == 3
    for ref in ("digits/1", "digits/3"):
        registry.delete(ref)
    assert registry.register(model()).version == 4


def test_a_bare_name_deletes_nothing(registry: ModelRegistry) -> None:
    registry.register(model())
    with pytest.raises(InvalidInput, match="may mean several versions; name the one to delete, such as 'digits/1'"):
        registry.delete("digits")
    assert registry.get("digits").version == 1


@pytest.mark.parametrize("ref", ["digits/1", "digits@champion"])
def test_a_version_with_an_alias_is_not_deleted(registry: ModelRegistry, ref: str) -> None:
    registry.register(model())
    registry.set_alias("digits", "champion", 1)
    with pytest.raises(InvalidInput, match=r"digits/1 is @champion; move the alias first"):
        registry.delete(ref)
    assert registry.get("digits@champion").version == 1


def test_an_alias_set_while_its_version_is_being_deleted_wins(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = registry.register(model())
    registry.set_alias("digits", "champion", 1)
    monkeypatch.setattr(registry, "get", lambda ref: seen)  # as it was before the alias
    with pytest.raises(InvalidInput, match="an alias was pointed at digits/1 just now"):
        registry.delete("digits/1")
    monkeypatch.undo()
    assert registry.get("digits@champion").version == 1


def test_a_version_with_jobs_that_wait_or_run_is_not_deleted(registry: ModelRegistry, store: JobStore) -> None:
    for _ in range(2):
        registry.register(model())
    waits, runs, other = job(store), job(store), job(store, version=2)
    (claimed,) = store.claim([runs], "w", 30)
    with pytest.raises(InvalidInput, match="2 jobs of digits/1 wait or run"):
        registry.delete("digits/1")
    store.cancel([waits])
    with pytest.raises(InvalidInput, match="1 jobs of digits/1 wait or run"):
        registry.delete("digits/1")
    store.finish([Finished(claimed.id, claimed.attempt, b"")])
    assert registry.delete("digits/1").version == 1
    assert [j.id for j in store.queries.find(model="digits")] == [other, runs, waits], "finished jobs stay to be read"


def test_a_base_is_not_deleted_before_its_adapters_and_an_adapter_needs_its_base(registry: ModelRegistry) -> None:
    def adapter(base: str) -> ModelVersion:
        return model("tuned", runtime="text-generation", options={"base": base})

    for _ in range(2):
        registry.register(model("small", runtime="text-generation"))
    registry.register(adapter("small/1"))
    with pytest.raises(InvalidInput, match=r"tuned/1 would have no base without small/1; delete them first"):
        registry.delete("small/1")
    assert registry.delete("small/2").version == 2
    with pytest.raises(ModelNotFound, match="the base small/2 has been deleted"):
        registry.register(adapter("small/2"))
    registry.delete("tuned/1")
    assert registry.delete("small/1").version == 1


def test_a_base_deleted_while_an_adapter_of_it_is_registered_is_never_missed(registry: ModelRegistry) -> None:
    for i in range(1, 9):
        registry.register(model("small", runtime="text-generation"))
        adapter = model("tuned", runtime="text-generation", options={"base": f"small/{i}"})
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(registry.delete, f"small/{i}"), pool.submit(registry.register, adapter)]
        failed = [one.exception() for one in done if one.exception() is not None]
        assert len(failed) == 1
        assert isinstance(failed[0], InvalidInput | ModelNotFound)


@pytest.mark.parametrize("ref", ["digits/9", "digits@nobody", "nothing/1"])
def test_what_is_not_there_cannot_be_deleted(registry: ModelRegistry, ref: str) -> None:
    registry.register(model())
    with pytest.raises(ModelNotFound):
        registry.delete(ref)


# searching and listing


def test_versions_are_listed_by_name_and_number(registry: ModelRegistry) -> None:
    for name in ("b", "a", *["b"] * 10):
        registry.register(model(name))
    assert [v.ref for v in registry.versions()] == ["a/1", *(f"b/{i}" for i in range(1, 12))]
    assert [v.ref for v in registry.versions("a")] == ["a/1"]


@pytest.fixture
def shelf(registry: ModelRegistry) -> ModelRegistry:
    text_in = {"text": {"dtype": "str"}}
    both = Signature.parse(IMAGE | text_in, SCORES)
    registry.register(model("image", metadata={"team": "vision"}))
    registry.register(model("text", signature=Signature.parse(text_in), metadata={"team": "speech", "n": 1}))
    registry.register(model("both", signature=both, resources={"gpu_memory": 40 * 2**30}, metadata={"team": "vision"}))
    registry.register(model("unknown", signature=Signature(), resources={"memory": 2**30}))
    return registry


SEARCHES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["both", "image", "text", "unknown"]),
    ({"inputs": IMAGE}, ["both", "image"]),
    ({"inputs": {"x": {"dtype": "float32", "shape": [65]}}}, []),
    ({"inputs": {"x": {"dtype": "float64", "shape": [64]}}}, []),
    ({"inputs": IMAGE | {"text": {"dtype": "str"}}}, ["both"]),
    ({"outputs": SCORES}, ["both", "image"]),
    ({"inputs": {"text": {"dtype": "str"}}, "outputs": SCORES}, ["both"]),
    ({"resources": {"gpu": 1, "gpu_memory": "24GiB"}}, ["image", "text"]),
    ({"resources": {"gpu": 1, "gpu_memory": "80GiB", "memory": "2GiB"}}, ["both", "image", "text", "unknown"]),
    ({"resources": {}}, ["image", "text"]),
    ({"metadata": {"team": "vision"}}, ["both", "image"]),
    ({"metadata": {"team": "speech", "n": 1}}, ["text"]),
    ({"metadata": {"team": "speech", "n": 2}}, []),
    ({"metadata": {"absent": None}}, []),
    ({"inputs": IMAGE, "metadata": {"team": "vision"}, "resources": {"cpu": 1}}, ["image"]),
]


@pytest.mark.parametrize(("wanted", "names"), SEARCHES)
def test_a_search_finds_what_meets_every_condition(
    shelf: ModelRegistry, wanted: dict[str, Any], names: list[str]
) -> None:
    assert [v.name for v in shelf.search(**wanted)] == names


def test_a_search_for_what_is_no_signature_is_refused(shelf: ModelRegistry) -> None:
    with pytest.raises(InvalidInput, match="complex64"):
        shelf.search(inputs={"x": {"dtype": "complex64", "shape": [1]}})


# messages


def test_messages_name_what_there_is(registry: ModelRegistry) -> None:
    with pytest.raises(ModelNotFound, match="no model is called 'digits'; registered are: none yet"):
        registry.get("digits")
    for name in ("digits", "digits", "minilm"):
        registry.register(model(name))
    registry.set_alias("digits", "champion", 1)
    registry.set_alias("digits", "canary", 2)
    for ref, message in [
        ("digit", "no model is called 'digit'; registered are: digits, minilm"),
        ("digits/7", "'digits' has no version 7; it has: 1, 2"),
        ("digits@chmapion", "'digits' has no alias 'chmapion'; it has: canary, champion"),
        ("minilm@champion", "'minilm' has no alias 'champion'; it has: none"),
    ]:
        with pytest.raises(ModelNotFound, match=f"^{re.escape(message)}$"):
            registry.get(ref)
    with pytest.raises(ModelNotFound, match="no model is called 'other'"):
        registry.versions("other")


def test_a_name_whose_versions_are_all_deleted_is_not_offered(registry: ModelRegistry) -> None:
    registry.register(model("empty"))
    registry.delete("empty/1")
    for ref in ("empty", "empty/1", "nothing"):
        with pytest.raises(ModelNotFound, match="registered are: none yet"):
            registry.get(ref)


@pytest.mark.parametrize("bad", [float("nan"), object(), "a\0b", "\ud800"])
def test_options_and_metadata_must_be_json(registry: ModelRegistry, bad: Any) -> None:
    for field in ("options", "metadata"):
        with pytest.raises(InvalidInput, match=field):
            registry.register(model(**{field: {"k": bad}}))
    assert registry.versions() == []


def test_a_version_cannot_be_without_its_model(registry: ModelRegistry) -> None:
    registry.register(model())
    registry.delete("digits/1")
    with registry._ledger.read() as connection:
        assert connection.execute(text("SELECT last_version FROM models")).scalar_one() == 1
