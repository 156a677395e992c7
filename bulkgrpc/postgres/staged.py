"""Staged rows: those of atomic jobs until their seal. One table per dataset version, in the schema `bulk`.

Rows are staged as columns, not as bytes: PostgreSQL moves them by itself, which takes no memory in the worker.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from psycopg import sql

from bulkgrpc.datasets.conversions import over_limits
from bulkgrpc.datasets.ddl import BY_BYTES, table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.operations import DELETE
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.datasets.table_fit import Fit
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.dedupe import Generations
from bulkgrpc.postgres.writers import conflict
from bulkgrpc.postgres.writers.copy import copy_rows
from bulkgrpc.postgres.writers.row_errors import OWN_FUNCTION, OWN_STATEMENT

_SQL = statements.family("dedupe")
_STAGED = statements.family("staged")
JOB = "bulkgrpc_job"
SEQUENCE = "bulkgrpc_sequence"
INDEX = "bulkgrpc_index"
HASH = "bulkgrpc_hash"
_ORDERED = sql.Identifier("pg_temp", "bulkgrpc_ordered")
ORDERED_PAGES = "SELECT pg_relation_size('pg_temp.bulkgrpc_ordered') / current_setting('block_size')::bigint"
"""The query of how many pages `order` has stored."""


@dataclass(frozen=True, slots=True)
class StagedTable:
    """The table of a dataset version's staged rows."""

    dataset: str
    version: int

    @property
    def identifier(self) -> sql.Identifier:
        """The qualified, quoted name. The dataset's name may have all of the 63 characters: this is a hash of it."""
        digest = hashlib.sha256(f"{self.dataset}/{self.version}".encode()).hexdigest()[:24]
        return sql.Identifier("bulk", f"staged_{digest}")


def create(dataset: Dataset) -> sql.Composed:
    """Return the statements that create a dataset version's table of staged rows, if it does not exist."""
    staged = StagedTable(dataset.name, dataset.version).identifier
    columns = [sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.type)) for column in dataset.columns]
    columns += [sql.SQL("{} uuid NOT NULL").format(sql.Identifier(JOB))]
    columns += [sql.SQL("{} bigint NOT NULL").format(sql.Identifier(SEQUENCE))]
    columns += [sql.SQL("{} integer NOT NULL").format(sql.Identifier(INDEX))]
    if dataset.operation is not None:
        columns += [sql.SQL("{} boolean NOT NULL").format(sql.Identifier(DELETE))]
    if dataset.dedupe_window_s:
        columns += [sql.SQL("{} uuid NOT NULL").format(sql.Identifier(HASH))]
    return sql.SQL(
        "CREATE TABLE IF NOT EXISTS {staged} ({columns}); CREATE INDEX IF NOT EXISTS {index} ON {staged} ({job})"
    ).format(
        staged=staged,
        columns=sql.SQL(", ").join(columns),
        index=sql.Identifier(f"{staged._obj[-1]}_by_job"),
        job=sql.Identifier(JOB),
    )


def copy(connection: Connection, rows: Rows, batches: Sequence[tuple[uuid.UUID, int]]) -> None:
    """Stage rows in the caller's transaction. batches: job and sequence of each payload of `rows`."""
    ids = pa.array([job_id.bytes for job_id, _ in batches], pa.binary(16))
    sequences = pa.array([sequence for _, sequence in batches], pa.int64())
    payload = pa.array(rows.payload)
    wanted = rows.table.append_column(JOB, ids.take(payload)).append_column(SEQUENCE, sequences.take(payload))
    wanted = wanted.append_column(INDEX, pa.array(rows.record_index))
    if rows.deletes is not None:
        wanted = wanted.append_column(DELETE, pa.array(rows.deletes))
    if rows.hashes is not None:
        wanted = wanted.append_column(HASH, rows.hashes.column())
    copy_rows(connection, StagedTable(rows.dataset.name, rows.dataset.version).identifier, wanted)


