"""Faults of a table: its definition changes, rights are revoked, another session locks it."""

from __future__ import annotations

from tests.blast.disk import full_disk
from tests.blast.fault import Effect, Fault

_TYPES = {"text": "text", "int": "integer", "bigint": "bigint", "real": "real", "double": "double precision"}


def _restore(column: str) -> str:
    """Restore the saved values of a column; rows that were updated meanwhile keep their values."""
    revised = "text" if column == "double" else "double"
    return (
        f"UPDATE {{table}} AS t SET {{{column}}} = k.{{{column}}} FROM {{kept}} AS k "
        f"WHERE (t.tenant, t.{{key}}, t.{{{revised}}}) = (k.tenant, k.{{key}}, k.{{{revised}}})"
    )


def _retyped(to: str, column: str, effect: Effect, using: str = "", back: str = "") -> Fault:
    """`ALTER COLUMN … TYPE`, and back: values stored meanwhile are converted, older rows get their saved values."""
    name = f"{column} to {to}".replace("double precision", "double").replace("integer", "int")
    apply = f"ALTER TABLE {{table}} ALTER COLUMN {{{column}}} TYPE {to} USING {using or f'{{{column}}}::{to}'}"
    repair = (
        f"ALTER TABLE {{table}} ALTER COLUMN {{{column}}} TYPE {_TYPES[column]} "
        f"USING {back or f'{{{column}}}::{_TYPES[column]}'}"
    )
    if effect is Effect.CONVERTED:
        return Fault(name, effect, apply, repair)
    return Fault(name, effect, apply, f"{repair}; {_restore(column)}", keeps=True)


