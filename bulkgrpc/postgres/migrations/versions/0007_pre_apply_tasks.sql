CREATE TABLE bulk.apply_tasks (
  job_id            uuid        PRIMARY KEY,
  task_number       bigint      GENERATED ALWAYS AS IDENTITY,
  create_day        date        NOT NULL,
  tenant            text        NOT NULL,
  dataset           text        NOT NULL,
  dataset_version   integer     NOT NULL,
  staged_rows       bigint      NOT NULL CHECK (staged_rows > 0),
  create_time       timestamptz NOT NULL DEFAULT clock_timestamp(),
  slow              boolean     NOT NULL DEFAULT false,
  attempts          integer     NOT NULL DEFAULT 0,
  next_attempt_time timestamptz NOT NULL DEFAULT clock_timestamp(),
  block_cause       text        CHECK (block_cause IN ('table', 'job')),
  sqlstate          text        NOT NULL DEFAULT '',
  reason            text        NOT NULL DEFAULT '',
  block_time        timestamptz,
  CHECK ((block_cause IS NULL) = (block_time IS NULL))
);
-- Rows come and go.
ALTER TABLE bulk.apply_tasks SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE bulk.apply_tasks IS
  'Sealed atomic jobs whose staged rows are to be applied. Written in the transaction that applies the last seal, deleted in the one that applies the rows and ends the job. A worker locks the row for as long as it applies them.';
COMMENT ON COLUMN bulk.apply_tasks.task_number IS 'Those of one tenant and dataset are applied in this order.';
COMMENT ON COLUMN bulk.apply_tasks.slow IS 'Its rows took too long for the thread that applies small jobs.';
COMMENT ON COLUMN bulk.apply_tasks.block_cause IS
  'Why it waits for next_attempt_time; null: it waits for nothing. table: its table cannot be written now; job: its rows can neither be written nor rejected in time';

-- Not columns of bulk.apply_tasks: that row is locked by the transaction whose progress this is.
CREATE TABLE bulk.apply_progress (
  job_id       uuid        PRIMARY KEY,
  applied_rows bigint      NOT NULL,
  update_time  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE bulk.apply_progress IS
  'How many of its staged rows the attempt that is under way has applied, of large jobs. Not part of the ledger: nothing is decided by it.';

-- As before, and of a sealed atomic job why its staged rows are not applied.
CREATE OR REPLACE FUNCTION bulk.job_block(blocked_job uuid, blocked_dataset text)
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
    SELECT 'job' AS cause, b.reason, b.block_time FROM bulk.blocked_jobs b
    WHERE b.job_id = blocked_job AND EXISTS (SELECT FROM mine)
    UNION ALL
    -- Isolation stops no task.
    SELECT b.cause, b.reason, b.block_time FROM bulk.blocked_datasets b
    WHERE b.dataset = blocked_dataset
      AND (EXISTS (SELECT FROM mine)
           OR (b.cause <> 'isolating' AND EXISTS (SELECT FROM bulk.apply_tasks t WHERE t.job_id = blocked_job)))
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
    UNION ALL
    SELECT t.block_cause, t.reason, t.block_time FROM bulk.apply_tasks t
    WHERE t.job_id = blocked_job AND t.block_cause IS NOT NULL
    UNION ALL
    (SELECT 'queue', 'waits for tenants/' || e.tenant || '/jobs/' || e.job_id || ': ' || e.reason, e.block_time
     FROM bulk.apply_tasks t
     JOIN bulk.apply_tasks e ON e.tenant = t.tenant AND e.dataset = t.dataset AND e.task_number < t.task_number
     WHERE t.job_id = blocked_job AND e.block_cause IS NOT NULL
     ORDER BY e.task_number LIMIT 1)
  ) found
  LIMIT 1
$$;
COMMENT ON FUNCTION bulk.job_block(uuid, text) IS
  'Why a job is blocked: its own batch or staged rows, its dataset, or a blocked job before it in its queue. No row if nothing of it waits, or what waits is about to be applied.';
