"""ModelRegistry: names, versions and aliases of models. Artifacts are only named: whoever registers one has stored its blob."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy.exc import IntegrityError

from forebay.contract.errors import InvalidInput, ModelNotFound
from forebay.contract.job import at
from forebay.contract.model import TEXT_GENERATION, ModelVersion
from forebay.contract.queues import Resources
from forebay.contract.references import ModelRef, check_alias, check_name
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import json_text
from forebay.storage.ledger import tables
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

COLUMNS = """v.name, v.version, v.runtime, v.artifact, v.artifact_form, v.artifact_bytes, v.inputs, v.outputs, v.max_batch_size,
v.batch_wait_timeout_s, v.resources, v.options, v.metadata, v.created_at, v.max_batch_tokens, v.dtype, v.compile,
v.timeout_s, v.example IS NOT NULL AS has_example"""

# What the three forms of a reference mean: `name/3`, `name@alias`, `name`.
_NUMBERS = {
    "version": ":version",
    "alias": "(SELECT a.version FROM model_aliases a WHERE a.name = :name AND a.alias = :alias)",
    "newest": "(SELECT max(m.version) FROM model_versions m WHERE m.name = :name)",
}
GET = {
    form: Statement(f"SELECT {COLUMNS} FROM model_versions v WHERE v.name = :name AND v.version = {number}")
    for form, number in _NUMBERS.items()
}
GET_NUMBER = {
    form: Statement(
        f"SELECT v.version, v.max_batch_size FROM model_versions v WHERE v.name = :name AND v.version = {number}"
    )
    for form, number in _NUMBERS.items()
}
ALL = Statement(f"SELECT {COLUMNS} FROM model_versions v ORDER BY v.name, v.version")
OF_NAME = Statement(f"SELECT {COLUMNS} FROM model_versions v WHERE v.name = :name ORDER BY v.version")
NAMES = Statement("SELECT DISTINCT name FROM model_versions ORDER BY name")
ALIASES = Statement("SELECT name, version, alias FROM model_aliases ORDER BY alias")
ALIASES_OF = Statement("SELECT alias, version FROM model_aliases WHERE name = :name ORDER BY alias")

ADD_NAME = Statement("INSERT INTO models (name, last_version) VALUES (:name, 0) ON CONFLICT (name) DO NOTHING")
NEXT_VERSION = Statement("UPDATE models SET last_version = last_version + 1 WHERE name = :name RETURNING last_version")
SET_ALIAS = Statement("""
INSERT INTO model_aliases (name, alias, version) VALUES (:name, :alias, :version)
ON CONFLICT (name, alias) DO UPDATE SET version = :version""")
DROP_ALIAS = Statement("DELETE FROM model_aliases WHERE name = :name AND alias = :alias")
DROP_VERSION = Statement("DELETE FROM model_versions WHERE name = :name AND version = :version")
SET_EXAMPLE = Statement("UPDATE model_versions SET example = :example WHERE name = :name AND version = :version")
EXAMPLE = Statement("SELECT example FROM model_versions WHERE name = :name AND version = :version")
GENERATING = Statement(f"SELECT {COLUMNS} FROM model_versions v WHERE v.runtime = :runtime ORDER BY v.name, v.version")
HOLD_NAME = Statement("SELECT name FROM models WHERE name = :name FOR UPDATE")
HOLD_VERSION = Statement("SELECT version FROM model_versions WHERE name = :name AND version = :version FOR UPDATE")
COUNT_UNFINISHED = Statement("""
SELECT count(*) FROM jobs WHERE model = :name AND version = :version AND state IN ('queued', 'running')""")


class ModelRegistry:
    """Registers, finds, aliases and deletes model versions. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: dict[tuple[str, int | None], ModelVersion] = {}  # only its max_batch_size may change

    def register(self, model: ModelVersion, example: bytes | None = None, alias: str | None = None) -> ModelVersion:
        """Store `model` as its name's next version (its `version` is not looked at) and give it with that number.

        With `alias`, which is pointed at it in the same transaction.
        """
        check_name(model.name)
        now = self._ledger.now()
        with self._ledger.write() as connection:
            made = add_version(connection, model, now)
            if example is not None:
                SET_EXAMPLE.execute(connection, example=example, name=made.name, version=made.version)
            if alias is not None:
                point(connection, made.name, alias, made.version)
        return replace(made, has_example=example is not None, aliases=() if alias is None else (alias,))

    def example(self, name: str, version: int) -> bytes | None:
        """The row that was registered with a version, as the codec wrote it; None when there is none."""
        found = self._ledger.scalar(EXAMPLE, name=name, version=version)
        return None if found is None else bytes(found)

    def resolve(self, ref: ModelRef) -> ModelVersion:
        """Like `get`, without the aliases and with one small query: what each submit asks."""
        now = self._ledger.row(GET_NUMBER[_form(ref)], **_values(ref))
        known = self._known.get((ref.name, now.version)) if now is not None else None
        if known is None or known.max_batch_size != now.max_batch_size:
            known = self.get(ref)
            self._known[known.name, known.version] = known
        return known

    def alias_version(self, name: str, alias: str) -> int:
        """The number of the version that an alias names now; 0 when there is no such alias."""
        row = self._ledger.row(GET_NUMBER["alias"], name=name, alias=alias)
        return 0 if row is None else int(row.version)

    def get(self, ref: str | ModelRef) -> ModelVersion:
        """The version that `name`, `name/3` or `name@alias` means now; ModelNotFound names what there is instead."""
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        with self._ledger.read() as connection:
            model = _find(connection, ref)
            if model is None:
                raise ModelNotFound(_not_found(connection, ref))
            aliases = ALIASES_OF.execute(connection, name=ref.name).fetchall()
        return replace(model, aliases=tuple(row.alias for row in aliases if row.version == model.version))

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        """Every version, or those of one name, oldest first; ModelNotFound when a given name has none."""
        with self._ledger.read() as connection:
            rows = OF_NAME.execute(connection, name=check_name(name)) if name else ALL.execute(connection)
            models = [_model(row) for row in rows]
            if name and not models:
                raise ModelNotFound(_not_found(connection, ModelRef(name)))
            of: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
            for row in ALIASES.execute(connection):
                of[row.name, row.version].append(row.alias)
        return [replace(m, aliases=tuple(of[m.name, m.version])) for m in models]

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
        model = self.get(ModelRef(name, version))
        try:
            with self._ledger.write() as connection:
                HOLD_NAME.execute(connection, name=name)  # who compares with what an alias names moves it first
                point(connection, name, alias, version)
        except IntegrityError:  # deleted just now, as this says
            return self.get(ModelRef(name, version))
        return replace(model, aliases=tuple(sorted({*model.aliases, alias})))

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias; ModelNotFound when there is none."""
        self.get(ModelRef(name, alias=alias))
        with self._ledger.write() as connection:
            DROP_ALIAS.execute(connection, name=name, alias=alias)

    def delete(self, ref: str | ModelRef) -> ModelVersion:
        """Delete the one version that `ref` names by number or alias, and give it.

        InvalidInput when the reference is a bare name, an alias points at the version or jobs of it wait or run. Its number
        is never used again; its artifact goes later (blobs/sweep.py) unless other versions share it.
        """
        ref = ModelRef.parse(ref) if isinstance(ref, str) else ref
        if ref.version is None and ref.alias is None:
            raise InvalidInput(
                f"{ref.name!r} may mean several versions; name the one to delete, such as '{ref.name}/1'"
            )
        model = self.get(ref)
        if model.aliases:
            raise InvalidInput(f"{model.ref} is {', '.join('@' + a for a in model.aliases)}; move the alias first")
        try:
            with self._ledger.write() as connection:
                if busy := COUNT_UNFINISHED.execute(connection, name=model.name, version=model.version).scalar_one():
                    raise InvalidInput(f"{busy} jobs of {model.ref} wait or run; cancel them or let them end first")
                DROP_VERSION.execute(connection, name=model.name, version=model.version)
                if adapters := _adapters(connection, model):
                    raise InvalidInput(
                        f"{', '.join(adapters)} would have no base without {model.ref}; delete them first"
                    )
        except IntegrityError as error:
            raise InvalidInput(f"an alias was pointed at {model.ref} just now; move it first") from error
        return model


def add_version(
    connection: Connection,
    model: ModelVersion,
    now: float,
    complete: Callable[[ModelVersion], ModelVersion] | None = None,
) -> ModelVersion:
    """`model` as its name's next version, within a transaction of the caller's.

    From its number on nobody else adds versions of the name: `complete` may add what must not change meanwhile.
    ModelNotFound for an adapter whose base has been deleted.
    """
    if (base := model.base) is not None:
        held = HOLD_VERSION.execute(connection, name=base.name, version=base.version).fetchone()
        if held is None:
            raise ModelNotFound(f"the base {base} has been deleted; adapt another version")
    ADD_NAME.execute(connection, name=model.name)
    version = NEXT_VERSION.execute(connection, name=model.name).scalar_one()
    model = complete(model) if complete is not None else model
    connection.execute(tables.model_versions.insert(), _row(model, version, now))
    return replace(model, version=version, created_at=at(now), aliases=())


def dump_version(model: ModelVersion) -> str:
    """A version that is not registered yet as text, of which `load_version` makes it again."""
    return json.dumps(_row(model, 0, 0.0))


def load_version(text: str) -> ModelVersion:
    return _model(SimpleNamespace(has_example=False, **json.loads(text)))


def aliased(connection: Connection, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias names, within a transaction of the caller's; None when there is no such alias."""
    return _find(connection, ModelRef(name, alias=alias))


