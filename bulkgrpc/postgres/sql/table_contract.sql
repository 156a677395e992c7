-- name: describe
-- A table as one JSON document, see table_fit.Table; no row if nothing has the name. A column's `base` is the type below
-- its domains, or that type's element if it is an array; its name is qualified if it is not PostgreSQL's own.
WITH RECURSIVE found AS (
    SELECT c.* FROM pg_class c WHERE c.oid = to_regclass(%(table)s)
),
tree (oid, parent, name, kind, persistence, bound) AS (
    SELECT oid, NULL::oid, relname, relkind, relpersistence, NULL::text COLLATE "C" FROM found
    UNION ALL
    SELECT p.oid, tree.oid, p.relname, p.relkind, p.relpersistence,
           -- 0: named, the partition would be locked.
           pg_get_expr(p.relpartbound, 0)
    FROM tree
    JOIN pg_inherits i ON i.inhparent = tree.oid
    JOIN pg_class p ON p.oid = i.inhrelid
    -- A partition that is being detached takes no rows any more. (The column is there from PostgreSQL 14 on.)
    WHERE tree.kind = 'p' AND NOT coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false)
),
domains (attnum, oid, typmod, depth, not_null, has_default) AS (
    SELECT a.attnum, a.atttypid, a.atttypmod, 0, false, false
    FROM found JOIN pg_attribute a ON a.attrelid = found.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT d.attnum, t.typbasetype, t.typtypmod, depth + 1,
           d.not_null OR t.typnotnull, d.has_default OR t.typdefault IS NOT NULL
    FROM domains d JOIN pg_type t ON t.oid = d.oid
    WHERE t.typtype = 'd'
),
columns AS (
    SELECT DISTINCT ON (d.attnum)
           d.attnum, d.not_null, d.has_default, d.typmod, t.oid AS stored, t.typcategory = 'A' AS is_array,
           e.typname, n.nspname, e.typcategory AS category,
           CASE WHEN t.typsend <> 0 AND t.typreceive <> 0 THEN t.typsend::regproc::text ELSE '' END AS send
    FROM domains d
    JOIN pg_type t ON t.oid = d.oid
    JOIN pg_type e ON e.oid = CASE t.typcategory WHEN 'A' THEN t.typelem ELSE t.oid END
    JOIN pg_namespace n ON n.oid = e.typnamespace
    ORDER BY d.attnum, d.depth DESC
)
SELECT json_build_object(
    'kind', c.relkind,
    'persistence', c.relpersistence,
    'role', current_user,
    'database', current_database(),
    'row_security', row_security_active(c.oid),
    'may_lock', has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'),
    'may_delete', has_table_privilege(c.oid, 'DELETE'),
    'may_stage', has_database_privilege(current_database(), 'TEMP'),
    'columns', (
        SELECT coalesce(json_agg(json_build_object(
            'name', a.attname,
            'type', format_type(a.atttypid, a.atttypmod),
            'stored', format_type(columns.stored, columns.typmod),
            'base', CASE nspname WHEN 'pg_catalog' THEN typname ELSE nspname || '.' || typname END,
            'is_array', is_array,
            'typmod', typmod,
            'not_null', a.attnotnull OR columns.not_null,
            'has_default', a.atthasdef OR columns.has_default,
            'identity', a.attidentity,
            'generated', a.attgenerated,
            'deterministic', coalesce(k.collisdeterministic, true),
            'may_insert', has_column_privilege(c.oid, a.attnum, 'INSERT'),
            'may_update', has_column_privilege(c.oid, a.attnum, 'UPDATE'),
            'may_select', has_column_privilege(c.oid, a.attnum, 'SELECT'),
            'untyped', format_type(columns.stored, -1),
            'send', columns.send,
            'category', columns.category,
            'primary', EXISTS (
                SELECT FROM pg_index i
                WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
            )
        ) ORDER BY a.attnum), '[]')
        FROM columns
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = columns.attnum
        LEFT JOIN pg_collation k ON k.oid = a.attcollation
    ),
    'unique_keys', (
        SELECT coalesce(json_agg(json_build_object(
            'columns', ARRAY(
                SELECT a.attname FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
            ),
            'valid', i.indisvalid AND i.indisready AND i.indislive,
            'deferrable', NOT i.indimmediate
        )), '[]')
        FROM pg_index i
        WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisexclusion
          AND i.indpred IS NULL AND i.indexprs IS NULL
    ),
    'rules', (
        SELECT coalesce(json_agg(r.rulename ORDER BY r.rulename), '[]') FROM pg_rewrite r
        WHERE r.ev_class = c.oid AND r.ev_type IN ('2', '3') AND r.ev_enabled <> 'D'
    ),
    'delete_rules', (
        SELECT coalesce(json_agg(r.rulename ORDER BY r.rulename), '[]') FROM pg_rewrite r
        WHERE r.ev_class = c.oid AND r.ev_type = '4' AND r.ev_enabled <> 'D'
    ),
    -- tgtype: 1 of a row, 2 BEFORE, 4 INSERT, 16 UPDATE.
    'row_triggers', EXISTS (
        SELECT FROM tree JOIN pg_trigger t ON t.tgrelid = tree.oid
        WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 3 = 3 AND t.tgtype & 20 <> 0
    ),
    -- 8 DELETE.
    'delete_triggers', EXISTS (
        SELECT FROM tree JOIN pg_trigger t ON t.tgrelid = tree.oid
        WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 3 = 3 AND t.tgtype & 8 <> 0
    ),
    'triggers', EXISTS (
        SELECT FROM tree JOIN pg_trigger t ON t.tgrelid = tree.oid WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
    ),
    'strategy', (SELECT p.partstrat FROM pg_partitioned_table p WHERE p.partrelid = c.oid),
    'partitions', (
        SELECT coalesce(json_agg(json_build_object(
            'name', tree.name, 'kind', tree.kind, 'persistence', tree.persistence,
            'bound', CASE tree.parent WHEN c.oid THEN tree.bound ELSE '' END
        ) ORDER BY tree.name), '[]')
        FROM tree WHERE tree.parent IS NOT NULL
    ),
    'inherited', c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
)
FROM found c

-- name: find
-- The schema and the name of a table; no row if nothing has the name.
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%(table)s)
