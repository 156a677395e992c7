-- name: try_lock
-- One worker of all keeps house; the lock is the session's.
SELECT pg_try_advisory_lock(hashtext('bulkgrpc.housekeeping'))

-- name: keep_days
-- Make the days to come, drop those whose time is over.
SELECT bulk.keep_days((now() AT TIME ZONE 'UTC')::date, %(retention_days)s)

-- name: abandoned_jobs
-- Open jobs of which nothing came for a time; those that a worker writes for now are left for the next round.
SELECT job_id, dataset, dataset_version, atomic
FROM bulk.jobs
WHERE state = 1 AND update_time < clock_timestamp() - make_interval(secs => %(abandoned_after_s)s)
ORDER BY update_time
LIMIT %(jobs_max)s
FOR UPDATE SKIP LOCKED

-- name: count_overdue
-- Jobs that should have ended.
SELECT count(*) FROM bulk.jobs
WHERE state = 2 AND seal_time < clock_timestamp() - make_interval(secs => %(ends_within_s)s)
