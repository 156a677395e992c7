"""The identity of the records topic, what Kafka's log of each partition was, and why a partition is stopped."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created. Workers of revision 0002 exit if Kafka lost what the ledger needs."""
    op.execute("DROP TABLE bulk.partition_logs, bulk.topics")
