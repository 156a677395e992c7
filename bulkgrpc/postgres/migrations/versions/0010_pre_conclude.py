"""Functions that end the transaction of a chunk: the plans of their statements are kept, and one message calls all."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created."""
    op.execute("DROP FUNCTION bulk.advance_offsets, bulk.advance_lanes, bulk.add_batches, bulk.add_counts")
