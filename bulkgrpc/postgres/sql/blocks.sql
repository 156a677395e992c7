-- name: get_block
-- Why a registered dataset is not written, and whether anything is parked of it; no row if it is not registered.
SELECT b.cause, b.reason, b.sqlstate, b.block_time, b.trials, nullif(b.next_trial_time, 'infinity'),
       (SELECT min(d.reason) FROM bulk.discards d WHERE d.dataset = %(dataset)s) AS discard_reason,
       EXISTS (
         SELECT FROM bulk.offsets o CROSS JOIN LATERAL (
           SELECT FROM bulk.parked p
           WHERE p.topic = o.topic AND p.dataset = %(dataset)s AND p.partition = o.partition
           ORDER BY p.topic, p.dataset, p.partition, p.tenant LIMIT 1
         ) one
       ) AS any_parked
FROM (SELECT) registered LEFT JOIN bulk.blocked_datasets b ON b.dataset = %(dataset)s
WHERE EXISTS (SELECT FROM bulk.datasets d WHERE d.dataset = %(dataset)s AND d.delete_time IS NULL)

-- name: parked_by_tenant
-- What waits of a dataset, by tenant: what is parked, of about messages_max messages and at least one of each queue; and
-- staged rows of sealed atomic jobs.
WITH RECURSIVE queues (topic, partition, tenant) AS (
  SELECT n.*
  FROM (SELECT DISTINCT o.topic FROM bulk.offsets o) t CROSS JOIN LATERAL (
    SELECT p.topic, p.partition, p.tenant FROM bulk.parked p
    WHERE p.topic = t.topic AND p.dataset = %(dataset)s
    ORDER BY p.partition, p.tenant LIMIT 1
  ) n
  UNION ALL
  SELECT n.*
  FROM queues q CROSS JOIN LATERAL (
    SELECT p.topic, p.partition, p.tenant FROM bulk.parked p
    WHERE p.topic = q.topic AND p.dataset = %(dataset)s AND (p.partition, p.tenant) > (q.partition, q.tenant)
    ORDER BY p.partition, p.tenant LIMIT 1
  ) n
), jobs AS (
  SELECT q.tenant, p.job_id, count(*) AS messages, sum(p.records) AS records, sum(p.payload_bytes) AS payload_bytes,
         min(p.park_time) AS oldest_time
  FROM queues q CROSS JOIN LATERAL (
    SELECT m.job_id, m.records, octet_length(m.payload) AS payload_bytes, m.park_time FROM bulk.parked m
    WHERE m.topic = q.topic AND m.partition = q.partition AND m.tenant = q.tenant AND m.dataset = %(dataset)s
    ORDER BY m.message_offset
    LIMIT (SELECT greatest(%(messages_max)s / count(*), 1) FROM queues)
  ) p
  GROUP BY q.tenant, p.job_id
  UNION ALL
  SELECT t.tenant, t.job_id, 0, t.staged_rows, 0, t.create_time
  FROM bulk.apply_tasks t JOIN bulk.jobs j USING (create_day, job_id)
  WHERE t.dataset = %(dataset)s AND j.state = 2
)
SELECT tenant, sum(messages)::bigint, sum(records), sum(payload_bytes) AS payload_bytes, count(*), min(oldest_time)
FROM jobs
GROUP BY tenant
ORDER BY payload_bytes DESC, tenant

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
  WHERE j.job_id = ANY (ARRAY(SELECT q.job_id FROM bulk.blocked_queues q WHERE q.dataset = %(dataset)s))
)
UPDATE bulk.blocked_datasets SET next_trial_time = clock_timestamp(), trials = 0
WHERE dataset = %(dataset)s AND cause = 'table'

-- name: try_tasks_now
-- Try the staged rows of sealed atomic jobs now, but for those that a worker tries.
UPDATE bulk.apply_tasks t SET next_attempt_time = clock_timestamp()
WHERE t.job_id = ANY (ARRAY(
  SELECT w.job_id FROM bulk.apply_tasks w WHERE w.dataset = %(dataset)s ORDER BY w.job_id FOR UPDATE SKIP LOCKED
))

-- name: end_discards
-- Discard nothing more of a dataset.
DELETE FROM bulk.discards WHERE dataset = %(dataset)s

-- name: discard
-- Discard what is parked of a dataset now: in each partition, what is before the offset that it continues at.
INSERT INTO bulk.discards (dataset, topic, partition, to_offset, reason)
SELECT %(dataset)s, o.topic, o.partition, o.next_offset, %(reason)s
FROM bulk.offsets o CROSS JOIN LATERAL (
  SELECT FROM bulk.parked p
  WHERE p.topic = o.topic AND p.dataset = %(dataset)s AND p.partition = o.partition
  ORDER BY p.topic, p.dataset, p.partition, p.tenant LIMIT 1
) one
ON CONFLICT (dataset, topic, partition) DO UPDATE SET to_offset = excluded.to_offset

