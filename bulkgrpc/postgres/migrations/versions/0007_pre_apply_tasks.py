"""Tasks that apply the staged rows of atomic jobs, and their progress."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created, and put the earlier version of a function back.

    Sealed atomic jobs that have a task must have ended before: no earlier release applies them.
    """
    second = Path(__file__).with_name("0002_pre_parked.sql").read_text()
    function = second[second.index("CREATE FUNCTION bulk.job_block") : second.index("ALTER TABLE bulk.jobs ADD COLUMN")]
    op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))
    op.execute("DROP TABLE bulk.apply_tasks, bulk.apply_progress")
