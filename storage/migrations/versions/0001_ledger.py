"""The ledger: jobs, models, versions, aliases, workers."""

from alembic import op

from forebay.storage import tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    tables.metadata.create_all(op.get_bind())
