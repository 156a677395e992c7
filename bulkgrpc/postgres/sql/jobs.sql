-- name: lock_job
-- Let one transaction at a time create or end a job: partitions cannot keep IDs unique across days. Keep its dataset from
-- being deleted meanwhile, see lock_out_jobs.
SELECT pg_advisory_xact_lock(hashtextextended(%(job_id)s::text, 0)),
       pg_advisory_xact_lock_shared(hashtextextended('bulkgrpc jobs of ' || %(dataset)s, 0))

-- name: open_job
-- Create the job if it does not exist and its dataset's version is not deleted; of_deleted: even if it is. After lock_job,
-- in the same transaction.
INSERT INTO bulk.jobs (create_day, job_id, tenant, idempotency_key, dataset, dataset_version, labels, atomic,
                       rejections_max, time_to_live_s, partitions, state, create_time, lease_epoch, lease_session)
SELECT (%(create_time)s::timestamptz AT TIME ZONE 'UTC')::date, %(job_id)s, %(tenant)s, %(idempotency_key)s, %(dataset)s,
       %(dataset_version)s, %(labels)s, %(atomic)s, %(rejections_max)s, %(time_to_live_s)s, %(partitions)s, 1,
       %(create_time)s, %(lease_epoch)s, %(lease_session)s
WHERE NOT EXISTS (SELECT FROM bulk.jobs WHERE job_id = %(job_id)s)
  AND (%(of_deleted)s
       OR NOT EXISTS (SELECT FROM bulk.datasets d
                      WHERE d.dataset = %(dataset)s AND d.version = %(dataset_version)s AND d.delete_time IS NOT NULL))

-- name: open_stream
-- One job of a tenant as it was before, as get_job; if it is open and the request is the same, raise its lease epoch: an
-- earlier stream may not acknowledge from then on, or, if it may not know yet, from seal_after on. It has nothing to
-- acknowledge if it was of the same session, whose client reads no more of it, or if it has ended.
WITH raised AS (
  UPDATE bulk.jobs
  SET lease_epoch = lease_epoch + 1, lease_session = %(lease_session)s,
      seal_after = CASE WHEN lease_session = %(lease_session)s OR (lease_epoch > 0 AND lease_epoch = %(released_epoch)s)
                        THEN seal_after ELSE clock_timestamp() + %(lease_ttl_s)s * interval '1 s' END
  WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND state = 1 AND dataset = %(dataset)s AND labels = %(labels)s
    AND atomic = %(atomic)s AND rejections_max = %(rejections_max)s AND time_to_live_s = %(time_to_live_s)s
  RETURNING create_day, job_id, lease_epoch AS raised_epoch,
            greatest(0, extract(epoch FROM seal_after - clock_timestamp()))::double precision AS seal_wait_s
)
SELECT j.*, first.next_sequence, block.*, task.*, raised.raised_epoch, raised.seal_wait_s
FROM bulk.jobs j CROSS JOIN LATERAL (
  SELECT min(coalesce(l.next_sequence, p.place - 1)) AS next_sequence
  FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
  LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
) first
LEFT JOIN LATERAL bulk.job_block(j.job_id, j.dataset) block ON j.state < 3
LEFT JOIN LATERAL (
  SELECT t.staged_rows AS task_rows, coalesce(p.applied_rows, 0) AS task_rows_applied
  FROM bulk.apply_tasks t LEFT JOIN bulk.apply_progress p USING (job_id)
  WHERE t.job_id = j.job_id
) task ON j.state = 2 AND j.atomic
LEFT JOIN raised USING (create_day, job_id)
WHERE j.job_id = %(job_id)s AND j.tenant = %(tenant)s

-- name: get_job
-- One job of a tenant, with the first sequence that is not applied, and why it is blocked if it is.
SELECT j.*, first.next_sequence, block.*, task.*
FROM bulk.jobs j CROSS JOIN LATERAL (
  SELECT min(coalesce(l.next_sequence, p.place - 1)) AS next_sequence
  FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
  LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
) first
LEFT JOIN LATERAL bulk.job_block(j.job_id, j.dataset) block ON j.state < 3
LEFT JOIN LATERAL (
  SELECT t.staged_rows AS task_rows, coalesce(p.applied_rows, 0) AS task_rows_applied
  FROM bulk.apply_tasks t LEFT JOIN bulk.apply_progress p USING (job_id)
  WHERE t.job_id = j.job_id
) task ON j.state = 2 AND j.atomic
WHERE j.job_id = %(job_id)s AND j.tenant = %(tenant)s

