-- name: state
-- The ledger's last heartbeat, where the database is, and the positions of partitions.
SELECT h.beat, h.beat_time, coalesce(h.moved_at, 0), bulk.database_position(), p.partitions, p.next_offsets
FROM (SELECT coalesce(array_agg(partition), '{}') AS partitions, coalesce(array_agg(next_offset), '{}') AS next_offsets
      FROM bulk.offsets WHERE topic = %(topic)s) p
LEFT JOIN bulk.heartbeats h ON h.topic = %(topic)s

-- name: database_position
-- Where the database is.
SELECT bulk.database_position()

-- name: beat
-- Add a heartbeat, if this is the server that started then, and its ledger has no heartbeat below the last one.
INSERT INTO bulk.heartbeats AS h (topic, beat, beat_time)
SELECT %(topic)s, %(last)s + 1, clock_timestamp() WHERE pg_postmaster_start_time() = %(server_start)s
ON CONFLICT (topic) DO UPDATE SET beat = h.beat + 1, beat_time = clock_timestamp() WHERE h.beat >= %(last)s
RETURNING beat, beat_time, bulk.database_position()

-- name: raise_to
-- Add a heartbeat above a number.
INSERT INTO bulk.heartbeats AS h (topic, beat, beat_time)
VALUES (%(topic)s, %(number)s + 1, clock_timestamp())
ON CONFLICT (topic) DO UPDATE SET beat = greatest(h.beat, %(number)s) + 1, beat_time = clock_timestamp()

-- name: note_restore
-- Store what workers noticed.
INSERT INTO bulk.restores (topic, ledger_time, ledger, known_time, known, partitions, next_offsets, known_offsets)
VALUES (%(topic)s, %(ledger_time)s, %(ledger)s, %(known_time)s, %(known)s, %(partitions)s, %(next_offsets)s,
        %(known_offsets)s)

-- name: restores
-- What workers noticed, the last first.
SELECT notice_time, ledger_time, ledger, known_time, known, partitions, next_offsets, known_offsets
FROM bulk.restores WHERE topic = %(topic)s
ORDER BY notice_time DESC
LIMIT %(restores_max)s
