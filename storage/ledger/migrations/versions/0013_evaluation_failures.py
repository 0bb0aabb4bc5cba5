"""Evaluations count the rows that could not be compared."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("failed", sa.BigInteger, nullable=False, server_default=sa.text("0")))
