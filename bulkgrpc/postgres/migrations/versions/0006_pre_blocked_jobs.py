"""What blocked jobs wait for, and which of them an operator discards."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created, and put the earlier version of a function back."""
    second = Path(__file__).with_name("0002_pre_parked.sql").read_text()
    start = second.index("CREATE FUNCTION bulk.deferrals(")
    op.execute(second[start : second.index("END $$;", start)].replace("CREATE", "CREATE OR REPLACE", 1) + "END $$")
    op.execute(
        "ALTER TABLE bulk.blocked_jobs DROP COLUMN missing_dataset, DROP COLUMN missing_version, "
        "DROP COLUMN discard_reason"
    )
