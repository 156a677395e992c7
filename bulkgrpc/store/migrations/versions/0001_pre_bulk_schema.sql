CREATE SCHEMA bulk;

CREATE TABLE bulk.datasets (
  dataset      text        NOT NULL,
  version      integer     NOT NULL CHECK (version >= 1),
  message_type text        NOT NULL,
  descriptors  bytea       NOT NULL,
  create_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (dataset, version)
);
COMMENT ON TABLE bulk.datasets IS 'Message types bound to tables; descriptors is a google.protobuf.FileDescriptorSet.';

-- Counts and states change in place many times: leave room for HOT updates.
CREATE TABLE bulk.jobs (
  job_id          uuid        PRIMARY KEY,
  tenant          text        NOT NULL,
  idempotency_key text        NOT NULL,
  dataset         text        NOT NULL,
  dataset_version integer     NOT NULL,
  labels          jsonb       NOT NULL,
  partition       integer     NOT NULL,
  state           smallint    NOT NULL CHECK (state BETWEEN 1 AND 5),
  accepted        bigint      NOT NULL DEFAULT 0,
  written         bigint      NOT NULL DEFAULT 0,
  duplicate       bigint      NOT NULL DEFAULT 0,
  rejected        bigint      NOT NULL DEFAULT 0,
  create_time     timestamptz NOT NULL,
  seal_time       timestamptz,
  end_time        timestamptz,
  CONSTRAINT every_accepted_record_is_accounted_for CHECK (accepted = written + duplicate + rejected),
  CONSTRAINT an_ended_job_has_its_times CHECK ((state >= 3) = (end_time IS NOT NULL) AND (state = 1) = (seal_time IS NULL))
) WITH (fillfactor = 70);
COMMENT ON COLUMN bulk.jobs.state IS '1 open, 2 sealed, 3 succeeded, 4 partially succeeded, 5 failed';
COMMENT ON COLUMN bulk.jobs.accepted IS 'records of the batches applied so far';
CREATE INDEX jobs_by_create_time ON bulk.jobs (tenant, create_time DESC, job_id);

CREATE TABLE bulk.lanes (
  job_id        uuid    NOT NULL REFERENCES bulk.jobs ON DELETE CASCADE,
  lane          integer NOT NULL,
  next_sequence bigint  NOT NULL,
  sealed        boolean NOT NULL DEFAULT false,
  PRIMARY KEY (job_id, lane)
) WITH (fillfactor = 70);
COMMENT ON TABLE bulk.lanes IS 'Ledger: the sequence that each lane of a job applies next.';

CREATE TABLE bulk.offsets (
  topic       text    NOT NULL,
  partition   integer NOT NULL,
  next_offset bigint  NOT NULL,
  owner_epoch bigint  NOT NULL,
  PRIMARY KEY (topic, partition)
) WITH (fillfactor = 10);
COMMENT ON TABLE bulk.offsets IS 'Ledger: the offset that each partition reads next, and the epoch of the worker that may move it.';

CREATE TABLE bulk.rejections (
  job_id       uuid    NOT NULL REFERENCES bulk.jobs ON DELETE CASCADE,
  sequence     bigint  NOT NULL,
  record_index integer NOT NULL,
  code         text    NOT NULL,
  field        text    NOT NULL,
  reason       text    NOT NULL,
  record       bytea   NOT NULL,
  PRIMARY KEY (job_id, sequence, record_index)
);
COMMENT ON TABLE bulk.rejections IS 'Records that could not be applied, with their place in the job and the reason.';
