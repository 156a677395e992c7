"""Jobs that failed because Kafka lost batches of them, and that can be opened again."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created. What lost batches stays FAILED then."""
    op.execute("DROP FUNCTION bulk.lock_chunk_jobs, bulk.lock_jobs_exclusively")
    op.execute("ALTER TABLE bulk.jobs DROP COLUMN lost, DROP COLUMN attempt")
