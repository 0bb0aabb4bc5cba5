"""The ledger's tables. Times are seconds since the epoch (double), JSON is text. What stands behind
the payloads is NULL or 0 in nearly every job: SQLite knows that from a row's head, without reading through the payloads.

The migrations bring a database to this form; a test holds the two against each other.
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


def _partial_index(name: str, where: str, *columns: str, unique: bool = False) -> Index:
    """An index of only the rows that meet `where`: the others cost it nothing."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


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
    Column("crashes", SmallInteger, nullable=False, server_default=text("0")),  # such a job runs alone
    Column("cancel_requested_at", Double),  # a user wants this running job to stop
    Column("not_before", Double),  # a queued job waits for this time, and has no message until then
    Column("submitted_by", String(100)),  # over HTTP: the dialect, and the API key's name
    # What waits, by queue: the sweeper's and `forebay queues`' view. With `created_at` PostgreSQL tells the age of a backlog
    # without a look at its rows.
    _partial_index("ix_jobs_queued", "state = 'queued'", "queue", "priority", "id", "created_at"),
    _partial_index("ix_jobs_running", "state = 'running'", "lease_until"),
    _partial_index("ix_jobs_deadline", "state = 'queued' AND deadline_at IS NOT NULL", "deadline_at"),
    # What retention looks for: without it every sweep would read the whole table, and hold up all writers meanwhile. With
    # the further columns the dashboard counts what ended in an hour from the index alone.
    _partial_index("ix_jobs_finished", "finished_at IS NOT NULL", "finished_at", "state", "model", "version", "queue"),
    # The jobs of a model, newest first, however many others there are.
    Index("ix_jobs_model", "model", "id", "version"),
    # Batches, training runs and evaluations are few among millions of predictions, which cost this index nothing.
    _partial_index("ix_jobs_kind", "kind IN ('batch', 'evaluate', 'node', 'train')", "kind", "id"),
    # What a search by metadata has to look at.
    _partial_index("ix_jobs_metadata", "metadata <> '{}'", "id"),
    # The dashboard's lists of them: jobs that end well, nearly all, cost this index nothing.
    _partial_index("ix_jobs_ended_badly", "state IN ('failed', 'canceled', 'expired')", "state", "id"),
    # Both are nearly empty: only jobs that wait after a transient error, and running ones that are to stop.
    _partial_index("ix_jobs_not_before", "state = 'queued' AND not_before IS NOT NULL", "not_before"),
    _partial_index("ix_jobs_cancel", "state = 'running' AND cancel_requested_at IS NOT NULL", "worker"),
    # With the further columns a batch's shards are counted by state without a look at their rows.
    _partial_index("ix_jobs_parent", "parent_id IS NOT NULL", "parent_id", "id", "state"),
    # What a batch has under way, and which batches live: looked at after each shard and with each sweep.
    _partial_index(
        "ix_jobs_open_shards", "parent_id IS NOT NULL AND state IN ('queued', 'running')", "parent_id", "state"
    ),
    _partial_index("ix_jobs_live_batches", "kind = 'batch' AND state IN ('queued', 'running')", "state"),
    # Who refers to a blob: most jobs have none, and cost these nothing.
    _partial_index("ix_jobs_input_ref", "input_ref IS NOT NULL", "input_ref"),
    _partial_index("ix_jobs_result_ref", "result_ref IS NOT NULL", "result_ref"),
    _partial_index("ux_jobs_idempotency", "idempotency_key IS NOT NULL", "idempotency_key", unique=True),
)

# Attempts that ended otherwise than by finishing their job, and outcomes that a retry took back: the past of a job whose row
# only tells the present. A job that runs once and ends has no row here.
job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", String(32), nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("ended", String(16), nullable=False),  # lost, released, refused, or the final state that was retried
    Column("worker", String(200)),
    Column("started_at", Double),
    Column("ended_at", Double, nullable=False),
    Column("reason", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "attempt", "ended"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
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
    Column("timeout_s", Double),
    Column("example", LargeBinary),  # a row to warm up with, as the codec writes it; read when the version is loaded
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
    Column("part_schema", LargeBinary, nullable=False),  # of all its parts, as Arrow writes a schema
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
)

