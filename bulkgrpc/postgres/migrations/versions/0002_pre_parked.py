"""Parked messages, blocked datasets and jobs, and the fingerprint of a table."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created."""
    op.execute("DROP FUNCTION bulk.table_fingerprint(regclass)")
    op.execute("DROP TABLE bulk.parked, bulk.blocked_datasets, bulk.blocked_jobs")