def point(connection: Connection, name: str, alias: str, version: int) -> None:
    """Point an alias at a version that is there, within a transaction of the caller's."""
    SET_ALIAS.execute(connection, name=name, alias=alias, version=version)


def _adapters(connection: Connection, base: ModelVersion) -> list[str]:
    generating = map(_model, GENERATING.execute(connection, runtime=TEXT_GENERATION))
    return [model.ref for model in generating if str(model.base) == base.ref]


def _form(ref: ModelRef) -> str:
    if ref.version is not None:
        return "version"
    return "newest" if ref.alias is None else "alias"


def _values(ref: ModelRef) -> dict[str, Any]:
    return {"name": ref.name, "version": ref.version, "alias": ref.alias}


def _find(connection: Connection, ref: ModelRef) -> ModelVersion | None:
    row = GET[_form(ref)].execute(connection, **_values(ref)).fetchone()
    return None if row is None else _model(row)


def _not_found(connection: Connection, ref: ModelRef) -> str:
    versions = [row.version for row in OF_NAME.execute(connection, name=ref.name)]
    if not versions:
        names = list(NAMES.execute(connection).scalars())
        return f"no model is called {ref.name!r}; registered are: {', '.join(names[:20]) or 'none yet'}"
    if ref.alias is not None:
        aliases = [row.alias for row in ALIASES_OF.execute(connection, name=ref.name)]
        return f"{ref.name!r} has no alias {ref.alias!r}; it has: {', '.join(aliases) or 'none'}"
    return f"{ref.name!r} has no version {ref.version}; it has: {', '.join(map(str, versions[-20:]))}"


