"""How a dataset is bound to a table that exists: which table, and what it has of the tenant. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bulkgrpc import model
from bulkgrpc.datasets.columns import OWN_PREFIX, SYSTEM_COLUMNS, InvalidDataset
from bulkgrpc.v1 import options_pb2

DEFAULT_SCHEMA = "public"
NAME_BYTES_MAX = 63
_OWN_TABLES = frozenset({("public", "alembic_version")})
_OWN_SCHEMAS = re.compile(r"bulk|pg_.*|information_schema")
_BARE = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class ExistingTable:
    """A table that exists and stays its owner's.

    schema, table: names as in the catalog. tenant_column: column that stores the tenant, "" if none does. only_tenant:
    the only tenant whose records the dataset takes, "" if it takes those of all. tenant_in_key: whether the key begins
    with `tenant_column`.
    """

    schema: str
    table: str
    tenant_column: str = ""
    only_tenant: str = ""
    tenant_in_key: bool = False

    @property
    def text(self) -> str:
        """The table's name as SQL, with quotes where it needs them."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"


def quoted(name: str) -> str:
    """Return a name as SQL, with quotes if it is not all lower case. For messages; keywords are not quoted."""
    return name if _BARE.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def existing_table(options: options_pb2.DatasetOptions, name: str) -> ExistingTable | None:
    """Return what the option `existing_table` says, or None. name: the dataset's. Raises InvalidDataset."""
    if not options.HasField("existing_table"):
        return None
    given = options.existing_table
    schema, table = given.schema or DEFAULT_SCHEMA, given.table or name
    _check_name("existing_table.schema", schema)
    _check_name("existing_table.table", table)
    if _OWN_SCHEMAS.fullmatch(schema) or (schema, table) in _OWN_TABLES:
        raise InvalidDataset(
            "existing_table.table", f"table {quoted(schema)}.{quoted(table)} is PostgreSQL's or the service's own"
        )
    for option, given_too in (
        ("hash_partitions", options.hash_partitions != 0),
        ("partition_by_time", options.HasField("partition_by_time")),
    ):
        if given_too:
            raise InvalidDataset(
                option,
                f"{option} is of a table that the service creates: leave it out, the table is partitioned or not",
            )
    found = _bound(schema, table, given)
    if given.key_without_tenant and not found.tenant_column:
        raise InvalidDataset(
            "existing_table.key_without_tenant", "key_without_tenant is only for a table with a tenant_column"
        )
    return found


def check_column(name: str, field: str) -> None:
    """Check that a field's column can be one of an existing table. Raises InvalidDataset."""
    _check_name(field, name, f"field {field}: column ")
    if name in SYSTEM_COLUMNS or name.startswith(OWN_PREFIX):
        raise InvalidDataset(
            field, f"field {field}: no table can be written with a column {name}: its name is reserved"
        )


def _bound(schema: str, table: str, given: options_pb2.ExistingTable) -> ExistingTable:
    match given.WhichOneof("tenancy"):
        case "tenant_column" if given.tenant_column:
            check_column(given.tenant_column, "existing_table.tenant_column")
            in_key = not given.key_without_tenant
            return ExistingTable(schema, table, tenant_column=given.tenant_column, tenant_in_key=in_key)
        case "only_tenant":
            if not model.is_tenant(given.only_tenant):
                raise InvalidDataset(
                    "existing_table.only_tenant", f"only_tenant {given.only_tenant!r} is not a valid tenant"
                )
            return ExistingTable(schema, table, only_tenant=given.only_tenant)
        case "tenant_not_stored" if given.tenant_not_stored:
            return ExistingTable(schema, table)
    raise InvalidDataset(
        "existing_table",
        "existing_table does not say what the table has of the tenant: set `tenant_column` to the column that stores "
        "it, `only_tenant` to the one tenant whose table this is, or `tenant_not_stored: true` if all tenants share "
        "its rows",
    )


def _check_name(field: str, name: str, what: str = "") -> None:
    if len(name.encode()) > NAME_BYTES_MAX or "\0" in name or "%" in name:
        raise InvalidDataset(
            field,
            f"{what or field + ' '}{name!r} is not a possible name: up to {NAME_BYTES_MAX} bytes, without % and U+0000",
        )
