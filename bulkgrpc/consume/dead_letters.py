"""Which messages go to the dead-letter queue: those that belong to no job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bulkgrpc.consume.assembly import Chunk, Fetched, Received
from bulkgrpc.consume.decode import DatasetNotFound
from bulkgrpc.consume.ports import DatasetRegistry, StoreError, StoreUnavailable
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobKey, Kind


def without_dead_letters(chunk: Chunk, registry: DatasetRegistry) -> tuple[Chunk, Sequence[tuple[Fetched, str]]]:
    """Return a chunk without the messages that belong to no job, and those messages, each with the reason.

    | the message                                          | goes to                                  |
    |------------------------------------------------------|------------------------------------------|
    | its headers name no job                              | the dead-letter queue                    |
    | its headers are damaged, and name an unknown job     | the dead-letter queue                    |
    | its headers are damaged, and name a job              | the chunk: `prepare` finds it unreadable |
    | it is of a dataset version that is missing           | the chunk: `prepare` finds it unreadable |
    | any other                                            | the chunk                                |

    A message of a job is never a dead letter: what follows it in its lane would be taken for what follows a gap. Raises
    StoreUnavailable if the ledger does not answer.
    """
    dead = [(fetched, fetched.malformed) for fetched in chunk.malformed]
    damaged = {item.message.spec.key for item in chunk.items if item.message.damage}
    if damaged:
        # The first messages of a job may be in the same chunk.
        damaged -= {item.message.spec.key for item in chunk.items if not item.message.damage}
    unknown = {job for job in damaged if _is_unknown(job, registry)}
    if not (unknown or dead):
        return chunk, ()
    kept = []
    for item in chunk.items:
        if item.message.damage and item.message.spec.key in unknown:
            reason = f"{item.message.damage}; the ledger has no {item.message.spec.key.name}"
            dead.append((_fetched(item), reason))
        else:
            kept.append(item)
    rows = sum(item.message.records for item in kept)
    return replace(chunk, items=tuple(kept), rows=rows, malformed=()), dead


def _is_unknown(job: JobKey, registry: DatasetRegistry) -> bool:
    try:
        return not registry.has_job(job)
    except StoreUnavailable:
        raise
    except StoreError:
        # Parked, it can still become whatever it is.
        return False


def load_datasets(chunk: Chunk, registry: DatasetRegistry) -> Callable[[str, int], BatchCodec]:
    """Load each dataset version of a chunk's batches, and return what gives `prepare` their codecs, without I/O.

    It raises for a version why that cannot be loaded. Raises StoreUnavailable if the registry does not answer: nothing
    is known then.
    """
    missing = dict[tuple[str, int], DatasetNotFound]()
    batches = (item.message for item in chunk.items if item.message.kind is Kind.BATCH and not item.message.damage)
    for name, version in sorted({(message.spec.dataset, message.spec.dataset_version) for message in batches}):
        try:
            registry.codec(name, version)
        except DatasetNotFound as error:
            missing[name, version] = error
        except (StoreUnavailable, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001, S112 — a panic of native code; `prepare` reports it for its dataset
            continue

    def codec_of(name: str, version: int) -> BatchCodec:
        if (error := missing.get((name, version))) is not None:
            raise error
        return registry.codec(name, version)

    return codec_of


def _fetched(item: Received) -> Fetched:
    return Fetched(item.partition, item.offset, item.headers, item.key, item.payload, item.message)
