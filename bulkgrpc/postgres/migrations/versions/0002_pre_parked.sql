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
CREATE INDEX parked_by_job ON bulk.parked (job_id, topic, partition, tenant, dataset, message_offset);
-- A queue: its rows come and go.
ALTER TABLE bulk.parked SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX parked_by_dataset ON bulk.parked (topic, dataset, partition, tenant);
COMMENT ON TABLE bulk.parked IS
  'Messages that the main path passed over, as they came from Kafka: their datasets or jobs are blocked, or their tenants are deferred. Written in the transaction that moves the offset, deleted in the transaction that applies them.';
COMMENT ON COLUMN bulk.parked.records IS 'records in the payload; 0 for a seal';

CREATE TABLE bulk.blocked_datasets (
  dataset         text        PRIMARY KEY,
  cause           text        NOT NULL CHECK (cause IN ('table', 'isolating', 'paused')),
  sqlstate        text        NOT NULL DEFAULT '',
  reason          text        NOT NULL,
  block_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
  trials          integer     NOT NULL DEFAULT 0,
  next_trial_time timestamptz NOT NULL
);
COMMENT ON TABLE bulk.blocked_datasets IS 'Datasets whose tables cannot be written now, or that an operator paused: their messages are parked.';
COMMENT ON COLUMN bulk.blocked_datasets.cause IS
  'table: the table refuses every write, tried again at next_trial_time; isolating: the failure is not of the table as a whole, parked messages are applied one at a time to find the one at fault; paused: by an operator, until resumed';

CREATE TABLE bulk.blocked_jobs (
  job_id          uuid        PRIMARY KEY,
  sqlstate        text        NOT NULL DEFAULT '',
  reason          text        NOT NULL,
  block_time      timestamptz NOT NULL DEFAULT clock_timestamp(),
  trials          integer     NOT NULL DEFAULT 0,
  next_trial_time timestamptz NOT NULL
);
COMMENT ON TABLE bulk.blocked_jobs IS 'Jobs with a batch that can neither be written nor rejected in time: their messages are parked, and those of their queues after them.';

CREATE TABLE bulk.discards (
  dataset      text        NOT NULL,
  topic        text        NOT NULL,
  partition    integer     NOT NULL,
  to_offset    bigint      NOT NULL,
  reason       text        NOT NULL,
  discard_time timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (dataset, topic, partition)
);
COMMENT ON TABLE bulk.discards IS
  'What an operator discards: the parked messages of a dataset in a partition up to an offset. Their records count as expired. A row is deleted once no such message is parked.';
COMMENT ON COLUMN bulk.discards.to_offset IS 'the offset after the last message that is discarded: the position of the partition when the operator asked';

-- Each step is one look-up in parked_by_job, however many messages are parked. An inequality of job_id instead of an
-- equality keeps it in the order that is asked for, which no other index has: no plan reads the messages of others instead.
CREATE VIEW bulk.blocked_queues AS
WITH RECURSIVE firsts (job_id, topic, partition, tenant, dataset, message_offset) AS (
  SELECT n.*
  FROM bulk.blocked_jobs b CROSS JOIN LATERAL (
    SELECT p.job_id, p.topic, p.partition, p.tenant, p.dataset, p.message_offset FROM bulk.parked p
    WHERE p.job_id >= b.job_id AND p.job_id <= b.job_id
    ORDER BY p.job_id, p.topic, p.partition, p.tenant, p.dataset, p.message_offset LIMIT 1
  ) n
  UNION ALL
  SELECT n.*
  FROM firsts f CROSS JOIN LATERAL (
    SELECT p.job_id, p.topic, p.partition, p.tenant, p.dataset, p.message_offset FROM bulk.parked p
    WHERE p.job_id <= f.job_id
      AND (p.job_id, p.topic, p.partition, p.tenant, p.dataset) > (f.job_id, f.topic, f.partition, f.tenant, f.dataset)
    ORDER BY p.job_id, p.topic, p.partition, p.tenant, p.dataset, p.message_offset LIMIT 1
  ) n
)
SELECT f.topic, f.partition, f.tenant, f.dataset, f.message_offset, f.job_id, b.reason, b.trials, b.block_time
FROM firsts f JOIN bulk.blocked_jobs b USING (job_id);
COMMENT ON VIEW bulk.blocked_queues IS
  'The queues in which a blocked job has parked messages, with the first of them: what follows it waits. A row per queue and job.';

