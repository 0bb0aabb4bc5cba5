"""Versions that a job has made from another one: the version appears, its alias moves and the job succeeds in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from forebay.contract.model import ModelVersion
from forebay.storage.jobs.fence import hold, succeed
from forebay.storage.jobs.records import ClaimedJob, Ended
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.models.registry import SET_EXAMPLE, add_version, aliased, point

# What a version has learnt from is what its parent has: evaluations warn of rows that it has seen.
_INHERITED = ("files", "sha256", "trained_by")


def derived_metadata(parent: ModelVersion, job: ClaimedJob, made_by: str, **facts: Any) -> dict[str, Any]:
    """The parent's metadata without its metrics, which are not the new version's, and with a lineage that holds these facts."""
    lineage = parent.metadata.get("lineage")
    known = lineage if isinstance(lineage, Mapping) else {}
    inherited = {name: known[name] for name in _INHERITED if name in known}
    if "job" in known and "made_by" not in known:
        inherited["trained_by"] = known["job"]
    kept = {name: value for name, value in parent.metadata.items() if name not in ("lineage", "metrics")}
    return {**kept, "lineage": {**inherited, "parent": parent.ref, "job": job.id, "made_by": made_by, **facts}}


def derived_facts(lineage: Any) -> dict[str, str]:
    """How a version was made of another one, and what was measured, in words; {} for a lineage that does not say so."""
    if not isinstance(lineage, Mapping) or "made_by" not in lineage:
        return {}
    facts = {"made from": str(lineage.get("parent")), "made by": f"{lineage['made_by']}, job {lineage.get('job')}"}
    about = ("parent", "job", "made_by", *_INHERITED)
    return facts | {str(name).replace("_", " "): _words(value) for name, value in lineage.items() if name not in about}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{str(name).replace('_', ' ')} {_words(inner)}" for name, inner in value.items() if inner is not None
        )
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)


def register_derived(
    ledger: Ledger,
    job: ClaimedJob,
    model: ModelVersion,
    result: Callable[[ModelVersion], bytes],
    *,
    alias: str | None = None,
    replaces: int | None = None,
    example: bytes | None = None,
) -> tuple[ModelVersion, Ended]:
    """Register `model` as its name's next version, point `alias` at it, and end the job, which made it, with what `result` makes
    of the version. The alias stays, and the lineage says why, where it no longer names the version `replaces`, or callers would
    meet another signature. LeaseLost, and nothing is written, when the job is no longer this attempt's.
    """  # fmt: skip
    now = ledger.now()
    with ledger.write() as connection:
        hold(connection, job)
        made = add_version(connection, model, now, partial(_with_verdict, connection, alias, replaces))
        moves = alias is not None and "alias" not in made.metadata["lineage"]
        if example is not None:
            SET_EXAMPLE.execute(connection, example=example, name=made.name, version=made.version)
        if alias is not None and moves:
            point(connection, made.name, alias, made.version)
        made = replace(made, has_example=example is not None, aliases=(alias,) if alias is not None and moves else ())
        succeed(connection, job, result(made), now)
    return made, Ended(job.id, job.client)


def _with_verdict(connection: Connection, alias: str | None, replaces: int | None, model: ModelVersion) -> ModelVersion:
    """The version, with the reason in its lineage where the alias is not to move to it."""
    named = None if alias is None else aliased(connection, model.name, alias)
    if named is None:
        return model
    why = named.signature.differences(model.signature)
    if replaces is not None and named.version != replaces:
        why = f"it named {f'{model.name}/{replaces}' if replaces else 'nothing'} when this was asked for"
    if not why:
        return model
    lineage = {
        **model.metadata["lineage"],
        "alias": f"@{alias} stays at {named.ref}: {why}; move it by hand: models alias",
    }
    return replace(model, metadata={**model.metadata, "lineage": lineage})
