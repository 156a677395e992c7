-- name: hold
-- Keep a job ended until the transaction ends: nothing opens it again, or deletes it. No row if it has not ended.
SELECT FROM bulk.jobs WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND state >= 3 FOR KEY SHARE

-- name: refuse_again
-- With the first rows of a job that are removed: if it lost batches, it is not opened again, which would continue it after
-- them.
UPDATE bulk.jobs SET lost = false WHERE job_id = %(job_id)s AND tenant = %(tenant)s AND lost

-- name: extent
-- How many tables store a table's rows, itself or its partitions; the pages of the largest; and a foreign key that deletes or
-- changes other rows with them, if there is one.
WITH parts AS (SELECT %(table)s::regclass AS relid UNION SELECT relid FROM pg_partition_tree(%(table)s::regclass))
SELECT greatest(count(*), 1),
       coalesce(max(pg_relation_size(relid) / current_setting('block_size')::bigint), 0),
       (SELECT min(format('%%I of table %%s', c.conname, c.conrelid::regclass))
        FROM pg_constraint c
        WHERE c.contype = 'f' AND c.confdeltype IN ('c', 'n', 'd') AND c.confrelid IN (SELECT relid FROM parts))
FROM parts
