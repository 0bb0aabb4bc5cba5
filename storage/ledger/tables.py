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
    "models", metadata,
    Column("name", String(100), primary_key=True, comment="the model's name"),
    Column("last_version", Integer, nullable=False, comment="the last version number given; none is used twice"),
    comment="The names of models.",
)  # fmt: skip

model_versions = Table(
    "model_versions", metadata,
    Column("name", String(100), nullable=False, comment="the model's name"),
    Column("version", Integer, nullable=False, comment="the version's number, from 1"),
    Column("runtime", String(64), nullable=False, comment="how the artifact is loaded and run"),
    Column("artifact", String(80), nullable=False, comment="the artifact's blob; empty when the runtime needs none"),
    Column("artifact_form", String(16), nullable=False, comment="file, folder (stored as a tar) or none"),
    Column("artifact_bytes", Double, nullable=False, comment="the artifact's size"),
    Column("inputs", Text, comment="the declared inputs, as JSON"),
    Column("outputs", Text, comment="the declared outputs, as JSON"),
    Column("max_batch_size", Integer, nullable=False, comment="rows in a forward pass, at most"),
    Column("batch_wait_timeout_s", Double, nullable=False, comment="how long a worker may wait for a batch to fill"),
    Column("resources", Text, nullable=False, comment="the memory and devices that it needs, as JSON"),
    Column("options", Text, nullable=False, comment="options of the runtime, as JSON"),
    Column("metadata", Text, nullable=False, comment="what the user noted with it, as JSON"),
    Column("created_at", Double, nullable=False, comment="when it was registered"),
    Column("max_batch_tokens", Integer, comment="tokens in a forward pass, at most; null: any number"),
    Column("dtype", String(16), comment="bfloat16 or float16: it computes under autocast; null: as exported"),
    Column("compile", Boolean, nullable=False, server_default=false(), comment="whether it is compiled when loaded"),
    Column("timeout_s", Double, comment="limit of each step of a batch; null: the setting's"),
    Column("example", LargeBinary, comment="a row to warm it up with, as the codec writes it"),
    PrimaryKeyConstraint("name", "version"),
    ForeignKeyConstraint(["name"], ["models.name"], ondelete="CASCADE"),
    comment="Every version of every model.",
)  # fmt: skip

batch_ceilings = Table(
    "batch_ceilings", metadata,
    Column("name", String(100), nullable=False, comment="the model's name"),
    Column("version", Integer, nullable=False, comment="the version's number"),
    Column("device", String(100), nullable=False, comment="the kind of device: cpu, or the GPU's name"),
    Column("rows", Integer, nullable=False, comment="the most rows in a batch"),
    Column("tried_at", Double, nullable=False, comment="when a larger batch was last tried"),
    PrimaryKeyConstraint("name", "version", "device"),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    comment="How many rows of a version fit into the memory of a kind of device, where it has run out.",
)  # fmt: skip

model_aliases = Table(
    "model_aliases", metadata,
    Column("name", String(100), nullable=False, comment="the model's name"),
    Column("alias", String(64), nullable=False, comment="the movable name"),
    Column("version", Integer, nullable=False, comment="the version that it means now"),
    PrimaryKeyConstraint("name", "alias"),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
    comment="Movable names of versions, such as `champion`.",
)  # fmt: skip

training_runs = Table(
    "training_runs", metadata,
    Column("id", String(32), primary_key=True, comment="the training job"),
    Column("model", String(100), nullable=False, comment="name of the model that is trained"),
    Column("recipe", String(200), nullable=False, comment="name of the recipe"),
    Column("request", Text, nullable=False, comment="the request as JSON, without the list of files"),
    Column("resumed", Integer, nullable=False, comment="how often it went on from a checkpoint"),
    Column("steps", Integer, comment="number of steps that are planned in all"),
    Column("data", Text, comment="what the training data are: files, rows and columns, as JSON"),
    Column("version", Integer, comment="the version that it registered"),
    Column("metrics", Text, comment="what was measured on the held-out rows, as JSON"),
    Column("confusion", Text, comment="rows by true and then by predicted class, as JSON"),
    Column("promoted", Boolean, comment="whether the alias was moved to the new version"),
    Column("verdict", Text, comment="why the alias moved, or did not"),
    ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    Index("ix_training_runs_model", "model", "id"),
    comment="What is known of each training job beside its row in `jobs`.",
)  # fmt: skip

