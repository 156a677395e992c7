-- name: first_day
-- The day of the oldest job that the ledger has, today if it has none.
SELECT coalesce(min(create_day), (now() AT TIME ZONE 'UTC')::date) FROM bulk.jobs

-- name: lost_jobs
-- Jobs that have not ended and may have messages in the lost spans: those with a lane in such a partition whose seal is
-- neither applied nor parked, if the job was created before a time; null: whenever. Their order is that of all workers.
-- next_sequence: of the first batch that is not applied; nothing is kept of an atomic job.
SELECT j.job_id, j.tenant, j.dataset, j.state, j.written, j.create_time,
       CASE WHEN j.atomic THEN 0 ELSE (
         SELECT min(coalesce(l.next_sequence, p.place - 1))
         FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
         LEFT JOIN bulk.lanes l ON l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1
       ) END AS next_sequence
FROM bulk.jobs j
WHERE j.state < 3
  AND EXISTS (
    SELECT FROM unnest(j.partitions) WITH ORDINALITY AS p (partition, place)
    JOIN unnest(%(partitions)s::integer[], %(befores)s::timestamptz[]) AS s (partition, before) USING (partition)
    WHERE (s.before IS NULL OR j.create_time < s.before)
      AND NOT EXISTS (SELECT FROM bulk.lanes l
                      WHERE l.create_day = j.create_day AND l.job_id = j.job_id AND l.lane = p.place - 1 AND l.sealed)
      AND NOT EXISTS (SELECT FROM bulk.parked m
                      WHERE m.job_id = j.job_id AND m.topic = %(topic)s AND m.partition = p.partition
                        AND m.headers @> '[["kind", "7365616c"]]')
  )
ORDER BY j.job_id

-- name: lock_jobs
-- Wait for the workers that write for jobs now. Sorted, as in every worker.
SELECT FROM bulk.jobs WHERE job_id = ANY (%(job_ids)s::uuid[]) ORDER BY job_id FOR UPDATE

-- name: fail_jobs
-- End jobs as FAILED, so that their clients can open them again: their staged rows count as expired and are deleted later,
-- as what is parked of them.
WITH unblocked AS (DELETE FROM bulk.blocked_jobs WHERE job_id = ANY (%(job_ids)s::uuid[]))
UPDATE bulk.jobs j
SET state = 5, lost = true, failure_reason = v.reason, end_time = clock_timestamp(), update_time = clock_timestamp(),
    expired = expired + staged, staged = 0
FROM unnest(%(job_ids)s::uuid[], %(reasons)s::text[]) AS v (job_id, reason)
WHERE j.job_id = v.job_id AND j.state < 3

-- name: job_position
-- A job, and its lanes: those that a worker has moved.
SELECT j.state, j.partitions, j.create_time,
       ARRAY(SELECT l.lane FROM bulk.lanes l WHERE l.create_day = j.create_day AND l.job_id = j.job_id ORDER BY l.lane),
       ARRAY(SELECT l.next_sequence FROM bulk.lanes l
             WHERE l.create_day = j.create_day AND l.job_id = j.job_id ORDER BY l.lane),
       ARRAY(SELECT l.sealed FROM bulk.lanes l WHERE l.create_day = j.create_day AND l.job_id = j.job_id ORDER BY l.lane)
FROM bulk.jobs j
WHERE j.job_id = %(job_id)s AND j.tenant = %(tenant)s

-- name: move_offsets
-- Continue partitions at other offsets. Their owners read them when they acquire the partitions again.
INSERT INTO bulk.offsets AS o (topic, partition, next_offset, owner_epoch)
SELECT %(topic)s, v.partition, v.next_offset, 0
FROM unnest(%(partitions)s::integer[], %(next_offsets)s::bigint[]) AS v (partition, next_offset)
ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset

-- name: shift_parked
-- Give the parked messages of a partition whose offsets begin again offsets below all that it will have. They stay before
-- them, and in their order.
WITH shift AS (
  SELECT max(message_offset) - least(min(message_offset), 0) + 1 AS by
  FROM bulk.parked WHERE topic = %(topic)s AND partition = %(partition)s
), discards AS (
  UPDATE bulk.discards SET to_offset = to_offset - shift.by FROM shift
  WHERE topic = %(topic)s AND partition = %(partition)s AND shift.by IS NOT NULL
), over AS (
  DELETE FROM bulk.discards USING shift WHERE topic = %(topic)s AND partition = %(partition)s AND shift.by IS NULL
)
UPDATE bulk.parked SET message_offset = message_offset - shift.by FROM shift
WHERE topic = %(topic)s AND partition = %(partition)s

-- name: clear_stops
-- Partitions are no longer stopped; what the log was is seen again by workers.
UPDATE bulk.partition_logs
SET log_start = NULL, log_end = NULL, stop_cause = NULL, lost_from = NULL, lost_to = NULL, stop_time = NULL
WHERE topic = %(topic)s AND partition = ANY (%(partitions)s::integer[])

-- name: note_move
-- What the consumer group committed before now says nothing about these offsets.
INSERT INTO bulk.heartbeats AS h (topic, beat, beat_time, moved_at) VALUES (%(topic)s, 1, clock_timestamp(), 1)
ON CONFLICT (topic) DO UPDATE SET beat = h.beat + 1, beat_time = clock_timestamp(), moved_at = h.beat + 1

-- name: adopt_topic
-- From now on the ledger's offsets are those of the topic with this ID.
INSERT INTO bulk.topics (topic, topic_id) VALUES (%(topic)s, %(topic_id)s)
ON CONFLICT (topic) DO UPDATE SET topic_id = excluded.topic_id, record_time = clock_timestamp()
