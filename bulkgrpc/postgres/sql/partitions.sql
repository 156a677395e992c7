-- name: time_partitioned
-- The newest version of each dataset whose table is partitioned by time.
SELECT DISTINCT ON (d.dataset) d.descriptors, d.message_type, d.version
FROM bulk.datasets d
JOIN pg_partitioned_table p ON p.partrelid = to_regclass('public.' || quote_ident(d.dataset)) AND p.partstrat = 'r'
WHERE d.delete_time IS NULL
ORDER BY d.dataset, d.version DESC

-- name: partitions
-- How many partitions a table has, the size of its default partition, and whether rows may be moved: for a trigger or a
-- foreign key, a moved row is a deleted row.
SELECT (SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass(%(table)s)),
       coalesce(pg_relation_size(to_regclass(%(default)s)), 0),
       to_regclass(%(default)s) IS NOT NULL
         AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%(default)s) AND NOT tgisinternal)
         AND NOT EXISTS (SELECT FROM pg_constraint WHERE confrelid = to_regclass(%(table)s) AND contype = 'f')

-- name: missing
-- Positions, from 1, of the tables that do not exist.
SELECT position FROM unnest(%(names)s::text[]) WITH ORDINALITY AS t (name, position) WHERE to_regclass(name) IS NULL

-- name: column_names
-- The columns of a table that can be written, in order.
SELECT attname FROM pg_attribute
WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum

-- name: set_lock_timeout
-- Other transactions queue behind a lock that is waited for: wait briefly.
SELECT set_config('lock_timeout', '500ms', true)
