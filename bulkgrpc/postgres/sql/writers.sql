-- name: create_isolate
-- Creates the function that writes the staged rows span by span. Its variables have a prefix: columns have any name.
CREATE OR REPLACE FUNCTION {function} (
  bulkgrpc_row_classes text[], bulkgrpc_server_classes text[], bulkgrpc_known_classes text[],
  bulkgrpc_in_function text, bulkgrpc_at_raise text, bulkgrpc_own_statement text,
  OUT bulkgrpc_rejected bytea, OUT bulkgrpc_reasons bytea, OUT bulkgrpc_lengths bytea, OUT bulkgrpc_left bytea
) LANGUAGE plpgsql SET enable_seqscan = off AS {body}

-- name: isolate_body
-- Body of that function. A span that is not written as a whole is rolled back and cut, so that each row that is left
-- alone is known. The positions of rows and the lengths of reasons are returned as big-endian integers, one value each.
#variable_conflict use_column
DECLARE
  bulkgrpc_span_max CONSTANT integer := 1024;
  bulkgrpc_ctids tid[];
  bulkgrpc_deletes boolean[];
  bulkgrpc_ends integer[];
  bulkgrpc_count integer;
  bulkgrpc_first integer := 1;
  bulkgrpc_last integer;
  bulkgrpc_span integer := bulkgrpc_span_max;
  bulkgrpc_written integer;
  bulkgrpc_retried integer := 0;
  bulkgrpc_rejected_rows integer[] := '{{}}';
  bulkgrpc_left_rows integer[] := '{{}}';
  bulkgrpc_texts text[] := '{{}}';
  bulkgrpc_message text;
  bulkgrpc_context text;
  bulkgrpc_constraint text;
BEGIN
  SELECT array_agg(ctid ORDER BY {row}), count(*) INTO bulkgrpc_ctids, bulkgrpc_count FROM {staging};
  {find_ends}
  WHILE bulkgrpc_first <= bulkgrpc_count LOOP
    bulkgrpc_last := least(bulkgrpc_first + bulkgrpc_span - 1, bulkgrpc_count, bulkgrpc_ends[bulkgrpc_first]);
    BEGIN
      {delete_or}
      INSERT INTO {table} ({columns})
      SELECT {columns} FROM {staging}
      WHERE ctid >= bulkgrpc_ctids[bulkgrpc_first] AND ctid <= bulkgrpc_ctids[bulkgrpc_last]
      {conflict};
      GET DIAGNOSTICS bulkgrpc_written = ROW_COUNT;
      {end_delete_or}
      IF bulkgrpc_written <= bulkgrpc_last - bulkgrpc_first AND bulkgrpc_first < bulkgrpc_last THEN
        RAISE EXCEPTION USING ERRCODE = 'triggered_data_change_violation';
      END IF;
      IF bulkgrpc_written = 0 THEN
        bulkgrpc_left_rows := bulkgrpc_left_rows || (bulkgrpc_first - 1);
      ELSE
        bulkgrpc_span := least(bulkgrpc_span * 2, bulkgrpc_span_max);
      END IF;
      bulkgrpc_first := bulkgrpc_last + 1;
    EXCEPTION WHEN OTHERS OR QUERY_CANCELED OR ASSERT_FAILURE THEN
      GET STACKED DIAGNOSTICS bulkgrpc_message = MESSAGE_TEXT, bulkgrpc_context = PG_EXCEPTION_CONTEXT,
                              bulkgrpc_constraint = CONSTRAINT_NAME;
      -- Without the lines of this function and of its own statement, which arise in no function of the table.
      bulkgrpc_context := regexp_replace(
        split_part(split_part(bulkgrpc_context, bulkgrpc_own_statement, 1), {own_delete}, 1), '[^\n]*$', ''
      );
      -- As `is_row_error` decides.
      IF NOT (left(SQLSTATE, 2) = ANY (bulkgrpc_row_classes) OR left(SQLSTATE, 2) <> ALL (bulkgrpc_known_classes)
              OR bulkgrpc_context ~ bulkgrpc_at_raise
              OR (left(SQLSTATE, 2) <> ALL (bulkgrpc_server_classes) AND bulkgrpc_context ~ bulkgrpc_in_function)) THEN
        RAISE;
      END IF;
      IF bulkgrpc_first = bulkgrpc_last AND SQLSTATE = '23514' AND bulkgrpc_constraint = ''
         AND bulkgrpc_retried < bulkgrpc_first THEN
        -- A check violation without a constraint's name: a partition may have been attached meanwhile. Once more.
        bulkgrpc_retried := bulkgrpc_first;
      ELSIF bulkgrpc_first = bulkgrpc_last THEN
        bulkgrpc_rejected_rows := bulkgrpc_rejected_rows || (bulkgrpc_first - 1);
        bulkgrpc_texts := bulkgrpc_texts || left(bulkgrpc_message, 1000);
        bulkgrpc_first := bulkgrpc_first + 1;
      ELSE
        bulkgrpc_span := greatest((bulkgrpc_last - bulkgrpc_first + 1) / 4, 1);
      END IF;
    END;
  END LOOP;
  SELECT string_agg(int4send(u.n), ''::bytea ORDER BY u.place) INTO bulkgrpc_rejected
  FROM unnest(bulkgrpc_rejected_rows) WITH ORDINALITY AS u (n, place);
  SELECT string_agg(convert_to(u.t, 'UTF8'), ''::bytea ORDER BY u.place),
         string_agg(int4send(octet_length(convert_to(u.t, 'UTF8'))), ''::bytea ORDER BY u.place)
  INTO bulkgrpc_reasons, bulkgrpc_lengths
  FROM unnest(bulkgrpc_texts) WITH ORDINALITY AS u (t, place);
  SELECT string_agg(int4send(u.n), ''::bytea ORDER BY u.place) INTO bulkgrpc_left
  FROM unnest(bulkgrpc_left_rows) WITH ORDINALITY AS u (n, place);