job_metrics = Table(
    "job_metrics", metadata,
    Column("job_id", String(32), nullable=False, comment="the training job"),
    Column("split", String(16), nullable=False, comment="the rows it was measured on: train, validation or test"),
    Column("step", Integer, nullable=False, comment="number of the training step"),
    Column("epoch", Integer, nullable=False, comment="number of the epoch"),
    Column("at", Double, nullable=False, comment="when it was measured"),
    Column("measured", Text, nullable=False, comment="the value of each metric, as JSON"),
    Column("rows_per_s", Double, comment="rows trained per second"),
    PrimaryKeyConstraint("job_id", "split", "step"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    comment="What training jobs measured, step by step.",
)  # fmt: skip

checkpoints = Table(
    "checkpoints", metadata,
    Column("job_id", String(32), nullable=False, comment="the training job"),
    Column("step", Integer, nullable=False, comment="the training step after which it was saved"),
    Column("epoch", Integer, nullable=False, comment="the epoch of that step"),
    Column("attempt", SmallInteger, nullable=False, comment="the attempt that saved it"),
    Column("blob", String(80), nullable=False, comment="where it lies in the blob store"),
    Column("bytes", BigInteger, nullable=False, comment="its size"),
    Column("at", Double, nullable=False, comment="when it was saved"),
    PrimaryKeyConstraint("job_id", "step"),
    ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    comment="The saved states of training jobs.",
)  # fmt: skip

evaluations = Table(
    "evaluations", metadata,
    Column("id", String(32), primary_key=True, comment="the job that made it"),
    Column("model", String(100), nullable=False, comment="the model's name"),
    Column("version", Integer, nullable=False, comment="the version's number"),
    Column("dataset", Text, nullable=False, comment="address of the data set"),
    Column("sha256", String(64), nullable=False, comment="hash of the data set's content"),
    Column("rows", BigInteger, nullable=False, comment="number of rows that were scored"),
    Column("metrics", Text, nullable=False, comment="what was measured, as JSON"),
    Column("confusion", Text, comment="rows by true and then by predicted class, as JSON"),
    Column("classes", Text, comment="the names of the classes, as JSON"),
    Column("ms_per_row", Double, nullable=False, comment="milliseconds per row"),
    Column("failed", BigInteger, nullable=False, server_default=text("0"), comment="rows without a result"),
    Column("warning", Text, nullable=False, comment="why the figures may mislead; empty when nothing is known"),
    Column("at", Double, nullable=False, comment="when it was made"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    Index("ix_evaluations_version", "model", "version", "id"),
    comment="How well versions did on data sets. They outlive the jobs that made them.",
)  # fmt: skip

benchmarks = Table(
    "benchmarks", metadata,
    Column("id", String(32), primary_key=True, comment="the job that made it"),
    Column("model", String(100), nullable=False, comment="the model's name"),
    Column("version", Integer, nullable=False, comment="the version's number"),
    Column("found", Text, nullable=False, comment="speed and memory at each batch size, as JSON"),
    Column("at", Double, nullable=False, comment="when it was made"),
    ForeignKeyConstraint(["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    Index("ix_benchmarks_version", "model", "version", "id"),
    comment="What benchmarks of versions have found. They outlive the jobs that made them.",
)  # fmt: skip

unused_blobs = Table(
    "unused_blobs", metadata,
    Column("folder", String(16), nullable=False, comment="the folder of the blob store"),
    Column("path", String(100), nullable=False, comment="the blob's name in it"),
    Column("version", String(64), nullable=False, comment="the store's mark of the blob as it was seen"),
    Column("since", Double, nullable=False, comment="since when nothing refers to it"),
    PrimaryKeyConstraint("folder", "path"),
    comment="Blobs that nothing refers to any more, until they are removed.",
)  # fmt: skip

api_keys = Table(
    "api_keys", metadata,
    Column("name", String(64), primary_key=True, comment="the key's name"),
    Column("sha256", String(64), nullable=False, comment="hash of the key, which itself is stored nowhere"),
    Column("scopes", Text, nullable=False, comment="what it allows, with commas"),
    Column("created_at", Double, nullable=False, comment="when it was made"),
    Column("expires_at", Double, comment="until when it is valid; null: without end"),
    Column("revoked_at", Double, comment="since when it is refused"),
    comment="Who may come in over HTTP: `forebay keys`. Names are never used twice.",
)  # fmt: skip

drift_references = Table(
    "drift_references", metadata,
    Column("name", String(100), nullable=False, comment="the model's name"),
    Column("version", Integer, nullable=False, comment="the version's number"),
    Column("revision", Integer, nullable=False, comment="grows with each new reference; counts belong to one"),
    Column("reference", Text, nullable=False, comment="a histogram for each input and output, as JSON"),
    Column("at", Double, nullable=False, comment="when it was set"),
    PrimaryKeyConstraint("name", "version"),
    ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"),
    comment="What the inputs and outputs of each version are compared with for drift.",
)  # fmt: skip

drift_counts = Table(
    "drift_counts", metadata,
    Column("name", String(100), nullable=False, comment="the model's name"),
    Column("version", Integer, nullable=False, comment="the version's number"),
    Column("hour", Integer, nullable=False, comment="hours since 1970"),
    Column("rows", BigInteger, nullable=False, comment="rows served in that hour"),
    Column("counts", Text, nullable=False, comment="counts for each bin of the reference, as JSON"),
    PrimaryKeyConstraint("name", "version", "hour"),
    ForeignKeyConstraint(["name", "version"], ["drift_references.name", "drift_references.version"], ondelete="CASCADE"),
    Index("ix_drift_counts_hour", "hour"),
    comment="What versions have served, counted by the hour.",
)  # fmt: skip

standing_trainings = Table(
    "standing_trainings", metadata,
    Column("id", String(32), primary_key=True, comment="its id"),
    Column("model", String(100), nullable=False, comment="name of the model that is trained"),
    Column("threshold", Double, nullable=False, comment="the PSI from which it is started"),
    Column("created_at", Double, nullable=False, comment="when it was set up"),
    Column("about", Text, nullable=False, comment="the request, and the options of the job, as JSON"),
    Column("problem", Text, nullable=False, comment="why it could not be started the last time; empty when it could"),
    comment="Trainings that drift starts: `forebay train --when-drift`.",
)  # fmt: skip

drift_triggers = Table(
    "drift_triggers", metadata,
    Column("standing_id", String(32), nullable=False, comment="the standing training"),
    Column("version", Integer, nullable=False, comment="the version that drifted"),
    Column("revision", Integer, nullable=False, comment="the revision of its reference"),
    Column("job_id", String(32), nullable=False, comment="the training job that was started"),
    Column("reason", Text, nullable=False, comment="what had drifted, and how far"),
    Column("at", Double, nullable=False, comment="when it was started"),
    PrimaryKeyConstraint("standing_id", "version", "revision"),
    ForeignKeyConstraint(["standing_id"], ["standing_trainings.id"], ondelete="CASCADE"),
    comment="The training jobs that drift has started: one for each version and revision of its reference.",
)  # fmt: skip

files = Table(
    "files", metadata,
    Column("id", String(40), primary_key=True, comment="the file's id in the API"),
    Column("owner", String(100), nullable=False, comment="name of the API key; empty without keys"),
    Column("filename", Text, nullable=False, comment="the name that the client gave it"),
    Column("purpose", String(32), nullable=False, comment="what it is for: batch or batch_output"),
    Column("bytes", BigInteger, nullable=False, comment="its size"),
    Column("blob", String(80), nullable=False, comment="where it lies in the blob store"),
    Column("created_at", Double, nullable=False, comment="when it was uploaded"),
    Column("expires_at", Double, comment="when it is deleted; null: never"),
    Index("ix_files_owner", "owner", "id"),
    Index("ix_files_blob", "blob"),
    partial_index("ix_files_expires", "expires_at IS NOT NULL", "expires_at"),
    comment="Files that were uploaded over HTTP, and those that request batches wrote.",
)  # fmt: skip

request_batches = Table(
    "request_batches", metadata,
    Column("id", String(32), primary_key=True, comment="the batch's id"),
    Column("owner", String(100), nullable=False, comment="name of the API key; empty without keys"),
    Column("status", String(16), nullable=False, comment="validating, in_progress, finalizing, completed, failed, …"),
    Column("request_hash", String(64), nullable=False, comment="hash of the request, to find a repeat without a key"),
    Column("idempotency_key", Text, comment="the client's key; a second submission with it makes no second batch"),
    Column("input_blob", String(80), nullable=False, comment="where the input file lies in the blob store"),
    Column("created_at", Double, nullable=False, comment="when it was submitted"),
    Column("holder", String(32), nullable=False, comment="the server that works on it; empty when none does"),
    Column("lease_until", Double, nullable=False, comment="until when that server's claim holds"),
    Column("step", Integer, nullable=False, comment="grows with each change; fences writes"),
    Column("about", Text, nullable=False, comment="all else that is known of it, as JSON"),
    Index("ix_request_batches_owner", "owner", "id"),
    Index("ix_request_batches_hash", "request_hash", "created_at"),
    partial_index("ux_request_batches_key", "idempotency_key IS NOT NULL", "idempotency_key", unique=True),
    partial_index("ix_request_batches_open", "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')", "id"),
    comment="Batches that were submitted over HTTP in OpenAI's form. Their jobs have them as parent.",
)  # fmt: skip

last_commit = Table(
    "last_commit", metadata,
    Column("id", Integer, primary_key=True, comment="always 1"),
    Column("mark", String(64), nullable=False, comment="the mark of the last commit"),
    comment="SQLite only: the mark of the last commit, by which a process whose answer was lost finds out what became of it.",
)  # fmt: skip

workers = Table(
    "workers", metadata,
    Column("name", String(200), primary_key=True, comment="the worker's name"),
    Column("host", String(200), nullable=False, comment="the machine's name"),
    Column("device", String(64), nullable=False, comment="the device that it computes on"),
    Column("queues", Text, nullable=False, comment="the queues that it serves, as JSON"),
    Column("runtimes", Text, nullable=False, comment="the runtimes that it can serve, as JSON"),
    Column("started_at", Double, nullable=False, comment="when it started"),
    Column("heartbeat_at", Double, nullable=False, comment="when it last reported"),
    Column("stats", Text, nullable=False, server_default="{}", comment="what it has counted since it started, as JSON"),
    comment="The workers, by their last heartbeat.",
)  # fmt: skip
