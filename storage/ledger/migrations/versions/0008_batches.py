"""Batch jobs: how far each is planned, what its shards cover and have become, and finding those that are under way."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    open_shards = sa.text("parent_id IS NOT NULL AND state IN ('queued', 'running')")
    live_batches = sa.text("kind = 'batch' AND state IN ('queued', 'running')")
    op.create_index(
        "ix_jobs_open_shards", "jobs", ["parent_id", "state"], sqlite_where=open_shards, postgresql_where=open_shards
    )
    op.create_index("ix_jobs_live_batches", "jobs", ["state"], sqlite_where=live_batches, postgresql_where=live_batches)
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("next_file", sa.Integer, nullable=False),
        sa.Column("next_first", sa.BigInteger, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("planned", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("batch_id", sa.String(32), nullable=False),
        sa.Column("pieces", sa.Text, nullable=False),
        sa.Column("part", sa.String(100), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("rows_done", sa.BigInteger, nullable=False),
        sa.Column("rows_failed", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_index("ix_shards_batch", "shards", ["batch_id", "part"])
