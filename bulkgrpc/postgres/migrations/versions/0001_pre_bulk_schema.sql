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
  'A deleted version stays: its number is not given again, and batches of it that are on Kafka still can be read.';

-- What is known of jobs is kept for a time and then dropped a day at once: every table of it is partitioned by the day
-- (UTC) on which its job was opened. `bulk.keep_days` makes and drops the partitions.
-- Counts and states change in place many times: leave room for HOT updates.
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
  staged            bigint      NOT NULL DEFAULT 0,
  failure         text        NOT NULL DEFAULT '',
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
COMMENT ON COLUMN bulk.jobs.partitions IS 'where the batches of each lane go, from its opening on';
COMMENT ON COLUMN bulk.jobs.staged IS 'records of an atomic job that wait for its seal';
-- A job is found by its id alone, on whichever day it was opened; bulk.open_job keeps ids unique over the days.
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
  'Ledger: the sequence that each lane of a job applies next; a batch is of the lane sequence % lanes.';

CREATE TABLE bulk.batches (
  create_day date    NOT NULL,
  job_id     uuid    NOT NULL,
  sequence   bigint  NOT NULL,
  digest     bytea   NOT NULL,
  PRIMARY KEY (create_day, job_id, sequence)
) PARTITION BY RANGE (create_day);
COMMENT ON TABLE bulk.batches IS 'Ledger: the first 128 bits of the SHA-256 of each batch applied; the same sequence with another is refused.';

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
COMMENT ON TABLE bulk.rejections IS 'Records that could not be applied, with their place in the job and the reason.';
CREATE INDEX rejections_by_place ON bulk.rejections (job_id, sequence, record_index, rejection_id);

CREATE TABLE bulk.offsets (
  topic       text    NOT NULL,
  partition   integer NOT NULL,
  next_offset bigint  NOT NULL,
  owner_epoch bigint  NOT NULL,
  PRIMARY KEY (topic, partition)
) WITH (fillfactor = 10);
COMMENT ON TABLE bulk.offsets IS 'Ledger: the offset that each partition reads next, and the epoch of the worker that may move it.';

CREATE TABLE bulk.dedupe (
  dataset     text             PRIMARY KEY,
  window_s    double precision NOT NULL,
  half        smallint         NOT NULL DEFAULT 0 CHECK (half IN (0, 1)),
  change_time timestamptz      NOT NULL DEFAULT clock_timestamp(),
  filter      bytea,
  -- Makes the half part of a key: who saw another one cannot lock the row, see get_halves.
  UNIQUE (dataset, half)
);
ALTER TABLE bulk.dedupe ALTER filter SET STORAGE EXTERNAL;
COMMENT ON COLUMN bulk.dedupe.filter IS 'A Bloom filter of the hashes in the half that is not added to.';
COMMENT ON TABLE bulk.dedupe IS
  'Datasets whose records are remembered; the hashes are in two tables each, of which `half` is added to since change_time.';

-- Make the partitions of the days to come, and drop those of jobs opened before the last `retention_days` days. A day
-- stays while one of its jobs has not ended. A day of which rows have come already, before anybody made its partitions,
-- is left where they are: in the default partition.
CREATE FUNCTION bulk.keep_days(today date, retention_days integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  parents CONSTANT text[] := ARRAY['jobs', 'lanes', 'batches', 'rejections'];
  parent text;
  day date;
  child text;
  old_days date[];
  strayed boolean;
BEGIN
  -- Nobody must wait behind us for those whom we wait for.
  SET LOCAL lock_timeout = '500ms';
  FOREACH parent IN ARRAY parents LOOP
    FOR day IN SELECT today + n FROM generate_series(-1, 2) AS n LOOP
      child := format('%s_%s', parent, to_char(day, 'YYYYMMDD'));
      CONTINUE WHEN to_regclass(format('bulk.%I', child)) IS NOT NULL;
      EXECUTE format('SELECT EXISTS (SELECT FROM bulk.%I WHERE create_day = %L)', parent || '_other', day) INTO strayed;
      CONTINUE WHEN strayed;
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
-- A day that nobody made a partition for must not stop anybody.
CREATE TABLE bulk.jobs_other PARTITION OF bulk.jobs DEFAULT;
CREATE TABLE bulk.lanes_other PARTITION OF bulk.lanes DEFAULT;
CREATE TABLE bulk.batches_other PARTITION OF bulk.batches DEFAULT;
CREATE TABLE bulk.rejections_other PARTITION OF bulk.rejections DEFAULT;
SELECT bulk.keep_days((now() AT TIME ZONE 'UTC')::date, 36500);
