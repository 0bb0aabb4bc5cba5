"""Versions that a job makes of another one appear, with their alias and the job's success, whole or not at all."""

from dataclasses import replace

import pytest
from msgspec import structs

from forebay.contract.job import JobKind, JobState
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import ClaimedJob, LeaseLost
from forebay.storage.jobs.store import JobStore
from forebay.storage.models.derived import derived_metadata, register_derived
from forebay.storage.models.registry import ModelRegistry
from support.jobs import add

PARENT = ModelVersion(
    "digits", 0, "torch-export", "sha256:" + "0" * 64, "file", 10, Signature(),
    metadata={"team": "a", "metrics": {"accuracy": 1.0}, "lineage": {"sha256": "ab", "files": ["x"], "seed": 1}},
)  # fmt: skip


def claimed(store: JobStore) -> ClaimedJob:
    [id] = add(store, kind=JobKind.CONVERT)
    [job] = store.claim([id], "w@host", 30)
    return job


def test_the_version_its_alias_and_the_jobs_success_come_together(store: JobStore, registry: ModelRegistry) -> None:
    parent, job = registry.register(PARENT, b"row", "champion"), claimed(store)
    metadata = derived_metadata(parent, job, "convert", to="onnx")
    assert metadata["team"] == "a"
    assert "metrics" not in metadata
    assert metadata["lineage"] == {
        "sha256": "ab", "files": ["x"], "parent": "digits/1", "job": job.id, "made_by": "convert", "to": "onnx",
    }  # fmt: skip
    made, ended = register_derived(
        store.ledger, job, replace(parent, runtime="onnx", metadata=metadata), lambda made: made.ref.encode(),
        alias="champion", example=b"row",
    )  # fmt: skip
    assert ended.id == job.id
    assert store.queries.get(job.id).state is JobState.SUCCEEDED
    assert registry.get("digits@champion") == made
    assert (made.ref, made.runtime, made.has_example, made.aliases) == ("digits/2", "onnx", True, ("champion",))
    assert registry.example("digits", 2) == b"row"


def test_who_has_lost_the_job_registers_nothing(store: JobStore, registry: ModelRegistry) -> None:
    parent, job = registry.register(PARENT, None, "champion"), claimed(store)
    with pytest.raises(LeaseLost):
        register_derived(
            store.ledger, structs.replace(job, attempt=job.attempt + 1), parent, lambda _: b"", alias="champion"
        )
    assert [model.ref for model in registry.versions("digits")] == ["digits/1"]
    assert registry.get("digits@champion").version == 1
    assert store.queries.get(job.id).state is JobState.RUNNING


ONE, TWO = (Signature.parse(None, {name: {"dtype": "str"} for name in names}) for names in ("a", "ab"))


@pytest.mark.parametrize(("now", "replaces", "signature", "why"), [
    (1, 1, ONE, None), (None, 0, ONE, None), (1, None, ONE, None),
    (2, 1, ONE, "@champion stays at digits/2: it named digits/1 when this was asked for; move it by hand: models alias"),
    (2, 0, ONE, "@champion stays at digits/2: it named nothing when"),
    (1, 1, TWO, "@champion stays at digits/1: its outputs are 'a': str; 'b': str, not str"),
])  # fmt: skip
def test_an_alias_moves_only_from_what_it_named_when_that_was_asked_for_and_to_results_of_the_same_form(
    store: JobStore,
    registry: ModelRegistry,
    now: int | None,
    replaces: int | None,
    signature: Signature,
    why: str | None,
) -> None:
    parents = [registry.register(replace(PARENT, signature=ONE)) for _ in range(2)]
    if now is not None:
        registry.set_alias("digits", "champion", now)
    assert registry.alias_version("digits", "champion") == (now or 0)
    job = claimed(store)
    model = replace(parents[0], signature=signature, metadata=derived_metadata(parents[0], job, "convert"))
    made, _ = register_derived(store.ledger, job, model, lambda _: b"", alias="champion", replaces=replaces)
    assert made == registry.get("digits/3")
    assert registry.alias_version("digits", "champion") == (3 if why is None else now)
    assert str(made.metadata["lineage"].get("alias")).startswith(str(why))
