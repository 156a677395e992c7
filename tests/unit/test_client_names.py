"""The public names of the client library, and that both clients offer the same."""

from __future__ import annotations

import inspect

import pytest

import bulkgrpc.client as library
from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, BulkClient, BulkError, ClientConfig, JobHandle

NAMES = [
    "ApplyProgress",
    "ArrowTable",
    "AsyncBulkClient",
    "AsyncJobHandle",
    "Batch",
    "BlockedBy",
    "BulkClient",
    "BulkError",
    "CallFailed",
    "ClientConfig",
    "Dataset",
    "DatasetPlan",
    "DatasetState",
    "DatasetStatus",
    "Discarded",
    "GaveUp",
    "Job",
    "JobBlock",
    "JobCounts",
    "JobHandle",
    "JobOptions",
    "JobState",
    "LedgerSnapshot",
    "NotEnded",
    "Parked",
    "ParkedQueue",
    "PartitionPosition",
    "Progress",
    "Reason",
    "Refused",
    "Rejection",
    "Reverted",
    "Rules",
    "TableSource",
    "TenantParked",
    "TextForms",
    "Tls",
    "Token",
    "Unreachable",
    "WrongInput",
]


def test_the_public_names_are_these() -> None:
    assert library.__all__ == NAMES
    assert all(hasattr(library, name) for name in NAMES)


@pytest.mark.parametrize(("one", "other"), [(AsyncBulkClient, BulkClient), (AsyncJobHandle, JobHandle)])
def test_both_colours_have_the_same_methods_with_the_same_parameters(one: type, other: type) -> None:
    methods = [name for name in vars(one) if not name.startswith("_")]
    assert [name for name in vars(other) if not name.startswith("_")] == methods
    for name in methods:
        if not isinstance(vars(one)[name], property):
            assert list(inspect.signature(getattr(one, name)).parameters) == list(
                inspect.signature(getattr(other, name)).parameters
            )


def test_every_error_of_the_client_is_a_bulk_error() -> None:
    errors = [
        getattr(library, name) for name in ("CallFailed", "GaveUp", "NotEnded", "Refused", "Unreachable", "WrongInput")
    ]
    assert all(issubclass(error, BulkError) for error in errors)


def test_a_setting_that_is_not_above_0_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="buffer_bytes_max"):
        ClientConfig(buffer_bytes_max=0)
