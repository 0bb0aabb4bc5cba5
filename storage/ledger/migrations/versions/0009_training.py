"""Training jobs: their runs, what is measured on the way, their checkpoints; and what versions were found to be worth."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "training_runs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("recipe", sa.String(200), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("resumed", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer),
        sa.Column("data", sa.Text),
        sa.Column("version", sa.Integer),
        sa.Column("metrics", sa.Text),
        sa.Column("confusion", sa.Text),
        sa.Column("promoted", sa.Boolean),
        sa.Column("verdict", sa.Text),
        sa.ForeignKeyConstraint(["id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_index("ix_training_runs_model", "training_runs", ["model", "id"])
    op.create_table(
        "job_metrics",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("measured", sa.Text, nullable=False),
        sa.Column("rows_per_s", sa.Double),
        sa.PrimaryKeyConstraint("job_id", "split", "step"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("attempt", sa.SmallInteger, nullable=False),
        sa.Column("blob", sa.String(80), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("confusion", sa.Text),
        sa.Column("classes", sa.Text),
        sa.Column("ms_per_row", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_evaluations_version", "evaluations", ["model", "version", "id"])
