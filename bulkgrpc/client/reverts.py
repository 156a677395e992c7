"""Reverting a job: all parts of its table, until none has a row of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bulkgrpc.client import model
from bulkgrpc.client.connection import Connection
from bulkgrpc.client.model import Job
from bulkgrpc.v1 import jobs_pb2

_PASSES_MAX = 3
"""Rows that others move while they are removed, as VACUUM FULL does, are met by the next pass."""


@dataclass(frozen=True, slots=True)
class Reverted:
    """What was removed, or, with `validate_only`, would be.

    table: as in SQL. rows: of the job, that were removed or found. left: rows of it that are still there although they
    were to be removed: a trigger of the table keeps them; 0 with `validate_only`.
    """

    job: Job
    table: str
    rows: int
    left: int = 0


async def revert(connection: Connection, name: str, *, validate_only: bool) -> Reverted:
    """See `AsyncJobHandle.revert`."""
    if validate_only:
        return await _all_parts(connection, name, validate_only=True)
    removed = 0
    for _ in range(_PASSES_MAX):
        done = await _all_parts(connection, name, validate_only=False)
        removed += done.rows
        left = (await _all_parts(connection, name, validate_only=True)).rows
        if not left or not done.rows:
            break
    return replace(done, rows=removed, left=left)


async def _all_parts(connection: Connection, name: str, *, validate_only: bool) -> Reverted:
    token, rows = "", 0
    while True:
        request = jobs_pb2.RevertJobRequest(name=name, validate_only=validate_only, page_token=token)
        response: jobs_pb2.RevertJobResponse = await connection.call(connection.jobs.RevertJob, request)
        rows += response.rows
        token = response.next_page_token
        if not token:
            return Reverted(model.job_of(response.job), response.table, rows)
