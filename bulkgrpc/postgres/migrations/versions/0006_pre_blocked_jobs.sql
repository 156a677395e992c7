ALTER TABLE bulk.blocked_jobs
  ADD COLUMN missing_dataset text NOT NULL DEFAULT '',
  ADD COLUMN missing_version integer NOT NULL DEFAULT 0,
  ADD COLUMN discard_reason text NOT NULL DEFAULT '';
COMMENT ON TABLE bulk.blocked_jobs IS
  'Jobs with a message that can neither be applied nor rejected now: their messages are parked, and those of their queues after them.';
COMMENT ON COLUMN bulk.blocked_jobs.missing_version IS
  'the version of missing_dataset that the registry does not have: the job is tried as soon as it has; 0: it waits for something else';
COMMENT ON COLUMN bulk.blocked_jobs.discard_reason IS
  'why an operator discards the job: its parked records are rejected, and its seal ends it as FAILED; empty if that is not so';

-- As before, but for jobs that an operator discards: the main path parks their messages, a drain rejects them.
CREATE OR REPLACE FUNCTION bulk.deferrals(
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
  WHERE b.job_id = ANY (job_ids)
    AND (b.next_trial_time > clock_timestamp() OR (main_path AND b.discard_reason <> ''))
  UNION ALL
  SELECT 'discarded_job', b.job_id::text, b.discard_reason, 0
  FROM bulk.blocked_jobs b
  WHERE NOT main_path AND b.job_id = ANY (job_ids) AND b.discard_reason <> ''
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
