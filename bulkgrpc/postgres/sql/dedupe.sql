-- name: get_halves
-- Which of a dataset's halves is the current one, how many pages they have, the time, since when hashes are known, since
-- when the halves are so, whether there is a filter.
SELECT half,
       ARRAY(SELECT pg_relation_size(name::regclass) / current_setting('block_size')::bigint FROM unnest(%(names)s::text[]) WITH ORDINALITY AS n (name, number)
             ORDER BY number),
       now, now - make_interval(secs => window_s), change_time, filter IS NOT NULL
FROM bulk.dedupe d, clock_timestamp() AS now
WHERE dataset = %(dataset)s
FOR KEY SHARE OF d

-- name: piece
-- All hashes on the pages [from_page, to_page) of a half.
SELECT string_agg(uuid_send(hash), ''::bytea) FROM {half}
WHERE ctid >= %(from_page)s::tid AND ctid < %(to_page)s::tid

-- name: known
-- Positions, from 0, of the hashes that a half knows. LIMIT makes it an index look-up for each, whatever the statistics
-- of a table that was empty a moment ago.
SELECT string_agg(int4send(g.position::integer - 1), ''::bytea)
FROM unnest(%(hashes)s) WITH ORDINALITY AS g (hash, position)
CROSS JOIN LATERAL (SELECT FROM {half} h WHERE h.hash = g.hash AND h.seen_time > %(since)s LIMIT 1) AS found

-- name: merge
-- Add the hashes that a half does not know, and those that it should have forgotten; their positions, from 0. Sorted, so
-- that two workers never wait for each other's hashes in opposite orders.
WITH given AS (SELECT * FROM unnest(%(hashes)s) WITH ORDINALITY AS g (hash, position)),
     added AS (
       INSERT INTO {half} AS h (hash, seen_time) SELECT hash, %(now)s FROM given ORDER BY hash
       ON CONFLICT (hash) DO UPDATE SET seen_time = excluded.seen_time WHERE h.seen_time <= %(since)s
       RETURNING hash
     )
SELECT string_agg(int4send(position::integer - 1), ''::bytea) FROM given JOIN added USING (hash)

-- name: forget
-- Take hashes back.
DELETE FROM {half} WHERE hash = ANY (%(hashes)s)

-- name: over
-- Datasets of whose halves the one that is not current is over.
SELECT dataset FROM bulk.dedupe WHERE change_time + make_interval(secs => window_s) <= clock_timestamp()

-- name: set_lock_timeout
-- Nobody must wait behind us for long for those whom we wait for.
SET LOCAL lock_timeout = '500ms'

-- name: change_half
-- Make the other half the current one, if that is still to be done; it is to be emptied.
UPDATE bulk.dedupe SET half = 1 - half, change_time = clock_timestamp(), filter = NULL
WHERE dataset = %(dataset)s AND change_time + make_interval(secs => window_s) <= clock_timestamp()
RETURNING half

-- name: without_filter
-- Datasets whose half that is not the current one may need a filter.
SELECT dataset FROM bulk.dedupe WHERE filter IS NULL

-- name: set_filter
-- Keep the filter of the half that is not the current one. Under the lock on the halves: they do not change meanwhile.
UPDATE bulk.dedupe SET filter = %(filter)s WHERE dataset = %(dataset)s

-- name: get_filter
-- The filter of the half that is not the current one.
SELECT filter FROM bulk.dedupe WHERE dataset = %(dataset)s AND filter IS NOT NULL

-- name: drop_known
-- Of the rows that a job holds, delete those whose hash is known, or that have the hash of one before; add the others'.
WITH firsts AS (
       SELECT DISTINCT ON ({hash}) {hash} AS hash, ctid AS place FROM {staged}
       WHERE {job} = %(job_id)s
       ORDER BY {hash}, {sequence}, {index}
     ),
     added AS (
       INSERT INTO {current} AS h (hash, seen_time)
       SELECT hash, %(now)s FROM firsts f
       WHERE NOT EXISTS (SELECT FROM {other} o WHERE o.hash = f.hash AND o.seen_time > %(since)s)
         AND NOT EXISTS (SELECT FROM {current} c WHERE c.hash = f.hash AND c.seen_time > %(since)s)
       ORDER BY hash
       ON CONFLICT (hash) DO UPDATE SET seen_time = excluded.seen_time WHERE h.seen_time <= %(since)s
       RETURNING hash
     )
DELETE FROM {staged} h
WHERE {job} = %(job_id)s AND NOT EXISTS (SELECT FROM firsts f JOIN added USING (hash) WHERE f.place = h.ctid)
