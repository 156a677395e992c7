-- name: view
-- What decides whether messages are parked.
SELECT * FROM bulk.deferrals(%(topic)s, %(main_path)s, %(datasets)s::text[], %(job_ids)s::uuid[], %(partitions)s::integer[],
                             %(tenants)s::text[], %(queue_datasets)s::text[], %(last_offset)s)

-- name: park
-- Keep messages as they came.
INSERT INTO bulk.parked (topic, partition, message_offset, tenant, dataset, job_id, records, headers, payload)
SELECT %(topic)s, p.*
FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[], %(tenants)s::text[], %(datasets)s::text[],
            %(job_ids)s::uuid[], %(records)s::integer[], %(headers)s::jsonb[], %(payloads)s::bytea[])
  AS p (partition, message_offset, tenant, dataset, job_id, records, headers, payload)

-- name: block_dataset
-- Block a dataset, or change why it is blocked. A pause stays one; isolation that follows isolation lasts longer.
INSERT INTO bulk.blocked_datasets AS b (dataset, cause, sqlstate, reason, next_trial_time)
VALUES (%(dataset)s, %(cause)s, %(sqlstate)s, %(reason)s, clock_timestamp() + interval '1 second')
ON CONFLICT (dataset) DO UPDATE
SET cause = excluded.cause, sqlstate = excluded.sqlstate, reason = excluded.reason,
    trials = CASE WHEN b.cause <> excluded.cause THEN 0 WHEN b.cause = 'isolating' THEN b.trials + 1 ELSE b.trials END,
    next_trial_time = CASE
      WHEN b.cause <> excluded.cause THEN excluded.next_trial_time
      WHEN b.cause = 'isolating'
      THEN clock_timestamp() + make_interval(secs => least(power(2, least(b.trials + 1, 20)), %(isolation_s_max)s))
      ELSE b.next_trial_time
    END
WHERE b.cause <> 'paused'

-- name: prolong_isolation
-- What is written takes longer than it may on the main path.
UPDATE bulk.blocked_datasets b
SET trials = trials + 1,
    next_trial_time = clock_timestamp() + make_interval(secs => least(power(2, least(trials + 1, 20)), %(isolation_s_max)s))
WHERE dataset = %(dataset)s AND cause = 'isolating'

-- name: block_job
-- Defer a job as a whole, until its next trial.
INSERT INTO bulk.blocked_jobs AS b (job_id, sqlstate, reason, missing_dataset, missing_version, next_trial_time)
SELECT v.job_id, v.sqlstate, v.reason, v.dataset, v.missing_version, clock_timestamp() + interval '5 seconds'
FROM unnest(%(job_ids)s::uuid[], %(sqlstates)s::text[], %(reasons)s::text[], %(datasets)s::text[],
            %(missing_versions)s::integer[]) AS v (job_id, sqlstate, reason, dataset, missing_version)
ON CONFLICT (job_id) DO UPDATE
SET sqlstate = excluded.sqlstate, reason = excluded.reason, missing_dataset = excluded.missing_dataset,
    missing_version = excluded.missing_version, trials = b.trials + 1,
    next_trial_time = clock_timestamp() + make_interval(secs => least(5 * power(2, least(b.trials + 1, 20)), %(trial_s_max)s))

-- name: block_jobs
-- Defer jobs as a whole because a message of each cannot be read.
INSERT INTO bulk.blocked_jobs (job_id, sqlstate, reason, missing_dataset, missing_version, next_trial_time)
SELECT v.job_id, v.sqlstate, v.reason, v.dataset, v.missing_version, clock_timestamp() + interval '5 seconds'
FROM unnest(%(job_ids)s::uuid[], %(sqlstates)s::text[], %(reasons)s::text[], %(datasets)s::text[],
            %(missing_versions)s::integer[]) AS v (job_id, sqlstate, reason, dataset, missing_version)
ON CONFLICT (job_id) DO NOTHING

-- name: end_job_discards
-- Forget what an operator decided about jobs that have ended.
DELETE FROM bulk.blocked_jobs b
WHERE b.job_id = ANY (%(job_ids)s::uuid[])
  AND NOT EXISTS (SELECT FROM bulk.jobs j WHERE j.job_id = b.job_id AND j.state < 3)

