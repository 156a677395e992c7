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
