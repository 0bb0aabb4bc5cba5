"""The ledger's tables. Times are seconds since the epoch (double), JSON is text. Those of jobs are in job_tables.

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
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    false,
    text,
)

from forebay.storage.ledger import job_tables
from forebay.storage.ledger.job_tables import partial_index

metadata = job_tables.metadata

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

# `found` is a contract.requests.versions.benchmark.Benchmark, the id its job's, which it outlives.
benchmarks = Table(
    "benchmarks", metadata, Column("id", String(32), primary_key=True), Column("model", String(100), nullable=False),
    Column("version", Integer, nullable=False), Column("found", Text, nullable=False), Column("at", Double, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    Index("ix_benchmarks_version", "model", "version", "id"),
)  # fmt: skip

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

# What a version's inputs and outputs are held against (contract.drift.sketch.Reference); counts of another revision mean nothing.
drift_references = Table(
    "drift_references", metadata, Column("name", String(100), nullable=False), Column("version", Integer, nullable=False),
    Column("revision", Integer, nullable=False), Column("reference", Text, nullable=False),
    Column("at", Double, nullable=False), PrimaryKeyConstraint("name", "version"),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
)  # fmt: skip

# What workers have served in an hour of the epoch, all of them added up.
drift_counts = Table(
    "drift_counts", metadata, Column("name", String(100), nullable=False), Column("version", Integer, nullable=False),
    Column("hour", Integer, nullable=False), Column("rows", BigInteger, nullable=False),
    Column("counts", Text, nullable=False), PrimaryKeyConstraint("name", "version", "hour"),
    ForeignKeyConstraint(["name", "version"], ["drift_references.name", "drift_references.version"], ondelete="CASCADE"),
    Index("ix_drift_counts_hour", "hour"),
)  # fmt: skip

# Trainings that drift sets off. `about` is storage.training.standing.Asked; `problem` why the last attempt to do so failed.
standing_trainings = Table(
    "standing_trainings", metadata, Column("id", String(32), primary_key=True), Column("model", String(100), nullable=False),
    Column("threshold", Double, nullable=False), Column("created_at", Double, nullable=False),
    Column("about", Text, nullable=False), Column("problem", Text, nullable=False),
)  # fmt: skip

# For which version and revision of its reference a standing training has been set off, by which job: once.
drift_triggers = Table(
    "drift_triggers", metadata, Column("standing_id", String(32), nullable=False),
    Column("version", Integer, nullable=False), Column("revision", Integer, nullable=False),
    Column("job_id", String(32), nullable=False), Column("reason", Text, nullable=False), Column("at", Double, nullable=False),
    PrimaryKeyConstraint("standing_id", "version", "revision"),
    ForeignKeyConstraint(["standing_id"], ["standing_trainings.id"], ondelete="CASCADE"),
)  # fmt: skip

# Of the API: uploads, and what batches made of them. The owner is the API key's name, or empty.
files = Table(
    "files", metadata, Column("id", String(40), primary_key=True), Column("owner", String(100), nullable=False),
    Column("filename", Text, nullable=False), Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False), Column("blob", String(80), nullable=False),
    Column("created_at", Double, nullable=False), Column("expires_at", Double),
    Index("ix_files_owner", "owner", "id"), Index("ix_files_blob", "blob"),
    partial_index("ix_files_expires", "expires_at IS NOT NULL", "expires_at"),
)  # fmt: skip

# Of the API: requests that came as a file. `about` is request_batches.RequestBatch; its jobs have it as their parent.
request_batches = Table(
    "request_batches", metadata, Column("id", String(32), primary_key=True), Column("owner", String(100), nullable=False),
    Column("status", String(16), nullable=False), Column("request_hash", String(64), nullable=False),
    Column("idempotency_key", Text), Column("input_blob", String(80), nullable=False),
    Column("created_at", Double, nullable=False), Column("holder", String(32), nullable=False),
    Column("lease_until", Double, nullable=False), Column("step", Integer, nullable=False),
    Column("about", Text, nullable=False),
    Index("ix_request_batches_owner", "owner", "id"), Index("ix_request_batches_hash", "request_hash", "created_at"),
    partial_index("ux_request_batches_key", "idempotency_key IS NOT NULL", "idempotency_key", unique=True),
    partial_index("ix_request_batches_open", "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')", "id"),
)  # fmt: skip

# SQLite's alone: which transaction was committed last (commits.py).
last_commit = Table(
    "last_commit", metadata, Column("id", Integer, primary_key=True), Column("mark", String(64), nullable=False)
)

# `stats` are contract.statistics, since the worker started.
workers = Table(
    "workers", metadata, Column("name", String(200), primary_key=True), Column("host", String(200), nullable=False),
    Column("device", String(64), nullable=False), Column("queues", Text, nullable=False),
    Column("runtimes", Text, nullable=False), Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False), Column("stats", Text, nullable=False, server_default="{}"),
)  # fmt: skip