def apply(dataset: Dataset, fit: Fit) -> sql.Composed:
    """Return the statement that moves a job's rows into the table by the dataset's conflict policy.

    ignore, reject: of equal keys the first, unless the table has it. update: of equal keys the last, over the table's
    row; those that are to be deleted are left to `delete`. append: all, in the order in which they were sent.
    """
    chosen = _chosen(dataset, fit, sql.Placeholder("job_id"))
    if dataset.operation is not None:
        written = sql.SQL("SELECT {columns} FROM ({chosen}) AS staged WHERE {kept}")
        chosen = written.format(**_clauses(dataset), chosen=chosen)
    return sql.SQL("INSERT INTO {table} ({columns}) {chosen} {conflict}").format(**_clauses(dataset), chosen=chosen)


def delete(dataset: Dataset, fit: Fit) -> sql.Composed:
    """Return the statement that deletes the rows whose keys' last record in a job says so: before `apply`.

    A row that is written may have a value of another unique index that one of these had.
    """
    return sql.SQL(
        "DELETE FROM {table} AS stored USING ({chosen}) AS staged "
        "WHERE staged.{delete} AND ({stored_key}) = ({staged_key})"
    ).format(**_clauses(dataset), chosen=_chosen(dataset, fit, sql.Placeholder("job_id")))


def order(dataset: Dataset, fit: Fit, job_id: uuid.UUID) -> sql.Composed:
    """Return the statement that stores the rows that `apply` would write in a temporary table, in the order of keys.

    The table is dropped at the end of the transaction. It is as large as the rows, and not in the write-ahead log.
    """
    return sql.SQL("CREATE TEMPORARY TABLE {ordered} ON COMMIT DROP AS {chosen}").format(
        ordered=_ORDERED, chosen=_chosen(dataset, fit, sql.Literal(job_id))
    )


def apply_slice(dataset: Dataset, from_page: int, to_page: int) -> sql.Composed:
    """Return the statement that moves the rows on the pages [from_page, to_page) that `order` stored into the table."""
    return sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM {ordered} "
        "WHERE ctid >= {from_place}::tid AND ctid < {to_place}::tid AND {kept} {conflict}"
    ).format(**_clauses(dataset), **_slice(from_page, to_page))


def delete_slice(dataset: Dataset, from_page: int, to_page: int) -> sql.Composed:
    """Return the statement that does what `delete` does for the pages [from_page, to_page) that `order` stored."""
    return sql.SQL(
        "DELETE FROM {table} AS stored USING {ordered} AS staged "
        "WHERE staged.ctid >= {from_place}::tid AND staged.ctid < {to_place}::tid "
        "AND staged.{delete} AND ({stored_key}) = ({staged_key})"
    ).format(**_clauses(dataset), **_slice(from_page, to_page))


def _slice(from_page: int, to_page: int) -> dict[str, sql.Composable]:
    return {
        "ordered": _ORDERED,
        "from_place": sql.Literal(f"({from_page},0)"),
        "to_place": sql.Literal(f"({to_page},0)"),
    }


def _chosen(dataset: Dataset, fit: Fit, job_id: sql.Composable) -> sql.Composed:
    """Return the query of a job's rows that are to be written: of each key one, in the order of keys.

    Without a key: all, in the order in which they were sent.
    """
    clauses = {**_clauses(dataset), **_values(dataset, fit), "job_id": job_id}
    if dataset.conflict_policy == "append":
        query = "SELECT {values} FROM {staged} WHERE {job} = {job_id} ORDER BY {sequence}, {index}"
        return sql.SQL(query).format(**clauses)
    return sql.SQL(
        "SELECT DISTINCT ON ({key_order}) {values}{and_delete} FROM {staged} WHERE {job} = {job_id} "
        "ORDER BY {key_order}, {sequence} {direction}, {index} {direction}"
    ).format(
        **clauses,
        and_delete=sql.SQL("") if dataset.operation is None else sql.SQL(", {}").format(sql.Identifier(DELETE)),
        direction=sql.SQL("DESC" if dataset.conflict_policy == "update" else "ASC"),
    )


