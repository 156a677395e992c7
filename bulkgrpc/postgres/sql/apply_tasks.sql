-- name: add
-- Leave the staged rows of jobs to tasks, in the order of their seals. A row that is there is of a deleted job whose key was
-- used again.
INSERT INTO bulk.apply_tasks (job_id, create_day, tenant, dataset, dataset_version, staged_rows)
SELECT j.job_id, j.create_day, j.tenant, j.dataset, j.dataset_version, v.staged_rows
FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(staged_rows)s::bigint[])
  WITH ORDINALITY AS v (create_day, job_id, staged_rows, place)
JOIN bulk.jobs j USING (create_day, job_id)
ORDER BY v.place
ON CONFLICT (job_id) DO UPDATE
SET create_day = excluded.create_day, tenant = excluded.tenant, dataset = excluded.dataset,
    dataset_version = excluded.dataset_version, staged_rows = excluded.staged_rows, create_time = excluded.create_time,
    slow = false, attempts = 0, next_attempt_time = excluded.next_attempt_time, block_cause = NULL, sqlstate = '',
    reason = '', block_time = NULL

-- name: next
-- The task of a kind to try next, which no worker is at: of the tenants in `served` the one that waits longest, before them those that
-- are not in it. Those of one tenant and dataset in their order. void: its job has ended, or is gone.
SELECT t.job_id, t.tenant, t.create_day, t.dataset, t.dataset_version, t.staged_rows, k.kind, t.attempts,
       j.state IS DISTINCT FROM 2 AS void
FROM bulk.apply_tasks t LEFT JOIN bulk.jobs j USING (create_day, job_id)
CROSS JOIN LATERAL (
  SELECT CASE WHEN t.staged_rows > %(quick_rows_max)s THEN 'large' WHEN t.slow THEN 'slow' ELSE 'small' END AS kind
) k
WHERE k.kind = %(kind)s
  AND (j.state IS DISTINCT FROM 2
       OR t.next_attempt_time <= clock_timestamp()
         AND NOT EXISTS (SELECT FROM bulk.blocked_datasets b WHERE b.dataset = t.dataset AND b.cause <> 'isolating')
         AND NOT EXISTS (SELECT FROM bulk.apply_tasks e
                         WHERE e.tenant = t.tenant AND e.dataset = t.dataset AND e.task_number < t.task_number))
ORDER BY array_position(%(served)s::text[], t.tenant) NULLS FIRST, t.task_number
LIMIT 1
FOR UPDATE OF t SKIP LOCKED

-- name: claim
-- Claim a task for this transaction; no row if another worker has it, or has finished it.
SELECT FROM bulk.apply_tasks WHERE job_id = %(job_id)s AND create_day = %(create_day)s FOR UPDATE SKIP LOCKED

-- name: finish
-- Forget a task, in the transaction that ends its job.
WITH progress AS (DELETE FROM bulk.apply_progress WHERE job_id = %(job_id)s)
DELETE FROM bulk.apply_tasks WHERE job_id = %(job_id)s

-- name: drop_void
-- Forget a task whose job has ended without it.
WITH gone AS (
  DELETE FROM bulk.apply_tasks t
  WHERE t.job_id = %(job_id)s AND NOT EXISTS (
    SELECT FROM bulk.jobs j WHERE j.create_day = t.create_day AND j.job_id = t.job_id AND j.state = 2
  )
  RETURNING t.job_id
)
DELETE FROM bulk.apply_progress p USING gone g WHERE p.job_id = g.job_id

-- name: defer
-- A task was not finished: when to try it again, and why it is blocked, if it is.
WITH progress AS (DELETE FROM bulk.apply_progress WHERE job_id = %(job_id)s)
UPDATE bulk.apply_tasks
SET attempts = attempts + 1, slow = slow OR %(slow)s, sqlstate = %(sqlstate)s, reason = %(reason)s,
    next_attempt_time = clock_timestamp() + make_interval(secs => %(wait_s)s),
    block_cause = %(block_cause)s,
    block_time = CASE WHEN %(block_cause)s::text IS NOT NULL THEN coalesce(block_time, clock_timestamp()) END
WHERE job_id = %(job_id)s AND create_day = %(create_day)s

-- name: save_progress
-- How far the attempt is that is under way; no row if its job has ended, or the task is finished.
INSERT INTO bulk.apply_progress (job_id, applied_rows)
SELECT t.job_id, %(applied_rows)s
FROM bulk.apply_tasks t JOIN bulk.jobs j USING (create_day, job_id)
WHERE t.job_id = %(job_id)s AND t.create_day = %(create_day)s AND j.state = 2
ON CONFLICT (job_id) DO UPDATE SET applied_rows = excluded.applied_rows, update_time = clock_timestamp()
RETURNING job_id
