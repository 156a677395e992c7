"""The report of a job's rejections: by place, a page at a time, bounded."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import psycopg
import pytest

from bulkgrpc.errors import Reason
from bulkgrpc.limits import REJECTIONS_PAGE_BYTES_MAX
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import jobs_pb2
from tests.integration.server_peer import Peer, ServeWith, batch, header, peer, proxy_to, refusal, through

pytest_plugins = ["tests.integration.server_parts"]


def reject(settings: ServerSettings, name: str, places: list[tuple[int, int]], record: bytes) -> None:
    with psycopg.connect(settings.postgres) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO bulk.rejections (create_day, job_id, sequence, record_index, code, field, reason, record) "
            "SELECT create_day, job_id, %s, %s, 'MALFORMED_RECORD', 'value', 'why', %s "
            "FROM bulk.jobs WHERE job_id = %s",
            [(sequence, index, record, uuid.UUID(name.rpartition("/")[2])) for sequence, index in places],
        )


async def rejections(client: Peer, name: str, **fields: Any) -> list[jobs_pb2.ListRejectionsResponse]:
    pages: list[jobs_pb2.ListRejectionsResponse] = []
    while not pages or pages[-1].next_page_token:
        token = pages[-1].next_page_token if pages else ""
        request = jobs_pb2.ListRejectionsRequest(parent=name, page_token=token, **fields)
        pages.append(await client.jobs.ListRejections(request, metadata=client.metadata))
    return pages


async def test_rejections_are_listed_by_place_a_page_at_a_time(client: Peer, server_settings: ServerSettings) -> None:
    name = (await client.submit(header(), batch(0))).job.name
    assert [list(page.rejections) for page in await rejections(client, name)] == [[]]
    places = [(sequence, index) for sequence in range(3) for index in range(3)]
    # One record may be rejected twice: of a batch that was resent with other bytes, for instance.
    reject(server_settings, name, [*reversed(places), (1, 1)], b"bytes")
    pages = await rejections(client, name, page_size=4)
    assert [len(page.rejections) for page in pages] == [4, 4, 2]
    found = [rejection for page in pages for rejection in page.rejections]
    assert [(one.sequence, one.record_index) for one in found] == sorted([*places, (1, 1)])
    assert (found[0].code, found[0].field, found[0].reason, found[0].record) == (
        "MALFORMED_RECORD",
        "value",
        "why",
        b"",
    )
    (page,) = await rejections(client, name, page_size=1000, include_records=True)
    assert {one.record for one in page.rejections} == {b"bytes"}


async def test_a_page_of_large_records_ends_early_and_none_is_lost(
    client: Peer, server_settings: ServerSettings
) -> None:
    name = (await client.submit(header(), batch(0))).job.name
    record = bytes(700_000)
    reject(server_settings, name, [(0, index) for index in range(20)], record)
    pages = await rejections(client, name, page_size=1000, include_records=True)
    assert sum(len(page.rejections) for page in pages) == 20
    assert 2 * REJECTIONS_PAGE_BYTES_MAX > max(page.ByteSize() for page in pages) > REJECTIONS_PAGE_BYTES_MAX
    assert len(await rejections(client, name, page_size=1000)) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"parent": "x"}, "parent"), ({"page_size": 1001}, "page_size"), ({"page_token": "MS8y"}, "page_token")],
)
async def test_a_wrong_question_for_rejections_is_refused_naming_the_field(
    client: Peer, changes: dict[str, Any], field: str
) -> None:
    request = jobs_pb2.ListRejectionsRequest(**{"parent": f"tenants/default/jobs/{uuid.uuid4()}", **changes})
    code, refused = await refusal(client.jobs.ListRejections(request))
    assert (code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_another_tenants_rejections_are_nobodys_business(serve_with: ServeWith) -> None:
    async with serve_with() as (running, _), peer(running.address, "one") as one, peer(running.address, "two") as two:
        name = (await one.submit(header(), batch(0))).job.name
        for foreign in (name, name.replace("tenants/one", "tenants/two")):
            code, refused = await refusal(rejections(two, foreign))
            assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)


async def test_without_postgresql_rejections_cannot_be_told_now(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    proxy = proxy_to(server_settings.postgres)
    async with proxy, serve_with(postgres=lambda: through(server_settings.postgres, proxy)) as (_, client):
        name = (await client.submit(header(), batch(0))).job.name
        await proxy.cut()
        code, refused = await refusal(rejections(client, name))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.POSTGRES_UNAVAILABLE)
        assert refused.retry_after_s > 0
        proxy.repair()