def apply_each(connection: Connection, dataset: Dataset, fit: Fit, job_id: uuid.UUID) -> tuple[int, int]:
    """Write every row of a job as `apply` does those that it chooses; return how many were written, and skipped.

    For a table whose triggers may skip rows: which of several rows with a key they skip decides about the others. One
    call; in it a statement for the first rows of all keys, one for the second ones, and so on.
    """
    skipped: sql.Composable = sql.SQL("true")  # update: every row is written that no trigger skips
    if dataset.conflict_policy != "update":
        skipped = sql.SQL("NOT EXISTS (SELECT FROM {table} AS stored WHERE ({stored_key}) = ({converted_key}))").format(
            **_clauses(dataset), converted_key=_converted_key(dataset, fit)
        )
    body = sql.SQL(_STAGED["apply_each_body"].decode()).format(
        **_clauses(dataset),
        **_values(dataset, fit),
        mark=sql.SQL(OWN_STATEMENT),
        skipped=skipped,
        delete_first=sql.SQL("") if dataset.operation is None else _delete_ranked(dataset, fit),
    )
    text = body.as_string(connection)
    name = f"{OWN_FUNCTION}apply_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    function = sql.Identifier("pg_temp", name)
    create = sql.SQL(_STAGED["create_apply_each"].decode())
    connection.execute(create.format(function=function, body=sql.Literal(text)))
    call = sql.SQL(_STAGED["call_apply_each"].decode()).format(function=function)
    row = connection.execute(call, {"job_id": job_id}).fetchone()
    if row is None:
        raise AssertionError("a function without FROM returns one row")
    return row[0], row[1]


def _delete_ranked(dataset: Dataset, fit: Fit) -> sql.Composed:
    return sql.SQL(_STAGED["apply_each_deletes"].decode()).format(
        **_clauses(dataset), converted_key=_converted_key(dataset, fit), mark=sql.SQL(OWN_STATEMENT)
    )


def _clauses(dataset: Dataset) -> dict[str, sql.Composable]:
    return {
        "table": table(dataset),
        "columns": sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns),
        "staged": StagedTable(dataset.name, dataset.version).identifier,
        "job": sql.Identifier(JOB),
        "sequence": sql.Identifier(SEQUENCE),
        "index": sql.Identifier(INDEX),
        "conflict": conflict.clause(dataset),
        "delete": sql.Identifier(DELETE),
        "kept": sql.SQL("true") if dataset.operation is None else sql.SQL("NOT {}").format(sql.Identifier(DELETE)),
        "stored_key": sql.SQL(", ").join(sql.Identifier("stored", name) for name in dataset.primary_key),
        "staged_key": sql.SQL(", ").join(sql.Identifier("staged", name) for name in dataset.primary_key),
    }


def _converted_key(dataset: Dataset, fit: Fit) -> sql.Composed:
    """Return the key of a row of the staging table `staged`, in the table's types."""
    key: dict[str, sql.Composable] = {name: sql.Identifier("staged", name) for name in dataset.primary_key}
    key |= {one.column.name: one.expression("staged") for one in fit.conversions if one.column.name in key}
    return sql.SQL(", ").join(key.values())


