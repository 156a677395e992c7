-- name: acquire_partitions
-- Take partitions over: raise the owner's epoch, so that any former owner can write no more.
INSERT INTO bulk.offsets (topic, partition, next_offset, owner_epoch)
SELECT %(topic)s, p, 0, 1 FROM unnest(%(partitions)s::integer[]) AS p ORDER BY p
ON CONFLICT (topic, partition) DO UPDATE SET owner_epoch = bulk.offsets.owner_epoch + 1
RETURNING partition, next_offset, owner_epoch

-- name: read_offsets
-- Where partitions stand.
SELECT partition, next_offset, owner_epoch
FROM bulk.offsets
WHERE topic = %(topic)s AND partition = ANY (%(partitions)s::integer[])

-- name: lock_offsets
-- Where partitions stand, locked until the transaction ends: a stale owner waits here, then sees that it is one.
SELECT partition, next_offset, owner_epoch
FROM bulk.offsets
WHERE topic = %(topic)s AND partition = ANY (%(partitions)s::integer[])
ORDER BY partition
FOR UPDATE

-- name: advance_offsets
-- Move partitions to where the chunk ends.
UPDATE bulk.offsets o
SET next_offset = v.to_offset
FROM unnest(%(partitions)s::integer[], %(to_offsets)s::bigint[]) AS v (partition, to_offset)
WHERE o.topic = %(topic)s AND o.partition = v.partition

-- name: lock_jobs
-- A chunk's jobs. Who would end one waits for the chunk (FOR UPDATE, in lock_job_row); who seals one does not.
-- deleted_version: the last version of its dataset that was deleted, 0 if none was.
SELECT j.job_id, j.create_day, j.state, j.atomic, j.rejections_max, j.rejected, j.expired, j.staged,
       cardinality(j.partitions) AS lanes, j.dataset_version,
       (SELECT coalesce(max(d.version), 0)
        FROM bulk.datasets d
        WHERE d.dataset = j.dataset AND d.delete_time IS NOT NULL) AS deleted_version
FROM bulk.jobs j
WHERE j.job_id = ANY (%(job_ids)s::uuid[])
ORDER BY j.job_id
FOR KEY SHARE OF j

-- name: hold_jobs
-- Those of a chunk's jobs that have several lanes, once their rows are written: one worker at a time says what becomes of
-- such a job. In one order for all.
SELECT j.job_id, j.create_day, j.state, j.atomic, j.rejections_max, j.rejected, j.expired, j.staged,
       cardinality(j.partitions) AS lanes, j.dataset_version,
       (SELECT coalesce(max(d.version), 0)
        FROM bulk.datasets d
        WHERE d.dataset = j.dataset AND d.delete_time IS NOT NULL) AS deleted_version
FROM bulk.jobs j
WHERE j.create_day = ANY (%(create_days)s::date[]) AND j.job_id = ANY (%(job_ids)s::uuid[])
ORDER BY j.job_id
FOR NO KEY UPDATE OF j

-- name: get_lanes
-- The lanes of a chunk's jobs. The partition's offset row, which is locked, keeps every other writer away from its own.
SELECT job_id, lane, next_sequence, sealed
FROM bulk.lanes
WHERE create_day = ANY (%(create_days)s::date[]) AND job_id = ANY (%(job_ids)s::uuid[])

-- name: get_digests
-- The digests of batches that came again.
SELECT b.job_id, b.sequence, b.digest
FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(sequences)s::bigint[]) AS v (create_day, job_id, sequence)
JOIN bulk.batches b USING (create_day, job_id, sequence)

-- name: advance_lanes
-- Move lanes to where the chunk leaves them.
INSERT INTO bulk.lanes (create_day, job_id, lane, next_sequence, sealed)
SELECT * FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(lanes)s::integer[], %(next_sequences)s::bigint[],
                     %(sealed)s::boolean[])
ON CONFLICT (create_day, job_id, lane)
DO UPDATE SET next_sequence = excluded.next_sequence, sealed = excluded.sealed

-- name: add_batches
-- Keep the digests of the batches that the chunk applies.
INSERT INTO bulk.batches (create_day, job_id, sequence, digest)
SELECT * FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(sequences)s::bigint[], %(digests)s::bytea[])

-- name: add_counts
-- Count what the chunk did for each job, and end those whose seal it applied or that failed.
-- state: what the job ends as, null to leave it open. A job that ended before and is counted on is marked as partial.
UPDATE bulk.jobs j
SET accepted = j.accepted + v.accepted,
    written = j.written + v.written,
    duplicate = j.duplicate + v.duplicate,
    rejected = j.rejected + v.rejected,
    expired = j.expired + v.expired,
    staged = j.staged + v.accepted - v.written - v.duplicate - v.rejected - v.expired,
    state = CASE
      WHEN j.state = 3 AND v.rejected > 0 THEN 4
      WHEN j.state >= 3 THEN j.state
      WHEN v.sealed AND v.failure = '' THEN
        CASE
          WHEN j.rejected + v.rejected + j.expired + v.expired = 0 THEN 3
          WHEN j.written + v.written + j.duplicate + v.duplicate = 0 THEN 5
          ELSE 4
        END
      WHEN v.failure <> '' THEN 5
      ELSE j.state
    END,
    failure = CASE WHEN j.state < 3 AND v.failure <> '' THEN v.failure ELSE j.failure END,
    seal_time = coalesce(j.seal_time, v.seal_time),
    end_time = CASE WHEN j.state < 3 AND (v.sealed OR v.failure <> '') THEN clock_timestamp() ELSE j.end_time END,
    update_time = clock_timestamp()
FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(accepted)s::bigint[], %(written)s::bigint[],
            %(duplicate)s::bigint[], %(rejected)s::bigint[], %(expired)s::bigint[], %(sealed)s::boolean[],
            %(seal_times)s::timestamptz[], %(failures)s::text[])
  AS v (create_day, job_id, accepted, written, duplicate, rejected, expired, sealed, seal_time, failure)
WHERE j.create_day = v.create_day AND j.job_id = v.job_id

-- name: add_rejections
-- Report the records that could not be applied.
INSERT INTO bulk.rejections (create_day, job_id, sequence, record_index, code, field, reason, record)
SELECT * FROM unnest(%(create_days)s::date[], %(job_ids)s::uuid[], %(sequences)s::bigint[], %(record_indices)s::integer[],
                     %(codes)s::text[], %(fields)s::text[], %(reasons)s::text[], %(records)s::bytea[])
