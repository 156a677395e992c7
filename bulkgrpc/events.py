"""Every log event of servers and workers, with its meaning. Names are stable: alerts and searches may rely on them.

Code logs the name as a literal, `log.warning("postgres_unavailable", …)`; tests/unit/test_events.py checks that every
name that is logged is registered here, and that every registered name is logged.
"""

from __future__ import annotations

import enum
from typing import Self


class Event(enum.StrEnum):
    """A log event. Its value is the name, `meaning` what happened and what the process does about it."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """Make a member from its name and meaning."""
        event = str.__new__(cls, name)
        event._value_ = name
        event.meaning = meaning
        return event

    # Worker and server
    POSTGRES_UNAVAILABLE = (
        "postgres_unavailable",
        "PostgreSQL does not answer, is read-only, or rolled a transaction back. A worker retries; a server refuses "
        "calls that need it, and logs each reason every 10 s.",
    )

    TELEMETRY_SERVED = (
        "telemetry_served",
        "The process answers `/metrics`, `/livez` and `/readyz` at `address`.",
    )

    # Server
    TLS_RELOADED = ("tls_reloaded", "The server has read a new certificate; new connections get it.")
    TLS_NOT_RELOADED = (
        "tls_not_reloaded",
        "The files of the certificate changed and cannot be used, as `error` says; the server keeps the former ones.",
    )
    BACKLOG_UNKNOWN = (
        "backlog_unknown",
        "The server cannot measure what is stored and not applied yet; its metrics of that are missing after 60 s.",
    )
    KAFKA_UNAVAILABLE_AT_START = (
        "kafka_unavailable_at_start",
        "Kafka does not answer a server that starts, as `error` says; it tries again for 20 s.",
    )
    PARTITIONS_ADDED = (
        "partitions_added",
        "The records topic has more `partitions` than `before`: new jobs use them too. A job keeps those that it has.",
    )
    RIGHT_MISSING = (
        "right_missing",
        "The server's role in PostgreSQL lacks `right`: it serves, but refuses to register datasets that need it.",
    )
    TOPIC_SETTINGS_UNKNOWN = (
        "topic_settings_unknown",
        "The server has no right DESCRIBE_CONFIGS on the records topic, and does not check its settings.",
    )
    TOPIC_SETTING = (
        "topic_setting",
        "A setting of the records topic can lose batches in an outage, as `reason` says; the server serves.",
    )

    # Worker
    APPLY_FAILED = (
        "apply_failed",
        "An error in the threads that apply atomic jobs, most likely as PostgreSQL does not answer; they continue.",
    )
    ATOMIC_JOB_APPLIED = (
        "atomic_job_applied",
        "The staged `rows` of an atomic job were applied, which took `seconds`; jobs of under a second are not logged.",
    )
    ATOMIC_JOB_DEFERRED = (
        "atomic_job_deferred",
        "The staged rows of an atomic job were not applied, for `reason`; a worker tries it again in `retry_in_s`.",
    )
    CHUNK_NOT_APPLIED = (
        "chunk_not_applied",
        "The ledger did not accept a chunk, as `outcomes` says by partition; its messages are read again.",
    )
    CHUNK_ROWS_CHANGED = ("chunk_rows_changed", "The rows at which a chunk is full were tuned to `rows`.")
    CHUNK_TOO_SLOW = (
        "chunk_too_slow",
        "Rows of a chunk took too long and were parked; the next chunks have `next_rows` rows at most.",
    )
    CHUNK_REFUSED = (
        "chunk_refused",
        "PostgreSQL refuses a chunk for a reason that is of no dataset; its partitions wait, and it is retried.",
    )
    DATASET_BLOCKED = (
        "dataset_blocked",
        "The table of a dataset does not take its rows, as `reason` says; its messages are parked, others continue.",
    )
    DATASET_STILL_BLOCKED = ("dataset_still_blocked", "A trial of a blocked dataset failed; it is tried again later.")
    DATASET_UNBLOCKED = (
        "dataset_unblocked",
        "The table of a dataset takes rows again; what is parked is applied, in order.",
    )
    DEAD_LETTER = ("dead_letter", "A message belongs to no job; it is on the dead-letter topic with the reason.")
    DEAD_LETTER_FAILED = ("dead_letter_failed", "The dead-letter topic took no message; the worker tries again.")
    DRAIN_FAILED = ("drain_failed", "A round over the parked messages ended early; the next one starts within 1 s.")
    EXPRESS_BEGAN = (
        "express_began",
        "Tenants wait behind those in `hot`; what comes of them is applied ahead from `next_offsets` on.",
    )
    EXPRESS_ENDED = ("express_ended", "Applying ahead ended early, as `reason` says; everything is applied in order.")
    EXPRESS_FAILED = ("express_failed", "Applying ahead failed for a fault of ours; everything is applied in order.")
    EXPRESS_OVER = ("express_over", "No tenant waits behind a hot one any more, or the partitions have changed.")
    GROUP_NOT_LEFT = (
        "group_not_left",
        "Kafka did not answer when the worker left its group; the partitions move when the session expires.",
    )
    JOB_BLOCKED = (
        "job_blocked",
        "A message of a job can neither be applied nor rejected now; the job's messages are parked, and tried later.",
    )
    JOB_LOST_IN_KAFKA = (
        "job_lost_in_kafka",
        "A later message of a job shows that Kafka lost batches of it that were acknowledged. The job failed, and its "
        "client can submit it again.",
    )
    JOBS_ABANDONED = ("jobs_abandoned", "Open jobs ended as EXPIRED, sealed ones that lack batches as FAILED.")
    JOBS_OVERDUE = ("jobs_overdue", "Jobs are sealed for over 300 s and have not ended.")
    KAFKA_COMMIT_FAILED = (
        "kafka_commit_failed",
        "Kafka did not take the next offsets of partitions. The ledger has them.",
    )
    LATE_BATCHES = (
        "late_batches",
        "Batches of a job arrived after its seal, as from a server that was paused. They are in bulk.late_batches, and "
        "the job's counts stay.",
    )
    LEDGER_NOT_COMPARED = (
        "ledger_not_compared",
        "Kafka did not report for 10 s what the group committed; partitions are acquired without comparing that.",
    )
    LEDGER_NOT_WATCHED = (
        "ledger_not_watched",
        "No heartbeat of the ledger was stored, or it could not be compared with Kafka's; tried again after 5 s.",
    )
    LEDGER_OLDER = (
        "ledger_older",
        "PostgreSQL came back older than what workers had applied, as after a restore. What it lost is read again from "
        "Kafka: `read_again` has the offsets. What was done between `ledger_time` and `known_time` and is not in Kafka "
        "is gone: see `bulkgrpc doctor`.",
    )
    MAINTENANCE_FAILED = ("maintenance_failed", "A maintenance round ended early; the next one starts in time.")
    MAINTENANCE_TASK_FAILED = (
        "maintenance_task_failed",
        "One maintenance task failed; it is tried again in the next round.",
    )
    OFFSET_GAP = (
        "offset_gap",
        "Kafka delivered a message after the next one, or the end of the log; the partition is read again from "
        "`next_offset`. See offsets_passed_over for what happens if the gap is still there.",
    )
    OFFSETS_PASSED_OVER = (
        "offsets_passed_over",
        "Kafka has no message from `from_offset` up to `to_offset` in a partition, which it did not delete at the "
        "start of the log; the worker continues after them. They are the control records of a transaction, or messages "
        "that it aborted; or compaction, or a broken disk, deleted messages, and acknowledged records are lost: check "
        "that cleanup.policy of the topic is delete.",
    )
    PARTITION_NOT_CREATED = (
        "partition_not_created",
        "A partition of a dataset's table could not be created; the default partition has its rows until then.",
    )
    PARTITION_WAITS_FOR_UPGRADE = (
        "partition_waits_for_upgrade",
        "The next message of a partition, at `offset`, is of a newer format than this worker reads. The partition "
        "waits there until a newer worker acquires it: replace this worker. Logged once, and every 5 min.",
    )
    PARTITION_NOT_READ = (
        "partition_not_read",
        "Kafka reported an error of one partition; it is compared with the ledger, and read again or stopped.",
    )
    PARTITION_RESUMED = ("partition_resumed", "The log of a stopped partition matches the ledger; it is applied again.")
    PARTITION_STOPPED = (
        "partition_stopped",
        "The log of a partition does not match the ledger, for the `cause`: topic_missing, topic_replaced, "
        "messages_deleted or log_truncated. Nothing of it is applied; others continue. `lost` is the "
        "span of offsets, `remedy` the command for the operator.",
    )
    PARTITIONS_ASSIGNED = ("partitions_assigned", "Kafka assigned partitions to this worker.")
    PARTITIONS_FENCED = (
        "partitions_fenced",
        "Another worker acquired partitions; they are acquired again after 10 s if Kafka still assigns them here.",
    )
    PARTITIONS_REVOKED = ("partitions_revoked", "Kafka revoked partitions, or the worker lost them.")
    PARTITIONS_STALLED = (
        "partitions_stalled",
        "Kafka has messages of partitions and does not deliver them; the worker joins its group again.",
    )
    POSTGRES_RESTARTED = (
        "postgres_restarted",
        "PostgreSQL restarted, or another server took over; partitions are acquired again at the ledger's positions.",
    )
    QUEUE_WAITS_FOR_UPGRADE = (
        "queue_waits_for_upgrade",
        "The first parked message of a queue is of a newer format than this worker reads, as `reason` says. The queue "
        "waits for a newer worker, others are drained. Logged once, and every 5 min.",
    )
    SEEK_NOT_READY = ("seek_not_ready", "A partition cannot be read from its position yet; it is tried again.")
    TOPIC_MISSING = (
        "topic_missing",
        "Kafka does not have the records topic; nothing of it is applied until it is there. Workers do not create a "
        "topic that the ledger knows; a server refuses batches.",
    )
    TOPIC_NOT_CHECKED = (
        "topic_not_checked",
        "The topic could not be compared with the ledger. A worker acquires no partition until it is, and tries again.",
    )
    WORKER_FAILED = ("worker_failed", "The worker exits with status 1 because of the error.")

    # Server
    ABANDONED_QUERY_FAILED = (
        "abandoned_query_failed",
        "A query failed after its caller's deadline had passed; nothing waits for its result.",
    )
    CALL_FAILED = ("call_failed", "An RPC ended with an unexpected exception; its caller got INTERNAL.")
    CALL_REFUSED = ("call_refused", "An RPC was refused, with a reason.")
    JOB_REVERT_BEGUN = (
        "job_revert_begun",
        "A caller begins to remove from `table` the rows that the ended `job` wrote.",
    )
    JOB_ROWS_REMOVED = ("job_rows_removed", "So many `rows` that `job` wrote were removed from `table` by a call.")
    KEY_IGNORED = ("key_ignored", "A key of the JSON Web Key Set cannot be used.")
    KEY_SET_UNREADABLE = ("key_set_unreadable", "The JSON Web Key Set cannot be read; the known keys stay valid.")
    PARKED_NOT_READ = (
        "parked_not_read",
        "What is parked could not be read; the server uses what it read last, and tries again after 3 s.",
    )
    POSTGRES_UNAVAILABLE_AT_START = (
        "postgres_unavailable_at_start",
        "PostgreSQL does not answer when the server starts; the server serves anyway.",
    )
    PRODUCER_FAILED = ("producer_failed", "The Kafka producer cannot recover; the server process exits.")
    REDIS_AVAILABLE = ("redis_available", "Redis serves calls again.")
    REDIS_MAY_EVICT = ("redis_may_evict", "Redis may evict live jobs: set maxmemory-policy to noeviction.")
    REDIS_UNAVAILABLE = (
        "redis_unavailable",
        "Redis does not serve calls, for the `cause`: unreachable, unknown_host, not_listening, no_primary, loading, "
        "wrong_password, missing_right, tls, wrong_server, out_of_memory, read_only or refused. `remedy` is what to "
        "check. Streams are accepted or refused as BULKGRPC_WHEN_REDIS_IS_DOWN says. Logged for each new cause and "
        "every 10 s.",
    )
    REDIS_UNAVAILABLE_AT_START = (
        "redis_unavailable_at_start",
        "Redis does not answer when the server starts; the server serves anyway.",
    )
    SERVER_DRAINING = ("server_draining", "The server accepts no more streams and waits up to drain_s for open ones.")
    SERVER_PROCESS_DIED = ("server_process_died", "A server process exited; another one is started.")
    SERVER_PROCESS_NOT_STARTED = (
        "server_process_not_started",
        "A server process does not serve after `seconds`. Until all have served once, the server exits with status 1; "
        "after that the process is started again.",
    )
    TOPIC_AVAILABLE = ("topic_available", "The topic is the one that the ledger knows; the server accepts batches.")
    TOPIC_REFUSED = (
        "topic_refused",
        "The topic is missing, or is another one than the ledger knows; the server refuses new batches.",
    )
    SERVER_STARTED = ("server_started", "The server accepts calls.")
