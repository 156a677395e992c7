-- name: get_generations
-- A dataset's generations: which table is the current one, the pages of both, the time, since when hashes are known, when
-- they were rotated, whether the previous one has a filter.
SELECT current_table,
       ARRAY(SELECT pg_relation_size(name::regclass) / current_setting('block_size')::bigint
             FROM unnest(%(names)s::text[]) WITH ORDINALITY AS n (name, number)
             ORDER BY number),
       now, now - make_interval(secs => window_s), rotate_time, filter IS NOT NULL
FROM bulk.dedupe, clock_timestamp() AS now
WHERE dataset = %(dataset)s

-- name: read_pages
-- All hashes on the pages [from_page, to_page) of a generation.
SELECT string_agg(uuid_send(hash), ''::bytea) FROM {generation}
WHERE ctid >= %(from_page)s::tid AND ctid < %(to_page)s::tid

-- name: known
-- Positions, from 0, of the hashes that a generation has. LIMIT makes it one index look-up per hash, whatever the
-- statistics of a table that was empty a moment ago.
SELECT string_agg(int4send(g.position::integer - 1), ''::bytea)
FROM unnest(%(hashes)s) WITH ORDINALITY AS g (hash, position)
CROSS JOIN LATERAL (SELECT FROM {generation} h WHERE h.hash = g.hash AND h.seen_time > %(since)s LIMIT 1) AS found

-- name: merge
-- Add the hashes that a generation does not have, or that have expired in it; return their positions, from 0. Sorted, so
-- that two workers never wait for each other's hashes in opposite orders.
WITH given AS (SELECT * FROM unnest(%(hashes)s) WITH ORDINALITY AS g (hash, position)),
     added AS (
       INSERT INTO {generation} AS h (hash, seen_time) SELECT hash, %(now)s FROM given ORDER BY hash
       ON CONFLICT (hash) DO UPDATE SET seen_time = excluded.seen_time WHERE h.seen_time <= %(since)s
       RETURNING hash
     )
SELECT string_agg(int4send(position::integer - 1), ''::bytea) FROM given JOIN added USING (hash)

-- name: forget
-- Delete hashes.
DELETE FROM {generation} WHERE hash = ANY (%(hashes)s)

-- name: expired
-- Datasets whose previous generation has expired.
SELECT dataset FROM bulk.dedupe WHERE rotate_time + make_interval(secs => window_s) <= clock_timestamp()

-- name: set_lock_timeout
-- Other transactions queue behind a lock that is waited for: wait briefly.
SET LOCAL lock_timeout = '500ms'

-- name: rotate
-- Make the previous generation the current one, if it has still expired; the caller truncates it.
UPDATE bulk.dedupe SET current_table = 1 - current_table, rotate_time = clock_timestamp(), filter = NULL
WHERE dataset = %(dataset)s AND rotate_time + make_interval(secs => window_s) <= clock_timestamp()
RETURNING current_table

-- name: without_filter
-- Datasets whose previous generation has no filter.
SELECT dataset FROM bulk.dedupe WHERE filter IS NULL

-- name: set_filter
-- Store the filter of the previous generation. Under the lock on the generations: they do not rotate meanwhile.
UPDATE bulk.dedupe SET filter = %(filter)s WHERE dataset = %(dataset)s

-- name: get_filter
-- The filter of the previous generation.
SELECT filter FROM bulk.dedupe WHERE dataset = %(dataset)s AND filter IS NOT NULL

-- name: delete_known
-- Delete the staged rows of a job whose hash is known, or the same as an earlier row's; add the hashes of the others.
WITH firsts AS (
       SELECT DISTINCT ON ({hash}) {hash} AS hash, ctid AS place FROM {staged}
       WHERE {job} = %(job_id)s
       ORDER BY {hash}, {sequence}, {index}
     ),
     added AS (
       INSERT INTO {current} AS h (hash, seen_time)
       SELECT hash, %(now)s FROM firsts f
       WHERE NOT EXISTS (SELECT FROM {previous} o WHERE o.hash = f.hash AND o.seen_time > %(since)s)
         AND NOT EXISTS (SELECT FROM {current} c WHERE c.hash = f.hash AND c.seen_time > %(since)s)
       ORDER BY hash
       ON CONFLICT (hash) DO UPDATE SET seen_time = excluded.seen_time WHERE h.seen_time <= %(since)s
       RETURNING hash
     )
DELETE FROM {staged} h
WHERE {job} = %(job_id)s AND NOT EXISTS (SELECT FROM firsts f JOIN added USING (hash) WHERE f.place = h.ctid)
