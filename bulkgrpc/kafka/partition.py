"""Which partitions a tenant's batches go to."""

from __future__ import annotations

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 hash of `data` as Kafka's own clients compute it.

    Source: org.apache.kafka.common.utils.Utils.murmur2 (seed 0x9747b28c).
    """
    length = len(data)
    value = 0x9747B28C ^ length
    whole = length - length % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * _M & _MASK
        word = (word ^ word >> 24) * _M & _MASK
        value = value * _M & _MASK ^ word
    tail = data[whole:]
    if tail:
        value = (value ^ int.from_bytes(tail, "little")) * _M & _MASK
    value = (value ^ value >> 13) * _M & _MASK
    return value ^ value >> 15


def partition_of(tenant: str, partitions: int) -> int:
    """Return the partition of a tenant, in [0, partitions): the one that Kafka's Java producer chooses for the key."""
    return (murmur2(tenant.encode()) & 0x7FFFFFFF) % partitions


def partitions_of(tenant: str, partitions: int, lanes: int) -> tuple[int, ...]:
    """Return the partition of each lane of a job: the tenant's partition and those that follow it, each once.

    A job has at most as many lanes as there are partitions.
    """
    first = partition_of(tenant, partitions)
    return tuple((first + lane) % partitions for lane in range(min(lanes, partitions)))