-- name: get_jobs
-- Several jobs by id.
SELECT j.*, first.next_sequence, block.*, task.*
FROM bulk.jobs j CROSS JOIN LATERAL (
  SELECT min(coalesce(l.next_sequence, p.place - 1)) AS next_sequence
  FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
  LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
) first
LEFT JOIN LATERAL bulk.job_block(j.job_id, j.dataset) block ON j.state < 3
LEFT JOIN LATERAL (
  SELECT t.staged_rows AS task_rows, coalesce(p.applied_rows, 0) AS task_rows_applied
  FROM bulk.apply_tasks t LEFT JOIN bulk.apply_progress p USING (job_id)
  WHERE t.job_id = j.job_id
) task ON j.state = 2 AND j.atomic
WHERE j.job_id = ANY (%(job_ids)s::uuid[])

-- name: seal_job
-- Mark the job sealed once its seal is on Kafka; a worker may have ended the job already, and its client may have opened it
-- again after a loss, as another attempt.
UPDATE bulk.jobs SET state = 2, seal_time = %(seal_time)s, update_time = clock_timestamp()
WHERE job_id = %(job_id)s AND state = 1 AND attempt = %(attempt)s

-- name: list_jobs
-- A page of a tenant's jobs, newest first, after the last one of the previous page.
SELECT j.*, first.next_sequence, block.*, task.*
FROM bulk.jobs j CROSS JOIN LATERAL (
  SELECT min(coalesce(l.next_sequence, p.place - 1)) AS next_sequence
  FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
  LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
) first
LEFT JOIN LATERAL bulk.job_block(j.job_id, j.dataset) block ON j.state < 3
LEFT JOIN LATERAL (
  SELECT t.staged_rows AS task_rows, coalesce(p.applied_rows, 0) AS task_rows_applied
  FROM bulk.apply_tasks t LEFT JOIN bulk.apply_progress p USING (job_id)
  WHERE t.job_id = j.job_id
) task ON j.state = 2 AND j.atomic
WHERE j.tenant = %(tenant)s
  AND (%(after_time)s::timestamptz IS NULL OR (j.create_time, j.job_id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY j.create_time DESC, j.job_id DESC
LIMIT %(page_size)s

-- name: open_again
-- Open a job again that failed because Kafka lost batches of it: it continues where its lanes are, and an atomic job, of
-- which nothing is in the table, at its first batch. No worker changes a row of a job that has failed so, or its lanes.
WITH opened AS (
  UPDATE bulk.jobs
  SET state = 1, attempt = attempt + 1, lost = false, failure_reason = '', seal_time = NULL, end_time = NULL,
      update_time = clock_timestamp(),
      accepted = CASE WHEN atomic THEN 0 ELSE accepted END,
      written = CASE WHEN atomic THEN 0 ELSE written END,
      duplicate = CASE WHEN atomic THEN 0 ELSE duplicate END,
      rejected = CASE WHEN atomic THEN 0 ELSE rejected END,
      expired = CASE WHEN atomic THEN 0 ELSE expired END,
      skipped = CASE WHEN atomic THEN 0 ELSE skipped END
  WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND lost
  RETURNING create_day, job_id, atomic
), kept AS (
  UPDATE bulk.lanes l SET sealed = false
  FROM opened o WHERE l.create_day = o.create_day AND l.job_id = o.job_id AND NOT o.atomic
), no_lanes AS (
  DELETE FROM bulk.lanes l USING opened o WHERE l.create_day = o.create_day AND l.job_id = o.job_id AND o.atomic
), no_batches AS (
  DELETE FROM bulk.batches b USING opened o WHERE b.create_day = o.create_day AND b.job_id = o.job_id AND o.atomic
)
DELETE FROM bulk.rejections r USING opened o WHERE r.create_day = o.create_day AND r.job_id = o.job_id AND o.atomic

-- name: lock_job_row
-- Lock a job's row before deciding about its end: waits for the worker that writes for it now, and blocks the next one.
SELECT state, dataset, dataset_version, atomic,
       EXISTS (SELECT FROM bulk.datasets d
               WHERE d.dataset = j.dataset AND d.version = j.dataset_version AND d.delete_time IS NOT NULL) AS deleted,
       cardinality(partitions) = (SELECT count(*) FROM bulk.lanes l
                                  WHERE l.create_day = j.create_day AND l.job_id = j.job_id AND l.sealed)
         AND NOT EXISTS (SELECT FROM bulk.parked p WHERE p.job_id = j.job_id) AS applied
FROM bulk.jobs j
WHERE job_id = %(job_id)s AND tenant = %(tenant)s
FOR UPDATE OF j

-- name: await_writer
-- Wait for the worker that writes for a job with one lane. A job with several lanes may always have one that writes.
SELECT FROM bulk.jobs
WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND cardinality(partitions) = 1
FOR UPDATE

-- name: interrupt_drain
-- End the statement of a drain that holds the job's row: it blocks the job, and lets the row go.
SELECT pg_cancel_backend(l.pid)
FROM bulk.jobs j
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = j.xmax AND l.granted
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE j.job_id = %(job_id)s AND j.tenant = %(tenant)s
  AND a.application_name = 'bulkgrpc-worker-drain' AND a.usename = current_user AND a.datname = current_database()

-- name: interrupt_apply
-- End the statement that applies the staged rows of a job that has ended: it is rolled back.
SELECT pg_cancel_backend(l.pid)
FROM bulk.apply_tasks t
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.transactionid = t.xmax AND l.granted
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE t.job_id = %(job_id)s
  AND a.application_name = 'bulkgrpc-worker-apply' AND a.usename = current_user AND a.datname = current_database()

-- name: end_job
-- End a job that has not ended: its staged rows count as expired and are deleted later. What is parked of it need not
-- wait any more: it is discarded.
WITH unblocked AS (DELETE FROM bulk.blocked_jobs WHERE job_id = %(job_id)s)
UPDATE bulk.jobs
SET state = %(state)s, end_time = clock_timestamp(), update_time = clock_timestamp(), expired = expired + staged, staged = 0
WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND state < 3

-- name: discard_job
-- Let workers reject what is not applied of a sealed job that is blocked. After await_writer, in the same transaction.
UPDATE bulk.blocked_jobs b
SET discard_reason = %(reason)s || '; it was blocked: ' || b.reason, next_trial_time = clock_timestamp(), missing_version = 0
FROM bulk.jobs j
WHERE b.job_id = %(job_id)s AND j.job_id = b.job_id AND j.tenant = %(tenant)s AND j.state = 2 AND b.discard_reason = ''

-- name: discard_task
-- End a sealed atomic job as FAILED whose staged rows are all that is not applied, and can neither be written nor rejected.
UPDATE bulk.jobs j
SET state = 5, end_time = clock_timestamp(), update_time = clock_timestamp(), expired = j.expired + j.staged, staged = 0,
    failure_reason = %(reason)s || '; it was blocked: ' || t.reason
FROM bulk.apply_tasks t
WHERE t.job_id = %(job_id)s AND t.block_cause = 'job' AND j.create_day = t.create_day AND j.job_id = t.job_id
  AND j.tenant = %(tenant)s AND j.state = 2
  AND NOT EXISTS (SELECT FROM bulk.blocked_datasets b WHERE b.dataset = t.dataset AND b.cause <> 'isolating')

-- name: delete_job
-- Delete an ended job with its lanes, batches, rejections, late batches and task.
WITH task AS (DELETE FROM bulk.apply_tasks WHERE job_id = %(job_id)s),
     gone AS (DELETE FROM bulk.jobs WHERE job_id = %(job_id)s RETURNING create_day, job_id),
     lanes AS (DELETE FROM bulk.lanes l USING gone g WHERE l.create_day = g.create_day AND l.job_id = g.job_id),
     batches AS (DELETE FROM bulk.batches b USING gone g WHERE b.create_day = g.create_day AND b.job_id = g.job_id),
     late AS (DELETE FROM bulk.late_batches l USING gone g WHERE l.create_day = g.create_day AND l.job_id = g.job_id)
DELETE FROM bulk.rejections r USING gone g WHERE r.create_day = g.create_day AND r.job_id = g.job_id

-- name: digests
-- The digests of batches that were applied.
SELECT b.sequence, b.digest
FROM bulk.jobs j JOIN bulk.batches b ON b.create_day = j.create_day AND b.job_id = j.job_id
WHERE j.job_id = %(job_id)s AND b.sequence >= %(from_sequence)s
ORDER BY b.sequence
LIMIT %(page_size)s

-- name: list_rejections
-- A page of a job's rejections by position, after the last one of the previous page; with records, the page ends early
-- once they have bytes_max.
SELECT rejection_id, sequence, record_index, code, field, reason, CASE WHEN %(include_records)s THEN record ELSE '' END
FROM (
  SELECT *, sum(octet_length(record)) OVER (ORDER BY sequence, record_index, rejection_id) - octet_length(record)
            AS bytes_before
  FROM (
    SELECT *
    FROM bulk.rejections
    WHERE create_day = (SELECT create_day FROM bulk.jobs WHERE job_id = %(job_id)s)
      AND job_id = %(job_id)s
      AND (sequence, record_index, rejection_id) > (%(after_sequence)s, %(after_index)s, %(after_id)s)
    ORDER BY sequence, record_index, rejection_id
    LIMIT %(page_size)s
  ) whole
) page
WHERE NOT %(include_records)s OR bytes_before < %(bytes_max)s
ORDER BY sequence, record_index, rejection_id