def _values(dataset: Dataset, fit: Fit) -> dict[str, sql.Composable]:
    """Return the parts of statements that read staged rows: the values in the table's types; the key of them.

    key_order: the key as ORDER BY needs it: whatever the collation of the table, writers keep one order.
    """
    values: dict[str, sql.Composable] = {column.name: sql.Identifier(column.name) for column in dataset.columns}
    texts = {column.name for column in dataset.columns if column.type == "text"}
    values |= {conversion.column.name: conversion.expression() for conversion in fit.conversions}
    texts -= {conversion.column.name for conversion in fit.conversions if conversion.reading is not None}
    if dataset.provenance is not None and dataset.provenance.write_time:
        # Of the transaction that moves them. Where the table has a type without a zone, it is in UTC.
        name = dataset.provenance.write_time
        converted = any(conversion.column.name == name for conversion in fit.conversions)
        values[name] = sql.SQL("now() AT TIME ZONE 'UTC'" if converted else "now()")
    named = (sql.SQL("{} AS {}").format(value, sql.Identifier(name)) for name, value in values.items())
    order = (
        sql.SQL("{} {}").format(values[name], BY_BYTES) if name in texts else values[name]
        for name in dataset.primary_key
    )
    return {
        "values": sql.SQL(", ").join(named),
        "key_values": sql.SQL(", ").join(values[name] for name in dataset.primary_key),
        "key_order": sql.SQL(", ").join(order),
    }


def count_over(dataset: Dataset, fit: Fit) -> sql.Composed | None:
    """Return the query that counts a job's rows with texts that a column of the table would cut; None if none is."""
    condition = over_limits(fit.conversions)
    if condition is None:
        return None
    return sql.SQL("SELECT count(*) FROM {staged} WHERE {job} = %(job_id)s AND ({condition})").format(
        staged=StagedTable(dataset.name, dataset.version).identifier, job=sql.Identifier(JOB), condition=condition
    )


def delete_known(dataset: Dataset, generations: Generations) -> sql.Composed:
    """Return the statement that deletes those of a job's rows whose records are known, or occurred before in it.

    The hashes of the others are added to the current generation. Parameters: job_id; now and since of the generations.
    """
    return sql.SQL(_SQL["delete_known"].decode()).format(
        staged=StagedTable(dataset.name, dataset.version).identifier,
        current=generations.current,
        previous=generations.previous,
        job=sql.Identifier(JOB),
        sequence=sql.Identifier(SEQUENCE),
        index=sql.Identifier(INDEX),
        hash=sql.Identifier(HASH),
    )


def discard(staged: StagedTable) -> sql.Composed:
    """Return the statement that deletes a job's staged rows."""
    return sql.SQL("DELETE FROM {} WHERE {} = %(job_id)s").format(staged.identifier, sql.Identifier(JOB))


def any_of_job(staged: StagedTable) -> sql.Composed:
    """Return the query of one staged row of a job; no row if it has none."""
    return sql.SQL("SELECT FROM {} WHERE {} = %(job_id)s LIMIT 1").format(staged.identifier, sql.Identifier(JOB))


def drop(staged: StagedTable) -> sql.Composed:
    """Return the statement that drops a dataset version's table of staged rows."""
    return sql.SQL("DROP TABLE IF EXISTS {}").format(staged.identifier)


def delete_orphaned(staged: StagedTable) -> sql.Composed:
    """Return the statement that deletes up to `rows_max` rows whose jobs have ended, or do not exist."""
    return sql.SQL(
        "DELETE FROM {staged} WHERE ctid = ANY (ARRAY(SELECT s.ctid FROM {staged} s WHERE NOT EXISTS "
        "(SELECT FROM bulk.jobs j WHERE j.job_id = s.{job} AND j.state < 3) LIMIT %(rows_max)s))"
    ).format(staged=staged.identifier, job=sql.Identifier(JOB))


def any_of(staged: StagedTable) -> sql.Composed:
    """Return the query of one staged row; no row if there is none."""
    return sql.SQL("SELECT FROM {} LIMIT 1").format(staged.identifier)


def lock_alone(staged: StagedTable) -> sql.Composed:
    """Return the statement that keeps others off a table of staged rows; it fails if a transaction uses the table."""
    return sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(staged.identifier)


def truncate(staged: StagedTable) -> sql.Composed:
    """Return the statement that empties a table of staged rows."""
    return sql.SQL("TRUNCATE {}").format(staged.identifier)