DEFINITION_FAULTS = (
    Fault(
        "rename column",
        Effect.BLOCKED,
        "ALTER TABLE {table} RENAME COLUMN {text} TO renamed",
        "ALTER TABLE {table} RENAME COLUMN renamed TO {text}",
    ),
    Fault(
        "drop column",
        Effect.BLOCKED,
        "ALTER TABLE {table} DROP COLUMN {text}",
        "ALTER TABLE {table} ADD COLUMN {text} text; "
        + _restore("text")
        + "; ALTER TABLE {table} ALTER COLUMN {text} SET NOT NULL",
        keeps=True,
    ),
    Fault(
        "drop table",
        Effect.BLOCKED,
        "DROP TABLE {table}",
        "CREATE TABLE {table} (LIKE {kept} INCLUDING ALL); INSERT INTO {table} SELECT * FROM {kept}; "
        "ALTER TABLE {table} OWNER TO {role}",
        keeps=True,
    ),
    Fault("rename table", Effect.BLOCKED, "ALTER TABLE {table} RENAME TO {name}_x",
          "ALTER TABLE public.{name}_x RENAME TO {name}"),
    Fault("set schema", Effect.BLOCKED, "ALTER TABLE {table} SET SCHEMA blast",
          "ALTER TABLE blast.{name} SET SCHEMA public"),
    Fault(
        "view in its place",
        Effect.BLOCKED,
        "ALTER TABLE {table} RENAME TO {name}_x; CREATE VIEW {table} AS SELECT * FROM public.{name}_x; "
        "ALTER VIEW {table} OWNER TO {role}",
        "DROP VIEW {table}; ALTER TABLE public.{name}_x RENAME TO {name}",
    ),
    Fault(
        "materialized view in its place",
        Effect.BLOCKED,
        "ALTER TABLE {table} RENAME TO {name}_x; CREATE MATERIALIZED VIEW {table} AS SELECT * FROM public.{name}_x; "
        "ALTER MATERIALIZED VIEW {table} OWNER TO {role}",
        "DROP MATERIALIZED VIEW {table}; ALTER TABLE public.{name}_x RENAME TO {name}",
    ),
    Fault(
        "column becomes generated",
        Effect.BLOCKED,
        "ALTER TABLE {table} DROP COLUMN {text}; "
        "ALTER TABLE {table} ADD COLUMN {text} text GENERATED ALWAYS AS ('x') STORED",
        "ALTER TABLE {table} DROP COLUMN {text}; ALTER TABLE {table} ADD COLUMN {text} text; "
        + _restore("text")
        + "; ALTER TABLE {table} ALTER COLUMN {text} SET NOT NULL",
        keeps=True,
    ),
    # COPY stores what it is given in such a column, INSERT rejects it.
    Fault(
        "column becomes an identity",
        Effect.EXACT,
        "ALTER TABLE {table} ALTER COLUMN {bigint} ADD GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE {table} ALTER COLUMN {bigint} DROP IDENTITY",
    ),
    Fault(
        "primary key dropped",
        Effect.BLOCKED,
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey",
        "ALTER TABLE {table} ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys})",
    ),
    Fault(
        "primary key has another column",
        Effect.BLOCKED,
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, "
        "ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys}, {int})",
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys})",
    ),
    Fault(
        "primary key deferrable",
        Effect.EXACT,
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, "
        "ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys}) DEFERRABLE",
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys})",
        effects={"update": Effect.BLOCKED},
    ),
    Fault(
        "primary key deferred",
        Effect.EXACT,
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, "
        "ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys}) DEFERRABLE INITIALLY DEFERRED",
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys})",
        effects={"update": Effect.BLOCKED},
    ),
    Fault("set unlogged", Effect.EXACT, "ALTER TABLE {table} SET UNLOGGED", "ALTER TABLE {table} SET LOGGED"),
    Fault(
        "index invalid",
        Effect.EXACT,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.{name}_pkey'::regclass",
        "UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'public.{name}_pkey'::regclass",
    ),
    Fault(
        "column without a default added",
        Effect.BLOCKED,
        "ALTER TABLE {table} ADD COLUMN more integer NOT NULL DEFAULT 0; "
        "ALTER TABLE {table} ALTER COLUMN more DROP DEFAULT",
        "ALTER TABLE {table} DROP COLUMN more",
    ),
    Fault("nullable column added", Effect.CONVERTED, "ALTER TABLE {table} ADD COLUMN more integer",
          "ALTER TABLE {table} DROP COLUMN more"),
    Fault(
        "sequence of a default exhausted",
        Effect.EXACT,
        "CREATE SEQUENCE blast.{name} MAXVALUE 5; ALTER TABLE {table} ADD COLUMN more bigint; "
        "ALTER TABLE {table} ALTER COLUMN more SET DEFAULT nextval('blast.{name}'); "
        "GRANT USAGE ON SEQUENCE blast.{name} TO {role}",
        "ALTER TABLE {table} DROP COLUMN more; DROP SEQUENCE blast.{name}",
    ),
    Fault(
        "right on the sequence of a default missing",
        Effect.BLOCKED,
        "CREATE SEQUENCE blast.{name}; ALTER TABLE {table} ADD COLUMN more bigint; "
        "ALTER TABLE {table} ALTER COLUMN more SET DEFAULT nextval('blast.{name}')",
        "ALTER TABLE {table} DROP COLUMN more; DROP SEQUENCE blast.{name}",
    ),
    Fault(
        "default raises",
        Effect.ROWS_REJECTED,
        "CREATE FUNCTION blast.{name}() RETURNS integer LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no default today' USING ERRCODE = '55000'; END $$; "
        "ALTER TABLE {table} ADD COLUMN more integer; "
        "ALTER TABLE {table} ALTER COLUMN more SET DEFAULT blast.{name}()",
        "ALTER TABLE {table} DROP COLUMN more; DROP FUNCTION blast.{name}()",
    ),
    Fault(
        "index on an expression that raises",
        Effect.ROWS_REJECTED,
        "CREATE FUNCTION blast.{name}(bigint) RETURNS bigint IMMUTABLE RETURN $1; "
        "CREATE INDEX {name}_x ON {table} (blast.{name}({key})); "
        "CREATE OR REPLACE FUNCTION blast.{name}(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
        "IF $1 % 5 = 0 THEN RAISE EXCEPTION 'refused by an index' USING ERRCODE = '45000'; END IF; RETURN $1; END $$",
        "DROP INDEX public.{name}_x; DROP FUNCTION blast.{name}(bigint)",
    ),
    Fault(
        "published without a replica identity",
        Effect.BLOCKED,
        "ALTER TABLE {table} REPLICA IDENTITY NOTHING; CREATE PUBLICATION {name} FOR TABLE {table}",
        "DROP PUBLICATION {name}; ALTER TABLE {table} REPLICA IDENTITY DEFAULT",
        policies=("update",),
    ),
    Fault(
        "other columns' order",
        Effect.CONVERTED,
        "CREATE TABLE {table}_x (LIKE {table} INCLUDING DEFAULTS); "
        "ALTER TABLE {table}_x DROP COLUMN tenant, DROP COLUMN {int}, "
        "ADD COLUMN {int} integer NOT NULL, ADD COLUMN tenant text NOT NULL; "
        "INSERT INTO {table}_x ({columns}) SELECT {columns} FROM {table}; DROP TABLE {table}; "
        "ALTER TABLE {table}_x RENAME TO {name}; "
        "ALTER TABLE {table} ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys}), OWNER TO {role}",
        keeps=True,
    ),
    Fault("inheritance child", Effect.CONVERTED, "CREATE TABLE blast.{name} () INHERITS ({table})",
          "DROP TABLE blast.{name}"),
    Fault(
        "partition detached",
        Effect.EXACT,
        "ALTER TABLE {table} DETACH PARTITION {partition}",
        "ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        hash_partitions=2,
    ),
    Fault("rule that does nothing instead", Effect.EXACT,
          "CREATE RULE {name} AS ON INSERT TO {table} DO INSTEAD NOTHING", "DROP RULE {name} ON {table}"),
    Fault("row level security", Effect.BLOCKED,
          "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
          "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"),
    Fault("revoke insert", Effect.BLOCKED, "REVOKE INSERT ON {table} FROM {role}",
          "GRANT INSERT ON {table} TO {role}"),
    Fault("revoke select", Effect.BLOCKED, "REVOKE SELECT ON {table} FROM {role}",
          "GRANT SELECT ON {table} TO {role}"),
    Fault("revoke update", Effect.BLOCKED, "REVOKE UPDATE ON {table} FROM {role}",
          "GRANT UPDATE ON {table} TO {role}", policies=("update",)),
    Fault("another owner", Effect.BLOCKED, "ALTER TABLE {table} OWNER TO CURRENT_USER",
          "ALTER TABLE {table} OWNER TO {role}"),
    Fault("table locked", Effect.BLOCKED, holds="LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
    Fault("table locked against writers", Effect.BLOCKED, holds="LOCK TABLE {table} IN SHARE MODE"),
    Fault("no space for the table", Effect.BLOCKED, around=full_disk),
    Fault("rows locked", Effect.EXACT, holds="SELECT FROM {table} FOR UPDATE", policies=("update",)),
)  # fmt: skip

