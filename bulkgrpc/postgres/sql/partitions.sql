-- name: time_partitioned
-- The newest version of each dataset whose table is partitioned by time.
SELECT DISTINCT ON (d.dataset) d.descriptors, d.message_type, d.version
FROM bulk.datasets d
JOIN pg_partitioned_table p ON p.partrelid = to_regclass('public.' || quote_ident(d.dataset)) AND p.partstrat = 'r'
WHERE d.delete_time IS NULL
ORDER BY d.dataset, d.version DESC

-- name: partitions
-- How many partitions a table has, the bytes of the one of other times, and whether rows may be moved: to a trigger or a
-- foreign key, a row that moves is one that is deleted.
SELECT (SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass(%(table)s)),
       coalesce(pg_relation_size(to_regclass(%(other)s)), 0),
       to_regclass(%(other)s) IS NOT NULL
         AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%(other)s) AND NOT tgisinternal)
         AND NOT EXISTS (SELECT FROM pg_constraint WHERE confrelid = to_regclass(%(table)s) AND contype = 'f')

-- name: missing
-- Those of the tables that are not there, by their places.
SELECT place FROM unnest(%(names)s::text[]) WITH ORDINALITY AS t (name, place) WHERE to_regclass(name) IS NULL

-- name: column_names
-- The columns of a table that can be written, in their order.
SELECT attname FROM pg_attribute
WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum

-- name: be_brief
-- Nobody must wait behind us for those whom we wait for.
SELECT set_config('lock_timeout', '500ms', true)
