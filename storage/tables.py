"""The ledger's tables. Times are seconds since the epoch (double), JSON is text, payloads are the last columns.

storage.migrations brings a database to this form; a test holds the two against each other.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("model", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("queue", String(32), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("attempt", SmallInteger, nullable=False),  # only ever grows, so that it can fence every write
    Column("uncounted", SmallInteger, nullable=False),  # of those: released unrun, or before a retry
    Column("max_attempts", SmallInteger, nullable=False),
    Column("worker", String(200)),
    Column("lease_until", Double),
    Column("created_at", Double, nullable=False),
    Column("sent_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("deadline_at", Double),
    Column("progress_done", Integer, nullable=False),
    Column("progress_total", Integer, nullable=False),
    Column("progress_message", Text, nullable=False),
    Column("error_type", String(200)),
    Column("error_message", Text),
    Column("metadata", Text, nullable=False),
    Column("parent_id", String(32)),
    Column("client", String(64)),
    Column("idempotency_key", String(200)),
    Column("request_hash", String(64)),
    Column("input_ref", String(80)),
    Column("result_ref", String(80)),
    Column("input", LargeBinary),
    Column("result", LargeBinary),
    # What waits, by queue: the sweeper's and `forebay queues`' view. Finished jobs cost this index nothing.
    Index(
        "ix_jobs_queued",
        "queue",
        "priority",
        "id",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_jobs_running",
        "lease_until",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "ix_jobs_deadline",
        "deadline_at",
        sqlite_where=text("state = 'queued' AND deadline_at IS NOT NULL"),
        postgresql_where=text("state = 'queued' AND deadline_at IS NOT NULL"),
    ),
    # What retention looks for: without it every sweep would read the whole table, and hold up all writers meanwhile.
    Index(
        "ix_jobs_finished",
        "finished_at",
        sqlite_where=text("finished_at IS NOT NULL"),
        postgresql_where=text("finished_at IS NOT NULL"),
    ),
    Index(
        "ix_jobs_parent",
        "parent_id",
        sqlite_where=text("parent_id IS NOT NULL"),
        postgresql_where=text("parent_id IS NOT NULL"),
    ),
    # What a batch has under way, and which batches live: looked at after each shard and with each sweep.
    Index(
        "ix_jobs_open_shards",
        "parent_id",
        "state",
        sqlite_where=text("parent_id IS NOT NULL AND state IN ('queued', 'running')"),
        postgresql_where=text("parent_id IS NOT NULL AND state IN ('queued', 'running')"),
    ),
    Index(
        "ix_jobs_live_batches",
        "state",
        sqlite_where=text("kind = 'batch' AND state IN ('queued', 'running')"),
        postgresql_where=text("kind = 'batch' AND state IN ('queued', 'running')"),
    ),
    Index(
        "ux_jobs_idempotency",
        "idempotency_key",
        unique=True,
        sqlite_where=text("idempotency_key IS NOT NULL"),
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)

models = Table(
    "models",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("last_version", Integer, nullable=False),  # never reused, also after a version is deleted
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("runtime", String(64), nullable=False),
    Column("artifact", String(80), nullable=False),
    Column("artifact_form", String(16), nullable=False),
    Column("artifact_bytes", Double, nullable=False),
    Column("inputs", Text),
    Column("outputs", Text),
    Column("max_batch_size", Integer, nullable=False),
    Column("batch_wait_timeout_s", Double, nullable=False),
    Column("resources", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("max_batch_tokens", Integer),
    Column("dtype", String(16)),
    Column("compile", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("name", "version"),
    ForeignKeyConstraint(["name"], ["models.name"], ondelete="CASCADE"),
)

batch_ceilings = Table(
    "batch_ceilings",
    metadata,
    Column("name", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("device", String(100), nullable=False),  # its kind: cpu, or the GPU's name
    Column("rows", Integer, nullable=False),
    Column("tried_at", Double, nullable=False),
    PrimaryKeyConstraint("name", "version", "device"),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("name", String(100), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    PrimaryKeyConstraint("name", "alias"),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("output", Text, nullable=False),
    Column("files", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("next_file", Integer, nullable=False),  # up to where shards have been planned
    Column("next_first", BigInteger, nullable=False),
    Column(
        "steps", Integer, nullable=False
    ),  # grows with each step of planning: of two that plan at once, one is heard
    Column("planned", Boolean, nullable=False),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
)

shards = Table(
    "shards",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("batch_id", String(32), nullable=False),
    Column("pieces", Text, nullable=False),
    Column("part", String(100), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows_done", BigInteger, nullable=False),  # of the attempt that runs or has ended; failed rows beside them
    Column("rows_failed", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("outcome", Text),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ix_shards_batch", "batch_id", "part"),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("host", String(200), nullable=False),
    Column("device", String(64), nullable=False),
    Column("queues", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
)
