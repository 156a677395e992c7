"""What a worker will do with a dataset's records, done once before the dataset is registered."""

from __future__ import annotations

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.overrides import InvalidDataset
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres.writers.copy import encoder_of
from bulkgrpc.v1.ingest_pb2 import RecordBatch

_EMPTY_RECORD = Payload("rehearsal", 1, RecordBatch(records=[b""]).SerializeToString())


def dry_run(dataset: Dataset) -> None:
    """Compile a dataset's rules and its codec, decode a record and encode its row.

    Raises InvalidDataset with the field and the reason for what no worker could do. Takes 10 to 100 ms.
    """
    try:
        # Whether the record is a row or is rejected: the columns come about in any case.
        rows = to_rows(BatchCodec(dataset), [_EMPTY_RECORD])
        encoder_of(rows.table.schema)
    except (InvalidDataset, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A panic of the native codec is an exception that is no Exception.
        raise InvalidDataset(
            "message_type", f"records of {dataset.message_type} cannot be decoded, or their rows not written: {error}"
        ) from error
