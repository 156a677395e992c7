CREATE SCHEMA bulk;

CREATE TABLE bulk.datasets (
  dataset      text        NOT NULL,
  version      integer     NOT NULL CHECK (version >= 1),
  message_type text        NOT NULL,
  descriptors  bytea       NOT NULL,
  create_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
  delete_time  timestamptz,
  PRIMARY KEY (dataset, version)
);
COMMENT ON TABLE bulk.datasets IS 'Message types bound to tables; descriptors is a google.protobuf.FileDescriptorSet.';
COMMENT ON COLUMN bulk.datasets.delete_time IS
  'A deleted version keeps its row: its number is not used again, and its batches on Kafka can still be read.';

-- Jobs are kept for a time and then dropped a day at once: each of their tables is partitioned by the day (UTC) on which
-- the job was opened. `bulk.maintain_days` creates and drops the partitions.
-- Counts and states are updated in place many times: the fill factor leaves room for HOT updates.
CREATE TABLE bulk.jobs (
  create_day      date        NOT NULL,
  job_id          uuid        NOT NULL,
  tenant          text        NOT NULL,
  idempotency_key text        NOT NULL,
  dataset         text        NOT NULL,
  dataset_version integer     NOT NULL,
  labels          jsonb       NOT NULL,
  atomic          boolean     NOT NULL,
  rejections_max  bigint      NOT NULL,
  time_to_live_s  double precision NOT NULL,
  partitions      integer[]   NOT NULL CHECK (cardinality(partitions) >= 1),
  state           smallint    NOT NULL CHECK (state BETWEEN 1 AND 7),
  accepted        bigint      NOT NULL DEFAULT 0,
  written         bigint      NOT NULL DEFAULT 0,
  duplicate       bigint      NOT NULL DEFAULT 0,
  rejected        bigint      NOT NULL DEFAULT 0,
  expired         bigint      NOT NULL DEFAULT 0,
  staged          bigint      NOT NULL DEFAULT 0,
  failure_reason  text        NOT NULL DEFAULT '',
  create_time     timestamptz NOT NULL,
  update_time     timestamptz NOT NULL DEFAULT clock_timestamp(),
  seal_time       timestamptz,
  end_time        timestamptz,
  PRIMARY KEY (create_day, job_id),
  CONSTRAINT every_accepted_record_is_accounted_for
    CHECK (accepted = written + duplicate + rejected + expired + staged),
  CONSTRAINT an_ended_job_has_an_end_time_and_no_staged_rows
    CHECK ((state >= 3) = (end_time IS NOT NULL) AND (state < 3 OR staged = 0))
) PARTITION BY RANGE (create_day);
COMMENT ON COLUMN bulk.jobs.state IS
  '1 open, 2 sealed, 3 succeeded, 4 partially succeeded, 5 failed, 6 cancelled, 7 expired';
COMMENT ON COLUMN bulk.jobs.accepted IS 'records of the batches applied so far';
COMMENT ON COLUMN bulk.jobs.partitions IS 'partition of each lane, fixed when the job is opened';
COMMENT ON COLUMN bulk.jobs.staged IS 'records of an atomic job that are not in the table before its seal';
-- A job is found by its id alone, whatever its day. The statement open_job keeps ids unique over all days.
CREATE INDEX jobs_by_id ON bulk.jobs (job_id);
CREATE INDEX jobs_by_create_time ON bulk.jobs (tenant, create_time DESC, job_id);
CREATE INDEX jobs_not_ended ON bulk.jobs (update_time) WHERE state < 3;

CREATE TABLE bulk.lanes (
  create_day    date    NOT NULL,
  job_id        uuid    NOT NULL,
  lane          integer NOT NULL,
  next_sequence bigint  NOT NULL,
  sealed        boolean NOT NULL DEFAULT false,
  PRIMARY KEY (create_day, job_id, lane)
) PARTITION BY RANGE (create_day);
COMMENT ON TABLE bulk.lanes IS
  'Ledger: the sequence that each lane of a job applies next; the lane of a batch is sequence % lanes.';

