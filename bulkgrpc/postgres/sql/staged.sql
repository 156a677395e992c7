-- name: create_apply_each
-- Creates the function that writes every staged row of a job; it returns how many were written, and how many a trigger
-- skipped. Its variables have a prefix: columns have any name.
CREATE OR REPLACE FUNCTION {function} (
  bulkgrpc_wanted uuid, OUT bulkgrpc_written bigint, OUT bulkgrpc_skipped bigint
) LANGUAGE plpgsql AS {body}

-- name: apply_each_body
-- Body of that function. A statement may write a key once: the first rows of all keys, then the second ones, and so on.
-- Each in the order of the keys, so that two workers never wait for each other's keys in opposite orders. A row that is
-- not written was skipped if the table does not have its key then: a later one may be written. The comment marks the
-- statement in the context of errors (`row_errors.context_of`).
#variable_conflict use_column
DECLARE
  bulkgrpc_places tid[];
  bulkgrpc_count bigint;
  bulkgrpc_deleted bigint := 0;
  bulkgrpc_left bigint;
BEGIN
  bulkgrpc_written := 0;
  bulkgrpc_skipped := 0;
  FOR bulkgrpc_places IN
    SELECT array_agg(ranked.place)
    FROM (
      SELECT ctid AS place, row_number() OVER (PARTITION BY {key_values} ORDER BY {sequence}, {index}) AS number
      FROM {staged} WHERE {job} = bulkgrpc_wanted
    ) AS ranked
    GROUP BY ranked.number ORDER BY ranked.number
  LOOP
    {delete_first}
    INSERT INTO {mark} {table} ({columns})
    SELECT {values} FROM {staged} WHERE ctid = ANY (bulkgrpc_places) AND {kept} ORDER BY {key_order}
    {conflict};
    GET DIAGNOSTICS bulkgrpc_count = ROW_COUNT;
    bulkgrpc_written := bulkgrpc_written + bulkgrpc_count;
    bulkgrpc_left := cardinality(bulkgrpc_places) - bulkgrpc_deleted - bulkgrpc_count;
    IF bulkgrpc_left > 0 THEN
      -- Not more: a row whose key a trigger changed was written, and its own key may not be in the table.
      SELECT least(count(*), bulkgrpc_left) INTO bulkgrpc_count
      FROM {staged} AS staged WHERE ctid = ANY (bulkgrpc_places) AND {skipped};
      bulkgrpc_skipped := bulkgrpc_skipped + bulkgrpc_count;
    END IF;
  END LOOP;
END

-- name: apply_each_deletes
-- Of a dataset with an operation: deletes first. A key that the table does not have is passed over.
SELECT count(*) INTO bulkgrpc_deleted FROM {staged} WHERE ctid = ANY (bulkgrpc_places) AND {delete};
DELETE FROM {mark} {table} AS stored USING {staged} AS staged
WHERE staged.ctid = ANY (bulkgrpc_places) AND staged.{delete} AND ({stored_key}) = ({converted_key});
-- A row that is still there was kept by a trigger.
SELECT count(*) INTO bulkgrpc_count FROM {staged} AS staged
WHERE staged.ctid = ANY (bulkgrpc_places) AND staged.{delete}
  AND EXISTS (SELECT FROM {table} AS stored WHERE ({stored_key}) = ({converted_key}));
bulkgrpc_skipped := bulkgrpc_skipped + bulkgrpc_count;

-- name: call_apply_each
-- Calls it.
SELECT bulkgrpc_written, bulkgrpc_skipped FROM {function} (%(job_id)s)
