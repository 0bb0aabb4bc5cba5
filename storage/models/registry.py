"""ModelRegistry: names, versions and aliases of models. Every SQL statement about models stands here.

Artifacts lie in the blob store and are put there by whoever registers; here they are only named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import IntegrityError

from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.job import at
from forebay.contract.model import ModelVersion
from forebay.contract.queues import Resources
from forebay.contract.references import ModelRef, check_alias, check_name
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import json_text
from forebay.storage.ledger.connection import Ledger

COLUMNS = """v.name, v.version, v.runtime, v.artifact, v.artifact_form, v.artifact_bytes, v.inputs, v.outputs, v.max_batch_size,
v.batch_wait_timeout_s, v.resources, v.options, v.metadata, v.created_at, v.max_batch_tokens, v.dtype, v.compile,
v.timeout_s"""

ADD_NAME = text("INSERT INTO models (name, last_version) VALUES (:name, 0) ON CONFLICT (name) DO NOTHING")
NEXT_VERSION = text("UPDATE models SET last_version = last_version + 1 WHERE name = :name RETURNING last_version")
ADD_VERSION = text("""
INSERT INTO model_versions (name, version, runtime, artifact, artifact_form, artifact_bytes, inputs, outputs, max_batch_size,
    batch_wait_timeout_s, resources, options, metadata, created_at, max_batch_tokens, dtype, compile,
    timeout_s)
