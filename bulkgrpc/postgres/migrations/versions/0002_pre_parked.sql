CREATE TABLE bulk.parked (
  topic          text        NOT NULL,
  partition      integer     NOT NULL,
  message_offset bigint      NOT NULL,
  tenant         text        NOT NULL,
  dataset        text        NOT NULL,
  job_id         uuid        NOT NULL,
  records        integer     NOT NULL,
  headers        jsonb       NOT NULL,
  payload        bytea       NOT NULL,
  park_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (topic, partition, message_offset)
);
-- Protobuf hardly compresses, and parking is on the way of every other tenant's batch.
ALTER TABLE bulk.parked ALTER payload SET STORAGE EXTERNAL;
CREATE INDEX parked_by_queue ON bulk.parked (topic, partition, tenant, dataset, message_offset);
CREATE INDEX parked_by_job ON bulk.parked (job_id);
CREATE INDEX parked_by_dataset ON bulk.parked (topic, dataset);
COMMENT ON TABLE bulk.parked IS
  'Messages that the main path passed over, as they came from Kafka: their datasets or jobs are blocked, or their tenants are deferred. Written in the transaction that moves the offset, deleted in the transaction that applies them.';
COMMENT ON COLUMN bulk.parked.records IS 'records in the payload; 0 for a seal';

CREATE TABLE bulk.blocked_datasets (
  dataset         text        PRIMARY KEY,
  cause           text        NOT NULL CHECK (cause IN ('table', 'isolating', 'paused')),
  sqlstate        text        NOT NULL DEFAULT '',
  reason          text        NOT NULL,
  discarding      boolean     NOT NULL DEFAULT false,
  block_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
  trials          integer     NOT NULL DEFAULT 0,
  next_trial_time timestamptz NOT NULL
);
COMMENT ON TABLE bulk.blocked_datasets IS 'Datasets whose tables cannot be written now, or that an operator paused: their messages are parked.';
COMMENT ON COLUMN bulk.blocked_datasets.cause IS
  'table: the table refuses every write, tried again at next_trial_time; isolating: the failure is not of the table as a whole, parked messages are applied one at a time to find the one at fault; paused: by an operator, until resumed';
COMMENT ON COLUMN bulk.blocked_datasets.discarding IS 'parked messages count as expired instead of being written';

CREATE TABLE bulk.blocked_jobs (
  job_id          uuid        PRIMARY KEY,
  sqlstate        text        NOT NULL DEFAULT '',
  reason          text        NOT NULL,
  block_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
  trials          integer     NOT NULL DEFAULT 0,
  next_trial_time timestamptz NOT NULL
);
COMMENT ON TABLE bulk.blocked_jobs IS 'Jobs with a batch that can neither be written nor rejected in time: their messages are parked.';

-- In PL/pgSQL, so that a session plans it once.
CREATE FUNCTION bulk.table_fingerprint(relation regclass) RETURNS text LANGUAGE plpgsql AS $function$
BEGIN
    -- Another transaction might see the table as it was before the lock.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT concat_ws(
               '/', c.oid, c.xmin,
               ARRAY(SELECT a.xmin FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum)::text,
               ARRAY(
                   SELECT (i.indexrelid, i.xmin, i.indisvalid)::text
                   FROM pg_index i WHERE i.indrelid = c.oid ORDER BY i.indexrelid
               )::text,
               -- There are none where pg_class has no mark of them: the look-up is saved.
               CASE WHEN c.relhastriggers THEN ARRAY(
                   SELECT (t.oid, t.xmin)::text FROM pg_trigger t WHERE t.tgrelid = c.oid ORDER BY t.oid
               )::text ELSE '' END,
               CASE WHEN c.relhasrules THEN ARRAY(
                   SELECT (r.oid, r.xmin)::text FROM pg_rewrite r WHERE r.ev_class = c.oid ORDER BY r.oid
               )::text ELSE '' END,
               CASE WHEN c.relkind = 'p' THEN (
                   WITH RECURSIVE tree (oid, kind, version, has_triggers) AS (
                       SELECT c.oid, c.relkind, ''::text, false
                       UNION ALL
                       SELECT i.inhrelid, p.relkind, (i.inhrelid, i.xmin, p.xmin)::text, p.relhastriggers
                       FROM tree
                       JOIN pg_inherits i ON i.inhparent = tree.oid
                       JOIN pg_class p ON p.oid = i.inhrelid
                       WHERE tree.kind = 'p'
                   )
                   SELECT string_agg(
                       version || CASE WHEN has_triggers THEN ARRAY(
                           SELECT (t.oid, t.xmin)::text FROM pg_trigger t WHERE t.tgrelid = tree.oid ORDER BY t.oid
                       )::text ELSE '' END,
                       ' ' ORDER BY oid
                   ) FROM tree
               ) END,
               session_user, current_user,
               has_table_privilege(c.oid, 'INSERT'),
               has_table_privilege(c.oid, 'UPDATE'),
               has_table_privilege(c.oid, 'SELECT'),
               has_database_privilege(current_database(), 'TEMP'),
               row_security_active(c.oid)
           )
    FROM pg_class c
    WHERE c.oid = table_fingerprint.relation);
END
$function$;
COMMENT ON FUNCTION bulk.table_fingerprint(regclass) IS
  'A text that differs after every change of the table that the statement describe (table_contract.sql) could see; null in a transaction that is not READ COMMITTED. A row version (xmin) of a catalog stands for the row. No function that locks a partition is called: whoever attaches a partition may have it locked.';
