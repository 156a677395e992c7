-- name: get_dataset
-- One version of a dataset, deleted or not; version 0 is the newest. first_version: of those that are not deleted.
SELECT dataset, version, message_type, descriptors, create_time,
       (SELECT coalesce(max(d.version), 0) + 1
        FROM bulk.datasets d
        WHERE d.dataset = %(dataset)s AND d.delete_time IS NOT NULL) AS first_version, schema_digest
FROM bulk.datasets
WHERE dataset = %(dataset)s AND (version = %(version)s OR %(version)s = 0)
ORDER BY version DESC
LIMIT 1

-- name: list_datasets
-- The newest version of each dataset, by name, after the last one of the previous page.
SELECT DISTINCT ON (dataset) dataset, version, message_type, descriptors, create_time, 1 AS first_version, schema_digest
FROM bulk.datasets
WHERE dataset > %(after)s AND delete_time IS NULL
ORDER BY dataset, version DESC
LIMIT %(page_size)s

-- name: list_versions
-- The versions of a dataset, the newest first, those before the last one of the previous page.
SELECT dataset, version, message_type, descriptors, create_time, 1 AS first_version, schema_digest
FROM bulk.datasets
WHERE dataset = %(dataset)s AND (version < %(before)s OR %(before)s = 0) AND delete_time IS NULL
ORDER BY version DESC
LIMIT %(page_size)s

-- name: is_registered
-- Whether some version was registered with these very descriptors.
SELECT FROM bulk.datasets WHERE message_type = %(message_type)s AND descriptors = %(descriptors)s LIMIT 1

-- name: lock_dataset
-- Let one transaction at a time change a dataset.
SELECT pg_advisory_xact_lock(hashtextextended('bulkgrpc dataset ' || %(dataset)s, 0))

-- name: lock_out_jobs
-- Wait for transactions that open jobs of a dataset, and block new ones; see lock_job.
SELECT pg_advisory_xact_lock(hashtextextended('bulkgrpc jobs of ' || %(dataset)s, 0))

-- name: add_dataset
-- Register a version.
INSERT INTO bulk.datasets (dataset, version, message_type, descriptors, schema_digest)
VALUES (%(dataset)s, %(version)s, %(message_type)s, %(descriptors)s, %(schema_digest)s)
RETURNING create_time

-- name: jobs_not_ended
-- How many jobs of a dataset have not ended, and some of them.
SELECT count(*), (array_agg('tenants/' || tenant || '/jobs/' || job_id ORDER BY create_time))[:3]
FROM bulk.jobs
WHERE dataset = %(dataset)s AND state < 3

-- name: delete_dataset
-- Mark a dataset's versions as deleted. What is parked of it is rejected or discarded, for which no table is needed.
WITH unblocked AS (DELETE FROM bulk.blocked_datasets WHERE dataset = %(dataset)s),
     no_discards AS (DELETE FROM bulk.discards WHERE dataset = %(dataset)s)
UPDATE bulk.datasets SET delete_time = clock_timestamp()
WHERE dataset = %(dataset)s AND delete_time IS NULL
RETURNING version

-- name: name_taken
-- What has the name of a table that is to be created, empty if nothing has. A table has a type of its name, too.
SELECT CASE WHEN to_regclass('public.' || quote_ident(%(dataset)s)) IS NOT NULL THEN 'table'
            WHEN EXISTS (SELECT FROM pg_type
                         WHERE typname = %(dataset)s AND typnamespace = 'public'::regnamespace) THEN 'type'
            ELSE '' END

-- name: table_columns
-- The columns of a table in the schema public; none if it does not exist. key_position: in its primary key, 0 if in none.
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull AND NOT a.atthasdef,
       coalesce(array_position(i.indkey::smallint[], a.attnum) + 1, 0) AS key_position
FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = to_regclass('public.' || quote_ident(%(dataset)s)) AND a.attnum > 0 AND NOT a.attisdropped
