-- name: try_lock
-- One worker of all keeps house; the lock is the session's.
SELECT pg_try_advisory_lock(hashtext('bulkgrpc.maintenance'))

-- name: keep_days
-- Make the days to come, drop those whose time is over.
SELECT bulk.keep_days((now() AT TIME ZONE 'UTC')::date, %(retention_days)s)

-- name: abandoned_jobs
-- Open jobs of which nothing came for a time, though all that Kafka had of their partitions is applied. Those that a
-- worker writes for now are left for the next round.
SELECT j.job_id, j.tenant
FROM bulk.jobs j
WHERE j.state = 1
  AND j.update_time < clock_timestamp() - make_interval(secs => %(abandoned_after_s)s)
  AND j.partitions <@ ARRAY(
    SELECT o.partition
    FROM bulk.offsets o
    JOIN unnest(%(partitions)s::integer[], %(end_offsets)s::bigint[]) AS k (partition, end_offset) USING (partition)
    WHERE o.topic = %(topic)s AND o.next_offset >= k.end_offset
  )
ORDER BY j.update_time
LIMIT %(jobs_max)s
FOR UPDATE OF j SKIP LOCKED

-- name: staged_datasets
-- The dataset versions that may have staged rows.
SELECT dataset, version FROM bulk.datasets WHERE delete_time IS NULL

-- name: count_overdue
-- Jobs that should have ended.
SELECT count(*) FROM bulk.jobs
WHERE state = 2 AND seal_time < clock_timestamp() - make_interval(secs => %(ends_within_s)s)
