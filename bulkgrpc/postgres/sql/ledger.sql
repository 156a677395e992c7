-- name: acquire_partitions
-- Acquire partitions: raise the owner's epoch, which fences every former owner.
INSERT INTO bulk.offsets (topic, partition, next_offset, owner_epoch)
SELECT %(topic)s, p, 0, 1 FROM unnest(%(partitions)s::integer[]) AS p ORDER BY p
ON CONFLICT (topic, partition) DO UPDATE SET owner_epoch = bulk.offsets.owner_epoch + 1
RETURNING partition, next_offset, owner_epoch, pg_postmaster_start_time()

-- name: read_offsets
-- Positions of partitions.
SELECT partition, next_offset, owner_epoch, pg_postmaster_start_time()
FROM bulk.offsets
WHERE topic = %(topic)s AND partition = ANY (%(partitions)s::integer[])

-- name: lock_offsets
-- Positions of partitions, locked until the transaction ends: a stale owner waits here, then reads the new epoch.
SELECT *, pg_postmaster_start_time() FROM bulk.lock_offsets(%(topic)s, %(partitions)s::integer[])

-- name: has_job
-- Whether a tenant has a job.
SELECT FROM bulk.jobs WHERE job_id = %(job_id)s AND tenant = %(tenant)s

-- name: lock_jobs
-- A chunk's jobs and their lanes. A transaction that ends one waits for the chunk (FOR UPDATE, in lock_job_row); one that
-- seals it does not.
SELECT * FROM bulk.lock_chunk_jobs(%(job_ids)s::uuid[])

-- name: lock_jobs_alone
-- Keep every other transaction away that applies messages of these jobs; return those that have a row, and so are locked.
SELECT bulk.lock_jobs_exclusively(%(job_ids)s::uuid[])

-- name: lock_multi_lane_jobs
-- Those of a chunk's jobs that have several lanes, once their rows are written: one worker at a time changes such a job.
-- Sorted, as in every worker.
SELECT j.job_id, j.create_day, j.state, ARRAY[j.accepted, j.written, j.duplicate, j.rejected, j.expired, j.skipped] AS counts,
       j.atomic, j.rejections_max, cardinality(j.partitions) AS lanes, j.dataset_version,
       (SELECT coalesce(max(d.version), 0)
        FROM bulk.datasets d
        WHERE d.dataset = j.dataset AND d.delete_time IS NOT NULL) AS deleted_version,
       j.staged, j.attempt, j.lost
FROM bulk.jobs j
WHERE j.create_day = ANY (%(create_days)s::date[]) AND j.job_id = ANY (%(job_ids)s::uuid[])
ORDER BY j.job_id
FOR NO KEY UPDATE OF j

-- name: get_lanes
-- The lanes of jobs.
SELECT job_id, lane, next_sequence, sealed
FROM bulk.lanes
WHERE create_day = ANY (%(create_days)s::date[]) AND job_id = ANY (%(job_ids)s::uuid[])

-- name: get_digests
-- The digests of batches that were applied before.
SELECT b.job_id, b.sequence, b.digest
FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(sequences)s::bigint[]) AS v (create_day, job_id, sequence)
JOIN bulk.batches b USING (create_day, job_id, sequence)

-- name: add_late_batches
-- Report batches that arrived too late to count for their jobs; those that are reported already stay as they are. No other
-- worker changes these jobs now: those with several lanes are locked by lock_multi_lane_jobs.
WITH added AS (
  INSERT INTO bulk.late_batches (create_day, job_id, partition, message_offset, sequence, records, digest, code, reason,
                                 sent_time)
  SELECT * FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(partitions)s::integer[], %(offsets)s::bigint[],
                       %(sequences)s::bigint[], %(records)s::integer[], %(digests)s::bytea[], %(codes)s::text[],
                       %(reasons)s::text[], %(sent_times)s::timestamptz[])
  ON CONFLICT (create_day, job_id, partition, message_offset) DO NOTHING
  RETURNING create_day, job_id
)
UPDATE bulk.jobs j
SET late_batches = j.late_batches + v.batches
FROM (SELECT create_day, job_id, count(*) AS batches FROM added GROUP BY create_day, job_id) v
WHERE j.create_day = v.create_day AND j.job_id = v.job_id

-- name: conclude
-- What ends the transaction of a chunk: rows as JSON arrays, null for none.
SELECT bulk.advance_lanes(%(lanes)s::json), bulk.add_batches(%(batches)s::json), bulk.add_counts(%(counts)s::json),
       bulk.advance_offsets(%(topic)s, %(ends)s::json)