shards = Table(
    "shards",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("batch_id", String(32), nullable=False),
    Column("pieces", Text, nullable=False),
    Column("planned", Text),  # the pieces as they were planned; none of a shard that was split off another
    Column("part", String(100), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows_done", BigInteger, nullable=False),  # of the attempt that runs or has ended; failed rows beside them
    Column("rows_failed", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("outcome", Text),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ix_shards_batch", "batch_id", "part"),
    # How many rows of a batch have failed, and which shards know why: most have none, and cost it nothing.
    _partial_index("ix_shards_failed", "rows_failed > 0", "batch_id", "rows_failed"),
)

training_runs = Table(
    "training_runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(100), nullable=False),
    Column("recipe", String(200), nullable=False),
    Column("request", Text, nullable=False),  # without the list of files
    Column("resumed", Integer, nullable=False),  # how often it went on from a checkpoint
    Column("steps", Integer),  # in all, as planned
    Column("data", Text),  # contract.training.DataSummary
    Column("version", Integer),
    Column("metrics", Text),  # on the held-out rows
    Column("confusion", Text),
    Column("promoted", Boolean),
    Column("verdict", Text),  # why the alias moved, or not
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ix_training_runs_model", "model", "id"),
)

# `measured` is by metric.
job_metrics = Table(
    "job_metrics", metadata, Column("job_id", String(32), nullable=False), Column("split", String(16), nullable=False),
    Column("step", Integer, nullable=False), Column("epoch", Integer, nullable=False), Column("at", Double, nullable=False),
    Column("measured", Text, nullable=False), Column("rows_per_s", Double),
    PrimaryKeyConstraint("job_id", "split", "step"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
)  # fmt: skip

checkpoints = Table(
    "checkpoints", metadata, Column("job_id", String(32), nullable=False), Column("step", Integer, nullable=False),
    Column("epoch", Integer, nullable=False), Column("attempt", SmallInteger, nullable=False),
    Column("blob", String(80), nullable=False), Column("bytes", BigInteger, nullable=False),
    Column("at", Double, nullable=False), PrimaryKeyConstraint("job_id", "step"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
)  # fmt: skip

evaluations = Table(
    "evaluations",
    metadata,
    # The job's; not bound to it: what is known of a version outlives the job.
    Column("id", String(32), primary_key=True),
    Column("model", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("confusion", Text),
    Column("classes", Text),
    Column("ms_per_row", Double, nullable=False),
    Column("failed", BigInteger, nullable=False, server_default=text("0")),
    Column("warning", Text, nullable=False),
    Column("at", Double, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    Index("ix_evaluations_version", "model", "version", "id"),
)

# What lies in the blob store and nobody refers to, since when by the ledger's clock, and which version of it was seen.
unused_blobs = Table(
    "unused_blobs", metadata, Column("folder", String(16), nullable=False), Column("path", String(100), nullable=False),
    Column("version", String(64), nullable=False), Column("since", Double, nullable=False),
    PrimaryKeyConstraint("folder", "path"),
)  # fmt: skip

# Names are never used again, so that `jobs.submitted_by` always means the same key.
# `sha256` is the key's, which itself is nowhere.
api_keys = Table(
    "api_keys", metadata, Column("name", String(64), primary_key=True), Column("sha256", String(64), nullable=False),
    Column("scopes", Text, nullable=False), Column("created_at", Double, nullable=False), Column("expires_at", Double),
    Column("revoked_at", Double),
)  # fmt: skip

# Of the API: uploads, and what batches made of them. The owner is the API key's name, or empty.
files = Table(
    "files", metadata, Column("id", String(40), primary_key=True), Column("owner", String(100), nullable=False),
    Column("filename", Text, nullable=False), Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False), Column("blob", String(80), nullable=False),
    Column("created_at", Double, nullable=False), Column("expires_at", Double),
    Index("ix_files_owner", "owner", "id"), Index("ix_files_blob", "blob"),
    _partial_index("ix_files_expires", "expires_at IS NOT NULL", "expires_at"),
)  # fmt: skip

# SQLite's alone: which transaction was committed last (commits.py).
last_commit = Table(
    "last_commit", metadata, Column("id", Integer, primary_key=True), Column("mark", String(64), nullable=False)
)

# `stats` are contract.statistics, since the worker started.
workers = Table(
    "workers", metadata, Column("name", String(200), primary_key=True), Column("host", String(200), nullable=False),
    Column("device", String(64), nullable=False), Column("queues", Text, nullable=False),
    Column("started_at", Double, nullable=False), Column("heartbeat_at", Double, nullable=False),
    Column("stats", Text, nullable=False, server_default="{}"),
)  # fmt: skip
