"""A runtime role that owns nothing: the days of job tables are maintained with the owner's rights."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Run the SQL file beside this one."""
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop what this revision created."""
    op.execute("DROP TABLE bulk.maintenance_lease")
    op.execute("ALTER FUNCTION bulk.maintain_days(date, integer) SECURITY INVOKER RESET search_path")
    op.execute("GRANT EXECUTE ON FUNCTION bulk.maintain_days(date, integer) TO PUBLIC")
