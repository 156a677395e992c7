"""Faults of the whole database or of the service's role: every dataset waits, and resumes afterwards."""

from __future__ import annotations

from functools import partial

from tests.blast.fault import Effect, Fault

_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
_unavailable = partial(Fault, effect=Effect.UNAVAILABLE, whole=True)
_harmless = partial(Fault, effect=Effect.CONVERTED, whole=True, slow=True)


def _setting(name: str, value: str, effect: Effect = Effect.CONVERTED, *, slow: bool = True) -> Fault:
    """`ALTER ROLE … SET`, and new sessions that have it."""
    return Fault(
        f"role with {name} = {value or 'nothing'}",
        effect,
        f"ALTER ROLE {{role}} SET {name} = '{value}'; {_END_SESSIONS}",
        f"ALTER ROLE {{role}} RESET {name}; {_END_SESSIONS}",
        whole=True,
        slow=slow,
    )


DATABASE_FAULTS = (
    _unavailable(
        "read-only database",
        apply="ALTER DATABASE {database} SET default_transaction_read_only = on; " + _END_SESSIONS,
        repair="ALTER DATABASE {database} RESET default_transaction_read_only; " + _END_SESSIONS,
    ),
    _unavailable(
        "read-only sessions, as of a standby",
        apply="ALTER ROLE {role} SET default_transaction_read_only = on; " + _END_SESSIONS,
        repair="ALTER ROLE {role} RESET default_transaction_read_only; " + _END_SESSIONS,
        slow=True,
    ),
    _unavailable(
        "no connection left",
        apply="ALTER ROLE {role} CONNECTION LIMIT 0; " + _END_SESSIONS,
        repair="ALTER ROLE {role} CONNECTION LIMIT -1",
    ),
    _unavailable(
        "another password",
        apply="ALTER ROLE {role} PASSWORD 'another'; " + _END_SESSIONS,
        repair="ALTER ROLE {role} PASSWORD '{password}'",
    ),
    _unavailable(
        "role that may not log in",
        apply="ALTER ROLE {role} NOLOGIN; " + _END_SESSIONS,
        repair="ALTER ROLE {role} LOGIN",
        slow=True,
    ),
    _unavailable(
        "database that takes no connections",
        apply="UPDATE pg_database SET datallowconn = false WHERE datname = '{database}'; " + _END_SESSIONS,
        repair="UPDATE pg_database SET datallowconn = true WHERE datname = '{database}'",
        from_outside=True,
        slow=True,
    ),
    _unavailable(
        "no right on the schema bulk",
        apply="ALTER SCHEMA bulk OWNER TO CURRENT_USER",
        repair="ALTER SCHEMA bulk OWNER TO {role}",
    ),
    _unavailable(
        "no right to report rejections",
        apply="REVOKE INSERT ON bulk.rejections FROM {role}",
        repair="GRANT INSERT ON bulk.rejections TO {role}",
        effect=Effect.EXACT,
        slow=True,
    ),
    _unavailable("jobs locked", holds="LOCK TABLE bulk.jobs IN ACCESS EXCLUSIVE MODE"),
    _unavailable("ledger locked", holds="LOCK TABLE bulk.offsets IN ACCESS EXCLUSIVE MODE", slow=True),
    # Where every key is new no staging table is needed: such datasets continue.
    Fault(
        "revoke temporary",
        Effect.EXACT,
        "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, {role}; " + _END_SESSIONS,
        "GRANT TEMPORARY ON DATABASE {database} TO PUBLIC",
        whole=True,
    ),
    # The same: staging tables are temporary, and an event trigger does not distinguish them.
    Fault(
        "event trigger that forbids DDL",
        Effect.EXACT,
        "CREATE FUNCTION blast.forbid() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF session_user = '{role}' THEN RAISE 'no DDL today'; END IF; END $$; "
        "CREATE EVENT TRIGGER forbid ON ddl_command_start EXECUTE FUNCTION blast.forbid(); " + _END_SESSIONS,
        "DROP EVENT TRIGGER forbid; DROP FUNCTION blast.forbid()",
        whole=True,
        slow=True,
    ),
    _setting("role", "blast_nobody", Effect.UNAVAILABLE),
    _setting("statement_timeout", "1ms", slow=False),
    _setting("lock_timeout", "1ms"),
    _setting("search_path", ""),
    _setting("search_path", "blast"),
    _setting("datestyle", "SQL, DMY"),
    _setting("timezone", "Asia/Kathmandu"),
    _setting("standard_conforming_strings", "off"),
    _setting("bytea_output", "escape"),
    _setting("extra_float_digits", "-15"),
    _setting("default_transaction_isolation", "serializable"),
    _setting("default_transaction_deferrable", "on"),
    _setting("idle_session_timeout", "200ms"),
    _setting("client_encoding", "LATIN1"),
    _setting("work_mem", "64kB"),
    _setting("temp_buffers", "800kB"),
    _setting("enable_indexscan", "off"),
    _setting("row_security", "off"),
)
