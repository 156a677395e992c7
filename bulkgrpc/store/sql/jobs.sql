-- name: open_job
-- Create the job if it is not there.
INSERT INTO bulk.jobs (job_id, tenant, idempotency_key, dataset, dataset_version, labels, partition, state, create_time)
VALUES (%(job_id)s, %(tenant)s, %(idempotency_key)s, %(dataset)s, %(dataset_version)s, %(labels)s, %(partition)s, 1,
        clock_timestamp())
ON CONFLICT (job_id) DO NOTHING

-- name: get_job
-- One job of a tenant, with the sequence that its lane applies next.
SELECT j.*, coalesce(l.next_sequence, 0) AS next_sequence
FROM bulk.jobs j LEFT JOIN bulk.lanes l ON l.job_id = j.job_id AND l.lane = 0
WHERE j.job_id = %(job_id)s AND j.tenant = %(tenant)s

-- name: seal_job
-- Mark the job sealed once its seal is on Kafka; a worker may have ended it already.
UPDATE bulk.jobs SET state = 2, seal_time = %(seal_time)s WHERE job_id = %(job_id)s AND state = 1

-- name: list_jobs
-- A page of a tenant's jobs, newest first, after the last one of the page before.
SELECT j.*, coalesce(l.next_sequence, 0) AS next_sequence
FROM bulk.jobs j LEFT JOIN bulk.lanes l ON l.job_id = j.job_id AND l.lane = 0
WHERE j.tenant = %(tenant)s
  AND (%(after_time)s::timestamptz IS NULL OR (j.create_time, j.job_id) < (%(after_time)s, %(after_id)s::uuid))
ORDER BY j.create_time DESC, j.job_id DESC
LIMIT %(page_size)s