TYPE_FAULTS = (
    _retyped("bigint", "int", Effect.CONVERTED),
    _retyped("numeric", "int", Effect.CONVERTED),
    _retyped("double precision", "real", Effect.CONVERTED),
    _retyped("varchar", "text", Effect.CONVERTED),
    _retyped("varchar(200)", "text", Effect.CONVERTED),
    _retyped("numeric", "double", Effect.BLOCKED),
    _retyped("real", "double", Effect.BLOCKED),
    _retyped("bigint", "double", Effect.BLOCKED),
    _retyped("double precision", "bigint", Effect.BLOCKED),
    _retyped("timestamptz", "bigint", Effect.BLOCKED, "to_timestamp({bigint} / 1e7)", "1"),
    _retyped("money", "bigint", Effect.BLOCKED, "'1'::money", "1"),
    _retyped("integer", "bigint", Effect.BLOCKED, "1"),
    _retyped("real", "int", Effect.BLOCKED),
    _retyped("smallint", "int", Effect.BLOCKED, "1"),
    _retyped("date", "int", Effect.BLOCKED, "'2000-01-01'::date + {int} % 9999", "1"),
    _retyped("oid", "int", Effect.BLOCKED, back="{int}::bigint::integer"),
    _retyped("text", "int", Effect.BLOCKED),
    _retyped("integer", "text", Effect.BLOCKED, "length({text})"),
    _retyped("jsonb", "text", Effect.BLOCKED, "to_jsonb({text})", "{text} ->> 0"),
    _retyped("bytea", "text", Effect.BLOCKED, "convert_to({text}, 'UTF8')", "encode({text}, 'escape')"),
    _retyped("char(40)", "text", Effect.BLOCKED),
    _retyped("varchar(4)", "text", Effect.ROWS_REJECTED, "left({text}, 4)"),
    Fault(
        "time without its microseconds",
        Effect.BLOCKED,
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey, ALTER COLUMN {time} TYPE timestamptz(0)",
        "ALTER TABLE {table} ALTER COLUMN {time} TYPE timestamptz; "
        + _restore("time")
        + "; ALTER TABLE {table} ADD CONSTRAINT {name}_pkey PRIMARY KEY (tenant, {keys})",
        keeps=True,
    ),
    Fault(
        "time without time zone",
        Effect.BLOCKED,
        "ALTER TABLE {table} ALTER COLUMN {time} TYPE timestamp USING {time} AT TIME ZONE 'Asia/Tokyo'",
        "ALTER TABLE {table} ALTER COLUMN {time} TYPE timestamptz USING {time} AT TIME ZONE 'Asia/Tokyo'",
    ),
    Fault(
        "text to an enum",
        Effect.EXACT,
        "CREATE TYPE blast.{name} AS ENUM ('one', 'two'); "
        "ALTER TABLE {table} ALTER COLUMN {text} TYPE blast.{name} USING 'one'::blast.{name}",
        "ALTER TABLE {table} ALTER COLUMN {text} TYPE text; " + _restore("text") + "; DROP TYPE blast.{name}",
        keeps=True,
    ),
    Fault(
        "text to a domain",
        Effect.EXACT,
        "CREATE DOMAIN blast.{name} AS text CHECK (value NOT LIKE '%5v%'); "
        "ALTER TABLE {table} ALTER COLUMN {text} TYPE blast.{name} USING 'one'",
        "ALTER TABLE {table} ALTER COLUMN {text} TYPE text; " + _restore("text") + "; DROP DOMAIN blast.{name}",
        keeps=True,
    ),
)

