"""Which messages go to the dead-letter queue: those that belong to no job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bulkgrpc.consume.assembly import Chunk, Fetched, Received
from bulkgrpc.consume.ports import DatasetNotFound, DatasetRegistry, StoreUnavailable
from bulkgrpc.model import Kind


def without_dead_letters(chunk: Chunk, registry: DatasetRegistry) -> tuple[Chunk, Sequence[tuple[Fetched, str]]]:
    """Return a chunk without the messages that can be applied to no job, and those messages, each with the reason.

    | the message                                      | goes to                            |
    |--------------------------------------------------|------------------------------------|
    | its headers cannot be read                       | the dead-letter queue              |
    | a batch of a dataset version without a decoder   | the dead-letter queue              |
    | a batch of a known dataset version               | the chunk                          |
    | a seal                                           | the chunk, whatever its dataset    |

    Each dataset version of the chunk has been loaded then, or `prepare` finds out why it cannot be. Raises
    StoreUnavailable if the registry does not answer: the messages are neither then.
    """
    reasons = _without_decoder(chunk, registry)
    dead = [(fetched, fetched.malformed) for fetched in chunk.malformed]
    if not (reasons or dead):
        return chunk, ()
    kept = []
    for item in chunk.items:
        if (reason := reasons.get(_version(item), "")) and item.message.kind is Kind.BATCH:
            dead.append(
                (Fetched(item.partition, item.offset, item.headers, item.key, item.payload, item.message), reason)
            )
        else:
            kept.append(item)
    rows = sum(item.message.records for item in kept)
    return replace(chunk, items=tuple(kept), rows=rows, malformed=()), dead


def _without_decoder(chunk: Chunk, registry: DatasetRegistry) -> dict[tuple[str, int], str]:
    """Return the dataset versions of a chunk's batches that have no decoder, and why."""
    reasons = {}
    for name, version in sorted({_version(item) for item in chunk.items if item.message.kind is Kind.BATCH}):
        try:
            registry.codec(name, version)
        except DatasetNotFound as error:
            reasons[name, version] = str(error)
        except (StoreUnavailable, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001, S112 — a panic of native code; `prepare` reports it for its dataset
            continue
    return reasons


def _version(item: Received) -> tuple[str, int]:
    return item.message.spec.dataset, item.message.spec.dataset_version
