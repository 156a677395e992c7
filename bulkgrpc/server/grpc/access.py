"""The scope that each RPC requires, and the caller of the current RPC."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

from bulkgrpc.ingest.identity import ADMIN, READ, WRITE, Caller
from bulkgrpc.v1 import datasets_pb2, ingest_pb2, jobs_pb2, ledger_pb2

INGEST: Final = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name
JOBS: Final = jobs_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
DATASETS: Final = datasets_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name
LEDGER: Final = ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"].full_name
SERVICES: Final = (INGEST, JOBS, DATASETS, LEDGER)

REQUIRED_SCOPES: Final[Mapping[str, str]] = {
    f"/{INGEST}/SubmitRecords": WRITE,
    f"/{INGEST}/StreamRecords": WRITE,
    f"/{JOBS}/GetJob": READ,
    f"/{JOBS}/ListJobs": READ,
    f"/{JOBS}/WatchJob": READ,
    f"/{JOBS}/ListRejections": READ,
    f"/{JOBS}/CancelJob": WRITE,
    f"/{JOBS}/DiscardJob": WRITE,
    f"/{JOBS}/DeleteJob": WRITE,
    f"/{JOBS}/RevertJob": WRITE,
    f"/{DATASETS}/RegisterDataset": ADMIN,
    f"/{DATASETS}/DeleteDataset": ADMIN,
    f"/{DATASETS}/GetDataset": READ,
    f"/{DATASETS}/ListDatasets": READ,
    f"/{DATASETS}/ListDatasetVersions": READ,
    f"/{DATASETS}/GetDatasetStatus": READ,
    f"/{DATASETS}/PauseDataset": ADMIN,
    f"/{DATASETS}/ResumeDataset": ADMIN,
    f"/{DATASETS}/DiscardParked": ADMIN,
    f"/{LEDGER}/GetLedger": ADMIN,
}
"""Every RPC of `SERVICES`. Health checks and reflection require nothing."""

_caller: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Return the caller of the RPC that this task serves; the identity interceptor has set it."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """Set the caller of the RPC that this task serves."""
    _caller.set(caller)
