"""Which messages go to the dead-letter queue: those that belong to no job."""

from __future__ import annotations

from bulkgrpc.consume.ports import DatasetNotFound, DatasetRegistry, Fetched
from bulkgrpc.model import Kind


def dead_letter_reason(fetched: Fetched, registry: DatasetRegistry) -> str:
    """Return why a message can be applied to no job; empty if it can.

    | the message                                      | goes to                            |
    |--------------------------------------------------|------------------------------------|
    | its headers cannot be read                       | the dead-letter queue              |
    | a batch of a dataset version without a decoder   | the dead-letter queue              |
    | a batch of a known dataset version               | the chunk                          |
    | a seal                                           | the chunk, whatever its dataset    |

    Raises StoreUnavailable if the registry does not answer: the message is neither then.
    """
    if fetched.message is None:
        return fetched.malformed
    if fetched.message.kind is Kind.BATCH:
        spec = fetched.message.spec
        try:
            registry.codec(spec.dataset, spec.dataset_version)
        except DatasetNotFound as error:
            return str(error)
    return ""