-- name: queues
-- The queues with parked messages, except those of datasets that are blocked and not discarded; isolation is no block for
-- a drain, and keeps the main path off while it lasts. A skip scan: one index look-up per queue, however many messages
-- are parked.
WITH RECURSIVE queues (partition, tenant, dataset) AS (
  (SELECT partition, tenant, dataset FROM bulk.parked
   WHERE topic = %(topic)s
   ORDER BY partition, tenant, dataset LIMIT 1)
  UNION ALL
  SELECT n.partition, n.tenant, n.dataset
  FROM queues q CROSS JOIN LATERAL (
    SELECT p.partition, p.tenant, p.dataset FROM bulk.parked p
    WHERE p.topic = %(topic)s AND (p.partition, p.tenant, p.dataset) > (q.partition, q.tenant, q.dataset)
    ORDER BY p.partition, p.tenant, p.dataset LIMIT 1
  ) n
)
SELECT q.partition, q.tenant, q.dataset,
       b.dataset IS NOT NULL AND (b.cause <> 'isolating' OR b.next_trial_time > clock_timestamp())
FROM queues q LEFT JOIN bulk.blocked_datasets b USING (dataset)
WHERE b.dataset IS NULL OR b.cause = 'isolating'
   OR EXISTS (SELECT FROM bulk.discards d
              WHERE d.dataset = q.dataset AND d.topic = %(topic)s AND d.partition = q.partition)

-- name: queue_of_dataset
-- A queue of a dataset whose first message may be tried.
WITH RECURSIVE queues (partition, tenant) AS (
  (SELECT partition, tenant FROM bulk.parked
   WHERE topic = %(topic)s AND dataset = %(dataset)s
   ORDER BY partition, tenant LIMIT 1)
  UNION ALL
  SELECT n.partition, n.tenant
  FROM queues q CROSS JOIN LATERAL (
    SELECT p.partition, p.tenant FROM bulk.parked p
    WHERE p.topic = %(topic)s AND p.dataset = %(dataset)s AND (p.partition, p.tenant) > (q.partition, q.tenant)
    ORDER BY p.partition, p.tenant LIMIT 1
  ) n
)
SELECT q.partition, q.tenant, %(dataset)s
FROM queues q CROSS JOIN LATERAL (
  SELECT p.job_id FROM bulk.parked p
  WHERE p.topic = %(topic)s AND p.partition = q.partition AND p.tenant = q.tenant AND p.dataset = %(dataset)s
  ORDER BY p.message_offset LIMIT 1
) head
WHERE NOT EXISTS (
  SELECT FROM bulk.blocked_jobs j WHERE j.job_id = head.job_id AND j.next_trial_time > clock_timestamp()
)
-- Not the same each time: its message may be the only one that cannot be written.
ORDER BY random()
LIMIT 1

-- name: select_slice
-- The first messages of a queue, in the order of their offsets: those that are discarded, or, if there are none, up to the
-- first one of a blocked job; bounded by messages, records and bytes, the first in any case.
WITH discards AS (
  SELECT d.to_offset FROM bulk.discards d
  WHERE d.dataset = %(dataset)s AND d.topic = %(topic)s AND d.partition = %(partition)s
), heads AS (
  SELECT p.message_offset, p.job_id, p.records, octet_length(p.payload) AS payload_bytes
  FROM bulk.parked p
  WHERE p.topic = %(topic)s AND p.partition = %(partition)s AND p.tenant = %(tenant)s AND p.dataset = %(dataset)s
    AND p.message_offset < coalesce((SELECT to_offset FROM discards), 9223372036854775807)
  ORDER BY p.message_offset
  LIMIT %(messages_max)s
), waiting AS (
  -- Jobs may be blocked by the thousand: each message is one look-up, whatever the planner expects.
  SELECT min(h.message_offset) AS message_offset
  FROM heads h CROSS JOIN LATERAL (
    SELECT FROM bulk.blocked_jobs j WHERE j.job_id = h.job_id AND j.next_trial_time > clock_timestamp() LIMIT 1
  ) blocked
  WHERE NOT EXISTS (SELECT FROM discards)
), bounded AS (
  SELECT message_offset,
         sum(records) OVER w - records AS records_before, sum(payload_bytes) OVER w - payload_bytes AS bytes_before
  FROM heads
  WHERE message_offset < coalesce((SELECT message_offset FROM waiting), 9223372036854775807)
  WINDOW w AS (ORDER BY message_offset)
)
SELECT p.message_offset, p.headers, p.payload
FROM bounded b
JOIN bulk.parked p ON p.topic = %(topic)s AND p.partition = %(partition)s AND p.message_offset = b.message_offset
WHERE b.records_before < %(records_max)s AND b.bytes_before < %(bytes_max)s
ORDER BY p.message_offset

