-- name: get_dataset
-- One version of a dataset; version 0 is the newest.
SELECT dataset, version, message_type, descriptors, create_time
FROM bulk.datasets
WHERE dataset = %(dataset)s AND (version = %(version)s OR %(version)s = 0)
ORDER BY version DESC
LIMIT 1

-- name: list_datasets
-- The newest version of each dataset, by name, after the last one of the page before.
SELECT DISTINCT ON (dataset) dataset, version, message_type, descriptors, create_time
FROM bulk.datasets
WHERE dataset > %(after)s
ORDER BY dataset, version DESC
LIMIT %(page_size)s

-- name: list_versions
-- The versions of a dataset, the newest first, those before the last one of the page before.
SELECT dataset, version, message_type, descriptors, create_time
FROM bulk.datasets
WHERE dataset = %(dataset)s AND (version < %(before)s OR %(before)s = 0)
ORDER BY version DESC
LIMIT %(page_size)s

-- name: lock_dataset
-- Let one at a time change a dataset.
SELECT pg_advisory_xact_lock(hashtextextended('bulkgrpc dataset ' || %(dataset)s, 0))

-- name: add_dataset
-- Register a version.
INSERT INTO bulk.datasets (dataset, version, message_type, descriptors)
VALUES (%(dataset)s, %(version)s, %(message_type)s, %(descriptors)s)
RETURNING create_time
