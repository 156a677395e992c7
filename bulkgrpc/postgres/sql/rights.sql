-- name: missing
-- The rights on the database, on the schemas and on the objects of ours that a role lacks; see bulkgrpc.postgres.rights.
-- Tables of datasets are checked when they are written. %(role)s: null for the current role.
SELECT needed.privilege, needed.kind, needed.object
FROM (SELECT coalesce(%(role)s::name, current_user::name) AS name) AS grantee
CROSS JOIN LATERAL (
  SELECT privilege, 'DATABASE' AS kind, quote_ident(current_database()) AS object,
         has_database_privilege(grantee.name, current_database(), privilege) AS granted
  FROM unnest(ARRAY['CONNECT', 'TEMPORARY']) AS privilege
  UNION ALL
  SELECT privilege, 'SCHEMA', quote_ident(n.nspname), has_schema_privilege(grantee.name, n.oid, privilege)
  FROM pg_namespace n, unnest(ARRAY['USAGE', 'CREATE']) AS privilege
  WHERE n.nspname IN ('bulk', 'public')
  UNION ALL
  SELECT privilege, 'TABLE', format('%%I.%%I', n.nspname, c.relname), has_table_privilege(grantee.name, c.oid, privilege)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL unnest(
    CASE WHEN c.relkind = 'v' OR n.nspname = 'public' THEN ARRAY['SELECT']
         ELSE ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END
  ) AS privilege
  WHERE n.nspname = 'bulk' AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
        AND c.relname !~ '^(staged|hashes|rows)_[0-9a-f]{24}'
     OR n.nspname = 'public' AND c.relname = 'alembic_version'
  UNION ALL
  SELECT 'EXECUTE', 'FUNCTION', format('bulk.%%I(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
         has_function_privilege(grantee.name, p.oid, 'EXECUTE')
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname = 'bulk' AND p.prokind = 'f'
) AS needed
WHERE NOT needed.granted
ORDER BY needed.kind, needed.object, needed.privilege

-- name: tables_of_datasets
-- Tables of datasets that the current role may grant and that are not the grantee's: where the service ran as another role.
SELECT format('%%I.%%I', n.nspname, c.relname), n.nspname = 'bulk'
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
  AND (n.nspname = 'public' AND c.relname IN (SELECT dataset FROM bulk.datasets WHERE delete_time IS NULL)
       OR n.nspname = 'bulk' AND c.relname ~ '^(staged|hashes|rows)_[0-9a-f]{24}')
  AND pg_has_role(current_user, c.relowner, 'USAGE')
  AND NOT pg_has_role(%(role)s::name, c.relowner, 'USAGE')
ORDER BY 1
