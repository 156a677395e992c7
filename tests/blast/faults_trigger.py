"""Faults of a table's triggers: their errors are about a row, whatever the SQLSTATE; skipped rows are counted."""

from __future__ import annotations

from tests.blast.fault import Effect, Fault

_BAD = "new.{key} % 5 = 0"
RAISED = {
    "45000": "a code of the user's own",
    "P0001": "raise_exception",
    "P0002": "no_data_found",
    "P0003": "too_many_rows",
    "P0004": "assert_failure",
    "20000": "case_not_found",
    "22012": "division_by_zero",
    "23514": "check_violation",
    "23505": "unique_violation",
    "55000": "object_not_in_prerequisite_state",
    "55P03": "lock_not_available",
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "57014": "query_canceled",
    "57P01": "admin_shutdown",
    "08006": "connection_failure, as of a foreign server",
    "HV000": "fdw_error",
    "25006": "read_only_sql_transaction",
    "28000": "invalid_authorization_specification",
    "42501": "insufficient_privilege",
    "42P01": "undefined_table",
    "42703": "undefined_column",
    "53100": "disk_full",
    "53200": "out_of_memory",
    "53300": "too_many_connections",
    "54001": "statement_too_complex",
    "58030": "io_error",
    "0A000": "feature_not_supported",
    "XX000": "internal_error",
    "XX001": "data_corrupted",
    "XX002": "index_corrupted",
    "ZZZZZ": "an unknown code",
}
"""SQLSTATEs that triggers raise, with what they usually mean."""


def _function(body: str) -> str:
    return f"CREATE FUNCTION blast.{{name}}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; "


def _trigger(name: str, effect: Effect, body: str, when: str = "BEFORE INSERT OR UPDATE", **more: object) -> Fault:
    """A trigger function with this body, for each row unless `when` says otherwise."""
    each = "" if "FOR EACH" in when else " FOR EACH ROW"
    kind = "CONSTRAINT TRIGGER" if "DEFERRABLE" in when else "TRIGGER"
    event, _, rest = when.partition(" DEFERRABLE")
    deferrable = f" DEFERRABLE{rest}" if rest else ""
    event, _, scope = event.partition(" FOR EACH ")
    each = f" FOR EACH {scope}" if scope else each
    before = str(more.pop("before", ""))
    after = str(more.pop("after", ""))
    return Fault(
        name,
        effect,
        before
        + _function(body)
        + f"CREATE {kind} {{name}} {event} ON {{table}}{deferrable}{each} EXECUTE FUNCTION blast.{{name}}()",
        "DROP TRIGGER {name} ON {table}; DROP FUNCTION blast.{name}()" + after,
        **more,  # type: ignore[arg-type]
    )


def _raising(code: str) -> str:
    return f"IF {_BAD} THEN RAISE EXCEPTION 'refused by a trigger' USING ERRCODE = '{code}'; END IF; RETURN new;"


TRIGGER_FAULTS = (
    *(_trigger(f"trigger raises {code}", Effect.ROWS_REJECTED, _raising(code)) for code in RAISED),
    _trigger("trigger after the row raises 45000", Effect.ROWS_REJECTED, _raising("45000"), "AFTER INSERT OR UPDATE"),
    _trigger("trigger without its audit table", Effect.ROWS_REJECTED,
             f"IF {_BAD} THEN INSERT INTO blast.no_such_audit VALUES (new.*); END IF; RETURN new;"),
    _trigger("trigger without a right on its audit table", Effect.ROWS_REJECTED,
             f"IF {_BAD} THEN INSERT INTO blast.audit_of_others VALUES (1); END IF; RETURN new;"),
    _trigger("trigger recurses without an end", Effect.ROWS_REJECTED,
             f"IF {_BAD} THEN PERFORM blast.recurse(1); END IF; RETURN new;"),
    _trigger("trigger without RETURN", Effect.ROWS_REJECTED, f"IF NOT ({_BAD}) THEN RETURN new; END IF;"),
    _trigger("trigger commits", Effect.ROWS_REJECTED, f"IF {_BAD} THEN COMMIT; END IF; RETURN new;"),
    _trigger("trigger sets another isolation level", Effect.ROWS_REJECTED,
             f"IF {_BAD} THEN SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; END IF; RETURN new;"),
    _trigger("deferred trigger raises 45000", Effect.ROWS_REJECTED, _raising("45000"),
             "AFTER INSERT OR UPDATE DEFERRABLE INITIALLY DEFERRED"),
    _trigger("deferred trigger raises 40001", Effect.ROWS_REJECTED, _raising("40001"),
             "AFTER INSERT OR UPDATE DEFERRABLE INITIALLY DEFERRED"),
    _trigger("deferred trigger raises XX002", Effect.ROWS_REJECTED, _raising("XX002"),
             "AFTER INSERT OR UPDATE DEFERRABLE INITIALLY DEFERRED"),
    _trigger("trigger skips rows", Effect.SKIPPED, f"IF {_BAD} THEN RETURN NULL; END IF; RETURN new;"),
    _trigger("trigger skips every row", Effect.SKIPPED, "RETURN NULL;"),
    _trigger("statement trigger", Effect.CONVERTED, "RETURN NULL;", "AFTER INSERT OR UPDATE FOR EACH STATEMENT"),
    _trigger("statement trigger raises 45000", Effect.EXACT,
             "RAISE EXCEPTION 'not today' USING ERRCODE = '45000';", "BEFORE INSERT OR UPDATE FOR EACH STATEMENT"),
    _trigger("statement trigger raises XX000", Effect.EXACT,
             "RAISE EXCEPTION 'not today' USING ERRCODE = 'XX000';", "AFTER INSERT OR UPDATE FOR EACH STATEMENT"),
    _trigger("trigger changes its settings", Effect.CONVERTED,
             "PERFORM set_config('role', 'none', false), set_config('search_path', 'pg_catalog', false), "
             "set_config('statement_timeout', '0', true), set_config('DateStyle', 'SQL, DMY', false); RETURN new;"),
    _trigger("trigger changes the session", Effect.CONVERTED,
             "SET client_encoding = 'LATIN1'; SET default_transaction_isolation = 'serializable'; RETURN NULL;",
             "AFTER INSERT OR UPDATE FOR EACH STATEMENT"),
    _trigger("trigger raises warnings", Effect.CONVERTED, "RAISE WARNING 'row %', new.{key}; RETURN new;"),
    _trigger("trigger notifies", Effect.CONVERTED, "PERFORM pg_notify('blast', new.{key}::text); RETURN new;"),
    _trigger("trigger waits for a lock", Effect.BLOCKED,
             "PERFORM pg_advisory_xact_lock_shared(hashtext('{name}')); RETURN new;",
             holds="SELECT pg_advisory_xact_lock(hashtext('{name}'))"),
    _trigger("trigger sleeps at each row", Effect.EXACT, "PERFORM pg_sleep(0.05); RETURN new;", slow=True),
    _trigger("trigger sleeps for minutes", Effect.EXACT, "PERFORM pg_sleep(150); RETURN new;", slow=True),
    _trigger("trigger ends its own session", Effect.EXACT,
             f"IF {_BAD} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN new;"),
    _trigger("trigger cancels its own statement", Effect.EXACT,
             f"IF {_BAD} THEN PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(1); END IF; RETURN new;"),
)  # fmt: skip
