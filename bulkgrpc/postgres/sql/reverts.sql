-- name: refuse_again
-- Before rows of a job that has ended are removed: a job that lost batches is not opened again, which would continue it after
-- the rows that are removed. Changes no row if it was opened again meanwhile.
UPDATE bulk.jobs SET lost = false WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND state >= 3

-- name: extent
-- How many tables store a table's rows, itself or its partitions, and the pages of the largest.
SELECT greatest(count(*), 1),
       coalesce(max(pg_relation_size(relid) / current_setting('block_size')::bigint), 0)
FROM (SELECT %(table)s::regclass AS relid UNION SELECT relid FROM pg_partition_tree(%(table)s::regclass)) AS parts
