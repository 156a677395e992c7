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

-- name: advance_offsets
-- Advance partitions to the end of the chunk.
UPDATE bulk.offsets o
SET next_offset = v.to_offset
FROM unnest(%(partitions)s::integer[], %(to_offsets)s::bigint[]) AS v (partition, to_offset)
WHERE o.topic = %(topic)s AND o.partition = v.partition

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

-- name: advance_lanes
-- Set lanes to their positions after the chunk.
INSERT INTO bulk.lanes (create_day, job_id, lane, next_sequence, sealed)
SELECT * FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(lanes)s::integer[], %(next_sequences)s::bigint[],
                     %(sealed)s::boolean[])
ON CONFLICT (create_day, job_id, lane)
DO UPDATE SET next_sequence = excluded.next_sequence, sealed = excluded.sealed

-- name: add_batches
-- Store the digests of the batches that the chunk takes.
INSERT INTO bulk.batches (create_day, job_id, sequence, digest)
SELECT * FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(sequences)s::bigint[], %(digests)s::bytea[])

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

-- name: add_counts
-- Add what the chunk did to the counts of each job. state: the job's next one, null to leave its state as it is now; a
-- server may have marked it sealed since the chunk read it.
UPDATE bulk.jobs j
SET accepted = j.accepted + v.accepted,
    written = j.written + v.written,
    duplicate = j.duplicate + v.duplicate,
    rejected = j.rejected + v.rejected,
    expired = j.expired + v.expired,
    skipped = j.skipped + v.skipped,
    staged = j.staged + v.accepted - v.written - v.duplicate - v.rejected - v.expired - v.skipped,
    state = coalesce(v.state, j.state),
    failure_reason = CASE WHEN v.failure_reason = '' THEN j.failure_reason ELSE v.failure_reason END,
    lost = j.lost OR v.lost,
    seal_time = coalesce(j.seal_time, v.seal_time),
    end_time = coalesce(j.end_time, CASE WHEN v.state >= 3 THEN clock_timestamp() END),
    update_time = clock_timestamp()
FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(accepted)s::bigint[], %(written)s::bigint[],
            %(duplicate)s::bigint[], %(rejected)s::bigint[], %(expired)s::bigint[], %(skipped)s::bigint[],
            %(states)s::smallint[], %(seal_times)s::timestamptz[], %(failure_reasons)s::text[], %(lost)s::boolean[])
  AS v (create_day, job_id, accepted, written, duplicate, rejected, expired, skipped, state, seal_time, failure_reason, lost)
WHERE j.create_day = v.create_day AND j.job_id = v.job_id
