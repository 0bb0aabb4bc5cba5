"""How long one forward pass of a version may take."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("timeout_s", sa.Double))