CREATE FUNCTION bulk.job_block(blocked_job uuid, blocked_dataset text)
RETURNS TABLE (block_cause text, block_reason text, block_time timestamptz) LANGUAGE sql STABLE AS $$
  -- The queues in which the job has parked messages. One look-up in parked_by_job for each, as in bulk.blocked_queues.
  WITH RECURSIVE mine (job_id, topic, partition, tenant, dataset) AS (
    SELECT n.*
    FROM (
      SELECT p.job_id, p.topic, p.partition, p.tenant, p.dataset FROM bulk.parked p
      WHERE p.job_id >= blocked_job AND p.job_id <= blocked_job
      ORDER BY p.job_id, p.topic, p.partition, p.tenant, p.dataset LIMIT 1
    ) n
    UNION ALL
    SELECT n.*
    FROM mine m CROSS JOIN LATERAL (
      SELECT p.job_id, p.topic, p.partition, p.tenant, p.dataset FROM bulk.parked p
      WHERE p.job_id <= m.job_id
        AND (p.job_id, p.topic, p.partition, p.tenant, p.dataset) > (m.job_id, m.topic, m.partition, m.tenant, m.dataset)
      ORDER BY p.job_id, p.topic, p.partition, p.tenant, p.dataset LIMIT 1
    ) n
  )
  SELECT found.cause, found.reason, found.block_time
  FROM (
    SELECT 'job' AS cause, b.reason, b.block_time FROM bulk.blocked_jobs b WHERE b.job_id = blocked_job
    UNION ALL
    SELECT b.cause, b.reason, b.block_time FROM bulk.blocked_datasets b WHERE b.dataset = blocked_dataset
    UNION ALL
    (SELECT 'queue', 'waits for tenants/' || m.tenant || '/jobs/' || b.job_id || ': ' || b.reason, b.block_time
     FROM mine m
     CROSS JOIN LATERAL (
       SELECT p.message_offset FROM bulk.parked p
       WHERE p.job_id >= m.job_id
         AND (p.job_id, p.topic, p.partition, p.tenant, p.dataset) <= (m.job_id, m.topic, m.partition, m.tenant, m.dataset)
       ORDER BY p.job_id DESC, p.topic DESC, p.partition DESC, p.tenant DESC, p.dataset DESC, p.message_offset DESC LIMIT 1
     ) last
     CROSS JOIN bulk.blocked_jobs b
     CROSS JOIN LATERAL (
       SELECT p.job_id, p.topic, p.partition, p.tenant, p.dataset, p.message_offset FROM bulk.parked p
       WHERE p.job_id <= b.job_id
         AND (p.job_id, p.topic, p.partition, p.tenant, p.dataset) >= (b.job_id, m.topic, m.partition, m.tenant, m.dataset)
       ORDER BY p.job_id, p.topic, p.partition, p.tenant, p.dataset, p.message_offset LIMIT 1
     ) first
     WHERE (first.topic, first.partition) = (m.topic, m.partition)
       AND (first.tenant, first.dataset) = (m.tenant, m.dataset) AND first.message_offset < last.message_offset
     LIMIT 1)
  ) found
  WHERE EXISTS (SELECT FROM mine)
  LIMIT 1
$$;
COMMENT ON FUNCTION bulk.job_block(uuid, text) IS
  'Why a job is blocked: its own batch, its dataset, or a blocked job before it in its queue. No row if nothing of it is parked, or what is parked is about to be applied.';

ALTER TABLE bulk.jobs ADD COLUMN skipped bigint NOT NULL DEFAULT 0;
ALTER TABLE bulk.jobs DROP CONSTRAINT every_accepted_record_is_accounted_for;
ALTER TABLE bulk.jobs ADD CONSTRAINT every_accepted_record_is_accounted_for
  CHECK (accepted = written + duplicate + rejected + expired + skipped + staged);
