-- name: not_null_columns
-- Columns of a table that must not be null. None if a trigger may change a row before it is checked.
SELECT attname::text
FROM pg_attribute
WHERE attrelid = %(table)s::regclass AND attnum > 0 AND attnotnull AND NOT attisdropped
  AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = attrelid AND NOT tgisinternal)
ORDER BY attnum

-- name: checks
-- Check constraints of a table, in the order in which PostgreSQL checks them, with the columns that they read, and those
-- of them that have the collation "C". None if a trigger may change a row before it is checked. Without those that another
-- table with such columns would evaluate differently: of the whole row (attribute 0), and with another collation. And
-- without those that call a function which may read what is written: a row may be valid once the rows before it are there.
-- (`conenforced` exists from PostgreSQL 18 on.)
SELECT conname::text, pg_get_expr(conbin, conrelid), ARRAY(
    SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)
  ), ARRAY(
    SELECT attname::text FROM pg_attribute
    WHERE attrelid = conrelid AND attnum = ANY (conkey) AND attcollation = 'pg_catalog."C"'::regcollation
  )
FROM pg_constraint AS checks
WHERE conrelid = %(table)s::regclass AND contype = 'c'
  AND coalesce((to_jsonb(checks) ->> 'conenforced')::boolean, true)
  AND 0 <> ALL (conkey)
  AND NOT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = conrelid AND attnum = ANY (conkey)
      AND attcollation NOT IN (0, 'pg_catalog."default"'::regcollation, 'pg_catalog."C"'::regcollation)
  )
  AND NOT EXISTS (
    SELECT FROM regexp_matches(conbin::text, ':(?:op)?funcid ([0-9]+)', 'g') AS called (oids)
    JOIN pg_proc ON pg_proc.oid = oids[1]::oid
    WHERE provolatile = 'v' OR (provolatile = 's' AND pronamespace <> 'pg_catalog'::regnamespace)
  )
  AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = conrelid AND NOT tgisinternal)
ORDER BY conname
