-- name: acquire_lease
-- One worker is the maintenance leader: who holds the lease, or finds it expired. No row otherwise.
INSERT INTO bulk.maintenance_lease AS l (holder, expire_time)
VALUES (%(holder)s, clock_timestamp() + make_interval(secs => %(lease_s)s))
ON CONFLICT (one) DO UPDATE SET holder = excluded.holder, expire_time = excluded.expire_time
WHERE l.holder = excluded.holder OR l.expire_time < clock_timestamp()
RETURNING l.holder

-- name: release_lease
-- Let another worker be the leader at once.
UPDATE bulk.maintenance_lease SET expire_time = clock_timestamp() - interval '1 second' WHERE holder = %(holder)s

-- name: maintain_days
-- Create the days' partitions that are needed next, drop those past retention.
SELECT bulk.maintain_days((now() AT TIME ZONE 'UTC')::date, %(retention_days)s)

-- name: abandoned_jobs
-- Open jobs without a batch for a time, and sealed ones that did not end, though everything that Kafka had of their
-- partitions is applied and nothing of them is parked; not of stopped partitions. Jobs that a worker is writing are left
-- for the next round. missing_from: the first sequence that is not applied. next_sequence: where it continues if it is opened
-- again; nothing is kept of an atomic job.
SELECT j.job_id, j.tenant, j.state, (
    SELECT min(coalesce(l.next_sequence, p.place - 1))
    FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
    LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
    WHERE l.sealed IS NOT TRUE
  ) AS missing_from, CASE WHEN j.atomic THEN 0 ELSE (
    SELECT min(coalesce(l.next_sequence, p.place - 1))
    FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
    LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
  ) END AS next_sequence
FROM bulk.jobs j
WHERE j.state < 3
  AND j.update_time < clock_timestamp() - make_interval(secs => %(abandoned_after_s)s)
  AND j.partitions <@ ARRAY(
    SELECT o.partition
    FROM bulk.offsets o
    JOIN unnest(%(partitions)s::integer[], %(end_offsets)s::bigint[]) AS k (partition, end_offset) USING (partition)
    WHERE o.topic = %(topic)s AND o.next_offset >= k.end_offset
      AND NOT EXISTS (SELECT FROM bulk.partition_logs l
                      WHERE l.topic = o.topic AND l.partition = o.partition AND l.stop_cause IS NOT NULL)
  )
  AND NOT EXISTS (SELECT FROM bulk.parked p WHERE p.job_id = j.job_id)
ORDER BY j.update_time
LIMIT %(jobs_max)s
FOR UPDATE OF j SKIP LOCKED

-- name: fail_incomplete
-- End a sealed job whose batches are nowhere, so that its client can open it again: its staged rows count as expired and are
-- deleted later.
WITH unblocked AS (DELETE FROM bulk.blocked_jobs WHERE job_id = %(job_id)s)
UPDATE bulk.jobs
SET state = 5, lost = true, failure_reason = %(reason)s, end_time = clock_timestamp(), update_time = clock_timestamp(),
    expired = expired + staged, staged = 0
WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND state < 3

-- name: staged_datasets
-- The dataset versions that may have staged rows.
SELECT dataset, version FROM bulk.datasets WHERE delete_time IS NULL

-- name: is_staging
-- Whether a dataset version has jobs whose rows are staged, or may be.
SELECT EXISTS (
  SELECT FROM bulk.jobs j
  WHERE j.state < 3 AND j.atomic AND j.dataset = %(dataset)s AND j.dataset_version = %(dataset_version)s
)

-- name: count_overdue
-- Jobs that should have ended. Blocked ones are not counted: what blocks them is. Atomic ones have more time.
SELECT count(*) FROM bulk.jobs j LEFT JOIN bulk.apply_tasks t ON t.job_id = j.job_id
WHERE j.state = 2
  AND j.seal_time < clock_timestamp()
                    - make_interval(secs => %(ends_within_s)s + coalesce(t.staged_rows, 0) / %(staged_rows_per_s_min)s::float8)
  AND NOT EXISTS (SELECT FROM bulk.job_block(j.job_id, j.dataset))