-- name: has_others
-- Whether a queue has other messages than these.
SELECT EXISTS (
  SELECT FROM bulk.parked p
  WHERE p.topic = %(topic)s AND p.partition = %(partition)s AND p.tenant = %(tenant)s AND p.dataset = %(dataset)s
    AND p.message_offset <> ALL (%(offsets)s::bigint[])
)

-- name: lock_queue
-- One transaction at a time applies messages of a queue.
SELECT pg_try_advisory_xact_lock(
  hashtextextended(concat_ws('/', 'bulkgrpc drain', %(topic)s::text, %(partition)s::text, %(tenant)s::text, %(dataset)s::text), 0)
)

-- name: lock_slice
-- Lock messages of a queue, in the order of their offsets.
SELECT p.message_offset
FROM bulk.parked p
WHERE p.topic = %(topic)s AND p.partition = %(partition)s AND p.message_offset = ANY (%(offsets)s::bigint[])
ORDER BY p.message_offset
FOR UPDATE

-- name: lock_offset
-- Keep the main path of the partition away: after this transaction it finds the queue empty, and applies directly.
SELECT FROM bulk.offsets WHERE topic = %(topic)s AND partition = %(partition)s FOR UPDATE

-- name: delete
-- Forget messages that are applied in this transaction, and that their jobs were blocked, unless these are discarded.
WITH unblocked AS (DELETE FROM bulk.blocked_jobs WHERE job_id = ANY (%(job_ids)s::uuid[]) AND discard_reason = '')
DELETE FROM bulk.parked
WHERE topic = %(topic)s AND partition = %(partition)s AND message_offset = ANY (%(offsets)s::bigint[])

-- name: claim_trial
-- A blocked dataset whose trial is due: one worker claims it, and the next trial is later. None while it is discarded: the
-- message of the trial would be written. Jobs that wait for a version of a dataset are tried at once when it is there.
WITH returned AS (
  UPDATE bulk.blocked_jobs j SET next_trial_time = clock_timestamp(), missing_version = 0
  WHERE j.missing_version > 0
    AND EXISTS (SELECT FROM bulk.datasets d WHERE d.dataset = j.missing_dataset AND d.version = j.missing_version)
)
UPDATE bulk.blocked_datasets b
SET trials = trials + 1,
    next_trial_time = clock_timestamp() + make_interval(secs => least(power(2, least(trials, 20)), %(trial_s_max)s))
WHERE dataset = (SELECT dataset FROM bulk.blocked_datasets
                 WHERE cause = 'table' AND next_trial_time <= clock_timestamp()
                   AND NOT EXISTS (SELECT FROM bulk.discards d WHERE d.dataset = blocked_datasets.dataset)
                 ORDER BY next_trial_time LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING dataset

-- name: unblock_dataset
-- A dataset can be written again. A pause stays one.
DELETE FROM bulk.blocked_datasets WHERE dataset = %(dataset)s AND cause <> 'paused'

-- name: end_isolation
-- Isolation that is over for a while is forgotten.
DELETE FROM bulk.blocked_datasets
WHERE cause = 'isolating' AND next_trial_time < clock_timestamp() - interval '1 minute'
RETURNING dataset

-- name: end_discards
-- Delete the discards that have no parked message left.
DELETE FROM bulk.discards d
WHERE d.topic = %(topic)s AND NOT EXISTS (
  SELECT FROM bulk.parked p
  WHERE p.topic = d.topic AND p.partition = d.partition AND p.dataset = d.dataset AND p.message_offset < d.to_offset
)

-- name: explain_discard
-- Note in the jobs whose records are discarded why that was done.
UPDATE bulk.jobs SET discard_reason = %(reason)s WHERE job_id = ANY (%(job_ids)s::uuid[])
