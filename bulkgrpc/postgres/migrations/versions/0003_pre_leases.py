"""The lease epoch of a job, and the report of late batches."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

_PARENTS = "ARRAY['jobs', 'lanes', 'batches', 'rejections'"


def upgrade() -> None:
    """Run the SQL file beside this one; keep late batches for as long as the rejections of their day."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())
    op.execute(_maintain_days().replace(_PARENTS, f"{_PARENTS}, 'late_batches'"))
    op.execute("SELECT bulk.maintain_days((now() AT TIME ZONE 'UTC')::date, 36500)")


def downgrade() -> None:
    """Drop what this revision created, and put the earlier version of a function back."""
    op.execute(_maintain_days())
    op.execute("DROP TABLE bulk.late_batches")
    op.execute(
        "ALTER TABLE bulk.jobs DROP COLUMN lease_epoch, DROP COLUMN lease_session, DROP COLUMN seal_after, "
        "DROP COLUMN late_batches"
    )


def _maintain_days() -> str:
    """Return the statement that creates the function as revision 0002 has it."""
    second = Path(__file__).with_name("0002_pre_parked.sql").read_text()
    return second[second.index("CREATE OR REPLACE FUNCTION bulk.maintain_days") :]