END

-- name: isolate_delete_or
-- Of a dataset with an operation: a span of rows to be deleted. A key that the table does not have is deleted, too.
IF bulkgrpc_deletes[bulkgrpc_first] THEN
  DELETE FROM {table} AS stored USING {staging} AS staged
  WHERE staged.ctid >= bulkgrpc_ctids[bulkgrpc_first] AND staged.ctid <= bulkgrpc_ctids[bulkgrpc_last]
    AND ({stored_key}) = ({staged_key});
  bulkgrpc_written := bulkgrpc_last - bulkgrpc_first + 1;
  -- A row that is still there was kept by a trigger. Nothing after this can fail in the span.
  bulkgrpc_left_rows := bulkgrpc_left_rows || ARRAY(
    SELECT staged.{row} FROM {staging} AS staged
    WHERE staged.ctid >= bulkgrpc_ctids[bulkgrpc_first] AND staged.ctid <= bulkgrpc_ctids[bulkgrpc_last]
      AND EXISTS (SELECT FROM {table} AS stored WHERE ({stored_key}) = ({staged_key}))
  );
ELSE

-- name: isolate_ends
-- Of a dataset with an operation: which staged rows are to be deleted, and where the run of rows of one kind ends, so that
-- a span has one kind. Runs are numbered by what differs between two ways of counting rows.
SELECT array_agg(runs.deletes ORDER BY runs.number), array_agg(runs.last ORDER BY runs.number)
INTO bulkgrpc_deletes, bulkgrpc_ends
FROM (
  SELECT counted.number, counted.deletes, max(counted.number) OVER (PARTITION BY counted.deletes, counted.run) AS last
  FROM (
    SELECT numbered.number, numbered.deletes,
           numbered.number - row_number() OVER (PARTITION BY numbered.deletes ORDER BY numbered.number) AS run
    FROM (SELECT row_number() OVER (ORDER BY {row}) AS number, {delete} AS deletes FROM {staging}) AS numbered
  ) AS counted
) AS runs;

