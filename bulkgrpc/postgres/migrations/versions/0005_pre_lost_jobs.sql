ALTER TABLE bulk.jobs
  ADD COLUMN lost boolean NOT NULL DEFAULT false,
  ADD COLUMN attempt integer NOT NULL DEFAULT 0,
  ADD CONSTRAINT a_job_that_lost_batches_has_failed CHECK (NOT lost OR state = 5);
COMMENT ON COLUMN bulk.jobs.lost IS
  'Whether the job failed because Kafka lost batches of it: no message of it is applied any more, and its client can open it again.';
COMMENT ON COLUMN bulk.jobs.attempt IS
  'How often the job was opened again after a loss. Messages of an earlier attempt neither seal the job nor show a loss.';

-- As bulk.lock_jobs, which workers of the release before this one call, with attempt and lost.
CREATE FUNCTION bulk.lock_chunk_jobs(job_ids uuid[])
RETURNS TABLE (
  job_id uuid, create_day date, state smallint, counts bigint[], atomic boolean, rejections_max bigint,
  lane_count integer, dataset_version integer, deleted_version integer, staged bigint, attempt integer,
  lost boolean, lanes integer[], next_sequences bigint[], sealed boolean[]
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
         j.staged, j.attempt, j.lost, l.lanes, l.next_sequences, l.sealed
  FROM unnest(found_ids, found_days) AS found (job_id, create_day)
  JOIN bulk.jobs j ON j.job_id = found.job_id AND j.create_day = found.create_day
  CROSS JOIN LATERAL (
    SELECT array_agg(l.lane) AS lanes, array_agg(l.next_sequence) AS next_sequences, array_agg(l.sealed) AS sealed
    FROM bulk.lanes l
    WHERE l.create_day = j.create_day AND l.job_id = j.job_id
  ) l;
END $$;
COMMENT ON FUNCTION bulk.lock_chunk_jobs(uuid[]) IS
  'The jobs of a chunk, and their lanes. A transaction that ends a job waits for the chunk (FOR UPDATE, in lock_job_row); one that seals it does not. deleted_version: the last version of its dataset that was deleted, 0 if none was. Nothing else writes the lanes of these jobs in the chunk''s partitions: the offset rows are locked, and the express path locks the jobs (lock_jobs_alone).';

-- As bulk.lock_jobs_alone, which workers of the release before this one call, with the jobs that it locked.
CREATE FUNCTION bulk.lock_jobs_exclusively(job_ids uuid[]) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT j.job_id FROM bulk.jobs j WHERE j.job_id = ANY (job_ids) ORDER BY j.job_id FOR UPDATE OF j;
END $$;
COMMENT ON FUNCTION bulk.lock_jobs_exclusively(uuid[]) IS
  'Keeps every other transaction that applies messages of these jobs waiting, until this one ends. For the express path, which does not lock the offsets of partitions. A job whose row is created later is not locked.';