ALTER TABLE bulk.jobs ADD COLUMN discard_reason text NOT NULL DEFAULT '';
COMMENT ON COLUMN bulk.jobs.discard_reason IS 'why an operator discarded records of the job; empty if that did not happen';
COMMENT ON COLUMN bulk.jobs.skipped IS 'records that a trigger of the table did not let in: it returned NULL';

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
  'A text that differs after every change of the table that the statement describe (table_contract.sql) could see; null in a transaction that is not READ COMMITTED. A row version (xmin) of a catalog stands for the row. No function that locks a partition is called: a session that attaches a partition may have it locked.';

-- What begins the transaction of a chunk. In PL/pgSQL, so that a session plans each query once: the three are sent
-- together, as one message, and each sees what was committed before it began.
CREATE FUNCTION bulk.lock_offsets(topic text, partitions integer[])
RETURNS TABLE (partition integer, next_offset bigint, owner_epoch bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT o.partition, o.next_offset, o.owner_epoch
  FROM bulk.offsets o
  WHERE o.topic = lock_offsets.topic AND o.partition = ANY (partitions)
  ORDER BY o.partition
  FOR UPDATE;
END $$;
COMMENT ON FUNCTION bulk.lock_offsets(text, integer[]) IS
  'Positions of partitions, locked until the transaction ends: a stale owner waits here, then reads the new epoch.';

CREATE FUNCTION bulk.deferrals(
  topic text, main_path boolean, datasets text[], job_ids uuid[], partitions integer[], tenants text[],
  queue_datasets text[], last_offset bigint
)
RETURNS TABLE (kind text, name text, detail text, partition integer) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
  SELECT 'dataset', b.dataset, '', 0
  FROM bulk.blocked_datasets b
  WHERE b.dataset = ANY (datasets) AND (b.cause <> 'isolating' OR (main_path AND b.next_trial_time > clock_timestamp()))
  UNION ALL
  SELECT 'job', b.job_id::text, '', 0
  FROM bulk.blocked_jobs b
  WHERE b.job_id = ANY (job_ids) AND b.next_trial_time > clock_timestamp()
  UNION ALL
  SELECT 'discard', d.dataset, d.reason, 0
  FROM bulk.discards d
  WHERE NOT main_path AND d.dataset = ANY (datasets) AND d.topic = deferrals.topic
    AND d.partition = ANY (partitions) AND d.to_offset > last_offset
  UNION ALL
  SELECT 'queue', q.tenant, q.dataset, q.partition
  FROM unnest(partitions, tenants, queue_datasets) AS q (partition, tenant, dataset)
  WHERE EXISTS (
    SELECT FROM bulk.parked p
    WHERE p.topic = deferrals.topic AND p.partition = q.partition AND p.tenant = q.tenant AND p.dataset = q.dataset
  );
END $$;
COMMENT ON FUNCTION bulk.deferrals(text, boolean, text[], uuid[], integer[], text[], text[], bigint) IS
  'What decides whether messages are parked: their blocked datasets and jobs, and those of their queues that have parked messages; for a drain, whether all of its messages are discarded. Isolation is a block for the main path only, and ends by itself.';

CREATE FUNCTION bulk.lock_jobs(job_ids uuid[])
RETURNS TABLE (
  job_id uuid, create_day date, state smallint, counts bigint[], atomic boolean, rejections_max bigint,
  lane_count integer, dataset_version integer, deleted_version integer, staged bigint, lanes integer[],
  next_sequences bigint[], sealed boolean[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  found_ids uuid[];
  found_days date[];
BEGIN
  -- A statement of its own: one that waits for a row reads the row as it is then, but all other rows as they were before.
  SELECT array_agg(found.job_id), array_agg(found.create_day) INTO found_ids, found_days
  FROM (
    SELECT j.job_id, j.create_day FROM bulk.jobs j
    WHERE j.job_id = ANY (job_ids)
    ORDER BY j.job_id
    FOR KEY SHARE OF j
  ) found;
  RETURN QUERY
  SELECT j.job_id, j.create_day, j.state,
         ARRAY[j.accepted, j.written, j.duplicate, j.rejected, j.expired, j.skipped], j.atomic, j.rejections_max,
         cardinality(j.partitions), j.dataset_version,
         (SELECT coalesce(max(d.version), 0) FROM bulk.datasets d
          WHERE d.dataset = j.dataset AND d.delete_time IS NOT NULL),
         j.staged, l.lanes, l.next_sequences, l.sealed
  FROM unnest(found_ids, found_days) AS found (job_id, create_day)
  JOIN bulk.jobs j ON j.job_id = found.job_id AND j.create_day = found.create_day
  CROSS JOIN LATERAL (
    SELECT array_agg(l.lane) AS lanes, array_agg(l.next_sequence) AS next_sequences, array_agg(l.sealed) AS sealed
    FROM bulk.lanes l
    WHERE l.create_day = j.create_day AND l.job_id = j.job_id
  ) l;
END $$;
COMMENT ON FUNCTION bulk.lock_jobs(uuid[]) IS
  'The jobs of a chunk, and their lanes. A transaction that ends a job waits for the chunk (FOR UPDATE, in lock_job_row); one that seals it does not. deleted_version: the last version of its dataset that was deleted, 0 if none was. Nothing else writes the lanes of these jobs in the chunk''s partitions: the offset rows are locked, and the express path locks the jobs (lock_jobs_alone).';

CREATE FUNCTION bulk.lock_jobs_alone(job_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  PERFORM FROM bulk.jobs j WHERE j.job_id = ANY (job_ids) ORDER BY j.job_id FOR UPDATE OF j;
END $$;
COMMENT ON FUNCTION bulk.lock_jobs_alone(uuid[]) IS
  'Keeps every other transaction that applies messages of these jobs waiting, until this one ends. For the express path, which does not lock the offsets of partitions.';

-- As before, but a day stays while a job of it has parked messages: they would open the job again.
CREATE OR REPLACE FUNCTION bulk.maintain_days(today date, retention_days integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  parents CONSTANT text[] := ARRAY['jobs', 'lanes', 'batches', 'rejections'];
  parent text;
  day date;
  child text;
  old_days date[];
  in_default boolean;
BEGIN
  -- Other transactions queue behind a lock that is waited for: wait briefly.
  SET LOCAL lock_timeout = '500ms';
  FOREACH parent IN ARRAY parents LOOP
    FOR day IN SELECT today + n FROM generate_series(-1, 2) AS n LOOP
      child := format('%s_%s', parent, to_char(day, 'YYYYMMDD'));
      CONTINUE WHEN to_regclass(format('bulk.%I', child)) IS NOT NULL;
      EXECUTE format('SELECT EXISTS (SELECT FROM bulk.%I WHERE create_day = %L)', parent || '_other', day) INTO in_default;
      CONTINUE WHEN in_default;
      EXECUTE format('CREATE TABLE bulk.%I PARTITION OF bulk.%I FOR VALUES FROM (%L) TO (%L)%s',
                     child, parent, day, day + 1,
                     CASE WHEN parent IN ('jobs', 'lanes') THEN ' WITH (fillfactor = 70)' ELSE '' END);
    END LOOP;
  END LOOP;
  SELECT array_agg(d) INTO old_days
  FROM (SELECT DISTINCT to_date(right(c.relname, 8), 'YYYYMMDD') AS d
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'bulk.jobs'::regclass AND c.relname ~ '_[0-9]{8}$') AS days
  WHERE d < today - retention_days AND NOT EXISTS (
    SELECT FROM bulk.jobs j
    WHERE j.create_day = d AND (j.state < 3 OR EXISTS (SELECT FROM bulk.parked p WHERE p.job_id = j.job_id))
  );
  FOREACH day IN ARRAY coalesce(old_days, '{}') LOOP
    FOREACH parent IN ARRAY parents LOOP
      EXECUTE format('DROP TABLE IF EXISTS bulk.%I', format('%s_%s', parent, to_char(day, 'YYYYMMDD')));
    END LOOP;
  END LOOP;
  FOREACH parent IN ARRAY parents LOOP
    EXECUTE format('DELETE FROM bulk.%I o WHERE create_day < %L AND NOT EXISTS '
                   '(SELECT FROM bulk.jobs j WHERE j.create_day = o.create_day AND j.job_id = o.job_id '
                   'AND (j.state < 3 OR EXISTS (SELECT FROM bulk.parked p WHERE p.job_id = j.job_id)))',
                   parent || '_other', today - retention_days);
  END LOOP;
END
$$;
