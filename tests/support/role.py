"""The role that a service runs under: it owns its tables, and is no superuser."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import make_conninfo

ROLE = "bulkgrpc_service"
PASSWORD = "of-the-service"


def add_service_role(postgres: str) -> str:
    """Create the role and return its connection string. postgres: a superuser's."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        database = connection.info.dbname
        connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        connection.execute(f"GRANT CREATE, CONNECT, TEMPORARY ON DATABASE {database} TO {ROLE}")
        connection.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {ROLE}")
    return make_conninfo(postgres, user=ROLE, password=PASSWORD)