-- name: call_isolate
-- Calls it.
SELECT bulkgrpc_rejected, bulkgrpc_reasons, bulkgrpc_lengths, bulkgrpc_left
FROM {function} (%(row_classes)s::text[], %(server_classes)s::text[], %(known_classes)s::text[],
                 %(in_function)s::text, %(at_raise)s::text, %(own_statement)s::text)

-- name: create_unreadable
-- Creates the function that finds the staged rows with a text that PostgreSQL does not read. Its variables have a prefix:
-- columns have any name.
CREATE OR REPLACE FUNCTION {function} (
  bulkgrpc_raised text[], OUT bulkgrpc_rejected bytea, OUT bulkgrpc_reasons bytea, OUT bulkgrpc_lengths bytea
) LANGUAGE plpgsql SET enable_seqscan = off AS {body}

-- name: unreadable_body
-- Body of that function. A span with an unreadable text is cut to a quarter, down to a single row; one without is doubled.
-- The rows are staged in their order, and there are no others in the table.
#variable_conflict use_column
DECLARE
  bulkgrpc_ctids tid[];
  bulkgrpc_places integer[];
  bulkgrpc_count integer;
  bulkgrpc_first integer := 1;
  bulkgrpc_last integer;
  bulkgrpc_span integer;
  bulkgrpc_rows integer[] := '{{}}';
  bulkgrpc_texts text[] := '{{}}';
BEGIN
  SELECT array_agg(ctid ORDER BY {row}), array_agg({row} ORDER BY {row}), count(*)
  INTO bulkgrpc_ctids, bulkgrpc_places, bulkgrpc_count FROM {staging};
  bulkgrpc_span := greatest(bulkgrpc_count / 4, 1);
  WHILE bulkgrpc_first <= bulkgrpc_count LOOP
    bulkgrpc_last := least(bulkgrpc_first + bulkgrpc_span - 1, bulkgrpc_count);
    BEGIN
      PERFORM count({sent}) FROM {staging}
      WHERE ctid >= bulkgrpc_ctids[bulkgrpc_first] AND ctid <= bulkgrpc_ctids[bulkgrpc_last];
      bulkgrpc_span := bulkgrpc_span * 2;
      bulkgrpc_first := bulkgrpc_last + 1;
    EXCEPTION WHEN OTHERS THEN
      IF left(SQLSTATE, 2) = ANY (bulkgrpc_raised) THEN
        RAISE;
      ELSIF bulkgrpc_first < bulkgrpc_last THEN
        bulkgrpc_span := greatest((bulkgrpc_last - bulkgrpc_first + 1) / 4, 1);
      ELSE
        bulkgrpc_rows := bulkgrpc_rows || bulkgrpc_places[bulkgrpc_first];
        bulkgrpc_texts := bulkgrpc_texts || left(SQLERRM, 1000);
        bulkgrpc_first := bulkgrpc_first + 1;
      END IF;
    END;
  END LOOP;
  SELECT string_agg(int4send(u.n), ''::bytea ORDER BY u.place) INTO bulkgrpc_rejected
  FROM unnest(bulkgrpc_rows) WITH ORDINALITY AS u (n, place);
  SELECT string_agg(convert_to(u.t, 'UTF8'), ''::bytea ORDER BY u.place),
         string_agg(int4send(octet_length(convert_to(u.t, 'UTF8'))), ''::bytea ORDER BY u.place)
  INTO bulkgrpc_reasons, bulkgrpc_lengths
  FROM unnest(bulkgrpc_texts) WITH ORDINALITY AS u (t, place);
END

-- name: call_unreadable
-- Calls it.
SELECT bulkgrpc_rejected, bulkgrpc_reasons, bulkgrpc_lengths FROM {function} (%(raised)s::text[])
