"""The ledger's tables of jobs, and of the batches and shards among them. What stands behind the payloads is NULL or 0 in nearly
every job: SQLite knows that from a row's head, without reading through the payloads.
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
    text,
)

metadata = MetaData()


def partial_index(name: str, where: str, *columns: str, unique: bool = False) -> Index:
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
    partial_index("ix_jobs_queued", "state = 'queued'", "queue", "priority", "id", "created_at"),
    partial_index("ix_jobs_running", "state = 'running'", "lease_until"),
    partial_index("ix_jobs_deadline", "state = 'queued' AND deadline_at IS NOT NULL", "deadline_at"),
    # What retention looks for: without it every sweep would read the whole table, and hold up all writers meanwhile. With
    # the further columns the dashboard counts what ended in an hour from the index alone.
    partial_index("ix_jobs_finished", "finished_at IS NOT NULL", "finished_at", "state", "model", "version", "queue"),
    # The jobs of a model, newest first, however many others there are.
    Index("ix_jobs_model", "model", "id", "version"),
    # All others are few among millions of predictions, which cost this index nothing.
    partial_index("ix_jobs_kind", "kind NOT IN ('predict', 'shard')", "kind", "id"),
    # What a search by metadata has to look at.
    partial_index("ix_jobs_metadata", "metadata <> '{}'", "id"),
    # The dashboard's lists of them: jobs that end well, nearly all, cost this index nothing.
    partial_index("ix_jobs_ended_badly", "state IN ('failed', 'canceled', 'expired')", "state", "id"),
    # Both are nearly empty: only jobs that wait after a transient error, and running ones that are to stop.
    partial_index("ix_jobs_not_before", "state = 'queued' AND not_before IS NOT NULL", "not_before"),
    partial_index("ix_jobs_cancel", "state = 'running' AND cancel_requested_at IS NOT NULL", "worker"),
    # With the further columns a batch's shards are counted by state without a look at their rows.
    partial_index("ix_jobs_parent", "parent_id IS NOT NULL", "parent_id", "id", "state"),
    # What a batch has under way, and which batches and tunes live: looked at after each shard and with each sweep.
    partial_index(
        "ix_jobs_open_shards", "parent_id IS NOT NULL AND state IN ('queued', 'running')", "parent_id", "state"
    ),
    partial_index("ix_jobs_live_parents", "kind IN ('batch', 'tune') AND state IN ('queued', 'running')", "state"),
    # Who refers to a blob: most jobs have none, and cost these nothing.
    partial_index("ix_jobs_input_ref", "input_ref IS NOT NULL", "input_ref"),
    partial_index("ix_jobs_result_ref", "result_ref IS NOT NULL", "result_ref"),
    partial_index("ux_jobs_idempotency", "idempotency_key IS NOT NULL", "idempotency_key", unique=True),
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
    partial_index("ix_shards_failed", "rows_failed > 0", "batch_id", "rows_failed"),
)

# The train jobs of a tune. `value` is what they are compared by: the best of a trial that has ended, of another where it was
# `pruned`, at that step. The best trial so far has an artifact, and `made`, the version that it would become.
trials = Table(
    "trials", metadata, Column("id", String(32), primary_key=True), Column("tune_id", String(32), nullable=False),
    Column("number", Integer, nullable=False), Column("params", Text, nullable=False), Column("value", Double),
    Column("pruned", Integer), Column("artifact", String(80)), Column("made", Text),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ux_trials_number", "tune_id", "number", unique=True),
    partial_index("ix_trials_artifact", "artifact IS NOT NULL", "artifact"),
)  # fmt: skip
