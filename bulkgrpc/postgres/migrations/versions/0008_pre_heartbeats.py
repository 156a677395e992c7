"""Heartbeats of the ledger, by which workers notice that PostgreSQL was restored to an earlier time."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created."""
    op.execute("DROP FUNCTION bulk.database_position(); DROP TABLE bulk.restores, bulk.heartbeats")
    op.execute("ALTER TABLE bulk.datasets DROP COLUMN schema_digest")
