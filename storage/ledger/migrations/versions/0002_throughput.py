"""How a version is to be batched and computed, the batch sizes that were found to fit, and what retention looks for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    ended = sa.text("finished_at IS NOT NULL")
    op.create_index("ix_jobs_finished", "jobs", ["finished_at"], sqlite_where=ended, postgresql_where=ended)
    op.add_column("model_versions", sa.Column("max_batch_tokens", sa.Integer))
    op.add_column("model_versions", sa.Column("dtype", sa.String(16)))
    op.add_column("model_versions", sa.Column("compile", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "batch_ceilings",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("tried_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "device"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
