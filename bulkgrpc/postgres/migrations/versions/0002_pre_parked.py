"""Parked messages, blocked datasets and jobs, discards, skipped records, and the fingerprint of a table."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created, and put the earlier version of a function back.

    Raises if messages are parked or records were skipped: revision 0001 does not know of either.
    """
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM bulk.parked) OR EXISTS (SELECT FROM bulk.jobs WHERE skipped > 0) THEN "
        "RAISE 'bulk.parked has messages, or jobs have skipped records, which revision 0001 does not know'; "
        "END IF; END $$"
    )
    first = Path(__file__).with_name("0001_pre_bulk_schema.sql").read_text()
    function = first[first.index("CREATE FUNCTION bulk.maintain_days") : first.index("-- Rows of a day without")]
    op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute(
        "ALTER TABLE bulk.jobs DROP COLUMN discard_reason, DROP COLUMN skipped, "
        "ADD CONSTRAINT every_accepted_record_is_accounted_for "
        "CHECK (accepted = written + duplicate + rejected + expired + staged)"
    )
    op.execute("DROP FUNCTION bulk.table_fingerprint(regclass)")
    op.execute("DROP FUNCTION bulk.job_block(uuid, text)")
    op.execute("DROP FUNCTION bulk.lock_offsets, bulk.deferrals, bulk.lock_jobs, bulk.lock_jobs_alone")
    op.execute("DROP VIEW bulk.blocked_queues")
    op.execute("DROP TABLE bulk.parked, bulk.blocked_datasets, bulk.blocked_jobs, bulk.discards")