VALUES (:name, :version, :runtime, :artifact, :artifact_form, :artifact_bytes, :inputs, :outputs, :max_batch_size,
    :batch_wait_timeout_s, :resources, :options, :metadata, :created_at, :max_batch_tokens, :dtype, :compile,
    :timeout_s)""")
BY_VERSION = text(f"SELECT {COLUMNS} FROM model_versions v WHERE v.name = :name AND v.version = :version")
NEWEST = text(f"SELECT {COLUMNS} FROM model_versions v WHERE v.name = :name ORDER BY v.version DESC LIMIT 1")
BY_ALIAS = text(f"""
SELECT {COLUMNS} FROM model_versions v JOIN model_aliases a ON a.name = v.name AND a.version = v.version
WHERE v.name = :name AND a.alias = :alias""")
NEWEST_NUMBER = text("SELECT max(version) FROM model_versions WHERE name = :name")
ALIAS_NUMBER = text("SELECT version FROM model_aliases WHERE name = :name AND alias = :alias")
HAS_NUMBER = text("SELECT version FROM model_versions WHERE name = :name AND version = :version")
ALL = text(f"SELECT {COLUMNS} FROM model_versions v ORDER BY v.name, v.version")
OF_NAME = text(f"SELECT {COLUMNS} FROM model_versions v WHERE v.name = :name ORDER BY v.version")
NAMES = text("SELECT DISTINCT name FROM model_versions ORDER BY name")
ALIASES = text("SELECT name, version, alias FROM model_aliases ORDER BY alias")
ALIASES_OF = text("SELECT alias, version FROM model_aliases WHERE name = :name ORDER BY alias")
SET_ALIAS = text("""
INSERT INTO model_aliases (name, alias, version) VALUES (:name, :alias, :version)
ON CONFLICT (name, alias) DO UPDATE SET version = :version""")
DROP_ALIAS = text("DELETE FROM model_aliases WHERE name = :name AND alias = :alias")
DROP_VERSION = text("DELETE FROM model_versions WHERE name = :name AND version = :version")
BUSY = text("""
SELECT count(*) FROM jobs WHERE model = :name AND version = :version AND state IN ('queued', 'running')""")


class ModelRegistry:
    """Registers, finds, aliases and deletes model versions. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[tuple[str, int | None], ModelVersion] = {}  # a version never changes once registered

    def register(self, model: ModelVersion) -> ModelVersion:
        """Store `model` as its name's next version (its `version` is not looked at) and give it with that number."""
        check_name(model.name)
        now = self._ledger.now()
        with self._ledger.write() as connection:
            return add_version(connection, model, now)

    def resolve(self, ref: ModelRef) -> ModelVersion:
        """Like `get`, without the aliases and with one small query: what each submit asks."""
        version = self._ledger.scalar(*_version_of(ref))
        known = self._known.get((ref.name, version)) if version is not None else None
        if known is None:
            known = self.get(ref)
            self._known[known.name, known.version] = known
        return known

    def get(self, ref: str | ModelRef) -> ModelVersion:
        """The version that `name`, `name/3` or `name@alias` means now; ModelNotFound names what there is instead."""
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        with self._ledger.read() as connection:
            row = _find(connection, ref)
            if row is None:
                raise ModelNotFound(self._not_found(connection, ref))
            aliases = connection.execute(ALIASES_OF, {"name": ref.name}).fetchall()
        model = _model(row)
        return replace(model, aliases=tuple(alias for alias, version in aliases if version == model.version))

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        """Every version, or those of one name, oldest first; ModelNotFound when a given name has none."""
        with self._ledger.read() as connection:
            rows = connection.execute(OF_NAME, {"name": check_name(name)}) if name else connection.execute(ALL)
            models = [_model(row) for row in rows]
            aliases = connection.execute(ALIASES).fetchall()
            if name and not models:
                raise ModelNotFound(self._not_found(connection, ModelRef(name)))
        of: dict[tuple[str, int], list[str]] = {}
        for owner, version, alias in aliases:
            of.setdefault((owner, version), []).append(alias)
        return [replace(m, aliases=tuple(of.get((m.name, m.version), ()))) for m in models]

    def search(
        self,
        *,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[ModelVersion]:
        """The versions whose signature has these fields, that fit into these resources, and carry this metadata."""
        wanted = Signature.parse(inputs, outputs)
        capacity = Resources.parse(resources) if resources is not None else None
        return [
            m
            for m in self.versions()
            if _has(m.signature.inputs, wanted.inputs)
            and _has(m.signature.outputs, wanted.outputs)
            and (capacity is None or not Resources.parse(m.resources).shortages(capacity))
            and all(k in m.metadata and m.metadata[k] == v for k, v in (metadata or {}).items())
        ]

    def set_alias(self, name: str, alias: str, version: int) -> ModelVersion:
        """Point `alias` at a version, moving it when it exists; ModelNotFound when the version does not."""
        check_alias(alias)
        self.get(ModelRef(name, version))
        with suppress(IntegrityError), self._ledger.write() as connection:  # deleted just now: the last line says so
            connection.execute(SET_ALIAS, {"name": name, "alias": alias, "version": version})
        return self.get(ModelRef(name, version))

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias; ModelNotFound when there is none."""
        self.get(ModelRef(name, alias=alias))
        with self._ledger.write() as connection:
            connection.execute(DROP_ALIAS, {"name": name, "alias": alias})

    def delete(self, ref: str | ModelRef) -> ModelVersion:
        """Delete the one version that `ref` names by number or alias, and give it.

        InvalidInput when the reference is a bare name, an alias points at the version or jobs of it wait or run. Its number
        is never used again; its artifact stays in the blob store, where other versions may share it.
        """
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        if ref.version is None and ref.alias is None:
            raise InvalidInput(
                f"{ref.name!r} may mean several versions; name the one to delete, such as '{ref.name}/1'"
            )
        model = self.get(ref)
        if model.aliases:
            raise InvalidInput(f"{model.ref} is {', '.join('@' + a for a in model.aliases)}; move the alias first")
        key = {"name": model.name, "version": model.version}
        try:
            with self._ledger.write() as connection:
                if busy := connection.execute(BUSY, key).scalar_one():
                    raise InvalidInput(f"{busy} jobs of {model.ref} wait or run; cancel them or let them end first")
                connection.execute(DROP_VERSION, key)
        except IntegrityError as error:
            raise InvalidInput(f"an alias was pointed at {model.ref} just now; move it first") from error
        return model

    def _not_found(self, connection: Connection, ref: ModelRef) -> str:
        versions = [row.version for row in connection.execute(OF_NAME, {"name": ref.name})]
        if not versions:
            names = list(connection.execute(NAMES).scalars())
            return f"no model is called {ref.name!r}; registered are: {', '.join(names[:20]) or 'none yet'}"
        if ref.alias is not None:
            aliases = [a for a, _ in connection.execute(ALIASES_OF, {"name": ref.name})]
            return f"{ref.name!r} has no alias {ref.alias!r}; it has: {', '.join(aliases) or 'none'}"
        return f"{ref.name!r} has no version {ref.version}; it has: {', '.join(map(str, versions[-20:]))}"


def add_version(connection: Connection, model: ModelVersion, now: float) -> ModelVersion:
    """`model` as its name's next version, within a transaction of the caller's."""
    connection.execute(ADD_NAME, {"name": model.name})
    version = connection.execute(NEXT_VERSION, {"name": model.name}).scalar_one()
    connection.execute(ADD_VERSION, _values(model, version, now))
    return replace(model, version=version, created_at=at(now), aliases=())


def aliased(connection: Connection, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias names, within a transaction of the caller's; None when there is no such alias."""
    row = _find(connection, ModelRef(name, alias=alias))
    return None if row is None else _model(row)


def point(connection: Connection, name: str, alias: str, version: int) -> None:
    """Point an alias at a version that is there, within a transaction of the caller's."""
    connection.execute(SET_ALIAS, {"name": name, "alias": alias, "version": version})


def _find(connection: Connection, ref: ModelRef) -> Any:
    if ref.version is not None:
        return connection.execute(BY_VERSION, {"name": ref.name, "version": ref.version}).fetchone()
    if ref.alias is not None:
        return connection.execute(BY_ALIAS, {"name": ref.name, "alias": ref.alias}).fetchone()
    return connection.execute(NEWEST, {"name": ref.name}).fetchone()


def _version_of(ref: ModelRef) -> tuple[TextClause, dict[str, Any]]:
    if ref.version is not None:
        return HAS_NUMBER, {"name": ref.name, "version": ref.version}
    if ref.alias is not None:
        return ALIAS_NUMBER, {"name": ref.name, "alias": ref.alias}
    return NEWEST_NUMBER, {"name": ref.name}


def _has(fields: tuple[Any, ...] | None, wanted: tuple[Any, ...] | None) -> bool:
    return wanted is None or (fields is not None and set(wanted) <= set(fields))


def _values(model: ModelVersion, version: int, now: float) -> dict[str, Any]:
    inputs, outputs = model.signature.inputs_json(), model.signature.outputs_json()
    return {
        "name": model.name,
        "version": version,
        "runtime": model.runtime,
        "artifact": model.artifact,
        "artifact_form": model.artifact_form,
        "artifact_bytes": model.artifact_bytes,
        "inputs": None if inputs is None else json.dumps(inputs),
        "outputs": None if outputs is None else json.dumps(outputs),
        "max_batch_size": model.max_batch_size,
        "batch_wait_timeout_s": model.batch_wait_timeout_s,
        "resources": json_text("resources", dict(model.resources)),
        "options": json_text("options", dict(model.options)),
        "metadata": json_text("metadata", dict(model.metadata)),
        "created_at": now,
        "max_batch_tokens": model.max_batch_tokens,
        "dtype": model.dtype,
        "compile": model.compile,
        "timeout_s": model.timeout_s,
    }


def _model(row: Any) -> ModelVersion:
    inputs, outputs = (text and json.loads(text) for text in (row.inputs, row.outputs))
    return ModelVersion(
        row.name,
        row.version,
        row.runtime,
        row.artifact,
        row.artifact_form,
        int(row.artifact_bytes),
        Signature.parse(inputs, outputs),
        row.max_batch_size,
        row.batch_wait_timeout_s,
        row.max_batch_tokens,
        row.dtype,
        bool(row.compile),
        row.timeout_s,
        json.loads(row.resources),
        json.loads(row.options),
        json.loads(row.metadata),
        at(row.created_at),
    )
