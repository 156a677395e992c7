-- name: get_topic
-- The ID that the ledger has of a topic.
SELECT topic_id FROM bulk.topics WHERE topic = %(topic)s

-- name: record_topic
-- Record the ID of a topic, if the ledger has none.
INSERT INTO bulk.topics (topic, topic_id) VALUES (%(topic)s, %(topic_id)s) ON CONFLICT (topic) DO NOTHING

-- name: has_topic
-- Whether the ledger knows of a topic: by its ID, or by a position of it.
SELECT EXISTS (SELECT FROM bulk.topics WHERE topic = %(topic)s)
       OR EXISTS (SELECT FROM bulk.offsets WHERE topic = %(topic)s)

-- name: recorded_partitions
-- What the ledger has of a topic's partitions.
SELECT coalesce(o.partition, l.partition) AS partition, coalesce(o.next_offset, 0) AS next_offset,
       l.log_start, l.log_end, l.stop_cause, l.lost_from, l.lost_to, l.stop_time
FROM (SELECT partition, next_offset FROM bulk.offsets WHERE topic = %(topic)s) o
FULL JOIN (SELECT * FROM bulk.partition_logs WHERE topic = %(topic)s) l ON l.partition = o.partition
ORDER BY 1

-- name: save_logs
-- Store what Kafka has of partitions, null if that is not known, and why each is stopped, null if it is not. The time of a
-- stop stays while its cause does.
INSERT INTO bulk.partition_logs AS l
  (topic, partition, log_start, log_end, stop_cause, lost_from, lost_to, stop_time)
SELECT %(topic)s, v.partition, v.log_start, v.log_end, v.stop_cause, v.lost_from, v.lost_to,
       CASE WHEN v.stop_cause IS NOT NULL THEN clock_timestamp() END
FROM unnest(%(partitions)s::integer[], %(log_starts)s::bigint[], %(log_ends)s::bigint[], %(stop_causes)s::text[],
            %(lost_froms)s::bigint[], %(lost_tos)s::bigint[])
  AS v (partition, log_start, log_end, stop_cause, lost_from, lost_to)
ORDER BY v.partition
ON CONFLICT (topic, partition) DO UPDATE
SET log_start = coalesce(excluded.log_start, l.log_start),
    log_end = coalesce(excluded.log_end, l.log_end),
    stop_cause = excluded.stop_cause,
    lost_from = excluded.lost_from,
    lost_to = excluded.lost_to,
    stop_time = CASE WHEN excluded.stop_cause = l.stop_cause THEN l.stop_time ELSE excluded.stop_time END
WHERE (coalesce(excluded.log_start, l.log_start), coalesce(excluded.log_end, l.log_end), excluded.stop_cause,
       excluded.lost_from, excluded.lost_to)
      IS DISTINCT FROM (l.log_start, l.log_end, l.stop_cause, l.lost_from, l.lost_to)
