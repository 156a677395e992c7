-- name: acquire_partitions
-- Take partitions over: raise the owner's epoch, so that whoever held them before can write no more.
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
-- Where partitions stand, held until the transaction ends: a stale owner waits here, then sees that it is one.
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

-- name: lock_lanes
-- The lanes of a chunk's jobs.
SELECT job_id, lane, next_sequence, sealed
FROM bulk.lanes
WHERE job_id = ANY (%(job_ids)s::uuid[])
ORDER BY job_id, lane
FOR UPDATE

-- name: open_job
-- Make the job that a first batch belongs to, if its server could not.
INSERT INTO bulk.jobs (job_id, tenant, idempotency_key, dataset, dataset_version, labels, partition, state, create_time)
VALUES (%(job_id)s, %(tenant)s, %(idempotency_key)s, %(dataset)s, %(dataset_version)s, %(labels)s, %(partition)s, 1,
        %(create_time)s)
ON CONFLICT (job_id) DO NOTHING

-- name: advance_lanes
-- Move lanes to where the chunk leaves them.
INSERT INTO bulk.lanes (job_id, lane, next_sequence, sealed)
SELECT * FROM unnest(%(job_ids)s::uuid[], %(lanes)s::integer[], %(next_sequences)s::bigint[], %(sealed)s::boolean[])
ON CONFLICT (job_id, lane) DO UPDATE SET next_sequence = excluded.next_sequence, sealed = excluded.sealed

-- name: add_counts
-- Count what the chunk did for each job, and end those whose seal it applied.
UPDATE bulk.jobs j
SET accepted = j.accepted + v.accepted,
    written = j.written + v.written,
    duplicate = j.duplicate + v.duplicate,
    rejected = j.rejected + v.rejected,
    state = CASE
      WHEN v.seal_time IS NULL THEN j.state
      WHEN j.rejected + v.rejected = 0 THEN 3
      WHEN j.written + v.written + j.duplicate + v.duplicate = 0 THEN 5
      ELSE 4
    END,
    seal_time = coalesce(j.seal_time, v.seal_time),
    end_time = CASE WHEN v.seal_time IS NULL THEN j.end_time ELSE clock_timestamp() END
FROM unnest(%(job_ids)s::uuid[], %(accepted)s::bigint[], %(written)s::bigint[], %(duplicate)s::bigint[],
            %(rejected)s::bigint[], %(seal_times)s::timestamptz[])
  AS v (job_id, accepted, written, duplicate, rejected, seal_time)
WHERE j.job_id = v.job_id

-- name: add_rejections
-- Report the records that could not be applied.
INSERT INTO bulk.rejections (job_id, sequence, record_index, code, field, reason, record)
SELECT * FROM unnest(%(job_ids)s::uuid[], %(sequences)s::bigint[], %(record_indices)s::integer[], %(codes)s::text[],
                     %(fields)s::text[], %(reasons)s::text[], %(records)s::bytea[])