CREATE TABLE bulk.batches (
  create_day date    NOT NULL,
  job_id     uuid    NOT NULL,
  sequence   bigint  NOT NULL,
  digest     bytea   NOT NULL,
  PRIMARY KEY (create_day, job_id, sequence)
) PARTITION BY RANGE (create_day);
COMMENT ON TABLE bulk.batches IS 'Ledger: the first 128 bits of the SHA-256 of each applied batch; another batch with its sequence is rejected.';

CREATE TABLE bulk.rejections (
  create_day   date    NOT NULL,
  rejection_id bigint  GENERATED ALWAYS AS IDENTITY,
  job_id       uuid    NOT NULL,
  sequence     bigint  NOT NULL,
  record_index integer NOT NULL,
  code         text    NOT NULL,
  field        text    NOT NULL,
  reason       text    NOT NULL,
  record       bytea   NOT NULL
) PARTITION BY RANGE (create_day);
COMMENT ON TABLE bulk.rejections IS 'Rejected records, with their position in the job and the reason.';
CREATE INDEX rejections_by_position ON bulk.rejections (job_id, sequence, record_index, rejection_id);

CREATE TABLE bulk.offsets (
  topic       text    NOT NULL,
  partition   integer NOT NULL,
  next_offset bigint  NOT NULL,
  owner_epoch bigint  NOT NULL,
  PRIMARY KEY (topic, partition)
) WITH (fillfactor = 10);
COMMENT ON TABLE bulk.offsets IS 'Ledger: the next offset of each partition, and the epoch of its owner.';

CREATE TABLE bulk.dedupe (
  dataset       text             PRIMARY KEY,
  window_s      double precision NOT NULL,
  current_table smallint         NOT NULL DEFAULT 0 CHECK (current_table IN (0, 1)),
  rotate_time   timestamptz      NOT NULL DEFAULT clock_timestamp(),
  filter        bytea
);
ALTER TABLE bulk.dedupe ALTER filter SET STORAGE EXTERNAL;
COMMENT ON COLUMN bulk.dedupe.filter IS 'Bloom filter of the hashes in the previous generation, null if there is none.';
COMMENT ON TABLE bulk.dedupe IS
  'Datasets that remember records. Each has two tables of hashes; current_table is added to since rotate_time.';

-- Creates the partitions of yesterday to the day after tomorrow, and drops those of jobs opened before the last
-- `retention_days` days. A day is kept while one of its jobs has not ended. A day without partitions whose rows are in the
-- default partition already gets none.
CREATE FUNCTION bulk.maintain_days(today date, retention_days integer) RETURNS void LANGUAGE plpgsql AS $$
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
  WHERE d < today - retention_days AND NOT EXISTS (SELECT FROM bulk.jobs j WHERE j.create_day = d AND j.state < 3);
  FOREACH day IN ARRAY coalesce(old_days, '{}') LOOP
    FOREACH parent IN ARRAY parents LOOP
      EXECUTE format('DROP TABLE IF EXISTS bulk.%I', format('%s_%s', parent, to_char(day, 'YYYYMMDD')));
    END LOOP;
  END LOOP;
  FOREACH parent IN ARRAY parents LOOP
    EXECUTE format('DELETE FROM bulk.%I o WHERE create_day < %L AND NOT EXISTS '
                   '(SELECT FROM bulk.jobs j WHERE j.create_day = o.create_day AND j.job_id = o.job_id AND j.state < 3)',
                   parent || '_other', today - retention_days);
  END LOOP;
END
$$;
-- Rows of a day without partitions go to the default ones.
CREATE TABLE bulk.jobs_other PARTITION OF bulk.jobs DEFAULT;
CREATE TABLE bulk.lanes_other PARTITION OF bulk.lanes DEFAULT;
CREATE TABLE bulk.batches_other PARTITION OF bulk.batches DEFAULT;
CREATE TABLE bulk.rejections_other PARTITION OF bulk.rejections DEFAULT;
SELECT bulk.maintain_days((now() AT TIME ZONE 'UTC')::date, 36500);
