"""The worker's decisions, without a driver: they are tested without Kafka and PostgreSQL.

ports.py         what the worker needs of log, ledger, registry, writer and dead-letter queue
ownership.py     which partitions may be written, under which epoch, from which offset
assembly.py      chunks: what one transaction writes, and when a chunk is ready
dead_letters.py  which messages belong to no job; redrive.py: which messages of a job are sent again
backpressure.py  when to pause the log, when to resume it, when to retry
express.py       who is served ahead of the main path, and what may be applied so; express_ports.py: what it needs
gaps.py          which offsets without a message are passed over
log_identity.py  whether a partition's log is the ledger's; topic_check.py compares, recovery.py: what an operator does
upgrade.py       which waits for a newer worker are logged
stall.py         which partitions Kafka stopped delivering
decode.py        protobuf payloads to Arrow columns
plan.py          what becomes of each message, and the next sequences of the lanes
job_delta.py     what a chunk did for a job
failures.py      what a failure of the store leads to
tuning.py        how many rows a chunk should have
"""