def _has(fields: tuple[Any, ...] | None, wanted: tuple[Any, ...] | None) -> bool:
    if wanted is None or fields is None:
        return wanted is None
    plain = {replace(field, classes=()) for field in fields}  # whoever looks for a shape need not know the classes
    return set(wanted) <= plain | set(fields)


# The columns that are the model's fields as they are.
_PLAIN = (
    "runtime", "artifact", "artifact_form", "artifact_bytes", "max_batch_size", "batch_wait_timeout_s", "max_batch_tokens",
    "dtype", "compile", "timeout_s",
)  # fmt: skip


def _row(model: ModelVersion, version: int, now: float) -> dict[str, Any]:
    inputs, outputs = model.signature.inputs_json(), model.signature.outputs_json()
    return {
        "name": model.name,
        "version": version,
        "created_at": now,
        "inputs": None if inputs is None else json.dumps(inputs),
        "outputs": None if outputs is None else json.dumps(outputs),
        **{name: json_text(name, dict(getattr(model, name))) for name in ("resources", "options", "metadata")},
        **{name: getattr(model, name) for name in _PLAIN},
    }


def _model(row: Any) -> ModelVersion:
    inputs, outputs = (text and json.loads(text) for text in (row.inputs, row.outputs))
    return ModelVersion(
        name=row.name, version=row.version, runtime=row.runtime, artifact=row.artifact, artifact_form=row.artifact_form,
        artifact_bytes=int(row.artifact_bytes), signature=Signature.parse(inputs, outputs),
        max_batch_size=row.max_batch_size, batch_wait_timeout_s=row.batch_wait_timeout_s,
        max_batch_tokens=row.max_batch_tokens, dtype=row.dtype, compile=bool(row.compile), timeout_s=row.timeout_s,
        resources=json.loads(row.resources), options=json.loads(row.options), metadata=json.loads(row.metadata),
        created_at=at(row.created_at), has_example=bool(row.has_example),
    )  # fmt: skip
