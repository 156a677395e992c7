"""The schema `bulk`: datasets, jobs, lanes, the offset ledger, rejections."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop the schema; dataset tables stay."""
    op.execute("DROP SCHEMA bulk CASCADE")