-- name: discard_tasks
-- End the sealed atomic jobs of a dataset whose staged rows are not applied. A worker that applies some finds its job ended.
UPDATE bulk.jobs j
SET state = 5, end_time = clock_timestamp(), update_time = clock_timestamp(), expired = j.expired + j.staged, staged = 0,
    failure_reason = 'the job is atomic and its staged rows are discarded: ' || %(reason)s, discard_reason = %(reason)s
FROM bulk.apply_tasks t
WHERE t.dataset = %(dataset)s AND j.create_day = t.create_day AND j.job_id = t.job_id AND j.state = 2

-- name: blocked
-- What is not written now, and about how many bytes it has parked: a dataset of all tenants, or of one while messages are
-- isolated or wait for a blocked job. The bytes are those of a sample of about 1,000 blocks; exact if there are no more.
WITH sample AS MATERIALIZED (
  SELECT p.dataset, p.tenant,
         sum(octet_length(p.payload) + %(message_overhead_bytes)s)
           * greatest(1, pg_relation_size('bulk.parked') / (1000 * 8192.0)) AS bytes
  FROM bulk.parked p
    TABLESAMPLE SYSTEM ((100 / greatest(1, pg_relation_size('bulk.parked') / (1000 * 8192.0)))::real)
  GROUP BY p.dataset, p.tenant
)
SELECT b.dataset, '' AS tenant, b.cause, b.reason,
       (SELECT coalesce(sum(s.bytes), 0) FROM sample s WHERE s.dataset = b.dataset)::bigint AS stored_bytes
FROM bulk.blocked_datasets b
WHERE b.cause <> 'isolating'
UNION ALL
SELECT b.dataset, s.tenant, b.cause, b.reason, s.bytes::bigint
FROM bulk.blocked_datasets b JOIN sample s USING (dataset)
WHERE b.cause = 'isolating'
UNION ALL
SELECT q.dataset, q.tenant, 'job', 'job ' || q.job_id || ' is blocked: ' || q.reason, coalesce(s.bytes, 0)::bigint
FROM (SELECT DISTINCT ON (dataset, tenant) dataset, tenant, job_id, reason
      FROM bulk.blocked_queues ORDER BY dataset, tenant, block_time) q
LEFT JOIN sample s USING (dataset, tenant)

-- name: partitions
-- The positions of a topic's partitions, and why each is stopped if it is.
SELECT partition, coalesce(o.next_offset, 0), coalesce(o.owner_epoch, 0),
       coalesce(l.stop_cause || ': Kafka lost [' || l.lost_from || ', ' || coalesce(l.lost_to::text, '…') || ')', ''),
       l.stop_time
FROM (SELECT * FROM bulk.offsets WHERE topic = %(topic)s) o
FULL JOIN (SELECT * FROM bulk.partition_logs WHERE topic = %(topic)s AND stop_cause IS NOT NULL) l USING (partition)
ORDER BY partition

-- name: queues
-- The queues of a topic, those with the oldest messages first, and why each waits: its dataset, or the first job of it that
-- is blocked. Of each queue about its part of messages_max messages is counted.
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
), shown AS MATERIALIZED (
  SELECT q.*, first.park_time, count(*) OVER () AS queues
  FROM queues q CROSS JOIN LATERAL (
    SELECT p.park_time FROM bulk.parked p
    WHERE p.topic = %(topic)s AND p.partition = q.partition AND p.tenant = q.tenant AND p.dataset = q.dataset
    ORDER BY p.message_offset LIMIT 1
  ) first
  ORDER BY first.park_time
  LIMIT %(queues_max)s
), blocked_jobs AS MATERIALIZED (
  SELECT DISTINCT ON (partition, tenant, dataset) partition, tenant, dataset, reason, trials
  FROM bulk.blocked_queues
  WHERE topic = %(topic)s
  ORDER BY partition, tenant, dataset, message_offset
)
SELECT q.partition, q.tenant, q.dataset, c.messages, c.records, c.payload_bytes, c.jobs, q.park_time,
       coalesce(d.reason, j.reason, '') AS reason, coalesce(d.trials, j.trials, 0) AS trials, q.queues
FROM shown q CROSS JOIN LATERAL (
  SELECT sum(messages)::bigint AS messages, sum(records) AS records, sum(payload_bytes) AS payload_bytes, count(*) AS jobs
  FROM (
    SELECT count(*) AS messages, sum(p.records) AS records, sum(p.payload_bytes) AS payload_bytes
    FROM (
      SELECT m.job_id, m.records, octet_length(m.payload) AS payload_bytes FROM bulk.parked m
      WHERE m.topic = %(topic)s AND m.partition = q.partition AND m.tenant = q.tenant AND m.dataset = q.dataset
      ORDER BY m.message_offset
      LIMIT (SELECT greatest(%(messages_max)s / count(*), 1) FROM shown)
    ) p
    GROUP BY p.job_id
  ) jobs
) c
LEFT JOIN bulk.blocked_datasets d ON d.dataset = q.dataset
LEFT JOIN blocked_jobs j ON (j.partition, j.tenant, j.dataset) = (q.partition, q.tenant, q.dataset)
ORDER BY q.park_time
