-- name: get_block
-- Why a registered dataset is not written; no row if it is not registered.
SELECT b.cause, b.reason, b.sqlstate, b.block_time, b.trials, nullif(b.next_trial_time, 'infinity'),
       (SELECT min(d.reason) FROM bulk.discards d WHERE d.dataset = %(dataset)s) AS discard_reason
FROM (SELECT) registered LEFT JOIN bulk.blocked_datasets b ON b.dataset = %(dataset)s
WHERE EXISTS (SELECT FROM bulk.datasets d WHERE d.dataset = %(dataset)s AND d.delete_time IS NULL)

-- name: parked_by_tenant
-- What is parked of a dataset, by tenant.
SELECT p.tenant, count(*), sum(p.records), sum(octet_length(p.payload)) AS payload_bytes, count(DISTINCT p.job_id),
       min(p.park_time)
FROM bulk.parked p
WHERE p.topic = ANY (ARRAY(SELECT DISTINCT o.topic FROM bulk.offsets o)) AND p.dataset = %(dataset)s
GROUP BY p.tenant
ORDER BY payload_bytes DESC, p.tenant

-- name: pause
-- Pause a dataset, whether or not it is blocked. Without a reason, the one of an earlier pause stays.
INSERT INTO bulk.blocked_datasets AS b (dataset, cause, reason, next_trial_time)
VALUES (%(dataset)s, 'paused', coalesce(nullif(%(reason)s, ''), %(default_reason)s), 'infinity')
ON CONFLICT (dataset) DO UPDATE
SET cause = 'paused', sqlstate = '', trials = 0, next_trial_time = 'infinity',
    reason = CASE WHEN b.cause = 'paused' AND %(reason)s = '' THEN b.reason ELSE excluded.reason END,
    block_time = CASE WHEN b.cause = 'paused' THEN b.block_time ELSE excluded.block_time END

-- name: lift
-- Lift a pause, and end isolation.
DELETE FROM bulk.blocked_datasets WHERE dataset = %(dataset)s AND cause IN ('paused', 'isolating')

-- name: try_now
-- Try a blocked table, and the blocked jobs of its dataset, now.
WITH jobs AS (
  UPDATE bulk.blocked_jobs j SET next_trial_time = clock_timestamp()
  WHERE EXISTS (SELECT FROM bulk.parked p WHERE p.job_id = j.job_id AND p.dataset = %(dataset)s)
)
UPDATE bulk.blocked_datasets SET next_trial_time = clock_timestamp(), trials = 0
WHERE dataset = %(dataset)s AND cause = 'table'

-- name: end_discards
-- Discard nothing more of a dataset.
DELETE FROM bulk.discards WHERE dataset = %(dataset)s

-- name: discard
-- Discard what is parked of a dataset now: in each partition, what is before the offset that it continues at.
INSERT INTO bulk.discards (dataset, topic, partition, to_offset, reason)
SELECT %(dataset)s, o.topic, o.partition, o.next_offset, %(reason)s
FROM bulk.offsets o
WHERE EXISTS (
  SELECT FROM bulk.parked p WHERE p.topic = o.topic AND p.dataset = %(dataset)s AND p.partition = o.partition
)
ON CONFLICT (dataset, topic, partition) DO UPDATE SET to_offset = excluded.to_offset

-- name: blocked
-- The datasets that are not written now, and about how many bytes each has parked: counted up to a number of messages.
SELECT b.dataset, b.cause, b.reason, (
  SELECT coalesce(sum(bytes), 0)
  FROM (
    SELECT octet_length(p.payload) + %(message_overhead_bytes)s AS bytes
    FROM bulk.parked p
    WHERE p.topic = ANY (ARRAY(SELECT DISTINCT o.topic FROM bulk.offsets o)) AND p.dataset = b.dataset
    LIMIT %(messages_max)s
  ) parked
)::bigint AS stored_bytes
FROM bulk.blocked_datasets b

-- name: partitions
-- The positions of a topic's partitions.
SELECT partition, next_offset, owner_epoch FROM bulk.offsets WHERE topic = %(topic)s ORDER BY partition

-- name: queues
-- The queues of a topic, and why each waits: its dataset, or the first job of it that is blocked.
SELECT q.partition, q.tenant, q.dataset, q.messages, q.records, q.payload_bytes, q.jobs, q.oldest_time,
       coalesce(d.reason, j.reason, '') AS reason, coalesce(d.trials, j.trials, 0) AS trials,
       count(*) OVER () AS queues
FROM (
  SELECT p.partition, p.tenant, p.dataset, count(*) AS messages, sum(p.records) AS records,
         sum(octet_length(p.payload)) AS payload_bytes, count(DISTINCT p.job_id) AS jobs, min(p.park_time) AS oldest_time
  FROM bulk.parked p
  WHERE p.topic = %(topic)s
  GROUP BY p.partition, p.tenant, p.dataset
) q
LEFT JOIN bulk.blocked_datasets d ON d.dataset = q.dataset
LEFT JOIN LATERAL (
  SELECT b.reason, b.trials
  FROM bulk.blocked_jobs b
  JOIN bulk.parked p ON p.job_id = b.job_id AND p.topic = %(topic)s AND p.partition = q.partition
                    AND p.tenant = q.tenant AND p.dataset = q.dataset
  ORDER BY p.message_offset LIMIT 1
) j ON true
ORDER BY q.oldest_time
LIMIT %(queues_max)s