_PARENTS = (
    "CREATE TABLE blast.{name} (id bigint PRIMARY KEY); "
    "INSERT INTO blast.{name} SELECT n FROM generate_series(0, 50000) AS n WHERE n % 5 <> 0; "
)
_FOREIGN_KEY = "ALTER TABLE {table} ADD CONSTRAINT {name}_x FOREIGN KEY ({key}) REFERENCES blast.{name}"
_NO_FOREIGN_KEY = "ALTER TABLE {table} DROP CONSTRAINT {name}_x; DROP TABLE blast.{name}"
CONSTRAINT_FAULTS = (
    Fault("check added", Effect.ROWS_REJECTED,
          "ALTER TABLE {table} ADD CONSTRAINT {name}_x CHECK ({key} % 5 <> 0) NOT VALID",
          "ALTER TABLE {table} DROP CONSTRAINT {name}_x"),
    Fault("check that cannot be computed", Effect.ROWS_REJECTED,
          "ALTER TABLE {table} ADD CONSTRAINT {name}_x CHECK (1 / ({key} % 5) >= 0) NOT VALID",
          "ALTER TABLE {table} DROP CONSTRAINT {name}_x"),
    Fault("not null added", Effect.ROWS_REJECTED,
          "ALTER TABLE {table} ADD CONSTRAINT {name}_x NOT NULL {nullable} NOT VALID",
          "ALTER TABLE {table} DROP CONSTRAINT {name}_x"),
    Fault("foreign key added", Effect.ROWS_REJECTED, _PARENTS + _FOREIGN_KEY + " NOT VALID", _NO_FOREIGN_KEY),
    Fault("foreign key deferred", Effect.ROWS_REJECTED,
          _PARENTS + _FOREIGN_KEY + " DEFERRABLE INITIALLY DEFERRED NOT VALID", _NO_FOREIGN_KEY),
    Fault("unique index on other columns", Effect.ROWS_REJECTED,
          "DO $$ BEGIN EXECUTE format('CREATE UNIQUE INDEX {name}_x ON {table} (({key} %% 10)) WHERE {key} > %s', "
          "(SELECT coalesce(max({key}), 0) FROM {table})); END $$",
          "DROP INDEX public.{name}_x", policies=("update",)),
)  # fmt: skip
